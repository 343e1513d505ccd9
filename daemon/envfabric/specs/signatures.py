"""Whose commits are made true: the signature of a commit is checked against lists of keys that the operator gave.

Nothing else is trusted: no keyring or configuration of the user, none of the repository, and the programs are the
usual ones by name. A commit's id covers its tree, so its signature stands for all that it holds; what came before
it is its signer's word. Reads the repository and the lists; writes nothing.
"""

import re
import shutil
from pathlib import Path

from envfabric.core.errors import ConfigError, HeldBack
from envfabric.specs.plumbing import SAFE_CONFIG, Finished, Git, TimedOut, git_folder, plain_environment
from envfabric.specs.repository import Repository, SourceError

_TIME = 10.0
"""Seconds that each of the two steps of a check may take: the loop waits for them."""
_MOST = 1 << 20
"""Bytes of a commit that are looked at for the kind of its signature; git itself checks all of it."""
_PROVEN = 1000
"""Commits whose signers are remembered; only those that are published later are asked about."""
_BAD = {"BADSIG": "a bad one", "EXPSIG": "one that has expired", "EXPKEYSIG": "one of a key that has expired"}
_BAD |= {"REVKEYSIG": "one of a key that was revoked", "ERRSIG": "one of a key that is not listed"}


class Signatures:
    """The keys whose signatures count. Belongs to the loop's thread."""

    def __init__(
        self, required: bool, allowed_signers: Path | None = None, gnupg_home: Path | None = None
    ) -> None:
        """`allowed_signers` lists keys for ssh, in ssh-keygen's form; the keyring of `gnupg_home` those for gpg.

        Raises `ConfigError` where signatures are required and there is nothing to check them by.
        """
        self.required = required
        self._signers = allowed_signers
        self._home = gnupg_home
        self._git = Git()
        self._good: str | None = None
        self._proven: dict[str, dict[str, str]] = {}
        if not required:
            return
        if allowed_signers is None and gnupg_home is None:
            raise ConfigError(
                "signatures.required is set, but no list of keys: give signatures.allowed_signers (ssh) or "
                "signatures.gnupg_home (gpg)"
            )
        self._check_lists()

    def check(self, repository: Repository, commit: str) -> None:
        """Passes where no signature is required, or the commit has a good one of a listed key.

        Raises `HeldBack` where it has none, and `SourceError` where that can't be found out.
        """
        if not self.required or commit == self._good:
            return
        text = self._run(repository, "cat-file", "commit", commit, most=_MOST)
        if text.code and not text.cut:
            raise SourceError(f"commit {commit[:12]} of {repository.path} can't be read: {text.err.strip()}")
        header = text.out.partition(b"\n\n")[0]
        who = f"commit {commit[:12]} by {_author(header)}"
        signature = re.search(rb"^gpgsig (.*)$", header, re.MULTILINE)
        if signature is None:
            raise HeldBack(f"{who} is not signed; what was published stays. {self._advice()}")
        ssh = signature[1].startswith(b"-----BEGIN SSH SIGNATURE")
        if not ssh and not signature[1].startswith(b"-----BEGIN PGP"):
            raise HeldBack(f"{who} has a signature of a kind that is not checked (x509). {self._advice()}")
        if (self._signers if ssh else self._home) is None:
            kind, setting = ("an ssh", "allowed_signers") if ssh else ("a gpg", "gnupg_home")
            raise HeldBack(
                f"{who} has {kind} signature, and signatures.{setting} is not set. {self._advice()}"
            )
        # A list that went away holds back nothing for good, and lets nothing through.
        try:
            self._check_lists()
        except ConfigError as error:
            raise SourceError(str(error)) from error
        done = self._run(repository, "verify-commit", "--raw", commit)
        if done.code == 0 and _is_good(done.err, ssh=ssh):
            self._good = commit
            if len(self._proven) >= _PROVEN:
                self._proven.clear()
            self._proven[commit] = _signer(done.err, ssh=ssh)
            return
        raise HeldBack(
            f"{who} has a signature, but {_fault(done.err, ssh=ssh)}; what was published stays. {self._advice()}"
        )

    def signer(self, commit: str) -> dict[str, str] | None:
        """Whose good signature a commit was found to have, by which key; None where none was asked for."""
        return self._proven.get(commit)

    def _check_lists(self) -> None:
        for setting, path, program in (
            ("allowed_signers", self._signers, "ssh-keygen"),
            ("gnupg_home", self._home, "gpg"),
        ):
            if path is None:
                continue
            if not (path.is_dir() if setting == "gnupg_home" else path.is_file()):
                raise ConfigError(f"signatures.{setting} = {path}: there is no such {_KINDS[setting]}")
            if shutil.which(program) is None:
                raise ConfigError(f"signatures.{setting} is set, but {program} is not installed on this host")

    def _run(self, repository: Repository, *arguments: str, most: int | None = None) -> Finished:
        # Above the repository's own configuration, which anybody who can write there may have changed.
        config = SAFE_CONFIG | {
            "safe.directory": "*",
            "gpg.program": "gpg",
            "gpg.openpgp.program": "gpg",
            "gpg.x509.program": "false",
            "gpg.ssh.program": "ssh-keygen",
            "gpg.ssh.allowedSignersFile": str(self._signers.absolute()) if self._signers else "/dev/null",
            "gpg.minTrustLevel": "undefined",
        }
        env = plain_environment() | git_folder(repository.git_folder)
        # Without a home of its own gpg would use the user's keyring: this one is nowhere.
        env["GNUPGHOME"] = str(self._home.absolute()) if self._home else "/nonexistent"
        try:
            return self._git.run(arguments, env=env, config=config, timeout=_TIME, file_limit=most)
        except TimedOut:
            raise SourceError(
                f"git {arguments[0]} in {repository.path} took longer than {_TIME:g} s"
            ) from None

    def _advice(self) -> str:
        lists = [str(one) for one in (self._signers, self._home) if one is not None]
        return (
            f"Sign a new commit (git commit -S) with a key listed in {' or '.join(lists)}, or add the signer's key "
            "there."
        )


