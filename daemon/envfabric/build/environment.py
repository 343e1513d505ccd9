"""Builds one closure: a staging folder, an executor that fills it, and the rename into the store.

What uv's cache held damaged is fetched anew, and a folder whose host was lost is filled elsewhere, each time in a
staging folder of its own. Which host does the work is the executor's business; only this process publishes.
"""

import contextlib
import os
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

from envfabric.build.cache import CacheInUse, forget, server_time, take_back
from envfabric.build.closure import Closure
from envfabric.build.compiling import Compiling
from envfabric.build.filling import Again, Damaged, Filled, Filling, Lie, Order, Phases, Tell
from envfabric.build.interpreters import Interpreter
from envfabric.build.recipe import Recipe, recipe_from, recipe_of
from envfabric.build.unpacking import Unpacking
from envfabric.build.uv import Uv
from envfabric.build.validate import check_interpreter
from envfabric.core.errors import Reason, SpecError, StoreError
from envfabric.store.closures import Closures, Staging
from envfabric.store.files import Files, stamp
from envfabric.store.sealing import Inventory
from envfabric.telemetry import logs

__all__ = ["Builder", "Built", "Elsewhere", "Executor", "Lost", "Recipe", "recipe_from", "recipe_of"]

_ROUNDS = 3
"""Times that a build is begun before the cache is given up as one that goes on being damaged."""
_BELIEVED = 60.0
"""Seconds for which an interpreter that was found to be the planned one is not started again to be asked."""


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


class Lost(Again):
    """The host that filled a staging folder is gone, or may be: what it does there is not known."""


class Elsewhere(Again):
    """The host can't fill the staging folder, or not now: another one has to, and this one writes there no more."""


class Host(Protocol):
    """A host that has room for one build."""

    def fill(self, order: Order, staging: Staging, tell: Tell) -> Filled:
        """As `Filling.fill`; raises `Lost` and `Elsewhere`, too."""


class Executor(Protocol):
    """Who fills staging folders. Safe for threads."""

    elsewhere: bool
    """Whether other hosts write into them, which take the folder's hold themselves."""

    def host(self) -> AbstractContextManager[Host]:
        """A host for one build, which has its room there until the block ends. Waits for it, and the step's clock
        stands meanwhile. Raises `SpecError` where there is none, and what the step's scope does."""

    def stop(self) -> None:
        """Ends what runs, and lets nothing begin any more."""


