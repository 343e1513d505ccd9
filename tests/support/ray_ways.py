"""The ways to give Ray a set of packages that the benches of Ray compare, each as a runtime_env.

    floor    the node's own Python, which has the packages; the runtime_env has one env_var and no more
    client   envfabric.runtime_env, as a node without the plugin takes it (without the plugin's key)
    plugin   envfabric.runtime_env
    pip, uv  Ray's own fields of these names, on a node whose Python has only Ray
    uv run   py_executable = "uv run --with …", on that node, with a uv cache of its own for each sample

Every one is new: an env_var that no other has makes Ray start a worker for it, and for `pip` and `uv` a
requirement that applies nowhere makes Ray install anew, from the network, as it does by default (--no-cache).
Nothing here measures.
"""

import importlib.metadata
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import uv

import envfabric
from support.benches import bench_fabric, local_index, pyproject
from support.ray_nodes import Node, node_python
from support.wheels import normalized

FLOOR, CLIENT, PLUGIN, PIP, UV, UV_RUN = "floor", "client", "plugin", "pip", "uv", "uv run"
OURS = (CLIENT, PLUGIN)
PEERS = (PIP, UV, UV_RUN)
RAY = f"ray[default]=={ray.__version__}"
_KEY = "envfabric"
_MODULES = {"scikit-learn": "sklearn", "pillow": "PIL", "pyyaml": "yaml"}


@dataclass(frozen=True)
class Packages:
    """A set of packages in an environment that is served, and the same for the other ways."""

    root: Path
    spec_id: str
    bare: Path
    """The interpreter of an environment that has Ray, and not the set."""
    requirements: tuple[str, ...]
    """With the versions that the environment has."""
    modules: tuple[str, ...]
    wheels: Path | None
    scratch: Path
    """Where `uv run` has its caches."""

    @property
    def python(self) -> Path:
        return Path(envfabric.python(self.spec_id, root=self.root))

    @property
    def closure(self) -> Path:
        return self.python.parents[2]

    def leases(self, nodes: Iterable[Node]) -> list[Path]:
        """Those that these nodes hold on the closure now; the leases of a node that is gone end by their TTL."""
        marker = json.loads((self.root / ".envfabric.json").read_bytes())
        folder = Path(marker.get("leases") or self.root / "leases") / self.closure.name
        agents = {node.agent for node in nodes}
        try:
            there = [path for path in folder.iterdir() if path.name[0] != "."]
            return [path for path in there if json.loads(path.read_bytes())["pid"] in agents]
        except FileNotFoundError:
            # Given back meanwhile, or never taken.
            return []

    def runtime_env(self, way: str) -> dict[str, Any]:
        """A new one."""
        token = uuid.uuid4().hex
        mine = {"ENVFABRIC_BENCH": token}
        if way == FLOOR:
            return {"env_vars": mine}
        if way in OURS:
            value = envfabric.runtime_env(self.spec_id, root=self.root, env_vars=mine)
            return value if way == PLUGIN else {name: of for name, of in value.items() if name != _KEY}
        local = [] if self.wheels is None else ["--no-index", "--find-links", str(self.wheels)]
        # Ray takes the same text for the same packages.
        packages = [*self.requirements, f'bench-{token}; python_version < "3"']
        if way == PIP:
            flags = ["--disable-pip-version-check", "--no-cache-dir", *local]
            return {"pip": {"packages": packages, "pip_install_options": flags}, "env_vars": mine}
        if way == UV:
            return {
                "uv": {"packages": packages, "uv_pip_install_options": ["--no-cache", *local]},
                "env_vars": mine,
            }
        words = [uv.find_uv_bin(), "run", "--no-project", "--quiet", *local]
        words += [word for one in (f"ray=={ray.__version__}", *self.requirements) for word in ("--with", one)]
        return {
            "py_executable": " ".join(words),
            "env_vars": {**mine, "UV_CACHE_DIR": f"{self.scratch}/{token}"},
        }

    def place(self, way: str, node: Node) -> Path:
        """The folder that the packages have to come from."""
        if way == FLOOR:
            return node.python.parents[1]
        if way in OURS:
            return self.closure
        return self.scratch if way == UV_RUN else node.installed


def full_python(folder: Path, packages: Packages) -> Path:
    """The Python of a node that has the set."""
    return node_python(folder / "full", packages.closure / ".venv")


def bare_python(folder: Path, packages: Packages) -> Path:
    """The Python of a node that has Ray and uv."""
    bare = node_python(folder / "bare", packages.bare.parents[1], linked=True)
    # Ray's uv would fetch uv first, each time.
    shutil.copy2(uv.find_uv_bin(), bare.parent / "uv")
    (site,) = (one for one in (folder / "bare/lib").rglob("*-packages") if (one / "ray").is_dir())
    shutil.copytree(Path(uv.__file__).parent, site / "uv")
    return bare


def made(folder: Path, requirements: Sequence[str], wheels: Path | None) -> Packages:
    """The set in an environment of a new fabric below `folder`."""
    with local_index(wheels, folder) as local:
        fabric = bench_fabric(folder, local)
        for name, wanted in {"bench/bare": [RAY], "bench/set": [*requirements, RAY]}.items():
            fabric.repo.write(f"{name}/pyproject.toml", pyproject("bench", wanted, local))
        fabric.repo.commit()
        fabric.run_once()
    return served(folder, fabric.root, "bench/set", "bench/bare", requirements, wheels)


def served(
    folder: Path, root: Path, spec_id: str, bare_id: str, requirements: Sequence[str], wheels: Path | None
) -> Packages:
    """The set in an environment that is there."""
    python = Path(envfabric.python(spec_id, root=root))
    (site,) = (python.parents[1] / "lib").glob("python3*/site-packages")
    versions = {
        normalized(one.metadata["Name"]): one.version
        for one in importlib.metadata.distributions(path=[str(site)])
    }
    names = [normalized(one) for one in requirements]
    pinned = tuple(f"{name}=={versions[name]}" for name in names)
    modules = tuple(_MODULES.get(name, name.replace("-", "_")) for name in names)
    scratch = folder / "uv-run"
    scratch.mkdir()
    os.chmod(scratch, 0o755)
    bare = Path(envfabric.python(bare_id, root=root))
    return Packages(root, spec_id, bare, pinned, modules, wheels, scratch)
