"""When and how the index is replaced: a single outcome at once, a burst at most once a second.

The order on ROOT is closure, generation, index.json, envs/: killed between any two of them, what the
index names exists, and the next start flips what was left.
"""

import contextlib
import time
from collections.abc import Mapping

from envfabric.core.errors import StoreError
from envfabric.index.document import Entry, Index, from_json, to_json
from envfabric.specs.tree import Problem
from envfabric.store.files import Files
from envfabric.store.generations import Generations
from envfabric.store.root import Root, now
from envfabric.store.writer import Writer

BURST_INTERVAL = 1.0
"""Seconds between two publications of a burst."""


class Publisher:
    """Publishes the index of one ROOT. Belongs to the loop's thread."""

    def __init__(self, root: Root, files: Files, writer: Writer, generations: Generations) -> None:
        self._root = root
        self._files = files
        self._writer = writer
        self._generations = generations
        self._due: float | None = None
        self._last_outcome = -BURST_INTERVAL
        self._linked: dict[str, int] = {}
        self.published: Index | None = None

    def load(self) -> Index | None:
        """What is published now, or None where there is nothing that can be read."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            self.published = from_json(self._root.index.read_bytes())
        return self.published

    def want(self, *, outcome: bool) -> None:
        """Asks for a publication: at once for an outcome, within the interval for mere progress."""
        clock = time.monotonic()
        due = max(clock, self._last_outcome + BURST_INTERVAL) if outcome else clock + BURST_INTERVAL
        self._due = due if self._due is None else min(self._due, due)

    def postpone(self) -> None:
        """After a publication that failed: tries again in a while instead of at once."""
        self._due = time.monotonic() + 2 * BURST_INTERVAL

    def wait(self) -> float | None:
        """Seconds until the wanted publication is due; None where none is wanted."""
        return None if self._due is None else max(0.0, self._due - time.monotonic())

    def publish(
        self, revision: str | None, entries: Mapping[str, Entry], problems: tuple[Problem, ...]
    ) -> Index | None:
        """Replaces index.json where it says something else, then flips envs/. None: nothing was new.

        Raises `StoreError` (lost lock, lost mount) or `OSError`; the publication stays wanted then.
        """
        old = self.published
        if old and (old.revision, old.entries, old.problems) == (revision, entries, problems):
            self._due = None
            return None
        self._writer.check()
        index = Index(revision, self._next_sequence(), now(), dict(entries), problems)
        self._files.write_atomic(self._root.index, to_json(index, self._root))
        self.published = index
        self._due = None
        self._last_outcome = time.monotonic()
        self._flip(index)
        return index

    def _next_sequence(self) -> int:
        # Read anew: a lower sequence than one that somebody has seen would be a step back in time.
        with contextlib.suppress(FileNotFoundError, ValueError):
            return from_json(self._root.index.read_bytes()).sequence + 1
        return self.published.sequence + 1 if self.published else 1

    def _flip(self, index: Index) -> None:
        serving = {
            spec_id: entry.generation
            for spec_id, entry in index.entries.items()
            if entry.generation is not None
        }
        try:
            for spec_id in self._linked.keys() - serving.keys():
                self._generations.withdraw(spec_id)
            for spec_id, number in serving.items():
                if self._linked.get(spec_id) != number:
                    self._generations.serve(spec_id, number)
        except OSError as error:
            raise StoreError(f"envs/ can't be brought up to date: {error}") from error
        self._linked = serving

    def adopt_links(self) -> None:
        """Learns which paths for people exist, so that those of specs long gone are removed."""
        for link in self._root.envs.glob("*/*"):
            if link.is_symlink() and not link.name.startswith("."):
                self._linked[f"{link.parent.name}/{link.name}"] = -1
