"""What the farm's processes say to each other. Pure data.

Down goes a `Task`, as a pickle: only its own release is asked to read it. Up come JSON objects, one for each thing
said, for the daemon runs nothing that a node sends: `phase`, `log`, and at last one of `filled`, `again`, `refused`,
`error`, `lost`.
"""

import json
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from envfabric.build.environment import Lost
from envfabric.build.filling import Again, Damaged, Filled, Order, Raced
from envfabric.build.scope import Stopped
from envfabric.core.errors import Reason, SpecError, StoreError
from envfabric.store.sealing import Inventory

Word = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Site:
    """What a node has to have as the daemon has it, and what uv is told there."""

    root: str
    marker: bytes
    """The content of ROOT's marker."""
    uid: int
    uv_version: str
    epoch: int
    """The writer's epoch: a higher one on ROOT means that nobody waits for this build any more."""
    index: str | None = None
    workers: int = 1
    """Processes that compile bytecode for one build; 0 for environments without it."""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Variables with indexes and their credentials, for uv alone."""
    netrc: str | None = field(default=None, repr=False)
    """The content of the daemon's netrc file."""
    hidden: tuple[str, ...] = field(default=(), repr=False)
    """What `redact` takes out of every text."""


@dataclass(frozen=True, slots=True)
class Task:
    """One filling on one node."""

    site: Site
    order: Order
    folder: str
    """The staging folder."""
    limit: float
    """Seconds that it may take."""

    def packed(self) -> bytes:
        """As it is sent."""
        return pickle.dumps(self)


def unpack(data: bytes) -> Task:
    """The inverse of `Task.packed`."""
    task: Task = pickle.loads(data)  # noqa: S301 (from the daemon of the same release)
    return task


class Refused(Exception):
    """A node can't build, and has changed nothing. The message names it and what to do."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def packed(word: Word) -> bytes:
    """A word as it is sent."""
    return json.dumps(word).encode()


def word_of_filled(filled: Filled) -> Word:
    """What the daemon has to know of a filled folder: the rest lies in it."""
    found = filled.inventory
    return {
        "filled": {
            "inodes": list(found.inodes.items()),
            "linked": found.linked,
            "copied": found.copied,
            "phases": filled.phases,
            "lies": sorted(filled.lies),
        }
    }


def filled_of(told: Word) -> Filled:
    """The inverse of `word_of_filled`; of the inventory there is what publication and accounting need."""
    inventory = Inventory(
        inodes={int(inode): int(size) for inode, size in told["inodes"]},
        linked=int(told["linked"]),
        copied=int(told["copied"]),
    )
    return Filled(inventory, dict(told["phases"]), _lies(told))


def word_of_error(error: Exception, node: str) -> Word:
    """What ended a filling, so that `raise_word` can raise it in the daemon."""
    if isinstance(error, Again):
        told: Word = {
            "log": error.log,
            "phases": dict(error.phases),
            "lies": sorted(error.lies),
        }
        if isinstance(error, Damaged):
            told |= {
                "names": sorted(error.names),
                "output": error.output,
                "mismatched": sorted(error.mismatched),
            }
        return {"again": told}
    if isinstance(error, Refused):
        return {"refused": str(error), "reason": error.reason.value}
    if isinstance(error, SpecError):
        return {"error": "spec", "reason": error.reason.value, "text": error.message, "output": error.output}
    if isinstance(error, StoreError):
        return {"error": "store", "text": f"{error} (on node {node})"}
    if isinstance(error, OSError):
        said = f"{error.strerror or error} on node {node}"
        return {"error": "os", "errno": error.errno or 0, "text": said, "path": error.filename}
    if isinstance(error, Stopped):
        return {"lost": f"node {node} was told to stop"}
    text = f"building on node {node} failed: {type(error).__name__}: {error}. Report it if it stays."
    return {"error": "spec", "reason": Reason.INTERNAL.value, "text": text, "output": ""}


def raise_word(word: Word) -> None:
    """Raises what a word says that is no success. See `word_of_error`."""
    if "lost" in word:
        raise Lost(str(word["lost"]))
    if "refused" in word:
        raise Refused(Reason(word["reason"]), str(word["refused"]))
    if told := word.get("again"):
        again: Again = Raced()
        if "names" in told:
            again = Damaged(told["names"], told["output"], frozenset(told["mismatched"]))
        again.log, again.phases, again.lies = told["log"], told["phases"], _lies(told)
        raise again
    kind = word.get("error")
    if kind == "spec":
        raise SpecError(Reason(word["reason"]), word["text"], word["output"])
    if kind == "store":
        raise StoreError(word["text"])
    if kind == "os":
        raise OSError(word["errno"], word["text"], *([word["path"]] if word["path"] else []))


def _lies(told: Word) -> frozenset[tuple[str, str, str]]:
    return frozenset((str(one), str(two), str(three)) for one, two, three in told["lies"])


@dataclass(frozen=True, slots=True)
class Node:
    """A live node of the cluster."""

    id: str
    name: str
    """Its host's name and address, and what its id begins with, for people."""
    total: Mapping[str, float]
    """Its resources."""
    free: Mapping[str, float]
    """What of them nobody uses now."""

    def told(self) -> Word:
        """As it is sent."""
        return asdict(self)
