"""A fabric in which nothing is kept that nobody uses, and the commands that people give it."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from support.fabric import Fabric, RunningDaemon
from support.simple_index import SimpleIndex
from support.spec_repo import SpecRepo
from support.waiting import wait_for

STRICT = {
    "grace": 0,
    "generations": 1,
    "generation_age": 0,
    "trash_age": 0,
    "interval": 0,
    "min_free": 0,
    "scan": False,
}
"""Collections run only when asked for, and keep nothing longer than it is used."""


class Keeping:
    """A fabric and its commands."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.root = fabric.root
        self.repo = fabric.repo
        self.packages = fabric.packages
        fabric.settings["gc"] = dict(STRICT)
        fabric.settings["interval"] = 0.2
        # Removals are what many of these tests are about.
        fabric.settings["prune"] = {"share": 1.0}

    def rules(self, **changed: Any) -> None:
        """Changes settings of [gc]."""
        self.fabric.settings["gc"] |= changed

    def spec(self, spec_id: str, *requirements: str, **details: Any) -> None:
        """Writes a spec; commit is another step."""
        self.repo.spec(spec_id, requirements, **details)

    def make_true(self, daemon: RunningDaemon | None = None, expect: int = 0) -> dict[str, Any]:
        """Commits, and has the daemon make it true, or runs one for it."""
        commit = self.repo.commit()
        if daemon is not None:
            return daemon.wait_for_index(commit)
        return self.fabric.run_once(expect=expect)

    def serving(self, spec_id: str) -> str:
        """The closure that a spec serves."""
        return str(self.fabric.entry(spec_id)["serving"])

    def stored(self) -> set[str]:
        """The closures; a daemon that starts has names of its own beside them while it probes."""
        return {name for name in os.listdir(self.root / "store") if not name.startswith(".")}

    def told(self, *arguments: str, expect: int = 0) -> dict[str, Any]:
        """What a command says as JSON."""
        done = self.fabric.command(*arguments, "--json", "--config", self.fabric.configure())
        assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def gc(self) -> dict[str, Any]:
        return self.told("gc")

    def dry_run(self) -> dict[str, Any]:
        return self.told("gc", "--dry-run")

    def say(self, *arguments: str, expect: int = 0) -> str:
        """What a command prints for people."""
        done = self.fabric.command(*arguments, "--config", self.fabric.configure())
        assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    @contextmanager
    def maybe_daemon(self, wanted: bool = True) -> Iterator[RunningDaemon | None]:
        """With a daemon that has made the revision true, or without one."""
        with self.fabric.daemon() if wanted else nullcontext() as daemon:
            if daemon is not None:
                wait_for(lambda: daemon.events("revision") or None, message="the daemon holds no ROOT")
                daemon.wait_for_index(self.repo.head)
            yield daemon


@pytest.fixture(autouse=True)
def _sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root's interpreters would write .pyc files into sealed closures, which `verify` rightly reports."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")


@pytest.fixture
def keeping(fabric: Fabric) -> Keeping:
    return Keeping(fabric)


@pytest.fixture
def own_keeping(tmp_path: Path, own_packages: SimpleIndex) -> Keeping:
    """With an index of its own, which a test may break."""
    own_packages.add_wheel("beta", "1.0", requires=["alpha"])
    own_packages.add_wheel("gamma", "1.0")
    own_packages.add_wheel("gamma", "2.0")
    return Keeping(Fabric(tmp_path, own_packages, SpecRepo(tmp_path / "specs")))
