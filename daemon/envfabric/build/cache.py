"""What the project does to uv's cache (ROOT/uv_cache): forgets distributions, and evicts what nobody links.

Environments are hardlinks of the cache's files: while the cache keeps a wheel, removing its last closure
frees nothing; and a wheel that is evicted while closures link it is unpacked anew by the next build, and
shared with none of them. Touches nothing of store/. It knows of uv's layout only what eviction needs, for
one version of it: in any other nothing is evicted.
"""

import contextlib
import fcntl
import itertools
import math
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import InvalidName, canonicalize_name

from envfabric.build.uv import Uv, failure
from envfabric.core.errors import Reason, SpecError, StoreError
from envfabric.store.files import Files
from envfabric.store.root import Root
from envfabric.telemetry import logs

_ARCHIVES = "archive-v0"
"""Holds one folder for each unpacked wheel, named at random."""

_WHEELS = "wheels-v7"
"""Holds a pointer to each: a symlink `<version>-<tags>`, and beside it what uv reads, `<that>.http` or `.rev`."""

_READ_BY_UV = (".http", ".rev")

_UNFINISHED = ".tmp??????"
"""Folders at the cache's top into which uv unpacks, before they get their names in the archive."""

_LOOKED_AT_AGAIN = 64
"""Files of a wheel that are opened before it goes."""


class CacheInUse(StoreError):
    """uv processes, of this host or another, worked on the cache for as long as was waited."""


@dataclass(frozen=True, slots=True)
class Evicted:
    """Unpacked wheels that were removed, and what came back: their files and folders, st_blocks * 512."""

    archives: int
    bytes: int
    inodes: int


def forget(uv: Uv, root: Root, names: Iterable[str], *, wait: float = 60.0) -> None:
    """Removes what the cache holds of these distributions, in every version, so that they are fetched anew.

    Environments keep the files that they have. Waits up to `wait` seconds for running uv processes. Raises
    `CacheInUse` after that, `StoreError` where ROOT is away, a name is none, or uv failed, and `Stopped`.
    """
    try:
        wanted = sorted({canonicalize_name(name, validate=True) for name in names})
    except InvalidName as error:
        raise StoreError(
            f"uv's cache was left as it is: {error}. Name distributions as uv.lock does."
        ) from error
    # Without a name uv would empty the whole cache.
    if wanted:
        _clear(uv, root, ["cache", "clean", "--", *wanted], wait)


def server_time(root: Root) -> float | None:
    """The file server's clock, by which what was unpacked from now on can be told; None where there is no cache yet."""
    with contextlib.suppress(FileNotFoundError):
        return _server_time(root.uv_cache / ".lock")
    return None


def take_back(
    uv: Uv, root: Root, files: Files, names: Iterable[str], since: float | None, *, wait: float = 10.0
) -> None:
    """Removes what the cache got of these distributions since a moment, and what killed unpackings left in it.

    For a build that failed because it is too large: without a later one nothing else would remove it for days. What
    was there before stays for others. Waits up to `wait` seconds for running uv processes. Raises as `forget` does.
    """
    wanted, new = set(names), set()
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(root.uv_cache / _ARCHIVES):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                if since is None or entry.stat(follow_symlinks=False).st_mtime >= since:
                    infos = [one for one in os.listdir(entry.path) if one.endswith(".dist-info")]
                    new |= {canonicalize_name(one.rpartition("-")[0].rpartition("-")[0]) for one in infos}
    deadline = time.monotonic() + wait
    forget(uv, root, wanted & new, wait=wait)
    gone = []
    with _alone(root, deadline):
        # While nobody else is there, such a folder is one that a killed process was unpacking into.
        for path in root.uv_cache.glob(_UNFINISHED):
            gone.append(root.trash / f"uv-unfinished.{uuid.uuid4().hex}")
            files.rename(path, gone[-1])
    for path in gone:
        files.remove_tree(path)


