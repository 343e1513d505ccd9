"""From an order's outcome to its answer in requests/, which whoever asked waits for while this daemon lives.

An answer that can't be found out or written is tried again, less and less often, and that is told once for each reason.
Belongs to the loop's thread.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from envfabric.store.requests import Answer, Inbox, Request
from envfabric.telemetry import logs

Poll = Callable[[], Answer | None]
"""Asked in each round of the loop, until it gives the answer; after an `OSError` it is asked again later."""
RETRY_FIRST, RETRY_MOST = 1.0, 60.0
"""Seconds until an answer that could not be written is tried again, doubled each time, and the most."""
PATIENCE = 5
"""How often an answer is tried before a daemon that would end otherwise waits for it no longer."""


@dataclass(slots=True)
class _Open:
    """An order that is not answered yet."""

    request: Request
    poll: Poll
    answer: Answer | None = None
    """Its outcome, where only the answer could not be written yet."""
    failed: int = 0
    """How often that was tried."""
    due: float = 0.0
    """When it is asked for, or tried, again, by the monotonic clock."""
    told: object = None
    """What was last logged of it."""


class Answering:
    """Orders from their beginning to their answer, which whoever asked waits for as long as this daemon lives."""

    def __init__(self, inbox: Inbox, clock: Callable[[], float] = time.monotonic) -> None:
        self._inbox = inbox
        self._clock = clock
        self._open: list[_Open] = []
        self._log = logs.get()

    @property
    def open(self) -> bool:
        """Whether an order waits for its outcome, or an answer that could not be written may still get through."""
        return any(one.failed < PATIENCE for one in self._open)

    def add(self, request: Request, poll: Poll) -> None:
        """Answers `request` once `poll` gives the answer."""
        self._open.append(_Open(request, poll))

    def settle(self) -> None:
        """Answers the orders whose outcome is there."""
        self._open = [one for one in self._open if not self._settled(one)]

    def _settled(self, order: _Open) -> bool:
        request = order.request
        if self._clock() < order.due:
            return False
        try:
            answer = order.answer
            if answer is None:
                # What it reads may be away for a moment, too: that ends neither the order nor the writer's turn.
                order.answer = answer = order.poll()
                if answer is None:
                    return False
                self._log.info(
                    "answered", command=request.command, by=request.by, ok=answer.ok, message=answer.message
                )
            self._inbox.answer(request, answer)
        except OSError as error:
            order.due = self._clock() + min(RETRY_FIRST * 2 ** min(order.failed, 10), RETRY_MOST)
            order.failed += 1
            if (reason := reason_of(error)) != order.told:
                order.told = reason
                self._log.error("request not answered", command=request.command, error=str(error))
            return False
        return True


def reason_of(error: Exception) -> object:
    """What makes an error another one than the last: its text names files that are new each time."""
    return error.errno if isinstance(error, OSError) else str(error)
