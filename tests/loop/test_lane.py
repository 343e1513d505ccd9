"""Lanes: one run a key, a bounded number of runs, and everybody who waits gets the outcome."""

from envfabric.loop.lane import PASSED_OVER, Lane, Places
from envfabric.loop.turns import Turns


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


def test_what_failed_before_takes_half_of_the_slots() -> None:
    """However much is tried again, at least half of the slots stay for other work, but for a lane of one slot."""
    for slots, share in [(1, 1), (2, 1), (3, 1), (4, 2), (9, 4)]:
        lane: Lane[str] = Lane(slots)
        for number in range(20):
            lane.add(f"tried-{number}", "one", tried=True)
        running = [key for key, _ in lane.start()]
        assert running == [f"tried-{number}" for number in range(share)]
        lane.add("fresh", "one")
        assert [key for key, _ in lane.start()] == ([] if slots == 1 else ["fresh"])
        lane.end("tried-0")
        assert [key for key, _ in lane.start()] == (["fresh"] if slots == 1 else [f"tried-{share}"])


def test_fresh_work_goes_before_what_failed() -> None:
    """A new commit's work starts before all that waits to be tried again, whenever that came."""
    lane: Lane[str] = Lane(1)
    lane.add("tried", "one", tried=True)
    for key in "abc":
        lane.add(key, "one")
    order = []
    for key, _ in lane.start():
        order.append(key)
        lane.end(key)
    assert order == ["a", "b", "c", "tried"]


def test_what_failed_makes_room_where_there_is_one_slot() -> None:
    """It runs while nothing else waits, and is in the way of fresh work from then on; with more slots it never is."""
    lane: Lane[str] = Lane(1)
    lane.add("tried", "x", tried=True)
    assert len(list(lane.start())) == 1
    assert lane.in_the_way() == []
    lane.add("other", "z", tried=True)
    assert lane.in_the_way() == []
    lane.add("fresh", "y")
    assert lane.in_the_way() == [("tried", ["x"])]
    lane.end("tried")
    assert lane.in_the_way() == []
    assert [key for key, _ in lane.start()] == ["fresh"]
    lane.add("later", "y")
    assert lane.in_the_way() == []
    wide: Lane[str] = Lane(2)
    wide.add("tried", "x", tried=True)
    wide.add("other", "x", tried=True)
    assert len(list(wide.start())) == 1
    for key in ("fresh", "later"):
        wide.add(key, "y")
    assert len(list(wide.start())) == 1
    assert wide.in_the_way() == []


def test_what_was_passed_over_keeps_its_turn() -> None:
    """What had its turn before fresh work is not ended for it: else it would never come to an end."""
    lane: Lane[str] = Lane(1)
    lane.add("tried", "x", tried=True)
    for number in range(PASSED_OVER + 2):
        lane.add(f"fresh-{number}", "y")
    for key, _ in lane.start():
        if key == "tried":
            break
        lane.end(key)
    assert lane.queued(tried=False) == 2
    assert [key for key, _ in lane.runs()] == ["tried"]
    assert lane.in_the_way() == []


def test_turn_of_what_failed_comes_after_a_bounded_number() -> None:
    """With a full queue of fresh work, exactly so many go before one that failed before, again and again."""
    lane: Lane[int] = Lane(1)
    for number in range(4 * PASSED_OVER):
        lane.add(f"fresh-{number}", number)
    lane.add("tried-0", 0, tried=True)
    lane.add("tried-1", 0, tried=True)
    order = []
    for key, _ in lane.start():
        order.append(key)
        lane.end(key)
    assert [order.index(one) for one in ("tried-0", "tried-1")] == [PASSED_OVER, 2 * PASSED_OVER + 1]


def test_fresh_waiter_takes_a_failed_key_along() -> None:
    """A key that failed for one and is new to another counts as new; who came first carries what is needed."""
    lane: Lane[str] = Lane(1)
    lane.add("other", "x", tried=True)
    lane.add("key", "tried", tried=True)
    lane.add("key", "fresh")
    lane.add("key", "tried too", tried=True)
    assert (lane.queued(tried=False), lane.queued(tried=True), lane.waiting) == (1, 1, 2)
    assert list(lane.start()) == [("key", ["tried", "fresh", "tried too"])]
    assert list(lane.runs()) == [("key", ["tried", "fresh", "tried too"])]


def test_dropped_keys_do_not_start() -> None:
    """What nobody asks for any more leaves both queues; what runs is not touched."""
    lane: Lane[str] = Lane(1)
    lane.add("runs", "void")
    assert len(list(lane.start())) == 1
    lane.add("a", "void")
    lane.add("b", "wanted")
    lane.add("c", "void", tried=True)
    lane.drop(lambda waiters: waiters == ["void"])
    assert (lane.waiting, lane.running) == (1, 1)
    assert list(lane.waiters()) == ["wanted", "void"]
    assert not lane.knows("c")


def test_those_that_failed_have_places_of_their_own() -> None:
    """Any number of specs that are tried again keeps no new commit from a place, nor is it called later."""
    lane: Lane[str] = Lane(1)
    places = Places(lane, 2, 1)
    for number in range(9):
        if places.take(f"t{number}", f"t{number}", tried=True):
            lane.add(f"t{number}", "x", tried=True)
    assert lane.queued(tried=True) == 2
    assert len(places) == 7
    assert places.take("new", "new")
    lane.add("new", "x")
    assert [key for key, _ in lane.start()] == ["new"]
    places.call()
    assert list(places.called()) == []
    lane.end("new")
    assert [key for key, _ in lane.start()] == ["t0"]
    places.call()
    assert list(places.called()) == ["t2"]
    assert "t2" in places
    places.leave("t2")
    assert "t2" not in places


def test_turns_come_in_order() -> None:
    """New content comes first, then what comes by again, then what is tried again; each spec has one turn."""
    turns = Turns()
    turns.add("tried", tried=True)
    turns.add_again("again")
    turns.add("new", tried=False)
    turns.add_again("tried")
    assert list(turns) == ["new", "again", "tried"]
    turns.add("tried", tried=False)
    turns.add("again", tried=True)
    assert list(turns) == ["new", "tried", "again"]
    assert len(turns) == 3
    turns.discard("tried")
    assert "tried" not in turns
    assert list(turns) == ["new", "again"]
