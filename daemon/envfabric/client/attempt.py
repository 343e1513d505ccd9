"""Work on the NAS in a thread of its own, for callers that wait for so long and no longer.

A thread that hangs in the NAS can't be ended, so it is left behind: it keeps no pool's place, holds nobody's exit
up, and what it makes after all have gone is given back. Knows nothing of Ray.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError, wait
from typing import Generic, TypeVar

T = TypeVar("T")
_AT_LEAST = 0.3
"""Seconds that one who joins late waits all the same."""


def within(
    timeout: float, work: Callable[[], T], name: str, give_back: Callable[[T], object] = lambda found: None
) -> T | None:
    """What the work gives; None where it takes longer than `timeout` seconds. Raises what it raises.

    What it gives after that, to nobody, is given to `give_back`, by its own thread.
    """
    future: Future[T] = Future()
    threading.Thread(target=_tell, args=(work, future, give_back), name=name, daemon=True).start()
    try:
        # What the work raises may be a TimeoutError, too: so this waits for the end, and not for the result.
        wait((future,), timeout)
    except BaseException:
        # Ctrl-C: what is made meanwhile is nobody's.
        if not future.cancel() and future.exception() is None:
            give_back(future.result())
        raise
    # Cancelled or done, never both: it is given back by its thread, or taken here.
    return None if future.cancel() else future.result()


class Attempt(Generic[T]):
    """Work that is under way, or was a moment ago. Who begins it has joined it."""

    def __init__(
        self, work: Callable[[Callable[[float], None]], T], give_back: Callable[[T], None], name: str
    ) -> None:
        """The work is given what it calls where it has found the NAS alive: with the seconds that it may go on for."""
        self._work = work
        self._give_back = give_back
        self._began = time.monotonic()
        self._alive_until = 0.0
        self._future: Future[T] = Future()
        self._lock = threading.Lock()
        # From the beginning: what ends before its owner's next line is not given back under it.
        self._waiting = 1
        self._over = False
        self._taken = False
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def joined(self) -> bool:
        """Joins those who wait, which `result` ends; False where all had gone and it has ended since."""
        with self._lock:
            # While somebody waits who has not woken yet it is not given back: begun anew it would be had twice.
            if self._over and not self._taken and not self._waiting:
                return False
            self._waiting += 1
            return True

    async def result(self, timeout: float) -> T:
        """What the work gave. Raises what it raised, and `TimeoutError` where it took longer than `timeout` seconds.

        Each who waits has a time of its own. It counts from the beginning of the work: one who comes back need not
        wait for all of it again.
        """
        # Where this is awaited it is there; who only uses `within` need not wait for its import.
        import asyncio

        try:
            while True:
                alive = self._alive_until
                left = max(max(self._began + timeout, alive) - time.monotonic(), _AT_LEAST)
                try:
                    # Shielded: the next one may still wait for it.
                    found = await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._future)), left)
                except TimeoutError:
                    # What the work raises may be one, too; and it may have been found alive meanwhile.
                    if self._future.done() or self._alive_until == alive:
                        raise
                    continue
                with self._lock:
                    self._taken = True
                return found
        finally:
            self._leave()

    def _alive(self, seconds: float) -> None:
        self._alive_until = time.monotonic() + seconds

    @property
    def ended(self) -> bool:
        """Whether it has given something, or an exception."""
        return self._future.done()

    @property
    def failed(self) -> bool:
        """Whether it has ended in an exception."""
        return self.ended and self._future.exception() is not None

    def _run(self) -> None:
        _tell(lambda: self._work(self._alive), self._future, self._give_back)
        if self.failed:
            return
        with self._lock:
            unwanted = not self._waiting and not self._taken
            self._over = True
        if unwanted:
            self._give_back(self._future.result())

    def _leave(self) -> None:
        with self._lock:
            self._waiting -= 1
            # It ended in the moment in which the last one's time did.
            unwanted = self._over and not self._waiting and not self._taken
        if unwanted:
            threading.Thread(target=self._give_back, args=(self._future.result(),), daemon=True).start()


def _tell(work: Callable[[], T], future: Future[T], give_back: Callable[[T], object]) -> None:
    try:
        found = work()
    except BaseException as error:
        with contextlib.suppress(InvalidStateError):
            future.set_exception(error)
        return
    try:
        future.set_result(found)
    except InvalidStateError:
        # Nobody waits any more.
        give_back(found)
