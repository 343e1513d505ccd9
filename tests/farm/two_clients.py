"""What builds on one NFS client are to a writer on another, as a Markdown table: the farm without its cluster.

    uv run python tests/farm/two_clients.py MOUNT_A MOUNT_B [--on-a PREFIX] [--on-b PREFIX]
                                            [--cut-b COMMAND --mend-b COMMAND]

MOUNT_A and MOUNT_B are two mounts of one export, and the PREFIXes what puts a command on node A or B, as for
tests/nas/two_clients.py; the COMMANDs, run on A, cut B off from the server and join it again. Needs root.

The writer is a process on A. On B runs what a Ray worker starts there for each build. Ray itself takes no part in
what lies on ROOT. A new folder of the export is used, and removed at the end.
"""

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from envfabric.build.cache import CacheInUse, forget
from envfabric.build.compiling import Compiling
from envfabric.build.environment import Builder, Lost, Recipe, recipe_of
from envfabric.build.farm.node import build, release
from envfabric.build.farm.words import Task, Word, filled_of, raise_word
from envfabric.build.filling import Filled, Order, Tell
from envfabric.build.interpreters import inspect
from envfabric.specs.policy import Policy
from envfabric.store.bytecode import Bytecode
from envfabric.store.closures import Staging
from envfabric.store.files import Files
from envfabric.store.prepare import init_root
from farm.hands import site
from nas.nodes import Node, Table, packages_on, seconds
from nas.two_clients import remove
from support.fabric import BASE_PYTHON, Fabric
from support.place import Place
from support.simple_index import SimpleIndex
from support.spec_repo import SpecRepo
from support.waiting import wait_for

LARGE = ("killed", "replaced", "cut")
"""Packages that take long to unpack, so that there is a middle of their builds."""
MODULES = 600
LONG = 600.0


