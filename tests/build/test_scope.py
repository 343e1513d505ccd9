"""A step's bounds: ended once and for all, from any thread, and known to whatever runs within."""

import threading
from types import SimpleNamespace

import pytest

from envfabric.build.scope import Scope, Stopped, current
from envfabric.core.errors import Reason, SpecError


def test_outside_of_steps_nothing_is_bounded() -> None:
    """What belongs to no step is neither ended nor out of time, before and after one."""
    for _ in range(2):
        current().check()
        assert not current().ended
        with Scope("building", 60).entered():
            pass


def test_bounds_are_those_of_the_thread_that_entered() -> None:
    """Two threads in two steps each see their own bounds; ending one leaves the other."""
    scopes = [Scope("one"), Scope("two")]
    seen: dict[int, bool] = {}
    ready, go_on = threading.Barrier(3), threading.Event()

    def work(number: int) -> None:
        with scopes[number].entered():
            ready.wait(60)
            assert go_on.wait(60)
            seen[number] = current().ended

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    ready.wait(60)
    scopes[0].end()
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert seen == {0: True, 1: False}
    assert not current().ended


def test_step_that_was_ended_before_it_began_does_nothing() -> None:
    """A step whose end came while it waited for its thread raises `Stopped` at once."""
    scope = Scope("building")
    scope.end()
    with pytest.raises(Stopped), scope.entered():
        pytest.fail("it began")
    current().check()


def test_what_begins_after_the_end_is_ended_too() -> None:
    """Something that is started at the very moment of the end hears of it; what is over does not."""
    scope, heard = Scope(), []
    with scope.ended_by(lambda: heard.append("over")):
        pass
    with scope.ended_by(lambda: heard.append("runs")):
        scope.end()
        scope.end()
    with scope.ended_by(lambda: heard.append("late")):
        assert heard == ["runs", "runs", "late"]


def test_time_that_is_over_is_told() -> None:
    """A step out of time fails with `timeout`, what to do, and what the last process said."""
    with pytest.raises(SpecError) as caught, Scope("building wf/a", 0.0).entered():
        pytest.fail("it has no time")
    assert caught.value.reason is Reason.TIMEOUT
    assert "building wf/a ran longer than 0 s and was ended. It is tried again" in caught.value.message
    scope = Scope("building wf/a", 1800)
    with scope.entered():
        scope.check()
        current().check("uv sync", "said")


def test_a_step_that_is_paused_uses_up_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited for in a pause does not count; what is done before and after it does, and `end` ends both."""
    clock = [100.0]
    monkeypatch.setattr("envfabric.build.scope.time", SimpleNamespace(monotonic=lambda: clock[0]))
    scope = Scope("building", 60)
    with scope.entered():
        clock[0] += 50
        with scope.paused():
            clock[0] += 1000
            scope.check()
        clock[0] += 9
        scope.check()
        clock[0] += 1
        with pytest.raises(SpecError, match="ran longer than 60 s"):
            scope.check()
        with scope.paused(), pytest.raises(Stopped):
            scope.end()
            scope.check()
