"""From a spec to its closure: the committed lock checked, or a lock made by uv and shared.

Specs that ask for the same are resolved once. What was found is kept under state/resolutions/ by
the digest of all that decided it, with the lock in a form that any project name can take; its mtime says
when it was last of use, and the collector removes what was of none for long. A wheel that its index gives
no hash for is hashed before it gets into a closure.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from packaging.utils import canonicalize_name

from envfabric.build.closure import Closure, closure_from_inputs, install_options, make_closure
from envfabric.build.cutoff import cutoff_for
from envfabric.build.hashing import hash_wheels
from envfabric.build.interpreters import Interpreter
from envfabric.build.limits import check_chosen, cutoff, written
from envfabric.build.lockfile import Lock, neutral, own_entry, read_lock, with_project
from envfabric.build.origins import Origins, indexes_of
from envfabric.build.room import Room
from envfabric.build.sources import backend_home, build_arguments
from envfabric.build.uv import Uv, failure
from envfabric.core.errors import Reason, SpecError
from envfabric.specs.policy import Policy
from envfabric.specs.spec import Spec
from envfabric.store.closures import Staging
from envfabric.store.files import Files
from envfabric.store.root import Root
from envfabric.store.sweep import TOUCHED

_HASHED_AGE = 3600.0
"""Seconds for which a closure is kept some of whose hashes are ours: its index may change the files."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """A spec's lock and the closure that it means here."""

    closure: Closure
    lock: bytes
    origin: str
    """'committed' or 'resolved'."""
    max_bytes: int | None = None
    """The most bytes on disk that its environment may take."""


