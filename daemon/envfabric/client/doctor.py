"""`envfabric doctor`: whether this machine can use a ROOT, as a node of Ray too (--ray), and as the daemon's host.

Here is what any machine can be asked: mount, rights, space, index, writer, leases and interpreters. What the daemon
needs is asked by whoever calls `run` with more looks (service/checkup). Writes nothing without --write, and then one
file among the leases, which it removes. Standard library only, so that any node can run it.
"""

import errno
import json
import os
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envfabric.client import fitting
from envfabric.client.doctor_mount import mount_of, of_mount, of_rights, of_space
from envfabric.client.doctor_writer import of_publication, of_writer
from envfabric.client.findings import Finding, Look, as_json, as_text, code, some, within
from envfabric.client.index import EnvfabricError, NotReady, RootNotFound, find_config, find_root, read_index
from envfabric.client.leases import place_of

_CLOCKS = 60.0
"""Seconds by which this machine's clock and the file server's may differ before it is said."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command was given, and what was found out by it, for those who look further."""

    root: Path | None
    """ROOT; None where it is not known, not there, or does not answer: nobody else has to wait for it."""
    config: str | os.PathLike[str] | None
    timeout: float
    """Seconds for each look."""
    write: bool
    index: Mapping[str, Any]
    """What is published; empty where it can't be read."""


More = Callable[[Asked], list[Finding]]


def run(
    root: str | os.PathLike[str] | None,
    config: str | os.PathLike[str] | None,
    *,
    ray: bool,
    timeout: float,
    json_wanted: bool,
    write: bool = False,
    more: More | None = None,
) -> int:
    """The command: prints what was found, and gives 1 where something of it is a problem, else 0."""
    findings = look(root, config, ray=ray, timeout=timeout, write=write, more=more)
    print(as_json(findings) if json_wanted else as_text(findings), flush=True)  # noqa: T201
    return code(findings)


def look(
    root: str | os.PathLike[str] | None,
    config: str | os.PathLike[str] | None,
    *,
    ray: bool,
    timeout: float,
    write: bool = False,
    more: More | None = None,
) -> list[Finding]:
    """Everything that is looked at, in an order in which a finding explains those after it."""
    index: dict[str, Any] = {}
    findings, usable = _of_root(root, config, timeout, index, write=write)
    if more is None:
        told = "the daemon's packages are not installed here: settings, uv, git, unit and port were not looked at"
        do = "On the daemon's host run its own envfabric (environment-fabric[daemon])."
        findings.append(Finding("daemon", "info", told, do))
    else:
        findings += more(Asked(usable, config, timeout, write, index))
    if ray:
        # What only this needs is not loaded elsewhere.
        from envfabric.client import doctor_ray

        longest = max(timeout, doctor_ray.AT_LEAST) + 3 * timeout
        findings += within(longest, "ray", lambda: doctor_ray.of_ray(index, config, timeout))[0]
    return findings


def absent(why: str) -> More:
    """What stands for the daemon's looks where their packages are installed and can't be loaded."""
    told = f"the daemon's packages can't be loaded here: {why}"
    do = "Install what is missing (git?), or environment-fabric[daemon] anew."
    return lambda asked: [Finding("daemon", "problem", told, do)]


def _of_root(
    given: str | os.PathLike[str] | None,
    config: str | os.PathLike[str] | None,
    timeout: float,
    index: dict[str, Any],
    *,
    write: bool,
) -> tuple[list[Finding], Path | None]:
    """What is found of ROOT, and ROOT where more can be asked of it; puts what is published into `index`."""
    try:
        root = Path(os.path.abspath(find_root(given, config)))
    except RootNotFound as error:
        return [Finding("root", "problem", "ROOT is not known", str(error))], None
    source = (
        "--root" if given else "ENVFABRIC_ROOT" if os.environ.get("ENVFABRIC_ROOT") else find_config(config)
    )
    findings = [Finding("root", "ok", f"{root} (by {source})")]
    looks: tuple[tuple[str, Look], ...] = (
        ("mount", lambda: _mount(root)),
        ("file system", lambda: of_mount(mount_of(root))),
        ("rights", lambda: of_rights(root)),
        ("space", lambda: of_space(root)),
        ("index", lambda: _index(root, index)),
        ("writer", lambda: of_writer(root)),
        ("published", lambda: of_publication(index)),
        ("leases", lambda: _leases(root, write=write)),
        ("interpreters", lambda: _interpreters(root, index, timeout)),
    )
    for check, one in looks:
        if check == "published" and not index:
            continue
        if check == "interpreters" and code([one for one in findings if one.check == "index"]):
            # Its paths are another machine's, or can't be read.
            continue
        found, in_time = within(timeout * (3 if check == "interpreters" else 1), check, one)
        findings += found
        if not in_time or (check == "mount" and code(found)):
            # All that follows would wait for the same file system, or blame another thing for it.
            return findings, None
    return findings, root


