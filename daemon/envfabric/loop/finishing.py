"""The last step: the generation is written over a closure that is there, and served.

Each spec has a thread of its own here, and one at a time: two generations of one spec are never written at once.
Belongs to the loop's thread; knows nothing of how the closure came there.
"""

from concurrent.futures import Future
from functools import partial

from envfabric.loop.board import Board
from envfabric.loop.counting import Counting
from envfabric.loop.lane import Lane
from envfabric.loop.realise import Realiser
from envfabric.loop.runs import FINISHERS, Runs
from envfabric.loop.steps import Located
from envfabric.loop.turns import Turns
from envfabric.store.generations import Generation


class Finishing:
    """The generations that are to be written, by spec id."""

    def __init__(
        self, board: Board, realiser: Realiser, counting: Counting, turns: Turns, runs: Runs
    ) -> None:
        self._board = board
        self._realiser = realiser
        self._counting = counting
        self._turns = turns
        self._runs = runs
        self._lane: Lane[Located] = Lane(FINISHERS)

    @property
    def waiting(self) -> int:
        """How many specs wait for a thread."""
        return self._lane.waiting

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not (self._lane.waiting or self._lane.running)

    def knows(self, spec_id: str) -> bool:
        """Whether a generation of this spec waits or is written."""
        return self._lane.knows(spec_id)

    def add(self, located: Located) -> None:
        """Has a generation written, behind one of its spec that is written now."""
        self._lane.add(located.id, located)

    def start(self) -> None:
        """Begins as many as there are free threads."""
        for spec_id, waiting in self._lane.start():
            newest = next((one for one in reversed(waiting) if self._asks(one)), None)
            if newest is None:
                self._lane.end(spec_id)
                continue
            waiting[:] = [newest]
            self._runs.submit(
                partial(self._realiser.finish, newest), partial(self._finished, newest), [newest.request.ref]
            )

    def serve(self, spec_id: str, generation: Generation, *, pinned: bool) -> None:
        """Has a generation that is there published."""
        if self._realiser.is_damaged(generation.digest):
            # Found damaged while this step was under way: it is built again.
            self._turns.add_again(spec_id)
            return
        self._counting.closure(generation.digest)
        self._board.serve(spec_id, generation, pinned=pinned)

    def _finished(self, located: Located, future: Future[Generation]) -> None:
        ref = located.request.ref
        for newer in self._lane.end(ref.id)[1:]:
            if self._asks(newer):
                self._lane.add(ref.id, newer)
        if not self._asks(located):
            return
        generation = future.result()
        if located.purpose == "healed":
            self._counting.closure(generation.digest)
            self._board.healed(ref.id, generation)
            if self._board.entries[ref.id].state in {"pending", "building"}:
                # What it served is there again; now for what it asks for.
                self._turns.add_again(ref.id)
        else:
            self.serve(ref.id, generation, pinned=located.purpose == "pinned")

    def _asks(self, located: Located) -> bool:
        return self._board.asks(located.request.ref, located.purpose)
