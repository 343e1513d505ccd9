"""Fills one staging folder: uv makes the environment in it, and it is checked, inventoried, compiled and described.

All of a build that needs nothing but its recipe, its staging folder, ROOT and uv, so that it runs in the daemon or on
a node of the farm alike. Nothing is started in an environment once packages are in it. Writes into the staging
folder, and by way of the store into bytecode/; it publishes nothing, and what the cache holds damaged it only names.
"""

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from packaging.utils import canonicalize_name

from envfabric.build.closure import Closure
from envfabric.build.compiling import Compiling
from envfabric.build.exact import exact
from envfabric.build.limits import check_real
from envfabric.build.lockfile import read_lock
from envfabric.build.recipe import Recipe
from envfabric.build.records import Mismatch, Records, owners, strays
from envfabric.build.resolve import sync_arguments
from envfabric.build.room import Room
from envfabric.build.sources import backend_home, build_arguments
from envfabric.build.uv import Uv, failure
from envfabric.build.validate import check_base, check_set, check_skeleton, take_skeleton
from envfabric.core.errors import Reason, SpecError
from envfabric.store.closures import Closures, Staging
from envfabric.store.files import Files
from envfabric.store.manifest import DEEPEST
from envfabric.store.root import now
from envfabric.store.sealing import Inventory, TooDeep
from envfabric.telemetry import logs

_TOLD = 20
"""Wrong lines of RECORDs that metadata.json tells."""
_MISMATCH = re.compile(r"Hash mismatch for `([^`=\s]+)==")
_UNFINISHED_GONE = re.compile(r"failed to hardlink file from \S+/\.tmp[A-Za-z0-9]{6} to .*No such file")

Lie = tuple[str, str, str]
"""A line of a RECORD that is wrong although the file is the wheel's: the wheel's hash, path and content."""
Tell = Callable[[str], None]
"""Hears the name of each phase as it begins, also when it goes on after another one."""


@dataclass(frozen=True, slots=True)
class Order:
    """One filling that is wanted, with what earlier ones found out. Plain data: it may go to another host."""

    recipe: Recipe
    log: str = ""
    """What build.log begins with."""
    fresh: frozenset[str] = frozenset()
    """Distributions that were removed from the cache for this build: what is installed of them is new."""
    raced: bool = False
    """Whether an unfinished file of the cache got in the way: such files are looked for before sealing then."""
    lies: frozenset[Lie] = frozenset()
    mismatched: frozenset[str] = frozenset()
    """Hashes of wheels that the cache had other content for, and that were fetched anew."""


@dataclass(frozen=True, slots=True)
class Filled:
    """A staging folder whose closure is sealed and described, and waits for its name in the store."""

    inventory: Inventory
    phases: dict[str, float]
    """Seconds by phase: sync, validate, seal, bytecode."""
    lies: frozenset[Lie]
    """Those that were found now."""


class Again(Exception):
    """The filling has to be begun once more, in another staging folder."""

    log: str = ""
    """What was logged until then."""
    phases: Mapping[str, float] = {}
    lies: frozenset[Lie] = frozenset()


class Damaged(Again):
    """What the cache holds of these distributions is not what it was."""

    def __init__(
        self, names: Iterable[str], output: str = "", mismatched: frozenset[str] = frozenset()
    ) -> None:
        self.names = frozenset(names)
        super().__init__(", ".join(sorted(self.names)))
        self.output = output
        self.mismatched = mismatched


class Raced(Again):
    """Another uv process renewed a file of the cache, at its link limit, while this one linked its folder."""


class Phases:
    """Which phase runs, and what each took."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._told = ""
        self.seconds: dict[str, float] = {}

    def tell(self, name: str) -> None:
        """Says that a phase begins, unless it was the last one that was said."""
        if name != self._told:
            self._tell(name)
            self._told = name

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Counts what the block takes for a phase."""
        self.tell(name)
        began = time.monotonic()
        try:
            yield
        finally:
            self.add({name: time.monotonic() - began})

    def add(self, seconds: Mapping[str, float]) -> None:
        """Counts what was taken elsewhere."""
        for name, more in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + more


@dataclass(slots=True)
class _Job:
    """One filling under way."""

    order: Order
    staging: Staging
    log: str
    phases: Phases
    ours: tuple[str, ...] = ()
    """Distributions that the index gives no hash for."""
    lies: set[Lie] = field(default_factory=set)

    @property
    def recipe(self) -> Recipe:
        return self.order.recipe


