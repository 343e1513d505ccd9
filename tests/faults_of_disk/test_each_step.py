"""Failing system calls at each kind of step of a build, its sealing and its publication, under the real daemon."""

import errno
import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from envfabric.core.errors import FabricError
from envfabric.store import files as files_module
from envfabric.store.files import Files
from faults_of_disk.inside import daemon, kind_of, surroundings
from store.small_venv import assert_whole
from support.fabric import Fabric
from support.simple_index import SimpleIndex
from support.spec_repo import SpecRepo

CODES = [
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.EROFS,
    errno.EMLINK,
    errno.EXDEV,
    errno.ESTALE,
]
FULL = {errno.ENOSPC, errno.EDQUOT}
ALWAYS = (
    "flush staging/",
    "write staging/*/closure/manifest",
    "rename store/",
    "rename generations/",
    "write index.json",
    "rename index.json",
)
"""Steps that every fault happens at; the others are shared out among the faults."""
SHARE = 7
"""Of how many other kinds of step one is taken for a fault: as many as there are faults."""


@dataclass
class Changing:
    """A fabric that serves one environment, and whose newest commit asks for another one."""

    fabric: Fabric
    base: Path
    kinds: list[tuple[str, int]]
    """Each kind of step of the way there, with how often it was met before: staging is used twice."""

    def restore(self) -> None:
        """ROOT as it was before the newest commit."""
        Files().remove_tree(self.fabric.root)
        subprocess.run(["cp", "-a", self.base, self.fabric.root], check=True)

    def check_what_is_served(self) -> dict[str, Any]:
        """Fails where anything that the index names is not whole and working; gives the index."""
        index = self.fabric.index()
        assert index["python"].keys() == index["environments"].keys() == {"wf/a"}
        entry = index["environments"]["wf/a"]
        closure = self.fabric.root / "store" / entry["serving"]
        assert index["python"]["wf/a"] == f"{closure}/.venv/bin/python"
        assert_whole(closure)
        code = "import sys; print(sys.prefix)"
        for python in (index["python"]["wf/a"], self.fabric.root / "envs/wf/a/.venv/bin/python"):
            told = subprocess.run([python, "-I", "-S", "-c", code], capture_output=True, check=False)
            assert told.returncode == 0, told.stderr
        generation = self.fabric.root / "generations/wf/a" / str(entry["generation"])
        metadata = json.loads((generation / "metadata.json").read_bytes())
        assert metadata["digest"] == entry["serving"]
        return index


class Quick:
    """A libc that says that all is on disk: what is tried here is not what a loss of power leaves."""

    def syncfs(self, _: int) -> int:
        return 0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, packages: SimpleIndex) -> Changing:
    """It is made once; each try restores it."""
    folder = tmp_path_factory.mktemp("steps")
    fabric = Fabric(folder, packages, SpecRepo(folder / "specs"))
    for requirement in ("alpha", "beta"):
        # Committed locks: no index has to be asked, and no resolution differs from the one before.
        folder = fabric.repo.spec("wf/a", [requirement], index=fabric.packages.url).parent
        (folder / "uv.lock").unlink(missing_ok=True)
        fabric.lock(folder)
        fabric.repo.commit(requirement)
        if requirement == "alpha":
            fabric.run_once()
    base = fabric.folder / "base"
    subprocess.run(["cp", "-a", fabric.root, base], check=True)
    seen: Counter[str] = Counter()
    kinds: list[tuple[str, int]] = []

    def step(operation: str, path: Path) -> None:
        kind = kind_of(fabric.root, operation, path)
        # One staging folder resolves, the next one builds. Mere progress is published or is not, by the clock.
        if seen[kind] < 1 + ("staging/*" in kind) and "probe" not in kind:
            kinds.append((kind, seen[kind]))
        seen[kind] += 1

    with surroundings(fabric):
        index = daemon(fabric, step).run_once()
        assert index is not None
        assert index.entries["wf/a"].state == "ready"
    return Changing(fabric, base, kinds)


