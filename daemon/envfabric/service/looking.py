"""What the page shows of ROOT beyond the index: what closures take on disk, and logs, read in threads of its own.

The one part of the HTTP server that touches the NAS, and so that no answer ever waits for one that hangs: each read has
a time limit, a few at a time may hang, and what comes after them is told so at once. Only reads, and only paths that
are made of an id or a closure's name in the published index; may not be used by the loop.
"""

import os
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from operator import truediv
from pathlib import Path

from envfabric.core.errors import redact
from envfabric.index.document import Index
from envfabric.store.files import Files
from envfabric.store.root import Root
from envfabric.store.usage import Usage
from envfabric.telemetry import logs

READS = 4
"""Logs that are read at a time: each of them may hang with the NAS."""
READ_BOUND = 5.0
"""Seconds that a log may take."""
_FIRST, _LAST = 64 << 10, 448 << 10
"""Bytes of a log's beginning and end that are shown; what is between them is left out."""
_MARGIN = 16 << 10
"""Bytes beside a cut that are read and not shown: a credential that lies across the cut would be known to nobody."""
_PATIENCE = 1.0
"""Seconds that the first page after a change waits for the sizes; it is shown without them then."""
_COUNT_AGAIN = 30.0
"""Seconds between two counts, where nothing is missing in the last one."""


class NoAnswer(Exception):
    """ROOT does not answer, or what was asked for is not there; the message is for the reader."""

    def __init__(self, message: str, *, passing: bool) -> None:
        super().__init__(message)
        self.passing = passing
        """Whether asking again may help."""


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes on disk that a closure would take alone, and its share of them: of what n closures link, the n-th part."""

    alone: int
    share: float


class Looking:
    """The reads of one server. Safe for threads."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._reads = threading.BoundedSemaphore(READS)
        self._lock = threading.Lock()
        self._sizes: Mapping[str, Size] = {}
        self._counted_for: Index | None = None
        self._counting: threading.Event | None = None
        self._next = 0.0
        self._log = logs.get()

    def sizes(self, index: Index) -> Mapping[str, Size]:
        """By closure, as counted last; a count that is due begins, and is waited for a moment."""
        names = {one.serving for one in index.entries.values() if one.serving}
        with self._lock:
            due = index is not self._counted_for and (
                time.monotonic() >= self._next or not names <= self._sizes.keys()
            )
            # One that hangs is the only one: nobody waits for it a second time.
            if not due or self._counting is not None:
                return self._sizes
            done = self._counting = threading.Event()
            self._counted_for = index
        threading.Thread(target=self._count, args=(done,), name="sizes", daemon=True).start()
        done.wait(_PATIENCE)
        return self._sizes

    def failure(self, spec_id: str, index: Index | None) -> str:
        """The log of what failed last for a spec. Raises `NoAnswer`."""
        entry = index.entries.get(spec_id) if index else None
        if entry is None or entry.error is None or entry.error.log is None:
            raise NoAnswer(
                "no log: this environment has no error now, or none that wrote one\n", passing=False
            )
        return self._in_time(lambda: read_log(self._root.failures / f"{spec_id}.log"))

    def build(self, name: str, index: Index | None) -> str:
        """The log of a closure's build. Raises `NoAnswer`."""
        if index is None or all(one.serving != name for one in index.entries.values()):
            raise NoAnswer("no log: no environment of the index serves this closure\n", passing=False)
        return self._in_time(lambda: read_log(self._root.closure(name) / "build.log"))

    def _in_time(self, read: Callable[[], str]) -> str:
        hung = NoAnswer(
            f"ROOT does not answer within {READ_BOUND:.0f} s: is the NAS there? Try again later.\n",
            passing=True,
        )
        if not self._reads.acquire(blocking=False):
            raise hung
        answer: Future[str] = Future()

        def run() -> None:
            try:
                answer.set_result(read())
            except Exception as error:
                answer.set_exception(error)
            finally:
                self._reads.release()

        threading.Thread(target=run, name="log", daemon=True).start()
        try:
            return answer.result(READ_BOUND)
        except TimeoutError:
            raise hung from None
        except FileNotFoundError:
            raise NoAnswer("the log is not there any more\n", passing=False) from None
        except OSError as error:
            raise NoAnswer(f"the log can't be read: {error.strerror or error}\n", passing=True) from None

    def _count(self, done: threading.Event) -> None:
        try:
            self._sizes = count_sizes(self._root)
        except OSError as error:
            self._log.warning("sizes not counted for the page", error=str(error))
            with self._lock:
                # Counted again by and by, also where nothing is published meanwhile.
                self._counted_for = None
        finally:
            with self._lock:
                self._next = time.monotonic() + _COUNT_AGAIN
                self._counting = None
            done.set()


def count_sizes(root: Root) -> dict[str, Size]:
    """By closure, from what was written down when it was sealed: nothing is walked. Raises `OSError`."""
    usage = Usage(root, Files())
    names = os.listdir(root.store)
    links: Counter[int] = Counter()
    for name in names:
        links.update(usage.kept(name).keys())
    sizes = {}
    # Read twice, one at a time: those of ten thousand closures at once would fill the memory.
    for name in names:
        if inodes := {one: size for one, size in usage.kept(name).items() if one in links}:
            alone = sum(inodes.values())
            sizes[name] = Size(alone, sum(map(truediv, inodes.values(), map(links.__getitem__, inodes))))
    return sizes


def read_log(path: Path) -> str:
    """A log's text, redacted, its middle left out where it is long. Raises `OSError`."""
    # A link would lead out of ROOT, and a pipe would never end.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(path)
        left = status.st_size - _FIRST - _LAST
        if left <= 2 * _MARGIN:
            return _redacted(file.read(_FIRST + _LAST + 2 * _MARGIN))
        # Each part with more than is shown of it: half a credential at its end is cut off once the whole ones are out.
        first = _redacted(file.read(_FIRST + _MARGIN))[:-_MARGIN]
        file.seek(-_LAST - _MARGIN, os.SEEK_END)
        last = _redacted(file.read(_LAST + _MARGIN))[_MARGIN:]
    return f"{first}\n… about {left} bytes left out: {path} has all …\n{last}"


def _redacted(data: bytes) -> str:
    return redact(data.decode("utf-8", "replace"))
