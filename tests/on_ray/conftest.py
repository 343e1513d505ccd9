"""One fabric with real Ray in its environments, and one story on a cluster of two raylets, for all tests here."""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from examples.conftest import remove
from support.fabric import Fabric
from support.namespace import run_alone
from support.simple_index import SimpleIndex
from support.spec_repo import SpecRepo

STORY = Path(__file__).with_name("story.py")
PLUGIN = [{"class": "envfabric.client.plugin.EnvfabricPlugin"}]
RAY = "ray[default,serve]==2.60.0"
VARIABLES = '[tool.envfabric.runtime-env]\nenv_vars = { OMP_NUM_THREADS = "2" }\n'


@pytest.fixture(scope="session")
def ray_fabric(tmp_path_factory: pytest.TempPathFactory, packages: SimpleIndex) -> Iterator[Fabric]:
    """Environments with Ray that want two versions of one package, one without Ray, and one with another Ray."""
    folder = tmp_path_factory.mktemp("ray")
    fabric = Fabric(folder, packages, SpecRepo(folder / "specs"), machines_index=True)
    packages.add_wheel("ray", "9.9")
    mine = f'[[tool.uv.index]]\nname = "mine"\nurl = "{packages.url}"\nexplicit = true\n'
    fabric.repo.spec("wf/old", ["humanize==4.9.0", RAY])
    fabric.repo.spec("wf/moves", ["humanize==4.9.0", RAY])
    fabric.repo.spec("wf/new", ["humanize==4.12.0", RAY], table=VARIABLES)
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


@pytest.fixture(scope="session")
def seen(ray_fabric: Fabric) -> dict[str, Any]:
    """What the story told."""
    folder = ray_fabric.folder
    report, home, other = folder / "report.json", folder / "user", folder / "other"
    home.mkdir()
    (other / "store/bare/.venv/bin").mkdir(parents=True)
    (other / "store/hung").mkdir()
    (other / "leases").mkdir()
    (other / ".envfabric.json").write_text("{}")
    told = {"ray_version": "2.60.0", "python_version": ".".join(map(str, sys.version_info[:3]))}
    (other / "store/bare/metadata.json").write_text(json.dumps(told))
    (other / "store/bare/.venv/bin/python").symlink_to("/no/such/python")
    # Whoever opens it waits for ever, as for a NAS that is gone.
    os.mkfifo(other / "store/hung/metadata.json")
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "ENVFABRIC_ROOT": str(ray_fabric.root),
        "RAY_USAGE_STATS_ENABLED": "0",
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
