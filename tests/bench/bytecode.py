"""What an environment costs that comes with its bytecode, beside bare uv, with warm caches on both sides.

    uv run python tests/bench/bytecode.py [--rounds 5] [--wheels DIR] [REQUIREMENT…]

Real packages from the default index; a distribution that has a wheel in DIR is taken from there. The fabric makes
whole closures (sync, checks, bytecode, manifest, seal), each one new; bare uv makes `uv sync --frozen` with
hardlinks, with and without --compile-bytecode. All take turns, and the medians are compared. Then the bytes
and operations of one more environment, and the time that a module takes for its first import.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from envfabric.build.compiling import Compiling
from envfabric.build.environment import Builder, Recipe, recipe_of
from envfabric.build.interpreters import Interpreter, inspect
from envfabric.build.resolve import Resolver
from envfabric.build.uv import Uv
from envfabric.specs.policy import Policy
from envfabric.specs.spec import read_spec
from envfabric.store.bytecode import Bytecode
from envfabric.store.closures import Closures
from envfabric.store.files import Files
from envfabric.store.prepare import init_root
from support.simple_index import SimpleIndex
from support.wheels import normalized

HEAVY = ["numpy", "pandas", "scipy", "sympy", "networkx", "scikit-learn", "matplotlib"]
PYTHON = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
TO_COMPILED = 0.15
TO_BARE = 3.0
"""What is promised: the fabric's time over that of uv with and without --compile-bytecode."""


class Bench:
    """A ROOT with what builds on it, and a folder for bare uv."""

    def __init__(self, folder: Path, requirements: list[str], local: SimpleIndex | None) -> None:
        self.folder = folder
        self.operations: Counter[str] = Counter()
        files = Files(lambda operation, _: self.operations.update([operation]))
        self.root = init_root(folder / "nas", files)
        self.closures = Closures(self.root, files)
        self.uv = Uv(self.root)
        compiling = Compiling(Bytecode(self.root, files, self.closures.hashes.of), files, self.uv)
        self.builder = Builder(self.closures, files, self.uv, compiling)
        self.python = _python()
        lines = ["[project]", 'name = "bench"', 'version = "0"']
        lines += [
            f'requires-python = "=={self.python.version}"',
            f"dependencies = {json.dumps(requirements)}",
        ]
        if local is not None:
            lines += ["[[tool.uv.index]]", 'name = "local"', f'url = "{local.url}"', "explicit = true"]
            lines += ["[tool.uv.sources]"]
            own = {normalized(path.name.split("-")[0]) for path in local.folder.glob("*.whl")}
            named = {normalized(one.split("=")[0].split(">")[0].strip()) for one in requirements}
            lines += [f'{one} = {{ index = "local" }}' for one in sorted(own & named)]
        policy = Policy((local.url,) if local else ())
        spec = read_spec("bench/one", "0" * 40, {"pyproject.toml": "\n".join([*lines, ""]).encode()}, policy)
        resolution = Resolver(self.root, files, self.uv, self.closures.staging).resolve(
            spec, self.python, None
        )
        self.recipe: Recipe = recipe_of(spec, resolution)
        self.bare = folder / "bare"
        self.bare.mkdir()
        (self.bare / "pyproject.toml").write_bytes(spec.pyproject)
        (self.bare / "uv.lock").write_bytes(resolution.lock)
        self.number = 0

    def fabric(self) -> tuple[float, dict[str, float], Path]:
        """Seconds for one more closure, those of its phases, and where it is."""
        self.number += 1
        # Another digest, with the same content.
        closure = replace(self.recipe.closure, options={"number": self.number})
        built = self.builder.build(replace(self.recipe, closure=closure), lambda phase: None)
        return built.phases["total"], built.phases, self.root.closure(built.name)

    def uv_sync(self, *flags: str) -> float:
        """Seconds of bare uv, from nothing but its cache."""
        shutil.rmtree(self.bare / ".venv", ignore_errors=True)
        began = time.perf_counter()
        subprocess.run(
            [self.uv.binary, "sync", "--frozen", "--no-install-project", "--quiet", *flags],
            cwd=self.bare,
            env={
                **self.uv.environment(fleet=True),
                "UV_CACHE_DIR": str(self.folder / "bare-cache"),
                "UV_PYTHON": self.python.path,
            },
            check=True,
        )
        return time.perf_counter() - began

    def without_bytecode(self) -> tuple[float, Path]:
        """Seconds for a closure without bytecode, and where it is."""
        self.number += 1
        closure = replace(self.recipe.closure, options={"number": self.number})
        built = Builder(self.closures, Files(), self.uv).build(
            replace(self.recipe, closure=closure), lambda phase: None
        )
        return built.phases["total"], self.root.closure(built.name)


