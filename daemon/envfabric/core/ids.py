"""Spec ids: `<workflow>/<node>`, and which names are allowed to be part of one.

An id becomes a folder name on the NAS, a git path and a word on a command line, so the
alphabet is small and nothing in it can climb out of a folder.
"""

import re

ID_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""What each of the two parts must match as a whole."""

MAX_PART = 100
"""Longest part in characters: with suffixes it stays far below a file name's 255 bytes."""

ALLOWED = "letters, digits, '.', '_' and '-', beginning with a letter or digit, at most 100 characters"


def part_is_valid(part: str) -> bool:
    """Whether `part` may be a workflow's or a node's name."""
    return len(part) <= MAX_PART and ID_PART.fullmatch(part) is not None


def is_id(text: str) -> bool:
    """Whether `text` is a well-formed spec id."""
    parts = text.split("/")
    return len(parts) == 2 and all(part_is_valid(part) for part in parts)


def shown(text: str, limit: int = 120) -> str:
    """`text` made fit for a message: control characters escaped, long text cut."""
    safe = text.encode("unicode_escape").decode("ascii") if not text.isprintable() else text
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"
