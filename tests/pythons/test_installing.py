"""A Python that is missing comes to ROOT/pythons from a mirror: once, whole, sealed, and for every user."""

import errno
import hashlib
import json
import os
import re
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from envfabric.build.interpreters import Interpreter
from envfabric.build.preflight import Cluster, choose
from envfabric.build.pythons import NotHere, Sources, listed
from envfabric.build.scope import Scope
from envfabric.core.errors import Reason, SpecError
from envfabric.specs.policy import Policy
from envfabric.specs.spec import PythonRequest, read_spec
from envfabric.store.files import Files
from envfabric.store.root import Root
from pythons.conftest import Open
from pythons.mirror import KEY, MINOR, VERSION, Served, write_list
from support.another_user import as_another_user, let_others_in
from support.children import uv_children
from support.fabric import BASE_PYTHON

WISH = PythonRequest(MINOR, "", "spec")


@pytest.fixture
def tight_umask() -> Iterator[None]:
    """What a daemon started by hand may have."""
    before = os.umask(0o077)
    yield
    os.umask(before)


def refusal(interpreters: object, request: PythonRequest = WISH) -> SpecError:
    """Why there is no interpreter for a request."""
    with pytest.raises(SpecError) as caught:
        interpreters.choose(request)  # type: ignore[attr-defined]
    return caught.value


def installs(runs: list[list[str]]) -> int:
    return sum(run[:2] == ["python", "install"] for run in runs)


def nothing_is_there(root: Root) -> bool:
    return list(root.pythons.iterdir()) == [] and list(root.staging.iterdir()) == []


