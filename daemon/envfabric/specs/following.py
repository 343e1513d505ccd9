"""The git commands of one fetch: from the remote into a mirror, and whether a mirror is sound.

A fetch goes into a ref of its own, and the followed one is set only when all is there that the spec folder needs: a
revision becomes visible whole or not at all. Where the server can filter, all commits and trees are fetched (the
repository is known by its first commit, which a limit of depth would lose), and of contents the spec files alone, by
their ids. May write to the mirror that it is given, and nowhere else.
"""

import contextlib
import os
import re
import time
from pathlib import Path

from envfabric.core.errors import redact
from envfabric.specs.plumbing import SAFE_CONFIG, Finished, Git, TimedOut, git_folder, plain_environment
from envfabric.specs.remote import Remote
from envfabric.specs.repository import (
    MAX_ENTRIES,
    MOST_LISTED,
    TOO_LARGE,
    TOO_LARGE_FROM,
    SourceError,
    unfolds,
)
from envfabric.specs.tree import SPEC_FILES

_INCOMING, FOLLOWED = "refs/envfabric/incoming", "refs/heads/followed"
_TOGETHER, _TOGETHER_BYTES = 1000, 128 * 1024 * 1024
"""Spec files that are asked for at a time, and the most bytes that come so; where they are more, each half is asked
for, down to single ones."""
_SHARE_OF_CHECK = 0.5
"""How much of the time that is left a look into a doubtful mirror may take: the rest is for another one."""
_CONFIG = SAFE_CONFIG | {
    # As a pack, whatever it is: contents that came one by one would be thousands of files.
    "fetch.unpackLimit": "1",
    # What is larger goes to disk by pieces, and never into memory as a whole.
    "core.bigFileThreshold": "8m",
    # For a fetch whose daemon was killed: nobody ends it, and it holds the lock. A host that packs says little.
    "http.lowSpeedLimit": "1",
    "http.lowSpeedTime": "600",
    "transfer.bundleURI": "false",
    "maintenance.auto": "false",
    # What is not here was left out on purpose, and is no damage.
    "remote.origin.promisor": "true",
}
_FETCH = ("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules")
_REGULAR = {"100644", "100755"}


class NotServed(Exception):
    """The server does not give objects by their ids."""


