"""`envfabric doctor`: the unit by what a real `systemctl show` said of it, recorded under Debian 12's systemd 252.

The texts in systemctl/ are of the project's own unit under a booted systemd: running, failing (no such user), failed
for good, ended by the watchdog, and not installed. tests/machine asks a live one.
"""

import os
import pwd
import subprocess
from pathlib import Path

import pytest

from envfabric.client.findings import Finding
from envfabric.service import checkup_unit
from envfabric.service.checkup_unit import Unit, find, of_unit, parse

RECORDED = Path(__file__).with_name("systemctl")
ME = pwd.getpwuid(os.geteuid()).pw_name
ROOT = Path("/mnt/nas")
CONFIG = Path("/etc/envfabric/envfabric.toml")


def told(name: str, **changes: str) -> dict[str, str]:
    """A recorded unit that is as it should be but for its state, with some properties changed."""
    shown = parse((RECORDED / f"{name}.txt").read_text())
    good = {"User": ME, "UnitFileState": "enabled", "WatchdogUSec": "1min 30s", "Type": "notify"}
    return shown | good | changes


def look(shown: dict[str, str], root: Path = ROOT, **unit: object) -> list[Finding]:
    found = of_unit(Unit(shown, **unit), root, CONFIG, answers=root != ROOT)  # type: ignore[arg-type]
    assert all(one.check == "unit" and (one.do or one.level in {"ok", "info"}) for one in found)
    return found


def test_unit_that_is_right() -> None:
    """One finding: it runs, and since when."""
    (found,) = look(told("running"))
    assert (found.level, found.found) == ("ok", "active (running) since Sun 2026-11-29 06:56:39 UTC")


@pytest.mark.parametrize(
    ("shown", "level", "words"),
    [
        (told("failing"), "problem", "auto-restart"),
        (told("failing"), "problem", "its user is not there"),
        (told("failed"), "problem", "6 restarts: result exit-code, exit status 217"),
        (told("watchdog"), "problem", "result watchdog"),
        (
            told("running", Result="exit-code", SubState="auto-restart", ExecMainStatus="2"),
            "problem",
            "wrong settings",
        ),
        (told("running", ActiveState="inactive", SubState="dead"), "warning", "inactive (dead)"),
        (
            told("running", ActiveState="deactivating", SubState="stop-sigkill", StatusText="the loop …"),
            "warning",
            "deactivating (stop-sigkill) since Sun 2026-11-29 06:56:39 UTC; it said: the loop …",
        ),
        (told("running", ActiveState="activating", SubState="start"), "info", "activating"),
        (told("running", NRestarts="3"), "warning", "3 restarts"),
        (
            told("running", StatusText="waiting: /x is away; 3 ready"),
            "warning",
            "it says: waiting: /x is away",
        ),
        (told("running", StatusText="the loop has not gone round for 20 s; …"), "warning", "for 20 s"),
        (told("running", NeedDaemonReload="yes"), "warning", "changed since systemd read"),
        (
            told("running", ActiveState="activating", StatusText="starting: opening /x, for 20 s"),
            "info",
            "it says: starting: opening /x",
        ),
        (told("running", UnitFileState="disabled"), "warning", "does not start with the machine"),
        (told("running", User="no-such-user-here"), "problem", "no-such-user-here is not there"),
        (told("running", UMask="0077"), "info", "0077"),
        (told("running", WatchdogUSec="0"), "warning", "watchdog is off"),
        (told("running", WatchdogUSec="infinity"), "warning", "watchdog is off"),
        (told("running", Type="simple"), "warning", "Type is simple"),
        (told("running", RequiresMountsFor="/var/tmp /mnt/nas2"), "warning", "RequiresMountsFor lacks it"),
        (told("running", ReadWritePaths="/srv"), "problem", "ReadWritePaths lacks it"),
        (
            told("running", ExecStart="{ argv[]=/x run --config /other.toml ; }"),
            "warning",
            "runs with /other.toml",
        ),
    ],
)
def test_what_is_not_right(shown: dict[str, str], level: str, words: str) -> None:
    """Is the one finding that is not ok, with what to do."""
    (found,) = [one for one in look(shown) if one.level != "ok"]
    assert (found.level, words in found.found) == (level, True), found


