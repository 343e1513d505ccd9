"""The audit trail: history/<year>-<month>.jsonl, one JSON object a line, of all that was published,
rolled back, repaired and collected. Appended to by the writer only; nothing depends on it.
"""

import json
from typing import Any

from envfabric.core.errors import StoreError, redact
from envfabric.store.files import Files
from envfabric.store.root import Root, now
from envfabric.telemetry import logs


class History:
    """The audit trail of one ROOT. Belongs to the loop's thread."""

    def __init__(self, root: Root, files: Files) -> None:
        self._root = root
        self._files = files
        self._waiting: list[str] = []
        self._log = logs.get()

    def note(self, event: str, **details: Any) -> None:
        """Remembers an event until `flush`."""
        self._waiting.append(redact(json.dumps({"at": now(), "event": event, **details})))

    def flush(self) -> None:
        """Appends what was noted. A trail that can't be written stops nothing: it is tried again."""
        if not self._waiting:
            return
        text = "".join(f"{line}\n" for line in self._waiting)
        try:
            self._root.require_marker()
            self._files.append(self._root.history / f"{now()[:7]}.jsonl", text.encode())
        except (OSError, StoreError) as error:
            self._log.warning("history not written", error=str(error))
            # Bounded: a NAS that is away for long costs the oldest events, not the memory.
            del self._waiting[:-10_000]
            return
        self._waiting.clear()
