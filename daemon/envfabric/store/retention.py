"""Which closures and generations are in use, why, and which have to go: the collector's plan.

A closure is kept while the index, a retained generation, a lease, a process of this host or a step of
this daemon uses it, and for the grace period after the last of them. Whatever can't be read counts as
in use. Removes nothing.
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
from envfabric.store.leases import Leases
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


@dataclass(frozen=True, slots=True)
class Serving:
    """What one spec of the revision serves now."""

    name: str | None
    generation: int | None


@dataclass(slots=True)
class Plan:
    """What a collection would do, and why it leaves the rest."""

    now: float
    remove: list[str] = field(default_factory=list)
    kept: dict[str, tuple[str, ...]] = field(default_factory=dict)
    drop: list[tuple[str, int]] = field(default_factory=list)
    """Generations that are no longer retained, as (spec id, number)."""
    leases: int = 0
    """Leases that are in force."""


@dataclass(slots=True)
class Estimate:
    """What a collection gives back, counted by walking what goes."""

    freed: Freed
    """Of what no other closure and no cache has a link to."""
    cached: Freed
    """Of what only uv's cache, or bytecode, links besides: it comes back when these let go of it, too."""


Served = Mapping[str, Iterable[Serving]]
"""By spec id, what the revision's specs serve: now, and in the index on the NAS."""


class Retention:
    """What is retained on one ROOT. One call at a time; any thread."""

    def __init__(
        self,
        root: Root,
        files: Files,
        closures: Closures,
        generations: Generations,
        pins: Pins,
        leases: Leases,
        rules: Rules,
        serving: Callable[[], Served | None],
    ) -> None:
        """`serving` gives None where nothing is published: then nothing can be told."""
        self._root = root
        self._files = files
        self._closures = closures
        self._generations = generations
        self._pins = pins
        self._leases = leases
        self._rules = rules
        self._serving = serving
        # A generation's link never changes: it is read once.
        self._names: dict[tuple[str, int], str | None] = {}
        self.closures_left = Left(root, files, "closures")
        self.specs_left = Left(root, files, "specs")

    def plan(self, *, dry: bool = False) -> Plan:
        """Decides what goes. A `dry` plan writes nothing, not even since when things are unused.

        Raises `StoreError` and `OSError` where something that could be a use can't be read.
        """
        self._root.require_marker()
        serving = self._serving()
        if serving is None:
            raise StoreError("nothing is published, so what is in use can't be told; nothing is collected.")
        now = self._clock(dry=dry)
        running_now = self.running()
        reasons: dict[str, list[str]] = defaultdict(list)
        plan = Plan(now)
        for spec_id, all_served in serving.items():
            for one in all_served:
                if one.name:
                    reasons[one.name].append(f"served by {spec_id}")
        specs = [one for one in self._generations.specs() if self._generations.numbers(one)]
        for spec_id in specs:
            self._plan_spec(spec_id, serving, running_now, reasons, plan, dry=dry)
        for name, held in self._leases.in_force(now).items():
            plan.leases += len(held)
            reasons[name] += [f"leased by {one.holder} on {one.host}" for one in held]
        for name in running_now.closures:
            reasons[name].append("a process of this host runs from it")
        present = sorted(name for name in os.listdir(self._root.store) if not name.startswith("."))
        for name in present:
            self._plan_closure(name, reasons.get(name, []), plan, dry=dry)
        if not dry:
            # Of closures that left by another way, or just before a crash; and of specs without generations,
            # which begin anew with their next one.
            for name in self.closures_left.known().difference(present):
                self.closures_left.forget(name)
            for spec_id in self.specs_left.known().difference(specs):
                self.specs_left.forget(spec_id)
        # What vanished with a mount in the middle of this was read as not there.
        self._root.require_marker()
        return plan

    def running(self) -> Running:
        """What the processes of this host run from; nothing where the settings say not to look."""
        return running(self._root) if self._rules.scan else Running(set(), set())

    def estimate(self, plan: Plan) -> Estimate:
        """What removing all that goes by a plan, and all that is in trash/, would give back."""
        links: Counter[tuple[int, int]] = Counter()
        known: dict[tuple[int, int], os.stat_result] = {}
        closures = (self._root.closure(name) for name in plan.remove)
        dropped = (self._generations.folder(spec_id, number) for spec_id, number in plan.drop)
        for path in [*closures, *dropped, *self._root.trash.iterdir()]:
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
        self,
        spec_id: str,
        serving: Mapping[str, Iterable[Serving]],
        running_now: Running,
        reasons: dict[str, list[str]],
        plan: Plan,
        *,
        dry: bool,
    ) -> None:
        numbers = sorted(self._generations.numbers(spec_id), reverse=True)
        fixed = {one.generation for one in serving.get(spec_id, ())}
        pin = self._pins.read(spec_id)
        fixed |= {pin.generation} if pin else set()
        gone = False
        if spec_id in serving:
            if not dry:
                self.specs_left.forget(spec_id)
        elif numbers:
            since = self._since(self.specs_left, spec_id, dry=dry)
            age = _age(plan.now, plan.now if since is None else since)
            gone = age >= self._rules.generation_age
        # A process that was started by the path for people may run from any of the spec's generations.
        by_people = spec_id in running_now.specs
        for place, number in enumerate(numbers):
            retained = number in fixed or by_people
            if not retained and not gone:
                retained = place < self._rules.generations or self._young(spec_id, number, plan.now)
            if not retained:
                plan.drop.append((spec_id, number))
                continue
            name = self._name(spec_id, number)
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
        since = self._since(self.closures_left, name, dry=dry)
        leased = self._leases.left(name)
        age = _age(plan.now, max((at for at in (since, leased) if at is not None), default=plan.now))
        if age < self._rules.grace:
            plan.kept[name] = (f"unused for {_span(age)}, the grace period is {_span(self._rules.grace)}",)
        else:
            plan.remove.append(name)

    def _since(self, left: Left, name: str, *, dry: bool) -> float | None:
        """Since when a thing is out of use, noted where that is new and may be; None where it is not known."""
        if dry:
            return left.since(name)
        try:
            return left.note(name)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            # What can't be noted on a full disk is new; what was noted before, and trash/, go all the same.
            return None

    def pinned(self, spec_id: str) -> int | None:
        """The generation that a pin holds a spec at. Raises `OSError`."""
        pin = self._pins.read(spec_id)
        return pin.generation if pin else None

    def _young(self, spec_id: str, number: int, now: float) -> bool:
        try:
            made = self._generations.folder(spec_id, number).stat().st_mtime
        except FileNotFoundError:
            return False
        return now - made < self._rules.generation_age

    def _name(self, spec_id: str, number: int) -> str | None:
        key = (spec_id, number)
        if (name := self._names.get(key)) is None:
            # Only what was read is remembered: while a mount is away every link looks missing.
            name = self._names[key] = self._generations.name_of(spec_id, number)
        return name

    def _clock(self, *, dry: bool) -> float:
        try:
            return self._files.server_time(self._root.staging)
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
        with contextlib.suppress(FileNotFoundError):
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
