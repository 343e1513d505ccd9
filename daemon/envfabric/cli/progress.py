"""A progress bar on a terminal; elsewhere the log lines tell how far things are."""

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from envfabric.service.daemon import Daemon

_SHOWN = 3


class Progress:
    """Shows how many specs of the revision are done, and what is being built now."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._bar: Bar | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            columns = (
                SpinnerColumn(),
                MofNCompleteColumn(),
                BarColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.description}"),
            )
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("", total=None)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def update(self) -> None:
        """Called by the loop in each round."""
        reconciler = self._daemon.reconciler
        if self._bar is None or reconciler is None:
            return
        counts = reconciler.board.counts()
        total = counts.total()
        phases = sorted(reconciler.work.phases.items())
        words = ", ".join(f"{spec_id} ({phase})" for spec_id, phase in phases[:_SHOWN])
        more = f" and {len(phases) - _SHOWN} more" if len(phases) > _SHOWN else ""
        done = total - counts["pending"] - counts["building"]
        self._bar.update(self._task, total=total or None, completed=done, description=words + more)
