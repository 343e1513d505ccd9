"""The collector: carries out what retention planned, by way of trash/.

What goes is renamed into trash/ first and deleted later. Before each rename it looks once more at what
came into use meanwhile, under the lock that every step of this daemon claims with.
"""

import contextlib
import os
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envfabric.store.bases import Bases
from envfabric.store.claims import Claims
from envfabric.store.closures import digest_of
from envfabric.store.files import Freed
from envfabric.store.generations import NewerForm
from envfabric.store.retention import Retention
from envfabric.store.sweep import TOUCHED, Sweep, unasked, unlinked
from envfabric.telemetry import logs

_CLOSURE = re.compile(r"[0-9a-f]{16,}(-[0-9]+)?")
_GOING = "gone-"
"""How the name of what is being deleted begins."""
LEFTOVER_AGE = 3600.0
"""Seconds after which what lies in staging/ and is locked by nobody is nobody's."""


@dataclass(slots=True)
class Collected:
    """What a collection did."""

    removed: list[str] = field(default_factory=list)
    returned: list[str] = field(default_factory=list)
    """Closures that a killed collection had renamed away and that are leased: they are back."""
    pythons: list[str] = field(default_factory=list)
    """Interpreters below ROOT/pythons that nothing had needed for long enough."""
    generations: int = 0
    dropped: list[dict[str, Any]] = field(default_factory=list)
    """What was known of each generation that went: for the audit trail, which keeps it."""
    freed: Freed = field(default_factory=Freed)
    """What came back on disk by emptying trash/."""
    in_trash: int = 0
    """Entries of trash/ that wait for their time."""
    kept: dict[str, tuple[str, ...]] = field(default_factory=dict)
    held: str | None = None
    """Why no closure went, whatever its use: there is a generation that this release does not understand."""
    leases: int = 0
    bytecode: tuple[int, int] | None = None
    """Compiled files in bytecode/ and their bytes on disk, as the last walk left them; None before the first."""
    resolutions: int = 0
    """Records of resolutions that nobody had asked for any more."""


