"""What the file system of ROOT can do, proven by doing it, at `init` and at each start of the daemon.

All that the store relies on is tried between the folders in which it will happen: hardlinks, renames,
symlinks, modes, locks. What can't be done without is refused in words that say what to do; what only
costs something is stated. The probe works under names of its own (staging/probe-<id>, and .probe.<id> in
uv_cache/, store/, trash/ and locks/), touches nothing else, and removes them; those of a killed probe are
removed by the next one. On storage that takes 1 ms for an operation it is done in a second or two.
"""

import contextlib
import errno
import fcntl
import os
import re
import stat
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from envfabric.core.errors import ConfigError
from envfabric.store.files import Files
from envfabric.store.mounts import FULL, one_mount, refusal, shortages, user
from envfabric.store.root import Root

MOST_LINKS = 256
"""Hard links of one file that are tried: more than the network storages with a low limit (177, 178) have."""

_UNABLE = {
    errno.EPERM,
    errno.EMLINK,
    errno.EXDEV,
    errno.EEXIST,
    errno.EINVAL,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.ENOLCK,
}
"""What a file system says of an operation that it does not have."""
_MAYBE_LIMIT = {errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOTSUP, *FULL}
"""What some servers say at their link limit instead of EMLINK, and what may mean something else."""
_LOCKS = "lock files (flock)", "Mount it with locks (NFS 4, or NFS 3 with its lock service)"
_LEFTOVER = re.compile(r"(?:\.probe\.|probe-)([0-9a-f]{32})(?:\.lock)?")


@dataclass(frozen=True, slots=True)
class Probe:
    """What was found."""

    file_system: str
    """Its type as in /proc/self/mountinfo; "unknown" where the mount is not listed there."""
    link_limit: int | None
    """Names that one file can have; None: more than were asked for, or not tried (`degraded` says so)."""
    free_bytes: int
    free_inodes: int | None
    """None where the file system does not count them."""
    degraded: tuple[str, ...]
    """Sentences for people: what is missing, what it costs, what to do."""


def probe(root: Root, files: Files, most_links: int = MOST_LINKS) -> Probe:
    """Tries on ROOT all that the store relies on; its folders have to be there.

    Raises `ConfigError` where something is missing that can't be done without. A full disk refuses a ROOT
    that is new; a prepared one is only told to be full, since what it serves is not in danger.
    """
    limit: int | None = None
    degraded: list[str] = []
    try:
        mount = one_mount(root)
        space = os.statvfs(root.store)
        if space.f_flag & os.ST_NOEXEC:
            raise ConfigError(
                f"{root.path} is mounted noexec (at {mount.point}): programs and native modules of the "
                "environments could not be loaded from it. Mount it without noexec, on every node."
            )
        if space.f_flag & os.ST_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(root.path))
        try:
            limit, degraded = _try_all(root, files, most_links)
        except OSError as error:
            if error.errno not in FULL or not root.marker.is_file():
                raise
            degraded = [
                f"{error.strerror} on {root.path}: links, renames and locks could not be tried, and nothing "
                "can be built; what is published goes on working. Free space (envfabric gc), or enlarge it."
            ]
    except OSError as error:
        raise refusal(root.path, error, "probing it") from error
    return Probe(
        file_system=mount.kind,
        link_limit=limit,
        free_bytes=space.f_bavail * space.f_frsize,
        free_inodes=space.f_favail if space.f_files else None,
        degraded=(*degraded, *shortages(root, mount, space)),
    )


def is_leftover(name: str) -> bool:
    """Whether a name in one of ROOT's folders is a probe's, of a live one or one that was killed."""
    return _LEFTOVER.fullmatch(name) is not None


