"""How much of the index the specs' own runtime-env tables may take: who reads the index reads all of them.

One file in many folders costs a commit next to nothing, and each of those specs its own lines in the index. A small
table is never counted, so that no other spec can keep it out; the room for larger ones is given in the order in which
they are ready, and what has its place keeps it. Decides only; the board says what becomes of a spec without room.
"""

import json
from collections.abc import Mapping
from typing import Any

from envfabric.core.errors import Reason, SpecError
from envfabric.index.document import NOTHING_ADDED, Entry

FREE = 1024
"""Bytes of JSON up to which a table needs no room."""
ROOM = 32 * 1024**2
"""Bytes of JSON for all larger ones together."""


class Weights:
    """The tables that need room. Belongs to the loop's thread."""

    def __init__(self, room: int = ROOM) -> None:
        self._room = room
        self._large: dict[str, tuple[Mapping[str, Any], int]] | None = None

    def admit(self, spec_id: str, table: Mapping[str, Any], entries: Mapping[str, Entry]) -> None:
        """Gives a spec's table its place beside what `entries` hold. Raises `SpecError` (policy) without room."""
        size = _size(table)
        if size <= FREE:
            return
        large = self._looked_through(entries)
        large.pop(spec_id, None)
        taken = sum(one for _, one in large.values())
        if taken + size > self._room:
            raise SpecError(
                Reason.POLICY,
                f"[tool.envfabric.runtime-env] of {spec_id} has {size} bytes as JSON, and those of all specs may take "
                f"{self._room} together, of which {max(0, self._room - taken)} are free. Make it smaller, {FREE} bytes "
                f"always find room, or have others made smaller and run `envfabric retry {spec_id}`.",
            )
        large[spec_id] = table, size

    def _looked_through(self, entries: Mapping[str, Entry]) -> dict[str, tuple[Mapping[str, Any], int]]:
        """What has its place now: specs go, and are healed, without a word to this."""
        known = self._large or {}
        # The first time all are weighed: what was published before a restart.
        ids = entries if self._large is None else list(known)
        self._large = {}
        for one in ids:
            entry = entries.get(one)
            if entry is None or entry.runtime_env is NOTHING_ADDED:
                continue
            table, size = known.get(one, (None, 0))
            if table is not entry.runtime_env:
                size = _size(entry.runtime_env)
            if size > FREE:
                self._large[one] = entry.runtime_env, size
        return self._large


def _size(table: Mapping[str, Any]) -> int:
    return 0 if table is NOTHING_ADDED else len(json.dumps(table, indent=1))
