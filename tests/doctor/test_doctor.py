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
from doctor.conftest import PLAIN, PYTHON, WITH_RAY, Nas, spoil_library
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
    assert [(one["check"], one["level"]) for one in told["findings"]] == [
        ("root", "ok"),
        ("mount", "ok"),
        ("index", "ok"),
        ("leases", "ok"),
        ("interpreters", "ok"),
    ]
    assert (told["problems"], told["warnings"]) == (0, 0)
    assert "2 of 2 environments served" in told["findings"][2]["found"]
    assert listing(nas.path) == before


def test_base_distribution_is_enough(nas: Nas, tmp_path: Path) -> None:
    """In a bare interpreter; and with --ray it says that this one has no ray."""
    bare = tmp_path / "bare"
    venv.create(bare, with_pip=False, symlinks=True)
    assert run(nas, python=bare / "bin/python").returncode == 0
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
    assert lines[-1].startswith("1 problem and 0 warnings on ")


def test_root_that_nobody_named(nas: Nas) -> None:
    """Is a finding, and no traceback; ENVFABRIC_ROOT and the settings are named where they did."""
    (found,) = doctor.look(None, None, ray=False, timeout=60)
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
    fake = nas.path.parent / "python9"
    fake.write_text("#!/bin/sh\necho 9.9.9\n")
    fake.chmod(0o755)
    nas.link(WITH_RAY, fake)


def broken_python(nas: Nas) -> None:
    fake = nas.path.parent / "python-broken"
    fake.write_text("#!/bin/sh\necho it broke >&2; exit 3\n")
    fake.chmod(0o755)
    nas.link(PLAIN, fake)


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
    assert [name for name, one in found.items() if one.level != "ok"] == [check]
    assert found[check].level == "problem"
    for word in words:
        assert word in f"{found[check].found} {found[check].do}"


def test_no_code_of_a_package_is_loaded(nas: Nas) -> None:
    """A library at ray's place is any package's: it would end the look, and is not touched."""
    for name in (PLAIN, WITH_RAY):
        spoil_library(nas, name)
    assert nas.look()["interpreters"].level == "ok"


def test_patch_version_is_a_warning(nas: Nas) -> None:
    """Ray and everything else run; nothing published yet is one, too."""
    minor = ".".join(PYTHON.split(".")[:2])
    fake = nas.path.parent / "python-patch"
    fake.write_text(f"#!/bin/sh\necho {minor}.99\n")
    fake.chmod(0o755)
    nas.link(PLAIN, fake)
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
    (bad,) = [one for one in json.loads(done.stdout)["findings"] if one["level"] != "ok"]
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
        waits = nas.path.parent / "waits"
        waits.write_text("#!/bin/sh\nexec sleep 1000\n")
        waits.chmod(0o755)
        path.symlink_to(waits)
    else:
        # Whoever opens it waits for ever.
        os.mkfifo(path)
    done = run(nas, "--timeout", "2", "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)["findings"]
    assert (told[-1]["check"], told[-1]["level"]) == (check, "problem")
    assert all(one["level"] == "ok" for one in told[:-1])
    assert "within 2 s" in told[-1]["found"] or "timed out" in told[-1]["found"]


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
    (bad,) = [one for one in json.loads(done.stdout)["findings"] if one["level"] != "ok"]
    assert "noexec" in bad["found"]
    assert f"mount {place} with exec" in bad["do"]


def test_wrong_usage(nas: Nas) -> None:
    """Exit code 2, as everywhere."""
    assert run(nas, "--timeout", "soon").returncode == 2
