"""Leases as the daemon reads them. Time passes by the mtimes that are set, never by waiting."""

import errno
import json
import math
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from envfabric.core.errors import ConfigError, StoreError
from envfabric.store.files import Files
from envfabric.store.leases import DEFAULT_TTL, LARGEST, LONGEST_TTL, PROOF, Held, Leases
from envfabric.store.root import Root, read_marker
from store.faults import each_fault

NOW = 2_000_000_000.0
"""The server's time, as the tests have it."""


@pytest.fixture
def leases(root: Root) -> Leases:
    return Leases(root, Files())


def in_force(leases: Leases) -> dict[str, list[Held]]:
    """Every lease in force, by closure."""
    return {name: one.held for name, one in leases.survey(NOW).items() if one.held}


def take(
    folder: Path, holder: str = "host.1.a", *, ago: float = 0.0, content: bytes | None = None, **told: Any
) -> Path:
    """A lease that was renewed `ago` seconds before NOW, by plain file operations."""
    folder.mkdir(exist_ok=True)
    path = folder / holder
    path.write_bytes(json.dumps({"schema": 1, "ttl": 300, **told}).encode() if content is None else content)
    age(path, ago)
    return path


def age(path: Path, ago: float) -> None:
    os.utime(path, (NOW - ago, NOW - ago), follow_symlinks=False)


def held(leases: Leases) -> dict[str, list[str]]:
    """The holders by closure, and that the look at a single one says the same as the one at all."""
    found = in_force(leases)
    for name, one in leases.survey(NOW).items():
        assert leases.on(name, NOW) == one
        assert one.held == found.get(name, [])
    return {name: [one.holder for one in of] for name, of in found.items()}


def failing(monkeypatch: pytest.MonkeyPatch, function: str, code: int, name: str) -> list[str]:
    """Makes a system call fail for one path as a NAS does; gives what it was called with."""
    real: Callable[..., Any] = getattr(os, function)
    seen = []

    def call(path: Any, *arguments: Any, **named: Any) -> Any:
        if isinstance(path, str | Path) and os.path.basename(path) == name:
            seen.append(str(path))
            raise OSError(code, os.strerror(code), str(path))
        return real(path, *arguments, **named)

    monkeypatch.setattr(os, function, call)
    return seen


def test_a_lease_is_in_force_until_its_ttl_after_its_mtime(root: Root, leases: Leases) -> None:
    """To the second, by the server's clock, and again once it is touched."""
    path = take(root.leases / "digest", ttl=60, host="node", pid=7, what="nightly", ago=60)
    (one,) = in_force(leases)["digest"]
    assert (one.holder, one.host, one.pid, one.what) == ("host.1.a", "node", 7, "nightly")
    assert (one.renewed, one.ttl, one.until) == (NOW - 60, 60, NOW)
    age(path, 61)
    assert held(leases) == {}
    age(path, 0)
    assert held(leases) == {"digest": ["host.1.a"]}
    path.unlink()
    assert held(leases) == {}


def test_each_closure_and_each_holder_counts_for_itself(root: Root, leases: Leases) -> None:
    """One holder's end ends no other's lease, nor one on another closure."""
    take(root.leases / "digest", "a", ago=301)
    take(root.leases / "digest", "b", ago=299)
    take(root.leases / "digest-2", "c", ago=10)
    take(root.leases / "other", "d", ago=400)
    assert held(leases) == {"digest": ["b"], "digest-2": ["c"]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * LARGEST,
        b"[1]",
        b"{}",
        b'{"ttl": "60"}',
        b'{"ttl": true}',
        b'{"ttl": 0}',
        b'{"ttl": -1}',
        b'{"ttl": NaN}',
        b'{"ttl": Infinity}',
        b'{"ttl": 86400.5}',
        b'{"ttl": 1' + b"0" * 400 + b"}",
        b'{"ttl": 60, "what": "' + b"x" * LARGEST + b'"}',
        b'{"ttl": 60}' + b" " * LARGEST,
    ],
    ids=lambda content: repr(content[:20]),
)
def test_content_without_sense_counts_for_the_default_ttl(root: Root, leases: Leases, content: bytes) -> None:
    """It is never ignored, and never in force for longer than its mtime says."""
    path = take(root.leases / "digest", content=content, ago=DEFAULT_TTL)
    assert held(leases) == {"digest": ["host.1.a"]}
    age(path, DEFAULT_TTL + 1)
    assert held(leases) == {}


