"""The daemon that is killed: a process that forks real daemons, each of which can kill itself at a given moment.

    victim.py LOG        (started by faults/daemons.py; one JSON line on stdin for each daemon)

Everything is imported once, and a fork takes milliseconds where a start would take half a second. Of the
daemon nothing is replaced: `Files(step)` is its own seam, and the starts of uv are heard by an audit hook.
SIGKILL goes to the daemon's own process only, so that its uv goes on.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from envfabric.service.daemon import Daemon
from envfabric.service.settings import load_settings
from envfabric.store.files import Files
from envfabric.telemetry import logs
from faults.kinds import kind_of, run_kind
from support.namespace import descendants

_STARTED_WITHIN = 5.0
"""Seconds in which a process that is about to be started is there, or has ended already."""
_SETTLED_WITHIN = 180.0
"""Seconds in which everything has to become true."""


class Control:
    """What the driver tells this daemon, and the moment at which it kills itself."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines = connection.makefile("r", encoding="utf-8")
        self._lock = threading.RLock()
        self._arms: dict[str, tuple[int, float]] = {}
        self._seen: Counter[str] = Counter()
        self._since: Counter[str] = Counter()
        self._rounds = threading.Condition()
        self._round = 0
        self._state: tuple[str | None, bool] = (None, False)
        self.root = Path()
        self.daemon: Daemon | None = None

    def begin(self) -> dict[str, Any]:
        """The first message, answered before the daemon begins: it may be armed from its first step on."""
        message = self._read()
        assert message is not None
        self._obey(message)
        threading.Thread(target=self._listen, daemon=True).start()
        return message

    def step(self, operation: str, path: Path) -> None:
        """The seam's step: counted, and the last one where it is the drawn one."""
        kind = kind_of(self.root, operation, path)
        with self._lock:
            self._count(kind)
            if kind in self._arms and self._since[kind] >= self._arms[kind][0]:
                self._die(kind)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Hears of every process that is about to be started."""
        if event != "subprocess.Popen":
            return
        command = [str(one) for one in arguments[1]]
        kind = run_kind(command)
        if kind is None:
            return
        with self._lock:
            self._count(kind)
            number, delay = self._arms.get(kind, (0, 0.0))
            if self._since[kind] == number:
                threading.Thread(target=self._die_later, args=(kind, delay), daemon=True).start()

    def started(self, url: str) -> None:
        """The daemon serves."""
        self._send({"started": url})

    def stopped(self) -> None:
        """The daemon has ended in order."""
        with self._lock:
            self._send({"last": dict(self._seen)})

    def each_round(self) -> None:
        """Called by the loop after each round."""
        reconciler = self.daemon.reconciler if self.daemon else None
        if reconciler is None:
            return
        published, board = reconciler.published, reconciler.board
        true = (
            published is not None
            and reconciler.work.idle
            and published.complete
            and published.revision == board.revision
            and published.entries == board.entries
        )
        with self._rounds:
            self._round += 1
            self._state = (published.revision if published else None, true)
            self._rounds.notify_all()

    def _listen(self) -> None:
        while (message := self._read()) is not None:
            self._obey(message)
        # The driver is gone: nobody would ever end this daemon.
        os.kill(os.getpid(), signal.SIGKILL)

    def _obey(self, message: dict[str, Any]) -> None:
        answer: Any = True
        if message["do"] == "arm":
            with self._lock:
                self._since.clear()
                self._arms = {kind: (int(at), float(delay)) for kind, at, delay in message["kinds"]}
        elif message["do"] == "seen":
            with self._lock:
                answer = dict(self._seen)
                self._seen.clear()
        elif message["do"] == "settled":
            answer = self._settled(message["commit"])
        self._send({"answer": answer})

    def _settled(self, commit: str) -> bool:
        """Waits until a round that begins after this finds everything true."""
        deadline = time.monotonic() + _SETTLED_WITHIN
        with self._rounds:
            # One round may be under way.
            first = self._round + 2
            while self._round < first or self._state != (commit, True):
                self._rounds.wait(1.0)
                if time.monotonic() > deadline:
                    return False
        return True

    def _count(self, kind: str) -> None:
        self._seen[kind] += 1
        self._since[kind] += 1

    def _die_later(self, kind: str, delay: float) -> None:
        # It is about to be started: on a busy machine that takes a while.
        deadline = time.monotonic() + _STARTED_WITHIN
        while not running_uv(os.getpid()) and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(delay)
        with self._lock:
            # Where uv has ended meanwhile this is no moment of its running time any more.
            if kind in self._arms and running_uv(os.getpid()):
                self._die(kind)

    def _die(self, kind: str) -> None:
        self._send({"dying": kind, "uv": running_uv(os.getpid())})
        os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()

    def _read(self) -> dict[str, Any] | None:
        line = self._lines.readline()
        return json.loads(line) if line else None

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError), self._lock:
            self._connection.sendall(json.dumps(message).encode() + b"\n")


def running_uv(pid: int) -> list[int]:
    """The uv processes below a process that have not ended."""
    return [one for one in descendants(pid) if is_uv(one)]


def is_uv(pid: int) -> bool:
    """Whether this is a uv process, and not just the remains of one."""
    try:
        # What has ended has no command line.
        return Path(os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0])).name == "uv"
    except OSError:
        return False


def _live(order: dict[str, Any]) -> None:
    """One daemon, from its start to its end."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(order["socket"])
    control = Control(connection)
    settings = load_settings(Path(order["config"]), {}, discover=False)
    logs.configure(settings.log_level)
    assert settings.root is not None
    control.root = settings.root
    sys.addaudithook(control.audit)
    control.begin()
    control.daemon = Daemon(settings, files=Files(control.step))
    control.daemon.run(control.started, control.each_round)
    control.stopped()


def main() -> None:
    """Forks a daemon for each line of stdin, and says its process id, and then how it ended."""
    log = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    os.dup2(log, 2)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                # Neither the driver's orders nor its answers belong to the daemon and its children.
                null = os.open(os.devnull, os.O_RDWR)
                os.dup2(null, 0)
                os.dup2(null, 1)
                _live(json.loads(line))
                code = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(code)
        print(json.dumps({"pid": pid}), flush=True)
        print(json.dumps({"code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}), flush=True)


if __name__ == "__main__":
    main()
