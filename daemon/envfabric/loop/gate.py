"""What speaks against making a revision true: no good signature, another history, too many specs that would go.

A revision that is held back is adopted in nothing; what was published stays, and the index says why. Belongs to
the loop's thread; reads the repository and ROOT's marker, and changes neither.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from envfabric.core.errors import ConfigError, HeldBack, Reason
from envfabric.specs.repository import Repository, SourceError
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
        self._log = logs.get()
        self.held: Held | None = None
        """The newest revision, where it is held back."""

    def check(self, revision: Revision, before: Collection[str], last: str | None) -> None:
        """Raises `HeldBack` where `revision` must not be made true; `before` are the specs that there are now.

        `last` is the commit in force, None where this turn has adopted none. Raises `SourceError`, `StoreError`.
        """
        self.check_history(revision.commit, last)
        self.check_signature(revision.commit)
        self._check_removals(revision, before)

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
        told = limits.confirmed
        by_setting = told is not None and len(told) >= SHORTEST and commit.startswith(told.lower())
        if self._adopt or by_setting or commit in self._confirmed:
            return
        raise _Removes(
            f"commit {commit[:12]} removes {removed} of {len(before)} specs; what was published stays. Confirm it "
            f'with `envfabric confirm {commit[:12]}`, or by prune.confirmed = "{commit}" in the settings; or commit '
            "what brings them back."
        )

    def check_order(self, command: str, revision: Revision, before: Collection[str]) -> str | None:
        """Why an order can't be carried out in a daemon's place; for `confirm`, finds out what is held back.

        `revision` is what is published. Raises `StoreError` and `SourceError`.
        """
        if command == "confirm":
            commit = self._repository.head()
            if commit is not None and commit != revision.commit:
                newest = read_revision(self._repository, commit, revision)
                try:
                    self.check(newest, before, revision.commit)
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
        self._metrics.revision_held_back.set(1)
        # Each look finds it again: counted and told once.
        if commit != self._counted:
            self._counted = commit
            self._metrics.reconciles.inc()
            self._metrics.reconcile_failures.inc()
            self._log.error("revision held back", commit=commit, why=held.message)
        if held == self.held:
            return False
        self.held = held
        return True

    def clear(self) -> bool:
        """Nothing is held back any more; whether something was."""
        self._metrics.revision_held_back.set(0)
        self._counted = None
        before, self.held = self.held, None
        return before is not None

    def confirm(self, held: Held) -> None:
        """A person wants what is held back to be adopted; `take_confirmed` tells the loop."""
        self._confirmed.add(held.commit)
        self._asked = True

    def take_confirmed(self) -> bool:
        """Whether something was confirmed since the last call: then it is time for a look."""
        asked, self._asked = self._asked, False
        return asked

    def problems(self, others: tuple[Problem, ...]) -> tuple[Problem, ...]:
        """The problems that the index has to name, with what is held back before the `others`."""
        if self.held is None:
            return others
        mine = Problem(self._where, Reason.POLICY, self.held.message)
        return (mine, *(one for one in others if one != mine))

    def without_held(self, problems: tuple[Problem, ...]) -> tuple[Problem, ...]:
        """Published problems without what an earlier turn said of a revision that it held back."""
        return tuple(one for one in problems if (one.path, one.reason) != (self._where, Reason.POLICY))

    @property
    def _where(self) -> str:
        return self._repository.spec_path or "."
