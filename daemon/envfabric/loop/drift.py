"""What a hand did to ROOT: a part of what is published is looked at with each look, going round, and repaired.

A closure that is gone is withdrawn at once and built again from its generation's own files; one whose seal is not
as it was is proven like by `verify --repair`; a generation's folder is written anew, a link flipped back. No file is
read as long as all is as at first sight: `verify` proves contents.

A look takes at most 64 specs, of eight questions to the NAS each, in a thread of its own: with a look each 10 s,
1 000 specs come round in 3 minutes and 10 000 in half an hour, whatever the NAS takes. Belongs to the loop's thread.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from envfabric.core.errors import FabricError
from envfabric.index.publisher import Publisher
from envfabric.loop.answering import Poll
from envfabric.loop.asks import Mend
from envfabric.loop.board import Board
from envfabric.loop.plan import withdrawn
from envfabric.loop.realise import Realiser
from envfabric.loop.repair import Repair
from envfabric.loop.work import Work
from envfabric.store.closures import Closures
from envfabric.store.files import Stamp, stamp
from envfabric.store.generations import Generations
from envfabric.store.retention import Serving
from envfabric.store.root import Root
from envfabric.telemetry import logs
from envfabric.telemetry.metrics import Metrics

AT_ONCE = 64
"""Specs that are looked at in one look."""


@dataclass(slots=True)
class _Seen:
    """What a part of a round has found."""

    gone: list[str] = field(default_factory=list)
    """Closures that are not there any more."""
    doubted: list[str] = field(default_factory=list)
    """Closures whose seal is not as at first sight."""
    folders: dict[str, Serving] = field(default_factory=dict)
    """Specs whose generation's folder is not as at first sight."""
    links: list[str] = field(default_factory=list)
    """Specs whose path for people leads elsewhere."""


