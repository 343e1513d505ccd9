"""Ten thousand specs over fifty requirement sets: what the daemon takes to serve them, and to go on serving them.

    uv run python tests/bench/scale.py [--specs 10000] [--sets 50] [--rounds 5] [--rest 30]

A real daemon, git and uv; small wheels made on the spot, behind an index on the loopback. First the sets alone, one
spec each, then all specs, each time from an empty store. Then, with everything served: restarts, commits that
change one spec, bursts of commits, looks that find nothing, lookups by the client, memory, and the processor at rest.
With all its specs it ends with exit code 1 where a promise is broken; with fewer, what is promised is only shown.
Times are from the daemon's own log lines (`revision`, `looked` and `published` say how long they took), except the
first uv process of a changed spec: it is the first child of the daemon that /proc shows to be uv.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import envfabric
from support.benches import bench_folder
from support.fabric import Fabric, RunningDaemon
from support.simple_index import SimpleIndex
from support.spec_repo import SpecRepo
from support.waiting import wait_for

MODULES = 12
"""Modules of each wheel."""
NODES = 100
"""Specs of each workflow."""
FULL = 10_000
"""Specs of a run whose figures are promised."""
BURST = 20
"""Commits that follow each other at once."""
TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Row:
    """A figure beside what is promised of it."""

    what: str
    figures: list[float]
    unit: str
    most: float | None = None
    note: str = ""

    @property
    def figure(self) -> float:
        return statistics.median(self.figures)

    @property
    def kept(self) -> bool:
        return self.most is None or self.figure <= self.most


@dataclass
class Bench:
    """One fabric with as many specs as are asked for, and what was measured on it."""

    fabric: Fabric
    specs: int
    sets: int
    rows: list[Row] = field(default_factory=list)

    def row(
        self, what: str, figures: list[float] | float, unit: str, most: float | None = None, note: str = ""
    ) -> None:
        self.rows.append(Row(what, figures if isinstance(figures, list) else [figures], unit, most, note))


def id_of(number: int) -> str:
    return f"wf-{number // NODES:03}/node-{number % NODES:02}"


def requirements(one: int) -> list[str]:
    return [f"own-{one}", f"pair-{one // 2}", "common"]


def make_wheels(index: SimpleIndex, sets: int) -> None:
    """Each set has a wheel of its own, one that it shares with another set, and one that all have."""
    for name in [
        "common",
        *(f"own-{one}" for one in range(sets)),
        *(f"pair-{one}" for one in range(-(-sets // 2))),
    ]:
        package = name.replace("-", "_")
        modules = {f"{package}/__init__.py": ""}
        modules |= {f"{package}/part{n}.py": f"NAME = '{name}'\nPART = {n}\n" for n in range(MODULES)}
        index.add_wheel(name, "1.0", modules=modules)


def write_specs(repo: SpecRepo, specs: int, sets: int) -> None:
    for number in range(specs):
        repo.spec(id_of(number), requirements(number % sets))


def commit(repo: SpecRepo) -> tuple[str, float]:
    """Commits the work tree; gives the commit, and the time of the return of `git commit`."""
    repo.git("add", "--all")
    repo.git("commit", "--quiet", "--allow-empty", "--message", "change")
    at = time.time()
    return repo.head, at


def served(fabric: Fabric, revision: str, daemon: RunningDaemon) -> Callable[[], float | None]:
    """Asked until the index is complete for a revision; gives the time of that."""

    def ask() -> float | None:
        assert daemon.process.poll() is None, "".join(daemon.lines[-20:])
        # The log's line comes right after the index; reading megabytes all the time would take from the daemon.
        done = (one for one in events(daemon, "published") if one["commit"] == revision and one["complete"])
        return next((when(one) for one in done), None)

    return ask


def events(daemon: RunningDaemon, name: str, begin: int = 0) -> list[dict[str, Any]]:
    """The daemon's log lines of one kind, from line `begin` on."""
    mark = f'"event": "{name}"'
    return [json.loads(line) for line in daemon.lines[begin:] if mark in line]


def when(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["timestamp"]).timestamp()


def processor(pid: int) -> float:
    """Seconds of the processor that a process took so far, and those of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICK


def memory(pid: int) -> tuple[float, float]:
    """Megabytes that a process has in memory: now, and at most so far."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    now, most = (int(lines[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    return now, most


