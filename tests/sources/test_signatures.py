"""Whose commits count: ssh and gpg signatures by real keys, against lists that the operator gave, and nothing else."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from envfabric.core.errors import ConfigError, HeldBack
from envfabric.specs import signatures
from envfabric.specs.repository import Repository, SourceError
from envfabric.specs.signatures import Signatures
from support.git_front import before_git
from support.spec_repo import SpecRepo


@pytest.fixture
def repo(tmp_path: Path) -> SpecRepo:
    """A repository without commits."""
    repo = SpecRepo(tmp_path / "specs")
    repo.spec("wf/a")
    return repo


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """What is entered here is closed at the end of the test."""
    with ExitStack() as stack:
        yield stack


def ssh_key(folder: Path, name: str) -> Path:
    """A new key; gives the private one."""
    path = folder / name
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", path], check=True)
    return path


def signers(folder: Path, *keys: Path) -> Path:
    """A list of allowed signers."""
    path = folder / "allowed_signers"
    lines = (f"author@example.com {key.with_suffix('.pub').read_text()}" for key in keys)
    path.write_text("".join(lines))
    return path


def signed_by_ssh(repo: SpecRepo, key: Path) -> str:
    repo.git(
        "-c",
        "gpg.format=ssh",
        "-c",
        f"user.signingKey={key}",
        "commit",
        "-q",
        "--allow-empty",
        "-S",
        "-m",
        "x",
    )
    return repo.head


@pytest.fixture
def gpg_homes() -> Iterator[Path]:
    """A folder for GnuPG homes: its agent's socket needs a short path."""
    folder = Path(tempfile.mkdtemp(prefix="gpg"))
    yield folder
    for home in folder.iterdir():
        subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], check=False)
    shutil.rmtree(folder, ignore_errors=True)


def gpg_home(folder: Path, name: str) -> Path:
    """A GnuPG home with a new key of `name`@example.com."""
    home = folder / name
    home.mkdir(mode=0o700)
    gpg(home, "--passphrase", "", "--quick-generate-key", f"{name}@example.com", "ed25519", "sign", "never")
    return home


