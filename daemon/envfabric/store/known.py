"""What the collector knows of every spec's generations: their numbers, closures and ages, and which it understands.

What never changes (a generation's closure, age and form) and what a folder's stamp says is as it was is remembered, so
that a plan costs one look at every spec's folder. Decides nothing and changes nothing.
"""

import os
import sys
from dataclasses import dataclass, field

from envfabric.store.generations import Generations
from envfabric.store.root import Root

_SETTLED = 2.0
"""Seconds for which a folder has to be unchanged before its stamp is believed: two changes within one tick of
the server's clock have the same."""


@dataclass(slots=True)
class _OfSpec:
    """What is remembered of one spec's generations."""

    stamp: tuple[int, int] | None
    """Inode and mtime of its folder; None where it was too young to be believed."""
    numbers: tuple[int, ...]
    names: dict[int, str] = field(default_factory=dict)
    made: dict[int, float] = field(default_factory=dict)
    understood: tuple[int, ...] = ()
    """Those that were seen to be of a form that this release knows; mostly the tuple that `numbers` is."""


class Known:
    """The generations on one ROOT, as seen by one look after another. One call at a time; any thread."""

    def __init__(self, root: Root, generations: Generations) -> None:
        self._root = root
        self._generations = generations
        self._of: dict[str, _OfSpec] = {}

    def look(self, now: float) -> dict[str, tuple[int, ...]]:
        """The numbers of every spec that has generations, highest first; `now` is the server's clock.

        Raises `StoreError` and `OSError`.
        """
        known = {}
        for spec_id in self._generations.specs():
            folder = self._root.generations / spec_id
            try:
                # Before it is listed: what comes between the two changes the stamp of the next look.
                status = os.stat(folder)
            except FileNotFoundError:
                continue
            stamp = (status.st_ino, status.st_mtime_ns)
            old = self._of.get(spec_id)
            if old is None or old.stamp != stamp:
                numbers = tuple(sorted(self._generations.numbers(spec_id), reverse=True))
                # A second change may have the same time as the first; not so once the clock has gone on.
                settled = status.st_mtime + _SETTLED < now
                new = _OfSpec(stamp if settled else None, numbers)
                if old is not None:
                    # A number is never given twice, and a generation never changes.
                    new.names = {one: old.names[one] for one in numbers if one in old.names}
                    new.made = {one: old.made[one] for one in numbers if one in old.made}
                    new.understood = old.understood
                old = new
            known[spec_id] = old
        # A spec's folder that vanished with its mount looks as if it had no generations: that is not remembered.
        self._root.require_marker()
        self._of = known
        return {spec_id: one.numbers for spec_id, one in known.items() if one.numbers}

    def not_understood(self) -> dict[str, str]:
        """The specs of whose generations one is of a newer form, or can't be read, and why; as of the last look."""
        found = {}
        for spec_id, known in self._of.items():
            if (why := self._why_not(spec_id, known)) is not None:
                found[spec_id] = why
        return found

    def _why_not(self, spec_id: str, known: _OfSpec) -> str | None:
        """Looks at those of a spec's generations that were not understood so far."""
        understood, why = [], None
        for number in known.numbers:
            if number not in known.understood:
                try:
                    self._generations.check_form(spec_id, number)
                except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                    # A hand took it, or its mount went: that says nothing, and is not remembered.
                    continue
                except OSError as error:
                    why = str(error)
                    continue
            understood.append(number)
        known.understood = known.numbers if len(understood) == len(known.numbers) else tuple(understood)
        return why

    def name_of(self, spec_id: str, number: int) -> str | None:
        """The closure that a generation uses, read once; None where there is no such link. Raises `OSError`."""
        known = self._of.get(spec_id)
        if known is not None and number in known.names:
            return known.names[number]
        name = self._generations.name_of(spec_id, number)
        if name is not None and known is not None:
            # Only what was read is remembered: while a mount is away every link looks missing.
            known.names[number] = sys.intern(name)
        return name

    def made(self, spec_id: str, number: int) -> float | None:
        """When a generation was made, by the server's clock, read once; None where it is gone. Raises `OSError`."""
        made = self._of[spec_id].made
        if number not in made:
            try:
                made[number] = self._generations.folder(spec_id, number).stat().st_mtime
            except FileNotFoundError:
                return None
        return made[number]