def _mount(root: Path) -> list[Finding]:
    marker = root / ".envfabric.json"
    try:
        told = json.loads(marker.read_bytes())
        schema = told.get("schema")
    except FileNotFoundError:
        return [
            Finding(
                "mount",
                "problem",
                f"{marker} is not there, {root} is {'a folder' if root.is_dir() else 'not there'}",
                f"Mount the NAS at {root}, at the same path as on every node; a new one is prepared by "
                f"`envfabric init {root}`.",
            )
        ]
    except (OSError, ValueError, AttributeError) as error:
        do = "Let this user read ROOT; a spoilt marker is restored from a copy."
        return [Finding("mount", "problem", f"{marker} can't be read: {error}", do)]
    if schema != 1:
        do = "Install the environment-fabric here that the daemon has."
        return [Finding("mount", "problem", f"{marker} has schema {schema}, and this release knows 1", do)]
    mount = mount_of(root)
    told_of = f"{mount.kind} mounted at {mount.point}, with the marker"
    if "noexec" in mount.options:
        do = f"No interpreter can be run from it: mount {mount.point} with exec."
        return [Finding("mount", "problem", f"{told_of}, but noexec", do)]
    return [Finding("mount", "ok", told_of + (", read-only" if mount.read_only else ""))]


def _index(root: Path, index: dict[str, Any]) -> list[Finding]:
    try:
        found = read_index(root)
    except NotReady as error:
        return [Finding("index", "warning", str(error), "Start the daemon: `envfabric run`.")]
    except EnvfabricError as error:
        return [Finding("index", "problem", str(error), "Let this user read ROOT, and see that it is ROOT.")]
    index.update(found)
    served = found["python"]
    if found["root"] != str(root):
        return [
            Finding(
                "index",
                "problem",
                f"its paths begin with {found['root']}, and ROOT is {root} here",
                f"Mount it at {found['root']}: paths of interpreters have to be the same on all nodes.",
            )
        ]
    told = f"{len(served)} of {len(found['environments'])} environments served, published {found['published_at']}"
    if not served:
        return [
            Finding("index", "warning", told, "Commit a spec; `envfabric status` says why none is ready.")
        ]
    return [Finding("index", "ok", told)]


def _leases(root: Path, *, write: bool) -> list[Finding]:
    """Whether a holder could write; to `write`, one lease is tried: written, read back and removed."""
    try:
        place = place_of(root)
    except RootNotFound as error:
        do = "Mount the folder of the leases at the same path on this machine (setting leases)."
        return [Finding("leases", "problem", str(error), do)]
    try:
        if not write:
            if not os.path.isdir(place):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(place))
            # The server is asked, too; a folder on a read-only mount says so.
            if not os.access(place, os.W_OK | os.X_OK, effective_ids=True):
                ro = mount_of(place).read_only
                number = errno.EROFS if ro else errno.EACCES
                raise OSError(number, os.strerror(number), str(place))
            return [Finding("leases", "ok", f"{place} is this user's to write (tried with --write)")]
        seen, ahead = _try_lease(place)
    except OSError as error:
        do = (
            f"Let the users of all workers write there (chmod 1777 {place}); where workers mount ROOT read-only, "
            "set leases in the daemon's settings to a folder that they can write."
        )
        return [Finding("leases", "problem", f"{place} can't be written: {error.strerror}", do)]
    if not seen:
        do = "Other nodes may not see it either: check the mount's caching (docs/nas.md)."
        return [Finding("leases", "problem", f"what is written to {place} is not listed in it", do)]
    if abs(ahead) > _CLOCKS:
        do = "Leases are judged by the server's clock alone; set both (NTP), for everything else."
        told = f"{place} is writable; the file server's clock differs from this one's by {ahead:.0f} s"
        return [Finding("clock", "warning", told, do)]
    return [Finding("leases", "ok", f"{place} is writable, and shows what is written")]


