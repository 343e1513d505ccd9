"""The rounds: an operation, a kill at a drawn moment, a look at what is left, a restart, a look at the whole.

`play` is the whole of a run; faults/kill_rounds.py is the command around it.
"""

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from faults.checks import Watcher, at_rest, came_back, while_down
from faults.daemons import Arm, Barracks, Dead, RunningVictim
from faults.drawing import RECOVERY, Drawing, Moment
from faults.ground import Ground, Order, Packages
from faults.story import Story
from faults.victim import is_uv

RESTART, INTERRUPT, FIRST = "restart", "interrupt", "first start"
"""Operations beside those of the story: a stop and a start, a stop amid work, a start on an empty ROOT."""
_HELD = 0.15
"""The share of rounds in which uv waits for the index when its daemon is killed."""
_HELD_AT_MOST = 20.0
"""Seconds after which the index answers in any case."""
FULL = 300
"""Rounds from which on a kind of step without a hit is a failure."""


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

    def __init__(self, ground: Ground, barracks: Barracks, watcher: Watcher, chance: random.Random) -> None:
        self._ground = ground
        self._barracks = barracks
        self._watcher = watcher
        self._chance = chance
        self._story = Story(ground, chance)
        self._result = Result(Drawing(chance, (FIRST, "repair")))
        self._victim: RunningVictim | None = None
        self._order: Order | None = None
        self._holds: list[Event] = []
        self.doing = "nothing"
        """The last operation, for the message of a failure."""
        self._left: list[int] = []
        """uv processes whose daemon was killed."""

    @property
    def result(self) -> Result:
        """What came of it until now."""
        return self._result

    def begin(self, operations: Sequence[str] | None, profiles: int) -> None:
        """The first commit made true, and each operation watched without a kill, `profiles` times."""
        self._new_root()
        self._story.begin()
        self._start([])
        self._settle()
        at_rest(self._ground, self._story)
        for _ in range(profiles):
            for name in operations or (*self._story.operations, RESTART, INTERRUPT, FIRST):
                self._make_possible(name)
                self._running.seen()
                self._perform(name, [])
                self._settle()
                if name != INTERRUPT:
                    self._result.drawing.learn(name, self._running.seen())
                self._mend()
                at_rest(self._ground, self._story)

    def play_one(self) -> Moment:
        """One round."""
        held = self._chance.random() < _HELD
        moment = self._held_moment() if held else self._result.drawing.draw()
        if patience := self._result.drawing.missed(moment.kind):
            # Some steps are taken only where there is something new, or gone, or nothing at all yet.
            for name in ("remove", "new") if patience % 2 else (FIRST, "new"):
                self._make_possible(name)
                self._perform(name, [])
                self._settle()
        self._make_possible(moment.operation)
        if held:
            # Not before: what prepares the round must not wait.
            self._hold(moment.kind)
        self._result.rounds += 1
        self._result.operations[moment.operation] += 1
        self._ground.ran.clear()
        try:
            self._perform(moment.operation, [moment.arm])
            self._settle()
        except Dead:
            self._result.kills += 1
            self._killed()
            self._restart()
            if self._order is not None and "id" in self._order.arguments:
                # Given again, it would hide what the kill has parted.
                came_back(self._ground, self._story, self._order.arguments["id"])
        else:
            self._result.missed += 1
            self._result.drawing.miss(moment)
            self._running.arm([])
            self._running.check_alive()
        finally:
            self._story.hold = None
        self._release()
        self._settle()
        self._mend()
        at_rest(self._ground, self._story)
        assert not self._watcher.faults, f"seen from outside: {self._watcher.faults}"
        return moment

    def close(self) -> None:
        """Ends what still waits for the index."""
        self._release()

    @property
    def _running(self) -> RunningVictim:
        assert self._victim is not None
        return self._victim

    def _held_moment(self) -> Moment:
        """A moment at which uv waits for the index, so that it outlives its daemon by far."""
        kind = self._chance.choice(("uv lock runs", "uv sync runs"))
        return Moment("new", (kind, 1, self._chance.uniform(0.02, 0.3)))

    def _hold(self, kind: str) -> None:
        """Has uv wait for the next new package."""

        def hold(name: str) -> None:
            packages = self._ground.packages
            # While it locks, uv asks twice for a wheel's metadata; the third time it wants the wheel.
            held = packages.hold(name) if kind == "uv lock runs" else packages.hold_download(name, after=2)
            self._holds.append(held)
            # Where the moment does not come, all goes on nevertheless.
            timer = threading.Timer(_HELD_AT_MOST, held.set)
            timer.daemon = True
            timer.start()

        self._story.hold = hold

    def _release(self) -> None:
        for held in self._holds:
            held.set()
        self._holds.clear()

    def _perform(self, name: str, arms: list[Arm]) -> None:
        """Does one operation, with the daemon armed for it. Raises `Dead`."""
        self._order = None
        self.doing = f"{name}, armed for {arms}"
        if name in {RESTART, FIRST}:
            self._running.stop()
            if name == FIRST:
                self._new_root()
                self._story.start_anew()
            self._start(arms)
            return
        if name == INTERRUPT:
            # Else what this daemon did before, its first start maybe, would count as this operation's.
            self._running.seen()
        self._running.arm(arms)
        if name == INTERRUPT:
            self._story.do("new")
            # Anywhere in the work that this means.
            time.sleep(self._chance.uniform(0.0, 0.3))
            self._result.drawing.learn(name, self._running.stop())
            self._start([])
            return
        self._order = self._story.do(name)

    def _settle(self) -> None:
        """Waits until all is true and the order, if there is one, is answered. Raises `Dead`."""
        if self._order is not None:
            answer = self._order.wait(self._running)
            # Of a spec whose own content fails this is told; and once it was done it is not done again.
            assert answer.ok or self._order.command == "unpin", f"{self._order.command}: {answer.message}"
            self._order = None
        self._running.wait_settled(self._ground.commit)

    def _make_possible(self, name: str) -> None:
        """Does what has to be done before an operation, undisturbed."""
        while name in self._story.operations and not self._story.possible(name):
            first = self._story.prepare(name)
            self._make_possible(first)
            self._perform(first, [])
            self._settle()

    def _mend(self) -> None:
        """What a repair left behind is collected, so that the store is clean again."""
        if self._story.damaged:
            self._perform("gc", [])
            self._settle()
            self._story.damaged = False

    def _new_root(self) -> None:
        with self._watcher.looking_away():
            self._ground.new_root()

    def _start(self, arms: list[Arm]) -> None:
        self._victim = self._barracks.start(self._ground.config, arms)
        self._victim.wait_started()

    def _killed(self) -> None:
        death = self._running.death
        assert death is not None
        self._victim = None
        self._result.drawing.hit(death.kind)
        self._left += death.uv
        while_down(self._ground, self._story)

    def _restart(self) -> None:
        """A start after a kill, killed itself now and then, until all is true again."""
        arms = self._result.drawing.draw_recovery()
        while True:
            try:
                self._start(arms)
                self._result.outlived += sum(map(is_uv, self._left))
                self._left.clear()
                self._release()
                self._running.wait_settled(self._ground.commit)
                self._running.arm([])
                self._result.drawing.learn(RECOVERY, self._running.seen())
                return
            except Dead:
                self._result.restarts_killed += 1
                self._killed()
                arms = []


