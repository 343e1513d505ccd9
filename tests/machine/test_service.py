"""The service under a real systemd, on a clean Debian: installed by the README's steps, and in all that befalls it.

One machine for all; each test leaves the unit running.
"""

import re
import time

import pytest

from machine.unit import BOUND, ENVFABRIC, UNIT, commit, doctor, drop_in, wait_for_status
from support.nspawn import Machine
from support.simple_index import SimpleIndex
from support.waiting import wait_for

pytestmark = [pytest.mark.machine, pytest.mark.root, pytest.mark.timeout(900)]

REF = "/srv/specs.git/refs/heads/main"


def test_the_readmes_steps_lead_to_a_running_unit(machine: Machine) -> None:
    """After the README's steps and no other one the unit runs, says what it serves, and its environment works."""
    assert machine.show(UNIT, "ActiveState") == "active"
    assert machine.show(UNIT, "NRestarts") == "0"
    assert "etl/extract" in machine.shell(f"{ENVFABRIC} status --root /mnt/nas")
    assert machine.shell(
        "/mnt/nas/envs/etl/extract/.venv/bin/python -c 'import httpx; print(httpx.__name__)'"
    )
    assert wait_for_status(machine, r"^writing, epoch \d+; revision [0-9a-f]{12}: 3 ready$")
    assert machine.shell("stat -c '%U %a' /etc/envfabric; id -u envfabric").split() == ["root", "750", "471"]


def test_doctor_has_nothing_to_complain_about(machine: Machine) -> None:
    """What the README's steps lead to is well: no problem and no warning, for root and for the daemon's user."""
    code, found = doctor(machine)
    assert (code, found["problem"], found["warning"]) == (0, [], [])
    # Not looked at without --write, and on a NAS of nodes the next thing to do.
    assert sorted(one.partition(":")[0] for one in found["info"]) == ["links", "pythons"]
    code, found = doctor(machine, "--write", user="envfabric")
    assert (code, found["problem"], found["warning"]) == (0, [], [])
    looked = {one.partition(":")[0] for one in found["ok"]}
    assert {"mount", "writer", "interpreters", "settings", "unit", "uv", "links", "git", "port"} <= looked
    text = machine.shell(f"{ENVFABRIC} doctor")
    assert "0 problems and 0 warnings on " in text.splitlines()[-1]
    assert "active (running) since" in text


def test_systemd_has_nothing_to_complain_about(machine: Machine) -> None:
    """`systemd-analyze verify` is silent, and `systemd-analyze security` gives 2.0 or better."""
    done = machine.run("systemd-analyze", "verify", "--man=no", f"/etc/systemd/system/{UNIT}")
    assert (done.stdout, done.stderr) == ("", "")
    told = machine.shell(f"systemd-analyze security --no-pager {UNIT} | tail -n 1")
    found = re.search(r"exposure level.*: ([0-9.]+)", told)
    assert found is not None, told
    assert float(found[1]) <= 2.0


def test_a_commit_is_built_and_found_in_the_journal(machine: Machine) -> None:
    """A commit is built by the running service; the journal has the spec, the priority and words for people."""
    machine.run("systemctl", "restart", UNIT)
    commit(machine, "jobs/first", "alpha")
    machine.shell(f"{ENVFABRIC} wait jobs/first --root /mnt/nas --timeout {BOUND}")
    (line,) = machine.journal("ENVFABRIC_SPEC=jobs/first", "ENVFABRIC_EVENT=built")
    assert line.startswith("built spec=jobs/first ")
    machine.run("systemctl", "reload", UNIT)
    commit(machine, "jobs/broken", "no-such-package")
    machine.run(ENVFABRIC, "wait", "jobs/broken", "--root", "/mnt/nas", "--timeout", str(BOUND), check=False)
    assert machine.journal("-p", "warning", "ENVFABRIC_SPEC=jobs/broken")
    assert not machine.journal("-p", "warning", "ENVFABRIC_SPEC=jobs/first")
    assert wait_for_status(machine, "1 failed")


def test_children_get_nothing_of_systemds(machine: Machine) -> None:
    """git runs without the channel to systemd, the watchdog's variables and the folder of credentials."""
    pid = machine.show(UNIT, "MainPID")
    text = machine.shell(
        f"for child in $(cat /proc/{pid}/task/*/children); do tr '\\0' '\\n' < /proc/$child/environ; done"
    )
    assert "PATH=" in text
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "CREDENTIALS_DIRECTORY"):
        assert f"{name}=" not in text


def test_no_core_file_is_written(machine: Machine) -> None:
    """What systemd handed over is in the daemon's memory: none of it gets onto a disk when it ends by a signal."""
    limits = machine.shell(f"cat /proc/{machine.show(UNIT, 'MainPID')}/limits")
    assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE), limits


def test_reload_leaves_it_running(machine: Machine) -> None:
    """`systemctl reload` succeeds and the same process goes on."""
    pid = machine.show(UNIT, "MainPID")
    machine.run("systemctl", "reload", UNIT)
    assert machine.show(UNIT, "ActiveState") == "active"
    assert machine.show(UNIT, "MainPID") == pid
    assert machine.show(UNIT, "NRestarts") == "0"


