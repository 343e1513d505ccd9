"""The audit trail: history/<year>-<month>.jsonl, one JSON object a line, of all that was published,
rolled back, repaired and collected. Appended to by the writer only; read line by line; nothing depends on it.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envfabric.core.errors import StoreError, redact
from envfabric.store.files import Files
from envfabric.store.root import Root, now
from envfabric.store.writer import LostWriter
from envfabric.telemetry import logs

LOOK_BACK = 64 << 20
"""Bytes of the trail that a start looks through after a crash, the newest first."""
_TAIL = 1 << 20
"""Bytes of it in which a start looks for what was told last."""
WAITING = 30_000
"""Events that are kept for a NAS that is away: about 20 MB. A spec's failures that say the same again go first."""
_OF_CLOSURES = (b'"event": "collected"', b'"event": "damaged"')
"""How the lines are told that name a closure and no spec."""
_OF_SERVING = (b'"event": "serves"', b'"event": "removed"', b'"event": "generation"')


@dataclass(frozen=True, slots=True)
class _Line:
    """An event that is not written yet."""

    text: str
    same: tuple[Any, ...] | None
    """Of a failure what makes another one say the same: its spec, commit and reason."""


@dataclass(slots=True)
class LastTold:
    """What the end of a trail says."""

    served: dict[str, int | None] = field(default_factory=dict)
    """The generation that each spec was last said to serve; None for none."""
    made: set[tuple[str, int]] = field(default_factory=set)
    """The generations that were told with all that is known of them."""
    whole: bool = True
    """Whether this is of the whole trail: what it does not name was never told."""


class History:
    """The audit trail of one ROOT. Belongs to the loop's thread."""

    def __init__(self, root: Root, files: Files, check: Callable[[], None] = lambda: None) -> None:
        """`check` raises where this is the writer no more, see store/writer."""
        self._root = root
        self._files = files
        self._check = check
        self._waiting: list[_Line] = []
        self._left_out = 0
        self._whole: Path | None = None
        self._log = logs.get()

    def note(self, event: str, **details: Any) -> None:
        """Remembers an event until `flush`."""
        # Value by value: in the finished line a secret of digits could be half a number, and one with a quote is
        # spelt otherwise.
        told = {name: _redacted(value) for name, value in details.items()}
        same = tuple(map(details.get, ("spec", "commit", "reason"))) if event == "failed" else None
        self._waiting.append(_Line(json.dumps({"at": now(), "event": event, **told}), same))

    def flush(self) -> None:
        """Appends what was noted. A trail that can't be written stops nothing: it is tried again.

        Raises `LostWriter`: it is the next writer's by then.
        """
        if not self._waiting:
            return
        path = self._root.history / f"{now()[:7]}.jsonl"
        try:
            self._root.require_marker()
            self._check()
            # A line that a crash or a full disk has cut ends here: it takes no other with it.
            cut = path != self._whole and _is_cut(path)
            self._whole = None
            data = "".join(f"{line.text}\n" for line in self._waiting).encode()
            self._files.append(path, b"\n" + data if cut else data)
        except LostWriter:
            raise
        except (OSError, StoreError) as error:
            self._left_out += self._shorten()
            self._log.warning("history not written", error=str(error), left_out=self._left_out)
            return
        self._whole = path
        self._waiting.clear()
        self._left_out = 0

    def _shorten(self) -> int:
        """Keeps what waits within its bound: a NAS that is away for long costs events, not the memory."""
        waiting, excess = self._waiting, len(self._waiting) - WAITING
        if excess <= 0:
            return 0
        # Thousands of specs that fail again with each try would push out what nobody can find out later: who ordered
        # what, and what was served. What a try says once more goes first, the newest of these before older ones.
        seen: set[tuple[Any, ...]] = set()
        again = []
        for place, line in enumerate(waiting):
            if line.same is not None:
                if line.same in seen:
                    again.append(place)
                seen.add(line.same)
        gone = set(again[-excess:])
        self._waiting = [line for place, line in enumerate(waiting) if place not in gone][-WAITING:]
        return excess

    def last_sequence(self) -> int:
        """The highest sequence of an index that the trail's end names; 0 for none. Raises `OSError`."""
        for path in _files(self._root)[:-3:-1]:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - _TAIL))
                events = [_parsed(line) for line in file]
            named = [event.get("sequence") for event in events if event is not None]
            found = [one for one in named if isinstance(one, int)]
            if found:
                return max(found)
        return 0

    def last_told(self) -> LastTold:
        """What the last `LOOK_BACK` bytes of the trail say of what is served. Raises `OSError`."""
        told, left = LastTold(), LOOK_BACK
        # The newest month first; in a month the last word counts.
        for path in reversed(_files(self._root)):
            if left <= 0:
                told.whole = False
                break
            size = path.stat().st_size
            month: dict[str, int | None] = {}
            with path.open("rb") as file:
                if size > left:
                    told.whole = False
                    file.seek(size - left)
                for line in file:
                    _take(line, month, told.made)
            left -= size
            told.served = month | told.served
        return told


