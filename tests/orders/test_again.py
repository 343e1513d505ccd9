"""retry and refresh: a spec's unchanged content is looked at once more, and what is served stays where that fails."""

import os

import pytest

from orders.conftest import Held
from support.simple_index import SimpleIndex
from support.waiting import wait_for


@pytest.fixture
def packages(own_packages: SimpleIndex) -> SimpleIndex:
    """An index of this test's own: its releases come and go."""
    own_packages.add_wheel("gamma", "1.0")
    return own_packages


def make(held: Held, *requirements: str, table: str = "", expect: int = 0) -> None:
    held.fabric.repo.spec("wf/a", list(requirements), table=table)
    held.make_true(held.fabric.repo.commit(), expect=expect)


def test_retry_after_the_index_was_mended(held: Held, packages: SimpleIndex) -> None:
    """A failure that is not tried again by itself is tried by the order, and its success is published by the answer;
    until then the order says why it failed again."""
    make(held, "delta", expect=1)
    assert held.entry()["error"]["reason"] == "unresolvable"
    told = held.order("retry", "wf/a", expect=1).stderr
    assert "wf/a failed again: unresolvable" in told
    packages.add_wheel("delta", "1.0")
    assert "serves generation 1" in held.order("retry", "wf/a").stdout
    entry = held.entry()
    assert (entry["state"], entry["error"], entry["generation"]) == ("ready", None, 1)


def test_retry_of_a_build_that_failed(held: Held, packages: SimpleIndex) -> None:
    """A wheel that could not be installed was replaced under its own name: the order does not go by what was resolved
    before."""
    wheel = packages.add_wheel("delta", "1.0")
    good = wheel.read_bytes()
    wheel.write_bytes(good[: len(good) // 2])
    make(held, "delta", expect=1)
    assert held.entry()["state"] == "failed"
    wheel.write_bytes(good)
    held.order("retry", "wf/a")
    assert held.entry()["state"] == "ready"
    if held.daemon:
        held.daemon.wait_for_metric("envfabric_specs", 1, state="ready")
        held.daemon.wait_for_metric("envfabric_specs", 0, state="failed")


def test_refused(held: Held, packages: SimpleIndex) -> None:
    """An order that makes no sense says why, and changes nothing: nothing failed, pinned, suspended, a committed lock,
    no such spec."""
    make(held, "gamma==1.0")
    packages.add_wheel("gamma", "2.0")
    assert "nothing failed" in held.order("retry", "wf/a", expect=1).stderr
    assert "no spec 'wf/none'" in held.order("refresh", "wf/none", expect=1).stderr
    make(held, "gamma==2.0")
    held.order("rollback", "wf/a")
    for command in ("retry", "refresh"):
        assert "is pinned to generation 1" in held.order(command, "wf/a", expect=1).stderr
    make(held, "gamma==1.0", table="[tool.envfabric]\nsuspend = true")
    for command in ("retry", "refresh"):
        assert "remove suspend" in held.order(command, "wf/a", expect=1).stderr
    path = held.fabric.repo.spec("wf/a", ["gamma"], index=packages.url)
    held.fabric.lock(path.parent)
    held.make_true(held.fabric.repo.commit())
    before = held.fabric.index()
    assert "uv lock --upgrade" in held.order("refresh", "wf/a", expect=1).stderr
    assert held.fabric.index() == before


def test_refresh_takes_the_newest(held: Held, packages: SimpleIndex) -> None:
    """A new release is taken by the order and by nothing before it; the generation before stays, a revert of the
    content serves the newer one, and another order finds nothing newer."""
    make(held, "gamma", "alpha")
    packages.add_wheel("gamma", "2.0")
    make(held, "gamma", "alpha", table="# a word\n")
    assert held.version() == "1.0"
    number = held.entry()["generation"]
    told = held.order("refresh", "wf/a").stdout
    assert f"generation {number + 1} with 1 other version" in told
    entry = held.entry()
    assert (entry["state"], entry["generation"]) == ("ready", number + 1)
    assert held.version() == "2.0"
    lock = (held.fabric.root / f"generations/wf/a/{number + 1}/uv.lock").read_bytes()
    told = held.order("refresh", "wf/a").stdout
    assert f"nothing newer; it still serves generation {number + 1}" in told
    assert held.entry() == entry
    make(held, "alpha")
    assert held.entry()["generation"] == number + 2
    make(held, "gamma", "alpha", table="# a word\n")
    assert held.entry()["generation"] == number + 1
    assert (held.fabric.root / f"generations/wf/a/{number + 1}/uv.lock").read_bytes() == lock
    held.order("rollback", "wf/a", "--to", str(number))
    assert held.version() == "1.0"


def test_refresh_asks_the_index(held: Held, packages: SimpleIndex) -> None:
    """A release is found although uv may believe for hours what the index said before it."""
    packages.pages_fresh_for = 36_000
    make(held, "gamma")
    packages.add_wheel("gamma", "2.0")
    make(held, "gamma>=1")
    assert held.version() == "1.0"
    held.order("refresh", "wf/a")
    assert held.version() == "2.0"


def test_refresh_survives_a_restart(held: Held, packages: SimpleIndex) -> None:
    """Of two generations of the same content the next start serves the newer, also where the index was lost."""
    make(held, "gamma")
    packages.add_wheel("gamma", "2.0")
    held.order("refresh", "wf/a")
    if held.daemon:
        held.daemon.kill()
    assert held.fabric.run_once()["environments"]["wf/a"]["generation"] == 2
    os.unlink(held.fabric.root / "index.json")
    assert held.fabric.run_once()["environments"]["wf/a"]["generation"] == 2


@pytest.mark.parametrize("how", ["unresolvable", "build"])
def test_refresh_that_fails(held: Held, packages: SimpleIndex, how: str) -> None:
    """What was served stays served and ready, for the committed content is true as before; the answer says why."""
    make(held, "gamma")
    before = held.entry()
    if how == "build":
        wheel = packages.add_wheel("gamma", "2.0")
        wheel.write_bytes(wheel.read_bytes()[:-200])
    else:
        packages.remove("gamma-1.0-py3-none-any.whl")
    told = held.order("refresh", "wf/a", expect=1).stderr
    assert "wf/a is not refreshed: " in told
    assert "still serves generation 1" in told
    assert held.entry() == before
    assert held.version() == "1.0"
    if held.daemon:
        held.daemon.wait_for_metric("envfabric_specs", 1, state="ready")
        assert wait_for(lambda: held.daemon and held.daemon.events("not refreshed"), message="not logged")
