"""Metadata operations of one build and of one first import, counted, beside bare uv's.

    uv run python tests/bench/operations.py [--wheels DIR] [--module pandas] [REQUIREMENT…]

Needs strace (a Debian package of that name); without it the exit code is 2. Counted are the system calls that
a file server sees as metadata operations, failed ones included, whose path is below ROOT, for uv below the
folder of its cache and its project. Everything is warm: uv's caches, the bytecode store, and for the fabric
what a running daemon remembers. Not counted are reads and writes, and the status of a file that was just opened.
What a client's cache would answer is counted, on both sides.
"""

import argparse
import contextlib
import functools
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.benches import HEAVY, BareUv, Workshop, bench_folder, local_index
from support.tracing import FSTAT, MARKER, STRACE, Operation, count, operations, repeats
from support.without_rights import obey_modes

PROMISED = 1.5
"""Operations of a build over those of bare uv, which the fabric may take."""
_PHASES = ("sync, uv", "sync", "validate", "bytecode", "seal")


def worker(folder: Path, index: str) -> None:
    """What is recorded: a first build after a start, and one as a running daemon makes it."""
    shop = Workshop(folder, (), index or None, text=(folder / "spec.toml").read_text())
    for name in ("first", "next"):
        shop.build(tell=functools.partial(mark, name))
        mark("none")


def mark(build: str, phase: str = "") -> None:
    """Writes a line into the recording."""
    with contextlib.suppress(FileNotFoundError):
        os.stat(f"{MARKER}{build}/{phase}")


def record(
    command: Sequence[str | Path], cwd: Path, env: dict[str, str], below: Path, trace: Path
) -> list[Operation]:
    """The operations of a command below a folder. Raises `SystemExit` where it fails."""
    # Root, too, finds a sealed environment closed: a worker's user does.
    done = subprocess.run(
        [*STRACE, "-o", trace, *command],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        preexec_fn=obey_modes,
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command[:3]))} failed under strace:\n{done.stderr[-2000:]}")
    with trace.open(errors="surrogateescape") as lines:
        found = list(operations(lines, below.resolve(), cwd.resolve(), ["uv"]))
    trace.unlink()
    return found


def phase_of(one: Operation) -> str:
    """The column of an operation of a build."""
    phase = one.phase.partition("/")[2]
    return f"{phase}, uv" if one.program == "uv" else phase


class Bench:
    """A workshop with its wheels in the cache and their bytecode in the store, and bare uv likewise."""

    def __init__(self, folder: Path, requirements: Sequence[str], wheels: Path | None) -> None:
        self.folder = folder
        with local_index(wheels, folder) as local:
            self.shop = Workshop(folder / "fabric", requirements, local)
            self.closure = self.shop.build()
            (folder / "fabric/spec.toml").write_bytes(self.shop.pyproject)
            self.builds = self._builds(local.url if wheels else "")
            self.bare = BareUv(folder / "bare")
            project = self.bare.lay_out("warm", self.shop.pyproject, self.shop.lock)
            self.bare.make(project)
            self.plain = self._uv("plain")
            self.compiled = self._uv("compiled", "--compile-bytecode")

    def _builds(self, index: str) -> dict[str, list[Operation]]:
        command = [sys.executable, __file__, "--worker", str(self.folder / "fabric"), "--index", index]
        found = record(command, self.folder, dict(os.environ), self.shop.root.path, self.folder / "trace")
        return {
            name: [one for one in found if one.phase.partition("/")[0] == name] for name in ("first", "next")
        }

    def _uv(self, name: str, *flags: str) -> list[Operation]:
        project = self.bare.lay_out(name, self.shop.pyproject, self.shop.lock)
        env, trace = self.bare.environment(), self.folder / "trace"
        return [
            one
            for command in self.bare.commands(*flags)
            for one in record(command, project, env, self.bare.folder, trace)
        ]

    def first_import(self, environment: Path, module: str) -> list[Operation]:
        """The operations below an environment of a new process that imports a module."""
        env = {"PATH": os.defpath, "HOME": str(self.folder)}
        python = environment / "bin/python"
        return record(
            [python, "-c", f"import {module}"], self.folder, env, environment, self.folder / "trace"
        )


