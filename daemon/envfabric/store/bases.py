"""The interpreters that daemons have brought to ROOT/pythons: which of them no closure needs any more, and their way
out, by trash/ as a closure's is.

One is in use while a closure in store/ or trash/, a retained generation, a process of this host or a step of this
daemon has it, and for the grace period after the last of them; what can't be read counts as in use. What somebody put
there by hand has no mark, and stays. Knows no uv, and chooses nothing.
"""

import contextlib
import errno
import functools
import os
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envfabric.store.claims import Claims
from envfabric.store.generations import Generations
from envfabric.store.left import Left
from envfabric.store.processes import running
from envfabric.store.retention import Holdings, Plan
from envfabric.store.root import Root
from envfabric.telemetry import logs

MARK = ".envfabric.json"
"""A file in the folder of an interpreter that a daemon has brought: the next one could be brought again."""
YOUNGEST = 3600.0
"""Seconds for which one stays at least, also without a grace period: it was brought for somebody."""


@dataclass(frozen=True, slots=True)
class Unused:
    """What is known of the interpreters that daemons have brought."""

    remove: list[str] = field(default_factory=list)
    """Names below ROOT/pythons of those that go."""
    kept: dict[str, str] = field(default_factory=dict)
    """Why the others stay."""
    stored: frozenset[str] = frozenset()
    """The closures that were looked at."""


class Bases:
    """The interpreters below one ROOT. One call at a time; any thread."""

    def __init__(self, holdings: Holdings, claims: Claims, check: Callable[[], None]) -> None:
        """`check` raises where this process may not remove anything any more."""
        self._root = holdings.root
        self._files = holdings.files
        self._generations = holdings.generations
        self._rules = holdings.rules
        self._claims = claims
        self._check = check
        self._left = Left(holdings.root, holdings.files, "pythons")
        # What bin/python of each closure names, which never changes. Where a link on that way leads can.
        self._named: dict[Path, str] = {}
        self._log = logs.get()

    def collect(self, plan: Plan) -> Iterator[str]:
        """Removes what nothing has needed for long enough, one after another; gives the name of each that is gone.

        Raises `StoreError` and `OSError`.
        """
        found = self.look(plan)
        yield from (name for name in found.remove if self._remove(name, found.stored))

    def look(self, plan: Plan, *, dry: bool = False) -> Unused:
        """What would go by a plan of the collector; `dry`: nothing is written. Raises `StoreError` and `OSError`."""
        brought = _brought(self._root)
        if not dry:
            # Of those that went by another way, or just before a crash.
            for name in self._left.known() - brought:
                self._left.forget(name)
        if not brought:
            return Unused()
        stored = frozenset(name for name in os.listdir(self._root.store) if not name.startswith("."))
        found = Unused(stored=stored)
        named: dict[Path, str] = {}
        used = self._used(stored, named)
        old = []
        for name in sorted(brought):
            if (why := used.get(name) or used.get("")) is not None:
                found.kept[name] = why
                if not dry:
                    self._left.forget(name)
            elif (why := self._young(name, plan.now, dry=dry)) is not None:
                found.kept[name] = why
            else:
                old.append(name)
        # Only now: there is mostly none, and each generation's metadata is a file of its own.
        needed = self._needed(plan, dry=dry) if old else {}
        for name in old:
            if (why := needed.get(name) or needed.get("")) is None:
                found.remove.append(name)
                continue
            found.kept[name] = why
            if not dry:
                self._left.forget(name)
        # What vanished with a mount in the middle of this was read as not there.
        self._root.require_marker()
        self._named = named
        return found

    def _used(self, stored: frozenset[str], named: dict[Path, str]) -> dict[str, str]:
        """What the closures that are there, also in trash/, and the processes of this host run on, and which; "" where
        a closure can't be read. What the closures name is added to `named`.
        """
        used = {}
        leads = functools.cache(functools.partial(_leads, self._root))
        places = {self._root.closure(name): f"closure {name}" for name in sorted(stored)}
        # It may be brought back.
        trashed = self._root.trash.iterdir()
        places |= {path: f"closure {path.name}, in trash/" for path in trashed}
        for path, closure in places.items():
            try:
                if (link := self._named.get(path) or _link_of(path)) is None:
                    # Not remembered: a mount that is away for a moment looks the same.
                    continue
                named[path] = link
                python = leads(link)
            except OSError as error:
                used[""] = f"{closure} can't be read: {error.strerror}"
                continue
            if python is not None:
                used.setdefault(python, closure)
        if self._rules.scan:
            for name, process in running(self._root).pythons.items():
                try:
                    # A command line may have uv's link for the minor version.
                    python = leads(str(self._root.pythons / name))
                except OSError as error:
                    if error.errno != errno.ENAMETOOLONG:
                        raise
                    # Anybody's command line may have anything in it.
                    continue
                if python is not None:
                    used.setdefault(python, f"process {process} of this host")
        return used

    def _needed(self, plan: Plan, *, dry: bool) -> Mapping[str, str]:
        """What retained generations can be built again with, and by which; "" where one can't be read."""
        needed = {}
        # Those of a real plan are gone by now, but for what a step of this daemon is about to serve.
        going = set(plan.drop) if dry else set()
        leads = functools.cache(functools.partial(_leads, self._root))
        for spec_id, numbers in plan.seen.numbers.items():
            # Thousands of files: a daemon that stops does not wait for all of them.
            self._check()
            for number in numbers:
                if (spec_id, number) in going:
                    continue
                try:
                    path = _base(self._generations, spec_id, number)
                    python = leads(path) if path is not None else None
                except OSError as error:
                    return {"": f"generation {number} of {spec_id} can't be read: {error.strerror}"}
                if python is not None:
                    needed[python] = f"generation {number} of {spec_id}"
        return needed

    def _young(self, name: str, now: float, *, dry: bool) -> str | None:
        """Why it is too early, where it is."""
        least = max(self._rules.grace, YOUNGEST)
        try:
            since = self._left.since(name) if dry else self._left.note(name)
        except OSError as error:
            if dry or error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            # On a full disk what was noted before goes all the same.
            since = None
        if since is not None and now - since >= least:
            return None
        return f"unused for {max(0.0, now - (since or now)):.0f} s, it stays for {least:.0f} s"

    def _remove(self, name: str, stored: frozenset[str]) -> bool:
        self._check()
        path = self._root.pythons / name
        trashed = self._root.trash / f"{name}.{uuid.uuid4().hex}"

        def action() -> bool:
            now = {one for one in os.listdir(self._root.store) if not one.startswith(".")}
            if now - stored:
                # A build has ended since the look, and its claim with it: it may have been made from this one.
                return False
            # First: killed after the rename, the note would count against the same one that is brought once more.
            # Killed before it, the time begins anew.
            self._left.forget(name)
            self._check()
            self._files.rename(path, trashed)
            return True

        # Under the lock of the claims: a step of this daemon that needs it comes before or after.
        if not self._claims.unless_claimed(os.path.realpath(path / "bin/python3"), action):
            # In use once more, its time begins anew.
            self._left.forget(name)
            return False
        self._log.info("python removed", python=str(path))
        return True


