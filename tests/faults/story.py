"""What is done to the fabric, and what an undisturbed run of it comes to: one operation after another.

The model knows only what the contract promises: what each spec serves, in which state, and whether it is
pinned. It reads of ROOT only which generations a person could roll back to.
"""

import os
import random
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field

from envfabric.core.ids import is_id
from faults.ground import (
    BAD,
    GOOD,
    IDS,
    LOCKED,
    RETAINED,
    UNFETCHABLE,
    UNRESOLVABLE,
    Ground,
    Order,
    Requirements,
)

_LOCKED = 0.25
"""The share of new packages that come with a committed lock."""
_SHARED = 0.25
"""The share of repairs in which the damage is in every closure at once: all are built again."""


@dataclass
class Expected:
    """What the index has to say of one spec."""

    wanted: Requirements
    serves: Requirements | None = None
    pinned: bool = False
    earlier: list[Requirements] = field(default_factory=list)
    """Good content that it had before, newest last."""

    @property
    def state(self) -> str:
        """Its state in the index."""
        if self.pinned or self.wanted == self.serves:
            return "ready"
        return "failed" if self.serves is None else "stale"


class Story:
    """The specs of the revision and what is expected of them."""

    def __init__(self, ground: Ground, chance: random.Random) -> None:
        self.ground = ground
        self.specs: dict[str, Expected] = {}
        self.damaged = False
        """Whether closures were damaged and not all of them are repaired and collected yet."""
        self.hold: Callable[[str], None] | None = None
        """Called with the name of a new package before anybody asks for it."""
        self._chance = chance
        self._operations: dict[str, Callable[[], Order | None]] = {
            "change": self._change,
            "revert": self._revert,
            "new": self._new,
            "add": self._add,
            "remove": self._remove,
            "spoil": self._spoil,
            "withhold": self._withhold,
            "mend": self._mend,
            "rollback": self._rollback,
            "unpin": self._unpin,
            "gc": self._gc,
            "repair": self._repair,
        }

    @property
    def operations(self) -> list[str]:
        """The names of all that can be done."""
        return list(self._operations)

    def begin(self) -> None:
        """The first commit."""
        for number, spec_id in enumerate(IDS[:-2] + IDS[-1:]):
            self._want(spec_id, GOOD[number % len(GOOD)])
        self.ground.commit_all()

    def possible(self, name: str) -> bool:
        """Whether there is something to do it to."""
        return {
            "change": True,
            "new": True,
            "repair": True,
            "rollback": bool(self._targets()),
            "gc": self._is_garbage(),
            "revert": any(one.earlier for one in self.specs.values()),
            "add": len(self.specs) < len(IDS),
            "remove": len(self.specs) > 3,
            "spoil": bool(self._free()),
            "withhold": bool(self._free()),
            "mend": bool(self._bad()),
            "unpin": any(one.pinned for one in self.specs.values()),
        }[name]

    def prepare(self, name: str) -> str:
        """What has to be done before, so that it is possible."""
        return {
            "revert": "change",
            "add": "remove",
            "remove": "add",
            "spoil": "mend",
            "withhold": "mend",
            "mend": "spoil",
            "rollback": "change",
            "gc": "new",
            "unpin": "rollback",
        }[name]

    def do(self, name: str) -> Order | None:
        """Does it, and changes what is expected; gives the order that has to be answered."""
        return self._operations[name]()

    def start_anew(self) -> None:
        """ROOT is another, empty one: nothing that was served or pinned is known any more."""
        self.damaged = False
        for one in self.specs.values():
            one.pinned = False
            one.serves = None if one.wanted[0] in BAD else one.wanted

    def _want(self, spec_id: str, requirements: Requirements) -> None:
        one = self.specs.setdefault(spec_id, Expected(requirements))
        if one.wanted != requirements:
            if one.wanted[0] not in BAD:
                one.earlier = [*one.earlier[-3:], one.wanted]
            one.pinned = False
        one.wanted = requirements
        if requirements[0] not in BAD:
            one.serves = requirements
        self.ground.write(spec_id, requirements)

    def _change(self) -> None:
        for spec_id in self._chance.sample(sorted(self.specs), self._chance.choice((1, 1, 2, 3))):
            others = [one for one in GOOD if one != self.specs[spec_id].wanted]
            self._want(spec_id, self._chance.choice(others))
        self.ground.commit_all()

    def _revert(self) -> None:
        spec_id = self._chance.choice([one for one in sorted(self.specs) if self.specs[one].earlier])
        self._want(spec_id, self.specs[spec_id].earlier[-1])
        self.ground.commit_all()

    def _new(self) -> None:
        fresh = self.ground.fresh_package()
        ids = sorted(self.specs)
        if self.hold is not None:
            self.hold(fresh)
            # Its author would wait for the index as well.
            ids = [one for one in ids if one != LOCKED]
        elif LOCKED in ids and self._chance.random() < _LOCKED:
            ids = [LOCKED]
        self._want(self._chance.choice(ids), (f"{fresh}==1.0", "alpha==1.0"))
        self.ground.commit_all()

    def _add(self) -> None:
        spec_id = self._chance.choice([one for one in IDS if one not in self.specs])
        self._want(spec_id, self._chance.choice(GOOD))
        self.ground.commit_all()

    def _remove(self) -> None:
        spec_id = self._chance.choice(sorted(self.specs))
        del self.specs[spec_id]
        self.ground.write(spec_id, None)
        self.ground.commit_all()

    def _spoil(self) -> None:
        self._want(self._chance.choice(self._free()), (UNRESOLVABLE,))
        self.ground.commit_all()

    def _withhold(self) -> None:
        self._want(self._chance.choice(self._free()), (UNFETCHABLE,))
        self.ground.commit_all()

    def _mend(self) -> None:
        for spec_id in self._bad():
            self._want(spec_id, self._chance.choice(GOOD))
        self.ground.commit_all()

    def _bad(self) -> list[str]:
        return [one for one in sorted(self.specs) if self.specs[one].wanted[0] in BAD]

    def _free(self) -> list[str]:
        """Specs that can be given content that fails: two at a time are enough."""
        if len(self._bad()) > 1:
            return []
        return [one for one in sorted(self.specs) if one != LOCKED and self.specs[one].wanted[0] not in BAD]

    def _targets(self) -> list[tuple[str, int, Requirements]]:
        """Generations that a spec could be rolled back to."""
        found = []
        for spec_id in sorted(self.specs):
            for one in self.ground.generations().retained(spec_id):
                content = self.ground.generations().content(one)
                assert content is not None, f"{spec_id} {one.number} has lost its files"
                requirements = tuple(tomllib.loads(content.pyproject.decode())["project"]["dependencies"])
                if requirements != self.specs[spec_id].serves:
                    found.append((spec_id, one.number, requirements))
        return found

    def _is_garbage(self) -> bool:
        """Whether there are closures that the next collection will find unused."""
        entries = self.ground.fabric.index()["environments"]
        generations, used = self.ground.generations(), set()
        for spec_id in self.specs:
            newest = sorted(generations.numbers(spec_id))[-RETAINED:]
            used |= {generations.name_of(spec_id, number) for number in newest}
            used.add(entries[spec_id]["serving"])
        return bool(set(os.listdir(self.ground.root.store)) - used)

    def _rollback(self) -> Order:
        spec_id, number, requirements = self._chance.choice(self._targets())
        self.specs[spec_id].serves = requirements
        self.specs[spec_id].pinned = True
        return Order(self.ground, "rollback", {"id": spec_id, "to": number})

    def _unpin(self) -> Order:
        spec_id = self._chance.choice([one for one in sorted(self.specs) if self.specs[one].pinned])
        assert is_id(spec_id)
        one = self.specs[spec_id]
        one.pinned = False
        if one.wanted[0] not in BAD:
            one.serves = one.wanted
        return Order(self.ground, "unpin", {"id": spec_id})

    def _gc(self) -> Order:
        self.ground.age_cache()
        return Order(self.ground, "gc", {})

    def _repair(self) -> Order:
        entries = self.ground.fabric.index()["environments"]
        serving = sorted({one["serving"] for one in entries.values() if one["serving"]})
        self.ground.damage(self._chance.choice(serving), shared=self._chance.random() < _SHARED)
        self.damaged = True
        # As the command does it: all that is there is looked at, served or not.
        return Order(self.ground, "repair", {"names": sorted(os.listdir(self.ground.root.store))})
