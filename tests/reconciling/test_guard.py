"""A revision that removes too much, or comes of another history, is held back; what was published stays."""

import subprocess
from typing import Any

import pytest

from support.fabric import Fabric, RunningDaemon
from support.waiting import wait_for

SPECS = [f"wf/n{number:02}" for number in range(24)]


def publish(fabric: Fabric, daemon: RunningDaemon, ids: list[str]) -> dict[str, Any]:
    for spec_id in ids:
        fabric.repo.spec(spec_id)
    return daemon.wait_for_index(fabric.repo.commit("all of them"))


def remove(fabric: Fabric, ids: list[str]) -> str:
    for spec_id in ids:
        fabric.repo.remove(spec_id)
    return fabric.repo.commit(f"removes {len(ids)}")


def wait_until_held(fabric: Fabric, commit: str) -> dict[str, Any]:
    """The index once it says that the commit is held back."""

    def held() -> dict[str, Any] | None:
        index = fabric.index()
        told = [one for one in index["problems"] if commit[:12] in one["message"]]
        return index if told else None

    return wait_for(held, timeout=90, message=f"{commit} is not held back")


def order(fabric: Fabric, *words: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = fabric.command(*words, "--config", fabric.configure())
    assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize("removed", [12, len(SPECS)], ids=["half", "all"])
def test_held_back_until_confirmed(fabric: Fabric, removed: int) -> None:
    """Half of the specs deleted, or all: nothing is taken away, the index, the metrics and the log say so once, and
    `confirm` has it adopted."""
    fabric.settings["interval"] = 0.2
    fabric.repo.commit("nothing yet")
    with fabric.daemon() as daemon:
        before = publish(fabric, daemon, SPECS)
        failures = daemon.metric("envfabric_reconcile_failures_total")
        reconciles = daemon.metric("envfabric_reconciles_total")
        commit = remove(fabric, SPECS[:removed])
        index = wait_until_held(fabric, commit)
        assert (index["revision"], index["python"]) == (before["revision"], before["python"])
        assert index["environments"] == before["environments"]
        problem = index["problems"][0]
        assert (problem["path"], problem["reason"]) == (".", "policy")
        assert f"removes {removed} of 24 specs" in problem["message"]
        assert f"envfabric confirm {commit[:12]}" in problem["message"]
        daemon.wait_for_metric("envfabric_revision_held_back", 1)
        success = daemon.metric("envfabric_reconcile_last_success_timestamp_seconds")
        # An order makes the loop go round: the looks in between add nothing.
        assert "nothing is held back" not in order(fabric, "confirm", "0000000", expect=1).stderr
        assert daemon.metric("envfabric_reconcile_failures_total") == failures + 1
        assert daemon.metric("envfabric_reconciles_total") == reconciles + 1
        assert daemon.metric("envfabric_reconcile_last_success_timestamp_seconds") == success
        assert len(daemon.events("revision held back")) == 1
        assert fabric.index()["sequence"] == index["sequence"]
        assert "12 specs" not in order(fabric, "confirm", commit[:7]).stderr
        index = daemon.wait_for_index(commit)
        assert sorted(index["environments"]) == SPECS[removed:]
        assert index["problems"] == []
        daemon.wait_for_metric("envfabric_revision_held_back", 0)
        assert daemon.metric("envfabric_reconcile_last_success_timestamp_seconds") > success
        daemon.wait_for_metric("envfabric_specs", 24 - removed, state="ready")


def test_a_tenth_is_removed(fabric: Fabric) -> None:
    """What removes less than the share, or less than the number, is adopted without a word; of few specs, too."""
    fabric.repo.commit("nothing yet")
    with fabric.daemon() as daemon:
        publish(fabric, daemon, SPECS)
        index = daemon.wait_for_index(remove(fabric, SPECS[:10]))
        assert sorted(index["environments"]) == SPECS[10:]
        assert daemon.metric("envfabric_revision_held_back") == 0


def test_later_commit_brings_them_back(fabric: Fabric) -> None:
    """A commit that restores what went is adopted as any other, with no build, and nothing is held back any more."""
    fabric.repo.commit("nothing yet")
    with fabric.daemon() as daemon:
        before = publish(fabric, daemon, SPECS)
        builds = daemon.metric("envfabric_builds_total")
        wait_until_held(fabric, remove(fabric, SPECS[:12]))
        commit = fabric.repo.revert()
        index = daemon.wait_for_index(commit)
        assert index["environments"] == before["environments"]
        wait_for(lambda: not fabric.index()["problems"], message="it still says that something is held back")
        daemon.wait_for_metric("envfabric_revision_held_back", 0)
        assert daemon.metric("envfabric_builds_total") == builds


def test_restart_while_held_back(fabric: Fabric) -> None:
    """Another daemon, and `run --once` with exit code 1, hold it back as well; the specs in force are looked after."""
    fabric.repo.commit("nothing yet")
    with fabric.daemon() as daemon:
        publish(fabric, daemon, SPECS)
        commit = remove(fabric, SPECS)
        held = wait_until_held(fabric, commit)
        daemon.kill()
    assert fabric.run_once(expect=1) == held
    lost = held["environments"][SPECS[0]]["serving"]
    # Sealed: its owner has to take the seal away first.
    subprocess.run(["chmod", "-R", "u+w", str(fabric.root / "store" / lost)], check=True)
    subprocess.run(["rm", "-rf", str(fabric.root / "store" / lost)], check=True)
    with fabric.daemon() as daemon:
        daemon.wait_for_metric("envfabric_revision_held_back", 1)
        daemon.wait_for_metric("envfabric_builds_total", 1)
        wait_for(lambda: len(fabric.index()["python"]) == 24, message="what was lost is not served again")
        daemon.wait_for_metric("envfabric_specs", 24, state="ready")
        index = fabric.index()
        assert index["problems"] == held["problems"]
        assert index["revision"] == held["revision"]
        fabric.python(SPECS[0], "")


def test_switched_off(fabric: Fabric) -> None:
    """With prune.share = 1 a revision may remove them all."""
    fabric.settings["prune"] = {"share": 1.0}
    fabric.repo.spec("wf/a")
    fabric.repo.commit()
    fabric.run_once()
    fabric.repo.remove("wf/a")
    fabric.repo.commit()
    assert fabric.run_once()["environments"] == {}


def test_confirmed_by_setting(fabric: Fabric) -> None:
    """prune.confirmed names the one commit that may remove what it removes."""
    fabric.repo.spec("wf/a")
    fabric.repo.commit()
    fabric.run_once()
    fabric.repo.remove("wf/a")
    commit = fabric.repo.commit("the empty tree")
    assert sorted(fabric.run_once(expect=1)["environments"]) == ["wf/a"]
    # Too few digits to name one: told, instead of confirming nothing without a word.
    fabric.settings["prune"] = {"confirmed": commit[:6]}
    assert sorted(fabric.run_once(expect=2)["environments"]) == ["wf/a"]
    fabric.settings["prune"] = {"confirmed": commit[:7]}
    assert fabric.run_once()["environments"] == {}


def test_confirmed_in_place_of_a_daemon(fabric: Fabric) -> None:
    """Where no daemon runs, the command finds out itself what is held back, and adopts only what was named."""
    fabric.repo.spec("wf/a")
    fabric.repo.commit()
    fabric.run_once()
    assert "no revision is held back" in order(fabric, "confirm", "0" * 40, expect=1).stderr
    fabric.repo.remove("wf/a")
    commit = fabric.repo.commit("the empty tree")
    told = order(fabric, "confirm", "1234567", expect=1).stderr
    assert "1234567 is not what is held back" in told
    assert commit[:12] in told
    assert "needs a commit" in order(fabric, "confirm", commit[:6], expect=1).stderr
    assert "1 of 1 specs" in order(fabric, "confirm", commit[:12].upper()).stdout
    index = fabric.index()
    assert (index["revision"], index["environments"], index["problems"]) == (commit, {}, [])


def test_orders_go_on_meanwhile(fabric: Fabric) -> None:
    """What is in force can be rolled back and brought back while another revision is held back."""
    fabric.repo.commit("nothing yet")
    with fabric.daemon() as daemon:
        fabric.repo.spec("wf/a", ["gamma==1.0"])
        daemon.wait_for_index(fabric.repo.commit())
        fabric.repo.spec("wf/a", ["gamma==2.0"])
        daemon.wait_for_index(fabric.repo.commit())
        commit = remove(fabric, ["wf/a"])
        wait_until_held(fabric, commit)
        order(fabric, "rollback", "wf/a")
        entry = fabric.entry("wf/a")
        assert (entry["generation"], entry["pinned"], entry["state"]) == (1, True, "ready")
        order(fabric, "unpin", "wf/a")
        assert fabric.entry("wf/a")["generation"] == 2
        assert commit[:12] in fabric.index()["problems"][0]["message"]


def test_rewritten_history(fabric: Fabric) -> None:
    """A branch that begins with another root commit is another repository's: held back, with the flag that
    hands ROOT over."""
    fabric.repo.spec("wf/a")
    fabric.repo.commit()
    with fabric.daemon() as daemon:
        before = daemon.wait_for_index(fabric.repo.head)
        fabric.repo.git("checkout", "--quiet", "--orphan", "other")
        fabric.repo.spec("wf/b")
        commit = fabric.repo.commit("another beginning")
        fabric.repo.git("branch", "--force", "main", commit)
        fabric.repo.git("checkout", "--quiet", "main")
        index = wait_until_held(fabric, commit)
        assert index["environments"] == before["environments"]
        assert "--adopt" in index["problems"][0]["message"]
        # The command can't begin on such a repository itself; the daemon that runs says what it knows.
        assert "--adopt" in order(fabric, "confirm", commit, expect=1).stderr
        assert "gc" not in order(fabric, "gc").stderr
        daemon.wait_for_metric("envfabric_revision_held_back", 1)
    done = fabric.command("run", "--once", "--adopt", "--config", fabric.configure())
    assert done.returncode == 0, done.stderr
    assert fabric.index()["revision"] == commit


def test_spec_folder_that_goes(fabric: Fabric) -> None:
    """A commit that removes the folder with the specs removes them all: held back, by a restart too, and confirmed."""
    fabric.settings["path"] = "envs"
    fabric.repo.spec_dir = "envs"
    fabric.repo.write("README.md", "specs\n")
    fabric.repo.spec("wf/a")
    fabric.repo.commit()
    with fabric.daemon() as daemon:
        before = daemon.wait_for_index(fabric.repo.head)
        fabric.repo.remove("envs")
        commit = fabric.repo.commit("no specs")
        index = wait_until_held(fabric, commit)
        assert index["environments"] == before["environments"]
        assert [one["path"] for one in index["problems"]] == ["envs"]
    assert fabric.run_once(expect=1)["environments"] == before["environments"]
    order(fabric, "confirm", commit)
    assert (fabric.index()["revision"], fabric.index()["environments"]) == (commit, {})


def test_adopt_confirms_the_first_revision(fabric: Fabric) -> None:
    """Who hands ROOT over to another repository wants its specs, and not those of the one before."""
    fabric.repo.spec("wf/a")
    fabric.repo.commit()
    fabric.run_once()
    fabric.repo.git("checkout", "--quiet", "--orphan", "other")
    fabric.repo.remove("wf/a")
    fabric.repo.spec("wf/b")
    commit = fabric.repo.commit("another beginning")
    index = fabric.run_once("--adopt")
    assert (index["revision"], sorted(index["environments"])) == (commit, ["wf/b"])