def _brought(root: Root) -> set[str]:
    """The names of those that a daemon has brought. Raises `OSError`."""
    with os.scandir(root.pythons) as entries:
        # uv's link for a minor version is none.
        names = [
            one.name for one in entries if not one.name.startswith(".") and one.is_dir(follow_symlinks=False)
        ]
    found = set()
    for name in names:
        # No daemon has brought what this one may not look into.
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if stat.S_ISREG((root.pythons / name / MARK).lstat().st_mode):
                found.add(name)
    return found


def name_of(root: Root, path: str) -> str | None:
    """The name below ROOT/pythons of the interpreter at `path`; None for one that lies elsewhere."""
    for top in (root.pythons, Path(os.path.realpath(root.pythons))):
        if Path(path).is_relative_to(top):
            return next(iter(Path(path).relative_to(top).parts), None)
    return None


def _link_of(closure: Path) -> str | None:
    """What a closure's own bin/python names, as a full path; None where there is no such link. Raises `OSError`."""
    folder = closure / ".venv/bin"
    try:
        return os.path.join(folder, os.readlink(folder / "python"))
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.EINVAL}:
            return None
        raise


def _leads(root: Root, path: str) -> str | None:
    """The interpreter below ROOT/pythons to which a path leads in the end, also by uv's link for a minor version.

    None for one that lies elsewhere. Raises `OSError`.
    """
    try:
        return name_of(root, os.path.realpath(path, strict=True))
    except OSError as error:
        named = name_of(root, path)
        if named is not None and error.errno not in {errno.ENOENT, errno.ENOTDIR}:
            raise
        return named


def _base(generations: Generations, spec_id: str, number: int) -> str | None:
    """The path of the interpreter that a generation was made with. Raises `OSError`."""
    known = generations.read(spec_id, number)
    closure: Any = known.closure if known is not None else None
    # A hand may have spoilt it: it can't be built again from what is there.
    interpreter = closure.get("interpreter") if isinstance(closure, dict) else None
    path = interpreter.get("path") if isinstance(interpreter, dict) else None
    return path if isinstance(path, str) and "\0" not in path else None
