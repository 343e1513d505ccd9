"""Bounds on requirements and their markers, before uv works with them.

uv keeps markers as decision diagrams, which double with each independent comparison in the worst case: one spec of a
few hundred bytes took 54 s and 7 GB. Conflicts between extras and groups multiply in the same way. What is bounded is
counted over the whole spec, because uv joins the markers of all its requirements. Pure.
"""

import re
from collections.abc import Mapping
from typing import Any

from packaging.markers import InvalidMarker, Marker

from envfabric.core.errors import Reason, SpecError
from envfabric.core.ids import shown

MAX_REQUIREMENTS = 2000
"""Most requirements of one spec, in all its lists together."""
MAX_LENGTH = 4000
"""Longest requirement or marker, in characters."""
MAX_COMPARISONS = 20
"""Most different comparisons of one spec's markers, those of Python's version aside: 32 took uv minutes."""
MAX_PYTHONS = 24
"""Most different comparisons with Python's version: they lie on one line, and multiply less."""
MAX_CONFLICTS = 256
"""Most ways to choose one of each set of conflicts: uv resolves for each."""
MAX_ENVIRONMENTS = 16
"""Most entries of `environments` and of `required-environments`: uv resolves for each."""
_MAX_BRACKETS = 50

_PYTHON = re.compile(r'python(_full)?_version (<|<=|==|!=|>=|>|~=|===) "[0-9.*a-z]+"')


class Tally:
    """What one spec's requirements come to together."""

    def __init__(self) -> None:
        self._requirements = 0
        self._pythons: set[str] = set()
        self._others: set[str] = set()

    def text(self, text: str, where: str) -> None:
        """Counts one requirement, before it is parsed. Raises `SpecError`."""
        self._requirements += 1
        if self._requirements > MAX_REQUIREMENTS:
            raise SpecError(
                Reason.INVALID_SPEC,
                f"{where}: a spec may have {MAX_REQUIREMENTS} requirements in all its lists together, and this one "
                "has more; split it.",
            )
        check_length(text, where)

    def marker(self, marker: Marker, where: str) -> None:
        """Counts the comparisons of one marker. Raises `SpecError`."""
        for piece in re.split(r"\b(?:and|or)\b", str(marker)):
            comparison = piece.strip("() ")
            (self._pythons if _PYTHON.fullmatch(comparison) else self._others).add(comparison)
        if len(self._others) > MAX_COMPARISONS or len(self._pythons) > MAX_PYTHONS:
            raise SpecError(
                Reason.INVALID_SPEC,
                f"{where}: the markers of a spec may make {MAX_COMPARISONS} different comparisons, and "
                f"{MAX_PYTHONS} with Python's version; this one makes more. Fewer markers do, where the environments "
                "are built for one platform.",
            )


def check_length(text: str, where: str) -> None:
    """Raises `SpecError` for a requirement or marker that is too long, or too deep for uv's own stack."""
    if len(text) > MAX_LENGTH or text.count("(") > _MAX_BRACKETS:
        raise SpecError(
            Reason.INVALID_SPEC,
            f"{where}: {shown(text, 60)!r} is too long; at most {MAX_LENGTH} characters and {_MAX_BRACKETS} opening "
            "brackets are read.",
        )


def check_forks(table: Mapping[str, Any], tally: Tally) -> None:
    """Bounds what makes uv resolve more than once: environments and conflicts. Raises `SpecError`."""
    for key in ("environments", "required-environments"):
        where, told = f"tool.uv.{key}", table.get(key, [])
        texts = [told] if isinstance(told, str) else told
        if not isinstance(texts, list) or len(texts) > MAX_ENVIRONMENTS:
            raise SpecError(
                Reason.INVALID_SPEC, f"{where} must be a list of at most {MAX_ENVIRONMENTS} markers."
            )
        for text in texts:
            check_marker(text, where, tally)
    conflicts, ways = table.get("conflicts", []), 1
    for one in conflicts if isinstance(conflicts, list) else [conflicts]:
        if not isinstance(one, list):
            raise SpecError(Reason.INVALID_SPEC, "tool.uv.conflicts must be a list of lists")
        ways *= max(len(one), 1)
        if ways > MAX_CONFLICTS:
            raise SpecError(
                Reason.INVALID_SPEC,
                f"tool.uv.conflicts leaves more than {MAX_CONFLICTS} combinations, and uv would resolve for each; "
                "split the spec.",
            )


def check_marker(text: Any, where: str, tally: Tally) -> None:
    """Parses and counts one marker. Raises `SpecError`."""
    if not isinstance(text, str):
        raise SpecError(Reason.INVALID_SPEC, f"{where}: {shown(repr(text))} must be a string")
    check_length(text, where)
    try:
        marker = Marker(text)
    except InvalidMarker as error:
        reason = str(error).splitlines()[0]
        raise SpecError(
            Reason.INVALID_SPEC, f"{where}: {shown(text)!r} is no marker: {shown(reason)}"
        ) from None
    tally.marker(marker, where)