@pytest.fixture
def changing(made: Changing, monkeypatch: pytest.MonkeyPatch) -> Iterator[Changing]:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(files_module, "_LIBC", Quick())
    with surroundings(made.fabric):
        yield made


def chosen(kinds: list[tuple[str, int]], code: int) -> list[tuple[str, int]]:
    """Which steps fail with this error: over all errors each kind is met more than once."""
    start = CODES.index(code)
    return [
        one
        for number, one in enumerate(kinds)
        if one[0].startswith(ALWAYS) or number % SHARE == start % SHARE
    ]


def test_every_kind_of_step_is_met(changing: Changing) -> None:
    """What the faults are tried at has each step that is known to make and publish an environment."""
    names = [kind for kind, _ in changing.kinds]
    for wanted in (*ALWAYS, "write staging/*.lock", "mkdir staging/", "write locks/", "link locks/"):
        assert any(name.startswith(wanted) for name in names), wanted
    met = {one for code in CODES for one in chosen(changing.kinds, code)}
    assert met == set(changing.kinds)


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_fault_at_each_kind_of_step(changing: Changing, code: int) -> None:
    """Whichever step fails: what the index names works, the error says why, and the next run mends it."""
    told = Counter[str]()
    for kind, before in chosen(changing.kinds, code):
        changing.restore()
        old = changing.fabric.index()
        met = 0

        def step(operation: str, path: Path, kind: str = kind, before: int = before) -> None:
            nonlocal met
            if kind_of(changing.fabric.root, operation, path) == kind:
                met += 1
                if met == before + 1:
                    raise OSError(code, os.strerror(code), str(path))

        where = f"{kind}, time {before + 1}"
        try:
            daemon(changing.fabric, step).run_once()
        except (FabricError, OSError) as error:
            assert os.strerror(code) in str(error), where
            assert changing.fabric.index()["python"] == old["python"], where
            told["ended"] += 1
        assert met > before, f"{where} was not met"
        index = changing.check_what_is_served()
        entry = index["environments"]["wf/a"]
        if entry["error"]:
            told[entry["error"]["reason"]] += 1
            assert entry["state"] == "stale", where
            assert index["python"] == old["python"], where
            assert entry["error"]["reason"] == ("no-space" if code in FULL else "store"), where
            assert os.strerror(code) in entry["error"]["message"], where
            assert ("Free space" if code in FULL else "Check the NAS") in entry["error"]["message"], where
            assert entry["error"]["retry_at"], where
        if index["python"] == old["python"]:
            daemon(changing.fabric, lambda *_: None).run_once()
            index = changing.check_what_is_served()
            entry = index["environments"]["wf/a"]
        assert (entry["state"], entry["error"], entry["generation"]) == ("ready", None, 2), where
        assert index["python"] != old["python"], where
    assert told["no-space" if code in FULL else "store"] > 0
    assert told["ended"] > 0
    assert not told.keys() - {"ended", "no-space" if code in FULL else "store"}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS], ids=errno.errorcode.get)
def test_everything_fails_from_a_step_on(changing: Changing, code: int) -> None:
    """Where nothing can be written any more from some step on, the old index is true, and the next run mends all."""
    for start in ALWAYS:
        changing.restore()
        old = changing.fabric.index()
        failing = False

        def step(operation: str, path: Path, start: str = start) -> None:
            nonlocal failing
            kind = kind_of(changing.fabric.root, operation, path)
            failing = failing or (kind.startswith(start) and "probe" not in kind)
            if failing:
                raise OSError(code, os.strerror(code), str(path))

        with pytest.raises(OSError, match=os.strerror(code)):
            daemon(changing.fabric, step).run_once()
        assert changing.check_what_is_served()["python"] == old["python"], start
        index = daemon(changing.fabric, lambda *_: None).run_once()
        assert index is not None
        assert index.entries["wf/a"].state == "ready", start
        assert changing.check_what_is_served()["python"] != old["python"], start
        assert os.listdir(changing.fabric.root / "staging") == [], start
