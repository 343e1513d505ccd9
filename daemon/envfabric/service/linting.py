"""Whether a folder of specs would be taken as it is: read as the daemon reads a commit, before it is one.

Offline and executing nothing, but for `rehearse`, which asks the indexes by uv below a temporary ROOT of its own.
Writes nothing beside that.
"""

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from envfabric.build.lockfile import neutral, read_lock
from envfabric.build.preflight import Cluster, check_ray, choose
from envfabric.build.resolve import Resolver
from envfabric.build.staleness import check_fits
from envfabric.build.uv import Uv
from envfabric.core.errors import Reason, SpecError
from envfabric.service.assembly import interpreters_of, policy_of
from envfabric.service.credentials import take_credentials
from envfabric.service.settings import Settings
from envfabric.specs.policy import Policy
from envfabric.specs.spec import Spec, read_spec
from envfabric.specs.tree import SpecRef, find_specs
from envfabric.specs.worktree import list_items, read_file
from envfabric.store.closures import Closures
from envfabric.store.files import Files
from envfabric.store.root import FOLDERS, Root, check_path, now, write_marker

_PLACE = re.compile(r"(.+?/(?:pyproject\.toml|uv\.lock|\.python-version))(?::(\d+))?(?:: | (?=\S))")


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """What is wrong in one place; `path` is below the folder of specs."""

    path: str
    line: int
    reason: Reason
    message: str
    id: str | None


@dataclass(frozen=True, slots=True)
class Linted:
    """The specs that can be read, how many there are with the others, and what is wrong."""

    good: dict[str, Spec]
    count: int
    findings: list[Finding]


def lint(folder: Path, below: str, settings: Settings) -> Linted:
    """Reads the specs of a folder, or those at and below one path in it. Raises `ConfigError`, `OSError`."""
    policy = policy_of(settings)
    # All of them in any case: an id is wrong by another one that it differs from only by case.
    wanted = find_specs(list_items(folder))
    refs = {one: ref for one, ref in wanted.specs.items() if _is_below(one, below)}
    findings = [
        Finding(one.path, 1, one.reason, one.message, None)
        for one in wanted.problems
        if _is_below(one.path, below)
    ]
    good: dict[str, Spec] = {}
    locks: set[str] = set()
    for spec_id, ref in refs.items():
        try:
            good[spec_id] = _read(folder, ref, policy, locks)
        except SpecError as error:
            findings.append(finding_of(spec_id, error))
    return Linted(good, len(refs), sorted(findings))


def rehearse(specs: Mapping[str, Spec], settings: Settings) -> Iterator[tuple[str, SpecError | None]]:
    """Resolves specs as the daemon would, and gives each one's error, or None, as they come.

    Raises `OSError`, and `ConfigError` for credentials that can't be read and a TMPDIR in which uv would find more.
    """
    credentials, files = take_credentials(), Files()
    with tempfile.TemporaryDirectory(prefix="envfabric-check-") as folder:
        root = Root(check_path(Path(folder).resolve()))
        for name in FOLDERS:
            files.make_folder(root.path / name)
        write_marker(root, files, {"fabric": "check", "created_at": now()})
        uv = Uv(root, settings.build_timeout, settings.index, credentials.uv)
        cluster = Cluster(settings.ray.version, settings.ray.python)
        # Those that the daemon's ROOT has are not here: what this machine has stands for them.
        here = settings.model_copy(update={"python_preference": "managed"})
        interpreters = interpreters_of(here, root, files, uv, Closures(root, files))
        resolver = Resolver(
            root,
            files,
            uv,
            Closures(root, files).staging,
            settings.resolution_max_age,
            policy_of(settings),
            settings.exclude_newer,
        )

        def resolve(spec: Spec) -> SpecError | None:
            try:
                python = choose(spec, interpreters, cluster)
                known = resolver.known(spec, resolver.key(spec, python, None))
                found = known or resolver.resolve(spec, python, None)
                check_ray(spec, found.closure.version_of("ray"), cluster)
            except SpecError as error:
                return error
            return None

        with ThreadPoolExecutor(settings.builders) as pool:
            try:
                yield from zip(specs, pool.map(resolve, specs.values()), strict=True)
            except BaseException:
                uv.stop()
                pool.shutdown(cancel_futures=True)
                raise


def finding_of(spec_id: str, error: SpecError) -> Finding:
    """Where an error is: messages begin with the file, and the line where one is known."""
    match = _PLACE.match(error.message)
    if match is None or not match[1].startswith(f"{spec_id}/"):
        return Finding(f"{spec_id}/pyproject.toml", 1, error.reason, error.message, spec_id)
    message = error.message[match.end() :] if match[0].endswith(": ") else error.message
    return Finding(match[1], int(match[2] or 1), error.reason, message, spec_id)


def _read(folder: Path, ref: SpecRef, policy: Policy, locks: set[str]) -> Spec:
    if ref.refused is not None:
        raise SpecError(Reason.INVALID_SPEC, ref.refused)
    files = {}
    for name, _ in ref.blobs:
        data = read_file(folder / ref.id, name, f"{ref.id}/{name}")
        if data is not None:
            files[name] = data
    if "pyproject.toml" not in files:
        raise SpecError(Reason.INVALID_SPEC, f"{ref.id}/pyproject.toml is gone; it was there a moment ago.")
    spec = read_spec(ref.id, ref.tree, files, policy)
    if spec.lock is not None:
        # Reading a large one takes a tenth of a second, and what they lock is the same in many.
        known = neutral(spec.lock)
        if known not in locks:
            read_lock(spec.lock, f"{ref.id}/uv.lock", policy)
            locks.add(known)
        check_fits(spec)
    return spec


def _is_below(path: str, below: str) -> bool:
    return not below or path == below or path.startswith(f"{below}{os.sep}")
