"""What speaks against making a revision true: no good signature, another history, too many specs that would go.

A revision that is held back is adopted in nothing; what was published stays, and the index says why. Belongs to
the loop's thread; reads the repository and ROOT's marker, and changes neither.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from envfabric.core.errors import ConfigError, HeldBack, Reason, redact
from envfabric.specs.repository import Repository, SourceError, TooMuch
from envfabric.specs.revisions import Revision, read_revision
from envfabric.specs.tree import Problem
from envfabric.store.prepare import check_source
from envfabric.store.root import Root
from envfabric.telemetry import logs
from envfabric.telemetry.metrics import Metrics

ASKING_UV = {"refresh", "retry", "unpin"}
"""Orders that may resolve or build what is committed."""

SHORTEST = 7
"""Digits of a commit that name it for a confirmation, at least."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one revision may remove: it is held back where it removes more than both, or all; a share of 1 holds
    nothing back."""

    share: float
    count: int
    confirmed: str | None = None
    """A commit that may remove what it removes."""


@dataclass(frozen=True, slots=True)
class Held:
    """The newest revision while it is held back."""

    commit: str
    message: str
    confirmable: bool
    """Whether a person's word is enough to have it adopted."""


class _Removes(HeldBack):
    """Held back for what it removes: the one thing that can be confirmed."""


