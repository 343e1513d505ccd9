"""What the loop asks of a spec's next steps beyond making its content true: to try again, to resolve anew, to mend.

Written by the loop's thread and read by the steps' own; each access is one operation on a dict. Holds nothing on
ROOT: an order that a crash cuts off is given again by whoever gave it.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class Ask:
    """What an order wants."""

    tree: str
    """The content that it was given for."""
    since: float
    """When it was given, in seconds since 1970: no answer that was found before counts."""
    fresh: bool
    """Whether it is resolved anew, to the newest versions: no lock is a base, no retained generation the answer."""
    keeps: int | None = None
    """The generation that goes on being served where this fails, because it is what the content asks for, too."""
    error: Exception | None = None
    """Why it failed; set by the step."""


@dataclass(frozen=True, slots=True)
class Mend:
    """A generation's folder is not as it was, and has to be written anew where it is not whole."""

    tree: str
    number: int
    closure: str
    """The name of the closure that it serves."""
    current: bool
    """Whether it is of the committed content, whose files git has."""


class Asks:
    """What is asked now, by spec id."""

    def __init__(self) -> None:
        self._asks: dict[str, Ask] = {}
        self._mends: dict[str, Mend] = {}

    def begin(self, spec_id: str, ask: Ask) -> None:
        """Has the spec's next steps do what an order wants, until `end`."""
        self._asks[spec_id] = ask

    def end(self, spec_id: str, ask: Ask) -> None:
        """The order is over; one that came since stays."""
        if self._asks.get(spec_id) is ask:
            del self._asks[spec_id]

    def of(self, spec_id: str, tree: str) -> Ask | None:
        """The order that is under way for this content."""
        ask = self._asks.get(spec_id)
        return ask if ask is not None and ask.tree == tree else None

    def mend(self, spec_id: str, mend: Mend) -> None:
        """Has the spec's next step look closely at the generation that has to be healed."""
        self._mends[spec_id] = mend

    def take_mend(self, spec_id: str, tree: str, number: int | None) -> Mend | None:
        """What is to be mended of this content and generation; asked once.

        One for another generation is void: a rollback may have come between, and another is served since.
        """
        mend = self._mends.pop(spec_id, None)
        return mend if mend is not None and (mend.tree, mend.number) == (tree, number) else None
