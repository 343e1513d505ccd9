"""rollback and unpin: an earlier generation is served until the spec's content next changes, without a build."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from envfabric.store.files import Files
from envfabric.store.pins import Pin, Pins
from envfabric.store.root import Root
from orders.conftest import Held
from support.fabric import Fabric
from support.saved import Saved
from support.simple_index import SimpleIndex
from support.waiting import wait_for

KILLED_AT_THE_INDEX = """
import os, signal, sys
from pathlib import Path
from envfabric.service.daemon import Daemon
from envfabric.service.settings import load_settings
from envfabric.store.files import Files

def step(operation, path):
    if operation == "rename" and path.name == "index.json":
        os.kill(os.getpid(), signal.SIGKILL)

daemon = Daemon(load_settings(Path(sys.argv[1]), {}), files=Files(step))
daemon.carry_out(sys.argv[2], {"id": "wf/a"}, lambda: None)
"""


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory, packages: SimpleIndex) -> Saved:
    """Nothing is served, and what most of these tests ask for is in the store: they are not about builds."""

    def make(fabric: Fabric) -> None:
        fabric.settings["prune"] = {"share": 1.0}
        for number, wanted in enumerate(("alpha", "gamma==1.0", "gamma==2.0")):
            fabric.repo.spec(f"warm/n{number}", [wanted])
        fabric.repo.commit()
        fabric.run_once()
        fabric.repo.remove("warm")
        fabric.repo.commit()
        fabric.run_once()
        del fabric.settings["prune"]

    return Saved(tmp_path_factory.mktemp("orders"), packages, make)


@pytest.fixture
def fabric(warm: Saved) -> Fabric:
    return warm.again()


def lock_of(fabric: Fabric, number: int) -> bytes:
    return (fabric.root / f"generations/wf/a/{number}/uv.lock").read_bytes()


def lose(fabric: Fabric, name: str) -> None:
    """Removes a closure from the store."""
    Files().remove_tree(fabric.root / "store" / name)


def test_rollback_serves_the_generation_before(held: Held) -> None:
    """The earlier generation is served and ready, pinned, as it was: no build, no question to a package index."""
    first = held.generations("1.0")["environments"]["wf/a"]
    second = held.generations("2.0")["environments"]["wf/a"]
    lock, asked = lock_of(held.fabric, 1), held.fabric.packages.requests
    done = held.order("rollback", "wf/a")
    assert "pinned to generation 1" in done.stdout
    entry = held.entry()
    assert (entry["state"], entry["pinned"], entry["generation"]) == ("ready", True, 1)
    assert entry["serving"] == first["serving"] != second["serving"]
    assert (entry["tree"], entry["error"]) == (second["tree"], None)
    assert held.fabric.index()["complete"] is True
    assert held.version() == "1.0"
    assert os.readlink(held.fabric.root / "envs/wf/a") == "../../generations/wf/a/1"
    assert lock_of(held.fabric, 1) == lock
    assert held.fabric.packages.requests == asked
    assert list((held.fabric.root / "requests").iterdir()) == []


def test_unpin_serves_what_is_committed(held: Held) -> None:
    """Without a build and without uv the committed content is served again, under its number."""
    second = held.generations("1.0", "2.0")["environments"]["wf/a"]
    held.order("rollback", "wf/a")
    asked = held.fabric.packages.requests
    builds = held.daemon.metric("envfabric_builds_total") if held.daemon else 0
    hits = held.daemon.metric("envfabric_closure_hits_total") if held.daemon else 0
    held.order("unpin", "wf/a")
    assert held.entry() == second
    assert held.version() == "2.0"
    assert held.pins.all() == {}
    assert held.fabric.packages.requests == asked
    if held.daemon:
        assert held.daemon.metric("envfabric_builds_total") == builds
        assert held.daemon.metric("envfabric_closure_hits_total") == hits + 1


def test_rollback_to_a_number(held: Held, fabric: Fabric) -> None:
    """--to takes any retained generation, an older one and the newest; without it each goes one further back."""
    held.generations("1.0", "2.0")
    fabric.repo.spec("wf/a", ["gamma==2.0", "alpha"])
    held.make_true(fabric.repo.commit())
    for words, number in (
        (["--to", "1"], 1),
        (["--to", "3"], 3),
        ([], 2),
        ([], 1),
    ):
        held.order("rollback", "wf/a", *words)
        assert (held.entry()["generation"], held.entry()["pinned"]) == (number, True)
    told = held.order("rollback", "wf/a", expect=1).stderr
    assert "serves generation 1, and none before it is retained: 3, 2, 1" in told
    assert held.entry()["generation"] == 1


def test_pin_survives_what_others_commit(held: Held) -> None:
    """Commits that don't touch the spec, `run --once` and restarts leave it pinned."""
    held.generations("1.0", "2.0")
    held.order("rollback", "wf/a")
    held.fabric.repo.spec("wf/other", ["alpha"])
    index = held.make_true(held.fabric.repo.commit())
    pinned = index["environments"]["wf/a"]
    assert (pinned["generation"], pinned["pinned"], pinned["state"]) == (1, True, "ready")
    if held.daemon:
        held.daemon.kill()
    assert held.fabric.run_once()["environments"]["wf/a"] == pinned
    with held.fabric.daemon() as again:
        held.fabric.repo.remove("wf/other")
        index = again.wait_for_index(held.fabric.repo.commit())
        assert index["environments"] == {"wf/a": pinned}