class Drift:
    """The round over what one ROOT serves."""

    def __init__(
        self,
        root: Root,
        board: Board,
        work: Work,
        realiser: Realiser,
        publisher: Publisher,
        closures: Closures,
        generations: Generations,
        repair: Repair,
        metrics: Metrics,
        post: Callable[[Callable[[], None]], None],
    ) -> None:
        """`post` hands a call to the loop's thread."""
        self._root = root
        self._board = board
        self._work = work
        self._realiser = realiser
        self._publisher = publisher
        self._closures = closures
        self._generations = generations
        self._repair = repair
        self._metrics = metrics
        self._post = post
        self._log = logs.get()
        self._round: list[str] = []
        self._seals: dict[str, tuple[Stamp | None, ...]] = {}
        # Two numbers for each: ten thousand specs have thirty thousand stamps.
        self._folders: dict[str, tuple[int, int]] = {}
        self._repairs: dict[str, Poll] = {}
        self._under_way = False
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(1, "drift")

    def tick(self) -> None:
        """Begins with the next part of the round, unless the last one is still under way."""
        self._settle()
        if self._under_way or self._stopping.is_set():
            return
        if not self._round:
            self._round = sorted(self._board.entries, reverse=True)
            self._forget()
        part: dict[str, Serving] = {}
        flipped = set()
        while self._round and len(part) < AT_ONCE:
            spec_id = self._round.pop()
            entry = self._board.entries.get(spec_id)
            # What is being worked on changes under way.
            if entry is not None and entry.serving is not None and not self._work.has(spec_id):
                part[spec_id] = Serving(entry.serving, entry.generation)
                # What is not published yet has a link that leads to what was before, as it should.
                if entry.generation is not None and self._publisher.linked(spec_id) == entry.generation:
                    flipped.add(spec_id)
        if part:
            self._under_way = True
            future = self._pool.submit(self._look, part, flipped)
            future.add_done_callback(lambda ended: self._post(partial(self._looked, ended)))

    def close(self) -> None:
        """Ends what runs, and waits for it."""
        self._stopping.set()
        self._pool.shutdown(cancel_futures=True)

    def _settle(self) -> None:
        for name, poll in list(self._repairs.items()):
            answer = poll()
            if answer is not None:
                del self._repairs[name]
                self._log.info("drift settled", closure=name, ok=answer.ok, message=answer.message)

    def _forget(self) -> None:
        """Stamps of what is served no more."""
        served = {entry.serving for entry in self._board.entries.values()}
        self._seals = {name: seal for name, seal in self._seals.items() if name in served}
        self._folders = {one: seen for one, seen in self._folders.items() if one in self._board.entries}

    # In the round's own thread: only this one reads and writes the stamps while it is under way.

    def _look(self, part: dict[str, Serving], flipped: set[str]) -> _Seen:
        self._root.require_marker()
        seen = _Seen()
        for name in sorted({one.name for one in part.values() if one.name}):
            if self._stopping.is_set():
                return seen
            if not self._closures.present(name):
                seen.gone.append(name)
            elif self._other_seal(name):
                seen.doubted.append(name)
        for spec_id, serves in part.items():
            if self._stopping.is_set():
                return seen
            if serves.generation is None or serves.name in seen.gone:
                continue
            if self._other_folder(spec_id, serves.generation, serves.name):
                seen.folders[spec_id] = serves
            if spec_id in flipped and self._generations.linked(spec_id) != serves.generation:
                seen.links.append(spec_id)
        return seen

    def _other_seal(self, name: str) -> bool:
        folder = self._root.closure(name)
        # Not by ctime: a chown of all ROOT would have every closure read to its last byte.
        seal = tuple(_stamp(folder / one) for one in ("manifest", "metadata.json"))
        known = self._seals.setdefault(name, seal)
        self._seals[name] = seal
        return None in seal or seal != known

    def _other_folder(self, spec_id: str, number: int, name: str | None) -> bool:
        folder = self._generations.folder(spec_id, number)
        files = [_status(folder / one) for one in ("metadata.json", "pyproject.toml", "uv.lock")]
        stamps = [(*stamp(one), one.st_ctime_ns) if one is not None else None for one in files]
        whole = None not in stamps and self._generations.name_of(spec_id, number) == name
        which, told = hash((number, name)), hash((whole, *stamps))
        known, self._folders[spec_id] = self._folders.get(spec_id), (which, told)
        if known is None or known[0] != which:
            # This generation is seen for the first time.
            return not whole
        # What could not be mended is not asked for in each round.
        return told != known[1]

    # In the loop's thread again.

    def _looked(self, future: Future[_Seen]) -> None:
        self._under_way = False
        error = future.exception()
        if error is not None:
            if not isinstance(error, FabricError | OSError):
                self._log.error("unexpected error", exc_info=error)
            # A NAS that is away is told by the look itself.
            self._log.debug("drift not looked for", error=str(error))
            return
        seen = future.result()
        try:
            # An empty mount point looks as if all were gone.
            self._root.require_marker()
            gone = [name for name in seen.gone if not self._closures.present(name)]
            self._root.require_marker()
        except (FabricError, OSError):
            return
        for name in gone:
            self._withdraw(name)
        for name in seen.doubted:
            self._prove(name)
        for spec_id, serves in seen.folders.items():
            self._mend(spec_id, serves)
        others = [one for one in seen.links if self._still_idle(one)]
        if others:
            self._metrics.drift.labels("link").inc(len(others))
            self._log.warning("drift", what="links that lead elsewhere are flipped back", specs=others[:5])
            self._publisher.doubt_links(others)

    def _still_idle(self, spec_id: str) -> bool:
        return spec_id in self._board.entries and not self._work.has(spec_id)

    def _withdraw(self, name: str) -> None:
        """Takes a closure that has gone out of the index, and has it made again for all that serve it."""
        board = self._board
        served = [one for one, entry in board.entries.items() if entry.serving == name]
        for spec_id in served:
            entry = board.entries[spec_id]
            if entry.generation is not None:
                board.heal[spec_id] = entry.generation
            board.entries[spec_id] = withdrawn(entry, board.refs.get(spec_id))
            if spec_id in board.refs:
                self._work.add(spec_id)
        if served:
            self._metrics.drift.labels("closure").inc()
            self._log.error("drift", what="a closure is gone and built again", closure=name, specs=served[:5])
            self._publisher.want(outcome=True, at_once=True)

    def _prove(self, name: str) -> None:
        """Has a closure proven to its last byte, and built again beside where it is not as it was sealed."""
        if name in self._repairs or name in self._closures.damaged():
            return
        self._metrics.drift.labels("seal").inc()
        self._log.error("drift", what="a closure's seal is not as it was: it is proven", closure=name)
        self._repairs[name] = self._repair.begin([name], lambda _: True)

    def _mend(self, spec_id: str, serves: Serving) -> None:
        """Has a generation's folder looked at closely, and written anew where it is not whole."""
        entry = self._board.entries.get(spec_id)
        ref = self._board.refs.get(spec_id)
        if entry is None or ref is None or not self._still_idle(spec_id):
            return
        if entry.generation is None or Serving(entry.serving, entry.generation) != serves:
            return
        self._metrics.drift.labels("generation").inc()
        self._log.warning(
            "drift", what="a generation's folder is not as it was", spec=spec_id, generation=entry.generation
        )
        current = entry.state == "ready" and not entry.pinned and not entry.suspended
        self._realiser.asks.mend(spec_id, Mend(ref.tree, entry.generation, entry.serving or "", current))
        self._board.heal[spec_id] = entry.generation
        self._work.add(spec_id)


def _status(path: str | os.PathLike[str]) -> os.stat_result | None:
    """A file's status; None where it is not there. Raises `OSError` for what is no proof of that."""
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _stamp(path: str | os.PathLike[str]) -> Stamp | None:
    status = _status(path)
    return None if status is None else stamp(status)
