"""`envfabric doctor --ray`: whether this machine, with this Python, is a node that Ray can start environments on.

Run by the Python that runs `ray start`. Nothing of Ray is imported here: that is done in a child, as the node's agent
does it, so that what hangs or crashes there is a finding. Reads environments of Ray's processes on this machine, as
far as this user may, and changes nothing. Of the environments one library is loaded, ray's own, and never by the user
whose files they are: whoever wrote a package could do anything as that one.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from envfabric.client import fitting
from envfabric.client.findings import Finding, some
from envfabric.client.index import EnvfabricError, EnvironmentFailed

PLUGINS, HOOK = "RAY_RUNTIME_ENV_PLUGINS", "RAY_RUNTIME_ENV_HOOK"
PLUGIN, DRIVER = "envfabric.client.plugin.EnvfabricPlugin", "envfabric.client.driver.hook"
TURN_ON = f"""export {PLUGINS}='[{{"class": "{PLUGIN}"}}]'"""
AT_LEAST = 30.0
"""Seconds for an import of ray, which takes some of them on a busy node."""
# Each step's result is printed at once: when one hangs the earlier ones are known.
_CHILD = """
import importlib, json, sys
def tell(name, value):
    print(json.dumps([name, value]), flush=True)
def found(path):
    module, _, name = path.rpartition(".")
    try:
        getattr(importlib.import_module(module), name)
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
try:
    import ray
    tell("ray", ray.__version__)
except BaseException as error:
    tell("no ray", f"{type(error).__name__}: {error}")
for path in sys.argv[1:]:
    tell(path, found(path))
"""


def of_ray(index: Mapping[str, Any], config: str | os.PathLike[str] | None, timeout: float) -> list[Finding]:
    """What is found of Ray on this machine; `index` is what is published, empty where that is not known."""
    classes, wrong = _classes(os.environ.get(PLUGINS))
    hook = os.environ.get(HOOK)
    told = _told([*(classes or [PLUGIN]), *([hook] if hook else [])], max(timeout, AT_LEAST))
    version = told.get("ray")
    if version is None:
        return [*_no_ray(told), *_raylets()]
    findings = [Finding("ray", "ok", f"ray {version}, Python {platform.python_version()} ({sys.executable})")]
    findings += _plugin(classes, wrong, told)
    findings += _raylets()
    findings += _hook(hook, told)
    findings += _versions(index, config, version)
    findings += _libraries(index, timeout)
    return findings


def _no_ray(told: Mapping[str, str | None]) -> list[Finding]:
    why = told.get("no ray") or "the import came to no end in time"
    do = "Run this command by the Python that runs `ray start`: install environment-fabric there."
    return [Finding("ray", "problem", f"ray can't be imported by {sys.executable}: {why}", do)]


def _plugin(
    classes: list[str] | None, wrong: str | None, told: Mapping[str, str | None]
) -> Iterator[Finding]:
    if wrong is not None:
        do = f"With it no node comes up. Set it so, before `ray start`: {TURN_ON}"
        yield Finding("plugin", "problem", f"{PLUGINS} {wrong}", do)
        return
    broken = False
    for path in classes or [PLUGIN]:
        why = told.get(path, "the import came to no end in time")
        if why is not None:
            broken = True
            do = f"With {path} in {PLUGINS} no node comes up: install environment-fabric for {sys.executable} first."
            yield Finding("plugin", "problem", f"{path} can't be imported: {why}", do)
    if broken:
        return
    if classes is None:
        yield Finding(
            "plugin",
            "warning",
            f"the class can be imported; {PLUGINS} is not set in this process",
            f"Before `ray start`: {TURN_ON}",
        )
    elif PLUGIN not in classes:
        do = f"Add it: {TURN_ON}"
        yield Finding("plugin", "problem", f"{PLUGINS} names {some(classes)}, and not {PLUGIN}", do)
    else:
        yield Finding("plugin", "ok", f"{PLUGINS} names the class, and it can be imported")


def _raylets() -> Iterator[Finding]:
    """Whether those that run on this machine were started with the plugin."""
    seen, hidden, without = 0, 0, []
    for pid, variables in _running():
        if variables is None:
            hidden += 1
            continue
        seen += 1
        classes, wrong = _classes(variables.get(PLUGINS))
        if wrong is not None or PLUGIN not in (classes or []):
            without.append(str(pid))
    if without:
        yield Finding(
            "raylet",
            "problem",
            f"{len(without)} of {seen} on this machine started without the plugin (pid {', '.join(without)}): "
            "environments run there unchecked and without a lease",
            f"`ray stop` there, then {TURN_ON} and `ray start` again.",
        )
    elif seen:
        yield Finding("raylet", "ok", f"{seen} on this machine, with the plugin")
    if hidden:
        told = f"{hidden} raylet{'' if hidden == 1 else 's'} can't be looked at"
        yield Finding("raylet", "warning", told, "They are another user's: run this command as that user.")


def _running() -> Iterator[tuple[int, dict[str, str] | None]]:
    """The raylets on this machine and the variables they were started with; None where this user may not look."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            program = (entry / "cmdline").read_bytes().split(b"\0")[0]
            if os.path.basename(program) != b"raylet":
                continue
            content = (entry / "environ").read_bytes()
        except PermissionError:
            yield int(entry.name), None
            continue
        except OSError:
            # Ended meanwhile.
            continue
        pairs = (os.fsdecode(one).partition("=") for one in content.split(b"\0") if one)
        yield int(entry.name), {name: value for name, _, value in pairs}


