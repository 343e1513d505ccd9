"""What people ask of the writer while it runs, or in its place where none does: rollback, unpin, retry, refresh,
confirm, gc, repair.

Each order begins at once and is answered when its outcome is published, so that whoever reads the index
after the answer finds it there. Belongs to the loop's thread.
"""

import re
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from envfabric.core.errors import FabricError, StoreError
from envfabric.index.publisher import Publisher
from envfabric.loop.again import Again
from envfabric.loop.answering import Answering, Poll, reason_of
from envfabric.loop.board import Board
from envfabric.loop.collecting import Collecting, Outcome
from envfabric.loop.gate import SHORTEST, Gate
from envfabric.loop.repair import Repair
from envfabric.loop.work import Work
from envfabric.store.claims import Claim, Claims
from envfabric.store.closures import Closures
from envfabric.store.generations import Generation, Generations
from envfabric.store.history import History
from envfabric.store.pins import Pin, Pins
from envfabric.store.requests import Answer, Inbox, Request
from envfabric.store.writer import LostWriter
from envfabric.telemetry import logs


class Refused(FabricError):
    """An order that can't be carried out, and why."""


class Orders:
    """The orders of one turn as the writer."""

    def __init__(
        self,
        board: Board,
        work: Work,
        publisher: Publisher,
        closures: Closures,
        generations: Generations,
        pins: Pins,
        collecting: Collecting,
        repair: Repair,
        again: Again,
        gate: Gate,
        claims: Claims,
        inbox: Inbox,
        history: History,
    ) -> None:
        self._board = board
        self._work = work
        self._publisher = publisher
        self._closures = closures
        self._generations = generations
        self._pins = pins
        self._collecting = collecting
        self._repair = repair
        self._again = again
        self._gate = gate
        self._claims = claims
        self._inbox = inbox
        self._history = history
        self._log = logs.get()
        self._answering = Answering(inbox)
        self._told: object = None

    @property
    def open(self) -> bool:
        """Whether an order waits for its outcome."""
        return self._answering.open

    def take(self) -> None:
        """Begins what was left in requests/. Raises `LostWriter`."""
        try:
            for request in self._inbox.take():
                self._answering.add(request, self.begin(request))
            self._told = None
        except LostWriter:
            raise
        except (StoreError, OSError) as error:
            # In each round, as long as it lasts: told once.
            if (reason := reason_of(error)) != self._told:
                self._told = reason
                self._log.error("requests not read", error=str(error))

    def settle(self) -> None:
        """Answers the orders whose outcome is there."""
        self._answering.settle()

    def begin(self, request: Request) -> Poll:
        """Begins one order; gives what is asked for its answer."""
        self._log.info("order", command=request.command, arguments=request.arguments, by=request.by)
        self._history.note("order", command=request.command, arguments=request.arguments, by=request.by)
        known: dict[str, Callable[[dict[str, Any]], Poll]] = {
            "rollback": self._rollback,
            "unpin": self._unpin,
            "retry": self._retry,
            "refresh": self._refresh,
            "confirm": self._confirm,
            "gc": self._gc,
            "repair": self._mend,
        }
        try:
            if request.command not in known:
                raise Refused(
                    f"{request.command!r} is unknown to the daemon; it knows {', '.join(sorted(known))}. Is it of an "
                    "older release than this command?"
                )
            return known[request.command](request.arguments)
        except (FabricError, OSError) as error:
            answer = Answer(False, str(error))
            return lambda: answer

    def _rollback(self, arguments: dict[str, Any]) -> Poll:
        spec_id, entry = self._entry(arguments)
        # Before its generations are read: the collector drops none of them until the answer.
        claim = self._claims.claim(spec_id)
        target = self._target(spec_id, entry.generation, arguments.get("to"))
        # The pin first: killed after this, the next start brings the index to it.
        self._pins.set(spec_id, Pin(target.number, entry.tree))
        # What it served until now need not be healed any more.
        self._board.heal.pop(spec_id, None)
        if not self._closures.usable(target.digest):
            self._board.heal[spec_id] = target.number
        self._board.pin(spec_id)
        self._work.add(spec_id)
        return self._when_published(spec_id, target.number, claim)

    def _unpin(self, arguments: dict[str, Any]) -> Poll:
        spec_id, entry = self._entry(arguments)
        if not entry.pinned and self._pins.read(spec_id) is None:
            raise Refused(f"{spec_id} is not pinned; there is nothing to do")
        self._pins.remove(spec_id)
        if self._board.heal.get(spec_id) != entry.generation:
            # What the pin asked for and could not have is no more wanted; what is served still has to be healed.
            self._board.heal.pop(spec_id, None)
        self._board.unpin(spec_id)
        self._work.add(spec_id)
        return self._when_published(spec_id, None)

    def _retry(self, arguments: dict[str, Any]) -> Poll:
        return self._again.retry(self._entry(arguments)[0], self._settled)

    def _refresh(self, arguments: dict[str, Any]) -> Poll:
        return self._again.refresh(self._entry(arguments)[0], self._settled)

    def _confirm(self, arguments: dict[str, Any]) -> Poll:
        given, held = arguments.get("commit"), self._gate.held
        if not isinstance(given, str) or not re.fullmatch(rf"[0-9a-fA-F]{{{SHORTEST},40}}", given):
            raise Refused(f"confirm needs a commit, of which {SHORTEST} hexadecimal digits are enough")
        if held is None:
            raise Refused(f"no revision is held back; {str(self._board.revision)[:12]} is in force")
        if not held.commit.startswith(given.lower()):
            raise Refused(f"{given} is not what is held back. What is: {held.message}")
        if not held.confirmable:
            raise Refused(f"this can't be confirmed: {held.message}")
        self._gate.confirm(held)
        before = set(self._board.entries)

        def poll() -> Answer | None:
            now, published = self._gate.held, self._publisher.published
            if now is held:
                # The look has not come to it yet.
                return None
            if self._board.revision != held.commit:
                told = now.message if now else f"commit {str(self._board.revision)[:12]} has come since"
                return Answer(False, f"{held.commit[:12]} is not adopted: {told}")
            if published is None or published.revision != held.commit:
                return None
            removed = sorted(before - published.entries.keys())
            told = f"{held.commit[:12]} is confirmed: {len(removed)} of {len(before)} specs are removed"
            return Answer(True, told, {"commit": held.commit, "removed": removed})

        return poll

    def _gc(self, _: dict[str, Any]) -> Poll:
        answers: list[Answer] = []

        def done(future: Future[Outcome]) -> None:
            error = future.exception()
            answers.append(
                Answer(False, f"the collection failed: {error}") if error else _told(future.result())
            )

        self._collecting.begin(done)
        return lambda: answers[0] if answers else None

    def _mend(self, arguments: dict[str, Any]) -> Poll:
        names = arguments.get("names")
        if not isinstance(names, list) or not all(isinstance(one, str) and _is_name(one) for one in names):
            raise Refused("repair needs the names of closures")
        return self._repair.begin(names, self._settled)

    def _entry(self, arguments: dict[str, Any]) -> tuple[str, Any]:
        spec_id = arguments.get("id")
        entry = self._board.entries.get(spec_id) if isinstance(spec_id, str) else None
        if not isinstance(spec_id, str) or entry is None or spec_id not in self._board.refs:
            raise Refused(
                f"no spec {spec_id!r} in revision {str(self._board.revision)[:12]}; see `envfabric status`"
            )
        refused = self._board.refs[spec_id].refused
        if refused is not None:
            raise Refused(
                f"{spec_id} can't be a spec as it is: {refused} Until then it serves what it serves."
            )
        return spec_id, entry

    def _target(self, spec_id: str, serving: int | None, to: Any) -> Generation:
        retained = self._generations.retained(spec_id)
        numbers = ", ".join(str(one.number) for one in retained) or "none"
        if to is not None:
            found = next((one for one in retained if one.number == to), None)
            if found is None:
                raise Refused(f"{spec_id} has no generation {to}; retained are: {numbers}")
            return found
        if serving is None:
            raise Refused(
                f"{spec_id} serves nothing, so there is no earlier one; --to takes one of: {numbers}"
            )
        found = next((one for one in retained if one.number < serving), None)
        if found is None:
            raise Refused(f"{spec_id} serves generation {serving}, and none before it is retained: {numbers}")
        return found

    def _when_published(self, spec_id: str, pin: int | None, claim: Claim | None = None) -> Poll:
        """Answers once what became of the spec is published; `claim` is held until then."""

        def poll(_: Claim | None = claim) -> Answer | None:
            entry = self._board.entries.get(spec_id)
            if entry is None:
                return Answer(False, f"{spec_id} has left the revision meanwhile")
            if not self._settled(spec_id):
                return None
            data = {"state": entry.state, "generation": entry.generation, "serving": entry.serving}
            told = "is not pinned any more" if pin is None else f"is pinned to generation {pin}"
            if pin is not None and not entry.pinned:
                told = f"is not pinned to generation {pin}: its content has changed, or that can't be built again"
            elif pin is not None and entry.generation not in {None, pin}:
                told += ", built again"
            if entry.error:
                return Answer(
                    False, f"{spec_id} {told}, but {entry.error.reason}: {entry.error.message}", data
                )
            ok = entry.pinned == (pin is not None)
            until = " until the spec's next change, or `unpin`" if ok and pin is not None else ""
            return Answer(ok, f"{spec_id} {told}{until}; it serves generation {entry.generation}", data)

        return poll

    def _settled(self, spec_id: str) -> bool:
        entry = self._board.entries.get(spec_id)
        if entry is None:
            return True
        published = self._publisher.published
        waits = entry.state in {"pending", "building"} or self._work.has(spec_id)
        return not waits and published is not None and published.entries.get(spec_id) == entry


def _is_name(text: str) -> bool:
    """Whether this can be a closure's name: nothing that leads out of store/."""
    return text.replace("-", "").isalnum() and text.isascii()


def _told(outcome: Outcome) -> Answer:
    collected = outcome.collected
    data = {
        "removed": collected.removed,
        "pythons": collected.pythons,
        "generations": collected.generations,
        "resolutions": collected.resolutions,
        "bytes": outcome.freed_bytes,
        "inodes": outcome.freed_inodes,
        "in_trash": collected.in_trash,
        "archives": outcome.evicted.archives,
        "kept": {name: list(why) for name, why in collected.kept.items()},
        "held": collected.held,
    }
    words = f"{len(collected.removed)} closures and {collected.generations} generations removed"
    if collected.pythons:
        words += f", and from pythons/ {', '.join(collected.pythons)}"
    return Answer(True, words, data)
