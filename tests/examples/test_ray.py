"""Ray starts in the environments with nothing left to install: the example job, and a driver of one's own.

The driver is the tests' own interpreter, which has Ray and nothing of what the specs ask for.
"""

import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.version import Version

import envfabric
from envfabric.client.fitting import MATCH_LEVEL
from examples.demo import EXAMPLES, Demo
from support.namespace import run_alone
from support.ray_user import ray_user

RAY_TIMEOUT = 150.0

DRIVER = """
import json, os, subprocess, sys
from pathlib import Path
import envfabric
import ray

def look():
    import humanize
    code = "import humanize, sys; print(sys.prefix, humanize.__version__)"
    return {
        "prefix": sys.prefix,
        "version": humanize.__version__,
        "ray": ray.__file__,
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "child": subprocess.check_output([sys.executable, "-c", code], text=True).split(),
    }

@ray.remote
class Looker:
    def look(self):
        return look()

ray.init("local", num_cpus=2, include_dashboard=False)
runtime_env = envfabric.runtime_env("forecast/score")
task = ray.remote(look).options(runtime_env=runtime_env).remote()
actor = Looker.options(runtime_env=runtime_env).remote()
found = {"task": ray.get(task, timeout=120), "actor": ray.get(actor.look.remote(), timeout=120)}
Path(sys.argv[1]).write_text(json.dumps(found))
"""


@pytest.fixture
def ray_environment(demo: Demo, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Variables for a driver: a cluster on the loopback only, and nothing of it in the machine's folders."""
    home = tmp_path / "home"
    home.mkdir()
    # The sockets' paths have to stay below 108 bytes.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as short:
        yield ray_user(home, demo.nas) | {"RAY_TMPDIR": short}


def served_prefix(demo: Demo, spec_id: str) -> str:
    """What sys.prefix is in the environment that the index names."""
    return str(Path(demo.index()["python"][spec_id]).parents[1])


def test_example_job_reports_every_ray_environment(
    demo: Demo, ray_environment: dict[str, str], tmp_path: Path
) -> None:
    """ray_job.py runs in both forecast environments at once, each with its version of a package that the
    other's excludes and the driver does not have; nothing listens beyond the loopback."""
    assert importlib.util.find_spec("humanize") is None, "the driver must not have it"
    job: list[str | Path] = [sys.executable, EXAMPLES / "ray_job.py", "--root", demo.nas]
    done = run_alone(job, env=ray_environment, cwd=tmp_path, timeout=RAY_TIMEOUT)
    assert done.code == 0, done.out + done.err
    lines = re.findall(r"^(\w+/\w+)  (\S+)  humanize (\S+)$", done.out, re.MULTILINE)
    found = {spec_id: (prefix, version) for spec_id, prefix, version in lines}
    assert sorted(found) == ["forecast/score", "forecast/train"]
    assert {name: prefix for name, (prefix, _) in found.items()} == {
        name: served_prefix(demo, name) for name in found
    }
    assert found["forecast/train"][1] == "4.9.0"
    assert Version("4.12") <= Version(found["forecast/score"][1]) < Version("5")
    assert done.listened == {"127.0.0.1"}


def test_task_and_actor_run_in_the_environment(
    demo: Demo, ray_environment: dict[str, str], tmp_path: Path
) -> None:
    """`envfabric.runtime_env(id)` brings a task, an actor and their child processes into the environment,
    with its Ray and the spec's variables; nothing listens beyond the loopback."""
    driver, report = tmp_path / "driver.py", tmp_path / "report.json"
    driver.write_text(DRIVER)
    done = run_alone(
        [sys.executable, driver, report],
        env=ray_environment | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"},
        cwd=tmp_path,
        timeout=RAY_TIMEOUT,
    )
    assert done.code == 0, done.out + done.err
    found = json.loads(report.read_text())
    prefix = served_prefix(demo, "forecast/score")
    for where in (found["task"], found["actor"]):
        assert where["prefix"] == prefix
        assert where["ray"].startswith(f"{prefix}/lib/")
        assert where["threads"] == "2"
        assert where["child"] == [prefix, where["version"]]
    assert done.listened == {"127.0.0.1"}


def test_environment_without_ray_is_refused_at_once(demo: Demo) -> None:
    """A task would hang for ever in an environment without Ray; `runtime_env` says so instead."""
    with pytest.raises(envfabric.EnvironmentFailed, match=r"etl/extract has no ray"):
        envfabric.runtime_env("etl/extract", root=demo.nas)


def test_example_job_minds_no_patch_version(tmp_path: Path) -> None:
    """Where an environment has another patch version of this Python, ray_job.py says so in one line and has Ray compare
    minor versions only: by itself it prints a traceback for each worker."""
    mine = platform.python_version()
    environments = {
        name: {"ray_version": "2.60.0", "python_version": version, "runtime_env": {"env_vars": {}}}
        for name, version in (("wf/same", mine), ("wf/patch", f"{mine}9"), ("wf/minor", "3.9.1"))
    }
    index = {"python": dict.fromkeys(environments, sys.executable), "environments": environments}
    (tmp_path / "index.json").write_text(json.dumps(index))
    code = "import json, pathlib, ray_job; print(json.dumps(ray_job.ready(pathlib.Path('.'))), file=open('told', 'w'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(EXAMPLES), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "told").read_text())
    assert {name: one["env_vars"] for name, one in told.items()} == {
        "wf/same": {},
        "wf/patch": {MATCH_LEVEL: "minor"},
        "wf/minor": {},
    }
    assert done.stderr == f"wf/patch has Python {mine}9, this is {mine}: Ray is told not to mind.\n"