def _try_all(root: Root, files: Files, most_links: int) -> tuple[int | None, list[str]]:
    """The link limit and what is degraded. Raises `ConfigError` and `OSError`; removes what it made."""
    name, descriptor = _hold(root, files)
    try:
        try:
            _remove_dead(root, files, name)
            _try_lock(root, files, name)
            found = _try_files(root, files, name, most_links)
        except BaseException:
            with contextlib.suppress(OSError):
                _remove(root, files, name)
            raise
        # Removing is one of the things that have to work.
        _remove(root, files, name)
    finally:
        os.close(descriptor)
    return found


def _hold(root: Root, files: Files) -> tuple[str, int]:
    """A new id, and the descriptor that keeps staging/probe-<id> from being emptied by recovery.

    Its lock file is the first thing made and the last one removed: whatever has a probe's name and no
    locked file of that id is dead.
    """
    for _ in range(8):
        name = uuid.uuid4().hex
        lock = _lock_of(root, name)
        try:
            files.write_new(lock, b"", mode=0o600)
            descriptor = _locked(root, lock)
        except BaseException:
            with contextlib.suppress(OSError):
                files.unlink(lock)
            raise
        if descriptor is not None:
            return name, descriptor
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(lock))


def _locked(root: Root, lock: Path) -> int | None:
    """The lock file's descriptor; None where a recovery or another probe took it for dead meanwhile."""
    with contextlib.ExitStack() as stack, contextlib.suppress(FileNotFoundError, BlockingIOError):
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        with _needed(root, *_LOCKS):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), lock.stat()):
            stack.pop_all()
            return descriptor
    return None


def _try_lock(root: Root, files: Files, name: str) -> None:
    """A lock that excludes nobody, and says nothing of it, is worse than none."""
    path = root.locks / f".probe.{name}"
    files.write_new(path, b"")
    with contextlib.ExitStack() as stack:
        first, second = (os.open(path, os.O_RDWR | os.O_CLOEXEC) for _ in range(2))
        stack.callback(os.close, first)
        stack.callback(os.close, second)
        with _needed(root, *_LOCKS):
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
    raise ConfigError(
        f"{root.path}: a lock in locks/ does not exclude a second one, so two daemons would both write. Mount "
        "it so that flock works (NFS 4, or NFS 3 with its lock service), or choose another file system."
    )


def _try_files(root: Root, files: Files, name: str, most_links: int) -> tuple[int | None, list[str]]:
    """Each operation between the folders in which the store does it."""
    hidden = f".probe.{name}"
    source, work = root.uv_cache / hidden, root.staging / f"probe-{name}"
    for folder in (work, work / "closure", work / "links", work / "gone"):
        files.make_folder(folder)
    with _needed(root, "change modes", "Choose a file system with the modes of POSIX"):
        files.write_new(source, b"probe", mode=0o444)
        files.write_new(work / "program", b"old", mode=0o755)
    degraded = _modes(root, source, work / "program")

    linked = work / "closure" / "file"
    todo = "Choose a file system that has hard links, and take mounts below ROOT away"
    with _needed(root, "hardlink from uv_cache/ to staging/", todo):
        files.link(source, linked)
    if not os.path.samefile(source, linked):
        raise ConfigError(f"{root.path}: a hardlink became a copy. Choose a file system that has hard links.")
    # Where attributes are cached, a count is only true after opening.
    with linked.open("rb") as file:
        if os.fstat(file.fileno()).st_nlink < 2:
            degraded.append(
                f"{root.path} does not tell how many links a file has: files are shared, and all of them are "
                "counted as copies. Choose another file system or mount where that matters."
            )

    with _needed(root, "replace a file by renaming another over it", "Choose another file system"):
        files.write_new(work / "new", b"new")
        files.rename(work / "new", work / "program")
    if (work / "program").read_bytes() != b"new":
        raise ConfigError(
            f"{root.path}: a file that was renamed over another did not replace it. Choose another file system."
        )
    with _needed(root, "make symlinks and replace them by rename", "Choose a file system that has symlinks"):
        files.symlink(work / "symlink", "old")
        files.flip_symlink(work / "symlink", "new")
        if os.readlink(work / "symlink") != "new":
            raise OSError(errno.ENOTSUP, "the old target stayed")
    for start, end in (
        (work / "closure", root.store / hidden),
        (root.store / hidden, root.trash / hidden),
        (work / "gone", root.trash / hidden / "gone"),
    ):
        names = f"{start.relative_to(root.path).parts[0]}/ to {end.relative_to(root.path).parts[0]}/"
        with _needed(root, f"rename folders from {names}", "Put both on one mount of one file system"):
            files.rename(start, end)

    limit = _count_links(files, source, work / "links", most_links)
    if limit is not None:
        degraded.append(
            f"{root.path} allows {limit} hard links of one file (tried up to {most_links}): a file that many "
            f"environments share is stored once for every {limit - 1} of them. Allow for that space, or choose "
            "storage with a higher limit."
        )
    return limit, degraded


