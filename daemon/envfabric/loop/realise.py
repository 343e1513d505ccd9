"""One spec's way from content to generation, in steps that run in worker threads.

`recall` asks no index and no mirror: it says what is known of the content. `bring`, `resolve` and `build` do, and only
`finish` writes a generation, once the closure is there. What was served and is lost or damaged is built
again from its generation's own files, before anything else is done for its spec.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from envfabric.build.closure import Closure
from envfabric.build.environment import Builder, recipe_from, recipe_of
from envfabric.build.interpreters import Interpreter, Interpreters
from envfabric.build.preflight import Cluster, check_ray, choose, fits_python
from envfabric.build.pythons import NotHere
from envfabric.build.resolve import Resolution, Resolver
from envfabric.build.trial import trial_of
from envfabric.build.trials import Trials
from envfabric.core.errors import SpecError, StoreError
from envfabric.loop.asks import Asks, Mend
from envfabric.loop.mending import whole_again
from envfabric.loop.steps import (
    Located,
    Made,
    Purpose,
    Recalled,
    Request,
    Served,
    Suspended,
    Unchosen,
    Unresolved,
)
from envfabric.specs.policy import Policy
from envfabric.specs.spec import Spec, read_spec
from envfabric.store.claims import Claim, Claims
from envfabric.store.closures import Closures, digest_of
from envfabric.store.generations import Content, Generation, Generations
from envfabric.store.pins import Pin, Pins
from envfabric.store.root import Root, now

MEANT = 100
"""Questions whose closures are kept at hand with their digests: a closure may be large, and each question has one."""


@dataclass(frozen=True, slots=True)
class _Meant:
    """A closure with what is derived from it: thousands of specs mean the same one."""

    closure: Closure
    digest: str
    inputs: dict[str, Any]


class Realiser:
    """The steps on one ROOT. Safe for threads, one thread a spec at a time."""

    def __init__(
        self,
        root: Root,
        policy: Policy,
        cluster: Cluster,
        interpreters: Interpreters,
        resolver: Resolver,
        builder: Builder,
        trials: Trials,
        closures: Closures,
        generations: Generations,
        pins: Pins,
        claims: Claims,
        check: Callable[[], None],
    ) -> None:
        """`check` raises where this is the writer no more, see store/writer."""
        self._root = root
        self._policy = policy
        self._cluster = cluster
        self._interpreters = interpreters
        self._resolver = resolver
        self._builder = builder
        self._trials = trials
        self._closures = closures
        self._generations = generations
        self._pins = pins
        self._claims = claims
        self._check = check
        self._known: dict[str, _Meant] = {}
        self.asks = Asks()
        """What orders and drift want of the next steps."""

    def recall(self, request: Request) -> Recalled:
        """What is known of the content; no index or mirror is asked. Raises `SpecError`, `StoreError`, `OSError`."""
        try:
            return self._recall(request)
        except (SpecError, StoreError, OSError) as error:
            kept = self._kept(request, error)
            return Served(request, kept, self._claims.claim(kept.spec, digest_of(kept.digest)))

    def _recall(self, request: Request) -> Recalled:
        self._root.require_marker()
        spec_id, tree = request.ref.id, request.ref.tree
        # Before its generations are read: the collector drops none of them until this step's outcome is known.
        with_id = self._claims.claim(spec_id)
        mend = self.asks.take_mend(spec_id, tree, request.heal)
        if request.heal is not None:
            if mend is not None:
                healed: Recalled | None = self._mended(request, mend)
            else:
                lost = self._generations.read(spec_id, request.heal)
                healed = self._again(request, lost, "healed") if lost else None
            if healed is not None:
                return healed
        if request.ref.refused is not None:
            return Suspended()
        if pin := self._pins.read(spec_id):
            held = self._generations.read(spec_id, pin.generation) if pin.tree == tree else None
            again = self._again(request, held, "pinned") if held else None
            if again is not None:
                return again
            if pin.tree == tree:
                # What it held is gone. One for other content is the loop's to end: this step may be a late one.
                self._pins.replace(spec_id, pin, None)
        spec = read_spec(spec_id, tree, request.files, self._policy)
        if spec.table.suspend:
            return Suspended()
        retained = self._generations.retained(spec.id)
        same = [one for one in retained if one.inputs == spec.inputs]
        ask = self.asks.of(spec_id, tree)
        if ask is not None and ask.fresh and ask.error is None:
            return self._question(request, spec, None, ask.since)
        # One whose closure is there comes before one that would have to be built again.
        for generation in sorted(same, key=lambda one: not self._closures.usable(one.digest)):
            if not fits_python(spec, generation.python_version, self._cluster):
                # A spec that doesn't choose may get the cluster's by now; one that does is told below.
                continue
            check_ray(spec, generation.ray_version, self._cluster)
            again = self._again(request, generation, "wanted")
            if again is not None:
                return again
        base = self._base(request, same, retained)
        del with_id
        return self._question(request, spec, base, ask.since if ask else None)

    def _question(self, request: Request, spec: Spec, base: bytes | None, since: float | None) -> Recalled:
        try:
            python, claim = self._python(spec)
        except NotHere as missing:
            ask = self.asks.of(request.ref.id, request.ref.tree)
            if ask is not None and ask.error is not None:
                # It was asked for, for the order that keeps what is served.
                raise ask.error from None
            return Unchosen(request, spec, missing.what)
        key = self._resolver.key(spec, python, base)
        known = self._resolver.known(spec, key, since)
        if known is None:
            return Unresolved(request, spec, python, claim, base, key, fresh=since is not None)
        return self._locate(request, spec, key, known)

    def _python(self, spec: Spec) -> tuple[Interpreter, Claim]:
        """The interpreter for a spec, of those that are here. Raises `NotHere`, and what `choose` does."""
        python = choose(spec, self._interpreters, self._cluster, here=True)
        # Claimed first, looked at then: the collector can't take it away in between.
        claim = self._claims.claim(python.path)
        if self._interpreters.gone(python.path):
            self._interpreters.forget(python)
            python = choose(spec, self._interpreters, self._cluster, here=True)
            claim = self._claims.claim(python.path)
        return python, claim

    def _kept(self, request: Request, error: Exception) -> Generation:
        """What goes on being served where an order failed. Raises `error` where that is not for an order to say."""
        ask = self.asks.of(request.ref.id, request.ref.tree)
        if ask is None or ask.keeps is None:
            raise error
        ask.error = ask.error or error
        kept = self._generations.read(request.ref.id, ask.keeps)
        if kept is None or not self._closures.usable(kept.digest):
            raise error
        return kept

    def bring(self, unchosen: Unchosen) -> None:
        """Brings what is missing; whoever waits for it is looked into anew then. Raises as `recall` does."""
        try:
            self._interpreters.bring(unchosen.what)
        except (SpecError, StoreError, OSError) as error:
            # Where an order keeps what is served, the next look gives that.
            self._kept(unchosen.request, error)

    def resolve(self, unresolved: Unresolved) -> tuple[Located, float]:
        """Asks uv; gives the seconds that it took, too. Raises `SpecError`, `StoreError`, `OSError`."""
        began, request = time.monotonic(), unresolved.request
        try:
            resolution = self._resolver.resolve(
                unresolved.spec, unresolved.python, unresolved.base, fresh=unresolved.fresh
            )
            located = self._locate(request, unresolved.spec, unresolved.key, resolution)
        except (SpecError, StoreError, OSError) as error:
            instead = self._located(request, self._kept(request, error), "wanted")
            if instead is None:
                raise
            located = instead
        return located, time.monotonic() - began

    def build(self, located: Located, tell: Callable[[str], None]) -> Made:
        """Builds a closure that is not there. Raises `SpecError`, `StoreError`, `OSError`."""
        try:
            if self._closures.locate(located.digest) is not None:
                return "there"
            return self._builder.build(located.recipe, tell)
        except (SpecError, StoreError, OSError) as error:
            return self._instead(located, error)

    def validate(self, located: Located, tell: Callable[[str], None]) -> Made:
        """Runs the validation that a closure has yet to pass. Raises `SpecError`, `StoreError`, `OSError`."""
        try:
            name, due = self._closures.locate(located.digest), located.due
            # One that has left the store by now `finish` tells of.
            if name is not None and due is not None and not self._trials.passed(located.digest, due):
                tell("validate")
                self._trials.run(located.digest, name, due)
            return "there"
        except (SpecError, StoreError, OSError) as error:
            return self._instead(located, error)

    def _instead(self, located: Located, error: SpecError | StoreError | OSError) -> Literal["kept"]:
        """Where an order keeps what is served, `finish` gives that. Raises `error` where none does."""
        if located.purpose != "wanted":
            raise error
        self._kept(located.request, error)
        return "kept"

    def is_damaged(self, name: str) -> bool:
        """Whether a closure was found damaged since a step found it good."""
        return name in self._closures.damaged()

    def stop(self) -> None:
        """Ends what runs; nothing can be resolved or built any more."""
        self._builder.stop()
        self._trials.stop()

    def finish(self, located: Located) -> Generation:
        """Writes the spec's generation over a closure that is in the store; one thread a spec at a time."""
        try:
            return self._write(located)
        except (StoreError, OSError) as error:
            if located.purpose != "wanted":
                raise
            return self._kept(located.request, error)

    def _write(self, located: Located) -> Generation:
        self._root.require_marker()
        name = self._closures.locate(located.digest)
        if name is None:
            raise StoreError(f"closure {located.digest} has left the store; it is built again by itself.")
        if located.due is not None and not self._trials.passed(located.digest, located.due):
            # An order's build that failed comes by here, too.
            raise StoreError(f"closure {located.digest} was not validated for {located.id}.")
        draft, recipe = located.draft, located.recipe
        content = Content(recipe.pyproject, recipe.lock)
        generation = self._generations.record(replace(draft, digest=name, built_at=now()), content)
        # A pin on what could not be served any more goes over to what was made of the same files.
        pin = self._pins.read(located.id) if draft.number else None
        if pin and pin.generation == draft.number != generation.number:
            self._pins.replace(located.id, pin, Pin(generation.number, pin.tree))
        return generation

    def _locate(self, request: Request, spec: Spec, key: str, resolution: Resolution) -> Located:
        meant = self._meant(key, resolution.closure)
        closure = meant.closure
        resolution = replace(resolution, closure=closure)
        check_ray(spec, closure.version_of("ray"), self._cluster)
        # Claimed first, looked at then: the collector can't take it away in between.
        claim = self._claims.claim(spec.id, meant.digest, closure.interpreter.path)
        draft = Generation(
            spec=spec.id,
            number=0,
            digest="",
            inputs=spec.inputs,
            tree=spec.tree,
            commit=request.commit,
            built_at="",
            python_version=closure.interpreter.version,
            ray_version=closure.version_of("ray"),
            lock_origin=resolution.origin,
            runtime_env=spec.table.runtime_env.model_dump(),
            closure=meant.inputs,
        )
        built = self._closures.locate(meant.digest) is not None
        trial = trial_of(spec)
        due = trial if trial is not None and not self._trials.passed(meant.digest, trial) else None
        return Located(request, recipe_of(spec, resolution), meant.digest, draft, built, claim, due=due)

    def _meant(self, key: str, closure: Closure) -> _Meant:
        """The closure that was found for a question, one object for all who asked it."""
        known = self._known.get(key)
        if known is None or known.closure != closure:
            if len(self._known) >= MEANT:
                self._known.clear()
            known = self._known[key] = _Meant(closure, closure.digest, closure.inputs)
        return known

    def _again(self, request: Request, generation: Generation, purpose: Purpose) -> Served | Located | None:
        """A retained generation as it is, or built again from its own files where its closure is no good.

        None where that can't be: its files, or the interpreter that it was made for, are gone.
        """
        digest = digest_of(generation.digest)
        claim = self._claims.claim(generation.spec, digest)
        if self._closures.usable(generation.digest):
            # What had to be healed is whole: it goes the way of all content.
            return Served(request, generation, claim, purpose == "pinned") if purpose != "healed" else None
        return self._located(request, generation, purpose)

    def _mended(self, request: Request, mend: Mend) -> Located | None:
        """A generation in whose folder a hand was, to be written anew; None where too little is left."""
        ref, commit, files = request.ref, request.commit, request.files
        parts = self._generations, self._closures, self._policy
        found = whole_again(*parts, mend, ref, commit, files, self._check)
        return self._located(request, found[0], "healed", found[1]) if found else None

    def _located(
        self, request: Request, generation: Generation, purpose: Purpose, content: Content | None = None
    ) -> Located | None:
        """A generation to be built, and written, from `content`, else its own files; None where that can't be."""
        digest = digest_of(generation.digest)
        content = content or self._generations.content(generation)
        if content is None:
            return None
        try:
            recipe = recipe_from(generation.spec, content.pyproject, content.lock, generation.closure)
        except SpecError:
            return None
        python = recipe.closure.interpreter.path
        # Before these are looked for.
        claim = self._claims.claim(generation.spec, digest, python)
        if recipe.closure.digest != digest or self._interpreters.gone(python):
            return None
        built = self._closures.locate(digest) is not None
        return Located(request, recipe, digest, generation, built, claim, purpose)

    def _base(self, request: Request, same: list[Generation], retained: list[Generation]) -> bytes | None:
        """The lock whose versions are kept: of the same content whose closure is gone, else of what is served."""
        served = [one for one in retained if one.number == request.serving]
        base = next(iter(same + served), None)
        return self._generations.lock(base) if base is not None and base.lock_origin == "resolved" else None
