"""The two nodes of `two_clients.py`: how a command, a daemon and a consumer run on each, and the table of results.

A node's commands run in a mount namespace of their own, where the node's mount of the export is bound over
the one path that ROOT has on every node. What is read here is read through the node's mount from outside.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envfabric.client.index import EnvfabricError, read_index
from support.fabric import Fabric
from support.simple_index import SimpleIndex
from support.waiting import wait_for

OBSERVER = Path(__file__).with_name("observer.py")
SPEC = "wf/node"
BIND = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
PATIENCE = 600.0
"""Seconds after which something that should be seen counts as lost."""


@dataclass(frozen=True)
class Node:
    """One client: how to run a command on it, and its view of the export from outside."""

    name: str
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
            raise SystemExit(
                f"envfabric {arguments[0]} at {self.name} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    def order(self, *arguments: str) -> str:
        """A command with the fabric's settings: one that the daemon is asked for while it runs."""
        return self.envfabric(*arguments, "--config", self.fabric.configure())

    def gc(self) -> dict[str, Any]:
        """One collection, ordered on this node: its answer."""
        answer: dict[str, Any] = json.loads(self.order("gc", "--json"))
        return answer

    @contextlib.contextmanager
    def daemon(self) -> Iterator["Daemon"]:
        """The daemon on this node, until the end of the block or its own."""
        log = self.logs / f"{self.name}-{uuid.uuid4().hex}.log"
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
        """A consumer on this node that is ready to watch, or to be told what to do."""
        command = self.argv(sys.executable, OBSERVER, arguments[0], self.fabric.root, SPEC, *arguments[1:])
        process = subprocess.Popen(
            command, env=self.fabric.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
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

    def names(self, folder: str) -> list[str]:
        """The names in one of ROOT's folders now: it is opened first."""
        path = self.export / folder
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY))
        return os.listdir(path)

    def highest_epoch(self) -> int:
        """The highest epoch claimed, as this node sees it."""
        epochs = (name.removeprefix("epoch-") for name in self.names("locks") if name.startswith("epoch-"))
        return max(map(int, epochs), default=0)

    def server_time(self) -> float:
        """The file server's clock, in seconds since 1970."""
        path = self.export / f".clock-{uuid.uuid4().hex}"
        path.touch()
        try:
            return path.stat().st_mtime
        finally:
            path.unlink()


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

    def tell(self, command: str) -> str:
        """Has a consumer do something; what came of it."""
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        came: str = self.next("did")["came"]
        return came


@contextlib.contextmanager
def shown_logs(folder: Path) -> Iterator[None]:
    """Shows the end of each daemon's log where the block fails."""
    try:
        yield
    except BaseException:
        for log in sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime):
            print(f"{log.name}:", *log.read_text().splitlines()[-30:], sep="\n", file=sys.stderr)
        raise


class Table:
    """The rows found so far; each is shown on stderr as it comes."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str]] = []

    def add(self, what: str, seen: str) -> None:
        self.rows.append((what, seen))
        print(f"{time.strftime('%X')} {what}: {seen}", file=sys.stderr, flush=True)

    def markdown(self) -> str:
        return "\n".join(
            ["| what | seen |", "|---|---|", *(f"| {what} | {seen} |" for what, seen in self.rows)]
        )


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


def seconds(since: float, until: float) -> str:
    """A delay as the table shows it; a look that began before the change was seen is none."""
    return f"{max(0.0, until - since):.1f} s"


def commit(fabric: Fabric, release: int, *more: str) -> str:
    """A commit that asks for another closure."""
    fabric.repo.spec(SPEC, [f"alpha=={release}.0", "beta", *more])
    return fabric.repo.commit()
