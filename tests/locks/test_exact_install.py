"""What is installed is what the closure's digest covers, however a lock may be read."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from support.place import Place
from support.simple_index import SimpleIndex

MARKERS = "resolution-markers = [\"sys_platform {} 'linux'\"]\n"


@pytest.fixture
def mirror(place: Place) -> Iterator[SimpleIndex]:
    """Another index that the policy allows, with a gamma 1.0 of other content."""
    with SimpleIndex(place.folder / "mirror") as index:
        index.add_wheel("gamma", "1.0", modules={"gamma/__init__.py": "OTHER = True\n"})
        place.policy = replace(place.policy, indexes=(place.index.url, index.url))
        yield index


def test_fork_that_uv_takes_otherwise(place: Place, mirror: SimpleIndex) -> None:
    """A lock whose edges lead into another fork than its markers say: the file that the closure names is installed."""
    table = f'[[tool.uv.index]]\nname = "mirror"\nurl = "{mirror.url}"\nexplicit = true'
    lock = place.locked_by_hand(["gamma<2"], tail=table).decode()
    (entry,) = re.findall(r'\[\[package\]\]\nname = "gamma"\n.*?\n\]\n', lock, re.DOTALL)
    wheel = place.index.folder / "gamma-1.0-py3-none-any.whl"
    digest, other = (
        hashlib.sha256((folder / wheel.name).read_bytes()).hexdigest()
        for folder in (place.index.folder, mirror.folder)
    )
    here = entry.replace("source = ", MARKERS.format("==") + "source = ")
    there = entry.replace("source = ", MARKERS.format("!=") + "source = ")
    there = there.replace(digest, other).replace(place.index.url, mirror.url)
    there = there.replace(place.index.url.removesuffix("/simple"), mirror.url.removesuffix("/simple"))
    forged = lock.replace(entry, f"{here}\n{there}").replace(
        'dependencies = [\n    { name = "gamma" }',
        f'dependencies = [\n    {{ name = "gamma", version = "1.0", source = {{ registry = "{mirror.url}" }} }}',
    )
    spec = place.spec(["gamma<2"], tail=table, lock=forged.encode())
    found = place.get(spec)
    built = place.build(spec, found)
    (module,) = place.root.closure(built.name).glob(".venv/lib/*/site-packages/gamma/__init__.py")
    assert found.closure.distributions[0].hash == f"sha256:{digest}"
    assert module.read_text() == 'VERSION = "1.0"\n'
