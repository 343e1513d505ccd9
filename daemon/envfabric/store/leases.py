"""Leases, as the daemon reads them: which closures a consumer anywhere says it is using, and until when.

The protocol is docs/leases.md; whoever holds a lease writes it, with plain file operations, and this
module never does: it reads, and takes away what has expired of closures that are gone. All times are
the file server's, in seconds since 1970. What can't be read is never taken for "no lease".
"""

import contextlib
import errno
import json
import math
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envfabric.core.errors import ConfigError, StoreError
from envfabric.core.ids import shown
from envfabric.store.files import Files
from envfabric.store.root import Root, read_marker, write_marker

DEFAULT_TTL = 300.0
"""Seconds for which a lease is in force after its last renewal where its content does not say."""
LONGEST_TTL = 86400.0
LARGEST = 4096
"""Most bytes of a lease's content that are looked at."""
PROOF = ".envfabric-leases"
"""The file in a lease folder outside ROOT that tells it from an empty mount point."""

_KEY = "leases"
_DOCTOR = ".doctor."
"""What `envfabric doctor` tries in the lease folder begins so (client/doctor.py)."""
_TRIES = 4
_NOT_A_FOLDER = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
_NO_CONTENT = {errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO}
"""What opening a lease says that is there and can't be read: another user's, a symlink, a socket."""


@dataclass(frozen=True, slots=True)
class Held:
    """One lease."""

    holder: str
    host: str
    pid: int | None
    what: str
    renewed: float
    ttl: float
    uid: int | None = None
    """Whose file it is; None where that can't be known."""
    since: float | None = None
    """The server time at which it was taken, as its holder read it there; None where it does not say."""

    @property
    def until(self) -> float:
        """The server time at which it ends, unless it is renewed."""
        return self.renewed + self.ttl


@dataclass(frozen=True, slots=True)
class Leased:
    """What one closure's lease folder says, by one look."""

    held: list[Held]
    """The leases in force."""
    left: float | None
    """The server time at which the last of all its leases ended, or ends; None where nobody ever had one."""


