"""What a step in this process is about to use, so that the collector leaves it alone.

A closure that was found is named by no generation until its spec's step has ended. A step claims
first and looks then; the collector looks at the claims and renames under one lock: whichever comes
first, nobody goes on with what is gone. A claim ends with the object that holds it.
"""

import threading
import weakref
from collections.abc import Callable, Iterable


class Claim:
    """A claim on names (spec ids, digests, paths of interpreters), in force as long as somebody holds it."""

    __slots__ = ("__weakref__", "names")

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)


class Claims:
    """The claims of this process. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._claims: weakref.WeakSet[Claim] = weakref.WeakSet()

    def claim(self, *names: str) -> Claim:
        """Claims names; look whether they are there only after this."""
        claim = Claim(names)
        with self._lock:
            self._claims.add(claim)
        return claim

    def unless_claimed(self, name: str, action: Callable[[], bool]) -> bool:
        """Does `action` where nobody claims `name`, and nobody can meanwhile; whether it did what it should."""
        with self._lock:
            if any(name in claim.names for claim in self._claims):
                return False
            return action()
