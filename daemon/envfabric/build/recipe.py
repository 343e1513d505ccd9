"""What a build is made from: a spec's resolution, or what a retained generation keeps. Pure data; no file is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from envfabric.build.closure import Closure, closure_from_inputs
from envfabric.build.resolve import Resolution
from envfabric.core.errors import Reason, SpecError
from envfabric.specs.spec import Spec
from envfabric.specs.toml import parse_toml


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that a build needs: what a spec's resolution, or a retained generation's own files, come to."""

    spec: str
    """The spec's id, for messages."""
    pyproject: bytes
    lock: bytes
    closure: Closure
    max_bytes: int | None = None
    """The most bytes on disk that the environment may take; what was served once may be made again, whatever its
    size."""


def recipe_of(spec: Spec, resolution: Resolution) -> Recipe:
    """What building a spec's resolution needs."""
    return Recipe(spec.id, spec.pyproject, resolution.lock, resolution.closure, resolution.max_bytes)


def recipe_from(spec_id: str, pyproject: bytes, lock: bytes, inputs: Mapping[str, Any]) -> Recipe:
    """What building a retained generation again needs: its own files, and the inputs of its closure.

    It was allowed when it was made; policy is not asked again. Raises `SpecError` (store) where they can't be
    read.
    """
    try:
        parse_toml(pyproject, f"{spec_id}/pyproject.toml")
        closure = closure_from_inputs(inputs)
    except (SpecError, ValueError) as error:
        raise SpecError(
            Reason.STORE,
            f"the retained generation of {spec_id} can't be built again: {error}. Commit a change of the spec; "
            "that makes a new one.",
        ) from None
    return Recipe(spec_id, pyproject, lock, closure)