class Leases:
    """The leases on one ROOT."""

    def __init__(self, root: Root, files: Files) -> None:
        self._root = root
        self._files = files

    def place(self) -> Path:
        """The folder of the leases. Raises `StoreError` where it can't be trusted: nothing is collected then."""
        try:
            recorded = read_marker(self._root).get(_KEY)
        except ConfigError as error:
            raise StoreError(str(error)) from error
        if recorded is not None and not (isinstance(recorded, str) and os.path.isabs(recorded)):
            raise StoreError(
                f"{self._root.marker}: {_KEY!r} must be an absolute path, and is {recorded!r}. Set leases in "
                "the settings and start the daemon again."
            )
        folder = Path(recorded) if recorded is not None else self._root.leases
        try:
            # Opened, not only looked at: a client of a network file system then sees the newest names.
            os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            if recorded is not None:
                os.stat(folder / PROOF)
            elif folder.is_symlink():
                # It may lead to the empty mount point of another file system: `use` records it, with a proof.
                raise StoreError(
                    f"{folder} is a symlink that is not recorded yet: start the daemon, or set leases."
                )
        except FileNotFoundError as error:
            hint = (
                f"Mount it; where it is the right folder and only the file was lost: touch {folder / PROOF}"
                if recorded is not None
                else f"Make it again: envfabric init {self._root.path}"
            )
            raise StoreError(
                f"{error.filename} is not there, so who uses what is not known. {hint}"
            ) from None
        except OSError as error:
            raise _unreadable(folder, error) from error
        return folder

    def use(self, folder: Path | None) -> None:
        """Makes `folder` the place of the leases, or ROOT/leases where it is None, and records it.

        A folder that is recorded already is left as it is: without its proof it is an unmounted one, and
        `place` says so. Raises `ConfigError` for a new one that can't be used, `OSError` for ROOT's faults.
        """
        own = self._root.leases
        if folder is None and own.is_symlink():
            folder = own
        elif folder is not None and Path(os.path.normpath(folder)) == own and not own.is_symlink():
            folder = None
        marker = read_marker(self._root)
        wanted = None if folder is None else str(folder)
        if marker.get(_KEY) == wanted:
            return
        if folder is not None:
            self._prove(folder)
        kept = {name: value for name, value in marker.items() if name not in {_KEY, "schema"}}
        # After the proof: a record without it would stop every collection.
        write_marker(self._root, self._files, kept if wanted is None else {**kept, _KEY: wanted})

    def survey(self, server_now: float, go_on: Callable[[], None] = lambda: None) -> dict[str, Leased]:
        """What is said of each closure that has a lease folder, each folder read once.

        A closure whose own lease folder may not be read counts as leased: one user's `chmod` neither ends
        leases nor stops the collection of everything else. Raises `StoreError` where it can't be known.
        `go_on` is called before each of them, and may raise to end it.
        """
        place = self.place()
        found: dict[str, Leased] = {}
        for name in self._names(place):
            go_on()
            found[name] = self._leased(place, name, server_now)
        return found

    def names(self) -> list[str]:
        """The closures that have a lease folder, whether they are there or not. Raises `StoreError`."""
        return self._names(self.place())

    def on(self, name: str, server_now: float) -> Leased:
        """What is said of one closure. Raises `StoreError`.

        For the look after a closure was renamed away: its holder writes the lease first and looks at the
        closure then, the collector renames first and looks at the leases then. One of them sees the other.
        """
        # Its place is found anew each time: what vanished with a mount since must not look like "no lease".
        return self._leased(self.place(), name, server_now)

    def clean(self, name: str, server_now: float) -> None:
        """Removes the expired leases of a closure that was collected, and their folder once it is empty.

        A lease made at this very moment stays, with its folder. What belongs to other users, in a folder
        of theirs, may stay, too: it claims nothing any more. Raises `StoreError`.
        """
        folder = self.place() / name
        try:
            with _opened(folder) as descriptor:
                if descriptor is None:
                    return
                for holder in os.listdir(descriptor):
                    if _ended(descriptor, holder, server_now):
                        # By descriptor, and not by a path through the seam: its owner may put a symlink
                        # in the folder's place meanwhile, and ours would be removed at its other end.
                        with contextlib.suppress(FileNotFoundError, PermissionError, IsADirectoryError):
                            os.unlink(holder, dir_fd=descriptor)
            # Not with what is in it: whoever leases now finds the folder, or makes it anew.
            self._files.remove_folder(folder)
        except PermissionError:
            return
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.ENOTDIR}:
                raise _unreadable(folder, error) from error

    def sweep(self, server_now: float) -> None:
        """Removes what a doctor that was killed left among the leases, once it is a day old. Raises `StoreError`.

        What belongs to other users may stay: it claims nothing.
        """
        place = self.place()
        try:
            left = [name for name in os.listdir(place) if name.startswith(_DOCTOR)]
        except OSError as error:
            raise _unreadable(place, error) from error
        for name in left:
            with contextlib.suppress(OSError), _opened(place / name) as descriptor:
                if descriptor is None or os.fstat(descriptor).st_mtime + LONGEST_TTL >= server_now:
                    continue
                # By descriptor, as in `clean`: another user may put a symlink in its place.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink("probe", dir_fd=descriptor)
                self._files.remove_folder(place / name)

    def _names(self, place: Path) -> list[str]:
        try:
            return sorted(name for name in os.listdir(place) if not name.startswith("."))
        except OSError as error:
            raise _unreadable(place, error) from error

    def _leased(self, place: Path, name: str, server_now: float) -> Leased:
        try:
            changed, found = _look(place / name)
        except PermissionError:
            what = f"{place / name} can't be read by the daemon (chmod 1777 it): counted as a lease"
            return Leased([Held("?", "?", None, what, server_now, DEFAULT_TTL)], math.inf)
        except OSError as error:
            raise _unreadable(place / name, error) from error
        if changed is None:
            return Leased([], None)
        held = sorted((one for one in found if one.until >= server_now), key=lambda one: one.holder)
        # A lease that was given back has changed its folder's mtime by that.
        return Leased(held, max([changed, *(one.until for one in found)]))

    def _prove(self, folder: Path) -> None:
        """Writes the proof into a folder that becomes the place of the leases. Raises `ConfigError`."""
        if not folder.is_absolute():
            raise ConfigError(f"leases = {str(folder)!r} must be an absolute path, the same on every node.")
        try:
            os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
            if not os.path.exists(folder / PROOF):
                text = json.dumps({"schema": 1, "root": str(self._root.path)})
                self._files.write_atomic(folder / PROOF, text.encode())
        except OSError as error:
            raise ConfigError(
                f"leases = {str(folder)!r} can't be used: {error.strerror}. Make it a folder that the daemon and "
                f"all workers can write, or mount what belongs there: mkdir -m 1777 {folder}"
            ) from error


