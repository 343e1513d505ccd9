"""What `full` and `custom` validation run, what they are kept from, and what is said when it fails."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from support.fabric import Fabric
from support.waiting import wait_for
from validating.conftest import table


def passing(fabric: Fabric) -> list[dict[str, Any]]:
    """The records of what has passed."""
    folder = fabric.root / "state/validated"
    return [json.loads(path.read_bytes()) for path in sorted(folder.glob("*.json"))]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in {"Z", "X"}
    except OSError:
        return True


DAEMONISING = """
import os, subprocess, sys
# Twice away from its parent, in a session of its own, and without a variable that tells where it is from.
code = "import os, sys, time\\nif os.fork(): os._exit(0)\\nos.setsid()\\nif os.fork(): os._exit(0)\\n"
code += "open(sys.argv[1] + '.part', 'w').write(str(os.getpid()))\\nos.rename(sys.argv[1] + '.part', sys.argv[1])\\n"
code += "time.sleep(1000)"
mark = os.environ["MARKS"] + "/leaves"
subprocess.run([sys.executable, "-c", code, mark], env={}, check=True)
while not os.path.exists(mark):
    pass
"""
LONG = "import sys\nfor n in range(100000): print('a line of output', n)\nsys.exit(1)"


def test_each_failure_is_told_and_spares_the_others(trusting: Fabric, marks: Path) -> None:
    """Failed imports and commands fail their spec alone, by module or command and last line; the log has all, and of
    a long output the last part. A process that left its parent, its session and its environment behind is ended.
    """
    bad = {
        "lacking": ("the import of lacking fails: ModuleNotFoundError: No module named 'not_there'.", "imports."),
        "leaving": ("the import of leaving ended Python: exit code 0",),
        "crashing": ("the import of crashing ended Python: SIGSEGV",),
        "exiting": ("the import of exiting fails: SystemExit: 3",),
    }  # fmt: skip
    for name in bad:
        trusting.repo.spec(f"bad/{name}", [name], table=table("full"))
    trusting.repo.spec("bad/named", ["alpha"], table=table("full", 'imports = ["alpha", "json.none"]'))
    command = 'command = ["python", "-c", "import beta; print(1); raise SystemExit(7)"]'
    trusting.repo.spec("bad/command", ["beta"], table=table("custom", command))
    trusting.repo.spec("bad/absent", ["beta"], table=table("custom", 'command = ["no-such-program"]'))
    command = f"command = {json.dumps(['python', '-c', LONG])}"
    trusting.repo.spec("bad/long", ["alpha"], table=table("custom", command))
    trusting.packages.add_wheel("daemonising", "1.0", modules={"daemonising.py": DAEMONISING})
    trusting.repo.spec("good/leaves", ["daemonising"], table=table("full", MARKS=str(marks)))
    trusting.repo.spec("good/minimal", ["lacking"])
    trusting.repo.spec("good/threads", ["threading-on"], table=table("full"))
    trusting.repo.spec("good/full", ["beta"], table=table("full"))
    trusting.repo.commit()
    entries = trusting.run_once(expect=1)["environments"]
    assert {one for one in entries if entries[one]["state"] == "ready"} == {
        one for one in entries if "good/" in one
    }
    told = {one: entries[one]["error"] for one in entries if "bad/" in one}
    assert {one["reason"] for one in told.values()} == {"validation"}
    words = {f"bad/{name}": parts for name, parts in bad.items()} | {
        "bad/named": ("the import of json.none fails: ModuleNotFoundError",),
        "bad/command": ("the command of tool.envfabric ended with exit code 7, '1': python -c",),
        "bad/absent": ("exit code 127", "no-such-program"),
        "bad/long": ("exit code 1, 'a line of output 99999'",),
    }
    for one, parts in words.items():
        for part in parts:
            assert part in told[one]["message"], told[one]
    log = (trusting.root / "failures/bad/lacking.log").read_text()
    assert "before\n" in log
    assert "Traceback" in log
    long = (trusting.root / "failures/bad/long.log").read_text()
    assert "bytes before" in long
    assert len(long) < 70_000
    assert gone(int((marks / "leaves").read_text()))
    assert {one["trial"]["kind"] for one in passing(trusting)} == {"full"}
    # What the packages of a closure are is no matter of its validation.
    assert entries["good/minimal"]["serving"] not in {one["digest"] for one in passing(trusting)}


def test_what_it_can_see(trusting: Fabric, marks: Path) -> None:
    """It has its own empty home, TMPDIR and working folder, the spec's env_vars, and nothing of the daemon's."""
    trusting.variables |= {
        "UV_INDEX_LOCAL_USERNAME": "someone",
        "UV_INDEX_LOCAL_PASSWORD": "a-secret-of-the-index",
        "AWS_SECRET_ACCESS_KEY": "another-secret",
    }
    code = (
        "import json, os, sys; s = dict(os.environ); h = s['HOME']; open(h + '/x', 'w').write('x'); "
        "print('stdout is kept', s['UV_INDEX_LOCAL_PASSWORD'] if 'UV_INDEX_LOCAL_PASSWORD' in s else ''); "
        "json.dump([s, os.getcwd(), os.listdir('.'), os.listdir(s['TMPDIR']), sys.stdin.read(), sys.prefix, "
        "os.listdir('/proc/self/fd')], open(s['MARKS'] + '/seen', 'w'))"
    )
    command = f"command = {json.dumps(['python', '-c', code])}"
    trusting.repo.spec(
        "wf/a",
        ["alpha"],
        table=table("custom", command, MARKS=str(marks), HOME="/", PYTHONDONTWRITEBYTECODE=""),
    )
    trusting.repo.commit()
    index = trusting.run_once()
    environment, cwd, here, temporary, given, prefix, _ = json.loads((marks / "seen").read_text())
    venv = Path(index["python"]["wf/a"]).parent.parent
    assert set(environment) <= {
        "MARKS", "HOME", "TMPDIR", "PATH", "VIRTUAL_ENV", "LC_ALL", "PYTHONDONTWRITEBYTECODE", "PYTHONNOUSERSITE"
    }  # fmt: skip
    assert "secret" not in json.dumps(environment)
    own = (cwd, environment["HOME"], environment["TMPDIR"])
    # On this host, gone, and short enough for the sockets of Ray below it.
    assert not any(one.startswith(str(trusting.root)) or Path(one).exists() for one in own)
    assert len(Path(cwd).parent.name) < 20
    assert (here, temporary, given) == ([], [], "")
    assert environment["PYTHONDONTWRITEBYTECODE"] == "1"
    assert (prefix, environment["VIRTUAL_ENV"]) == (str(venv), str(venv))
    assert environment["PATH"].startswith(f"{venv}/bin:")
    assert list((trusting.root / "staging").iterdir()) == []
    (record,) = passing(trusting)
    assert "stdout is kept" in record["output"]
    assert trusting.command("verify", "--config", trusting.configure()).returncode == 0


def test_what_it_changes_is_damage(trusting: Fabric) -> None:
    """A package that writes into the environment by force has it made anew for all who share it. Because others have
    the files, too, its spec is validated once more; the second time it has failed.
    """
    trusting.repo.spec("wf/shares", ["alpha", "writing"])
    trusting.repo.commit()
    with trusting.daemon() as daemon:
        first = daemon.wait_for_index(trusting.repo.head)["environments"]["wf/shares"]
        trusting.repo.spec("wf/writes", ["writing", "alpha"], table=table("full", 'imports = ["writing"]'))
        trusting.repo.commit()
        wait_for(
            lambda: trusting.index()["environments"].get("wf/writes", {}).get("state") == "failed",
            message="the change is not found",
        )
        error = trusting.entry("wf/writes")["error"]
        assert error["reason"] == "store"
        assert error["retry_at"] is not None
        assert "alpha/__init__.py. Others share these files" in error["message"]
        wait_for(
            lambda: trusting.entry("wf/shares")["serving"] == f"{first['serving']}-2",
            message="it is not made anew",
        )
        trusting.command("retry", "wf/writes", "--config", trusting.configure())
        error = wait_for(
            lambda: (
                (found := trusting.entry("wf/writes")["error"]) and found["reason"] == "validation" and found
            ),
            message="it is not blamed",
        )
        assert error["retry_at"] is None
        assert "changed the sealed environment: .venv/lib/" in error["message"]
        assert "alpha/__init__.py. It counts as damaged" in error["message"]
        wait_for(
            lambda: trusting.entry("wf/shares")["serving"] == f"{first['serving']}-3",
            message="it is not made anew again",
        )
    # Read, not imported: a compiled file might be believed.
    source = trusting.python("wf/shares", "import alpha; print(open(alpha.__file__).read())")
    assert "CHANGED" not in source


def test_a_write_by_accident_is_refused(trusting: Fabric) -> None:
    """A package that writes next to itself gets EACCES, also where the daemon is root; nothing is changed by it."""
    trusting.repo.spec("wf/a", ["caching"], table=table("full"))
    trusting.repo.commit()
    error = trusting.run_once(expect=1)["environments"]["wf/a"]["error"]
    assert error["reason"] == "validation"
    assert "the import of caching fails: PermissionError: [Errno 13]" in error["message"]
    assert not list((trusting.root / "state").glob("damaged/*"))
    assert trusting.command("verify", "--config", trusting.configure()).returncode == 0


def test_what_is_killed_is_tried_again(trusting: Fabric) -> None:
    """An import or command that somebody else kills, for want of memory, fails for a time."""
    trusting.repo.spec("wf/import", ["starved"], table=table("full"))
    command = """command = ["sh", "-c", "kill -KILL $$"]"""
    trusting.repo.spec("wf/command", ["alpha"], table=table("custom", command))
    trusting.repo.commit()
    entries = trusting.run_once(expect=1)["environments"]
    for one, what in (
        ("wf/import", "the import of starved"),
        ("wf/command", "the command of tool.envfabric"),
    ):
        error = entries[one]["error"]
        assert (error["reason"], error["retry_at"] is None) == ("internal", False)
        assert f"{what} was killed (SIGKILL), and not by the daemon" in error["message"]


def test_run_once_sees_a_repair_through(trusting: Fabric) -> None:
    """What a validation damaged is served again, whole, when `run --once` ends."""
    trusting.repo.spec("wf/shares", ["alpha", "writing"])
    trusting.repo.commit()
    first = trusting.run_once()["environments"]["wf/shares"]
    trusting.repo.spec("wf/writes", ["writing", "alpha"], table=table("full", 'imports = ["writing"]'))
    trusting.repo.commit()
    entries = trusting.run_once(expect=1)["environments"]
    assert entries["wf/shares"]["serving"] == f"{first['serving']}-2"
    assert entries["wf/writes"]["error"]["reason"] == "store"


def test_a_hanging_import_is_ended_in_its_time(trusting: Fabric, marks: Path) -> None:
    """An import that takes too long fails with `timeout` and the module's name, and nothing of it is left."""
    trusting.repo.spec("wf/a", ["alpha", "hanging"])
    trusting.repo.commit()
    # Built first, so that the time is all for the import.
    trusting.run_once()
    trusting.settings["build_timeout"] = 10
    trusting.repo.spec("wf/a", ["alpha", "hanging"], table=table("full", MARKS=str(marks)))
    trusting.repo.commit()
    entry = trusting.run_once(expect=1)["environments"]["wf/a"]
    assert (entry["state"], entry["error"]["reason"]) == ("stale", "timeout")
    assert "ran longer than 10 s and was ended, during the import of hanging" in entry["error"]["message"]
    assert (marks / "hangs").exists()
    assert not _left(trusting)
    assert list((trusting.root / "staging").iterdir()) == []


