"""What two NFS clients see of one fabric, and when, as a Markdown table.

    uv run python tests/nas/two_clients.py MOUNT_A MOUNT_B [--on-a PREFIX] [--on-b PREFIX] [--seconds 100]

MOUNT_A and MOUNT_B are two mounts of one export on this machine, made so that the server takes them for
two clients (`nosharecache` at least; better a network namespace each). A PREFIX is put before each
command of a node and gives it the node's network and host name, such as "ip netns exec b"; it must hand
its arguments on as they are. Needs root.

Every node has ROOT at the same path by the contract, so each command of a node runs in a mount namespace
of its own, where a new folder of the export, seen through the node's mount, is bound over one and the same
local folder. Repository and packages lie on this machine; their index listens on 127.0.0.1 of each node.

Seconds count from the moment at which A's own mount shows the change, and a look takes place every 0.1 s.
`--seconds` is how long B looks at the old state before each flip: a client trusts a name longer the longer
it has not changed (up to 60 s with the default mount options), so less than 100 flatters.
"""

import argparse
import contextlib
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from envfabric.client.index import EnvfabricError, read_index
from support.fabric import Fabric
from support.simple_index import SimpleIndex
from support.spec_repo import SpecRepo
from support.waiting import wait_for

OBSERVER = Path(__file__).with_name("observer.py")
SPEC = "wf/node"
BIND = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
PATIENCE = 300.0
"""Seconds after which something that should be seen counts as lost."""


@dataclass(frozen=True)
class Node:
    """One client: how to run a command on it, and its view of the export from outside."""

    prefix: list[str]
    export: Path
    fabric: Fabric
    logs: Path

    def argv(self, *command: str | Path) -> list[str]:
        """The command as it runs on this node: its network, its host name, ROOT where all have it."""
        namespace = ["unshare", "--mount", "--propagation", "private", "sh", "-c", BIND, "sh"]
        return [*self.prefix, *namespace, str(self.export), str(self.fabric.root), *map(str, command)]

    def envfabric(self, *arguments: str | Path) -> str:
        """Runs `envfabric` on this node to its end; gives what it printed, and fails where it fails."""
        done = subprocess.run(
            self.argv(sys.executable, "-m", "envfabric", *arguments),
            env=self.fabric.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"envfabric {arguments[0]} ended with {done.returncode}:\n{done.stderr}")
        return done.stdout

    @contextlib.contextmanager
    def daemon(self) -> Iterator["Daemon"]:
        """The daemon on this node, until the end of the block or its own."""
        log = self.logs / f"{uuid.uuid4().hex}.log"
        command = [sys.executable, "-m", "envfabric", "run", "--config", str(self.fabric.configure())]
        with log.open("wb") as stderr:
            process = subprocess.Popen(self.argv(*command), env=self.fabric.environment, stderr=stderr)
        try:
            yield Daemon(process, log)
        finally:
            process.terminate()
            process.wait(timeout=60)

    @contextlib.contextmanager
    def observer(self, *arguments: str | Path) -> Iterator["Observer"]:
        """A consumer on this node that is ready to watch."""
        command = self.argv(sys.executable, OBSERVER, arguments[0], self.fabric.root, SPEC, *arguments[1:])
        process = subprocess.Popen(command, env=self.fabric.environment, stdout=subprocess.PIPE, text=True)
        observer = Observer(process)
        try:
            observer.next("ready")
            yield observer
        finally:
            process.kill()
            process.wait()

    def index(self) -> dict[str, Any]:
        """What is published, as this node's mount shows it; {} before the first."""
        with contextlib.suppress(EnvfabricError):
            return read_index(self.export)
        return {}

    def wait_for_commit(self, commit: str) -> dict[str, Any]:
        """The index once it is complete for this commit, looked at every 10 ms."""

        def complete() -> dict[str, Any] | None:
            index = self.index()
            return index if index.get("revision") == commit and index["complete"] else None

        return wait_for(complete, timeout=PATIENCE, message=f"no complete index of {commit}")


