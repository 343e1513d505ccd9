"""A mirror that is made once, and what brings Pythons from it to a ROOT."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from envfabric.build.interpreters import Interpreters
from envfabric.build.pythons import Pythons, Sources
from envfabric.build.uv import Finished, Uv
from envfabric.store.closures import Closures
from envfabric.store.files import Files
from envfabric.store.prepare import init_root
from envfabric.store.root import Root
from pythons.mirror import MINOR, pack

Open = Callable[..., Interpreters]


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """uv reads no configuration of whoever runs the tests."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in [one for one in os.environ if one.startswith(("UV_", "XDG_CONFIG"))]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python as a mirror has it; downloads.json lies beside it."""
    return pack(tmp_path_factory.mktemp("mirror"))


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A prepared NAS folder."""
    return init_root(tmp_path / "nas", Files())


@pytest.fixture
def runs() -> list[list[str]]:
    """The arguments of every uv process."""
    return []


@pytest.fixture
def open_with(root: Root, archive: Path, runs: list[list[str]], tmp_path: Path) -> Open:
    """Interpreters of a machine that has none, as a daemon that starts opens them."""

    class Counted(Uv):
        def run(self, arguments: Sequence[str], **details: Any) -> Finished:
            runs.append(list(arguments))
            return super().run(arguments, **details)

    def make(
        *,
        allowed: Sequence[str] = (str(tmp_path / "none"),),
        sources: Sources | None = None,
        files: Files | None = None,
        downloads: bool = True,
        only_managed: bool = False,
    ) -> Interpreters:
        uv, files = Counted(root, timeout=120), files or Files()
        given = sources or Sources(json_url=str(archive.with_name("downloads.json")))
        pythons = Pythons(root, files, uv, Closures(root, files).staging, given) if downloads else None
        return Interpreters(
            root, files, uv, MINOR, tuple(allowed), pythons=pythons, only_managed=only_managed
        )

    return make
