"""How long from the return of `git commit` until the id is in index.json, beside bare uv on the same spec.

    uv run python tests/bench/commit_to_index.py [--rounds 5]

Real packages from the default index. Both sides have a cache of their own in the same state: empty for
`cold`, filled for the others. Bare uv is `uv lock` (where the daemon has to lock, too), `uv venv` and
`uv sync --frozen` with hardlinks; the two take turns, and the medians are compared.
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
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import uv
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.spec_repo import SpecRepo
from support.waiting import wait_for

HEAVY = ["numpy>=2.2,<3", "polars>=1.30,<2", "httpx>=0.28,<0.29"]
EXTRAS = ["rich", "attrs", "click", "jinja2", "packaging", "platformdirs", "tqdm", "pluggy", "six", "zipp"]
PYTHON = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
BUDGET = 0.3
"""Seconds that the daemon may take on top: to notice, to publish, to seal."""


class Bench:
    """One daemon on an empty NAS folder, and a folder for bare uv."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "nas"
        self.repo = SpecRepo(folder / "specs")
        self.repo.commit("empty")
        self.url = ""
        self.number = 0
        self.binary = str(uv.find_uv_bin())
        self.cache = folder / "bare-cache"

    @contextlib.contextmanager
    def daemon(self) -> Iterator[None]:
        envfabric = [sys.executable, "-m", "envfabric"]
        subprocess.run([*envfabric, "init", str(self.root)], check=True, stdout=subprocess.DEVNULL)
        config = self.folder / "envfabric.toml"
        config.write_text(f'pythons = ["{PYTHON}"]\nlisten = "127.0.0.1:0"\n')
        flags = ["--config", str(config), "--repo", str(self.repo.path), "--root", str(self.root)]
        with (self.folder / "log").open("wb") as log:
            process = subprocess.Popen([*envfabric, "run", *flags], stderr=log)
        try:
            self.url = wait_for(self._find_url, message="the daemon does not serve")
            yield
        finally:
            process.terminate()
            process.wait(timeout=60)

    def _find_url(self) -> str | None:
        for line in (self.folder / "log").read_text().splitlines():
            event = json.loads(line)
            if event["event"] == "serving":
                return str(event["url"])
        return None

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))

    def new_id(self) -> str:
        self.number += 1
        return f"bench/spec-{self.number}"

    def commit(self, spec_id: str) -> float:
        """Commits the work tree; seconds from the commit's return until `spec_id` is served as ready."""
        self.repo.git("add", "-A")
        self.repo.git("commit", "-q", "-m", spec_id)
        began = time.perf_counter()
        head = self.repo.head
        while time.perf_counter() - began < 300:
            with contextlib.suppress(FileNotFoundError):
                index = json.loads((self.root / "index.json").read_bytes())
                entry = index["environments"].get(spec_id)
                if entry and entry["state"] == "ready" and index["revision"] == head:
                    return time.perf_counter() - began
                if entry and entry["state"] == "failed":
                    raise SystemExit(f"{spec_id}: {entry['error']}")
            time.sleep(0.001)
        raise SystemExit(f"{spec_id} was not published within 300 s")

    def bare(self, requirements: list[str], *, lock: bytes | None = None) -> float:
        """Seconds that uv takes by itself for the same spec: lock (without one), venv, sync."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        write_spec(folder, "bench-bare", requirements, lock)
        env = {
            **os.environ,
            "UV_CACHE_DIR": str(self.cache),
            "UV_NO_PROGRESS": "1",
            "UV_LINK_MODE": "hardlink",
        }
        env.pop("VIRTUAL_ENV", None)
        steps = [["venv", "--python", PYTHON], ["sync", "--frozen", "--no-install-project", "--no-build"]]
        if lock is None:
            steps.insert(0, ["lock", "--python", PYTHON])
        began = time.perf_counter()
        for step in steps:
            subprocess.run([self.binary, *step], cwd=folder, env=env, check=True, capture_output=True)
        seconds = time.perf_counter() - began
        shutil.rmtree(folder)
        return seconds


def write_spec(folder: Path, name: str, requirements: list[str], lock: bytes | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    listed = ", ".join(json.dumps(one) for one in requirements)
    (folder / "pyproject.toml").write_text(
        f'[project]\nname = "{name}"\nversion = "0.1.0"\nrequires-python = ">=3.11"\ndependencies = [{listed}]\n'
    )
    if lock is not None:
        own = b'name = "bench-spec-1"'
        (folder / "uv.lock").write_bytes(lock.replace(own, f'name = "{name}"'.encode()))


def fabric_time(bench: Bench, requirements: list[str], lock: bytes | None = None) -> float:
    spec_id = bench.new_id()
    name = spec_id.replace("/", "-")
    write_spec(bench.repo.work / spec_id, name, requirements, lock)
    return bench.commit(spec_id)


def revert_time(bench: Bench, contents: tuple[list[str], list[str]]) -> float:
    """Seconds for a commit that takes a spec back to the first of two contents; both are in the store."""
    spec_id = bench.new_id()
    name = spec_id.replace("/", "-")
    seconds = 0.0
    for requirements in (*contents, contents[0]):
        write_spec(bench.repo.work / spec_id, name, requirements)
        seconds = bench.commit(spec_id)
    index = json.loads((bench.root / "index.json").read_bytes())
    assert index["environments"][spec_id]["generation"] == 1, "a revert serves the old number again"
    return seconds


def run(rounds: int, folder: Path) -> Table:
    times: dict[str, list[tuple[float, float]]] = {"cold build": [], "warm build": []}
    times |= {"closure exists, committed lock": [], "closure exists, resolved before": [], "revert": []}
    everything = HEAVY + EXTRAS
    for number in range(2 * max(1, rounds // 4)):
        bench = Bench(folder / f"cold-{number}")
        with bench.daemon():
            # Who goes second finds the index's answers warmed up: the two take turns at that, too.
            if number % 2:
                theirs = bench.bare(HEAVY)
                times["cold build"].append((fabric_time(bench, HEAVY), theirs))
            else:
                times["cold build"].append((fabric_time(bench, HEAVY), bench.bare(HEAVY)))
    bench = Bench(folder / "warm")
    with bench.daemon():
        fabric_time(bench, everything)
        bench.bare(everything)
        lock = (bench.root / "generations/bench/spec-1/1/uv.lock").read_bytes()
        for number in range(rounds):
            some = HEAVY + [one for place, one in enumerate(EXTRAS) if place != number]
            times["warm build"].append((fabric_time(bench, some), bench.bare(some)))
        builds = bench.metric("envfabric_builds_total")
        fabric_time(bench, everything, lock)
        for _ in range(rounds):
            locked = fabric_time(bench, everything, lock)
            times["closure exists, committed lock"].append((locked, bench.bare(everything, lock=lock)))
            known = fabric_time(bench, everything)
            times["closure exists, resolved before"].append((known, bench.bare(everything)))
            back = revert_time(bench, (everything, HEAVY + EXTRAS[1:]))
            times["revert"].append((back, bench.bare(everything)))
        extra = bench.metric("envfabric_builds_total") - builds
    table = Table(
        title=f"from the return of git commit to index.json; medians; builds for known closures: {extra:.0f}"
    )
    for column in ("case", "runs", "fabric s", "bare uv s", "fabric / uv", f"(fabric - {BUDGET}) / uv"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for case, pairs in times.items():
        ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratios = (f"{ours / theirs:.2f}", f"{max(0.0, ours - BUDGET) / theirs:.2f}")
        table.add_row(case, str(len(pairs)), f"{ours:.3f}", f"{theirs:.3f}", *ratios)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="runs of each case, at most 10 (cold: about half)"
    )
    parser.add_argument("--folder", type=Path, help="where to work; the temporary folder by default")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="envfabric-bench-") as folder:
        try:
            table = run(min(given.rounds, len(EXTRAS)), Path(folder))
        finally:
            # Sealed folders are read-only: an ordinary user has to make them writable to remove them.
            subprocess.run(["chmod", "-R", "u+w", folder], check=False)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
