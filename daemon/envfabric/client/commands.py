"""`envfabric which`, `exec`, `runtime-env`, `wait` and `doctor`: what consumers run, without the daemon's packages.

They start in the time of a bare interpreter, which counts where every task begins with one.
"""

import argparse
import json
import math
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from envfabric.client.api import answered, python, served
from envfabric.client.fitting import refuse_absent
from envfabric.client.index import EnvfabricError, find_root
from envfabric.client.runtime import runtime_env
from envfabric.client.wanted import DEFAULT_TIMEOUT, KEY

SUMMARIES = {
    "which": "Print the path of an environment's interpreter.",
    "exec": "Run a command in an environment: envfabric exec ID -- CMD…",
    "runtime-env": "Print the JSON for `ray job submit --runtime-env-json`.",
    "wait": "Wait until what is committed is served; exits 0 ready, 1 failed, 124 timed out.",
    "doctor": "Say what is wrong with this installation: ROOT, the daemon, and with --ray a node of Ray.",
}


def main(arguments: Sequence[str], daemon: Callable[[], Any] = lambda: None) -> int:
    """Runs one of the commands; gives the exit code. `exec` does not return where it succeeds.

    `daemon` gives what `doctor` looks at besides, which needs packages that not all have; None where they are absent.
    """
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
        command.add_argument("--wait", metavar="SECONDS", type=_seconds, help="wait for it to be built")
        command.add_argument(
            "--timeout",
            metavar="SECONDS",
            type=_patience,
            default=DEFAULT_TIMEOUT,
            help="for each answer of the NAS (5)",
        )
        command.add_argument("id", metavar="ID", help="the spec's id, <workflow>/<node>")
    # What follows the first -- is the command's own, flags and all.
    place = list(arguments).index("--") if "--" in arguments else len(arguments)
    given = parser.parse_args(arguments[:place])
    if given.command == "doctor":
        # Before ROOT is looked for: that it is not known is one of its findings.
        from envfabric.client import doctor

        return doctor.run(
            given.root,
            given.config,
            ray=given.ray,
            timeout=given.timeout,
            json_wanted=given.json,
            write=given.write,
            more=daemon(),
        )
    try:
        root = find_root(given.root, given.config)
        if given.command == "wait":
            # What only this command needs is not loaded where every task begins with another one.
            from envfabric.client import waiting

            return waiting.run(given.ids, root, given.commit, given.timeout, given.repo)
        if given.command == "which":
            print(python(given.id, root=root, wait=given.wait, timeout=given.timeout))  # noqa: T201
        elif given.command == "runtime-env":
            if given.config:
                # Read again for the cluster that the environment has to fit. `exec` hands no such thing on.
                os.environ["ENVFABRIC_CONFIG"] = given.config
            print(json.dumps(_runtime_env(given.id, os.fspath(root), given.wait, given.timeout)))  # noqa: T201
        else:
            words = list(arguments[place + 1 :])
            if not words:
                parser.error("exec needs a command: envfabric exec ID -- CMD…")
            return _exec(given.id, os.fspath(root), given.wait, given.timeout, words)
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
        "--write",
        action="store_true",
        help="also try a lease, and as ROOT's owner links, renames and locks; what is written is removed",
    )
    command.add_argument(
        "--timeout", metavar="SECONDS", type=_patience, default=10.0, help="for each look (10)"
    )


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def _patience(text: str) -> float:
    value = _seconds(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text!r} leaves no time for an answer")
    return value


def _runtime_env(spec_id: str, root: str, wait: float | None, timeout: float) -> dict[str, object]:
    """What is printed; what is only warned of goes to standard error, and not into the JSON."""
    # Another timeout than the default goes into the value: the nodes of a slow NAS need it, too.
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        made = runtime_env(spec_id, root=root, wait=wait, **{KEY: {"timeout": timeout}})
    for one in said:
        print(f"envfabric: warning: {one.message}", file=sys.stderr)  # noqa: T201
    return made


def _exec(spec_id: str, root: str, wait: float | None, timeout: float, words: list[str]) -> int:
    interpreter, entry = served(spec_id, root, wait, limit=timeout)
    # Else `python` would be the next one in PATH, without a word.
    answered(timeout, lambda: refuse_absent(interpreter), interpreter)
    folder = os.path.dirname(interpreter)
    env = {**os.environ, **entry["runtime_env"]["env_vars"]}
    env["VIRTUAL_ENV"] = os.path.dirname(folder)
    env["PATH"] = os.pathsep.join([folder, env.get("PATH", os.defpath)])
    env.pop("PYTHONHOME", None)
    program = answered(timeout, lambda: shutil.which(words[0], path=env["PATH"]), folder)
    if program is None:
        print(f"envfabric: {words[0]}: not found in {folder} or PATH", file=sys.stderr)  # noqa: T201
        return 127
    sys.stdout.flush()
    try:
        os.execve(program, words, env)  # noqa: S606 - the user's own command
    except OSError as error:
        print(f"envfabric: {program} can't be run: {error.strerror}", file=sys.stderr)  # noqa: T201
        return 126
