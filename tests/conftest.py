"""Fixtures: a package index that lives as long as the tests, and a new fabric for each test."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.fabric import Fabric
from support.simple_index import SimpleIndex
from support.spec_repo import SpecRepo


# First of all: xdist reads the groups in its own hook.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The long ones first; what needs root is not for an ordinary user: deselected, and counted as such."""
    # One worker makes the demo, for all tests of it; begun last, it would be waited for alone.
    for item in items:
        if "demo" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("demo"))
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)
    if os.geteuid() == 0:
        return
    needing = [item for item in items if item.get_closest_marker("root")]
    config.hook.pytest_deselected(items=needing)
    items[:] = [item for item in items if item not in needing]


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleIndex]:
    """A small world of wheels: alpha, beta (which requires alpha), two versions of gamma."""
    with SimpleIndex(tmp_path_factory.mktemp("packages")) as index:
        index.add_wheel("alpha", "1.0")
        index.add_wheel("beta", "1.0", requires=["alpha"])
        index.add_wheel("gamma", "1.0")
        index.add_wheel("gamma", "2.0")
        index.add_sdist("only-source", "1.0")
        yield index


@pytest.fixture
def own_packages(tmp_path: Path) -> Iterator[SimpleIndex]:
    """An index that a test may change, hold or break."""
    folder = tmp_path / "packages"
    folder.mkdir()
    with SimpleIndex(folder) as index:
        index.add_wheel("alpha", "1.0")
        yield index


@pytest.fixture
def fabric(tmp_path: Path, packages: SimpleIndex) -> Fabric:
    """A fabric with an empty repository; the NAS folder is prepared by its first run."""
    return Fabric(tmp_path, packages, SpecRepo(tmp_path / "specs"))
