"""Fixtures: one fabric on which orders are given, with a daemon that holds ROOT and without one."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from envfabric.store.files import Files
from envfabric.store.pins import Pins
from envfabric.store.root import Root
from support.fabric import Fabric, RunningDaemon


class Held:
    """A fabric whose ROOT is held by a daemon, or by nobody but the command that is running."""

    def __init__(self, fabric: Fabric, daemon: RunningDaemon | None) -> None:
        self.fabric = fabric
        self.daemon = daemon

    def make_true(self, commit: str, *, expect: int = 0) -> dict[str, Any]:
        """The index once it is complete for this commit, by the daemon or by `run --once`."""
        if self.daemon is not None:
            return self.daemon.wait_for_index(commit)
        return self.fabric.run_once(expect=expect)

    def generations(self, *versions: str, spec_id: str = "wf/a") -> dict[str, Any]:
        """Publishes one generation after the other, each with this version of gamma."""
        for version in versions:
            self.fabric.repo.spec(spec_id, [f"gamma=={version}"])
            index = self.make_true(self.fabric.repo.commit())
        return index

    def order(self, *words: str | Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
        """Runs a command with the fabric's settings; fails where its exit code is another."""
        done = self.fabric.command(*words, "--config", self.fabric.configure())
        assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def entry(self, spec_id: str = "wf/a") -> dict[str, Any]:
        """What the index says of the spec."""
        return self.fabric.entry(spec_id)

    @property
    def pins(self) -> Pins:
        """The pins on ROOT."""
        return Pins(Root(self.fabric.root), Files())

    def version(self, spec_id: str = "wf/a") -> str:
        """The version of gamma that the spec's interpreter imports."""
        return self.fabric.python(spec_id, "import gamma; print(gamma.VERSION)")


@pytest.fixture(params=["daemon", "alone"])
def held(request: pytest.FixtureRequest, fabric: Fabric) -> Iterator[Held]:
    """Every promise holds whether the order is left in requests/ or carried out by the command."""
    with contextlib.ExitStack() as stack:
        daemon = None
        # Interpreters of closures run in these tests, and must write nothing into them.
        stack.enter_context(pytest.MonkeyPatch.context()).setenv("PYTHONDONTWRITEBYTECODE", "1")
        if request.param == "daemon":
            fabric.repo.commit("nothing yet")
            daemon = stack.enter_context(fabric.daemon())
        yield Held(fabric, daemon)
