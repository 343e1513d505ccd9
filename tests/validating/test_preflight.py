"""A spec that requires Ray gets the cluster's Ray and its minor of Python, or is told what to write, and where."""

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from build.test_interpreters import fake
from envfabric.build.interpreters import Interpreters
from envfabric.build.preflight import Cluster, check_ray, choose
from envfabric.build.uv import Uv
from envfabric.core.errors import ConfigError, Reason, SpecError
from envfabric.service.settings import load_settings
from envfabric.specs.policy import Policy
from envfabric.specs.spec import Spec, read_spec
from envfabric.store.files import Files
from envfabric.store.prepare import init_root
from support.fabric import BASE_PYTHON, Fabric

HERE = ".".join(map(str, sys.version_info[:3]))
MINOR = f"3.{sys.version_info.minor}"
CLUSTER = Cluster("2.60.0", "3.11.7")
Open = Callable[..., Interpreters]


@pytest.fixture
def open_with(tmp_path: Path) -> Open:
    """The interpreters of a ROOT that has these versions."""
    root = init_root(tmp_path / "nas", Files())

    def make(*versions: str, default: str = "3.12") -> Interpreters:
        paths = [fake(tmp_path / "opt" / one / "bin/python3", one) for one in versions]
        return Interpreters(root, Files(), Uv(root), default, tuple(paths))

    return make


def spec(
    *table: str,
    dependencies: Sequence[str] = ("ray",),
    requires: str | None = None,
    version_file: str | None = None,
    lock: bytes | None = None,
    ray: bool = True,
) -> Spec:
    lines = ["[project]", 'name = "a"', 'version = "1"']
    lines += [f"dependencies = {json.dumps(list(dependencies))}"]
    lines += [f"requires-python = {json.dumps(requires)}"] if requires else []
    lines += ["[tool.envfabric]", f"ray = {json.dumps(ray)}", *table]
    files = {"pyproject.toml": "\n".join([*lines, ""]).encode()}
    files |= {".python-version": version_file.encode()} if version_file else {}
    files |= {"uv.lock": lock} if lock is not None else {}
    return read_spec("wf/a", "0" * 40, files, Policy())


def refusal(call: Callable[[], object], reason: Reason, *words: str) -> None:
    with pytest.raises(SpecError) as caught:
        call()
    assert caught.value.reason is reason
    for one in words:
        assert one in caught.value.message, caught.value.message


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        (spec(), "3.11.7"),
        (spec(requires=">=3.10"), "3.11.7"),
        (spec(requires="<3.11.5"), "3.11.2"),
        (spec('python = "3.11.2"'), "3.11.2"),
        (spec(version_file="3.11"), "3.11.7"),
        (spec('python = ">=3.10,<3.12"'), "3.11.7"),
        (spec('python = ">=3.10"'), "3.11.7"),
        (spec('python = ">=3.10,!=3.11.7"'), "3.11.9"),
        (spec('python = ">=3.10"', requires="<3.11.5"), "3.11.2"),
        (spec(ray=False), "3.12.1"),
        (spec('python = "3.12"', ray=False), "3.12.1"),
    ],
)
def test_the_clusters_python_is_the_default_for_ray(open_with: Open, asked: Spec, chosen: str) -> None:
    """Who requires Ray and does not choose gets the cluster's own Python, else its minor; who chooses, a patch of it.

    Who does not require Ray is not asked.
    """
    interpreters = open_with("3.10.2", "3.11.2", "3.11.7", "3.11.9", "3.12.1")
    assert choose(asked, interpreters, CLUSTER).version == chosen


