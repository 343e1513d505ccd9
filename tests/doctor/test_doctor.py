"""`envfabric doctor`: each thing that keeps a machine from using a ROOT is a finding with what to do."""

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

import envfabric
from doctor.conftest import PLAIN, PYTHON, WITH_RAY, Nas, spoil_library, trouble
from envfabric.client import doctor
from support.without_rights import obey_modes

PACKAGES = Path(envfabric.__file__).parents[1]


def run(nas: Nas, *words: str, python: str | Path = sys.executable) -> subprocess.CompletedProcess[str]:
    """The command as a process, by a user who can't go past file modes."""
    return subprocess.run(
        [python, "-m", "envfabric", "doctor", "--root", nas.path, *words],
        env={"PYTHONPATH": str(PACKAGES), "PATH": os.environ["PATH"]},
        cwd=nas.path.parent,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=obey_modes,
    )


def listing(path: Path) -> set[str]:
    return {str(one) for one in path.rglob("*")}


def test_machine_that_is_right(nas: Nas) -> None:
    """Every check is ok, exit code 0, and ROOT is as it was."""
    before = listing(nas.path)
    done = run(nas, "--json")
    told = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    found = {one["check"]: one for one in told["findings"]}
    good = ["root", "mount", "rights", "index", "writer", "published", "leases", "interpreters"]
    assert [found[check]["level"] for check in good] == ["ok"] * len(good)
    assert {"file system", "space", "settings"} <= set(found)
    assert "2 of 2 environments served" in found["index"]["found"]
    assert f"pid {os.getpid()} on {os.uname().nodename}" in found["writer"]["found"]
    assert listing(nas.path) == before


def test_form_of_the_json(nas: Nas) -> None:
    """Is stable: a number of its form, who looked where, counts, and four keys for each finding."""
    (nas.path / ".envfabric.json").unlink()
    told = json.loads(run(nas, "--json").stdout)
    assert sorted(told) == ["findings", "host", "problems", "schema", "user", "warnings"]
    assert told["schema"] == 1
    levels = [one["level"] for one in told["findings"]]
    assert (told["problems"], told["warnings"]) == (levels.count("problem"), levels.count("warning"))
    assert told["problems"] == 1
    for one in told["findings"]:
        assert sorted(one) == ["check", "do", "found", "level"]
        assert one["level"] in {"ok", "info", "warning", "problem"}
        assert one["do"] or one["level"] in {"ok", "info"}


def test_nothing_is_written_unless_it_is_asked_for(nas: Nas) -> None:
    """Not even for a moment: no folder's time changes; with --write they do, and nothing stays."""
    folders = [nas.path, *(one for one in nas.path.rglob("*") if one.is_dir())]
    times = {one: one.stat().st_mtime_ns for one in folders}
    assert run(nas).returncode == 0
    assert {one: one.stat().st_mtime_ns for one in folders} == times
    before = listing(nas.path)
    assert run(nas, "--write").returncode == 0
    assert (nas.path / "leases").stat().st_mtime_ns != times[nas.path / "leases"]
    assert listing(nas.path) == before


def test_base_distribution_is_enough(nas: Nas, tmp_path: Path) -> None:
    """In a bare interpreter; and with --ray it says that this one has no ray."""
    bare = tmp_path / "bare"
    venv.create(bare, with_pip=False, symlinks=True)
    done = run(nas, python=bare / "bin/python")
    assert done.returncode == 0
    assert "environment-fabric[daemon]" in done.stdout
    done = run(nas, "--ray", python=bare / "bin/python")
    assert done.returncode == 1
    # Raylets of others on this machine may be problems, too.
    problems = [one for one in done.stdout.splitlines() if one.startswith("problem ")]
    (line,) = [one for one in problems if "ray can't be imported" in one]
    assert "No module named 'ray'" in line


def test_people_read_a_line_for_each_and_what_to_do(nas: Nas) -> None:
    """The last line counts."""
    shutil.rmtree(nas.path / "leases")
    done = run(nas)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("problem "))
    assert lines[at].split()[1] == "leases"
    assert lines[at + 1].split()[0] == "->"
    assert lines[-1].startswith("1 problem and ")


