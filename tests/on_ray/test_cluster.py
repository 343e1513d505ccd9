"""The plugin on a real cluster of two raylets, in environments that the driver does not have."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from on_ray.conftest import PLUGIN
from support.fabric import Fabric

DOCUMENT = Path(__file__).parents[2] / "docs/ray.md"


def prefix_of(fabric: Fabric, spec_id: str) -> str:
    """sys.prefix in the environment that the index names."""
    return str(Path(fabric.index()["python"][spec_id]).parents[1])


def test_two_versions_of_one_package_in_one_job(ray_fabric: Fabric, seen: dict[str, Any]) -> None:
    """Two tasks of one job run in environments with conflicting versions, neither of which the driver has; child
    processes land in the environment, by VIRTUAL_ENV and PATH."""
    assert importlib.util.find_spec("humanize") is None
    for name, version in (("old", "4.9.0"), ("new", "4.12.0")):
        found, prefix = seen["ran"][name], prefix_of(ray_fabric, f"wf/{name}")
        assert (found["prefix"], found["version"], found["virtual_env"]) == (prefix, version, prefix)
        assert found["child"] == [prefix, version]


def test_what_is_shipped_beside_an_environment(seen: dict[str, Any]) -> None:
    """working_dir of the spec is there; the caller's takes its place, with the spec's excludes, the caller's
    py_modules, and env_vars of both."""
    assert seen["ran"]["old"]["imported"] == ["of_the_spec"]
    found = seen["hook"]["job"]
    assert found["imported"] == ["of_the_folder", "of_modules"]
    assert found["files"] == ["kept.txt"]
    assert (found["threads"], found["mine"]) == ("2", "yes")


def test_value_by_hand_counts_more_than_an_inherited_interpreter(
    ray_fabric: Fabric, seen: dict[str, Any]
) -> None:
    """ "wf/node@digest" is enough on a node with the plugin: a py_executable that came from the job does not win, and
    the spec's env_vars are there."""
    found = seen["ran"]["by hand"]
    assert found["prefix"] == found["child"][0] == prefix_of(ray_fabric, "wf/new")
    assert found["threads"] == "2"


def test_node_without_the_plugin(ray_fabric: Fabric, seen: dict[str, Any]) -> None:
    """What the client gives runs in the environment there, with the spec's env_vars; what is written by hand runs in
    the node's own Python without a word, as docs/ray.md says."""
    found = seen["ran"]["no plugin"]
    assert found["prefix"] == found["virtual_env"] == found["child"][0] == prefix_of(ray_fabric, "wf/new")
    assert found["threads"] == "2"
    assert seen["ran"]["no plugin, by hand"] == seen["own prefix"]


REFUSED = {
    "no digest": ("has no digest", "envfabric.runtime_env(", "wf/new@"),
    "unknown": ("no environment 'wf/nowhere'", "Did you mean"),
    "no id": ("'new' is no id",),
    "unknown option": ("unknown key 'digset'", "did you mean digest?"),
    "pip": ("pip can't be combined",),
    "gone": ("store/0123 is not there",),
    "no ray": ("wf/none has no ray", '"ray==2.60.0"'),
    "other ray": ("wf/other has ray 9.9", "2.60.0"),
    "other python": ("has Python 3.9.1", "same minor version"),
    "no interpreter": ("base interpreter /no/such/python is missing",),
    "other base": ("is Python 3.9.1 on", "is another one there"),
    "foreign interpreter": ("can't be run on", "made for this machine"),
    "does not start": ("does not start on", "no luck"),
    "foreign ray": ("can't load its ray on", "another processor or C library"),
    "lost ray": ("has lost its ray", "verify --repair"),
    "not mounted": ("is the NAS mounted",),
    "hung": ("has not answered", "timeout"),
}
"""What the message of each case has in it."""


@pytest.mark.parametrize("way", ["task", "actor", "job"])
@pytest.mark.parametrize("case", list(REFUSED))
def test_what_would_hang_is_an_error_that_names_the_cause(seen: dict[str, Any], case: str, way: str) -> None:
    """Every case in which Ray alone would hang, or run the wrong Python, is an error within ten seconds, for a task,
    an actor and a submitted job. What took longer among all the others was tried again by itself."""
    found = seen["refused"][case][way]
    kinds = {"task": "RuntimeEnvSetupError", "actor": "RuntimeEnvSetupError", "job": "RuntimeError"}
    assert found["kind"] == kinds[way], found["text"]
    for word in REFUSED[case]:
        assert word in found["text"]
    assert found["seconds"] < 10, f"Ray's three tries and the plugin's patience together, {found}"