def test_the_longest_ttl_is_a_day(root: Root, leases: Leases) -> None:
    """A day is believed."""
    path = take(root.leases / "digest", ttl=LONGEST_TTL, ago=LONGEST_TTL)
    assert held(leases) == {"digest": ["host.1.a"]}
    age(path, LONGEST_TTL + 1)
    assert held(leases) == {}


def test_what_is_strange_stops_nothing(root: Root, leases: Leases, tmp_path: Path) -> None:
    """Stray files, links, pipes, odd names and hidden ones: the real lease is found beside them."""
    take(root.leases / "digest", "real", what="new\nline", pid="x")
    take(root.leases / "digest", ".being-written")
    take(root.leases / ".hidden", "a")
    take(root.leases / "no such closure!", "b")
    (root.leases / "stray-file").write_text("?")
    elsewhere = tmp_path / "elsewhere"
    take(elsewhere, "c")
    (root.leases / "link").symlink_to(elsewhere)
    (root.leases / "dangling").symlink_to("nowhere")
    (root.leases / "empty").mkdir()
    odd = root.leases / "odd"
    odd.mkdir()
    os.mkfifo(odd / "pipe")
    (odd / "dangling").symlink_to("nowhere")
    (odd / "folder").mkdir()
    Path(os.fsdecode(os.fsencode(odd) + b"/\xff\n")).touch()
    # A socket's path is short: it is bound by a relative name.
    with socket.socket(socket.AF_UNIX) as server, pytest.MonkeyPatch.context() as patch:
        patch.chdir(odd)
        server.bind("socket")
    for entry in odd.iterdir():
        age(entry, 0)
    assert held(leases) == {
        "digest": ["real"],
        "no such closure!": ["b"],
        "odd": [r"\udcff\n", "dangling", "folder", "pipe", "socket"],
    }
    assert in_force(leases)["digest"][0].what == r"new\nline"
    assert in_force(leases)["digest"][0].pid is None
    for entry in odd.iterdir():
        age(entry, DEFAULT_TTL + 1)
    assert "odd" not in held(leases)


def test_left_says_when_the_last_lease_ended(root: Root, leases: Leases) -> None:
    """By its expiry, or by the folder's mtime where it was given back; nothing where nobody ever leased."""
    assert leases.on("digest", NOW).left is None
    folder = root.leases / "digest"
    path = take(folder, ttl=100, ago=1000)
    age(folder, 5000)
    assert leases.on("digest", NOW).left == NOW - 900
    age(folder, 500)
    assert leases.on("digest", NOW).left == NOW - 500
    age(path, 0)
    assert leases.on("digest", NOW).left == NOW + 100
    before = Files().server_time(root.leases)
    path.unlink()
    ended = leases.on("digest", NOW).left
    assert ended is not None
    assert before - 1 <= ended <= Files().server_time(root.leases) + 1


def test_clean_takes_away_what_expired_and_nothing_else(root: Root, leases: Leases) -> None:
    """A lease in force and a lease being written stay, with their folder; all gone, the folder goes."""
    folder = root.leases / "digest"
    take(folder, "expired", ago=301)
    alive = take(folder, "alive", ago=299)
    writing = take(folder, ".being-written", ago=10)
    leases.clean("digest", NOW)
    assert sorted(folder.iterdir()) == [writing, alive]
    age(alive, 301)
    age(writing, LONGEST_TTL + 1)
    leases.clean("digest", NOW)
    assert not folder.exists()
    leases.clean("digest", NOW)


def test_clean_leaves_a_lease_that_is_made_at_that_moment(root: Root) -> None:
    """Between the look and the removal of the folder somebody leases: the lease is there afterwards."""
    folder = root.leases / "digest"
    take(folder, "expired", ago=301)

    def step(operation: str, path: Path) -> None:
        if (operation, path) == ("rmdir", folder):
            take(folder, "new")

    leases = Leases(root, Files(step))
    leases.clean("digest", NOW)
    assert held(leases) == {"digest": ["new"]}
    # The control: nobody leases, and the same call removes the folder.
    age(folder / "new", 301)
    Leases(root, Files()).clean("digest", NOW)
    assert not folder.exists()


