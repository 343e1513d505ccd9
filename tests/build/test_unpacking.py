"""A wheel is first installed by one build at a time; builds of known wheels never wait."""

import threading
from collections.abc import Callable

import pytest

from envfabric.build.scope import Scope, Stopped
from envfabric.build.unpacking import Unpacking
from envfabric.core.errors import Reason, SpecError
from support.waiting import wait_for


def start(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


class Build:
    """A build in a thread of its own, which ends when it is told to."""

    def __init__(self, unpacking: Unpacking, *wheels: str, fails: bool = False) -> None:
        self.entered = threading.Event()
        self.end = threading.Event()
        self.shared: bool | None = None

        def work() -> None:
            try:
                with unpacking.of(wheels) as self.shared:
                    self.entered.set()
                    assert self.end.wait(300)
                    if fails:
                        raise ValueError
            except ValueError:
                pass

        self.thread = start(work)

    def finish(self) -> None:
        self.end.set()
        self.thread.join(60)


def test_second_build_of_a_new_wheel_waits() -> None:
    """Who wants a wheel that another build is the first to install waits; others go on at once."""
    unpacking = Unpacking(patience=3600)
    first = Build(unpacking, "a", "b")
    assert first.entered.wait(60)
    second, other = Build(unpacking, "b", "c"), Build(unpacking, "d")
    assert other.entered.wait(60)
    # Who waits holds nothing: c is free for others.
    third = Build(unpacking, "c")
    assert third.entered.wait(60)
    assert not second.entered.is_set()
    third.finish()
    first.finish()
    assert second.entered.wait(60)
    for build in (second, other):
        build.finish()


def test_known_wheels_are_installed_at_once() -> None:
    """After one build has installed a wheel, any number do it at the same time."""
    unpacking = Unpacking(patience=3600)
    with unpacking.of(["a"]):
        pass
    builds = [Build(unpacking, "a") for _ in range(3)]
    assert all(build.entered.wait(60) and build.shared for build in builds)
    for build in builds:
        build.finish()


def test_failed_build_leaves_the_wheel_to_the_next() -> None:
    """A build that failed has not installed its wheels: one of those that waited is the first then."""
    unpacking = Unpacking(patience=3600)
    first = Build(unpacking, "a", fails=True)
    assert first.entered.wait(60)
    others = [Build(unpacking, "a"), Build(unpacking, "a")]
    first.finish()
    wait_for(lambda: any(one.entered.is_set() for one in others), message="nobody goes on")
    assert not all(one.entered.is_set() for one in others)
    for one in sorted(others, key=lambda one: not one.entered.is_set()):
        assert one.entered.wait(60)
        one.finish()


def test_patience_ends() -> None:
    """An endless build of another spec costs the sharing after a while, and not the build."""
    unpacking = Unpacking(patience=0.05)
    first = Build(unpacking, "a")
    assert first.entered.wait(60)
    with unpacking.of(["a"]) as shared:
        assert not shared
    first.finish()


def test_forgotten_wheel_is_new_again() -> None:
    """What was removed from the cache is unpacked by one build again."""
    unpacking = Unpacking(patience=0.05)
    with unpacking.of(["a"]):
        pass
    unpacking.forget(["a"])
    first = Build(unpacking, "a")
    assert first.entered.wait(60)
    with unpacking.of(["a"]) as shared:
        assert not shared
    first.finish()


@pytest.mark.parametrize("wheels", [("a",), ("a", "b")])
def test_stop_lets_all_go(wheels: tuple[str, ...]) -> None:
    """A daemon that stops waits for no wheel."""
    unpacking = Unpacking(patience=3600)
    first = Build(unpacking, "a")
    assert first.entered.wait(60)
    second = Build(unpacking, *wheels)
    unpacking.stop()
    assert second.entered.wait(60)
    first.finish()
    second.finish()


def test_a_build_that_hangs_holds_up_the_others_once() -> None:
    """After one build has installed a wheel in spite of one that hangs with it, nobody waits for that any more."""
    unpacking = Unpacking(patience=0.05)
    hangs = Build(unpacking, "a")
    assert hangs.entered.wait(60)
    with unpacking.of(["a"]) as shared:
        assert not shared
    with unpacking.of(["a"]) as shared:
        assert shared, "it is in the cache by now"
    hangs.finish()
    with unpacking.of(["a"]) as shared:
        assert shared


def test_end_of_a_step_ends_its_wait() -> None:
    """A step that nobody wants any more, or whose time is over, waits for no wheel, and holds none then."""
    unpacking = Unpacking(patience=3600)
    first = Build(unpacking, "a")
    assert first.entered.wait(60)
    for scope, expected in [(Scope(), Stopped), (Scope("building", 0.2), SpecError)]:
        heard: list[BaseException] = []
        waits = threading.Event()

        def work(
            scope: Scope = scope, heard: list[BaseException] = heard, waits: threading.Event = waits
        ) -> None:
            try:
                with scope.entered():
                    waits.set()
                    with unpacking.of(["a", "b"]):
                        pass
            except (Stopped, SpecError) as error:
                heard.append(error)

        thread = start(work)
        assert waits.wait(60)
        if expected is Stopped:
            scope.end()
        thread.join(60)
        assert [type(one) for one in heard] == [expected]
        if isinstance(heard[0], SpecError):
            assert heard[0].reason is Reason.TIMEOUT
    other = Build(unpacking, "b")
    assert other.entered.wait(60)
    other.finish()
    first.finish()
