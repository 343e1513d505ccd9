"""What the benches share: a folder to work in, specs of real packages, closures made one by one, and bare uv.

Packages come from the machine's default index; a distribution that has a wheel in the folder given as
--wheels is taken from there, so that a bench with small wheels of its own needs no network. Nothing here
measures: that is each bench's own part.
"""

import contextlib
import fnmatch
import json
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import uv as uv_package

from envfabric.build.compiling import Compiling
from envfabric.build.environment import Builder, Recipe, recipe_of
from envfabric.build.interpreters import inspect
from envfabric.build.resolve import Resolver
from envfabric.build.uv import Uv
from envfabric.specs.policy import Policy
from envfabric.specs.spec import read_spec
from envfabric.store.bytecode import Bytecode
from envfabric.store.closures import Closures
from envfabric.store.files import Files
from envfabric.store.prepare import init_root
from support.fabric import BASE_PYTHON, Fabric
from support.simple_index import SimpleIndex
from support.spec_repo import SpecRepo
from support.wheels import normalized

HEAVY = ("numpy", "pandas", "scipy", "sympy", "networkx", "scikit-learn", "matplotlib")
"""Distributions from the default index with several thousand files."""
_OF_THE_MACHINE = ("SSL_CERT_*", "*_proxy", "*_PROXY", "UV_*INDEX*", "UV_SYSTEM_CERTS", "UV_NATIVE_TLS")
"""Variables without which the default index may not be reached."""


@contextlib.contextmanager
def bench_folder(parent: Path | None = None) -> Iterator[Path]:
    """A folder that is gone at the end, sealed environments included."""
    with tempfile.TemporaryDirectory(dir=parent, prefix="envfabric-bench-") as folder:
        # Others may look in: a bench imports as a user without rights, too.
        os.chmod(folder, 0o755)
        try:
            yield Path(folder)
        finally:
            # Sealed folders are read-only: an ordinary user has to make them writable to remove them.
            subprocess.run(["chmod", "-R", "u+w", folder], check=False)


@contextlib.contextmanager
def local_index(wheels: Path | None, folder: Path) -> Iterator[SimpleIndex]:
    """The index that serves the folder `wheels`, or none of anything."""
    with SimpleIndex(wheels or folder / "no-wheels") as index:
        yield index


def pyproject(name: str, requirements: Sequence[str], local: SimpleIndex | None = None) -> str:
    """A spec's pyproject.toml; a requirement that `local` has a wheel of is taken from there."""
    lines = ["[project]", f'name = "{name}"', 'version = "0.1.0"', 'requires-python = ">=3.11"']
    lines += [f"dependencies = {json.dumps(list(requirements))}"]
    found = local.folder.glob("*.whl") if local is not None else ()
    own = {normalized(path.name.split("-")[0]) for path in found}
    named = {normalized(_name(one)) for one in requirements} & own
    if local is not None and named:
        lines += ["[[tool.uv.index]]", 'name = "local"', f'url = "{local.url}"', "explicit = true"]
        lines += ["[tool.uv.sources]", *(f'{one} = {{ index = "local" }}' for one in sorted(named))]
    return "\n".join([*lines, ""])


def _name(requirement: str) -> str:
    return requirement.partition(";")[0].split("=")[0].split(">")[0].split("<")[0].split("[")[0].strip()


def machine_variables() -> dict[str, str]:
    """The variables of this process by which uv reaches the default index."""
    return {
        name: value
        for name, value in os.environ.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in _OF_THE_MACHINE)
    }


def bench_fabric(folder: Path, local: SimpleIndex) -> Fabric:
    """A fabric with an empty repository, whose daemon resolves with the machine's default index."""
    repo = SpecRepo(folder / "specs")
    repo.commit("nothing yet")
    return Fabric(folder, local, repo, variables=machine_variables(), machines_index=True)


class Workshop:
    """A ROOT on which one closure after the other is built in this process, all of the same content."""

    def __init__(
        self,
        folder: Path,
        requirements: Sequence[str],
        local: SimpleIndex | str | None = None,
        *,
        text: str | None = None,
    ) -> None:
        """`text` is a whole pyproject.toml, where it is known; `local` may be an index's address then."""
        address = local.url if isinstance(local, SimpleIndex) else local
        if text is None:
            text = pyproject("bench", requirements, local if isinstance(local, SimpleIndex) else None)
        files = Files()
        self.root = init_root(folder / "nas", files)
        self.closures = Closures(self.root, files)
        self.uv = Uv(self.root)
        self.compiling = Compiling(Bytecode(self.root, files), files, self.uv)
        self.files = files
        python = inspect(BASE_PYTHON)
        assert python is not None, f"{BASE_PYTHON} is no interpreter"
        spec = read_spec(
            "bench/one",
            "0" * 40,
            {"pyproject.toml": text.encode()},
            Policy((address,) if address else ()),
        )
        resolution = Resolver(self.root, files, self.uv, self.closures.staging).resolve(spec, python, None)
        self.recipe: Recipe = recipe_of(spec, resolution)
        self.pyproject = spec.pyproject
        self.lock = resolution.lock
        self.phases: dict[str, float] = {}
        self.builders = {
            True: Builder(self.closures, files, self.uv, self.compiling),
            False: Builder(self.closures, files, self.uv),
        }

    def build(self, *, bytecode: bool = True, tell: Callable[[str], None] = lambda phase: None) -> Path:
        """One more closure; gives its folder, and leaves the seconds of its phases in `phases`.

        `tell` hears of each phase as it begins.
        """
        # Another digest, with the same content.
        closure = replace(self.recipe.closure, options={"bench": uuid.uuid4().hex})
        built = self.builders[bytecode].build(replace(self.recipe, closure=closure), tell)
        self.phases = built.phases
        return self.root.closure(built.name)


class BareUv:
    """What a user does with uv alone: one cache, and project folders beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.binary = str(uv_package.find_uv_bin())
        folder.mkdir()

    def environment(self, mode: str = "hardlink") -> dict[str, str]:
        """The variables of a uv process; `mode` is its link mode."""
        keep = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "LC_ALL": "C.UTF-8"}
        return {
            **keep,
            **machine_variables(),
            "UV_CACHE_DIR": str(self.cache),
            "UV_LINK_MODE": mode,
            "UV_NO_BUILD": "1",
            "UV_NO_PROGRESS": "1",
            "UV_PYTHON": BASE_PYTHON,
            "UV_PYTHON_DOWNLOADS": "never",
            "UV_SYSTEM_CERTS": "1",
        }

    def lay_out(self, name: str, text: bytes, lock: bytes) -> Path:
        """A project folder with these files and no environment."""
        project = self.folder / name
        shutil.rmtree(project, ignore_errors=True)
        project.mkdir()
        (project / "pyproject.toml").write_bytes(text)
        (project / "uv.lock").write_bytes(lock)
        return project

    def commands(self, *flags: str) -> list[list[str]]:
        """The two commands that make an environment from a lock."""
        return [
            [self.binary, "venv", "--quiet"],
            [self.binary, "sync", "--frozen", "--no-install-project", "--quiet", *flags],
        ]

    def make(self, project: Path, *flags: str, mode: str = "hardlink") -> Path:
        """Makes the project's environment, and gives its folder."""
        for command in self.commands(*flags):
            subprocess.run(command, cwd=project, env=self.environment(mode), check=True)
        return project / ".venv"
