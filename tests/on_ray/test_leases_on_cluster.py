"""The collector and Ray: with no grace and no look at processes, a lease is all that keeps what an actor runs from."""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from collecting.conftest import STRICT
from examples.conftest import remove
from on_ray.conftest import PLUGIN
from support.fabric import Fabric
from support.namespace import can_isolate, run_alone
from support.ray_user import ray_user
from support.simple_index import SimpleIndex
from support.spec_repo import SpecRepo

STORY = Path(__file__).with_name("leases_story.py")


@pytest.fixture(scope="module")
def seen(
    ray_fabric: Fabric, tmp_path_factory: pytest.TempPathFactory, packages: SimpleIndex
) -> Iterator[dict[str, Any]]:
    """What the story told, on a ROOT of its own: its collections keep nothing for anybody else."""
    folder = tmp_path_factory.mktemp("ray-leases")
    fabric = Fabric(folder, packages, SpecRepo(folder / "specs"), machines_index=True)
    fabric.settings |= {"gc": STRICT, "interval": 0.2, "prune": {"share": 1.0}}
    fabric.init()
    # Ray was downloaded, unpacked and compiled for the other tests: linked, not fetched again.
    for name in ("uv_cache", "bytecode"):
        (fabric.root / name).rmdir()
        shutil.copytree(ray_fabric.root / name, fabric.root / name, symlinks=True, copy_function=os.link)
    fabric.repo.spec("wf/ends", ["humanize==4.9.0", "ray==2.60.0"])
    fabric.repo.spec("wf/dies", ["ray==2.60.0"])
    fabric.repo.spec("wf/stays", ["humanize==4.9.0"])
    fabric.repo.commit()
    report, home = folder / "report.json", folder / "user"
    home.mkdir()
    variables = ray_user(home, fabric.root) | {"RAY_RUNTIME_ENV_PLUGINS": json.dumps(PLUGIN)}
    try:
        with (
            fabric.daemon() as daemon,
            # The sockets' paths have to stay below 108 bytes.
            tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as short,
        ):
            daemon.wait_for_index(fabric.repo.head, timeout=300)
            done = run_alone(
                [sys.executable, STORY, report, folder / "envfabric.toml", fabric.repo.path],
                env=variables | {"RAY_TMPDIR": short},
                cwd=home,
                timeout=400,
            )
            assert done.code == 0, done.out[-3000:] + done.err[-6000:]
            found: dict[str, Any] = json.loads(report.read_text())
            found["metric"] = daemon.metric("envfabric_leases")
            found["collected"] = daemon.metric("envfabric_gc_removed_total")
            found["verified"] = json.loads(fabric.command("verify", "--json", "--root", fabric.root).stdout)
            yield found
    finally:
        remove(folder)


def reasons(seen: dict[str, Any], when: str) -> dict[str, list[str]]:
    """Why each closure stayed, by the spec that had it."""
    of = {name: one for one, name in seen["names"].items()}
    return {of[name]: why for name, why in seen[when]["kept"].items()}


def test_environment_stays_while_an_actor_elsewhere_uses_it(seen: dict[str, Any]) -> None:
    """Its spec and generations are gone, and processes are not looked at: nothing but the lease keeps it, and the
    actor can still read what it had not read before."""
    assert seen["used"]["removed"] == []
    why = reasons(seen, "used")
    for one in ("ends", "dies"):
        (reason,) = why[one]
        assert reason.startswith("leased by ")
        assert seen["before"][one]["prefix"].endswith(f"/store/{seen['names'][one]}/.venv")
        assert seen["after"][one]["pid"] == seen["before"][one]["pid"]
        assert seen["after"][one]["file"].startswith(seen["before"][one]["prefix"])
    assert why["stays"] == ["served by wf/stays", "generation 1 of wf/stays"]
    assert seen["used"]["stored"] == sorted(seen["names"].values())


def test_status_says_who_uses_what_no_spec_serves(seen: dict[str, Any]) -> None:
    """The id that was asked for, the node, and its Ray."""
    told = {one["closure"]: one for one in seen["status"]["closures"]}
    assert set(told) == {seen["names"]["ends"], seen["names"]["dies"]}
    for one in ("ends", "dies"):
        (lease,) = told[seen["names"][one]]["leases"]
        assert told[seen["names"][one]]["serves"] == []
        assert lease["what"].startswith(f"wf/{one}, Ray 2.60.0 on ")
        assert lease["since"] <= lease["renewed"]


def test_doctor_finds_a_node_that_is_right(seen: dict[str, Any]) -> None:
    """Where two raylets run with the plugin. What it finds of all raylets is of this cluster alone in a PID namespace
    of its own, as root has. What it finds of the machine besides is no matter of Ray's."""
    found = {one["check"]: one for one in seen["doctor"]}
    raylet = found["raylet"]
    assert {found[name]["level"] for name in ("ray", "plugin", "driver hook", "root", "index")} == {"ok"}
    # What is served now has no ray any more.
    assert found["environments"]["level"] == "warning"
    if can_isolate():
        assert (raylet["level"], raylet["found"]) == ("ok", "2 on this machine, with the plugin")


def test_same_command_collects_it_once_the_actor_is_gone(seen: dict[str, Any]) -> None:
    """And only that one: the other actor's stays."""
    names = seen["names"]
    assert seen["ended"]["removed"] == [names["ends"]]
    assert seen["ended"]["stored"] == sorted([names["dies"], names["stays"]])
    assert set(reasons(seen, "ended")) == {"dies", "stays"}


def test_node_that_died_frees_it_after_the_ttl_and_not_before(seen: dict[str, Any]) -> None:
    """Nobody gives the lease of a killed raylet back, and nobody renews it: it is in force for its ttl after the last
    renewal, and then the command collects."""
    names = seen["names"]
    # On a machine so slow that the ttl was over by then, it says nothing.
    assert seen["died"]["removed"] == [] or seen["died"]["at"] > seen["died"]["ends"]
    assert seen["died"]["removed"] + seen["over"]["removed"] == [names["dies"]]
    assert seen["over"]["stored"] == [names["stays"]]


def test_nothing_is_left_and_the_figures_are_right(seen: dict[str, Any]) -> None:
    """No lease, two collected, and the store as it was sealed."""
    assert seen["left"] == {"ends": False, "dies": False}
    assert (seen["metric"], seen["collected"]) == (0, 2)
    assert seen["verified"]["clean"]
