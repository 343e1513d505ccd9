"""The driver's side of the daemons under fire: starts one, arms it, asks it, and hears of its death.

Knows nothing of specs or stores. Whatever it starts is ended by its process id.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

VICTIM = Path(__file__).with_name("victim.py")
ANSWERS_WITHIN = 240.0
"""Seconds after which a daemon that says nothing counts as hanging."""

Arm = tuple[str, int, float]
"""A kind of step, the call of it that is the last one, and for uv the seconds after its start."""


class Dead(Exception):
    """The daemon was killed at the moment that it was armed for."""


@dataclass
class Death:
    """How a daemon ended."""

    kind: str
    uv: list[int] = field(default_factory=list)
    """The uv processes that it left behind."""


class Barracks:
    """The process that forks the daemons. Use as a context manager."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.log = folder / "daemon.log"
        # Without a file: the path of a temporary folder may be too long for a socket's.
        self._path = f"\0envfabric-faults-{uuid.uuid4().hex}"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self._path)
        self._listener.listen()
        self._listener.settimeout(ANSWERS_WITHIN)
        self._process = subprocess.Popen(
            [sys.executable, str(VICTIM), str(self.log)],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._running: RunningVictim | None = None

    def __enter__(self) -> "Barracks":
        return self

    def __exit__(self, *_: object) -> None:
        if self._running is not None:
            self._running.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._listener.close()

    def start(self, config: Path, arms: list[Arm]) -> "RunningVictim":
        """Starts a daemon that is armed from its first step on."""
        assert self._running is None, "one daemon at a time"
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"config": str(config), "socket": self._path}) + "\n")
        self._process.stdin.flush()
        pid = int(self._said()["pid"])
        connection, _ = self._listener.accept()
        self._running = RunningVictim(self, pid, connection)
        self._running.arm(arms)
        return self._running

    def ended(self) -> int:
        """Waits for the end of the daemon that runs; gives its exit code."""
        self._running = None
        return int(self._said()["code"])

    def _said(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return dict(json.loads(_line(self._process.stdout)))


class RunningVictim:
    """One daemon that runs."""

    def __init__(self, barracks: Barracks, pid: int, connection: socket.socket) -> None:
        self._barracks = barracks
        self._connection = connection
        self._buffer = b""
        self._pid = pid
        self._started = False
        self.death: Death | None = None

    def arm(self, arms: list[Arm]) -> None:
        """Sets the moments of which the first that comes is the daemon's last; none disarms it."""
        self._ask({"do": "arm", "kinds": arms})

    def seen(self) -> dict[str, int]:
        """The steps since the last time that this was asked, by kind."""
        return dict(self._ask({"do": "seen"}))

    def wait_started(self) -> None:
        """Waits until it serves. Raises `Dead`."""
        while not self._started:
            self._take(ANSWERS_WITHIN)

    def wait_settled(self, commit: str) -> None:
        """Waits until all of a commit is true and published. Raises `Dead`."""
        assert self._ask({"do": "settled", "commit": commit}), f"{commit} did not become true in time"

    def check_alive(self) -> None:
        """Raises `Dead` where it is not."""
        while self._take(0):
            pass

    def stop(self) -> dict[str, int]:
        """SIGTERM, and exit code 0; gives the steps since `seen`. Raises `Dead` where its moment came first."""
        # Its moment may have come already: what it said of that is read below.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGTERM)
        steps: dict[str, int] = {}
        while told := self._take(ANSWERS_WITHIN, ending=True):
            steps = told.get("last", steps)
        self._connection.close()
        code = self._barracks.ended()
        assert code == 0, f"the daemon ended with exit code {code}; see {self._barracks.log}"
        return steps

    def kill(self) -> None:
        """SIGKILL from outside, at no chosen moment."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        self._barracks.ended()
        self._connection.close()

    def _ask(self, message: dict[str, Any]) -> Any:
        # Where it is dead, what it said before that is still to be read.
        with contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")
        while True:
            told = self._take(ANSWERS_WITHIN)
            if told and "answer" in told:
                return told["answer"]

    def _take(self, timeout: float, *, ending: bool = False) -> dict[str, Any] | None:
        """The next message; with `timeout` 0 None where there is none, and with `ending` None at the end."""
        while b"\n" not in self._buffer:
            if not select.select([self._connection], [], [], timeout)[0]:
                if timeout == 0:
                    return None
                raise AssertionError(f"the daemon says nothing; see {self._barracks.log}")
            try:
                data = self._connection.recv(65536)
            except ConnectionError:
                data = b""
            if not data:
                if self.death is None and ending:
                    return None
                self._died()
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        told: dict[str, Any] = json.loads(line)
        if "dying" in told:
            self.death = Death(told["dying"], told["uv"])
        self._started = self._started or "started" in told
        return told

    def _died(self) -> None:
        code = self._barracks.ended()
        self._connection.close()
        if self.death is None or code != -signal.SIGKILL:
            raise AssertionError(f"the daemon ended by itself with {code}; see {self._barracks.log}")
        raise Dead(self.death.kind)


def _line(stream: IO[str]) -> str:
    line = stream.readline()
    assert line, "the process that forks the daemons has ended"
    return line
