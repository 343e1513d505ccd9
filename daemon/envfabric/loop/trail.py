"""What the loop tells the audit trail: which generation is new, who changed its spec, and who serves which.

Git is asked once for each revision that changes specs, when its work is under way already, and in a thread of its own:
what is told of a generation waits for the answer, and nothing else does. Belongs to the loop's thread; decides nothing,
and what goes wrong here stops nothing.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from envfabric.index.document import Entry, Index
from envfabric.specs.authors import MOST_SECONDS, Change, who_changed
from envfabric.specs.repository import Repository, SourceError
from envfabric.specs.tree import SpecRef
from envfabric.store.generations import Generation, Generations, NewerForm
from envfabric.store.history import History
from envfabric.store.root import now
from envfabric.telemetry import logs

ASKED = 5
"""Commits that git is asked about in one publication, for generations of content that was adopted before this turn."""

FIGURES = 60.0
"""Seconds between two accounts of the store while specs are pending or building."""

_Answer = Future[dict[str, Change]]


@dataclass(frozen=True, slots=True)
class _Adopted:
    """A revision whose authors are not known yet."""

    before: str | None
    commit: str
    refs: Mapping[str, SpecRef]


@dataclass(frozen=True, slots=True)
class _Event:
    """What is told as soon as git has answered who changed the spec, and all before it is told."""

    event: str
    details: dict[str, Any]
    who: _Answer | None = None


class Trail:
    """The audit trail of one loop."""

    def __init__(
        self,
        history: History,
        repository: Repository,
        generations: Generations,
        signer: Callable[[str], Mapping[str, str] | None] = lambda _: None,
        figures: Callable[[Mapping[str, Entry]], Mapping[str, Any]] | None = None,
    ) -> None:
        """`signer` says whose good signature a commit was found to have, see specs/signatures; `figures` what is kept
        of a publication, see loop/counting."""
        self._history = history
        self._repository = repository
        self._generations = generations
        self._signer = signer
        self._figures = figures
        self._figures_due = 0.0
        self._adopted: list[_Adopted] = []
        self._changes: dict[str, tuple[str, _Answer]] = {}
        """Who made the content that a spec asks for, with its tree, until it is published."""
        self._untold: deque[_Event] = deque()
        self._asking = ThreadPoolExecutor(1, "authors")
        self._told = 0
        """The sequence of the last index that the trail says anything of."""
        self._log = logs.get()

    def begin(self, index: Index | None) -> None:
        """At a start: tells what a daemon published that was killed before it could tell."""
        if index is None:
            return
        try:
            self._told = self._history.last_sequence()
            if self._told < index.sequence:
                self._catch_up(index)
        except OSError as error:
            self._log.warning("history not read", error=str(error))

    def close(self, index: Index | None) -> None:
        """Tells what is left, and has the next start know that there is nothing to tell where there was nothing."""
        wait([one.who for one in self._untold if one.who is not None], MOST_SECONDS)
        self._asking.shutdown(wait=False, cancel_futures=True)
        self._tell(last=True)
        if index is not None and self._told < index.sequence:
            self._told = index.sequence
            self._history.note("stopped", sequence=index.sequence)

    def adopted(self, before: str | None, commit: str, refs: Iterable[SpecRef]) -> None:
        """`commit` is the revision now, `before` was; `refs` are the specs whose content is new."""
        changed = {ref.id: ref for ref in refs if ref.refused is None}
        if changed:
            self._adopted.append(_Adopted(before, commit, changed))

    def published(self, before: Index | None, index: Index) -> None:
        """An index has replaced another: who serves another generation than before, and which are new."""
        old: Mapping[str, Entry] = before.entries if before else {}
        entries = index.entries
        served = [one for one in entries if entries[one] is not old.get(one)]
        served = [one for one in served if entries[one].generation != _generation(old.get(one))]
        self._note_served(index, served, self._new(served, entries))
        self._note_removed(index, old.keys() - entries.keys())
        clock = time.monotonic()
        # Thousands of builds are thousands of publications: their sums are told now and then, and at the end.
        if self._figures is not None and (index.complete or clock >= self._figures_due):
            self._figures_due = clock + FIGURES
            # Behind what is served: a trail that ends before it is caught up with at the next start.
            self._note("figures", None, sequence=index.sequence, **self._figures(entries))

    def flush(self) -> None:
        """Asks git what has to be asked, and appends what is known."""
        self._ask()
        self._tell()
        self._history.flush()

    def _catch_up(self, index: Index) -> None:
        """Compares an index of another turn with what that turn told."""
        told = self._history.last_told()
        entries = index.entries

        def untold(spec_id: str) -> bool:
            known = spec_id in told.served or told.whole
            return known and told.served.get(spec_id) != entries[spec_id].generation

        served = [one for one in entries if untold(one)]
        made: dict[str, Generation] = {}
        for spec_id in served:
            number = entries[spec_id].generation
            if number is not None and (spec_id, number) not in told.made:
                try:
                    found = self._generations.read(spec_id, number)
                except NewerForm as error:
                    # That it is served is told all the same, and so is all of the other specs.
                    self._log.warning("generation not told", spec=spec_id, error=str(error))
                    continue
                made |= {spec_id: found} if found else {}
        removed = {one for one, number in told.served.items() if number is not None} - entries.keys()
        if served or removed:
            self._log.info("told of a publication before the start", specs=len(served) + len(removed))
            self._note_served(index, served, made)
            self._note_removed(index, removed)

    def _note_served(self, index: Index, served: Iterable[str], made: Mapping[str, Generation]) -> None:
        asked = self._who(made.values())
        for spec_id in served:
            entry = index.entries[spec_id]
            if (new := made.get(spec_id)) is not None:
                self._changes.pop(spec_id, None)
                facts = {**self._generations.facts(new), "signed_by": self._signer(new.commit)}
                self._note("generation", asked.get(spec_id), **facts)
            self._note(
                "serves",
                None,
                spec=spec_id,
                commit=entry.commit,
                sequence=index.sequence,
                revision=index.revision,
                generation=entry.generation,
                closure=entry.serving,
                pinned=entry.pinned,
            )
            self._told = index.sequence

    def _note_removed(self, index: Index, removed: Iterable[str]) -> None:
        for spec_id in sorted(removed):
            self._changes.pop(spec_id, None)
            self._generations.unpublished.pop(spec_id, None)
            self._note("removed", None, spec=spec_id, sequence=index.sequence, revision=index.revision)
            self._told = index.sequence

    def _note(self, event: str, who: _Answer | None, **details: Any) -> None:
        self._untold.append(_Event(event, {"at": now(), **details}, who))

    def _tell(self, *, last: bool = False) -> None:
        """Notes what git has answered about, in the order of its happening; with `last` all, answered or not."""
        while self._untold and (last or self._untold[0].who is None or self._untold[0].who.done()):
            one = self._untold.popleft()
            details = one.details
            if one.event == "generation":
                answered = one.who is not None and one.who.done() and not one.who.cancelled()
                change = one.who.result().get(details["spec"]) if one.who is not None and answered else None
                details["changed_by"] = change.told() if change else None
            self._history.note(one.event, **details)

    def _new(self, served: Iterable[str], entries: Mapping[str, Entry]) -> dict[str, Generation]:
        """The generations that are published for the first time, by spec."""
        found = {}
        for spec_id in served:
            made = self._generations.unpublished.get(spec_id)
            # A newer one may have been written since: its turn comes.
            if made is not None and made.number == entries[spec_id].generation:
                found[spec_id] = self._generations.unpublished.pop(spec_id)
        return found

    def _who(self, made: Iterable[Generation]) -> dict[str, _Answer]:
        """Where it will be told who changed the specs of new generations, as far as that can be told."""
        self._ask()
        found: dict[str, _Answer] = {}
        others: dict[str, dict[str, Mapping[str, str]]] = {}
        for one in made:
            tree, answer = self._changes.get(one.spec, ("", None))
            if answer is not None and tree == one.tree:
                found[one.spec] = answer
            else:
                # Ordered, or built again: its content came with an earlier revision, maybe in an earlier turn.
                others.setdefault(one.commit, {})[one.spec] = {}
        for commit, wanted in list(others.items())[:ASKED]:
            found |= dict.fromkeys(wanted, self._asking.submit(self._changed, commit, None, wanted))
        return found

    def _ask(self) -> None:
        adopted, self._adopted = self._adopted, []
        for one in adopted:
            wanted = {spec_id: dict(ref.blobs) for spec_id, ref in one.refs.items()}
            answer = self._asking.submit(self._changed, one.commit, one.before, wanted)
            self._changes |= {spec_id: (ref.tree, answer) for spec_id, ref in one.refs.items()}

    def _changed(
        self, commit: str, before: str | None, wanted: Mapping[str, Mapping[str, str]]
    ) -> dict[str, Change]:
        try:
            return who_changed(self._repository, commit, before, wanted)
        except Exception as error:
            level = self._log.warning if isinstance(error, SourceError) else self._log.exception
            level("authors not found", commit=commit, error=str(error))
            return {}


def _generation(entry: Entry | None) -> int | None:
    return entry.generation if entry is not None else None
