"""One fabric with real Ray in its environments, and one story on a cluster of two raylets, for all tests here."""

import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from examples.conftest import remove
from support.fabric import BASE_PYTHON, Fabric
from support.namespace import run_alone
from support.ray_user import ray_user
from support.simple_index import SimpleIndex
from support.spec_repo import SpecRepo

STORY = Path(__file__).with_name("story.py")
PLUGIN = [{"class": "envfabric.client.plugin.EnvfabricPlugin"}]
RAY = "ray[default,serve]==2.60.0"
ADDED = "[tool.envfabric.runtime-env]\n"


@pytest.fixture(scope="session")
def ray_fabric(tmp_path_factory: pytest.TempPathFactory, packages: SimpleIndex) -> Iterator[Fabric]:
    """Environments with Ray that want two versions of one package, one without Ray, and one with another Ray."""
    folder = tmp_path_factory.mktemp("ray")
    fabric = Fabric(folder, packages, SpecRepo(folder / "specs"), machines_index=True)
    packages.add_wheel("ray", "9.9")
    mine = f'[[tool.uv.index]]\nname = "mine"\nurl = "{packages.url}"\nexplicit = true\n'
    with zipfile.ZipFile(folder / "code.zip", "w") as code:
        code.writestr("code/of_the_spec.py", "")
    shipped = f'{ADDED}working_dir = "file://{folder}/code.zip"\n'
    fabric.repo.spec("wf/old", ["humanize==4.9.0", RAY], table=shipped)
    fabric.repo.spec("wf/moves", ["humanize==4.9.0", RAY])
    variables = ADDED + 'env_vars = { OMP_NUM_THREADS = "2" }\nexcludes = ["*.log"]\n'
    fabric.repo.spec("wf/new", ["humanize==4.12.0", RAY], table=variables)
    fabric.repo.spec("wf/actor", ["humanize==4.12.0", "ray==2.60.0"])
    fabric.repo.spec("wf/none", ["humanize==4.9.0"])
    fabric.repo.spec("wf/other", ["ray==9.9"], table=mine + '[tool.uv.sources]\nray = { index = "mine" }\n')
    fabric.repo.commit()
    try:
        fabric.run_once()
        fabric.repo.spec("wf/moves", ["humanize==4.12.0", RAY])
        fabric.repo.commit()
        fabric.run_once()
        yield fabric
    finally:
        remove(folder)


def broken(root: Path) -> None:
    """A ROOT of closures in which no worker could start, each in its own way."""
    (root / "leases").mkdir(parents=True)
    (root / ".envfabric.json").write_text("{}")
    # Of specs that were removed: nothing is asked of a generation.
    index = {"schema": 1, "revision": "c" * 40, "python": {}, "environments": {}, "problems": []}
    (root / "index.json").write_text(json.dumps(index))
    ours = ".".join(map(str, sys.version_info[:3]))
    # An ELF file for a processor that there is not.
    alien = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\xfe\xca" + bytes(44)
    scripts = {
        "alien": alien,
        "ends": b"#!/bin/sh\necho no luck >&2\nexit 3\n",
        "other base": b"#!/bin/sh\necho 3.9.1\n",
    }
    for name in ("bare", "foreign", "lost", "minor", *scripts):
        closure = root / "store" / name.replace(" ", "-")
        ray = closure / f".venv/lib/python3.{sys.version_info[1]}/site-packages/ray"
        ray.mkdir(parents=True)
        (ray / "__init__.py").write_text("")
        told = {"ray_version": "2.60.0", "python_version": "3.9.1" if name == "minor" else ours}
        (closure / "metadata.json").write_text(json.dumps(told))
        python = closure / ".venv/bin/python"
        python.parent.mkdir()
        if name in scripts:
            python.write_bytes(scripts[name])
            python.chmod(0o755)
        else:
            python.symlink_to("/no/such/python" if name == "bare" else BASE_PYTHON)
        if name == "foreign":
            (ray / "_raylet.so").write_bytes(alien)
        if name == "lost":
            (ray / "__init__.py").unlink()
    (root / "store/hung").mkdir()
    # Whoever opens it waits for ever, as for a NAS that is gone.
    os.mkfifo(root / "store/hung/metadata.json")


@pytest.fixture(scope="session")
def seen(ray_fabric: Fabric) -> dict[str, Any]:
    """What the story told."""
    folder = ray_fabric.folder
    report, home, other = folder / "report.json", folder / "user", folder / "other"
    home.mkdir()
    broken(other)
    variables = ray_user(home, ray_fabric.root) | {
        "RAY_RUNTIME_ENV_PLUGINS": json.dumps(PLUGIN),
    }
    # The sockets' paths have to stay below 108 bytes.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as short:
        done = run_alone(
            [sys.executable, STORY, report, other],
            env=variables | {"RAY_TMPDIR": short},
            cwd=home,
            timeout=300,
        )
    assert done.code == 0, done.out[-3000:] + done.err[-6000:]
    found: dict[str, Any] = json.loads(report.read_text())
    return found
