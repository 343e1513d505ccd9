"""Fixtures: a package index that lives as long as the tests, and a new fabric for each test."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from support import nursery
from support.fabric import Fabric
from support.simple_index import SimpleIndex
from support.spec_repo import SpecRepo

_OF_THE_DEMO = ("tests/examples/test_demo.py", "tests/examples/test_ray.py")
_ON_RAY = ("tests/on_ray/", "tests/farm/test_on_cluster.py")


class _Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    """One worker has all tests of the demo, begun first: what it builds is large, and it is made once.

    Another one has all that start a Ray cluster, so that there is one cluster at a time.
    """

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(_ON_RAY):
            return "ray"
        if nodeid.startswith("tests/recipes/"):
            return "recipes"
        if nodeid.startswith("tests/observing/test_scenario.py"):
            # One story, which takes more than a minute, for all its tests.
            return "observing"
        return "demo" if nodeid.startswith(_OF_THE_DEMO) else nodeid


def pytest_configure() -> None:
    """Commands may be forked, in the surroundings that each worker begins with."""
    nursery.allow()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """How tests are handed to the workers."""
    return _Scheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What needs root is not for an ordinary user: deselected, and counted as such."""
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