def _hook(hook: str | None, told: Mapping[str, str | None]) -> Iterator[Finding]:
    if hook is None:
        yield Finding("driver hook", "ok", f"{HOOK} is not set: values by hand need their @digest")
    elif (why := told.get(hook, "the import came to no end in time")) is not None:
        do = f"Unset it, or set it to {DRIVER}: no driver starts with it."
        yield Finding("driver hook", "problem", f"{HOOK}={hook} can't be imported: {why}", do)
    elif hook != DRIVER:
        do = f"Where values without a digest are to be decided in the driver, set it to {DRIVER}."
        yield Finding("driver hook", "warning", f"{HOOK} is {hook}", do)
    else:
        yield Finding("driver hook", "ok", f"{HOOK} is {DRIVER}")


def _versions(
    index: Mapping[str, Any], config: str | os.PathLike[str] | None, version: str
) -> Iterator[Finding]:
    """This node against what the settings say of the cluster, and against each environment."""
    python = platform.python_version()
    said = fitting.of_settings(config)
    for what, mine, theirs in (("ray", version, said.ray), ("Python", python, said.python)):
        if theirs is not None and theirs != mine:
            # Ray prints a mismatch of patch versions of Python, and runs.
            near = what == "Python" and theirs.split(".")[:2] == mine.split(".")[:2]
            do = "Install it on this node, or change the setting when the whole cluster has moved."
            told = f"this node has {what} {mine}, and {said.source} says {theirs}"
            yield Finding("versions", "warning" if near else "problem", told, do)
    here = fitting.Cluster(version, python, "this node")
    fit, apart, unfit = 0, [], []
    for spec_id, entry in index.get("environments", {}).items():
        if entry["serving"] is None or entry["ray_version"] is None:
            continue
        try:
            fitting.refuse_unfit(spec_id, entry["ray_version"], entry["python_version"], here)
            fit += 1
            if fitting.other_patch(spec_id, entry["python_version"], here):
                apart.append(f"{spec_id} ({entry['python_version']})")
        except EnvironmentFailed:
            unfit.append(f"{spec_id} (ray {entry['ray_version']}, Python {entry['python_version']})")
    if unfit:
        do = (
            f'Ray refuses them here. Where they are meant for this cluster: "ray=={version}", and its Python.'
        )
        yield Finding("environments", "warning", f"{len(unfit)} do not fit this node: {some(unfit)}", do)
    if apart:
        told = f"{len(apart)} have another patch version of Python than this node's {python}: {some(apart)}"
        do = (
            f"Tasks and actors run, and Ray refuses the drivers of submitted jobs there. For these: python = "
            f'"{python}" in their [tool.envfabric].'
        )
        yield Finding("environments", "warning", told, do)
    if fit:
        yield Finding("environments", "ok", f"{fit} can be run by this node's Ray and Python")
    elif index and not unfit:
        do = f'Add "ray=={version}" to the dependencies of specs that are used with Ray.'
        yield Finding("environments", "warning", "none that is served has ray", do)


