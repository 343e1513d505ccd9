"""Pythons on the NAS: brought to ROOT/pythons by uv, whole or not at all, sealed, and compiled once.

uv installs into a staging folder; what is complete there is renamed to ROOT/pythons/<name>, where it is never changed
again. Which version a request means is for interpreters.py to say; here nothing is chosen.
"""

import contextlib
import errno
import json
import os
import re
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from envfabric.build.scope import current
from envfabric.build.uv import Finished, Uv, failure
from envfabric.core.errors import Reason, SpecError, from_os_error
from envfabric.store.bases import MARK
from envfabric.store.closures import Staging
from envfabric.store.files import Files
from envfabric.store.root import Root, now
from envfabric.store.sealing import sealed_mode
from envfabric.telemetry import logs

_OFFER_AGE = 60.0
"""Seconds for which uv's list of downloads, or a failure to get something, is not asked for again."""

_KEY = re.compile(r"cpython-[0-9A-Za-z._+-]+")
_TEXTS = ("_sysconfigdata*.py", "*.pc", "Makefile")
"""Files in which uv writes where it installed; programs in bin/ that begin with #! may have it, too."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where uv takes Pythons from; None for what uv has by itself."""

    mirror: str | None = None
    """Stands for the address of python-build-standalone's releases; http(s):// or file://."""
    json_url: str | None = None
    """A list of downloads in place of uv's own; a path, file:// or http(s)://."""


