"""`envfabric doctor` on the daemon's host: settings, uv, git, signatures, port, Pythons and Ray, each broken once."""

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import ray

from doctor.conftest import PYTHON, Nas, trouble
from envfabric.client import doctor
from envfabric.client.findings import Finding, as_json
from envfabric.service import checkup, checkup_unit, credentials
from support.another_user import as_another_user, let_others_in
from support.fabric import BASE_PYTHON
from support.git_front import before_git
from support.git_server import GitServer
from support.spec_repo import SpecRepo

SECRET = "hunter2-hunter2-hunter2"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@dataclass
class Host:
    """The daemon's host: a ROOT, a repository with a spec, and settings that name both."""

    nas: Nas
    repo: SpecRepo
    config: Path
    port: int

    def settings(self, tail: str = "", **top: Any) -> None:
        values = {"repo": str(self.repo.path), "path": "specs", "root": str(self.nas.path)}
        values |= {"listen": f"127.0.0.1:{self.port}"} | top
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        self.config.write_text("\n".join([*lines, tail, ""]))

    def all(self, timeout: float = 60.0, **options: Any) -> list[Finding]:
        return doctor.look(None, self.config, ray=False, timeout=timeout, more=checkup.look, **options)

    def look(self, timeout: float = 60.0, **options: Any) -> dict[str, Finding]:
        return {one.check: one for one in self.all(timeout, **options)}

    def only(self, check: str, **options: Any) -> Finding:
        """The one thing that is wrong, but for the daemon that does not run here."""
        found = self.look(**options)
        assert [one for one in trouble(found) if one != "port"] == [check], found
        assert found[check].do
        return found[check]


