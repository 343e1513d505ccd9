"""The plugin by itself, as a user whose uid is not the daemon's: what Ray's agent calls, without a cluster."""

import asyncio
import errno
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

from envfabric.client import watch
from envfabric.client.attempt import Attempt
from envfabric.client.driver import decided
from envfabric.client.index import EnvironmentFailed
from envfabric.client.runtime import added_by
from envfabric.client.wanted import parse
from examples.conftest import remove
from support.another_user import as_another_user, let_others_in
from support.waiting import wait_for

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
    known: dict[str, Any] = {"wf/node": {}, "wf/other": {}}
    index = {"schema": 1, "revision": "c" * 40, "python": {}, "environments": known, "problems": []}
    (root / "index.json").write_text(json.dumps(index))
    (root / ".envfabric.json").write_text("{}")
    (root / "leases").mkdir()
    for path in (root, *root.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o555 if path.is_dir() else 0o444)
    (closure / ".venv/bin/python").chmod(0o555)
    (root / "leases").chmod(0o1777)
    let_others_in(tmp_path)
    yield root
    remove(root)


def on_a_node(work: Callable[[], Any], *, stays: bool = False) -> Any:
    """What it gives, done by a child with Ray in it: the client goes by the Ray of its own process."""

    def prepare() -> None:
        from envfabric.client import plugin  # noqa: F401

    return as_another_user(work, prepare=prepare, stays=stays)


def used(root: Path, /, **options: Any) -> dict[str, Any]:
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
    assert on_a_node(lambda: used(mount)) == {"held": ["abc"]}


def test_leases_that_can_not_be_written(mount: Path) -> None:
    """Refused, as the closure could be removed under its workers: with the folder, and each way out. Without a lease
    it runs where that is asked for."""
    (mount / "leases").chmod(0o555)
    told = on_a_node(lambda: used(mount))["error"]
    for words in (
        f"chmod 1777 {mount}/leases",
        "set leases",
        "'lease': False",
        "only what a generation serves",
    ):
        assert words in told
    assert on_a_node(lambda: used(mount, lease=False)) == {"held": []}


def test_one_without_a_lease_is_not_enough_for_the_next(mount: Path) -> None:
    """Ray asks once for what it has: with and without a lease are two things for it."""
    value = {"id": "wf/node", "digest": "abc"}
    assert parse(value).uri() != parse({**value, "lease": False}).uri()


def asked_twice(root: Path) -> dict[str, Any]:
    """What is leased by two calls for one environment, after its last use, and where it does not start at all."""
    from envfabric.client.plugin import EnvfabricPlugin

    env: Any = {"envfabric": {"id": "wf/node", "digest": "abc", "root": str(root)}}
    plugin = EnvfabricPlugin()
    context: Any = None
    (uri,) = plugin.get_uris(env)

    def held() -> int:
        return len([path for path in (root / "leases").glob("*/*") if not path.name.startswith(".")])

    for _ in range(2):
        asyncio.run(plugin.create(uri, env, context, LOGGER))
    wait_for(lambda: held() == 1, timeout=60, message="both are leased")
    plugin.delete_uri(uri, LOGGER)
    wait_for(lambda: held() == 0, timeout=60, message="one of them is leased for ever")
    python = root / "store/abc/.venv/bin/python"
    python.chmod(0o755)
    python.write_text("#!/bin/sh\necho no luck >&2\nexit 3\n")
    with pytest.raises(EnvironmentFailed) as caught:
        asyncio.run(plugin.create(uri, env, context, LOGGER))
    return {"error": str(caught.value), "held": held(), "under way": len(plugin._under_way)}


def test_no_lease_is_left_that_nobody_gives_back(mount: Path) -> None:
    """Asked twice for one environment the node has one lease on it, which its last use ends; where it turns out only
    after the lease that it can't be run there is none, and nothing is kept of the try."""
    told = on_a_node(lambda: asked_twice(mount), stays=True)
    assert "no luck" in told["error"]
    assert (told["held"], told["under way"]) == (0, 0)


def given_up(root: Path) -> dict[str, Any]:
    """What becomes of a lease that is taken after all have gone: the NAS comes back late."""
    from envfabric.client.plugin import EnvfabricPlugin

    value = {"id": "wf/node", "digest": "abc", "root": str(root), "timeout": 0.2}
    env: Any = {"envfabric": value, "py_executable": f"{root}/store/abc/.venv/bin/python"}
    plugin = EnvfabricPlugin()
    context: Any = None
    told = root / "store/abc/metadata.json"
    content = told.read_bytes()
    told.parent.chmod(0o755)
    told.unlink()
    # Whoever opens it waits until there is one who writes.
    os.mkfifo(told)
    (uri,) = plugin.get_uris(env)
    with pytest.raises(EnvironmentFailed, match="has not answered"):
        asyncio.run(plugin.create(uri, env, context, LOGGER))
    works = [one for one in threading.enumerate() if one.name == "envfabric wf/node"]
    told.write_bytes(content)
    for one in works:
        one.join(60)
    # It is the lease that makes the closure's folder.
    taken = (root / "leases/abc").is_dir()
    wait_for(lambda: not list((root / "leases").glob("*/*")), timeout=60, message="it is leased for nobody")
    return {"works": len(works), "taken": taken}


