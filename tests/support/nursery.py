"""`envfabric` as a process of its own, without the second that a new Python needs to read its packages.

`python -m envfabric` spends most of its time on imports, and the tests start it a thousand times. Here one
process per worker of pytest has imported the command, runs nothing else, and forks: each fork runs
`envfabric.__main__` with its own arguments, variables, folder and files, ends as a Python ends, and can be
signalled, killed and waited for. It has no thread and no other file of that process; its command line and variables
in /proc are that process's, and one seed of hashes holds in all of them. What needs more than that is a new Python:
consumers' commands, which must show that they need no package; a variable that Python or a package reads while it
starts; another umask, limit, user or mount namespace than at pytest's start.
"""

import contextlib
import gc
import json
import os
import re
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from envfabric.client.commands import SUMMARIES

_BASE = {"LC_ALL": "C.UTF-8"}
_READ_AT_START = re.compile(r"(PYTHON|LC_|LANG|LD_|MALLOC_|GIT_PYTHON|PYDANTIC|TYPER|_TYPER|TERMINAL).*|TZ")
_NUMBER = struct.Struct("=i")
# Not by its path: this folder would stand before the packages.
_RUN_THIS = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"

_allowed: list[tuple[str, ...]] = []
_beginning = threading.Lock()
_begun: list[tuple[subprocess.Popen[bytes], socket.socket]] = []


def _surroundings() -> tuple[str, ...]:
    """What a child of this thread inherits beyond what it is given."""
    own = Path("/proc/thread-self")
    status = (own / "status").read_text().splitlines()
    names = ("Umask:", "Uid:", "Gid:", "Groups:", "SigBlk:")
    return (
        *(str((own / "ns" / name).readlink()) for name in ("mnt", "net", "pid", "user")),
        *(line for line in status if line.startswith(names)),
        (own / "limits").read_text(),
        (own / "cgroup").read_text(),
    )


def allow() -> None:
    """Says that commands may be forked from now on. Benches do not: they measure what a user starts."""
    _allowed[:] = [_surroundings()]


class Forked:
    """A process that the nursery forked; used as a `Popen` is."""

    def __init__(self, args: list[str], told: int) -> None:
        self.args = args
        self.returncode: int | None = None
        self._told = told
        self._lock = threading.Lock()
        self.pid = self._number()

    def _number(self) -> int:
        told = os.read(self._told, _NUMBER.size)
        assert len(told) == _NUMBER.size, "the process that forks commands is gone"
        return int(_NUMBER.unpack(told)[0])

    def poll(self) -> int | None:
        """The exit code, negative for a signal, or None while it runs."""
        with self._lock:
            if self.returncode is None and select.select([self._told], [], [], 0)[0]:
                self.returncode = self._number()
                os.close(self._told)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end. Raises `TimeoutExpired`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            # A descriptor of its own: another thread may see the end first, and closes the other one.
            with self._lock:
                told = None if self.returncode is not None else os.dup(self._told)
            if told is not None:
                ready = select.select([told], [], [], left)[0]
                os.close(told)
                if not ready:
                    raise subprocess.TimeoutExpired(self.args, timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal, to nobody where it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


Process = subprocess.Popen[str] | Forked


def start(
    arguments: Sequence[str | Path],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdin: int | IO[str] = subprocess.DEVNULL,
    stdout: int | IO[str] = subprocess.DEVNULL,
    stderr: int | IO[str] = subprocess.DEVNULL,
) -> Process:
    """Starts `envfabric` with these files, each a descriptor, an open file or `DEVNULL`."""
    words = [str(one) for one in arguments]
    started = {name: value for name, value in env.items() if _READ_AT_START.fullmatch(name)}
    if (words and words[0] in SUMMARIES) or started != _BASE or _surroundings() not in _allowed:
        return subprocess.Popen(
            [sys.executable, "-m", "envfabric", *words],
            cwd=cwd,
            env=env,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=True,
        )
    hears, tells = os.pipe()
    with open(os.devnull, "r+b", buffering=0) as nothing:
        files = [
            nothing.fileno() if one == subprocess.DEVNULL else one if isinstance(one, int) else one.fileno()
            for one in (stdin, stdout, stderr)
        ]
        request = {"arguments": words, "cwd": str(cwd), "env": dict(env)}
        socket.send_fds(_nursery(), [json.dumps(request).encode()], [*files, tells])
    os.close(tells)
    return Forked(words, hears)


def run(
    arguments: Sequence[str | Path],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdin: str = "",
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Runs `envfabric` to its end. Raises `TimeoutExpired`, when it is killed."""
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as given,
        tempfile.TemporaryFile("w+", encoding="utf-8") as out,
        tempfile.TemporaryFile("w+", encoding="utf-8") as err,
    ):
        given.write(stdin)
        given.seek(0)
        process = start(arguments, cwd=cwd, env=env, stdin=given, stdout=out, stderr=err)
        try:
            code = process.wait(timeout=timeout)
        finally:
            process.kill()
            process.wait()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess([str(one) for one in arguments], code, out.read(), err.read())


def _nursery() -> socket.socket:
    """The socket of the process that forks; it ends when this one does."""
    # Tests start commands from threads, too.
    with _beginning:
        if not _begun:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, "-c", _RUN_THIS, __file__, str(theirs.fileno())],
                    cwd="/",
                    env={"PATH": os.environ["PATH"], **_BASE},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                )
            _begun.append((process, ours))
        return _begun[0][1]


def _serve(given: int) -> list[str]:
    """Forks for whoever asks; gives a child its arguments, and ends the process that forks when nobody is left."""
    import envfabric.cli.app  # noqa: F401

    gc.collect()
    gc.freeze()
    asked = socket.socket(fileno=given)
    awake, wakes = os.pipe()
    os.set_blocking(wakes, False)
    os.set_blocking(awake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    running: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([given, awake], [], [])
        with contextlib.suppress(BlockingIOError):
            os.read(awake, 4096)
        _reap(running)
        if given not in ready:
            continue
        message, files, _, _ = socket.recv_fds(asked, 1 << 20, 4)
        if not message:
            os._exit(0)
        assert len(os.listdir("/proc/self/task")) == 1, "a fork takes one thread along"
        *standard, tells = files
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # A shell starts what it puts into the background with SIGINT ignored, and that is inherited.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            asked.detach()
            for number, one in enumerate(standard):
                os.dup2(one, number)
            os.closerange(3, max(map(int, os.listdir("/proc/self/fd"))) + 1)
            request = json.loads(message)
            os.chdir(request["cwd"])
            # As `-m` has it.
            sys.path[0] = request["cwd"]
            os.environ.clear()
            os.environ.update(request["env"])
            return list(request["arguments"])
        running[pid] = tells
        os.write(tells, _NUMBER.pack(pid))
        for one in standard:
            os.close(one)


def _reap(running: dict[int, int]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        tells = running.pop(pid)
        # Whoever started it may be gone.
        with contextlib.suppress(BrokenPipeError):
            os.write(tells, _NUMBER.pack(os.waitstatus_to_exitcode(status)))
        os.close(tells)


if __name__ == "__main__":
    sys.argv[1:] = _serve(int(sys.argv[1]))
    runpy.run_module("envfabric", run_name="__main__", alter_sys=True)