def _modes(root: Root, sealed: Path, program: Path) -> list[str]:
    """What of modes is not kept. `sealed` was made 0444, `program` 0755."""
    degraded = []
    status, shown = sealed.stat(), stat.S_IMODE(program.stat().st_mode)
    if not shown & stat.S_IXUSR:
        raise ConfigError(
            f"{root.path}: a file made with mode 0755 has mode {shown:04o}: programs of the environments could "
            "not be started. Mount it so that modes are kept."
        )
    mode = stat.S_IMODE(status.st_mode)
    if (mode, shown) != (0o444, 0o755):
        degraded.append(
            f"{root.path} does not keep modes (0444 became {mode:04o}, 0755 became {shown:04o}): sealed "
            "environments are not protected from writing, and a changed mode is not found. Mount it so that "
            "modes are kept, or give consumers a read-only mount."
        )
    owner = root.uv_cache.stat().st_uid
    if owner != status.st_uid:
        degraded.append(
            f"uv_cache/ belongs to {user(owner)}, and what is written here now to {user(status.st_uid)}: who "
            "does not own a file in the cache may have to copy instead of link. Run all builders as "
            f"{user(owner)}."
        )
    return degraded


def _count_links(files: Files, source: Path, folder: Path, most_links: int) -> int | None:
    """How many names `source` can have; it has two. None: more than `most_links`."""
    for names in range(2, most_links + 1):
        try:
            files.link(source, folder / str(names))
        except OSError as error:
            if error.errno not in {errno.EMLINK, *_MAYBE_LIMIT}:
                raise
            if error.errno != errno.EMLINK:
                # If that was this file's limit, another file can still be linked here; else this raises.
                files.write_new(folder / "other", b"probe")
                files.link(folder / "other", folder / "again")
            return names
    return None


@contextlib.contextmanager
def _needed(root: Root, what: str, todo: str) -> Iterator[None]:
    """Turns the answer of a file system that does not have an operation into a refusal."""
    try:
        yield
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _UNABLE:
            raise
        raise ConfigError(f"{root.path} can't {what}: {error.strerror}. {todo}.") from error


def _lock_of(root: Root, name: str) -> Path:
    return root.staging / f"probe-{name}.lock"


def _remove(root: Root, files: Files, name: str) -> None:
    """Removes all that the probe `name` made, its lock file last."""
    files.remove_tree(root.staging / f"probe-{name}")
    for folder in (root.uv_cache, root.store, root.trash, root.locks):
        files.remove_tree(folder / f".probe.{name}")
    files.unlink(_lock_of(root, name))


def _remove_dead(root: Root, files: Files, own: str) -> None:
    """Removes what earlier probes left that were killed; what can't be removed waits for the next one."""
    found = set()
    for folder in (root.staging, root.uv_cache, root.store, root.trash, root.locks):
        found |= {match[1] for name in os.listdir(folder) if (match := _LEFTOVER.fullmatch(name))}
    for name in found - {own}:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(_lock_of(root, name), os.O_RDWR | os.O_CLOEXEC)
                stack.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(root, files, name)