def first_import(closure: Path, module: str) -> float:
    """Seconds of a new process that imports a module from a sealed environment; nothing is written."""
    began = time.perf_counter()
    subprocess.run(
        [str(closure / ".venv/bin/python"), "-c", f"import {module}"],
        check=True,
        env={"PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    return time.perf_counter() - began


def new_bytes(closure: Path, known: set[int]) -> tuple[int, int, int]:
    """Bytes on disk of a closure, those of inodes that are not `known`, and how many files it has."""
    logical = physical = count = 0
    for parent, _, names in os.walk(closure):
        for path in [parent, *(os.path.join(parent, name) for name in names)]:
            status = os.lstat(path)
            logical += status.st_blocks * 512
            count += 1
            if status.st_ino not in known:
                physical += status.st_blocks * 512
    return logical, physical, count


def _inodes(closure: Path) -> set[int]:
    return {
        os.lstat(os.path.join(parent, name)).st_ino for parent, _, names in os.walk(closure) for name in names
    }


def _python() -> Interpreter:
    found = inspect(PYTHON)
    assert found is not None
    return found


@contextlib.contextmanager
def _served(folder: Path | None) -> Iterator[SimpleIndex | None]:
    if folder is None:
        yield None
        return
    with SimpleIndex(folder) as index:
        yield index


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--module", default="pandas", help="what is imported")
    parser.add_argument("requirements", nargs="*", default=HEAVY)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="envfabric-bench-") as folder, _served(given.wheels) as local:
        show(Bench(Path(folder), given.requirements or HEAVY, local), given.rounds, given.module)


def show(bench: Bench, rounds: int, module: str) -> None:
    console = Console(width=110)
    bench.uv_sync()
    cold, cold_phases, first = bench.fabric()
    times: dict[str, list[float]] = {"fabric": [], "compiled": [], "bare": []}
    phases: list[dict[str, float]] = []
    for _ in range(rounds):
        bench.operations.clear()
        seconds, found, closure = bench.fabric()
        times["fabric"].append(seconds)
        phases.append(found)
        times["bare"].append(bench.uv_sync())
    # It takes so long that few rounds do.
    times["compiled"] = [bench.uv_sync("--compile-bytecode") for _ in range(min(rounds, 2))]
    operations = dict(bench.operations)
    middle = {name: statistics.median(values) for name, values in times.items()}

    table = Table(title="One more environment, caches warm (median of seconds)")
    for column in ("", "seconds", "fabric / it", "promised"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("fabric: sync, checks, bytecode, manifest, seal", f"{middle['fabric']:.2f}", "", "")
    for name in ("sync", "validate", "bytecode", "seal"):
        table.add_row(f"    {name}", f"{statistics.median(one[name] for one in phases):.2f}", "", "")
    for name, label, limit in (
        ("compiled", "uv sync --frozen --compile-bytecode", TO_COMPILED),
        ("bare", "uv sync --frozen", TO_BARE),
    ):
        ratio = middle["fabric"] / middle[name]
        table.add_row(label, f"{middle[name]:.2f}", f"{ratio:.2f}", f"≤ {limit}")
    table.add_row("fabric, bytecode store empty", f"{cold:.2f}", "", "")
    table.add_row("    bytecode", f"{cold_phases['bytecode']:.2f}", "", "")
    console.print(table)

    logical, physical, count = new_bytes(closure, _inodes(first))
    share = 100 * physical / logical
    console.print(
        f"{count} files; {logical / 1e6:.0f} MB, of which {physical / 1e6:.2f} MB are its own "
        f"({share:.2f} %, promised ≤ 2 %)"
    )
    console.print(f"operations by way of the fabric's own seam: {operations}")
    _, plain = bench.without_bytecode()
    for label, where in (("with", closure), ("without", plain)):
        taken = statistics.median(first_import(where, module) for _ in range(3))
        console.print(f"import {module} {label} bytecode: {taken:.2f} s")


if __name__ == "__main__":
    main()
