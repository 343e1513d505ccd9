"""A prepared ROOT, and the whole loop on it in the tests' own process, with real git, uv and files."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from envfabric.build.uv import Uv
from envfabric.loop.reconciler import Reconciler
from envfabric.service.assembly import assemble
from envfabric.service.settings import Settings
from envfabric.specs.repository import Repository
from envfabric.store.files import Files
from envfabric.store.prepare import init_root
from envfabric.store.root import Root
from envfabric.store.writer import Writer
from envfabric.telemetry.metrics import Metrics
from support.fabric import BASE_PYTHON
from support.simple_index import SimpleIndex
from support.spec_repo import SpecRepo

MakeLoop = Callable[[bool], Reconciler]


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return init_root(tmp_path / "nas", Files())


@pytest.fixture
def writer(root: Root) -> Iterator[Writer]:
    with Writer(root, Files()).acquire() as writer:
        yield writer


@pytest.fixture
def repo(tmp_path: Path) -> SpecRepo:
    return SpecRepo(tmp_path / "specs")


@pytest.fixture
def make_loop(
    root: Root,
    writer: Writer,
    repo: SpecRepo,
    own_packages: SimpleIndex,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[MakeLoop]:
    """Makes a loop that was not begun yet; told whether it ends when all is true. Each is closed in the end."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_CONFIG_HOME", "XDG_CONFIG_DIRS", "UV_CONFIG_FILE", "UV_DEFAULT_INDEX", "UV_INDEX"):
        monkeypatch.delenv(name, raising=False)
    settings = Settings(
        repo=str(repo.path), root=root.path, pythons=[BASE_PYTHON], builders=1, index=own_packages.url
    )
    made = []
    with Repository(repo.path) as source:

        def make(once: bool) -> Reconciler:
            uv = Uv(root, settings.build_timeout, settings.index)
            loop, _ = assemble(settings, root, Files(), source, writer, uv, Metrics(), once=once)
            made.append(loop)
            return loop

        yield make
        for loop in made:
            loop._close()
