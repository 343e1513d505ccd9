"""What two NFS clients see of one fabric, and when, as a Markdown table.

    uv run python tests/nas/two_clients.py MOUNT_A MOUNT_B [--on-a PREFIX] [--on-b PREFIX] [--seconds 100]
                                           [--cut-a COMMAND --mend-a COMMAND]

MOUNT_A and MOUNT_B are two mounts of one export on this machine, made so that the server takes them for
two clients (`nosharecache` at least; better a network namespace each). A PREFIX is put before each
command of a node and gives it the node's network and host name, such as "ip netns exec b"; it must hand
its arguments on as they are. The two COMMANDs, where they are given, cut A off from the server and join it
again, such as "ip -n a link set eth0 down". Needs root.

Every node has ROOT at the same path by the contract, so each command of a node runs in a mount namespace
of its own, where a new folder of the export, seen through the node's mount, is bound over one and the same
local folder. Repository and packages lie on this machine; their index listens on 127.0.0.1 of each node.
The collector's look at the processes of its host is off: this machine is the host of both nodes.

Seconds count from the moment at which A's own mount shows the change, and a look takes place every 0.1 s.
`--seconds` is how long B looks at the old state before each flip: a client trusts a name longer the longer
it has not changed (up to 60 s with the default mount options), so less than 100 flatters.
"""

import argparse
import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nas.nodes import PATIENCE, SPEC, Node, Table, commit, packages_on, seconds, shown_logs
from nas.take_overs import cut_off, take_over, take_over_a_build
from support.fabric import Fabric
from support.simple_index import SimpleIndex
from support.spec_repo import SpecRepo

TTL = 90.0
"""Seconds for which the lease of the holder that is killed is in force."""
GC = {"grace": 0, "generations": 1, "generation_age": 0, "trash_age": 0, "interval": 0, "scan": False}
"""Only what is served, and what is leased, is kept, and only an order collects."""
MODULES = 600
"""Of the package that takes long to unpack, so that there is a middle of its build."""


def build_here_read_there(fabric: Fabric, a: Node, b: Node, table: Table) -> None:
    """The first build at A; a reader at B that has looked in vain until then."""
    with b.observer("first", "alpha") as observer:
        began = time.time()
        a.wait_for_commit(commit(fabric, 1))
        published = time.time()
        table.add("commit, built and published by A (a build on this machine)", seconds(began, published))
        table.add(
            "B's `read_index`, after looking in vain: the new entry",
            seconds(published, observer.next("index")["at"]),
        )
        ran = observer.next("runs", "fails")
        how = (
            f"{ran['seconds']:.1f} s, at the first try"
            if ran["event"] == "runs"
            else f"fails: {ran['error']}"
        )
        table.add("B starts the interpreter that the index names and imports", how)


def flips(fabric: Fabric, a: Node, b: Node, warm: float, table: Table) -> None:
    """A publishes another closure for an id that B has looked at for long; once for each way of looking.

    Both closures are there already: what is built is published twice, as `building` and as `ready`, and a
    name that changed a moment ago is not trusted for long.
    """
    a.wait_for_commit(commit(fabric, 2))
    ways = {
        "plain": ("plain open of index.json", "plain readlink"),
        "held": ("plain open, and a process of B holds the old one open", "plain readlink"),
        "folder": ("`read_index` (opens the folder first)", "readlink after its folder was opened"),
    }
    for release, (way, (index, link)) in zip((1, 2, 1), ways.items(), strict=True):
        with b.observer("flip", "--way", way, "--seconds", str(warm)) as observer:
            a.wait_for_commit(commit(fabric, release))
            published = time.time()
            seen = {one["event"]: one["at"] for one in (observer.next("index", "link") for _ in range(2))}
        known = f"published by A, known to B for {warm:.0f} s"
        table.add(f"{known}: {index}", seconds(published, seen["index"]))
        table.add(f"{known}: envs/ by {link}", seconds(published, seen["link"]))