@pytest.mark.parametrize("change", ["requirement", "README"])
def test_pin_ends_with_the_specs_next_change(held: Held, change: str) -> None:
    """Any change of the spec's own folder ends it: content is the git tree, a README in it counts."""
    held.generations("1.0", "2.0")
    held.order("rollback", "wf/a")
    if change == "README":
        held.fabric.repo.write("wf/a/README.md", "words")
    else:
        held.fabric.repo.spec("wf/a", ["gamma==2.0", "alpha"])
    entry = held.make_true(held.fabric.repo.commit())["environments"]["wf/a"]
    assert (entry["pinned"], entry["state"]) == (False, "ready")
    assert entry["generation"] == (2 if change == "README" else 3)
    assert held.pins.all() == {}
    assert "not pinned" in held.order("unpin", "wf/a", expect=1).stderr


def test_removed_spec_loses_its_pin(held: Held) -> None:
    """A spec that leaves and comes back with the same content serves what is committed."""
    held.fabric.repo.spec("wf/stays")
    held.generations("1.0", "2.0")
    held.order("rollback", "wf/a")
    held.fabric.repo.remove("wf/a")
    held.make_true(held.fabric.repo.commit())
    assert held.pins.all() == {}
    entry = held.make_true(held.fabric.repo.revert())["environments"]["wf/a"]
    assert (entry["generation"], entry["pinned"]) == (2, False)


def test_revert_takes_lock_and_digest_as_they_were(held: Held) -> None:
    """Content that is retained is published under its old number without a question to a package index."""
    first = held.generations("1.0")["environments"]["wf/a"]
    lock = lock_of(held.fabric, 1)
    held.generations("2.0")
    asked = held.fabric.packages.requests
    entry = held.make_true(held.fabric.repo.revert())["environments"]["wf/a"]
    assert (entry["generation"], entry["serving"]) == (1, first["serving"])
    assert lock_of(held.fabric, 1) == lock
    assert held.fabric.packages.requests == asked


def test_generation_whose_closure_is_gone_is_built_again(held: Held) -> None:
    """From its own pyproject.toml and lock, under the same digest and number."""
    first = held.generations("1.0")["environments"]["wf/a"]
    held.generations("2.0")
    lose(held.fabric, first["serving"])
    held.order("rollback", "wf/a")
    entry = held.entry()
    assert (entry["generation"], entry["serving"], entry["pinned"]) == (1, first["serving"], True)
    assert held.version() == "1.0"
    assert held.pins.all() == {"wf/a": Pin(1, entry["tree"])}


def test_generation_that_can_not_be_built_again(held: Held) -> None:
    """Its wheel is nowhere any more: told with exit code 1, what is served stays, and unpin ends it."""
    held.fabric.packages.add_wheel("vanished", "1.0")
    held.fabric.repo.spec("wf/a", ["vanished"])
    first = held.make_true(held.fabric.repo.commit())["environments"]["wf/a"]
    second = held.generations("2.0")["environments"]["wf/a"]
    lose(held.fabric, first["serving"])
    shutil.rmtree(held.fabric.root / "uv_cache")
    (held.fabric.root / "uv_cache").mkdir()
    held.fabric.packages.remove("vanished-1.0-py3-none-any.whl")
    told = held.order("rollback", "wf/a", expect=1).stderr
    assert "vanished" in told
    entry = held.entry()
    assert (entry["state"], entry["serving"]) == ("stale", second["serving"])
    assert held.version() == "2.0"
    held.order("unpin", "wf/a")
    assert held.entry() == second


