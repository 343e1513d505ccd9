"""A closure's identity: what decides what gets installed, and the digest over it.

Covered: each distribution that applies here with the hash of the wheel that uv takes, the exact
interpreter, platform and libc, and the keys of [tool.uv] that change how something is built or which
kind of file is taken. Extras and groups count by the distributions that they select. Not covered: the
project's name, order, bounds, and packages that are locked for other platforms. Pure: no file is read
and no process is run here.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from packaging.markers import InvalidMarker, Marker, UndefinedComparison, UndefinedEnvironmentName
from packaging.tags import Tag, compatible_tags, cpython_tags, platform_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import Version

from envfabric.build.interpreters import Interpreter
from envfabric.build.limits import Chosen
from envfabric.build.lockfile import Lock
from envfabric.core.errors import Reason, SpecError

DIGEST_CHARACTERS = 40
"""Length of a digest's name: 160 bits, short enough for shebang lines and prompts."""


_OPTIONS = frozenset(
    {
        "config-settings",
        "config-settings-package",
        "extra-build-dependencies",
        "extra-build-variables",
        "no-binary",
        "no-binary-package",
        "no-build-isolation",
        "no-build-isolation-package",
    }
)
"""Keys of [tool.uv] by which equal distributions could be installed with other content."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """One distribution of a closure and the file it comes from."""

    name: str
    version: str
    wheel: str
    """The file's name: a wheel's, or that of a source distribution that is built; 'git' for a repository."""
    hash: str
    """'sha256:…', or 'git:<commit>'; the wheel's URL only until a wheel without a hash has been hashed."""
    origin: str = ""
    """The address of what comes from no index: it is written into what is installed."""

    @property
    def hashed(self) -> bool:
        """Whether the hash tells the content: one that names a place, or that can be forged, does not."""
        return self.hash.startswith(("sha256:", "sha384:", "sha512:", "git:"))

    @property
    def built(self) -> bool:
        """Whether it is built from source, which runs its code."""
        return not self.wheel.endswith(".whl")

    @property
    def inputs(self) -> dict[str, str]:
        """What a closure's digest covers of it."""
        covered = asdict(self)
        # Left out where there is none, as nearly everywhere: digests that were given before stay.
        if not self.origin:
            del covered["origin"]
        return covered


