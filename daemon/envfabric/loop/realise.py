"""One spec's way from content to generation, in steps that run in worker threads.

`recall` needs no uv: it says what is known of the content. `resolve` and `build` ask uv, and only
`finish` writes a generation, once the closure is there.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from packaging.version import Version

from envfabric.build.environment import Builder, Built
from envfabric.build.interpreters import Interpreter, Interpreters
from envfabric.build.resolve import Resolution, Resolver
from envfabric.core.errors import Reason, SpecError
from envfabric.specs.policy import Policy
from envfabric.specs.spec import Spec, read_spec
from envfabric.specs.tree import SpecRef
from envfabric.store.closures import Closures
from envfabric.store.generations import Content, Generation, Generations
from envfabric.store.root import Root, now


@dataclass(frozen=True, slots=True)
class Request:
    """A spec's content that has to be made true."""

    ref: SpecRef
    commit: str
    files: Mapping[str, bytes]
    serving: int | None
    """The generation that is served now; its lock is the base of the next one."""


@dataclass(frozen=True, slots=True)
class Suspended:
    """The spec asks that nothing is built for it."""


@dataclass(frozen=True, slots=True)
class Unresolved:
    """uv has to be asked which closure the content means."""

    request: Request
    spec: Spec
    python: Interpreter
    base: bytes | None
    key: str
    """Equal for all who would get the same answer."""


@dataclass(frozen=True, slots=True)
class Located:
    """The closure that the content means is known."""

    request: Request
    spec: Spec
    resolution: Resolution
    built: bool
    """Whether it is in the store."""

    @property
    def digest(self) -> str:
        """The closure's name in the store."""
        return self.resolution.closure.digest


@dataclass(frozen=True, slots=True)
class Served:
    """A retained generation that can be published now."""

    request: Request
    generation: Generation


Recalled = Suspended | Unresolved | Located | Served


@dataclass(frozen=True, slots=True)
class Ray:
    """The cluster's Ray, from the settings: the full version that environments must have, if any."""

    version: str | None = None


class Realiser:
    """The steps on one ROOT. Safe for threads, one thread a spec at a time."""

    def __init__(
        self,
        root: Root,
        policy: Policy,
        ray: Ray,
        interpreters: Interpreters,
        resolver: Resolver,
        builder: Builder,
        closures: Closures,
        generations: Generations,
    ) -> None:
        self._root = root
        self._policy = policy
        self._ray = ray
        self._interpreters = interpreters
        self._resolver = resolver
        self._builder = builder
        self._closures = closures
        self._generations = generations

    def recall(self, request: Request) -> Recalled:
        """What is known of the content, without asking uv. Raises `SpecError`, `StoreError`, `OSError`."""
        self._root.require_marker()
        spec = read_spec(request.ref.id, request.ref.tree, request.files, self._policy)
        if spec.table.suspend:
            return Suspended()
        retained = self._generations.retained(spec.id)
        for generation in retained:
            if generation.inputs == spec.inputs and self._closures.exists(generation.digest):
                self._check_ray(spec, generation.ray_version)
                return Served(request, generation)
        base = self._base(request, spec, retained)
        python = self._interpreters.choose(spec.python)
        key = self._resolver.key(spec, python, base)
        known = self._resolver.known(spec, key)
        if known is None:
            return Unresolved(request, spec, python, base, key)
        return self._locate(request, spec, known)

    def resolve(self, unresolved: Unresolved) -> tuple[Located, float]:
        """Asks uv; gives the seconds that it took, too. Raises `SpecError`, `StoreError`, `OSError`."""
        began = time.monotonic()
        resolution = self._resolver.resolve(unresolved.spec, unresolved.python, unresolved.base)
        seconds = time.monotonic() - began
        return self._locate(unresolved.request, unresolved.spec, resolution), seconds

    def build(self, located: Located, tell: Callable[[str], None]) -> Built | None:
        """Builds a closure; None where somebody else has by now. Raises `SpecError`, `StoreError`, `OSError`."""
        if self._closures.exists(located.digest):
            return None
        return self._builder.build(located.spec, located.resolution, tell)

    def stop(self) -> None:
        """Ends what runs; nothing can be resolved or built any more."""
        self._builder.stop()

    def finish(self, located: Located) -> Generation:
        """Writes the spec's generation over a closure that is in the store; one thread a spec at a time."""
        self._root.require_marker()
        spec, closure = located.spec, located.resolution.closure
        generation = Generation(
            spec=spec.id,
            number=0,
            digest=closure.digest,
            inputs=spec.inputs,
            tree=spec.tree,
            commit=located.request.commit,
            built_at=now(),
            python_version=closure.interpreter.version,
            ray_version=closure.version_of("ray"),
            lock_origin=located.resolution.origin,
            runtime_env=spec.table.runtime_env.model_dump(),
        )
        return self._generations.record(generation, Content(spec.pyproject, located.resolution.lock))

    def _locate(self, request: Request, spec: Spec, resolution: Resolution) -> Located:
        self._check_ray(spec, resolution.closure.version_of("ray"))
        return Located(request, spec, resolution, self._closures.exists(resolution.closure.digest))

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
        if wanted and Version(found) != Version(wanted):
            raise SpecError(
                Reason.VALIDATION,
                f"{spec.id} has ray {found} but the cluster runs {wanted}. Require {line} in "
                "project.dependencies.",
            )
