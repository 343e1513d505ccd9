"""What both benches of Ray begin with: their common flags, their packages, and a driver of their cluster."""

import argparse
import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

import ray

from support import ray_ways as ways


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The flags of a bench, with those that say where to work and which packages to take."""
    parser.add_argument("--folder", type=Path, help="where to work; the temporary folder by default")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to be taken instead of the index's")
    parser.add_argument("--root", type=Path, help="a fabric that serves the set already")
    parser.add_argument("--spec", help="the id there of an environment with the set")
    parser.add_argument("--bare", help="the id there of one with Ray, and without the set")
    parser.add_argument("requirements", nargs="*", help="names of a set; each bench has its own by default")
    given = parser.parse_args()
    if given.root and not (given.spec and given.bare and given.requirements):
        parser.error("--root needs --spec, --bare and the names of the set")
    return given


def packages_of(given: argparse.Namespace, folder: Path, requirements: Sequence[str]) -> ways.Packages:
    """The set, served by the fabric that is named, or by one that is made."""
    if given.root:
        return ways.served(folder, given.root, given.spec, given.bare, requirements, given.wheels)
    return ways.made(folder, requirements, given.wheels)


def drive(address: str, ends: contextlib.ExitStack) -> None:
    """Makes this process a driver of the cluster until `ends`."""
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    ends.callback(ray.shutdown)
