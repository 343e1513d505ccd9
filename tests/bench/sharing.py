"""Bytes of many environments that share packages: what they would take alone, and what they take on disk.

    uv run python tests/bench/sharing.py [--environments 40] [--compiled 6] [--copied 3] [--wheels DIR]

Real packages from the default index, in overlapping sets; a real daemon, bytecode on. Beside it bare uv makes
the same environments from the daemon's own locks and one cache: with hardlinks, with hardlinks and
--compile-bytecode, and by copies (the last two for some of them only: they take so much). Then what one more
environment takes, and one more spec with a closure that is there. Disk usage counts each inode once, as du.
"""

import argparse
import os
import random
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.benches import BareUv, bench_fabric, bench_folder, local_index, pyproject
from support.fabric import Fabric, RunningDaemon

BASE = ("numpy", "pandas")
"""What every environment has."""
POOL = (
    *(
        "scipy",
        "sympy",
        "networkx",
        "scikit-learn",
        "matplotlib",
        "sqlalchemy",
        "jinja2",
        "httpx",
        "pydantic",
    ),
    *(
        "rich",
        "typer",
        "requests",
        "pyyaml",
        "attrs",
        "tqdm",
        "pillow",
        "lxml",
        "psutil",
        "fsspec",
        "aiohttp",
    ),
)
"""What each has some of."""
PROMISED = 2.0
"""Percent of its logical bytes that one more environment may take on disk."""


@dataclass(frozen=True)
class Line:
    """One way to keep environments."""

    way: str
    environments: int
    logical: int
    physical: int
    """Bytes of the environments on disk, without what only the cache has."""
    whole: int
    """Bytes of everything on disk: environments, caches, and what the fabric keeps beside."""
    last: tuple[int, int] | None = None
    """Logical bytes of the environment that was made last, and those that only it takes on disk."""


