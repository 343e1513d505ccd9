"""Builds one closure: uv makes and fills the environment in staging, then it is checked and sealed.

Nothing is started in an environment once packages are in it. What uv's cache held damaged is fetched anew
and the build made once more. Writes into its staging folder, and by way of the store into store/.
"""

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from envfabric.build.cache import CacheInUse, forget
from envfabric.build.closure import Closure
from envfabric.build.compiling import Compiling
from envfabric.build.hashing import with_hashes
from envfabric.build.interpreters import Interpreter
from envfabric.build.limits import check_real
from envfabric.build.lockfile import read_lock
from envfabric.build.recipe import Recipe, recipe_from, recipe_of
from envfabric.build.records import Mismatch, Records, owners, strays
from envfabric.build.resolve import sync_arguments
from envfabric.build.sources import backend_home, build_arguments
from envfabric.build.unpacking import Unpacking
from envfabric.build.uv import Uv, failure
from envfabric.build.validate import (
    check_base,
    check_interpreter,
    check_set,
    check_skeleton,
    take_skeleton,
)
from envfabric.core.errors import Reason, SpecError
from envfabric.store.closures import Closures, Staging
from envfabric.store.files import Files, stamp
from envfabric.store.manifest import DEEPEST
from envfabric.store.root import now
from envfabric.store.sealing import Inventory, TooDeep
from envfabric.telemetry import logs

__all__ = ["Builder", "Built", "Recipe", "recipe_from", "recipe_of"]

_ROUNDS = 3
"""Times that a build is begun before the cache is given up as one that goes on being damaged."""
_BELIEVED = 60.0
"""Seconds for which an interpreter that was found to be the planned one is not started again to be asked."""
_TOLD = 20
"""Wrong lines of RECORDs that metadata.json tells."""
_MISMATCH = re.compile(r"Hash mismatch for `([^`=\s]+)==")
_UNFINISHED_GONE = re.compile(r"failed to hardlink file from \S+/\.tmp[A-Za-z0-9]{6} to .*No such file")


@dataclass(frozen=True, slots=True)
class Built:
    """A closure that is in the store now."""

    name: str
    """Its name in the store: its digest, or <digest>-2 where the first of that digest was found damaged."""
    inodes: dict[int, int]
    """Bytes on disk by inode, for the store's accounting."""
    linked: int
    """Files of packages that share their inode with uv's cache."""
    link_fallbacks: int
    """Files of packages that were copied instead."""
    phases: dict[str, float]
    """Seconds by phase: sync, validate, bytecode, seal, total."""


class _Damaged(Exception):
    """What the cache holds of these distributions is not what it was."""

    def __init__(self, names: Iterable[str], output: str = "") -> None:
        self.names = frozenset(names)
        super().__init__(", ".join(sorted(self.names)))
        self.output = output


class _Raced(Exception):
    """Another uv process renewed a file of the cache, at its link limit, while this one linked its folder."""


@dataclass(slots=True)
class _Job:
    """One build under way, over all its rounds."""

    recipe: Recipe
    tell: Callable[[str], None]
    log: str = ""
    phases: dict[str, float] = field(default_factory=dict)
    fresh: set[str] = field(default_factory=set)
    """Distributions that were removed from the cache for this build: what is installed of them is new."""
    ours: list[str] = field(default_factory=list)
    """Distributions that the index gives no hash for."""
    raced: bool = False
    """Whether an unfinished file of the cache got in the way: such files are looked for before sealing then."""

    told: str = ""

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        if name != self.told:
            self.tell(name)
            self.told = name
        began = time.monotonic()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.monotonic() - began


