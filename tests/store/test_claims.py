"""Claims: a step that claims first and looks then, against a collector that looks at the claims first."""

import gc
import sys
import threading
import time
from functools import partial

import pytest

from envfabric.store.claims import Claims


def test_claimed_name_is_left_alone() -> None:
    """As long as a claim is held nothing is done to any of its names, and to others everything."""
    claims = Claims()
    claim = claims.claim("wf/a", "d1")
    done: list[str] = []

    def action(name: str) -> bool:
        done.append(name)
        return True

    for name in ("wf/a", "d1", "d2"):
        assert claims.unless_claimed(name, partial(action, name)) == (name == "d2")
    assert done == ["d2"]
    assert claim.names == {"wf/a", "d1"}


def test_claim_ends_with_its_holder() -> None:
    """Once nobody holds a claim its names are free; a second claim on the same name still counts."""
    claims = Claims()
    first, second = claims.claim("d1"), claims.claim("d1")
    del first
    gc.collect()
    assert not claims.unless_claimed("d1", lambda: True)
    del second
    gc.collect()
    assert claims.unless_claimed("d1", lambda: True)


def test_claim_that_is_dropped_by_an_exception_ends() -> None:
    """A step that failed holds nothing once its error was dealt with."""
    claims = Claims()

    def step() -> None:
        _claim = claims.claim("d1")
        raise RuntimeError("failed")

    with pytest.raises(RuntimeError):
        step()
    sys.exc_info()
    gc.collect()
    assert claims.unless_claimed("d1", lambda: True)


def test_outcome_is_the_actions() -> None:
    """The collector hears whether its action did what it should, and its error as it was."""
    claims = Claims()
    assert claims.unless_claimed("d1", lambda: False) is False

    def fail() -> bool:
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        claims.unless_claimed("d1", fail)
    assert claims.unless_claimed("d1", lambda: True), "an action that failed leaves nothing locked"


def test_nobody_goes_on_with_what_is_gone() -> None:
    """Steps that claim and look, against a collector that removes: whoever found a closure still has it."""
    claims = Claims()
    store = {"d1"}
    wrong: list[str] = []
    stop = threading.Event()

    def step() -> None:
        while not stop.is_set():
            claim = claims.claim("d1")
            if "d1" in store:
                time.sleep(0)
                if "d1" not in store:
                    wrong.append("taken away under its claim")
            else:
                store.add("d1")
            del claim

    def remove() -> bool:
        store.discard("d1")
        return True

    threads = [threading.Thread(target=step) for _ in range(3)]
    for thread in threads:
        thread.start()
    removed = 0
    try:
        deadline = time.monotonic() + 20
        while removed < 200 and time.monotonic() < deadline:
            removed += claims.unless_claimed("d1", remove)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert removed > 0


def test_claim_waits_for_the_action_that_is_under_way() -> None:
    """Who claims while something is removed gets the claim when that is over, and sees it gone."""
    claims = Claims()
    store = {"d1"}
    begun, go = threading.Event(), threading.Event()
    seen: list[bool] = []

    def remove() -> bool:
        begun.set()
        assert go.wait(60)
        store.discard("d1")
        return True

    def step() -> None:
        _claim = claims.claim("d1")
        seen.append("d1" in store)

    collector = threading.Thread(target=claims.unless_claimed, args=("d1", remove))
    collector.start()
    assert begun.wait(60)
    asker = threading.Thread(target=step)
    asker.start()
    asker.join(0.1)
    assert seen == []
    go.set()
    for thread in (collector, asker):
        thread.join(60)
    assert seen == [False]
