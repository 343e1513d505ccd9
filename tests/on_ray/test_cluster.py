"""The plugin on a real cluster of two raylets, in environments that the driver does not have."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from support.fabric import Fabric


def prefix_of(fabric: Fabric, spec_id: str) -> str:
    """sys.prefix in the environment that the index names."""
    return str(Path(fabric.index()["python"][spec_id]).parents[1])


def test_two_versions_of_one_package_in_one_job(ray_fabric: Fabric, seen: dict[str, Any]) -> None:
    """Two tasks of one job run in environments with conflicting versions, neither of which the driver has; child
    processes land in the environment, and env_vars of the spec and of the caller are both there."""
    assert importlib.util.find_spec("humanize") is None
    found = seen["two at once"]
    assert (found["old"]["version"], found["new"]["version"]) == ("4.9.0", "4.12.0")
    assert found["new"]["threads"] == "2"
    assert found["new"]["mine"] == "yes"
    for name in ("old", "new"):
        prefix = prefix_of(ray_fabric, f"wf/{name}")
        assert [found[name][one] for one in ("prefix", "virtual_env", "child")] == [prefix] * 3


def test_value_by_hand_counts_more_than_an_inherited_interpreter(
    ray_fabric: Fabric, seen: dict[str, Any]
) -> None:
    """ "wf/node@digest" is enough on a node with the plugin: a py_executable that came from the job does not win, and
    the spec's env_vars are there."""
    found = seen["two at once"]["by hand"]
    assert found["prefix"] == found["child"] == prefix_of(ray_fabric, "wf/new")
    assert found["threads"] == "2"


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("no digest", ("has no digest", "envfabric.runtime_env(", "wf/new@")),
        ("no id", ("'new' is no id",)),
        ("unknown option", ("unknown key 'digset'", "did you mean digest?")),
        ("pip", ("pip can't be combined",)),
        ("gone", ("store/0123 is not there",)),
        ("no ray", ("wf/none has no ray", '"ray==2.60.0"')),
        ("other ray", ("wf/other has ray 9.9", "2.60.0")),
        ("no interpreter", ("base interpreter /no/such/python is missing",)),
        ("not mounted", ("is the NAS mounted",)),
        ("hung", ("has not answered", "timeout")),
    ],
)
def test_what_would_hang_is_an_error_that_names_the_cause(
    seen: dict[str, Any], case: str, words: tuple[str, ...]
) -> None:
    """Every case in which Ray alone would hang, or run the wrong Python, is a RuntimeEnvSetupError within ten
    seconds."""
    found = seen["refused"][case]
    assert found["kind"] == "RuntimeEnvSetupError", found["text"]
    for word in words:
        assert word in found["text"]
    assert found["seconds"] < 10, "Ray's three tries and the plugin's patience together"


def test_lease_lasts_as_long_as_the_actor(ray_fabric: Fabric, seen: dict[str, Any]) -> None:
    """While an actor lives its closure is leased, by name, and renewed; once it is gone the lease is given back."""
    found = seen["actor"]
    assert found["prefix"] == prefix_of(ray_fabric, "wf/actor")
    assert found["lease"]["what"].startswith("wf/actor, Ray 2.60.0 on ")
    assert found["renewed"]
    assert found["given back"]


def test_lease_of_a_killed_raylet_ends_by_its_ttl(seen: dict[str, Any]) -> None:
    """Nobody renews the lease of a node that died, and nobody has to give it back."""
    assert seen["killed"] == {"left behind": True, "ended": True}


def test_new_generation_is_used_by_new_tasks(seen: dict[str, Any]) -> None:
    """Ray caches runtime_envs by their text, which has the digest in it."""
    assert seen["generations"] == ["4.12.0", "4.9.0"]


def test_driver_decides_what_is_written_by_hand(ray_fabric: Fabric, seen: dict[str, Any]) -> None:
    """With the hook, a value without a digest gets one before it leaves the driver, and py_executable with it."""
    python = ray_fabric.index()["python"]["wf/new"]
    assert seen["decided"]["py_executable"] == python
    assert seen["decided"]["envfabric"]["digest"] == Path(python).parents[2].name
    assert seen["decided ran"]["version"] == "4.12.0"


def test_serve_replica_runs_in_the_environment(seen: dict[str, Any]) -> None:
    """A deployment's ray_actor_options take the runtime_env."""
    assert seen["serve"] == "4.12.0"


def test_submitted_job_has_its_driver_in_the_environment(ray_fabric: Fabric, seen: dict[str, Any]) -> None:
    """`ray job submit` with what `envfabric runtime-env` prints: the entrypoint's `python` is the environment's, and
    so is that of its tasks."""
    prefix = prefix_of(ray_fabric, "wf/new")
    assert seen["job"]["code"] == 0, seen["job"]["text"]
    assert f"job 4.12.0 {prefix} {prefix}" in seen["job"]["text"]


def test_submitted_job_that_can_not_run_fails_with_the_cause(seen: dict[str, Any]) -> None:
    """A job in an environment without Ray, or without a digest, fails and says why."""
    for name, words in (("job refused", "wf/none has no ray"), ("job undecided", "has no digest")):
        assert seen[name]["code"] != 0
        assert words in seen[name]["text"]
