"""Spec repositories made with real git, deaf to the configuration of whoever runs the tests."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

IDENTITY = {"NAME": "Spec Author", "EMAIL": "author@example.com"}
# Files that git would read even without a global configuration, and the housekeeping that it
# would leave running in the background.
SETTINGS = {"core.excludesFile": os.devnull, "core.attributesFile": os.devnull, "gc.auto": "0"}


class SpecRepo:
    """A repository at `path`; one that is bare is written through a work tree beside it.

    `path` is what the daemon is pointed at, `work` is the tree that write and spec change.
    """

    def __init__(self, path: Path, *, bare: bool = False, spec_dir: str = "") -> None:
        self.path = path
        self.bare = bare
        self.spec_dir = spec_dir
        self.work = path.with_name(f"{path.name}.work") if bare else path
        self.work.mkdir(parents=True, exist_ok=True)
        self.git("init", "--quiet", "--initial-branch=main")
        if bare:
            self.git("init", "--quiet", "--bare", "--initial-branch=main", str(path))
            self.git("remote", "add", "origin", str(path))

    @property
    def head(self) -> str:
        return self.git("rev-parse", "HEAD")

    def git(self, *args: str) -> str:
        """Run git in the work tree and return what it printed; a failure is an AssertionError."""
        env = _environment()
        run = subprocess.run(["git", *args], cwd=self.work, env=env, capture_output=True, text=True)
        assert run.returncode == 0, f"git {' '.join(args)}: {run.stderr or run.stdout}"
        return run.stdout.strip()

    def write(self, rel: str, content: str | bytes) -> Path:
        """Write a file; `rel` starts at the top of the repository, not at the spec directory."""
        path = self.work / rel
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def remove(self, rel: str) -> None:
        """Remove a file, a link or a whole folder."""
        path = self.work / rel
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def spec(
        self,
        id: str,
        dependencies: Sequence[str] = (),
        *,
        python: str | None = None,
        name: str | None = None,
        requires_python: str = ">=3.11",
        table: str = "",
        index: str | None = None,
        lock: bytes | None = None,
    ) -> Path:
        """Write a spec and return its pyproject.toml.

        `python` becomes .python-version, so that `table` is free to hold [tool.envfabric]; `table`
        starts with a table's header. Without `python` or `lock`, those files stay as they are.
        """
        folder = f"{self.spec_dir}/{id}".lstrip("/")
        if python is not None:
            self.write(f"{folder}/.python-version", f"{python}\n")
        if lock is not None:
            self.write(f"{folder}/uv.lock", lock)
        # JSON strings and lists of them are TOML.
        project = name or re.sub("[/.]", "-", id).lower()
        lines = ["[project]", f"name = {json.dumps(project)}", 'version = "0.1.0"']
        lines += [f"requires-python = {json.dumps(requires_python)}"]
        lines += [f"dependencies = {json.dumps(list(dependencies))}"]
        if index is not None:
            lines += ["", "[[tool.uv.index]]", 'name = "local"', f'url = "{index}"', "default = true"]
        lines += ["", table.strip()] if table else []
        return self.write(f"{folder}/pyproject.toml", "\n".join([*lines, ""]))

    def commit(self, message: str = "change") -> str:
        """Commit everything, also nothing at all, and return the commit."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", message)
        return self.push()

    def revert(self) -> str:
        """Undo the last commit with a new one, and return that."""
        self.git("revert", "--no-edit", "HEAD")
        return self.push()

    def branch(self, name: str) -> None:
        """Go on with the branch, from here if it is new; a bare repository sees it with its next commit."""
        known = self.git("branch", "--list", name)
        self.git("switch", "--quiet", *([] if known else ["--create"]), name)

    def push(self) -> str:
        """Bring the current branch into the bare repository, rewritten history included."""
        if self.bare:
            self.git("push", "--quiet", "--force", "origin", "HEAD")
        return self.head


def _environment() -> dict[str, str]:
    # GIT_DIR and its like are set when the tests run inside a git hook.
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    env |= {f"GIT_{role}_{key}": IDENTITY[key] for role in ("AUTHOR", "COMMITTER") for key in IDENTITY}
    env |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    env["GIT_CONFIG_COUNT"] = str(len(SETTINGS))
    for number, (key, value) in enumerate(SETTINGS.items()):
        env |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return env
