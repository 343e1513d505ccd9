"""The rounds: an operation, a kill at a drawn moment, a look at what is left, a restart, a look at the whole.

`play` is the whole of a run; faults/kill_rounds.py is the command around it.
"""

import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from faults.checks import Watcher, at_rest, while_down
from faults.daemons import Arm, Barracks, Dead, RunningVictim
from faults.drawing import RECOVERY, Drawing, Moment
from faults.ground import LOCKED, Ground, Order, Packages
from faults.story import Story
from faults.victim import is_uv

RESTART, INTERRUPT, FIRST = "restart", "interrupt", "first start"
"""Operations beside those of the story: a stop and a start, a stop amid work, a start on an empty ROOT."""
_HELD = 0.15
"""The share of rounds in which uv waits for the index when its daemon is killed."""
_PROFILES = 2
"""Times that each operation is watched before anything is killed."""
_UV_ENDS_WITHIN = 60.0


@dataclass
class Result:
    """What a run came to."""

    drawing: Drawing
    rounds: int = 0
    kills: int = 0
    restarts_killed: int = 0
    outlived: int = 0
    """uv processes that were alive when the next daemon had started."""
    missed: int = 0
    looks: int = 0
    """Indexes that were read from outside while the daemons ran and died."""
    seconds: float = 0.0
    operations: Counter[str] = field(default_factory=Counter)


class Failed(AssertionError):
    """A round that did not end well: what, where, and how it came about."""


class Rounds:
    """One fabric, the daemon that runs on it now, and what was done so far."""

    def __init__(self, ground: Ground, barracks: Barracks, chance: random.Random) -> None:
        self._ground = ground
        self._barracks = barracks
        self._chance = chance
        self._story = Story(ground, chance)
        self._result = Result(Drawing(chance))
        self._victim: RunningVictim | None = None
        self._holds: list[Event] = []
        self._left: list[int] = []
        """uv processes whose daemon was killed."""

    @property
    def result(self) -> Result:
        """What came of it until now."""
        return self._result

    def begin(self) -> None:
        """The first commit made true, and each operation watched without a kill."""
        self._ground.new_root()
        self._story.begin()
        self._start([])
        self._settle()
        at_rest(self._ground, self._story)
        for _ in range(_PROFILES):
            for name in (*self._story.operations, RESTART, INTERRUPT, FIRST):
                self._make_possible(name)
                self._running.seen()
                order = self._perform(name, [])
                self._settle(order)
                self._result.drawing.learn(name, self._running.seen())
                self._mend()
                at_rest(self._ground, self._story)

    def play_one(self) -> Moment:
        """One round."""
        moment = self._result.drawing.draw()
        held = self._chance.random() < _HELD
        if held:
            moment = Moment("new", (self._chance.choice(("uv lock runs", "uv sync runs")), 1, 0.0))
        self._make_possible(moment.operation)
        self._result.rounds += 1
        self._result.operations[moment.operation] += 1
        order = None
        try:
            order = self._perform(moment.operation, [_held(moment.arm, self._chance) if held else moment.arm], held)
            self._settle(order)
        except Dead:
            self._killed()
            self._restart()
            if self._order is not None:
                self._order.give_again()
            self._settle(self._order)
        else:
            self._result.missed += 1
            self._result.drawing.miss(moment.kind)
            self._running.arm([])
            self._release()
        self._mend()
        at_rest(self._ground, self._story)
        return moment

    def close(self) -> None:
        """Ends what still waits for the index."""
        self._release()

    @property
    def _running(self) -> RunningVictim:
        assert self._victim is not None
        return self._victim

    def _perform(self, name: str, arms: list[Arm], held: bool = False) -> Order | None:
        """Does one operation, with the daemon armed for it. Raises `Dead`."""
        self._order: Order | None = None
        if name in {RESTART, FIRST}:
            self._running.stop()
            if name == FIRST:
                self._ground.new_root()
                self._story.start_anew()
            self._start(arms)
            return None
        if name == INTERRUPT:
            self._story.do("new")
            self._running.arm(arms)
            self._running.check_alive()
            time.sleep(self._chance.uniform(0.0, 0.3))
            self._running.stop()
            self._start(arms)
            return None
        if not held:
            self._running.arm(arms)
        self._order = self._story.do(name)
        return self._order