@pytest.fixture
def host(nas: Nas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(credentials, "_taken", {})
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    # Whatever init system the test machine has.
    monkeypatch.setattr(checkup_unit, "NAME", "envfabric-none.service")
    repo = SpecRepo(tmp_path / "repo", spec_dir="specs")
    repo.write("specs/wf/a/pyproject.toml", "[project]\nname = 'a'\nversion = '1'\n")
    repo.git("add", "--all")
    repo.git("commit", "--quiet", "--message", "one")
    made = Host(nas, repo, tmp_path / "envfabric.toml", free_port())
    made.settings()
    return made


def test_host_that_is_right(host: Host) -> None:
    """Everything is looked at, nothing but the daemon that does not run is wrong, and the exit code is 0."""
    found = host.look()
    assert trouble(found) == ["port"]
    looked = {"settings", "unit", "uv", "links", "pythons", "git", "signatures", "port", "ray settings"}
    assert looked <= set(found)
    assert {found[one].level for one in ("settings", "uv", "pythons", "git", "signatures")} == {"ok"}
    assert host.repo.head[:12] in found["git"].found


def test_links_are_tried_by_their_owner_and_only_when_asked(host: Host) -> None:
    """With --write the store's own probe, which leaves nothing."""
    assert host.look()["links"].level == "info"
    before = {str(one) for one in host.nas.path.rglob("*")}
    assert host.look(write=True)["links"].level == "ok"
    assert {str(one) for one in host.nas.path.rglob("*")} == before
    shutil.rmtree(host.nas.root.trash)
    (host.nas.root.trash).write_text("")
    assert host.look(write=True)["links"].level == "problem"


def test_links_of_another_user(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's files would say nothing, and would lie there as his: not tried."""
    monkeypatch.setattr("envfabric.service.checkup.os.geteuid", lambda: 4242)
    before = {str(one) for one in host.nas.path.rglob("*")}
    (found,) = checkup._links(host.nas.root, write=True)
    assert (found.level, "Run this as" in str(found.do)) == ("info", True)
    assert {str(one) for one in host.nas.path.rglob("*")} == before


@pytest.mark.parametrize(
    ("top", "tail", "words"),
    [
        ({"branche": "main"}, "", "branch"),
        ({}, "[gc]\ngrase = 1", "grace"),
        ({"listen": "here"}, "", "HOST:PORT"),
        ({}, "= 1", "not valid TOML"),
    ],
)
def test_settings_that_are_wrong(host: Host, top: dict[str, Any], tail: str, words: str) -> None:
    """The daemon would exit with 2; nothing that hangs on them is said as well."""
    host.settings(tail, **top)
    found = doctor.look(host.nas.path, host.config, ray=False, timeout=60, more=checkup.look)
    (bad,) = [one for one in found if one.level == "problem"]
    assert (bad.check, words in bad.found) == ("settings", True)
    assert not {"git", "port", "uv"} & {one.check for one in found}


def test_settings_of_a_consumer(host: Host) -> None:
    """A file that names ROOT and no repository, or no file: what the daemon needs is not asked, and no problem."""
    host.config.write_text(f'root = "{host.nas.path}"\n')
    assert host.look()["settings"].level == "info"
    assert "git" not in host.look()
    host.config.unlink()
    found = doctor.look(host.nas.path, None, ray=False, timeout=60, more=checkup.look)
    assert [one.level for one in found if one.check == "settings"] == ["info"]


def test_credentials_that_others_may_read(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token, a password in an address and netrc; once they are closed there is nothing to say. None is shown."""
    netrc = tmp_path / "netrc"
    for tail in (f'reconcile_token = "{SECRET}"', f'index = "https://me:{SECRET}@wheels.example/simple"'):
        host.settings(tail)
        host.config.chmod(0o644)
        found = host.only("settings")
        assert (found.level, "0644" in found.found) == ("warning", True)
        assert SECRET not in as_json(host.all())
        host.config.chmod(0o640)
        assert host.look()["settings"].level == "ok"
    netrc.write_text(f"machine wheels.example password {SECRET}\n")
    netrc.chmod(0o644)
    monkeypatch.setenv("NETRC", str(netrc))
    assert str(netrc) in host.only("settings").found


def test_uv_of_another_version(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cache may have another form."""
    monkeypatch.setattr("importlib.metadata.requires", lambda name: ["typer>=0.1", "uv==0.0.1"])
    found = host.only("uv")
    assert (found.level, "made for 0.0.1" in found.found) == ("problem", True)


def test_cache_that_others_may_write(host: Host) -> None:
    """Whoever writes there changes environments to come."""
    host.nas.root.uv_cache.chmod(0o777)
    assert "0777" in host.only("uv").found


@pytest.mark.root
def test_cache_of_another_user(host: Host) -> None:
    """Links turn into copies, silently."""
    os.chown(host.nas.root.uv_cache, 4242, 4242)
    assert "uid 4242" in host.only("uv").found


def test_cache_elsewhere(host: Host) -> None:
    """Between two mounts nothing can be linked."""
    shm = Path("/dev/shm")
    assert shm.stat().st_dev != host.nas.path.stat().st_dev, "needs a second file system at /dev/shm"
    host.nas.root.uv_cache.rmdir()
    host.nas.root.uv_cache.symlink_to(shm)
    assert "not one file system" in host.only("uv").found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"repo": "/no/such/repo"}, "is not there"),
        ({"branch": "never"}, "never has no commit"),
        ({"path": "never"}, "no folder never"),
        ({"repo": "ftp://git.example/x"}, "not followed"),
        ({"repo": "file:///no/such/repo"}, "can't be reached"),
    ],
)
def test_repository_that_is_not_as_the_settings_say(host: Host, change: dict[str, Any], words: str) -> None:
    """What git says of it, and what to do."""
    host.settings(**change)
    found = host.only("git")
    assert (found.level, words in found.found) == ("problem", True)


def test_folder_inside_a_repository_is_none(host: Host) -> None:
    """The daemon does not look above, so neither does this."""
    host.settings(repo=str(host.repo.path / "specs"))
    assert "is no repository" in host.only("git").found


