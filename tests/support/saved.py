"""A fabric that is made once, and put back for each test to where it was: for tests that begin alike and change it.

To build an environment takes half a second of processor time, a copy of it a twentieth. The copy lies where the fabric
lies, as paths of ROOT and of the repository stand in what is copied. Each worker of pytest makes its own; where few
tests share one, tests/conftest.py gives them to one worker.
"""

import shutil
import subprocess
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

from support.fabric import Fabric
from support.simple_index import SimpleIndex
from support.spec_repo import SpecRepo


class Saved:
    """A fabric, and all of its folder as it was when it had been made."""

    def __init__(self, folder: Path, packages: SimpleIndex, make: Callable[[Fabric], object]) -> None:
        """`make` does what all tests begin with; when it returns nothing of the fabric may run."""
        self._fabric = Fabric(folder / "fabric", packages, SpecRepo(folder / "fabric" / "specs"))
        make(self._fabric)
        self._kept = folder / "kept"
        _copy(self._fabric.folder, self._kept)

    def again(self) -> Fabric:
        """The fabric as it was; what a test did to the last one is gone."""
        fabric = self._fabric
        subprocess.run(["chmod", "-R", "u+rwX", fabric.folder], check=True)
        shutil.rmtree(fabric.folder)
        _copy(self._kept, fabric.folder)
        return Fabric(
            fabric.folder, fabric.packages, fabric.repo, deepcopy(fabric.settings), dict(fabric.variables)
        )


def _copy(source: Path, target: Path) -> None:
    # Links between its files stay links.
    subprocess.run(["cp", "-a", source, target], check=True)