@dataclass(frozen=True)
class Daemon:
    """A daemon's process and its log."""

    process: subprocess.Popen[bytes]
    log: Path

    def wait_for_event(self, name: str) -> dict[str, Any]:
        """The first log line of that kind."""

        def found() -> dict[str, Any] | None:
            if self.process.poll() is not None:
                raise SystemExit(f"the daemon ended:\n{self.log.read_text()}")
            lines = (json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{"))
            return next((line for line in lines if line["event"] == name), None)

        return wait_for(found, timeout=PATIENCE, message=f"the daemon's log has no {name!r}")


@dataclass(frozen=True)
class Observer:
    """An observer's process; what it saw comes one after the other."""

    process: subprocess.Popen[str]

    def next(self, *names: str) -> dict[str, Any]:
        """The next thing seen that is one of `names`; what comes before it is shown as it is."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            seen: dict[str, Any] = json.loads(line)
            if seen["event"] in names:
                return seen
            print(f"observer: {line}", file=sys.stderr, end="")
        raise SystemExit(f"the observer ended before it saw {' or '.join(names)}")


class Table:
    """The rows found so far; each is shown on stderr as it comes."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str]] = []

    def add(self, what: str, seen: str) -> None:
        self.rows.append((what, seen))
        print(f"{what}: {seen}", file=sys.stderr, flush=True)

    def markdown(self) -> str:
        return "\n".join(
            ["| what | seen |", "|---|---|", *(f"| {what} | {seen} |" for what, seen in self.rows)]
        )


def seconds(since: float, until: float) -> str:
    """A delay as the table shows it; a look that began before the change was seen is none."""
    return f"{max(0.0, until - since):.1f} s"


def commit(fabric: Fabric, release: int) -> str:
    """A commit that asks for another closure."""
    fabric.repo.spec(SPEC, [f"alpha=={release}.0", "beta"])
    return fabric.repo.commit()


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


def take_over(fabric: Fabric, a: Node, b: Node, active: Daemon, table: Table) -> None:
    """The active daemon at A is killed; the standby at B publishes what is committed at that moment."""
    with b.daemon() as standby:
        standby.wait_for_event("standby")
        before, epoch = a.index(), highest_epoch(a)
        active.process.kill()
        killed = time.time()
        wanted = commit(fabric, 3)
        wait_for(lambda: highest_epoch(b) > epoch, timeout=PATIENCE, message="nobody claimed the next epoch")
        table.add("daemon at A killed (-9): B is the writer", seconds(killed, time.time()))
        after = b.wait_for_commit(wanted)
        table.add("daemon at A killed (-9): B has published the next commit", seconds(killed, time.time()))
        numbers = f"{before['sequence']} → {after['sequence']}, {epoch} → {highest_epoch(b)}"
        table.add("sequence, epoch", numbers)
        if after["sequence"] <= before["sequence"]:
            raise SystemExit("the sequence went back")
        with a.daemon() as second:
            second.wait_for_event("standby")
            table.add("daemon at A started again", "stands by")


def highest_epoch(node: Node) -> int:
    """The highest epoch claimed, as this node sees it."""
    return max(int(path.name.removeprefix("epoch-")) for path in (node.export / "locks").glob("epoch-*"))


@contextlib.contextmanager
def packages_on(nodes: list[Node], packages: SimpleIndex, folder: Path) -> Iterator[None]:
    """The index's pages and files on 127.0.0.1 of each node, under the address that it has here.

    A node that shares this machine's network finds the address taken, and uses the one that has it.
    """
    shutil.copytree(packages.folder, folder / "files")
    for name in {wheel.name.split("-")[0] for wheel in packages.folder.glob("*.whl")}:
        page = folder / "simple" / name / "index.html"
        page.parent.mkdir(parents=True)
        page.write_bytes(packages.answer(f"/simple/{name}/", None)[1])
    port = packages.url.split(":")[2].split("/")[0]
    serve = [sys.executable, "-m", "http.server", port, "--bind", "127.0.0.1", "--directory", str(folder)]
    servers = [
        subprocess.Popen([*node.prefix, *serve], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for node in nodes
        if node.prefix
    ]
    try:
        yield
    finally:
        for server in servers:
            server.terminate()
            server.wait()


def measure(mounts: tuple[Path, Path], prefixes: tuple[list[str], list[str]], warm: float) -> Table:
    """All of it, in a new folder of the export that is removed at the end."""
    table = Table()
    name = f"envfabric-two-clients-{uuid.uuid4().hex[:8]}"
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="envfabric-two-clients-")))
        packages = stack.enter_context(SimpleIndex(scratch / "packages"))
        packages.add_wheel("beta", modules={"beta/__init__.py": "", "beta/late.py": ""})
        for release in (1, 2, 3):
            packages.add_wheel("alpha", f"{release}.0")
        fabric = Fabric(scratch, packages, SpecRepo(scratch / "specs"))
        fabric.root.mkdir()
        (mounts[0] / name).mkdir()
        stack.callback(remove, mounts[0] / name)
        fabric.repo.commit("empty")
        a, b = (
            Node(prefix, mount / name, fabric, scratch)
            for mount, prefix in zip(mounts, prefixes, strict=True)
        )
        stack.enter_context(packages_on([a, b], packages, scratch / "served"))
        a.envfabric("init", fabric.root)
        with a.daemon() as active:
            active.wait_for_event("serving")
            build_here_read_there(fabric, a, b, table)
            flips(fabric, a, b, warm, table)
            take_over(fabric, a, b, active, table)
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
    given = parser.parse_args()
    table = measure(
        (given.mount_a.resolve(), given.mount_b.resolve()), (given.on_a, given.on_b), given.seconds
    )
    print(table.markdown())


if __name__ == "__main__":
    main()
