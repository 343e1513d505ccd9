"""Whether specs that hang or fail hold up those that build: the same good specs alone, and beside them.

    uv run python tests/bench/hanging.py [--good 30] [--hanging 10] [--failing 10] [--rounds 3]

The good specs alone get the build slots that the hanging ones leave over; the two kinds of rounds take turns, and
the medians are compared. The hanging specs wait for the package index in their build for as long as the round
lasts; half of the failing ones can't be resolved, and half fail to be fetched and are tried again meanwhile. All
wheels are small and come from the loopback, so the figure is the fabric's own.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.benches import bench_folder
from support.fabric import Fabric
from support.simple_index import SimpleIndex
from support.spec_repo import SpecRepo
from support.waiting import wait_for

LEFT = 2
"""Build slots that the hanging specs leave over."""
FULL = (30, 10, 10)
"""The numbers of specs for which the promise is made."""
MOST = 1.5
"""Time of the good specs beside the others, as a multiple of their time alone, that is promised."""


def measure(folder: Path, good: int, hanging: int, failing: int) -> float:
    """Seconds from a commit until `good` specs are served, beside these others; all are in that commit."""
    folder.mkdir()
    with SimpleIndex(folder / "packages") as packages:
        fabric = Fabric(folder, packages, SpecRepo(folder / "specs"), {"builders": LEFT + hanging})
        fabric.repo.commit("nothing yet")
        write(fabric, "good", good)
        locked(fabric, "hanging", hanging)
        locked(fabric, "gone", failing // 2)
        for number in range(failing - failing // 2):
            fabric.repo.spec(f"bad/n{number}", [f"no-such-package-{number}"])
        holds = [packages.hold(f"hanging-{number}", kind="files") for number in range(hanging)]
        for number in range(failing // 2):
            packages.remove(f"gone_{number}-1.0-py3-none-any.whl")
        try:
            with fabric.daemon():
                began = time.perf_counter()
                fabric.repo.commit()
                wanted = {f"good/n{number}" for number in range(good)}
                wait_for(
                    lambda: (
                        (fabric.root / "index.json").exists() and wanted <= fabric.index()["python"].keys()
                    ),
                    timeout=600,
                    message="not all that can be are ready",
                )
                seconds = time.perf_counter() - began
                states = [fabric.entry(f"hanging/n{number}")["state"] for number in range(hanging)]
                if not set(states) <= {"pending", "building"}:
                    raise SystemExit(f"what should hang does not: {states}")
        finally:
            for hold in holds:
                hold.set()
    return seconds


def write(fabric: Fabric, kind: str, count: int) -> None:
    """Specs with a wheel of their own each."""
    for number in range(count):
        fabric.packages.add_wheel(f"{kind}-{number}", "1.0")
        fabric.repo.spec(f"{kind}/n{number}", [f"{kind}-{number}"], index=fabric.packages.url)


def locked(fabric: Fabric, kind: str, count: int) -> None:
    """The same, with committed locks: what becomes of them is decided when they are built."""
    write(fabric, kind, count)
    for number in range(count):
        fabric.lock(fabric.repo.work / kind / f"n{number}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--good", type=int, default=FULL[0], help="specs that build")
    parser.add_argument("--hanging", type=int, default=FULL[1], help="specs that hang")
    parser.add_argument("--failing", type=int, default=FULL[2], help="specs that fail")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each kind")
    parser.add_argument("--folder", type=Path, help="where to work; the temporary folder by default")
    given = parser.parse_args()
    alone, beside = [], []
    with bench_folder(given.folder) as folder:
        for number in range(given.rounds):
            alone.append(measure(folder / f"alone-{number}", given.good, 0, 0))
            beside.append(measure(folder / f"beside-{number}", given.good, given.hanging, given.failing))
    ratio = statistics.median(beside) / statistics.median(alone)
    table = Table(title=f"{given.good} specs from the commit until all are served, with {LEFT} build slots")
    for column in ("beside", "seconds, median", "all"):
        table.add_column(column, justify="left" if column == "beside" else "right")
    for name, times in (
        ("nothing", alone),
        (f"{given.hanging} that hang, {given.failing} that fail", beside),
    ):
        table.add_row(name, f"{statistics.median(times):.2f}", " ".join(f"{one:.2f}" for one in times))
    Console(width=120).print(table)
    print(f"beside / alone: {ratio:.2f}")
    if (given.good, given.hanging, given.failing) == FULL and given.rounds >= 3 and ratio > MOST:
        raise SystemExit(f"not as promised: {ratio:.2f} is more than {MOST}")


if __name__ == "__main__":
    main()
