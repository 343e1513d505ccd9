"""Which modules a distribution brings, by the RECORD of what was installed: the default of `imports`.

Reads RECORD files of one environment and nothing else. What a RECORD says is not believed but tried: a wrong name
fails its import, and the spec can name others.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from envfabric.build.records import distribution_of, rows

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MODULE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?:\.py|\.abi3\.so|\.cpython-[A-Za-z0-9_-]+\.so|\.so)")
_NOT_MEANT = frozenset({"benchmarks", "conftest", "docs", "example", "examples", "setup", "test", "tests"})
"""Top-level names that wheels contain by mistake; they may not be importable."""
MOST = 200
"""Modules that are named for one distribution at most: a namespace may hold thousands."""


def modules_of(venv: Path, distributions: Iterable[str]) -> list[str]:
    """The importable names that these distributions (normalised names) put into an environment, sorted.

    A regular package or module counts by its own name, what lies in a namespace package by the first name that is
    none. Those that begin with an underscore count only where there is nothing else. Raises `OSError`.
    """
    wanted = set(distributions)
    found: set[str] = set()
    for record in venv.glob("lib/python*/site-packages/*.dist-info/RECORD"):
        if distribution_of(str(record.parent)) in wanted:
            found |= set(_named(path for path, _ in rows(record)))
    return sorted(found)


def _named(paths: Iterable[str]) -> list[str]:
    folders: dict[tuple[str, ...], set[str]] = {}
    for path in paths:
        *folder, name = path.split("/")
        if all(_NAME.fullmatch(part) for part in folder) and (module := _MODULE.fullmatch(name)):
            folders.setdefault(tuple(folder), set()).add(module[1])
    names = sorted(set(_in_namespace(folders)))
    meant = [one for one in names if one.split(".")[0] not in _NOT_MEANT] or names
    public = [one for one in meant if not any(part.startswith("_") for part in one.split("."))]
    return (public or meant)[:MOST]


def _in_namespace(folders: dict[tuple[str, ...], set[str]]) -> Iterator[str]:
    packages = {folder for folder, modules in folders.items() if "__init__" in modules}
    for folder, modules in folders.items():
        above = [folder[:length] for length in range(1, len(folder) + 1)]
        regular = next((one for one in above if one in packages), None)
        if regular is not None:
            yield ".".join(regular)
        else:
            yield from (".".join((*folder, module)) for module in modules)
