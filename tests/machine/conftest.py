"""One clean Debian 12 with a systemd of its own, on which the README's install steps were carried out."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from machine.unit import UNIT, drop_in
from support.nspawn import Machine, booted, clean_debian, install_steps, passed_on
from support.simple_index import SimpleIndex

PROJECT = Path(__file__).resolve().parents[2]
CLONE = ("README.md", "pyproject.toml", "daemon", "systemd", "specs-example")


@pytest.fixture(scope="session")
def local_index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleIndex]:
    """An index on the loopback, which the machine shares with this host."""
    with SimpleIndex(tmp_path_factory.mktemp("packages")) as index:
        index.add_wheel("alpha", "1.0")
        index.add_wheel("beta", "1.0")
        yield index


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The machine, once the steps are done, and not one more."""
    folder = tmp_path_factory.mktemp("machine")
    root = folder / "root"
    clean_debian(root)
    clone = root / "root/clone"
    for name in CLONE:
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            clone.mkdir(exist_ok=True)
            shutil.copyfile(source, clone / name)
    steps = install_steps(PROJECT / "README.md")
    assert steps, "the README has no step marked <!-- install -->"
    with booted(root, folder / "console.log") as booted_machine:
        booted_machine.shell("cd /root/clone\n" + "\n".join(steps), variables=passed_on(), timeout=600)
        yield booted_machine
    shutil.rmtree(root)


@pytest.fixture(scope="session", autouse=True)
def prepared(machine: Machine, local_index: SimpleIndex) -> Iterator[None]:
    """The index of these tests instead of a public one, a look each 2 s, and short pauses between two starts."""
    assert machine.show(UNIT, "ActiveState") == "active"
    with (machine.root / "etc/envfabric/envfabric.env").open("a", encoding="utf-8") as file:
        file.write(f"ENVFABRIC_INDEX={local_index.url}\nENVFABRIC_INTERVAL=2\n")
    drop_in(machine, "tests", "RestartSec=1s")
    yield
    machine.run("systemctl", "stop", UNIT, check=False)