def test_git_that_hangs(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is ended in its time, and is a finding; what comes after it is looked at."""
    before_git(tmp_path, monkeypatch, "exec sleep 1000")
    began = time.monotonic()
    found = host.look(timeout=3.0)
    assert time.monotonic() - began < 60
    assert (found["git"].level, "within 3 s" in found["git"].found) == ("problem", True)
    assert found["signatures"].level == "ok"


def test_remote_behind_a_password(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the credentials that the daemon is given it is reached, without them it is told; they are not shown."""
    SpecRepo(tmp_path / "served/specs.git", bare=True)
    with GitServer(tmp_path / "served", user="me", password=SECRET) as server:
        host.settings(repo=server.url("specs.git"))
        found = host.only("git")
        assert "LoadCredential" in str(found.do)
        given = tmp_path / "given"
        given.mkdir()
        (given / "git-credentials").write_text(f"http://me:{SECRET}@127.0.0.1:{server.port}\n")
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(given))
        # It answers, and is empty.
        assert "has no branch" in host.only("git").found
        monkeypatch.setattr(credentials, "_taken", {})
        host.config.chmod(0o600)
        host.settings(repo=f"http://me:{SECRET}@127.0.0.1:{server.port}/specs.git")
        assert "has no branch" in host.only("git").found
        host.settings(repo=f"http://me:wrong-{SECRET}@127.0.0.1:{server.port}/specs.git")
        told = as_json(host.all())
        assert "can't be reached" in told
        assert SECRET not in told