def test_stale_spec_is_ready_under_a_pin(held: Held) -> None:
    """A spec whose newest content can't be built serves an earlier one on purpose: ready, and no error."""
    held.generations("1.0", "2.0")
    held.fabric.repo.spec("wf/a", ["no-such-thing"])
    held.make_true(held.fabric.repo.commit(), expect=1)
    assert held.entry()["state"] == "stale"
    held.order("rollback", "wf/a")
    entry = held.entry()
    assert (entry["state"], entry["generation"], entry["error"]) == ("ready", 1, None)
    assert "unresolvable" in held.order("unpin", "wf/a", expect=1).stderr
    assert (held.entry()["state"], held.entry()["pinned"]) == ("stale", False)


def test_suspended_spec_can_be_pinned(held: Held) -> None:
    """A pin goes before `suspend`; without it the spec keeps what it serves then."""
    held.generations("1.0", "2.0")
    held.fabric.repo.spec("wf/a", ["gamma==2.0"], table="[tool.envfabric]\nsuspend = true")
    held.make_true(held.fabric.repo.commit())
    held.order("rollback", "wf/a")
    entry = held.entry()
    assert (entry["generation"], entry["pinned"], entry["suspended"]) == (1, True, False)
    held.order("unpin", "wf/a")
    entry = held.entry()
    assert (entry["generation"], entry["pinned"], entry["suspended"]) == (1, False, True)


def test_what_can_not_be_rolled_back(held: Held) -> None:
    """Each refusal says what there is; nothing is changed; exit code 1, and 2 for wrong usage."""
    held.generations("1.0")
    before = held.fabric.index()
    assert "no spec 'wf/none'" in held.order("rollback", "wf/none", expect=1).stderr
    assert "no spec 'wf/none'" in held.order("unpin", "wf/none", expect=1).stderr
    assert "none before it is retained: 1" in held.order("rollback", "wf/a", expect=1).stderr
    assert "no generation 7; retained are: 1" in held.order("rollback", "wf/a", "--to", "7", expect=1).stderr
    assert "wf/a is not pinned" in held.order("unpin", "wf/a", expect=1).stderr
    held.order("rollback", "wf/a", "--to", "one", expect=2)
    held.order("rollback", expect=2)
    held.order("unpin", expect=2)
    assert held.fabric.index() == before
    assert held.pins.all() == {}


def test_folder_that_can_not_be_a_spec_is_not_rolled_back(held: Held) -> None:
    """It would wait for ever: the refusal says why, and what is served stays."""
    held.generations("1.0", "2.0")
    held.fabric.repo.spec("wf/A", ["alpha"])
    held.make_true(held.fabric.repo.commit(), expect=1)
    before = held.fabric.index()
    told = held.order("rollback", "wf/a", expect=1).stderr
    assert "differ only by case" in told
    assert held.fabric.index() == before


def test_nothing_published_yet(fabric: Fabric) -> None:
    """Before the first publication there is nothing to go back to: told, with exit code 1."""
    Files().remove_tree(fabric.root)
    fabric.repo.spec("wf/a", ["alpha"])
    fabric.repo.commit()
    fabric.init()
    done = fabric.command("rollback", "wf/a", "--config", fabric.configure())
    assert done.returncode == 1
    assert "nothing is published yet" in done.stderr
    (fabric.folder / "envfabric.toml").unlink()
    done = fabric.command("rollback", "wf/a")
    assert done.returncode == 2
    assert "is not given" in done.stderr
    done = fabric.command("rollback", "wf/a", "--root", fabric.root)
    assert done.returncode == 2
    assert "no daemon holds" in done.stderr
    assert "use --repo" in done.stderr


