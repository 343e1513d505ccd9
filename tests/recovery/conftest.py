"""One fabric that is built once, and a fresh copy of its ROOT for each disaster."""

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from recovery import blocks
from support.fabric import Fabric, RunningDaemon
from support.simple_index import SimpleIndex
from support.spec_repo import SpecRepo
from support.waiting import wait_for

PINNED = "wf/pinned"
"""A spec with two generations, held at the first by a pin."""
PRINTS = {"wf/alpha": "1.0", "wf/locked": "1.0", PINNED: "1.0"}
"""What each spec's environment says of its package's version."""


@dataclass
class Scene:
    """A fabric with three specs, one of them with a committed lock and one pinned, and what is done to it."""

    fabric: Fabric
    healthy: dict[str, Any]
    """The index before anything happened."""
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    daemon: RunningDaemon | None = None

    @property
    def root(self) -> Path:
        return self.fabric.root

    @property
    def backup(self) -> Path:
        return self.fabric.folder / "backup"

    @property
    def elsewhere(self) -> Path:
        return self.fabric.folder / "elsewhere"

    def lose(self, *names: str) -> None:
        """rm -rf below ROOT, as its owner does it."""
        for name in names:
            path = self.root / name
            if path.is_dir():
                subprocess.run(["chmod", "-R", "u+w", path], check=True)
            subprocess.run(["rm", "-rf", path], check=True)

    def lose_at_once(self, *names: str) -> None:
        """The same in one moment each: who looks meanwhile finds nothing half removed."""
        gone = Path(tempfile.mkdtemp(dir=self.fabric.folder))
        for number, name in enumerate(names):
            (self.root / name).rename(gone / str(number))

    def systemctl(self, word: str) -> None:
        """`start` or `stop` of the daemon; stopping one that does not run is no error, as with systemd."""
        if word == "stop":
            self.stack.close()
            self.daemon = None
        else:
            assert word == "start", word
            self.daemon = self.stack.enter_context(self.fabric.daemon())

    def envfabric(self, arguments: list[str]) -> str:
        """A command that has to succeed; gives what it printed."""
        done = self.fabric.command(*arguments, env={"ENVFABRIC_CONFIG": str(self.fabric.configure())})
        assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def here(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command as a child of this thread, which sees what this thread has mounted."""
        command = [sys.executable, "-m", "envfabric", *arguments]
        return subprocess.run(
            command, env=self.fabric.environment, capture_output=True, text=True, check=False
        )

    def follow(self, name: str, page: str = "recovery.md") -> str:
        """Does what a page says; gives what the commands printed."""
        places = {
            "/mnt/nas": self.root,
            "/srv/specs.git": self.fabric.repo.path,
            "/backup": self.backup,
            "/mnt/other": self.elsewhere,
        }
        git = {
            f"GIT_{role}_{what}": "a@example.com"
            for role in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        }
        git |= {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
        environment = self.fabric.environment | git
        return blocks.follow(blocks.block(page, name), places, environment, self.envfabric, self.systemctl)

    def digests(self) -> dict[str, str]:
        """What each spec served before anything happened."""
        return {one: entry["serving"] for one, entry in self.healthy["environments"].items()}

    def served(self) -> dict[str, str]:
        """What each spec serves now."""
        return {one: entry["serving"] for one, entry in self.fabric.index()["environments"].items()}

    def whole(self) -> dict[str, Any] | None:
        """The index, once it is complete and everything in it ready and there."""
        with contextlib.suppress(FileNotFoundError):
            index = self.fabric.index()
            ready = all(entry["state"] == "ready" for entry in index["environments"].values())
            there = all(Path(one).exists() for one in index["python"].values())
            if index["complete"] and index["environments"] and ready and there:
                return index
        return None

    def check(self, prints: dict[str, str] = PRINTS) -> dict[str, Any]:
        """What has to be true after every recovery: complete, ready, verified to the last byte, and it runs."""
        index = wait_for(self.whole, timeout=90, message="not all is ready again")
        assert index["problems"] == []
        assert sorted(index["python"]) == sorted(self.healthy["python"])
        self.envfabric(["verify"])
        for spec_id, version in prints.items():
            module = "alpha" if "gamma" not in self.wants(spec_id) else "gamma"
            code = f"import {module}; print({module}.VERSION)"
            done = subprocess.run(
                [index["python"][spec_id], "-B", "-c", code], capture_output=True, text=True, check=True
            )
            assert done.stdout.strip() == version, spec_id
            # The path for people follows, too.
            wait_for(partial(self._follows, spec_id), message=f"envs/{spec_id} lags")
        # What is replaced atomically passes through it, for a moment.
        wait_for(lambda: not any((self.root / "staging").iterdir()), message="staging/ is not empty")
        # Those links may be of a later publication.
        return self.fabric.index()

    def _follows(self, spec_id: str) -> bool:
        served: str = self.fabric.entry(spec_id)["serving"]
        return (self.root / "envs" / spec_id / ".venv").resolve().parent.name == served

    def check_ids(self, *spec_ids: str) -> dict[str, Any]:
        """The same where others may serve what is committed by now."""
        return self.check({one: PRINTS[one] for one in spec_ids})

    def wants(self, spec_id: str) -> str:
        """The text of a spec's pyproject.toml as it is in the work tree."""
        return (self.fabric.repo.work / spec_id / "pyproject.toml").read_text("utf-8")

    def lock_of(self, spec_id: str) -> bytes:
        """The lock of what is served."""
        return (self.root / "envs" / spec_id / "uv.lock").read_bytes()


@pytest.fixture(scope="session")
def made(
    tmp_path_factory: pytest.TempPathFactory, packages: SimpleIndex
) -> tuple[Fabric, str, dict[str, Any]]:
    """The fabric, its repository's commit, and its healthy index; nas.saved beside ROOT is a copy of it."""
    folder = tmp_path_factory.mktemp("recovery")
    fabric = Fabric(folder, packages, SpecRepo(folder / "specs"))
    fabric.settings |= {"interval": 0.2}
    fabric.repo.spec("wf/alpha", ["alpha"])
    fabric.repo.spec("wf/locked", ["beta"], index=packages.url)
    fabric.lock(fabric.repo.work / "wf/locked")
    fabric.repo.spec(PINNED, ["gamma==1.0"])
    fabric.repo.commit()
    fabric.run_once()
    fabric.repo.spec(PINNED, ["gamma==2.0"])
    fabric.repo.commit()
    fabric.run_once()
    done = fabric.command("rollback", PINNED, env={"ENVFABRIC_CONFIG": str(fabric.configure())})
    assert done.returncode == 0, done.stderr
    shutil.copytree(fabric.repo.path, folder / "specs.saved", symlinks=True)
    subprocess.run(["cp", "-a", fabric.root, folder / "nas.saved"], check=True)
    return fabric, fabric.repo.head, fabric.index()


@pytest.fixture
def scene(made: tuple[Fabric, str, dict[str, Any]]) -> Iterator[Scene]:
    """The fabric as it was built, with no daemon running."""
    fabric, commit, healthy = made
    for name in ("nas", "backup", "elsewhere"):
        path = fabric.folder / name
        if path.exists():
            subprocess.run(["chmod", "-R", "u+w", path], check=True)
            shutil.rmtree(path)
    subprocess.run(["cp", "-a", fabric.folder / "nas.saved", fabric.root], check=True)
    if not fabric.repo.path.exists() or fabric.repo.head != commit:
        shutil.rmtree(fabric.repo.path, ignore_errors=True)
        shutil.copytree(fabric.folder / "specs.saved", fabric.repo.path, symlinks=True)
    scene = Scene(fabric, healthy)
    with scene.stack:
        yield scene


@pytest.fixture
def hand() -> Callable[[Path, str], None]:
    """Changes a file that nobody may write."""

    def change(path: Path, text: str) -> None:
        mode = path.stat().st_mode
        path.chmod(0o644)
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)

    return change


def saved(path: Path) -> dict[str, tuple[int, int]]:
    """Every path below a folder with its inode and time of change: what tells that nothing was written."""
    return {
        str(one.relative_to(path)): (one.lstat().st_ino, one.lstat().st_ctime_ns)
        for one in sorted(path.rglob("*"))
        if "locks" not in one.relative_to(path).parts
    }


def told(path: Path) -> dict[str, Any]:
    """A JSON file."""
    content: dict[str, Any] = json.loads(path.read_bytes())
    return content
