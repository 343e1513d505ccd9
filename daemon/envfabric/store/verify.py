"""Proves the store's closures against their manifests, several at a time.

It only reads (store/proof.py). Files that closures share are read once for a whole run. The one thing that
ends a run is a ROOT that is not there, because an unmounted NAS must not pass for a clean one.
"""

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

from envfabric.core.errors import ConfigError
from envfabric.store.manifest import MANIFEST
from envfabric.store.proof import Finding, SeenHashes, Stop, Tell, check, shown
from envfabric.store.root import Root

__all__ = ["Finding", "Report", "SeenHashes", "check", "shown", "verify"]

_LINE = 150
"""Bytes that a manifest has for each path, about: what is to be done is guessed from it at first."""
_LOOK = 0.1
"""Seconds between two calls of `progress`."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a run over the store found."""

    findings: dict[str, list[Finding]]
    """By closure; a closure that is whole is not in it."""
    missing: dict[str, tuple[str, ...]]
    """Closures that should be in the store and are not, with the ids of the specs that they serve."""
    closures: int
    files: int
    """Files whose content was compared; one that several closures share counts in each."""
    bytes_read: int
    seconds: float
    stopped: bool
    """Whether it was ended before it had looked at everything."""

    @property
    def clean(self) -> bool:
        """Whether all was looked at, and all of it is as it was sealed."""
        return not (self.findings or self.missing or self.stopped)


def verify(
    root: Root,
    names: Iterable[str] | None,
    *,
    workers: int,
    served: Mapping[str, Sequence[str]] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    stop: Stop = lambda: False,
) -> Report:
    """Checks the closures with these names, or all of the store, by `workers` threads.

    `served` are the ids of the specs that each closure serves: one that is not in the store is reported as
    missing. `progress` is called in the caller's thread with paths done and paths in all, where the latter
    is a guess until each manifest was read; `stop` is called by all threads.
    Raises `StoreError` where ROOT is not there, before or after, `OSError` where store/ can't be listed, and
    `ConfigError` for a name that can't be a closure's.
    """
    started = time.monotonic()
    root.require_marker()
    serves = {name: tuple(ids) for name, ids in (served or {}).items()}
    wanted = None if names is None else set(names)
    for name in wanted or ():
        if name.startswith(".") or os.path.basename(name) != name or not name:
            raise ConfigError(f"{name!r} is no closure's name; `ls {root.store}` shows them.")
    # Names with a dot are what a dead probe left, not closures.
    present = {name for name in os.listdir(root.store) if not name.startswith(".")}
    todo = sorted(present if wanted is None else present & wanted)
    count = _Count(root, todo)
    ended = threading.Event()
    findings: dict[str, list[Finding]] = {}
    # Two pools: a closure's thread waits for its files, which others read.
    with (
        ThreadPoolExecutor(workers, "verify-files") as readers,
        ThreadPoolExecutor(workers, "verify-closures") as walkers,
    ):
        seen = SeenHashes(readers)

        def over() -> bool:
            return ended.is_set() or stop()

        def one(name: str) -> list[Finding]:
            if over():
                return []
            found = check(root.closure(name), seen, over, count.of(name))
            return [dataclasses.replace(finding, serves=serves.get(name, ())) for finding in found]

        try:
            running = {walkers.submit(one, name): name for name in todo}
            waiting = set(running)
            while waiting:
                ready, waiting = wait(waiting, timeout=_LOOK)
                for future in ready:
                    name = running.pop(future)
                    count.close(name)
                    if found := future.result():
                        findings[name] = found
                progress(*count.now())
        finally:
            # Also where the caller's thread is interrupted: the others end with the piece that they read.
            ended.set()
    # An unmounted NAS looks like a store from which everything was collected.
    root.require_marker()
    missing = (set(serves) if wanted is None else wanted) - set(todo)
    missing |= {name for name in serves.keys() & set(todo) if not os.path.lexists(root.closure(name))}
    return Report(
        findings=dict(sorted(findings.items())),
        missing={name: serves.get(name, ()) for name in sorted(missing)},
        closures=len(todo),
        files=seen.files,
        bytes_read=seen.bytes_read,
        seconds=time.monotonic() - started,
        stopped=stop(),
    )


class _Count:
    """How many paths of a run are done, and how many there are. Safe for threads."""

    def __init__(self, root: Root, names: Sequence[str]) -> None:
        self._lock = threading.Lock()
        self._done = 0
        self._total = 0
        self._open: dict[str, list[int]] = {}
        """Of each closure that is not finished: paths done, paths in all."""
        for name in names:
            guess = 0
            with contextlib.suppress(OSError):
                guess = os.lstat(root.closure(name) / MANIFEST).st_size // _LINE
            self._open[name] = [0, guess]
            self._total += guess

    def of(self, name: str) -> Tell:
        """What a closure's check is to tell."""
        mine = self._open[name]

        def tell(settled: int, added: int) -> None:
            with self._lock:
                mine[0] += settled
                self._done += settled
                if added:
                    self._total += added - mine[1]
                    mine[1] = added

        return tell

    def close(self, name: str) -> None:
        """Counts a closure as done, whatever was found of it."""
        with self._lock:
            done, total = self._open.pop(name)
            self._done += total - done

    def now(self) -> tuple[int, int]:
        """Paths done and paths in all."""
        with self._lock:
            return self._done, self._total