class NotHere(Exception):
    """A Python, or with "" the list of those that can be had, is yet to be brought: that may take minutes."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class Pythons:
    """What brings interpreters to one ROOT. Safe for threads; other processes may do the same."""

    def __init__(
        self,
        root: Root,
        files: Files,
        uv: Uv,
        staging: Callable[[], AbstractContextManager[Staging]],
        sources: Sources,
    ) -> None:
        self._root = root
        self._files = files
        self._uv = uv
        self._staging = staging
        self._sources = sources
        # By what is waited for: a mirror that hangs with one version holds up nobody who wants another.
        self._locks: dict[str, threading.Lock] = {}
        self._offered: tuple[float, dict[str, str]] | None = None
        self._failed: dict[str, tuple[float, SpecError]] = {}

    def offered(self, *, here: bool = False) -> dict[str, str]:
        """The final releases of CPython for this platform that uv can get: its name for each, by version.

        `here`: only what was asked for a moment ago. Raises `SpecError` (fetch) where the list can't be had, `Stopped`,
        and `NotHere`.
        """
        found = self._known()
        if found is not None:
            return found
        if here:
            raise NotHere("")
        with self._turn(""):
            found = self._known()
            if found is None:
                self._fail_again("")
                with self._remembered(""):
                    found = self._ask()
                # Its age begins now, however long it took: those who waited for it find it.
                self._offered = time.monotonic(), found
        return found

    def _known(self) -> dict[str, str] | None:
        """The list of downloads, while it is young enough."""
        offered = self._offered
        return offered[1] if offered and time.monotonic() - offered[0] <= _OFFER_AGE else None

    def install(self, key: str, *, here: bool = False) -> None:
        """Has the interpreter that uv calls `key` below ROOT/pythons; does nothing where it is there.

        `here`: nothing is brought. Raises `SpecError` (fetch, no-space, store, timeout, …), the same one again for a
        minute or five times as long as it took; `Stopped`; and `NotHere`.
        """
        if self._present(key):
            return
        if here:
            raise NotHere(key)
        with self._turn(key):
            if self._present(key):
                return
            self._fail_again(key)
            with self._remembered(key):
                self._install(key)

    @contextlib.contextmanager
    def _turn(self, what: str) -> Iterator[None]:
        lock = self._locks.setdefault(what, threading.Lock())
        # A download takes minutes: who waits for another's must still end when its own step does.
        while not lock.acquire(timeout=0.5):
            current().check("waiting for a Python that is being installed")
        try:
            yield
        finally:
            lock.release()

    def _fail_again(self, what: str) -> None:
        # A thousand specs that ask for it don't each wait for the mirror that just did not answer.
        if what in self._failed and time.monotonic() < self._failed[what][0]:
            raise self._failed[what][1]

    @contextlib.contextmanager
    def _remembered(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        except SpecError as error:
            # Pythons are asked for by few threads, and each that waits here is one less for others: a mirror that
            # hangs gets a sixth of their time.
            ended = time.monotonic()
            again = ended + max(_OFFER_AGE, 5 * (ended - began))
            if error.reason is not Reason.TIMEOUT:
                self._failed[what] = again, error
                raise
            # Said by what ended it, which does not know what it was waiting for.
            told = SpecError(
                error.reason, f"{error.message} See whether {self._from()} answers.", error.output
            )
            self._failed[what] = again, told
            raise told from error

    def _present(self, key: str) -> bool:
        if not os.path.lexists(self._root.pythons / key):
            return False
        if os.access(self._root.pythons / key / "bin/python3", os.X_OK):
            return True
        raise SpecError(
            Reason.STORE,
            f"{self._root.pythons / key} is there and has no bin/python3 that runs: it is damaged. Move it away; it "
            "is then installed anew.",
        )

    def _ask(self) -> dict[str, str]:
        finished = self._uv.run(
            ["python", "list", "--only-downloads", "--all-versions", "--output-format", "json"],
            cwd=self._root.path,
            extra=self._variables(),
        )
        doing = f"listing the Pythons that can be had from {self._from()}"
        if finished.code != 0:
            raise failure(doing, finished, Reason.FETCH)
        found: dict[str, str] = {}
        try:
            for one in json.loads(finished.stdout):
                plain = one["implementation"] == "cpython" and one["variant"] == "default"
                if plain and not Version(one["version"]).is_prerelease and _KEY.fullmatch(one["key"]):
                    found.setdefault(one["version"], one["key"])
        except (ValueError, KeyError, TypeError, InvalidVersion) as error:
            raise SpecError(Reason.INTERNAL, f"{doing}: uv's list can't be read: {error!r}.") from error
        return found

    def _install(self, key: str) -> None:
        # With the place: where it is full, that is the disk to look at.
        doing = f"installing {key} in {self._root.pythons}"
        try:
            with self._staging() as staging:
                finished = self._uv.run(
                    ["python", "install", key, "--no-bin"],
                    cwd=staging.project,
                    # Killed, the daemon leaves uv running: recovery waits for whoever holds this.
                    hold=staging.descriptor,
                    extra={**self._variables(), "UV_PYTHON_INSTALL_DIR": str(staging.closure)},
                )
                if finished.code != 0:
                    raise _refusal(f"{doing} from {self._from()}", finished)
                made, target = staging.closure / key, self._root.pythons / key
                _move_paths(made, target)
                self._compile(made, target, staging)
                # By this the collector knows that it may go when nothing uses it: it can be brought again.
                told = json.dumps({"schema": 1, "brought_at": now()}).encode()
                self._files.write_new(made / MARK, told)
                _seal(made)
                # It may be on no disk yet, and after a power cut a name without content would be chosen.
                self._files.flush(staging.descriptor, target)
                self._root.require_marker()
                self._files.make_folder(self._root.pythons)
                try:
                    self._files.rename(made, target)
                except OSError as error:
                    # Somebody else's, who was faster: as good as ours.
                    if error.errno not in {errno.EEXIST, errno.ENOTEMPTY} or not self._present(key):
                        raise
        except OSError as error:
            raise from_os_error(error, doing) from error
        logs.get().info("installed a python", python=str(target), seconds=round(finished.seconds, 1))

    def _compile(self, made: Path, target: Path, staging: Staging) -> None:
        """Compiles the standard library: nodes can't, and would at each start of a process."""
        found = sorted((made / "lib").glob("python3*"))
        # All anew, and nothing written by the way (-B): that would say where it lay in staging. Not by modification
        # time, which not every copy of a NAS keeps. A file that is no valid source, as tests of the compiler have,
        # makes the exit code 1 and does no harm.
        how = ("-f", "-q", "--invalidation-mode", "unchecked-hash", "-s", str(made), "-p", str(target))
        finished = self._uv.run_command(
            [str(made / "bin/python3"), "-I", "-S", "-B", "-m", "compileall", *how, *map(str, found)],
            cwd=staging.project,
            hold=staging.descriptor,
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
        )
        for code in (errno.ENOSPC, errno.EDQUOT):
            if finished.code != 0 and os.strerror(code) in finished.stdout:
                # What is not compiled now never is.
                raise OSError(code, os.strerror(code), str(target))

    def _variables(self) -> dict[str, str]:
        # Variables, not flags: an address may hold a password, and a command line is everybody's to read.
        found = {"UV_PYTHON_DOWNLOADS": "manual"}
        if self._sources.mirror is not None:
            found["UV_PYTHON_INSTALL_MIRROR"] = self._sources.mirror
        if self._sources.json_url is not None:
            found["UV_PYTHON_DOWNLOADS_JSON_URL"] = self._sources.json_url
        return found

    def _from(self) -> str:
        # What is said goes through `redact`, as every error does.
        return self._sources.mirror or self._sources.json_url or "the place that uv knows"


