"""check: the daemon's own words before there is a commit, each with its file and line."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.fabric import Fabric

from .conftest import Run

EXAMPLES = Path(__file__).parents[2] / "specs-example"
GOOD = '[project]\nname = "x"\nversion = "1"\ndependencies = ["alpha"]\n'


def _lines(text: str) -> list[str]:
    """The findings as `path:line: reason`."""
    rows = [line.split(": ", 2) for line in text.splitlines()[:-1]]
    return [f"{place}: {reason}" for place, reason, message in rows if message]


def test_every_shipped_example_is_good(run: Run) -> None:
    """The examples, as a whole, as a workflow and one by one."""
    count = len(list(EXAMPLES.glob("*/*/pyproject.toml")))
    assert f"{count} specs, no problems" in run("check", EXAMPLES).stdout
    assert "3 specs, no problems" in run("check", EXAMPLES / "etl").stdout
    assert "1 spec, no problems" in run("check", EXAMPLES / "etl/quality").stdout


def test_each_bad_spec_is_named_with_its_line(fabric: Fabric, run: Run) -> None:
    """A collection of what goes wrong: path, line and reason of each, and what is good is not named."""
    repo = fabric.repo
    bad = {
        "wf/toml": '[project]\nname = "x"\nversion = "1"\ndependencies = ["a",,]\n',
        "wf/no-version": '[project]\nname = "x"\n',
        "wf/requirement": GOOD.replace("alpha", "alpha ==== 1"),
        "wf/url": GOOD.replace("alpha", "a @ file:///etc/passwd"),
        "wf/dynamic": '[project]\nname = "x"\ndynamic = ["version"]\n',
        "wf/source": GOOD + '\n[tool.uv.sources]\nalpha = { path = "../x" }\n',
        "wf/key": GOOD + '\n[tool.uv]\nno-binary-package = ["alpha"]\n',
        "wf/index": GOOD + '\n[[tool.uv.index]]\nurl = "https://host.invalid/simple"\n',
        "wf/unknown": GOOD + "\n[tool.envfabric]\nsuspended = true\n",
        "wf/validate": GOOD + '\n[tool.envfabric]\nvalidate = "full"\n',
        "wf/extra": GOOD + '\n[tool.envfabric]\nextras = ["gpu"]\n',
        "wf/twin": GOOD,
        "wf/Twin": GOOD,
        "wf/sp ace": GOOD,
        "wf/good": GOOD,
        "wf": GOOD,
        "wf/good/inner": GOOD,
        "": GOOD,
        ".hidden/wf/a": GOOD,
    }
    for spec_id, text in bad.items():
        repo.write(f"{spec_id}/pyproject.toml".lstrip("/"), text)
    repo.write("wf/pinned/pyproject.toml", GOOD)
    repo.write("wf/pinned/.python-version", "/usr/bin/python3\n")
    repo.write("wf/big/pyproject.toml", GOOD + "#" * (1 << 19))
    (repo.work / "wf/link").mkdir()
    (repo.work / "wf/link/pyproject.toml").symlink_to("../good/pyproject.toml")
    repo.write("wf/lock/pyproject.toml", GOOD)
    repo.write("wf/lock/uv.lock", "version = 1\n")
    done = run("check", expect=1)
    assert _lines(done.stdout) == [
        "wf/Twin/pyproject.toml:1: invalid-spec",
        "wf/big/pyproject.toml:1: invalid-spec",
        "wf/dynamic/pyproject.toml:3: policy",
        "wf/extra/pyproject.toml:7: invalid-spec",
        "wf/index/pyproject.toml:7: policy",
        "wf/key/pyproject.toml:7: policy",
        "wf/link/pyproject.toml:1: invalid-spec",
        "wf/lock/uv.lock:1: lock-stale",
        "wf/no-version/pyproject.toml:1: invalid-spec",
        "wf/pinned/.python-version:1: invalid-spec",
        "wf/pyproject.toml:1: invalid-spec",
        "wf/requirement/pyproject.toml:4: invalid-spec",
        "wf/source/pyproject.toml:7: policy",
        "wf/sp ace/pyproject.toml:1: invalid-spec",
        "wf/toml/pyproject.toml:4: invalid-spec",
        "wf/twin/pyproject.toml:1: invalid-spec",
        "wf/unknown/pyproject.toml:7: invalid-spec",
        "wf/url/pyproject.toml:4: policy",
        "wf/validate/pyproject.toml:7: policy",
    ]
    assert done.stdout.splitlines()[-1].endswith(", 19 problems")
    told = json.loads(run("check", "--json", expect=1).stdout)
    assert len(told["problems"]) == 19
    assert {"path": "wf/url/pyproject.toml", "line": 4, "id": "wf/url", "reason": "policy"}.items() <= next(
        one for one in told["problems"] if one["id"] == "wf/url"
    ).items()
    run("check", "wf/good")
    assert _lines(run("check", "wf/dynamic/pyproject.toml", expect=1).stdout) == [
        "wf/dynamic/pyproject.toml:3: policy"
    ]


def test_the_daemon_says_the_same(fabric: Fabric, run: Run) -> None:
    """What check finds is, word for word, what the index says of the commit."""
    fabric.repo.write("wf/dynamic/pyproject.toml", '[project]\nname = "x"\ndynamic = ["version"]\n')
    fabric.repo.write("wf/unknown/pyproject.toml", GOOD + "\n[tool.envfabric]\nsuspended = true\n")
    fabric.repo.write("wf/pyproject.toml", GOOD)
    told = json.loads(run("check", "--json", "--config", fabric.configure(), expect=1).stdout)["problems"]
    fabric.repo.commit()
    index = fabric.run_once(expect=1)
    said = {(one["reason"], one["message"]) for one in index["problems"]}
    for entry in index["environments"].values():
        said.add((entry["error"]["reason"], entry["error"]["message"]))
    assert {(one["reason"], one["message"]) for one in told if one["id"] is None} <= said
    for one in told:
        where = f"{one['path']}:{one['line']}: {one['message']}"
        assert one["id"] is None or (one["reason"], where) in said


def test_it_reads_what_a_commit_would_have(fabric: Fabric, run: Run) -> None:
    """Ignored files and deleted ones are out, untracked ones are in, submodules and linked folders are not entered."""
    repo = fabric.repo
    repo.write("wf/gone/pyproject.toml", "not toml")
    repo.write("wf/good/pyproject.toml", GOOD)
    repo.commit()
    repo.remove("wf/gone")
    repo.write(".gitignore", "scratch/\n")
    repo.write("scratch/a/pyproject.toml", "not toml")
    repo.write("wf/new/pyproject.toml", GOOD)
    (fabric.folder / "outside").mkdir()
    (fabric.folder / "outside/pyproject.toml").write_text("not toml")
    repo.write("wf2/good/pyproject.toml", GOOD)
    inner = repo.write("wf3/module/pyproject.toml", GOOD).parent
    _git_init(fabric, inner)
    done = run("check", expect=1)
    assert _lines(done.stdout) == ["wf3/module:1: invalid-spec"]
    shutil.rmtree(repo.work / "wf3")
    assert "3 specs, no problems" in run("check").stdout


def test_outside_of_git_a_folder_is_walked(fabric: Fabric, run: Run) -> None:
    """A folder that is in no work tree is checked, too, and nothing beyond a link in it."""
    folder = fabric.folder / "plain"
    (folder / "wf/a").mkdir(parents=True)
    (folder / "wf/a/pyproject.toml").write_text(GOOD)
    (folder / "wf/loop").symlink_to(folder)
    done = run("check", folder, cwd=fabric.folder, expect=1)
    assert _lines(done.stdout) == ["plain/wf/loop:1: invalid-spec"]
    (folder / "wf/loop").unlink()
    assert "1 spec, no problems" in run("check", "plain", cwd=fabric.folder).stdout


def test_in_a_folder_it_means_that_folder(fabric: Fabric, run: Run) -> None:
    """At the top all specs, in a workflow's folder that workflow, in a spec's folder that spec; with `.` the same."""
    for spec_id in ("wf/a", "wf/b", "other/c"):
        fabric.repo.spec(spec_id, ["alpha"])
    for folder, count in (("", "3 specs"), ("wf", "2 specs"), ("wf/a", "1 spec")):
        for arguments in ((), (".",)):
            done = run("check", *arguments, cwd=fabric.repo.work / folder)
            assert f"{count}, no problems" in done.stdout


@pytest.mark.parametrize("arguments", [("nowhere",), (".",), ("--config", "nowhere.toml")])
def test_wrong_usage_is_two(fabric: Fabric, run: Run, arguments: tuple[str, ...]) -> None:
    """A folder that is not there or has no spec, settings that can't be read: CI does not go on as if all were good."""
    run("check", *arguments, expect=2)


