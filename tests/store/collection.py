"""A ROOT with closures, generations and claims on them, and the collector that looks at it."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from envfabric.store.claims import Claims
from envfabric.store.closures import Closures
from envfabric.store.collect import Collected, Collector
from envfabric.store.files import Files
from envfabric.store.generations import Content, Generation, Generations
from envfabric.store.leases import Leases
from envfabric.store.pins import Pins
from envfabric.store.retention import Holdings, Plan, Retention, Rules, Served, Serving
from envfabric.store.root import Root
from store.small_venv import build

STRICT = Rules(grace=0, generations=1, generation_age=0, trash_age=0, scan=False)
"""Nothing is kept that nobody uses, and the processes of this host are not looked at."""
DAY = 86400.0


@dataclass
class World:
    """What is on one ROOT, and what its writer says is served. Each look is that of a new process."""

    root: Root
    served: dict[str, list[Serving]] | None = field(default_factory=dict)
    rules: Rules = STRICT
    claims: Claims = field(default_factory=Claims)
    check: Callable[[], None] = lambda: None

    def closure(self, name: str, *packages: str) -> Path:
        """Puts a closure into the store."""
        build(Closures(self.root, Files()), self.root, name, *packages)
        assert self.root.closure(name).is_dir()
        return self.root.closure(name)

    def generation(self, spec_id: str, name: str, *, days: float = 0, kept: Generations | None = None) -> int:
        """Makes a spec's next generation, which uses a closure; gives its number. `kept` is who writes it."""
        kept = kept or Generations(self.root, Files())
        draft = Generation(
            spec=spec_id,
            number=0,
            digest=name,
            inputs=name,
            tree="t" * 40,
            commit="c" * 40,
            built_at="2026-01-01T00:00:00.000Z",
            python_version="3.11.7",
            ray_version=None,
            lock_origin="resolved",
            runtime_env={},
            closure={},
        )
        text = f"{spec_id} {name} {len(kept.numbers(spec_id))}".encode()
        made = kept.record(draft, Content(text, text))
        ago(kept.folder(spec_id, made.number), days * DAY)
        return made.number

    def serve(self, spec_id: str, name: str | None, number: int | None) -> None:
        """The spec serves this from now on; with None it has nothing to serve."""
        assert self.served is not None
        self.served[spec_id] = [Serving(name, number)]

    def retention(self, files: Files | None = None, **rules: Any) -> Retention:
        files = files or Files()
        holdings = Holdings(
            root=self.root,
            files=files,
            closures=Closures(self.root, files),
            generations=Generations(self.root, files),
            pins=Pins(self.root, files),
            leases=Leases(self.root, files),
            rules=replace(self.rules, **rules),
            serving=self.serving,
        )
        return Retention(holdings)

    def plan(self, *, dry: bool = False, **rules: Any) -> Plan:
        return self.retention(**rules).plan(dry=dry)

    def collector(self, files: Files | None = None, **rules: Any) -> Collector:
        return Collector(self.retention(files, **rules), self.claims, lambda: self.check())

    def collect(self, files: Files | None = None, *, hurry: bool = False, **rules: Any) -> Collected:
        return self.collector(files, **rules).collect(hurry=hurry)

    def serving(self) -> Served | None:
        return self.served

    def stored(self) -> set[str]:
        """The names in store/."""
        return set(os.listdir(self.root.store))

    def numbers(self, spec_id: str) -> set[int]:
        """The generations that a spec has."""
        return set(Generations(self.root, Files()).numbers(spec_id))


def lease(folder: Path, name: str, holder: str = "node.1.a", *, expired: bool = False) -> Path:
    """A lease as docs/leases.md describes it, in force for an hour; or one that ended a day ago."""
    (folder / name).mkdir(exist_ok=True)
    path = folder / name / holder
    path.write_text(json.dumps({"schema": 1, "ttl": 3600, "host": "node", "what": "a test"}))
    if expired:
        ago(path, DAY)
        # Nobody has given it back since.
        ago(path.parent, 2 * DAY)
    return path


def ago(path: Path, seconds: float) -> None:
    """Makes a path as old as that."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def everything(root: Root) -> dict[str, tuple[int, int, int]]:
    """Every path below ROOT with its inode, mtime and size."""
    found = {}
    for parent, folders, files in os.walk(root.path):
        for name in (*folders, *files):
            status = os.lstat(os.path.join(parent, name))
            found[os.path.join(parent, name)] = (status.st_ino, status.st_mtime_ns, status.st_size)
    return found
