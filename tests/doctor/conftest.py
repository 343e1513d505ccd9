"""A ROOT made by hand, with two closures that are served, and the doctor's findings about it."""

import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from envfabric.client import doctor
from envfabric.client.findings import Finding
from envfabric.store.files import Files
from envfabric.store.prepare import init_root
from envfabric.store.root import Root
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
        return index

    def look(self, timeout: float = 60.0) -> dict[str, Finding]:
        """What is found, by check: the last of each."""
        found = doctor.look(self.path, None, ray=False, timeout=timeout)
        return {one.check: one for one in found}


def spoil_library(nas: Nas, name: str) -> None:
    """Puts what no process can load where ray has its library."""
    path = nas.root.closure(name) / ".venv/lib/python3.11/site-packages/ray/_raylet.so"
    path.parent.mkdir(parents=True)
    path.write_text("no library")


@pytest.fixture
def nas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nas:
    for name in [one for one in os.environ if one.startswith(("ENVFABRIC_", "RAY_"))]:
        monkeypatch.delenv(name)
    # No settings of this machine.
    monkeypatch.chdir(tmp_path)
    made = Nas(init_root(tmp_path / "nas", Files()))
    for name in (PLAIN, WITH_RAY):
        made.python(name).parent.mkdir(parents=True)
        made.link(name, BASE_PYTHON)
    made.publish()
    return made
