"""`envfabric doctor`: the systemd unit, as `systemctl show` tells it, and whether it fits the settings and ROOT.

Reads what systemd says, and the unit's own files for what it does not say (credentials). Starts, stops and changes
nothing. A machine without systemd, or without the unit, is told as such and is no problem.
"""

import os
import pwd
import re
import shlex
import stat
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from envfabric.client.findings import Finding
from envfabric.core.errors import redact

NAME = "envfabric.service"
PROPERTIES = (
    "Id",
    "LoadState",
    "LoadError",
    "ActiveState",
    "SubState",
    "Result",
    "NRestarts",
    "ExecMainStatus",
    "StateChangeTimestamp",
    "StatusText",
    "UnitFileState",
    "NeedDaemonReload",
    "FragmentPath",
    "DropInPaths",
    "User",
    "Type",
    "UMask",
    "WatchdogUSec",
    "RequiresMountsFor",
    "ProtectSystem",
    "ReadWritePaths",
    "ExecStart",
    "EnvironmentFiles",
)
_STATUS = {
    2: "wrong settings, or ROOT is not there: its last log line says which",
    200: "its working folder is not there",
    203: "its program is not there, or can't be run by its user",
    217: "its user is not there",
    226: "a path of its sandbox is not there, such as one in ReadWritePaths",
    243: "a file of LoadCredential is not there",
}
"""What an exit code of the unit means, where systemd itself gave it or the daemon does."""
_JOURNAL = "journalctl -u envfabric -n 50"
_WAITS = ("waiting: ", "standing by: ", "standby can't see ROOT", "the loop has not gone round")
"""How the daemon's own status begins where it waits for something that should be there."""


@dataclass(frozen=True, slots=True)
class Unit:
    """The unit as installed."""

    told: dict[str, str]
    files: tuple[Path, ...] = ()
    """Its own file and its drop-ins."""
    credentials: dict[str, Path] = field(default_factory=dict)
    """The file of each LoadCredential."""

    @property
    def config(self) -> Path | None:
        """The settings that it starts the daemon with."""
        found = re.search(r"argv\[\]=.*?--config[ =](\S+)", self.told.get("ExecStart", ""))
        return Path(found[1]) if found else None

    @property
    def git_credentials(self) -> Path | None:
        """The file for git that it hands to the daemon."""
        return self.credentials.get("git-credentials")


def find(timeout: float) -> tuple[Unit | None, list[Finding]]:
    """The installed unit; else what there is to say of its absence."""
    command = ["systemctl", "show", NAME, "--no-pager", f"--property={','.join(PROPERTIES)}"]
    try:
        done = _run(command, timeout)
    except FileNotFoundError:
        return None, [Finding("unit", "info", "there is no systemd on this machine", None)]
    except subprocess.TimeoutExpired:
        do = "Look at systemd itself: `systemctl is-system-running`."
        return None, [Finding("unit", "problem", f"systemctl gave no answer within {timeout:g} s", do)]
    if done.returncode:
        # A container, as a rule, whose first process is another one.
        why = " ".join(done.stderr.split())[:200]
        return None, [Finding("unit", "info", f"systemd does not run here: {why}", None)]
    told = parse(done.stdout)
    if told.get("LoadState") == "not-found":
        do = "Where the daemon is to run by systemd: README, Install. Elsewhere nothing."
        return None, [Finding("unit", "info", f"{NAME} is not installed here", do)]
    files = tuple(
        Path(one) for one in (told.get("FragmentPath", ""), *told.get("DropInPaths", "").split()) if one
    )
    return Unit(told, files, _credentials(files)), []


