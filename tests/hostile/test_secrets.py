"""Index credentials reach uv alone: whichever way they came, they are in no file and in no answer afterwards."""

import base64
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.fabric import Fabric, RunningDaemon
from support.simple_index import SimpleIndex
from support.spec_repo import SpecRepo
from support.waiting import wait_for

USER, PASSWORD = "index-reader", "s3cret/of+the:index"
QUOTED = "s3cret%2Fof%2Bthe%3Aindex"
TOKEN = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
SECRETS = [PASSWORD.encode(), QUOTED.encode(), QUOTED.lower().encode(), TOKEN.encode()]


@pytest.fixture
def private(tmp_path: Path) -> Iterator[SimpleIndex]:
    """An index that answers only who has the password."""
    with SimpleIndex(tmp_path / "planted" / "packages", user=USER, password=PASSWORD) as index:
        index.add_wheel("alpha", "1.0")
        index.add_wheel("guarded", "1.0", requires=["alpha"])
        index.add_wheel("broken", "1.0").write_bytes(b"not a wheel")
        yield index


@pytest.fixture
def fabric(tmp_path: Path, private: SimpleIndex) -> Fabric:
    return Fabric(tmp_path, private, SpecRepo(tmp_path / "specs"))


def by_variables(fabric: Fabric) -> None:
    """What an operator writes into the unit's environment."""
    fabric.variables |= {"UV_INDEX_LOCAL_USERNAME": USER, "UV_INDEX_LOCAL_PASSWORD": PASSWORD}


def by_netrc(fabric: Fabric) -> None:
    path = plant(fabric, "netrc", f"machine 127.0.0.1 login {USER} password {PASSWORD}\n")
    fabric.variables["NETRC"] = str(path)


def by_systemd(fabric: Fabric) -> None:
    """LoadCredential= puts files into a folder of the service's own."""
    path = plant(fabric, "UV_INDEX_LOCAL_USERNAME", f"{USER}\n")
    plant(fabric, "UV_INDEX_LOCAL_PASSWORD", f"{PASSWORD}\n")
    fabric.variables["CREDENTIALS_DIRECTORY"] = str(path.parent)


def by_systemd_netrc(fabric: Fabric) -> None:
    path = plant(fabric, "netrc", f"machine 127.0.0.1 login {USER} password {PASSWORD}\n")
    fabric.variables["CREDENTIALS_DIRECTORY"] = str(path.parent)


def by_default_index(fabric: Fabric) -> None:
    """The default index with its credentials, by uv's own variable."""
    fabric.machines_index = True
    fabric.variables["UV_DEFAULT_INDEX"] = with_userinfo(fabric)


def by_setting(fabric: Fabric) -> None:
    """A URL with user and password as the `index` setting."""
    fabric.settings["index"] = with_userinfo(fabric)


def by_settings_variable(fabric: Fabric) -> None:
    """The same by the setting's variable."""
    fabric.variables["ENVFABRIC_INDEX"] = with_userinfo(fabric)


def with_userinfo(fabric: Fabric) -> str:
    return fabric.packages.url.replace("://", f"://{USER}:{QUOTED}@")


def plant(fabric: Fabric, name: str, content: str) -> Path:
    path = fabric.folder / "planted" / "credentials" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(0o600)
    return path


WAYS: dict[str, Callable[[Fabric], None]] = {
    "variables": by_variables,
    "netrc": by_netrc,
    "systemd": by_systemd,
    "systemd-netrc": by_systemd_netrc,
    "default-index": by_default_index,
    "setting": by_setting,
    "settings-variable": by_settings_variable,
}
BY_NAME = {"variables", "netrc", "systemd", "systemd-netrc"}
"""Ways that give the credentials of an index that the specs name."""


def commit(fabric: Fabric, *, named: bool) -> str:
    """Specs that need the private index: one that is ready, and some that fail in different steps."""
    index = fabric.packages.url if named else None
    fabric.repo.spec("good/one", ["guarded"], index=index)
    fabric.repo.spec("bad/missing", ["no-such-thing"], index=index)
    fabric.repo.spec("bad/wheel", ["broken"], index=index)
    fabric.repo.spec("bad/version", ["alpha>2"], index=index)
    return fabric.repo.commit()