def build_table(bench: Bench, title: str) -> tuple[Table, float]:
    """One line for each kind of operation, and the ratio that is promised."""
    build = bench.builds["next"]
    by_phase = {
        phase: count(one for one in build if phase_of(one) == phase)
        for phase in (*_PHASES, *sorted({phase_of(one) for one in build}.difference(_PHASES)))
    }
    ours, plain, compiled = count(build), count(bench.plain), count(bench.compiled)
    table = Table(title=title)
    columns = ["", *by_phase, "fabric", "bare uv", "uv, compiling", "fabric / uv", "fabric / compiling"]
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for kind in sorted(ours | plain | compiled, key=lambda one: -ours[one]):
        cells = [*(str(found[kind] or "") for found in by_phase.values()), str(ours[kind])]
        table.add_row(
            kind, *cells, str(plain[kind]), str(compiled[kind]), *_ratios(ours, plain, compiled, kind)
        )
    table.add_section()
    sums = [str(found.total()) for found in (*by_phase.values(), ours, plain, compiled)]
    table.add_row("all", *sums, *_ratios(ours, plain, compiled))
    return table, ours.total() / max(1, plain.total())


def _ratios(ours: Counter[str], plain: Counter[str], compiled: Counter[str], kind: str = "") -> list[str]:
    pairs = [(ours[kind], one[kind]) if kind else (ours.total(), one.total()) for one in (plain, compiled)]
    return [f"{mine / theirs:.2f}" if theirs else "-" for mine, theirs in pairs]


def import_table(bench: Bench, module: str) -> Table:
    """A first import from environments of all sorts, by kind of operation."""
    without = bench.shop.build(bytecode=False)
    found = {
        "fabric": bench.first_import(bench.closure / ".venv", module),
        "fabric without bytecode": bench.first_import(without / ".venv", module),
        "bare uv": bench.first_import(bench.bare.folder / "plain/.venv", module),
        "bare uv, its second import": bench.first_import(bench.bare.folder / "plain/.venv", module),
        "uv, compiling": bench.first_import(bench.bare.folder / "compiled/.venv", module),
    }
    counted = {name: count(each) for name, each in found.items()}
    table = Table(title=f"metadata operations of a first `import {module}`")
    for column in ("", *counted):
        table.add_column(column, justify="right" if column else "left")
    for kind in sorted({kind for each in counted.values() for kind in each}):
        table.add_row(kind, *(str(each[kind]) for each in counted.values()))
    table.add_section()
    table.add_row("all", *(str(each.total()) for each in counted.values()))
    least = counted["uv, compiling"].total()
    table.add_row("/ uv, compiling", *(f"{each.total() / max(1, least):.2f}" for each in counted.values()))
    return table


def plan(bench: Bench) -> list[str]:
    """What could still fall, by where the fabric's own operations are beyond uv's."""
    build = [one for one in bench.builds["next"] if one.kind != FSTAT]
    plain = count(bench.plain)
    lines = []
    own: dict[str, list[Operation]] = {}
    for one in build:
        own.setdefault(one.kind, []).append(one)
    for kind, each in sorted(own.items(), key=lambda pair: plain[pair[0]] - len(pair[1])):
        over = len(each) - plain[kind]
        if over <= max(4, len(build) // 200):
            continue
        mine = [one for one in each if one.program != "uv"]
        where = Counter(phase_of(one) for one in mine).most_common(2)
        told = ", ".join(f"{number} in {phase}" for phase, number in where)
        root = bench.shop.root.path
        of = Counter(_place(path, root) for one in mine for path in one.paths[-1:]).most_common(2)
        told += "; below " + ", ".join(f"{folder} {number}" for folder, number in of)
        again = repeats(mine)[kind]
        lines.append(f"{kind}: {over} more than uv ({told}); {again} of the fabric's own ask the same again")
    return lines


def _place(path: str, root: Path) -> str:
    """The folder of ROOT that a path is in."""
    return os.path.relpath(path, root).partition("/")[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where to work; the temporary folder by default")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to be taken instead of the index's")
    parser.add_argument("--module", default="pandas", help="what is imported")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--index", default="", help=argparse.SUPPRESS)
    parser.add_argument("requirements", nargs="*", default=list(HEAVY))
    given = parser.parse_args()
    if given.worker is not None:
        worker(given.worker, given.index)
        return
    if shutil.which("strace") is None:
        print(
            "This bench counts system calls with strace, which is not here: install the package strace.",
            file=sys.stderr,
        )
        raise SystemExit(2)
    console = Console(width=150)
    with bench_folder(given.folder) as folder:
        bench = Bench(folder, given.requirements or list(HEAVY), given.wheels)
        table, ratio = build_table(bench, "metadata operations of one more build, everything warm")
        console.print(table)
        console.print(f"fabric / bare uv: {ratio:.2f}; promised: {PROMISED} or less")
        first, after = (count(bench.builds[name]).total() for name in ("first", "next"))
        console.print(f"the first build after a start: {first}; as above: {after}")
        console.print("what could still fall:", *plan(bench), sep="\n    ", highlight=False)
        console.print(import_table(bench, given.module))


if __name__ == "__main__":
    main()
