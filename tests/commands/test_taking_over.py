"""new --from-requirements and --from-runtime-env: what is taken over, and that nothing is dropped silently."""

import json
import tomllib
from typing import Any

import pytest

from support.fabric import Fabric

from .conftest import Run

REQUIREMENTS = """\
# Our things.
--index-url https://robot:s3cret-word@index.invalid/simple
-r more/base.txt
-c limits.txt
-e ./local
Alpha[x] >= 1.0 ; python_version >= "3.11"  # why
beta==1.0 \\
    --hash=sha256:aaaa \\
    --hash=sha256:bbbb
    # via alpha
git+https://host.invalid/a/b@main#egg=b
other @ https://host.invalid/other-1.0.whl
./wheels/other.whl
-r ../outside.txt
${NAME}==1
--no-binary=:all:
--pre
"""

TAKEN = """\
dependencies = [
    # Our things.
    "gamma>=1",
    'Alpha[x] >= 1.0 ; python_version >= "3.11"', # why
    "beta==1.0",
    # via alpha
]

[tool.uv]
prerelease = "allow"
constraint-dependencies = [
    "alpha<3", # old
]
"""


def _made(fabric: Fabric, spec_id: str) -> dict[str, Any]:
    return tomllib.loads((fabric.repo.work / spec_id / "pyproject.toml").read_text())


def test_a_requirements_file(fabric: Fabric, run: Run) -> None:
    """Requirements, markers, extras, comments, -r, -c and --pre are taken over, and what has no place is told."""
    fabric.repo.write("requirements.txt", REQUIREMENTS)
    fabric.repo.write("more/base.txt", "gamma>=1\n-r ../requirements.txt\n")
    fabric.repo.write("limits.txt", "alpha<3 # old\n")
    (fabric.folder / "outside.txt").write_text("secret-thing\n")
    done = run("new", "wf/a", "--from-requirements", "requirements.txt")
    text = (fabric.repo.work / "wf/a/pyproject.toml").read_text()
    assert text.endswith(TAKEN)
    left = {
        line.partition(": not taken over: ")[0]: line
        for line in done.stderr.splitlines()
        if "not taken" in line
    }
    assert sorted(left) == sorted(f"requirements.txt:{number}" for number in (2, 5, 11, 12, 13, 14, 15, 16))
    assert "policy.indexes" in left["requirements.txt:2"]
    assert "editable" in left["requirements.txt:5"]
    assert "hashes were left out" in done.stderr
    assert "s3cret-word" not in done.stdout + done.stderr + text
    assert "1 spec, no problems" in run("check").stdout


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b"-r missing.txt\n", "there is no file"),
        (b"# \n" * 400_000, "more than"),
    ],
)
def test_a_requirements_file_that_can_not_be_read(
    fabric: Fabric, run: Run, content: bytes, words: str
) -> None:
    """It is wrong usage, and no spec is made."""
    fabric.repo.write("requirements.txt", content)
    assert words in run("new", "wf/a", "--from-requirements", "requirements.txt", expect=2).stderr
    assert not (fabric.repo.work / "wf").exists()


def test_a_runtime_env(fabric: Fabric, run: Run) -> None:
    """pip, env_vars, working_dir and excludes are taken over; conda, images and modules are told and no error."""
    given = {
        "pip": {
            "packages": ["alpha>=1", "ray==9.9", "--extra-index-url https://host.invalid"],
            "pip_check": False,
        },
        "env_vars": {"THREADS": 4, "FLAG": True, "TEXT": 'a "b"\n', "no name": "x"},
        "working_dir": "s3://bucket/code.zip",
        "excludes": ["*.log", "data/"],
        "py_modules": ["s3://bucket/mod.zip"],
        "conda": {"dependencies": ["python=3.11"]},
        "container": {"image": "x"},
        "image_uri": "host.invalid/x",
        "config": {"eager_install": True},
    }
    done = run("new", "wf/a", "--from-runtime-env", "-", stdin=json.dumps(given))
    made = _made(fabric, "wf/a")
    assert made["project"]["dependencies"] == ["alpha>=1", "ray==9.9"]
    assert made["tool"]["envfabric"]["runtime-env"] == {
        "env_vars": {"THREADS": "4", "FLAG": "true", "TEXT": 'a "b"\n'},
        "working_dir": "s3://bucket/code.zip",
        "excludes": ["*.log", "data/"],
    }
    for word in ("py_modules", "conda", "container", "image_uri", "config", "extra-index-url", "no name"):
        assert any(word in line for line in done.stderr.splitlines() if "not taken over" in line), word
    assert "ray is not among" not in done.stderr
    fabric.packages.add_wheel("ray", "9.9")
    fabric.repo.commit()
    index = fabric.run_once()
    assert index["environments"]["wf/a"]["runtime_env"] == made["tool"]["envfabric"]["runtime-env"]


@pytest.mark.parametrize(
    "given",
    [
        {"pip": ["alpha"]},
        {"pip": "requirements.txt"},
        {"pip": {"packages": "requirements.txt"}},
        {"uv": ["alpha"]},
        {"uv": {"packages": ["alpha"], "uv_version": "==0.5"}},
        {"pip": ["-r requirements.txt"]},
        {"runtime_env": {"pip": ["alpha"], "conda": None}},
    ],
)
def test_the_forms_of_a_package_list(fabric: Fabric, run: Run, given: dict[str, Any]) -> None:
    """A list, a file's path, either in a table; a file is looked for beside the JSON."""
    fabric.repo.write("deploy/requirements.txt", "alpha\n")
    fabric.repo.write("deploy/env.json", json.dumps(given))
    done = run("new", "wf/a", "beta", "--from-runtime-env", "deploy/env.json")
    assert _made(fabric, "wf/a")["project"]["dependencies"] == ["alpha", "beta"]
    assert "ray is not among the requirements" in done.stderr


@pytest.mark.parametrize("text", ["", "[]", "{'pip': []}", "[" * 100_000])
def test_what_is_no_runtime_env(fabric: Fabric, run: Run, text: str) -> None:
    """It is wrong usage, said in a sentence."""
    run("new", "wf/a", "--from-runtime-env", "-", stdin=text, expect=2)
    assert not (fabric.repo.work / "wf").exists()
