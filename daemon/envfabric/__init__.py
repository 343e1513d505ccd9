"""Environment Fabric: the Python environment of a committed spec, ready on shared storage.

    import envfabric
    envfabric.python("wf-001/node-A")            # the interpreter's path
    envfabric.runtime_env("wf-001/node-A")       # a Ray runtime_env

Both need only the standard library.
"""

from envfabric.client.api import python, runtime_env
from envfabric.client.index import (
    EnvfabricError,
    EnvironmentFailed,
    NotReady,
    RootNotFound,
    UnknownEnvironment,
)

__all__ = [
    "EnvfabricError",
    "EnvironmentFailed",
    "NotReady",
    "RootNotFound",
    "UnknownEnvironment",
    "python",
    "runtime_env",
]