def disk_usage(*folders: Path) -> int:
    """Bytes on disk below these folders, each inode once: what `du -s` says of them together."""
    seen: dict[tuple[int, int], int] = {}
    for path in _walk(folders):
        status = os.lstat(path)
        seen[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


def _walk(folders: Iterable[Path]) -> Iterable[str]:
    for folder in folders:
        yield str(folder)
        for parent, below, names in os.walk(folder):
            yield from (os.path.join(parent, name) for name in (*below, *names))


def sets(number: int, base: Sequence[str], pool: Sequence[str]) -> list[list[str]]:
    """Overlapping requirement sets, the same in every run, no two of them alike."""
    chosen = random.Random(0)
    found: list[list[str]] = []
    for _ in range(number * 20):
        size = chosen.randint(min(2, len(pool)), max(2, len(pool) // 3))
        one = [*base, *sorted(chosen.sample(list(pool), min(size, len(pool))))]
        if one not in found:
            found.append(one)
        if len(found) == number:
            return found
    raise SystemExit(f"{number} different sets can't be made of {len(pool)} packages; ask for fewer")


class Bench:
    """A fabric with a running daemon, and its specs."""

    def __init__(self, fabric: Fabric, daemon: RunningDaemon) -> None:
        self.fabric = fabric
        self.daemon = daemon
        self.names: list[str] = []

    def add(self, requirement_sets: Sequence[Sequence[str]]) -> None:
        """Commits a spec for each set, and waits until all are served. Raises `SystemExit` where one fails."""
        for requirements in requirement_sets:
            name = f"env-{len(self.names)}"
            self.names.append(name)
            text = pyproject(f"bench-{name}", requirements, self.fabric.packages)
            self.fabric.repo.write(f"bench/{name}/pyproject.toml", text)
        index = self.daemon.wait_for_index(self.fabric.repo.commit(), timeout=1800)
        for name, entry in index["environments"].items():
            if entry["state"] != "ready":
                raise SystemExit(f"{name} is {entry['state']}: {entry['error']}")
        # Metrics follow the index by a moment.
        self.daemon.wait_for_metric("envfabric_specs", len(self.names), state="ready")

    def sizes(self) -> tuple[int, int]:
        """Logical and physical bytes as the daemon's metrics say them."""
        logical, physical = (
            int(self.daemon.metric(f"envfabric_store_{kind}_bytes")) for kind in ("logical", "physical")
        )
        return logical, physical

    def files_of(self, name: str) -> tuple[bytes, bytes]:
        """A spec's pyproject.toml and lock as they were published."""
        folder = self.fabric.root / "generations/bench" / name / "1"
        return (folder / "pyproject.toml").read_bytes(), (folder / "uv.lock").read_bytes()


def bare(bench: Bench, folder: Path, way: str, names: Sequence[str], *flags: str, mode: str) -> Line:
    """Bare uv makes these environments, from one cache that is new."""
    uv = BareUv(folder)
    made = []
    for name in names:
        project = uv.lay_out(name, *bench.files_of(name))
        made.append(uv.make(project, *flags, mode=mode))
    logical = [disk_usage(one) for one in made]
    without, whole = disk_usage(*made[:-1], uv.cache), disk_usage(folder)
    last = logical[-1], disk_usage(*made, uv.cache) - without
    line = Line(way, len(made), sum(logical), disk_usage(*made), whole, last)
    shutil.rmtree(folder)
    return line


def one_more(bench: Bench, requirements: Sequence[str]) -> tuple[int, int, dict[str, int]]:
    """What one more spec adds: logical and physical bytes by the metrics, and bytes on disk by folder of ROOT."""
    logical, physical = bench.sizes()
    folders = {path: disk_usage(path) for path in sorted(bench.fabric.root.iterdir()) if path.is_dir()}
    bench.add([requirements])
    after, on_disk = bench.sizes()
    grown = {path.name: disk_usage(path) - size for path, size in folders.items()}
    return after - logical, on_disk - physical, {name: size for name, size in grown.items() if size}


def show(bench: Bench, given: argparse.Namespace, folder: Path, console: Console) -> None:
    base = BASE if given.base is None else given.base
    pool = POOL if given.pool is None else given.pool
    everything = sets(given.environments + 1, base, pool)
    # What is not in the cache yet when the last one comes would be counted as its own.
    bench.add([*everything[:-1], [*base, *pool]])
    number = len(bench.names)
    logical, physical = bench.sizes()
    root = bench.fabric.root
    store = root / "store"
    lines = [
        Line("fabric, with bytecode", number, logical, physical, disk_usage(root)),
        Line("    the same by du", number, logical, disk_usage(store), disk_usage(root)),
    ]
    kinds = (
        ("uv sync, hardlinks", (), "hardlink", number),
        ("uv sync --compile-bytecode, hardlinks", ("--compile-bytecode",), "hardlink", given.compiled),
        ("uv sync, copies", (), "copy", given.copied),
    )
    for way, flags, mode, most in kinds:
        if most:
            lines.append(bare(bench, folder / "bare", way, bench.names[:most], *flags, mode=mode))
    table = Table(title=f"bytes of environments that share packages (MB); {number} specs in the fabric")
    for column in ("", "environments", "logical", "on disk", "logical / on disk", "with caches and all else"):
        table.add_column(column, justify="right" if column else "left")
    for line in lines:
        ratio = line.logical / max(1, line.physical)
        sizes = [f"{size / 1e6:.1f}" for size in (line.logical, line.physical)]
        table.add_row(line.way, str(line.environments), *sizes, f"{ratio:.1f}", f"{line.whole / 1e6:.1f}")
    console.print(table)

    table = Table(title="one more (kB)")
    for column in ("", "logical", "more on disk", "% of logical", "promised"):
        table.add_column(column, justify="right" if column else "left")
    another = one_more(bench, everything[-1])
    builds = bench.daemon.metric("envfabric_builds_total")
    equal = one_more(bench, everything[0])
    built = bench.daemon.metric("envfabric_builds_total") - builds
    rows = [("fabric, another set", another[:2], f"≤ {PROMISED:g} %")]
    rows += [(f"fabric, a closure that is there ({built:.0f} builds)", equal[:2], "0")]
    rows += [(f"{line.way}, the last one", line.last, "") for line in lines if line.last]
    for way, (logical, extra), promised in rows:
        share = f"{100 * extra / max(1, logical):.2f}"
        table.add_row(way, f"{logical / 1e3:.0f}", f"{extra / 1e3:.0f}", share, promised)
    console.print(table)
    for way, (_, _, grown) in (("another set", another), ("a closure that is there", equal)):
        told = ", ".join(f"{name} {size / 1e3:.0f}" for name, size in grown.items())
        console.print(f"{way}, all of ROOT by folder, kB on disk: {told}")
    saved = bench.daemon.metric("envfabric_disk_saved_bytes")
    console.print(f"saved, by the daemon's metric: {saved / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--environments", type=int, default=40)
    parser.add_argument("--compiled", type=int, default=6, help="environments by uv --compile-bytecode")
    parser.add_argument("--copied", type=int, default=3, help="environments by copies")
    parser.add_argument("--folder", type=Path, help="where to work; the temporary folder by default")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to be taken instead of the index's")
    parser.add_argument("--base", nargs="*", metavar="REQUIREMENT", help="what every environment has")
    parser.add_argument("--pool", nargs="*", metavar="REQUIREMENT", help="what each has some of")
    given = parser.parse_args()
    with bench_folder(given.folder) as folder, local_index(given.wheels, folder) as local:
        fabric = bench_fabric(folder, local)
        with fabric.daemon() as daemon:
            show(Bench(fabric, daemon), given, folder, Console(width=130))


if __name__ == "__main__":
    main()
