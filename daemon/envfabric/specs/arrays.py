"""One TOML array of a pyproject.toml as text: requirements go in and out, every other byte stays as it was.

tomlkit keeps an array it did not touch, but lays out anew what it changes. Knows nothing of specs and of files.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

_SKIP = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_STRING = re.compile(r'"""(?:[^\\]|\\.)*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Element:
    """Where an element stands in an array's text."""

    start: int
    end: int
    comma: int | None
    """Where the comma behind it ends."""


def elements(text: str) -> list[Element]:
    """The elements of an array's text, brackets included. Raises `ValueError` where it is none."""
    found: list[Element] = []
    place = _skip(text, 1)
    while place < len(text) - 1:
        end = _end_of(text, place)
        behind = _skip(text, end)
        if text[behind] == ",":
            found.append(Element(place, end, behind + 1))
            behind = _skip(text, behind + 1)
        else:
            found.append(Element(place, end, None))
            if behind != len(text) - 1:
                raise ValueError("an array that can't be understood")
        place = behind
    return found


def replaced(text: str, number: int, value: str) -> str:
    """With another value for one element, in the quotes that it had."""
    old = elements(text)[number]
    return text[: old.start] + quoted(value, like=text[old.start]) + text[old.end :]


def inserted(text: str, number: int, value: str) -> str:
    """With a new element before the one of that number, on a line of its own where the array has lines."""
    found = elements(text)
    if not found:
        return _first(text, quoted(value))
    word = quoted(value, like=text[found[0].start])
    line_break = "\r\n" if "\r\n" in text else "\n"
    if "\n" not in text:
        if number == 0:
            return f"{text[: found[0].start]}{word}, {text[found[0].start :]}"
        before = found[number - 1]
        if before.comma is None or number == len(found):
            # Behind the last: a trailing comma there was stays the last.
            tail = text[before.end :]
            return f"{text[: before.end]}, {word}{tail}"
        return f"{text[: before.comma]} {word},{text[before.comma :]}"
    indent = _indent(text, found)
    if number == 0:
        # Right behind the bracket's line: comments above the first element stay with it.
        place = text.find("\n", 0, found[0].start)
        if place < 0:
            return f"{text[: found[0].start]}{word}, {text[found[0].start :]}"
        return f"{text[: place + 1]}{indent}{word},{line_break}{text[place + 1 :]}"
    before = found[number - 1]
    if before.comma is None:
        text = f"{text[: before.end]},{text[before.end :]}"
    behind = before.comma or before.end + 1
    if number < len(found) and "\n" not in text[behind : found[number].start]:
        return f"{text[:behind]} {word},{text[behind:]}"
    place = text.find("\n", behind)
    if place < 0:
        return f"{text[:behind]} {word}{text[behind:]}"
    return f"{text[: place + 1]}{indent}{word},{line_break}{text[place + 1 :]}"


def removed(text: str, number: int) -> str:
    """Without one element, and without its line, with the comment at its end, where it has one of its own."""
    found = elements(text)
    one = found[number]
    behind = one.comma or one.end
    start, end = text.rfind("\n", 0, one.start), text.find("\n", behind)
    if start >= 0 and end >= 0:
        rest = text[behind:end].strip()
        if not text[start : one.start].strip() and (not rest or rest.startswith("#")):
            return text[: start + 1] + text[end + 1 :]
    if one.comma is not None and number + 1 < len(found):
        after = re.compile(r"[ \t]*").match(text, behind)
        rest = text[after.end() if after else behind :]
        # No space is left at a line's end.
        kept = text[: one.start].rstrip(" \t") if rest[:1] in "\r\n" else text[: one.start]
        return kept + rest
    if number > 0:
        # The last one: the comma before it goes, and one behind it stays.
        return text[: found[number - 1].end] + text[one.end :]
    return text[: one.start] + text[behind:].lstrip(" \t")


def sorted_place(names: list[str], new: str, key: Callable[[str], str]) -> int:
    """Where a new one belongs: by the order where they have one, else behind the last."""
    keys = [key(one) for one in names]
    if keys != sorted(keys):
        return len(names)
    return next((number for number, one in enumerate(keys) if one > key(new)), len(names))


def quoted(value: str, like: str = '"') -> str:
    """A TOML string, in the quotes of `like` where they can hold it."""
    if like == "'" and "'" not in value and value.isprintable():
        return f"'{value}'"
    if '"' in value and "'" not in value and value.isprintable():
        return f"'{value}'"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(one if one.isprintable() else f"\\U{ord(one):08x}" for one in escaped) + '"'


def _first(text: str, word: str) -> str:
    inner = text[1:-1]
    if "\n" not in inner:
        return f"[{word}]"
    # Nothing but comments and space in it: the last line is the closing bracket's.
    place = text.rfind("\n")
    line_break = "\r\n" if "\r\n" in text else "\n"
    return f"{text[: place + 1]}    {word},{line_break}{text[place + 1 :]}"


def _indent(text: str, found: list[Element]) -> str:
    for one in found:
        start = text.rfind("\n", 0, one.start)
        if start >= 0 and not text[start + 1 : one.start].strip():
            return text[start + 1 : one.start]
    return "    "


def _skip(text: str, place: int) -> int:
    match = _SKIP.match(text, place)
    return match.end() if match else place


def _end_of(text: str, place: int) -> int:
    match = _STRING.match(text, place)
    if match:
        return match.end()
    # A table such as { include-group = "x" }, or a value that is no requirement.
    depth = 0
    while place < len(text):
        if match := _STRING.match(text, place):
            place = match.end()
            continue
        if text[place] in "[{":
            depth += 1
        elif text[place] in "]}":
            if depth == 0:
                return place
            depth -= 1
        elif text[place] in ",\n#" and depth == 0:
            return place
        place += 1
    raise ValueError("an array that does not end")
