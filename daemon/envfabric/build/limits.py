"""How large, how many and how young the packages of an environment may be; when a resolution ends.

Numbers and sizes are looked at before anything is downloaded, by what the lock says; what an environment
really takes is looked at before it is sealed. Pure; the clock is the caller's.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, time, timedelta
from typing import Any, NamedTuple

from envfabric.core.errors import Reason, SpecError
from envfabric.specs.policy import Policy

_DAY = 86400
_HOUR = 3600


class Chosen(NamedTuple):
    """The file of a lock that a distribution is installed from."""

    name: str
    version: str
    file: dict[str, Any]
    """The file's entry in the lock; empty for a git repository."""


def check_chosen(chosen: Sequence[Chosen], policy: Policy, now: datetime, where: str) -> None:
    """Raises `SpecError` (policy) where there are too many, they are too large, or one is too young.

    A file that does not say when it was uploaded is let pass: some indexes never say so.
    """
    if len(chosen) > policy.max_packages:
        raise SpecError(
            Reason.POLICY,
            f"{where}: {len(chosen)} packages are needed, and {policy.max_packages} are allowed. Require less, or have "
            "policy.max_packages raised in the daemon's settings.",
        )
    sizes = {one.name: _size(one.file) for one in chosen}
    if sum(sizes.values()) > policy.max_bytes:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        raise _too_large(sum(sizes.values()), "to download", policy.max_bytes, where, largest)
    if policy.cooldown:
        newest = now - timedelta(seconds=policy.cooldown)
        for one in chosen:
            _check_age(one, newest, policy, where)


def check_real(taken: int, most: int | None, where: str) -> None:
    """Raises `SpecError` (policy) where a finished environment takes more bytes on disk than `most`."""
    if most is not None and taken > most:
        raise _too_large(taken, "on disk", most, where, [])


def cutoff(exclude_newer: str | None, cooldown: float, now: datetime) -> datetime | None:
    """The moment after which nothing is taken that was uploaded: the earlier of a fixed one and `now` - cooldown.

    The second is rounded down to a whole hour, or day for a cooldown of days: what is resolved within one
    converges. A date means up to its end in UTC.
    """
    found = []
    if exclude_newer is not None:
        found.append(_moment(exclude_newer))
    if cooldown:
        step = _DAY if cooldown >= _DAY else _HOUR
        seconds = int(now.timestamp() - cooldown) // step * step
        found.append(datetime.fromtimestamp(seconds, UTC))
    return min(found, default=None)


def written(moment: datetime) -> str:
    """A moment as uv reads and writes it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _moment(text: str) -> datetime:
    if len(text) <= len("2026-01-31"):
        day = datetime.fromisoformat(text).date()
        return datetime.combine(day, time(), UTC) + timedelta(days=1)
    return datetime.fromisoformat(text)


def _check_age(one: Chosen, newest: datetime, policy: Policy, where: str) -> None:
    told = one.file.get("upload-time")
    if told is None:
        return
    try:
        uploaded = told if isinstance(told, datetime) else datetime.fromisoformat(str(told))
    except ValueError:
        uploaded = None
    if uploaded is None or uploaded.tzinfo is None:
        raise SpecError(
            Reason.POLICY,
            f"{where}: the upload-time of {one.name} {one.version} is no moment. Run `uv lock` and commit it.",
        )
    if uploaded > newest:
        ripe = written(uploaded + timedelta(seconds=policy.cooldown))
        raise SpecError(
            Reason.POLICY,
            f"{where}: {one.name} {one.version} was uploaded at {written(uploaded)}, and a release must be "
            f"{policy.cooldown / _DAY:.3g} days old. Require an older one, or retry after {ripe}.",
        )


def _size(file: dict[str, Any]) -> int:
    size = file.get("size", 0)
    return size if isinstance(size, int) and size > 0 else 0


def _too_large(found: int, kind: str, most: int, where: str, largest: list[str]) -> SpecError:
    names = f", the most of it for {', '.join(largest)}" if largest else ""
    return SpecError(
        Reason.POLICY,
        f"{where}: the environment has {found} bytes {kind}{names}; {most} are allowed. Require less, or have "
        "policy.max_bytes raised in the daemon's settings.",
    )
