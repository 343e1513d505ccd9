"""What a served closure is made of, and by what two of them differ: reads index and metadata, changes nothing.

Why two specs do not share one environment is answered by the digest's inputs, as they were written when
each closure was sealed.
"""

from collections.abc import Mapping
from typing import Any

from envfabric.client.index import environment
from envfabric.core.errors import FabricError
from envfabric.store.closures import Closures, digest_of


class NothingToCompare(FabricError):
    """A spec whose closure can't be looked at, and why."""


def closure_of(index: Mapping[str, Any], spec_id: str, closures: Closures) -> dict[str, Any] | None:
    """What serves a spec: its closure, who shares it, what of it was linked. None where nothing does.

    `error` is there instead of the counts where its metadata can't be read. Raises `UnknownEnvironment`.
    """
    name = environment(index, spec_id)["serving"]
    if name is None:
        return None
    found: dict[str, Any] = {
        "name": name,
        "shared_with": [
            other
            for other, entry in index["environments"].items()
            if entry["serving"] == name and other != spec_id
        ],
    }
    try:
        metadata = closures.metadata(name)
        found |= {
            "distributions": len(metadata["inputs"]["distributions"]),
            "linked": metadata["linked"],
            "copied": metadata["link_fallbacks"],
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        found["error"] = f"its metadata.json can't be read: {error}"
    return found


def compare(index: Mapping[str, Any], one: str, other: str, closures: Closures) -> dict[str, Any]:
    """By what the closures that serve two specs differ, each with its value in `one` and in `other`.

    Raises `UnknownEnvironment`, and `NothingToCompare` where one serves nothing that can be read.
    """
    first, second = (_served(index, spec_id, closures) for spec_id in (one, other))
    return {
        "one": first["told"],
        "other": second["told"],
        "same": first["told"]["closure"] == second["told"]["closure"],
        "built_again": first["told"]["closure"] != second["told"]["closure"]
        and digest_of(first["told"]["closure"]) == digest_of(second["told"]["closure"]),
        "distributions": len(first["inputs"]["distributions"]),
        "differences": differences(first["inputs"], second["inputs"]),
    }


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The inputs of two digests, input by input: `what`, its `key`, and both values; None is absent."""
    found = [
        {"what": what, "key": None, "one": one.get(what), "other": other.get(what)}
        for what in ("platform", "libc")
        if one.get(what) != other.get(what)
    ]
    for what in ("interpreter", "options"):
        found += _by_key(what, one.get(what, {}), other.get(what, {}))
    first, second = ({each["name"]: each for each in inputs["distributions"]} for inputs in (one, other))
    for name in sorted(first.keys() | second.keys()):
        mine, others = first.get(name), second.get(name)
        if mine == others:
            continue
        versions = [each["version"] if each else None for each in (mine, others)]
        what = "distribution"
        if versions[0] == versions[1]:
            # One version, another file: another platform's wheel, another index, or a file that was exchanged.
            what = "wheel"
            versions = [f"{each['wheel']} {each['hash']}" if each else None for each in (mine, others)]
        found.append({"what": what, "key": name, "one": versions[0], "other": versions[1]})
    return found


def _by_key(what: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"what": what, "key": key, "one": one.get(key), "other": other.get(key)}
        for key in sorted(one.keys() | other.keys())
        if one.get(key) != other.get(key)
    ]


def _served(index: Mapping[str, Any], spec_id: str, closures: Closures) -> dict[str, Any]:
    entry = environment(index, spec_id)
    name = entry["serving"]
    if name is None:
        raise NothingToCompare(
            f"{spec_id} is {entry['state']} and serves nothing that could be compared; see `envfabric status "
            f"{spec_id}`"
        )
    try:
        inputs = closures.metadata(name)["inputs"]
        _ = [(each["name"], each["version"], each["wheel"], each["hash"]) for each in inputs["distributions"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NothingToCompare(
            f"metadata.json of {name}, which serves {spec_id}, can't be read: {error}. `envfabric verify` says "
            "whether the closure is damaged."
        ) from error
    told = {"id": spec_id, "closure": name, "state": entry["state"], "generation": entry["generation"]}
    return {"told": told, "inputs": inputs}
