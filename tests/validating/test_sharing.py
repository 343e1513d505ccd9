"""A validation belongs to a spec and its closure: it is run once for both, recorded, and part of no digest."""

import re
from pathlib import Path

import pytest

from envfabric.build.trial import trial_of
from envfabric.core.errors import Reason, SpecError
from envfabric.specs.policy import Policy
from envfabric.specs.spec import Spec, read_spec
from support.fabric import Fabric
from support.simple_index import SimpleIndex
from support.waiting import wait_for
from validating.conftest import table

TRUSTING = Policy(validation=frozenset({"minimal", "full", "custom"}))


def read(own: str, policy: Policy = TRUSTING, dependencies: str = '"b", "a"') -> Spec:
    text = f'[project]\nname = "x"\nversion = "1"\ndependencies = [{dependencies}]\n{own}'
    return read_spec("wf/a", "0" * 40, {"pyproject.toml": text.encode()}, policy)


def runs(marks: Path) -> int:
    """How often the command of `counted` was run."""
    path = marks / "runs"
    return path.read_text().count("x") if path.exists() else 0


def counted(marks: Path, kind: str = "custom") -> str:
    return table(kind, """command = ["sh", "-c", "printf x >> $MARKS/runs"]""", MARKS=str(marks))


def test_specs_of_one_closure_have_their_own_validations(trusting: Fabric, marks: Path) -> None:
    """Minimal, full and custom share one closure and its digest; what fails for one is served for the others."""
    trusting.repo.spec("wf/minimal", ["lacking"])
    trusting.repo.spec("wf/full", ["lacking"], table=table("full"))
    trusting.repo.spec("wf/other", ["lacking"], table=table("full", 'imports = ["json"]'))
    trusting.repo.spec(
        "wf/custom", ["lacking"], table=table("custom", 'imports = ["json"]', 'command = ["false"]')
    )
    trusting.repo.commit()
    with trusting.daemon() as daemon:
        entries = daemon.wait_for_index(trusting.repo.head)["environments"]
        assert {one: entry["state"] for one, entry in entries.items()} == {
            "wf/minimal": "ready",
            "wf/other": "ready",
            "wf/full": "failed",
            "wf/custom": "failed",
        }
        assert entries["wf/minimal"]["serving"] == entries["wf/other"]["serving"]
        assert "the import of lacking" in entries["wf/full"]["error"]["message"]
        assert "the command of tool.envfabric" in entries["wf/custom"]["error"]["message"]
        assert len(list((trusting.root / "store").iterdir())) == 1
        # Counted as what it is: the closure was built once.
        assert daemon.metric("envfabric_builds_total") == 1
        assert daemon.metric("envfabric_build_duration_seconds_count", phase="total") == 1
        assert daemon.metric("envfabric_build_duration_seconds_count", phase="validate") >= 2


def test_passed_once_is_not_run_again(trusting: Fabric, marks: Path) -> None:
    """A revert, another spec that asks for the same, and a restart run nothing; a failure is run again on `retry`."""
    trusting.repo.spec("wf/a", ["alpha"], table=counted(marks))
    trusting.repo.commit()
    with trusting.daemon() as daemon:
        first = daemon.wait_for_index(trusting.repo.head)["environments"]["wf/a"]
        assert (first["state"], runs(marks)) == ("ready", 1)
        trusting.repo.spec("wf/a", ["beta"], table=counted(marks))
        assert daemon.wait_for_index(trusting.repo.commit())["environments"]["wf/a"]["state"] == "ready"
        assert runs(marks) == 2
        commit = trusting.repo.revert()
        again = daemon.wait_for_index(commit)["environments"]["wf/a"]
        assert (again["serving"], again["generation"]) == (first["serving"], first["generation"])
        trusting.repo.spec("wf/b", ["alpha"], table=counted(marks))
        assert daemon.wait_for_index(trusting.repo.commit())["environments"]["wf/b"]["state"] == "ready"
        assert runs(marks) == 2
    trusting.repo.spec("wf/c", ["alpha"], table=counted(marks))
    failing = table(
        "custom", """command = ["sh", "-c", "printf x >> $MARKS/runs; exit 1"]""", MARKS=str(marks)
    )
    trusting.repo.spec("wf/d", ["alpha"], table=failing)
    trusting.repo.commit()
    with trusting.daemon() as daemon:
        entries = daemon.wait_for_index(trusting.repo.head)["environments"]
        assert (entries["wf/c"]["state"], entries["wf/d"]["state"], runs(marks)) == ("ready", "failed", 3)
        # A failure is final for the content, and not believed where somebody asks.
        assert entries["wf/d"]["error"]["retry_at"] is None
        trusting.command("retry", "wf/d", "--config", trusting.configure())
        wait_for(lambda: runs(marks) == 4, message="it is not run again")


