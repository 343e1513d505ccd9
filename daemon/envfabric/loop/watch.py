"""Notices that the repository's refs may have moved. Says only that a look is worth it.

inotify sees no change made on another host and drops events when its queue overflows, so the loop
looks by itself as well; a watch that ends is begun again at the next look.
"""

import threading
from collections.abc import Callable
from pathlib import Path

import watchfiles

_INTERESTING = ("HEAD", "packed-refs")


class RefWatch:
    """Watches a repository's folders in threads of its own and calls `moved` after each change."""

    def __init__(self, deep: list[Path], flat: list[Path], moved: Callable[[], None]) -> None:
        self._sets = [(deep, True), (flat, False)]
        self._moved = moved
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def ensure(self) -> None:
        """Begins watching, or begins again what has ended, as when refs/ was removed and made anew."""
        self._threads = [one for one in self._threads if one.is_alive()]
        running = {one.name for one in self._threads}
        for paths, recursive in self._sets:
            name = "watch-refs" if recursive else "watch-head"
            present = [path for path in paths if path.is_dir()]
            if present and name not in running and not self._stop.is_set():
                thread = threading.Thread(
                    target=self._watch, args=(present, recursive), name=name, daemon=True
                )
                thread.start()
                self._threads.append(thread)

    def close(self) -> None:
        """Ends the threads."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=5)

    def _watch(self, paths: list[Path], recursive: bool) -> None:
        def matters(_: watchfiles.Change, path: str) -> bool:
            # git writes <ref>.lock and renames it; the default filter would leave .git out as a whole.
            return not path.endswith(".lock") and (recursive or Path(path).name in _INTERESTING)

        try:
            changes = watchfiles.watch(
                *paths,
                watch_filter=matters,
                debounce=50,
                step=20,
                rust_timeout=500,
                yield_on_timeout=True,
                stop_event=self._stop,
                recursive=recursive,
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