def test_git_that_repeats_a_password(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says is shown without it."""
    before_git(tmp_path, monkeypatch, 'echo "no way in with $ENVFABRIC_GIT_PASSWORD" >&2; exit 128')
    host.config.chmod(0o600)
    host.settings(repo=f"http://me:{SECRET}@127.0.0.1:1/specs.git")
    assert host.only("git").found.endswith("no way in with ***")


def test_signatures(host: Host, tmp_path: Path) -> None:
    """A list that is not there, and one that everybody may write, let nothing pass or everything."""
    keys = tmp_path / "signers"
    host.settings(f'[signatures]\nrequired = true\nallowed_signers = "{keys}"')
    assert "there is no such file" in host.only("signatures").found
    keys.write_text("")
    keys.chmod(0o666)
    assert "written by others" in host.only("signatures").found
    keys.chmod(0o644)
    assert host.look()["signatures"].level == "ok"


@contextmanager
def pages(port: int, answers: dict[str, tuple[int, str]]) -> Iterator[None]:
    """A program that answers on a port with these pages, as a daemon or anything else does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, text = answers.get(self.path, (404, "nothing"))
            self.send_response(code)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def answers(host: Host, *, writer: float = 1.0, last: float | None = None) -> dict[str, tuple[int, str]]:
    moment = time.time() if last is None else last
    figures = f"envfabric_writer {writer}\nenvfabric_reconcile_last_success_timestamp_seconds {moment!r}\n"
    return {
        "/healthz": (200, "last round 0.5 s ago\n"),
        "/readyz": (200, "sequence 3\n"),
        "/index.json": (200, json.dumps({"root": str(host.nas.path)})),
        "/metrics": (200, figures),
    }


def test_daemon_that_answers(host: Host) -> None:
    """Nothing at all is wrong then, and its last success is told."""
    with pages(host.port, answers(host)):
        found = host.look()
    assert trouble(found) == []
    assert found["last success"].level == "ok"


@pytest.mark.parametrize(
    ("change", "check", "level", "words"),
    [
        ({"/healthz": (404, "hello")}, "port", "problem", "another program"),
        ({"/healthz": (503, "last round 99.0 s ago\n")}, "port", "problem", "hangs"),
        ({"/readyz": (503, "nothing is published yet\n")}, "port", "warning", "published nothing"),
        ({"/index.json": (200, '{"root": "/other"}')}, "port", "problem", "serves /other"),
        ({"/metrics": (200, "envfabric_writer 0.0\n")}, "last success", "info", "stands by"),
        ({"/metrics": (200, "envfabric_writer 1.0\n")}, "last success", "warning", "has succeeded"),
        (
            {"/metrics": (200, "envfabric_reconcile_last_success_timestamp_seconds 1.7e+09\n")},
            "last success",
            "problem",
            "2023-11-14",
        ),
    ],
)
def test_what_the_port_says(
    host: Host, change: dict[str, tuple[int, str]], check: str, level: str, words: str
) -> None:
    """Another program on it, a loop that hangs, another ROOT's daemon, a standby, no success for long."""
    with pages(host.port, answers(host) | change):
        found = host.look()
    assert (found[check].level, words in found[check].found) == (level, True), found[check]


def test_port_that_no_http_answers(host: Host) -> None:
    """It is taken, and its owner says nothing: the look ends in its time."""
    with socket.create_server(("127.0.0.1", host.port)):
        found = host.look(timeout=2.0)
    assert (found["port"].level, "no answer of a daemon" in found["port"].found) == ("problem", True)


def test_nobody_on_the_port(host: Host) -> None:
    """A warning: on another machine than the daemon's host it is as it should be."""
    assert host.look()["port"].level == "warning"
    host.settings(listen="127.0.0.1:0")
    assert host.look()["port"].level == "info"


def test_pythons(host: Host, tmp_path: Path) -> None:
    """What was made from none of the settings' is told, and what they name and is not there."""
    elsewhere = tmp_path / "pythons"
    elsewhere.mkdir()
    host.settings(pythons=[str(elsewhere)])
    assert host.look()["pythons"].level == "ok"
    host.settings(pythons=[str(tmp_path / "never")])
    assert "what is not there" in host.only("pythons").found
    outside = tmp_path / "python3"
    outside.write_text(f'#!/bin/sh\nexec {BASE_PYTHON} "$@"\n')
    outside.chmod(0o755)
    host.nas.link("a1" * 32, outside)
    host.settings(pythons=[str(elsewhere)])
    found = host.look()["pythons"]
    assert (found.level, "none of pythons" in found.found) == ("warning", True)
    host.settings()
    assert (host.look()["pythons"].level, str(outside) in host.look()["pythons"].found) == ("info", True)


def test_ray_of_the_settings(host: Host) -> None:
    """Served environments with another Ray, or none where it is required; unset where environments have it."""
    assert host.look()["ray settings"].level == "info"
    host.settings('[ray]\nversion = "2.60.0"')
    assert host.look()["ray settings"].level == "ok"
    host.settings('[ray]\nversion = "2.9.9"')
    assert "wf/ray" in host.only("ray settings").found
    host.settings('[ray]\nversion = "2.60.0"\nrequired = true')
    found = host.look()["ray settings"]
    assert (found.level, "wf/plain" in found.found) == ("info", True)


def test_farm(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon beside a farm needs the cluster's Ray and Python; nothing of Ray is imported."""
    farm = '[farm]\nexecutor = "ray"\n[ray]\n'
    host.settings(farm + f'version = "{ray.__version__}"\npython = "{PYTHON}"')
    assert host.look()["farm"].level == "ok"
    host.settings(farm + 'version = "2.9.9"')
    assert "Install ray==2.9.9" in str(host.look()["farm"].do)
    host.settings(farm + f'version = "{ray.__version__}"\npython = "3.99.1"')
    assert "ray.python is 3.99.1" in host.only("farm").found

    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", absent)
    assert "not installed" in host.look()["farm"].found


def test_git_that_is_not_installed(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all commands this one has to say so."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    found = host.look()
    assert (found["git"].level, "not installed" in found["git"].found) == ("problem", True)


@pytest.mark.root
def test_somebody_else(host: Host) -> None:
    """Who may not read settings, or not the repository, hears that, and blames nobody for it."""
    let_others_in(host.nas.path)
    host.config.chmod(0o600)
    found = as_another_user(lambda: {one.check: [one.level, one.found] for one in host.all()})
    # ROOT itself stands in the settings.
    assert found["root"][0] == "problem"
    assert found["settings"][0] == "info"
    assert "git" not in found
    host.config.chmod(0o644)
    host.repo.path.chmod(0o700)
    host.nas.root.leases.chmod(0o1777)
    found = as_another_user(lambda: {one.check: [one.level, one.found] for one in host.all()})
    # The tests' own interpreter need not be everybody's to start.
    assert {name for name, (level, _) in found.items() if level == "problem"} <= {"interpreters"}
    assert found["git"][0] == "warning"
    assert found["writer"][0] == "ok"
    assert found["links"][0] == "info"
