"""An hour's worth of commits in minutes: whether the daemon's memory, descriptors and threads stay flat.

    uv run python tests/bench/soak.py [--commits 600]

A real daemon with small wheels of an index of its own, so no network is needed. The commits add, change,
revert and remove specs, break their TOML and mend it; some come in bursts. Collections run all the time,
without grace. The daemon is looked at after each step. It is flat where the median of the last third is
at most 1.1 times that of the first third, and a little: 8 MB, 4 descriptors, 2 threads. The first tenth warms
up and does not count. Exits 1 where it is not flat, where a process is left over in the end that was not there at
first, or where the index is not what the specs ask for.
"""

import argparse
import contextlib
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.benches import bench_folder
from support.fabric import Fabric, RunningDaemon
from support.simple_index import SimpleIndex
from support.spec_repo import SpecRepo
from support.waiting import wait_for

FACTOR = 1.1
MORE = {"memory": 8_000_000, "descriptors": 4, "threads": 2}
"""What the last third may have beyond `FACTOR` times the first: bytes, descriptors, threads."""
WARM_UP = 0.1
SPECS = 24
"""Specs that there are at most."""
NAMES = ("alder", "birch", "cedar", "elm", "hazel", "juniper", "linden", "maple")
VERSIONS = ("1.0", "1.1", "2.0")
SETTINGS = {
    "interval": 1.0,
    "prune": {"share": 1.0},
    "gc": {
        "grace": 0.0,
        "generations": 1,
        "generation_age": 0.0,
        "trash_age": 0.0,
        "interval": 2.0,
        "min_free": 0.0,
    },
}