def test_lease_that_comes_too_late_is_given_back(mount: Path) -> None:
    """Ray has given up on a NAS that hangs; what is leased once it is back would be leased for nobody."""
    assert on_a_node(lambda: given_up(mount), stays=True) == {"works": 1, "taken": True}


def contexts(root: Path) -> dict[str, Any]:
    """What workers get by a value by hand and by the client's, and once the closure is gone."""
    from ray._private.runtime_env.context import RuntimeEnvContext
    from ray.runtime_env import RuntimeEnv

    from envfabric.client.plugin import EnvfabricPlugin

    value = {"id": "wf/node", "digest": "abc", "root": str(root), "ttl": 3}
    python = str(root / "store/abc/.venv/bin/python")
    plugin = EnvfabricPlugin()
    told: dict[str, Any] = {}
    envs = {
        "by hand": RuntimeEnv(envfabric=value),
        "client": RuntimeEnv(envfabric=value, py_executable=python),
        "unleased": RuntimeEnv(envfabric={**value, "lease": False}),
    }
    uris = {name: plugin.get_uris(env)[0] for name, env in envs.items()}
    for name, env in envs.items():
        asyncio.run(plugin.create(uris[name], env, RuntimeEnvContext(), LOGGER))
        context = RuntimeEnvContext()
        plugin.modify_context([uris[name]], env, context, LOGGER)
        told[name] = [context.py_executable == python, context.env_vars.get("OLD")]
    told["leases"] = len(list((root / "leases").glob("*/*")))
    (root / "store").chmod(0o755)
    (root / "store/abc").rename(root / "store/def")
    for name, env in envs.items():
        wait_for(lambda: _refuses(plugin, uris[name], env), timeout=60, message="it is not noticed")  # noqa: B023
    told["gone"] = _refuses(plugin, uris["unleased"], envs["unleased"])
    (root / "store/def").rename(root / "store/abc")
    for name, env in envs.items():
        wait_for(lambda: not _refuses(plugin, uris[name], env), timeout=60, message="it stays refused")  # noqa: B023
    return told


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
    under those who use it, leased or not, the next worker is refused and does not hang; until it is back."""
    told = on_a_node(lambda: contexts(mount), stays=True)
    assert told["by hand"] == told["unleased"] == [True, "1"]
    assert told["client"] == [True, None]
    assert told["leases"] == 2
    assert "was there and is not any more" in told["gone"]


def test_each_who_waits_has_a_time_of_its_own() -> None:
    """One user's short timeout is not another's, whose environment is the same."""
    release = threading.Event()
    attempt = Attempt(lambda alive: release.wait(60), lambda found: None, "test")

    async def both() -> bool:
        assert attempt.joined()
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
        answered.set()
        asyncio.get_running_loop().call_later(1, release.set)
        return await attempt.result(0.01)

    assert asyncio.run(wait())


def test_what_ends_at_once_is_taken_by_who_began_it_and_by_nobody_twice() -> None:
    """It may be over before its owner's next line. Until the owner has taken it, another one who comes joins it: a
    second lease for the same would be given back by nobody."""
    given: list[int] = []
    attempt = Attempt(lambda alive: 1, given.append, "at once")
    for thread in [one for one in threading.enumerate() if one.name == "at once"]:
        thread.join(60)
    assert attempt.ended and attempt.joined()

    async def both() -> list[int]:
        return [await attempt.result(60), await attempt.result(60)]

    assert asyncio.run(both()) == [1, 1]
    assert given == []


def test_a_look_that_fails_once_is_soon_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's hiccup is no end of an environment: whoever is refused for it has it looked at, and Ray's next try
    finds it well, however rarely it is looked at otherwise."""
    for name in ("_AGAIN", "_SOONEST"):
        monkeypatch.setattr(watch, name, 1e6)
    fault: list[Exception | bool] = []
    looks = threading.Semaphore(0)

    def look() -> bool:
        looks.release()
        found = fault.pop() if fault else True
        if isinstance(found, Exception):
            raise found
        return found

    seen = watch.Watch(look, 1e7, "hiccup")
    seen.start(seen.now())
    for one in (OSError(errno.ESTALE, "stale"), False):
        assert seen.well
        fault.append(one)
        seen.look_soon()
        assert looks.acquire(timeout=60)
        wait_for(lambda: not seen.well, timeout=60, message="a look that failed is not minded")
        seen.look_soon()
        wait_for(lambda: seen.well, timeout=60, message="it is not looked at again")
        assert looks.acquire(timeout=60)
    seen.end()


