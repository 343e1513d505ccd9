"""What one more environment costs that comes with its bytecode, beside bare uv, with warm caches on both sides.

    uv run python tests/bench/bytecode.py [--rounds 9] [--folder DIR] [--wheels DIR] [REQUIREMENT…]

Real packages from the default index; a distribution that has a wheel in DIR is taken from there. The fabric makes
whole closures (sync, checks, bytecode, manifest, seal), each one new; bare uv makes `uv sync --frozen` from
nothing but its cache, with hardlinks, with and without --compile-bytecode. All take turns, and the medians are
compared. Bytes, operations and imports are those of sharing.py, operations.py and first_import.py.
"""

import argparse
import shutil
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

COMPILED, BARE = 0.15, 3.0
"""What is promised: the fabric's time over that of uv with and without --compile-bytecode."""
COMPILING_ROUNDS = 2
"""It takes so long that few rounds do."""


class Bare:
    """Bare uv on the same lock."""

    def __init__(self, folder: Path, shop: Workshop) -> None:
        self.uv = BareUv(folder)
        self.project = self.uv.lay_out("project", shop.pyproject, shop.lock)

    def sync(self, *flags: str) -> float:
        """Seconds for an environment, made by this one command."""
        shutil.rmtree(self.project / ".venv", ignore_errors=True)
        _, command = self.uv.commands(*flags)
        began = time.perf_counter()
        subprocess.run(command, cwd=self.project, env=self.uv.environment(), check=True)
        return time.perf_counter() - began


def measure(shop: Workshop, bare: Bare, rounds: int) -> dict[str, list[float]]:
    """Seconds by what was done, and by phase of the fabric's builds."""
    times: dict[str, list[float]] = {}

    def note(seconds: dict[str, float]) -> None:
        for name, value in seconds.items():
            times.setdefault(name, []).append(value)

    bare.sync()
    shop.build()
    note({f"first {name}": value for name, value in shop.phases.items()})
    for number in range(rounds):
        shop.build()
        note(shop.phases)
        note({"bare": bare.sync()})
        if number < COMPILING_ROUNDS:
            note({"compiled": bare.sync("--compile-bytecode")})
    return times


def show(times: dict[str, list[float]], requirements: Sequence[str], files: int) -> None:
    """Prints the table."""
    middle = {name: statistics.median(values) for name, values in times.items()}
    table = Table(
        title=f"One more environment of {files} files ({', '.join(requirements)}), caches warm: median seconds"
    )
    for column in ("", "seconds", "fabric / it", "promised"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("fabric: sync, checks, bytecode, manifest, seal", f"{middle['total']:.3f}", "", "")
    for name in ("sync", "validate", "bytecode", "seal"):
        table.add_row(f"    {name}", f"{middle[name]:.3f}", "", "")
    for name, label, limit in (
        ("compiled", "uv sync --frozen --compile-bytecode", COMPILED),
        ("bare", "uv sync --frozen", BARE),
    ):
        table.add_row(
            label, f"{middle[name]:.3f}", f"{middle['total'] / middle[name]:.2f}", f"at most {limit}"
        )
    table.add_row("fabric, bytecode store empty", f"{middle['first total']:.2f}", "", "")
    table.add_row("    bytecode", f"{middle['first bytecode']:.2f}", "", "")
    Console(width=120).print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="where to work; the temporary folder by default")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels that come before the index's")
    parser.add_argument("requirements", nargs="*", default=HEAVY)
    given = parser.parse_args(arguments)
    requirements = given.requirements or HEAVY
    with bench_folder(given.folder) as folder, local_index(given.wheels, folder) as local:
        shop = Workshop(folder / "shop", requirements, local)
        times = measure(shop, Bare(folder / "bare", shop), given.rounds)
        files = sum(1 for _ in shop.build().rglob("*"))
    show(times, requirements, files)


if __name__ == "__main__":
    main()
