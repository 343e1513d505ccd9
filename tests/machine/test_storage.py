"""The service and its mount under a real systemd: lost, failed, not there at the start, and hanging in the kernel.

ROOT is an ext4 of its own here, on a loop device, which systemd mounts. The mount point is the service's user's to
write to, so that nothing but the daemon's own look at the marker keeps it empty.
"""

import os
import re
import subprocess
import time
from collections.abc import Iterator

import pytest

from machine.unit import (
    BOUND,
    ENVFABRIC,
    UNIT,
    commit,
    doctor,
    drop_in,
    said,
    status,
    wait_for_spec,
    wait_for_status,
    wait_until_said,
)
from support.nspawn import Machine
from support.tools import tool
from support.waiting import wait_for

pytestmark = [pytest.mark.machine, pytest.mark.root, pytest.mark.timeout(900)]

MOUNT = "mnt-nas.mount"
AWAY = "has no .envfabric.json: is the NAS mounted?"
UNPREPARED = "/mnt/nas was not prepared"
SETTLED = r"(?!.*(pending|building)).* ready"
"""The end of a status that tells of no work under way."""


def mount_unit(machine: Machine, lines: str) -> None:
    """How systemd mounts /mnt/nas from now on; without lines it knows nothing of it."""
    file = machine.root / "etc/systemd/system" / MOUNT
    if lines:
        file.write_text(f"[Mount]\nWhere=/mnt/nas\n{lines}\n", "utf-8")
    else:
        file.unlink()
    machine.run("systemctl", "daemon-reload")


def bind_unit(machine: Machine) -> None:
    mount_unit(machine, "What=/srv/disk\nType=none\nOptions=bind")


def below_the_mount_point(machine: Machine) -> list[str]:
    assert machine.run("findmnt", "/mnt/nas", check=False).returncode, "it is mounted"
    return machine.shell("ls -A /mnt/nas").split()


