"""From submit to the first result of a Ray task that imports its packages: the fabric beside Ray's own ways.

    uv run python tests/bench/ray_first_result.py [--rounds 10] [--peer-rounds 3] [--peers pip uv "uv run"]
        [--wheels DIR] [--root ROOT --spec ID --bare ID] [REQUIREMENT…]

Real packages from the default index, or, with --root, an environment that a fabric serves. One cluster of two
raylets: `full`, whose Python has the set (the environment's files, copied with their bytecode to this machine's
disk), for the floor, the client and the plugin; `bare`, whose Python has Ray and uv, for Ray's `pip`, Ray's
`uv` and `uv run`, which could not be shown where the packages are there already. support/ray_ways.py has the
runtime_envs.

A round has a sample of every way, and begins with another one each time; the peers, which install for minutes,
are in the first --peer-rounds only. A sample is two times, each around making the runtime_env, submitting, and
`ray.get`:

    cold    nothing is there for this runtime_env, and no worker
    second  the same runtime_env once more, while the first worker is busy: another worker of what is there

Both are new workers, or the bench ends: the process began after the submit, and its modules come from where they
should. Workers that wait in stock have no runtime_env, and Ray takes none of them for one. Where no worker is
idle it starts as many as the node has CPUs: each node has one, which the first task has, and the second task needs
none. After a sample both workers end, and, for the plugin, the lease is given back, before the next one begins: no
sample finds anything left by another but the page cache, which a round that isn't counted warms for the floor and
for ours. "set-up" is what is over before the worker's process begins; "processor" is what the first worker has used
of it by its result, which says most on a machine with other work.

Installing is looked for in each sample: paths below the node's runtime_resources (of `uv run`, in its cache),
bytes that the runtime_env agent and its children wrote, and, in the round that isn't counted and in the peers',
programs such as uv and pip below the raylets. Exits 1 where ours are seen to install anything, and, from five
rounds on, where a figure is not what is promised.
"""

import argparse
import contextlib
import os
import statistics
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.ray_user import RAY

# What Ray reads when it is imported.
os.environ |= RAY | {"RAY_AUTH_MODE": "disabled"}

import ray

from bench.first_import import state
from support import ray_ways as ways
from support.benches import bench_folder
from support.ray_benches import drive, packages_of, parsed
from support.ray_nodes import Node, installers, lives, now, ray_nodes, started_at
from support.waiting import wait_for

SMALL = ("humanize",)
HEAVY = ("numpy", "pandas", "scipy", "scikit-learn")
AT_MOST = 1.1
"""Times the floor, for the client and the plugin."""
AT_LEAST = 8.0
"""Times the plugin, for Ray's pip on the heavy set."""
JUDGED_FROM = 5
"""Rounds."""
_LIMIT = 900.0


def look(modules: Sequence[str], over: str) -> Iterator[tuple[int, float, list[str]]]:
    """The task: imports, tells where they came from, and keeps its worker until there is a file."""
    import importlib
    import os
    import time

    files = [str(importlib.import_module(name).__file__) for name in modules]
    yield os.getpid(), time.process_time(), files
    while not os.path.exists(over):
        time.sleep(0.01)


@dataclass(frozen=True)
class Sample:
    """What one way took, in seconds, and what it left."""

    cold: float
    set_up: float
    """The part of `cold` before the worker's process began."""
    spent: float
    """Processor time of that worker, until it had the result."""
    second: float
    paths: int
    """New ones below the node's runtime_resources, or in uv's cache."""
    written: int
    """Bytes that the agent and its children wrote."""
    seen: frozenset[str]
    """Programs that install."""


