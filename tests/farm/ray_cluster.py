"""Raylets on this machine, started as an operator starts them, that can be lost one by one."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from support.namespace import descendants
from support.ray_user import NO_STOCK
from support.waiting import wait_for

STORE = 80_000_000
VARIABLES = {
    "RAY_AUTH_MODE": "disabled",
    # Below `uv run` Ray would send this folder to the nodes and start its workers by uv.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    **NO_STOCK,
}
"""What a driver on this machine needs, too."""
_ALIVE = """
import sys, time
from ray._raylet import GcsClient
client, wanted = GcsClient(address=sys.argv[1]), sorted(sys.argv[2:])
# One that was lost may be there twice for a while.
while sorted(one.node_name for one in client.get_all_node_info().values() if one.state == 0) != wanted:
    time.sleep(0.1)
"""
"""Waits until the cluster takes these nodes, and no others, for alive."""
_RAY = "from ray.scripts.scripts import main; main()"


class RayCluster:
    """A head without CPUs, which the daemon connects to, and nodes with a custom resource each, their name."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._ends = contextlib.ExitStack()
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._places: dict[str, Path] = {}
        self._changed = True
        """Whether nodes came or went since the cluster was last seen to know."""
        self.address = ""

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as failing:
            # What was started does not outlive a start that fails.
            failing.push(self.__exit__)
            place = self.start("head", cpus=0)
            current = place / "ray_current_cluster"
            self._wait("head", current.exists)
            self._wait("head", lambda: bool(current.read_text().strip()))
            self.address = current.read_text().strip()
            failing.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in reversed(list(self._nodes)):
            self.lose(name)
        self._ends.close()

    def has(self, *names: str) -> None:
        """Sees to it that these nodes are there, whatever was lost before, and no others; the cluster knows it."""
        for name in self._nodes.keys() - {"head", *names}:
            self.lose(name)
        missing = [name for name in names if name not in self._nodes]
        for name in missing:
            self.start(name)
        self.joined(*missing)
        if self._changed:
            subprocess.run(
                [sys.executable, "-c", _ALIVE, self.address, "head", *names],
                env={**os.environ, **VARIABLES},
                check=True,
                timeout=240,
            )
            self._changed = False

    def start(self, name: str, *, cpus: int = 2, within: Sequence[str] = ()) -> Path:
        """Starts a node; `within` is a command that runs it. Gives its RAY_TMPDIR."""
        # The sockets' paths have to stay below 108 bytes.
        place = Path(self._ends.enter_context(tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp")))
        of_head = ("--head", "--port=0", "--include-dashboard=false", "--disable-usage-stats")
        words = [
            *("start", "--block", *((f"--address={self.address}",) if self.address else of_head)),
            *(f"--node-name={name}", f"--temp-dir={place}", f"--num-cpus={cpus}"),
            *(f"--resources={json.dumps({name: 1})}", f"--object-store-memory={STORE}"),
            *("--min-worker-port=0", "--max-worker-port=0"),
        ]
        env = {"PATH": os.environ["PATH"], "HOME": str(self._home), "LC_ALL": "C.UTF-8", **VARIABLES}
        with (place / "start.log").open("wb") as log:
            self._nodes[name] = subprocess.Popen(
                [*within, sys.executable, "-c", _RAY, *words],
                env=env,
                cwd=place,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._places[name] = place
        self._changed = True
        return place

    def joined(self, *names: str) -> None:
        """Waits until these nodes are part of the cluster."""
        for name in names:
            self._wait(name, partial(self._has_joined, name))

    def _has_joined(self, name: str) -> bool:
        return "Ray runtime started" in self.told(name)

    def _wait(self, name: str, what: Callable[[], bool]) -> None:
        try:
            wait_for(what, timeout=240, message=f"{name} did not start")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.told(name)}") from None

    def told(self, name: str) -> str:
        return f"{name}: {(self._places[name] / 'start.log').read_text()[-2000:]}"

    def processes(self, name: str) -> set[int]:
        return {self._nodes[name].pid, *descendants(self._nodes[name].pid)}

    def lose_raylet(self, name: str) -> None:
        """Kills what makes a node of it, and leaves its workers to find out."""
        node = self._nodes.pop(name)
        self._changed = True
        for pid in (node.pid, *(one for one in descendants(node.pid) if "raylet/raylet" in words_of(one))):
            _kill(pid)
        node.wait()

    def lose(self, name: str) -> None:
        """Kills all of a node at once."""
        pids = self.processes(name)
        node = self._nodes.pop(name)
        self._changed = True
        for pid in pids:
            _kill(pid)
        node.wait()


def words_of(pid: int) -> str:
    """A process's command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
