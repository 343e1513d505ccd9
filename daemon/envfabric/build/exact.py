"""The project that an environment is installed from: of each distribution the one file that its closure names.

A lock is read by us to know what a closure is, and by uv to install it. What uv gets is written here from the
closure, one wheel or source distribution for each and no condition, so that two readings of a lock can't differ:
uv proves each file by the closure's own hash. The generation keeps the lock as uv wrote it. Pure.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import tomlkit

from envfabric.build.closure import Closure, Distribution, origin_of
from envfabric.build.lockfile import Lock
from envfabric.build.sources import files_of
from envfabric.core.errors import Reason, SpecError
from envfabric.specs.toml import parse_toml

_NAME = "envfabric-environment"
_PYTHONS = ">=3.8"
"""The interpreter is named to uv: what else the lock would say of it is no condition here."""
_CHOOSING = frozenset(
    {
        "conflicts",
        "constraint-dependencies",
        "default-groups",
        "dev-dependencies",
        "dependency-groups",
        "environments",
        "exclude-dependencies",
        "managed",
        "override-dependencies",
        "package",
        "required-environments",
        "sources",
        "workspace",
    }
)
"""Keys of [tool.uv] that say which distributions there are. The others say how one is fetched and built."""


@dataclass(frozen=True, slots=True)
class Pin:
    """One distribution, and the only file of it that uv gets to see."""

    name: str
    version: str | None
    """None where a git repository says it only when it is built."""
    source: Mapping[str, Any]
    kind: str
    """'wheels' or 'sdist'; '' for a git repository."""
    file: Mapping[str, str]
    """Its 'url' where it has one of its own, and its 'hash' where that is known."""


@dataclass(frozen=True, slots=True)
class Exact:
    """A project of uv's by which nothing else than a closure can be installed."""

    pyproject: bytes
    lock: bytes
    registries: tuple[str, ...]
    """The addresses of the indexes that its files come from, sorted."""
    ours: tuple[str, ...]
    """Names of the distributions whose hash the closure's own lock does not have."""


def exact(pyproject: bytes, lock: Lock, closure: Closure, where: str) -> Exact:
    """What to install `closure` from. `pyproject` and `lock` are those it was resolved from; `where` names the lock.

    Raises `SpecError` where the lock is of other files than the closure.
    """
    pins, ours = [], []
    for one in closure.distributions:
        pin, known = _pin(lock, one, where)
        pins.append(pin)
        if not known:
            ours.append(one.name)
    return _project(pyproject, pins, tuple(ours))


def only(pyproject: bytes, lock: Lock, urls: Iterable[str]) -> Exact:
    """A project with these wheels of a lock and nothing else, and without hashes."""
    wanted = set(urls)
    pins = {
        str(wheel["url"]): Pin(
            one["name"], one["version"], one["source"], "wheels", {"url": str(wheel["url"])}
        )
        for one in lock.packages
        for wheel in one.get("wheels", [])
        if wheel.get("url") in wanted
    }
    return _project(pyproject, list(pins.values()), ())


def _pin(lock: Lock, one: Distribution, where: str) -> tuple[Pin, bool]:
    """A distribution's pin, and whether the lock itself has its hash."""
    bare: Pin | None = None
    for package in lock.versions(one.name, one.version):
        source = package["source"]
        # Equal files that come from an index and from an address leave different marks in an environment.
        if origin_of(source) != one.origin:
            continue
        if one.wheel == "git":
            return Pin(one.name, package.get("version"), source, "", {}), True
        for file in files_of(package):
            if str(file.get("url") or one.origin).split("#")[0].rsplit("/", 1)[-1] != one.wheel:
                continue
            kind = "sdist" if file is package.get("sdist") else "wheels"
            told = {"url": str(file["url"])} if "url" in file else {}
            pin = Pin(one.name, one.version, source, kind, {**told, "hash": one.hash})
            if file.get("hash") == one.hash:
                return pin, True
            # Where a lock forks over sources, the other fork's file is another one and has its own hash, or none.
            if bare is None and one.hashed and not str(file.get("hash", "")).startswith("sha"):
                bare = pin
    if bare is None:
        raise SpecError(
            Reason.VALIDATION,
            f"{where} names no {one.wheel} with {one.hash}, which the environment is to be made of. It is tried "
            "again when the spec changes.",
        )
    return bare, False


def _project(pyproject: bytes, pins: list[Pin], ours: tuple[str, ...]) -> Exact:
    name, taken = _NAME, {pin.name for pin in pins}
    while name in taken:
        # uv would take the project itself for that distribution.
        name += "-x"
    project = {"name": name, "version": "0", "requires-python": _PYTHONS}
    settings = parse_toml(pyproject, "pyproject.toml").get("tool", {}).get("uv", {})
    kept = {key: value for key, value in settings.items() if key not in _CHOOSING}
    lines = ["version = 1", f"requires-python = {_text(_PYTHONS)}"]
    for pin in pins:
        lines += ["", "[[package]]", f"name = {_text(pin.name)}"]
        if pin.version is not None:
            lines.append(f"version = {_text(pin.version)}")
        lines.append(f"source = {_inline(pin.source)}")
        if pin.kind:
            file = _inline(pin.file)
            lines.append(f"{pin.kind} = {file}" if pin.kind == "sdist" else f"{pin.kind} = [{file}]")
    lines += ["", "[[package]]", f"name = {_text(name)}", 'version = "0"', 'source = { virtual = "." }']
    lines += ["dependencies = [", *(f"    {{ name = {_text(pin.name)} }}," for pin in pins), "]", ""]
    registries = {str(pin.source["registry"]) for pin in pins if "registry" in pin.source}
    document = {"project": project, **({"tool": {"uv": kept}} if kept else {})}
    return Exact(tomlkit.dumps(document).encode(), "\n".join(lines).encode(), tuple(sorted(registries)), ours)


def _inline(values: Mapping[str, Any]) -> str:
    return "{ " + ", ".join(f"{key} = {_text(str(value))}" for key, value in values.items()) + " }"


def _text(value: str) -> str:
    """A text of TOML, which knows no DEL as it is; it has JSON's other escapes."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
