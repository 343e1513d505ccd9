"""Bad input gets a clear error with a fitting reason, and costs nobody else anything."""

from collections.abc import Callable
from typing import NamedTuple

import pytest

from support.fabric import Fabric

GOOD = "good/one"


class Case(NamedTuple):
    """One wrong spec, and what the index must say of it."""

    spoil: Callable[[Fabric], object]
    reason: str
    words: tuple[str, ...]


def toml(text: str) -> Callable[[Fabric], object]:
    return lambda fabric: fabric.repo.write("bad/spec/pyproject.toml", text)


def project(rest: str, dependencies: str = "") -> Callable[[Fabric], object]:
    head = '[project]\nname = "bad"\nversion = "0.1.0"\nrequires-python = ">=3.11"\n'
    return toml(f"{head}dependencies = [{dependencies}]\n{rest}")


def stale_lock(fabric: Fabric) -> None:
    lock = 'version = 1\nrevision = 3\nrequires-python = ">=3.11"\n\n[[package]]\nname = "bad-spec"\n'
    lock += 'version = "0.1.0"\nsource = { virtual = "." }\n'
    fabric.repo.spec("bad/spec", ["alpha"], index=fabric.packages.url, lock=lock.encode())


CASES = {
    "TOML that does not parse": Case(
        toml("[project]\nname = \n"), "invalid-spec", ("bad/spec/pyproject.toml:2", "not valid TOML")
    ),
    "no project table": Case(toml("[tool.x]\ny = 1\n"), "invalid-spec", ("no [project] table", "add one")),
    "requirement that does not exist": Case(
        project("", '"no-such-thing"'), "unresolvable", ("no-such-thing", "not found")
    ),
    "requirements that exclude each other": Case(
        project("", '"gamma==1.0", "gamma==2.0"'), "unresolvable", ("gamma==1.0", "unsatisfiable")
    ),
    "requires-python that nothing meets": Case(
        toml('[project]\nname = "bad"\nversion = "1"\nrequires-python = ">=3.99"\ndependencies = []\n'),
        "unresolvable",
        (">=3.99", "there are: 3."),
    ),
    "stale committed lock": Case(stale_lock, "lock-stale", ("bad/spec/uv.lock", "uv lock", "commit")),
    "package without a wheel": Case(
        project("", '"only-source"'), "policy", ("only-source", "Source distributions are not built here")
    ),
    "path source": Case(
        project('[tool.uv.sources]\nalpha = { path = "../x" }\n', '"alpha"'),
        "policy",
        ("tool.uv.sources.alpha", "'path'", "index"),
    ),
    "dynamic metadata": Case(
        toml('[project]\nname = "bad"\ndynamic = ["version"]\n'), "policy", ("dynamic", "build backend")
    ),
    "unknown key of the spec's table": Case(
        project("[tool.envfabric]\nsuspended = true\n"),
        "invalid-spec",
        ("suspended", "did you mean 'suspend'"),
    ),
    "a spec for Ray without ray": Case(
        project("[tool.envfabric]\nray = true\n", '"alpha"'), "validation", ("has no ray", "hang")
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_spec(fabric: Fabric, name: str) -> None:
    """The wrong spec is failed with its reason, log and advice; the good one beside it is published."""
    case = CASES[name]
    fabric.repo.spec(GOOD, ["alpha"])
    case.spoil(fabric)
    fabric.repo.commit()
    index = fabric.run_once(expect=1)
    good, bad = index["environments"][GOOD], index["environments"]["bad/spec"]
    assert good["state"] == "ready"
    fabric.python(GOOD, "import alpha")
    assert bad["state"] == "failed"
    assert "bad/spec" not in index["python"]
    assert index["complete"] is True
    error = bad["error"]
    assert error["reason"] == case.reason, error
    for words in case.words:
        assert words in error["message"], error["message"]
    assert error["commit"] == index["revision"]
    assert error["retry_at"] is None
    log = (fabric.root / "failures/bad/spec.log").read_text()
    assert error["log"] == str(fabric.root / "failures/bad/spec.log")
    assert error["message"] in log


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("bad/-node/pyproject.toml", "can't be a spec id"),
        ("bad/no de/pyproject.toml", "can't be a spec id"),
        ("bad/pyproject.toml", "two folders below"),
        ("bad/node/deeper/pyproject.toml", "two folders below"),
    ],
)
def test_what_has_no_id_is_a_problem(fabric: Fabric, path: str, words: str) -> None:
    """An illegal id or a misplaced pyproject.toml is told of under `problems`; exit code 1."""
    fabric.repo.spec(GOOD, ["alpha"])
    fabric.repo.write(path, '[project]\nname = "x"\nversion = "1"\n')
    fabric.repo.commit()
    index = fabric.run_once(expect=1)
    assert list(index["environments"]) == [GOOD]
    assert index["environments"][GOOD]["state"] == "ready"
    (problem,) = index["problems"]
    assert (problem["path"], problem["reason"]) == (path, "invalid-spec")
    assert words in problem["message"]


