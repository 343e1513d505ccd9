"""A private index under a real systemd: its token, handed over as docs/install.md says, is seen by uv alone."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from machine.unit import UNIT, commit_text, doctor, wait_for_spec
from support.nspawn import Machine
from support.simple_index import SimpleIndex
from support.waiting import wait_for

pytestmark = [pytest.mark.machine, pytest.mark.root, pytest.mark.timeout(900)]

GUIDE = Path(__file__).resolve().parents[2] / "docs/install.md"
EXAMPLE = "https://packages.example/simple"
USER = "fabric"
TOKEN = "tok-5f1c0b7e9a4d42b8"
FILE = "/etc/envfabric/team-password"


def blocks(marker: str) -> list[str]:
    """The blocks of the guide below `<!-- marker -->`, in their order."""
    text = GUIDE.read_text("utf-8")
    return re.findall(rf"<!-- {marker} -->\s*```\w+\n(.*?)```", text, re.DOTALL)


def replaced(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


def found(machine: Machine, where: str) -> list[str]:
    """The files that have the token."""
    script = f"grep -rlsF --devices=skip -f - {where} || true"
    return sorted(machine.shell(script, input=f"{TOKEN}\n").split())


@pytest.fixture(scope="module")
def private_index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleIndex]:
    """An index that refuses whoever comes without the token."""
    with SimpleIndex(tmp_path_factory.mktemp("private"), user=USER, password=TOKEN) as index:
        index.add_wheel("our-package", "1.0")
        yield index


def test_a_token_is_seen_by_uv_alone(machine: Machine, private_index: SimpleIndex) -> None:
    """By the guide's steps a private package is built; the token is in uv's environment, and in no file or log."""
    token_in, handed_over = blocks("token")
    machine.shell(token_in, input=f"{TOKEN}\n")
    machine.shell(replaced(handed_over, EXAMPLE, private_index.url))
    assert machine.shell(f"stat -c '%U %a' {FILE}").split() == ["root", "600"]
    (pyproject,) = blocks("token spec")
    held = private_index.hold("our-package", kind="files")
    try:
        commit_text(machine, "jobs/private", replaced(pyproject, EXAMPLE, private_index.url))
        wait_for(
            lambda: any(one.startswith("/files/") for one in private_index.requests),
            message="nobody asked for the package's file",
        )
        # By a file of patterns: as an argument of grep it would find itself.
        environments = found(machine, "/proc/[0-9]*/environ")
        holders = {
            machine.run("cat", one.replace("environ", "comm"), check=False).stdout.strip()
            for one in environments
        }
        arguments = found(machine, "/proc/[0-9]*/cmdline")
    finally:
        held.set()
    # One that has ended meanwhile has no name.
    assert holders - {""} == {"uv"}
    assert arguments == []
    wait_for_spec(machine, "jobs/private")
    machine.shell("/mnt/nas/envs/jobs/private/.venv/bin/python -c 'import our_package'")
    places = found(machine, "/etc /mnt /root /run /srv /tmp /var")
    assert places == [FILE, f"/run/credentials/{UNIT}/UV_INDEX_TEAM_PASSWORD"]
    journal = machine.run("journalctl", "--no-pager", "--all", "-o", "export").stdout
    assert "ENVFABRIC_SPEC=jobs/private" in journal
    assert TOKEN not in journal
    code, told = doctor(machine)
    assert (code, told["warning"], told["problem"]) == (0, [], [])
