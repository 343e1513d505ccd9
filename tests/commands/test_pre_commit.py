"""The pre-commit hook: what is shipped, and that pre-commit stops a commit with a bad spec."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from support.fabric import Fabric

TOP = Path(__file__).parents[2]
BAD = '[project]\nname = "x"\nversion = "1"\ndependencies = ["alpha ==== 1"]\n'


@pytest.fixture
def shipped(tmp_path: Path) -> dict[str, Any]:
    """The hook as pre-commit itself reads it."""
    code = (
        "import json, sys; from pre_commit.clientlib import load_manifest\n"
        "print(json.dumps(load_manifest(sys.argv[1])))"
    )
    path = TOP / ".pre-commit-hooks.yaml"
    env = os.environ | {"PRE_COMMIT_HOME": str(tmp_path / "pre-commit")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    hooks: list[dict[str, Any]] = json.loads(done.stdout)
    return hooks[0]


def test_the_shipped_hook(shipped: dict[str, Any]) -> None:
    """It is valid, runs `envfabric check` once, and installs the daemon's packages, which check needs."""
    assert (shipped["id"], shipped["entry"]) == ("envfabric-check", "envfabric check")
    assert shipped["pass_filenames"] is False
    extra = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert shipped["additional_dependencies"] == [".[daemon]"]
    assert "daemon" in extra


def test_a_bad_spec_is_not_committed(fabric: Fabric, shipped: dict[str, Any], tmp_path: Path) -> None:
    """`pre-commit run` fails with file and line for a bad spec, and passes once it is mended."""
    hook = {key: shipped[key] for key in ("id", "name", "files", "pass_filenames")}
    # Of the machine, not of an environment that pre-commit makes: that one would need a network.
    hook |= {"language": "system", "entry": f"{sys.executable} -m {shipped['entry']}"}
    config = {"repos": [{"repo": "local", "hooks": [hook]}]}
    # JSON is YAML.
    fabric.repo.write(".pre-commit-config.yaml", json.dumps(config))
    path = fabric.repo.write("wf/a/pyproject.toml", BAD)
    done = _pre_commit(fabric, tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "wf/a/pyproject.toml:4: invalid-spec: " in done.stdout
    path.write_text(BAD.replace(" ==== 1", ""))
    done = _pre_commit(fabric, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Passed" in done.stdout
    # A change to something else does not run it.
    fabric.repo.commit()
    fabric.repo.write("README.md", "x")
    assert "Skipped" in _pre_commit(fabric, tmp_path).stdout


def _pre_commit(fabric: Fabric, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    fabric.repo.git("add", "--all")
    env = fabric.environment | {"PRE_COMMIT_HOME": str(tmp_path / "pre-commit")}
    env |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    return subprocess.run(
        [sys.executable, "-m", "pre_commit", "run", "--color", "never"],
        cwd=fabric.repo.work,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