class Resolver:
    """Resolves specs on one ROOT. Safe for threads; each call works in a staging folder of its own."""

    def __init__(
        self,
        root: Root,
        files: Files,
        uv: Uv,
        staging: Callable[[], AbstractContextManager[Staging]],
        max_age: float = 86400.0,
        policy: Policy | None = None,
        exclude_newer: str | None = None,
    ) -> None:
        """`max_age` is how long, in seconds, an outcome is shared with specs that ask for the same.

        `exclude_newer` is a date or moment after which nothing is taken where the daemon resolves.
        """
        self._root = root
        self._files = files
        self._uv = uv
        self._staging = staging
        self._max_age = max_age
        self._policy = policy or Policy()
        self._exclude_newer = exclude_newer
        self._origins = Origins(root, files, uv, self._policy.indexes)

    def key(self, spec: Spec, python: Interpreter, base: bytes | None) -> str:
        """The digest of all that decides a resolution's outcome; equal keys are resolved once."""
        conflicts = "conflicts" in json.loads(spec.ask)["uv"]
        parts = {
            "ask": spec.ask,
            "python": asdict(python),
            "index": self._uv.index if spec.lock is None else None,
            "lock": neutral(spec.lock) if spec.lock is not None else None,
            "base": neutral(base) if spec.lock is None and base is not None else None,
            # A project that is named like something it requires means another thing to uv, and a lock with
            # conflicts names the project in its head.
            "name": (spec.name, spec.version) if conflicts or spec.name in spec.requirements else None,
            # A lock that was copied from another project is a stale one.
            "foreign": spec.lock is not None and own_entry(spec.lock) != (spec.name, spec.version),
            # What was accepted under another policy is looked at anew.
            "policy": self._policed,
            "cutoff": written(moment) if spec.lock is None and (moment := self._cutoff()) else None,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def known(self, spec: Spec, key: str, since: float | None = None) -> Resolution | None:
        """The outcome kept for `key`, with the lock that `spec` gets of it; None where there is none.

        One that was kept before `since`, in seconds since 1970 by this host's clock, does not count.
        """
        try:
            with self._record(key).open("rb") as file:
                used = os.fstat(file.fileno()).st_mtime
                kept = json.loads(file.read())
            closure = closure_from_inputs(kept["inputs"])
            text, at = str(kept["lock"]), float(kept["at"])
            locked = {canonicalize_name(one) for one in kept["names"]}
            hashed_here = bool(kept["hashed_here"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        age = time.time() - at
        if since is not None and at < since:
            return None
        if hashed_here and age > min(self._max_age, _HASHED_AGE):
            return None
        if spec.lock is None and (age > self._max_age or spec.name in locked):
            return None
        if abs(time.time() - used) > TOUCHED:
            # A mark for the collector, and not content: where it can't be made, the record goes a little early.
            with contextlib.suppress(OSError):
                os.utime(self._record(key))
        if spec.lock is not None:
            return self._resolution(closure, spec.lock, "committed")
        return self._resolution(closure, with_project(text, spec.name, spec.version).encode(), "resolved")

    def resolve(
        self, spec: Spec, python: Interpreter, base: bytes | None, *, fresh: bool = False
    ) -> Resolution:
        """Asks uv for the closure of a spec. `base` is the lock whose versions are kept where they fit.

        With `fresh` uv asks the index also for what it would still believe of it. Raises `SpecError`.
        """
        with self._staging() as staging:
            self._lay_out(staging.project, spec)
            if spec.lock is not None:
                lock = self._check(spec, staging, python)
            else:
                lock = self._lock(spec, staging, python, base, fresh=fresh)
            if lock.depends_on(spec.name):
                # uv takes the project itself for that package, and the environment would lack it.
                raise SpecError(
                    Reason.INVALID_SPEC,
                    f"{spec.id}/pyproject.toml: the project is named {spec.name!r} like a package that it needs by way "
                    "of its requirements; rename the project.",
                )
            urls: list[str] = []
            where = f"{spec.id}/uv.lock" if spec.lock is not None else spec.id
            closure = make_closure(
                self._applying(spec, staging, python, lock),
                lock,
                python,
                install_options(json.loads(spec.ask)["uv"]),
                partial(self._hash, spec, staging, python, lock, urls),
                self._policy.build_from_source,
                lambda chosen: check_chosen(chosen, self._policy, datetime.now(UTC), where),
            )
        origin = "committed" if spec.lock is not None else "resolved"
        resolution = self._resolution(closure, lock.text.encode(), origin)
        self._keep(self.key(spec, python, base), resolution, lock, hashed_here=bool(urls))
        return resolution

    def _resolution(self, closure: Closure, lock: bytes, origin: str) -> Resolution:
        return Resolution(closure, lock, origin, self._policy.max_bytes)

    @property
    def _policed(self) -> list[object]:
        """All of the policy that a lock is looked at under."""
        one = self._policy
        plain = [sorted(one.indexes), sorted(one.sources), sorted(one.build_from_source)]
        return [*plain, one.max_packages, one.max_bytes, one.cooldown]

    @property
    def _room(self) -> Room:
        """What comes from no index, or has no hash, uv unpacks before it is known how large that is."""
        return Room(self._root.path, self._policy.max_bytes)

    def _cutoff(self) -> datetime | None:
        return cutoff(self._exclude_newer, self._policy.cooldown, datetime.now(UTC))

    def _home(self, staging: Staging, name: str) -> dict[str, str]:
        """Variables for a uv process that may run build backends."""
        if not self._policy.build_from_source:
            return {}
        return backend_home(self._files, staging.folder / name, self._uv.environment(fleet=True))

    def _lay_out(self, project: Path, spec: Spec) -> None:
        self._files.write_new(project / "pyproject.toml", spec.pyproject)
        if spec.lock is not None:
            self._files.write_new(project / "uv.lock", spec.lock)

    def _check(self, spec: Spec, staging: Staging, python: Interpreter) -> Lock:
        where = f"{spec.id}/uv.lock"
        lock = read_lock(spec.lock or b"", where, self._policy)
        # uv reads what came from no index anew, and would have to build it for that.
        built = {one["name"] for one in lock.packages if "registry" not in one["source"]}
        finished = self._uv.run(
            [
                "lock",
                "--check",
                *build_arguments(built & self._policy.build_from_source),
                "--python",
                python.path,
            ],
            cwd=staging.project,
            hold=staging.descriptor,
            extra=self._home(staging, "home-checking"),
            room=self._room,
        )
        if finished.code == 0:
            tables = indexes_of(json.loads(spec.ask)["uv"])
            self._origins.check(lock, tables, staging, python, self._policy, where)
            return lock
        error = failure(f"checking {where}", finished, Reason.LOCK_STALE)
        if error.reason.passing:
            raise error
        raise SpecError(
            Reason.LOCK_STALE,
            f"{where} does not fit {spec.id}/pyproject.toml any more. Run `uv lock` in {spec.id} and commit "
            "uv.lock, or remove it and let the daemon lock.",
            finished.stderr,
        )

    def _lock(
        self, spec: Spec, staging: Staging, python: Interpreter, base: bytes | None, *, fresh: bool
    ) -> Lock:
        path = staging.project / "uv.lock"
        own = json.loads(spec.ask)["uv"].get("exclude-newer")
        bound = cutoff_for(self._cutoff(), own, self._uv, self._files, staging, python)
        # uv chooses versions as if these could be built, and no others.
        buildable = build_arguments(self._policy.build_from_source)
        arguments = ["lock", *bound.arguments, *buildable, "--python", python.path]
        if fresh:
            arguments.append("--refresh")
        home = self._home(staging, "home-locking")
        # A base may be of a newer uv's schema, or in the way of the new requirements: then begin anew.
        for start in [base, None] if base is not None else [None]:
            if start is not None:
                self._files.write_new(path, start)
            finished = self._uv.run(
                arguments,
                cwd=staging.project,
                hold=staging.descriptor,
                fleet=True,
                extra=home,
                room=self._room,
            )
            if finished.code == 0:
                text = bound.kept(path.read_text("utf-8"))
                lock = read_lock(text.encode(), f"{spec.id}/uv.lock", self._policy)
                self._origins.teach(lock)
                return lock
            error = failure(f"resolving {spec.id}", finished, Reason.UNRESOLVABLE)
            if error.reason.passing:
                break
            self._files.unlink(path)
        raise error

    def _applying(
        self, spec: Spec, staging: Staging, python: Interpreter, lock: Lock
    ) -> list[tuple[str, str]]:
        finished = self._uv.run(
            [
                *sync_arguments(python, spec.table.extras, spec.table.groups),
                *build_arguments(self._policy.build_from_source),
                "--dry-run",
                "--output-format",
                "json",
            ],
            cwd=staging.project,
            hold=staging.descriptor,
            extra={
                "UV_PROJECT_ENVIRONMENT": str(staging.folder / "nothing"),
                **self._home(staging, "home-planning"),
            },
            room=self._room,
        )
        if finished.code != 0:
            raise failure(f"planning {spec.id}", finished, Reason.UNRESOLVABLE)
        changes = json.loads(finished.stdout)["sync"]["changes"]
        return [
            (
                one["name"],
                one["version"] if "version" in one else self._direct_version(one["name"], lock, spec),
            )
            for one in changes
            if one["action"] == "installed"
        ]

    def _direct_version(self, name: str, lock: Lock, spec: Spec) -> str:
        """The version of what comes from no index, which uv does not tell where it would have to get it first."""
        found = {
            one.get("version")
            for one in lock.packages
            if one["name"] == name and "registry" not in one["source"]
        }
        if len(found) == 1 and (version := next(iter(found))) is not None:
            return str(version)
        raise SpecError(
            Reason.POLICY,
            f"{spec.id}: which version of {name} applies here can't be told, because it is made up when it is built, "
            "or the lock has several. Take it from one address, and write its version down.",
        )

    def _hash(
        self, spec: Spec, staging: Staging, python: Interpreter, lock: Lock, told: list[str], urls: list[str]
    ) -> dict[str, str]:
        told += urls
        folder = staging.folder / "hashing"
        return hash_wheels(
            self._uv, self._files, folder, staging.descriptor, spec.pyproject, lock, urls, python, self._room
        )

    def _record(self, key: str) -> Path:
        return self._root.state / "resolutions" / f"{key}.json"

    def _keep(self, key: str, resolution: Resolution, lock: Lock, *, hashed_here: bool) -> None:
        content = {
            "at": time.time(),
            "inputs": resolution.closure.inputs,
            "hashed_here": hashed_here,
            "names": sorted(lock.names()),
            "lock": "" if resolution.origin == "committed" else lock.text,
        }
        self._root.require_marker()
        self._files.make_folder(self._record(key).parent)
        self._files.write_atomic(self._record(key), json.dumps(content).encode(), via=self._root.staging)


def sync_arguments(python: Interpreter, extras: Iterable[str] = (), groups: Iterable[str] = ()) -> list[str]:
    """uv's arguments for what a project installs: no group unasked, never the project itself."""
    fixed = ["sync", "--frozen", "--no-default-groups", "--no-install-project", "--python", python.path]
    return [*fixed, *(f"--extra={name}" for name in extras), *(f"--group={name}" for name in groups)]