@dataclass
class Author:
    """Writes the commits; the same ones in each run."""

    repo: SpecRepo
    chance: random.Random = field(default_factory=lambda: random.Random(4))
    whole: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    done: Counter[str] = field(default_factory=Counter)
    _number: int = 0

    def commit(self) -> str:
        """One commit of some kind; gives its id."""
        kinds: list[tuple[Callable[[], None], bool, int]] = [
            (self.add, len(self.whole) + len(self.broken) < SPECS, 3),
            (self.change, bool(self.whole), 5),
            (self.undo, bool(self.whole), 2),
            (self.remove, len(self.whole) > SPECS // 2, 2),
            (self.break_one, len(self.whole) > SPECS // 2, 1),
            (self.mend, bool(self.broken), 2),
            (self.touch, bool(self.whole), 1),
        ]
        possible = [(kind, weight) for kind, may, weight in kinds if may]
        (kind,) = self.chance.choices([one for one, _ in possible], [weight for _, weight in possible])
        kind()
        self.done[kind.__name__] += 1
        return self.repo.commit(kind.__name__)

    def add(self) -> None:
        self._number += 1
        self.whole.add(name := f"wf-{self._number % 3}/node-{self._number}")
        self._write(name)

    def change(self) -> None:
        self._write(self._one(self.whole))

    def undo(self) -> None:
        # Back to what it was two changes ago, and a revert of that: content that was there before.
        name = self._one(self.whole)
        before = (self.repo.work / name / "pyproject.toml").read_bytes()
        self._write(name)
        self.repo.commit("a change that does not last")
        self.repo.write(f"{name}/pyproject.toml", before)

    def remove(self) -> None:
        name = self._one(self.whole)
        self.whole.remove(name)
        self.repo.remove(name)

    def break_one(self) -> None:
        name = self._one(self.whole)
        self.whole.remove(name)
        self.broken.add(name)
        self.repo.write(f"{name}/pyproject.toml", "[project\nname = ")

    def mend(self) -> None:
        name = self._one(self.broken)
        self.broken.remove(name)
        self.whole.add(name)
        self._write(name)

    def touch(self) -> None:
        # A file that no environment depends on.
        self.repo.write(f"{self._one(self.whole)}/README.md", f"{self.chance.random()}\n")

    def mend_all(self) -> str:
        """The last commit: nothing is broken any more."""
        while self.broken:
            self.mend()
        return self.repo.commit("all is well")

    def _one(self, names: set[str]) -> str:
        return self.chance.choice(sorted(names))

    def _write(self, name: str) -> None:
        chosen = sorted(self.chance.sample(NAMES, self.chance.randint(1, 3)))
        wanted = [f"{one}=={self.chance.choice(VERSIONS)}" for one in chosen]
        self.repo.spec(name, wanted)


@dataclass(frozen=True)
class Sample:
    """What the daemon's process takes at one moment."""

    at: float
    memory: int
    """Bytes that are resident."""
    descriptors: int
    threads: int
    children: int
    closures: int


def sample(pid: int, root: Path, began: float) -> Sample:
    """Reads /proc; Linux only."""
    folder = Path("/proc") / str(pid)
    lines = (folder / "status").read_text().splitlines()
    status = {line.partition(":")[0]: line.partition(":")[2].split() for line in lines}
    return Sample(
        time.monotonic() - began,
        int(status["VmRSS"][0]) * 1024,
        len(list((folder / "fd").iterdir())),
        int(status["Threads"][0]),
        len(children(pid)),
        len(list((root / "store").iterdir())),
    )


def children(pid: int) -> list[str]:
    """The names of all processes below one, as far as they have not ended."""
    parents: dict[int, tuple[int, str]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            text = (entry / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        # A name may hold spaces and brackets: the last one ends it.
        name, _, rest = text.partition("(")[2].rpartition(")")
        parents[int(entry.name)] = int(rest.split()[1]), name
    found, waiting = [], [pid]
    while waiting:
        parent = waiting.pop()
        below = [one for one, (above, _) in parents.items() if above == parent]
        waiting += below
        found += [parents[one][1] for one in below]
    return found


def soak(fabric: Fabric, daemon: RunningDaemon, author: Author, commits: int) -> list[Sample]:
    """Makes the commits; one look at the daemon after each one that was waited for."""
    samples, began = [], time.monotonic()
    number = 0
    while number < commits:
        # Now and then somebody pushes several at once.
        burst = 5 if author.chance.random() < 0.05 else 1
        for _ in range(min(burst, commits - number)):
            head = author.commit()
            number += 1
        daemon.wait_for_index(head, timeout=300)
        samples.append(sample(daemon.process.pid, fabric.root, began))
    return samples


def thirds(samples: list[Sample], what: str) -> tuple[float, float, float]:
    """The medians of the first and the last third, and the highest value, after the warm-up."""
    values = [float(getattr(one, what)) for one in samples[int(len(samples) * WARM_UP) :]]
    third = max(1, len(values) // 3)
    return statistics.median(values[:third]), statistics.median(values[-third:]), max(values)


def is_flat(what: str, first: float, last: float) -> bool:
    """Whether the last third is as the rule wants it."""
    return last <= FACTOR * first + MORE[what]


def left_over(pid: int, kept: Counter[str], patience: float = 60) -> list[str]:
    """Processes below the daemon that are still there when it has had nothing to do for a while.

    `kept` are those that it had after its first commit: it reads the repository by git processes that stay.
    """
    # A look at the repository starts git for a moment, so one more of them alone says nothing.
    with contextlib.suppress(AssertionError):
        wait_for(lambda: not Counter(children(pid)) - kept, timeout=patience, message="something runs on")
    return sorted((Counter(children(pid)) - kept).elements())


def show(samples: list[Sample], console: Console) -> bool:
    """The tables; whether all is flat."""
    table = Table(title="over time: what the daemon's process takes")
    for column in ("at s", "memory MB", "descriptors", "threads", "children", "closures in the store"):
        table.add_column(column, justify="right")
    for one in samples[:: max(1, len(samples) // 12)]:
        cells = [f"{one.at:.0f}", f"{one.memory / 1e6:.1f}"]
        cells += [str(each) for each in (one.descriptors, one.threads, one.children, one.closures)]
        table.add_row(*cells)
    console.print(table)
    table = Table(title="medians, without the warm-up")
    for column in ("", "first third", "last third", "highest", "allowed", "more in 1,000 looks", "flat"):
        table.add_column(column, justify="right" if column else "left")
    flat = True
    # From the middle of the first third to that of the last one.
    between = max(1.0, len(samples) * (1 - WARM_UP) * 2 / 3)
    for what, more in MORE.items():
        first, last, highest = thirds(samples, what)
        good = is_flat(what, first, last)
        flat = flat and good
        unit = 1e6 if what == "memory" else 1
        slope = (last - first) / between * 1000
        cells = [f"{value / unit:.1f}" for value in (first, last, highest, FACTOR * first + more, slope)]
        table.add_row(what + (" (MB)" if unit > 1 else ""), *cells, "yes" if good else "NO")
    console.print(table)
    return flat


def run(folder: Path, commits: int, console: Console) -> bool:
    """The whole soak; whether it is as it should be."""
    with SimpleIndex(folder / "packages") as packages:
        for name in NAMES:
            for version in VERSIONS:
                code = f'"""{name} {version}"""\n' + "\n".join(f"VALUE_{n} = {n}" for n in range(20)) + "\n"
                packages.add_wheel(
                    name, version, modules={f"{name}/{m}.py": code for m in ("__init__", "one")}
                )
        repo = SpecRepo(folder / "specs")
        author = Author(repo)
        author.commit()
        fabric = Fabric(folder, packages, repo, settings=dict(SETTINGS))
        with fabric.daemon() as daemon:
            daemon.wait_for_index(repo.head)
            kept = Counter(name for name in children(daemon.process.pid) if name == "git")
            began = time.monotonic()
            samples = soak(fabric, daemon, author, commits)
            seconds = time.monotonic() - began
            index = daemon.wait_for_index(author.mend_all(), timeout=300)
            states = Counter(entry["state"] for entry in index["environments"].values())
            true = set(index["environments"]) == author.whole and set(states) <= {"ready"}
            left = left_over(daemon.process.pid, kept)
            builds, removed = (daemon.metric(f"envfabric_{name}_total") for name in ("builds", "gc_removed"))
        flat = show(samples, console)
        done = ", ".join(f"{name} {number}" for name, number in author.done.most_common())
        console.print(
            f"{commits} commits in {seconds:.0f} s ({done}); {builds:.0f} builds; {removed:.0f} removed"
        )
        verified = fabric.command("verify", "--root", fabric.root)
    console.print(f"in the end: {dict(states)}; problems {index['problems']}; verify {verified.returncode}")
    console.print(
        f"processes below the daemon: {dict(kept)} at first; beyond these in the end: {left or 'none'}"
    )
    good = flat and true and not left and verified.returncode == 0
    console.print("flat, and true" if good else "NOT flat, or not true: see above")
    return good


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--commits", type=int, default=600)
    parser.add_argument("--folder", type=Path, help="where to work; the temporary folder by default")
    given = parser.parse_args()
    with bench_folder(given.folder) as folder:
        good = run(folder, max(1, given.commits), Console(width=110))
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
