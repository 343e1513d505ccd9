"""The committed files of specs, read ahead: the loop asks git once for those whose turn comes next, not once for each.

Each answer of git is waited for in the loop's thread, which gets its turn back late while others compute. May read
the repository only; what a spec's files say is not looked at.
"""

from collections.abc import Iterable, Mapping
from itertools import chain, islice

from envfabric.core.errors import Reason, SpecError
from envfabric.specs.repository import Repository
from envfabric.specs.toml import MAX_BYTES
from envfabric.specs.tree import SpecRef

AHEAD = 64
"""Specs whose files are read ahead at a time."""
AHEAD_BYTES = 1 << 20
"""Bytes that these may have together; larger files are read when their turn comes."""
AHEAD_MORE = 2
"""How many times as many specs as came the last time are asked for, where not all came."""


class Reading:
    """The files of one repository's specs. Belongs to the loop's thread, as the repository does."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._ahead: dict[str, bytes] = {}
        self._most = AHEAD

    def files(self, ref: SpecRef, upcoming: Iterable[SpecRef]) -> Mapping[str, bytes]:
        """A spec's files by name; `upcoming` are those that will be asked for next.

        Raises `SpecError` for a file that is too long, and `SourceError`.
        """
        if ref.refused is not None:
            return {}
        if any(oid not in self._ahead for _, oid in ref.blobs):
            others = [other.blobs for other in islice(upcoming, self._most) if other.refused is None]
            blobs = chain(ref.blobs, *others)
            self._ahead = self._repository.read_many((oid for _, oid in blobs), AHEAD_BYTES)
            came = sum(all(oid in self._ahead for _, oid in one) for one in others)
            # Git is asked for the size of each: where the files are large, few fit, and the others' were for nothing.
            self._most = min(AHEAD, AHEAD_MORE * (came + 1 if came < len(others) else self._most))
        return {name: self._file(ref, name, oid) for name, oid in ref.blobs}

    def forget(self) -> None:
        """Nothing is upcoming any more."""
        self._ahead = {}

    def _file(self, ref: SpecRef, name: str, oid: str) -> bytes:
        known = self._ahead.get(oid)
        size = self._repository.size(oid) if known is None else len(known)
        if size > MAX_BYTES[name]:
            raise SpecError(
                Reason.INVALID_SPEC, f"{ref.id}/{name} has {size} bytes; at most {MAX_BYTES[name]} are read."
            )
        return self._repository.read(oid) if known is None else known
