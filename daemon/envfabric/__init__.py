"""Environment Fabric: the Python environment of a committed spec, ready on shared storage.

    import envfabric
    envfabric.python("wf-001/node-A")            # the interpreter's path
    envfabric.runtime_env("wf-001/node-A")       # a Ray runtime_env
    with envfabric.lease("wf-001/node-A") as held:
        subprocess.run([held.python, "job.py"])  # kept for as long as the block runs

All need only the standard library.
"""

from envfabric.client.api import python
from envfabric.client.index import (
    EnvfabricError,
    EnvironmentFailed,
    NotReady,
    RootNotFound,
    UnknownEnvironment,
)
from envfabric.client.leases import Lease, lease
from envfabric.client.runtime import runtime_env

__all__ = [
    "EnvfabricError",
    "EnvironmentFailed",
    "Lease",
    "NotReady",
    "RootNotFound",
    "UnknownEnvironment",
    "lease",
    "python",
    "runtime_env",
]
