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

_TOGETHER = {
    "ray": ("tests/on_ray/", "tests/farm/test_on_cluster.py"),
    "demo": ("tests/examples/test_demo.py", "tests/examples/test_ray.py"),
    "observing": ("tests/observing/test_scenario.py",),
    "recipes": ("tests/recipes/",),
    "steps": ("tests/faults_of_disk/test_each_step.py",),
    "page": ("tests/page/",),
    "orders": ("tests/orders/test_status_", "tests/orders/test_requests.py"),
    "rollback": ("tests/orders/test_rollback.py",),
    "drift": ("tests/reconciling/test_drift.py", "tests/reconciling/test_supersede.py"),
    "client": ("tests/test_client.py",),
    "recovery": ("tests/recovery/test_disasters.py",),
    "hostile": ("tests/hostile/test_collection.py",),
}
"""What one worker does, as it begins with something that takes longer than each of these tests: how it is called, and
the beginnings of its tests' names. The first ones are begun first, and take longest."""
_LONG = (
    "tests/test_code.py",
    "tests/test_bench.py",
    "tests/test_two_daemons.py",
    "tests/reconciling/",
    "tests/loop/test_scale_bench.py",
    "tests/faults/",
    "tests/faults_of_disk/",
)
_SHORT = ("tests/specs/", "tests/index/", "tests/build/", "tests/service/", "tests/store/")
"""Tests of a second and more, and tests of a moment: these come last, so that no worker is alone in the end."""


def _together(nodeid: str) -> str | None:
    return next((name for name, begin in _TOGETHER.items() if nodeid.startswith(begin)), None)


def _rank(item: pytest.Item) -> tuple[int, int]:
    """Where a test stands among the others; those of one rank stay in their order."""
    name = _together(item.nodeid)
    if name is not None:
        return (0, list(_TOGETHER).index(name))
    return (1 if item.nodeid.startswith(_LONG) else 3 if item.nodeid.startswith(_SHORT) else 2, 0)


class _Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    """A test goes to the next worker that is free; what has to be made once for several goes to one, as a whole.

    There is one cluster of Ray at a time, and one demo: what they build is large.
    """

    def _split_scope(self, nodeid: str) -> str:
        return _together(nodeid) or nodeid


def pytest_configure() -> None:
    """Commands may be forked, in the surroundings that each worker begins with."""
    nursery.allow()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """How tests are handed to the workers: in the order that they have here, not by their numbers."""
    config.option.loadscopereorder = False
    return _Scheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long ones come first. What needs root is not for an ordinary user: deselected, and counted as such."""
    items.sort(key=_rank)
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