def test_another_patch_does_where_the_clusters_is_not_here(open_with: Open) -> None:
    """Without the cluster's own Python another of its minor is taken; without any, the error says so."""
    here = open_with("3.11.2", "3.12.1")
    for asked in (spec(), spec('python = ">=3.10"'), spec(version_file="3.11")):
        assert choose(asked, here, CLUSTER).version == "3.11.2"
    none = Cluster("2.60.0", "3.13.1")
    refusal(
        lambda: choose(spec(), open_with("3.11.2", "3.12.1"), none),
        Reason.UNRESOLVABLE,
        "python 3.13 (from [ray] python in the settings)",
        "3.11.2, 3.12.1",
    )


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            spec('python = "3.12"'),
            ("wf/a/pyproject.toml:7: ", 'Write python = "3.11" in [tool.envfabric], or'),
        ),
        (
            spec('python = "3.12"', requires=">=3.12"),
            ("pyproject.toml:8: ", "'>=3.12' would have to admit that"),
        ),
        (
            spec(requires=">=3.12"),
            ("wf/a/pyproject.toml:5: ", 'Write python = "3.11"', "'>=3.12' would have to admit"),
        ),
        (spec(version_file="3.12\n"), ("wf/a/.python-version:1: ", "Write 3.11 there")),
    ],
)
def test_another_minor_is_refused_with_the_line_to_write(
    open_with: Open, asked: Spec, words: tuple[str, ...]
) -> None:
    """The message has the file and line of the wrong wish, both versions, and what to write instead."""
    refusal(
        lambda: choose(asked, open_with("3.11.7", "3.12.1"), CLUSTER),
        Reason.VALIDATION,
        "Python 3.12.1",
        "the cluster runs 3.11.7",
        "ray = false",
        *words,
    )


@pytest.mark.parametrize(
    ("asked", "found", "words"),
    [
        (spec(dependencies=["alpha"]), None, ("pyproject.toml:4: ", "has no ray", 'Add "ray==2.60.0" to project.dep')),
        (spec(dependencies=["b", "Ray [default,serve] >=2.5"]), "2.61.0",
         ("wf/a/pyproject.toml:4: ", "ray 2.61.0", "runs 2.60.0", 'Write "ray[default,serve]==2.60.0" in')),
        (spec(dependencies=["ray-tools"]), "2.50.0", ('Write "ray==2.60.0" in project.dependencies.',)),
        (spec(dependencies=["ray"], lock=b""), "2.50.0", ("and lock anew (envfabric lock wf/a)",)),
    ],
)  # fmt: skip
def test_another_ray_is_refused_with_the_line_to_write(
    asked: Spec, found: str | None, words: tuple[str, ...]
) -> None:
    """The message has the place of the requirement, both versions, and the requirement to write, with its extras."""
    refusal(lambda: check_ray(asked, found, CLUSTER), Reason.VALIDATION, *words)


def test_only_a_requirement_is_named() -> None:
    """The place is that of the requirement or of its list, whatever else is spelt like it; blanks cost nothing."""
    for text, line in {
        'keywords = ["ray"]\ndependencies = [\n  "alpha",\n  "ray",\n]': 6,
        'dependencies = ["alpha"]\nkeywords = ["ray"]': 3,
        'dependencies = [\n  "r\\u0061y",\n]\nkeywords = ["ray"]': 3,
    }.items():
        raw = f'[project]\nname = "a"\n{text}\nversion = "1"\n[tool.envfabric]\nray = true\n# "'.encode()
        raw += b" " * (256 * 1024 - len(raw))
        asked = read_spec("wf/a", "0" * 40, {"pyproject.toml": raw}, Policy())
        call = partial(check_ray, asked, "2.50.0", CLUSTER)
        refusal(call, Reason.VALIDATION, f"pyproject.toml:{line}: ")


def test_equal_versions_and_who_is_not_for_ray_pass() -> None:
    """Versions are compared as versions; a spec that does not require Ray may have any, or none."""
    check_ray(spec(), "2.60", CLUSTER)
    check_ray(spec(), "2.50.0", Cluster())
    check_ray(spec(ray=False), "2.50.0", CLUSTER)
    check_ray(spec(ray=False), None, CLUSTER)
    refusal(lambda: check_ray(spec(), None, Cluster()), Reason.VALIDATION, "the cluster's version")