def play(
    folder: Path,
    *,
    rounds: int,
    minutes: float | None = None,
    seed: int,
    operations: Sequence[str] | None = None,
    profiles: int = 2,
    tell: Callable[[str], None] = lambda line: None,
) -> Result:
    """Plays so many rounds, or as many as begin within so many minutes, below `folder`.

    Before that each of the `operations`, by default of all, is watched `profiles` times, to learn the steps that
    there are.
    At the end rounds are added, as many again at most, while there is a kind of step without a hit. Raises `Failed`.
    """
    began = time.monotonic()
    chance = random.Random(seed)
    (folder / "packages").mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        packages = Packages(folder / "packages")
        stack.enter_context(packages)
        ground = Ground(folder, packages)
        barracks = stack.enter_context(Barracks(folder, ground.fabric.environment))
        watcher = stack.enter_context(Watcher(ground.root))
        one = Rounds(ground, barracks, watcher, chance)
        stack.callback(one.close)
        result = one.result
        what = "the run without kills"
        try:
            one.begin(operations, profiles)
            tell(f"{len(result.drawing.seen)} kinds of steps in {time.monotonic() - began:.0f} s")
            most = rounds + (rounds if rounds >= FULL else 0)
            while True:
                spent = (time.monotonic() - began) / 60
                enough = result.rounds >= rounds if minutes is None else spent >= minutes
                if enough and (not result.drawing.unhit or result.rounds >= most):
                    break
                what = f"round {result.rounds + 1}"
                moment = one.play_one()
                tell(
                    f"{what}: {moment.operation}, {moment.kind} (call {moment.arm[1]}); "
                    f"{result.kills} kills, {len(result.drawing.unhit)} kinds to go"
                )
        except (AssertionError, OSError, ValueError, KeyError) as error:
            told = f"{what} (seed {seed}) after {one.doing}: {error}"
            raise Failed(told) from error
        finally:
            result.looks = watcher.looks
            result.seconds = time.monotonic() - began
    return result