def test_a_standby_is_ready_and_takes_over(machine: Machine) -> None:
    """A second daemon's start is over while it stands by; when the first one stops, it writes."""
    other = "envfabric-second.service"
    text = (machine.root / "etc/systemd/system" / UNIT).read_text("utf-8")
    start = "run --config /etc/envfabric/envfabric.toml"
    assert start in text
    text = text.replace(start, f"{start} --listen 127.0.0.1:9467")
    (machine.root / "etc/systemd/system" / other).write_text(text, "utf-8")
    machine.run("systemctl", "daemon-reload")
    try:
        machine.run("systemctl", "start", other)
        assert machine.show(other, "StatusText").startswith("standby: another daemon or command is writing")
        machine.run("systemctl", "stop", UNIT)

        def taken_over() -> bool:
            time.sleep(0.1)
            return machine.show(other, "StatusText").startswith("writing, epoch")

        wait_for(taken_over, timeout=BOUND, message="the standby did not take over")
    finally:
        machine.run("systemctl", "stop", other)
        machine.run("systemctl", "start", UNIT)


def test_killed_in_a_build_it_comes_back_and_builds(machine: Machine, local_index: SimpleIndex) -> None:
    """After kill -9 in the middle of a build it is started again, nothing of the build is left, and it is built."""
    pid = machine.show(UNIT, "MainPID")
    held = local_index.hold("beta", kind="files")
    try:
        commit(machine, "jobs/killed", "beta")
        wait_for_status(machine, r"\b1 (building|pending)")
        machine.shell(f"kill -9 {pid}")

        def again() -> bool:
            time.sleep(0.1)
            return (
                machine.show(UNIT, "MainPID") not in {pid, "0"}
                and machine.show(UNIT, "ActiveState") == "active"
            )

        wait_for(again, timeout=BOUND, message="not started again")
    finally:
        held.set()
    assert machine.show(UNIT, "NRestarts") == "1"
    machine.shell(f"{ENVFABRIC} wait jobs/killed --root /mnt/nas --timeout {BOUND}")
    machine.shell(f"runuser -u envfabric -- {ENVFABRIC} verify --root /mnt/nas")
    # What is replaced atomically passes through it, for a moment.
    wait_for(lambda: not machine.shell("ls -A /mnt/nas/staging").split(), timeout=BOUND, message="not clean")


def test_stopped_in_a_build_it_ends_well(machine: Machine, local_index: SimpleIndex) -> None:
    """A stop in the middle of a build ends it, by itself and within the stated time, and leaves no process."""
    local_index.add_wheel("delta", "1.0")
    held = local_index.hold("delta", kind="files")
    try:
        commit(machine, "jobs/stopped", "delta")
        wait_for_status(machine, r"\b1 (building|pending)")
        machine.run("systemctl", "stop", UNIT)
        # What is ended by SIGKILL after TimeoutStopSec has another result.
        assert machine.show(UNIT, "Result") == "success"
        assert machine.show(UNIT, "ExecMainStatus") == "0"
        assert machine.shell("grep -lsE '^Uid:[[:space:]]471' /proc/[0-9]*/status || true") == ""
    finally:
        held.set()
    machine.run("systemctl", "start", UNIT)
    machine.shell(f"{ENVFABRIC} wait jobs/stopped --root /mnt/nas --timeout {BOUND}")


def test_a_hung_loop_is_ended_and_a_start_that_waits_says_so(machine: Machine) -> None:
    """A loop that hangs is ended by the watchdog and started again; that start waits, says for what, and is let.

    The branch becomes a pipe that nobody writes to: whoever opens it hangs, as on a NAS that is away.
    """
    drop_in(machine, "watchdog", "WatchdogSec=10s\nTimeoutStartSec=8s")
    machine.run("systemctl", "restart", UNIT)
    # Once it has built something its start is over, which may take long: the wait for it is a declared one.
    commit(machine, "jobs/before", "alpha")
    machine.shell(f"{ENVFABRIC} wait jobs/before --root /mnt/nas --timeout {BOUND}")
    before = machine.show(UNIT, "MainPID")
    machine.shell(f"cp {REF} /srv/ref; mkfifo -m 666 {REF}.pipe; mv {REF}.pipe {REF}")
    try:
        wait_for_status(machine, r"^starting: reading the spec repository, for [1-9]0 s")
        assert machine.show(UNIT, "ActiveState") == "activating"
        assert machine.show(UNIT, "MainPID") not in {before, "0"}
        said = machine.journal("-u", UNIT)
        assert [line for line in said if "Watchdog timeout" in line]
        # Where it hung.
        assert [line for line in said if "envfabric/specs/" in line and " in " in line], said
    finally:
        # The name first; then whoever waits at the pipe gets what it waits for.
        machine.shell(
            f"mv {REF} /srv/pipe; cp /srv/ref {REF}; timeout 5 cp /srv/ref /dev/fd/1 > /srv/pipe || true"
        )
    wait_for_status(machine, "^writing")
    # From its next start on.
    drop_in(machine, "watchdog", "")
