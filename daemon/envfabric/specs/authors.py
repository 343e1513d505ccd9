"""Who changed a spec: the newest commit after which its files were what they are now.

For the audit trail only. Reads commits and trees, bounded in number, bytes and seconds, and no file's content; may not
run anything that the repository's configuration names. Safe in any thread. What people wrote (names, subjects) is made
printable here and cut, and credentials in it are taken out.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from envfabric.core.errors import redact
from envfabric.core.ids import shown
from envfabric.specs.plumbing import SAFE_CONFIG, Git, TimedOut, git_folder, plain_environment
from envfabric.specs.repository import MOST_MEMORY, Repository, SourceError
from envfabric.specs.tree import SPEC_FILES

MOST = 1000
"""Commits that are looked through."""
MOST_BYTES = 64 << 20
"""Bytes that git may say of them: one commit can change any number of files."""
MOST_SECONDS, _OWN_SECONDS = 10.0, 10.0
"""How long git may look for the commits of one revision, and then at the revision itself: a merge whose shared folders
differ from both parents while every file is one of theirs is walked in full, whatever a few objects unfold to."""
NAME_MOST, SUBJECT_MOST = 100, 200
"""Characters that are kept of a name or address, and of a commit's first line."""

# Cut by git, too: a line may have any length, and is padded where it is shorter.
_CUT = "%<(600,trunc)"
_FIELDS = ("%H", f"{_CUT}%an", f"{_CUT}%ae", "%aI", f"{_CUT}%cn", f"{_CUT}%ce", "%cI", f"{_CUT}%s")
_LOG = (
    "--raw",
    "--root",
    # A merge is named for what it has from none of its parents, and for nothing else.
    "-c",
    "-r",
    "-z",
    "--no-abbrev",
    "--no-renames",
    "--no-relative",
    # It would run a program of the repository's choice.
    "--no-show-signature",
    # Nor does a file of the repository say what people are called.
    "--no-mailmap",
    "--encoding=UTF-8",
    f"--max-count={MOST}",
    f"--format={'%x00'.join(_FIELDS)}",
)

Wanted = Mapping[str, Mapping[str, str]]
"""For each spec id the ids of its files' contents by name; none at all where any change of its files counts."""


@dataclass(frozen=True, slots=True)
class Change:
    """A commit, and who made it."""

    commit: str
    author: str
    email: str
    authored_at: str
    """ISO 8601 with the author's own offset; '' for a date that is none."""
    committer: str
    committer_email: str
    committed_at: str
    subject: str
    touches: bool = True
    """Whether it is known to have made the spec what it is; else it is the revision that brought it here."""

    def told(self) -> dict[str, Any]:
        """As it stands in the trail."""
        return {name: getattr(self, name) for name in Change.__slots__}


def who_changed(repository: Repository, commit: str, before: str | None, wanted: Wanted) -> dict[str, Change]:
    """For each spec the newest commit that made its files what they are in `commit`.

    Looked for after `before`, the revision until then, and where that does not tell (history was rewritten, or there
    was none) in all that led to `commit`. What is not found in `MOST` commits and `MOST_SECONDS` is put down to
    `commit` itself. Raises `SourceError` where that can't be read.
    """
    found: dict[str, Change] = {}
    left = dict(wanted)
    deadline = time.monotonic() + MOST_SECONDS
    for commits in ([f"{before}..{commit}"] if before is not None else []) + [commit]:
        try:
            if left:
                _search(repository, commits, deadline, left, found)
        except SourceError:
            # `before` may be gone, after a rewritten history; and what takes too long, or too much, is not known.
            continue
    if left:
        told = _log(repository, time.monotonic() + _OWN_SECONDS, "--max-count=1", "--no-patch", commit)
        for revision, _ in _changes(told):
            found |= dict.fromkeys(left, replace(revision, touches=False))
    return found


def _search(
    repository: Repository,
    commits: str,
    deadline: float,
    left: dict[str, Mapping[str, str]],
    found: dict[str, Change],
) -> None:
    """Moves what is found from `left` to `found`; ends as soon as nothing is left."""
    prefix = f"{repository.spec_path}/" if repository.spec_path else ""
    told = _log(repository, deadline, commits, "--", *([repository.spec_path] if prefix else []))
    for change, touched in _changes(told):
        for path, oid in touched:
            spec_id, _, name = path.removeprefix(prefix).rpartition("/")
            files = left.get(spec_id)
            if files is None or name not in SPEC_FILES or not path.startswith(prefix):
                continue
            # A side branch that a merge did not take has touched it, too, but not to what it is.
            if not files or files.get(name) == oid:
                found[spec_id] = change
                del left[spec_id]
        if not left:
            return


def _changes(tokens: Iterable[str]) -> Iterator[tuple[Change, list[tuple[str, str | None]]]]:
    """Commits, newest first, each with the paths that it changed and the content that each had after it."""
    fields: list[str] = []
    touched: list[tuple[str, str | None]] = []
    oid: str | None = None
    named = False
    for token in tokens:
        if named:
            touched.append((token, oid))
            named = False
        elif len(fields) in {0, len(_FIELDS)} and not token:
            # Behind a merge that is named for nothing.
            continue
        elif len(fields) == len(_FIELDS) and token.lstrip("\n").startswith(":"):
            # As many colons, modes and contents as there are parents, and then those of the commit itself.
            *_, content, _ = token.split(" ")
            oid = content if content.strip("0") else None
            named = True
        else:
            if len(fields) == len(_FIELDS):
                yield _change(fields), touched
                fields, touched = [], []
            fields.append(token)
    if len(fields) == len(_FIELDS):
        yield _change(fields), touched


def _change(fields: list[str]) -> Change:
    commit, author, email, authored, committer, committer_email, committed, subject = fields
    return Change(
        commit=commit,
        author=_printable(author, NAME_MOST),
        email=_printable(email, NAME_MOST),
        authored_at=authored,
        committer=_printable(committer, NAME_MOST),
        committer_email=_printable(committer_email, NAME_MOST),
        committed_at=committed,
        subject=_printable(subject, SUBJECT_MOST),
    )


def _printable(text: str, most: int) -> str:
    # Redacted before it is cut: half a secret is one that nobody would recognise.
    return shown(redact(text.rstrip()), most)


def _log(repository: Repository, deadline: float, *commits: str) -> Iterator[str]:
    """What `git log` says, at each NUL. Raises `SourceError`."""
    env = plain_environment() | git_folder(repository.git_folder)
    config = SAFE_CONFIG | {"safe.directory": "*"}
    left = deadline - time.monotonic()
    try:
        done = Git().run(
            ("log", *_LOG, *commits),
            env=env,
            config=config,
            timeout=left,
            file_limit=MOST_BYTES,
            memory=MOST_MEMORY,
        )
    except TimedOut:
        raise SourceError(f"git log in {repository.path} took longer than {MOST_SECONDS:g} s") from None
    except OSError as error:
        raise SourceError(f"git log in {repository.path}: {error}") from error
    if done.code and not done.cut:
        raise SourceError(f"git log in {repository.path}: {done.err.strip()}")
    # What follows the last NUL was cut off.
    return (token.decode("utf-8", "replace") for token in done.out.split(b"\0")[:-1])
