"""The figures of `envfabric report`: counted from the audit trail's events and the published index.

Counts only what the trail tells. Builds, failures and requests are in it since the release that has the report: an
older part of a trail has none of them, which is told as `since` and not as zeros. Reads nothing by itself.
"""

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

_STEPS = (10, 60, 600, 3600, 6 * 3600, 86400, 7 * 86400, 30 * 86400, 365 * 86400)
"""Seconds that a slot may have."""
_SLOTS = 40
"""Slots at most in a picture."""
_POINTS = 240
"""Accounts of the store at most, spread over the time."""
SLOWEST = 15
"""Specs in the list of the slowest."""


def tally(events: Iterable[Mapping[str, Any]], index: Mapping[str, Any] | None) -> dict[str, Any]:
    """The report's figures, as `--json` prints them; bytes and seconds, times in UTC."""
    built: list[Mapping[str, Any]] = []
    accounts: list[Mapping[str, Any]] = []
    failures: list[Mapping[str, Any]] = []
    kinds = {"built": built, "figures": accounts, "failed": failures}
    for event in events:
        if event["event"] in kinds and _seconds_of(event["at"]) is not None and _whole(event):
            kinds[event["event"]].append(event)
    times = [float(one["seconds"]["total"]) for one in built]
    requests, hits = (sum(one[name] for one in accounts) for name in ("requests", "hits"))
    known = sorted(one["at"] for one in (*built, *accounts, *failures))
    phases: Counter[str] = Counter()
    for one in built:
        phases.update({phase: float(taken) for phase, taken in one["seconds"].items() if phase != "total"})
    return {
        "since": known[0] if known else None,
        "until": known[-1] if known else None,
        "published": _published(index),
        "builds": {
            "count": len(times),
            "median_seconds": statistics.median(times) if times else None,
            "longest_seconds": max(times, default=None),
            "phase_seconds": {phase: round(taken, 3) for phase, taken in phases.most_common()},
        },
        "closures": {"requests": requests, "hits": hits},
        "failures": dict(Counter(str(one["reason"]) for one in failures).most_common()),
        "slowest": _slowest(built),
        "slots": _slots(built, accounts, failures),
        "store": _store(accounts),
    }


def _whole(event: Mapping[str, Any]) -> bool:
    """Whether an event has what is counted of it: a hand may have been in the trail."""
    kind = event["event"]
    if kind == "built":
        taken = event.get("seconds")
        if not isinstance(taken, dict) or "total" not in taken:
            return False
        return isinstance(event.get("spec"), str) and all(map(_is_number, taken.values()))
    if kind == "failed":
        return isinstance(event.get("reason"), str)
    names = ("requests", "hits", "logical_bytes", "physical_bytes", "closures")
    return all(_is_number(event.get(name)) for name in names)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _seconds_of(at: str) -> float | None:
    try:
        return datetime.fromisoformat(at).timestamp()
    except ValueError:
        return None


def _published(index: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if index is None:
        return None
    states = Counter(entry["state"] for entry in index["environments"].values())
    return {
        **{name: index[name] for name in ("revision", "sequence", "published_at", "complete")},
        "environments": len(index["environments"]),
        "problems": len(index["problems"]),
        "states": dict(states.most_common()),
    }


def _slowest(built: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By the longest build of each spec."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for one in built:
        found[one["spec"]].append(float(one["seconds"]["total"]))
    first = sorted(found.items(), key=lambda pair: (-max(pair[1]), pair[0]))[:SLOWEST]
    return [
        {"id": spec_id, "builds": len(times), "longest_seconds": max(times), "last_seconds": times[-1]}
        for spec_id, times in first
    ]


def _slots(*kinds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The time in equal parts, each with what happened in it; those in which nothing did, too."""
    moments = [_seconds_of(one["at"]) or 0.0 for events in kinds for one in events]
    if not moments:
        return []
    span = max(moments) - min(moments)
    step = next((one for one in _STEPS if span / one < _SLOTS - 1), _STEPS[-1])
    begin = int(min(moments) // step)
    slots: list[dict[str, Any]] = [
        {"at": _at(n * step), "seconds": step, "builds": [], "requests": 0, "hits": 0, "failures": 0}
        for n in range(begin, int(max(moments) // step) + 1)
    ]
    built, accounts, failures = kinds
    for one in built:
        slots[int((_seconds_of(one["at"]) or 0) // step) - begin]["builds"].append(
            float(one["seconds"]["total"])
        )
    for one in accounts:
        slot = slots[int((_seconds_of(one["at"]) or 0) // step) - begin]
        slot["requests"] += one["requests"]
        slot["hits"] += one["hits"]
    for one in failures:
        slots[int((_seconds_of(one["at"]) or 0) // step) - begin]["failures"] += 1
    for slot in slots:
        times = slot["builds"]
        slot["builds"] = len(times)
        slot["median_seconds"] = statistics.median(times) if times else None
        slot["longest_seconds"] = max(times, default=None)
    return slots


def _store(accounts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the store took, at so many times at most; the last one is always among them."""
    every = max(1, -(-len(accounts) // _POINTS))
    last = len(accounts) - 1
    return [
        {
            "at": one["at"],
            "logical_bytes": one["logical_bytes"],
            "physical_bytes": one["physical_bytes"],
            "saved_bytes": one["logical_bytes"] - one["physical_bytes"],
            "closures": one["closures"],
        }
        for n, one in enumerate(accounts)
        if (last - n) % every == 0
    ]


def _at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
