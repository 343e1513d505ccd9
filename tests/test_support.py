"""The test support keeps its own promises, with the real uv and the real git."""

import fcntl
import http.client
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uv

from support import nursery
from support.nursery import Forked
from support.simple_index import SimpleIndex
from support.spec_repo import SpecRepo
from support.waiting import wait_for


@pytest.fixture
def index(tmp_path: Path) -> Iterator[SimpleIndex]:
    with SimpleIndex(tmp_path / "index") as index:
        yield index


def run_uv(pyproject: Path, *args: str, **variables: str) -> None:
    """Run uv in the spec's folder, with nothing of the caller's configuration."""
    scratch = pyproject.parent / "scratch"
    env = {key: value for key, value in os.environ.items() if not key.startswith(("UV_", "VIRTUAL_ENV"))}
    env |= {
        "UV_CACHE_DIR": f"{scratch}/cache",
        "XDG_CONFIG_HOME": f"{scratch}/config",
        "NO_PROXY": "127.0.0.1",
    }
    env |= {"UV_PYTHON": sys.executable, "UV_PYTHON_DOWNLOADS": "never", "UV_HTTP_RETRIES": "0", **variables}
    command = [uv.find_uv_bin(), *args]
    run = subprocess.run(command, cwd=pyproject.parent, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_uv_installs_from_the_index(tmp_path: Path, index: SimpleIndex) -> None:
    """uv locks, syncs and runs what the index serves at that moment, for this Python."""
    index.add_wheel("leaf.lib", "1.0+cpu", requires_python=">=3.8")
    index.add_wheel("leaf.lib", "9.0", requires_python=">=4")
    index.add_wheel("Tool", requires=["leaf-lib>=1"])
    later = {"modules": {"tool.py": "def main():\n    print('two')\n"}, "scripts": {"tool": "tool:main"}}
    index.remove(index.add_wheel("tool", "2.0", **later).name)
    pyproject = SpecRepo(tmp_path / "specs").spec("wf/node", ["tool"], index=index.url)
    python = pyproject.parent / ".venv/bin/python"

    run_uv(pyproject, "sync")
    code = "import leaf_lib, tool; print(leaf_lib.VERSION, tool.VERSION)"
    assert subprocess.check_output([python, "-c", code], text=True) == "1.0+cpu 1.0\n"
    assert "/simple/tool/" in index.requests

    index.add_wheel("tool", "2.0", **later)
    run_uv(pyproject, "sync", "--upgrade")
    assert subprocess.check_output([python.with_name("tool")], text=True) == "two\n"


def test_held_project_makes_uv_wait(tmp_path: Path, index: SimpleIndex) -> None:
    """uv does not get past a held project before it is released."""
    index.add_wheel("slow")
    pyproject = SpecRepo(tmp_path / "specs").spec("wf/node", ["slow"], index=index.url)
    hold = index.hold("slow")
    threading.Timer(0.7, hold.set).start()
    run_uv(pyproject, "lock")
    assert hold.is_set()


def test_sdist_must_be_built(tmp_path: Path, index: SimpleIndex) -> None:
    """What a source distribution requires is known only after its setup.py has run."""
    ran = tmp_path / "ran"
    index.add_wheel("leaf")
    index.add_sdist("source", setup_py=f"open({str(ran)!r}, 'w').close()", requires=["leaf"])
    pyproject = SpecRepo(tmp_path / "specs").spec("wf/node", ["source"], index=index.url)
    with pytest.raises(AssertionError, match="building from source is disabled"):
        run_uv(pyproject, "lock", UV_NO_BUILD="1")
    assert not ran.exists()
    run_uv(pyproject, "lock")
    assert ran.exists()
    assert 'name = "leaf"' in (pyproject.parent / "uv.lock").read_text()


def test_index_refuses_and_fails(tmp_path: Path) -> None:
    """Without credentials uv is refused, and from a failing index it gets the chosen status."""
    with SimpleIndex(tmp_path / "index", user="me", password="secret") as index:
        index.add_wheel("locked")
        pyproject = SpecRepo(tmp_path / "specs").spec("wf/node", ["locked"], index=index.url)
        with pytest.raises(AssertionError, match="401"):
            run_uv(pyproject, "lock")
        run_uv(pyproject, "lock", UV_INDEX_LOCAL_USERNAME="me", UV_INDEX_LOCAL_PASSWORD="secret")
        index.fail_with = 503
        with pytest.raises(AssertionError, match="503"):
            run_uv(pyproject, "lock", "--upgrade")


def test_index_leaves_no_thread(tmp_path: Path) -> None:
    """Leaving the index ends its threads, those of a held answer and of an idle connection too."""
    before = set(threading.enumerate())
    with SimpleIndex(tmp_path / "index") as index:
        idle, held = (http.client.HTTPConnection(index.url.split("/")[2]) for _ in range(2))
        idle.request("GET", "/simple/other/")
        assert idle.getresponse().read() == b""
        index.hold()
        held.request("GET", "/simple/")
        wait_for(lambda: "/simple/" in index.requests, message="the request did not arrive")
    assert set(threading.enumerate()) <= before
    idle.close()
    held.close()


@pytest.mark.parametrize("bare", [False, True])
def test_spec_repo_commits_what_was_written(tmp_path: Path, bare: bool) -> None:
    """A commit holds exactly the written files, and the repository that is read has it at once."""
    repo = SpecRepo(tmp_path / "specs", bare=bare, spec_dir="specs")
    read = ["--git-dir", str(repo.path if bare else repo.path / ".git")]
    listing = [*read, "ls-tree", "-r", "--name-only", "main"]
    repo.spec("WF/node.A", ["a"], python="3.11", lock=b"lock", table="[tool.x]\ny = 1")
    first = repo.commit()
    names = [".python-version", "pyproject.toml", "uv.lock"]
    assert repo.git(*listing).split() == [f"specs/WF/node.A/{name}" for name in names]
    assert 'name = "wf-node-a"' in repo.git("show", f"{first}:specs/WF/node.A/pyproject.toml")

    repo.remove("specs/WF")
    second = repo.commit()
    assert repo.git(*listing) == ""
    assert repo.revert() == repo.git(*read, "rev-parse", "main") != second
    assert repo.git("diff", first, repo.head) == ""
    repo.branch("side")
    assert repo.commit() == repo.git(*read, "rev-parse", "side")


def test_wait_for_says_what_it_last_saw() -> None:
    """A wait that ends in vain fails with its message and the last value."""
    with pytest.raises(AssertionError, match=r"never came.*last value: 0"):
        wait_for(lambda: 0, timeout=0.05, message="never came")


PLAIN = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--version"], 0),
        (["run", "--onze"], 2),
        (["run", "--config", "none.toml"], 2),
        (["history", "a/b"], 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_forked_command_is_as_a_new_one(tmp_path: Path, words: list[str], code: int) -> None:
    """A command that is forked says, and ends with, what one says that a new Python runs."""
    env = PLAIN | {"HOME": str(tmp_path)}
    new = subprocess.run(
        [sys.executable, "-m", "envfabric", *words],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    forked = nursery.run(words, cwd=tmp_path, env=env)
    assert (forked.returncode, forked.stdout, forked.stderr) == (code, new.stdout, new.stderr)
    assert new.returncode == code
    assert (forked.stdout + forked.stderr).strip()


def test_what_a_fork_would_not_show_is_a_new_python(tmp_path: Path) -> None:
    """Another umask, a variable that Python reads, and consumers' commands are no forks; a signal is told of both."""

    nobody, full = os.pipe()
    fcntl.fcntl(full, fcntl.F_SETPIPE_SZ, 4096)
    os.write(full, bytes(4096))

    def started(*words: str, **variables: str) -> bool:
        # What it says has no room: it does not end by itself.
        process = nursery.start(words, cwd=tmp_path, env=PLAIN | variables, stdout=full, stderr=full)
        process.kill()
        assert process.wait(timeout=60) == -signal.SIGKILL
        process.kill()
        return isinstance(process, Forked)

    asks = ("gc", "--help")
    assert started(*asks)
    assert not started(*asks, PYTHONDONTWRITEBYTECODE="1")
    assert not started(*asks, LC_ALL="C")
    assert not started("which", "a/b")
    old = os.umask(0o037)
    try:
        assert not started(*asks)
    finally:
        os.umask(old)
        os.close(nobody)
        os.close(full)