@pytest.mark.parametrize(
    ("case", "kind", "words"),
    [
        ("unknown", "UnknownEnvironment", "no environment 'wf/nowhere'"),
        ("no id", "UnknownEnvironment", "no environment 'new'"),
        ("gone", "EnvironmentFailed", "store/0123 is not there"),
        ("no ray", "EnvironmentFailed", "wf/none has no ray"),
        ("other ray", "EnvironmentFailed", "wf/other has ray 9.9"),
        ("other python", "EnvironmentFailed", "has Python 3.9.1"),
        ("no interpreter", "EnvironmentFailed", "base interpreter /no/such/python is missing"),
        ("other base", "EnvironmentFailed", "is another one there"),
        ("foreign interpreter", "EnvironmentFailed", "can't be run on"),
        ("does not start", "EnvironmentFailed", "does not start on"),
        ("foreign ray", "EnvironmentFailed", "can't load its ray"),
        ("lost ray", "EnvironmentFailed", "has lost its ray"),
        ("not mounted", "RootNotFound", "Is the NAS mounted"),
        ("hung", "RootNotFound", "has not answered"),
    ],
)
def test_client_refuses_it_before_ray_is_asked(
    seen: dict[str, Any], case: str, kind: str, words: str
) -> None:
    """The same in the driver, as an exception of the call."""
    found = seen["refused"][case]["client"]
    assert found["kind"] == kind, found["text"]
    assert words in found["text"]
    assert found["seconds"] < 10, found


def test_lease_lasts_as_long_as_the_actor(ray_fabric: Fabric, seen: dict[str, Any]) -> None:
    """While an actor lives its closure is leased, by name, and renewed; once it is gone the lease is given back."""
    found = seen["actor"]
    assert found["prefix"] == prefix_of(ray_fabric, "wf/actor")
    assert found["lease"]["what"].startswith("wf/actor, Ray 2.60.0 on ")
    assert found["renewed"]
    assert found["given back"]


def test_new_generation_is_used_by_new_tasks(ray_fabric: Fabric, seen: dict[str, Any]) -> None:
    """Ray caches runtime_envs by their text, which has the digest in it."""
    before, after = seen["generations"]
    assert before == "4.12.0"
    # As the document's own program says it.
    assert after == f"humanize 4.9.0 in {prefix_of(ray_fabric, 'wf/moves')}"


def test_driver_decides_what_is_written_by_hand(ray_fabric: Fabric, seen: dict[str, Any]) -> None:
    """With the hook, a value without a digest gets one before it leaves the driver, and py_executable with it: for the
    job, and for a task in another environment on a node without the plugin."""
    python = ray_fabric.index()["python"]["wf/new"]
    assert seen["decided"]["py_executable"] == python
    assert seen["decided"]["envfabric"]["digest"] == Path(python).parents[2].name
    for name, spec_id in (("job", "wf/new"), ("task", "wf/old")):
        found = seen["hook"][name]
        assert found["prefix"] == found["child"][0] == prefix_of(ray_fabric, spec_id)


def test_code_of_the_document_is_what_runs_here() -> None:
    """docs/ray.md: the Python is executed by the story, the variables are the ones that this cluster and its second
    driver have. A block that is added needs its place here."""
    story = Path(__file__).with_name("story.py").read_text()
    blocks = re.findall(r"```(\w*)\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (python,) = [text for kind, text in blocks if kind == "python"]
    assert python.count('"forecast/score", root="/mnt/nas"') == 1
    shell = [line for kind, text in blocks if kind == "sh" for line in text.splitlines()]
    assert shell == [
        f"export RAY_RUNTIME_ENV_PLUGINS='{json.dumps(PLUGIN)}'",
        "export RAY_RUNTIME_ENV_HOOK=envfabric.client.driver.hook",
    ]
    assert f'"{shell[1].partition("=")[2]}"' in story
    assert {kind for kind, _ in blocks} == {"python", "sh"}
