"""Many closures that share packages, on a folder that allows few hard links to a file.

    uv run python tests/nas/few_links.py FOLDER [--closures 400] [--packages 20]

FOLDER lies on the file system in question (Amazon EFS and Azure Files allow 177 and 178 links). In a new
folder below it, that many specs are built by `envfabric run --once`: each has the shared packages, with
many small files and empty `__init__.py` among them, and one package of its own. Then all are run from,
verified, and counted by hand: each inode once, each file of a package that has no other name. What the
project says of itself stands beside what was counted; the exit code is 1 where they differ.
"""

import argparse
import errno
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.fabric import Fabric
from support.simple_index import SimpleIndex
from support.spec_repo import SpecRepo

FILES = 40
"""Modules of a shared package below its top; every fourth is an empty `__init__.py`."""

BOUND = 1000
"""Links that are tried for when looking for the limit."""


@dataclass
class Counted:
    """What a walk over store/ finds, without anything of the project."""

    inodes: dict[int, int] = field(default_factory=dict)
    """Bytes on disk by inode."""
    links: Counter[int] = field(default_factory=Counter)
    """Names by inode, of the files that wheels brought."""
    alone: int = 0
    """Files of wheels with no other name: copies, as nothing in the store is linked from them."""
    most: int = 0
    """The highest link count seen."""
    strays: int = 0
    """Names that no wheel has: what uv, at the limit, copies a file of its cache to."""


def count(store: Path) -> Counted:
    """Walks store/ with lstat."""
    found = Counted()
    for path, status in walk(store):
        found.inodes[status.st_ino] = status.st_blocks * 512
        found.strays += os.path.basename(path).startswith(".tmp")
        if is_of_a_wheel(path):
            found.links[status.st_ino] += 1
            found.alone += status.st_nlink == 1
            found.most = max(found.most, status.st_nlink)
    return found


def walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Everything below a folder, links not followed."""
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            yield path, os.lstat(path)


def is_of_a_wheel(path: str) -> bool:
    """Whether a path is a module that make_packages wrote: what is to be linked, not made anew."""
    return path.endswith(".py") and ("/site-packages/shared_" in path or "/site-packages/own_" in path)


def link_limit(folder: Path) -> int | None:
    """How many names a file can have here; None where more than `BOUND`."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        first = Path(place, "0")
        first.touch()
        for number in range(1, BOUND + 1):
            try:
                os.link(first, Path(place, str(number)))
            except OSError as error:
                if error.errno != errno.EMLINK:
                    raise
                return number
    return None


def make_packages(index: SimpleIndex, shared: int, own: int) -> list[str]:
    """The wheels of this little world; gives the names of those that all specs share."""
    names = [f"shared-{number:02}" for number in range(shared)]
    for name in names:
        package = name.replace("-", "_")
        modules = {f"{package}/__init__.py": f"NAME = {name!r}\n"}
        for number in range(FILES):
            if number % 4:
                modules[f"{package}/module_{number:02}.py"] = f"# {name} {number}\n" + "VALUE = 1\n" * 50
            else:
                modules[f"{package}/part_{number:02}/__init__.py"] = ""
        index.add_wheel(name, modules=modules)
    for number in range(own):
        index.add_wheel(f"own-{number:03}")
    return names


def check_each(fabric: Fabric, ids: list[str], shared: list[str]) -> int:
    """Runs every interpreter once; gives how many imported all that they should."""
    imports = ", ".join(name.replace("-", "_") for name in shared)
    interpreters = fabric.index()["python"]
    good = 0
    for number, spec_id in enumerate(ids):
        if spec_id not in interpreters:
            print(fabric.entry(spec_id)["error"], file=sys.stderr)
            continue
        code = f"import {imports}, own_{number:03}"
        good += subprocess.run([interpreters[spec_id], "-B", "-c", code], check=False).returncode == 0
    return good