def test_installed_once_sealed_and_for_everybody(
    open_with: Open, root: Root, runs: list[list[str]], tight_umask: None
) -> None:
    """Two that ask at once install once; what is there can be run by all and written by nobody, and is compiled."""
    interpreters = open_with()
    found: list[Interpreter] = []
    threads = [
        threading.Thread(target=lambda wish=wish: found.append(interpreters.choose(wish)))
        for wish in (WISH, PythonRequest(VERSION, "", "spec"), PythonRequest(None, f">={MINOR}", "spec"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    home = root.pythons / KEY
    assert {one.path for one in found} == {str(home.resolve() / f"bin/python{MINOR}")} and len(found) == 3
    assert installs(runs) == 1
    assert [one.name for one in root.pythons.iterdir()] == [KEY]
    assert list(root.staging.iterdir()) == []

    for folder, folders, names in os.walk(home):
        for path in (Path(folder, name) for name in folders + names):
            mode = path.lstat().st_mode
            assert stat.S_ISLNK(mode) or (mode & 0o222 == 0 and mode & 0o444 == 0o444), path
            # Neither a text nor a compiled file says where it was made.
            assert stat.S_ISLNK(mode) or stat.S_ISDIR(mode) or b"/staging/" not in path.read_bytes(), path
    assert stat.S_IMODE(home.stat().st_mode) == 0o755
    assert list(home.glob("lib/python3*/EXTERNALLY-MANAGED"))

    told = "import json.decoder as d; print(d.JSONDecoder.decode.__code__.co_filename)"
    traced = subprocess.run(
        [found[0].path, "-I", "-v", "-c", told], capture_output=True, text=True, check=True
    )
    # -v tells of each module whether its compiled file was taken.
    library = home.resolve() / f"lib/python{MINOR}"
    assert traced.stdout.strip() == f"{library}/json/decoder.py"
    # By this name of the file: a distribution's own Python reads another.
    (built,) = library.glob("_sysconfigdata__linux_*.py")
    assert re.findall(r"""["']prefix["']: ["']([^"']*)""", built.read_text()) == [str(home.resolve())]
    linked = (home / f"lib/pkgconfig/python-{MINOR}.pc").read_text()
    assert linked.splitlines()[0] == "prefix=${pcfiledir}/../.."
    script = [home.resolve() / f"bin/idle{MINOR}"]
    assert subprocess.run(script, capture_output=True, text=True, check=True).stdout == "idle\n"
    assert f"# code object from '{library}/json/__pycache__/decoder" in traced.stderr
    assert not [line for line in traced.stderr.splitlines() if line.startswith("# wrote")]

    let_others_in(home)
    python = found[0].path

    def by_another() -> bool:
        return subprocess.run([python, "-I", "-c", "import json"], check=False).returncode == 0

    assert as_another_user(by_another)
    assert found[0].unreachable(root.path) == ""


def test_a_record_outlives_newer_patches(open_with: Open, root: Root) -> None:
    """A request stays with the patch that it was fixed to when a newer one comes; one that names it gets the newer."""
    first = open_with().choose(WISH)
    record = json.loads(next((root.state / "pythons").iterdir()).read_bytes())
    assert (record["path"], record["version"], record["request"]) == (first.path, VERSION, f"{MINOR}|")
    assert record["fixed_at"]

    newer = root.pythons / KEY.replace(VERSION, f"{MINOR}.99")
    (newer / "bin").mkdir(parents=True)
    facts = {name: getattr(first, name) for name in Interpreter.__slots__}
    facts |= {"path": str(newer.resolve() / "bin/python3"), "version": f"{MINOR}.99"}
    (newer / "bin/python3").write_text(f"#!/bin/sh\necho '{json.dumps(facts)}'\n")
    (newer / "bin/python3").chmod(0o755)
    again = open_with()
    assert again.choose(WISH) == first
    assert again.choose(PythonRequest(f"{MINOR}.99", "", "spec")).path == facts["path"]

    known = {one["path"]: one for one in listed(root)}
    assert known[first.path]["requests"] == [f"{MINOR}|"]
    assert known[facts["path"]]["requests"] == [f"{MINOR}.99|"]
    assert all(one["managed"] and one["present"] and one["closures"] == 0 for one in known.values())
    # What lies there by hand stays until a hand removes it.
    assert known[first.path]["brought"] and not known[facts["path"]]["brought"]


def test_what_fails_at_the_last_step_leaves_nothing(open_with: Open, root: Root) -> None:
    """A NAS that is gone when the finished Python is put in place: nothing is there, and it is told."""

    def step(operation: str, path: Path) -> None:
        if operation == "rename" and path.parent == root.pythons:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    error = refusal(open_with(files=Files(step)))
    assert error.reason is Reason.STORE and error.reason.passing
    assert nothing_is_there(root)


def test_mirror_that_has_it_not(open_with: Open, root: Root, archive: Path, runs: list[list[str]]) -> None:
    """The error names the mirror without its password, is one that is tried again, and is not asked for by each."""
    with Served(archive).running() as served:
        sources = Sources(mirror=f"http://ann:pass-word-7@{served.host}/pythons")
        interpreters = open_with(sources=sources)
        error = refusal(interpreters)
        assert error.reason is Reason.FETCH
        assert f"@{served.host}/pythons" in error.message and "404" in error.message
        assert "pass-word-7" not in error.message + error.output
        asked = len(served.asked)
        assert asked and all(one.startswith("/pythons/") for one in served.asked)
        assert refusal(interpreters).message == error.message
        assert len(served.asked) == asked and installs(runs) == 1
    assert nothing_is_there(root)


def test_mirror_that_hangs(open_with: Open, root: Root, archive: Path, tmp_path: Path) -> None:
    """It is given up when the step's time is over, uv is ended with it, and the next to ask need not wait as long."""
    with Served(archive).running() as served:
        listed = write_list(tmp_path, f"http://{served.host}/{archive.name}", "0" * 64)
        interpreters = open_with(sources=Sources(json_url=str(listed)))
        with pytest.raises(NotHere) as missing:
            interpreters.choose(WISH, here=True)
        assert missing.value.what == ""
        interpreters.bring("")
        with pytest.raises(NotHere) as missing:
            interpreters.choose(WISH, here=True)
        assert missing.value.what == KEY and served.asked == []
        with Scope(f"installing {KEY}", 3.0).entered():
            error = refusal(interpreters)
        assert error.reason is Reason.TIMEOUT and error.reason.passing
        assert f"installing {KEY} ran longer than 3 s and was ended, during uv python" in error.message
        assert f"See whether {listed} answers." in error.message
        assert uv_children(os.getpid(), "python") == []
        asked = len(served.asked)
        assert refusal(interpreters) is error and len(served.asked) == asked
    assert nothing_is_there(root)


def test_mirror_as_a_folder_is_checked_by_uv(open_with: Open, root: Root, tmp_path: Path) -> None:
    """A copied release, `<tag>/<file>` below a file:// mirror, is taken only with the hash that uv knows."""
    interpreters = open_with(sources=Sources(mirror=f"file://{tmp_path}/mirror"))
    missing = refusal(interpreters)
    assert missing.reason is Reason.FETCH and f"{tmp_path}/mirror/" in missing.message
    wanted = Path(missing.message.partition("`")[2].partition("`")[0])
    assert wanted.is_relative_to(tmp_path / "mirror") and wanted.name.startswith(f"cpython-{MINOR}.")
    wanted.parent.mkdir(parents=True)
    wanted.write_bytes(b"no Python")
    error = refusal(open_with(sources=Sources(mirror=f"file://{tmp_path}/mirror")))
    assert error.reason in {Reason.BUILD_FAILED, Reason.FETCH}, error.message
    assert nothing_is_there(root)


def test_archive_that_was_changed(open_with: Open, root: Root, archive: Path, tmp_path: Path) -> None:
    """An archive that has not the hash of the list is refused with both, and nothing of it stays."""
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    other = write_list(tmp_path, archive.as_uri(), digest[::-1])
    error = refusal(open_with(sources=Sources(json_url=str(other))))
    assert error.reason is Reason.BUILD_FAILED and not error.reason.passing
    assert (
        f"{other}: the archive there has the SHA-256 {digest}, and {digest[::-1]} is expected"
        in error.message
    )
    assert nothing_is_there(root)


def test_nothing_is_downloaded_unless_allowed(open_with: Open, root: Root, runs: list[list[str]]) -> None:
    """By default what is missing is told; and with "only-managed" what the machine has does not count."""
    assert refusal(open_with(downloads=False)).reason is Reason.UNRESOLVABLE
    error = refusal(open_with(allowed=[BASE_PYTHON], downloads=False, only_managed=True))
    assert error.reason is Reason.UNRESOLVABLE and f"in {root.pythons}" in error.message
    assert runs == []
    other = refusal(open_with(), PythonRequest("3.99", "", "spec"))
    assert other.reason is Reason.UNRESOLVABLE and "none that uv can get" in other.message
    assert installs(runs) == 0


def test_cluster_python_is_waited_for(open_with: Open, tmp_path: Path) -> None:
    """A spec for the cluster is not given another patch because the mirror is away: it would keep that one."""
    text = (
        '[project]\nname = "one"\nversion = "1"\nrequires-python = ">=3.11"\n[tool.envfabric]\nray = true\n'
    )
    spec = read_spec("wf/one", "0" * 40, {"pyproject.toml": text.encode()}, Policy())
    cluster = Cluster(None, f"{MINOR}.99")
    away = open_with(allowed=[BASE_PYTHON], sources=Sources(json_url=str(tmp_path / "none.json")))
    with pytest.raises(SpecError) as caught:
        choose(spec, away, cluster)
    assert caught.value.reason is Reason.FETCH
    # A mirror that answers, and has no such version, is another matter: Ray runs with another patch.
    assert choose(spec, open_with(allowed=[BASE_PYTHON]), cluster).version == VERSION


def test_what_is_here_is_not_waited_for(open_with: Open, root: Root) -> None:
    """A look at what is here waits for nobody who has the list, or the same Python, asked for anew."""
    pythons = open_with()._pythons
    assert pythons is not None
    pythons.offered()
    (root.pythons / KEY / "bin").mkdir(parents=True)
    (root.pythons / KEY / "bin/python3").symlink_to(BASE_PYTHON)
    # Who waits here would wait for itself: the scope ends that.
    with pythons._turn(""), pythons._turn(KEY), Scope("a look", 5.0).entered():
        assert pythons.offered(here=True)[VERSION] == KEY
        pythons.install(KEY, here=True)


def test_a_python_that_nodes_cannot_reach(open_with: Open, root: Root, tmp_path: Path) -> None:
    """One behind a closed folder is said to be that, and gives way to a download; without downloads it is used."""
    folder = tmp_path / "closed"
    folder.mkdir()
    facts = {"path": str(folder.resolve() / "python3"), "version": f"{MINOR}.98", "implementation": "cpython"}
    facts |= {"abi": f"cpython-{MINOR}", "platform": "linux", "libc": "glibc"}
    (folder / "python3").write_text(f"#!/bin/sh\necho '{json.dumps(facts)}'\n")
    (folder / "python3").chmod(0o755)
    let_others_in(folder)
    folder.chmod(0o700)
    used = open_with(allowed=[facts["path"]], downloads=False).choose(WISH)
    assert used.version == f"{MINOR}.98" and not used.shared
    assert used.unreachable(root.path) == f"other users can't pass {folder.resolve()} (mode 0700)"
    folder.chmod(0o755)
    assert "every node needs the same" in used.unreachable(root.path)
    folder.chmod(0o700)
    for record in (root.state / "pythons").iterdir():
        record.unlink()
    assert open_with(allowed=[facts["path"]]).choose(WISH).version == VERSION
