"""Validation as `minimal`: what was planned is what is there, and no package took part in saying so.

A wheel can put files anywhere in an environment (its .data folder), also over pyvenv.cfg or bin/python, and
would run with the rights of whoever starts the interpreter next. So nothing is started once packages are in,
and an environment in which what `uv venv` made, its skeleton, has changed is refused. Only reads.
"""

import hashlib
import os
import stat
from pathlib import Path

from packaging.utils import canonicalize_name, canonicalize_version

from envfabric.build.closure import Closure
from envfabric.build.interpreters import inspect
from envfabric.build.records import owners
from envfabric.core.errors import Reason, SpecError

Skeleton = dict[str, tuple[str, str]]
"""Kind ('d', 'f', 'l') and content (SHA-256, or a symlink's target) by path relative to the environment."""


def check_interpreter(closure: Closure) -> None:
    """The interpreter is the one that was planned. It is started before any package is there, never after.

    Raises `SpecError` (validation).
    """
    wanted = closure.interpreter
    # Without site: -I alone would still run .pth files.
    found = inspect(wanted.path)
    if found is None or (found.version, found.abi) != (wanted.version, wanted.abi):
        raise SpecError(
            Reason.VALIDATION,
            f"{wanted.path} does not start, or is no longer {wanted.version}; restart the daemon after an upgrade of "
            "Python.",
        )


def check_base(closure: Closure, venv: Path) -> None:
    """The new environment is made from the planned interpreter. Raises `SpecError` (validation)."""
    planned, base = closure.interpreter.path, os.readlink(venv / "bin" / "python")
    # By no other link than the planned one: what leads there today may lead elsewhere tomorrow.
    if base not in {planned, os.path.realpath(planned)}:
        raise SpecError(
            Reason.VALIDATION,
            f"uv made the environment from {base}, not from {closure.interpreter.path}. It is tried again when the "
            "spec changes.",
        )


def check_set(closure: Closure, venv: Path, said: str = "") -> None:
    """What was installed is what was planned; no package code is run. Raises `SpecError`, with what uv `said`."""
    installed = set()
    for info in venv.glob("lib/python*/site-packages/*.dist-info"):
        name, _, version = info.name.removesuffix(".dist-info").rpartition("-")
        installed.add((canonicalize_name(name), canonicalize_version(version)))
    planned = {(one.name, canonicalize_version(one.version)) for one in closure.distributions}
    if installed != planned:
        odd = sorted({name for name, _ in installed ^ planned})
        raise SpecError(
            Reason.VALIDATION,
            f"the environment differs from its lock in {', '.join(odd)}. It is tried again when the spec changes; "
            "report it if it stays.",
            said,
        )


def take_skeleton(venv: Path) -> Skeleton:
    """All that is in a new environment. Raises `OSError`."""
    found: Skeleton = {}
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        for name in os.listdir(venv / folder):
            path = f"{folder}{name}"
            found[path] = _look(venv / path)
            if found[path][0] == "d":
                waiting.append(f"{path}/")
    return found


def check_skeleton(closure: Path, before: Skeleton) -> None:
    """Raises `SpecError` (validation) where packages replaced a part of the skeleton, with whose they are."""
    changed = sorted(path for path, was in before.items() if _look(closure / ".venv" / path) != was)
    if changed:
        owner = owners(closure, changed)
        told = ", ".join(f"{path} ({owner.get(path, 'of no known distribution')})" for path in changed[:5])
        raise SpecError(
            Reason.VALIDATION,
            f"a package replaces files that the environment itself is made of: {told}. It could run code as the "
            "daemon; require another version or another package.",
        )


def _look(path: Path) -> tuple[str, str]:
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            return "l", os.readlink(path)
        if stat.S_ISREG(mode):
            return "f", hashlib.sha256(path.read_bytes()).hexdigest()
        return ("d" if stat.S_ISDIR(mode) else "other"), ""
    except (FileNotFoundError, NotADirectoryError):
        return "gone", ""
