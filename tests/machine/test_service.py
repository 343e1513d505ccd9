"""The service under a real systemd, on a clean Debian: installed by the README's steps, and in all that befalls it.

One machine for all; each test leaves the unit running.
"""

import re
import time
from collections.abc import Iterator

import pytest

from support.nspawn import Machine
from support.simple_index import SimpleIndex
from support.waiting import wait_for

pytestmark = [pytest.mark.machine, pytest.mark.root, pytest.mark.timeout(900)]

UNIT = "envfabric.service"
ENVFABRIC = "/opt/envfabric/bin/envfabric"
REF = "/srv/specs.git/refs/heads/main"
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


def commit(machine: Machine, spec: str, requirement: str) -> None:
    """Commits a spec and pushes it; the service finds it by itself."""
    name = spec.replace("/", "-")
    text = f'[project]\\nname = "{name}"\\nversion = "1"\\nrequires-python = ">=3.11"\\n'
    text += f'dependencies = ["{requirement}"]\\n'
    machine.shell(
        f"cd /srv/specs; mkdir -p {spec}; printf '{text}' > {spec}/pyproject.toml; git add -A; "
        f"git -c user.name=a -c user.email=a@example.com commit --quiet -m {spec}; git push --quiet origin HEAD:main"
    )


def drop_in(machine: Machine, name: str, text: str) -> None:
    folder = machine.root / f"etc/systemd/system/{UNIT}.d"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.conf").write_text(f"[Service]\n{text}\n", "utf-8")
    machine.run("systemctl", "daemon-reload")


@pytest.fixture(scope="module", autouse=True)
def prepared(machine: Machine, local_index: SimpleIndex) -> Iterator[None]:
    """The index of these tests instead of a public one, a look each 2 s, and short pauses between two starts."""
    assert machine.show(UNIT, "ActiveState") == "active"
    with (machine.root / "etc/envfabric/envfabric.env").open("a", encoding="utf-8") as file:
        file.write(f"ENVFABRIC_INDEX={local_index.url}\nENVFABRIC_INTERVAL=2\n")
    drop_in(machine, "tests", "RestartSec=1s")
    yield
    machine.run("systemctl", "stop", UNIT, check=False)


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


def test_reload_looks_at_once_and_leaves_it_running(machine: Machine) -> None:
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
    drop_in(machine, "watchdog", "WatchdogSec=10s\nTimeoutStartSec=10s")
    machine.run("systemctl", "restart", UNIT)
    # Once it has built something its start is over, which may take long: the wait for it is a declared one.
    commit(machine, "jobs/before", "alpha")
    machine.shell(f"{ENVFABRIC} wait jobs/before --root /mnt/nas --timeout {BOUND}")
    before = machine.show(UNIT, "MainPID")
    machine.shell(f"cp {REF} /srv/ref; mkfifo -m 666 {REF}.pipe; mv {REF}.pipe {REF}")
    try:
        wait_for_status(machine, r"^starting: reading the spec repository, for [2-9]0 s")
        assert machine.show(UNIT, "ActiveState") == "activating"
        assert machine.show(UNIT, "MainPID") not in {before, "0"}
        assert [line for line in machine.journal("-u", UNIT) if "Watchdog timeout" in line]
    finally:
        # The name first; then whoever waits at the pipe gets what it waits for.
        machine.shell(
            f"mv {REF} /srv/pipe; cp /srv/ref {REF}; timeout 5 cp /srv/ref /dev/fd/1 > /srv/pipe || true"
        )
    wait_for_status(machine, "^writing")
    (machine.root / f"etc/systemd/system/{UNIT}.d/watchdog.conf").unlink()
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", UNIT)


def test_an_unmounted_root_is_told_and_nothing_is_written(machine: Machine) -> None:
    """ROOT unmounted: the unit says so and writes nothing below the mount point; mounted again, it goes on."""
    machine.run("systemctl", "stop", UNIT)
    machine.shell("mv /mnt/nas /srv/nas; mkdir /mnt/nas")
    (machine.root / "etc/systemd/system/mnt-nas.mount").write_text(
        "[Mount]\nWhat=/srv/nas\nWhere=/mnt/nas\nType=none\nOptions=bind\n", "utf-8"
    )
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", UNIT)
    # Required by the unit: systemd mounted it.
    assert machine.show("mnt-nas.mount", "ActiveState") == "active"
    pid = machine.show(UNIT, "MainPID")
    # Once it has built something its start is over: what goes wrong in a start ends it with an exit code.
    commit(machine, "jobs/there", "alpha")
    machine.shell(f"{ENVFABRIC} wait jobs/there --root /mnt/nas --timeout {BOUND}")
    machine.run("umount", "--lazy", "/mnt/nas")
    assert "/mnt/nas" in wait_for_status(machine, "^(waiting|stand(ing )?by)")
    commit(machine, "jobs/away", "alpha")
    machine.run("systemctl", "reload", UNIT)
    assert machine.shell("ls -A /mnt/nas") == ""
    assert machine.show(UNIT, "ActiveState") == "active"
    machine.shell("mount --bind /srv/nas /mnt/nas")
    machine.shell(f"{ENVFABRIC} wait jobs/away --root /mnt/nas --timeout {BOUND}")
    assert machine.show(UNIT, "MainPID") == pid
    machine.run("umount", "--lazy", "/mnt/nas")
    wait_for_status(machine, "^(waiting|stand(ing )?by)")
    assert machine.shell("ls -A /mnt/nas") == ""
