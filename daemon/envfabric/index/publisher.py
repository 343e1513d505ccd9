"""When and how the index is replaced: a single outcome at once, a burst at most once a second.

The order on ROOT is closure, generation, index.json, envs/: killed between any two of them, what the
index names exists, and the next start flips what was left.
"""

import contextlib
import hashlib
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from envfabric.index.document import Entry, Index, Texts, from_json, to_json
from envfabric.index.sequence import Sequence
from envfabric.specs.tree import Problem
from envfabric.store.files import Files, Stamp, stamp
from envfabric.store.generations import Generations
from envfabric.store.root import Root, now
from envfabric.store.writer import Writer
from envfabric.telemetry import logs

BURST_INTERVAL = 1.0
"""Seconds between two publications of a burst."""

SINGLES = 3
"""Publications within the interval that still count as single changes, where nothing else is under way."""

FLIPPERS, MANY_LINKS = 16, 32
"""Links under envs/ that are flipped at a time, and how many have to differ for that."""

AT_ONCE = 200
"""Links that are changed between two looks at whether this is still the writer."""

_ELSEWHERE = -1
"""In place of the generation to which a link leads: it is not known, and none that is."""


class Publisher:
    """Publishes the index of one ROOT. Belongs to the loop's thread."""

    def __init__(self, root: Root, files: Files, writer: Writer, generations: Generations) -> None:
        self._root = root
        self._files = files
        self._writer = writer
        self._generations = generations
        self._log = logs.get()
        self._outcome = self._at_once = False
        self._progress_due: float | None = None
        self._not_before = 0.0
        self._recent: deque[float] = deque(maxlen=SINGLES)
        self._linked: dict[str, int] = {}
        self._behind = False
        self._written: Stamp | None = None
        self._changed_at: int | None = None
        self._digest = b""
        self._foreign: Stamp | None = None
        self._texts = Texts()
        self._sequence = Sequence(root, files)
        self.published: Index | None = None

    def load(self) -> Index | None:
        """What is published now, or None where there is nothing that can be read."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            status = self._root.index.stat()
            raw = self._root.index.read_bytes()
            self.published = from_json(raw)
            self._written, self._changed_at = stamp(status), status.st_ctime_ns
            self._digest = hashlib.sha256(raw).digest()
            if raw != to_json(self.published, self._root, self._texts):
                # A hand was in it, or another release wrote it: it is not taken for one of ours.
                self._written = None
                self.want(outcome=True)
        return self.published

    def look(self) -> None:
        """Notices an index that is not the one published here: removed, or replaced by a late lower epoch;
        and links that could not be flipped."""
        status = self._status()
        found = None if status is None else stamp(status)
        if self.published is not None and (found != self._written or self._edited(status)):
            if found is not None and found != self._foreign:
                # Another wrote it, who may have flipped links as well. Learnt once: each link is a way to the NAS.
                self._foreign = found
                self.adopt_links()
            self.want(outcome=True)
        if self._behind:
            self.want(outcome=False)

    def doubt_links(self, spec_ids: Iterable[str]) -> None:
        """Has links under envs/ flipped back that somebody has changed."""
        for spec_id in spec_ids:
            # Not forgotten: where the spec is removed before this comes to it, whatever is there goes, too.
            self._linked[spec_id] = _ELSEWHERE
        self.want(outcome=True)

    def linked(self, spec_id: str) -> int | None:
        """The generation to which a path for people was flipped last; None where none was."""
        number = self._linked.get(spec_id)
        return None if number == _ELSEWHERE else number

    def want(self, *, outcome: bool, at_once: bool = False) -> None:
        """Asks for a publication: of an outcome, or within the interval of mere progress.

        `at_once`, and in no burst: the index names what is not there any more.
        """
        self._at_once = self._at_once or at_once
        if outcome:
            self._outcome = True
        elif self._progress_due is None:
            self._progress_due = time.monotonic() + BURST_INTERVAL

    def wait(self, *, quiet: bool) -> float | None:
        """Seconds until a publication is due; None where none is wanted.

        `quiet` says that nothing is under way: then an outcome is a single change, and due at once.
        """
        clock = time.monotonic()
        if self._outcome:
            singles = [at for at in self._recent if clock - at < BURST_INTERVAL]
            last = self._recent[-1] if self._recent else -BURST_INTERVAL
            single = quiet and len(singles) < SINGLES
            due = clock if single or self._at_once else last + BURST_INTERVAL
        elif self._progress_due is not None:
            due = self._progress_due
        else:
            return None
        return max(0.0, due - clock, self._not_before - clock)

    def postpone(self) -> None:
        """After a publication that failed: tries again in a while instead of at once."""
        self._not_before = time.monotonic() + 2 * BURST_INTERVAL

    def _settled(self) -> None:
        self._outcome = self._at_once = False
        self._progress_due = None

    def publish(
        self, revision: str | None, entries: Mapping[str, Entry], problems: tuple[Problem, ...]
    ) -> Index | None:
        """Replaces index.json where it says something else, then flips envs/. None: nothing was new.

        Raises `StoreError` (lost lock, lost mount) or `OSError`; the publication stays wanted then.
        """
        old = self.published
        root = str(self._root.path)
        wanted = (revision, entries, problems, root)
        same = old and (old.revision, old.entries, old.problems, old.root) == wanted
        if old and same and not self._replaced():
            self._flip(old)
            self._settled()
            return None
        self._writer.check()
        index = Index(revision, self._next_sequence(), now(), dict(entries), problems, root)
        # By way of staging/: a mount point that lost its NAS has none, and a writer that was cut off at its
        # rename finds its file gone, because the next one empties staging/.
        data = to_json(index, self._root, self._texts)
        self._written = self._files.write_atomic(self._root.index, data, via=self._root.staging)
        self.published = index
        # The rename has changed it. A file that is another writer's by now has another stamp, too.
        self._changed_at, self._digest = None, hashlib.sha256(data).digest()
        with contextlib.suppress(OSError):
            self._changed_at = self._root.index.stat().st_ctime_ns
        self._recent.append(time.monotonic())
        self._flip(index)
        self._settled()
        return index

    def _replaced(self) -> bool:
        status = self._status()
        return status is None or stamp(status) != self._written or self._edited(status)

    def _edited(self, status: os.stat_result | None) -> bool:
        """Whether a file with the stamp of ours says something else: its mtime can be set, its ctime can't."""
        if status is None or status.st_ctime_ns == self._changed_at:
            return False
        # A chmod, or a network file system's client that learnt the time late, changes nothing in it.
        if hashlib.sha256(self._root.index.read_bytes()).digest() != self._digest:
            return True
        self._changed_at = status.st_ctime_ns
        return False

    def _status(self) -> os.stat_result | None:
        try:
            return self._root.index.stat()
        except FileNotFoundError:
            return None

    def _next_sequence(self) -> int:
        # A lower sequence than one that somebody has seen would be a step back in time.
        known = self.published.sequence if self.published else None
        if self.published is None or self._replaced():
            with contextlib.suppress(FileNotFoundError, ValueError):
                known = max(known or 0, from_json(self._root.index.read_bytes()).sequence)
        return self._sequence.after(known)

    def _flip(self, index: Index) -> None:
        """Brings envs/ up to date. One link that can't be flipped keeps no other: it is tried again later."""
        serving = {
            spec_id: entry.generation
            for spec_id, entry in index.entries.items()
            if entry.generation is not None
        }
        self._behind = False
        if serving == self._linked:
            return
        differing = [one for one in serving if self._linked.get(one) != serving[one]]
        if len(differing) < MANY_LINKS:
            for some in self._as_writer(differing):
                for spec_id in some:
                    self._serve(spec_id, serving[spec_id])
        else:
            # Each waits for the NAS a few times, and the loop waits for all of them.
            with ThreadPoolExecutor(FLIPPERS, "flip") as pool:
                for some in self._as_writer(differing):
                    list(pool.map(self._serve, some, map(serving.__getitem__, some)))
        # Not meanwhile: the folder that goes with its last link may be the one that another is put into.
        for some in self._as_writer(list(self._linked.keys() - serving.keys())):
            for spec_id in some:
                self._withdraw(spec_id)

    def _as_writer(self, spec_ids: list[str]) -> Iterator[list[str]]:
        """Some at a time. One that was paused among thousands, and deposed, changes no more than these."""
        for start in range(0, len(spec_ids), AT_ONCE):
            self._writer.check()
            yield spec_ids[start : start + AT_ONCE]

    def _serve(self, spec_id: str, number: int) -> None:
        try:
            self._generations.serve(spec_id, number)
            self._linked[spec_id] = number
        except OSError as error:
            self._not_flipped(spec_id, error)

    def _withdraw(self, spec_id: str) -> None:
        try:
            self._generations.withdraw(spec_id)
            del self._linked[spec_id]
        except OSError as error:
            self._not_flipped(spec_id, error)

    def _not_flipped(self, spec_id: str, error: OSError) -> None:
        self._behind = True
        self._log.error("link not flipped", spec=spec_id, error=str(error))

    def adopt_links(self) -> None:
        """Learns which paths for people exist and where they lead, so that those of specs long gone are removed."""
        self._linked.clear()
        for flow in _scan(self._root.envs):
            for link in _scan(flow.path) if flow.is_dir(follow_symlinks=False) else ():
                if link.is_symlink():
                    spec_id = f"{flow.name}/{link.name}"
                    # One that leads elsewhere is none of these, and is flipped with the next publication.
                    self._linked[spec_id] = self._generations.linked(spec_id) or _ELSEWHERE


def _scan(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    try:
        return [one for one in os.scandir(folder) if not one.name.startswith(".")]
    except OSError:
        return []
