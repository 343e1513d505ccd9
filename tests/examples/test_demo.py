"""`envfabric demo` keeps what it and the example specs promise to somebody who tries it."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from envfabric.cli.demo import _make_repository
from envfabric.core.errors import ConfigError
from examples.demo import EXAMPLES, SHIPPED, Demo


def test_demo_says_where_everything_is(demo: Demo, first_index: dict[str, Any]) -> None:
    """The demo prints the paths of the specs, of index.json, and the page, which answers on the loopback."""
    printed = "".join(demo.printed)
    assert f"specs: {demo.specs}\n" in printed
    assert f"index: {demo.nas}/index.json\n" in printed
    assert re.search(r"^page:  http://127\.0\.0\.1:\d+/$", printed, re.MULTILINE)
    assert demo.metric("envfabric_writer") == 1
    assert first_index["root"] == str(demo.nas)


def test_every_example_spec_is_ready(first_index: dict[str, Any]) -> None:
    """From nothing, every shipped spec is built at its first try, and there is no problem."""
    states = {spec_id: entry["state"] for spec_id, entry in first_index["environments"].items()}
    assert states == dict.fromkeys(SHIPPED, "ready"), first_index["environments"]
    assert first_index["problems"] == []
    assert {entry["generation"] for entry in first_index["environments"].values()} == {1}


def test_demo_starts_from_the_shipped_specs(demo: Demo) -> None:
    """The repository's first commit has the files of specs-example/, and nothing that only a user has."""
    first = demo.git("rev-list", "--max-parents=0", "HEAD")
    committed = demo.git("ls-tree", "-r", "--name-only", first).splitlines()
    shipped = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*") if path.is_file()}
    assert set(committed) == {name for name in shipped if "__pycache__" not in name}
    assert list(demo.home.iterdir()) == [], "the demo leaves the user's home alone"


def test_two_example_specs_share_a_closure(demo: Demo, first_index: dict[str, Any]) -> None:
    """The README's two specs with equal requirements have one interpreter; all others have their own."""
    python = dict(first_index["python"])
    shared = python.pop("alerts/notify")
    assert python["etl/extract"] == shared
    assert len(set(python.values())) == len(python)


def test_committed_lock_of_the_example_is_served(demo: Demo, first_index: dict[str, Any]) -> None:
    """The spec with a committed uv.lock gets that lock, byte for byte, and its versions."""
    generation = demo.nas / "generations" / "alerts" / "digest" / "1"
    committed = (EXAMPLES / "alerts" / "digest" / "uv.lock").read_bytes()
    assert (generation / "uv.lock").read_bytes() == committed
    code = "from importlib.metadata import version; print(version('markupsafe'))"
    version = demo.run(first_index["python"]["alerts/digest"], "-c", code)
    assert f'name = "markupsafe"\nversion = "{version}"'.encode() in committed


def test_plain_map_of_interpreters(demo: Demo) -> None:
    """One line of Python, without this project, prints the path of each spec's interpreter."""
    line = f"import json; print(json.load(open('{demo.nas}/index.json'))['python'])"
    printed = ast.literal_eval(demo.run(sys.executable, "-I", "-c", line))
    assert sorted(printed) == SHIPPED
    for spec_id, path in printed.items():
        serving = demo.index()["environments"][spec_id]["serving"]
        assert path == f"{demo.nas}/store/{serving}/.venv/bin/python"
        assert demo.run(path, "-c", "import sys; print(sys.prefix)") == os.path.dirname(os.path.dirname(path))


@pytest.mark.parametrize("spec_id", SHIPPED)
def test_interpreter_imports_what_the_spec_asks_for(demo: Demo, spec_id: str) -> None:
    """An environment imports each direct requirement of its spec, in a version that the spec allows."""
    requirements = demo.requirements(spec_id)
    assert requirements
    names = [one.name for one in requirements]
    code = (
        "import importlib, importlib.metadata, json\n"
        f"for name in {names}: importlib.import_module(name.replace('-', '_'))\n"
        f"print(json.dumps([importlib.metadata.version(name) for name in {names}]))"
    )
    versions = json.loads(demo.run(demo.index()["python"][spec_id], "-c", code).splitlines()[-1])
    for requirement, version in zip(requirements, versions, strict=True):
        assert version in requirement.specifier, requirement


def test_stable_path_for_people(demo: Demo, first_index: dict[str, Any]) -> None:
    """The command that the demo proposes at the end works as it is printed."""
    (proposed,) = [line for line in demo.printed if "/.venv/bin/python -c" in line]
    prefix = demo.run("sh", "-c", proposed)
    assert os.path.realpath(prefix) == os.path.realpath(demo.nas / "envs/etl/extract/.venv")


