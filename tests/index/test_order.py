"""The order on ROOT, closure, generation, index.json, envs/: whatever ends it, what is named exists."""

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from envfabric.core.errors import StoreError
from envfabric.index.document import Entry
from envfabric.index.publisher import Publisher
from envfabric.store.closures import Closures
from envfabric.store.files import Files
from envfabric.store.generations import Content, Generation, Generations
from envfabric.store.root import Root
from envfabric.store.usage import Usage
from envfabric.store.writer import Writer
from store.faults import each_fault, each_kill
from store.small_venv import assert_whole, build

SPEC = "wf/a"
TEMPLATE = Generation(
    spec=SPEC,
    number=0,
    digest="",
    inputs="",
    tree="",
    commit="",
    built_at="2025-01-01T00:00:00.000Z",
    python_version="3.11.7",
    ray_version=None,
    lock_origin="resolved",
    runtime_env={"env_vars": {}, "working_dir": None, "excludes": []},
    closure={},
)


def whole_way(root: Root, version: str, files: Files) -> None:
    """From nothing to the index, as a daemon does that starts, builds one commit, and publishes it."""
    with Writer(root, files).acquire() as writer:
        as_writer(root, version, files, writer)


def as_writer(root: Root, version: str, files: Files, writer: Writer) -> None:
    closures, generations, usage = Closures(root, files), Generations(root, files), Usage(root, files)
    publisher = Publisher(root, files, writer, generations)
    closures.recover()
    usage.load()
    publisher.load()
    publisher.adopt_links()
    digest = f"digest-{version}"
    if not usage.known(digest):
        usage.keep(digest, build(closures, root, digest, "alpha", f"pkg{version}"))
        usage.add(digest)
    wanted = replace(TEMPLATE, digest=digest, commit=version)
    made = generations.record(wanted, Content(version.encode(), b""))
    entry = Entry("ready", version, version, serving=digest, generation=made.number)
    publisher.publish(version, {SPEC: entry}, ())


def published(root: Root) -> str:
    """The revision of the index; fails where anything that the index or envs/ names is not there."""
    index = json.loads(root.index.read_bytes())
    assert index["python"].keys() == index["environments"].keys() == {SPEC}
    entry = index["environments"][SPEC]
    assert os.access(index["python"][SPEC], os.X_OK)
    assert_whole(root.closure(entry["serving"]))
    generation = Generations(root, Files()).read(SPEC, entry["generation"])
    assert generation is not None
    assert generation.digest == entry["serving"]
    assert os.access(root.envs / SPEC / ".venv" / "bin" / "python", os.X_OK)
    return str(index["revision"])


def test_fault_at_any_step_of_the_whole_way(root: Root) -> None:
    """Each fault leaves a true index, and the next try without one makes the new revision true."""
    whole_way(root, "v0", Files())
    seen = set()
    for number, steps in enumerate(each_fault()):
        before = f"v{number}"
        wanted = f"v{number + 1}"
        try:
            whole_way(root, wanted, Files(steps))
        except (OSError, StoreError):
            assert steps.failed
        revision = published(root)
        assert revision in (before, wanted)
        seen.add(revision == wanted)
        whole_way(root, wanted, Files())
        assert published(root) == wanted
        assert os.path.realpath(root.envs / SPEC / ".venv").endswith(f"/digest-{wanted}/.venv")
    assert seen == {True, False}


def test_kill_at_any_step_of_the_whole_way(root: Root) -> None:
    """Each kill -9 leaves a true index, and the next start makes the new revision true and cleans up."""
    whole_way(root, "v0", Files())
    seen = set()
    for number, run in each_kill():
        before, wanted = f"v{number}", f"v{number + 1}"
        run(partial(whole_way, root, wanted))
        revision = published(root)
        assert revision in (before, wanted)
        seen.add(revision == wanted)
        whole_way(root, wanted, Files())
        assert published(root) == wanted
        assert os.path.realpath(root.envs / SPEC / ".venv").endswith(f"/digest-{wanted}/.venv")
        assert os.listdir(root.staging) == []
    assert seen == {True, False}


@pytest.mark.parametrize("folder", ["store", "generations"])
def test_index_comes_after_what_it_names(root: Root, folder: str) -> None:
    """At the moment index.json is renamed, the new closure and the new generation are in their places."""
    at_rename = []

    def step(operation: str, path: Path) -> None:
        if (operation, path) == ("rename", root.index):
            at_rename.append(sorted(one.name for one in (root.path / folder).rglob("*") if one.is_dir()))
            assert not os.path.lexists(root.envs / SPEC), "envs/ is flipped after the index"

    whole_way(root, "v1", Files(step))
    (there,) = at_rename
    assert ("digest-v1" if folder == "store" else "1") in there
