"""What makes a node unfit: it refuses, changes nothing, and says what to do."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path

import pytest

from envfabric.build.environment import Recipe
from envfabric.build.farm.fitness import check_platform, check_root, check_staging
from envfabric.build.farm.hand import Mouth, fill
from envfabric.build.farm.node import build
from envfabric.build.farm.words import Refused, Site, Task, raise_word
from envfabric.build.filling import Order
from envfabric.store.files import Files
from farm.hands import site, task, words
from support.place import Place

_NOBODY = 65534
Change = Callable[[Site, Recipe], tuple[Site, Recipe]]


def _other_uid(site: Site, recipe: Recipe) -> tuple[Site, Recipe]:
    return replace(site, uid=site.uid + 1), recipe


def _other_root(site: Site, recipe: Recipe) -> tuple[Site, Recipe]:
    return replace(site, marker=b"{}"), recipe


def _no_root(site: Site, recipe: Recipe) -> tuple[Site, Recipe]:
    return replace(site, root=f"{site.root}/nothing"), recipe


def _other_uv(site: Site, recipe: Recipe) -> tuple[Site, Recipe]:
    return replace(site, uv_version="0.0.1"), recipe


def _other_python(site: Site, recipe: Recipe) -> tuple[Site, Recipe]:
    python = replace(recipe.closure.interpreter, version="3.11.99")
    return site, replace(recipe, closure=replace(recipe.closure, interpreter=python))


def _no_python(site: Site, recipe: Recipe) -> tuple[Site, Recipe]:
    python = replace(recipe.closure.interpreter, path="/no/such/python3")
    return site, replace(recipe, closure=replace(recipe.closure, interpreter=python))


def _other_platform(site: Site, recipe: Recipe) -> tuple[Site, Recipe]:
    python = replace(recipe.closure.interpreter, platform="linux-s390x")
    return site, replace(recipe, closure=replace(recipe.closure, interpreter=python))


def _older_libc(site: Site, recipe: Recipe) -> tuple[Site, Recipe]:
    # The daemon's is one that no node can have yet.
    python = replace(recipe.closure.interpreter, libc="glibc 9.100")
    return site, replace(recipe, closure=replace(recipe.closure, interpreter=python))


@pytest.mark.parametrize(
    ("change", "reason", "told"),
    [
        (_other_uid, "store", "Start Ray there as the daemon's user"),
        (_other_root, "store", "has another folder at"),
        (_no_root, "store", "does not see ROOT at"),
        (_other_uv, "internal", "Install uv==0.0.1 in Ray's Python there"),
        (_other_python, "internal", "Python 3.11.99 for the daemon"),
        (_no_python, "internal", "does not start there"),
        (_other_platform, "internal", "and the daemon's host is linux-s390x"),
        (_older_libc, "internal", "and the daemon's host has glibc 9.100"),
    ],
)
def test_unfit_node_says_what_to_do(
    place: Place, recipe: Recipe, change: Change, reason: str, told: str
) -> None:
    """A node that differs from the daemon's host refuses, names itself and what to do, and leaves nothing."""
    with place.closures.staging(elsewhere=True) as staging:
        changed, other = change(site(place), recipe)
        (word,) = words(Task(changed, Order(other), str(staging.folder), 60.0))
        assert word["reason"] == reason
        assert told in word["refused"]
        assert f"node {os.uname().nodename} " in word["refused"] or "on node " in word["refused"]
        assert sorted(os.listdir(staging.folder)) == ["closure", "project"]
        assert os.listdir(staging.closure) == []
        with pytest.raises(Refused):
            raise_word(word)


def test_another_release_is_not_given_the_task(place: Place, recipe: Recipe) -> None:
    """A node with another release of the project says so, and reads nothing of the task."""
    (word,) = (json.loads(one) for one in build("0.0.0", b"not to be read"))
    assert "environment-fabric[daemon]==0.0.0" in word["refused"]


def test_staging_folder_that_is_gone_is_not_made_anew(place: Place, recipe: Recipe) -> None:
    """A task that comes late, after its folder was removed, refuses."""
    with place.closures.staging(elsewhere=True) as staging:
        late = task(place, recipe, staging)
    (word,) = words(late)
    assert "is gone, or is not to be seen" in word["refused"]
    assert os.listdir(place.root.staging) == []


def test_folder_that_can_not_be_written_is_the_nodes_fault(place: Place, recipe: Recipe) -> None:
    """Read-only or squashed mounts fail at the first open. The node is passed over: told as the build's failure, it
    would be the least loaded one for all the next."""
    with place.closures.staging(elsewhere=True) as staging:
        lock = staging.folder.with_name(f"{staging.folder.name}.lock")
        lock.unlink()
        # Whoever opens it for writing gets an error, root as well.
        lock.mkdir()
        (word,) = words(task(place, recipe, staging))
        lock.rmdir()
    assert word["reason"] == "store"
    assert f"can't write to {staging.folder}" in word["refused"]
    assert "mount ROOT there read-write" in word["refused"]


