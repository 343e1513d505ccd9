"""The worker threads of the loop: a step runs in one of them, and what came of it is handed to the loop's thread.

Steps that run uv have bounds: a time limit, and an end for want of anybody who asks. Knows nothing of what a step
does; belongs to the loop's thread.
"""

import os
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from envfabric.build.scope import Scope, Stopped
from envfabric.loop.board import Board
from envfabric.specs.tree import SpecRef

T = TypeVar("T")

RECALLERS = 8
"""Specs that are read and compared at a time: each waits for the NAS more than for the processor."""
BRINGERS = 4
"""Pythons that are brought at a time: each may wait for a mirror until its time is over."""
FINISHERS = 16
"""Generations that are written at a time: they share their flushes, see store/together."""
BACKLOG = 4 * FINISHERS
"""Generations that wait to be written, above which nothing more is recalled: each has a lock with it."""
QUEUED = 64
"""Keys that wait in a lane for uv, above which those who come wait without what they carry: a lock, and more."""


def trials_at_a_time(builders: int) -> int:
    """Validations: their code may take all of a processor, and memory. Never one alone, which might hang."""
    return max(2, min(builders, len(os.sched_getaffinity(0))))


class Runs:
    """What runs in worker threads now."""

    def __init__(
        self, board: Board, threads: int, limit: float, post: Callable[[Callable[[], None]], None]
    ) -> None:
        """`limit` is the time in seconds of a step with bounds; `post` hands a call to the loop's thread."""
        self._board = board
        self._limit = limit
        self._post = post
        self._pool = ThreadPoolExecutor(threads, "work")
        self._scopes: dict[str, Scope] = {}

    def submit(
        self, work: Callable[[], T], done: Callable[[Future[T]], None], refs: Iterable[SpecRef]
    ) -> None:
        """Runs `work` in a thread and then `done` in the loop's; what goes wrong is the fault of `refs`."""

        def guarded(ended: Future[T]) -> None:
            try:
                done(ended)
            except Exception as error:
                # One spec's trouble must not end the loop.
                for ref in refs:
                    if self._board.wants(ref):
                        self._board.fail(ref.id, error)
                # Its frames hold the step's claims, and by the future themselves: given back now, and not when the
                # garbage collector happens to come.
                _clear(error)

        future = self._pool.submit(work)
        future.add_done_callback(lambda ended: self._post(partial(guarded, ended)))

    def submit_bounded(
        self,
        key: str,
        doing: str,
        work: Callable[[], T],
        done: Callable[[Future[T]], None],
        refs: Iterable[SpecRef],
    ) -> None:
        """As `submit`, within bounds of its own, by `key` until `take`; `doing` names it where its time is over."""
        scope = self._scopes[key] = Scope(doing, self._limit)

        def within() -> T:
            with scope.entered():
                return work()

        self.submit(within, done, refs)

    def end(self, key: str) -> bool:
        """Ends a step with bounds at once; whether it was not ended before. It is over when its thread has heard."""
        scope = self._scopes[key]
        if scope.ended:
            return False
        scope.end()
        return True

    def take(self, key: str, future: Future[T]) -> bool:
        """A step with bounds is over; whether it has an outcome, and was not ended before it had."""
        scope = self._scopes.pop(key)
        # One that had it a moment before the end came has it all the same.
        return not (scope.ended and isinstance(future.exception(), Stopped))

    def close(self) -> None:
        """Lets nothing begin any more and waits for what runs."""
        self._pool.shutdown(cancel_futures=True)


def _clear(error: BaseException) -> None:
    """Has the frames of an error, and of those that led to it, let go of what they hold."""
    seen: set[int] = set()
    told: BaseException | None = error
    # Whoever raises an error from itself makes a ring of it.
    while told is not None and id(told) not in seen:
        seen.add(id(told))
        traceback.clear_frames(told.__traceback__)
        told = told.__cause__ or told.__context__