def test_clean_follows_no_link(root: Root, leases: Leases, tmp_path: Path) -> None:
    """A link in a folder's place leads to no removal at its other end."""
    precious = take(tmp_path / "elsewhere", "precious", ago=1000)
    (root.leases / "digest").symlink_to(precious.parent)
    leases.clean("digest", NOW)
    assert precious.exists()


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES], ids=errno.errorcode.get)
def test_a_lease_folder_that_cannot_be_read_is_an_error(
    root: Root, leases: Leases, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """It never counts as a folder without leases."""
    take(root.leases / "digest", "name")
    failing(monkeypatch, "open", code, "leases")
    for call in (leases.place, leases.names, lambda: in_force(leases), lambda: leases.on("digest", NOW)):
        with pytest.raises(StoreError, match="Nothing is collected"):
            call()
    with pytest.raises(StoreError, match="Nothing is collected"):
        leases.on("digest", NOW)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE], ids=errno.errorcode.get)
@pytest.mark.parametrize("name", ["digest", "holder"])
def test_a_lease_that_cannot_be_read_is_an_error(
    root: Root, leases: Leases, monkeypatch: pytest.MonkeyPatch, code: int, name: str
) -> None:
    """What the NAS fails to say ends no lease; ESTALE of a lease is asked again first."""
    take(root.leases / "digest", "holder")
    seen = failing(monkeypatch, "open", code, name)
    with pytest.raises(StoreError, match=os.strerror(code)):
        in_force(leases)
    assert len(seen) == (4 if (code, name) == (errno.ESTALE, "holder") else 1)
    with pytest.raises(StoreError, match=os.strerror(code)):
        leases.on("digest", NOW)
    with pytest.raises(StoreError, match=os.strerror(code)):
        leases.clean("digest", NOW)


