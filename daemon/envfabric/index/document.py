"""index.json as data: one entry for each spec of the revision, by the design's schema."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from envfabric.core.errors import Reason
from envfabric.specs.tree import Problem
from envfabric.store.root import Root

State = Literal["pending", "building", "ready", "stale", "failed"]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a spec does not serve the content it asks for."""

    reason: Reason
    message: str
    log: str | None
    commit: str
    at: str
    retry_at: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """What the index says of one spec."""

    state: State
    tree: str
    commit: str
    serving: str | None = None
    generation: int | None = None
    built_at: str | None = None
    python_version: str | None = None
    ray_version: str | None = None
    runtime_env: Mapping[str, Any] = field(
        default_factory=lambda: {"env_vars": {}, "working_dir": None, "excludes": []}
    )
    error: Failure | None = None
    pinned: bool = False
    suspended: bool = False


@dataclass(frozen=True, slots=True)
class Index:
    """One published state of everything."""

    revision: str | None
    sequence: int
    published_at: str
    entries: Mapping[str, Entry]
    problems: tuple[Problem, ...] = ()
    root: str = ""
    """ROOT as it was when this was published: a ROOT that moved has other paths to publish."""

    @property
    def complete(self) -> bool:
        """Whether no spec of the revision is pending or building."""
        return all(entry.state not in {"pending", "building"} for entry in self.entries.values())


def to_json(index: Index, root: Root) -> bytes:
    """The bytes of index.json."""
    entries = sorted(index.entries.items())
    document = {
        "schema": 1,
        "revision": index.revision,
        "complete": index.complete,
        "published_at": index.published_at,
        "sequence": index.sequence,
        "root": str(root.path),
        "problems": [
            {"path": one.path, "reason": one.reason.value, "message": one.message} for one in index.problems
        ],
        "python": {spec_id: root.python(entry.serving) for spec_id, entry in entries if entry.serving},
        "environments": {spec_id: _entry_json(entry) for spec_id, entry in entries},
    }
    return json.dumps(document, indent=1).encode()


def from_json(raw: bytes) -> Index:
    """The index that was written. Raises `ValueError` where it is of another form."""
    try:
        document = json.loads(raw)
        if document["schema"] != 1:
            raise ValueError(f"index.json has schema {document['schema']}, known: 1")
        return Index(
            revision=document["revision"],
            sequence=document["sequence"],
            published_at=document["published_at"],
            entries={spec_id: _entry(one) for spec_id, one in document["environments"].items()},
            problems=tuple(_problems(document["problems"])),
            root=document["root"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"index.json is incomplete: {error}") from error


def _entry_json(entry: Entry) -> dict[str, Any]:
    return {
        "state": entry.state,
        "pinned": entry.pinned,
        "suspended": entry.suspended,
        "tree": entry.tree,
        "serving": entry.serving,
        "generation": entry.generation,
        "commit": entry.commit,
        "built_at": entry.built_at,
        "python_version": entry.python_version,
        "ray_version": entry.ray_version,
        "runtime_env": entry.runtime_env,
        "error": asdict(entry.error) if entry.error else None,
    }


def _entry(raw: Mapping[str, Any]) -> Entry:
    error = raw["error"]
    found = {name: raw[name] for name in Entry.__slots__ if name != "error"}
    failure = Failure(**{**error, "reason": Reason(error["reason"])}) if error else None
    return Entry(**found, error=failure)


def _problems(raw: Iterable[Mapping[str, str]]) -> list[Problem]:
    return [Problem(one["path"], Reason(one["reason"]), one["message"]) for one in raw]