def orders_from_the_other(a: Node, b: Node, table: Table) -> None:
    """`rollback` and `unpin` at B, which the daemon at A carries out: the request goes over the NAS."""
    began = time.time()
    generations = json.loads(b.envfabric("history", SPEC, "--json", "--root", b.fabric.root))["generations"]
    alone = time.time() - began
    earlier = next(one["generation"] for one in generations if one["retained"] and not one["serving"])
    for arguments, pinned in ((("rollback", SPEC, "--to", str(earlier)), True), (("unpin", SPEC), False)):
        began = time.time()
        b.order(*arguments)
        took = time.time() - began
        entry = a.index()["environments"][SPEC]
        if entry["pinned"] != pinned or (pinned and entry["generation"] != earlier):
            raise SystemExit(f"{arguments[0]} was answered, and is not published: {entry}")
        table.add(
            f"`{arguments[0]}` at B, the daemon runs at A: answered, and published",
            f"{took:.1f} s (a command that asks nobody: {alone:.1f} s)",
        )


def collect_while_used(fabric: Fabric, a: Node, b: Node, table: Table) -> None:
    """`gc` at A while a process at B imports from a closure that only its lease keeps; then without it."""
    a.wait_for_commit(commit(fabric, 1))
    name = serving(a)
    with b.observer("use") as consumer:

        def tell(command: str) -> str:
            return consumer.tell(command).replace(str(fabric.root), "ROOT").replace(name, "<closure>")

        a.wait_for_commit(commit(fabric, 2))
        kept = a.gc()["kept"].get(name)
        if not kept or not any(why.startswith("leased by") for why in kept):
            raise SystemExit(f"{name} is leased at B, and gc at A says: {kept}")
        what = "a process at B runs from a closure that nothing refers to any more"
        table.add(f"{what}, and leases it: `gc` at A", "keeps it: leased by B's process")
        table.add("its next import", tell("import beta.late"))
        consumer.tell("release")
        if name not in a.gc()["removed"]:
            raise SystemExit(f"{name} is not leased any more, and gc at A left it")
        removed = time.time()
        table.add(f"{what}, the lease given back: the same `gc`", "removes it")
        table.add("its next import", tell("import beta.later"))
        table.add("a file of it that it keeps open, read for the first time", tell("read"))
        table.add("`envfabric.lease` of it at B", tell("lease"))
        table.add(f"its interpreter, started anew at B {time.time() - removed:.1f} s later", tell("start"))


def holder_dies(fabric: Fabric, a: Node, b: Node, table: Table) -> None:
    """A lease whose holder at B is killed ends by its ttl, by the server's clock."""
    name = serving(a)
    with b.observer("use", "--ttl", str(TTL)) as consumer:
        a.wait_for_commit(commit(fabric, 1))
        consumer.process.kill()
        consumer.process.wait()
    folder = a.export / "leases" / name
    (lease,) = a.names(f"leases/{name}")
    with (folder / lease).open("rb") as file:
        renewed = os.fstat(file.fileno()).st_mtime
    kept = -1.0
    while True:
        asked = a.server_time() - renewed
        answer = a.gc()
        if name in answer["removed"]:
            break
        kept = asked
        if asked > TTL + PATIENCE:
            raise SystemExit(f"{name} is still there {asked:.0f} s after its last renewal: {answer['kept']}")
    age = a.server_time() - renewed
    if kept < 0:
        raise SystemExit(f"no `gc` came to its end within {TTL:.0f} s: this machine is too slow for that ttl")
    if age < TTL:
        raise SystemExit(f"{name} went {age:.1f} s after its last renewal, its ttl is {TTL:.0f} s")
    table.add(
        f"lease of {TTL:.0f} s at B, its holder killed (-9): `gc` at A, again and again",
        f"{kept:.0f} s after the last renewal it is kept, {age:.0f} s after it is removed",
    )


def serving(node: Node) -> str:
    """The name of the closure that is served."""
    name: str = node.index()["environments"][SPEC]["serving"]
    return name


