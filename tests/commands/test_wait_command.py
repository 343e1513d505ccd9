"""wait: each of its exits, against a running daemon."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.fabric import Fabric

from .conftest import Run


def _start(fabric: Fabric, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "envfabric", "wait", "--root", str(fabric.root), *arguments],
        cwd=fabric.repo.work,
        env=fabric.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what it puts into the background with SIGINT ignored, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_ready_failed_and_timed_out(fabric: Fabric, run: Run) -> None:
    """A commit that is built ends it with 0, one that fails with 1, one that takes too long with 124."""
    hold = fabric.packages.hold("held")
    fabric.packages.add_wheel("held", "1.0")
    fabric.repo.spec("wf/a", ["alpha"])
    first = fabric.repo.commit()
    with fabric.daemon():
        done = run("wait", "wf/a", "--commit", first, "--timeout", "60", "--root", fabric.root)
        assert done.stdout.startswith("wf/a: ready, generation 1, /")
        assert Path(done.stdout.split()[-1]).is_file()
        fabric.repo.spec("wf/held", ["held"])
        fabric.repo.spec("wf/bad", ["no-such-thing"])
        second = fabric.repo.commit()
        done = run("wait", "wf/bad", "--commit", "HEAD", "--timeout", "60", "--root", fabric.root, expect=1)
        assert "unresolvable" in done.stderr
        done = run(
            "wait", "wf/held", "--commit", second[:10], "--timeout", "1", "--root", fabric.root, expect=124
        )
        assert "timed out after 1 s: wf/held is" in done.stderr
        waiting = _start(fabric, "wf/held", "wf/a", "--commit", first)
        assert waiting.stdout is not None
        assert waiting.stdout.readline().startswith("wf/a: ready")
        hold.set()
        out, err = waiting.communicate(timeout=60)
        assert (waiting.returncode, err) == (0, "")
        assert out.startswith("wf/held: ready, generation 1")
        # All of them: one has failed.
        done = run("wait", "--commit", second, "--timeout", "60", "--root", fabric.root, expect=1)
        assert "wf/bad failed" in done.stderr
        assert f"2 of 3 ready at {second[:12]}" in done.stdout
        fabric.repo.remove("wf/bad")
        third = fabric.repo.commit()
        done = run("wait", "--commit", third, "--timeout", "60", "--root", fabric.root)
        assert f"2 of 2 ready at {third[:12]}" in done.stdout


def test_a_later_commit_is_as_good(fabric: Fabric, run: Run) -> None:
    """A descendant that is served ends it where git can tell; where it can't, only the commit itself does."""
    fabric.repo.spec("wf/a", ["alpha"])
    first = fabric.repo.commit()
    fabric.repo.write("README.md", "x")
    fabric.repo.commit()
    fabric.run_once()
    wait = ("wait", "wf/a", "--root", fabric.root, "--timeout", "0")
    run(*wait, "--commit", first)
    run(*wait, "--commit", first[:8], "--repo", fabric.repo.work, cwd=fabric.folder)
    run(*wait, "--commit", first, cwd=fabric.folder, expect=124)
    run(*wait, "--commit", fabric.repo.head, cwd=fabric.folder)
    run(*wait, "--commit", fabric.repo.head[:8], cwd=fabric.folder)
    fabric.repo.write("README.md", "y")
    later = fabric.repo.commit()
    assert f"{later[:12]} is not yet" in run(*wait, "--commit", later, expect=124).stderr
    # One that is not in the revision's history: a branch of its own.
    fabric.repo.git("switch", "--quiet", "--orphan", "other")
    fabric.repo.spec("wf/a", ["beta"])
    other = fabric.repo.commit()
    run(*wait, "--commit", other, expect=124)
    assert "no commit" in run(*wait, "--commit", "no-such-branch", expect=2).stderr
    assert "no number of seconds" in run("wait", "--timeout", "soon", expect=2).stderr