def parse(text: str) -> dict[str, str]:
    """The properties that `systemctl show` printed; of a name that comes several times all, a line each."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, between, value = line.partition("=")
        if between:
            found[name] = f"{found[name]}\n{value}" if found.get(name) else value
    return found


def of_unit(unit: Unit, root: Path | None, config: Path | None, *, answers: bool) -> list[Finding]:
    """Everything about the unit; `answers`: whether ROOT may be touched."""
    told = unit.told
    found = [*_state(told), *_boot(told)]
    found += _user(told, root if answers else None)
    found += _paths(told, root)
    found += _watched(told)
    if (
        config is not None
        and unit.config is not None
        and os.path.realpath(config) != os.path.realpath(unit.config)
    ):
        do = f"Look at the daemon's: `envfabric doctor --config {unit.config}`."
        found.append(
            Finding("unit", "warning", f"it runs with {unit.config}, and this looked at {config}", do)
        )
    return found + _open(unit)


def last_failures(timeout: float) -> str:
    """Why systemd restarted it, by the journal; nothing where this user can't read it."""
    command = ["journalctl", "-u", NAME, "-o", "short-iso", "--no-pager", "-n", "2000", "-q"]
    try:
        lines = _run(command, timeout).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return ""
    said = [
        re.sub(r"^(\S+) .*Failed with result ('[\w-]+').*", r"\1 \2", one)
        for one in lines
        if "Failed with" in one
    ]
    return "; ".join(said[-3:])


def _state(told: dict[str, str]) -> list[Finding]:
    active, sub, since = told.get("ActiveState"), told.get("SubState"), told.get("StateChangeTimestamp")
    text = f"{active} ({sub}) since {since or '?'}"
    restarts = told.get("NRestarts", "0")
    if active == "failed" or sub == "auto-restart":
        code = told.get("ExecMainStatus", "0")
        why = _STATUS.get(int(code)) if code.isdecimal() and told.get("Result") == "exit-code" else None
        text += f", {restarts} restarts: result {told.get('Result')}, exit status {code}"
        return [Finding("unit", "problem", text + (f" ({why})" if why else ""), f"Its log: {_JOURNAL}")]
    status = redact(told.get("StatusText", ""))
    if active == "activating":
        text += f"; it says: {status}" if status else ""
        return [Finding("unit", "info", text, "It waits for its settings or ROOT: " + _JOURNAL)]
    if active == "deactivating":
        text += f"; it said: {status}" if status else ""
        do = "One that hangs in the kernel ends when its file system answers: look at the mount and its server."
        return [Finding("unit", "warning", text, do)]
    if active != "active":
        return [Finding("unit", "warning", text, "systemctl start envfabric")]
    if status.startswith(_WAITS):
        do = "It goes on by itself once that is there and answers: look at the mount, its server, the repository."
        return [Finding("unit", "warning", f"{text}; it says: {status}", do)]
    if restarts not in {"", "0"}:
        why = last_failures(5.0)
        text += f", {restarts} restarts since it was loaded" + (f": {why}" if why else "")
        return [
            Finding(
                "unit", "warning", text, f"Its log: {_JOURNAL}; systemctl reset-failed sets the count back."
            )
        ]
    return [Finding("unit", "ok", text)]


def _boot(told: dict[str, str]) -> list[Finding]:
    found = []
    if told.get("NeedDaemonReload") == "yes":
        do = "systemctl daemon-reload && systemctl restart envfabric"
        found.append(Finding("unit", "warning", "its files were changed since systemd read them", do))
    if told.get("UnitFileState") == "disabled":
        found.append(
            Finding("unit", "warning", "it does not start with the machine", "systemctl enable envfabric")
        )
    return found


def _user(told: dict[str, str], root: Path | None) -> list[Finding]:
    name = told.get("User") or "root"
    try:
        uid = int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid
    except KeyError:
        do = "systemd-sysusers, with the project's entry (README, Install)."
        return [Finding("unit", "problem", f"its user {name} is not there", do)]
    found = []
    if told.get("UMask") not in {None, "", "0022", "0002"}:
        told_of = f"its UMask is {told['UMask']}"
        found.append(Finding("unit", "info", told_of, "The daemon sets 0022 itself; UMask=0022 says so."))
    if root is not None and (owner := (root / "store").stat().st_uid) != uid:
        told_of = f"it runs as {name} (uid {uid}), and {root}/store belongs to uid {owner}"
        do = f"Run it as uid {owner}, or give ROOT to {name}: files of another user are copied, not linked."
        found.append(Finding("unit", "problem", told_of, do))
    return found