@pytest.fixture(scope="module", autouse=True)
def disk(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Moves ROOT onto a disk of its own, and starts the service on it."""
    image = tmp_path_factory.mktemp("disk") / "ext4"
    with image.open("xb") as file:
        file.truncate(1 << 30)
    losetup = tool("losetup", package="mount")
    subprocess.run(
        [tool("mkfs.ext4", package="e2fsprogs"), "-q", "-F", "-m", "0", str(image)], check=True, timeout=60
    )
    found = subprocess.run(
        [losetup, "--find", "--show", str(image)], check=True, capture_output=True, text=True, timeout=60
    )
    device = found.stdout.strip()
    number = os.stat(device).st_rdev
    try:
        machine.shell(
            f"mknod {device} b {os.major(number)} {os.minor(number)}; mkdir /srv/disk; mount {device} /srv/disk"
        )
    finally:
        # It stays for as long as it is mounted, and goes with the machine.
        subprocess.run([losetup, "--detach", device], check=True, timeout=60)
    machine.run("systemctl", "stop", UNIT)
    machine.shell("cp -a /mnt/nas/. /srv/disk; mv /mnt/nas /srv/before; install -d -o envfabric /mnt/nas")
    machine.shell("runuser -u envfabric -- sh -c 'touch /mnt/nas/x; rm /mnt/nas/x'")
    bind_unit(machine)
    machine.run("systemctl", "start", UNIT)
    # Required by the unit: systemd mounted it.
    assert machine.show(MOUNT, "ActiveState") == "active"


def test_an_unmounted_root_is_told_and_nothing_is_written(machine: Machine) -> None:
    """ROOT unmounted: unit and doctor say so, nothing is tried below the mount point; mounted again, it goes on."""
    pid = machine.show(UNIT, "MainPID")
    # Once it has built something its start is over: what goes wrong in a start ends it with an exit code.
    commit(machine, "jobs/there", "alpha")
    wait_for_spec(machine, "jobs/there")
    # A uv that runs meanwhile tries what it likes.
    wait_for_status(machine, rf"^writing{SETTLED}")
    machine.run("umount", "--lazy", "/mnt/nas")
    assert "/mnt/nas" in wait_for_status(machine, "^(waiting|stand(ing )?by)")
    code, found = doctor(machine)
    assert (code, len(found["problem"])) == (1, 1), found
    assert found["problem"][0].startswith("mount: /mnt/nas/.envfabric.json is not there")
    assert any(one.startswith("unit: active (running)") and AWAY in one for one in found["warning"]), found
    before = len(machine.journal("-u", UNIT))
    looks = said(machine, AWAY)
    commit(machine, "jobs/away", "alpha")
    machine.run("systemctl", "reload", UNIT)
    # The reload's look, and one after it.
    wait_until_said(machine, AWAY, looks + 2)
    assert below_the_mount_point(machine) == []
    # Nor tried: the sandbox would have refused it with these words.
    since = machine.journal("-u", UNIT)[before:]
    assert [line for line in since if "Read-only file system" in line] == []
    assert machine.show(UNIT, "ActiveState") == "active"
    machine.shell("mount --bind /srv/disk /mnt/nas")
    wait_for_spec(machine, "jobs/away")
    assert machine.show(UNIT, "MainPID") == pid


def test_a_mount_that_fails_fails_the_start(machine: Machine) -> None:
    """With a mount that fails it is not started, and systemd says which one; later one command starts both."""
    machine.run("systemctl", "stop", UNIT, MOUNT)
    mount_unit(machine, "What=/srv/absent.img\nType=ext4")
    assert machine.run("systemctl", "start", UNIT, check=False).returncode
    assert machine.show(UNIT, "ActiveState") == "inactive"
    assert "Dependency failed" in machine.journal("-u", UNIT, "-n", "2")[0]
    assert MOUNT in machine.shell("systemctl --failed --plain --no-legend")
    assert below_the_mount_point(machine) == []
    bind_unit(machine)
    machine.run("systemctl", "start", UNIT)
    assert machine.show(MOUNT, "ActiveState") == "active"
    wait_for_status(machine, r"^writing.* ready")


def test_a_root_that_is_mounted_after_the_start(machine: Machine) -> None:
    """Where systemd knows no mount: started on the empty folder it says why it ends, and runs once ROOT is there."""
    machine.run("systemctl", "stop", UNIT, MOUNT)
    mount_unit(machine, "")
    before = said(machine, UNPREPARED)
    assert machine.run("systemctl", "start", UNIT, check=False).returncode
    # Each start that failed said so; the second was systemd's own.
    wait_until_said(machine, UNPREPARED, before + 2)
    code, found = doctor(machine)
    assert code == 1
    assert found["problem"][0].startswith("mount: /mnt/nas/.envfabric.json is not there"), found
    # Here the folder is the daemon's to write to, in its sandbox, too.
    assert below_the_mount_point(machine) == []
    machine.shell("mount --bind /srv/disk /mnt/nas")
    wait_for_status(machine, r"^writing.* ready")
    assert machine.show(UNIT, "ActiveState") == "active"
    # What doctor says of the restarts, and what it says to do about that.
    _, found = doctor(machine)
    assert [one.partition(" since")[0] for one in found["warning"]] == ["unit: active (running)"], found
    machine.run("systemctl", "reset-failed", UNIT)
    code, found = doctor(machine)
    assert (code, found["warning"], found["problem"]) == (0, [], [])


@pytest.fixture
def short_watchdog(machine: Machine) -> Iterator[None]:
    drop_in(machine, "watchdog", "WatchdogSec=16s\nTimeoutAbortSec=1s")
    machine.run("systemctl", "restart", UNIT)
    yield
    # From its next start on.
    drop_in(machine, "watchdog", "")


def test_a_root_that_hangs(machine: Machine, short_watchdog: None) -> None:
    """ROOT hangs in the kernel: the unit says so, not even SIGKILL ends it, and it goes on by itself afterwards.

    The file system is frozen: who writes waits, where no signal reaches, as on a hard mount whose server is away.
    What is published can be read meanwhile.
    """
    commit(machine, "jobs/calm", "alpha")
    wait_for_spec(machine, "jobs/calm")
    pid = machine.show(UNIT, "MainPID")
    machine.run("fsfreeze", "--freeze", "/srv/disk")
    try:
        commit(machine, "jobs/frozen", "alpha")
        wait_for_status(machine, r"^the loop has not gone round for 20 s")
        # Where this takes long the watchdog's time is over: it says so all the same.
        _, found = doctor(machine)
        assert any("the loop has not gone round for" in one for one in found["warning"]), found
        python = machine.shell(f"{ENVFABRIC} which jobs/calm --root /mnt/nas").strip()
        machine.run(python, "-c", "import alpha")

        def killed() -> bool:
            time.sleep(0.1)
            return machine.show(UNIT, "SubState") == "stop-sigkill"

        wait_for(killed, timeout=BOUND, message="the watchdog did not end it")
        assert [line for line in machine.journal("-u", UNIT) if "Watchdog timeout" in line]
        assert machine.show(UNIT, "ActiveState") == "deactivating"
        assert re.search(r"^State:\s+D", machine.shell(f"cat /proc/{pid}/task/*/status"), re.MULTILINE)
    finally:
        machine.run("fsfreeze", "--unfreeze", "/srv/disk")
    wait_for_spec(machine, "jobs/frozen")
    assert machine.show(UNIT, "MainPID") not in {pid, "0"}
    assert machine.show(UNIT, "NRestarts") == "1"
    assert status(machine).startswith("writing")
    machine.shell(f"runuser -u envfabric -- {ENVFABRIC} verify --root /mnt/nas")
