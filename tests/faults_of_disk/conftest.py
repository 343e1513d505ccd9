"""Fabrics on a file system of their own."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from faults_of_disk.mounts import Disk, own_mounts
from support.fabric import Fabric
from support.simple_index import SimpleIndex
from support.spec_repo import SpecRepo
from support.wheels import make_wheel

BIG = 6 << 20
"""Bytes of the package that is big beside a small disk."""


@pytest.fixture(scope="session")
def big_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It takes a second to make."""
    # No repetition that ext4 or a wheel could save room by.
    lines = "".join(f"{number:x}, {hash((number, 'x')) & 0xFFFFFFFF:x}\n" for number in range(BIG // 16))
    modules = {"big/__init__.py": 'VERSION = "1.0"\n', "big/data": lines}
    return make_wheel(tmp_path_factory.mktemp("big"), "big", "1.0", modules=modules)


@pytest.fixture
def small_fabric(tmp_path: Path, own_packages: SimpleIndex, big_wheel: Path) -> Fabric:
    """A fabric whose index has a package that is big beside a small disk."""
    shutil.copy(big_wheel, own_packages.folder)
    own_packages.add_wheel("beta", "1.0")
    fabric = Fabric(tmp_path, own_packages, SpecRepo(tmp_path / "specs"))
    fabric.settings["interval"] = 0.5
    return fabric


@pytest.fixture
def make_disk(tmp_path: Path) -> Iterator[Callable[..., Disk]]:
    """Makes small disks in mount namespaces of the test's own."""
    with ExitStack() as stack:
        stack.enter_context(own_mounts())

        def make(megabytes: int, *, inodes: int | None = None) -> Disk:
            disk = Disk(tmp_path / f"disk-{megabytes}", megabytes, inodes=inodes)
            stack.callback(disk.close)
            return disk

        yield make