def gpg(home: Path, *arguments: str) -> bytes:
    command = ["gpg", "--homedir", str(home), "--batch", "--quiet", "--pinentry-mode", "loopback", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def keyring(folder: Path, *homes: Path) -> Path:
    """A GnuPG home with the public keys of others and no private one."""
    ring = folder / "ring"
    ring.mkdir(mode=0o700)
    for home in homes:
        keys = folder / f"{home.name}.asc"
        keys.write_bytes(gpg(home, "--armor", "--export"))
        gpg(ring, "--import", str(keys))
    return ring


def signed_by_gpg(repo: SpecRepo, home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    with monkeypatch.context() as patch:
        patch.setenv("GNUPGHOME", str(home))
        repo.git(
            "-c", f"user.signingKey={home.name}@example.com", "commit", "-q", "--allow-empty", "-S", "-m", "x"
        )
    return repo.head


def test_ssh_signatures(repo: SpecRepo, tmp_path: Path, opened: ExitStack) -> None:
    """A commit by a listed key passes; one by another key, and one without a signature, are told and held back."""
    listed, other = ssh_key(tmp_path, "listed"), ssh_key(tmp_path, "other")
    checked = Signatures(True, allowed_signers=signers(tmp_path, listed))
    unsigned = repo.commit()
    source = opened.enter_context(Repository(repo.path))
    with pytest.raises(
        HeldBack, match=rf"commit {unsigned[:12]} by Spec Author is not signed; .*git commit -S"
    ):
        checked.check(source, unsigned)
    checked.check(source, signed_by_ssh(repo, listed))
    with pytest.raises(HeldBack, match=r"its key is not listed; .*allowed_signers"):
        checked.check(source, signed_by_ssh(repo, other))
    Signatures(False).check(source, unsigned)


def test_gpg_signatures(
    repo: SpecRepo, tmp_path: Path, gpg_homes: Path, opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keys in the given keyring count; those in the user's own do not."""
    listed, other = gpg_home(gpg_homes, "listed"), gpg_home(gpg_homes, "other")
    checked = Signatures(True, gnupg_home=keyring(gpg_homes, listed))
    good = signed_by_gpg(repo, listed, monkeypatch)
    bad = signed_by_gpg(repo, other, monkeypatch)
    # The daemon's user trusts the other key: that is nobody's business.
    monkeypatch.setenv("GNUPGHOME", str(other))
    source = opened.enter_context(Repository(repo.path))
    checked.check(source, good)
    keys = gpg(listed, "--list-keys", "--with-colons").decode()
    proven = checked.signer(good)
    assert proven is not None
    assert "listed@example.com" in proven["name"]
    assert f":{proven['key']}:" in keys
    with pytest.raises(HeldBack, match=r"one of a key that is not listed; .*ring"):
        checked.check(source, bad)
    assert checked.signer(bad) is None


@pytest.mark.parametrize("kind", ["ssh", "gpg"])
def test_changed_commit_is_held_back(
    repo: SpecRepo,
    tmp_path: Path,
    gpg_homes: Path,
    opened: ExitStack,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """A good signature on another content, and one kind of signature where the other is listed, do not count."""
    if kind == "ssh":
        key = ssh_key(tmp_path, "listed")
        checked = Signatures(True, allowed_signers=signers(tmp_path, key))
        good = signed_by_ssh(repo, key)
        home = gpg_home(gpg_homes, "listed")
        of_other_kind = Signatures(True, gnupg_home=keyring(gpg_homes, home))
    else:
        home = gpg_home(gpg_homes, "listed")
        checked = Signatures(True, gnupg_home=keyring(gpg_homes, home))
        good = signed_by_gpg(repo, home, monkeypatch)
        of_other_kind = Signatures(True, allowed_signers=signers(tmp_path, ssh_key(tmp_path, "listed")))
    text = repo.git("cat-file", "commit", good) + "\nand more\n"
    path = tmp_path / "changed"
    path.write_text(text)
    changed = repo.git("hash-object", "-t", "commit", "-w", str(path))
    source = opened.enter_context(Repository(repo.path))
    checked.check(source, good)
    with pytest.raises(HeldBack, match="has a signature, but it is"):
        checked.check(source, changed)
    with pytest.raises(HeldBack, match="is not set"):
        of_other_kind.check(source, good)


def test_repository_and_user_decide_nothing(
    repo: SpecRepo, tmp_path: Path, opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs and lists that the repository's or the user's configuration names are neither run nor read."""
    listed, other = ssh_key(tmp_path, "listed"), ssh_key(tmp_path, "other")
    checked = Signatures(True, allowed_signers=signers(tmp_path, listed))
    bad = signed_by_ssh(repo, other)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    trace = tmp_path / "trace"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\necho ran >> {trace}\necho 'Good \"git\" signature for x with y'\n")
    program.chmod(0o755)
    mine = signers(theirs, other)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for key in ("gpg.program", "gpg.ssh.program", "gpg.openpgp.program", "gpg.ssh.defaultKeyCommand"):
        repo.git("config", key, str(program))
        subprocess.run(["git", "config", "--file", home / ".gitconfig", key, program], check=True)
    repo.git("config", "gpg.ssh.allowedSignersFile", str(mine))
    subprocess.run(
        ["git", "config", "--file", home / ".gitconfig", "gpg.ssh.allowedSignersFile", mine], check=True
    )
    source = opened.enter_context(Repository(repo.path))
    with pytest.raises(HeldBack, match="its key is not listed"):
        checked.check(source, bad)
    assert not trace.exists()


def test_lists_that_are_not_there_are_told(repo: SpecRepo, tmp_path: Path, opened: ExitStack) -> None:
    """Wrong settings end a start; a list that goes away later lets nothing through and is no verdict."""
    with pytest.raises(ConfigError, match=re.escape("signatures.allowed_signers (ssh) or")):
        Signatures(True)
    with pytest.raises(ConfigError, match="no such file"):
        Signatures(True, allowed_signers=tmp_path / "none")
    with pytest.raises(ConfigError, match="no such folder"):
        Signatures(True, gnupg_home=tmp_path / "none")
    key = ssh_key(tmp_path, "listed")
    path = signers(tmp_path, key)
    checked = Signatures(True, allowed_signers=path)
    good = signed_by_ssh(repo, key)
    source = opened.enter_context(Repository(repo.path))
    os.unlink(path)
    with pytest.raises(SourceError, match="no such file"):
        checked.check(source, good)
    with pytest.raises(SourceError, match="can't be read"):
        checked.check(source, "0" * 40)
    signers(tmp_path, key)
    checked.check(source, good)


def test_large_commit(repo: SpecRepo, tmp_path: Path, opened: ExitStack) -> None:
    """A commit of more bytes than are looked at for the kind of its signature is judged like any other."""
    key = ssh_key(tmp_path, "listed")
    checked = Signatures(True, allowed_signers=signers(tmp_path, key))
    repo.git("add", "--all")
    (tmp_path / "message").write_text("x\n\n" + "many words\n" * 200_000)
    commit = ("commit", "--quiet", "--allow-empty", "--file", str(tmp_path / "message"))
    repo.git(*commit)
    unsigned = repo.head
    repo.git("-c", "gpg.format=ssh", "-c", f"user.signingKey={key}", *commit, "-S")
    source = opened.enter_context(Repository(repo.path))
    checked.check(source, repo.head)
    assert checked._run(source, "cat-file", "commit", repo.head, most=1 << 20).cut
    with pytest.raises(HeldBack, match="is not signed"):
        checked.check(source, unsigned)


def test_check_that_hangs_is_ended(
    repo: SpecRepo, tmp_path: Path, opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check that does not end lets nothing through and is no verdict, and the loop waits for seconds only."""
    assert signatures._TIME <= 10
    key = ssh_key(tmp_path, "listed")
    checked = Signatures(True, allowed_signers=signers(tmp_path, key))
    commit = signed_by_ssh(repo, key)
    source = opened.enter_context(Repository(repo.path))
    with monkeypatch.context() as patch:
        patch.setattr(signatures, "_TIME", 0.3)
        before_git(tmp_path, patch, "sleep 600")
        with pytest.raises(SourceError, match=r"took longer than 0\.3 s"):
            checked.check(source, commit)
    checked.check(source, commit)