def _paths(told: dict[str, str], root: Path | None) -> list[Finding]:
    if root is None:
        return []
    found = []
    if not _covered(root, told.get("RequiresMountsFor", "")):
        do = f"RequiresMountsFor={root} in [Unit] (systemctl edit envfabric)."
        found.append(
            Finding(
                "unit", "warning", f"it may start before {root} is mounted: RequiresMountsFor lacks it", do
            )
        )
    if told.get("ProtectSystem") == "strict" and not _covered(root, told.get("ReadWritePaths", "")):
        do = f"ReadWritePaths={root} in [Service] (systemctl edit envfabric)."
        found.append(Finding("unit", "problem", f"it may not write to {root}: ReadWritePaths lacks it", do))
    return found


def _watched(told: dict[str, str]) -> list[Finding]:
    found = []
    if told.get("Type") not in {"notify", "notify-reload"}:
        do = "Type=notify: systemd then knows when it is ready, and what it waits for."
        found.append(Finding("unit", "warning", f"Type is {told.get('Type')}", do))
    if told.get("WatchdogUSec") in {None, "", "0", "infinity"}:
        do = "WatchdogSec= as in the project's unit: a loop that hangs is restarted then."
        found.append(Finding("unit", "warning", "the watchdog is off", do))
    return found


def _open(unit: Unit) -> list[Finding]:
    """Files with secrets of the unit that others may read, or that are not there."""
    found = []
    environment = re.findall(r"(?:^|\n)-?(/\S+)", unit.told.get("EnvironmentFiles", ""))
    for kind, path in [
        *(("LoadCredential", one) for one in unit.credentials.values()),
        *(("EnvironmentFile", Path(one)) for one in environment),
    ]:
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except FileNotFoundError:
            if kind == "LoadCredential":
                do = f"Put it there, mode 0600, or take the line out of {unit.files[0]}."
                found.append(
                    Finding("unit", "problem", f"{kind}: {path} is not there, so it does not start", do)
                )
            continue
        except OSError:
            # Closed for this user, as it has to be.
            continue
        if mode & 0o044 and (kind == "LoadCredential" or _names_a_secret(path)):
            told = f"{kind}: {path} may be read by others (mode {mode:04o})"
            found.append(Finding("unit", "warning", told, f"chmod 0600 {path}: systemd reads it as root."))
    return found


def _names_a_secret(path: Path) -> bool:
    try:
        text = path.read_text("utf-8", "replace")
    except OSError:
        return False
    return (
        re.search(r"^\s*\w*(TOKEN|PASSWORD)\w*=|://[^/@\s]+@", text, re.MULTILINE | re.IGNORECASE) is not None
    )


def _credentials(files: tuple[Path, ...]) -> dict[str, Path]:
    # systemctl says [unprintable] of them.
    found = {}
    for file in files:
        try:
            text = file.read_text("utf-8", "replace")
        except OSError:
            continue
        for value in re.findall(r"^\s*LoadCredential=(.*)$", text, re.MULTILINE):
            name, between, path = value.strip().partition(":")
            if between and path.startswith("/"):
                found[name] = Path(path)
            elif not value.strip():
                found.clear()
    return found


def _covered(root: Path, listed: str) -> bool:
    try:
        words = shlex.split(listed)
    except ValueError:
        words = listed.split()
    # "-" passes over one that is not there, "+" takes it from the unit's own root.
    places = [Path(one.lstrip("-+")) for one in words]
    return any(root == one or root.is_relative_to(one) for one in places)


def _run(command: list[str], timeout: float) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    return subprocess.run(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
