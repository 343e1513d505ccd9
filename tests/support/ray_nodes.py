"""Ray nodes on this machine, each with a Python, a temporary folder and agents of its own, for the benches of Ray.

They are started as an operator starts them, by `ray start --block`, and ended by whoever started them. What a
node's Python has comes from a sealed environment's site-packages, file by file, bytecode included: the same
packages as in the environment, lying on this machine as in an image. Nothing here measures.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import envfabric
from support.fabric import BASE_PYTHON
from support.ray_user import RAY
from support.waiting import wait_for

PLUGIN = [{"class": "envfabric.client.plugin.EnvfabricPlugin"}]
STORE = 80_000_000
"""Bytes of a node's object store."""
_START = "from ray.scripts.scripts import main; main()"
_UNUSED = ("site-packages", "dist-packages", "test", "idlelib", "turtledemo", "lib2to3", "config-3*")
_INSTALLERS = re.compile(r"(uv|uvx|pip[0-9.]*|virtualenv|_?clonevirtualenv\.py|conda)")
_AGENT = "ray::RuntimeEnvAgent"
_OURS = ("PYTHON", "RAY_", "ENVFABRIC_", "VIRTUAL_ENV", "GIT_")
"""How variables begin that this process may have, and a node should not get from it."""


def node_python(folder: Path, environment: Path, *, linked: bool = False) -> Path:
    """A Python below `folder` that is no virtual environment, with an environment's packages and this envfabric.

    The packages are copied, or, `linked`, are links to the environment's files: soon made, for what isn't timed.

    A node's Python: Ray's `pip` and `uv` clone a virtual environment as a whole, and build upon any other Python
    without a copy, which is kinder to them.
    """
    found = subprocess.check_output(
        [BASE_PYTHON, "-c", "import sysconfig; print(sysconfig.get_path('stdlib'))"], text=True
    ).strip()
    python = folder / "bin/python3"
    python.parent.mkdir(parents=True)
    shutil.copy2(BASE_PYTHON, python)
    stdlib = folder / "lib" / Path(found).name
    shutil.copytree(found, stdlib, symlinks=True, ignore=shutil.ignore_patterns(*_UNUSED))
    told = "import site, sys; print(sys.prefix); print(site.getsitepackages()[-1])"
    prefix, packages = subprocess.check_output([python, "-I", "-c", told], text=True).split()
    assert Path(prefix) == folder, f"{python} takes itself for a part of {prefix}"
    (source,) = (environment / "lib").glob("python3*/site-packages")
    how = os.symlink if linked else shutil.copy2
    shutil.copytree(source, packages, symlinks=True, copy_function=how, dirs_exist_ok=True)
    os.chmod(packages, 0o755)
    Path(packages, "of_the_bench.pth").write_text(f"{Path(envfabric.__file__).parents[1]}\n")
    return python


@dataclass(frozen=True)
class Node:
    """One raylet with its agents."""

    name: str
    """Also a custom resource of it: what asks for a bit of that runs there."""
    python: Path
    temporary: Path
    """Its own RAY_TMPDIR."""
    process: subprocess.Popen[bytes]

    @property
    def latest(self) -> Path:
        return (self.temporary / "session_latest").resolve()

    @property
    def installed(self) -> Path:
        """Where Ray itself keeps what it installs for runtime_envs."""
        return self.latest / "runtime_resources"

    @property
    def agent(self) -> int:
        """The process that sets runtime_envs up."""
        # It gives itself a name, once it is up.
        mine = [pid for pid, words in below(self.process.pid).items() if words[:1] == [_AGENT]]
        assert len(mine) == 1, f"{self.name} has {len(mine)} agents for runtime_envs"
        return mine[0]

    def written(self) -> int:
        """Bytes that the agent, and what it started and waited for, has written so far."""
        lines = Path(f"/proc/{self.agent}/io").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("wchar:"))


