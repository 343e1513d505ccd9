"""Lanes: one run a key, a bounded number of runs, and everybody who waits gets the outcome."""

from envfabric.loop.lane import Lane


def test_one_run_serves_all_who_want_it() -> None:
    """Those who come while a key waits or runs join it; the first stays the first."""
    lane: Lane[str] = Lane(1)
    lane.add("k", "one")
    lane.add("k", "two")
    assert [key for key, _ in lane.start()] == ["k"]
    lane.add("k", "three")
    assert (lane.waiting, lane.running) == (0, 1)
    assert lane.end("k") == ["one", "two", "three"]
    assert (lane.waiting, lane.running) == (0, 0)


def test_no_more_runs_than_slots_and_in_order() -> None:
    """Keys start in the order in which they came, as slots become free."""
    lane: Lane[int] = Lane(2)
    for number, key in enumerate("abcd"):
        lane.add(key, number)
    assert [key for key, _ in lane.start()] == ["a", "b"]
    assert list(lane.start()) == []
    lane.end("b")
    assert [key for key, _ in lane.start()] == ["c"]
    lane.end("a")
    lane.add("b", 9)
    assert [key for key, _ in lane.start()] == ["d"]
    assert lane.waiting == 1


def test_slot_that_is_freed_while_starting_is_used() -> None:
    """A run that ends at once, because nobody wants it any more, makes room for the next."""
    lane: Lane[str] = Lane(1)
    for key in "abc":
        lane.add(key, key)
    started = []
    for key, _ in lane.start():
        started.append(key)
        lane.end(key)
    assert started == ["a", "b", "c"]