def test_unfit_specs_are_told_before_anything_is_built(trusting: Fabric) -> None:
    """By the fleet's settings: each unfit spec fails with its line, nothing of it is built; versions are published."""
    trusting.settings["ray"] = {"version": "2.60.0", "python": HERE, "required": True}
    trusting.settings["pythons"] = [
        BASE_PYTHON,
        fake(trusting.folder / "opt/3.99.1/bin/python3", "3.99.1"),
    ]
    trusting.repo.spec("wf/good", ["ray"])
    trusting.repo.spec("wf/free", ["alpha"], table="[tool.envfabric]\nray = false")
    trusting.repo.spec("wf/free-old", ["ray==2.50.0"], table="[tool.envfabric]\nray = false")
    trusting.repo.spec("wf/none", ["alpha"])
    trusting.repo.spec("wf/old", ["ray<2.60"])
    trusting.repo.spec("wf/deep", ["over-ray"])
    trusting.repo.spec("wf/python", ["ray"], python="3.99")
    trusting.repo.commit()
    index = trusting.run_once(expect=1)
    entries = index["environments"]
    assert {one for one, entry in entries.items() if entry["state"] == "ready"} == {
        "wf/good",
        "wf/free",
        "wf/free-old",
    }
    assert {one: entries[one]["ray_version"] for one in index["python"]} == {
        "wf/good": "2.60.0",
        "wf/free": None,
        "wf/free-old": "2.50.0",
    }
    for one, words in {
        "wf/none": ("wf/none/pyproject.toml:5: ", 'Add "ray==2.60.0"'),
        "wf/old": ("wf/old/pyproject.toml:5: ", "ray 2.50.0", 'Write "ray==2.60.0"'),
        "wf/deep": ("wf/deep/pyproject.toml:5: ", "ray 2.50.0", 'Write "ray==2.60.0"'),
        "wf/python": ("wf/python/.python-version:1: ", "3.99.1", f"Write {MINOR} there"),
    }.items():
        error = entries[one]["error"]
        assert error["reason"] == "validation"
        for word in words:
            assert word in error["message"]
    assert len(list((trusting.root / "store").iterdir())) == 3
    done = trusting.command("check", "--resolve", "--config", trusting.configure(), trusting.repo.path)
    assert done.returncode == 1
    assert 'Write "ray==2.60.0"' in done.stdout + done.stderr


def test_a_spec_that_does_not_choose_follows_the_clusters_python(trusting: Fabric) -> None:
    """What was published under another default is not served as wanted once the settings name the cluster's Python."""
    trusting.settings["ray"] = {"version": "2.60.0", "python": f"{MINOR}.99", "required": True}
    trusting.repo.spec("wf/a", ["ray"])
    trusting.repo.commit()
    assert trusting.run_once()["environments"]["wf/a"]["python_version"] == HERE
    trusting.settings["ray"]["python"] = "3.99.1"
    # The same request, looked into anew.
    trusting.repo.write("wf/a/README.md", "words")
    trusting.repo.commit()
    entry = trusting.run_once(expect=1)["environments"]["wf/a"]
    assert entry["state"] == "stale"
    assert "meets python 3.99 and requires-python" in entry["error"]["message"]
    assert "(from [ray] python in the settings)" in entry["error"]["message"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[ray]\npython = "3.11"\n', "ray.python"),
        ('[ray]\nversion = "2.60.0-what?"\n', "must be a version in full"),
        ('[policy]\nvalidation = ["all"]\n', "policy.validation"),
        ('[policy]\nvalidate = ["full"]\n', "did you mean 'validation'?"),
    ],
)
def test_settings_are_checked(tmp_path: Path, text: str, words: str) -> None:
    """The cluster's Python is a full version, and kinds of validation are the three that there are."""
    path = tmp_path / "envfabric.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(path, {})
    assert words in str(caught.value)