_KINDS = {"allowed_signers": "file", "gnupg_home": "folder"}


def _author(header: bytes) -> str:
    found = re.search(rb"^author (.*?) <", header, re.MULTILINE)
    name = found[1].decode("utf-8", "replace") if found else "?"
    return _printable(name)


def _printable(name: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in name)[:80]


def _is_good(told: str, *, ssh: bool) -> bool:
    if ssh:
        # For a key that is on no list ssh-keygen says "Good "git" signature with …", without a name.
        return re.search(r'^Good "git" signature for \S+ with ', told, re.MULTILINE) is not None
    words = {line.split()[1] for line in told.splitlines() if line.startswith("[GNUPG:] ")}
    return {"GOODSIG", "VALIDSIG"} <= words and not words & _BAD.keys()


def _signer(told: str, *, ssh: bool) -> dict[str, str]:
    """Who signed, by the operator's lists, and the key's fingerprint; of what `_is_good` passed."""
    if ssh:
        found = re.search(r'^Good "git" signature for (\S+) with \S+ key (\S+)', told, re.MULTILINE)
        return {"name": found[1], "key": found[2]} if found else {}
    words = {
        line.split()[1]: line.split(maxsplit=3) for line in told.splitlines() if line.startswith("[GNUPG:] ")
    }
    name = words["GOODSIG"][3] if len(words["GOODSIG"]) > 3 else ""
    return {"name": _printable(name), "key": words["VALIDSIG"][2] if len(words["VALIDSIG"]) > 2 else ""}


def _fault(told: str, *, ssh: bool) -> str:
    if ssh:
        if "No principal matched" in told or "no principal" in told.lower():
            return "its key is not listed"
        lines = [line.strip() for line in told.splitlines() if line.strip()]
        return f"it is not good: {'; '.join(lines)[:300] or 'ssh-keygen refused it'}"
    found = [line.split()[1] for line in told.splitlines() if line.startswith("[GNUPG:] ")]
    return f"it is {next((_BAD[one] for one in found if one in _BAD), 'not a good one')}"