def prune(
    uv: Uv,
    root: Root,
    files: Files,
    min_age: float,
    check: Callable[[], None] = lambda: None,
    *,
    wait: float = 10.0,
) -> Evicted:
    """Runs `uv cache prune`, then evicts the wheels unpacked over `min_age` seconds ago that nothing links.

    uv has no record of use, so the age is that of unpacking, by the file server's clock. `check` is called
    before each removal, and ends the work by raising. Waits up to `wait` seconds in all for running uv
    processes; where they do not leave the cache alone for an instant it stops at what was evicted until then.
    Raises `CacheInUse` where that is nothing, `StoreError` as `forget` does, `Stopped`, and `OSError`.
    """
    deadline = time.monotonic() + wait
    check()
    # First: what no pointer leads to, unpackings that were killed, and other versions' buckets are gone then.
    _clear(uv, root, ["cache", "prune"], wait)
    archives = bytes_ = inodes = 0
    unused = _unused(root.uv_cache, min_age)
    # Read only where needed: a readlink for each wheel.
    pointers = _pointers(root.uv_cache) if unused else {}
    for name, (size, count) in unused.items():
        archive = root.uv_cache / _ARCHIVES / name
        # Without a pointer from wheels/ it is no wheel of an index or URL, or uv has replaced it since.
        if not (pointing := pointers.get(name)):
            continue
        gone = root.trash / f"uv-archive.{uuid.uuid4().hex}"
        try:
            # For each anew: builds wait for one wheel at most.
            with _alone(root, deadline):
                if not (pointing := [path for path in pointing if _target(path) == archive]):
                    continue
                if _was_linked(archive):
                    continue
                check()
                _retire(archive, pointing, gone, files)
        except CacheInUse:
            if not archives:
                raise
            break
        except (FileNotFoundError, PermissionError):
            # Removed by uv meanwhile, or another user's: the other wheels are evicted all the same.
            continue
        files.remove_tree(gone)
        archives, bytes_, inodes = archives + 1, bytes_ + size, inodes + count
    return Evicted(archives, bytes_, inodes)


def _clear(uv: Uv, root: Root, arguments: list[str], wait: float) -> None:
    """Runs one of uv's own commands on the cache; it takes the cache's lock for itself alone."""
    # uv makes a cache where there is none: not below a mount point that lost its NAS.
    root.require_marker()
    # New builds overtake a waiting command for ever, so the wait has an end.
    extra = {"UV_LOCK_TIMEOUT": str(max(1, math.ceil(wait)))}
    try:
        finished = uv.run(arguments, cwd=root.path, extra=extra)
        if finished.code != 0 and "when waiting for lock" in finished.stderr:
            raise _in_use(root)
        if finished.code != 0:
            raise failure(f"uv {' '.join(arguments[:2])} on {root.uv_cache}", finished, Reason.STORE)
    except SpecError as error:
        # It is about ROOT, and no spec's fault.
        raise StoreError(error.message) from error


def _in_use(root: Root) -> CacheInUse:
    return CacheInUse(
        f"uv processes are using {root.uv_cache}, so nothing was removed from it. Try again when fewer builds run."
    )


@contextlib.contextmanager
def _alone(root: Root, deadline: float) -> Iterator[None]:
    """Keeps every uv process out of the cache, on any host: each holds this lock, shared, as long as it runs."""
    path = root.uv_cache / ".lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise _in_use(root) from None
                time.sleep(0.02)
        # A cache that was emptied by hand, or a remount, has another lock that uv takes.
        if not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise _in_use(root)
        yield
    finally:
        os.close(descriptor)


def _retire(archive: Path, pointing: list[Path], gone: Path, files: Files) -> None:
    """Takes an archive out of the cache, in an order that leaves a working cache wherever it is cut off."""
    # What uv reads goes first: by it, uv would install a wheel of a URL from an archive that is away, and
    # fail each time; and without the symlink alone it would link an archive that `uv cache prune` removes.
    for suffix in _READ_BY_UV:
        for pointer in pointing:
            files.unlink(pointer.with_name(pointer.name + suffix))
    # Durable before the archive's rename is: a power cut must not bring back what leads to nothing.
    for folder in {pointer.parent for pointer in pointing}:
        files.sync_folder(folder)
    for pointer in pointing:
        files.unlink(pointer)
    files.rename(archive, gone)