def _try_lease(place: Path) -> tuple[bool, float]:
    """Whether what is written there is listed, and how many seconds its time is ahead. Raises `OSError`."""
    # A name that begins with a dot is no lease (docs/leases.md).
    folder = place / f".doctor.{os.getpid()}.{os.urandom(4).hex()}"
    path = folder / "probe"
    os.mkdir(folder)
    try:
        path.write_bytes(b".")
        os.utime(path)
        seen = folder.name in os.listdir(place)
        ahead = path.stat().st_mtime - time.time()
        path.unlink()
    finally:
        os.rmdir(folder)
    return seen, ahead


def _interpreters(root: Path, index: Mapping[str, Any], timeout: float) -> list[Finding]:
    """Every served closure is there, and of each base interpreter one is started."""
    paths: dict[str, str] = {}
    for spec_id, python in index.get("python", {}).items():
        paths.setdefault(python, spec_id)
    # Those with Ray first: of one base interpreter one environment is started, and that loads its Ray, too.
    order = sorted(paths, key=lambda one: index["environments"][paths[one]]["ray_version"] is None)
    bases: dict[str, str] = {}
    findings, until, looked = [], time.monotonic() + timeout, 0
    for python in order:
        if time.monotonic() > until:
            break
        looked += 1
        try:
            bases.setdefault(_base(python), python)
        except OSError as error:
            do = "See whether ROOT is the same file system as the daemon's; `envfabric verify` there."
            told = f"{python} of {paths[python]} can't be read: {error.strerror}"
            findings.append(Finding("interpreters", "problem", told, do))
    for base, python in bases.items():
        spec_id = paths[python]
        if (closed := _closed(base, root)) is not None:
            told = f"{base} of {spec_id} can't be reached by other users: {closed} is closed to them"
            do = "Use a Python that is open to all (settings pythons, or below ROOT/pythons), and build anew."
            findings.append(Finding("interpreters", "warning", told, do))
        built = index["environments"][spec_id]["python_version"]
        try:
            fitting.refuse_absent(python)
            # Without its packages' libraries: whoever runs this has asked for none of their code.
            version = fitting.starts(python, timeout, libraries=False)
        except EnvfabricError as error:
            do = "Nodes need the daemon's interpreters at the same paths, for their processor and C library."
            findings.append(Finding("interpreters", "problem", f"{spec_id}: {error}", do))
            continue
        if version.split(".")[:2] != str(built).split(".")[:2]:
            told = f"{base} is Python {version} here, and {spec_id} was made with {built}"
            do = "Install the interpreter that the daemon's host has at that path."
            findings.append(Finding("interpreters", "problem", told, do))
        elif version != built:
            told = f"{base} is Python {version} here, and {spec_id} was made with {built}: it runs"
            do = "Bring this machine and the daemon's host to one patch version."
            findings.append(Finding("interpreters", "warning", told, do))
    if looked < len(paths):
        told = f"{looked} of {len(paths)} closures were looked at in {timeout:g} s"
        findings.append(Finding("interpreters", "warning", told, "Give more time with --timeout."))
    if paths and not findings:
        told = f"{looked} closures, from {some(sorted(bases))}"
        findings.append(Finding("interpreters", "ok", told))
    return findings


def _base(python: str) -> str:
    """What a closure's interpreter is a link to."""
    return os.path.normpath(os.path.join(os.path.dirname(python), os.readlink(python)))


def _closed(base: str, root: Path) -> str | None:
    """The first folder on the way to an interpreter that other users can't go through; None where they can."""
    real = Path(os.path.realpath(base))
    top = Path(os.path.realpath(root))
    for folder in reversed(real.parents):
        if folder == top or top.is_relative_to(folder):
            # How ROOT itself is reached is the mount's affair.
            continue
        try:
            if not folder.stat().st_mode & stat.S_IXOTH:
                return str(folder)
        except OSError:
            return None
    return None
