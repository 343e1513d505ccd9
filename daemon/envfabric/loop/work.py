"""The steps that are waiting and running: which spec is prepared next, which closure built next.

Preparing has slots of its own, so that a spec whose closure exists never waits behind a build, and a
closure that several specs want is built once. Belongs to the loop's thread; the steps themselves
run in worker threads and come back through the loop's queue.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from envfabric.build.environment import Built
from envfabric.core.errors import Reason, SpecError
from envfabric.loop.board import Board
from envfabric.loop.realise import Missing, Prepared, Realiser, Request, Served, Suspended
from envfabric.specs.repository import Repository, SourceError
from envfabric.specs.toml import MAX_BYTES
from envfabric.specs.tree import SpecRef
from envfabric.store.generations import Generation
from envfabric.store.usage import Usage
from envfabric.telemetry import logs
from envfabric.telemetry.metrics import Metrics

T = TypeVar("T")


@dataclass(slots=True)
class Wanted:
    """A closure that has to be built, and the specs that wait for it."""

    missing: Missing
    waiting: list[tuple[Request, Missing]] = field(default_factory=list)


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
        self._builders = builders
        self._preparers = builders + 4
        self._post = post
        self._log = logs.get()
        self._todo: OrderedDict[str, None] = OrderedDict()
        self._preparing: set[str] = set()
        self._queue: OrderedDict[str, None] = OrderedDict()
        self._wanted: dict[str, Wanted] = {}
        self._building: set[str] = set()
        self._pool = ThreadPoolExecutor(self._preparers + builders, "work")
        self.phases: dict[str, str] = {}
        """What is being done now, phase by spec id, for a progress display."""

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not (self._todo or self._preparing or self._wanted)

    def add(self, spec_id: str) -> None:
        """Has a spec's content looked into; what was to be done for earlier content is void."""
        self._todo.pop(spec_id, None)
        self._todo[spec_id] = None

    def forget(self, spec_id: str) -> None:
        """The spec is gone; the outcome of a step that is running will be dropped."""
        self._todo.pop(spec_id, None)

    def start(self) -> bool:
        """Starts as many steps as there are free slots; whether a build was among them."""
        while len(self._preparing) < self._preparers:
            # One thread a spec: newer content waits for the step that is running for the older.
            spec_id = next((one for one in self._todo if one not in self._preparing), None)
            if spec_id is None:
                break
            del self._todo[spec_id]
            self._prepare(spec_id)
        began = False
        while self._queue and len(self._building) < self._builders:
            digest, _ = self._queue.popitem(last=False)
            began = self._build(digest) or began
        self._metrics.builds_in_progress.set(len(self._building))
        self._metrics.build_queue_length.set(len(self._todo) + len(self._queue))
        return began

    def close(self) -> None:
        """Ends what runs and waits for it."""
        self._realiser.stop()
        self._pool.shutdown(cancel_futures=True)

    def _prepare(self, spec_id: str) -> None:
        ref = self._board.refs[spec_id]
        entry = self._board.entries[spec_id]
        try:
            request = Request(ref, entry.commit, self._read(ref), entry.generation)
        except (SpecError, SourceError) as error:
            self._board.fail(spec_id, error)
            return
        self._preparing.add(spec_id)
        self.phases[spec_id] = "resolve"
        self._submit(partial(self._realiser.prepare, request), partial(self._prepared, request))

    def _read(self, ref: SpecRef) -> Mapping[str, bytes]:
        for name, oid in ref.blobs:
            size = self._repository.size(oid)
            if size > MAX_BYTES[name]:
                raise SpecError(
                    Reason.INVALID_SPEC,
                    f"{ref.id}/{name} has {size} bytes; at most {MAX_BYTES[name]} are read.",
                )
        return {name: self._repository.read(oid) for name, oid in ref.blobs}

    def _prepared(self, request: Request, future: Future[Prepared]) -> None:
        spec_id = request.ref.id
        self._preparing.discard(spec_id)
        self.phases.pop(spec_id, None)
        error = future.exception()
        if error is not None:
            if self._board.wants(request):
                self._board.fail(spec_id, error)
            return
        result = future.result()
        if not isinstance(result, Suspended):
            self._metrics.closure_requests.inc()
            if result.resolve_seconds is not None:
                self._metrics.build_duration.labels("resolve").observe(result.resolve_seconds)
        if isinstance(result, Served):
            self._metrics.closure_hits.inc()
        if not self._board.wants(request):
            return
        if isinstance(result, Served):
            self._board.serve(spec_id, result.generation)
        elif isinstance(result, Suspended):
            self._board.suspend(spec_id)
        else:
            self._want(request, result)

    def _want(self, request: Request, missing: Missing) -> None:
        digest = missing.resolution.closure.digest
        if self._usage.known(digest):
            # Built at another spec's request since this one looked.
            self._finish(request, missing)
            return
        if digest not in self._wanted:
            self._wanted[digest] = Wanted(missing)
            self._queue[digest] = None
        self._wanted[digest].waiting.append((request, missing))

    def _build(self, digest: str) -> bool:
        wanted = self._wanted[digest]
        waiting = [request for request, _ in wanted.waiting if self._board.wants(request)]
        if not waiting:
            del self._wanted[digest]
            return False
        spec = wanted.missing.spec
        self._building.add(digest)
        self._metrics.builds.inc()
        for request in waiting:
            self._board.building(request.ref.id)
        self._log.info("build", spec=spec.id, commit=waiting[0].commit, digest=digest)
        tell = partial(self.phases.__setitem__, spec.id)
        self._submit(partial(self._realiser.build, wanted.missing, tell), partial(self._built, digest))
        return True

    def _built(self, digest: str, future: Future[Built]) -> None:
        wanted = self._wanted.pop(digest)
        self._building.discard(digest)
        self.phases.pop(wanted.missing.spec.id, None)
        waiting = [(request, missing) for request, missing in wanted.waiting if self._board.wants(request)]
        error = future.exception()
        if error is not None:
            for request, _ in waiting:
                self._board.fail(request.ref.id, error)
            return
        self._count(wanted.missing.spec.id, future.result())
        for request, missing in waiting:
            self._finish(request, missing)

    def _count(self, spec_id: str, built: Built) -> None:
        for phase, seconds in built.phases.items():
            self._metrics.build_duration.labels(phase).observe(seconds)
        if built.link_fallbacks:
            self._metrics.link_fallbacks.inc(built.link_fallbacks)
            self._log.warning(
                "files were copied, not linked", digest=built.digest, files=built.link_fallbacks
            )
        with contextlib.suppress(OSError):
            # Only the record is lost, and made again by the next count.
            self._usage.keep(built.digest, built.inodes)
        self._usage.add(built.digest)
        self._log.info("built", spec=spec_id, digest=built.digest, seconds=round(built.phases["total"], 3))

    def _finish(self, request: Request, missing: Missing) -> None:
        self._preparing.add(request.ref.id)
        self._submit(
            partial(self._realiser.finish, request, missing.spec, missing.resolution),
            partial(self._finished, request),
        )

    def _finished(self, request: Request, future: Future[Generation]) -> None:
        self._preparing.discard(request.ref.id)
        if not self._board.wants(request):
            return
        error = future.exception()
        if error is not None:
            self._board.fail(request.ref.id, error)
        else:
            self._board.serve(request.ref.id, future.result())

    def _submit(self, work: Callable[[], T], done: Callable[[Future[T]], None]) -> None:
        future = self._pool.submit(work)
        future.add_done_callback(lambda ended: self._post(partial(done, ended)))
