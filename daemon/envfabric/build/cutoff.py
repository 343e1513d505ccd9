"""A moment after which nothing is taken that was uploaded, put on one resolution beside the spec's own.

uv writes into a lock which exclude-newer it was made under, and calls it stale under another: the lock that is
kept says what the spec's own pyproject.toml says, so that `uv lock --check` accepts it there. Works in a
folder of its own in staging.
"""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from envfabric.build.interpreters import Interpreter
from envfabric.build.limits import written
from envfabric.build.lockfile import cutoff_lines, with_cutoff
from envfabric.build.uv import Uv, failure
from envfabric.core.errors import Reason
from envfabric.store.closures import Staging
from envfabric.store.files import Files

_SPAN = re.compile(
    r'exclude-newer-span = "P(?:(\d+)Y)?(?:(\d+)M)?(?:(\d+)W)?(?:(\d+)D)?'
    r'(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)(?:\.\d+)?S)?)?"'
)
_MOMENT = re.compile(r'exclude-newer = "([^"]+)"')
_UNITS = (365 * 86400, 30 * 86400, 7 * 86400, 86400, 3600, 60, 1)
"""Seconds of a span's parts; uv itself refuses years and months, which have no one length."""


@dataclass(frozen=True, slots=True)
class Cutoff:
    """What one resolution runs under."""

    arguments: tuple[str, ...] = ()
    """uv's arguments; none where the spec's own exclude-newer is as early."""
    own: str = ""
    """What uv writes into a lock for the spec's own exclude-newer."""

    def kept(self, text: str) -> str:
        """The lock as it is kept: as if it had been made under the spec's own settings alone."""
        return with_cutoff(text, self.own) if self.arguments else text


def cutoff_for(
    moment: datetime | None, own: object, uv: Uv, files: Files, staging: Staging, python: Interpreter
) -> Cutoff:
    """How to resolve with nothing newer than `moment`, nor than a spec's own exclude-newer, if it has one.

    Raises `SpecError` where uv does not understand the spec's own.
    """
    if moment is None:
        return Cutoff()
    arguments = (f"--exclude-newer={written(moment)}",)
    if own is None:
        return Cutoff(arguments)
    # uv reads dates by the host's time zone, and spans: it is asked, without any index, what it makes of it.
    folder = staging.folder / "own-cutoff"
    files.make_folder(folder)
    lines = ["[project]", 'name = "envfabric-asking"', 'version = "0"', "[tool.uv]"]
    lines += [f"exclude-newer = {json.dumps(own)}", ""]
    files.write_new(folder / "pyproject.toml", "\n".join(lines).encode())
    finished = uv.run(["lock", "--python", python.path], cwd=folder, hold=staging.descriptor)
    if finished.code != 0:
        raise failure("reading tool.uv.exclude-newer", finished, Reason.INVALID_SPEC)
    told = cutoff_lines((folder / "uv.lock").read_text("utf-8"))
    earliest = _meant(told)
    if earliest is not None and earliest <= moment:
        return Cutoff(own=told)
    return Cutoff(arguments, told)


def _meant(told: str) -> datetime | None:
    if span := _SPAN.search(told):
        parts = zip(span.groups(), _UNITS, strict=True)
        return datetime.now(UTC) - timedelta(seconds=sum(int(part or 0) * unit for part, unit in parts))
    if moment := _MOMENT.search(told):
        return datetime.fromisoformat(moment[1])
    return None
