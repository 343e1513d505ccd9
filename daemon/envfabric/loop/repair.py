"""`verify --repair`, carried out by the writer: what is damaged is marked, forgotten by uv's cache, and
built again beside for all that serve it; the damaged closure then retires like any other.

The names that a command found are proven once more here: what is marked is marked for good.
"""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from envfabric.build.cache import CacheInUse
from envfabric.core.errors import FabricError
from envfabric.loop.board import Board
from envfabric.loop.work import Work
from envfabric.store.closures import Closures
from envfabric.store.generations import Generations
from envfabric.store.history import History
from envfabric.store.requests import Answer
from envfabric.store.root import Root
from envfabric.store.verify import verify
from envfabric.telemetry import logs

WORKERS = 2
"""Threads that prove files: builds go on meanwhile."""


@dataclass(slots=True)
class _Case:
    """One repair, from the request to its answer."""

    damaged: dict[str, int] = field(default_factory=dict)
    """Findings by closure."""
    gone: list[str] = field(default_factory=list)
    specs: dict[str, str] = field(default_factory=dict)
    """The closure that each spec served when it began."""
    waiting: list[str] = field(default_factory=list)
    """Those of them whose outcome has not been seen yet."""
    error: str | None = None
    proven: bool = False


class Repair:
    """Repairs on one ROOT. Belongs to the loop's thread."""

    def __init__(
        self,
        root: Root,
        board: Board,
        work: Work,
        closures: Closures,
        generations: Generations,
        history: History,
        forget: Callable[[Iterable[str]], None],
        check: Callable[[], None],
        post: Callable[[Callable[[], None]], None],
    ) -> None:
        """`forget` removes distributions from uv's cache; `check` raises where another is the writer by now."""
        self._check = check
        self._root = root
        self._board = board
        self._work = work
        self._closures = closures
        self._generations = generations
        self._history = history
        self._forget = forget
        self._post = post
        self._log = logs.get()
        self._stopping = threading.Event()
        self._proving = 0
        self._pool = ThreadPoolExecutor(1, "repair")

    @property
    def busy(self) -> bool:
        """Whether there are closures of which it is not yet known what has to be built again."""
        return self._proving > 0

    def begin(
        self, names: list[str], settled: Callable[[str], bool], proven: Callable[[], None] = lambda: None
    ) -> Callable[[], Answer | None]:
        """Repairs the closures `names`, as far as they really are damaged or gone.

        Gives what is asked in each round for the answer; `settled` says whether what became of a spec is
        published; `proven` is called, in a thread, once all are proved and what is damaged is marked.
        """
        case = _Case()
        wanted = set(names)
        served: dict[str, list[str]] = {}
        for spec_id, entry in self._board.entries.items():
            if entry.serving in wanted:
                served.setdefault(entry.serving, []).append(spec_id)
        future = self._pool.submit(self._prove, case, names, served, proven)
        self._proving += 1
        future.add_done_callback(lambda ended: self._post(partial(self._proven, ended, case)))

        def poll() -> Answer | None:
            if case.error is not None:
                return Answer(False, case.error)
            if not case.proven:
                return None
            # Each is asked until its outcome is there, and then no more: a round costs what ended since the last.
            while case.waiting:
                if self._under_way(case.waiting[-1], settled):
                    return None
                case.waiting.pop()
            return self._told(case)

        return poll

    def close(self) -> None:
        """Ends what runs, and waits for it."""
        self._stopping.set()
        self._pool.shutdown(cancel_futures=True)

    def _prove(
        self, case: _Case, names: list[str], served: dict[str, list[str]], proven: Callable[[], None]
    ) -> None:
        report = verify(self._root, names, served=served, workers=WORKERS, stop=self._stopping.is_set)
        self._check()
        case.gone = sorted(report.missing)
        for name, findings in report.findings.items():
            told = [f"{one.path}: {one.detail}" for one in findings]
            self._log.error("closure damaged", digest=name, findings=told[:5], more=max(0, len(told) - 5))
            # Marked first: killed after this, a start finds the mark and has it healed.
            self._closures.mark_damaged(name, told)
            case.damaged[name] = len(findings)
        if not report.stopped:
            proven()
        wanted = {one for name in case.damaged for one in self._distributions(name)}
        if case.damaged:
            try:
                # The damaged file is in the cache as well: it is the same inode.
                self._forget(sorted(wanted))
            except CacheInUse as error:
                # Builds keep the cache busy: whatever does not fit its RECORD is fetched anew by the build itself.
                self._log.warning("cache not purged before the repair", error=str(error))

    def _proven(self, future: Future[None], case: _Case) -> None:
        self._proving -= 1
        error = future.exception()
        if error is not None:
            if not isinstance(error, FabricError | OSError):
                self._log.error("unexpected error", exc_info=error)
            case.error = f"the repair ended early: {error}"
            self._log.error("closures not proven to their end", error=str(error))
        for name, findings in case.damaged.items():
            self._history.note("damaged", closure=name, findings=findings)
        bad = {*case.damaged, *case.gone}
        # As it is now: proving takes its time, and who came by since serves the same.
        for spec_id, entry in self._board.entries.items():
            if entry.serving in bad and entry.generation is not None:
                case.specs[spec_id] = entry.serving
                self._board.heal[spec_id] = entry.generation
                self._work.add(spec_id)
        # The last ones are asked first.
        case.waiting = list(reversed(case.specs))
        case.proven = True

    def _under_way(self, spec_id: str, settled: Callable[[str], bool]) -> bool:
        entry = self._board.entries.get(spec_id)
        if entry is None:
            return False
        # A heal that failed for good, or waits for its retry, is told and not waited for. While a step is
        # under way, the error of a stale spec is one from before, and `settled` says that it is not over.
        failed = entry.state in {"failed", "stale"} and entry.error is not None
        return (spec_id in self._board.heal and not failed) or not settled(spec_id)

    def _told(self, case: _Case) -> Answer:
        new = {one: self._board.entries[one].serving for one in case.specs if one in self._board.entries}
        left = [one for one, name in case.specs.items() if new.get(one) == name and name in case.damaged]
        left += [one for one in case.specs if one in new and new[one] is None]
        data = {
            "damaged": case.damaged,
            "gone": case.gone,
            "rebuilt": {one: name for one, name in new.items() if one not in left},
            "failed": left,
        }
        if not case.damaged and not case.gone:
            return Answer(True, "nothing is damaged any more", data)
        told = f"{len(case.damaged)} closures damaged, {len(case.gone)} gone"
        told += f"; {len(case.specs) - len(left)} specs healed"
        if left:
            told += f"; not healed: {', '.join(sorted(left)[:5])} (their entries in the index say why)"
        return Answer(not left, told, data)

    def _distributions(self, name: str) -> list[str]:
        """The distributions of a closure, by its metadata or, where that is spoilt, its folders' names."""
        try:
            return [one["name"] for one in self._closures.metadata(name)["inputs"]["distributions"]]
        except (OSError, ValueError, KeyError, TypeError):
            site = self._root.closure(name) / ".venv"
            found = site.glob("lib/python*/site-packages/*.dist-info")
            return [info.name.removesuffix(".dist-info").rpartition("-")[0] for info in found]
