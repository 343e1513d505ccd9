"""`status ID` and `--compare`: what a spec's closure is, who shares it, and why two specs do not share one."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from envfabric.cli.compare import differences
from envfabric.store.files import Files
from support.fabric import Fabric
from support.simple_index import SimpleIndex
from support.spec_repo import SpecRepo


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, packages: SimpleIndex) -> Iterator[Fabric]:
    """Specs that share a closure, that differ, that are stale and that serve nothing."""
    folder = tmp_path_factory.mktemp("status")
    fabric = Fabric(folder, packages, SpecRepo(folder / "specs"))
    fabric.repo.spec("wf/stale", ["alpha"])
    fabric.repo.commit()
    fabric.run_once()
    fabric.repo.spec("wf/stale", ["no-such-thing"])
    fabric.repo.spec("wf/one", ["beta", "gamma==1.0"])
    fabric.repo.spec("wf/same", ["gamma==1.0", "beta", "alpha"])
    fabric.repo.spec("wf/newer", ["beta", "gamma==2.0"])
    fabric.repo.spec("wf/less", ["alpha"])
    fabric.repo.spec("wf/failed", ["no-such-thing"])
    fabric.repo.commit()
    fabric.run_once(expect=1)
    yield fabric


def status(fabric: Fabric, *words: str, expect: int = 0) -> str:
    done = fabric.command("status", *words, "--root", fabric.root)
    assert done.returncode == expect, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def compared(fabric: Fabric, one: str, other: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(status(fabric, one, "--compare", other, "--json"))
    return found


def test_status_tells_of_the_closure(served: Fabric) -> None:
    """Its name, how many distributions, how many files were linked and copied, and who else has it."""
    closure = json.loads(status(served, "wf/one", "--json"))["closure"]
    metadata = json.loads((served.root / "store" / closure["name"] / "metadata.json").read_bytes())
    assert closure == {
        "name": served.entry("wf/one")["serving"],
        "shared_with": ["wf/same"],
        "distributions": 3,
        "linked": metadata["linked"],
        "copied": 0,
    }
    shown = status(served, "wf/one")
    assert closure["name"] in shown
    assert f"{metadata['linked']} linked, 0 copied" in shown
    assert "wf/same" in shown
    assert "no other spec" in status(served, "wf/newer")
    assert json.loads(status(served, "wf/failed", "--json"))["closure"] is None


def test_equal_specs_are_the_same_closure(served: Fabric) -> None:
    """Said in one line; order and project names are no difference."""
    told = status(served, "wf/one", "--compare", "wf/same")
    assert told.splitlines() == [
        f"wf/one and wf/same are the same closure: {served.entry('wf/one')['serving']}, 3 distributions"
    ]
    found = compared(served, "wf/one", "wf/same")
    assert (found["same"], found["differences"]) == (True, [])


def test_comparison_names_each_difference(served: Fabric) -> None:
    """Another version, and what only one of them has; the other way round with the sides exchanged."""
    assert compared(served, "wf/one", "wf/newer")["differences"] == [
        {"what": "distribution", "key": "gamma", "one": "1.0", "other": "2.0"}
    ]
    assert compared(served, "wf/less", "wf/newer")["differences"] == [
        {"what": "distribution", "key": "beta", "one": None, "other": "1.0"},
        {"what": "distribution", "key": "gamma", "one": None, "other": "2.0"},
    ]
    lines = status(served, "wf/newer", "--compare", "wf/less").splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["DIFFERS", "wf/newer", "wf/less"],
        ["distribution", "beta", "1.0", "-"],
        ["distribution", "gamma", "2.0", "-"],
    ]
    assert lines[3].startswith("2 differences: ")


def test_comparison_of_what_is_served(served: Fabric) -> None:
    """A stale spec is compared by what it serves, and that is said."""
    told = status(served, "wf/stale", "--compare", "wf/less").splitlines()
    assert told[0] == "wf/stale is stale: what it serves is compared, not what it asks for"
    assert "are the same closure" in told[1]


def test_what_can_not_be_compared(served: Fabric) -> None:
    """A spec that serves nothing, an unknown one and a missing ID are told apart."""
    assert "serves nothing that could be compared" in status(
        served, "wf/one", "--compare", "wf/failed", expect=1
    )
    assert "no environment 'wf/none'" in status(served, "wf/one", "--compare", "wf/none", expect=1)
    assert "--compare needs an ID" in status(served, "--compare", "wf/one", expect=2)


def test_spoilt_metadata_are_told(fabric: Fabric) -> None:
    """`status ID` still shows what the index says; a comparison names the file."""
    fabric.repo.spec("wf/a", ["alpha"])
    fabric.repo.spec("wf/b", ["gamma"])
    fabric.repo.commit()
    closure = fabric.root / "store" / fabric.run_once()["environments"]["wf/a"]["serving"]
    (closure / "metadata.json").chmod(0o644)
    (closure / "metadata.json").write_text("{}")
    shown = status(fabric, "wf/a")
    assert "its metadata.json can't be read" in shown
    assert fabric.index()["python"]["wf/a"] in shown
    told = status(fabric, "wf/b", "--compare", "wf/a", expect=1)
    assert f"metadata.json of {closure.name}" in told
    assert "envfabric verify" in told


def test_closure_built_again_has_the_same_inputs(fabric: Fabric) -> None:
    """`<digest>-2` differs from `<digest>` by nothing but its name, and that is said."""
    for node, version in (("a", "1.0"), ("b", "2.0")):
        fabric.repo.spec(f"wf/{node}", [f"gamma=={version}"])
    fabric.repo.commit()
    served = fabric.run_once()["environments"]
    name = served["wf/a"]["serving"]
    again = fabric.root / "store" / f"{name}-2"
    again.mkdir()
    (again / "metadata.json").write_bytes((fabric.root / "store" / name / "metadata.json").read_bytes())
    index = fabric.index()
    index["environments"]["wf/b"]["serving"] = again.name
    Files().write_atomic(fabric.root / "index.json", json.dumps(index).encode())
    assert "one is the other built again" in status(fabric, "wf/a", "--compare", "wf/b")
    found = compared(fabric, "wf/a", "wf/b")
    assert (found["same"], found["built_again"], found["differences"]) == (False, True, [])


def inputs(**more: Any) -> dict[str, Any]:
    """A digest's inputs."""
    python = {"path": "/p/bin/python3.11", "version": "3.11.7", "implementation": "cpython", "abi": "cp311"}
    return {
        "schema": 1,
        "interpreter": python,
        "platform": "linux-x86_64",
        "libc": "glibc 2.36",
        "distributions": [{"name": "a", "version": "1", "wheel": "a-1-py3-none-any.whl", "hash": "sha256:1"}],
        **more,
    }


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({}, []),
        ({"platform": "linux-aarch64"}, [("platform", None, "linux-x86_64", "linux-aarch64")]),
        ({"libc": "musl 1.2"}, [("libc", None, "glibc 2.36", "musl 1.2")]),
        (
            {"interpreter": {**inputs()["interpreter"], "version": "3.11.9"}},
            [("interpreter", "version", "3.11.7", "3.11.9")],
        ),
        ({"options": {"no-binary": True}}, [("options", "no-binary", None, True)]),
        (
            {"distributions": [{**inputs()["distributions"][0], "hash": "sha256:2"}]},
            [("wheel", "a", "a-1-py3-none-any.whl sha256:1", "a-1-py3-none-any.whl sha256:2")],
        ),
        ({"distributions": []}, [("distribution", "a", "1", None)]),
    ],
    ids=["nothing", "platform", "libc", "interpreter", "option", "wheel", "absent"],
)
def test_every_input_of_the_digest_is_compared(
    other: dict[str, Any], expected: list[tuple[object, ...]]
) -> None:
    """Whatever makes another closure is named, and nothing else."""
    found = differences(inputs(), inputs(**other))
    assert [tuple(row.values()) for row in found] == expected


def test_status_changes_nothing(served: Fabric) -> None:
    """Neither command writes on ROOT."""
    before = {path: path.lstat().st_mtime_ns for path in served.root.rglob("*")}
    status(served, "wf/one")
    status(served, "wf/one", "--compare", "wf/newer")
    assert {path: path.lstat().st_mtime_ns for path in served.root.rglob("*")} == before
