"""`envfabric which`, `exec`, `runtime-env`, `wait` and `doctor`: what consumers run, without the daemon's packages.

They start in the time of a bare interpreter, which counts where every task begins with one.
"""

import argparse
import json
import math
import os
import shutil
import sys
from collections.abc import Sequence

from envfabric.client.api import python, served
from envfabric.client.fitting import refuse_absent
from envfabric.client.index import EnvfabricError, find_root
from envfabric.client.runtime import runtime_env

SUMMARIES = {
    "which": "Print the path of an environment's interpreter.",
    "exec": "Run a command in an environment: envfabric exec ID -- CMD…",
    "runtime-env": "Print the JSON for `ray job submit --runtime-env-json`.",
    "wait": "Wait until what is committed is served; exits 0 ready, 1 failed, 124 timed out.",
    "doctor": "Say what is wrong with ROOT on this machine, and with --ray with it as a node of Ray.",
}


def main(arguments: Sequence[str]) -> int:
    """Runs one of the commands; gives the exit code. `exec` does not return where it succeeds."""
    parser = argparse.ArgumentParser(prog="envfabric")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, summary in SUMMARIES.items():
        command = commands.add_parser(name, help=summary, description=summary)
        command.add_argument("--root", metavar="DIR", help="the NAS folder (ENVFABRIC_ROOT)")
        command.add_argument("--config", metavar="FILE", help="the settings file (ENVFABRIC_CONFIG)")
        if name == "wait":
            _add_wait(command)
            continue
        if name == "doctor":
            _add_doctor(command)
            continue
        command.add_argument("--wait", metavar="SECONDS", type=float, help="wait for it to be built")
        command.add_argument("id", metavar="ID", help="the spec's id, <workflow>/<node>")
    # What follows the first -- is the command's own, flags and all.
    place = list(arguments).index("--") if "--" in arguments else len(arguments)
    given = parser.parse_args(arguments[:place])
    if given.command == "doctor":
        # Before ROOT is looked for: that it is not known is one of its findings.
        from envfabric.client import doctor

        return doctor.run(
            given.root, given.config, ray=given.ray, timeout=given.timeout, json_wanted=given.json
        )
    try:
        root = find_root(given.root, given.config)
        if given.command == "wait":
            # What only this command needs is not loaded where every task begins with another one.
            from envfabric.client import waiting

            return waiting.run(given.ids, root, given.commit, given.timeout, given.repo)
        if given.command == "which":
            print(python(given.id, root=root, wait=given.wait))  # noqa: T201
        elif given.command == "runtime-env":
            if given.config:
                # Read again for the cluster that the environment has to fit. `exec` hands no such thing on.
                os.environ["ENVFABRIC_CONFIG"] = given.config
            print(json.dumps(runtime_env(given.id, root=root, wait=given.wait)))  # noqa: T201
        else:
            words = list(arguments[place + 1 :])
            if not words:
                parser.error("exec needs a command: envfabric exec ID -- CMD…")
            return _exec(given.id, os.fspath(root), given.wait, words)
    except EnvfabricError as error:
        print(f"envfabric: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _add_wait(command: argparse.ArgumentParser) -> None:
    command.add_argument("ids", metavar="ID", nargs="*", help="the specs' ids; all of them by default")
    command.add_argument("--commit", metavar="SHA", help="until this commit, or a later one, is served")
    command.add_argument(
        "--timeout", metavar="SECONDS", type=_seconds, help="how long at most; no limit by default"
    )
    command.add_argument("--repo", metavar="DIR", help="a clone that has the commit; this folder by default")


def _add_doctor(command: argparse.ArgumentParser) -> None:
    command.add_argument("--ray", action="store_true", help="also as a node of Ray, by this Python")
    command.add_argument("--json", action="store_true", help="as JSON")
    command.add_argument(
        "--timeout", metavar="SECONDS", type=_seconds, default=10.0, help="for each look at ROOT (10)"
    )


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def _exec(spec_id: str, root: str, wait: float | None, words: list[str]) -> int:
    interpreter, entry = served(spec_id, root, wait)
    # Else `python` would be the next one in PATH, without a word.
    refuse_absent(interpreter)
    folder = os.path.dirname(interpreter)
    env = {**os.environ, **entry["runtime_env"]["env_vars"]}
    env["VIRTUAL_ENV"] = os.path.dirname(folder)
    env["PATH"] = os.pathsep.join([folder, env.get("PATH", os.defpath)])
    env.pop("PYTHONHOME", None)
    program = shutil.which(words[0], path=env["PATH"])
    if program is None:
        print(f"envfabric: {words[0]}: not found in {folder} or PATH", file=sys.stderr)  # noqa: T201
        return 127
    sys.stdout.flush()
    try:
        os.execve(program, words, env)  # noqa: S606 - the user's own command
    except OSError as error:
        print(f"envfabric: {program} can't be run: {error.strerror}", file=sys.stderr)  # noqa: T201
        return 126
