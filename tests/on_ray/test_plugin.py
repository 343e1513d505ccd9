"""The plugin by itself, as a user whose uid is not the daemon's: what Ray's agent calls, without a cluster."""

import asyncio
import importlib.metadata
import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from examples.conftest import remove
from support.waiting import wait_for

NOBODY = 65534
LOGGER = logging.getLogger(__name__)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Path]:
    """A ROOT that nobody can write to, with one closure, and leases that everybody can."""
    root = tmp_path / "nas"
    closure = root / "store/abc"
    packages = closure / f".venv/lib/python3.{sys.version_info[1]}/site-packages/ray"
    packages.mkdir(parents=True)
    (packages / "__init__.py").write_text("")
    (closure / ".venv/bin").mkdir()
    version = platform.python_version()
    # The tests' own interpreter may lie in a folder of root's.
    (closure / ".venv/bin/python").write_text(f"#!/bin/sh\necho {version}\n")
    told = {"ray_version": importlib.metadata.version("ray"), "python_version": version}
    (closure / "metadata.json").write_text(json.dumps(told))
    (root / ".envfabric.json").write_text("{}")
    (root / "leases").mkdir()
    for path in (root, *root.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o555 if path.is_dir() else 0o444)
    (closure / ".venv/bin/python").chmod(0o555)
    (root / "leases").chmod(0o1777)
    # pytest's folders are closed to others; a worker's NAS is not.
    for folder in tmp_path.parents:
        if folder.stat().st_mode & 0o001 == 0:
            folder.chmod(0o755)
    tmp_path.chmod(0o755)
    yield root
    remove(root)


def as_another_user(work: Callable[[], Any]) -> Any:
    """What it gives, done by a child that root has made another user; an ordinary user stays what it is."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            # Here, so that the tests' own process has no Ray, which the client would go by; and before the user
            # changes, who may not be let into the tests' own packages.
            from envfabric.client import plugin  # noqa: F401

            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            os.write(writing, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answers:
        told = answers.read()
    os.waitpid(child, 0)
    return json.loads(told)


def used(root: Path, **options: Any) -> dict[str, Any]:
    """What an agent does for the first worker of an environment, and after its last."""
    from envfabric.client.plugin import EnvfabricPlugin

    value = {"id": "wf/node", "digest": "abc", "root": str(root), **options}
    env: Any = {"envfabric": value}
    plugin = EnvfabricPlugin()
    context: Any = None
    (uri,) = plugin.get_uris(env)
    try:
        asyncio.run(plugin.create(uri, env, context, LOGGER))
    except Exception as error:
        return {"error": str(error)}
    held = sorted(path.parent.name for path in (root / "leases").glob("*/*"))
    plugin.delete_uri(uri, LOGGER)
    wait_for(lambda: not list((root / "leases").glob("*/*")), timeout=60, message="the lease is still there")
    return {"held": held}


def test_reads_root_and_writes_leases(mount: Path) -> None:
    """All that a node's user needs to write is the folder of the leases; it is given back there, too."""
    assert as_another_user(lambda: used(mount)) == {"held": ["abc"]}


def test_leases_that_can_not_be_written(mount: Path) -> None:
    """Refused, as the closure could be removed under its workers: with the folder, and each way out. Without a lease
    it runs where that is asked for."""
    (mount / "leases").chmod(0o555)
    told = as_another_user(lambda: used(mount))["error"]
    for words in (
        f"chmod 1777 {mount}/leases",
        "set leases",
        "'lease': False",
        "only what a generation serves",
    ):
        assert words in told
    assert as_another_user(lambda: used(mount, lease=False)) == {"held": []}


def test_one_without_a_lease_is_not_enough_for_the_next(mount: Path) -> None:
    """Ray asks once for what it has: with and without a lease are two things for it."""
    from envfabric.client.wanted import parse

    value = {"id": "wf/node", "digest": "abc"}
    assert parse(value).uri != parse({**value, "lease": False}).uri
