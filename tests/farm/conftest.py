"""One cluster of a head and two nodes for all tests of the farm that need one."""

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from envfabric.build.environment import Recipe, recipe_of
from farm.ray_cluster import VARIABLES, RayCluster
from locks.conftest import place as place
from support.fabric import Fabric
from support.place import Place
from support.simple_index import LONGEST_HOLD, SimpleIndex
from support.spec_repo import SpecRepo
from support.waiting import wait_for

_TO_RESOLVE = 2
"""Requests for a wheel that uv makes to see what it requires."""


class HoldingIndex(SimpleIndex):
    """An index that lets who resolves pass, and has who installs wait."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._held: dict[str, threading.Event] = {}
        self._asked: Counter[str] = Counter()
        self._lock = threading.Lock()

    def hold_download(self, name: str) -> threading.Event:
        """Has downloads of a wheel wait until the event is set."""
        self.add_wheel(name, "1.0")
        self._held[name] = threading.Event()
        return self._held[name]

    def wait_for_download(self, name: str, times: int = 1) -> None:
        """Waits until a wheel's download was begun so often."""
        wait_for(
            lambda: self._asked[name] - _TO_RESOLVE >= times, timeout=180, message=f"nobody downloads {name}"
        )

    def answer(self, path: str, authorization: str | None) -> tuple[int, bytes]:
        """See there."""
        if path.startswith("/files/"):
            name = path.removeprefix("/files/").split("-")[0]
            with self._lock:
                self._asked[name] += 1
                count = self._asked[name]
            if name in self._held and count > _TO_RESOLVE:
                self._held[name].wait(LONGEST_HOLD)
        return super().answer(path, authorization)

    def __exit__(self, *error: object) -> None:
        for one in self._held.values():
            one.set()
        super().__exit__(*error)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[HoldingIndex]:
    """Has alpha."""
    started = HoldingIndex(tmp_path / "packages")
    with started:
        started.add_wheel("alpha", "1.0")
        yield started


@pytest.fixture
def recipe(place: Place) -> Recipe:
    """What beta and alpha are built from."""
    spec = place.spec(["beta"])
    return recipe_of(spec, place.get(spec))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with RayCluster(tmp_path_factory.mktemp("home")) as started:
        yield started


@pytest.fixture
def nodes(cluster: RayCluster) -> RayCluster:
    """The cluster, with the nodes one and two, whatever was done to it before."""
    cluster.has("one", "two")
    return cluster


@pytest.fixture
def farm(tmp_path: Path, index: HoldingIndex, nodes: RayCluster) -> Fabric:
    """A fabric whose daemon builds on the cluster, one closure on a node at a time."""
    fabric = Fabric(tmp_path, index, SpecRepo(tmp_path / "specs"), variables=dict(VARIABLES))
    fabric.settings = {
        "builders": 3,
        "farm": {"executor": "ray", "address": nodes.address, "per_node": 1},
    }
    return fabric
