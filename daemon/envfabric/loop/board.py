"""What the loop knows: the revision's specs, each one's entry, and what became of it.

Turns an outcome into an entry, a failure log, a metric and a retry time. Belongs to the loop's
thread; starts no work and publishes nothing itself.
"""

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from envfabric.build.scope import Stopped
from envfabric.core.errors import Reason, SpecError, StoreError, from_os_error
from envfabric.index.document import NOTHING_ADDED, Entry, Failure, Index
from envfabric.index.weight import Weights
from envfabric.loop.plan import Plan, failed, pending
from envfabric.specs.repository import SourceError
from envfabric.specs.tree import Problem, SpecRef, Wanted
from envfabric.store.files import Files
from envfabric.store.generations import Generation, NewerForm
from envfabric.store.retention import Serving
from envfabric.store.retries import Retry, delay, read_retries, write_retries
from envfabric.store.root import Root, now
from envfabric.telemetry import logs
from envfabric.telemetry.metrics import Metrics


class Board:
    """The loop's state on one ROOT."""

    def __init__(
        self,
        root: Root,
        files: Files,
        metrics: Metrics,
        changed: Callable[[], None],
        note: Callable[..., None] = lambda event, **details: None,
    ) -> None:
        """`changed` is called after each outcome: there is something to publish; `note` takes events for the audit
        trail, see store/history."""
        self._root = root
        self._files = files
        self._metrics = metrics
        self._changed = changed
        self._note = note
        self._log = logs.get()
        self.revision: str | None = None
        self.refs: dict[str, SpecRef] = {}
        self.entries: dict[str, Entry] = {}
        self.problems: tuple[Problem, ...] = ()
        self.retries: dict[str, Retry] = {}
        self.heal: dict[str, int] = {}
        """Generations that were served and whose closure is lost or damaged, by spec id."""
        self._kept: dict[str, Retry] = {}
        self._seen: dict[str, float] = {}
        self._weights = Weights()

    def load_retries(self) -> None:
        """Takes over when failed specs are tried again from whoever wrote here before. Raises `OSError`."""
        self._kept = read_retries(self._root)
        self.retries = dict(self._kept)

    def keep_retries(self) -> None:
        """Brings the retries on the NAS up to date. Raises `StoreError` and `OSError`."""
        if self.retries != self._kept:
            write_retries(self._root, self._files, self.retries)
            self._kept = dict(self.retries)

    def adopt(self, commit: str, wanted: Wanted, plan: Plan) -> None:
        """Makes `commit` the revision, with the entries that were planned for it."""
        seen = time.monotonic()
        for spec_id in plan.removed:
            self.heal.pop(spec_id, None)
        for spec_id in plan.removed + plan.changed:
            self._seen.pop(spec_id, None)
            # The attempts at the same content are remembered over a restart.
            retry = self.retries.get(spec_id)
            if retry and (spec_id not in wanted.specs or retry.tree != wanted.specs[spec_id].tree):
                del self.retries[spec_id]
            served = plan.entries[spec_id].generation if spec_id in plan.entries else None
            if served is not None and self.heal.get(spec_id) != served:
                # A pin asked for it, and could not have it before it ended.
                self.heal.pop(spec_id, None)
        for spec_id in plan.changed + plan.refused:
            if plan.entries[spec_id] != self.entries.get(spec_id):
                self._seen[spec_id] = seen
        for spec_id in plan.refused:
            self.retries.pop(spec_id, None)
        self.revision, self.refs, self.entries = commit, wanted.specs, plan.entries
        self.problems = tuple(wanted.problems)
        self.heal.update(plan.lost)
        for spec_id in self.retries.keys() - wanted.specs.keys():
            del self.retries[spec_id]

    def stand(self, published: Index, wanted: Wanted) -> None:
        """Takes what is published for what is wanted: for an order while no daemon runs."""
        self.revision = published.revision
        self.refs = {one: ref for one, ref in wanted.specs.items() if one in self.entries}

    def counts(self) -> Counter[str]:
        """How many specs are in which state."""
        return Counter(entry.state for entry in list(self.entries.values()))

    def wants(self, content: SpecRef) -> bool:
        """Whether this content is still what its spec asks for, or what it served has to be healed."""
        ref = self.refs.get(content.id)
        if ref is None or ref.tree != content.tree:
            return False
        return ref.refused is None or content.id in self.heal

    def failed_before(self, spec_id: str) -> bool:
        """Whether what a spec asks for is tried again after a failure. What a pin asks for is an order of somebody who
        waits, whatever became of the committed content."""
        return spec_id in self.retries and not self.entries[spec_id].pinned

    def asks(self, content: SpecRef, purpose: str) -> bool:
        """Whether a step's outcome is still asked for: an order may have come since the step began."""
        if not self.wants(content):
            return False
        if purpose == "healed":
            return content.id in self.heal
        return self.entries[content.id].pinned == (purpose == "pinned")

    def serving(self) -> dict[str, Serving]:
        """What each spec serves now; safe in any thread."""
        return {one: Serving(entry.serving, entry.generation) for one, entry in list(self.entries.items())}

    def building(self, spec_id: str) -> None:
        """The spec's closure is being built now."""
        self.entries[spec_id] = replace(self.entries[spec_id], state="building")

    def hold(self, spec_id: str, *, pinned: bool) -> None:
        """What is made true now is what a pin says, or what is committed."""
        if self.entries[spec_id].pinned != pinned:
            self.entries[spec_id] = replace(self.entries[spec_id], pinned=pinned)

    def pin(self, spec_id: str) -> None:
        """The spec is to serve what a pin says; until it does, it is being made true."""
        entry = replace(self.entries[spec_id], pinned=True, suspended=False)
        self.entries[spec_id] = pending(entry, self.refs[spec_id], entry.commit)

    def unpin(self, spec_id: str) -> None:
        """The spec asks for its committed content again."""
        entry = replace(self.entries[spec_id], pinned=False)
        self.entries[spec_id] = pending(entry, self.refs[spec_id], entry.commit)

    def serve(self, spec_id: str, generation: Generation, *, pinned: bool = False) -> None:
        """The spec's content is ready under this generation, or a pin holds it there; failed without room for it."""
        try:
            self._weights.admit(spec_id, generation.runtime_env, self.entries)
        except SpecError as error:
            self.fail(spec_id, error, generation.digest)
            return
        entry = replace(self.entries[spec_id], state="ready", error=None, suspended=False, pinned=pinned)
        self.retries.pop(spec_id, None)
        self.entries[spec_id] = entry = _with(entry, generation)
        self._log.info("ready", spec=spec_id, commit=entry.commit, digest=generation.digest, pinned=pinned)
        self._changed()

    def healed(self, spec_id: str, generation: Generation) -> None:
        """What the spec served is whole again under this generation; what else is to be said of it stays."""
        self.heal.pop(spec_id, None)
        entry = _with(self.entries[spec_id], generation)
        self.entries[spec_id] = replace(entry, state="stale") if entry.state == "failed" else entry
        self._log.info("healed", spec=spec_id, commit=entry.commit, digest=generation.digest)
        self._changed()

    def suspend(self, spec_id: str) -> None:
        """The spec asks that nothing is built: it serves what it served."""
        self.retries.pop(spec_id, None)
        entry = replace(self.entries[spec_id], suspended=True, pinned=False)
        if entry.serving:
            self.entries[spec_id] = replace(entry, state="ready", error=None)
        else:
            message = "suspended before anything was published; remove suspend to have it built."
            failure = Failure(Reason.INVALID_SPEC, message, None, entry.commit, now())
            self.entries[spec_id] = failed(entry, failure)
        self._changed()

    def fail(self, spec_id: str, error: BaseException, digest: str | None = None) -> None:
        """The spec's content could not be made ready; where that can pass, a retry is set.

        `digest` names the closure where it is known which one failed.
        """
        if isinstance(error, Stopped):
            return
        told = self._explain(spec_id, error)
        if not told.reason.passing:
            # A retry that was set before would come due again and again.
            self.retries.pop(spec_id, None)
        entry = replace(self.entries[spec_id], suspended=False)
        failure = Failure(
            reason=told.reason,
            message=told.message,
            log=self._write_log(spec_id, told),
            commit=entry.commit,
            at=now(),
            retry_at=self._set_retry(spec_id) if told.reason.passing else None,
        )
        self.entries[spec_id] = failed(entry, failure)
        self._metrics.build_failures.labels(told.reason.value).inc()
        log = self._log.bind(spec=spec_id, commit=entry.commit, digest=digest)
        log.error("failed", reason=told.reason.value, message=told.message)
        self._note("failed", spec=spec_id, commit=entry.commit, reason=told.reason.value)
        self._changed()

    def wake_retries(self) -> list[str]:
        """The failed specs whose time has come, made pending."""
        clock = time.time()
        due = [
            spec_id
            for spec_id, retry in self.retries.items()
            if retry.due <= clock
            # Before the first revision is seen nothing is known of what they were kept for.
            and spec_id in self.refs
            and self.entries[spec_id].state in {"failed", "stale"}
            and self.refs[spec_id].refused is None
        ]
        for spec_id in due:
            entry = self.entries[spec_id]
            self.entries[spec_id] = pending(entry, self.refs[spec_id], entry.commit)
        return due

    def next_retry(self) -> float | None:
        """Seconds until the next failed spec is tried again; None where none is."""
        clock = time.time()
        return min((one.due - clock for one in self.retries.values() if one.due > clock), default=None)

    def published(self) -> list[float]:
        """Seconds since the commits were first seen whose change has an outcome that is published now."""
        clock = time.monotonic()
        ended = [one for one in self._seen if self.entries[one].state not in {"pending", "building"}]
        return [clock - self._seen.pop(one) for one in ended]

    def _set_retry(self, spec_id: str) -> str:
        attempts = self.retries[spec_id].attempts + 1 if spec_id in self.retries else 0
        # No secret hangs on it.
        seconds = delay(attempts, random.random())  # noqa: S311
        self.retries[spec_id] = Retry(self.entries[spec_id].tree, time.time() + seconds, attempts)
        return now(seconds)

    def _explain(self, spec_id: str, error: BaseException) -> SpecError:
        if isinstance(error, SpecError):
            return error
        if isinstance(error, NewerForm):
            return SpecError(Reason.STORE, f"{error}. What is served stays; it is tried again by itself.")
        if isinstance(error, OSError):
            return from_os_error(error, f"building {spec_id}")
        if isinstance(error, StoreError | SourceError):
            return SpecError(Reason.STORE, str(error))
        self._log.error("unexpected error", spec=spec_id, exc_info=error)
        text = f"{type(error).__name__}: {error}. This is a fault of the fabric; the daemon's log has more."
        return SpecError(Reason.INTERNAL, text)

    def _write_log(self, spec_id: str, error: SpecError) -> str | None:
        path = self._root.failures / f"{spec_id}.log"
        text = f"{now()} {error.reason.value}\n{error.message}\n\n{error.output}"
        try:
            self._root.require_marker()
            self._files.make_folder(path.parent, self._root.failures)
            self._files.write_atomic(path, text.encode(), durable=False, via=self._root.staging)
        except (OSError, StoreError) as problem:
            self._log.warning("failure log not written", spec=spec_id, error=str(problem))
            return None
        return str(path)


def _with(entry: Entry, generation: Generation) -> Entry:
    """An entry that serves this generation."""
    added = NOTHING_ADDED if generation.runtime_env == NOTHING_ADDED else generation.runtime_env
    return replace(
        entry,
        serving=generation.digest,
        generation=generation.number,
        built_at=generation.built_at,
        python_version=generation.python_version,
        ray_version=generation.ray_version,
        runtime_env=added,
    )