def envfabric(fabric: Fabric, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command on this fabric that may take long."""
    return fabric.command(*arguments, "--config", fabric.configure(), timeout=7200)


def measure(folder: Path, scratch: Path, closures: int, shared: int) -> list[tuple[str, str, bool]]:
    """Builds, serves, verifies and counts: what, the figure, and whether it is as it should be."""
    rows: list[tuple[str, str, bool]] = []

    def add(what: str, figure: str, good: bool = True) -> None:
        rows.append((what, figure, good))
        print(f"{what}: {figure}", file=sys.stderr, flush=True)

    with SimpleIndex(scratch / "packages") as packages:
        names = make_packages(packages, shared, closures)
        fabric = Fabric(folder, packages, SpecRepo(scratch / "specs"))
        ids = [f"wf-{number // 20:02}/node-{number:03}" for number in range(closures)]
        for number, spec_id in enumerate(ids):
            fabric.repo.spec(spec_id, [*names, f"own-{number:03}"])
        fabric.repo.commit()
        started = fabric.command("init", fabric.root)
        if started.returncode:
            raise SystemExit(started.stderr)
        limit = link_limit(folder)
        add("link limit found by hand", str(limit or f"above {BOUND}"))
        add("what `init` says of the folder", " ".join(started.stdout.split()))
        began = time.monotonic()
        done = envfabric(fabric, "run", "--once")
        if done.returncode not in (0, 1):
            raise SystemExit(done.stderr[-3000:])
        add(f"{closures} specs built", f"{time.monotonic() - began:.0f} s")
        states = Counter(entry["state"] for entry in fabric.index()["environments"].values())
        add("states", ", ".join(f"{n} {state}" for state, n in states.items()), states["ready"] == closures)
        good = check_each(fabric, ids, names)
        add("interpreters that import everything", str(good), good == closures)
        verified = envfabric(fabric, "verify")
        last = (verified.stdout or verified.stderr).strip().splitlines()[-1]
        add("`envfabric verify`", last, verified.returncode == 0)
        # A walk of the product's own; what is counted by hand comes below.
        checked = envfabric(fabric, "du", "--check")
        add("`envfabric du --check`", "exit code " + str(checked.returncode), checked.returncode == 0)
        counted, told = count(fabric.root / "store"), said(fabric)
    add("closures in store/", str(told.closures), told.closures == closures)
    add("most names of one module", str(counted.most))
    add("unfinished files of uv's cache in closures", str(counted.strays), not counted.strays)
    # An inode that the limit has filled is full of names in store/, but for the cache's own.
    least = shared * (FILES + 1) * math.ceil(closures / (limit or closures)) + closures
    names_in_all = sum(counted.links.values())
    add("modules in store/", f"{names_in_all} names, {len(counted.links)} inodes, {least} at the least")
    physical = sum(counted.inodes.values())
    # Two builders at the limit at one moment both renew the cache's file, and the first one's is alone again.
    for what, by_us, by_hand, tolerance in (
        ("inodes under store/", told.inodes, len(counted.inodes), len(counted.inodes) / 100),
        ("physical bytes", told.physical, physical, physical / 100),
        ("files copied, not linked", told.copied, counted.alone, names_in_all / 1000),
    ):
        add(f"{what}: said, counted by hand", f"{by_us}, {by_hand}", abs(by_us - by_hand) <= tolerance)
    return rows


@dataclass(frozen=True)
class Said:
    """The project's own figures."""

    closures: int
    inodes: int
    physical: int
    copied: int


def said(fabric: Fabric) -> Said:
    """What `envfabric du` says, and what each closure's metadata says of copies."""
    told: dict[str, Any] = json.loads(envfabric(fabric, "du", "--json").stdout)
    sealed = [json.loads(path.read_bytes()) for path in (fabric.root / "store").glob("*/metadata.json")]
    copied = sum(one["link_fallbacks"] for one in sealed)
    return Said(told["closures"], told["inodes"], told["physical_bytes"], copied)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--closures", type=int, default=400)
    parser.add_argument("--packages", type=int, default=20, help="packages that all closures share")
    parser.add_argument(
        "--keep", action="store_true", help="leave the folder: 400 closures take long to remove"
    )
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="envfabric-few-links-", dir=given.folder))
    with tempfile.TemporaryDirectory(prefix="envfabric-few-links-") as scratch:
        try:
            rows = measure(folder, Path(scratch), given.closures, given.packages)
        finally:
            if given.keep:
                print(f"left: {folder}", file=sys.stderr)
            else:
                # Sealed folders are read-only: an ordinary user has to make them writable to remove them.
                subprocess.run(
                    ["find", folder, "-type", "d", "-exec", "chmod", "u+w", "{}", "+"], check=False
                )
                shutil.rmtree(folder, ignore_errors=True)
    print("| what | figure |\n|---|---|")
    for what, figure, good in rows:
        print(f"| {what} | {figure}{'' if good else ' **wrong**'} |")
    sys.exit(0 if all(good for _, _, good in rows) else 1)


if __name__ == "__main__":
    main()
