"""The mirror of a remote, with real git over http and file: whole or not at all, small, and mended by itself."""

import fcntl
import os
import re
import shutil
import stat
import subprocess
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from envfabric.core.errors import ConfigError
from envfabric.specs import following
from envfabric.specs.mirror import Mirror
from envfabric.specs.remote import remote_of
from envfabric.specs.repository import TOO_LARGE_FROM, Repository, SourceError
from support.fabric import Fabric
from support.git_front import before_git
from support.git_server import GitServer
from support.spec_repo import SpecRepo
from support.waiting import wait_for

from .conftest import MakeMirror, read_all


def size(path: Path) -> int:
    """Bytes of all files below."""
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())


def head(mirror: Mirror) -> str | None:
    with Repository(mirror.path) as source:
        return source.head()


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_a_remote_is_mirrored_and_followed(
    remote: SpecRepo, host: GitServer, make_mirror: MakeMirror, scheme: str
) -> None:
    """A first fetch gives the commit and every spec file, the next one what came since; nobody else may read it."""
    mirror = make_mirror(host.url("specs.git") if scheme == "http" else remote.path.as_uri())
    assert not mirror.present
    assert mirror.fetch() == remote.head == head(mirror)
    assert set(read_all(mirror)) == {"wf/a/pyproject.toml"}
    remote.spec("wf/b")
    second = remote.commit()
    assert mirror.fetch() == second == head(mirror)
    assert read_all(mirror)["wf/b/pyproject.toml"] == (remote.work / "wf/b/pyproject.toml").read_bytes()
    for folder in (mirror.path, mirror.path.parent, mirror.path.parent.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with Repository(mirror.path) as source:
        assert source.root_commits(second) == [remote.git("rev-list", "--max-parents=0", "HEAD")]


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_what_no_spec_needs_is_not_fetched(
    remote: SpecRepo, host: GitServer, make_mirror: MakeMirror, scheme: str
) -> None:
    """Files outside of specs, and earlier contents of spec files, cost nothing but their names."""
    remote.write("data/big", os.urandom(5_000_000))
    for number in range(3):
        remote.write("wf/a/uv.lock", os.urandom(500_000))
        remote.write("wf/a/model.bin", os.urandom(500_000))
        remote.commit(f"lock {number}")
    mirror = make_mirror(host.url("specs.git") if scheme == "http" else remote.path.as_uri())
    mirror.fetch()
    assert size(mirror.path) < 700_000
    assert set(read_all(mirror)) == {"wf/a/pyproject.toml"}
    with Repository(mirror.path) as source:
        lock = remote.git("rev-parse", "HEAD:wf/a/uv.lock")
        assert source.read(lock) == (remote.work / "wf/a/uv.lock").read_bytes()
        with pytest.raises(SourceError):
            source.read(remote.git("rev-parse", "HEAD:data/big"))


@pytest.mark.parametrize(("filters", "old"), [(False, False), (True, True), (False, True)])
def test_a_server_that_can_not_filter_is_followed_as_well(
    remote: SpecRepo, make_mirror: MakeMirror, filters: bool, old: bool
) -> None:
    """A server without filters, or one that gives no object by its id, sends all, and everything can be read."""
    with GitServer(remote.path.parent, filters=filters, old=old) as host:
        mirror = make_mirror(host.url("specs.git"))
        mirror.fetch()
        remote.spec("wf/b")
        assert mirror.fetch() == remote.commit() or mirror.fetch() == remote.head
        assert set(read_all(mirror)) == {"wf/a/pyproject.toml", "wf/b/pyproject.toml"}


def test_branch_and_spec_folder_are_followed(
    remote: SpecRepo, host: GitServer, make_mirror: MakeMirror
) -> None:
    """Another branch and a folder of specs have a mirror of their own; without a branch the remote's HEAD counts."""
    remote.branch("next")
    remote.write("specs/wf/n/pyproject.toml", "[project]\n")
    there = remote.commit()
    other = make_mirror(host.url("specs.git"), branch="next", path="specs")
    assert other.fetch() == there
    assert set(read_all(other, "specs")) == {"wf/n/pyproject.toml"}
    mirror = make_mirror(host.url("specs.git"))
    assert mirror.fetch() != there
    assert mirror.path != other.path
    subprocess.run(["git", "-C", remote.path, "symbolic-ref", "HEAD", "refs/heads/next"], check=True)
    assert mirror.fetch() == there


def test_force_push_is_followed(remote: SpecRepo, host: GitServer, make_mirror: MakeMirror) -> None:
    """A history that was written anew is the one that counts; what it dropped can still be read for a while."""
    remote.spec("wf/b")
    dropped = remote.commit()
    mirror = make_mirror(host.url("specs.git"))
    mirror.fetch()
    remote.git("reset", "--quiet", "--hard", "HEAD~1")
    remote.spec("wf/c")
    assert mirror.fetch() == remote.commit() or mirror.fetch() == remote.head
    assert set(read_all(mirror)) == {"wf/a/pyproject.toml", "wf/c/pyproject.toml"}
    with Repository(mirror.path) as source:
        assert {item.path for item in source.tree(dropped)} >= {"wf/b/pyproject.toml"}


def test_what_fails_leaves_the_last_revision(
    remote: SpecRepo, host: GitServer, make_mirror: MakeMirror
) -> None:
    """A branch that is gone and a host that is away are told with what to do, and change nothing."""
    mirror = make_mirror(host.url("specs.git"), branch="main")
    good = mirror.fetch()
    subprocess.run(["git", "-C", remote.path, "update-ref", "-d", "refs/heads/main"], check=True)
    with pytest.raises(SourceError, match="no branch 'main': choose another"):
        mirror.fetch()
    assert head(mirror) == good
    remote.spec("wf/b")
    back = remote.commit()
    assert mirror.fetch() == back
    host.down()
    with pytest.raises(SourceError, match=r"can't be fetched: .*[Cc]onnect.*tried again by itself"):
        mirror.fetch()
    assert head(mirror) == back
    host.up()
    assert mirror.fetch() == back


def test_host_that_hangs_is_given_up_in_time(
    remote: SpecRepo, host: GitServer, make_mirror: MakeMirror
) -> None:
    """A host that takes the connection and says nothing ends with fetch.timeout, and leaves no process."""
    mirror = make_mirror(host.url("specs.git"), timeout=2)
    host.hold()
    with pytest.raises(SourceError, match=r"longer than fetch.timeout = 2 s"):
        mirror.fetch()
    assert not mirror.present
    wait_for(lambda: not processes(str(mirror.path.parent)), message="a process of the fetch is left")
    host.release()
    assert make_mirror(host.url("specs.git")).fetch() == remote.head


def processes(told: str) -> list[str]:
    """The processes of this host whose environment names a path."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if told.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text())
        except OSError:
            continue
    return found


def test_stop_ends_a_fetch(remote: SpecRepo, host: GitServer, make_mirror: MakeMirror) -> None:
    """A daemon that ends does not wait for a host that hangs."""
    mirror = make_mirror(host.url("specs.git"), timeout=600)
    host.hold()
    failed: list[str] = []

    def fetch() -> None:
        try:
            mirror.fetch()
        except SourceError as error:
            failed.append(str(error))

    thread = threading.Thread(target=fetch)
    thread.start()
    wait_for(lambda: host.requests, message="nothing was asked for")
    mirror.stop()
    thread.join(60)
    assert failed == ["the fetch was interrupted"]


@pytest.mark.parametrize(
    "damage", ["pack", "pack lost", "loose", "index", "config", "head", "ref", "objects", "contents lost"]
)
def test_damaged_mirror_is_replaced(
    remote: SpecRepo, host: GitServer, make_mirror: MakeMirror, opened: ExitStack, damage: str
) -> None:
    """Whatever is damaged, the next fetch after a reader's doubt makes all readable, also for who has it open."""
    remote.spec("wf/b")
    remote.commit()
    mirror = make_mirror(host.url("specs.git"))
    mirror.fetch()
    reader = opened.enter_context(Repository(mirror.path, doubted=mirror.doubt))
    first = reader.head()
    assert first is not None
    assert reader.tree(first)
    before = read_all(mirror)
    if damage == "loose":
        unpack(mirror.path)
        for one in mirror.path.glob("objects/??/*"):
            overwrite(one, b"garbage")
    packs = list(mirror.path.glob("objects/pack/*.pack"))
    if damage == "pack":
        for one in packs:
            overwrite(one, one.read_bytes()[:-60] + b"x" * 60)
    elif damage == "index":
        for one in packs:
            overwrite(one.with_suffix(".idx"), b"garbage")
    elif damage == "pack lost":
        largest = max(packs, key=lambda one: one.stat().st_size)
        largest.unlink()
    elif damage == "contents lost":
        min(packs, key=lambda one: one.stat().st_size).unlink()
    elif damage == "objects":
        shutil.rmtree(mirror.path / "objects")
    elif damage != "loose":
        path = {"config": "config", "head": "HEAD", "ref": "refs/heads/followed"}[damage]
        (mirror.path / path).write_text("[garbage\n")
    mirror.doubt()
    assert mirror.fetch() == first
    assert reader.head() == first
    # A process that was reading the old one gives one error at most.
    for _ in range(2):
        try:
            found = {item.path for item in reader.tree(first)}
            break
        except SourceError:
            continue
    assert "wf/b/pyproject.toml" in found
    assert read_all(mirror) == before


def overwrite(path: Path, content: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(content)


def unpack(mirror: Path) -> None:
    """Turns the mirror's packs into loose objects."""
    packs = list(mirror.glob("objects/pack/*.pack"))
    moved = [one.rename(mirror / one.name) for one in packs]
    for one in mirror.glob("objects/pack/*"):
        one.unlink()
    for one in moved:
        with one.open("rb") as file:
            subprocess.run(["git", "-C", mirror, "unpack-objects", "-q"], stdin=file, check=True)
        one.unlink()


def test_mirror_that_git_can_not_add_to_is_replaced_without_a_doubt(
    remote: SpecRepo, host: GitServer, make_mirror: MakeMirror
) -> None:
    """Where the remote answers and the fetch fails all the same, the fault is looked for in the mirror."""
    mirror = make_mirror(host.url("specs.git"))
    mirror.fetch()
    (mirror.path / "config").write_text("[garbage\n")
    remote.spec("wf/b")
    assert mirror.fetch() == remote.commit() or mirror.fetch() == remote.head


def test_damaged_mirror_stays_while_the_host_is_away(
    remote: SpecRepo, host: GitServer, make_mirror: MakeMirror
) -> None:
    """What can be read of a damaged mirror is not thrown away before there is a better one."""
    mirror = make_mirror(host.url("specs.git"))
    good = mirror.fetch()
    smallest = min(mirror.path.glob("objects/pack/*.pack"), key=lambda one: one.stat().st_size)
    smallest.unlink()
    mirror.doubt()
    host.down()
    for _ in range(2):
        with pytest.raises(SourceError):
            mirror.fetch()
        assert head(mirror) == good
    host.up()
    assert mirror.fetch() == good
    assert read_all(mirror)


def test_sound_mirror_is_not_fetched_anew(remote: SpecRepo, host: GitServer, make_mirror: MakeMirror) -> None:
    """A doubt alone costs a look at the mirror, and no second download."""
    mirror = make_mirror(host.url("specs.git"))
    mirror.fetch()
    inode = mirror.path.stat().st_ino
    mirror.doubt()
    mirror.fetch()
    assert mirror.path.stat().st_ino == inode


@pytest.mark.parametrize("moment", ["old away", "new in place"])
def test_killed_replacement_goes_on(
    remote: SpecRepo, host: GitServer, make_mirror: MakeMirror, moment: str
) -> None:
    """Killed at either rename of a replacement, the next fetch has a mirror, without the host where it can."""
    mirror = make_mirror(host.url("specs.git"))
    good = mirror.fetch()
    new, old = (mirror.path.with_suffix(one) for one in (".new", ".old"))
    if moment == "old away":
        shutil.copytree(mirror.path, new)
        mirror.path.rename(old)
        host.down()
        with pytest.raises(SourceError):
            mirror.fetch()
    else:
        shutil.copytree(mirror.path, old)
    assert head(mirror) == good


def test_what_a_killed_fetch_left_is_taken_away(
    remote: SpecRepo, host: GitServer, make_mirror: MakeMirror
) -> None:
    """Locks of a git that was killed stop no later fetch, and halves of packs don't stay."""
    mirror = make_mirror(host.url("specs.git"))
    mirror.fetch()
    left = ["refs/envfabric/incoming.lock", "refs/heads/followed.lock", "HEAD.lock", "config.lock"]
    left += ["packed-refs.lock", "objects/pack/tmp_pack_x", "gc.pid"]
    for one in left:
        (mirror.path / one).write_text("")
    remote.spec("wf/b")
    commit = remote.commit()
    assert mirror.fetch() == commit
    assert [one for one in left if (mirror.path / one).exists()] == []


def test_many_commits_make_no_heap_of_packs(
    remote: SpecRepo, host: GitServer, make_mirror: MakeMirror
) -> None:
    """Thirty fetches, two packs each, leave a few packs, and all can be read."""
    mirror = make_mirror(remote.path.as_uri())
    for number in range(30):
        remote.write("wf/a/pyproject.toml", f"[project]\nname = 'a{number}'\n")
        remote.commit()
        mirror.fetch()
    assert len(list(mirror.path.glob("objects/pack/*.pack"))) <= 24
    assert b"a29" in read_all(mirror)["wf/a/pyproject.toml"]
    assert not (mirror.path / "gc.log").exists()


def test_too_large_file_is_left_out_alone(
    remote: SpecRepo, make_mirror: MakeMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is too large for any spec is not fetched; every other is, and its size says why it is refused."""
    # Not hundreds of megabytes in a test.
    monkeypatch.setattr(following, "TOO_LARGE_FROM", 500_000)
    monkeypatch.setattr(following, "_TOGETHER_BYTES", 900_000)
    for name in "bcd":
        remote.spec(f"wf/{name}")
    remote.write("wf/c/uv.lock", os.urandom(1_500_000))
    remote.commit()
    mirror = make_mirror(remote.path.as_uri())
    mirror.fetch()
    assert {f"wf/{name}/pyproject.toml" for name in "abcd"} == set(read_all(mirror))
    assert size(mirror.path) < 500_000
    doubts: list[None] = []
    with Repository(mirror.path, doubted=lambda: doubts.append(None)) as source:
        assert source.size(remote.git("rev-parse", "HEAD:wf/c/uv.lock")) == TOO_LARGE_FROM
    assert doubts == []
    remote.spec("wf/e")
    remote.commit()
    mirror.fetch()
    assert "wf/e/pyproject.toml" in read_all(mirror)


def test_two_daemons_share_a_mirror(remote: SpecRepo, host: GitServer, make_mirror: MakeMirror) -> None:
    """Fetches of two processes' mirrors wait for one another, and both end with the same commit."""
    mirrors = [make_mirror(host.url("specs.git")) for _ in range(2)]
    found: list[str] = []
    threads = [threading.Thread(target=lambda one=one: found.append(one.fetch())) for one in mirrors]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert found == [remote.head] * 2


@pytest.mark.parametrize("way", ["url", "file"])
def test_credentials_stand_nowhere(
    remote: SpecRepo, tmp_path: Path, make_mirror: MakeMirror, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """A password opens the host, and is in no file, no command line and no message; no helper writes it down."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("GIT_CONFIG_GLOBAL", raising=False)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".gitconfig").write_text("[credential]\n\thelper = store\n")
    wrapped = tmp_path / "bin"
    wrapped.mkdir()
    seen = tmp_path / "argv"
    git = shutil.which("git")
    (wrapped / "git").write_text(f'#!/bin/sh\necho "$@" >> {seen}\nexec {git} "$@"\n')
    (wrapped / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapped}{os.pathsep}{os.environ['PATH']}")
    secret = "pa/ss%wörd"
    with GitServer(remote.path.parent, user="us@er", password=secret) as host:
        quoted = f"http://us%40er:pa%2Fss%25w%C3%B6rd@127.0.0.1:{host.port}/specs.git"
        if way == "url":
            mirror = make_mirror(quoted)
        else:
            file = tmp_path / "credentials"
            file.write_text(f"http://us%40er:pa%2Fss%25w%C3%B6rd@127.0.0.1:{host.port}\n")
            mirror = make_mirror(host.url("specs.git"), credentials=file)
        assert mirror.fetch() == remote.head
        # At once: what a helper wrote down of a good fetch it would take back after a bad one.
        assert [one.name for one in (tmp_path / "home").iterdir()] == [".gitconfig"]
        host.authorization = "Basic other"
        with pytest.raises(SourceError, match="Give credentials") as failed:
            mirror.fetch()
    assert seen.exists()
    forms = ("pa/ss", "pa%2Fss", "w%C3%B6rd")
    texts = [str(failed.value), repr(mirror.remote), seen.read_text()]
    texts += [one.read_text("latin-1") for one in mirror.path.parent.rglob("*") if one.is_file()]
    texts += [one.read_text("latin-1") for one in (tmp_path / "home").rglob("*") if one.is_file()]
    assert [text for text in texts if any(form in text for form in forms)] == []


def test_credentials_reach_their_host_alone(
    remote: SpecRepo, make_mirror: MakeMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that another one redirects to is not given the password."""
    found = remote_of("https://user:password-of-it@host.example:8443/specs.git")
    assert found is not None
    assert found.url == "https://host.example:8443/specs.git"
    keys = [
        key for key in found.configuration() if key.startswith("credential.") and key != "credential.helper"
    ]
    assert keys == ["credential.https://host.example:8443.helper"]
    assert "password-of-it" not in str(found.configuration())


def test_ssh_goes_without_questions(
    remote: SpecRepo, tmp_path: Path, make_mirror: MakeMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`user@host:path` is reached by ssh in batch mode, with the operator's own ssh command."""
    # In the place of ssh: it notes its arguments and runs what the other host would run.
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/told\nfor last; do :; done\nexec sh -c "$last"\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("GIT_SSH_COMMAND", f"{ssh} -i /etc/key")
    monkeypatch.setenv("GIT_SSH_VARIANT", "ssh")
    mirror = make_mirror(f"git@host.example:{remote.path}")
    assert mirror.fetch() == remote.head
    told = (tmp_path / "told").read_text()
    assert re.match(r"-i /etc/key -o BatchMode=yes .*git@host\.example git-upload-pack", told), told


@pytest.mark.parametrize(
    ("repo", "told"),
    [
        ("http://host.example/specs.git", "without TLS"),
        ("git://host.example/specs.git", "git:// is not followed"),
        ("ext::sh -c id", "remote helpers are not used"),
        ("ftp://host.example/x", "ftp:// is not followed"),
        ("ssh://user:word@host.example/x", "ssh takes no password"),
        ("file://specs", "absolute path"),
        ("https:///specs.git", "names no host"),
        ("https://host.example:port/x", "is no address"),
        ("https://a%0ab:word-two@host.example/x", "control characters"),
        ("https://host.example/x\n", "can't be shown"),
        ("ssh://-oProxyCommand=id/x", "names no host"),
    ],
)
def test_addresses_that_are_not_followed(repo: str, told: str) -> None:
    """Another kind of address is wrong usage, and the message says what is allowed, without the password."""
    with pytest.raises(ConfigError, match=re.escape(told)) as failed:
        remote_of(repo)
    assert "word" not in str(failed.value).replace("password", "")


@pytest.mark.parametrize("repo", ["specs", "/srv/specs", "./a:b", "../specs.git"])
def test_a_folder_is_no_remote(repo: str) -> None:
    """What is no address is a folder of this machine."""
    assert remote_of(repo) is None


def test_state_folder_that_can_not_be_is_told(remote_fabric: Fabric, tmp_path: Path) -> None:
    """A state folder that is a file ends the start with the setting's name."""
    (tmp_path / "file").write_text("")
    remote_fabric.settings["fetch"] = {"state": str(tmp_path / "file")}
    remote_fabric.init()
    done = remote_fabric.command("run", "--config", remote_fabric.configure())
    assert done.returncode == 2
    assert "fetch.state" in done.stderr


@pytest.mark.root
def test_repository_of_another_user_is_fetched(remote: SpecRepo, make_mirror: MakeMirror) -> None:
    """The operator named the folder, so git's doubt about its owner does not stop a fetch by file://."""
    for path in (remote.path, *remote.path.rglob("*")):
        os.chown(path, 65534, 65534, follow_symlinks=False)
    assert make_mirror(remote.path.as_uri()).fetch() == remote.head


def test_another_processs_fetch_is_waited_for(
    remote: SpecRepo, host: GitServer, make_mirror: MakeMirror
) -> None:
    """Where somebody else fetches into the same mirror for too long, that is what is told."""
    mirror = make_mirror(host.url("specs.git"), timeout=1)
    mirror.prepare()
    with mirror.path.with_suffix(".lock").open("r") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SourceError, match="another process has been fetching"):
            mirror.fetch()


@pytest.mark.parametrize(("limit", "most"), [("MAX_ENTRIES", 6), ("MOST_LISTED", 512)])
def test_more_than_the_loop_reads_is_not_followed(
    remote: SpecRepo, make_mirror: MakeMirror, monkeypatch: pytest.MonkeyPatch, limit: str, most: int
) -> None:
    """Where a commit unfolds to more than is read, what it needs is not known: it is told, and the last one stays."""
    mirror = make_mirror(remote.path.as_uri())
    first = mirror.fetch()
    monkeypatch.setattr(following, limit, most)
    for name in "bcdefgh":
        remote.spec(f"wf/{name}")
    many = remote.commit()
    for _ in range(2):
        with pytest.raises(SourceError, match=f"commit {many[:12]} has, or changes, more than"):
            mirror.fetch()
        assert head(mirror) == first
    monkeypatch.undo()
    assert mirror.fetch() == many
    assert len(read_all(mirror)) == 8


def test_look_into_a_mirror_that_takes_too_long_is_given_up(
    remote: SpecRepo, tmp_path: Path, make_mirror: MakeMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A doubtful mirror that can't be looked through in time is replaced, not doubted for ever."""
    mirror = make_mirror(remote.path.as_uri())
    first = mirror.fetch()
    inode = mirror.path.stat().st_ino
    monkeypatch.setattr(following, "_SHARE_OF_CHECK", 0.02)
    before_git(tmp_path, monkeypatch, 'case "$*" in fsck*) sleep 600;; esac')
    mirror.doubt()
    assert mirror.fetch() == first
    assert mirror.path.stat().st_ino != inode
    assert set(read_all(mirror)) == {"wf/a/pyproject.toml"}


def test_fetch_that_takes_too_long_says_what_to_do(
    remote: SpecRepo, host: GitServer, make_mirror: MakeMirror
) -> None:
    """A first fetch begins anew each time: its time has to be enough for all, and the message names the setting."""
    host.hold()
    with pytest.raises(SourceError, match=r"longer than fetch\.timeout = 0\.5 s .*raise fetch\.timeout"):
        make_mirror(host.url("specs.git"), timeout=0.5).fetch()


def test_ssh_command_of_the_operators_settings(
    remote: SpecRepo, tmp_path: Path, make_mirror: MakeMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    """core.sshCommand of the operator's own settings is used, without questions; the mirror's is not."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("GIT_CONFIG_GLOBAL", "GIT_SSH_COMMAND", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("ssh", "bad"):
        (tmp_path / name).write_text(
            f'#!/bin/sh\necho "$0 $@" >> {tmp_path}/told\nfor last; do :; done\nexec sh -c "$last"\n'
        )
        (tmp_path / name).chmod(0o755)
    (home / ".gitconfig").write_text(
        f"[core]\n\tsshCommand = {tmp_path}/ssh -i /etc/key\n[ssh]\n\tvariant = ssh\n"
    )
    mirror = make_mirror(f"git@host.example:{remote.path}")
    assert mirror.fetch() == remote.head
    subprocess.run(["git", "-C", mirror.path, "config", "core.sshCommand", str(tmp_path / "bad")], check=True)
    remote.spec("wf/b")
    assert mirror.fetch() == remote.commit() or mirror.fetch() == remote.head
    for line in (tmp_path / "told").read_text().splitlines():
        assert line.startswith(f"{tmp_path}/ssh -i /etc/key -o BatchMode=yes "), line


@pytest.mark.parametrize("branch", ["--x", "a..b", "a:refs/heads/followed", "*", "a b"])
def test_branch_that_git_could_misread_is_refused(make_mirror: MakeMirror, branch: str) -> None:
    """As with a repository of this machine, what can't be a branch is wrong configuration."""
    with pytest.raises(ConfigError, match="is not a branch name"):
        make_mirror("https://host.example/specs.git", branch=branch)