class Builder:
    """Builds closures on one ROOT. Safe for threads."""

    def __init__(
        self,
        closures: Closures,
        files: Files,
        uv: Uv,
        compiling: Compiling | None = None,
        executor: Executor | None = None,
        retries: int = 0,
    ) -> None:
        """Without `compiling`, environments get no bytecode; without `executor`, this process fills the folders.

        `retries` is how often a build whose host was lost is begun anew.
        """
        self._closures = closures
        self._files = files
        self._uv = uv
        self._executor = executor or Filling(closures, files, uv, compiling)
        self._retries = retries
        self._unpacking = Unpacking()
        self._sound: dict[Interpreter, tuple[int, ...]] = {}
        self._lies: set[Lie] = set()
        """What RECORDs were found to be wrong about."""
        self._mismatched: set[str] = set()
        """Hashes of wheels that the cache had other content for, and that were fetched anew."""

    def build(self, recipe: Recipe, tell: Tell) -> Built:
        """Builds a closure into the store.

        `tell` hears the name of each phase as it begins, also when it goes on after another one. Raises
        `SpecError`, `StoreError` and `OSError`; the store is as it was then.
        """
        order, phases = Order(recipe), Phases(tell)
        began = time.monotonic()
        with phases.of("validate"):
            self._check_interpreter(recipe.closure)
        number = losses = 1
        since = server_time(self._uv.root)
        while True:
            try:
                name, inodes, inventory = self._round(order, phases)
                break
            except SpecError as error:
                if error.reason in {Reason.POLICY, Reason.NO_SPACE}:
                    self._take_back(recipe, since)
                raise
            except Again as again:
                self._learn(again, phases)
                if isinstance(again, Elsewhere):
                    # Nothing was done. That it ends is the executor's to see to: it knows how many hosts there are.
                    continue
                if isinstance(again, Lost):
                    order = self._elsewhere(order, again, losses)
                    losses += 1
                else:
                    order = self._anew(order, again, last=number == _ROUNDS)
                    number += 1
        phases.seconds["total"] = time.monotonic() - began
        return Built(name, inodes, inventory.linked, inventory.copied, phases.seconds)

    def forgotten(self) -> None:
        """uv's cache has let go of wheels: the next build of each is a first one again."""
        self._unpacking.forget_all()

    def stop(self) -> None:
        """Ends the processes of running builds, and lets none start any more."""
        self._uv.stop()
        self._unpacking.stop()
        self._executor.stop()

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

    def _round(self, order: Order, phases: Phases) -> tuple[str, dict[int, int], Inventory]:
        closure = order.recipe.closure
        hashes = {one.hash for one in closure.distributions}
        order = replace(
            order,
            lies=frozenset(one for one in self._lies if one[0] in hashes),
            mismatched=frozenset(self._mismatched & hashes),
        )
        elsewhere = self._executor.elsewhere
        with self._closures.staging(elsewhere=elsewhere) as staging:
            filled = self._filled(order, staging, phases, hashes)
            phases.add(filled.phases)
            self._lies |= filled.lies
            with phases.of("seal"):
                if elsewhere:
                    # A network file system's client sees what another host made once the folder was opened.
                    os.close(os.open(staging.closure, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
                name, inodes = self._closures.publish(staging, closure.digest, filled.inventory)
        return name, inodes, filled.inventory

    def _filled(self, order: Order, staging: Staging, phases: Phases, hashes: set[str]) -> Filled:
        # The host first: who held the wheels while waiting for one would have all others that want them wait.
        with self._executor.host() as host, contextlib.ExitStack() as unpacking:
            with phases.of("sync"):
                if not unpacking.enter_context(self._unpacking.of(hashes)):
                    late = "# other builds took too long to unpack the same wheels: these may not be shared\n"
                    order = replace(order, log=order.log + late)

            def heard(phase: str) -> None:
                if phase != "sync":
                    # uv is through: the wheels are in the cache, and others may link them.
                    unpacking.close()
                phases.tell(phase)

            return host.fill(order, staging, heard)

    def _take_back(self, recipe: Recipe, since: float | None) -> None:
        """What was unpacked for an environment that is too large must not stay where nothing uses it."""
        distributions = recipe.closure.distributions
        self._unpacking.forget(one.hash for one in distributions)
        try:
            names = {one.name for one in distributions}
            take_back(self._uv, self._uv.root, self._files, names, since)
        except (SpecError, StoreError, OSError) as error:
            # It is about the cache, and what is to be told of the spec is something else; pruning comes to it later.
            logs.get().warning("what was unpacked stays in uv's cache", spec=recipe.spec, error=str(error))

    def _learn(self, again: Again, phases: Phases) -> None:
        phases.add(again.phases)
        self._lies |= again.lies
        if isinstance(again, Damaged):
            self._mismatched |= again.mismatched

    def _elsewhere(self, order: Order, lost: Lost, times: int) -> Order:
        """The order for another host, once one was lost. Raises `SpecError` (internal) after too many."""
        if times > self._retries:
            raise SpecError(
                Reason.INTERNAL,
                f"{lost}. That was try {times} of this build; it is tried again by itself. Look into the cluster's "
                "logs if its nodes go on being lost.",
                lost.log or order.log,
            )
        logs.get().warning("a build is begun elsewhere", spec=order.recipe.spec, why=str(lost))
        return replace(order, log=f"{order.log}# {lost}: begun anew\n")

    def _anew(self, order: Order, again: Again, *, last: bool) -> Order:
        """The order for the next round, with the cache mended where that is why. Raises `SpecError`."""
        log = again.log
        if not isinstance(again, Damaged):
            if last:
                raise SpecError(
                    Reason.STORE,
                    "other builds renewed files of uv's cache, at the file system's link limit, each time while "
                    "this one linked them. Set fewer builders; the build is tried again by itself.",
                    log,
                )
            log += "# another build renewed a file of the cache meanwhile: begun anew\n"
            return replace(order, log=log, raced=True)
        if last:
            raise SpecError(
                Reason.STORE,
                f"uv's cache holds damaged content of {again}, and again after it was fetched anew. Find "
                "what writes into environments on the NAS; the build is tried again by itself.",
                again.output,
            )
        log += f"# the cache held other content of {again} than it should: fetched anew\n"
        logs.get().warning(
            "the cache held other content than it should", spec=order.recipe.spec, distributions=str(again)
        )
        distributions = order.recipe.closure.distributions
        self._unpacking.forget(one.hash for one in distributions if one.name in again.names)
        try:
            forget(self._uv, self._uv.root, again.names)
        except CacheInUse as error:
            raise SpecError(Reason.STORE, f"{error} The build is tried again by itself.") from None
        return replace(order, log=log, fresh=order.fresh | again.names)
