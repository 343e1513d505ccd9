"""Waiting for something to become true, instead of sleeping and hoping."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(what: Callable[[], T | None], *, timeout: float = 60, message: str) -> T:
    """Ask `what` every 10 ms until its answer is truthy, and return that answer."""
    deadline = time.monotonic() + timeout
    while True:
        # The clock is read first: a slow last question still counts if it is answered with yes.
        late = time.monotonic() >= deadline
        value = what()
        if value:
            return value
        if late:
            raise AssertionError(f"{message} (after {timeout:g} s; last value: {value!r})")
        time.sleep(0.01)
