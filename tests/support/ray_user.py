"""The variables of somebody who uses Ray on this machine, with nothing of the user's who runs the tests."""

import os
from pathlib import Path

RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Below `uv run` Ray would have each worker started by uv.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}

NO_STOCK = {"RAY_prestart_worker_first_driver": "0", "RAY_enable_worker_prestart": "0"}
"""For raylets: no workers ahead of any task, which nothing here would run in. Each takes a second to start."""


def ray_user(home: Path, root: Path) -> dict[str, str]:
    """With a home and a fabric's ROOT, for a driver and the nodes that it starts; where sockets and logs go,
    RAY_TMPDIR, is each test's own to say."""
    own = {"PATH": os.environ["PATH"], "HOME": str(home), "LC_ALL": "C.UTF-8", "ENVFABRIC_ROOT": str(root)}
    return own | RAY | NO_STOCK
