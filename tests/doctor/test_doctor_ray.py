"""`envfabric doctor --ray`: what keeps this machine from starting environments as a node of Ray.

Where only what a child can import matters, the child finds a `ray` of three lines, which takes no seconds to import.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from doctor.conftest import PLAIN, PYTHON, WITH_RAY, Nas, spoil_library
from envfabric.client import doctor_ray
from envfabric.client.doctor_ray import DRIVER, HOOK, PLUGIN, PLUGINS
from envfabric.client.findings import Finding

OURS = json.dumps([{"class": PLUGIN}])


def findings(index: dict[str, Any] | None = None, config: Path | None = None) -> dict[str, list[Finding]]:
    """What is found, by check; the raylets of this machine are none of these tests' own."""
    found: dict[str, list[Finding]] = {}
    for one in doctor_ray.of_ray(index or {}, config, 60):
        found.setdefault(one.check, []).append(one)
    return found


@pytest.fixture
def small(nas: Nas, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of modules that a child imports first, with a small ray."""
    folder = nas.path.parent / "modules"
    (folder / "ray").mkdir(parents=True)
    (folder / "ray/__init__.py").write_text('__version__ = "2.60.0"\n')
    (folder / "mine.py").write_text("class Plugin: pass\ndef hook(given): return given\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return folder


def test_node_that_is_right(nas: Nas, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the real Ray: the class and the hook can be imported, and an environment has this Ray and Python."""
    monkeypatch.setenv(PLUGINS, OURS)
    monkeypatch.setenv(HOOK, DRIVER)
    index = nas.publish()
    index["environments"]["wf/ray"]["ray_version"] = ray.__version__
    found = findings(index)
    found.pop("raylet", None)
    assert {check: [one.level for one in of] for check, of in found.items()} == {
        "ray": ["ok"],
        "plugin": ["ok"],
        "driver hook": ["ok"],
        "environments": ["ok"],
        # The files are this user's own.
        "library": ["warning"],
    }
    assert ray.__version__ in found["ray"][0].found
    assert sys.executable in found["ray"][0].found


def test_process_without_the_variable_is_a_warning_with_the_line_to_set(nas: Nas) -> None:
    """A driver needs none; values by hand need a digest then."""
    found = findings()
    (plugin,) = found["plugin"]
    assert plugin.level == "warning"
    assert f"export {PLUGINS}='{OURS}'" in (plugin.do or "")
    (hook,) = found["driver hook"]
    assert (hook.level, "not set" in hook.found) == ("ok", True)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("envfabric", "must be a JSON list"),
        ('{"class": 1}', "must be a JSON list"),
        ('[{"class": "mine.Plugin"}]', f"and not {PLUGIN}"),
        ('[{"class": "nowhere.Plugin"}]', "nowhere.Plugin can't be imported: ModuleNotFoundError"),
        ('[{"class": "mine.Other"}]', "mine.Other can't be imported: AttributeError"),
        # Here it finds a ray that has no plugins.
        (OURS, f"{PLUGIN} can't be imported"),
    ],
)
def test_plugin_with_which_no_node_comes_up(
    small: Path, monkeypatch: pytest.MonkeyPatch, value: str, words: str
) -> None:
    """Or one comes up without ours; the line to set is said."""
    monkeypatch.setenv(PLUGINS, value)
    (found,) = findings()["plugin"]
    assert found.level == "problem"
    assert words in found.found
    assert PLUGINS in (found.do or "")