class Filling:
    """Fills staging folders on one ROOT, in this process. Safe for threads."""

    elsewhere = False

    def __init__(self, closures: Closures, files: Files, uv: Uv, compiling: Compiling | None = None) -> None:
        """Without `compiling`, environments get no bytecode."""
        self._closures = closures
        self._compiling = compiling
        self._files = files
        self._uv = uv
        self._uv_version = uv.version()
        self._records = Records()

    @contextlib.contextmanager
    def host(self) -> Iterator[Self]:
        """As `Executor.host`: this process, which always has room for as many builds as are begun."""
        yield self

    def fill(self, order: Order, staging: Staging, tell: Tell) -> Filled:
        """Makes the closure of a recipe in a staging folder, up to its last file.

        Raises `Damaged` and `Raced`, `SpecError`, `StoreError`, `OSError`, and `Stopped`.
        """
        job = _Job(order, staging, order.log, Phases(tell))
        try:
            inventory = self._fill(job)
        except Again as again:
            again.log, again.phases, again.lies = job.log, job.phases.seconds, frozenset(job.lies)
            raise
        return Filled(inventory, job.phases.seconds, frozenset(job.lies))

    def stop(self) -> None:
        """Ends the processes that run, and lets none start any more."""
        self._uv.stop()
        if self._compiling is not None:
            self._compiling.stop()

    def _fill(self, job: _Job) -> Inventory:
        closure, staging, phases = job.recipe.closure, job.staging, job.phases
        with phases.of("sync"):
            self._install(job, staging)
            if job.order.raced:
                self._remove_strays(staging)
        with phases.of("validate"):
            check_set(closure, staging.venv, job.log)
        with phases.of("seal"):
            inventory = self._take_inventory(staging)
            taken = sum(inventory.inodes.values())
            check_real(taken, job.recipe.max_bytes, job.recipe.spec)
            # Only here all names are known without another walk; what is sealed is not changed any more.
            if strays(staging.closure, (_inside(one) for one in inventory.digests if "/.tmp" in one)):
                raise Raced
            wrong = self._check_records(job, staging, inventory)
        if self._compiling is not None:
            with phases.of("bytecode"):
                self._add_bytecode(self._compiling, job, staging, inventory)
        with phases.of("seal"):
            self._closures.describe(staging, inventory, self._metadata(closure, wrong), job.log)
        return inventory

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
        # It was accepted when it was resolved. What uv gets is made from the closure, so that it can read nothing
        # else in it; the generation's own lock stays as uv wrote it.
        project = exact(recipe.pyproject, read_lock(recipe.lock, where, None), closure, where)
        job.ours = project.ours
        self._files.write_new(staging.project / "pyproject.toml", project.pyproject)
        self._files.write_new(staging.project / "uv.lock", project.lock)
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
        # Where uv finds its own folder it links by a minor version's link, which leads to another patch one day.
        nowhere = {"UV_PYTHON_INSTALL_DIR": str(staging.folder / "no-pythons")}
        self._run(job, staging, "making the environment", [*venv, str(staging.venv)], extra=nowhere)
        check_base(closure, staging.venv)
        skeleton = take_skeleton(staging.venv)
        sync = sync_arguments(closure.interpreter)
        # Those that the closure has from source, and no others: also where it is built once more.
        built = [one.name for one in closure.distributions if one.built]
        home = {}
        if built:
            job.log += f"# built from source, which runs its code: {', '.join(built)}\n"
            known = self._uv.environment(fleet=True)
            home = backend_home(self._files, staging.folder / "home", known)
        sync += build_arguments(built)
        self._run(job, staging, f"installing {recipe.spec}", sync, project.registries, extra=home)
        check_skeleton(staging.closure, skeleton)

    def _run(
        self,
        job: _Job,
        staging: Staging,
        doing: str,
        arguments: list[str],
        indexes: Iterable[str] = (),
        extra: Mapping[str, str] | None = None,
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
                **(extra or {}),
            },
            room=Room(self._uv.root.path, job.recipe.max_bytes),
        )
        said = f"$ uv {' '.join(arguments[:3])} …\n{finished.stderr}"
        job.log += said.replace(str(staging.folder), "")
        if finished.code == 0:
            return
        if _UNFINISHED_GONE.search(finished.stderr):
            raise Raced
        # Of a file that changed on its index uv goes on giving what the cache has: it is fetched anew, once for
        # each hash. A lock with a wrong one must not empty the cache with every try.
        stale = {canonicalize_name(name) for name in _MISMATCH.findall(finished.stderr)}
        hashes = {one.name: one.hash for one in job.recipe.closure.distributions if one.name in stale}
        untried = {name for name in hashes if hashes[name] not in job.order.mismatched}
        if untried:
            raise Damaged(untried, finished.stderr, frozenset(hashes[name] for name in untried))
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
                raise Damaged(names)
            raise SpecError(
                Reason.STORE,
                f"{done.changed[0]} changed while the environment was built, and belongs to no distribution. Find what "
                "writes into environments on the NAS; the build is tried again by itself.",
            )

    def _check_records(self, job: _Job, staging: Staging, inventory: Inventory) -> list[Mismatch]:
        """The lines of RECORDs that are wrong although the files are those of the wheel.

        Raises `Damaged` for files that may be those of a damaged cache.
        """
        wheels = {one.name: one.hash for one in job.recipe.closure.distributions}
        wrong = self._records.mismatches(staging.closure, inventory.digests)
        keys = {one: (wheels.get(one.distribution, ""), one.path, one.found) for one in wrong}
        # Fetched anew and wrong again: later builds of the same wheel need not fetch it to find the same.
        job.lies |= {key for one, key in keys.items() if one.distribution in job.order.fresh}
        known = job.lies | job.order.lies
        damaged = {one.distribution for one, key in keys.items() if key not in known}
        if damaged:
            raise Damaged(damaged)
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
