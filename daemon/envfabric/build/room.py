"""How much one uv process may write, and how much room it has to leave on ROOT: watched while it runs.

A wheel of a megabyte can unfold to all that ROOT has, and uv unpacks it before anybody can look. What a process wrote
is asked of the kernel, which costs ROOT nothing; the free space of ROOT is asked in a thread of its own, so that a
NAS that hangs holds nobody up. Ends the process only, by way of who started it; removes nothing.
"""

import contextlib
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from envfabric.core.errors import Reason, SpecError

_LOOK = 0.05
"""Seconds between two looks at what was written."""
_STEP = 32 * 1024**2
"""Bytes that are written between two questions for the free space."""
_LEFT, _SHARE = 256 * 1024**2, 100
"""Bytes that stay free for the index, the generations and other builds; of a small ROOT its hundredth part."""
_TIMES = 2
"""How often a process may write what an environment may take: where no links can be made it copies what it unpacked."""
_OWN = 64 * 1024**2
"""Bytes that uv may write besides: what indexes answered, and locks."""


class Room:
    """The bounds of one process."""

    def __init__(self, folder: Path, most: int | None) -> None:
        """`folder` is on ROOT; `most` is what the environment may take in bytes, None for no bound."""
        self._folder = folder
        self._most = most
        self.passed: tuple[Reason, str] | None = None
        """Which bound the process was ended at, and what to say of it."""

    @contextlib.contextmanager
    def watching(self, pid: int, end: Callable[[], None]) -> Iterator[None]:
        """Watches the process while the block runs; `end` kills it, and belongs to any thread."""
        if self._most is not None:
            with contextlib.suppress(OSError):
                # No single file grows further, however fast it is written; without a core beside it.
                most = self._most + _OWN
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, most))
                resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
        over = threading.Event()
        threading.Thread(target=self._watch, args=(pid, end, over), name="room", daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def judge(self, code: int, doing: str, output: str) -> None:
        """Raises `SpecError` (policy, no-space) where the process ended, with `code`, at one of its bounds."""
        if self.passed is None and code == -signal.SIGXFSZ:
            self._too_much()
        if self.passed is not None:
            reason, told = self.passed
            raise SpecError(reason, f"{doing} was ended: {told}", output)

    def _watch(self, pid: int, end: Callable[[], None], over: threading.Event) -> None:
        asked = 0
        while not over.wait(_LOOK):
            wrote = _written(pid)
            if self._most is not None and wrote > _TIMES * self._most + _OWN:
                self._too_much()
            elif wrote - asked > _STEP:
                asked = wrote
                self._ask_for_space()
            # It may have ended meanwhile, by itself: what it did is too much all the same.
            if self.passed is not None and not over.is_set():
                end()
                return

    def _too_much(self) -> None:
        self.passed = (
            Reason.POLICY,
            f"it unpacks more than the {self._most} bytes that are allowed. Require less, or have policy.max_bytes "
            "raised in the daemon's settings.",
        )

    def _ask_for_space(self) -> None:
        with contextlib.suppress(OSError):
            found = os.statvfs(self._folder)
            free, least = found.f_bavail, min(_LEFT // found.f_frsize, found.f_blocks // _SHARE)
            if free < least:
                self.passed = (
                    Reason.NO_SPACE,
                    f"{free * found.f_frsize} bytes are free on the NAS, and {least * found.f_frsize} have to stay. "
                    "Free space; it is tried again by itself.",
                )


def _written(pid: int) -> int:
    """Bytes that a process, and those of its children that ended, gave to the kernel; 0 where that is not told."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/io").read_text().splitlines():
            if line.startswith("wchar:"):
                return int(line.split()[1])
    return 0