def assert_nowhere(fabric: Fabric, answers: dict[str, str]) -> None:
    """No file below the fabric's folder has a secret, and no answer, but what the test planted itself."""
    for name, text in answers.items():
        assert not [secret for secret in SECRETS if secret in text.encode()], f"{name} has the password"
    planted = {fabric.folder / "planted", fabric.folder / "envfabric.toml"}
    for at, folders, files in os.walk(fabric.folder):
        folders[:] = [name for name in folders if Path(at, name) not in planted]
        for path in (Path(at, name) for name in files if Path(at, name) not in planted):
            if path.is_file() and not path.is_symlink():
                content = path.read_bytes()
                assert not [secret for secret in SECRETS if secret in content], f"{path} has the password"


def answers_of(fabric: Fabric, daemon: RunningDaemon) -> dict[str, str]:
    """All that the daemon says to anybody."""
    said = {
        path: daemon.get(path)[1]
        for path in ("/", "/rows.json", "/index.json", "/metrics", "/healthz", "/readyz")
    }
    for command in (["status"], ["status", "--json"], ["history", "good/one"], ["which", "good/one"]):
        done = fabric.command(*command, "--root", fabric.root)
        said[" ".join(command)] = done.stdout + done.stderr
    return said


@pytest.mark.parametrize("way", WAYS)
def test_password_is_used_and_nowhere_kept(fabric: Fabric, way: str) -> None:
    """The private index is read with it, specs fail beside that, and no output or file has it."""
    WAYS[way](fabric)
    made = commit(fabric, named=way in BY_NAME)
    with fabric.daemon() as daemon:
        index = daemon.wait_for_index(made)
        said = answers_of(fabric, daemon)
    states = {spec_id: entry["state"] for spec_id, entry in index["environments"].items()}
    assert states.pop("good/one") == "ready", index["environments"]["good/one"]["error"]
    assert set(states.values()) == {"failed"}
    assert_nowhere(fabric, said | {"stderr": "".join(daemon.lines)})


@pytest.mark.parametrize("way", ["variables", "setting"])
def test_password_is_in_no_message_of_a_failing_index(fabric: Fabric, way: str) -> None:
    """An index that refuses the password, or fails, is told of without it."""
    WAYS[way](fabric)
    fabric.packages.fail_with = 403
    fabric.settings["log_level"] = "debug"
    made = commit(fabric, named=way in BY_NAME)
    with fabric.daemon() as daemon:
        index = daemon.wait_for_index(made)
        said = answers_of(fabric, daemon)
    assert {entry["state"] for entry in index["environments"].values()} == {"failed"}
    assert_nowhere(fabric, said | {"stderr": "".join(daemon.lines)})


@pytest.mark.parametrize("way", ["variables", "systemd", "setting", "settings-variable"])
def test_password_is_in_the_environment_of_uv_alone(fabric: Fabric, way: str) -> None:
    """While uv waits for the index: the password is in uv's environment, and in no other child's; in no arguments."""
    WAYS[way](fabric)
    held = fabric.packages.hold()
    made = commit(fabric, named=way in BY_NAME)
    with fabric.daemon() as daemon:
        children = wait_for(lambda: seen(daemon.process.pid), timeout=60, message="no uv was seen waiting")
        held.set()
        daemon.wait_for_index(made)
    for command, environment in children:
        assert not [secret for secret in SECRETS if secret in command]
        # uv itself asks the operator's interpreter what it is, isolated from all that a spec could bring along.
        uv = (
            Path(os.fsdecode(command.split(b"\0")[0])).name == "uv"
            or b"python.get_interpreter_info" in command
        )
        assert bool([secret for secret in SECRETS if secret in environment]) == uv, command


def seen(pid: int) -> list[tuple[bytes, bytes]] | None:
    """Arguments and environment of all below a process, once one of them is a uv that locks."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and int(path.name) != pid and pid in ancestors(int(path.name)):
            with contextlib.suppress(OSError):
                command = (path / "cmdline").read_bytes()
                found.append((command, (path / "environ").read_bytes()))
    # A child that was forked and has not become another program yet is the daemon still.
    found = [one for one in found if one[0] and b"envfabric\0run" not in one[0]]
    names = {Path(os.fsdecode(command.split(b"\0")[0])).name for command, _ in found}
    locking = any(b"\0lock\0" in command for command, _ in found)
    return found if locking and "git" in names else None


def ancestors(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError):
        while pid > 1:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            yield pid