def test_one_that_hangs_is_in_the_way_of_no_other(trusting: Fabric, marks: Path) -> None:
    """Of two specs with one closure the one is ready while the other's validation hangs."""
    trusting.repo.spec("wf/first", ["alpha"])
    trusting.repo.commit()
    with trusting.daemon() as daemon:
        daemon.wait_for_index(trusting.repo.head)
        trusting.repo.spec("wf/hangs", ["hanging"], table=table("full", MARKS=str(marks)))
        trusting.repo.commit()
        wait_for((marks / "hangs").exists, message="it does not begin")
        trusting.repo.spec("wf/other", ["hanging"], table=table("full", 'imports = ["json"]'))
        trusting.repo.spec("wf/minimal", ["hanging"])
        trusting.repo.commit()

        def ready() -> bool:
            entries = trusting.index()["environments"]
            return all(entries.get(one, {}).get("state") == "ready" for one in ("wf/other", "wf/minimal"))

        wait_for(ready, message="one waits for it")
        assert trusting.entry("wf/hangs")["state"] == "building"
        # One for both packages.
        assert daemon.metric("envfabric_builds_total") == 2


def test_a_build_that_fails_is_one_for_all_validations(trusting: Fabric) -> None:
    """Six specs with six validations of a closure that can't be built make one build of it, and all six are told."""
    own = [table("full", f'imports = ["json", "m{number}"]') for number in range(6)]
    index = trusting.packages.url
    folder = trusting.repo.spec("wf/n0", ["alpha"], name="same", table=own[0], index=index).parent
    trusting.lock(folder)
    lock = re.sub(rb"sha256:[0-9a-f]{64}", b"sha256:" + b"0" * 64, (folder / "uv.lock").read_bytes())
    for number, one in enumerate(own):
        trusting.repo.spec(f"wf/n{number}", ["alpha"], name="same", table=one, index=index, lock=lock)
    trusting.repo.commit()
    with trusting.daemon() as daemon:
        entries = daemon.wait_for_index(trusting.repo.head)["environments"]
        told = [entry["error"] for entry in entries.values()]
        assert {one["reason"] for one in told} == {"build-failed"}, told
        assert daemon.metric("envfabric_builds_total") == 1


def test_refresh_to_what_fails_keeps_what_is_served(trusting: Fabric, own_packages: SimpleIndex) -> None:
    """An order that finds a newer version which does not import is answered with that; the old one stays served."""
    trusting.packages = own_packages
    trusting.settings["policy"]["indexes"] = [own_packages.url]
    trusting.repo.spec("wf/a", ["alpha"], table=table("full"))
    trusting.repo.commit()
    first = trusting.run_once()["environments"]["wf/a"]
    own_packages.add_wheel("alpha", "2.0", modules={"alpha.py": "import not_there\n"})
    done = trusting.command("refresh", "wf/a", "--config", trusting.configure())
    assert done.returncode == 1
    assert "the import of alpha fails" in done.stdout + done.stderr
    now = trusting.entry("wf/a")
    assert (now["serving"], now["generation"]) == (first["serving"], first["generation"])


@pytest.mark.parametrize("kind", ["full", "custom"])
def test_refused_unless_the_settings_allow_it(kind: str) -> None:
    """The error has file and line, what is allowed, whom it would trust, and the setting; and each kind is its own."""
    own = table(kind, 'command = ["true"]')
    with pytest.raises(SpecError) as caught:
        read(own, Policy(validation=frozenset({"minimal"} | ({"full", "custom"} - {kind}))))
    assert caught.value.reason is Reason.POLICY
    for words in (
        "wf/a/pyproject.toml:6: ",
        "policy.validation",
        "trusts whoever commits",
        "Allowed are: ",
        "minimal",
    ):
        assert words in caught.value.message
    assert read(own).table.validation == kind


@pytest.mark.parametrize("own", ["", "command = []", 'command = [" "]'])
def test_custom_needs_a_command(own: str) -> None:
    """`custom` without anything to run is an error that shows what to add."""
    with pytest.raises(SpecError) as caught:
        read(table("custom", own))
    assert caught.value.reason is Reason.INVALID_SPEC
    assert 'command = ["python", "-c", "import torch"]' in caught.value.message


def test_equal_validations_have_equal_keys() -> None:
    """The key is of what is run: order of the requirements, and a command that is not run, change nothing."""

    def key(own: str, dependencies: str = '"b", "a"') -> str:
        trial = trial_of(read(own, dependencies=dependencies))
        assert trial is not None
        return trial.key

    assert trial_of(read("")) is None
    full = key(table("full"))
    assert full == key(table("full", 'command = ["true"]'), '"a", "b>1"')
    others = [
        table("full", 'imports = ["a"]'),
        table("full", A="1"),
        table("custom", 'command = ["true"]'),
        table("custom", 'command = ["false"]'),
    ]
    assert len({full, *map(key, others)}) == 5
    assert key(table("full", 'imports = ["a"]')) == key(table("full", 'imports = ["a"]'), '"c"')
