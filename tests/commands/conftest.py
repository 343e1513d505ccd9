"""The commands as a person runs them: in a clone of the spec repository."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support import nursery
from support.fabric import Fabric

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(fabric: Fabric) -> Run:
    """Runs `envfabric` to its end in a folder, the clone by default; fails where the exit code is another."""

    def command(
        *arguments: str | Path, cwd: Path | None = None, stdin: str = "", expect: int = 0
    ) -> subprocess.CompletedProcess[str]:
        done = nursery.run(arguments, cwd=cwd or fabric.repo.work, env=fabric.environment, stdin=stdin)
        assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    return command
