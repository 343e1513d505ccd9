"""The farm's task in a Ray worker: starts a hand for one build, and hands on what it says.

A process of its own, because Ray ends a worker without a word: the hand hears that the worker is gone, and ends uv.
Only the standard library is imported, so that a node which lacks the daemon's parts can say so.
"""

import contextlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO

_TAIL = 2000


def release() -> str:
    """The installed release of environment-fabric."""
    return importlib.metadata.version("environment-fabric")


def build(wanted: str, task: bytes) -> Iterator[bytes]:
    """Fills a staging folder; gives what the hand says, in JSON. `wanted` is the daemon's release."""
    host = os.uname().nodename
    if release() != wanted:
        yield _refused(
            f"node {host} has environment-fabric {release()} in Ray's Python and the daemon is {wanted}: install "
            f"environment-fabric[daemon]=={wanted} there"
        )
        return
    # The daemon's sign that Ray has let the task begin.
    yield json.dumps({"begun": host}).encode()
    try:
        with contextlib.ExitStack() as stack:
            said = stack.enter_context(tempfile.TemporaryFile())
            ours, process = _start(stack, said)
            yield from _words(host, ours, process, said, task)
    except OSError as error:
        # Most likely a full /tmp. Nothing of the build has begun: what it does itself comes as a word.
        yield _refused(f"node {host} can't begin to build: {error}. Look into its /tmp and its memory")


def _start(stack: contextlib.ExitStack, said: IO[bytes]) -> tuple[Connection, subprocess.Popen[bytes]]:
    """The hand's process, with the daemon's end of what it says; both end with the stack."""
    ours, theirs = Pipe()
    stack.callback(ours.close)
    with contextlib.closing(theirs):
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "envfabric.build.farm.hand", str(theirs.fileno())],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            pass_fds=(theirs.fileno(),),
        )
    return ours, process


def _words(
    host: str, ours: Connection, process: subprocess.Popen[bytes], said: IO[bytes], task: bytes
) -> Iterator[bytes]:
    # It leaves a child of its own and ends.
    failed = process.wait()
    over = False
    with contextlib.suppress(EOFError, OSError):
        ours.send_bytes(task)
        while True:
            word = ours.recv_bytes()
            over = not json.loads(word).keys() & {"phase", "log"}
            yield word
    if over:
        return
    said.seek(0)
    text = said.read()[-_TAIL:].decode(errors="replace").strip()
    if "ModuleNotFoundError" in text or "ImportError" in text:
        yield _refused(
            f"node {host} lacks a part of environment-fabric[daemon] in Ray's Python, {sys.executable}: "
            f"{text.splitlines()[-1]}"
        )
    else:
        # Ended by the system, as for want of memory.
        code = f" with exit code {failed}" if failed else ""
        lost = f"the build's process on node {host} ended without a word{code}: {text}"
        yield json.dumps({"lost": lost.rstrip(": ")}).encode()


def _refused(message: str) -> bytes:
    return json.dumps({"refused": message, "reason": "internal"}).encode()