def test_hook_that_can_not_be_imported_or_is_another(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No driver starts with the first; the second decides nothing."""
    for value, level in (("nowhere.hook", "problem"), ("mine.hook", "warning")):
        monkeypatch.setenv(HOOK, value)
        (found,) = findings()["driver hook"]
        assert found.level == level
        assert DRIVER in (found.do or "")


def test_import_that_hangs_or_kills_is_a_finding(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one from a mount that does not answer; what was imported before it is known."""
    (small / "kills.py").write_text("import os; os._exit(9)\n")
    monkeypatch.setenv(HOOK, "kills.hook")
    found = findings()
    assert found["ray"][0].level == "ok"
    assert "ended the child, 9" in found["driver hook"][0].found
    (small / "hangs.py").write_text("import time; time.sleep(1000)\n")
    monkeypatch.setenv(HOOK, "hangs.hook")
    monkeypatch.setattr(doctor_ray, "AT_LEAST", 0.0)
    told = doctor_ray.of_ray({}, None, 5.0)
    assert any("came to no end in time" in one.found for one in told if one.level == "problem")


def test_python_without_ray(small: Path) -> None:
    """Says by which Python the command has to be run."""
    shutil.rmtree(small / "ray")
    (small / "ray.py").write_text("raise ImportError('a wheel for another machine')\n")
    (found,) = findings()["ray"]
    assert found.level == "problem"
    assert "a wheel for another machine" in found.found
    assert "Python that runs `ray start`" in (found.do or "")


def test_cluster_of_the_settings(small: Path, nas: Nas) -> None:
    """Another Ray or minor of Python is a problem, another patch version a warning; each with where it is said."""
    settings = nas.path.parent / "cluster.toml"
    minor = ".".join(platform.python_version_tuple()[:2])
    settings.write_text(f'[ray]\nversion = "2.61.0"\npython = "{minor}.99"\n')
    found = findings(nas.publish(), settings)["versions"]
    assert [(one.level, one.found) for one in found] == [
        ("problem", f"this node has ray 2.60.0, and [ray] of {settings} says 2.61.0"),
        ("warning", f"this node has Python {PYTHON}, and [ray] of {settings} says {minor}.99"),
    ]


def test_environments_that_do_not_fit_this_node(small: Path, nas: Nas) -> None:
    """Named, with the line to add, as are those in which only a submitted job's driver is refused; one without ray is
    meant for something else."""
    index = nas.publish()
    entries = index["environments"]
    assert [one.level for one in findings(index)["environments"]] == ["ok"]
    entries["wf/old"] = entries["wf/ray"] | {"ray_version": "2.9.0"}
    unfit, fit = findings(index)["environments"]
    assert (unfit.level, fit.level) == ("warning", "ok")
    assert "wf/old (ray 2.9.0" in unfit.found
    assert '"ray==2.60.0"' in (unfit.do or "")
    entries["wf/old"] = entries["wf/ray"] | {"python_version": f"{PYTHON.rpartition('.')[0]}.99"}
    near, fit = findings(index)["environments"]
    assert (near.level, fit.level) == ("warning", "ok")
    assert "1 have another patch version" in near.found
    assert f'python = "{PYTHON}"' in (near.do or "")
    entries["wf/ray"]["ray_version"] = entries["wf/old"]["ray_version"] = None
    (none,) = findings(index)["environments"]
    assert (none.level, none.found) == ("warning", "none that is served has ray")


def test_ray_of_an_environment_is_loaded_only_by_a_user_who_owns_nothing(
    small: Path, nas: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package's code runs with the rights of whoever loads it; and what only lies at ray's place is none."""
    for name in (PLAIN, WITH_RAY):
        spoil_library(nas, name)
    index = nas.publish()
    for who, words in ((os.stat(nas.path).st_uid, "this user owns"), (0, "this user owns|this is root")):
        monkeypatch.setattr(os, "geteuid", lambda who=who: who)
        (left_out,) = findings(index)["library"]
        assert left_out.level == "warning"
        assert re.search(f"was not loaded: {words}", left_out.found)
    monkeypatch.setattr(os, "geteuid", lambda: 64_242)
    (loaded,) = findings(index)["library"]
    assert (loaded.level, "wf/ray (ray 2.60.0)" in loaded.found) == ("problem", True)
    assert "can't load its ray" in loaded.found


@pytest.fixture
def raylet(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that look like one, ended with the test."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for one in started:
        one.kill()
        one.wait()


def test_raylet_that_was_started_without_the_plugin(
    small: Path, raylet: list[subprocess.Popen[bytes]]
) -> None:
    """Whatever this process has: what runs was started with what it has. One with it is not named."""
    raylet += [
        subprocess.Popen(["/opt/raylet", "1000"], executable="/bin/sleep", env=variables)
        for variables in ({}, {PLUGINS: OURS})
    ]
    # Others of this machine may be named beside it, and those of other users counted in a finding of their own.
    (found,) = [one for one in findings()["raylet"] if one.level == "problem"]
    named = re.findall(r"\d+", found.found)
    assert str(raylet[0].pid) in named
    assert str(raylet[1].pid) not in named


def test_raylets_that_this_user_may_not_look_at_are_counted(
    small: Path, raylet: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is said of the plugin then, and a warning says as whom to ask. The refusal is made: root has none."""
    raylet.append(subprocess.Popen(["/opt/raylet", "1000"], executable="/bin/sleep", env={}))
    closed = Path(f"/proc/{raylet[0].pid}/environ")
    read = Path.read_bytes

    def refused(path: Path) -> bytes:
        if path == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    found = findings()["raylet"]
    (hidden,) = [one for one in found if "can't be looked at" in one.found]
    assert hidden.level == "warning"
    assert "as that user" in (hidden.do or "")
    assert not any(str(raylet[0].pid) in one.found for one in found if one.level == "problem")
