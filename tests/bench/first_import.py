"""The first import of a heavy package from environments with and without bytecode, and that it writes nothing.

    uv run python tests/bench/first_import.py [--rounds 5] [--module pandas] [--wheels DIR] [REQUIREMENT…]

Real packages from the default index. A new process imports the module from a sealed environment with bytecode,
from one without, and from one that `uv sync --compile-bytecode` made, in turns; medians are compared, of seconds
and of processor time. Then the proof: `python -v` names no module of the environment that it compiled or
wrote, every inode and time in the environment is what it was, and `envfabric verify` finds nothing. Exits 1
where the proof fails.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.benches import HEAVY, BareUv, Workshop, bench_folder, local_index
from support.without_rights import obey_modes

_SOURCE = re.compile(r"^# code object from '?(/.*\.py)'?$", re.MULTILINE)
_BYTECODE = re.compile(r"^# code object from '?(/.*\.pyc)'?$", re.MULTILINE)
_WRITTEN = re.compile(r"^# (?:created|wrote|could not create|could not write) (.*)$", re.MULTILINE)


def run(
    environment: Path, module: str, *flags: str, rights: bool = False
) -> subprocess.CompletedProcess[str]:
    """A new process that imports a module; without `rights`, root has none of its own either."""
    # Nothing here forbids the interpreter to write bytecode: that it has no need to is the point.
    return subprocess.run(
        [environment / "bin/python", *flags, "-c", f"import {module}"],
        env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
        cwd=environment,
        check=True,
        capture_output=True,
        text=True,
        preexec_fn=None if rights else obey_modes,
    )


def timed(environment: Path, module: str) -> tuple[float, float]:
    """Seconds, and seconds of processor time, of a first import."""
    before, began = os.times(), time.perf_counter()
    run(environment, module)
    seconds, after = time.perf_counter() - began, os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, spent


def compiled_and_written(verbose: str, environment: Path) -> tuple[list[str], list[str], int]:
    """What `python -v` told of modules below an environment: sources compiled, files written, bytecode read."""
    top = f"{environment}/"
    compiled = [path for path in _SOURCE.findall(verbose) if path.startswith(top)]
    written = [path for path in _WRITTEN.findall(verbose) if top in path]
    return compiled, written, sum(path.startswith(top) for path in _BYTECODE.findall(verbose))


def state(folder: Path) -> dict[str, tuple[int, ...]]:
    """What would change if anything below a folder were written: inode, mode, size and times of each path."""
    found: dict[str, tuple[int, ...]] = {}
    for parent, below, names in os.walk(folder):
        for path in (parent, *(os.path.join(parent, name) for name in (*below, *names))):
            status = os.lstat(path)
            times = status.st_mtime_ns, status.st_ctime_ns
            found[path] = status.st_ino, status.st_mode, status.st_size, status.st_nlink, *times
    return found


def prove(shop: Workshop, closure: Path, module: str, console: Console) -> bool:
    """Whether a first import from a sealed environment compiled nothing and wrote nothing."""
    environment = closure / ".venv"
    before = state(shop.root.path)
    good = True
    ways = [("an ordinary user's rights", False)]
    ways += [("root's rights", True)] if os.geteuid() == 0 else []
    for who, rights in ways:
        told = run(environment, module, "-v", rights=rights).stderr
        compiled, written, loaded = compiled_and_written(told, environment)
        console.print(
            f"import {module} with {who}: {loaded} modules from bytecode, {len(compiled)} compiled, "
            f"{len(written)} written"
        )
        for path in (*compiled[:5], *written[:5]):
            console.print(f"    {path}")
        # A test of the test: where nothing was read, nothing was proven.
        good = good and loaded > 0 and not compiled and not written
    changed = sorted(path for path, of in (state(shop.root.path).items() ^ before.items()) if of)
    console.print(f"of {len(before)} paths below ROOT, {len(changed)} changed")
    command = [sys.executable, "-m", "envfabric", "verify", "--root", str(shop.root.path)]
    verified = subprocess.run(command, check=False, capture_output=True, text=True)
    console.print(f"envfabric verify: exit code {verified.returncode}")
    return good and not changed and verified.returncode == 0


def measure(environments: dict[str, Path], module: str, rounds: int) -> Table:
    """Medians of all environments, one after the other in each round."""
    # Pages of the files are read once, so that nobody pays for the disk.
    for environment in environments.values():
        run(environment, module)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in environments}
    for _ in range(rounds):
        for name, environment in environments.items():
            times[name].append(timed(environment, module))
    middle = {
        name: tuple(statistics.median(column) for column in zip(*each, strict=True))
        for name, each in times.items()
    }
    warm = list(middle.values())[-1]
    table = Table(title=f"first import of {module} in a new process; medians of {rounds}")
    for column in ("", "s", "processor s", "s / warm .pyc", "processor s / warm .pyc"):
        table.add_column(column, justify="right" if column else "left")
    for name, found in middle.items():
        ratios = [f"{one / of:.2f}" for one, of in zip(found, warm, strict=True)]
        table.add_row(name, *(f"{one:.2f}" for one in found), *ratios)
    return table


def make(folder: Path, requirements: Sequence[str], wheels: Path | None) -> tuple[Workshop, dict[str, Path]]:
    """The environments that are compared; the last one is the warm one."""
    with local_index(wheels, folder) as local:
        shop = Workshop(folder / "fabric", requirements, local)
        closures = {compiled: shop.build(bytecode=compiled) for compiled in (True, False)}
        bare = BareUv(folder / "bare")
        project = bare.lay_out("compiled", shop.pyproject, shop.lock)
        return shop, {
            "fabric, sealed with bytecode": closures[True] / ".venv",
            "fabric, sealed without": closures[False] / ".venv",
            "uv sync --compile-bytecode": bare.make(project, "--compile-bytecode"),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--module", default="pandas", help="what is imported")
    parser.add_argument("--folder", type=Path, help="where to work; the temporary folder by default")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to be taken instead of the index's")
    parser.add_argument("requirements", nargs="*", default=list(HEAVY))
    given = parser.parse_args()
    console = Console(width=110)
    with bench_folder(given.folder) as folder:
        shop, environments = make(folder, given.requirements or list(HEAVY), given.wheels)
        console.print(measure(environments, given.module, max(1, given.rounds)))
        good = prove(shop, next(iter(environments.values())).parent, given.module, console)
    console.print("a first import compiles nothing and writes nothing" if good else "NOT proven")
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
