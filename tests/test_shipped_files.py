"""The files that are shipped beside the code: systemd unit, example settings, example specs.

Dashboards and rules are tried in tests/observing.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parent.parent
UNIT = PROJECT / "systemd" / "envfabric.service"
EXAMPLES = PROJECT / "specs-example"
SPECS = sorted(EXAMPLES.glob("*/*/pyproject.toml"))
ID_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
TABLE_KEYS = {
    "python", "extras", "groups", "suspend", "ray", "validate", "imports", "command", "runtime-env",
}  # fmt: skip
RUNTIME_ENV_KEYS = {"env_vars", "working_dir", "excludes"}


def spec_id(pyproject: Path) -> str:
    return pyproject.parent.relative_to(EXAMPLES).as_posix()


def exec_start() -> list[str]:
    """The words of the unit's one ExecStart."""
    (line,) = [
        line for line in UNIT.read_text(encoding="utf-8").splitlines() if line.startswith("ExecStart=")
    ]
    return line.removeprefix("ExecStart=").split()


def test_unit_is_accepted_by_systemd(tmp_path: Path) -> None:
    """systemd finds nothing to complain about in the unit, once its program is there."""
    copy = tmp_path / UNIT.name
    text = UNIT.read_text(encoding="utf-8")
    copy.write_text(text.replace(f"ExecStart={exec_start()[0]}", f"ExecStart={sys.executable}"), "utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_unit_runs_the_daemon_with_the_shipped_settings() -> None:
    """The unit starts `envfabric run` with the settings file whose example lies beside it."""
    program, *arguments = exec_start()
    assert Path(program).name == "envfabric"
    assert "run --config" in " ".join(arguments)
    assert Path(arguments[-1]).name == "envfabric.toml"
    assert (UNIT.parent / "envfabric.toml").is_file()


def test_unit_may_write_where_the_settings_point() -> None:
    """The folder that the example settings write to is waited for, and exempt from ProtectSystem."""
    settings = tomllib.loads((UNIT.parent / "envfabric.toml").read_text(encoding="utf-8"))
    lines = UNIT.read_text(encoding="utf-8").splitlines()
    assert f"ReadWritePaths={settings['root']}" in lines
    assert f"RequiresMountsFor={settings['root']}" in lines


def test_settings_example_is_complete_and_on_loopback() -> None:
    """The example settings parse, name what the daemon needs, and open nothing to the network."""
    settings = tomllib.loads((UNIT.parent / "envfabric.toml").read_text(encoding="utf-8"))
    assert {"repo", "path", "branch", "root", "listen"} <= settings.keys()
    assert settings["listen"] == "127.0.0.1:9466"


@pytest.mark.parametrize("pyproject", SPECS, ids=spec_id)
def test_example_spec_is_valid(pyproject: Path) -> None:
    """Each shipped spec has a valid id, a project table that uv can use, and no unknown key."""
    workflow, node = spec_id(pyproject).split("/")
    assert ID_PART.fullmatch(workflow)
    assert ID_PART.fullmatch(node)
    loaded = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    project = loaded["project"]
    assert project["name"] == canonicalize_name(f"{workflow}-{node}")
    assert project["version"]
    assert project["description"]
    assert "\n" not in project["description"]
    assert "3.11" in SpecifierSet(project["requires-python"])
    assert project["dependencies"]
    for requirement in project["dependencies"]:
        assert Requirement(requirement).specifier, f"{requirement} may be anything"
    assert "dynamic" not in project
    table = loaded.get("tool", {}).get("envfabric", {})
    assert table.keys() <= TABLE_KEYS
    assert table.get("runtime-env", {}).keys() <= RUNTIME_ENV_KEYS


def test_example_specs_are_where_specs_belong() -> None:
    """Nothing among the examples is misplaced: each pyproject.toml and uv.lock is that of a spec."""
    assert len(SPECS) >= 6
    assert sorted(EXAMPLES.rglob("pyproject.toml")) == SPECS
    assert {lock.parent for lock in EXAMPLES.rglob("uv.lock")} <= {spec.parent for spec in SPECS}
    assert len({spec_id(spec).lower() for spec in SPECS}) == len(SPECS)


def test_examples_show_what_the_readme_promises() -> None:
    """There are two equal requirements, a committed lock, and Ray specs that exclude each other."""
    projects = {spec_id(spec): tomllib.loads(spec.read_text(encoding="utf-8")) for spec in SPECS}

    def dependencies(name: str) -> list[str]:
        return sorted(projects[name]["project"]["dependencies"])

    assert dependencies("etl/extract") == dependencies("alerts/notify")
    assert (EXAMPLES / "alerts" / "digest" / "uv.lock").is_file()
    ray = [
        name for name, loaded in projects.items() if loaded.get("tool", {}).get("envfabric", {}).get("ray")
    ]
    assert sorted(ray) == ["forecast/score", "forecast/train"]
    humanize = [
        {Requirement(text).name: Requirement(text) for text in dependencies(name)}["humanize"] for name in ray
    ]
    assert not [v for v in ("4.9.0", "4.12.0", "4.15.0") if all(v in needed.specifier for needed in humanize)]
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert set(projects) <= set(re.findall(r"`([\w-]+/[\w-]+)`", readme))