def _left(fabric: Fabric) -> list[str]:
    """Processes that run from the store of a fabric, by their command lines."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                line = (
                    Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
            except OSError:
                continue
            if f"{fabric.root}/store/" in line:
                found.append(line)
    return found


@pytest.mark.parametrize("how", ["kill", "newer"])
def test_a_validation_that_nobody_waits_for_ends(trusting: Fabric, marks: Path, how: str) -> None:
    """A newer commit ends a validation under way; one whose daemon is killed ends by itself, and is begun anew."""
    trusting.repo.spec("wf/a", ["hanging"], table=table("full", MARKS=str(marks)))
    trusting.repo.commit()
    with trusting.daemon() as daemon:
        wait_for((marks / "hangs").exists, message="it does not begin")
        if how == "kill":
            daemon.kill()
        else:
            trusting.repo.spec("wf/a", ["alpha"])
            assert daemon.wait_for_index(trusting.repo.commit())["python"]
        wait_for(lambda: not _left(trusting), message="it goes on")
    # Written as a whole by now, for who wrote it is gone.
    own = Path((marks / "hangs").read_text()).parent
    assert own.name.startswith("ef-")
    wait_for(lambda: not own.exists(), message="its folder is left")
    if how == "kill":
        (marks / "hangs").unlink()
        with trusting.daemon() as daemon:
            wait_for((marks / "hangs").exists, message="it is not begun anew")
            assert len(list((trusting.root / "staging").glob("*.lock"))) == 1
            # Ended by SIGTERM, with what runs.
        assert not _left(trusting)
        assert list((trusting.root / "staging").iterdir()) == []


CHANGES_ONCE = """
import os, pathlib, time
mark = pathlib.Path(os.environ["MARKS"], "changed")
if not mark.exists():
    import writing
    mark.touch()
    time.sleep(1000)