def test_ids_that_differ_by_case_are_refused_together(fabric: Fabric) -> None:
    """Neither of them is built; the one that was served stays served."""
    fabric.repo.spec("wf/node", ["alpha"])
    fabric.repo.commit()
    fabric.run_once()
    fabric.repo.spec("wf/Node", ["gamma"])
    fabric.repo.commit()
    index = fabric.run_once(expect=1)
    states = {spec_id: entry["state"] for spec_id, entry in index["environments"].items()}
    assert states == {"wf/node": "stale", "wf/Node": "failed"}
    assert list(index["python"]) == ["wf/node"]
    for entry in index["environments"].values():
        assert entry["error"]["reason"] == "invalid-spec"
        assert "differ only by case" in entry["error"]["message"]


def test_spoiled_spec_serves_its_last_good_generation(fabric: Fabric) -> None:
    """A change that can't be built leaves what was served, as stale; mending it makes it ready."""
    fabric.repo.spec("wf/a", ["alpha"])
    first = fabric.repo.commit()
    with fabric.daemon() as daemon:
        before = daemon.wait_for_index(first)
        fabric.repo.spec("wf/a", ["no-such-thing"])
        index = daemon.wait_for_index(fabric.repo.commit())
        assert index["environments"]["wf/a"]["state"] == "stale"
        assert index["environments"]["wf/a"]["error"]["reason"] == "unresolvable"
        assert index["python"] == before["python"]
        assert daemon.metric("envfabric_build_failures_total", reason="unresolvable") == 1
        daemon.wait_for_metric("envfabric_specs", 1, state="stale")
        assert "unresolvable" in daemon.get("/")[1]
        fabric.repo.spec("wf/a", ["gamma"])
        index = daemon.wait_for_index(fabric.repo.commit())
        assert index["environments"]["wf/a"]["state"] == "ready"
        assert index["environments"]["wf/a"]["error"] is None
        daemon.wait_for_metric("envfabric_specs", 0, state="stale")


def test_suspended_spec_keeps_what_it_serves(fabric: Fabric) -> None:
    """`suspend = true` builds nothing, counts as ready where something is served, and ends with its removal."""
    fabric.repo.spec("wf/a", ["gamma==1.0"])
    fabric.repo.commit()
    before = fabric.run_once()
    fabric.repo.spec("wf/a", ["gamma==2.0"], table="[tool.envfabric]\nsuspend = true")
    fabric.repo.spec("wf/never", ["gamma==2.0"], table="[tool.envfabric]\nsuspend = true")
    fabric.repo.commit()
    index = fabric.run_once(expect=1)
    entry = index["environments"]["wf/a"]
    assert (entry["state"], entry["suspended"]) == ("ready", True)
    assert index["python"] == before["python"]
    assert index["environments"]["wf/never"]["state"] == "failed"
    fabric.repo.spec("wf/a", ["gamma==2.0"])
    fabric.repo.remove("wf/never")
    fabric.repo.commit()
    entry = fabric.run_once()["environments"]["wf/a"]
    assert (entry["state"], entry["suspended"], entry["generation"]) == ("ready", False, 2)


def test_unreachable_index_is_retried(fabric: Fabric) -> None:
    """What can pass is tried again by itself: the index says when."""
    fabric.settings["index"] = "http://127.0.0.1:9/simple"
    fabric.repo.spec("wf/a", ["alpha"])
    fabric.repo.commit()
    error = fabric.run_once(expect=1)["environments"]["wf/a"]["error"]
    assert error["reason"] == "fetch"
    assert error["retry_at"] > error["at"]