class Fetch:
    """The git commands of one fetch, which end together."""

    def __init__(
        self,
        git: Git,
        deadline: float,
        hold: int,
        remote: Remote,
        branch: str | None,
        spec_path: str,
        *,
        filtered: bool,
    ) -> None:
        """`deadline` in monotonic seconds; `hold` is the lock's descriptor, which all that is started inherits;
        `filtered`: whether contents are left out where the server can."""
        self._git = git
        self._deadline = deadline
        self._hold = hold
        self._remote = remote
        self._branch = branch
        self._spec_path = spec_path
        self._ssh: str | None = None
        self.filtered = filtered

    def begin(self, path: Path) -> None:
        """Makes an empty mirror."""
        path.mkdir(mode=0o700)
        done = self._run(
            path, "init", "--quiet", "--bare", "--template=", f"--initial-branch={FOLLOWED[11:]}"
        )
        if done.code:
            raise SourceError(f"no mirror can be made in {path}: {done.err.strip()}")

    def update(self, path: Path, *, again: bool = False) -> str:
        """Fetches, and follows when all is there; `again` looks for what is missing although nothing is new."""
        _clear(path)
        try:
            done = self._reach(path, *_FETCH, "origin", f"+{self._ref}:{_INCOMING}")
            if done.code:
                raise SourceError(self._explain(done))
            commit = self._ask(path, f"{_INCOMING}^{{commit}}")
            if commit is None:
                raise SourceError(f"{self._remote.url}: {self._ref} is no commit")
            if again or commit != self._ask(path, FOLLOWED):
                self._get(path, self._missing(path, commit))
                done = self._run(path, "update-ref", FOLLOWED, commit)
                if done.code:
                    raise SourceError(f"the mirror {path} can't be written: {done.err.strip()}")
                # Every fetch leaves a pack or two. What fails here is tried again the next time.
                with contextlib.suppress(TimedOut):
                    self._run(path, "-c", "gc.auto=6700", "gc", "--auto", "--quiet")
        finally:
            _clear(path)
        return commit

    def answers(self) -> bool:
        """Whether the remote is there and has the branch; asked without the mirror, which may be what is broken."""
        return self._reach(Path(os.devnull), "ls-remote", "--exit-code", "origin", self._ref).code == 0

    @property
    def _ref(self) -> str:
        return f"refs/heads/{self._branch}" if self._branch else "HEAD"

    def sound(self, path: Path) -> bool:
        """Whether all that was fetched can be read. What was left out by the filter is not looked for.

        One that can't be looked through in a share of the time is taken for unsound: looked into again and again, it
        would never be mended.
        """
        deadline = self._deadline
        self._deadline = deadline - (deadline - time.monotonic()) * (1 - _SHARE_OF_CHECK)
        try:
            return self._sound(path)
        except TimedOut:
            return False
        finally:
            self._deadline = deadline

    def _sound(self, path: Path) -> bool:
        if self._ask(path, f"{FOLLOWED}^{{commit}}") is None:
            return False
        done = self._run(path, "fsck", "--no-dangling", "--no-progress")
        # What somebody once committed against git's rules is told as well, and is no damage.
        told = [
            line for line in done.err.splitlines() if line.startswith(("error", "fatal", "missing", "broken"))
        ]
        if done.code not in {0, 1} or any(not re.match(r"error in \w+ [0-9a-f]{40}: ", one) for one in told):
            return False
        # A lost pack looks like one that was never fetched, but every commit and tree was.
        listed = ("rev-list", "--objects", "--filter=blob:none", "--quiet", FOLLOWED)
        return self._run(path, *listed, promisor=False).code == 0

    def _missing(self, path: Path, commit: str) -> list[str]:
        """The contents of spec files at `commit` that are not here, without those known to be too large."""
        top = f"{commit}:{self._spec_path}" if self._spec_path else commit
        # In two steps: behind a path all is the path.
        if self._ask(path, f"{self._ask(path, top)}^{{tree}}") is None:
            # No such folder: the loop says so when it looks.
            return []
        listed = self._run(path, "ls-tree", "-r", "-t", "-z", "--full-tree", top, file_limit=MOST_LISTED)
        if listed.cut or listed.out.count(b"\0") > MAX_ENTRIES:
            # As the loop would say. Nothing of it is followed: what it needs is not known.
            raise unfolds(commit)
        if listed.code:
            raise SourceError(f"commit {commit[:12]} in {path} can't be read: {listed.err.strip()}")
        wanted: dict[str, None] = {}
        for line in listed.out.split(b"\0"):
            head, _, name = line.partition(b"\t")
            parts = name.split(b"/")
            if len(parts) == 3 and parts[2].decode("utf-8", "replace") in SPEC_FILES:
                mode, _, oid = head.decode("ascii").split(" ")
                if mode in _REGULAR:
                    wanted[oid] = None
        if not wanted:
            return []
        asked = "".join(f"{oid}\n" for oid in wanted).encode()
        # Without the promisor: git would go and fetch what it is asked about.
        told = self._run(path, "cat-file", "--batch-check", asked=asked, promisor=False)
        missing = [line.split()[0].decode() for line in told.out.splitlines() if line.endswith(b" missing")]
        return [oid for oid in missing if oid not in _too_large(path)]

    def _get(self, path: Path, oids: list[str]) -> None:
        """Fetches contents by id. One that is too large for any spec is noted and left out: it delays no other."""
        rest = [oids[begin : begin + _TOGETHER] for begin in range(0, len(oids), _TOGETHER)]
        while rest:
            some = rest.pop()
            limit = TOO_LARGE_FROM if len(some) == 1 else _TOGETHER_BYTES
            asked = "".join(f"{oid}\n" for oid in some).encode()
            # What git does by itself for a missing object: nothing is compared, only what is asked for is sent.
            noop = ("-c", "fetch.negotiationAlgorithm=noop")
            done = self._reach(path, *noop, *_FETCH, "origin", "--stdin", asked=asked, file_limit=limit)
            if done.code == 0:
                continue
            if not _cut_off(path, limit):
                if re.search(r"unadvertised object|not our ref", done.err) and self.filtered:
                    raise NotServed
                raise SourceError(self._explain(done))
            _clear(path)
            if len(some) > 1:
                rest += [some[: len(some) // 2], some[len(some) // 2 :]]
            else:
                with (path / TOO_LARGE).open("a") as file:
                    file.write(f"{some[0]}\n")

    def _ask(self, path: Path, name: str) -> str | None:
        done = self._run(path, "rev-parse", "--quiet", "--verify", name)
        return None if done.code else done.out.decode("ascii", "replace").strip()

    def _reach(
        self, path: Path, *arguments: str, asked: bytes = b"", file_limit: int | None = None
    ) -> Finished:
        """A command that talks to the remote."""
        remote = self._remote
        if self._ssh is None:
            self._ssh = self._ssh_command()
        config = _CONFIG | remote.configuration()
        if self.filtered:
            config["remote.origin.partialclonefilter"] = "blob:none"
        else:
            del config["remote.origin.promisor"]
        return self._git.run(
            arguments,
            env=remote.environment(self._ssh) | git_folder(path),
            config=config,
            timeout=self._deadline - time.monotonic(),
            asked=asked,
            hold=self._hold,
            file_limit=file_limit,
        )

    def _ssh_command(self) -> str:
        """What the operator's own settings of git name for ssh; those of the mirror do not count."""
        if self._remote.scheme != "ssh":
            return "ssh"
        env = self._remote.environment() | git_folder(Path(os.devnull))
        left = self._deadline - time.monotonic()
        told = self._git.run(("config", "--get", "core.sshCommand"), env=env, config={}, timeout=left)
        return told.out.decode("utf-8", "surrogateescape").strip() or "ssh"

    def _run(
        self,
        path: Path,
        *arguments: str,
        asked: bytes = b"",
        promisor: bool = True,
        file_limit: int | None = None,
    ) -> Finished:
        """A command that reaches nothing but the mirror."""
        config = _CONFIG | {"safe.directory": "*", "gc.autoPackLimit": "20", "gc.autoDetach": "false"}
        if not promisor:
            del config["remote.origin.promisor"]
        return self._git.run(
            arguments,
            env=plain_environment() | git_folder(path),
            config=config,
            timeout=self._deadline - time.monotonic(),
            asked=asked,
            hold=self._hold,
            file_limit=file_limit,
        )

    def _explain(self, done: Finished) -> str:
        """What git said of the remote in one sentence, and what to do."""
        lines = [redact(line.strip()) for line in done.err.splitlines() if line.strip()]
        said = [
            line for line in lines if not line.startswith(("Please make sure", "and the repository exists"))
        ]
        words = "; ".join(said[-4:])[-600:] or f"git ended with {done.code}"
        remote, branch = self._remote, self._branch
        advice = "It is tried again by itself."
        if "couldn't find remote ref" in done.err:
            advice = (
                f"It has no branch {branch!r}: choose another with --branch."
                if branch
                else "It has no commit."
            )
        elif re.search(r"could not read (Username|Password)|Authentication failed|error: 40[13]", done.err):
            advice = "Give credentials: in the address, or LoadCredential=git-credentials in the unit."
        elif "Host key verification failed" in done.err:
            advice = "Put the host's key into known_hosts of the user that runs this."
        return f"{remote.url} can't be fetched: {words.rstrip('.')}. {advice}"


def _too_large(path: Path) -> frozenset[str]:
    try:
        return frozenset((path / TOO_LARGE).read_text("ascii", "replace").split())
    except OSError:
        return frozenset()


def _cut_off(path: Path, limit: int) -> bool:
    """Whether a pack reached the limit of its size: git does not say what ended the one who wrote it."""
    sizes = [one.stat().st_size for one in path.glob("objects/pack/tmp_*")]
    # The limit is a whole number of blocks.
    return max(sizes, default=0) > limit - 512


def _clear(path: Path) -> None:
    """Takes away what a git that was killed left: locks that nobody holds, and halves of packs."""
    left = [
        *path.glob("*.lock"),
        *path.glob("refs/**/*.lock"),
        *path.glob("objects/pack/tmp_*"),
        path / "gc.pid",
    ]
    for one in left:
        with contextlib.suppress(OSError):
            one.unlink()
