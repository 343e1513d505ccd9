"""Fixtures: a bare repository behind a git host, and mirrors of it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from envfabric.specs.mirror import Mirror
from envfabric.specs.remote import remote_of
from envfabric.specs.repository import Repository
from support.fabric import Fabric
from support.git_server import GitServer
from support.simple_index import SimpleIndex
from support.spec_repo import SpecRepo

MakeMirror = Callable[..., Mirror]


@pytest.fixture
def remote(tmp_path: Path) -> SpecRepo:
    """A bare repository with one commit: wf/a, and a large file outside of every spec."""
    repo = SpecRepo(tmp_path / "remote" / "specs.git", bare=True)
    repo.spec("wf/a")
    repo.commit()
    return repo


@pytest.fixture
def host(remote: SpecRepo) -> Iterator[GitServer]:
    """A git host that serves it by http."""
    with GitServer(remote.path.parent) as server:
        yield server


@pytest.fixture
def make_mirror(tmp_path: Path) -> MakeMirror:
    """Makes mirrors in one state folder."""

    def make(url: str, branch: str | None = None, path: str = "", timeout: float = 60, **more: Any) -> Mirror:
        found = remote_of(url, **more)
        assert found is not None
        return Mirror(found, branch, path, tmp_path / "state", timeout)

    return make


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """What is entered here is closed at the end of the test."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def remote_fabric(tmp_path: Path, packages: SimpleIndex, remote: SpecRepo, host: GitServer) -> Fabric:
    """A fabric that follows the repository by http, and asks often."""
    fabric = Fabric(tmp_path, packages, remote)
    fabric.settings = {
        "repo": host.url("specs.git"),
        "interval": 0.5,
        "fetch": {"interval": 0.5, "timeout": 60, "state": str(tmp_path / "state")},
    }
    return fabric


def read_all(mirror: Mirror, path: str = "") -> dict[str, bytes]:
    """The spec files that a reader of the mirror sees at its head."""
    with Repository(mirror.path, spec_path=path) as source:
        head = source.head()
        assert head is not None
        return {
            item.path: source.read(item.oid)
            for item in source.tree(head)
            if item.path.endswith("pyproject.toml")
        }