def test_asking_needs_no_repository(fabric: Fabric) -> None:
    """Where a daemon holds ROOT, ROOT is all that a command has to know."""
    for version in ("1.0", "2.0"):
        fabric.repo.spec("wf/a", [f"gamma=={version}"])
        fabric.repo.commit()
        fabric.run_once()
    with fabric.daemon():
        (fabric.folder / "envfabric.toml").unlink()
        done = fabric.command("rollback", "wf/a", "--root", fabric.root)
    assert done.returncode == 0, done.stderr
    assert fabric.entry("wf/a")["pinned"] is True


def test_rollback_during_the_build_of_what_is_committed(fabric: Fabric) -> None:
    """The order waits for no build, and the build's outcome does not end the pin."""
    fabric.repo.spec("wf/a", ["gamma==1.0"])
    first = fabric.repo.commit()
    with fabric.daemon() as daemon:
        before = daemon.wait_for_index(first)["environments"]["wf/a"]
        fabric.packages.add_wheel("slow-pin", "1.0")
        hold = fabric.packages.hold("slow-pin")
        try:
            fabric.repo.spec("wf/a", ["slow-pin"])
            commit = fabric.repo.commit()
            wait_for(lambda: fabric.index()["revision"] == commit, message="the commit is not seen")
            # Its files can be asked for once uv has the page: the step is under way in either case.
            wait_for(lambda: "slow-pin" in "".join(fabric.packages.requests), message="nothing is resolved")
            done = fabric.command("rollback", "wf/a", "--to", "1", "--config", fabric.configure())
            assert done.returncode == 0, done.stderr
            pinned = fabric.entry("wf/a")
            assert (pinned["state"], pinned["pinned"]) == ("ready", True)
            assert pinned["serving"] == before["serving"]
        finally:
            hold.set()
        # What follows is done after the held step: its outcome has come by then.
        fabric.repo.spec("wf/next", ["slow-pin"])
        index = daemon.wait_for_index(fabric.repo.commit())
        assert index["environments"]["wf/a"] == pinned
        done = fabric.command("unpin", "wf/a", "--config", fabric.configure())
        assert done.returncode == 0, done.stderr
        assert fabric.entry("wf/a")["serving"] == index["environments"]["wf/next"]["serving"]


@pytest.mark.parametrize("start", ["daemon", "once"])
@pytest.mark.parametrize("command", ["rollback", "unpin"])
def test_killed_between_pin_and_publication(fabric: Fabric, command: str, start: str) -> None:
    """kill -9 after the pin was written, before the index says so: the next start brings both together."""
    for version in ("1.0", "2.0"):
        fabric.repo.spec("wf/a", [f"gamma=={version}"])
        commit = fabric.repo.commit()
        fabric.run_once()
    if command == "unpin":
        assert fabric.command("rollback", "wf/a", "--config", fabric.configure()).returncode == 0
    before = fabric.index()
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_AT_THE_INDEX, str(fabric.configure()), command],
        env=fabric.environment,
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert fabric.index() == before
    wanted = (1, True) if command == "rollback" else (2, False)
    assert bool(Pins(Root(fabric.root), Files()).all()) is wanted[1]
    if start == "once":
        fabric.run_once()
    else:
        with fabric.daemon():
            wait_for(lambda: fabric.entry("wf/a")["generation"] == wanted[0], message="the index is not true")
    entry = fabric.entry("wf/a")
    assert (entry["generation"], entry["pinned"], entry["state"]) == (*wanted, "ready")
    assert fabric.index()["revision"] == commit


def test_pin_that_can_not_be_removed_costs_no_commit(fabric: Fabric, tmp_path: Path) -> None:
    """A spec that leaves while its pin can't be removed is tried again, with all that came in that commit."""
    fabric.settings |= {"interval": 0.2, "prune": {"share": 1.0}}
    fabric.repo.spec("wf/a", ["gamma==1.0"])
    first = fabric.repo.commit()
    pin = fabric.root / "state/pins/wf/a.json"
    with fabric.daemon() as daemon:
        daemon.wait_for_index(first)
        # A folder in the place of the pin: unlink fails, as root too.
        (pin / "in-the-way").mkdir(parents=True)
        fabric.repo.remove("wf/a")
        fabric.repo.spec("wf/b", ["alpha"])
        commit = fabric.repo.commit()
        wait_for(lambda: daemon.events("look failed") or None, message="nothing was noticed")
        shutil.rmtree(pin)
        assert sorted(daemon.wait_for_index(commit)["python"]) == ["wf/b"]
