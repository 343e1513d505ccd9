"""What differs between a revision and what is served: pure comparison, no file and no process."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from envfabric.core.errors import Reason
from envfabric.index.document import Entry, Failure
from envfabric.specs.tree import SpecRef, Wanted
from envfabric.store.pins import Pin
from envfabric.store.root import now


@dataclass(frozen=True, slots=True)
class Plan:
    """The entries of a new revision, and which specs have to be looked into."""

    entries: dict[str, Entry] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    lost: dict[str, int] = field(default_factory=dict)
    """Specs whose closure is gone or damaged, with the generation that was served."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a start finds on ROOT, beside the index."""

    present: Callable[[str], bool]
    """Whether a closure is in the store: what is gone has to come back."""
    damaged: Collection[str] = ()
    """Closures that were found damaged: what serves them has to be healed."""
    waiting: Collection[str] = ()
    """Failed specs that wait for the time of their next try."""
    pins: Mapping[str, Pin] = field(default_factory=dict)


def make_plan(
    commit: str,
    wanted: Wanted,
    before: Mapping[str, SpecRef],
    entries: Mapping[str, Entry],
    found: Found | None = None,
) -> Plan:
    """Compares a revision with the entries so far.

    `before` is what the last revision wanted. `found` is given at a start, when what is not ready is tried
    again and what a crash has parted is brought together. Without it, a revision that says which specs it touched is
    compared in these only, and in those that are refused: why is said again with each revision.
    """
    if found is None and wanted.touched is not None:
        plan = Plan(dict(entries), removed=sorted(wanted.touched & (entries.keys() - wanted.specs.keys())))
        for spec_id in plan.removed:
            del plan.entries[spec_id]
        still_refused = {one for one, ref in wanted.specs.items() if ref.refused is not None}
        looked_at = sorted(wanted.specs.keys() & (wanted.touched | still_refused))
    else:
        plan = Plan(removed=sorted(entries.keys() - wanted.specs.keys()))
        looked_at = list(wanted.specs)
    for spec_id in looked_at:
        ref = wanted.specs[spec_id]
        old = entries.get(spec_id)
        if old and found:
            old = _look_at_served(spec_id, old, found, plan)
        if ref.refused is not None:
            plan.entries[spec_id] = refused(old, ref, commit)
            plan.refused.append(spec_id)
        elif (
            old is None or old.tree != ref.tree or _try_again(spec_id, old, before.get(spec_id), found, plan)
        ):
            plan.entries[spec_id] = pending(old, ref, commit)
            plan.changed.append(spec_id)
        else:
            plan.entries[spec_id] = old
    return plan


def ended_pins(wanted: Mapping[str, SpecRef], entries: Mapping[str, Entry], found: Found | None) -> list[str]:
    """The specs whose pin ends with this revision, because their content is another than it was set for."""
    pinned = {one: entry.tree for one, entry in entries.items() if entry.pinned}
    if found:
        pinned |= {one: pin.tree for one, pin in found.pins.items()}
    return [one for one, tree in pinned.items() if one not in wanted or wanted[one].tree != tree]


def withdrawn(old: Entry, ref: SpecRef | None) -> Entry:
    """The entry of a spec whose closure has gone: it names nothing, and is being made again where it can be."""
    # Nothing may be published that is not there, not even while it is made anew.
    gone = replace(old, state="failed", serving=None, generation=None)
    return gone if ref is None or ref.refused is not None else pending(gone, ref, old.commit)


def _look_at_served(spec_id: str, old: Entry, found: Found, plan: Plan) -> Entry:
    """Has what is served and no good made again."""
    if old.serving is None or (found.present(old.serving) and old.serving not in found.damaged):
        return old
    if old.generation is not None:
        plan.lost[spec_id] = old.generation
    if found.present(old.serving):
        return old
    # Nothing may be published that is not there, not even while it is made anew.
    return replace(old, state="failed", serving=None, generation=None)


def pending(old: Entry | None, ref: SpecRef, commit: str) -> Entry:
    """The entry of content that is looked into next; what is served stays served."""
    if old is None:
        return Entry(state="pending", tree=ref.tree, commit=commit)
    # `commit` says where this content was first seen: it stays while the content does.
    same = old.tree == ref.tree
    first = old.commit if same else commit
    # A pin ends with the content that it was set for.
    pinned = old.pinned and same
    return replace(old, state="pending", tree=ref.tree, commit=first, error=None, pinned=pinned)


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


def _try_again(spec_id: str, old: Entry, last: SpecRef | None, found: Found | None, plan: Plan) -> bool:
    """Whether unchanged content is looked into all the same."""
    if found is None:
        return last is not None and last.refused is not None
    if spec_id in plan.lost or _parted(old, found.pins.get(spec_id)):
        return True
    # Its time was set, and the failure never published: one that is not said to have failed is not woken.
    waits = spec_id in found.waiting and old.state in {"failed", "stale"}
    return old.state != "ready" and not waits


def _parted(old: Entry, pin: Pin | None) -> bool:
    """Whether the index and the pin say different things of a spec."""
    held = pin.generation if pin is not None and pin.tree == old.tree else None
    return held != (old.generation if old.pinned else None)