@dataclass(frozen=True, slots=True)
class Closure:
    """A resolved request: what will be installed, into which interpreter."""

    interpreter: Interpreter
    distributions: tuple[Distribution, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    """What `install_options` gives for the spec."""

    @property
    def inputs(self) -> dict[str, Any]:
        """All that the digest covers, as it is written in metadata.json."""
        python = self.interpreter
        covered: dict[str, Any] = {
            "schema": 1,
            "interpreter": {
                "path": python.path,
                "version": python.version,
                "implementation": python.implementation,
                "abi": python.abi,
            },
            "platform": python.platform,
            "libc": python.libc,
            "distributions": [one.inputs for one in self.distributions],
        }
        # Left out where there are none, as nearly everywhere: digests that were given before stay.
        return {**covered, "options": dict(self.options)} if self.options else covered

    @property
    def digest(self) -> str:
        """The closure's name in the store."""
        text = json.dumps(self.inputs, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_CHARACTERS]

    def version_of(self, name: str) -> str | None:
        """The version of a distribution, or None where the closure has none."""
        return next((one.version for one in self.distributions if one.name == name), None)


def closure_from_inputs(inputs: Mapping[str, Any]) -> Closure:
    """The closure that `inputs` were written for: the inverse of `Closure.inputs`.

    Raises `ValueError` for what is not of that form.
    """
    try:
        if inputs["schema"] != 1:
            raise ValueError(f"the inputs of a closure are of schema {inputs['schema']}, known is 1")
        python = {**inputs["interpreter"], "platform": inputs["platform"], "libc": inputs["libc"]}
        closure = Closure(
            Interpreter(**python),
            tuple(Distribution(**one) for one in inputs["distributions"]),
            dict(inputs.get("options", {})),
        )
        # What is missing or of another type would give another digest, and a wrong closure under it.
        if closure.inputs != dict(inputs):
            raise ValueError("the inputs of a closure have parts that are not known here")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the inputs of a closure can't be read: {error!r}") from None
    return closure


def install_options(table: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a spec's `[tool.uv]` that change what its distributions install, with their values.

    Policy refuses all of them today; one that it admits some day makes a closure of its own.
    """
    found = {key: _unordered(table[key]) for key in sorted(_OPTIONS & set(table)) if table[key]}
    if found and table.get("build-constraint-dependencies"):
        # Allowed already, and without effect as long as nothing is built.
        found["build-constraint-dependencies"] = _unordered(table["build-constraint-dependencies"])
    return found


def _unordered(value: Any) -> Any:
    """A list of names or requirements means the same in any order."""
    plain = isinstance(value, list) and all(isinstance(one, str) for one in value)
    return sorted(value) if plain else value


def make_closure(
    applying: Iterable[tuple[str, str]],
    lock: Lock,
    python: Interpreter,
    options: Mapping[str, Any] | None = None,
    hash_wheels: Callable[[list[str]], Mapping[str, str]] | None = None,
    buildable: Container[str] = (),
    admit: Callable[[list[Chosen]], None] | None = None,
) -> Closure:
    """The closure of the distributions that uv says apply here, as (name, version).

    `buildable` are names that may come from source where they have no wheel that fits. `admit` sees, before
    anything is downloaded, which files were chosen, and may raise. `hash_wheels` is asked, once, for the hashes
    of those URLs whose content the lock does not tell. Raises `SpecError` (policy) for a distribution that has
    no wheel for this interpreter.
    """
    ranks = wheel_ranks(python)
    found, unhashed = [], {}
    chosen = []
    for name, version in sorted(applying):
        one, file = _choose(name, version, lock, ranks, python, buildable)
        chosen.append(Chosen(name, version, file))
        if not one.hashed:
            unhashed[name] = str(file["url"])
        found.append(one)
    if admit is not None:
        admit(chosen)
    if unhashed and hash_wheels is not None:
        hashes = hash_wheels(sorted(unhashed.values()))
        found = [
            replace(one, hash=hashes[unhashed[one.name]]) if one.name in unhashed else one for one in found
        ]
    return Closure(python, tuple(found), dict(options or {}))


def origin_of(source: Mapping[str, Any]) -> str:
    """The address of what a lock takes from no index; '' for a package of an index."""
    origin = str(source.get("url") or source.get("git") or "")
    return f"{origin}#subdirectory={source['subdirectory']}" if "subdirectory" in source else origin


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
    except (InvalidMarker, UndefinedComparison, UndefinedEnvironmentName, RecursionError):
        return True


def _choose(
    name: str,
    version: str,
    lock: Lock,
    ranks: dict[Tag, int],
    python: Interpreter,
    buildable: Container[str],
) -> tuple[Distribution, dict[str, Any]]:
    """What uv takes for a distribution, with its file's entry in the lock."""
    entries = [one for one in lock.versions(name, version) if _applies(one, python)]
    if len(entries) > 1:
        sources = " and ".join(str(next(iter(one["source"].values()))) for one in entries)
        raise SpecError(
            Reason.POLICY,
            f"{name} {version} is locked from {sources}, and which of them applies here can't be told. "
            "Require different versions, or take it from one index.",
        )
    for entry in entries:
        source = entry["source"]
        origin = origin_of(source)
        if "git" in source and name in buildable:
            return Distribution(name, version, "git", f"git:{origin.partition('#')[2]}", origin), {}
        if best := _wheel(entry, origin, ranks):
            file, wheel = best
            return Distribution(name, version, file, str(wheel.get("hash") or wheel["url"]), origin), wheel
        sdist = entry.get("sdist")
        if sdist is not None and name in buildable:
            one = Distribution(
                name, version, _file_name(sdist.get("url") or origin), str(sdist.get("hash")), origin
            )
            if one.hashed:
                return one, sdist
            raise SpecError(
                Reason.POLICY,
                f"the source distribution of {name} {version} has no SHA-256 in the lock, so what is built can't be "
                "told. Require a version that has a wheel, or have the index give hashes.",
            )
    raise SpecError(
        Reason.POLICY,
        f"{name} {version} has no wheel for {python.abi or python.version} on {python.platform}, and source "
        "distributions are not built here. Require a version that has one.",
    )


def _wheel(entry: dict[str, Any], origin: str, ranks: dict[Tag, int]) -> tuple[str, dict[str, Any]] | None:
    """The wheel that uv takes of a lock's entry: its file name and its own entry."""
    best: tuple[int, Any, str, dict[str, Any]] | None = None
    for wheel in entry.get("wheels", []):
        file = _file_name(wheel.get("url") or origin)
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
    return None if best is None else (best[2], best[3])


def _file_name(url: str) -> str:
    return str(url).split("#")[0].rsplit("/", 1)[-1]