@dataclass
class Bench:
    """A cluster that is up, and one set of packages."""

    packages: ways.Packages
    nodes: dict[str, Node]
    folder: Path
    # A worker that ends with its task, of which the first result counts.
    task: Any = field(default_factory=lambda: ray.remote(max_calls=1, num_returns="streaming")(look))

    def sample(self, way: str, watch: float | None) -> Sample:
        """Both times of one way; `watch` is the pause between two looks at processes."""
        name = "bare" if way in ways.PEERS else "full"
        node = self.nodes[name]
        place = self.packages.place(way, node)
        kept = place if way in ways.PEERS else node.installed
        installed, written = count(kept), node.written()
        over = self.folder / uuid.uuid4().hex
        there = {"resources": {name: 0.001}}
        with installers([node], watch) if watch else contextlib.nullcontext(set[str]()) as seen:
            submitted, began = now(), time.perf_counter()
            env = self.packages.runtime_env(way)
            held = self.task.options(**there, num_cpus=1, runtime_env=env).remote(
                self.packages.modules, str(over)
            )
            pid, spent, files = ray.get(next(held), timeout=_LIMIT)
            cold = time.perf_counter() - began
        began_at = started_at(pid)
        refuse_other(way, place, files, began_at, submitted)
        added, wrote = count(kept) - installed, node.written() - written
        again, began = now(), time.perf_counter()
        last = self.task.options(**there, num_cpus=0, runtime_env=env).remote(
            self.packages.modules, str(over)
        )
        other, _, files = ray.get(next(last), timeout=_LIMIT)
        second = time.perf_counter() - began
        refuse_other(way, place, files, started_at(other), again)
        over.touch()
        for one in (pid, other):
            wait_for(lambda: not lives(one), timeout=60, message=f"{way}: a worker does not end")  # noqa: B023
        if way == ways.PLUGIN:
            wait_for(
                lambda: not self.packages.leases([node]), timeout=60, message="the lease is not given back"
            )
        return Sample(cold, began_at - submitted, spent, second, added, wrote, frozenset(seen))

    def run(self, rounds: int, peers: Sequence[str], peer_rounds: int) -> dict[str, list[Sample]]:
        """All samples; of ours and the floor the first one is not counted."""
        for node in self.nodes:
            wait_for(lambda: node in alive(), timeout=60, message=f"{node} is not up")  # noqa: B023
        mine = (ways.FLOOR, *ways.OURS)
        found: dict[str, list[Sample]] = {way: [self.sample(way, 0.01)] for way in mine}
        for number in range(rounds):
            chosen = [*mine, *(peers if number < peer_rounds else ())]
            turn = number % len(chosen)
            for way in (*chosen[turn:], *chosen[:turn]):
                found.setdefault(way, []).append(self.sample(way, 0.05 if way in peers else None))
        return found


def refuse_other(way: str, place: Path, files: Sequence[str], began: float, submitted: float) -> None:
    """Ends the bench where a worker was there before its task, or has its packages from elsewhere."""
    # The system tells it to a hundredth.
    if began < submitted - 0.02:
        raise SystemExit(f"{way}: a worker was there {submitted - began:.2f} s before its task")
    for file in files:
        if not Path(file).is_relative_to(place):
            raise SystemExit(f"{way}: {file} is not below {place}")


def alive() -> set[str]:
    """The names of the nodes that the cluster has."""
    return {one["NodeName"] for one in ray.nodes() if one["Alive"]}  # type: ignore[no-untyped-call]


def count(folder: Path) -> int:
    """Paths below a folder."""
    return sum(len(below) + len(names) for _, below, names in os.walk(folder))


