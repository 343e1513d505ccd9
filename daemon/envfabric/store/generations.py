"""Generations: the n-th thing published for a spec, with the lock it had and the closure it uses.

A generation appears by one rename and never changes. Nothing is built here: content that is
retained is found by its inputs and served again under its old number.
"""

import contextlib
import errno
import hashlib
import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envfabric.core.ids import is_id
from envfabric.store.files import Files
from envfabric.store.root import SCHEMA, Root, schema_of
from envfabric.store.together import Together

_HIGHEST = ".highest"
"""In a spec's folder: the highest number that was collected."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One published generation of a spec."""

    spec: str
    number: int
    digest: str
    inputs: str
    tree: str
    commit: str
    built_at: str
    python_version: str
    ray_version: str | None
    lock_origin: str
    """'committed' or 'resolved'."""
    runtime_env: dict[str, Any]
    closure: dict[str, Any]
    """What the closure's digest covers: with it and the lock the closure can be built again as it was."""
    lock_sha256: str | None = None
    """In hexadecimal; None of one that was written before this was kept."""
    uv_version: str | None = None
    """The uv that built the closure; None where its metadata does not say it, or as above."""


_LATER = ("lock_sha256", "uv_version")
"""What earlier releases did not write."""


@dataclass(frozen=True, slots=True)
class Content:
    """What a generation keeps besides its metadata."""

    pyproject: bytes
    lock: bytes


class NewerForm(OSError):
    """A generation's file that a newer release wrote: not spoilt, and so neither replaced, dropped nor built over."""

    def __str__(self) -> str:
        return f"{self.filename} {self.strerror}"


def _newer(path: Path, schema: int) -> NewerForm:
    told = f"is of a newer version (schema {schema}, known: {SCHEMA}); use the release that wrote it"
    return NewerForm(errno.ENOTSUP, told, str(path))


