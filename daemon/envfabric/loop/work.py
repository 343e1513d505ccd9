"""The steps that are waiting and running: recall, resolve, build, finish.

Each kind has slots of its own, so that a spec whose content is known waits behind no uv process; a
question that several specs ask, and a closure that several want, is answered once. Belongs to the
loop's thread; the steps themselves run in worker threads and come back through the loop's queue.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from envfabric.build.environment import Built
from envfabric.build.lockfile import neutral
from envfabric.core.errors import Reason, SpecError
from envfabric.loop.board import Board
from envfabric.loop.lane import Lane
from envfabric.loop.realise import (
    Missing,
    Realiser,
    Recalled,
    Request,
    Resolved,
    Served,
    Suspended,
    Unresolved,
)
from envfabric.specs.repository import Repository, SourceError
from envfabric.specs.toml import MAX_BYTES
from envfabric.specs.tree import SpecRef
from envfabric.store.generations import Generation
from envfabric.store.usage import Usage
from envfabric.telemetry import logs
from envfabric.telemetry.metrics import Metrics

T = TypeVar("T")

RECALLERS = 4
"""Specs that are read and compared, or whose generations are written, at a time."""


class Work:
    """The steps of one loop."""

    def __init__(
        self,
        board: Board,
        repository: Repository,
        realiser: Realiser,
        usage: Usage,
        metrics: Metrics,
        builders: int,
        post: Callable[[Callable[[], None]], None],
    ) -> None:
        """`builders` closures are built at a time; `post` hands a call to the loop's thread."""
        self._board = board
        self._repository = repository
        self._realiser = realiser
        self._usage = usage
        self._metrics = metrics
        self._post = post
        self._log = logs.get()
        self._todo: OrderedDict[str, None] = OrderedDict()
        self._busy: set[str] = set()
        self._resolving: Lane[Unresolved] = Lane(2 * builders)
        self._building: Lane[Missing] = Lane(builders)
        # A finishing step has no slot of its own: it is short, and the pool's queue is enough for it.
        self._pool = ThreadPoolExecutor(RECALLERS + 3 * builders, "work")
        self.phases: dict[str, str] = {}
        """What is being done now, phase by spec id, for a progress display."""

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        lanes = (self._resolving, self._building)
        return not (self._todo or self._busy or any(lane.waiting or lane.running for lane in lanes))

    def add(self, spec_id: str) -> None:
        """Has a spec's content looked into; what was to be done for earlier content is void."""
        self._todo.pop(spec_id, None)
        self._todo[spec_id] = None

    def forget(self, spec_id: str) -> None:
        """The spec is gone; the outcome of a step that is running will be dropped."""
        self._todo.pop(spec_id, None)

    def start(self) -> bool:
        """Starts as many steps as there are free slots; whether a build was among them."""
        while len(self._busy) < RECALLERS:
            # One thread a spec: newer content waits for the step that is running for the older.
            spec_id = next((one for one in self._todo if one not in self._busy), None)
            if spec_id is None:
                break
            del self._todo[spec_id]
            self._recall(spec_id)
        for key, unresolved in self._resolving.start():
            self._resolve(key, unresolved)
        before = self._building.waiting
        for digest, missing in self._building.start():
            self._build(digest, missing)
        self._metrics.builds_in_progress.set(self._building.running)
        self._metrics.build_queue_length.set(
            len(self._todo) + self._resolving.waiting + self._building.waiting
        )
        return self._building.waiting < before

    def close(self) -> None:
        """Ends what runs and waits for it."""
        self._realiser.stop()
        self._pool.shutdown(cancel_futures=True)

    # Recall: read the spec, and find what is known of its content.

    def _recall(self, spec_id: str) -> None:
        ref = self._board.refs[spec_id]
        entry = self._board.entries[spec_id]
        try:
            request = Request(ref, entry.commit, self._read(ref), entry.generation)
        except (SpecError, SourceError) as error:
            self._board.fail(spec_id, error)
            return
        self._busy.add(spec_id)
        self._submit(partial(self._realiser.recall, request), partial(self._recalled, request), [spec_id])

    def _read(self, ref: SpecRef) -> Mapping[str, bytes]:
        for name, oid in ref.blobs:
            size = self._repository.size(oid)
            if size > MAX_BYTES[name]:
                raise SpecError(
                    Reason.INVALID_SPEC,
                    f"{ref.id}/{name} has {size} bytes; at most {MAX_BYTES[name]} are read.",
                )
        return {name: self._repository.read(oid) for name, oid in ref.blobs}

    def _recalled(self, request: Request, future: Future[Recalled]) -> None:
        self._busy.discard(request.ref.id)
        if not self._board.wants(request):
            return
        result = future.result()
        if isinstance(result, Suspended):
            self._board.suspend(request.ref.id)
        elif isinstance(result, Unresolved):
            self._resolving.add(result.key, result)
        else:
            self._closure_needed(result)

    def _closure_needed(self, result: Resolved) -> None:
        self._metrics.closure_requests.inc()
        if isinstance(result, Served):
            self._metrics.closure_hits.inc()
            self._serve(result.request, result.generation)
        else:
            self._building.add(result.resolution.closure.digest, result)

    # Resolve: ask uv, once for all who ask the same.

    def _resolve(self, key: str, unresolved: list[Unresolved]) -> None:
        asking = unresolved[0]
        self.phases[asking.spec.id] = "resolve"
        ids = [asking.spec.id]
        self._submit(partial(self._realiser.resolve, asking), partial(self._resolved, key), ids)

    def _resolved(self, key: str, future: Future[tuple[Resolved, float]]) -> None:
        first, *others = self._resolving.end(key)
        self.phases.pop(first.spec.id, None)
        error = future.exception()
        for one in others:
            if not self._board.wants(one.request):
                continue
            if isinstance(error, SpecError) and error.reason.passing:
                self._board.fail(one.spec.id, error)
            else:
                # The answer is known by now; where it is a refusal, each is told in words of its own.
                self.add(one.spec.id)
        if not self._board.wants(first.request):
            return
        result, seconds = future.result()
        self._metrics.build_duration.labels("resolve").observe(seconds)
        self._closure_needed(result)

    # Build: once for all who want the closure.

    def _build(self, digest: str, waiting: list[Missing]) -> None:
        wanted = [one for one in waiting if self._board.wants(one.request)]
        if not wanted:
            self._building.end(digest)
            return
        waiting[:] = wanted
        missing = wanted[0]
        self._metrics.builds.inc()
        for one in wanted:
            self._board.building(one.spec.id)
        self._log.info("build", spec=missing.spec.id, commit=missing.request.commit, digest=digest)
        tell = partial(self.phases.__setitem__, missing.spec.id)
        ids = [one.spec.id for one in wanted]
        self._submit(partial(self._realiser.build, missing, tell), partial(self._built, digest), ids)

    def _built(self, digest: str, future: Future[Built]) -> None:
        waiting = self._building.end(digest)
        first = waiting[0]
        self.phases.pop(first.spec.id, None)
        error = future.exception()
        if error is None:
            self._count(first, future.result())
        for one in waiting:
            if not self._board.wants(one.request):
                continue
            if error is None:
                self._finish(one)
            elif neutral(one.resolution.lock) == neutral(first.resolution.lock):
                self._board.fail(one.spec.id, error, digest)
            else:
                # Its own lock may name other places for the same wheels: one spec's fault is not another's.
                self._building.add(digest, one)

    def _count(self, missing: Missing, built: Built) -> None:
        for phase, seconds in built.phases.items():
            self._metrics.build_duration.labels(phase).observe(seconds)
        log = self._log.bind(spec=missing.spec.id, commit=missing.request.commit, digest=built.digest)
        if built.link_fallbacks:
            self._metrics.link_fallbacks.inc(built.link_fallbacks)
            log.warning("files were copied, not linked", files=built.link_fallbacks)
        self._usage.add(built.digest, built.inodes)
        log.info("built", seconds=round(built.phases["total"], 3))

    # Finish: write the generation.

    def _finish(self, missing: Missing) -> None:
        spec_id = missing.spec.id
        self._busy.add(spec_id)
        self._submit(
            partial(self._realiser.finish, missing), partial(self._finished, missing.request), [spec_id]
        )

    def _finished(self, request: Request, future: Future[Generation]) -> None:
        self._busy.discard(request.ref.id)
        if self._board.wants(request):
            self._serve(request, future.result())

    def _serve(self, request: Request, generation: Generation) -> None:
        if not self._usage.known(generation.digest):
            self._usage.add(generation.digest)
        self._board.serve(request.ref.id, generation)

    def _submit(self, work: Callable[[], T], done: Callable[[Future[T]], None], ids: Iterable[str]) -> None:
        """Runs `work` in a thread and then `done` in the loop's; whatever goes wrong is the error of `ids`."""

        def guarded(ended: Future[T]) -> None:
            try:
                done(ended)
            except Exception as error:
                for spec_id in ids:
                    if spec_id in self._board.entries:
                        self._board.fail(spec_id, error)

        future = self._pool.submit(work)
        future.add_done_callback(lambda ended: self._post(partial(guarded, ended)))
