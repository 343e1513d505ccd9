"""Names for the steps at which a daemon can be killed: what is done, and to what kind of path.

A kind has no digest, number or random name in it, so that the same step of two builds is one row of the
report. Standard library only: the victim loads this before anything else. Touches no file.
"""

import re
from pathlib import Path

_HEX = re.compile(r"[0-9a-f]{16,}")


def kind_of(root: Path, operation: str, path: Path) -> str:
    """The kind of a step of the file seam, such as `rename store/*`."""
    try:
        parts = path.relative_to(root).parts
    except ValueError:
        return f"{operation} outside ROOT"
    if not parts:
        return f"{operation} ROOT"
    if operation == "remove" and parts[0] == "staging" and len(parts) == 3 and _HEX.fullmatch(parts[1]):
        # One step whichever it is: which of them a killed daemon has left is chance.
        return "remove staging/<build>/<part>"
    return f"{operation} {_role(parts)}"


def run_kind(command: list[str]) -> str | None:
    """The kind of a moment of a process's running time, such as `uv sync runs`; None of those that write nothing."""
    program, *arguments = command
    if arguments[-3:-2] == ["compile"]:
        return "compiler runs"
    if Path(program).name != "uv" or "--version" in arguments:
        return None
    words = [one for one in arguments if not one.startswith("-")]
    asked = " ".join(words[:2] if words[:1] == ["cache"] else words[:1])
    dry = " --dry-run" if "--dry-run" in arguments else " --check" if "--check" in arguments else ""
    return f"uv {asked}{dry} runs"


def _role(parts: tuple[str, ...]) -> str:
    top, rest = parts[0], parts[1:]
    if any("probe" in one for one in parts):
        # The probe makes hundreds of links that nobody but it ever looks at.
        return f"{top}/ by the probe"
    if not rest:
        return top
    if top == "staging":
        return _staging(rest)
    if top in {"generations", "envs", "failures"}:
        names = ("<workflow>", "<node>", rest[-1] if rest[-1].startswith(".") else "<n>")
        return "/".join((top, *names[: len(rest)]))
    if top == "state":
        return "/".join((top, _HEX.sub("*", rest[0]), *("*" for _ in rest[1:2])))
    if top == "trash":
        return f"trash/{_trash(rest[0])}{'/…' if rest[1:] else ''}"
    if top == "bytecode":
        return f"bytecode/{'<folder>' if not rest[1:] else '*.bad' if rest[1].endswith('.bad') else '<compiled>'}"
    if top == "uv_cache":
        return f"uv_cache/…{path_suffix(rest[-1])}"
    name = _HEX.sub("*", rest[0])
    return f"{top}/{re.sub(r'[0-9]+', '<n>', name)}"


def _staging(rest: tuple[str, ...]) -> str:
    first = _HEX.sub("<build>", rest[0])
    if rest[0].startswith("generation-"):
        first = "<generation>"
    elif rest[0].startswith("."):
        # A file on its way to where it belongs.
        first = "<file>"
    if len(rest) == 1:
        return f"staging/{first}"
    if ".venv" in rest[1:-1] or (rest[-1] == ".venv" and first != "<generation>"):
        return f"staging/{first}/{rest[1]}/.venv"
    return "/".join(("staging", first, *(_HEX.sub("*", one) for one in rest[1:3])))


def _trash(name: str) -> str:
    if name.startswith("gone-"):
        return "gone-*"
    if name.startswith("uv-archive"):
        return "<wheel>"
    if name.startswith("cpython-"):
        return "<python>"
    return "<closure>" if _HEX.match(name) else "<generation>"


def path_suffix(name: str) -> str:
    """How a pointer of uv's cache ends."""
    return next((end for end in (".http", ".rev") if name.endswith(end)), "")