class Gate:
    """What one turn as the writer lets through."""

    def __init__(
        self,
        root: Root,
        repository: Repository,
        check_signature: Callable[[str], None],
        limits: Limits,
        metrics: Metrics,
        *,
        adopt: bool,
    ) -> None:
        """`check_signature` raises `HeldBack` for a commit that is not signed as it has to be.

        With `adopt` the first revision may remove what it removes: the operator has handed ROOT over.
        """
        self._root = root
        self._repository = repository
        self._check_signature = check_signature
        self._limits = limits
        self._metrics = metrics
        self._adopt = adopt
        self._confirmed: set[str] = set()
        self._asked = False
        self._counted: str | None = None
        self._too_much: tuple[str, str] | None = None
        """The last commit that asks for more than is read, and what is said of it."""
        self._unread: str | None = None
        """Why the last look could not read what it wanted."""
        self._told_unread: str | None = None
        """The same where the index says it."""
        self._log = logs.get()
        self.held: Held | None = None
        """The newest revision, where it is held back."""

    def read(self, commit: str, base: Revision | None, before: Collection[str], last: str | None) -> Revision:
        """What `commit` asks for, read by its difference to `base`.

        Raises `HeldBack` where it must not be made true; `before` are the specs that there are now; `last` is the
        commit in force, None where this turn has adopted none. Raises `SourceError`, `StoreError`.
        """
        # By the commit alone: a tree that nobody vouches for is not unfolded.
        self.check_history(commit, last)
        self.check_signature(commit)
        # Nothing but a person's word changes what it removes: it is not read again at each look.
        if self.held is not None and self.held.confirmable and self.held.commit == commit:
            self._unless_confirmed(commit, self.held.message)
        revision = self._unfolded(commit, base)
        self._check_removals(revision, before)
        return revision

    def _unfolded(self, commit: str, base: Revision | None) -> Revision:
        if self._too_much is None or self._too_much[0] != commit:
            try:
                return read_revision(self._repository, commit, base)
            except TooMuch as error:
                # It stays so, and it was much work to find out: once.
                self._too_much = (
                    commit,
                    f"commit {commit[:12]} is held back: {error} What was published stays.",
                )
        raise HeldBack(self._too_much[1])

    def passed(self) -> None:
        """A revision was adopted: the next one is judged by itself."""
        self._adopt = False

    def check_signature(self, commit: str) -> None:
        """Raises `HeldBack` where a commit is not signed as the settings want it, and `SourceError`."""
        self._check_signature(commit)

    def check_history(self, commit: str, last: str | None) -> None:
        """Raises `HeldBack` where `commit` belongs to another repository than the one that ROOT serves.

        Also `StoreError` and `SourceError`.
        """
        try:
            # No root of the last history that the new one lacks: nothing to look for in ten thousand commits.
            if last is not None and not self._repository.root_commits(f"{commit}..{last}"):
                return
        except SourceError:
            # The last commit is gone, as after a rewritten history that was cleaned up: the marker tells.
            pass
        roots = self._repository.root_commits(commit)
        self._root.require_marker()
        try:
            check_source(self._root, roots, self._repository.spec_path)
        except ConfigError as error:
            raise HeldBack(
                f"commit {commit[:12]} belongs to another history: {error} What was published stays."
            ) from error

    def _check_removals(self, revision: Revision, before: Collection[str]) -> None:
        commit, limits = revision.commit, self._limits
        removed = len(set(before) - revision.wanted.specs.keys())
        many = removed > limits.count and removed > limits.share * len(before)
        # A share of 1 is an operator's word that any revision may.
        if limits.share >= 1 or not (many or (removed and removed == len(before))):
            return
        self._unless_confirmed(
            commit,
            f"commit {commit[:12]} removes {removed} of {len(before)} specs; what was published stays. Confirm it "
            f'with `envfabric confirm {commit[:12]}`, or by prune.confirmed = "{commit}" in the settings; or commit '
            "what brings them back.",
        )

    def _unless_confirmed(self, commit: str, message: str) -> None:
        told = self._limits.confirmed
        by_setting = told is not None and len(told) >= SHORTEST and commit.startswith(told.lower())
        if not (self._adopt or by_setting or commit in self._confirmed):
            raise _Removes(message)

    def check_order(self, command: str, revision: Revision, before: Collection[str]) -> str | None:
        """Why an order can't be carried out in a daemon's place; for `confirm`, finds out what is held back.

        `revision` is what is published. Raises `StoreError` and `SourceError`.
        """
        if command == "confirm":
            commit = self._repository.head()
            if commit is not None and commit != revision.commit:
                try:
                    self.read(commit, revision, before, revision.commit)
                except HeldBack as error:
                    self.hold(commit, error)
        elif command in ASKING_UV:
            try:
                self.check_signature(revision.commit)
            except HeldBack as error:
                return str(error)
        return None

    def hold(self, commit: str, error: HeldBack) -> bool:
        """Holds a revision back; whether there is something new to say in the index."""
        held = Held(commit, str(error), isinstance(error, _Removes))
        # It could be read.
        unread, self._unread, self._told_unread = self._told_unread, None, None
        self._metrics.revision_held_back.set(1)
        # Each look finds it again: counted and told once.
        if commit != self._counted:
            self._counted = commit
            self._metrics.reconciles.inc()
            self._metrics.reconcile_failures.inc()
            self._log.error("revision held back", commit=commit, why=held.message)
        if held == self.held:
            return unread is not None
        self.held = held
        return True

    def doubt(self, why: str) -> bool:
        """What is newest can't be read now; whether there is something new to say in the index.

        Only what two looks in a row find is said: a moment in which git tidies up is no problem of anybody's.
        """
        before, self._unread = self._unread, why
        if why != before or why == self._told_unread:
            return False
        self._told_unread = why
        return True

    def holds(self, commit: str) -> bool:
        """Whether this is what was held back last."""
        return self.held is not None and self.held.commit == commit

    def clear(self) -> bool:
        """Nothing is held back, and all can be read; whether it was otherwise."""
        self._metrics.revision_held_back.set(0)
        self._counted = None
        before, self.held = self.held, None
        unread, self._unread, self._told_unread = self._told_unread, None, None
        return before is not None or unread is not None

    def confirm(self, held: Held) -> None:
        """A person wants what is held back to be adopted; `take_confirmed` tells the loop."""
        self._confirmed.add(held.commit)
        self._asked = True

    def take_confirmed(self) -> bool:
        """Whether something was confirmed since the last call: then it is time for a look."""
        asked, self._asked = self._asked, False
        return asked

    def problems(self, others: tuple[Problem, ...]) -> tuple[Problem, ...]:
        """The problems that the index has to name, with what is held back or can't be read before the `others`."""
        mine = []
        if self.held is not None:
            mine.append(Problem(self._where, Reason.POLICY, self.held.message))
        if self._told_unread is not None:
            told = f"the newest revision can't be read: {redact(self._told_unread)}"
            mine.append(Problem(self._where, Reason.FETCH, told))
        return (*mine, *(one for one in others if one not in mine))

    def without_held(self, problems: tuple[Problem, ...]) -> tuple[Problem, ...]:
        """Published problems without what an earlier turn said of a revision that it held back or could not read."""
        mine = {(self._where, Reason.POLICY), (self._where, Reason.FETCH)}
        return tuple(one for one in problems if (one.path, one.reason) not in mine)

    @property
    def _where(self) -> str:
        return self._repository.spec_path or "."