def _unreadable(path: Path, error: OSError) -> StoreError:
    return StoreError(
        f"the leases in {path} can't be read: {error.strerror or error}. Nothing is collected until they can: "
        "check the mount, and that the daemon's user may read them."
    )


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int | None]:
    """A descriptor of a closure's lease folder; None where nobody leased it, or it is something else."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in _NOT_A_FOLDER:
            raise
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _look(folder: Path) -> tuple[float | None, list[Held]]:
    """The mtime of a closure's lease folder, None where there is none, and all leases in it. Raises `OSError`."""
    with _opened(folder) as descriptor:
        if descriptor is None:
            return None, []
        found = (_lease(descriptor, holder) for holder in os.listdir(descriptor))
        held = [one for one in found if one is not None]
        return os.fstat(descriptor).st_mtime, held


def _lease(folder: int, holder: str) -> Held | None:
    """One lease, in force or not; None where it was given back since it was listed. Raises `OSError`."""
    if holder.startswith("."):
        return None
    for tries_left in reversed(range(_TRIES)):
        try:
            return _read(folder, holder)
        except FileNotFoundError:
            return None
        except OSError as error:
            # NFS says ESTALE of a lease that was replaced or given back since it was opened: look again.
            if error.errno != errno.ESTALE or not tries_left:
                raise
    return None


def _ended(folder: int, holder: str, server_now: float) -> bool:
    """Whether a file in a closure's lease folder claims nothing any more. Raises `OSError`."""
    if not holder.startswith("."):
        held = _lease(folder, holder)
        return held is not None and held.until < server_now
    if holder.startswith(".nfs"):
        return False
    # A lease that is being written, or what a crash left of one a day ago.
    with contextlib.suppress(FileNotFoundError):
        status = os.stat(holder, dir_fd=folder, follow_symlinks=False)
        return status.st_mtime + LONGEST_TTL < server_now
    return False


def _read(folder: int, holder: str) -> Held:
    content = b""
    # NONBLOCK: a named pipe must not hold the collector up. Opened even for its status: a client of a
    # network file system may give a minute-old mtime otherwise.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = os.open(holder, flags, dir_fd=folder)
    except OSError as error:
        if error.errno not in _NO_CONTENT:
            raise
        status = os.stat(holder, dir_fd=folder, follow_symlinks=False)
    else:
        try:
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode):
                content = os.read(descriptor, LARGEST + 1)
        finally:
            os.close(descriptor)
    told = _parse(content)
    ttl, pid = told.get("ttl"), told.get("pid")
    valid = isinstance(ttl, int | float) and not isinstance(ttl, bool) and 0 < ttl <= LONGEST_TTL
    since = told.get("since")
    # Only for people, and only where it can be true: nothing was taken after it was renewed.
    known = isinstance(since, int | float) and not isinstance(since, bool) and 0 < since <= status.st_mtime
    return Held(
        holder=shown(holder, 200),
        host=_text(told.get("host")),
        pid=pid if isinstance(pid, int) and not isinstance(pid, bool) else None,
        what=_text(told.get("what")),
        renewed=status.st_mtime,
        ttl=float(ttl) if valid and ttl is not None else DEFAULT_TTL,
        uid=status.st_uid,
        since=float(since) if known and since is not None else None,
    )


def _parse(content: bytes) -> dict[str, Any]:
    """What a lease says; nothing where it is too large or can't be understood: it counts all the same."""
    if not content or len(content) > LARGEST:
        return {}
    try:
        told = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _text(value: object) -> str:
    return shown(value, 200) if isinstance(value, str) else "?"
