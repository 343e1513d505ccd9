"""Thousands of specs that each need uv wait by their ids alone, and all of them come to their turn."""

import random
from collections import Counter, deque

import pytest

from envfabric.loop import work as module
from envfabric.loop.lane import Lane, Places
from envfabric.loop.realise import Realiser
from envfabric.loop.steps import Recalled, Request
from loop.conftest import MakeLoop
from support.simple_index import SimpleIndex
from support.spec_repo import SpecRepo

MOST, AT_A_TIME = 3, 2


@pytest.mark.parametrize("keys", [1, 4, 40])
@pytest.mark.parametrize("seed", range(5))
def test_each_gets_a_place_in_its_turn(seed: int, keys: int) -> None:
    """However recalls and runs overtake each other: few carry anything, nobody is sent back once called."""
    drawn = random.Random(seed)
    lane: Lane[str] = Lane(1)
    places = Places(lane, MOST, AT_A_TIME)
    new = deque(f"n{number}" for number in range(60))
    running: list[str] = []
    looks: Counter[str] = Counter()
    came_in: list[str] = []
    gone = {"n7", "n33"}
    for _ in range(5000):
        kind = drawn.randrange(4)
        if kind == 0 and new:
            looked = new.popleft()
        elif kind == 1 and (called := list(places.called())):
            looked = drawn.choice(called)
        else:
            if kind == 2 and running:
                lane.end(running.pop())
            running += [key for key, _ in lane.start()]
            places.call()
            if drawn.randrange(10) == 0:
                for one in gone:
                    places.leave(one)
            continue
        looks[looked] += 1
        key = f"k{int(looked[1:]) % keys}"
        if places.take(looked, key):
            lane.add(key, looked)
            came_in.append(looked)
        places.answered(looked)
        assert lane.waiting <= MOST + AT_A_TIME
    assert not new
    assert len(places) == 0
    assert len(came_in) == len(set(came_in))
    assert set(came_in) >= {f"n{number}" for number in range(60)} - gone
    assert max(looks.values()) <= 2


def test_newcomers_stay_behind_those_who_wait() -> None:
    """A place that is free for a moment belongs to whoever waits longest, not to the next who comes by."""
    lane: Lane[str] = Lane(1)
    places = Places(lane, 1, 1)
    assert places.take("a", "a")
    lane.add("a", "a")
    assert not places.take("b", "b")
    assert places.take("twin of a", "a"), "it joins a question that is there"
    assert [key for key, _ in lane.start()] == ["a"]
    assert not places.take("c", "c")
    places.call()
    assert list(places.called()) == ["b"]
    assert "b" in places
    assert places.take("b", "b")
    places.answered("b")
    lane.add("b", "b")
    places.call()
    assert list(places.called()) == []
    places.leave("c")
    assert len(places) == 0


def test_only_a_few_carry_their_files(
    repo: SpecRepo, own_packages: SimpleIndex, make_loop: MakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Specs with questions of their own are all served; a bounded number have their files in memory meanwhile."""
    count = 12
    monkeypatch.setattr(module, "QUEUED", MOST)
    monkeypatch.setattr(module, "RECALLERS", AT_A_TIME)
    looks: Counter[str] = Counter()
    recall = Realiser.recall

    def counted(self: Realiser, request: Request) -> Recalled:
        looks[request.ref.id] += 1
        return recall(self, request)

    monkeypatch.setattr(Realiser, "recall", counted)
    for number in range(count):
        own_packages.add_wheel(f"own-{number}", "1.0")
        repo.spec(f"wf/n{number:02}", [f"own-{number}"])
    repo.commit()
    loop = make_loop(True)
    seen = []

    def on_round() -> None:
        lanes = (loop.work._resolving, loop.work._building)
        seen.append(max(lane.waiting for lane in lanes))
        if any(map(len, loop.work._places)):
            assert not loop.work.idle

    index = loop.run(on_round)
    assert index is not None
    assert [one.state for one in index.entries.values()] == ["ready"] * count
    assert 0 < max(seen) <= MOST + AT_A_TIME
    assert max(looks.values()) <= 3, "once, and once more for a place with each kind of step"