def test_one_users_closed_folder_counts_and_stops_nothing(
    root: Root, leases: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A closure's lease folder that the daemon may not open counts as leased; others go on expiring."""
    take(root.leases / "closed", ago=1000)
    take(root.leases / "open", ago=1000)
    assert held(leases) == {}
    failing(monkeypatch, "open", errno.EACCES, "closed")
    (one,) = in_force(leases)["closed"]
    assert "chmod 1777" in one.what
    assert list(in_force(leases)) == ["closed"]
    assert leases.on("closed", NOW).left == math.inf
    leases.clean("closed", NOW)
    assert (root.leases / "closed" / "host.1.a").exists()


def test_a_lease_whose_content_is_closed_counts_by_its_mtime(
    root: Root, leases: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mode 0600 of another user: in force for the default ttl."""
    path = take(root.leases / "digest", "holder", ttl=10, ago=DEFAULT_TTL)
    failing(monkeypatch, "open", errno.EACCES, "holder")
    assert held(leases) == {"digest": ["holder"]}
    age(path, DEFAULT_TTL + 1)
    assert held(leases) == {}


def test_a_lease_given_back_while_it_is_listed_is_none(
    root: Root, leases: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was listed and is gone when it is opened was given back."""
    take(root.leases / "digest", "gone")
    take(root.leases / "digest", "there")
    failing(monkeypatch, "open", errno.ENOENT, "gone")
    assert held(leases) == {"digest": ["there"]}


def test_leases_that_are_gone_are_an_error(root: Root, leases: Leases) -> None:
    """Without ROOT/leases, or without ROOT's marker, nobody knows who leases what."""
    root.leases.rename(root.path / "away")
    with pytest.raises(StoreError, match="envfabric init"):
        in_force(leases)
    (root.path / "away").rename(root.leases)
    assert held(leases) == {}
    root.marker.unlink()
    with pytest.raises(StoreError, match=r"\.envfabric\.json"):
        in_force(leases)


def test_another_folder_is_recorded_and_proves_itself(root: Root, leases: Leases, tmp_path: Path) -> None:
    """Leases are read there from then on; the marker keeps all else; None goes back to ROOT/leases."""
    before = read_marker(root)
    other = tmp_path / "other"
    other.mkdir()
    leases.use(other)
    assert leases.place() == other
    assert read_marker(root) == {**before, "leases": str(other)}
    assert (other / PROOF).stat().st_mode & 0o777 == 0o644
    take(other / "digest")
    take(root.leases / "old")
    assert held(leases) == {"digest": ["host.1.a"]}
    leases.use(None)
    assert read_marker(root) == before
    assert held(leases) == {"old": ["host.1.a"]}
    leases.use(root.leases)
    assert read_marker(root) == before


def test_another_folder_that_is_not_mounted_holds_everything_back(
    root: Root, leases: Leases, tmp_path: Path
) -> None:
    """Its mount point is empty or gone: an error, also after a start; mounted again, it counts."""
    other = tmp_path / "other"
    other.mkdir()
    leases.use(other)
    take(other / "digest")
    mounted = other.rename(tmp_path / "mounted")
    for _ in ("gone", "empty"):
        leases.use(other)
        with pytest.raises(StoreError, match="Mount it"):
            in_force(leases)
        other.mkdir(exist_ok=True)
    assert list(other.iterdir()) == []
    other.rmdir()
    mounted.rename(other)
    assert held(leases) == {"digest": ["host.1.a"]}


def test_a_folder_that_cannot_be_used_is_a_setting_to_mend(
    root: Root, leases: Leases, tmp_path: Path
) -> None:
    """Missing, a file, or relative: refused with what to do, and nothing is recorded."""
    (tmp_path / "file").write_text("")
    for wrong, word in (
        (tmp_path / "missing", "mkdir -m 1777"),
        (tmp_path / "file", "mkdir -m 1777"),
        (Path("relative"), "absolute"),
    ):
        with pytest.raises(ConfigError, match=word):
            leases.use(wrong)
    assert "leases" not in read_marker(root)
    root.marker.write_text('{"schema": 1, "leases": 3}')
    with pytest.raises(StoreError, match="absolute path"):
        leases.place()


def test_root_leases_as_a_symlink_needs_a_proof_at_its_other_end(
    root: Root, leases: Leases, tmp_path: Path
) -> None:
    """Else the empty mount point behind it would look like a folder without leases."""
    other = tmp_path / "other"
    other.mkdir()
    root.leases.rmdir()
    root.leases.symlink_to(other)
    with pytest.raises(StoreError, match="symlink"):
        leases.place()
    leases.use(None)
    take(other / "digest")
    assert held(leases) == {"digest": ["host.1.a"]}
    (other / PROOF).unlink()
    with pytest.raises(StoreError, match="Mount it"):
        in_force(leases)


def test_any_fault_while_the_folder_is_set_leaves_a_place_that_works(root: Root, tmp_path: Path) -> None:
    """The old place or the new one, and the next start goes on from there."""
    leases = Leases(root, Files())
    for number, steps in enumerate(each_fault()):
        other = tmp_path / str(number)
        other.mkdir()
        try:
            Leases(root, Files(steps)).use(other)
        except (OSError, ConfigError):
            assert steps.failed
        assert leases.place() in {root.leases, other}
        leases.use(other)
        assert leases.place() == other
        leases.use(None)


def test_what_a_killed_doctor_left_goes_after_a_day(root: Root, leases: Leases, tmp_path: Path) -> None:
    """Whole; a younger one, leases and what a link leads to stay."""
    old, young, link = (root.leases / f".doctor.{number}.a" for number in range(3))
    for folder in (old, young, tmp_path / "elsewhere"):
        folder.mkdir()
        (folder / "probe").write_text(".")
        (folder / "probe").touch()
    link.symlink_to(tmp_path / "elsewhere")
    for folder in (old, tmp_path / "elsewhere"):
        os.utime(folder, (NOW - 86_401, NOW - 86_401))
    os.utime(young, (NOW - 86_000, NOW - 86_000))
    leases.sweep(NOW)
    assert sorted(os.listdir(root.leases)) == [young.name, link.name]
    assert (tmp_path / "elsewhere/probe").exists()
