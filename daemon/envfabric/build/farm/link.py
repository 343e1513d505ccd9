"""The daemon's end of the farm: the child that is in the cluster, and what it says of each build.

A link lives as long as its child: a cluster that is lost, or never reached, ends it for good, and whoever waits for a
word of it hears so. The next one is a new link. A head that only does not answer ends nothing: builds go on without
it. Starts and ends the child, and touches nothing of ROOT.
"""

import contextlib
import itertools
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing import Pipe
from typing import Any

from envfabric.build.farm.words import Node, Word
from envfabric.build.scope import current
from envfabric.core.errors import redact
from envfabric.telemetry import logs

PATIENCE = 120.0
"""Seconds for which a head that does not say its nodes is waited for. Ray itself gives up one that is gone after 60."""
_CONNECT = 120.0
"""Seconds in which the cluster has to be reached."""
_ANSWER = 60.0
"""Seconds in which it has to say what nodes it has."""
_TAIL = 600

Words = queue.SimpleQueue[Word]


class Unreachable(Exception):
    """The cluster can't be reached, or is lost. The message says why."""


def _variables() -> dict[str, str]:
    """The child's. Below `uv run` Ray would send the working folder, which is /, to every node, and start uv there."""
    kept = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    return {**kept, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}


class Link:
    """One child in the cluster. Safe for threads."""

    def __init__(self, address: str) -> None:
        """Starts the child; `ready` waits for it."""
        self._address = address
        self._until = time.monotonic() + _CONNECT
        self._connection, theirs = Pipe()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (until the child is gone)
        self._sending = threading.Lock()
        self._keys = itertools.count()
        self._waiting: dict[int, Words] = {}
        self._lock = threading.Condition()
        self._why: str | None = None
        self._reached = False
        self._ended = 0.0
        self._silent: float | None = None
        """When the head was first asked for its nodes in vain; None while it answers."""
        self._heard = threading.Event()
        """Set when the last word of the child was heard."""
        with contextlib.closing(theirs):
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "envfabric.build.farm.driver",
                    str(theirs.fileno()),
                    address,
                ],
                # Ray has its workers look for modules in the driver's folder, too.
                cwd="/",
                env=_variables(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
                pass_fds=(theirs.fileno(),),
                # Ctrl-C is the daemon's to hear.
                start_new_session=True,
            )
        threading.Thread(target=self._listen, name="farm", daemon=True).start()

    @property
    def lost(self) -> bool:
        """Whether it is over with it."""
        return self._why is not None

    @property
    def unreached(self) -> float | None:
        """Seconds since it was over with a link that never reached the cluster; None for any other."""
        with self._lock:
            return None if self._why is None or self._reached else time.monotonic() - self._ended

    @property
    def silent(self) -> float:
        """Seconds for which the head has not said its nodes; 0 where it answered last."""
        silent = self._silent
        return 0.0 if silent is None else time.monotonic() - silent

    def ready(self) -> None:
        """Waits until the cluster is reached. Raises `Unreachable`, and what the step's scope does."""
        scope = current()
        with scope.ended_by(self._wake), self._lock:
            self._lock.wait_for(
                lambda: self._reached or self._why is not None or scope.ended,
                max(0.0, self._until - time.monotonic()),
            )
        scope.check("connecting to the farm's cluster")
        if not self._reached:
            # Nothing is changed by it where it was over before.
            self.close(f"it did not answer within {_CONNECT:g} s")
        self._check()

    def nodes(self) -> list[Node]:
        """The cluster's live nodes. Raises `Unreachable`, and what the step's scope does."""
        key, words = self._expect()
        scope, began = current(), time.monotonic()
        try:
            with scope.ended_by(lambda: words.put({})):
                self._send({"nodes": key})
                try:
                    word = words.get(timeout=_ANSWER)
                except queue.Empty:
                    word = {"failed_nodes": f"it did not answer within {_ANSWER:g} s"}
            scope.check()
            if (why := word.get("failed_nodes")) is not None:
                self._fall_silent(key, began)
                raise Unreachable(redact(str(why)))
            if "nodes" not in word:
                self._check()
                raise Unreachable("it did not answer")
            self._silent = None
            return [Node(**one) for one in word["nodes"]]
        finally:
            self.forget(key)

    def _fall_silent(self, key: int, since: float) -> None:
        """Notes that the head said nothing to who asked it with `key`."""
        if self._silent is None:
            self._silent = since
        with self._lock:
            others = self._waiting.keys() - {key}
        if self.silent >= PATIENCE and not others:
            # Nothing is under way that it could cost: the next build tries a new connection.
            self.close("its head does not answer")

    def submit(self, asked: Word) -> tuple[int, Words]:
        """Submits a task; gives its key, for `cancel` and `forget`, and what is said of it. Raises `Unreachable`."""
        key, words = self._expect()
        try:
            self._send({**asked, "key": key})
        except BaseException:
            self.forget(key)
            raise
        return key, words

    def cancel(self, key: int) -> None:
        """Has a task ended; its last word comes all the same."""
        with contextlib.suppress(Unreachable):
            self._send({"cancel": key})

    def forget(self, key: int) -> None:
        """Nobody waits for this task's words any more."""
        with self._lock:
            self._waiting.pop(key, None)

    def close(self, why: str = "the daemon is stopping") -> None:
        """Ends the child, and with it all that was submitted."""
        self._over(why)
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def _expect(self) -> tuple[int, Words]:
        words: Words = queue.SimpleQueue()
        with self._lock:
            self._check()
            key = next(self._keys)
            self._waiting[key] = words
        return key, words

    def _send(self, word: dict[str, Any]) -> None:
        try:
            with self._sending:
                self._connection.send(word)
        except OSError:
            # Whatever it was, nothing goes down any more. Why is the listener's to say: the child's own last word may
            # not have been read yet, and is better than what its exit looks like.
            self._process.kill()
            self._heard.wait()
            self._check()

    def _check(self) -> None:
        if self._why is not None:
            raise Unreachable(self._why)

    def _listen(self) -> None:
        why = ""
        try:
            while True:
                word = json.loads(self._connection.recv_bytes())
                if "ready" in word:
                    logs.get().info("the farm's cluster is reached", address=self._address)
                    with self._lock:
                        self._reached = True
                        self._lock.notify_all()
                elif "failed" in word:
                    why = redact(word["failed"])
                else:
                    with self._lock:
                        words = self._waiting.get(word["key"])
                    if words is not None:
                        words.put(word)
        except (EOFError, OSError):
            pass
        finally:
            # Nothing is left that would hear it, or be heard.
            self._process.kill()
            self._process.wait()
            self._over(why or self._last_words())
            self._heard.set()
            # Not while somebody sends: the descriptor's number may be another file's in the next moment.
            with self._sending:
                self._connection.close()
            self._said.close()

    def _over(self, why: str) -> None:
        with self._lock:
            if self._why is None:
                self._why, self._ended = why, time.monotonic()
            waiting = list(self._waiting.values())
            self._lock.notify_all()
        for words in waiting:
            words.put({"lost": f"the Ray cluster was lost: {self._why}"})

    def _wake(self) -> None:
        with self._lock:
            self._lock.notify_all()

    def _last_words(self) -> str:
        """What the child said last, in short."""
        with contextlib.suppress(OSError, ValueError):
            size = self._said.seek(0, os.SEEK_END)
            self._said.seek(max(0, size - _TAIL))
            lines = self._said.read().decode(errors="replace").strip().splitlines()
            if lines and "No module named 'ray" in lines[-1]:
                return "the daemon's Python has no ray: install environment-fabric[daemon,ray]"
            if lines:
                return redact(lines[-1])
        return f"the connection to it ended with exit code {self._process.poll()}"
