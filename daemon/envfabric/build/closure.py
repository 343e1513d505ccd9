"""A closure's identity: what decides what gets installed, and the digest over it.

Covered: each distribution that applies here with the hash of the wheel that uv takes, the exact
interpreter, platform and libc. Not covered: the project's name, order, bounds, and packages that
are locked for other platforms.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from packaging.markers import InvalidMarker, Marker
from packaging.tags import Tag, compatible_tags, cpython_tags, platform_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import Version

from envfabric.build.interpreters import Interpreter
from envfabric.build.lockfile import Lock
from envfabric.core.errors import Reason, SpecError

DIGEST_CHARACTERS = 40
"""Length of a digest's name: 160 bits, short enough for shebang lines and prompts."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """One distribution of a closure and the wheel it comes from."""

    name: str
    version: str
    wheel: str
    hash: str
    """'sha256:…', or the wheel's URL where the index gave no hash."""


@dataclass(frozen=True, slots=True)
class Closure:
    """A resolved request: what will be installed, into which interpreter."""

    interpreter: Interpreter
    distributions: tuple[Distribution, ...]

    @property
    def inputs(self) -> dict[str, Any]:
        """All that the digest covers, as it is written in metadata.json."""
        python = self.interpreter
        return {
            "schema": 1,
            "interpreter": {
                "path": python.path,
                "version": python.version,
                "implementation": python.implementation,
                "abi": python.abi,
            },
            "platform": python.platform,
            "libc": python.libc,
            "distributions": [
                {"name": one.name, "version": one.version, "wheel": one.wheel, "hash": one.hash}
                for one in self.distributions
            ],
        }

    @property
    def digest(self) -> str:
        """The closure's name in the store."""
        text = json.dumps(self.inputs, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_CHARACTERS]

    def version_of(self, name: str) -> str | None:
        """The version of a distribution, or None where the closure has none."""
        return next((one.version for one in self.distributions if one.name == name), None)


def make_closure(applying: Iterable[tuple[str, str]], lock: Lock, python: Interpreter) -> Closure:
    """The closure of the distributions that uv says apply here, as (name, version).

    Raises `SpecError` (policy) for one that has no wheel for this interpreter.
    """
    ranks = wheel_ranks(python)
    found = [_distribution(name, version, lock, ranks, python) for name, version in sorted(applying)]
    return Closure(python, tuple(found))


def wheel_ranks(python: Interpreter) -> dict[Tag, int]:
    """The wheel tags that an interpreter takes, best first, as uv orders them."""
    version = Version(python.version)
    pair = (version.major, version.minor)
    abi = f"cp{pair[0]}{pair[1]}"
    # A wheel for just any Linux comes last for uv, first for packaging.
    platforms = sorted(platform_tags(), key=lambda one: one.startswith("linux_"))
    tags = [*cpython_tags(pair, [abi], platforms), *compatible_tags(pair, abi, platforms)]
    ranks: dict[Tag, int] = {}
    for rank, tag in enumerate(tags):
        ranks.setdefault(tag, rank)
    return ranks


def _applies(entry: dict[str, Any], python: Interpreter) -> bool:
    """Whether a fork of a lock is the one for this platform: forks can give one version two sources."""
    markers = entry.get("resolution-markers", [])
    version = Version(python.version)
    environment = {
        "implementation_name": python.implementation,
        "implementation_version": python.version,
        "os_name": os.name,
        "platform_machine": os.uname().machine,
        "platform_python_implementation": "CPython",
        "platform_system": os.uname().sysname,
        "python_full_version": python.version,
        "python_version": f"{version.major}.{version.minor}",
        "sys_platform": sys.platform,
    }
    try:
        return not markers or any(Marker(one).evaluate(environment) for one in markers)
    except InvalidMarker:
        return True


def _distribution(
    name: str, version: str, lock: Lock, ranks: dict[Tag, int], python: Interpreter
) -> Distribution:
    best: tuple[int, Any, str, dict[str, Any]] | None = None
    entries = [one for one in lock.versions(name, version) if _applies(one, python)]
    if len(entries) > 1:
        sources = " and ".join(str(one["source"].get("registry")) for one in entries)
        raise SpecError(
            Reason.POLICY,
            f"{name} {version} is locked from {sources}, and which of them applies here can't be told. "
            "Require different versions, or take it from one index.",
        )
    for entry in entries:
        for wheel in entry.get("wheels", []):
            file = str(wheel["url"]).split("#")[0].rsplit("/", 1)[-1]
            try:
                _, _, build, tags = parse_wheel_filename(file.replace("%2B", "+").replace("%2b", "+"))
            except InvalidWheelFilename:
                continue
            rank = min((ranks[tag] for tag in tags if tag in ranks), default=None)
            if rank is None:
                continue
            # Of equal tags the highest build number counts, as in the wheel specification.
            key = (-rank, build)
            if best is None or key > (best[0], best[1]):
                best = (-rank, build, file, wheel)
    if best is None:
        raise SpecError(
            Reason.POLICY,
            f"{name} {version} has no wheel for {python.abi or python.version} on {python.platform}, and source "
            "distributions are not built here. Require a version that has one.",
        )
    wheel = best[3]
    return Distribution(name, version, best[2], str(wheel.get("hash") or wheel["url"]))