def run_readme(demo: Demo, marker: str, *before: str) -> str:
    """Runs the README's block of commands below a marker on the running demo; gives what it prints."""
    readme = (EXAMPLES.parent / "README.md").read_text("utf-8")
    block = readme.split(f"<!-- {marker} -->")[1].split("```sh\n")[1].split("```")[0]
    assert block.count("\nenvfabric ") >= 6
    beside = os.path.dirname(sys.executable)
    script = block.replace("~/envfabric-demo", str(demo.folder))
    return demo.run("bash", "-c", "\n".join(["set -eu", f"export PATH={beside}:$PATH", *before, script]))


def test_readme_looks_after_a_fabric(demo: Demo) -> None:
    """The README's commands for looking after a fabric work as they stand there, beside the running demo."""
    printed = run_readme(demo, "look after it", f"export ENVFABRIC_ROOT={demo.nas}")
    assert "are the same closure" in printed
    assert "all are as they were sealed" in printed
    assert "served by etl/extract" in printed
    assert "0 closures and 0 generations removed" in printed


def test_commit_changes_the_index_without_a_restart(demo: Demo) -> None:
    """Editing a spec and a plain `git commit -am`, on a machine without an identity, is all it takes."""
    before = demo.index()
    pyproject = demo.specs / "etl" / "extract" / "pyproject.toml"
    text = pyproject.read_text("utf-8")
    pyproject.write_text(
        text.replace("dependencies = [", 'dependencies = [\n    "humanize>=4.12,<5",'), "utf-8"
    )
    demo.git("commit", "--quiet", "-am", "try it")
    after = demo.wait_for_commit(demo.git("rev-parse", "HEAD"))
    entry = after["environments"]["etl/extract"]
    assert entry["state"] == "ready", entry["error"]
    assert entry["generation"] == before["environments"]["etl/extract"]["generation"] + 1
    changed = [name for name in SHIPPED if after["python"][name] != before["python"][name]]
    assert changed == ["etl/extract"]
    demo.run(after["python"]["etl/extract"], "-c", "import httpx, humanize")
    code = "import httpx, importlib.util as u; assert u.find_spec('humanize') is None"
    demo.run(before["python"]["etl/extract"], "-c", code)


def test_readme_writes_a_spec(demo: Demo) -> None:
    """The README's commands write a spec, check it, wait for it, and bring its lock home, as they stand there."""
    printed = run_readme(demo, "write commands")
    folder = demo.specs / "reports" / "daily"
    assert "httpx" not in (folder / "pyproject.toml").read_text("utf-8")
    generation = demo.nas / "generations" / "reports" / "daily" / "1"
    assert (folder / "uv.lock").read_bytes() == (generation / "uv.lock").read_bytes()
    assert "reports/daily" in printed
    demo.run(demo.index()["python"]["reports/daily"], "-c", "import tabulate")
    shutil.rmtree(folder)
    demo.git("commit", "--quiet", "-am", "no daily report")
    assert "reports/daily" not in demo.wait_for_commit(demo.git("rev-parse", "HEAD"))["environments"]


def test_second_demo_goes_on_where_the_first_ended(demo: Demo) -> None:
    """After Ctrl-C (exit code 0), a demo on the same DIR serves what is there and builds nothing."""
    before = demo.index()
    commits = demo.git("rev-list", "--all")
    closures = sorted(os.listdir(demo.nas / "store"))
    assert demo.stop() == 0, "".join(demo.logged[-20:])
    assert "Traceback" not in "".join(demo.logged)
    assert demo.start() == before
    assert demo.metric("envfabric_builds_total") == 0
    assert demo.git("rev-list", "--all") == commits
    assert sorted(os.listdir(demo.nas / "store")) == closures


def test_folder_with_a_space_is_refused(tmp_path: Path) -> None:
    """Ray would break on such a path: exit code 2, a sentence that says so, and nothing is made."""
    folder = tmp_path / "my demo"
    done = subprocess.run(
        [sys.executable, "-m", "envfabric", "demo", folder],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert str(folder) in done.stderr
    assert "Choose another folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", ["add", "commit"])
def test_interrupted_demo_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """A demo that ended while its repository was made leaves no half of one: the next one makes it whole."""
    git = shutil.which("git")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").write_text(f'#!/bin/sh\n[ "$1" = {failing} ] && exit 1\nexec {git} "$@"\n')
    (tmp_path / "bin" / "git").chmod(0o755)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    folder = tmp_path / "demo"
    # What kill -9 leaves.
    (folder / ".specs-xyz" / "specs" / ".git").mkdir(parents=True)
    with monkeypatch.context() as context:
        context.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
        with pytest.raises(ConfigError, match=f"git {failing}"):
            _make_repository(folder / "specs")
    assert os.listdir(folder) == [".specs-xyz"]
    _make_repository(folder / "specs")
    listed = ["git", "ls-tree", "-r", "--name-only", "main"]
    done = subprocess.run(listed, cwd=folder / "specs", capture_output=True, text=True, check=True)
    assert {f"{name}/pyproject.toml" for name in SHIPPED} <= set(done.stdout.splitlines())
