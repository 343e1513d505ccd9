"""Runs one Ray task in every Ray environment that is ready: ``python ray_job.py --root /mnt/nas``.

RAY_ADDRESS names a cluster (RAY_AUTH_MODE=token if it asks for one); else one is started on loopback.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

# Ray reads this as it is imported. Without it a local cluster listens on every address of the machine,
# and _node_ip_address="127.0.0.1" doesn't help: ray.init turns it into the machine's outside address.
if not os.environ.get("RAY_ADDRESS"):
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"

import ray


def report() -> tuple[str, str]:
    """Runs in the environment: only there humanize has to exist, and each one has its own version."""
    import humanize  # type: ignore[import-not-found]

    return sys.prefix, str(humanize.__version__)


def connect() -> None:
    # Without the workers' own logs: what they have to say is what the tasks give, or raise.
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
    else:  # "local": not a cluster that happens to run on this machine
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)


def ready(root: Path) -> dict[str, dict[str, Any]]:
    """The runtime_env of each Ray environment that is served, by id."""
    list(root.iterdir())  # an NFS client may hold on to the index from before until it has looked here
    index = json.loads((root / "index.json").read_text(encoding="utf-8"))
    found = {}
    for name, python in sorted(index["python"].items()):
        entry = index["environments"][name]
        # Ray waits for ever for an interpreter that is not there, so look before asking for it.
        if entry["ray_version"] is not None and os.access(python, os.X_OK):
            env_vars = dict(entry["runtime_env"]["env_vars"])
            mine, its = platform.python_version(), entry["python_version"]
            if its != mine and its.split(".")[:2] == mine.split(".")[:2]:
                # Ray minds the last part of the version, too: else it prints a traceback for each worker.
                env_vars["RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL"] = "minor"
                print(f"{name} has Python {its}, this is {mine}: Ray is told not to mind.", file=sys.stderr)
            found[name] = {"py_executable": python, "env_vars": env_vars}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs one Ray task in every Ray environment that is ready.")
    parser.add_argument("--root", default=os.environ.get("ENVFABRIC_ROOT"), help="default: $ENVFABRIC_ROOT")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for each task")
    args = parser.parse_args()
    if not args.root:
        parser.error("say where the environments are: --root ROOT or ENVFABRIC_ROOT")
    try:
        environments = ready(Path(args.root))
    except OSError as error:
        sys.exit(f"cannot read the index: {error}")
    if not environments:
        sys.exit(f"no Ray environment is ready below {args.root}")

    connect()
    task = ray.remote(report)
    running = {name: task.options(runtime_env=env).remote() for name, env in environments.items()}
    failed = False
    for name, result in running.items():
        try:
            prefix, version = ray.get(result, timeout=args.timeout)
        except ray.exceptions.RayError as error:
            failed = True
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
        else:
            print(f"{name}  {prefix}  humanize {version}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
