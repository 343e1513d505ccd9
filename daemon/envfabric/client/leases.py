"""Takes and renews a lease on a closure, so that it stays as long as it is used (docs/leases.md).

Writes below the folder of the leases and nowhere else. The lease's age is judged by the file server's
clock: a renewal sets the time "now" there, never a time of this machine.
"""

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from envfabric.client.api import answered, python
from envfabric.client.attempt import within
from envfabric.client.index import (
    PYTHON,
    EnvfabricError,
    EnvironmentFailed,
    NotReady,
    RootNotFound,
    UnknownEnvironment,
    find_root,
    read_whole,
)
from envfabric.client.wanted import DEFAULT_TIMEOUT
from envfabric.client.watch import Watch

LONGEST_TTL = 86400.0
_TRIES = 5
_PAUSE = 0.2
_WHAT_MOST = 300
_INTERPRETER = re.compile(
    r"(?P<root>/.*|)/store/(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)/\.venv/bin/python[0-9.]*"
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def lease(
    wanted: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    ttl: float = 300.0,
    what: str = "",
    timeout: float = DEFAULT_TIMEOUT,
) -> "Lease":
    """Leases the closure of a spec id, of an interpreter's path, or of that name below ROOT/store.

    It is in force when this returns, and renewed by a thread every third of `ttl` seconds until
    `release`, the end of a `with` block, or the end of this process and `ttl` seconds more. `what` is
    shown to people; `timeout` are the seconds that the NAS may take for one answer. Raises what
    `envfabric.python` raises, and `EnvfabricError` where the lease can't be written.
    """
    if not 0 < ttl <= LONGEST_TTL:
        raise ValueError(
            f"ttl={ttl!r}: a lease is in force for more than 0 and at most {LONGEST_TTL:.0f} seconds"
        )
    text = os.fspath(wanted)
    if os.path.isabs(text):
        place, name, path = answered(timeout, lambda: _of_interpreter(text, root), text)
        return _taken(Lease(place, name, path, ttl, what, timeout), text)
    # Absolute: renewals go on after a chdir.
    place = Path(os.path.abspath(find_root(root, advice=PYTHON)))
    if "/" not in text:
        if not _NAME.fullmatch(text):
            raise UnknownEnvironment(f"{text!r} is neither a spec id nor a path nor the name of a closure.")
        return _taken(Lease(place, text, f"{place}/store/{text}/.venv/bin/python", ttl, what, timeout), text)
    for left in reversed(range(_TRIES)):
        served = python(text, root=place, timeout=timeout)
        _, name, path = answered(timeout, partial(_of_interpreter, served, place), served)
        try:
            return _taken(Lease(place, name, path, ttl, what, timeout), text)
        except UnknownEnvironment:
            # Collected between the index and the lease: by now the index names another one.
            if not left:
                raise NotReady(
                    f"{text}: index.json names {path}, which is not there. Look at `envfabric status`, and "
                    "whether the NAS is mounted at the same path on this machine."
                ) from None
        time.sleep(_PAUSE)
    raise AssertionError("the last try returns or raises")


def _taken(held: "Lease", wanted: str) -> "Lease":
    """Takes it within its timeout. One that is taken later, once the NAS is back, is given back."""
    return answered(held.timeout, lambda: held.take(wanted), held.python, Lease.release)


class Lease:
    """A lease that is held. Made by `lease`; safe for threads."""

    def __init__(
        self, root: Path, name: str, python: str, ttl: float, what: str, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        self.name = name
        """The closure's name below ROOT/store."""
        self.python = python
        """The path of its interpreter."""
        self.timeout = timeout
        """Seconds for which `renew` and `release` wait for the NAS."""
        self._root = root
        self._ttl = ttl
        self._what = what[:_WHAT_MOST]
        self._pid = os.getpid()
        host = re.sub(r"[^A-Za-z0-9._-]", "-", os.uname().nodename)[:100].lstrip(".") or "host"
        self._holder = f"{host}.{self._pid}.{os.urandom(8).hex()}"
        self._path = Path()
        self._since: float | None = None
        self._lock = threading.Lock()
        self._watch = Watch(self._kept, ttl, f"lease {name[:12]}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    @property
    def present(self) -> bool:
        """Whether the closure was there, and the lease could be written, at its last renewal.

        Not either where that is `ttl` seconds ago: the lease has run out, as on a NAS that keeps a renewal waiting.
        """
        return self._watch.well

    def renew(self) -> None:
        """Renews it now, for one that has slept; the thread does it otherwise.

        Raises `EnvfabricError` where that can't be done, `RootNotFound` where the NAS does not answer, and
        `UnknownEnvironment` where the closure was collected while the lease had run out.
        """
        if self._watch.ended or os.getpid() != self._pid:
            raise EnvfabricError(
                f"the lease on {self.name} was given back, or is another process's: take a new one."
            )
        began = self._watch.now()
        there = answered(self.timeout, self._renewed, self.python)
        self._watch.note(began, there)
        if not there:
            raise UnknownEnvironment(self._gone())

    def renew_soon(self) -> None:
        """Has the thread renew it now, and see whether all is well; waits for nothing."""
        self._watch.look_soon()

    def release(self) -> None:
        """Gives it back; does nothing the second time, and in a child that inherited it by fork.

        Waits no longer than its timeout: what the NAS removes later is removed, and what it never does ends by its ttl.
        """
        if os.getpid() != self._pid:
            return
        self._watch.end()
        try:
            within(self.timeout, self._remove, f"release {self.name[:12]}")
        except RuntimeError:
            # The interpreter ends, and starts no thread any more.
            self._remove()

    def take(self, wanted: str) -> Self:
        """Writes it and looks then: a closure that was not collected before is not collected any more.

        For `lease`, and for those who wait in a thread of their own, as a NAS that is gone is waited for without an
        end. Raises as `lease` does.
        """
        began = self._watch.now()
        try:
            self._renew_or_explain()
            if not present(self._root, self.python):
                raise UnknownEnvironment(f"{wanted}: {self._gone()}")
        except BaseException:
            self.release()
            raise
        self._watch.start(began)
        return self

    def _gone(self) -> str:
        return (
            f"{self._root}/store/{self.name} is not there. It may have been collected: ask for the spec's id, "
            "or read index.json anew."
        )

    def _kept(self) -> bool:
        self._renew()
        return present(self._root, self.python)

    def _renewed(self) -> bool:
        self._renew_or_explain()
        return present(self._root, self.python)

    def _remove(self) -> None:
        # Waits for a renewal that is under way, or it would write it anew.
        with self._lock, contextlib.suppress(OSError):
            # What can't be removed now ends by itself.
            self._path.unlink()

    def _renew_or_explain(self) -> None:
        try:
            self._renew()
        except OSError as error:
            raise EnvfabricError(
                f"no lease can be written to {self._path.parent}: {error.strerror}. Let the users of all workers "
                f"write there (chmod 1777 {self._path.parent.parent}); where workers mount ROOT read-only, set "
                "leases in the daemon's settings to a folder that they can write."
            ) from error

    def _renew(self) -> None:
        # Read each time: the daemon may have been given another folder since.
        path = place_of(self._root) / self.name / self._holder
        with self._lock:
            if self._watch.ended:
                return
            if path != self._path:
                old, self._path = self._path, path
                _write(path, self._content)
                if old != Path():
                    with contextlib.suppress(OSError):
                        old.unlink()
                return
            try:
                os.utime(path)
            except OSError:
                # Gone, or of a file that this client can't reach any more: it is written anew.
                _write(path, self._content)

    def _content(self, now: float) -> bytes:
        # Since it was taken first, though it be written anew, in another place or after it vanished.
        self._since = now if self._since is None else self._since
        host = os.uname().nodename[:200]
        told: dict[str, Any] = {"schema": 1, "holder": self._holder, "host": host, "pid": self._pid}
        return json.dumps({**told, "ttl": self._ttl, "since": self._since, "what": self._what}).encode()


def present(root: Path, python: str) -> bool:
    """Whether a closure's interpreter is there, and not only in what this machine remembers of its name.

    Raises `RootNotFound` where that can't be known.
    """
    try:
        os.close(os.open(root / "store", os.O_RDONLY | os.O_DIRECTORY))
        os.lstat(python)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise RootNotFound(f"{python} can't be read: {error}") from error
    return True


def place_of(root: Path) -> Path:
    """The folder of the leases, as ROOT's marker names it. Raises `RootNotFound`."""
    marker = root / ".envfabric.json"
    try:
        told = json.loads(read_whole(marker))
        recorded = told.get("leases")
    except FileNotFoundError:
        raise RootNotFound(f"{marker} is not there. Is the NAS mounted on this machine?") from None
    except (OSError, ValueError, AttributeError) as error:
        raise RootNotFound(f"{marker} can't be read: {error}") from error
    if not isinstance(recorded, str):
        return root / "leases"
    if not os.path.exists(os.path.join(recorded, ".envfabric-leases")):
        # Not written to: the daemon would never see it, and the mount would hide it later.
        raise RootNotFound(
            f"{recorded}, the folder of the leases, has no .envfabric-leases: is it mounted on this machine?"
        )
    return Path(recorded)


def _write(path: Path, content: Callable[[float], bytes]) -> None:
    """Writes a lease, whole from the first moment, and its closure's folder where there is none.

    What it says is made of the server's time.
    """
    for left in reversed(range(_TRIES)):
        temporary = path.parent / f".{path.name}.{os.urandom(4).hex()}"
        try:
            _make_folder(path.parent)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                os.fchmod(descriptor, 0o644)
                # To "now" there: a file that is only written may have this machine's time until it is closed.
                os.utime(descriptor)
                os.write(descriptor, content(os.fstat(descriptor).st_mtime))
            finally:
                os.close(descriptor)
            os.utime(temporary)
            os.rename(temporary, path)
            return
        except FileNotFoundError:
            # The daemon removed the empty folder of a closure that it had collected.
            if not left:
                raise
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def _make_folder(folder: Path) -> None:
    """Makes a closure's folder, for every user to lease in, and at no moment for one user alone."""
    if folder.is_dir():
        return
    temporary = folder.parent / f".{folder.name}.{os.urandom(4).hex()}"
    os.mkdir(temporary)
    try:
        os.chmod(temporary, 0o1777)  # noqa: S103 - workers of other users lease here, too
        os.rename(temporary, folder)
    except OSError:
        os.rmdir(temporary)
        # Another one was first, and has leased in it already.
        if not folder.is_dir():
            raise


def _of_interpreter(path: str, root: str | os.PathLike[str] | None) -> tuple[Path, str, str]:
    """ROOT, name and immutable path by an interpreter's path, also one below envs/ or generations/."""
    plain = os.path.normpath(path)
    resolved = os.path.join(os.path.realpath(os.path.dirname(plain)), os.path.basename(plain))
    match = _INTERPRETER.fullmatch(plain) or _INTERPRETER.fullmatch(resolved)
    if match is None:
        raise EnvironmentFailed(
            f"{path} is not an interpreter of a fabric: those are ROOT/store/<name>/.venv/bin/python."
        )
    own = match["root"] or "/"
    if root is not None and os.path.realpath(root) != os.path.realpath(own):
        raise EnvironmentFailed(
            f"{path} is not below {root}. Is the NAS mounted at the same path on this machine?"
        )
    return Path(own), match["name"], match[0]