def test_a_pin_or_a_suspension_ends_it_at_once(fabric: Fabric, run: Run) -> None:
    """What hides the committed content is named with the command that ends it, without any time limit."""
    fabric.repo.spec("wf/a", ["gamma<2"])
    fabric.repo.spec("wf/b", ["alpha"])
    fabric.repo.commit()
    fabric.run_once()
    fabric.repo.spec("wf/a", ["gamma>=2"])
    fabric.repo.spec("wf/b", ["alpha"], table="[tool.envfabric]\nsuspend = true")
    commit = fabric.repo.commit()
    fabric.run_once()
    config = fabric.configure()
    run("rollback", "wf/a", "--config", config, cwd=fabric.folder)
    wait = ("wait", "--root", fabric.root)
    assert "envfabric unpin wf/a" in run(*wait, "wf/a", "--commit", commit, expect=1).stderr
    assert "is suspended" in run(*wait, "wf/b", expect=1).stderr
    # Of all of them it is no failure: each serves what it is told to.
    run(*wait)


def test_an_unknown_id(fabric: Fabric, run: Run) -> None:
    """With a commit it is a failure once that is served; without one it is waited for, and said."""
    fabric.repo.spec("wf/train", ["alpha"])
    commit = fabric.repo.commit()
    fabric.run_once()
    wait = ("wait", "wf/trian", "--root", fabric.root)
    assert "Did you mean wf/train?" in run(*wait, "--commit", commit, expect=1).stderr
    done = run(*wait, "--timeout", "0.3", expect=124)
    assert done.stderr.count("waiting: no environment 'wf/trian'") == 1
    assert "index.json is not there" in run("wait", "--root", fabric.folder, expect=1).stderr


def test_the_first_index_is_waited_for(fabric: Fabric) -> None:
    """A prepared ROOT without an index is one whose daemon has not published yet."""
    fabric.init()
    fabric.repo.spec("wf/a", ["alpha"])
    commit = fabric.repo.commit()
    waiting = _start(fabric, "--commit", commit)
    fabric.run_once()
    out, err = waiting.communicate(timeout=60)
    assert (waiting.returncode, out, err) == (0, f"1 of 1 ready at {commit[:12]}\n", "")


def test_a_revision_that_is_held_back_ends_it_at_once(fabric: Fabric, run: Run) -> None:
    """The index says which commit is held back and why: waiting for it, or for one before it, is no use."""
    for number in range(4):
        fabric.repo.spec(f"wf/n{number}", ["alpha"])
    fabric.repo.commit()
    fabric.settings["prune"] = {"share": 0.1, "count": 1}
    with fabric.daemon():
        wait = ("wait", "--root", fabric.root, "--timeout", "60")
        run(*wait, "--commit", "HEAD")
        for number in range(3):
            fabric.repo.remove(f"wf/n{number}")
        held = fabric.repo.commit()
        done = run(*wait, "--commit", held, expect=1)
        assert held[:12] in done.stderr
        run(*wait, "--commit", held, "wf/n3", cwd=fabric.folder, expect=1)


def test_interrupted_it_is_quiet(fabric: Fabric) -> None:
    """Ctrl-C ends it with 130 and no traceback."""
    fabric.repo.spec("wf/a", ["alpha"])
    fabric.repo.commit()
    fabric.run_once()
    waiting = _start(fabric, "wf/unknown")
    try:
        assert waiting.stderr is not None
        # It says whom it waits for, and waits then.
        assert "wf/unknown" in waiting.stderr.readline()
        waiting.send_signal(signal.SIGINT)
        _, err = waiting.communicate(timeout=60)
        assert waiting.returncode == 130
        assert "Traceback" not in err
    finally:
        waiting.kill()
        waiting.wait()


@pytest.mark.parametrize("words", [("wait", "--help"), ("which", "--help")])
def test_it_needs_the_standard_library_only(words: tuple[str, ...]) -> None:
    """It starts without the daemon's packages, and `which` does not load what only `wait` needs."""
    code = (
        "import sys; from envfabric.client import commands\n"
        "try:\n commands.main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "loaded = {one.split('.')[0] for one in sys.modules}\n"
        "assert not loaded & {'typer', 'pydantic', 'git', 'tomlkit', 'packaging'}, loaded\n"
        "assert 'subprocess' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr
