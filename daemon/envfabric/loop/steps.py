"""What the steps of the loop begin with and come to: the words that realise.py and work.py share.

A step's outcome carries what the next one needs, and the claims that keep it in the store meanwhile. Does nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from envfabric.build.environment import Built, Recipe
from envfabric.build.interpreters import Interpreter
from envfabric.build.lockfile import neutral
from envfabric.build.trial import Trial
from envfabric.specs.spec import Spec
from envfabric.specs.tree import SpecRef
from envfabric.store.claims import Claim
from envfabric.store.generations import Generation

Purpose = Literal["wanted", "pinned", "healed"]
"""Why a closure is needed: for the committed content, for a pin, or to serve again what was served."""


@dataclass(frozen=True, slots=True)
class Request:
    """A spec's content that has to be made true."""

    ref: SpecRef
    commit: str
    files: Mapping[str, bytes]
    serving: int | None
    """The generation that is served now; its lock is the base of the next one."""
    heal: int | None = None
    """A generation whose closure is lost or damaged and has to be built again first."""


@dataclass(frozen=True, slots=True)
class Suspended:
    """The spec asks that nothing is built for it."""


@dataclass(frozen=True, slots=True)
class Unchosen:
    """No interpreter here is what the content asks for: one, or the list of those to be had, is brought first."""

    request: Request
    spec: Spec
    what: str
    """uv's name for the Python; "" for the list."""

    @property
    def key(self) -> str:
        """Equal for all who would get the same answer."""
        return f"python {self.what}"


@dataclass(frozen=True, slots=True)
class Unresolved:
    """uv has to be asked which closure the content means."""

    request: Request
    spec: Spec
    python: Interpreter
    claim: Claim
    """On the interpreter, which the collector leaves alone meanwhile."""
    base: bytes | None
    key: str
    """Equal for all who would get the same answer."""
    fresh: bool = False
    """Whether the index is asked for what uv still remembers of it."""


@dataclass(frozen=True, slots=True)
class Located:
    """The closure that the content means is known."""

    request: Request
    recipe: Recipe
    digest: str
    """The closure's digest."""
    draft: Generation
    """The generation to write: without its closure's name, and with the number of the one it replaces."""
    built: bool
    """Whether it is in the store."""
    claim: Claim
    purpose: Purpose = "wanted"
    due: Trial | None = None
    """The validation that the closure has yet to pass for this spec."""

    @property
    def id(self) -> str:
        """The spec's id."""
        return self.request.ref.id

    @property
    def fate(self) -> str:
        """Equal for those for whom one build of the closure fails in the same way."""
        return neutral(self.recipe.lock)


@dataclass(frozen=True, slots=True)
class Served:
    """A retained generation that can be published now."""

    request: Request
    generation: Generation
    claim: Claim
    pinned: bool = False


Recalled = Suspended | Unchosen | Unresolved | Located | Served

Made = Built | Literal["there", "kept"]
"""A closure that was built or is there, or that is not needed, for an order keeps what is served."""