def test_a_lease_is_not_renewed_without_a_pause() -> None:
    """Renewals are the agent's work: no user makes it do nothing else. Another ttl is another lease."""
    value = {"id": "wf/node", "digest": "abc"}
    for ttl in (1e-9, 2.9, 1e6):
        with pytest.raises(ValueError, match="at least 3"):
            parse({**value, "ttl": ttl})
    assert parse({**value, "ttl": 3}).uri() != parse(value).uri()


def test_a_value_by_hand_is_one_thing_for_all_nodes(mount: Path) -> None:
    """Its variables are those of a generation of that id: of another id's closure it is refused, and where they differ
    from generation to generation the number has to be in it. Of a spec that was removed there are none."""
    generations = mount / "generations/wf"
    for folder in (generations, generations / "node"):
        folder.chmod(0o755)
    newer = generations / "node/2"
    newer.mkdir()
    (newer / "metadata.json").write_text('{"runtime_env": {"env_vars": {"OLD": "2"}}}')
    (newer / ".venv").symlink_to(mount / "store/abc/.venv")
    value = {"id": "wf/node", "digest": "abc"}

    def adds(alike: bool = True, **changed: Any) -> dict[str, Any]:
        return added_by(mount, parse({**value, **changed}), alike=alike)

    with pytest.raises(EnvironmentFailed, match=r'generations 1 and 2 of wf/node .*"generation": 2'):
        adds()
    assert [adds(generation=number)["env_vars"]["OLD"] for number in (1, 2)] == ["1", "2"]
    # A driver decides once, for all.
    assert adds(alike=False)["env_vars"] == {"OLD": "2"}
    (newer / "metadata.json").write_text('{"runtime_env": {"env_vars": {"OLD": "1"}, "excludes": ["x"]}}')
    assert adds()["env_vars"] == {"OLD": "1"}
    for changed in ({"id": "wf/other"}, {"generation": 3}):
        with pytest.raises(EnvironmentFailed, match=r"no generation .*another spec's.*envfabric history wf/"):
            adds(**changed)
    assert adds(id="wf/removed") == {}


def test_what_ray_counts_the_uses_of() -> None:
    """What is ready by the client's value is not enough for one by hand, which brings variables, nor one generation's
    for another's."""
    value = {"id": "wf/node", "digest": "abc", "root": "/nas"}
    client = parse(value).uri("wrap /nas/store/abc/.venv/bin/python -X dev")
    others = (None, "/nas/store/abc/.venv/bin/python3", "/x/nas/store/abc/.venv/bin/python", "python")
    assert {parse(value).uri(one) for one in others} == {f"{client}?by-hand"}
    assert len({client, parse(value).uri(), *(parse({**value, "generation": n}).uri() for n in (1, 2))}) == 4
    for wrong in (0, True, "1"):
        with pytest.raises(ValueError, match="envfabric history"):
            parse({**value, "generation": wrong})
    with pytest.raises(ValueError, match="its digest"):
        parse({"id": "wf/node", "generation": 1})


def test_root_that_a_node_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody gives a node a flag: it says what to set before `ray start`, or what to write into the value."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ENVFABRIC_ROOT", raising=False)
    monkeypatch.delenv("ENVFABRIC_CONFIG", raising=False)
    told = on_a_node(lambda: used(tmp_path, root=None), stays=True)["error"]
    assert "export ENVFABRIC_ROOT before `ray start` on" in told
    assert "give root in the value" in told
    assert "--root" not in told


def test_what_the_driver_has_decided_is_looked_at(mount: Path) -> None:
    """The hook passes on what the client made, where its interpreter is still there; a path that only has the digest in
    it is no decision."""
    python = str(mount / "store/abc/.venv/bin/python")
    value = {"id": "wf/node", "digest": "abc", "root": str(mount)}
    made = {"envfabric": value, "py_executable": f"wrap {python}"}
    assert decided(made) is made
    with pytest.raises(EnvironmentFailed, match="another interpreter"):
        decided({"envfabric": value, "py_executable": f"{python}3.99"})
    (mount / "store").chmod(0o755)
    (mount / "store/abc").rename(mount / "store/def")
    with pytest.raises(EnvironmentFailed, match="is not there on"):
        decided(made)