def all_events(root: Root) -> Iterator[dict[str, Any]]:
    """All that the trail says, oldest first; lines that are cut or of another form are read over. Raises `OSError`."""
    return (event for line in _lines(root) if (event := _parsed(line)) is not None)


def events_of(root: Root, spec_id: str) -> list[dict[str, Any]]:
    """What the trail says of a spec and of the closures that it used, oldest first.

    Also of one that left long ago. Lines that are cut or of another form are read over. Raises `OSError`.
    """
    named = json.dumps(spec_id).encode()
    found: list[tuple[int, dict[str, Any]]] = []
    of_closures: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(_lines(root)):
        # Most lines are of other specs: they are not parsed.
        if named in line:
            event = _parsed(line)
            if event is not None and _names(event, spec_id):
                found.append((number, event))
        elif any(mark in line for mark in _OF_CLOSURES):
            event = _parsed(line)
            if event is not None:
                of_closures.append((number, event))
    used = {event["closure"] for _, event in found if isinstance(event.get("closure"), str)}
    found += [(number, event) for number, event in of_closures if event.get("closure") in used]
    return [event for _, event in sorted(found, key=lambda one: one[0])]


def _names(event: dict[str, Any], spec_id: str) -> bool:
    if event["event"] == "order":
        arguments = event.get("arguments")
        return isinstance(arguments, dict) and arguments.get("id") == spec_id
    return event.get("spec") == spec_id


def _lines(root: Root) -> Iterator[bytes]:
    for path in _files(root):
        with path.open("rb") as file:
            yield from file


def _files(root: Root) -> list[Path]:
    """The trail's files, oldest first: their names are a year and a month."""
    return sorted(root.history.glob("*.jsonl"))


def _take(line: bytes, served: dict[str, int | None], made: set[tuple[str, int]]) -> None:
    """Takes over what a line says of what is served."""
    if not any(mark in line for mark in _OF_SERVING) or (event := _parsed(line)) is None:
        return
    spec_id, number, kind = event.get("spec"), event.get("generation"), event["event"]
    if not isinstance(spec_id, str):
        return
    if kind == "removed":
        served[spec_id] = None
    elif kind == "serves":
        served[spec_id] = number if isinstance(number, int) else None
    elif kind == "generation" and isinstance(number, int):
        made.add((spec_id, number))


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    known = (
        isinstance(event, dict) and isinstance(event.get("at"), str) and isinstance(event.get("event"), str)
    )
    return event if known else None


def _is_cut(path: Path) -> bool:
    """Whether a file's last line has no end."""
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except FileNotFoundError:
        return False


def _redacted(value: Any) -> Any:
    """A value of JSON with its texts redacted."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {redact(str(name)): _redacted(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(one) for one in value]
    return value
