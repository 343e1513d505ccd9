"""The real daemon inside the tests' own process, so that each of its steps on ROOT can be made to fail."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from envfabric.service.daemon import Daemon
from envfabric.service.settings import load_settings
from envfabric.store.files import Files, Step
from support.fabric import Fabric


@contextmanager
def surroundings(fabric: Fabric) -> Iterator[None]:
    """The environment and umask that the fabric's own processes have."""
    old, umask = dict(os.environ), os.umask(0o022)
    # pytest looks at its own variable after each test.
    wanted = fabric.environment | {name: value for name, value in old.items() if name.startswith("PYTEST")}
    os.environ.clear()
    os.environ.update(wanted)
    try:
        yield
    finally:
        os.umask(umask)
        os.environ.clear()
        os.environ.update(old)


def daemon(fabric: Fabric, step: Step) -> Daemon:
    """A daemon whose every change of ROOT goes by `step` first."""
    return Daemon(load_settings(fabric.configure(), {}), files=Files(step))


def kind_of(root: Path, operation: str, path: Path) -> str:
    """What a step does, without the names that are other ones each time."""
    name = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    name = re.sub(r"[0-9a-f]{32,40}", "*", name)
    return f"{operation} {re.sub(r'[0-9]+', 'N', name)}"