class Collector:
    """The collector of one ROOT. One call at a time; any thread."""

    def __init__(self, retention: Retention, claims: Claims, check: Callable[[], None]) -> None:
        """`check` raises where this process is no longer the writer."""
        of = retention.holdings
        self._root = of.root
        self._files = of.files
        self._closures = of.closures
        self._generations = of.generations
        self._leases = of.leases
        self._rules = of.rules
        self._serving = of.serving
        self.retention = retention
        self._claims = claims
        self._check = check
        self._bases = Bases(of, claims, check)
        self._log = logs.get()
        age = max(of.rules.grace, LEFTOVER_AGE)
        self._bytecode = Sweep(of.files, of.root.bytecode, age, unlinked, check, hurried=LEFTOVER_AGE)
        age = max(of.rules.grace, of.rules.resolution_age) + TOUCHED
        self._resolutions = Sweep(of.files, of.root.state / "resolutions", age, unasked, check)
        # What is gone of these is validated once more, if anybody asks.
        self._validated = Sweep(of.files, of.root.state / "validated", age, unasked, check)

    def collect(self, *, hurry: bool = False, done: Collected | None = None) -> Collected:
        """Removes what nothing uses; in a `hurry`, at low space, trash/ is emptied at once.

        Raises `StoreError` (also `LostWriter`) and `OSError`; what was done until then is in `done`.
        """
        done = Collected() if done is None else done
        self._check()
        self.bring_back(done)
        plan = self.retention.plan()
        done.leases = plan.leases
        done.held = plan.held
        if plan.held is not None:
            self._log.warning("no closure is collected", why=plan.held)
        if hurry:
            # First: on a full disk the rest may need the room.
            self._empty_trash(plan.now, 0.0, done)
        held: set[str | None] = set()
        if plan.drop:
            dropped = set()
            for spec_id, number in plan.drop:
                if self._drop(spec_id, number, done):
                    dropped.add((spec_id, number))
                    done.generations += 1
            plan = self.retention.after(plan, dropped)
            # Not so those that could not be dropped, because a step may be about to serve one of them.
            held = {self.retention.name_of(spec_id, number) for spec_id, number in plan.drop}
        done.kept = dict(plan.kept)
        if plan.remove:
            # The first look may be long ago by now.
            runs = self.retention.running().closures
            for name in plan.remove:
                if name in held:
                    done.kept[name] = ("a generation that a step of this daemon has claimed",)
                elif name in runs:
                    done.kept[name] = ("a process of this host runs from it",)
                elif (why := self._remove(name, plan.now, noted=name in plan.noted)) is None:
                    done.removed.append(name)
                else:
                    done.kept[name] = (why,)
        # After the closures: what only they used is unused since this moment.
        try:
            for name in self._bases.collect(plan):
                done.pythons.append(name)
        except OSError as error:
            # They stay; what follows does not wait for them.
            self._log.warning("pythons not collected", error=str(error))
        self._leases.sweep(plan.now)
        self._closures.recover(self._leftovers(plan.now))
        self._empty_trash(plan.now, 0.0 if hurry else self._rules.trash_age, done)
        self._bytecode.run(plan.now, done.freed, hurry=hurry)
        done.bytecode = self._bytecode.walked
        done.resolutions = self._resolutions.run(plan.now, done.freed, hurry=hurry)
        self._validated.run(plan.now, done.freed, hurry=hurry)
        return done

    def _drop(self, spec_id: str, number: int, done: Collected) -> bool:
        self._check()
        facts: dict[str, Any] = {"spec": spec_id, "generation": number}
        try:
            # Read before it is in trash/.
            if (known := self._generations.read(spec_id, number)) is not None:
                facts = self._generations.facts(known)
        except NewerForm:
            # It has come since the plan's look.
            return False
        except (OSError, AttributeError, TypeError):
            # One whose metadata a hand has spoilt goes all the same.
            pass

        def action() -> bool:
            serving = self._serving() or {}
            if any(one.generation == number for one in serving.get(spec_id, ())):
                return False
            if self.retention.pinned(spec_id) == number:
                return False
            self._generations.drop(spec_id, number)
            return True

        # A step that found this generation a moment ago is about to serve it.
        if not self._claims.unless_claimed(spec_id, action):
            return False
        done.dropped.append(facts)
        self._log.info("generation dropped", spec=spec_id, generation=number)
        return True

    def _remove(self, name: str, now: float, *, noted: bool) -> str | None:
        """Takes one out of the store; why it stays, where it does."""
        self._check()
        why = "it came into use a moment ago"
        path = self._root.closure(name)
        trashed = self._root.trash / f"{name}.{uuid.uuid4().hex}"
        # Looked at outside of the lock: leases may lie on a mount that hangs, and every step claims.
        if self._leased(name, now):
            return why

        def action() -> bool:
            nonlocal why
            serving = self._serving() or {}
            if any(one.name == name for served in serving.values() for one in served):
                return False
            if name in self._generations.recorded:
                # A generation came to use it since the plan, whose step may have ended without a publication.
                return False
            if noted and name not in self.retention.closures_left.known():
                # Served again since the plan, and left once more: its grace period has only begun.
                return False
            try:
                self._files.rename(path, trashed)
            except PermissionError as error:
                # Somebody else's, who called it like a closure: it keeps nothing else from being collected.
                why = f"{error.strerror}: it belongs to another user"
                return False
            return True

        # Under the lock of the claims: a step of this daemon that needs it comes before or after.
        if not self._claims.unless_claimed(digest_of(name), action):
            return why
        # A holder writes its lease first and looks for the closure then, we rename first and look for leases
        # then: one of the two sees the other.
        try:
            leased = self._leased(name, now)
        except BaseException:
            # Who uses it can't be told: it counts as in use.
            self._put_back(trashed, path)
            raise
        if leased:
            self._put_back(trashed, path)
            return why
        self._log.info("closure removed", digest=name)
        # Killed before this: the next plan forgets what is not in the store.
        self.retention.closures_left.forget(name)
        self._leases.clean(name, now)
        return None

    def _leased(self, name: str, now: float) -> bool:
        """Whether a lease is in force, or was given back so lately that the grace period has only begun."""
        found = self._leases.on(name, now)
        return bool(found.held) or (found.left is not None and max(0.0, now - found.left) < self._rules.grace)

    def _put_back(self, trashed: Path, path: Path) -> None:
        # Where it was built again meanwhile, its holders have the new one by the same name.
        if not os.path.lexists(path):
            self._files.rename(trashed, path)

    def bring_back(self, done: Collected) -> None:
        """Closures in trash/ that somebody leased while they went there, and whose collector was killed."""
        names = set(self._leases.names())
        for path in _entries(self._root.trash):
            name = path.name.partition(".")[0]
            # Anybody may make a lease folder of any name: only what is a sealed closure comes back.
            if name not in names or not _CLOSURE.fullmatch(name) or not (path / "manifest").is_file():
                continue
            if os.path.lexists(self._root.closure(name)):
                continue
            if self._leases.on(name, self._files.server_time(self._root.staging)).held:
                self._check()
                self._files.rename(path, self._root.closure(name))
                done.returned.append(name)
                self._log.warning("closure brought back: it is leased", digest=name)

    def _empty_trash(self, now: float, age: float, done: Collected) -> None:
        for path in _entries(self._root.trash):
            going = path
            try:
                if not path.name.startswith(_GOING):
                    # A rename sets the ctime, by the server's clock: of what this run moved it is after `now`.
                    if age > 0 and now - path.lstat().st_ctime < age:
                        done.in_trash += 1
                        continue
                    # Half-removed, it must not be taken for the closure that it was.
                    going = path.with_name(f"{_GOING}{uuid.uuid4().hex}")
                    self._check()
                    self._files.rename(path, going)
                self._check()
                freed = self._files.remove_tree(going)
            except FileNotFoundError:
                continue
            except OSError as error:
                # In use (NFS keeps .nfs… names for what a client has open): the next collection tries again.
                done.in_trash += 1
                self._log.warning("not removed from trash", path=str(going), error=str(error))
                continue
            done.freed.bytes += freed.bytes
            done.freed.inodes += freed.inodes

    def _leftovers(self, now: float) -> set[str]:
        """What lies in staging/ for so long that nobody is in the middle of making it."""
        found = set()
        for path in _entries(self._root.staging):
            with contextlib.suppress(FileNotFoundError):
                if now - path.lstat().st_ctime >= LEFTOVER_AGE:
                    found.add(path.name.removesuffix(".lock"))
        return found


def _entries(folder: Path) -> list[Path]:
    return sorted(folder / name for name in os.listdir(folder))