class Generations:
    """The generations on one ROOT. One spec's generations are written by one thread at a time."""

    def __init__(self, root: Root, files: Files) -> None:
        self._root = root
        self._files = files
        self._together = Together(files, root.staging)
        self.recorded: set[str] = set()
        """The closures that generations were recorded over since the collector last began to look."""
        self.unpublished: dict[str, Generation] = {}
        """Each spec's newest generation that was recorded here and not published yet; the loop takes it out."""
        self._built_by: dict[str, str] = {}

    def retained(self, spec_id: str) -> list[Generation]:
        """A spec's generations that are whole, newest first. Raises `OSError`."""
        found = (self.read(spec_id, number) for number in sorted(self.numbers(spec_id), reverse=True))
        return [one for one in found if one is not None]

    def read(self, spec_id: str, number: int) -> Generation | None:
        """One generation, or None where it is not there or not of a known form.

        Raises `OSError` where it can't be read, and `NewerForm`: that is no proof that it is not there.
        """
        path = self.folder(spec_id, number) / "metadata.json"
        try:
            raw = json.loads(path.read_bytes())
            if raw["schema"] > SCHEMA:
                raise _newer(path, raw["schema"])
            found = {
                name: raw[name] for name in Generation.__slots__ if name not in {"spec", "number", *_LATER}
            }
            found |= {name: raw.get(name) for name in _LATER}
            return Generation(spec=spec_id, number=number, **found)
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            return None

    def check_form(self, spec_id: str, number: int) -> None:
        """Looks at the first bytes of a generation's file. Raises `OSError` as `read` does, also where it is gone."""
        path = self.folder(spec_id, number) / "metadata.json"
        schema = schema_of(path)
        if schema is not None and schema > SCHEMA:
            raise _newer(path, schema)

    def name_of(self, spec_id: str, number: int) -> str | None:
        """The closure that a generation uses, read off its link: also where its metadata is spoilt.

        None where there is no such link. Raises `OSError` where it can't be read.
        """
        try:
            target = os.readlink(self.folder(spec_id, number) / ".venv")
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.EINVAL}:
                return None
            raise
        return Path(target).parent.name

    def specs(self) -> list[str]:
        """The ids that have generations, also of specs that are gone. Raises `OSError`."""
        top = self._root.generations
        found = (f"{flow}/{node}" for flow in _folders(top) for node in _folders(top / flow))
        return [spec_id for spec_id in found if is_id(spec_id)]

    def numbers(self, spec_id: str) -> list[int]:
        """The numbers of a spec's generations, in no order. Raises `OSError`."""
        names = _folders(self._root.generations / spec_id)
        # Only as they are written here: `007` or other digits would name a folder that is not there.
        return [int(name) for name in names if name.isdecimal() and str(int(name)) == name]

    def lock(self, generation: Generation) -> bytes | None:
        """The uv.lock that a generation keeps."""
        content = self.content(generation)
        return content.lock if content else None

    def content(self, generation: Generation) -> Content | None:
        """The files that a generation keeps; None where one is gone."""
        folder = self.folder(generation.spec, generation.number)
        with contextlib.suppress(FileNotFoundError):
            return Content((folder / "pyproject.toml").read_bytes(), (folder / "uv.lock").read_bytes())
        return None

    def record(self, generation: Generation, content: Content) -> Generation:
        """Writes a generation under the next number, or gives the retained one that is the same.

        New is one whose pyproject.toml, uv.lock or digest differs from every retained one's. `generation.number` is
        that of the one which it replaces, 0 for none.
        """
        numbers = sorted(self.numbers(generation.spec), reverse=True)
        for old in (self.read(generation.spec, number) for number in numbers):
            if old is not None and old.digest == generation.digest and self.content(old) == content:
                self.recorded.add(old.digest)
                return old
        # A number is never given twice, not even over a folder that can't be read or was collected.
        # Nor that of the one which this replaces, where a hand took all of them meanwhile.
        number = max([*numbers, self._highest(generation.spec), generation.number]) + 1
        target = self.folder(generation.spec, number)
        written = {name: getattr(generation, name) for name in Generation.__slots__ if name != "number"}
        written["lock_sha256"] = hashlib.sha256(content.lock).hexdigest()
        written["uv_version"] = self._uv_of(generation.digest)
        text = json.dumps({"schema": SCHEMA, "generation": number, **written}, indent=2)
        made = {"pyproject.toml": content.pyproject, "uv.lock": content.lock, "metadata.json": text.encode()}
        self._files.make_folder(target.parent, self._root.generations)
        # In staging, which the next writer empties: one that comes back late finds nothing to rename.
        folder = self._root.staging / f"generation-{uuid.uuid4().hex}"
        with self._together.member() as member:
            self._files.make_folder(folder)
            try:
                for name, data in made.items():
                    self._files.write_new(folder / name, data, mode=0o444, durable=member.alone)
                # Relative, so that it is true wherever ROOT is mounted: <workflow>/<node>/<n> is 4 deep.
                self._files.symlink(folder / ".venv", f"../../../../store/{generation.digest}/.venv")
                self._together.flush(member)
                # Before it is there: a collection that looked a moment ago has not seen it.
                self.recorded.add(generation.digest)
                self._files.rename(folder, target)
            except BaseException:
                with contextlib.suppress(OSError):
                    self._files.remove_tree(folder)
                raise
        # A dict's assignment is whole for whoever looks from another thread.
        made_now = self.unpublished[generation.spec] = Generation(**{**written, "number": number})
        return made_now

    def facts(self, generation: Generation) -> dict[str, Any]:
        """What the audit trail keeps of a generation when it and its closure are gone."""
        return {
            "spec": generation.spec,
            "generation": generation.number,
            "commit": generation.commit,
            "tree": generation.tree,
            "built_at": generation.built_at,
            "uv": generation.uv_version or self._uv_of(generation.digest),
            "python_version": generation.python_version,
            "python_path": generation.closure.get("interpreter", {}).get("path"),
            "ray_version": generation.ray_version,
            "lock": generation.lock_origin,
            "lock_sha256": generation.lock_sha256 or self._lock_sha256(generation),
            "closure": generation.digest,
        }

    def drop(self, spec_id: str, number: int) -> None:
        """Moves a generation to trash/. Its number is not given again."""
        # They go from the highest to the lowest: what is written says the highest of all.
        if number >= max([*self.numbers(spec_id), self._highest(spec_id)]):
            highest = self._root.generations / spec_id / _HIGHEST
            # A hand may have taken all of it.
            self._files.make_folder(highest.parent, self._root.generations)
            self._files.write_atomic(highest, f"{number}\n".encode(), via=self._root.staging)
        target = self._root.trash / f"{spec_id.replace('/', '.')}.{number}.{uuid.uuid4().hex}"
        self._files.rename(self.folder(spec_id, number), target)

    def folder(self, spec_id: str, number: int) -> Path:
        """Where a generation lies."""
        return self._root.generations / spec_id / str(number)

    def serve(self, spec_id: str, number: int) -> None:
        """Points envs/<workflow>/<node>, the path for people, at a generation."""
        link = self._root.envs / spec_id
        if self.linked(spec_id) == number:
            return
        target = f"../../generations/{spec_id}/{number}"
        self._files.make_folder(link.parent, self._root.envs)
        self._files.flip_symlink(link, target, via=self._root.staging)

    def linked(self, spec_id: str) -> int | None:
        """The generation that the path for people points at; None where it leads elsewhere, or is not there."""
        with contextlib.suppress(OSError):
            target = os.readlink(f"{self._root.path}/envs/{spec_id}")
            start, _, number = target.rpartition("/")
            if start == f"../../generations/{spec_id}" and number.isdecimal():
                return int(number)
        return None

    def withdraw(self, spec_id: str) -> None:
        """Removes the path for people of a spec that is no longer served."""
        self._files.unlink(self._root.envs / spec_id)
        with contextlib.suppress(OSError):
            (self._root.envs / spec_id).parent.rmdir()

    def _lock_sha256(self, generation: Generation) -> str | None:
        with contextlib.suppress(OSError):
            lock = (self.folder(generation.spec, generation.number) / "uv.lock").read_bytes()
            return hashlib.sha256(lock).hexdigest()
        return None

    def _uv_of(self, digest: str) -> str | None:
        """The version of uv that a closure was built by; read once, for thousands of specs share it."""
        known = self._built_by.get(digest)
        if known is None:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                known = str(
                    json.loads((self._root.closure(digest) / "metadata.json").read_bytes())["uv_version"]
                )
                self._built_by[digest] = known
        return known

    def _highest(self, spec_id: str) -> int:
        """The highest number that was collected; 0 where none was."""
        try:
            return int((self._root.generations / spec_id / _HIGHEST).read_bytes())
        except (FileNotFoundError, ValueError):
            return 0


def _folders(path: Path) -> list[str]:
    """The names in a folder that may be ids or numbers; a stray file among them is no reason to stop."""
    try:
        return sorted(name for name in os.listdir(path) if not name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
