"""The service of the machine: what its unit says, doctor and the journal say of it, and commits for it to build."""

import json
import re
import time
from typing import Any

from support.nspawn import Machine
from support.waiting import wait_for

UNIT = "envfabric.service"
ENVFABRIC = "/opt/envfabric/bin/envfabric"
BOUND = 180
"""Seconds after which what was waited for is not coming."""


def status(machine: Machine) -> str:
    return machine.show(UNIT, "StatusText")


def wait_for_status(machine: Machine, pattern: str) -> str:
    def told() -> str | None:
        text = status(machine)
        time.sleep(0.1)
        return text if re.search(pattern, text) else None

    try:
        return wait_for(told, timeout=BOUND, message=f"the status never said {pattern!r}")
    except AssertionError as error:
        raise AssertionError(
            f"{error}; now {status(machine)!r}\n" + "\n".join(machine.journal("-n", "40"))
        ) from None


def said(machine: Machine, words: str) -> int:
    """How many lines of the unit's journal have these words."""
    return sum(words in line for line in machine.journal("-u", UNIT))


def wait_until_said(machine: Machine, words: str, times: int) -> None:
    """Until so many lines of the unit's journal have these words."""

    def enough() -> bool:
        time.sleep(0.1)
        return said(machine, words) >= times

    wait_for(enough, timeout=BOUND, message=f"the journal has {words!r} not {times} times")


def commit(machine: Machine, spec: str, requirement: str) -> None:
    """Commits a spec and pushes it; the service finds it by itself."""
    text = f'[project]\nname = "{spec.replace("/", "-")}"\nversion = "1"\nrequires-python = ">=3.11"\n'
    commit_text(machine, spec, text + f'dependencies = ["{requirement}"]\n')


def commit_text(machine: Machine, spec: str, pyproject: str) -> None:
    """The same with a pyproject.toml of one's own."""
    folder = machine.root / "srv/specs" / spec
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(pyproject, "utf-8")
    machine.shell(
        f"cd /srv/specs; git add -A; git -c user.name=a -c user.email=a@example.com commit --quiet -m {spec}; "
        "git push --quiet origin HEAD:main"
    )


def wait_for_spec(machine: Machine, spec: str) -> None:
    """Until what is committed of it is served."""
    head = machine.shell("git -C /srv/specs rev-parse HEAD").strip()
    machine.shell(f"{ENVFABRIC} wait {spec} --commit {head} --root /mnt/nas --timeout {BOUND}")


def drop_in(machine: Machine, name: str, text: str) -> None:
    """Lines for the unit's [Service]; without any, what was given before is taken back."""
    folder = machine.root / f"etc/systemd/system/{UNIT}.d"
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.conf"
    if text:
        file.write_text(f"[Service]\n{text}\n", "utf-8")
    else:
        file.unlink()
    machine.run("systemctl", "daemon-reload")


def doctor(machine: Machine, *options: str, user: str = "root") -> tuple[int, dict[str, list[str]]]:
    """doctor's exit code, and by level what it found, each as `check: words`."""
    done = machine.run("runuser", "-u", user, "--", ENVFABRIC, "doctor", "--json", *options, check=False)
    told: dict[str, Any] = json.loads(done.stdout)
    found: dict[str, list[str]] = {"ok": [], "info": [], "warning": [], "problem": []}
    for one in told["findings"]:
        found[one["level"]].append(f"{one['check']}: {one['found']}")
    return done.returncode, found
