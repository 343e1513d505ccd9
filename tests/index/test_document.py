"""index.json as the contract has it: keys, types, and nothing that is not so."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envfabric.client.index import environment, read_index
from envfabric.core.errors import Reason
from envfabric.index.document import Entry, Failure, Index, State, from_json, to_json
from envfabric.specs.tree import Problem
from envfabric.store.root import Root

ROOT = Root(Path("/mnt/nas"))
AT = "2025-01-01T00:00:00.000Z"
READY = Entry(
    state="ready",
    tree="t" * 40,
    commit="c" * 40,
    serving="d" * 64,
    generation=3,
    built_at=AT,
    python_version="3.11.7",
    ray_version="2.60.0",
    runtime_env={"env_vars": {"A": "ä"}, "working_dir": "s3://b/c.zip", "excludes": ["*.log"]},
)
FAILURE = Failure(Reason.FETCH, "an index is down; wait.", "/mnt/nas/failures/wf/b.log", "c" * 40, AT, AT)
STALE = replace(READY, state="stale", error=FAILURE)
FAILED = Entry("failed", "t", "c", error=Failure(Reason.POLICY, "no path sources", None, "c", AT))
PENDING = Entry("pending", "t", "c")
FULL = Index(
    revision="c" * 40,
    sequence=42,
    published_at=AT,
    entries={"wf/b": STALE, "wf/a": READY, "wf/c": FAILED, "wf/d": PENDING},
    problems=(Problem("wf/pyproject.toml", Reason.INVALID_SPEC, "misplaced"),),
    root="/mnt/nas",
)


def document(index: Index) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(to_json(index, ROOT))
    return content


def test_document_has_exactly_the_contracts_keys() -> None:
    """Every key of the contract is there with its type, and no other."""
    content = document(FULL)
    assert {name: type(value) for name, value in content.items()} == {
        "schema": int,
        "revision": str,
        "complete": bool,
        "published_at": str,
        "sequence": int,
        "root": str,
        "problems": list,
        "python": dict,
        "environments": dict,
    }
    assert content["schema"] == 1
    assert content["root"] == "/mnt/nas"
    assert content["sequence"] == 42
    assert content["problems"] == [
        {"path": "wf/pyproject.toml", "reason": "invalid-spec", "message": "misplaced"}
    ]


def test_entry_has_exactly_the_contracts_keys() -> None:
    """An entry that is served tells what it is made of, in the contract's words."""
    assert document(FULL)["environments"]["wf/a"] == {
        "state": "ready",
        "pinned": False,
        "suspended": False,
        "tree": "t" * 40,
        "serving": "d" * 64,
        "generation": 3,
        "commit": "c" * 40,
        "built_at": AT,
        "python_version": "3.11.7",
        "ray_version": "2.60.0",
        "runtime_env": {"env_vars": {"A": "ä"}, "working_dir": "s3://b/c.zip", "excludes": ["*.log"]},
        "error": None,
    }


def test_entry_that_serves_nothing_has_the_same_keys() -> None:
    """Readers need no test for a missing key: what is not known is null, runtime_env is empty."""
    content = document(FULL)["environments"]
    assert content["wf/d"].keys() == content["wf/a"].keys()
    unknown = ("serving", "generation", "built_at", "python_version", "ray_version", "error")
    assert [content["wf/d"][name] for name in unknown] == [None] * 6
    assert content["wf/d"]["runtime_env"] == {"env_vars": {}, "working_dir": None, "excludes": []}


def test_error_has_exactly_the_contracts_keys() -> None:
    """An error says what, where its log is, for which commit, when, and when it is tried again."""
    content = document(FULL)["environments"]
    assert content["wf/b"]["error"] == {
        "reason": "fetch",
        "message": "an index is down; wait.",
        "log": "/mnt/nas/failures/wf/b.log",
        "commit": "c" * 40,
        "at": AT,
        "retry_at": AT,
    }
    assert content["wf/c"]["error"].keys() == content["wf/b"]["error"].keys()
    assert content["wf/c"]["error"]["log"] is None
    assert content["wf/c"]["error"]["retry_at"] is None


def test_python_lists_what_is_served() -> None:
    """The short map has a path for every spec that is served, whatever its state, and for no other."""
    assert document(FULL)["python"] == dict.fromkeys(
        ("wf/a", "wf/b"), f"/mnt/nas/store/{'d' * 64}/.venv/bin/python"
    )
    building = replace(FULL, entries={"wf/a": replace(READY, state="building")})
    assert list(document(building)["python"]) == ["wf/a"]


def test_ids_are_sorted() -> None:
    """Equal content gives equal bytes, in whatever order it was found."""
    other = replace(FULL, entries=dict(reversed(list(FULL.entries.items()))))
    assert to_json(other, ROOT) == to_json(FULL, ROOT)
    assert list(document(FULL)["environments"]) == ["wf/a", "wf/b", "wf/c", "wf/d"]


@pytest.mark.parametrize(
    ("states", "complete"),
    [
        ((), True),
        (("ready",), True),
        (("ready", "stale", "failed"), True),
        (("ready", "pending"), False),
        (("building", "failed"), False),
    ],
)
def test_complete_means_nothing_is_under_way(states: tuple[State, ...], complete: bool) -> None:
    """complete is true when no spec is pending or building; a failure does not hinder it."""
    entries = {f"wf/{number}": replace(READY, state=state) for number, state in enumerate(states)}
    index = replace(FULL, entries=entries)
    assert index.complete is complete
    assert document(index)["complete"] is complete


@pytest.mark.parametrize("index", [FULL, Index(None, 1, AT, {}, root="/mnt/nas")], ids=["full", "empty"])
def test_index_is_read_back_as_it_was(index: Index) -> None:
    """A restart knows of every entry, error and problem what was published."""
    again = from_json(to_json(index, ROOT))
    assert again == index
    assert to_json(again, ROOT) == to_json(index, ROOT)


def without(key: str, entry: bool = False) -> bytes:
    content = document(FULL)
    del (content["environments"]["wf/a"] if entry else content)[key]
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b'{"schema": 2}',
        without("sequence"),
        without("environments"),
        without("tree", entry=True),
        to_json(FULL, ROOT).replace(b'"fetch"', b'"bad luck"'),
        to_json(FULL, ROOT)[:-100],
    ],
)
def test_other_forms_are_refused(raw: bytes) -> None:
    """What is torn, of another schema, or of another form is a ValueError, never half an index."""
    with pytest.raises(ValueError, match=r"."):
        from_json(raw)


def test_consumers_understand_it(tmp_path: Path) -> None:
    """The client's reader takes what the daemon writes."""
    (tmp_path / "index.json").write_bytes(to_json(FULL, ROOT))
    index = read_index(tmp_path)
    assert environment(index, "wf/a")["generation"] == 3
    assert index["python"]["wf/a"] == ROOT.python("d" * 64)
