"""A repair that waits costs a round of the loop what ended since the last one, however many specs it heals."""

import queue
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from envfabric.index.document import Entry
from envfabric.loop.board import Board
from envfabric.loop.repair import Repair
from envfabric.loop.work import Work
from envfabric.store.closures import Closures
from envfabric.store.files import Files
from envfabric.store.generations import Generations
from envfabric.store.history import History
from envfabric.store.prepare import init_root
from envfabric.store.requests import Answer
from envfabric.store.root import Root
from envfabric.telemetry.metrics import Metrics

SPECS, OTHERS = 200, 1000
GONE = "a" * 40


class Todo:
    """What is to be done: the steps are the test's."""

    def __init__(self) -> None:
        self.added: list[str] = []

    def add(self, spec_id: str) -> None:
        self.added.append(spec_id)


class Round:
    """A repair of a closure that is gone and serves many, on a board with many more."""

    def __init__(self, root: Root) -> None:
        self.board = Board(root, Files(), Metrics(), lambda: None)
        self.specs = [f"wf/n{number}" for number in range(SPECS)]
        for name, ids in ((GONE, self.specs), ("b" * 40, [f"wf/o{number}" for number in range(OTHERS)])):
            for spec_id in ids:
                self.board.entries[spec_id] = Entry("ready", "t1", "c1", serving=name, generation=1)
        self.calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.todo = Todo()
        self.asked: list[str] = []
        self.repair = Repair(
            root,
            self.board,
            cast(Work, self.todo),
            Closures(root, Files()),
            Generations(root, Files()),
            History(root, Files()),
            lambda names: None,
            lambda: None,
            self.calls.put,
        )

    def settled(self, spec_id: str) -> bool:
        self.asked.append(spec_id)
        return spec_id not in self.board.heal

    def healed(self, spec_id: str) -> None:
        """The step of one spec has ended, and its outcome is published."""
        del self.board.heal[spec_id]
        self.board.entries[spec_id] = replace(self.board.entries[spec_id], serving=f"{GONE}-2", generation=2)


@pytest.fixture
def heal(tmp_path: Path) -> Iterator[Round]:
    made = Round(init_root(tmp_path / "nas", Files()))
    yield made
    made.repair.close()


@pytest.mark.parametrize("backwards", [False, True])
def test_a_round_costs_what_ended(heal: Round, backwards: bool) -> None:
    """Each spec is asked until its outcome is there, one at a time, and then no more."""
    poll = heal.repair.begin([GONE], heal.settled)
    assert poll() is None
    heal.calls.get(timeout=60)()
    assert heal.todo.added == heal.specs
    answers: list[Answer | None] = []
    for spec_id in reversed(heal.specs) if backwards else heal.specs:
        answers += [poll() for _ in range(5)]
        heal.healed(spec_id)
    assert answers == [None] * len(answers)
    answer = poll()
    assert answer is not None
    assert (answer.ok, answer.message) == (True, "0 closures damaged, 1 gone; 200 specs healed")
    assert len(heal.asked) == SPECS


def test_one_that_left_the_revision_is_not_waited_for(heal: Round) -> None:
    """Nor one that failed: it is told."""
    poll = heal.repair.begin([GONE], heal.settled)
    heal.calls.get(timeout=60)()
    del heal.board.entries[heal.specs[0]]
    for spec_id in heal.specs[1:]:
        assert poll() is None
        heal.healed(spec_id)
    answer: Any = poll()
    assert answer.ok
    assert len(answer.data["rebuilt"]) == SPECS - 1
