"""What differs between a revision and what is served: pure comparison, no file and no process."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from envfabric.core.errors import Reason
from envfabric.index.document import Entry, Failure
from envfabric.specs.tree import SpecRef, Wanted
from envfabric.store.root import now


@dataclass(frozen=True, slots=True)
class Plan:
    """The entries of a new revision, and which specs have to be looked into."""

    entries: dict[str, Entry] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    """Specs whose closure has vanished from the store."""


def make_plan(
    commit: str,
    wanted: Wanted,
    before: Mapping[str, SpecRef],
    entries: Mapping[str, Entry],
    exists: Callable[[str], bool] | None = None,
) -> Plan:
    """Compares a revision with the entries so far.

    `before` is what the last revision wanted; empty at a start, when everything that is not ready is
    tried again. `exists` tells at a start whether a digest is in the store: what is gone has to come back.
    """
    plan = Plan(removed=sorted(set(entries) - set(wanted.specs)))
    for spec_id, ref in wanted.specs.items():
        old = entries.get(spec_id)
        last = before.get(spec_id)
        if old and old.serving and not last and exists and not exists(old.serving):
            # Nothing may be published that is not there, not even while it is made anew.
            old = replace(old, state="failed", serving=None, generation=None)
            plan.lost.append(spec_id)
        if ref.refused is not None:
            plan.entries[spec_id] = refused(old, ref, commit)
            plan.refused.append(spec_id)
        elif old is None or old.tree != ref.tree or _try_again(old, last):
            plan.entries[spec_id] = pending(old, ref, commit)
            plan.changed.append(spec_id)
        else:
            plan.entries[spec_id] = old
    return plan


def pending(old: Entry | None, ref: SpecRef, commit: str) -> Entry:
    """The entry of content that is looked into next; what is served stays served."""
    if old is None:
        return Entry(state="pending", tree=ref.tree, commit=commit)
    # `commit` says where this content was first seen: it stays while the content does.
    first = old.commit if old.tree == ref.tree else commit
    return replace(old, state="pending", tree=ref.tree, commit=first, error=None)


def refused(old: Entry | None, ref: SpecRef, commit: str) -> Entry:
    """The entry of a folder that can't be a spec as it is."""
    message = ref.refused or ""
    if old is not None and old.tree == ref.tree and old.error and old.error.message == message:
        return old
    failure = Failure(Reason.INVALID_SPEC, message, None, commit, now())
    return failed(pending(old, ref, commit), failure)


def failed(old: Entry, failure: Failure) -> Entry:
    """The entry of content that could not be made ready; what was served before stays served."""
    return replace(old, state="stale" if old.serving else "failed", error=failure)


def _try_again(old: Entry, last: SpecRef | None) -> bool:
    return old.state != "ready" if last is None else last.refused is not None
