"""From an outcome to its answer: told once, and tried again less and less often where it can't be written."""

import itertools
from pathlib import Path

import pytest
import structlog

from envfabric.loop.answering import PATIENCE, RETRY_MOST, Answering
from envfabric.store.files import Files
from envfabric.store.prepare import init_root
from envfabric.store.requests import Answer, Asker, Inbox, Request
from envfabric.store.root import Root

ROUNDS = 1000
"""Rounds of the loop, a second each."""


class Desk:
    """One order on one ROOT, whose answer can't be written as long as `error` is set."""

    def __init__(self, root: Root) -> None:
        self.error: OSError | None = None
        self.tries: list[float] = []
        self.now = 0.0
        self.asker = Asker(root, Files())
        self.asker.ask("gc", {})
        inbox = Inbox(root, Files(self._step))
        (self.request,) = inbox.take()
        self.answering = Answering(inbox, lambda: self.now)

    def _step(self, operation: str, path: Path) -> None:
        if operation == "write" and path.suffix == ".answer":
            self.tries.append(self.now)
            if self.error is not None:
                raise self.error

    def go_on(self, seconds: int) -> list[str]:
        """What is logged in so many seconds."""
        with structlog.testing.capture_logs() as logs:
            for _ in range(seconds):
                self.now += 1
                self.answering.settle()
        return [one["event"] for one in logs]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(init_root(tmp_path / "nas", Files()))


def test_an_order_is_answered_once_its_outcome_is_there(desk: Desk) -> None:
    """Asked in each round until then, and told once."""
    asked: list[float] = []

    def poll() -> Answer | None:
        asked.append(desk.now)
        return Answer(True, "done") if desk.now >= 3 else None

    desk.answering.add(desk.request, poll)
    assert desk.go_on(10) == ["answered"]
    assert asked == [1, 2, 3]
    assert desk.asker.answer() == Answer(True, "done")
    assert not desk.answering.open


def test_an_answer_that_can_not_be_written_is_told_once_for_each_reason(desk: Desk) -> None:
    """And tried again, less and less often; the outcome is asked for no more."""
    asked: list[float] = []

    def poll() -> Answer:
        asked.append(desk.now)
        return Answer(True, "done")

    desk.answering.add(desk.request, poll)
    desk.error = OSError(28, "No space left on device", "a name that is new each time")
    assert desk.go_on(ROUNDS) == ["answered", "request not answered"]
    waits = [later - sooner for sooner, later in itertools.pairwise(desk.tries)]
    assert waits[:4] == [1, 2, 4, 8]
    assert set(waits[8:]) == {RETRY_MOST}
    desk.error = OSError(5, "Input/output error")
    assert desk.go_on(ROUNDS) == ["request not answered"]
    desk.error = None
    assert desk.go_on(int(RETRY_MOST)) == []
    assert desk.asker.answer() == Answer(True, "done")
    assert asked == [1]


def test_a_daemon_that_would_end_waits_for_a_while(desk: Desk) -> None:
    """An answer may still get through; a disk that stays full does not keep `run --once` for ever."""
    desk.answering.add(desk.request, lambda: Answer(True, "done"))
    assert desk.answering.open
    desk.error = OSError(28, "No space left on device")
    desk.go_on(10)
    assert desk.answering.open
    desk.go_on(10)
    assert len(desk.tries) == PATIENCE
    assert not desk.answering.open


def test_an_outcome_that_can_not_be_read_now_is_asked_for_again(desk: Desk) -> None:
    """A NAS that is away for a moment ends neither the order nor the loop; `run --once` waits for a while only."""
    away = [True]
    asked: list[float] = []

    def poll() -> Answer:
        asked.append(desk.now)
        if away:
            raise OSError(116, "Stale file handle")
        return Answer(True, "done")

    desk.answering.add(desk.request, poll)
    assert desk.go_on(20) == ["request not answered"]
    assert len(asked) == PATIENCE
    assert not desk.answering.open
    away.clear()
    assert desk.go_on(int(RETRY_MOST)) == ["answered"]
    assert desk.asker.answer() == Answer(True, "done")


def test_one_that_can_not_be_answered_keeps_no_other(desk: Desk) -> None:
    """Each has a time of its own."""
    desk.error = OSError(28, "No space left on device")
    desk.answering.add(desk.request, lambda: Answer(True, "done"))
    desk.go_on(100)
    other = Request("f" * 32, "gc", {}, "")
    desk.error = None
    desk.answering.add(other, lambda: Answer(True, "done"))
    desk.go_on(1)
    assert desk.tries[-1] == desk.now
    assert desk.asker.answer() is None
    desk.go_on(int(RETRY_MOST))
    assert desk.asker.answer() is not None