def check_both(a: Node, b: Node, when: str, table: Table) -> None:
    """`verify` and `du` at both; each fails where it finds something."""
    said = []
    for node in (a, b):
        root = node.fabric.root
        proven = node.envfabric("verify", "--root", root).strip().splitlines()[-1]
        table.add(f"{when}: `verify` at {node.name}", proven)
        said.append(json.loads(node.envfabric("du", "--check", "--json", "--root", root)))
    told = {(one["closures"], one["inodes"], one["physical_bytes"], one["walked_bytes"]) for one in said}
    table.add(
        f"{when}: `du --check` at A and at B",
        ", ".join(
            f"{closures} closures, {inodes} inodes, {physical} bytes by the account, {walked} by walking"
            for closures, inodes, physical, walked in told
        ),
    )


def measure(
    mounts: tuple[Path, Path],
    prefixes: tuple[list[str], list[str]],
    warm: float,
    cut: tuple[list[str], list[str]],
) -> Table:
    """All of it, in a new folder of the export that is removed at the end."""
    table = Table()
    name = f"envfabric-two-clients-{uuid.uuid4().hex[:8]}"
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="envfabric-two-clients-")))
        packages = stack.enter_context(SimpleIndex(scratch / "packages"))
        packages.add_wheel(
            "beta", modules={f"beta/{module}.py": "" for module in ("__init__", "kept", "late", "later")}
        )
        packages.add_wheel(
            "gamma", modules={f"gamma/m{number}.py": f"N = {number}\n" for number in range(MODULES)}
        )
        for release in (1, 2, 3, 4, 5):
            packages.add_wheel("alpha", f"{release}.0")
        fabric = Fabric(scratch, packages, SpecRepo(scratch / "specs"), {"gc": GC})
        fabric.root.mkdir()
        (mounts[0] / name).mkdir()
        stack.callback(remove, mounts[0] / name)
        fabric.repo.commit("empty")
        a, b = (
            Node(node, prefix, mount / name, fabric, scratch)
            for node, mount, prefix in zip("AB", mounts, prefixes, strict=True)
        )
        stack.enter_context(packages_on([a, b], packages, scratch / "served"))
        table.add(
            "what `init` finds", " ".join(a.envfabric("init", fabric.root).split(" is ready")[0].split())
        )
        with shown_logs(scratch), a.daemon() as first:
            first.wait_for_event("serving")
            build_here_read_there(fabric, a, b, table)
            flips(fabric, a, b, warm, table)
            orders_from_the_other(a, b, table)
            collect_while_used(fabric, a, b, table)
            holder_dies(fabric, a, b, table)
            check_both(a, b, "after that", table)
            with b.daemon() as second:
                second.wait_for_event("standby")
                take_over(fabric, a, b, first, table)
                with a.daemon() as third:
                    third.wait_for_event("standby")
                    table.add("daemon at A started again", "stands by")
                    take_over_a_build(fabric, a, b, second, table)
                    if all(cut):
                        with b.daemon() as fourth:
                            fourth.wait_for_event("standby")
                            cut_off(fabric, a, b, third, cut, table)
                    check_both(a, b, "in the end", table)
    return table


def remove(folder: Path) -> None:
    """Removes the folder; sealed ones in it are made writable first."""
    subprocess.run(["find", folder, "-type", "d", "-exec", "chmod", "u+w", "{}", "+"], check=False)
    shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mount_a", type=Path)
    parser.add_argument("mount_b", type=Path)
    parser.add_argument("--on-a", type=shlex.split, default=[], metavar="PREFIX")
    parser.add_argument("--on-b", type=shlex.split, default=[], metavar="PREFIX")
    parser.add_argument(
        "--seconds", type=float, default=100.0, help="how long B knows a name before it changes"
    )
    parser.add_argument("--cut-a", type=shlex.split, default=[], metavar="COMMAND")
    parser.add_argument("--mend-a", type=shlex.split, default=[], metavar="COMMAND")
    given = parser.parse_args()
    mounts = given.mount_a.resolve(), given.mount_b.resolve()
    table = measure(mounts, (given.on_a, given.on_b), given.seconds, (given.cut_a, given.mend_a))
    print(table.markdown())


if __name__ == "__main__":
    main()
