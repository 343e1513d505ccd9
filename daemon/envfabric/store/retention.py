"""Which closures and generations are in use, why, and which have to go: the collector's plan.

A closure is kept while the index, a retained generation, a lease, a process of this host or a step of
this daemon uses it, and for the grace period after the last of them. Whatever can't be read counts as
in use. Removes nothing.

Each plan costs one look at every spec's folder and at what claims something, see store/known.
"""

import contextlib
import errno
import os
import re
import stat
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from envfabric.core.errors import StoreError
from envfabric.store.closures import Closures
from envfabric.store.files import Files, Freed
from envfabric.store.generations import Generations
from envfabric.store.known import Known
from envfabric.store.leases import Leased, Leases
from envfabric.store.left import Left
from envfabric.store.pins import Pins
from envfabric.store.processes import Running, running
from envfabric.store.root import Root

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
"""What can be a closure's name; what else lies in store/ is somebody's, and stays."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What is kept although nothing uses it, from the settings. Times are in seconds."""

    grace: float = 14 * 86400.0
    generations: int = 10
    """The newest generations of a spec that are retained, whatever their age."""
    generation_age: float = 30 * 86400.0
    """How long any generation is retained, and those of a spec that is gone."""
    trash_age: float = 3600.0
    scan: bool = True
    """Whether the processes of this host are looked at."""
    resolution_age: float = 86400.0
    """How long a resolution is shared: its record stays at least so long after its last use."""


@dataclass(frozen=True, slots=True)
class Serving:
    """What one spec of the revision serves now."""

    name: str | None
    generation: int | None


@dataclass(slots=True)
class Seen:
    """What one look at ROOT found."""

    now: float
    """The server's clock before it."""
    running: Running
    pins: dict[str, int]
    numbers: dict[str, tuple[int, ...]]
    """The generations of every spec that has any, highest first."""
    unknown: dict[str, str]
    """Specs of whose generations one can't be understood, and why: what that one uses is not known either."""
    leases: dict[str, Leased]
    present: list[str]
    """What lies in store/."""
    since: dict[str, float | None] = field(default_factory=dict)
    """Since when closures and specs are out of use, as far as it was asked."""


@dataclass(slots=True)
class Plan:
    """What a collection would do, and why it leaves the rest."""

    seen: Seen = field(repr=False)
    remove: list[str] = field(default_factory=list)
    noted: set[str] = field(default_factory=set)
    """Those of `remove` whose time of leaving is noted on ROOT: served again, the note goes."""
    kept: dict[str, tuple[str, ...]] = field(default_factory=dict)
    drop: list[tuple[str, int]] = field(default_factory=list)
    """Generations that are no longer retained, as (spec id, number)."""
    leases: int = 0
    """Leases that are in force."""

    @property
    def held(self) -> str | None:
        """Why no closure goes by this plan; None where they do."""
        whys = list(self.seen.unknown.values())
        more = f" (and {len(whys) - 1} more)" if len(whys) > 1 else ""
        return f"what a generation uses is not known: {whys[0]}{more}" if whys else None

    @property
    def now(self) -> float:
        """The server's clock when the plan began."""
        return self.seen.now


@dataclass(slots=True)
class Estimate:
    """What a collection gives back, counted by walking what goes."""

    freed: Freed
    """Of what no other closure and no cache has a link to."""
    cached: Freed
    """Of what only uv's cache, or bytecode, links besides: it comes back when these let go of it, too."""


Served = Mapping[str, Iterable[Serving]]
"""By spec id, what the revision's specs serve: now, and in the index on the NAS."""


@dataclass(frozen=True, slots=True)
class Holdings:
    """What there is on one ROOT to be kept or collected, and by which rules."""

    root: Root
    files: Files
    closures: Closures
    generations: Generations
    pins: Pins
    leases: Leases
    rules: Rules
    serving: Callable[[], Served | None]
    """None where nothing is published: then nothing can be told."""


