"""The specs that are to be looked into, by id, and in which order: new content, then those that come by again after
another's answer, then those that are tried again after a failure. Belongs to the loop's thread; starts nothing.
"""

from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain


class Turns:
    """Whose turn it is. A spec stands in one of the three queues at most."""

    def __init__(self) -> None:
        self._new: OrderedDict[str, None] = OrderedDict()
        self._again: OrderedDict[str, None] = OrderedDict()
        self._tried: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._new) + len(self._again) + len(self._tried)

    def __contains__(self, spec_id: str) -> bool:
        return spec_id in self._new or spec_id in self._again or spec_id in self._tried

    def __iter__(self) -> Iterator[str]:
        return chain(self._new, self._again, self._tried)

    def add(self, spec_id: str, *, tried: bool) -> None:
        """A spec is to be looked into from the beginning; `tried`: what it asks for has failed before."""
        self.discard(spec_id)
        (self._tried if tried else self._new)[spec_id] = None

    def add_again(self, spec_id: str) -> None:
        """A spec that was looked into before has to be once more; where its turn is to come anyway, it stays so."""
        if spec_id not in self:
            self._again[spec_id] = None

    def discard(self, spec_id: str) -> None:
        """The spec need not be looked into, or is now."""
        for queue in (self._new, self._again, self._tried):
            queue.pop(spec_id, None)
