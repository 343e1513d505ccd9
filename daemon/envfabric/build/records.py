"""What a wheel's RECORD says of its files, against what was installed of it.

uv's cache shares its files with every environment by hardlink, so a write into any of them damages the
cache, and uv goes on installing from it without a look. Each build's hashes are compared with the RECORDs
therefore. Reads the environment's RECORD files, and changes nothing.
"""

import base64
import csv
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import canonicalize_name

_SHA256 = "sha256="
# Some packages carry others with their .dist-info along, in a folder of their own: those were never installed.
_INSTALLED = re.compile(r"\.venv/lib/python[^/]+/site-packages/[^/]+\.dist-info/RECORD")
_LIB64 = ".venv/lib64/"
_REMEMBERED = 60_000
"""Lines that are kept in memory: about 20 MB."""
_UNFINISHED = re.compile(r".*/\.tmp[A-Za-z0-9]{6}")
"""What uv calls a file of its cache that it copies anew at the link limit, beside the one that it replaces."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A file that is not what its distribution's RECORD says."""

    distribution: str
    """Normalised name."""
    path: str
    """Relative to the environment."""
    found: str
    """The SHA-256 of what is there, in hexadecimal; '' where nothing is."""

    def told(self) -> dict[str, str]:
        """As it stands in metadata.json."""
        return {"distribution": self.distribution, "path": self.path}


class Records:
    """What RECORDs say, remembered by their content: the same wheels are installed again and again.

    Safe for threads.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], list[tuple[str, str]]] = {}
        self._lines = 0

    def mismatches(self, closure: Path, digests: Mapping[str, str]) -> list[Mismatch]:
        """The files of the environment in `closure` that differ from their RECORD, or are missing.

        `digests` are those of the inventory, taken just now. A RECORD's lines without a SHA-256, and those that
        lead out of the environment, are passed over. Raises `OSError`.
        """
        records = [path for path in digests if path.endswith("/RECORD") and _INSTALLED.fullmatch(path)]
        found = []
        for record in sorted(records):
            name = distribution_of(posixpath.dirname(record))
            for path, wanted in self._lines_of(closure, record, digests[record]):
                actual = digests.get(path, "")
                if actual != wanted:
                    found.append(Mismatch(name, path.removeprefix(".venv/"), actual))
        return found

    def _lines_of(self, closure: Path, record: str, digest: str) -> list[tuple[str, str]]:
        """Path in the closure and SHA-256 of each line of a RECORD whose own SHA-256 is `digest`."""
        key = record, digest
        lines = self._known.get(key)
        if lines is None:
            site = posixpath.dirname(posixpath.dirname(record))
            lines = list(_checked(site, _lines(closure / record)))
            if self._lines + len(lines) > _REMEMBERED:
                self._known, self._lines = {}, 0
            self._known[key] = lines
            self._lines += len(lines)
        return lines


def _checked(site: str, lines: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    for relative, wanted in lines:
        path = f"{site}/{relative}"
        if "./" in relative or "//" in relative:
            path = posixpath.normpath(path)
        if not path.startswith(".venv/") or relative.startswith("/"):
            continue
        if path.startswith(_LIB64):
            # A symlink to lib in each environment; files are listed by the folder that they lie in.
            path = f".venv/lib/{path.removeprefix(_LIB64)}"
        yield path, wanted


def strays(closure: Path, paths: Iterable[str]) -> list[str]:
    """Those of `paths` (relative to the environment) that are unfinished files of uv's cache, and no wheel's.

    A build that links a wheel's folder while another uv process renews a file in it gets these along.
    """
    named = {path for path in paths if "/.tmp" in path and _UNFINISHED.fullmatch(path)}
    return sorted(named - owners(closure, named).keys()) if named else []


def owners(closure: Path, paths: Iterable[str]) -> dict[str, str]:
    """Which distribution claims a path of the environment (relative to it), by path, as far as one does."""
    wanted = set(paths)
    found: dict[str, str] = {}
    for record in sorted((closure / ".venv").glob("lib/python*/site-packages/*.dist-info/RECORD")):
        site = posixpath.relpath(record.parent.parent, closure / ".venv")
        for relative, _ in rows(record):
            path = posixpath.normpath(f"{site}/{relative}")
            if path in wanted:
                found.setdefault(path, distribution_of(str(record.parent)))
    return found


def distribution_of(info: str) -> str:
    """The normalised name of the distribution whose .dist-info folder is `info`."""
    return canonicalize_name(posixpath.basename(info).removesuffix(".dist-info").rpartition("-")[0])


def _lines(record: Path) -> Iterator[tuple[str, str]]:
    """Path and SHA-256 in hexadecimal of each line that has one; one that can't be read fits nothing."""
    for relative, digest in rows(record):
        if digest.startswith(_SHA256):
            text = digest.removeprefix(_SHA256)
            try:
                yield relative, base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).hex()
            except ValueError:
                yield relative, "unreadable"


def rows(record: Path) -> Iterator[tuple[str, str]]:
    """Path and hash of each line of a RECORD, as they stand there. Raises `OSError`."""
    with record.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file)
        while True:
            try:
                row = next(rows, None)
            except csv.Error:
                # A line that is no CSV says nothing of any file.
                continue
            if row is None:
                return
            if len(row) >= 2:
                yield row[0], row[1]