def tables(found: dict[str, list[Sample]], what: str, console: Console) -> dict[str, float]:
    """Prints them; gives the medians of the cold ones."""
    counted = {way: all_of[1:] if way not in ways.PEERS else all_of for way, all_of in found.items()}
    cold = {way: statistics.median(one.cold for one in all_of) for way, all_of in counted.items()}
    second = {way: statistics.median(one.second for one in all_of) for way, all_of in counted.items()}
    spent = {way: statistics.median(one.spent for one in all_of) for way, all_of in counted.items()}
    table = Table(title=f"from submit to the first result; imports {what}; medians")
    heads = (
        "way",
        "samples",
        "cold s",
        "least…most",
        "/ floor",
        "set-up s",
        "processor s",
        "/ floor",
        "second s",
        "/ floor",
    )
    for column in (*heads, "paths", "agent wrote", "installers"):
        table.add_column(column, justify="left" if column in {"way", "installers"} else "right")
    for way, all_of in counted.items():
        times = [one.cold for one in all_of]
        table.add_row(
            way,
            str(len(all_of)),
            f"{cold[way]:.2f}",
            f"{min(times):.2f}…{max(times):.2f}",
            f"{cold[way] / cold[ways.FLOOR]:.2f}",
            f"{max(0.0, statistics.median(one.set_up for one in all_of)):.2f}",
            f"{spent[way]:.2f}",
            f"{spent[way] / spent[ways.FLOOR]:.2f}",
            f"{second[way]:.2f}",
            f"{second[way] / second[ways.FLOOR]:.2f}",
            str(max(one.paths for one in found[way])),
            f"{max(one.written for one in found[way]) / 1e3:,.0f} kB",
            ", ".join(sorted(frozenset().union(*(one.seen for one in found[way])))) or "none",
        )
    console.print(table)
    return cold


def judge(cold: dict[str, float], heavy: bool, rounds: int, console: Console) -> bool:
    """Whether the figures are what is promised, as far as that can be said."""
    good = True
    lines = [
        (f"{way} / floor", cold[way] / cold[ways.FLOOR], f"at most {AT_MOST}", AT_MOST) for way in ways.OURS
    ]
    for way in ways.PEERS:
        if way in cold:
            promised = heavy and way == ways.PIP
            told = f"at least {AT_LEAST}" if promised else "nothing promised"
            lines.append(
                (f"{way} / plugin", cold[way] / cold[ways.PLUGIN], told, -AT_LEAST if promised else 0.0)
            )
    for name, ratio, told, bound in lines:
        kept = bound == 0 or (ratio <= bound if bound > 0 else ratio >= -bound)
        verdict = (
            "" if bound == 0 else f": {'yes' if kept else 'NO'}" if rounds >= JUDGED_FROM else ": not judged"
        )
        console.print(f"{name}: {ratio:.2f} ({told}){verdict}")
        good = good and (kept or rounds < JUDGED_FROM)
    return good


def measure(given: argparse.Namespace, requirements: Sequence[str], console: Console) -> bool:
    """One set on a cluster of its own; whether all is as it should be."""
    with contextlib.ExitStack() as ends:
        folder = ends.enter_context(bench_folder(given.folder))
        packages = packages_of(given, folder, requirements)
        pythons = {"full": ways.full_python(folder, packages)}
        if given.peers:
            pythons["bare"] = ways.bare_python(folder, packages)
        address, nodes = ends.enter_context(ray_nodes(pythons, cpus=1))
        drive(address, ends)
        before = state(packages.closure)
        found = Bench(packages, nodes, folder).run(max(1, given.rounds), given.peers, given.peer_rounds)
        changed = sorted(path for path, _ in state(packages.closure).items() ^ before.items())
        cold = tables(found, ", ".join(packages.modules), console)
    good = judge(cold, set(requirements) >= set(HEAVY), given.rounds, console)
    ours = [one for way in ways.OURS for one in found[way]]
    idle = not changed and not any(one.paths or one.seen for one in ours)
    console.print(
        f"install work for ours: {sum(one.paths for one in ours)} paths on the node, {len(changed)} changed in the "
        f"environment, programs: {', '.join(sorted(frozenset().union(*(one.seen for one in ours)))) or 'none'}"
    )
    return good and idle


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=int, default=10, help="samples of the floor, the client and the plugin"
    )
    parser.add_argument("--peer-rounds", type=int, default=3, help="samples of each peer")
    parser.add_argument("--peers", nargs="*", choices=ways.PEERS, default=list(ways.PEERS))
    given = parsed(parser)
    console = Console(width=160)
    sets = [given.requirements] if given.requirements else [SMALL, HEAVY]
    good = [measure(given, one, console) for one in sets]
    raise SystemExit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
