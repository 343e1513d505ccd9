"""What happens on a node, without a cluster: the process that builds there."""

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from envfabric.build.environment import Builder, Lost, Recipe, recipe_of
from envfabric.build.farm.executor import site_of
from envfabric.build.farm.words import Task, filled_of, raise_word
from envfabric.build.filling import Filled, Order, Tell
from envfabric.build.resolve import Resolver
from envfabric.build.uv import Uv
from envfabric.core.errors import StoreError
from envfabric.service.settings import FarmSettings
from envfabric.store.closures import Staging
from farm.hands import site, task, words
from support.fabric import Fabric
from support.place import Place
from support.simple_index import SimpleIndex
from support.waiting import wait_for


@contextlib.contextmanager
def children_ignored() -> Iterator[None]:
    """As in a process that does not want to know what becomes of its children."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


@dataclass
class Hands:
    """An executor that has each build done by a hand of its own on this host, as by a worker that ignores SIGCHLD."""

    place: Place
    elsewhere: bool = True

    @contextlib.contextmanager
    def host(self) -> Iterator["Hands"]:
        yield self

    def fill(self, order: Order, staging: Staging, tell: Tell) -> Filled:
        # What it is given is made before: it runs uv itself.
        wanted = Task(site(self.place), order, str(staging.folder), 120.0)
        with children_ignored():
            said = list(words(wanted))
        for word in said:
            if "phase" in word:
                tell(word["phase"])
            elif "filled" in word:
                return filled_of(word["filled"])
            elif "log" not in word:
                raise_word(word)
        raise Lost("no word")

    def stop(self) -> None:
        """Nothing goes on."""


def test_what_a_hand_finds_out_is_known_to_the_daemon(place: Place, recipe: Recipe) -> None:
    """Damaged content of uv's cache that is found on a node is fetched anew, as for a local build; phases and sizes
    are the same that a local build has. A worker that ignores SIGCHLD, as what starts Ray may, has uv's exit codes
    known all the same."""
    builder = Builder(place.closures, place.files, place.uv(), executor=Hands(place))
    heard: list[str] = []
    first = builder.build(recipe, heard.append)
    assert heard == ["validate", "sync", "validate", "seal", "bytecode", "seal"]
    assert set(first.phases) == {*heard, "total"}
    assert first.linked > 0
    assert first.link_fallbacks == 0
    closure = place.root.closure(first.name)
    assert sum(first.inodes.values()) >= sum(
        one.lstat().st_blocks * 512 for one in closure.iterdir() if one.is_file()
    )
    inside = next(closure.glob(".venv/lib/python*/site-packages/alpha/__init__.py"))
    inside.chmod(0o644)
    inside.write_text("DAMAGED = True\n")
    place.closures.mark_damaged(first.name, ["by a test"])
    second = Builder(place.closures, place.files, place.uv(), executor=Hands(place)).build(
        recipe, heard.append
    )
    assert second.name != first.name
    again = place.root.closure(second.name)
    assert "DAMAGED" not in (again / inside.relative_to(closure)).read_text()
    assert "the cache held other content of alpha than it should" in (again / "build.log").read_text()
    assert os.listdir(place.root.staging) == []


def test_hand_ends_with_its_worker(place: Place, recipe: Recipe, own_packages: SimpleIndex) -> None:
    """When the Ray worker is gone, uv is ended at once, and the folder can be removed."""
    release_it = own_packages.hold("beta")
    try:
        with place.closures.staging(elsewhere=True) as staging:
            said = words(task(place, recipe, staging))
            assert next(said) == {"phase": "sync"}
            wait_for(lambda: list(staging.venv.glob("bin/python")), message="uv has not begun")
            said.close()  # type: ignore[attr-defined]
    finally:
        release_it.set()
    closures = place.closures
    wait_for(lambda: not closures.recover(), message="the folder is held")
    assert os.listdir(place.root.staging) == []


def _claim(place: Place, staging: Staging) -> None:
    (place.root.locks / "epoch-2").touch()


def _give_up(place: Place, staging: Staging) -> None:
    staging.folder.with_name(f"{staging.folder.name}.lock").unlink()


@pytest.mark.parametrize("happens", [_claim, _give_up], ids=["a later epoch", "its folder's lock is gone"])
def test_hand_ends_when_nobody_wants_its_build(
    place: Place, recipe: Recipe, own_packages: SimpleIndex, happens: Callable[[Place, Staging], None]
) -> None:
    """When a later epoch is claimed on ROOT, or its folder was given up while its host was cut off, it ends."""
    release_it = own_packages.hold("beta")
    try:
        with place.closures.staging(elsewhere=True) as staging:
            said = words(task(place, recipe, staging))
            assert next(said) == {"phase": "sync"}
            happens(place, staging)
            assert "lost" in next(said)
    finally:
        release_it.set()
    assert os.listdir(place.root.staging) == []


def test_credentials_reach_uv_and_nothing_else(tmp_path: Path, place: Place) -> None:
    """An index that wants a password is used from a node; neither what is said nor the log has the password."""
    password = "s3cret-of-the-index"
    with SimpleIndex(tmp_path / "closed", user="me", password=password) as closed:
        closed.add_wheel("delta", "1.0")
        place.policy = replace(place.policy, indexes=(closed.url,))
        port = closed.url.partition("127.0.0.1")[2]
        secrets = {"UV_DEFAULT_INDEX": f"http://me:{password}@127.0.0.1{port}"}
        uv = Uv(place.root, timeout=120, secrets=secrets)
        spec = place.spec(["delta"], local=False)
        resolution = Resolver(
            place.root, place.files, uv, place.closures.staging, 86400.0, place.policy, None
        ).resolve(spec, place.python, None)
        told = replace(site_of(uv, 1, 2), hidden=(password,))
        assert password not in repr(told)
        with place.closures.staging(elsewhere=True) as staging:
            wanted = Task(told, Order(recipe_of(spec, resolution)), str(staging.folder), 60.0)
            said = list(words(wanted))
            assert "filled" in said[-1], said[-1]
            assert password not in json.dumps(said)
            assert password not in (staging.closure / "build.log").read_text()


def test_folder_is_left_to_who_writes_in_it(place: Place) -> None:
    """A staging folder that another host still holds is not removed, but left, and goes once it is free."""
    closures = place.closures
    joined, leave = threading.Event(), threading.Event()

    def elsewhere(folder: Path) -> None:
        with place.closures.join(folder):
            joined.set()
            leave.wait(60)

    with closures.staging(elsewhere=True) as staging:
        thread = threading.Thread(target=elsewhere, args=(staging.folder,))
        thread.start()
        assert joined.wait(60)
    name = staging.folder.name
    assert staging.folder.is_dir()
    assert closures.take_left() == {name}
    assert closures.take_left() == set()
    assert closures.recover({name}) == {name}
    leave.set()
    thread.join()
    assert closures.recover({name}) == set()
    assert os.listdir(place.root.staging) == []
    with pytest.raises(StoreError, match="is gone"), place.closures.join(staging.folder):
        pytest.fail("joined what is gone")


def test_cluster_that_is_away_is_told(fabric: Fabric) -> None:
    """While the cluster can't be reached builds fail with that reason, and are tried again."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        fabric.settings["farm"] = {"executor": "ray", "address": address}
        fabric.repo.spec("wf/one", ["gamma"])
        fabric.repo.commit()
        made = fabric.run_once(expect=1)
    entry = made["environments"]["wf/one"]
    assert (entry["state"], entry["error"]["reason"]) == ("failed", "internal")
    assert f"the Ray cluster of the build farm ({address}) can't be reached" in entry["error"]["message"]
    assert entry["error"]["retry_at"]
    assert os.listdir(fabric.root / "staging") == []


@pytest.mark.parametrize("table", [{"cpus": 1.5}, {"resources": {"CPU": 1}}, {"resources": {"b": 2.5}}])
def test_what_ray_would_refuse_is_no_setting(table: dict[str, Any]) -> None:
    """Amounts and names that Ray does not take are found at the start, not with each build."""
    with pytest.raises(ValidationError, match=r"must be a whole number|is no custom resource"):
        FarmSettings(**table)
