"""Work that is done as another user than the tests' own: what a node's user may do on a NAS, and what it is told."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

NOBODY = 65534


def as_another_user(
    work: Callable[[], Any], *, prepare: Callable[[], object] = lambda: None, stays: bool = False
) -> Any:
    """What `work` gives, as JSON has it, done by a child that root has made another user; an ordinary user does it.

    `prepare` is done by the child before it is another user, who may not be let into the tests' own packages. With
    `stays` it remains the user that it is.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            prepare()
            if os.geteuid() == 0 and not stays:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            os.write(writing, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answers:
        told = answers.read()
    os.waitpid(child, 0)
    return json.loads(told)


def let_others_in(folder: Path) -> None:
    """Opens a folder of pytest's to others, as a worker's NAS is."""
    for one in (folder, *folder.parents):
        if one.stat().st_mode & 0o001 == 0:
            one.chmod(0o755)
