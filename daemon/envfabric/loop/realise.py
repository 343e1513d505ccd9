"""One spec's way from content to generation, in steps that run in worker threads.

`prepare` ends with a generation where the content was seen before or its closure exists, and else
with what has to be built; `finish` writes the generation once the closure is there.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from envfabric.build.environment import Builder, Built
from envfabric.build.interpreters import Interpreters
from envfabric.build.resolve import Resolution, Resolver
from envfabric.core.errors import Reason, SpecError
from envfabric.specs.policy import Policy
from envfabric.specs.spec import Spec, read_spec
from envfabric.specs.tree import SpecRef
from envfabric.store.closures import Closures
from envfabric.store.generations import Content, Generation, Generations
from envfabric.store.root import now


@dataclass(frozen=True, slots=True)
class Request:
    """A spec's content that has to be made true."""

    ref: SpecRef
    commit: str
    files: Mapping[str, bytes]
    serving: int | None
    """The generation that is served now; its lock is the base of the next one."""


@dataclass(frozen=True, slots=True)
class Served:
    """A generation that can be published now."""

    generation: Generation
    resolve_seconds: float | None = None
    """How long uv took to resolve; None where it was not asked."""


@dataclass(frozen=True, slots=True)
class Suspended:
    """The spec asks that nothing is built for it."""


@dataclass(frozen=True, slots=True)
class Missing:
    """The closure has to be built first."""

    spec: Spec
    resolution: Resolution
    resolve_seconds: float | None


Prepared = Served | Suspended | Missing


@dataclass(frozen=True, slots=True)
class Ray:
    """The cluster's Ray, from the settings: the full version that environments must have, if any."""

    version: str | None = None


class Realiser:
    """The steps on one ROOT. Safe for threads, one thread a spec at a time."""

    def __init__(
        self,
        policy: Policy,
        ray: Ray,
        interpreters: Interpreters,
        resolver: Resolver,
        builder: Builder,
        closures: Closures,
        generations: Generations,
    ) -> None:
        self._policy = policy
        self._ray = ray
        self._interpreters = interpreters
        self._resolver = resolver
        self._builder = builder
        self._closures = closures
        self._generations = generations
        self._asking = KeyedLocks()

    def prepare(self, request: Request) -> Prepared:
        """Goes as far as possible without a build. Raises `SpecError`, `StoreError` and `OSError`."""
        spec = read_spec(request.ref.id, request.ref.tree, request.files, self._policy)
        if spec.table.suspend:
            return Suspended()
        retained = self._generations.retained(spec.id)
        for generation in retained:
            if generation.inputs == spec.inputs and self._closures.exists(generation.digest):
                self._check_ray(spec, generation.ray_version)
                return Served(generation)
        resolution, seconds = self._resolve(spec, self._base(request, spec, retained))
        self._check_ray(spec, resolution.closure.version_of("ray"))
        if not self._closures.exists(resolution.closure.digest):
            return Missing(spec, resolution, seconds)
        return Served(self.finish(request, spec, resolution), seconds)

    def build(self, missing: Missing, tell: Callable[[str], None]) -> Built:
        """Builds what a spec misses. Raises `SpecError`, `StoreError` and `OSError`."""
        return self._builder.build(missing.spec, missing.resolution, tell)

    def stop(self) -> None:
        """Ends what runs; nothing can be prepared or built any more."""
        self._builder.stop()

    def finish(self, request: Request, spec: Spec, resolution: Resolution) -> Generation:
        """Writes the spec's generation over a closure that is in the store."""
        closure = resolution.closure
        generation = Generation(
            spec=spec.id,
            number=0,
            digest=closure.digest,
            inputs=spec.inputs,
            tree=spec.tree,
            commit=request.commit,
            built_at=now(),
            python_version=closure.interpreter.version,
            ray_version=closure.version_of("ray"),
            lock_origin=resolution.origin,
            runtime_env=spec.table.runtime_env.model_dump(),
        )
        return self._generations.record(generation, Content(spec.pyproject, resolution.lock))

    def _resolve(self, spec: Spec, base: bytes | None) -> tuple[Resolution, float | None]:
        python = self._interpreters.choose(spec.python)
        key = self._resolver.key(spec, python, base)
        # Specs that ask for the same at the same moment: one asks uv, the others find its answer.
        with self._asking.holding(key):
            known = self._resolver.known(spec, key)
            if known is not None:
                return known, None
            began = time.monotonic()
            return self._resolver.resolve(spec, python, base), time.monotonic() - began

    def _base(self, request: Request, spec: Spec, retained: list[Generation]) -> bytes | None:
        """The lock whose versions are kept: of the same content whose closure is gone, else of what is served."""
        same = [one for one in retained if one.inputs == spec.inputs]
        served = [one for one in retained if one.number == request.serving]
        base = next(iter(same + served), None)
        return self._generations.lock(base) if base is not None and base.lock_origin == "resolved" else None

    def _check_ray(self, spec: Spec, found: str | None) -> None:
        if not spec.ray:
            return
        wanted = self._ray.version
        line = f'"ray=={wanted}"' if wanted else '"ray==<the cluster\'s version>"'
        if found is None:
            raise SpecError(
                Reason.VALIDATION,
                f"{spec.id} is for Ray but its environment has no ray: a task in it would hang for ever. Add "
                f"{line} to project.dependencies, or set ray = false in [tool.envfabric].",
            )
        if wanted and found != wanted:
            raise SpecError(
                Reason.VALIDATION,
                f"{spec.id} has ray {found} but the cluster runs {wanted}. Require {line} in "
                "project.dependencies.",
            )


class KeyedLocks:
    """A lock for each key that somebody is using now."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[str, tuple[threading.Lock, int]] = {}

    @contextlib.contextmanager
    def holding(self, key: str) -> Iterator[None]:
        """Waits for the key's lock and holds it."""
        with self._guard:
            lock, users = self._locks.get(key, (threading.Lock(), 0))
            self._locks[key] = (lock, users + 1)
        try:
            with lock:
                yield
        finally:
            with self._guard:
                lock, users = self._locks.pop(key)
                if users > 1:
                    self._locks[key] = (lock, users - 1)
