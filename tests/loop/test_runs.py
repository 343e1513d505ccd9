"""A step's thread: what it held is free once its end was heard, also where it failed."""

import gc
import queue
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import pytest

from envfabric.loop.board import Board
from envfabric.loop.runs import Runs
from envfabric.specs.tree import SpecRef
from envfabric.store.claims import Claims


def direct(claims: Claims) -> None:
    """A step that fails while it holds a claim."""
    held = claims.claim("wf/a")
    raise OSError(f"failed with {held}")


def by_way_of_another(claims: Claims) -> None:
    """A step whose failure has a cause that came from below a claim."""
    try:
        direct(claims)
    except OSError as error:
        raise ValueError("told in other words") from error


def from_itself(claims: Claims) -> None:
    """A step whose failure was raised from itself."""
    try:
        direct(claims)
    except OSError as error:
        raise error from error


@pytest.mark.parametrize("step", [direct, by_way_of_another, from_itself])
def test_failed_step_gives_back_its_claims(step: Callable[[Claims], None]) -> None:
    """At once, and not when the garbage collector comes: a collection would leave alone what nobody uses."""
    claims, failed = Claims(), []
    posted: queue.Queue[Callable[[], None]] = queue.Queue()
    board = SimpleNamespace(wants=lambda ref: True, fail=lambda spec_id, error: failed.append(spec_id))
    runs = Runs(cast(Board, board), 1, 60.0, posted.put)

    def done(future: Future[Any]) -> None:
        future.result()

    gc.disable()
    try:
        runs.submit(lambda: step(claims), done, [cast(SpecRef, SimpleNamespace(id="wf/a"))])
        posted.get(timeout=60)()
        runs.close()
        assert failed == ["wf/a"]
        assert claims.unless_claimed("wf/a", lambda: True)
    finally:
        gc.enable()