def test_root_that_nobody_named(nas: Nas) -> None:
    """Is a finding, and no traceback; ENVFABRIC_ROOT and the settings are named where they did."""
    found = doctor.look(None, None, ray=False, timeout=60)[0]
    assert (found.check, found.level) == ("root", "problem")
    settings = nas.path.parent / "envfabric.toml"
    settings.write_text(f'root = "{nas.path}"\n')
    first = doctor.look(None, settings, ray=False, timeout=60)[0]
    assert (first.level, first.found) == ("ok", f"{nas.path} (by {settings})")


def unmounted(nas: Nas) -> None:
    (nas.path / ".envfabric.json").unlink()


def newer(nas: Nas) -> None:
    (nas.path / ".envfabric.json").write_text('{"schema": 2}')


def spoilt(nas: Nas) -> None:
    (nas.path / ".envfabric.json").write_text("[]")


def moved(nas: Nas) -> None:
    nas.publish(root="/elsewhere")


def spoilt_index(nas: Nas) -> None:
    nas.root.index.write_text("{")


def leases_elsewhere(nas: Nas) -> None:
    (nas.path / ".envfabric.json").write_text(json.dumps({"schema": 1, "leases": str(nas.path.parent)}))


def lost_closure(nas: Nas) -> None:
    shutil.rmtree(nas.root.closure(WITH_RAY))


def no_base(nas: Nas) -> None:
    nas.link(WITH_RAY, "/no/such/python3.11")


def other_python(nas: Nas) -> None:
    nas.link(WITH_RAY, nas.fake("python9", "echo 9.9.9"))


def broken_python(nas: Nas) -> None:
    nas.link(PLAIN, nas.fake("python-broken", "echo it broke >&2; exit 3"))


def closed_python(nas: Nas) -> None:
    folder = nas.root.pythons / "closed"
    folder.mkdir(mode=0o700)
    nas.link(PLAIN, nas.fake("closed/python3", f"echo {PYTHON}"))


def closed_root(nas: Nas) -> None:
    nas.root.index.chmod(0o600)


@pytest.mark.parametrize(
    ("spoil", "check", "words"),
    [
        (unmounted, "mount", ("is not there", "Mount the NAS at")),
        (newer, "mount", ("schema 2", "Install the environment-fabric")),
        (spoilt, "mount", ("can't be read",)),
        (moved, "index", ("begin with /elsewhere", "Mount it at /elsewhere")),
        (spoilt_index, "index", ("can't be read",)),
        (leases_elsewhere, "leases", (".envfabric-leases", "Mount the folder of the leases")),
        (lost_closure, "interpreters", ("of wf/ray can't be read", "same file system")),
        (no_base, "interpreters", ("wf/ray", "base interpreter /no/such/python3.11 is missing")),
        (other_python, "interpreters", ("Python 9.9.9", PYTHON)),
        (broken_python, "interpreters", ("wf/plain", "it broke")),
    ],
)
def test_what_is_broken_is_a_problem_that_says_what_to_do(
    nas: Nas, spoil: Callable[[Nas], None], check: str, words: tuple[str, ...]
) -> None:
    """It is the only problem: what follows from it is not said as well."""
    spoil(nas)
    found = nas.look()
    assert trouble(found) == [check]
    assert found[check].level == "problem"
    for word in words:
        assert word in f"{found[check].found} {found[check].do}"


def test_clock_by_what_is_published(nas: Nas) -> None:
    """Of the future nothing can be: one of the clocks is wrong."""
    nas.publish(published_at="2999-01-01T00:00:00.000Z")
    found = nas.look()
    assert trouble(found) == ["clock"]
    assert "2999-01-01T00:00:00Z" in found["clock"].found


def test_what_is_not_as_committed_is_told(nas: Nas) -> None:
    """It is of the specs, not of the installation: no problem."""
    index = nas.publish()
    index["environments"]["wf/plain"]["state"] = "stale"
    nas.publish(environments=index["environments"])
    found = nas.look()["published"]
    assert (found.level, "1 not as committed" in found.found) == ("info", True)
    assert found.do == "`envfabric status wf/plain` says why."