def _libraries(index: Mapping[str, Any], timeout: float) -> Iterator[Finding]:
    """Whether ray's own library of each served version can be loaded here, by one environment of each."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for spec_id, python in index.get("python", {}).items():
        entry = index["environments"][spec_id]
        # What the closure's metadata.json lists: a file that only lies at ray's place is never loaded.
        if entry["ray_version"] is not None and os.path.lexists(python):
            found.setdefault((entry["ray_version"], entry["python_version"]), (spec_id, python))
    if not found:
        return
    if why := _too_mighty(Path(index["root"])):
        do = "Run it as the user that runs Ray on this node, where that is another one."
        yield Finding("library", "warning", f"ray's library was not loaded: {why}", do)
        return
    end, looked, wrong = time.monotonic() + timeout, 0, 0
    for (ray, built), (spec_id, python) in found.items():
        if time.monotonic() > end:
            break
        looked += 1
        try:
            fitting.starts(python, timeout, built)
        except EnvfabricError as error:
            wrong += 1
            do = "No task in such an environment comes up on this node."
            yield Finding("library", "problem", f"{spec_id} (ray {ray}): {error}", do)
    if looked < len(found):
        told = f"{looked} of {len(found)} were loaded in {timeout:g} s"
        yield Finding("library", "warning", told, "Give more time with --timeout.")
    elif not wrong:
        yield Finding("library", "ok", f"ray's own can be loaded: {some([ray for ray, _ in found])}")


def _too_mighty(root: Path) -> str | None:
    """Why this user must run none of a package's code: it could change every environment; None where it may."""
    me = os.geteuid()
    try:
        owners = {os.stat(root).st_uid, os.stat(root / "index.json").st_uid}
    except OSError as error:
        return f"whose files these are can't be known: {error}"
    if me in owners:
        return f"this user owns {root}, and a package's code could change everything there"
    return "this is root, and a package's code could do anything" if me == 0 else None


def _told(paths: list[str], seconds: float) -> dict[str, str | None]:
    """Ray's version as a child says it, and of each path None, or why it can't be imported."""
    # -P: what lies in the current folder is not what a node's agent would import.
    command = [sys.executable, "-P", "-c", _CHILD, *paths]
    # The hook belongs to drivers; a plugin is imported below, not by Ray.
    variables = {name: value for name, value in os.environ.items() if name not in {PLUGINS, HOOK}}
    told: dict[str, str | None] = {}
    try:
        done = subprocess.run(
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
        out = done.stdout
        if done.returncode:
            told = dict.fromkeys([*paths, "no ray"], f"importing it ended the child, {done.returncode}")
    except subprocess.TimeoutExpired as error:
        out = error.stdout or b""
    for line in out.decode(errors="replace").splitlines():
        try:
            name, value = json.loads(line)
            told[name] = value
        except (ValueError, TypeError):
            # What an import prints.
            continue
    return told


def _classes(value: str | None) -> tuple[list[str] | None, str | None]:
    """The classes that the variable names, None where it is not set; and what is wrong with it."""
    if not value:
        return None, None
    try:
        found = json.loads(value)
        return [one["class"] for one in found if isinstance(one["class"], str)], None
    except (ValueError, TypeError, KeyError):
        return [], f'is {value!r}, and must be a JSON list of {{"class": …}}'
