"""The recipes for Ray do what they say, typed as they are written, on a node of the RayCluster's variables."""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from on_ray.conftest import RAY
from recipes.written import copied, documents
from support.fabric import Fabric
from support.namespace import run_alone
from support.ray_user import ray_user

STORY = Path(__file__).with_name("recipes_story.py")


@pytest.fixture(scope="module")
def served(ray_fabric: Fabric) -> dict[str, str]:
    """The environments that the recipes name, and what sys.prefix is in each."""
    ray_fabric.repo.spec("forecast/train", ["humanize==4.9.0", RAY])
    ray_fabric.repo.spec("forecast/score", ["humanize==4.12.0", RAY])
    ray_fabric.repo.spec("forecast/batch", ["humanize==4.12.0", "ray[data,default]==2.60.0"])
    ray_fabric.repo.commit()
    index = ray_fabric.run_once()
    return {name: str(Path(python).parents[1]) for name, python in index["python"].items()}


@pytest.fixture(scope="module")
def told(
    ray_fabric: Fabric, served: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the story told."""
    folder = tmp_path_factory.mktemp("typed")
    here, report, home = copied(folder), folder / "report.json", folder / "home"
    home.mkdir()
    (cluster,) = documents("raycluster.yaml")
    (container,) = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    variables = {one["name"]: one["value"] for one in container["env"]} | ray_user(home, ray_fabric.root)
    variables |= {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(STORY.parents[1]),
    }
    # The sockets' paths have to stay below 108 bytes.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as short:
        done = run_alone(
            [sys.executable, STORY, report], env=variables | {"RAY_TMPDIR": short}, cwd=here, timeout=400
        )
    assert done.code == 0, done.out[-3000:] + done.err[-6000:]
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def test_job_uses_two_environments(served: dict[str, str], told: dict[str, Any]) -> None:
    """ "ray_job.py": a submitted job whose task and actor run in environments that exclude each other."""
    found = told["ray_job.py"]
    assert found["code"] == 0, found["text"]
    for version, name in (("4.9.0", "forecast/train"), ("4.12.0", "forecast/score")):
        assert f"{name}: humanize {version} in {served[name]}\n" in found["text"]


def test_data_runs_in_the_environment_with_its_driver(served: dict[str, str], told: dict[str, Any]) -> None:
    """ "ray_data.py": map_batches and the driver of the submitted job run in one environment."""
    found = told["ray_data.py"]
    assert found["code"] == 0, found["text"]
    assert f"1,999 of 2000 in {served['forecast/batch']}\n" in found["text"]


def test_deployment_answers_from_the_environment(served: dict[str, str], told: dict[str, Any]) -> None:
    """ "ray_serve.py": `serve run` deploys it, and its replica answers from the environment."""
    found = told["ray_serve.py"]
    assert told["serve start"]["code"] == 0, told["serve start"]["text"]
    expected = {"words": "1,234,567", "where": served["forecast/score"]}
    assert found["answer"] != "no answer", found["text"]
    assert json.loads(found["answer"]) == expected