@contextlib.contextmanager
def ray_nodes(wanted: Mapping[str, Path], *, cpus: int) -> Iterator[tuple[str, dict[str, Node]]]:
    """Starts a node for each name with the Python given for it, the first one as head; gives the address, too."""
    with contextlib.ExitStack() as ends:
        started: dict[str, Node] = {}
        address = ""
        for name, python in wanted.items():
            # The sockets' paths have to stay below 108 bytes.
            place = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp")))
            node = Node(name, python, place, _start(name, python, place, address, cpus))
            ends.callback(_end, node)
            started[name] = node
            address = address or wait_for(lambda: _address(started), timeout=90, message=_told(node))
        for node in started.values():
            wait_for(lambda: _has_agent(node), timeout=90, message=_told(node))  # noqa: B023 - called here
        yield address, started


def _start(name: str, python: Path, place: Path, address: str, cpus: int) -> subprocess.Popen[bytes]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    env |= RAY | {"RAY_AUTH_MODE": "disabled", "RAY_RUNTIME_ENV_PLUGINS": json.dumps(PLUGIN)}
    of_head = ("--head", "--port=0", "--include-dashboard=false", "--disable-usage-stats")
    words = [
        *("start", "--block", *((f"--address={address}",) if address else of_head)),
        *(f"--node-name={name}", f"--temp-dir={place}"),
        *(f"--num-cpus={cpus}", f"--resources={json.dumps({name: 1000})}", f"--object-store-memory={STORE}"),
        *("--min-worker-port=0", "--max-worker-port=0"),
    ]
    with (place / "start.log").open("wb") as log:
        return subprocess.Popen(
            [python, "-c", _START, *words],
            env=env,
            cwd=place,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def _address(started: Mapping[str, Node]) -> str:
    head = next(iter(started.values()))
    assert head.process.poll() is None, _told(head)
    try:
        return (head.temporary / "ray_current_cluster").read_text().strip()
    except FileNotFoundError:
        return ""


def _has_agent(node: Node) -> bool:
    assert node.process.poll() is None, _told(node)
    with contextlib.suppress(AssertionError):
        return node.agent > 0
    return False


def _told(node: Node) -> str:
    return f"{node.name} did not start: {(node.temporary / 'start.log').read_text()[-2000:]}"


def _end(node: Node) -> None:
    rest = below(node.process.pid)
    node.process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        node.process.wait(timeout=30)
    node.process.kill()
    node.process.wait()
    for pid, words in rest.items():
        if _words(pid) == words:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)


def started_at(pid: int) -> float:
    """When a process began, in seconds of CLOCK_BOOTTIME, to a hundredth."""
    return int(_stat(pid)[19]) / os.sysconf("SC_CLK_TCK")


def now() -> float:
    """The clock of `started_at`."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def lives(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    return next(iter(_stat(pid)), "Z") not in {"Z", "X"}


def below(pid: int) -> dict[int, list[str]]:
    """The command lines of all that a process started, and that they started."""
    parents = {int(name): _stat(int(name)) for name in os.listdir("/proc") if name.isdecimal()}
    children: dict[int, list[int]] = {}
    for one, fields in parents.items():
        if fields:
            children.setdefault(int(fields[1]), []).append(one)
    found, left = {}, [pid]
    while left:
        for one in children.get(left.pop(), ()):
            found[one] = _words(one)
            left.append(one)
    return found


@contextlib.contextmanager
def installers(nodes: Sequence[Node], every: float) -> Iterator[set[str]]:
    """The programs that install packages seen below these nodes, with a look each `every` seconds."""
    seen: set[str] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(every):
            for node in nodes:
                for words in below(node.process.pid).values():
                    names = {os.path.basename(word) for word in words[:4]}
                    seen.update(name for name in names if _INSTALLERS.fullmatch(name))

    thread = threading.Thread(target=look, name="installers", daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return []


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")[:-1]
    except OSError:
        return []
