"""index.json as data: one entry for each spec of the revision, by the design's schema."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from envfabric.core.errors import Reason
from envfabric.specs.tree import Problem
from envfabric.store.root import Root

State = Literal["pending", "building", "ready", "stale", "failed"]

NOTHING_ADDED: Mapping[str, Any] = {"env_vars": {}, "working_dir": None, "excludes": []}
"""The runtime_env of most specs: one for all of them, which nobody changes."""


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
    runtime_env: Mapping[str, Any] = field(default_factory=lambda: NOTHING_ADDED)
    error: Failure | None = None
    pinned: bool = False
    suspended: bool = False


_PLAIN = tuple(name for name in Entry.__slots__ if name not in {"runtime_env", "error"})


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


class Texts:
    """The entries' texts as they were written last, by spec: an index is written anew for what changed in it.

    Belongs to whoever writes the index, in one thread.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[Entry, str]] = {}

    def of(self, spec_id: str, entry: Entry) -> str:
        """The text of an entry, which is never changed once it is made."""
        known = self._known.get(spec_id)
        if known is None or known[0] is not entry:
            known = self._known[spec_id] = (entry, _entry_text(entry))
        return known[1]

    def keep(self, spec_ids: Collection[str]) -> None:
        """Forgets all but these."""
        if len(self._known) > len(spec_ids):
            self._known = {one: self._known[one] for one in spec_ids if one in self._known}


def to_json(index: Index, root: Root, texts: Texts | None = None) -> bytes:
    """The bytes of index.json; with `texts` only what is new among the entries is put into words."""
    texts = texts or Texts()
    entries = sorted(index.entries.items())
    top = {
        "schema": 1,
        "revision": index.revision,
        "complete": index.complete,
        "published_at": index.published_at,
        "sequence": index.sequence,
        "root": str(root.path),
        "problems": [
            {"path": one.path, "reason": one.reason.value, "message": one.message} for one in index.problems
        ],
    }
    names = [json.dumps(spec_id) for spec_id, _ in entries]
    paths = {one: json.dumps(root.python(one)) for one in {entry.serving for _, entry in entries} if one}
    pairs = zip(names, entries, strict=True)
    served = [f"{name}: {paths[entry.serving]}" for name, (_, entry) in pairs if entry.serving]
    told = [f"{name}: {texts.of(*pair)}" for name, pair in zip(names, entries, strict=True)]
    texts.keep(index.entries.keys())
    # The two tables of every spec are put together here; the library would go through each entry anew.
    head = json.dumps(top, indent=1).removesuffix("\n}")
    return f'{head},\n "python": {_table(served)},\n "environments": {_table(told)}\n}}'.encode()


def _table(lines: list[str]) -> str:
    return "{\n  " + ",\n  ".join(lines) + "\n }" if lines else "{}"


def _entry_text(entry: Entry) -> str:
    """An entry as it stands in the index, two levels deep."""
    # Value by value: the library's fast way knows no indentation.
    lines = [f'   "{name}": {_value_text(value)}' for name, value in _entry_json(entry).items()]
    return "{\n" + ",\n".join(lines) + "\n  }"


def _value_text(value: Any) -> str:
    if value is NOTHING_ADDED:
        return _NOTHING_TEXT
    # A text of JSON breaks its lines nowhere but between its values.
    nested = isinstance(value, dict)
    return json.dumps(value, indent=1).replace("\n", "\n   ") if nested else json.dumps(value)


_NOTHING_TEXT = json.dumps(NOTHING_ADDED, indent=1).replace("\n", "\n   ")


def from_json(raw: bytes) -> Index:
    """The index that was written. Raises `ValueError` where it is of another form."""
    shared: dict[str, str] = {}
    try:
        document = json.loads(raw)
        if document["schema"] != 1:
            raise ValueError(f"index.json has schema {document['schema']}, known: 1")
        return Index(
            revision=document["revision"],
            sequence=document["sequence"],
            published_at=document["published_at"],
            entries={spec_id: _entry(one, shared) for spec_id, one in document["environments"].items()},
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


def _entry(raw: Mapping[str, Any], shared: dict[str, str]) -> Entry:
    error, told = raw["error"], raw["runtime_env"]
    # Thousands of entries have few different values: each is kept once.
    plain: dict[str, Any] = {
        name: shared.setdefault(one, one) if isinstance(one, str) else one
        for name, one in ((name, raw[name]) for name in _PLAIN)
    }
    failure = Failure(**{**error, "reason": Reason(error["reason"])}) if error else None
    return Entry(**plain, runtime_env=NOTHING_ADDED if told == NOTHING_ADDED else told, error=failure)


def _problems(raw: Iterable[Mapping[str, str]]) -> list[Problem]:
    return [Problem(one["path"], Reason(one["reason"]), one["message"]) for one in raw]