class Builder:
    """Builds closures on one ROOT. Safe for threads."""

    def __init__(self, closures: Closures, files: Files, uv: Uv, compiling: Compiling | None = None) -> None:
        """Without `compiling`, environments get no bytecode."""
        self._closures = closures
        self._compiling = compiling
        self._files = files
        self._uv = uv
        self._uv_version = uv.version()
        self._unpacking = Unpacking()
        self._records = Records()
        self._sound: dict[Interpreter, tuple[int, ...]] = {}
        self._lies: set[tuple[str, str, str]] = set()
        """Wheel by hash, path and content: what RECORDs were found to be wrong about."""
        self._mismatched: set[str] = set()
        """Hashes of wheels that the cache had other content for, and that were fetched anew."""

    def build(self, recipe: Recipe, tell: Callable[[str], None]) -> Built:
        """Builds a closure into the store.

        `tell` hears the name of each phase as it begins, also when it goes on after another one. Raises
        `SpecError`, `StoreError` and `OSError`; the store is as it was then.
        """
        job = _Job(recipe, tell)
        began = time.monotonic()
        with job.phase("validate"):
            self._check_interpreter(recipe.closure)
        for number in range(1, _ROUNDS + 1):
            try:
                name, inodes, inventory = self._round(job)
                break
            except _Damaged as damaged:
                if number == _ROUNDS:
                    raise SpecError(
                        Reason.STORE,
                        f"uv's cache holds damaged content of {damaged}, and again after it was fetched anew. Find "
                        "what writes into environments on the NAS; the build is tried again by itself.",
                        damaged.output,
                    ) from None
                self._renew(job, damaged.names)
            except _Raced:
                if number == _ROUNDS:
                    raise SpecError(
                        Reason.STORE,
                        "other builds renewed files of uv's cache, at the file system's link limit, each time while "
                        "this one linked them. Set fewer builders; the build is tried again by itself.",
                        job.log,
                    ) from None
                job.log += "# another build renewed a file of the cache meanwhile: begun anew\n"
                job.raced = True
        job.phases["total"] = time.monotonic() - began
        return Built(name, inodes, inventory.linked, inventory.copied, job.phases)

    def forgotten(self) -> None:
        """uv's cache has let go of wheels: the next build of each is a first one again."""
        self._unpacking.forget_all()

    def stop(self) -> None:
        """Ends the processes of running builds, and lets none start any more."""
        self._uv.stop()
        self._unpacking.stop()
        if self._compiling is not None:
            self._compiling.stop()

    def _check_interpreter(self, closure: Closure) -> None:
        """Starting it takes longer than linking a small environment: the same file is believed for a minute."""
        with contextlib.suppress(OSError):
            found = (*stamp(os.stat(closure.interpreter.path)), int(time.monotonic() / _BELIEVED))
            if self._sound.get(closure.interpreter) == found:
                return
            check_interpreter(closure)
            self._sound[closure.interpreter] = found
            return
        check_interpreter(closure)

    def _round(self, job: _Job) -> tuple[str, dict[int, int], Inventory]:
        closure = job.recipe.closure
        with self._closures.staging() as staging:
            with job.phase("sync"):
                self._install(job, staging)
                if job.raced:
                    self._remove_strays(staging)
            with job.phase("validate"):
                check_set(closure, staging.venv)
            with job.phase("seal"):
                inventory = self._take_inventory(staging)
                taken = sum(inventory.inodes.values())
                check_real(taken, job.recipe.max_bytes, job.recipe.spec)
                # Only here all names are known without another walk; what is sealed is not changed any more.
                if strays(staging.closure, (_inside(one) for one in inventory.digests if "/.tmp" in one)):
                    raise _Raced
                wrong = self._check_records(job, staging, inventory)
            if self._compiling is not None:
                with job.phase("bytecode"):
                    self._add_bytecode(self._compiling, job, staging, inventory)
            with job.phase("seal"):
                self._closures.describe(staging, inventory, self._metadata(closure, wrong), job.log)
                name, inodes = self._closures.publish(staging, closure.digest, inventory)
        return name, inodes, inventory

    def _remove_strays(self, staging: Staging) -> None:
        """Also those that a uv process left in the cache for good when it was killed."""
        top = str(staging.venv)
        paths = (
            os.path.relpath(os.path.join(folder, name), top)
            for folder, _, names in os.walk(top)
            for name in names
        )
        for path in strays(staging.closure, paths):
            self._files.unlink(staging.venv / path)

    def _install(self, job: _Job, staging: Staging) -> None:
        recipe, closure = job.recipe, job.recipe.closure
        where = f"{recipe.spec}/uv.lock"
        # It was accepted when it was resolved.
        lock = read_lock(recipe.lock, where, None)
        # What the index gave no hash for is held to ours; the generation's own lock stays as uv wrote it.
        text, job.ours = with_hashes(lock, closure, where)
        self._files.write_new(staging.project / "pyproject.toml", recipe.pyproject)
        self._files.write_new(staging.project / "uv.lock", text.encode())
        # Without a prompt of its own the staging folder's name would get into the environment.
        prompt = f"envfabric-{closure.digest[:8]}"
        venv = [
            "venv",
            "--relocatable",
            "--no-project",
            "--prompt",
            prompt,
            "--python",
            closure.interpreter.path,
        ]
        self._run(job, staging, "making the environment", [*venv, str(staging.venv)])
        check_base(closure, staging.venv)
        skeleton = take_skeleton(staging.venv)
        with self._unpacking.of(one.hash for one in closure.distributions) as shared:
            if not shared:
                job.log += "# other builds took too long to unpack the same wheels: these may not be shared\n"
            sync = sync_arguments(recipe.extras, recipe.groups, closure.interpreter)
            # Those that the closure has from source, and no others: also where it is built once more.
            built = [one.name for one in closure.distributions if one.built]
            home = {}
            if built:
                job.log += f"# built from source, which runs its code: {', '.join(built)}\n"
                known = self._uv.environment(fleet=True)
                home = backend_home(self._files, staging.folder / "home", known)
            sync += build_arguments(built)
            self._run(job, staging, f"installing {recipe.spec}", sync, lock.registries, home)
        check_skeleton(staging.closure, skeleton)

    def _run(
        self,
        job: _Job,
        staging: Staging,
        doing: str,
        arguments: list[str],
        indexes: Iterable[str] = (),
        home: Mapping[str, str] | None = None,
    ) -> None:
        known = self._uv.environment(fleet=True).get("UV_INDEX", "").split()
        # One that would not be read as one address is left out; it shares less.
        plain = [one for one in indexes if not re.search(r"[\s=]", one)]
        finished = self._uv.run(
            arguments,
            cwd=staging.project,
            hold=staging.descriptor,
            fleet=True,
            extra={
                "UV_PROJECT_ENVIRONMENT": str(staging.venv),
                # uv looks for a wheel in its cache only under indexes that it is told of, whatever the lock says,
                # and would fetch and unpack it anew for each build where an index forbids to keep its answers.
                "UV_INDEX": " ".join([*known, *plain]),
                **(home or {}),
            },
        )
        said = f"$ uv {' '.join(arguments[:3])} …\n{finished.stderr}"
        job.log += said.replace(str(staging.folder), "")
        if finished.code == 0:
            return
        if _UNFINISHED_GONE.search(finished.stderr):
            raise _Raced
        # Of a file that changed on its index uv goes on giving what the cache has: it is fetched anew, once for
        # each hash. A lock with a wrong one must not empty the cache with every try.
        stale = {canonicalize_name(name) for name in _MISMATCH.findall(finished.stderr)}
        hashes = {one.name: one.hash for one in job.recipe.closure.distributions if one.name in stale}
        untried = {name for name in hashes if hashes[name] not in self._mismatched}
        if untried:
            self._mismatched |= {hashes[name] for name in untried}
            raise _Damaged(untried, finished.stderr)
        if changed := sorted(stale & set(job.ours)):
            raise SpecError(
                Reason.FETCH,
                f"{doing}: the index gives no hash for {', '.join(changed)}, and gives another file now than when "
                "it was resolved. It is resolved anew within the hour, or with the spec's next change.",
                finished.stderr,
            )
        raise failure(doing, finished, Reason.BUILD_FAILED)

    def _take_inventory(self, staging: Staging) -> Inventory:
        try:
            return self._closures.take_inventory(staging)
        except TooDeep as error:
            top = "/".join(Path(error.filename).relative_to(staging.venv).parts[:5])
            raise SpecError(
                Reason.VALIDATION,
                f"a package nests folders more than {DEEPEST - 1} deep, below {top}/; that is no sound wheel. Require "
                "another version or another package.",
            ) from None

    def _add_bytecode(self, compiling: Compiling, job: _Job, staging: Staging, inventory: Inventory) -> None:
        done = compiling.compile(job.recipe.closure.interpreter, staging, inventory)
        job.log += f"# bytecode: {done.linked} linked, {done.compiled} compiled, {done.bad} do not compile\n"
        if done.unfinished:
            job.log += f"# without bytecode: {', '.join(done.unfinished[:_TOLD])}\n"
        if done.changed:
            if names := set(owners(staging.closure, done.changed).values()):
                raise _Damaged(names)
            raise SpecError(
                Reason.STORE,
                f"{done.changed[0]} changed while the environment was built, and belongs to no distribution. Find what "
                "writes into environments on the NAS; the build is tried again by itself.",
            )

    def _check_records(self, job: _Job, staging: Staging, inventory: Inventory) -> list[Mismatch]:
        """The lines of RECORDs that are wrong although the files are those of the wheel.

        Raises `_Damaged` for files that may be those of a damaged cache.
        """
        wheels = {one.name: one.hash for one in job.recipe.closure.distributions}
        wrong = self._records.mismatches(staging.closure, inventory.digests)
        keys = {one: (wheels.get(one.distribution, ""), one.path, one.found) for one in wrong}
        # Fetched anew and wrong again: later builds of the same wheel need not fetch it to find the same.
        self._lies |= {key for one, key in keys.items() if one.distribution in job.fresh}
        damaged = {one.distribution for one, key in keys.items() if key not in self._lies}
        if damaged:
            raise _Damaged(damaged)
        if wrong:
            names = ", ".join(sorted({one.distribution for one in wrong}))
            job.log += f"# the RECORD of {names} does not fit the wheel's own files ({len(wrong)})\n"
            logs.get().warning(
                "a wheel's RECORD does not fit its files",
                spec=job.recipe.spec,
                distributions=names,
                files=len(wrong),
            )
        return wrong

    def _renew(self, job: _Job, names: frozenset[str]) -> None:
        told = ", ".join(sorted(names))
        job.log += f"# the cache held other content of {told} than it should: fetched anew\n"
        logs.get().warning(
            "the cache held other content than it should", spec=job.recipe.spec, distributions=told
        )
        self._unpacking.forget(one.hash for one in job.recipe.closure.distributions if one.name in names)
        try:
            forget(self._uv, self._uv.root, names)
        except CacheInUse as error:
            raise SpecError(Reason.STORE, f"{error} The build is tried again by itself.") from None
        job.fresh |= names

    def _metadata(self, closure: Closure, wrong: list[Mismatch]) -> dict[str, Any]:
        metadata = {
            "schema": 1,
            "digest": closure.digest,
            "inputs": closure.inputs,
            "built_at": now(),
            "uv_version": self._uv_version,
            "python_version": closure.interpreter.version,
            "python_shared": closure.interpreter.shared,
            "ray_version": closure.version_of("ray"),
        }
        return {**metadata, "records_wrong": [one.told() for one in wrong[:_TOLD]]} if wrong else metadata


def _inside(path: str) -> str:
    """A path of the inventory as it is within the environment."""
    return path.removeprefix(".venv/")
