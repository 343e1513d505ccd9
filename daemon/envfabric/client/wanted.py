"""What a Ray runtime_env asks for under its key `envfabric`: an id, and the closure that it was decided to be.

Read in the driver and on every node, so it reads no file and imports no ray.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KEY = "envfabric"
"""The key in a runtime_env."""

DEFAULT_TIMEOUT = 5.0
"""Seconds for which a driver and a node wait for the NAS. Ray sets a failed runtime_env up three times, one second
apart: with them a node whose NAS is gone says so within ten."""
DEFAULT_TTL = 300.0
LONGEST = 86400.0
SHORTEST_TTL = 3.0
"""Seconds: a lease is renewed by the node's agent every third of its ttl, and any user of the cluster may set it."""
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_TEXT = re.compile(rf"(?P<id>{_PART}/{_PART})(?:@(?P<digest>{_PART}))?")
_ROOT = re.compile(r"/[A-Za-z0-9/._-]*")
_KNOWN = ("id", "digest", "generation", "root", "timeout", "lease", "ttl")
_INSTEAD = ("pip", "uv", "conda", "image_uri", "container")
"""What brings an interpreter or packages of its own."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One value of the key, checked."""

    id: str
    digest: str | None = None
    """The closure's name below ROOT/store; None where nobody has decided it yet."""
    generation: int | None = None
    """Whose env_vars it has, where the value was written by hand; None where all that have the closure agree."""
    root: str | None = None
    """ROOT; None for the node's own ENVFABRIC_ROOT or settings."""
    timeout: float = DEFAULT_TIMEOUT
    lease: bool = True
    """Whether the node says by a lease that it uses the closure."""
    ttl: float = DEFAULT_TTL
    """Seconds for which the lease outlives its node."""

    def uri(self, py_executable: object = None) -> str | None:
        """What Ray counts the uses of on a node, in a runtime_env with that py_executable; None without a digest."""
        if self.digest is None:
            return None
        # What one has made ready is not enough for the next, which wants a lease, or a longer one, or the variables of
        # a generation.
        parts = ["unleased"] if not self.lease else [] if self.ttl == DEFAULT_TTL else [f"ttl={self.ttl:g}"]
        if not self.named_by(py_executable):
            parts.append("by-hand" if self.generation is None else f"generation={self.generation}")
        held = f"?{'&'.join(parts)}" if parts else ""
        return f"{KEY}://{self.root or ''}/{self.id}@{self.digest}{held}"

    def named_by(self, py_executable: object) -> bool:
        """Whether a py_executable has this closure's own interpreter in it, as what `envfabric.runtime_env` makes has:
        the spec's env_vars are beside it then."""
        if self.digest is None or self.root is None:
            return False
        python = f"{self.root}/store/{self.digest}/.venv/bin/python"
        return isinstance(py_executable, str) and python in py_executable.split()

    def told(self) -> dict[str, Any]:
        """The value as a dict: id and digest, and what differs from the defaults."""
        options = {name: getattr(self, name) for name in _KNOWN[2:]}
        plain = Wanted(self.id)
        changed = {name: value for name, value in options.items() if value != getattr(plain, name)}
        return {"id": self.id, **({} if self.digest is None else {"digest": self.digest}), **changed}


def is_id(text: str) -> bool:
    """Whether a text is an id, with a digest or without."""
    return _TEXT.fullmatch(text) is not None


def parse(value: object) -> Wanted:
    """What "wf/node", "wf/node@digest" or a dict with options asks for. Raises `ValueError`, with what is allowed."""
    if isinstance(value, str):
        return _of_text(value)
    if not isinstance(value, Mapping):
        raise ValueError(  # noqa: TRY004 - Ray's plugins raise this one for whatever they refuse
            f'runtime_env["{KEY}"] is {value!r}: it must be "<workflow>/<node>", "<workflow>/<node>@<digest>", '
            'or a dict such as {"id": "<workflow>/<node>"}.'
        )
    for name in value:
        if name not in _KNOWN:
            close = difflib.get_close_matches(str(name), _KNOWN, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(_KNOWN)}."
            raise ValueError(f'runtime_env["{KEY}"] has an unknown key {name!r}: {hint}')
    wanted = _of_text(value.get("id"))
    digest, root = value.get("digest", wanted.digest), value.get("root")
    if digest is not None and not (isinstance(digest, str) and re.fullmatch(_PART, digest)):
        raise ValueError(
            f'runtime_env["{KEY}"]: digest={digest!r} must be the name of a folder of ROOT/store.'
        )
    if wanted.digest not in {None, digest}:
        raise ValueError(
            f'runtime_env["{KEY}"] names two digests, {wanted.digest} and {digest}: leave one out.'
        )
    if root is not None and not (isinstance(root, str) and _ROOT.fullmatch(root)):
        raise ValueError(
            f'runtime_env["{KEY}"]: root={root!r} must be an absolute path of A-Z a-z 0-9 / . _ -'
        )
    generation = value.get("generation")
    if generation is not None:
        if isinstance(generation, bool) or not isinstance(generation, int) or generation < 1:
            raise ValueError(
                f'runtime_env["{KEY}"]: generation={generation!r} must be a number that `envfabric history` shows.'
            )
        if digest is None:
            raise ValueError(f'runtime_env["{KEY}"]: generation={generation} needs its digest beside it.')
    lease = value.get("lease", True)
    if not isinstance(lease, bool):
        raise ValueError(f'runtime_env["{KEY}"]: lease={lease!r} must be true or false.')  # noqa: TRY004
    timeout = _seconds(value, "timeout", DEFAULT_TIMEOUT)
    ttl = _seconds(value, "ttl", DEFAULT_TTL, SHORTEST_TTL)
    return Wanted(wanted.id, digest, generation, root, timeout, lease, ttl)


def refuse_together(runtime_env: Mapping[str, Any]) -> None:
    """Raises `ValueError` where something else of the runtime_env brings an interpreter or packages, too."""
    both = [name for name in _INSTEAD if runtime_env.get(name)]
    if both:
        raise ValueError(
            f"{' and '.join(both)} can't be combined with {KEY}: an environment of the fabric is complete and sealed. "
            "Add the packages to the spec's pyproject.toml and commit it."
        )


def _of_text(text: object) -> Wanted:
    match = _TEXT.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(
            f'runtime_env["{KEY}"]: {text!r} is no id; one is <workflow>/<node>, or <workflow>/<node>@<digest>.'
        )
    return Wanted(match["id"], match["digest"])


def _seconds(value: Mapping[str, Any], name: str, default: float, least: float = 0.0) -> float:
    given = value.get(name, default)
    fits = not isinstance(given, bool) and isinstance(given, int | float) and 0 < given <= LONGEST
    if not fits or given < least:
        allowed = f"at least {least:g}" if least else "more than 0"
        raise ValueError(
            f'runtime_env["{KEY}"]: {name}={given!r} must be seconds, {allowed} and at most {LONGEST:g}.'
        )
    return float(given)