def uv_runs(pid: int) -> bool:
    """Whether a child of the process is uv."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in children.read_text().split():
                if Path(f"/proc/{child}/comm").read_text().strip() == "uv":
                    return True
    return False


def first_uv(pid: int) -> float:
    """The time at which uv runs below a process."""
    for _ in range(60_000):
        if uv_runs(pid):
            return time.time()
        time.sleep(0.001)
    raise SystemExit("no uv process within a minute")


def fill(fabric: Fabric, count: int, sets: int, measure: Callable[[RunningDaemon, float], None]) -> None:
    """All specs in one commit, from an empty store; `measure` hears how long it took, while the daemon runs."""
    fabric.settings |= {"log_level": "debug"}
    fabric.repo.commit("nothing yet")
    write_specs(fabric.repo, count, sets)
    with fabric.daemon() as daemon:
        first = fabric.repo.head
        wait_for(served(fabric, first, daemon), timeout=60, message="the empty commit was not published")
        revision, at = commit(fabric.repo)
        done = wait_for(served(fabric, revision, daemon), timeout=1800, message="not all specs were served")
        measure(daemon, done - at)


def measure_fill(bench: Bench, alone: float, daemon: RunningDaemon, seconds: float) -> None:
    index = bench.fabric.index()
    states = [one["state"] for one in index["environments"].values()]
    assert states.count("ready") == bench.specs, states
    bench.row(f"the {bench.sets} builds alone, one spec each", alone, "s")
    bench.row(f"all {bench.specs} specs served, from an empty store", seconds, "s")
    bench.row("  beside the builds", seconds - alone, "s", 60.0)
    bench.row(
        "  publications meanwhile, at most one a second",
        len(events(daemon, "published")) - 1,
        "",
        round(seconds) + 3,
    )
    bench.row("  processor of the daemon, git and uv included", processor(daemon.process.pid), "s")
    now, most = memory(daemon.process.pid)
    bench.row("  memory at its most", most, "MB", 150.0)
    bench.row("  memory then", now, "MB", 150.0)


def measure_restarts(bench: Bench, rounds: int) -> None:
    whole, own = [], []
    for _ in range(rounds):
        began = time.time()
        with bench.fabric.daemon() as daemon:
            (seen,) = wait_for(lambda: events(daemon, "revision"), timeout=120, message="no look")
            whole.append(when(seen) - began)
            own.append(seen["seconds"])
            assert seen["changed"] == 0, seen
    bench.row("full reconcile: a restart reads and plans all", own, "s", 2.0)
    bench.row("  with the process's own start and all it looks at first", whole, "s")


def measure_commits(bench: Bench, daemon: RunningDaemon, rounds: int) -> None:
    fabric, pid = bench.fabric, daemon.process.pid
    reached, reconciled, all_of_it, written = [], [], [], []
    for number in range(rounds):
        # A question that nobody has asked: uv has to lock.
        fabric.repo.spec(
            id_of(number),
            [f"own-{number % bench.sets}", f"own-{(number + 1) % bench.sets}", *(["common"] * (number % 2))],
        )
        begin = len(daemon.lines)
        revision, at = commit(fabric.repo)
        reached.append(first_uv(pid) - at)
        all_of_it.append(wait_for(served(fabric, revision, daemon), timeout=120, message="not served") - at)
        reconciled += [one["seconds"] for one in events(daemon, "revision", begin)]
        written += [one["seconds"] for one in events(daemon, "published", begin)]
    bench.row("one changed spec: from git commit's return to its first uv process", reached, "s", 0.3)
    bench.row("  reconciling that commit", reconciled, "s")
    bench.row("  until it is served", all_of_it, "s")
    bench.row("writing the index, links under envs/ included", written, "s")


def measure_burst(bench: Bench, daemon: RunningDaemon) -> None:
    begin = len(daemon.lines)
    for number in range(BURST):
        bench.fabric.repo.write(f"{id_of(0)}/README.md", f"{number}\n")
        revision, _ = commit(bench.fabric.repo)
    wait_for(served(bench.fabric, revision, daemon), timeout=120, message="the burst was not served")
    bench.row(f"a burst of {BURST} commits: revisions looked at", len(events(daemon, "revision", begin)), "")
    bench.row("  publications", len(events(daemon, "published", begin)), "")


def measure_looks(bench: Bench, daemon: RunningDaemon, rounds: int) -> None:
    begin = len(daemon.lines)
    head = bench.fabric.repo.path / ".git/HEAD"
    text = head.read_bytes()
    for number in range(rounds):
        # What notices a moved branch hears of this, and there is nothing new.
        part = head.with_name("HEAD.lock")
        part.write_bytes(text)
        part.replace(head)
        wait_for(lambda: len(events(daemon, "looked", begin)) > number, timeout=60, message="no look")  # noqa: B023
    bench.row(
        "a look that finds nothing new",
        [one["seconds"] for one in events(daemon, "looked", begin)],
        "s",
        0.05,
    )


def measure_rest(bench: Bench, daemon: RunningDaemon, rest: float) -> None:
    pid = daemon.process.pid
    before, began = processor(pid), time.monotonic()
    time.sleep(rest)
    share = (processor(pid) - before) / (time.monotonic() - began)
    bench.row("processor at rest, git included", 100 * share, "%", 1.0)
    bench.row("memory of a daemon that was restarted", memory(pid)[0], "MB", 150.0)


def measure_client(bench: Bench, rounds: int) -> None:
    times = []
    for number in range(rounds * 3):
        began = time.perf_counter()
        path = envfabric.python(id_of(number), root=bench.fabric.root)
        times.append(time.perf_counter() - began)
        assert os.access(path, os.X_OK)
    bench.row("a client's lookup of one id", times, "s")
    bench.row("  size of index.json", (bench.fabric.root / "index.json").stat().st_size / 1e6, "MB")


def run(specs: int, sets: int, rounds: int, rest: float, folder: Path) -> Bench:
    with SimpleIndex(folder / "wheels") as index:
        make_wheels(index, sets)
        few, many = folder / "few", folder / "many"
        few.mkdir()
        many.mkdir()
        alone: list[float] = []
        fill(
            Fabric(few, index, SpecRepo(few / "specs")), sets, sets, lambda _, seconds: alone.append(seconds)
        )
        bench = Bench(Fabric(many, index, SpecRepo(many / "specs")), specs, sets)
        fill(
            bench.fabric, specs, sets, lambda daemon, seconds: measure_fill(bench, alone[0], daemon, seconds)
        )
        measure_restarts(bench, rounds)
        with bench.fabric.daemon() as daemon:
            wait_for(lambda: events(daemon, "revision"), timeout=120, message="no look")
            measure_commits(bench, daemon, rounds)
            measure_burst(bench, daemon)
            measure_looks(bench, daemon, rounds)
            measure_rest(bench, daemon, rest)
        measure_client(bench, rounds)
    return bench


def table(bench: Bench) -> Table:
    shown = Table(title=f"{bench.specs} specs over {bench.sets} requirement sets; medians")
    for column in ("what", "runs", "median", "worst", "promised"):
        shown.add_column(column, justify="left" if column == "what" else "right")
    for row in bench.rows:
        promised = "" if row.most is None else f"≤ {row.most:g} {row.unit} {'✓' if row.kept else '✗'}"
        worst = "" if len(row.figures) == 1 else f"{max(row.figures):.3g}"
        shown.add_row(row.what, str(len(row.figures)), f"{row.figure:.3g} {row.unit}", worst, promised)
    return shown


def broken_promises(bench: Bench) -> list[str]:
    """What a run of the full size came to that is more than is promised of it."""
    return [row.what.strip() for row in bench.rows if not row.kept] if bench.specs >= FULL else []


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--specs", type=int, default=FULL)
    parser.add_argument("--sets", type=int, default=50, help="distinct requirement sets among the specs")
    parser.add_argument("--rounds", type=int, default=5, help="restarts, commits and looks that are measured")
    parser.add_argument(
        "--rest", type=float, default=30.0, help="seconds for which the daemon is watched at rest"
    )
    parser.add_argument("--folder", type=Path, help="where to work; the temporary folder by default")
    given = parser.parse_args()
    with bench_folder(given.folder) as folder:
        bench = run(given.specs, min(given.sets, given.specs), given.rounds, given.rest, folder)
    Console(width=120).print(table(bench))
    if broken := broken_promises(bench):
        raise SystemExit(f"not as promised: {'; '.join(broken)}")


if __name__ == "__main__":
    main()
