"""A generation's folder after a hand was in it: what is true of it, from what is left, from git and from its closure.

A folder that is not whole is moved to trash/ and its number is not given again; the caller writes what is given back
as a new one. Runs in a step's thread; asks no uv and touches no closure.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from envfabric.build.closure import closure_from_inputs
from envfabric.build.lockfile import read_lock
from envfabric.core.errors import SpecError
from envfabric.loop.asks import Mend
from envfabric.specs.policy import Policy
from envfabric.specs.spec import inputs_digest, read_spec
from envfabric.specs.tree import SpecRef
from envfabric.store.closures import Closures
from envfabric.store.generations import Content, Generation, Generations
from envfabric.store.root import now


def whole_again(
    generations: Generations,
    closures: Closures,
    policy: Policy,
    mend: Mend,
    ref: SpecRef,
    commit: str,
    files: Mapping[str, bytes],
    check: Callable[[], None],
) -> tuple[Generation, Content] | None:
    """A generation and its files as they have to be; None where that can't be told any more.

    `files` are the committed content's; `check` raises where this is the writer no more. Raises `StoreError` and
    `OSError`.
    """
    number = mend.number
    folder = generations.folder(ref.id, number)
    old = generations.read(ref.id, number)
    if old is not None and old.digest != mend.closure:
        old = None
    found = _read(folder / "pyproject.toml"), _read(folder / "uv.lock")
    pyproject = files.get("pyproject.toml") if mend.current else found[0]
    committed = files.get("uv.lock") if mend.current else None
    lock = committed if committed is not None else _trusted_lock(old, found[1], ref.id)
    whole = (
        old is not None and found == (pyproject, lock) and generations.name_of(ref.id, number) == mend.closure
    )
    if mend.current and old is not None and old.inputs != _inputs(files):
        old, whole = None, False
    if old is None and mend.current:
        old = _from_closure(closures, policy, mend, ref, commit, files)
    if old is None or pyproject is None or lock is None:
        # What is committed is made true the usual way then; of anything else only this is left. One that is gone
        # altogether has its number kept from being given again.
        if mend.current or not os.path.lexists(folder):
            _set_aside(generations, ref.id, number, check)
        return None
    if not whole:
        _set_aside(generations, ref.id, number, check)
    return old, Content(pyproject, lock)


def _trusted_lock(old: Generation | None, lock: bytes | None, spec_id: str) -> bytes | None:
    """The lock that was found, where it can be the one that was written."""
    if lock is None:
        return None
    if old is not None and old.lock_sha256 is not None:
        return lock if hashlib.sha256(lock).hexdigest() == old.lock_sha256 else None
    try:
        read_lock(lock, f"{spec_id}/uv.lock", None)
    except SpecError:
        return None
    return lock


def _from_closure(
    closures: Closures,
    policy: Policy,
    mend: Mend,
    ref: SpecRef,
    commit: str,
    files: Mapping[str, bytes],
) -> Generation | None:
    """What the lost metadata said, from the spec and its closure."""
    try:
        inputs = closures.metadata(mend.closure)["inputs"]
        closure = closure_from_inputs(inputs)
        spec = read_spec(ref.id, ref.tree, files, policy)
    except (SpecError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Generation(
        spec=ref.id,
        number=mend.number,
        digest=mend.closure,
        inputs=spec.inputs,
        tree=ref.tree,
        commit=commit,
        built_at=now(),
        python_version=closure.interpreter.version,
        ray_version=closure.version_of("ray"),
        lock_origin="resolved" if spec.lock is None else "committed",
        runtime_env=spec.table.runtime_env.model_dump(),
        closure=inputs,
    )


def _inputs(files: Mapping[str, bytes]) -> str:
    return inputs_digest(files["pyproject.toml"], files.get("uv.lock"), files.get(".python-version"))


def _set_aside(generations: Generations, spec_id: str, number: int, check: Callable[[], None]) -> None:
    # A step may come back late: what another writer serves by now is not this one's to move.
    check()
    # Its number is kept from being given again first, also where there is nothing left to move.
    with contextlib.suppress(FileNotFoundError):
        generations.drop(spec_id, number)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
