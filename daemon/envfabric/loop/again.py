"""The orders that look at a spec's unchanged content once more: `retry` and `refresh`.

A retry tries what failed again now, whatever its time or reason; a refresh resolves anew to the newest versions, and
where that fails what is served stays. Belongs to the loop's thread; the steps carry both out.
"""

import time
from collections.abc import Callable

from envfabric.core.errors import SpecError, StoreError
from envfabric.index.document import Entry
from envfabric.loop.answering import Poll
from envfabric.loop.asks import Ask, Asks
from envfabric.loop.board import Board
from envfabric.loop.work import Work
from envfabric.store.claims import Claims
from envfabric.store.generations import Generation, Generations
from envfabric.store.requests import Answer
from envfabric.telemetry import logs


class NotNow(StoreError):
    """Such an order can't be carried out on this spec, and why."""


class Again:
    """Retries and refreshes on one ROOT."""

    def __init__(
        self, board: Board, work: Work, asks: Asks, generations: Generations, claims: Claims
    ) -> None:
        self._board = board
        self._work = work
        self._asks = asks
        self._generations = generations
        self._claims = claims
        self._log = logs.get()

    def retry(self, spec_id: str, settled: Callable[[str], bool]) -> Poll:
        """Tries a failed spec again. `settled` says whether what became of it is published. Raises `NotNow`."""
        entry, ref = self._board.entries[spec_id], self._board.refs[spec_id]
        _check(spec_id, entry)
        if entry.state not in {"failed", "stale"}:
            raise NotNow(
                f"{spec_id} is ready and serves generation {entry.generation}; nothing failed. "
                f"`envfabric refresh {spec_id}` resolves it anew."
            )
        # What was resolved may be what can't be built; the versions stay where they fit.
        ask = Ask(ref.tree, time.time(), fresh=False)
        self._begin(spec_id, ask)

        def poll() -> Answer | None:
            entry = self._board.entries.get(spec_id)
            if entry is not None and not settled(spec_id):
                return None
            self._asks.end(spec_id, ask)
            if entry is None:
                return _left(spec_id)
            if entry.error:
                told = f"{spec_id} failed again: {entry.error.reason}: {entry.error.message}"
                return Answer(False, told, _data(entry))
            return Answer(
                True, f"{spec_id} is {entry.state}; it serves generation {entry.generation}", _data(entry)
            )

        return poll

    def refresh(self, spec_id: str, settled: Callable[[str], bool]) -> Poll:
        """Resolves a spec anew. `settled` as with `retry`. Raises `NotNow` and `OSError`."""
        entry, ref = self._board.entries[spec_id], self._board.refs[spec_id]
        _check(spec_id, entry)
        if any(name == "uv.lock" for name, _ in ref.blobs):
            raise NotNow(
                f"{spec_id} has a committed uv.lock, and serves exactly that: run `uv lock --upgrade` in its "
                "folder and commit."
            )
        # Before its generations are read: the collector drops none of them until the answer.
        claim = self._claims.claim(spec_id)
        before = self._read(spec_id, entry.generation)
        whole = entry.state == "ready" and spec_id not in self._board.heal and before is not None
        ask = Ask(ref.tree, time.time(), fresh=True, keeps=entry.generation if whole else None)
        self._begin(spec_id, ask)

        def poll(_: object = claim) -> Answer | None:
            entry = self._board.entries.get(spec_id)
            if entry is not None and not settled(spec_id):
                return None
            self._asks.end(spec_id, ask)
            if entry is None:
                return _left(spec_id)
            data = _data(entry)
            error = entry.error or (ask.error if entry.generation == ask.keeps else None)
            if error is not None:
                serves = "nothing" if entry.generation is None else f"generation {entry.generation}"
                self._log.warning("not refreshed", spec=spec_id, error=str(ask.error or entry.error))
                return Answer(
                    False, f"{spec_id} is not refreshed: {_why(error)} It still serves {serves}.", data
                )
            if before is not None and entry.generation == before.number:
                return Answer(
                    True, f"{spec_id}: nothing newer; it still serves generation {before.number}", data
                )
            after = self._read(spec_id, entry.generation)
            if before is None or after is None:
                return Answer(True, f"{spec_id} serves generation {entry.generation}", data)
            data["changed"] = changed = _differences(before, after)
            told = f"{len(changed)} other version{'' if len(changed) == 1 else 's'}"
            if not changed:
                told = "the same versions here, and another lock"
            return Answer(True, f"{spec_id} serves generation {entry.generation} with {told}", data)

        return poll

    def _begin(self, spec_id: str, ask: Ask) -> None:
        self._board.retries.pop(spec_id, None)
        if self._board.entries[spec_id].state != "ready":
            self._board.unpin(spec_id)
        self._asks.begin(spec_id, ask)
        self._work.add(spec_id)

    def _read(self, spec_id: str, number: int | None) -> Generation | None:
        return None if number is None else self._generations.read(spec_id, number)


def _check(spec_id: str, entry: Entry) -> None:
    if entry.pinned:
        raise NotNow(
            f"{spec_id} is pinned to generation {entry.generation}; `envfabric unpin {spec_id}` first."
        )
    if entry.suspended:
        raise NotNow(f"{spec_id} is suspended; remove suspend from its [tool.envfabric] and commit.")
    if entry.state in {"pending", "building"}:
        raise NotNow(
            f"{spec_id} is {entry.state}: it is being made ready now; `envfabric wait {spec_id}` waits for it."
        )


def _left(spec_id: str) -> Answer:
    return Answer(False, f"{spec_id} has left the revision meanwhile")


def _data(entry: Entry) -> dict[str, object]:
    return {"state": entry.state, "generation": entry.generation, "serving": entry.serving}


def _why(error: object) -> str:
    if isinstance(error, SpecError):
        return f"{error.reason}: {error.message}"
    reason, message = getattr(error, "reason", None), getattr(error, "message", None)
    return f"{reason}: {message}" if reason and message else f"{error}."


def _differences(before: Generation, after: Generation) -> list[dict[str, str | None]]:
    """The distributions whose version differs, those that came and those that went."""
    old, new = _versions(before), _versions(after)
    return [
        {"name": name, "before": old.get(name), "after": new.get(name)}
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _versions(generation: Generation) -> dict[str, str]:
    return {one["name"]: one["version"] for one in generation.closure.get("distributions", ())}
