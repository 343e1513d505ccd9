"""Many workers at once in one environment on several raylets: until all of them run, and what each node keeps.

    uv run python tests/bench/ray_cluster_start.py [--nodes 3] [--workers 6] [--rounds 3] [--peer-rounds 1]
        [--peers pip uv] [--wheels DIR] [--root ROOT --spec ID --bare ID] [REQUIREMENT…]

Real packages from the default index, or, with --root, an environment that a fabric serves. The raylets, with a
temporary folder and agents of their own each, are on this machine and share its processors, its network and its page
cache: what counts is what they do, and their disk; a real cluster has more of the first two, and its nodes
read the environment over the network. Each node's Python has Ray and uv, and none of the packages.

One runtime_env, new in each round, for as many tasks as there are workers, spread evenly; each imports the packages,
leaves a file, and waits until all have. All are new workers (ray_first_result.py says how that is known) that end
before the next round, with those that Ray started beyond them. Disk is what is new below a node's
runtime_resources, each inode once; the environment of the fabric lies in ROOT, once for all nodes. Exits 1 where
ours leaves anything on a node, or is not leased once by each. Where Ray had started more workers than were asked
for, it may keep the environment in use, and the lease with it: then a later round finds it checked and leased.
"""

import argparse
import contextlib
import os
import signal
import statistics
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# First: it sets what Ray reads when it is imported.
from bench.ray_first_result import HEAVY, alive, refuse_other
from bench.sharing import disk_usage

# isort: split
import ray

from support import ray_ways as ways
from support.benches import bench_folder
from support.ray_benches import drive, packages_of, parsed
from support.ray_nodes import Node, below, installers, lives, now, ray_nodes, started_at
from support.waiting import wait_for

_LIMIT = 1800.0