class Retention:
    """What is retained on one ROOT. One call at a time; any thread."""

    def __init__(self, holdings: Holdings) -> None:
        self.holdings = holdings
        self._root = holdings.root
        self._closures = holdings.closures
        self._generations = holdings.generations
        self._rules = holdings.rules
        self._known = Known(holdings.root, holdings.generations)
        self.closures_left = Left(holdings.root, holdings.files, "closures")
        self.specs_left = Left(holdings.root, holdings.files, "specs")

    def plan(self, *, dry: bool = False) -> Plan:
        """Decides what goes. A `dry` plan writes nothing, not even since when things are unused.

        Raises `StoreError` and `OSError` where something that could be a use can't be read.
        """
        self._root.require_marker()
        serving = self._serving()
        if not dry:
            # What is recorded from here on may be missed by this look; the look before each removal meets it.
            self._generations.recorded.clear()
        seen = self._look(dry=dry)
        plan = self._decide(seen, serving, dry=dry)
        if not dry:
            # Of closures that left by another way, or just before a crash; and of specs without generations,
            # which begin anew with their next one.
            for name in self.closures_left.known().difference(seen.present):
                self.closures_left.forget(name)
            for spec_id in self.specs_left.known() - seen.numbers.keys():
                self.specs_left.forget(spec_id)
        # What vanished with a mount in the middle of this was read as not there.
        self._root.require_marker()
        return plan

    def after(self, plan: Plan, dropped: Iterable[tuple[str, int]]) -> Plan:
        """The plan without generations that were dropped by it: what only they used is unused since this moment.

        Nothing is read again but what is served: what came into use since the plan's look is met by the look
        before each rename. Raises `StoreError` and `OSError`.
        """
        self._root.require_marker()
        numbers = plan.seen.numbers
        for spec_id, number in dropped:
            numbers[spec_id] = tuple(one for one in numbers[spec_id] if one != number)
        return self._decide(plan.seen, self._serving(), dry=False)

    def _serving(self) -> Served:
        serving = self.holdings.serving()
        if serving is None:
            raise StoreError("nothing is published, so what is in use can't be told; nothing is collected.")
        return serving

    def _look(self, *, dry: bool) -> Seen:
        now = self._clock(dry=dry)
        return Seen(
            now=now,
            running=self.running(),
            pins={spec_id: pin.generation for spec_id, pin in self.holdings.pins.all().items()},
            numbers=self._known.look(now),
            unknown=self._known.not_understood(),
            leases=self.holdings.leases.survey(now),
            present=sorted(name for name in os.listdir(self._root.store) if not name.startswith(".")),
        )

    def _decide(self, seen: Seen, serving: Served, *, dry: bool) -> Plan:
        reasons: dict[str, list[str]] = defaultdict(list)
        plan = Plan(seen)
        for spec_id, all_served in serving.items():
            for one in all_served:
                if one.name:
                    reasons[one.name].append(f"served by {spec_id}")
        for spec_id in seen.numbers:
            self._plan_spec(spec_id, serving, reasons, plan, dry=dry)
        for name, leased in seen.leases.items():
            plan.leases += len(leased.held)
            reasons[name] += [f"leased by {one.holder} on {one.host}" for one in leased.held]
        for name in seen.running.closures:
            reasons[name].append("a process of this host runs from it")
        for name in seen.present:
            self._plan_closure(name, reasons.get(name, []), plan, dry=dry)
        return plan

    def running(self) -> Running:
        """What the processes of this host run from; nothing where the settings say not to look."""
        return running(self._root) if self._rules.scan else Running(set(), set())

    def estimate(self, plan: Plan, pythons: Iterable[str] = ()) -> Estimate:
        """What removing all that goes by a plan, these of pythons/, and all that is in trash/, would give back."""
        links: Counter[tuple[int, int]] = Counter()
        known: dict[tuple[int, int], os.stat_result] = {}
        closures = (self._root.closure(name) for name in plan.remove)
        dropped = (self._generations.folder(spec_id, number) for spec_id, number in plan.drop)
        bases = (self._root.pythons / name for name in pythons)
        for path in [*closures, *dropped, *bases, *self._root.trash.iterdir()]:
            for status in _walk(str(path)):
                links[status.st_dev, status.st_ino] += 1
                known[status.st_dev, status.st_ino] = status
        freed, cached = Freed(), Freed()
        for key, status in known.items():
            others = 0 if stat.S_ISDIR(status.st_mode) else status.st_nlink - links[key]
            if others <= 1:
                into = freed if others <= 0 else cached
                into.bytes += status.st_blocks * 512
                into.inodes += 1
        return Estimate(freed, cached)

    def _plan_spec(
        self, spec_id: str, serving: Served, reasons: dict[str, list[str]], plan: Plan, *, dry: bool
    ) -> None:
        seen = plan.seen
        numbers = seen.numbers[spec_id]
        served = {one.generation: one.name for one in serving.get(spec_id, ())}
        gone = False
        if spec_id in serving:
            if not dry:
                self.specs_left.forget(spec_id)
        elif numbers:
            since = self._since(self.specs_left, spec_id, seen, dry=dry)
            age = _age(seen.now, seen.now if since is None else since)
            gone = age >= self._rules.generation_age
        # A process that was started by the path for people may run from any of the spec's generations.
        by_people = spec_id in seen.running.specs
        for place, number in enumerate(numbers):
            retained = number in served or number == seen.pins.get(spec_id) or by_people
            # A newer release may count on any of those beside its own.
            retained = retained or spec_id in seen.unknown
            if not retained and not gone:
                retained = place < self._rules.generations or self._young(spec_id, number, seen.now)
            if not retained:
                plan.drop.append((spec_id, number))
                continue
            # What serves a generation names its closure: its link is read once it is the only one that does.
            name = served.get(number) or self._known.name_of(spec_id, number)
            # From a damaged closure nothing is served again: a generation holds it no longer.
            if name is not None and (by_people or name not in self._closures.damaged()):
                reasons[name].append(f"generation {number} of {spec_id}")

    def _plan_closure(self, name: str, reasons: list[str], plan: Plan, *, dry: bool) -> None:
        if reasons:
            if not dry:
                self.closures_left.forget(name)
            plan.kept[name] = tuple(dict.fromkeys(reasons))
            return
        if not _NAME.fullmatch(name):
            plan.kept[name] = ("it is no closure: nothing of the fabric made it. Remove it by hand",)
            return
        now = plan.seen.now
        since = self._since(self.closures_left, name, plan.seen, dry=dry)
        leased = plan.seen.leases.get(name)
        ends = (since, leased.left if leased else None)
        age = _age(now, max((at for at in ends if at is not None), default=now))
        if age < self._rules.grace:
            plan.kept[name] = (f"unused for {_span(age)}, the grace period is {_span(self._rules.grace)}",)
            return
        if plan.held is not None:
            plan.kept[name] = (plan.held,)
            return
        plan.remove.append(name)
        if since is not None and not dry:
            plan.noted.add(name)

    def _since(self, left: Left, name: str, seen: Seen, *, dry: bool) -> float | None:
        """Since when a thing is out of use, noted where that is new and may be; None where it is not known."""
        # No name is a spec's and a closure's: one of them has a slash.
        if name in seen.since:
            return seen.since[name]
        since = None
        try:
            since = left.since(name) if dry else left.note(name)
        except OSError as error:
            if dry or error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            # What can't be noted on a full disk is new; what was noted before, and trash/, go all the same.
        seen.since[name] = since
        return since

    def pinned(self, spec_id: str) -> int | None:
        """The generation that a pin holds a spec at, read now. Raises `OSError`."""
        pin = self.holdings.pins.read(spec_id)
        return pin.generation if pin else None

    def name_of(self, spec_id: str, number: int) -> str | None:
        """The closure that a generation uses; None where it has no link to one. Raises `OSError`."""
        return self._known.name_of(spec_id, number)

    def _young(self, spec_id: str, number: int, now: float) -> bool:
        made = self._known.made(spec_id, number)
        return made is not None and now - made < self._rules.generation_age

    def _clock(self, *, dry: bool) -> float:
        try:
            return self.holdings.files.server_time(self._root.staging)
        except OSError:
            if not dry:
                raise
            # Whoever may not write may still look; this host's clock is near enough for that.
            return time.time()


def _age(now: float, since: float) -> float:
    """Seconds since then; what was noted after this plan began is 0 s old, and so of no age with grace 0."""
    return max(0.0, now - since)


def _walk(top: str) -> Iterable[os.stat_result]:
    waiting = [top]
    while waiting:
        here = waiting.pop()
        # Gone meanwhile; or somebody else's, which can't be counted.
        with contextlib.suppress(FileNotFoundError, PermissionError):
            status = os.lstat(here)
            yield status
            if stat.S_ISDIR(status.st_mode):
                waiting += [entry.path for entry in os.scandir(here)]


def _span(seconds: float) -> str:
    """A time span for people: 90 s, 5 min, 3 h, 14 d."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
