"""A disk that gets full while a Python is installed: it is named, nothing half of it is chosen, and room is enough."""

import tarfile
from pathlib import Path

import pytest

from envfabric.core.errors import Reason, SpecError
from envfabric.specs.spec import PythonRequest
from envfabric.store.closures import Closures
from envfabric.store.files import Files
from envfabric.store.prepare import init_root
from envfabric.store.root import Root
from faults_of_disk.mounts import Disk, fill, own_mounts
from pythons.conftest import Open
from pythons.mirror import KEY, MINOR

WISH = PythonRequest(MINOR, "", "spec")


@pytest.mark.root
def test_a_disk_that_gets_full(open_with: Open, root: Root, archive: Path, tmp_path: Path) -> None:
    """Full while uv unpacks, or while the standard library is compiled; a start with room again brings it whole."""
    with tarfile.open(archive) as packed:
        # Each file takes whole blocks.
        unpacked = sum(-(-entry.size // 4096) * 4096 for entry in packed)
    with own_mounts():
        disk = Disk(tmp_path / "disk", 200)
        disk.mount(root.path)
        disk.close()
        init_root(root.path, Files())
        while_unpacking = f"installing {KEY} in {root.pythons} from {archive.with_name('downloads.json')}: "
        while_compiling = f"No space left on device ({root.pythons / KEY}) while installing"
        for leave, told in ((unpacked // 8, while_unpacking), (unpacked + (1 << 20), while_compiling)):
            ballast = fill(root.path, leave=leave)
            with pytest.raises(SpecError) as caught:
                open_with().choose(WISH)
            assert caught.value.reason is Reason.NO_SPACE, caught.value
            assert caught.value.message.startswith(told) and "No space left" in caught.value.message
            assert list(root.pythons.iterdir()) == [] and list(root.staging.iterdir()) == []
            ballast.unlink()
        Closures(root, Files()).recover()
        assert open_with().choose(WISH).path == str(root.pythons.resolve() / KEY / f"bin/python{MINOR}")
        library = root.pythons / KEY / f"lib/python{MINOR}"
        assert len(list(library.rglob("*.pyc"))) == len(list(library.rglob("*.py"))) > 100
