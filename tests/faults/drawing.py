"""Which moment is next, and the report: every kind of step that was seen, and how often it was the last one.

A kind is drawn first, each as likely as any other, and then one of its calls: else the hundreds of links of
the probe would be hit again and again, and the one rename that publishes hardly ever.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from faults.daemons import Arm

RECOVERY = "recovery"
"""The name under which the steps of a restart after a kill are known."""
_NEVER_LESS = 0.4
"""The share of moments that are of a kind without a hit, as long as there is one."""
_THRIFT = 0.9
"""The share of moments that come in an operation which is not costly, where there is one."""
_FIRST_DELAY = 0.04
"""What is taken for the running time of a uv process at first, in seconds."""


@dataclass(frozen=True)
class Moment:
    """A moment to kill at: during which operation, and by which step."""

    operation: str
    arm: Arm

    @property
    def kind(self) -> str:
        """The kind of step."""
        return self.arm[0]


class Drawing:
    """The kinds, their calls by operation, and the hits so far."""

    def __init__(self, chance: random.Random, costly: Collection[str] = ()) -> None:
        """`costly` operations are drawn less, where others have the kind as well."""
        self._chance = chance
        self._costly = costly
        self._calls: dict[str, dict[str, int]] = defaultdict(dict)
        """By kind and operation, the most calls in one."""
        self._delays: dict[str, float] = defaultdict(lambda: _FIRST_DELAY)
        self._missed: Counter[str] = Counter()
        self._missed_in: Counter[tuple[str, str]] = Counter()
        self.seen: Counter[str] = Counter()
        self.hits: Counter[str] = Counter()

    def learn(self, operation: str, seen: Mapping[str, int]) -> None:
        """What an operation consists of, as it was seen once."""
        for kind, number in seen.items():
            self.seen[kind] += number
            known = self._calls[kind]
            known[operation] = max(number, known.get(operation, 0))

    @property
    def unhit(self) -> list[str]:
        """The kinds that were seen and never hit."""
        return sorted(kind for kind in self._calls if not self.hits[kind])

    def draw(self) -> Moment:
        """The next moment: of a kind that has no hit yet, as long as there is one that may come."""
        possible = sorted(kind for kind in self._calls if set(self._calls[kind]) - {RECOVERY})
        fresh = [kind for kind in possible if not self.hits[kind]]
        # What was tried in vain again and again makes room for others, but is never given up.
        weights = [1 / (1 + self._missed[kind]) ** 2 for kind in fresh]
        if fresh and self._chance.random() < max(*weights, _NEVER_LESS):
            (kind,) = self._chance.choices(fresh, weights)
        else:
            kind = self._chance.choice(possible)
        operations = sorted(set(self._calls[kind]) - {RECOVERY})
        cheap = [one for one in operations if one not in self._costly]
        if cheap and self._chance.random() < _THRIFT / (1 + min(self._missed_in[kind, one] for one in cheap)):
            operations = cheap
        # Where it was seen once, by chance, it may hardly ever come again: the others get their turn.
        chances = [1 / (1 + self._missed_in[kind, one]) for one in operations]
        (operation,) = self._chance.choices(operations, chances)
        most = self._calls[kind][operation]
        # One that did not come was too late: the next try takes an earlier call.
        number = self._chance.randint(1, max(1, most >> self._missed[kind]))
        return Moment(operation, (kind, number, self._delay(kind)))

    def draw_recovery(self) -> list[Arm]:
        """The moments for a restart: all that only restarts can hit, or one of the others now and then."""
        if self._chance.random() < 0.8:
            only = [kind for kind in self.unhit if set(self._calls[kind]) == {RECOVERY}]
            if only:
                return [(kind, 1, 0.0) for kind in only]
        if self._chance.random() < 0.75:
            return []
        kinds = sorted(kind for kind in self._calls if RECOVERY in self._calls[kind])
        if not kinds:
            return []
        kind = self._chance.choice(kinds)
        return [(kind, self._chance.randint(1, self._calls[kind][RECOVERY]), self._delay(kind))]

    def hit(self, kind: str) -> None:
        """A daemon was killed at a step of this kind."""
        self.hits[kind] += 1
        self._missed[kind] = 0
        # The delay of uv's kinds finds its way to uv's running time on this machine.
        self._delays[kind] *= 1.15

    def miss(self, moment: Moment) -> None:
        """The moment did not come."""
        kind = moment.kind
        self._missed[kind] += 1
        self._missed_in[kind, moment.operation] += 1
        self._delays[kind] = max(0.001, self._delays[kind] * 0.7)

    def missed(self, kind: str) -> int:
        """How often in a row moments of this kind did not come."""
        return self._missed[kind]

    def report(self) -> list[str]:
        """A table of the kinds: calls seen while nothing was killed and in restarts, and hits."""
        width = max(map(len, self._calls), default=10)
        lines = [f"{'step':{width}}  {'calls':>7}  {'hits':>5}"]
        for kind in sorted(self._calls):
            mark = "" if self.hits[kind] else "  <- none"
            lines.append(f"{kind:{width}}  {self.seen[kind]:7}  {self.hits[kind]:5}{mark}")
        return lines

    def _delay(self, kind: str) -> float:
        return self._chance.uniform(0.0, self._delays[kind]) if kind.endswith(" runs") else 0.0
