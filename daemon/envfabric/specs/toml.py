"""Reads TOML that people committed, within bounds, and finds the line that an error is about.

tomllib reads: it is several times faster than the library that keeps a file's style, which only
writing needs. Long files it reads in a process of its own.
"""

import re
import tomllib
from typing import Any

from envfabric.core.errors import Reason, SpecError, redact
from envfabric.specs.apart import parse_apart

MAX_BYTES = {"pyproject.toml": 256 * 1024, "uv.lock": 4 * 1024 * 1024, ".python-version": 4096}
"""Longest accepted file, by name, in bytes. The lock of Airflow with all of its 100 providers has 3.3 million."""

_APART = 256 * 1024
"""Bytes above which a file is read in a process of its own: a second at the worst."""

MAX_DEPTH = 32
"""Most tables and lists inside of each other; a spec needs six."""

MAX_KEY_PARTS = 64
"""Most parts of a dotted key: tomllib takes memory with the square of their number."""

_PART = rb"""(?>[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')"""
_LONG_KEY = re.compile(rb"(?m)(?:^|[\[{,])[ \t]*(?:%b[ \t]*\.[ \t]*){%d}" % (_PART, MAX_KEY_PARTS))
_HEADER = re.compile(r"\[+([^\[\]]+)\]")
_KEY = re.compile(r"([A-Za-z0-9_.\"'-]{1,1000})[ \t]{0,100}=")


def parse_toml(raw: bytes, where: str) -> dict[str, Any]:
    """The document. `where` is the file's path below the spec directory.

    Raises `SpecError` (invalid-spec) that names the line where the text breaks off.
    """
    limit = MAX_BYTES[where.rsplit("/", 1)[-1]]
    if len(raw) > limit:
        raise SpecError(Reason.INVALID_SPEC, f"{where} has {len(raw)} bytes; at most {limit} are read.")
    if long := _LONG_KEY.search(raw):
        line = raw.count(b"\n", 0, long.start()) + 1
        raise SpecError(
            Reason.INVALID_SPEC, f"{where}:{line}: a key of more than {MAX_KEY_PARTS} parts is not read."
        )
    try:
        text = raw.decode("utf-8")
        return tomllib.loads(text) if len(raw) <= _APART else parse_apart(raw)
    except UnicodeDecodeError as error:
        raise SpecError(Reason.INVALID_SPEC, f"{where} is not UTF-8: {error.reason}.") from None
    except tomllib.TOMLDecodeError as error:
        match = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
        place = f"{where}:{match[1]}" if match else where
        text = re.sub(r"\s*\(at .*\)$", "", str(error))
        raise SpecError(Reason.INVALID_SPEC, f"{place}: not valid TOML: {text}.") from None
    except ValueError as error:
        raise SpecError(Reason.INVALID_SPEC, f"{where}: {error}.") from None
    except RecursionError:
        raise SpecError(Reason.INVALID_SPEC, f"{where}: nested too deeply.") from None


def check_depth(document: dict[str, Any]) -> None:
    """Raises `SpecError` where values lie deeper inside of each other than `MAX_DEPTH`."""
    level: list[Any] = [document]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for one in level
            for inner in (one.values() if isinstance(one, dict) else one)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise SpecError(
        Reason.INVALID_SPEC, f"tables and lists are nested too deeply; at most {MAX_DEPTH} levels are read."
    )


def line_of(raw: bytes, message: str) -> int | None:
    """The line of what a message is about: the key that it begins with, else the text that it quotes."""
    lines = raw.decode("utf-8", "replace").split("\n")
    key = re.match(r"\[?((?:project|tool|dependency-groups)[.A-Za-z0-9_-]*)", message)
    found = _line_of_key(lines, key[1].rstrip(".")) if key else None
    if found is None and (quoted := re.search(r"'([^']+)'", message)):
        text = quoted[1]
        # As a value first: a short text stands in many lines. A password is starred out in the message only.
        for sought in (f'"{text}"', f"'{text}'", text):
            for number, line in enumerate(lines, 1):
                if found is None and (sought in line or ("***" in text and sought in redact(line))):
                    found = number
    return found


def _line_of_key(lines: list[str], wanted: str) -> int | None:
    """The line that defines most of a dotted key, its table's header where nothing closer is written."""
    table = ""
    best: tuple[int, int] | None = None
    for number, line in enumerate(map(str.strip, lines), 1):
        if header := _HEADER.match(line):
            table = path = header[1].strip().replace('"', "")
        elif key := _KEY.match(line):
            path = f"{table}.{key[1]}".lstrip(".").replace('"', "")
        else:
            continue
        if f"{wanted}.".startswith(f"{path}.") and (best is None or len(path) > best[0]):
            best = (len(path), number)
    return best[1] if best else None
