"""A machine with a systemd of its own: a container of systemd-nspawn over a root file system.

Commands run in it by nsenter. The machine shares the host's network, and is ended with the test.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from support.tools import tool
from support.waiting import wait_for

PACKAGES = ("systemd", "systemd-sysv", "dbus", "ca-certificates", "git", "python3-venv")


class Machine:
    """A booted machine."""

    def __init__(self, root: Path, leader: int) -> None:
        self.root = root
        self.leader = leader

    def run(
        self,
        *command: str,
        check: bool = True,
        variables: dict[str, str] | None = None,
        timeout: float = 300,
        input: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command in the machine as root; a failure is an AssertionError with what it said."""
        plain = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
        done = subprocess.run(
            ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-p", "-C", "--root", "--wd", *command],
            env={**plain, "LC_ALL": "C.UTF-8", "SYSTEMD_PAGER": "", **(variables or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL if input is None else None,
            input=input,
        )
        assert not check or done.returncode == 0, (
            f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done

    def shell(self, script: str, **options: object) -> str:
        """Runs a bash script, and gives what it printed."""
        return self.run("bash", "-euo", "pipefail", "-c", script, **options).stdout  # type: ignore[arg-type]

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).stdout.strip()

    def journal(self, *matches: str) -> list[str]:
        """Messages of the journal."""
        return self.run("journalctl", "--no-pager", "-o", "cat", *matches).stdout.splitlines()


def clean_debian(root: Path) -> None:
    """Debian 12 with systemd, git and python3-venv and nothing else of use, from this host's package sources.

    Needs the network. Skips, or fails where `CI` is set, without mmdebstrap or root.
    """
    needs_root()
    own = Path("/etc/apt/sources.list.d/debian.sources")
    sources = [str(own)] if own.is_file() else []
    done = subprocess.run(
        [
            tool("mmdebstrap", package="mmdebstrap"), "--quiet", "--variant=apt", f"--include={','.join(PACKAGES)}",
            # The folder of a test is not to be entered by apt's own user.
            "--aptopt=APT::Sandbox::User \"root\"", "bookworm", str(root), *sources,
        ],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    copy_network_settings(root)


def needs_root() -> None:
    """Skips the test for an ordinary user."""
    if os.geteuid() != 0:
        pytest.skip("booting a machine needs root")


@contextlib.contextmanager
def booted(root: Path, log: Path, *options: str) -> Iterator[Machine]:
    """Boots the system in `root` and waits until it says that it runs."""
    needs_root()
    nspawn = tool("systemd-nspawn", package="systemd-container")
    command: Sequence[str] = (
        nspawn, "--boot", "--register=no", "--keep-unit", "--quiet", "--console=pipe", "--link-journal=no",
        "--resolv-conf=copy-host", "--timezone=off", f"--machine=fabric{os.getpid()}", f"--directory={root}",
        *options,
    )  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    try:

        def leader() -> int | None:
            assert process.poll() is None, f"the machine ended: {log.read_text(errors='replace')[-4000:]}"
            found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            for child in found:
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                        return int(child)
            return None

        machine = Machine(root, wait_for(leader, timeout=120, message="no init in the machine"))

        def up() -> bool | None:
            done = machine.run("systemctl", "is-system-running", check=False)
            return done.stdout.strip() in {"running", "degraded"} or None

        wait_for(up, timeout=180, message="the machine did not boot")
        yield machine
    finally:
        # Its init ends at once by this; nothing in it is worth a shutdown.
        for child in _children(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=60)


def _children(pid: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def passed_on() -> dict[str, str]:
    """What leads this host to its package indexes: certificates, proxies, settings of pip and uv."""
    beginnings = ("SSL_CERT_", "PIP_", "UV_INDEX", "UV_DEFAULT", "UV_EXTRA", "UV_FIND")
    names = {
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "REQUESTS_CA_BUNDLE",
    }
    return {one: text for one, text in os.environ.items() if one in names or one.startswith(beginnings)}


def copy_network_settings(root: Path) -> None:
    """The host's certificates and its files of pip and uv settings, into another root."""
    bundles = {"/etc/ssl/certs/ca-certificates.crt", os.environ.get("SSL_CERT_FILE", "")}
    for name in bundles:
        if name and Path(name).is_file():
            (root / name[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(name, root / name[1:])
    home = Path.home()
    for source, target in (
        (Path("/etc/pip.conf"), "etc/pip.conf"),
        (Path("/etc/uv/uv.toml"), "etc/uv/uv.toml"),
        (home / ".config/pip/pip.conf", "root/.config/pip/pip.conf"),
        (home / ".config/uv/uv.toml", "root/.config/uv/uv.toml"),
    ):
        if source.is_file():
            (root / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, root / target)


def install_steps(readme: Path) -> list[str]:
    """The README's sh blocks below `<!-- install -->`, in their order."""
    return re.findall(r"<!-- install -->\s*```sh\n(.*?)```", readme.read_text("utf-8"), re.DOTALL)
