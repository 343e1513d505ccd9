"""Generations: the n-th thing published for a spec, with the lock it had and the closure it uses.

A generation appears by one rename and never changes. Nothing is built here: content that is
retained is found by its inputs and served again under its old number.
"""

import contextlib
import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envfabric.store.files import Files
from envfabric.store.root import Root


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


@dataclass(frozen=True, slots=True)
class Content:
    """What a generation keeps besides its metadata."""

    pyproject: bytes
    lock: bytes


class Generations:
    """The generations on one ROOT. One spec's generations are written by one thread at a time."""

    def __init__(self, root: Root, files: Files) -> None:
        self._root = root
        self._files = files

    def retained(self, spec_id: str) -> list[Generation]:
        """A spec's generations that are whole, newest first."""
        try:
            names = os.listdir(self._root.generations / spec_id)
        except FileNotFoundError:
            return []
        numbers = sorted((int(name) for name in names if name.isdecimal()), reverse=True)
        found = (self.read(spec_id, number) for number in numbers)
        return [one for one in found if one is not None]

    def read(self, spec_id: str, number: int) -> Generation | None:
        """One generation, or None where it is not there or not of a known form."""
        try:
            raw = json.loads((self.folder(spec_id, number) / "metadata.json").read_bytes())
            return Generation(
                spec=spec_id,
                number=number,
                digest=raw["digest"],
                inputs=raw["inputs"],
                tree=raw["tree"],
                commit=raw["commit"],
                built_at=raw["built_at"],
                python_version=raw["python_version"],
                ray_version=raw["ray_version"],
                lock_origin=raw["lock_origin"],
                runtime_env=raw["runtime_env"],
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def lock(self, generation: Generation) -> bytes | None:
        """The uv.lock that a generation keeps."""
        with contextlib.suppress(OSError):
            return (self.folder(generation.spec, generation.number) / "uv.lock").read_bytes()
        return None

    def record(self, generation: Generation, content: Content) -> Generation:
        """Writes a generation under the next number, or gives the retained one that is the same.

        New is one whose pyproject.toml, uv.lock or digest differs from every retained one's.
        """
        retained = self.retained(generation.spec)
        for old in retained:
            if old.digest == generation.digest and self._content(old) == content:
                return old
        number = max([one.number for one in retained] + self._numbers(generation.spec), default=0) + 1
        target = self.folder(generation.spec, number)
        self._files.make_folder(target.parent)
        folder = self._root.staging / f"generation-{uuid.uuid4().hex}"
        self._files.make_folder(folder)
        try:
            self._files.write_new(folder / "pyproject.toml", content.pyproject, mode=0o444, durable=True)
            self._files.write_new(folder / "uv.lock", content.lock, mode=0o444, durable=True)
            written = {name: getattr(generation, name) for name in Generation.__slots__ if name != "number"}
            text = json.dumps({"schema": 1, "generation": number, **written}, indent=2)
            self._files.write_new(folder / "metadata.json", text.encode(), mode=0o444, durable=True)
            # Relative, so that it is true wherever ROOT is mounted: <workflow>/<node>/<n> is 4 deep.
            self._files.symlink(folder / ".venv", f"../../../../store/{generation.digest}/.venv")
            self._files.rename(folder, target)
        except BaseException:
            with contextlib.suppress(OSError):
                self._files.remove_tree(folder)
            raise
        return Generation(**{**written, "number": number})

    def folder(self, spec_id: str, number: int) -> Path:
        """Where a generation lies."""
        return self._root.generations / spec_id / str(number)

    def serve(self, spec_id: str, number: int) -> None:
        """Points envs/<workflow>/<node>, the path for people, at a generation."""
        link = self._root.envs / spec_id
        target = f"../../generations/{spec_id}/{number}"
        with contextlib.suppress(OSError):
            if os.readlink(link) == target:
                return
        self._files.make_folder(link.parent)
        self._files.flip_symlink(link, target)

    def withdraw(self, spec_id: str) -> None:
        """Removes the path for people of a spec that is no longer served."""
        self._files.unlink(self._root.envs / spec_id)
        with contextlib.suppress(OSError):
            (self._root.envs / spec_id).parent.rmdir()

    def _content(self, generation: Generation) -> Content | None:
        folder = self.folder(generation.spec, generation.number)
        with contextlib.suppress(OSError):
            return Content((folder / "pyproject.toml").read_bytes(), (folder / "uv.lock").read_bytes())
        return None

    def _numbers(self, spec_id: str) -> list[int]:
        # A number is never given twice, not even over a folder that can't be read.
        try:
            names = os.listdir(self._root.generations / spec_id)
        except FileNotFoundError:
            return []
        return [int(name) for name in names if name.isdecimal()]