@pytest.mark.parametrize(
    ("found", "built", "told"),
    [
        ("glibc 2.100", False, None),
        ("glibc 2.36", True, None),
        ("glibc 2.9", False, "node here has glibc 2.9 and the daemon's host has glibc 2.36"),
        ("glibc 2.100", True, "what is built from source there (alpha) need not load elsewhere"),
        ("unknown", False, "has a C library that is not glibc"),
    ],
)
def test_c_library_of_a_node(place: Place, recipe: Recipe, found: str, built: bool, told: str | None) -> None:
    """Wheels run on a newer one, not on an older one or another; what is compiled runs where it is the same. They
    are compared as numbers."""
    python = replace(recipe.closure.interpreter, libc="glibc 2.36")
    alpha = next(one for one in recipe.closure.distributions if one.name == "alpha")
    if built:
        alpha = replace(alpha, wheel="alpha-1.0.tar.gz")
    closure = replace(recipe.closure, interpreter=python, distributions=(alpha,))
    there = replace(python, libc=found)
    if told is None:
        check_platform(closure, there, "here")
    else:
        with pytest.raises(Refused) as refused:
            check_platform(closure, there, "here")
        assert told in str(refused.value)


def test_a_node_without_a_tmp_says_so(
    place: Place, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that can't begin for want of a /tmp refuses with that, and not with what to install."""
    with place.closures.staging(elsewhere=True) as staging:
        wanted = task(place, recipe, staging)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
        (word,) = words(wanted)
    assert word["reason"] == "internal"
    assert "can't begin to build: [Errno 2] No such file or directory" in word["refused"]
    assert "Look into its /tmp" in word["refused"]
    assert "install" not in word["refused"]


_SAID = """
import os, sys, tempfile
from envfabric.build.farm.node import build, release
# A worker knows its place for such files from before it was full.
tempfile.tempdir = os.environ["TMPDIR"]
for one in build(release(), sys.stdin.buffer.read()):
    print(one.decode())
"""


@pytest.mark.root
@pytest.mark.parametrize(
    ("mount", "told"),
    [
        ("mount --bind $1 $1 && mount -o remount,bind,ro $1", "(Read-only file system): mount ROOT"),
        ("mount -t tmpfs -o nr_inodes=1 none $TMPDIR", "[Errno 28] No space left on device"),
    ],
    ids=["read-only", "full"],
)
def test_a_nodes_own_mounts(place: Place, recipe: Recipe, tmp_path: Path, mount: str, told: str) -> None:
    """ROOT that is mounted read-only on the node, and a /tmp there that is full, are each told as what they are."""
    own = tmp_path / "tmp"
    own.mkdir()
    with place.closures.staging(elsewhere=True) as staging:
        script = f'{mount} && shift && exec "$@"'
        done = subprocess.run(
            [
                *("unshare", "--mount", "sh", "-c", script, "sh", str(place.root.path)),
                sys.executable,
                "-c",
                _SAID,
            ],
            input=task(place, recipe, staging).packed(),
            env={**os.environ, "TMPDIR": str(own)},
            capture_output=True,
            check=False,
        )
        word = json.loads(done.stdout.splitlines()[-1])
        assert told in word["refused"], (word, done.stderr)
        assert sorted(os.listdir(staging.folder)) == ["closure", "project"]


@pytest.mark.root
def test_another_user_is_refused(place: Place, recipe: Recipe) -> None:
    """A node whose Ray runs as another user is found out before it has written anything, and where the file server
    has it be another one, at the first file that it opens."""
    told = site(place)
    for folder in (place.root.path, *place.root.path.parents):
        if folder != Path("/tmp"):
            folder.chmod(0o755 if folder != Path("/") else folder.stat().st_mode & 0o7777)
    with place.closures.staging(elsewhere=True) as staging:
        squashed = task(place, recipe, staging, uid=_NOBODY)

        def join() -> None:
            word = fill(squashed, Mouth(Pipe()[0]))
            assert f"can't write to {staging.folder} as uid {_NOBODY} (Permission denied)" in word["refused"]
            assert "without squashing" in word["refused"]
            raise_word(word)

        checks: list[Callable[[], None]] = [
            lambda: check_root(told, place.root, "here"),
            lambda: check_staging(staging, Files(), "here"),
            join,
        ]
        if (pid := os.fork()) == 0:
            code = 1
            try:
                os.setuid(_NOBODY)
                code = 2
                for check in checks:
                    with pytest.raises(Refused):
                        check()
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
