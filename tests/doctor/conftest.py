"""A ROOT made by hand, with two closures that are served, and the doctor's findings about it."""

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from envfabric.client import doctor
from envfabric.client.findings import Finding
from envfabric.store.files import Files
from envfabric.store.prepare import init_root
from envfabric.store.root import Root
from envfabric.store.writer import Writer
from support.fabric import BASE_PYTHON

PLAIN, WITH_RAY = "a1" * 32, "b2" * 32
PYTHON = platform.python_version()


@dataclass
class Nas:
    """A ROOT that everything is right with."""

    root: Root

    @property
    def path(self) -> Path:
        return self.root.path

    def python(self, name: str) -> Path:
        return Path(self.root.python(name))

    def link(self, name: str, base: str | Path) -> None:
        """Makes a closure's interpreter a link to another one."""
        self.python(name).unlink(missing_ok=True)
        self.python(name).symlink_to(base)

    def publish(self, **top: Any) -> dict[str, Any]:
        served = {"wf/plain": PLAIN, "wf/ray": WITH_RAY}
        entries = {
            spec_id: {
                "state": "ready",
                "serving": name,
                "error": None,
                "python_version": PYTHON,
                "ray_version": "2.60.0" if name == WITH_RAY else None,
            }
            for spec_id, name in served.items()
        }
        index = {
            "schema": 1,
            "revision": "c" * 40,
            "published_at": "2026-01-01T00:00:00.000Z",
            "root": str(self.path),
            "python": {spec_id: self.root.python(name) for spec_id, name in served.items()},
            "environments": entries,
            "problems": [],
        } | top
        Files().write_atomic(self.root.index, json.dumps(index).encode())
        self.root.index.chmod(0o644)
        return index

    def fake(self, name: str, script: str) -> Path:
        """An interpreter of a line or two, which every user can reach as far as it depends on ROOT."""
        path = self.root.pythons / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def look(self, timeout: float = 60.0, **options: Any) -> dict[str, Finding]:
        """What is found, by check: the last of each."""
        found = doctor.look(self.path, None, ray=False, timeout=timeout, **options)
        return {one.check: one for one in found}


OF_THE_MACHINE = {"file system", "space"}
"""Checks whose outcome is the test machine's own."""


def trouble(found: dict[str, Finding]) -> list[str]:
    """The checks with a warning or a problem that a test has made."""
    bad = {"warning", "problem"}
    return [name for name, one in found.items() if one.level in bad and name not in OF_THE_MACHINE]


def spoil_library(nas: Nas, name: str) -> None:
    """Puts what no process can load where ray has its library."""
    path = nas.root.closure(name) / ".venv/lib/python3.11/site-packages/ray/_raylet.so"
    path.parent.mkdir(parents=True)
    path.write_text("no library")


@pytest.fixture
def nas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nas]:
    for name in [one for one in os.environ if one.startswith(("ENVFABRIC_", "RAY_"))]:
        monkeypatch.delenv(name)
    # No settings of this machine.
    monkeypatch.chdir(tmp_path)
    made = Nas(init_root(tmp_path / "nas", Files()))
    for name in (PLAIN, WITH_RAY):
        made.python(name).parent.mkdir(parents=True)
        made.link(name, made.fake("python3", f'exec {BASE_PYTHON} "$@"'))
    made.publish()
    for folder in (made.path, made.root.store, made.root.pythons):
        folder.chmod(0o755)
    with Writer(made.root, Files()).acquire():
        yield made
