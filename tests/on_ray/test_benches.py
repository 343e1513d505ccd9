"""The benches of Ray work: each in its smallest size, with a small wheel and no network. No figure is judged here."""

import os
import re
import sys
from pathlib import Path

import pytest

from support.fabric import Fabric
from support.namespace import Finished, run_alone
from support.wheels import make_wheel

BENCH = Path(__file__).resolve().parents[1] / "bench"
RAY = "ray[default,serve]==2.60.0"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One wheel of two modules, which no environment has but the benches' own."""
    folder = tmp_path_factory.mktemp("wheels")
    make_wheel(
        folder, "alder", modules={"alder/__init__.py": "from alder import one\n", "alder/one.py": "ONE = 1\n"}
    )
    return folder


@pytest.fixture(scope="module")
def served(ray_fabric: Fabric, wheels: Path) -> list[str | Path]:
    """Flags that name an environment with that package, and one without."""
    for wheel in wheels.glob("*.whl"):
        (ray_fabric.packages.folder / wheel.name).write_bytes(wheel.read_bytes())
    mine = f'[[tool.uv.index]]\nname = "mine"\nurl = "{ray_fabric.packages.url}"\nexplicit = true\n'
    source = '[tool.uv.sources]\nalder = { index = "mine" }\n'
    ray_fabric.repo.spec("bench/set", ["alder", RAY], table=mine + source)
    ray_fabric.repo.commit()
    ray_fabric.run_once()
    return ["--root", ray_fabric.root, "--spec", "bench/set", "--bare", "wf/old", "--wheels", wheels, "alder"]


def bench(name: str, folder: Path, *arguments: str | Path) -> Finished:
    """Runs a bench with nothing of this user's settings, and, as root, without a network."""
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "LC_ALL": "C.UTF-8", "TMPDIR": str(folder)}
    done = run_alone([sys.executable, BENCH / f"{name}.py", *arguments], env=env, cwd=folder, timeout=400)
    assert done.code == 0, done.out[-3000:] + done.err[-6000:]
    assert not list(folder.glob("envfabric-bench-*"))
    return done


def rows(done: Finished) -> dict[str, list[str]]:
    """The cells of a table's rows, by the first of them."""
    found = [
        [cell.strip() for cell in line.strip("│").split("│")] for line in done.out.splitlines() if "│" in line
    ]
    return {cells[0]: cells[1:] for cells in found}


def test_first_results_are_compared(tmp_path: Path, served: list[str | Path]) -> None:
    """The bench has a line for the floor, for ours, and for Ray's pip; every sample is a new worker with its packages
    from the right place (or it ends), nothing is installed for ours, and what pip installs is seen."""
    found = bench(
        "ray_first_result", tmp_path, "--peers", "pip", "--peer-rounds", "1", "--rounds", "1", *served
    )
    told = rows(found)
    assert {"floor", "client", "plugin", "pip"} <= set(told)
    for way in ("floor", "client", "plugin"):
        assert (told[way][-3], told[way][-1]) == ("0", "none")
    assert int(told["pip"][-3]) > 100
    assert "pip" in told["pip"][-1]
    assert re.search(r"^plugin / floor: [0-9.]+ \(at most 1.1\): not judged$", found.out, re.MULTILINE)
    assert "0 paths on the node, 0 changed in the environment, programs: none" in found.out


def test_many_workers_start_on_several_nodes(tmp_path: Path, served: list[str | Path]) -> None:
    """The bench of a cluster's start ends with all workers running, one lease for each node, and nothing on any."""
    sizes = ["--nodes", "2", "--workers", "2", "--rounds", "1", "--peers"]
    found = bench("ray_cluster_start", tmp_path, *sizes, *served)
    assert rows(found)["plugin"][-3:] == ["0.0", "2", "none"]
    assert "left on a node by ours: 0 bytes; leases: [2], one for each node" in found.out
