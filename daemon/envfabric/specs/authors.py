"""Who changed a spec: the newest commit after which its files were what they are now.

For the audit trail only. Reads commits and trees, bounded in number and bytes, and no file's content; may not run
anything that the repository's configuration names. What people wrote (names, subjects) is made printable here and
cut, and credentials in it are taken out.
"""

import contextlib
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from envfabric.core.errors import redact
from envfabric.core.ids import shown
from envfabric.specs.repository import Repository, SourceError
from envfabric.specs.tree import SPEC_FILES

MOST = 1000
"""Commits that are looked through."""
MOST_BYTES = 64 << 20
"""Bytes that git may say of them: one commit can change any number of files."""
NAME_MOST, SUBJECT_MOST = 100, 200
"""Characters that are kept of a name or address, and of a commit's first line."""

_FIELDS = ("%H", "%an", "%ae", "%aI", "%cn", "%ce", "%cI", "%s")
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
    was none) in all that led to `commit`. What is not found in `MOST` commits is put down to `commit` itself. Raises
    `SourceError` where that can't be read.
    """
    found: dict[str, Change] = {}
    left = dict(wanted)
    if before is not None:
        # It may be gone, after a rewritten history.
        with contextlib.suppress(SourceError):
            _search(repository, f"{before}..{commit}", left, found)
    if left:
        _search(repository, commit, left, found)
    if left:
        with contextlib.closing(_changes(repository, "--max-count=1", "--no-patch", commit)) as changes:
            for revision, _ in changes:
                found |= dict.fromkeys(left, replace(revision, touches=False))
    return found


def _search(
    repository: Repository, commits: str, left: dict[str, Mapping[str, str]], found: dict[str, Change]
) -> None:
    """Moves what is found from `left` to `found`; ends as soon as nothing is left."""
    prefix = f"{repository.spec_path}/" if repository.spec_path else ""
    with contextlib.closing(_changes(repository, commits)) as changes:
        for change, touched in changes:
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


def _changes(repository: Repository, *commits: str) -> Generator[tuple[Change, list[tuple[str, str | None]]]]:
    """Commits, newest first, each with the paths that it changed and the content that each had after it."""
    fields: list[str] = []
    touched: list[tuple[str, str | None]] = []
    oid: str | None = None
    named = False
    for token in _tokens(repository, *commits):
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
    return shown(redact(text[: 100 * most]), most)


def _tokens(repository: Repository, *commits: str) -> Iterator[str]:
    """What `git log` says, at each NUL. Raises `SourceError`; ends git where the reader ends."""
    size = 0
    with contextlib.closing(repository.listing("log", *_LOG, *commits, "--")) as listed:
        for token in listed:
            yield token.decode("utf-8", "replace")
            size += len(token)
            if size > MOST_BYTES:
                return
