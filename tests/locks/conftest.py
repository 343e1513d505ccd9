"""A place with an index that a test may change."""

from pathlib import Path

import pytest

from envfabric.build.interpreters import inspect
from envfabric.specs.policy import Policy
from envfabric.store.files import Files
from envfabric.store.prepare import init_root
from support.fabric import BASE_PYTHON
from support.place import Place
from support.simple_index import SimpleIndex


@pytest.fixture
def place(tmp_path: Path, own_packages: SimpleIndex, monkeypatch: pytest.MonkeyPatch) -> Place:
    """alpha; beta, which requires alpha; gamma in two versions; the index may be changed."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in (
        "XDG_CONFIG_HOME",
        "XDG_CONFIG_DIRS",
        "UV_CONFIG_FILE",
        "UV_DEFAULT_INDEX",
        "UV_INDEX",
        "NETRC",
    ):
        monkeypatch.delenv(name, raising=False)
    own_packages.add_wheel("beta", "1.0", requires=["alpha"])
    own_packages.add_wheel("gamma", "1.0")
    own_packages.add_wheel("gamma", "2.0")
    python = inspect(BASE_PYTHON)
    assert python is not None
    root = init_root(tmp_path / "nas", Files())
    return Place(tmp_path, own_packages, root, python, Policy(indexes=(own_packages.url,)))
