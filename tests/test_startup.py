"""Faults at start-up end with exit code 2 and one line that says what to do."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from envfabric.cli import show
from envfabric.store.probe import Probe
from envfabric.store.root import Root
from support.fabric import Fabric
from support.waiting import wait_for


def refused(fabric: Fabric, *arguments: str | Path, env: dict[str, str] | None = None) -> str:
    """What the command says when it ends with exit code 2, without a traceback."""
    done = fabric.command(*arguments, env=env)
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture
def ready(fabric: Fabric) -> Fabric:
    """A fabric with one commit and a prepared NAS folder."""
    fabric.repo.spec("wf/a", ["alpha"])
    fabric.repo.commit()
    fabric.init()
    return fabric


def test_who_started_it_may_ignore_its_children(ready: Fabric) -> None:
    """An ignored SIGCHLD is inherited, and would take uv's exit codes away: one that failed would count as done."""
    ready.repo.spec("wf/b", ["nobody-has-this"])
    ready.repo.commit()
    command = [sys.executable, "-m", "envfabric", "run", "--once", "--config", str(ready.configure())]
    done = subprocess.run(
        ["env", "--ignore-signal=CHLD", *command],
        cwd=ready.folder,
        env=ready.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert ready.entry("wf/a")["state"] == "ready", ready.entry("wf/a")["error"]
    assert ready.entry("wf/b")["error"]["reason"] == "unresolvable"


@pytest.mark.parametrize("flags", [["--once"], []])
def test_repository_without_commits(fabric: Fabric, flags: list[str]) -> None:
    """There is nothing to make true yet."""
    fabric.init()
    told = refused(fabric, "run", *flags, "--repo", fabric.repo.path, "--root", fabric.root)
    assert "no commit yet" in told
    assert not (fabric.root / "index.json").exists()


def test_path_that_is_no_repository(ready: Fabric) -> None:
    """A plain folder, a missing one, and a folder inside a repository are no repositories."""
    for path in (ready.folder, ready.folder / "missing", ready.repo.path / "wf"):
        told = refused(ready, "run", "--once", "--repo", path, "--root", ready.root)
        assert f"{path} is no git repository" in told


def test_unknown_branch_and_folder(ready: Fabric) -> None:
    """A branch or spec folder that the repository does not have is named."""
    base = ("run", "--once", "--repo", ready.repo.path, "--root", ready.root)
    assert "no branch 'prod'" in refused(ready, *base, "--branch", "prod")
    assert "envs is no folder in commit" in refused(ready, *base, "--path", "envs")
    assert "without '..'" in refused(ready, *base, "--path", "../x")


def test_root_that_was_not_prepared(ready: Fabric) -> None:
    """An unmounted NAS looks like an empty folder: without the marker nothing is written."""
    empty = ready.folder / "empty"
    empty.mkdir()
    told = refused(ready, "run", "--once", "--repo", ready.repo.path, "--root", empty)
    assert f"envfabric init {empty}" in told
    assert list(empty.iterdir()) == []


def test_root_that_consumers_could_not_use(fabric: Fabric) -> None:
    """A path with a blank, and one below a pyproject.toml, are refused by init."""
    assert "unquoted" in refused(fabric, "init", fabric.folder / "na s")
    (fabric.folder / "pyproject.toml").write_text("")
    assert "workspace" in refused(fabric, "init", fabric.root)
    assert not fabric.root.exists()


def test_init_shows_what_the_probe_found(fabric: Fabric) -> None:
    """File system, link limit and free space are shown, and what to do next; a second init does no harm."""
    for _ in range(2):
        done = fabric.command("init", fabric.root)
        assert done.returncode == 0, done.stderr
        rows = dict(line.split("  ", 1) for line in done.stdout.splitlines() if "  " in line)
        assert {"file system", "links of one file", "free space", "free inodes"} <= rows.keys()
        assert rows["free space"].split()[-1] in {"B", "KiB", "MiB", "GiB", "TiB"}
        assert done.stdout.splitlines()[-1] == (
            f"{fabric.root} is ready. Next: envfabric run --repo <spec repository> --root {fabric.root}"
        )


def test_init_states_what_is_degraded(fabric: Fabric, capsys: pytest.CaptureFixture[str]) -> None:
    """Each sentence of the probe is shown; what was not counted is not made up."""
    found = Probe("nfs4", 177, 5 * 1024**3, None, ("One file can have 177 names only.",))
    show.prepared(Root(fabric.root), found)
    text = capsys.readouterr().out
    for words in ("nfs4", "177", "5.0 GiB", "not counted", "degraded: One file can have 177 names only."):
        assert words in text


def test_wrong_settings(ready: Fabric) -> None:
    """An unknown key names the nearest known one; missing ones are named with all ways to give them."""
    (ready.folder / "wrong.toml").write_text('brnch = "main"\n')
    assert "did you mean 'branch'" in refused(ready, "run", "--once", "--config", "wrong.toml")
    told = refused(ready, "run", "--once", env={"ENVFABRIC_BRNCH": "x"})
    assert "did you mean 'ENVFABRIC_BRANCH'" in told
    told = refused(ready, "run", "--once", "--repo", ready.repo.path)
    assert "--root, ENVFABRIC_ROOT or root in envfabric.toml" in told
    assert "listen" in refused(ready, "run", "--listen", "nowhere")


def test_taken_port(ready: Fabric) -> None:
    """`run` exits 2 on an address that another process has."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        told = refused(ready, "run", "--repo", ready.repo.path, "--root", ready.root, "--listen", address)
    assert "Address already in use" in told


def test_once_beside_a_daemon(ready: Fabric) -> None:
    """`run --once` exits 2 while a daemon holds ROOT."""
    with ready.daemon() as daemon:
        daemon.wait_for_index(ready.repo.head)
        told = refused(ready, "run", "--once", "--repo", ready.repo.path, "--root", ready.root)
    assert "another daemon" in told


def test_second_daemon_stands_by_and_takes_over(ready: Fabric) -> None:
    """The second daemon publishes nothing until the first is killed, and then goes on counting."""
    with ready.daemon() as first:
        one = first.wait_for_index(ready.repo.head)
        with ready.daemon() as second:
            wait_for(lambda: second.events("standby") or None, message="no standby")
            assert second.metric("envfabric_writer") == 0
            assert first.metric("envfabric_writer") == 1
            first.kill()
            ready.repo.spec("wf/b", ["gamma"])
            two = second.wait_for_index(ready.repo.commit())
            assert two["sequence"] > one["sequence"]
            assert second.metric("envfabric_writer") == 1


def test_another_repository_needs_adopt(ready: Fabric, tmp_path: Path) -> None:
    """ROOT remembers whose specs it serves."""
    from support.spec_repo import SpecRepo

    before = ready.run_once()
    other = SpecRepo(tmp_path / "other")
    other.spec("else/where", ["alpha"])
    other.commit("another beginning")
    base = ("run", "--once", "--config", ready.configure(), "--repo", other.path)
    assert "--adopt" in refused(ready, *base)
    assert ready.index() == before
    done = ready.command(*base, "--adopt")
    assert done.returncode == 0, done.stderr
    assert list(ready.index()["python"]) == ["else/where"]


def test_without_flags_or_variables_nothing_is_guessed(fabric: Fabric) -> None:
    """A bare `run` says what is missing; `--help` and an unknown command are plain usage."""
    assert "--root" in refused(fabric, "run")
    assert "No such command" in refused(fabric, "buidl")
    done = fabric.command("--help")
    assert done.returncode == 0
    for name in (
        "init",
        "demo",
        "run",
        "status",
        "which",
        "exec",
        "runtime-env",
        "history",
        "rollback",
        "unpin",
    ):
        assert name in done.stdout


def test_root_that_can_not_be_written(ready: Fabric) -> None:
    """A ROOT in which nothing can be written is an error that names the place, and no traceback."""
    ready.run_once()
    locks = ready.root / "locks"
    locks.rename(ready.root / "locks.old")
    locks.write_text("not a folder")
    done = ready.command("run", "--once", "--config", ready.configure())
    assert done.returncode == 1
    assert str(locks) in done.stderr
    assert "Traceback" not in done.stderr