@dataclass
class Far:
    """An executor whose hands are on node B, at the end of a command."""

    place: Place
    argv: list[str]
    elsewhere: bool = True

    @contextlib.contextmanager
    def host(self) -> Iterator["Far"]:
        yield self

    def begin(self, order: Order, staging: Staging) -> Iterator[Word]:
        """Has a hand begin; gives what it says."""
        hand = subprocess.Popen([*self.argv, "hand"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert hand.stdin is not None and hand.stdout is not None
        hand.stdin.write(Task(site(self.place), order, str(staging.folder), LONG).packed())
        hand.stdin.close()
        return map(json.loads, hand.stdout)

    def fill(self, order: Order, staging: Staging, tell: Tell) -> Filled:
        for word in self.begin(order, staging):
            if "phase" in word:
                tell(word["phase"])
            elif "filled" in word:
                return filled_of(word["filled"])
            elif not word.keys() & {"begun", "log"}:
                raise_word(word)
        raise Lost("no word")

    def stop(self) -> None:
        """Nothing goes on."""


def recipe(place: Place, *requires: str) -> Recipe:
    spec = place.spec(requires, name="-".join(("with", *requires)))
    return recipe_of(spec, place.get(spec))


def here(place: Place) -> Builder:
    """Builds on A itself."""
    uv = place.uv()
    return Builder(
        place.closures, place.files, uv, Compiling(Bytecode(place.root, place.files), place.files, uv)
    )


def filled_there(place: Place, far: Far, table: Table) -> None:
    """The same closures, made by B and by A, come to the same and share what they can."""
    wanted = recipe(place, "beta")
    made = Builder(place.closures, place.files, place.uv(), executor=far).build(wanted, lambda phase: None)
    files = f"{made.linked} files linked to the cache, {made.link_fallbacks} copied"
    table.add("a hand at B fills, A publishes", f"{made.phases['total']:.1f} s; {files}")
    python = place.root.closure(made.name) / ".venv/bin/python"
    ran = subprocess.run(
        [python, "-I", "-c", "import beta, alpha"], check=False, capture_output=True, text=True
    )
    table.add("A starts its interpreter and imports", ran.stderr or "at the first try")
    place.closures.mark_damaged(made.name, ["to have it made once more"])
    again = here(place).build(wanted, lambda phase: None)
    first, second = (place.root.closure(one.name) for one in (made, again))
    same = environment(first) == environment(second)
    table.add("the same, made by A: its manifest", "the same" if same else "**another**")
    shared = sum(os.path.samefile(one, second / one.relative_to(first)) for one in modules(first))
    table.add("modules and their bytecode that share an inode", f"{shared} of {len(modules(first))}")


def environment(closure: Path) -> list[str]:
    return [line for line in (closure / "manifest").read_text().splitlines() if '".venv' in line]


def modules(closure: Path) -> list[Path]:
    return [one for one in closure.glob(".venv/lib/*/site-packages/**/*.py*") if one.is_file()]


@contextlib.contextmanager
def half_built(place: Place, far: Far, name: str) -> Iterator[tuple[Staging, Iterator[Word]]]:
    """A staging folder in which uv at B installs a package, and what its hand says."""
    wanted = recipe(place, name)
    with place.closures.staging(elsewhere=True) as staging:
        said = far.begin(Order(wanted), staging)
        wait_for(lambda: list(staging.venv.glob("bin/python")), timeout=LONG, message="uv has not begun")
        wait_for(lambda: in_cache(place, name), timeout=LONG, message="it is not unpacked")
        yield staging, said


def in_cache(place: Place, name: str) -> bool:
    """Whether uv unpacks a package, or has; the folders are opened for it, which shows what the other client made."""
    return any(place.root.uv_cache.glob(f".tmp*/{name}")) or any(place.root.uv_cache.glob(f"*/*/{name}"))


def until_free(place: Place, staging: Staging, table: Table, what: str, began: float) -> None:
    name = staging.folder.name
    wait_for(lambda: not place.closures.recover({name}), timeout=LONG, message="the folder is held")
    left = ", ".join(os.listdir(place.root.staging)) or "nothing"
    table.add(what, f"after {seconds(began, time.time())}; left in staging/: {left}")


def killed(place: Place, far: Far, table: Table) -> None:
    """The hand and its uv are killed in the middle; the cache is theirs until then."""
    with half_built(place, far, "killed") as (staging, _):
        try:
            forget(place.uv(), place.root, ["alpha"], wait=1.0)
            table.add("uv runs at B: A takes from the cache", "**done**")
        except CacheInUse:
            table.add("uv runs at B: A takes from the cache", "refused, the cache is in use")
        held = place.closures.recover({staging.folder.name})
        table.add("A looks for folders that were left", "it stays, it is held" if held else "**removed**")
        began = time.time()
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
                ours = os.environ["HOME"].encode() in Path(f"/proc/{pid}/environ").read_bytes()
                if ours and (b"envfabric.build.farm.hand" in words or b"/uv\0sync" in words):
                    os.kill(int(pid), signal.SIGKILL)
    until_free(
        place, staging, table, "hand and uv at B killed (-9) in the middle: A has removed the folder", began
    )


def replaced(place: Place, far: Far, table: Table) -> None:
    """Another writer claims the next epoch."""
    with half_built(place, far, "replaced") as (staging, said):
        began = time.time()
        claim = place.root.locks / "epoch-2"
        claim.touch()
        last = list(said)[-1]
        table.add(
            "a higher epoch on ROOT: the hand at B",
            f"{seconds(began, time.time())}: {last.get('lost', last)}",
        )
    claim.unlink()
    until_free(place, staging, table, "after that A has removed the folder", began)


def cut_off(place: Place, far: Far, commands: tuple[list[str], list[str]], table: Table) -> None:
    """B loses its network in the middle, and comes back when A has given its folder up and built."""
    cut, mend = commands
    with half_built(place, far, "cut") as (staging, said):
        subprocess.run(cut, check=True)
        began = time.time()
    try:
        until_free(place, staging, table, "B cut off in the middle: A has removed the folder", began)
        made = here(place).build(recipe(place, "cut"), lambda phase: None)
        table.add("then A builds it itself", f"{made.phases['total']:.1f} s")
    finally:
        subprocess.run(mend, check=True)
    back = time.time()
    last = list(said)[-1]
    told = last.get("lost") or last.get("text") or str(last)
    table.add("B is back: its hand", f"{seconds(back, time.time())}: {told}")
    wait_for(lambda: not any(place.root.staging.iterdir()), timeout=LONG, message="B made something anew")
    table.add("left in staging/ then", "nothing")


def writer(url: str, root: str, far: list[str], cut: list[list[str]]) -> None:
    """What happens on A."""
    python = inspect(BASE_PYTHON)
    assert python is not None
    index: Any = SimpleNamespace(url=url)
    made = init_root(Path(root), Files())
    place = Place(Path(os.environ["HOME"]), index, made, python, Policy(indexes=(url,)))
    table, there = Table(), Far(place, far)
    filled_there(place, there, table)
    killed(place, there, table)
    replaced(place, there, table)
    if all(cut):
        cut_off(place, there, (cut[0], cut[1]), table)
    print(table.markdown())


def hand() -> None:
    """What a Ray worker does on B."""
    for word in build(release(), sys.stdin.buffer.read()):
        print(word.decode(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mount_a", type=Path)
    parser.add_argument("mount_b", type=Path)
    for flag in ("--on-a", "--on-b", "--cut-b", "--mend-b"):
        parser.add_argument(flag, type=shlex.split, default=[], metavar="COMMAND")
    given = parser.parse_args()
    name = f"envfabric-farm-{uuid.uuid4().hex[:8]}"
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="envfabric-farm-")))
        packages = stack.enter_context(SimpleIndex(scratch / "packages"))
        packages.add_wheel("alpha", "1.0")
        packages.add_wheel("beta", "1.0", requires=["alpha"])
        for one in LARGE:
            packages.add_wheel(one, modules={f"{one}/m{n}.py": f"N = {n}\n" for n in range(MODULES)})
        fabric = Fabric(scratch, packages, SpecRepo(scratch / "specs"))
        fabric.root.mkdir()
        (given.mount_a.resolve() / name).mkdir()
        stack.callback(remove, given.mount_a.resolve() / name)
        a, b = (
            Node(node, prefix, mount.resolve() / name, fabric, scratch)
            for node, prefix, mount in (
                ("A", given.on_a, given.mount_a),
                ("B", given.on_b, given.mount_b),
            )
        )
        stack.enter_context(packages_on([a, b], packages, scratch / "served"))
        this = [sys.executable, str(Path(__file__).resolve())]
        told = json.dumps([packages.url, str(fabric.root), b.argv(*this), [given.cut_b, given.mend_b]])
        environment = {**os.environ, "HOME": str(scratch)}
        raise SystemExit(
            subprocess.run(a.argv(*this, "writer", told), env=environment, check=False).returncode
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["hand"]:
        hand()
    elif sys.argv[1:2] == ["writer"]:
        writer(*json.loads(sys.argv[2]))
    else:
        main()
