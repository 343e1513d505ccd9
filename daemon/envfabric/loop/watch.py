"""Notices that the repository's refs may have moved. Says only that a look is worth it.

inotify sees no change made on another host and drops events when its queue overflows, so the loop
looks by itself as well; a watch that ends is begun again at the next look.
"""

import contextlib
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import watchfiles

_INTERESTING = ("HEAD", "packed-refs")


class RefWatch:
    """Watches a repository's folders in threads of its own and calls `moved` after each change."""

    def __init__(self, deep: list[Path], flat: list[Path], moved: Callable[[], None]) -> None:
        self._sets = [(deep, True), (flat, False)]
        self._moved = moved
        self._watches: dict[bool, _Watch] = {}

    def ensure(self) -> None:
        """Begins watching, and begins again where a watch has ended or its folders are others by now."""
        for paths, deep in self._sets:
            folders = _identities(paths)
            watch = self._watches.get(deep)
            if watch is not None and watch.thread.is_alive() and watch.folders == folders:
                continue
            if watch is not None:
                watch.stop.set()
                del self._watches[deep]
            if folders:
                self._watches[deep] = self._begin(folders, deep)

    def close(self) -> None:
        """Ends the threads."""
        for watch in self._watches.values():
            watch.stop.set()
        for watch in self._watches.values():
            watch.thread.join(timeout=5)

    def _begin(self, folders: dict[Path, tuple[int, int]], deep: bool) -> "_Watch":
        stop = threading.Event()
        arguments = (list(folders), deep, stop)
        thread = threading.Thread(target=self._watch, args=arguments, name="watch", daemon=True)
        thread.start()
        return _Watch(folders, thread, stop)

    def _watch(self, paths: list[Path], deep: bool, stop: threading.Event) -> None:
        def matters(_: watchfiles.Change, path: str) -> bool:
            # git writes <ref>.lock and renames it; the default filter would leave .git out as a whole.
            return not path.endswith(".lock") and (deep or Path(path).name in _INTERESTING)

        try:
            changes = watchfiles.watch(
                *paths,
                watch_filter=matters,
                debounce=50,
                step=20,
                rust_timeout=500,
                yield_on_timeout=True,
                stop_event=stop,
                recursive=deep,
                raise_interrupt=False,
            )
            live = False
            for found in changes:
                # What moved before the watch was set up is found by a look once it is.
                if found or not live:
                    self._moved()
                live = True
        except (OSError, RuntimeError):
            # The folder went away or inotify has no room: the periodic look goes on alone.
            return


@dataclass(frozen=True, slots=True)
class _Watch:
    folders: dict[Path, tuple[int, int]]
    thread: threading.Thread
    stop: threading.Event


def _identities(paths: list[Path]) -> dict[Path, tuple[int, int]]:
    """Device and inode of each folder that there is: one of the same name can be another folder."""
    found = {}
    for path in paths:
        with contextlib.suppress(OSError):
            status = path.stat()
            if stat.S_ISDIR(status.st_mode):
                found[path] = (status.st_dev, status.st_ino)
    return found
