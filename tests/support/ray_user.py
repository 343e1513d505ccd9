"""The variables of somebody who uses Ray on this machine, with nothing of the user's who runs the tests."""

import os
from pathlib import Path

RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Below `uv run` Ray would have each worker started by uv.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}


def ray_user(home: Path, root: Path) -> dict[str, str]:
    """With a home and a fabric's ROOT; where sockets and logs go, RAY_TMPDIR, is each test's own to say."""
    own = {"PATH": os.environ["PATH"], "HOME": str(home), "LC_ALL": "C.UTF-8", "ENVFABRIC_ROOT": str(root)}
    return own | RAY
