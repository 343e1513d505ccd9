"""A prepared ROOT with real uv on it, a package index that a test may change, and specs from few words."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from envfabric.build import scope as scope_module
from envfabric.build import uv as uv_module
from envfabric.build.environment import Builder
from envfabric.build.interpreters import Interpreter, inspect
from envfabric.build.resolve import Resolver
from envfabric.build.uv import Finished, Uv
from envfabric.specs.policy import Policy
from envfabric.specs.spec import Spec, read_spec
from envfabric.store.closures import Closures
from envfabric.store.files import Files
from envfabric.store.prepare import init_root
from envfabric.store.root import Root
from support.fabric import BASE_PYTHON
from support.simple_index import SimpleIndex
from support.waiting import wait_for

MakeSpec = Callable[..., Spec]
HOUR = 3600


class Clock:
    """The clock of uv's processes and steps, which a test puts forward: no limit is over before what it is to end has
    begun, however slow the machine is."""

    def __init__(self) -> None:
        self._ahead = 0

    def monotonic(self) -> float:
        return time.monotonic() + self._ahead

    def put_forward(self) -> None:
        """By an hour."""
        self._ahead += HOUR

    @contextlib.contextmanager
    def put_forward_once(self, begun: Callable[[], object]) -> Iterator[None]:
        """Puts it forward while the block runs, as soon as something is true."""

        def wait() -> None:
            try:
                wait_for(begun, message="it did not begin")
            finally:
                self.put_forward()

        waiting = threading.Thread(target=wait)
        waiting.start()
        try:
            yield
        finally:
            waiting.join()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Every limit that is set from now on is read off it."""
    made = Clock()
    for module in (uv_module, scope_module):
        monkeypatch.setattr(module, "time", made)
    return made


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """uv reads no configuration of whoever runs the tests."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_CONFIG_HOME", "XDG_CONFIG_DIRS", "UV_CONFIG_FILE", "UV_DEFAULT_INDEX", "UV_INDEX"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def files() -> Files:
    return Files()


@pytest.fixture
def root(tmp_path: Path, files: Files) -> Root:
    """A prepared NAS folder."""
    return init_root(tmp_path / "nas", files)


@pytest.fixture
def closures(root: Root, files: Files) -> Closures:
    return Closures(root, files)


@pytest.fixture
def index(own_packages: SimpleIndex) -> SimpleIndex:
    """alpha, beta (which requires alpha), and gamma in two versions."""
    own_packages.add_wheel("beta", "1.0", requires=["alpha"])
    own_packages.add_wheel("gamma", "1.0")
    own_packages.add_wheel("gamma", "2.0")
    return own_packages


@pytest.fixture
def runs() -> list[list[str]]:
    """The arguments of every uv process that `uv` ran."""
    return []


@pytest.fixture
def uv(root: Root, index: SimpleIndex, runs: list[list[str]]) -> Uv:
    """uv on ROOT, whose default index is `index`."""

    class Counted(Uv):
        def run(self, arguments: Sequence[str], **details: Any) -> Finished:
            runs.append(list(arguments))
            return super().run(arguments, **details)

    return Counted(root, timeout=60, index=index.url)


@pytest.fixture
def resolver(root: Root, files: Files, uv: Uv, closures: Closures, index: SimpleIndex) -> Resolver:
    return Resolver(root, files, uv, closures.staging, policy=Policy(indexes=(index.url,)))


@pytest.fixture
def builder(closures: Closures, files: Files, uv: Uv) -> Builder:
    return Builder(closures, files, uv)


@pytest.fixture(scope="session")
def python() -> Interpreter:
    """The interpreter that the tests' own is made from."""
    found = inspect(BASE_PYTHON)
    assert found is not None
    return found


@pytest.fixture
def make_spec(index: SimpleIndex) -> MakeSpec:
    """A spec by its name and requirements; `tail` is TOML that follows [project]'s own keys."""

    def make(
        name: str,
        dependencies: Sequence[str] = (),
        *,
        version: str = "0.1.0",
        tail: str = "",
        local: bool = False,
        files: Mapping[str, bytes] | None = None,
    ) -> Spec:
        lines = ["[project]", f"name = {json.dumps(name)}", f"version = {json.dumps(version)}"]
        lines += ['requires-python = ">=3.11"', f"dependencies = {json.dumps(list(dependencies))}", tail]
        if local:
            lines += ["[[tool.uv.index]]", 'name = "local"', f'url = "{index.url}"', "default = true"]
        content = {"pyproject.toml": "\n".join([*lines, ""]).encode(), **(files or {})}
        return read_spec(f"wf/{name}", "0" * 40, content, Policy(indexes=(index.url,)))

    return make
