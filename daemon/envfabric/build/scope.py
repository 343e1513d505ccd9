"""The bounds of one step, a resolution or a build: until when it may run, and whether anybody still wants it.

A step is entered by the thread that runs it; what waits or runs a process within asks `current()`, so that no
function between them has to hand it on. Threads that a step starts by itself are outside of it: they run no process
and wait for nobody. Starts nothing, and knows no uv.
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from envfabric.core.errors import Reason, SpecError


class Stopped(Exception):
    """The step was ended because nobody wants it any more, or the daemon stops; nothing is said of the spec."""


class Scope:
    """One step's bounds. `end` belongs to any thread, the rest to the step's."""

    def __init__(self, doing: str = "", limit: float = math.inf) -> None:
        """`doing` names the step in the error; `limit` is its time in seconds, from `entered` on."""
        self._doing = doing
        self._limit = limit
        self._deadline = math.inf
        self._lock = threading.Lock()
        self._to_call: set[Callable[[], None]] = set()
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether somebody has ended the step."""
        return self._ended

    @property
    def deadline(self) -> float:
        """When the step's time is over, in monotonic seconds."""
        return self._deadline

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Makes these the bounds of what this thread does within. Raises `Stopped` where it was ended before."""
        self._deadline = time.monotonic() + self._limit
        token = _current.set(self)
        try:
            self.check()
            yield
        finally:
            _current.reset(token)

    def end(self) -> None:
        """Ends the step at once: what it waits for is given up, what it runs is killed, and nothing more begins."""
        with self._lock:
            self._ended = True
            for call in self._to_call:
                call()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the step's clock while the block runs: what is waited for there is no work of the step's.

        For the step's own thread. `end` ends the step within as at any time.
        """
        began, deadline = time.monotonic(), self._deadline
        self._deadline = math.inf
        try:
            yield
        finally:
            self._deadline = deadline + (time.monotonic() - began)

    @contextlib.contextmanager
    def ended_by(self, call: Callable[[], None]) -> Iterator[None]:
        """Has `end` call `call` while the block runs, in whichever thread; at once where it was ended already.

        `call` must be short and may not raise. No lock that it takes may be held by who enters or leaves here.
        """
        with self._lock:
            self._to_call.add(call)
            if self._ended:
                # It came between the last check and now: nobody else would end what has just begun.
                call()
        try:
            yield
        finally:
            with self._lock:
                self._to_call.discard(call)

    def check(self, during: str = "", output: str = "") -> None:
        """Raises `Stopped` for a step that was ended, and `SpecError` (timeout) for one whose time is over.

        `during` and `output` are what it did last and what that said.
        """
        if self._ended:
            raise Stopped
        if time.monotonic() >= self._deadline:
            last = f", during {during}" if during else ""
            raise SpecError(
                Reason.TIMEOUT,
                f"{self._doing} ran longer than {self._limit:g} s and was ended{last}. It is tried again by itself; "
                "raise build_timeout if it needs more.",
                output,
            )


_current: ContextVar[Scope] = ContextVar("scope")
_UNBOUNDED = Scope()
"""What is done outside of any step: never ended, and without a limit of its own."""


def current() -> Scope:
    """The bounds of the step that this thread is in."""
    return _current.get(_UNBOUNDED)
