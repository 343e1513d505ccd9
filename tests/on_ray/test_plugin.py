"""The plugin by itself, as a user whose uid is not the daemon's: what Ray's agent calls, without a cluster."""

import asyncio
import importlib.metadata
import json
import logging
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from envfabric.client.attempt import Attempt
from envfabric.client.wanted import parse
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
    generation = root / "generations/wf/node/1"
    generation.mkdir(parents=True)
    (generation / "metadata.json").write_text('{"runtime_env": {"env_vars": {"OLD": "1"}}}')
    (generation / ".venv").symlink_to(closure / ".venv")
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


def as_another_user(work: Callable[[], Any], *, stays: bool = False) -> Any:
    """What it gives, done by a child that root has made another user, unless it `stays`; an ordinary user does."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            # Here, so that the tests' own process has no Ray, which the client would go by; and before the user
            # changes, who may not be let into the tests' own packages.
            from envfabric.client import plugin  # noqa: F401

            if os.geteuid() == 0 and not stays:
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
    value = {"id": "wf/node", "digest": "abc"}
    assert parse(value).uri != parse({**value, "lease": False}).uri


def contexts(root: Path) -> dict[str, Any]:
    """What workers get by a value by hand and by the client's, and once the closure is gone."""
    from ray._private.runtime_env.context import RuntimeEnvContext
    from ray.runtime_env import RuntimeEnv

    from envfabric.client.plugin import EnvfabricPlugin

    value = {"id": "wf/node", "digest": "abc", "root": str(root), "ttl": 3}
    python = str(root / "store/abc/.venv/bin/python")
    plugin = EnvfabricPlugin()
    (uri,) = plugin.get_uris(RuntimeEnv(envfabric=value))
    asyncio.run(plugin.create(uri, RuntimeEnv(envfabric=value), RuntimeEnvContext(), LOGGER))
    told: dict[str, Any] = {}
    by_hand = RuntimeEnv(envfabric=value)
    for name, env in (("by hand", by_hand), ("client", RuntimeEnv(envfabric=value, py_executable=python))):
        context = RuntimeEnvContext()
        plugin.modify_context([uri], env, context, LOGGER)
        told[name] = [context.py_executable == python, context.env_vars.get("OLD")]
    (root / "store").chmod(0o755)
    (root / "store/abc").rename(root / "store/def")
    wait_for(lambda: _refuses(plugin, uri, by_hand), timeout=60, message="it is not noticed")
    return {**told, "gone": _refuses(plugin, uri, by_hand)}


def _refuses(plugin: Any, uri: str, env: Any) -> str:
    from ray._private.runtime_env.context import RuntimeEnvContext

    from envfabric.client.index import EnvironmentFailed

    try:
        plugin.modify_context([uri], env, RuntimeEnvContext(), LOGGER)
    except EnvironmentFailed as error:
        return str(error)
    return ""


def test_what_workers_get(mount: Path) -> None:
    """A value by hand brings the spec's variables; the client has put in those that it meant. Once the closure is gone
    under those who use it, the next worker is refused and does not hang."""
    told = as_another_user(lambda: contexts(mount), stays=True)
    assert told["by hand"] == [True, "1"]
    assert told["client"] == [True, None]
    assert "was there and is not any more" in told["gone"]


def test_each_who_waits_has_a_time_of_its_own() -> None:
    """One user's short timeout is not another's, whose environment is the same."""
    release = threading.Event()
    attempt = Attempt(lambda alive: release.wait(60), lambda found: None, "test")

    async def both() -> bool:
        assert attempt.joined() and attempt.joined()
        with pytest.raises(TimeoutError):
            await attempt.result(0.01)
        release.set()
        return await attempt.result(60)

    assert asyncio.run(both())


def test_what_is_alive_has_longer() -> None:
    """Reading ray's library at a cold start takes longer than a NAS that answers may take to do so."""
    release, answered = threading.Event(), threading.Event()

    def work(alive: Callable[[float], None]) -> bool:
        assert answered.wait(60)
        alive(60)
        return release.wait(60)

    attempt = Attempt(work, lambda found: None, "test")

    async def wait() -> bool:
        assert attempt.joined()
        answered.set()
        asyncio.get_running_loop().call_later(1, release.set)
        return await attempt.result(0.01)

    assert asyncio.run(wait())


def test_a_lease_is_not_renewed_without_a_pause() -> None:
    """Renewals are the agent's work: no user makes it do nothing else. Another ttl is another lease."""
    value = {"id": "wf/node", "digest": "abc"}
    for ttl in (1e-9, 2.9, 1e6):
        with pytest.raises(ValueError, match="at least 3"):
            parse({**value, "ttl": ttl})
    assert parse({**value, "ttl": 3}).uri != parse(value).uri