def test_nothing_of_a_spec_or_of_the_clone_runs(fabric: Fabric, run: Run) -> None:
    """A monitor that the clone's configuration names, a build backend, a setup.py: none leaves its mark."""
    mark = fabric.folder / "ran"
    monitor = fabric.repo.write("monitor.sh", f"#!/bin/sh\ntouch {mark}\n")
    monitor.chmod(0o755)
    fabric.repo.git("config", "core.fsmonitor", str(monitor))
    backend = f"open({str(mark)!r}, 'w')\n"
    fabric.repo.write("wf/a/backend.py", backend)
    fabric.repo.write("wf/a/setup.py", backend)
    system = '\n[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    fabric.repo.write("wf/a/pyproject.toml", GOOD + system)
    run("check")
    assert not mark.exists()


@pytest.fixture
def locked(fabric: Fabric) -> Iterator[Fabric]:
    """A spec with a good lock, whose requirements have all that a lock writes down in another form."""
    fabric.packages.add_wheel("extra-thing", "1.0")
    text = (
        '[project]\nname = "Wf.Locked"\nversion = "1.0"\nrequires-python = "~=3.11"\n'
        'dependencies = [\n    "Alpha >=1.0, <3; python_version >= \'3.11\'",\n    "gamma == 1.*",\n]\n\n'
        '[project.optional-dependencies]\nmore = ["extra_thing~=1.0", "beta"]\n\n'
        '[dependency-groups]\ndev = ["gamma"]\nall = [{include-group = "dev"}, "beta"]\n\n'
        f'[[tool.uv.index]]\nurl = "{fabric.packages.url}"\ndefault = true\n'
    )
    path = fabric.repo.write("wf/locked/pyproject.toml", text)
    fabric.lock(path.parent)
    yield fabric


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("", "", None),
        ('"1.0"\nrequires', '"1.1"\nrequires', "not for wf-locked 1.1"),
        ("~=3.11", ">=3.12", "not >=3.12"),
        ("<3;", "<4;", "alpha<4,>=1 is not in it"),
        ('"beta"]\n\n[dep', '"beta", "gamma"]\n\n[dep', "gamma is not in it"),
        ('    "gamma == 1.*",\n', "", "gamma==1.* is no longer required"),
        ('dev = ["gamma"]', 'dev = ["beta"]', "in group dev"),
        ("Alpha >=1.0, <3;", "alpha<3,>=1;", None),
    ],
)
def test_a_lock_is_checked_offline(locked: Fabric, run: Run, old: str, new: str, words: str | None) -> None:
    """A lock that fits is good; one whose requirements changed is stale, and it says which and what to run."""
    path = locked.repo.work / "wf/locked/pyproject.toml"
    before = path.read_text()
    assert old in before
    path.write_text(before.replace(old, new, 1))
    done = run("check", "--config", locked.configure(), expect=0 if words is None else 1)
    if words is not None:
        assert "wf/locked/uv.lock:1: lock-stale: " in done.stdout
        assert words in done.stdout
        assert "uv lock" in done.stdout


