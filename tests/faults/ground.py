"""The fabric under fire: six specs over a handful of packages, their index, and what is done to them.

Each order and commit is the real one; what should come of them is kept in faults/story.py.
"""

import contextlib
import os
import time
from pathlib import Path
from threading import Event
from typing import Any

from envfabric.store.files import Files
from envfabric.store.generations import Generations
from envfabric.store.prepare import init_root
from envfabric.store.requests import Answer, Asker
from envfabric.store.root import Root
from faults.daemons import RunningVictim
from support.fabric import Fabric
from support.simple_index import LONGEST_HOLD, SimpleIndex
from support.spec_repo import SpecRepo

Requirements = tuple[str, ...]

LOCKED = "etl/locked"
"""The spec that commits its uv.lock."""
IDS = ("wf/a", "wf/b", "wf/c", "etl/d", "etl/e", LOCKED)
UNRESOLVABLE = "alpha==9.9"
UNFETCHABLE = "withheld==1.0"
BAD = (UNRESOLVABLE, UNFETCHABLE)
GOOD: tuple[Requirements, ...] = (
    ("alpha==1.0",),
    ("alpha==2.0",),
    ("alpha==1.0", "beta==1.0"),
    ("beta==2.0",),
    ("alpha==2.0", "beta==2.0"),
)
RETAINED = 2
"""Generations of a spec that a collection leaves."""
_UNFINISHED = "the daemon ended before it answered"
_ANSWERED_WITHIN = 120.0
"""Seconds in which an order has to be answered."""


class Packages(SimpleIndex):
    """An index that withholds one wheel which it lists, and can hold a download from the n-th on."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._downloads: dict[str, tuple[int, Event]] = {}

    def hold_download(self, name: str, after: int) -> Event:
        """Lets the requests for a wheel wait until the event is set, but for the first `after` of them."""
        event = Event()
        self._downloads[name] = (after, event)
        return event

    def answer(self, path: str, authorization: str | None) -> tuple[int, bytes]:
        """See there."""
        if path.startswith("/files/"):
            name = path.removeprefix("/files/").split("-")[0]
            if name == "withheld":
                return 404, b""
            left, event = self._downloads.get(name, (0, None))
            if event is not None:
                self._downloads[name] = (left - 1, event)
                if left <= 0:
                    event.wait(LONGEST_HOLD)
        return super().answer(path, authorization)


class Ground:
    """One fabric with its repository and its index."""

    def __init__(self, folder: Path, packages: Packages) -> None:
        self.packages = packages
        for name in ("alpha", "beta"):
            packages.add_wheel(name, "1.0", requires=["base"])
            packages.add_wheel(name, "2.0", requires=["base"])
        packages.add_wheel("base", "1.0", modules={"base.py": "VERSION = '1.0'\n", "base.txt": "shared\n"})
        packages.add_wheel("withheld", "1.0")
        self.fabric = Fabric(folder, packages, SpecRepo(folder / "specs"))
        self.fabric.settings |= {
            "interval": 0.1,
            "prune": {"share": 1.0},
            "gc": {
                "grace": 0,
                "trash_age": 0,
                "generations": RETAINED,
                "generation_age": 0,
                "interval": 0,
                "min_free": 0,
            },
        }
        self.root = Root(self.fabric.root)
        self.config = self.fabric.configure()
        self.commit = ""
        self.ran: set[tuple[str, Requirements]] = set()
        """Interpreters that were seen to import what their specs require, since the last kill."""
        self._fresh = 0
        self._locks: dict[Requirements, bytes] = {}

    def new_root(self) -> None:
        """An empty ROOT in the place of the one that was there."""
        if self.root.path.exists():
            Files().remove_tree(self.root.path)
        init_root(self.root.path, Files())

    def fresh_package(self) -> str:
        """A package that nobody has seen yet; gives its name."""
        self._fresh += 1
        name = f"fresh{self._fresh}"
        self.packages.add_wheel(name, "1.0", requires=["base"])
        return name

    def write(self, spec_id: str, requirements: Requirements | None) -> None:
        """Writes a spec, or with None removes it; the same requirements are the same git tree."""
        repo = self.fabric.repo
        if requirements is None:
            repo.remove(spec_id)
            return
        if spec_id != LOCKED:
            repo.spec(spec_id, requirements)
            return
        repo.spec(spec_id, requirements, index=self.packages.url)
        folder = repo.work / spec_id
        if requirements not in self._locks:
            with contextlib.suppress(FileNotFoundError):
                (folder / "uv.lock").unlink()
            self.fabric.lock(folder)
            self._locks[requirements] = (folder / "uv.lock").read_bytes()
        (folder / "uv.lock").write_bytes(self._locks[requirements])

    def commit_all(self) -> None:
        """Commits what was written."""
        self.commit = self.fabric.repo.commit()

    def age_cache(self) -> None:
        """Makes what uv has unpacked old enough to be evicted where nothing links it."""
        with contextlib.suppress(FileNotFoundError):
            for archive in (self.root.uv_cache / "archive-v0").iterdir():
                os.utime(archive, (0, 0))

    def damage(self, name: str, *, shared: bool) -> None:
        """Changes a file of a closure in place: one that is its own, or one whose inode others share."""
        own = ".venv/bin/activate.fish"
        (path,) = self.root.closure(name).glob(".venv/lib/python*/site-packages/base.txt" if shared else own)
        path.chmod(0o644)
        with path.open("r+b") as file:
            first = file.read(1)
            file.seek(0)
            file.write(b"x" if first != b"x" else b"y")
        path.chmod(0o444)

    def generations(self) -> Generations:
        """The generations that are there now."""
        return Generations(self.root, Files())


class Order:
    """An order in requests/, as a command leaves it there, over as many daemons as it takes."""

    def __init__(self, ground: Ground, command: str, arguments: dict[str, Any]) -> None:
        self._ground = ground
        self.command = command
        self.arguments = arguments
        self._asker = self._ask()

    def wait(self, victim: RunningVictim) -> Answer:
        """The answer. Raises `Dead`."""
        deadline = time.monotonic() + _ANSWERED_WITHIN
        while True:
            answer = self._asker.answer()
            if answer is not None and not answer.ok and _UNFINISHED in answer.message:
                # As a person would, who is told so.
                self._asker.close()
                self._asker = self._ask()
            elif answer is not None:
                self._asker.close()
                return answer
            victim.check_alive()
            assert time.monotonic() < deadline, f"{self.command} {self.arguments} was not answered"
            time.sleep(0.01)

    def _ask(self) -> Asker:
        asker = Asker(self._ground.root, Files())
        asker.ask(self.command, self.arguments)
        return asker