def test_paths_that_cover_root() -> None:
    """A folder above covers it, also with systemd's prefixes; without ProtectSystem nothing has to."""
    assert [one.level for one in look(told("running", ReadWritePaths="-/mnt", RequiresMountsFor="/mnt"))] == [
        "ok"
    ]
    assert [one.level for one in look(told("running", ReadWritePaths="", ProtectSystem="no"))] == ["ok"]


def test_user_that_does_not_own_root(tmp_path: Path) -> None:
    """Its files would be copied, not linked."""
    (tmp_path / "store").mkdir()
    shown = told("running", ReadWritePaths=str(tmp_path), RequiresMountsFor=str(tmp_path))
    assert [one.level for one in look(shown, tmp_path)] == ["ok"]
    (bad,) = [one for one in look(shown | {"User": "4242424"}, tmp_path) if one.level != "ok"]
    assert (bad.level, "runs as 4242424 (uid 4242424)" in bad.found) == ("problem", True)


def test_files_with_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LoadCredential, which systemctl doesn't show, is read from the unit's files; what is open or absent is told."""
    fragment, drop_in, token = tmp_path / "a.service", tmp_path / "b.conf", tmp_path / "token"
    fragment.write_text("[Service]\nLoadCredential=old:/no/such/old\n#LoadCredential=x:/y\n")
    drop_in.write_text(f"[Service]\nLoadCredential=\nLoadCredential=git-credentials:{token}\n")
    environment = tmp_path / "environment"
    environment.write_text("ENVFABRIC_RECONCILE_TOKEN=hunter2\n")
    shown = told("running", FragmentPath=str(fragment), DropInPaths=str(drop_in))
    shown["EnvironmentFiles"] = f"{environment} (ignore_errors=yes)"
    text = "".join(f"{name}={value}\n" for name, value in shown.items())
    monkeypatch.setattr(
        checkup_unit, "_run", lambda command, timeout: subprocess.CompletedProcess(command, 0, text, "")
    )
    unit, said = find(60)
    assert unit is not None and said == []
    assert (unit.git_credentials, unit.config) == (token, CONFIG)

    def bad() -> list[str]:
        return [one.found for one in of_unit(unit, ROOT, CONFIG, answers=False) if one.level != "ok"]

    environment.chmod(0o600)
    assert [f"{token} is not there" in one for one in bad()] == [True]
    token.write_text("https://me:hunter2@git.example\n")
    token.chmod(0o644)
    environment.chmod(0o644)
    assert [("hunter2" in one, "may be read by others" in one) for one in bad()] == [(False, True)] * 2
    token.chmod(0o600)
    environment.chmod(0o600)
    assert bad() == []


def program(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A systemctl of a line or two: one that hangs, or whose machine has no systemd running, can't be had."""
    folder.mkdir()
    (folder / "systemctl").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_no_unit_is_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not installed, no systemd running, none there at all: each is told as such."""
    program(tmp_path / "a", monkeypatch, f"cat {RECORDED}/absent.txt")
    unit, said = find(60)
    assert (unit, [one.level for one in said], "not installed" in said[0].found) == (None, ["info"], True)
    program(tmp_path / "b", monkeypatch, "echo 'System has not been booted with systemd' >&2; exit 1")
    unit, said = find(60)
    assert (unit, said[0].level, "not been booted" in said[0].found) == (None, "info", True)
    monkeypatch.setenv("PATH", str(tmp_path))
    unit, said = find(60)
    assert (unit, said[0].level, "no systemd" in said[0].found) == (None, "info", True)


def test_systemctl_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is ended, and is a finding."""
    program(tmp_path / "a", monkeypatch, "exec sleep 1000")
    unit, said = find(1.0)
    assert (unit, said[0].level, "within 1 s" in said[0].found) == (None, "problem", True)


def test_shipped_unit_is_what_was_recorded() -> None:
    """The properties that are asked for are those that the recorded systemd knows."""
    shown = parse((RECORDED / "running.txt").read_text())
    absent = {"LoadError", "EnvironmentFiles", "StatusText"}
    assert set(checkup_unit.PROPERTIES) - set(shown) <= absent