def test_resolve_asks_the_indexes(locked: Fabric, run: Run) -> None:
    """--resolve finds what only an index can tell, and leaves nothing behind."""
    locked.repo.spec("wf/good", ["alpha", "gamma<2"])
    locked.repo.spec("wf/none", ["no-such-thing"])
    locked.repo.spec("wf/conflict", ["gamma<2", "gamma>=2"])
    locked.repo.spec("wf/sdist", ["only-source"])
    before = sorted(os.listdir(locked.folder))
    config = locked.configure()
    assert "no problems" in run("check", "--config", config).stdout
    done = run("check", "--resolve", "--config", config, expect=1)
    assert _lines(done.stdout) == [
        "wf/conflict/pyproject.toml:1: unresolvable",
        "wf/none/pyproject.toml:1: unresolvable",
        "wf/sdist/pyproject.toml:1: policy",
    ]
    assert sorted({*os.listdir(locked.folder)} - {"envfabric.toml", "home"}) == sorted(
        {*before} - {"envfabric.toml", "home"}
    )


def _git_init(fabric: Fabric, folder: Path) -> None:
    fabric.repo.git("init", "--quiet", str(folder))
    fabric.repo.git("-C", str(folder), "add", "--all")
    fabric.repo.git("-C", str(folder), "commit", "--quiet", "--message", "inner")