def _unused(cache: Path, min_age: float) -> dict[str, tuple[int, int]]:
    """Bytes and inodes of each old archive none of whose files has a second link; none in an unknown layout."""
    names = set(os.listdir(cache))
    buckets = {name for name in names if name.startswith(("archive-v", "wheels-v"))}
    if other := sorted(buckets - {_ARCHIVES, _WHEELS}):
        logs.get().warning("uv's cache has an unknown layout: unused wheels stay in it", buckets=other)
    if buckets != {_ARCHIVES, _WHEELS} or ".lock" not in names:
        return {}
    now = _server_time(cache / ".lock")
    found = {}
    for entry in os.scandir(cache / _ARCHIVES):
        with contextlib.suppress(FileNotFoundError, PermissionError):
            status = entry.stat(follow_symlinks=False)
            # A wheel that was unpacked for a build that has not linked it yet looks unused, too.
            if not stat.S_ISDIR(status.st_mode) or now - status.st_mtime < min_age:
                continue
            if (taken := _taken(Path(entry.path))) is not None:
                found[entry.name] = (taken[0] + status.st_blocks * 512, taken[1] + 1)
    return found


def _taken(archive: Path) -> tuple[int, int] | None:
    """Bytes and inodes below an archive, or None at the first file that has a second link.

    One with a single link says nothing: RECORD never has another, and at the file system's limit uv gives
    a file a fresh inode.
    """
    size = count = 0
    for entry in _walk(archive):
        status = entry.stat(follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1:
            return None
        size += status.st_blocks * 512
        count += 1
    return size, count


def _was_linked(archive: Path) -> bool:
    """Whether a build has linked the archive since it was looked at; nobody does so during this look.

    A build links all files of a wheel but those of .dist-info and .data, which come last here: a few tell.
    """
    regular = (entry for entry in _walk(archive) if entry.is_file(follow_symlinks=False))
    for entry in itertools.islice(regular, _LOOKED_AT_AGAIN):
        # NFS gives an old link count unless the file is opened.
        descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(descriptor).st_nlink > 1:
                return True
        finally:
            os.close(descriptor)
    return False


def _walk(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Everything below a folder, each folder before what is in it; packages first, then files."""
    # No recursion: a wheel may hold a thousand folders in each other.
    pending = _listed(folder)
    while pending:
        entry = pending.pop()
        yield entry
        if entry.is_dir(follow_symlinks=False):
            pending += _listed(entry.path)


def _listed(folder: Path | str) -> list[os.DirEntry[str]]:
    """What is in a folder, the first one last; nothing where uv has removed it meanwhile."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=_late)
    except FileNotFoundError:
        return []


def _late(entry: os.DirEntry[str]) -> tuple[bool, bool]:
    return not entry.name.endswith((".dist-info", ".data")), entry.is_dir(follow_symlinks=False)


def _pointers(cache: Path) -> dict[str, list[Path]]:
    """The pointers of wheels by the name of their archive."""
    found: dict[str, list[Path]] = {}
    for entry in _walk(cache / _WHEELS):
        if entry.is_symlink():
            target = _target(Path(entry.path))
            if target is not None and target.parent == cache / _ARCHIVES:
                found.setdefault(target.name, []).append(Path(entry.path))
    return found


def _target(pointer: Path) -> Path | None:
    """Where a symlink leads, or None where it is gone."""
    try:
        return Path(os.path.normpath(pointer.parent / os.readlink(pointer)))
    except FileNotFoundError:
        return None


def _server_time(lock: Path) -> float:
    """The file server's clock, against which ages are judged: hosts' clocks need not agree.

    uv's lock file is touched for it, since a full disk may have no room for a new one.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.utime(descriptor)
        return os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)
