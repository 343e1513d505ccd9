"""Waiting for something to become true, instead of sleeping and hoping."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


_FIRST, _LATER, _LONGEST = 0.01, 0.05, 0.5
"""Seconds between two questions: at the beginning, after a while, and where the question itself takes as long."""


def wait_for(what: Callable[[], T | None], *, timeout: float = 60, message: str) -> T:
    """Ask `what` again and again until its answer is truthy, and return that answer.

    What is asked for is worked on by this machine, too: the longer it takes, the seldomer it is asked, and a question
    that takes long itself is followed by as long a pause.
    """
    pause, deadline = _FIRST, time.monotonic() + timeout
    while True:
        # The clock is read first: a slow last question still counts if it is answered with yes.
        asked = time.monotonic()
        value = what()
        if value:
            return value
        if asked >= deadline:
            raise AssertionError(f"{message} (after {timeout:g} s; last value: {value!r})")
        time.sleep(max(pause, min(time.monotonic() - asked, _LONGEST)))
        pause = min(pause * 1.1, _LATER)
