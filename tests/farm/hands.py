"""Tasks for a hand on this host, and what it says."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from envfabric.build.environment import Recipe
from envfabric.build.farm.executor import site_of
from envfabric.build.farm.node import build, release
from envfabric.build.farm.words import Site, Task, Word
from envfabric.build.filling import Order
from envfabric.store.closures import Staging
from support.place import Place


def site(place: Place, epoch: int = 1) -> Site:
    return site_of(place.uv(), epoch, 2)


def task(place: Place, recipe: Recipe, staging: Staging, **changed: Any) -> Task:
    return Task(replace(site(place), **changed), Order(recipe), str(staging.folder), 120.0)


def words(wanted: Task) -> Iterator[Word]:
    """What a hand says, after the sign that its task has begun."""
    said = map(json.loads, build(release(), wanted.packed()))
    assert next(said) == {"begun": os.uname().nodename}
    yield from said