def _refusal(doing: str, finished: Finished) -> SpecError:
    """Why uv installed nothing."""
    hashes = re.findall(r"\b[0-9a-f]{64}\b", finished.stderr)
    if "Hash mismatch" not in finished.stderr or len(hashes) < 2:
        return failure(doing, finished, Reason.FETCH)
    return SpecError(
        Reason.BUILD_FAILED,
        f"{doing}: the archive there has the SHA-256 {hashes[1]}, and {hashes[0]} is expected: it is damaged or "
        "another one, and nothing of it was installed. Put the right one there, then `envfabric retry ID`.",
        finished.stderr,
    )


def _move_paths(made: Path, target: Path) -> None:
    """Has the texts that say where the interpreter lies say where it will."""
    scripts = [path for path in (made / "bin").iterdir() if not path.is_symlink() and path.is_file()]
    texts = [path for pattern in _TEXTS for path in (made / "lib").rglob(pattern)]
    for path in scripts + texts:
        with path.open("rb") as file:
            if path in scripts and file.read(2) != b"#!":
                continue
            file.seek(0)
            content = file.read()
        moved = content.replace(os.fsencode(made), os.fsencode(target))
        if moved != content:
            path.chmod(0o755 if path in scripts else 0o644)
            path.write_bytes(moved)


def _seal(made: Path) -> None:
    """Takes the right to write from all below: who has pip write into it would change it under running jobs."""
    for folder, folders, names in os.walk(made):
        for name in folders + names:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            if not stat.S_ISLNK(status.st_mode):
                os.chmod(path, sealed_mode(status.st_mode))
    # The top folder stays writable to its owner: an ordinary user could not rename it otherwise.
    made.chmod(0o755)


def listed(root: Root) -> list[dict[str, Any]]:
    """The interpreters that are below ROOT/pythons, that requests are fixed to, or that closures were made from.

    Each with `path`, `version`, `managed` (below ROOT/pythons), `brought` (by a daemon, and collected when unused),
    `present`, the `requests` fixed to it, and the number of `closures` in the store. Raises `OSError`.
    """
    found: dict[str, dict[str, Any]] = {}

    def entry(path: str, version: str) -> dict[str, Any]:
        managed = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root.pythons))
        made: dict[str, Any] = {"path": path, "version": version, "managed": managed}
        made["brought"] = managed and (Path(path).parents[1] / MARK).is_file()
        made["present"] = os.access(path, os.X_OK)
        return found.setdefault(path, {**made, "requests": [], "closures": 0})

    for python in sorted(root.pythons.glob("[!.]*/bin/python3")):
        # uv's link for a minor version leads to one that is listed anyway.
        if not python.parents[1].is_symlink():
            entry(os.path.realpath(python), python.parents[1].name.partition("-")[2].partition("-")[0])
    for record in sorted((root.state / "pythons").glob("[!.]*.json")):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            told = json.loads(record.read_bytes())
            entry(told["path"], told["version"])["requests"].append(told["request"])
    used: Counter[tuple[str, str]] = Counter()
    for metadata in root.store.glob("[!.]*/metadata.json"):
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            base = json.loads(metadata.read_bytes())["inputs"]["interpreter"]
            used[base["path"], base["version"]] += 1
    for (path, version), count in used.items():
        entry(path, version)["closures"] += count
    return sorted(found.values(), key=lambda one: (not one["managed"], one["path"]))