"""


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "removed"])
def test_a_change_that_nobody_saw_the_end_of_is_found(trusting: Fabric, marks: Path, kept: bool) -> None:
    """A daemon that is killed between a validation's write and the look at it leaves word of it: the next one proves
    that closure, also where nobody asks for the validation any more, and what it serves is made anew."""
    trusting.repo.spec("wf/shares", ["alpha", "writing"])
    trusting.repo.commit()
    command = f"command = {json.dumps(['python', '-c', CHANGES_ONCE])}"
    own = table("custom", 'imports = ["json"]', command, MARKS=str(marks))
    with trusting.daemon() as daemon:
        first = daemon.wait_for_index(trusting.repo.head)["environments"]["wf/shares"]["serving"]
        trusting.repo.spec("wf/writes", ["writing", "alpha"], table=own)
        trusting.repo.commit()
        wait_for((marks / "changed").exists, message="it does not begin")
        daemon.kill()
    left = list((trusting.root / "state/trying").iterdir())
    assert [one.name.partition(".")[0] for one in left] == [first]
    assert not list((trusting.root / "state").glob("damaged/*"))
    again = f"{first}-2"
    if kept:
        with trusting.daemon():
            for one in ("wf/shares", "wf/writes"):
                wait_for(lambda: trusting.entry(one)["serving"] == again, message=f"{one} is not made anew")  # noqa: B023
    else:
        trusting.repo.remove("wf/writes")
        trusting.repo.commit()
        assert trusting.run_once()["environments"]["wf/shares"]["serving"] == again
    source = trusting.python("wf/shares", "import alpha; print(open(alpha.__file__).read())")
    assert "CHANGED" not in source
    assert list((trusting.root / "state/trying").iterdir()) == []