def stay(modules: Sequence[str], mine: str, over: str) -> list[str]:
    """The task: imports, says so by a file, and keeps its worker until there is another one."""
    import importlib
    import os
    import time

    files = [str(importlib.import_module(name).__file__) for name in modules]
    # Whole at once: whoever looks counts them.
    with open(f"{mine}-new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(f"{mine}-new", mine)
    while not os.path.exists(over):
        time.sleep(0.02)
    return files


@dataclass(frozen=True)
class Start:
    """One start of all workers."""

    first: float
    """Seconds until one ran."""
    all: float
    """Seconds until all did."""
    disk: tuple[int, ...]
    """New bytes of each node."""
    leases: int
    """On the environment, while all ran."""
    seen: frozenset[str]
    """Programs that install, below the nodes."""


def told(folder: Path) -> list[Path]:
    """The files of the workers that run."""
    return [one for one in folder.iterdir() if one.name.isdecimal()]


def no_others(nodes: dict[str, Node], since: float) -> bool:
    """Whether no worker is left that began since then; ends those that Ray started beyond what was asked for."""
    left = False
    for node in nodes.values():
        for pid, words in below(node.process.pid).items():
            idle = words[:1] == ["ray::IDLE"]
            begins = any(word.endswith("/default_worker.py") for word in words)
            if (idle or begins) and lives(pid) and started_at(pid) >= since - 0.02:
                left = True
                if idle:
                    with contextlib.suppress(ProcessLookupError):
                        # It says goodbye to its raylet, which then counts it no more.
                        os.kill(pid, signal.SIGTERM)
    return not left


def start(packages: ways.Packages, nodes: dict[str, Node], workers: int, way: str, folder: Path) -> Start:
    """Starts all workers in a new runtime_env, and ends them."""
    task = ray.remote(max_calls=1)(stay)
    here = folder / uuid.uuid4().hex
    here.mkdir()
    over = folder / f"{here.name}-over"
    before = {name: disk_usage(node.installed) for name, node in nodes.items()}
    where = [list(nodes)[number % len(nodes)] for number in range(workers)]
    with installers(list(nodes.values()), 0.1) as seen:
        submitted, began = now(), time.perf_counter()
        env = packages.runtime_env(way)
        running = [
            task.options(num_cpus=1, resources={name: 0.001}, runtime_env=env).remote(
                packages.modules, str(here / str(number)), str(over)
            )
            for number, name in enumerate(where)
        ]
        wait_for(lambda: told(here), timeout=_LIMIT, message=f"{way}: no worker runs")
        first = time.perf_counter() - began
        wait_for(
            lambda: len(told(here)) == workers,
            timeout=_LIMIT,
            message=f"{way}: not all workers run",
        )
        last = time.perf_counter() - began
    leases = len(packages.leases(nodes.values()))
    disk = tuple(disk_usage(node.installed) - before[name] for name, node in nodes.items())
    pids = {number: int((here / str(number)).read_text()) for number in range(workers)}
    began_at = {number: started_at(pid) for number, pid in pids.items()}
    over.touch()
    for number, files in enumerate(ray.get(running, timeout=60)):
        refuse_other(way, packages.place(way, nodes[where[number]]), files, began_at[number], submitted)
    for pid in pids.values():
        wait_for(lambda: not lives(pid), timeout=60, message=f"{way}: a worker does not end")  # noqa: B023
    wait_for(lambda: no_others(nodes, submitted), timeout=60, message=f"{way}: workers do not end")
    return Start(first, last, disk, leases, frozenset(seen))


def table_of(found: dict[str, list[Start]], nodes: int, workers: int, packages: ways.Packages) -> Table:
    """A line for each way."""
    once = disk_usage(packages.closure)
    table = Table(
        title=f"{workers} workers at once on {nodes} nodes; import {', '.join(packages.modules)}; medians; "
        f"the environment takes {once / 1e6:,.0f} MB in ROOT, once"
    )
    heads = (
        "way",
        "starts",
        "first runs s",
        "all run s",
        "/ plugin",
        "MB on each node",
        "leases",
        "installers",
    )
    for column in heads:
        table.add_column(column, justify="left" if column in {"way", "installers"} else "right")
    ours = statistics.median(one.all for one in found[ways.PLUGIN])
    for way, starts in found.items():
        last = statistics.median(one.all for one in starts)
        table.add_row(
            way,
            str(len(starts)),
            f"{statistics.median(one.first for one in starts):.2f}",
            f"{last:.2f}",
            f"{last / ours:.1f}",
            f"{max(max(one.disk) for one in starts) / 1e6:,.1f}",
            str(max(one.leases for one in starts)),
            ", ".join(sorted(frozenset().union(*(one.seen for one in starts)))) or "none",
        )
    return table


def measure(given: argparse.Namespace, requirements: Sequence[str], console: Console) -> bool:
    """Whether ours left nothing on the nodes, and was leased by each."""
    with contextlib.ExitStack() as ends:
        folder = ends.enter_context(bench_folder(given.folder))
        packages = packages_of(given, folder, requirements)
        bare = ways.bare_python(folder, packages)
        names = [f"node-{number}" for number in range(1, given.nodes + 1)]
        each = -(-given.workers // given.nodes)
        address, nodes = ends.enter_context(ray_nodes(dict.fromkeys(names, bare), cpus=each))
        drive(address, ends)
        wait_for(lambda: set(names) <= alive(), timeout=60, message="not all nodes are up")
        chosen = [ways.PLUGIN, *given.peers]
        found: dict[str, list[Start]] = {way: [] for way in chosen}
        # The environment's pages are in this machine's cache, as the wheels of the others are not.
        start(packages, nodes, given.workers, ways.PLUGIN, folder)
        for number in range(max(given.rounds, given.peer_rounds)):
            for way in chosen:
                if number < (given.rounds if way == ways.PLUGIN else given.peer_rounds):
                    found[way].append(start(packages, nodes, given.workers, way, folder))
        console.print(table_of(found, given.nodes, given.workers, packages))
    mine = found[ways.PLUGIN]
    left = max(max(one.disk) for one in mine)
    leased = {one.leases for one in mine}
    console.print(f"left on a node by ours: {left} bytes; leases: {sorted(leased)}, one for each node")
    return left == 0 and leased == {min(given.nodes, given.workers)} and not any(one.seen for one in mine)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--workers", type=int, default=6, help="in all")
    parser.add_argument("--rounds", type=int, default=3, help="starts of ours")
    parser.add_argument("--peer-rounds", type=int, default=1, help="starts of each peer")
    parser.add_argument("--peers", nargs="*", choices=ways.PEERS, default=[ways.PIP, ways.UV])
    given = parsed(parser)
    good = measure(given, given.requirements or list(HEAVY), Console(width=130))
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