def test_no_code_of_a_package_is_loaded(nas: Nas) -> None:
    """A library at ray's place is any package's: it would end the look, and is not touched."""
    for name in (PLAIN, WITH_RAY):
        spoil_library(nas, name)
    assert nas.look()["interpreters"].level == "ok"


@pytest.mark.parametrize(
    ("spoil", "check", "words"),
    [
        (closed_python, "interpreters", ("of wf/plain can't be reached by other users", "pythons")),
        (closed_root, "rights", ("index.json (0600)", "chmod -R a+rX")),
    ],
)
def test_what_is_closed_to_others_is_a_warning(
    nas: Nas, spoil: Callable[[Nas], None], check: str, words: tuple[str, ...]
) -> None:
    """Where daemon and workers are one user it works: the exit code stays 0."""
    spoil(nas)
    found = nas.look()
    assert (trouble(found), found[check].level) == ([check], "warning")
    for word in words:
        assert word in f"{found[check].found} {found[check].do}"
    assert run(nas).returncode == 0


def test_patch_version_is_a_warning(nas: Nas) -> None:
    """Ray and everything else run; nothing published yet is one, too."""
    minor = ".".join(PYTHON.split(".")[:2])
    nas.link(PLAIN, nas.fake("python-patch", f"echo {minor}.99"))
    assert nas.look()["interpreters"].level == "warning"
    nas.root.index.unlink()
    found = nas.look()
    assert found["index"].level == "warning"
    assert "interpreters" not in found
    assert run(nas).returncode == 0


def test_leases_of_another_user_that_are_closed(nas: Nas) -> None:
    """Says what the daemon's user has to do; nothing is left where only half of it was allowed."""
    place = nas.path / "leases"
    place.chmod(0o555)
    try:
        done = run(nas, "--json")
    finally:
        place.chmod(0o755)
    (bad,) = [one for one in json.loads(done.stdout)["findings"] if one["level"] == "problem"]
    assert (bad["check"], bad["level"], done.returncode) == ("leases", "problem", 1)
    assert f"chmod 1777 {place}" in bad["do"]
    assert os.listdir(place) == []


@pytest.mark.parametrize(
    ("hung", "check"),
    [
        (".envfabric.json", "mount"),
        ("index.json", "index"),
        (f"store/{PLAIN}/.venv/bin/python", "interpreters"),
    ],
)
def test_mount_that_does_not_answer_is_a_finding(nas: Nas, hung: str, check: str) -> None:
    """The process comes to its end all the same, and nothing else waits for the same mount."""
    path = nas.path / hung
    path.unlink()
    if check == "interpreters":
        path.symlink_to(nas.fake("waits", "exec sleep 1000"))
    else:
        # Whoever opens it waits for ever.
        os.mkfifo(path)
    done = run(nas, "--timeout", "2", "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)["findings"]
    (bad,) = [one for one in told if one["level"] == "problem"]
    assert bad["check"] == check
    assert "within 2 s" in bad["found"] or "timed out" in bad["found"]
    if check != "interpreters":
        # What needs no ROOT is looked at all the same.
        assert [one["check"] for one in told[told.index(bad) + 1 :]] == ["settings", "unit"]


@pytest.mark.root
def test_mount_without_exec(nas: Nas, tmp_path: Path) -> None:
    """No interpreter could be run from it; the mount is this process's own."""
    place = tmp_path / "noexec"
    place.mkdir()
    script = 'mount -t tmpfs -o noexec none "$1" && cp "$2" "$1" && exec "$3" -m envfabric doctor --root "$1" --json'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", place, nas.path / ".envfabric.json", sys.executable],
        env={"PYTHONPATH": str(PACKAGES), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    (bad,) = [one for one in json.loads(done.stdout)["findings"] if one["level"] == "problem"]
    assert "noexec" in bad["found"]
    assert f"mount {place} with exec" in bad["do"]


def test_wrong_usage(nas: Nas) -> None:
    """Exit code 2, as everywhere."""
    assert run(nas, "--timeout", "soon").returncode == 2
    assert run(nas, "--timeout", "0").returncode == 2
    assert run(nas, "--writes-too").returncode == 2
