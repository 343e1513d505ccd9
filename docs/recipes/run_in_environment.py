"""Runs an environment's Python, and keeps the environment for as long as that runs, on any host.

    python run_in_environment.py etl/extract extract.py --day 2026-01-31

Needs envfabric in the Python that runs this file, and nothing in the environment. ENVFABRIC_ROOT names the NAS
folder. What is shorter than the collector's grace period (14 days by default) needs no lease: `envfabric exec` does,
which sets the spec's env_vars, too.
"""

import os
import signal
import subprocess
import sys
from types import FrameType

import envfabric


def main() -> int:
    spec_id, *arguments = sys.argv[1:]
    with envfabric.lease(spec_id, what=f"{spec_id}: {' '.join(arguments)}") as held:
        folder = os.path.dirname(held.python)
        path = os.pathsep.join([folder, os.environ.get("PATH", os.defpath)])
        env = {**os.environ, "VIRTUAL_ENV": os.path.dirname(folder), "PATH": path}
        child = subprocess.Popen([held.python, *arguments], env=env)

        def pass_on(number: int, _: FrameType | None) -> None:
            child.send_signal(number)

        # The program ends in its own way, and then its lease: systemd and Kubernetes may tell this process alone.
        signal.signal(signal.SIGTERM, pass_on)
        # A terminal sends this one to both.
        signal.signal(signal.SIGINT, lambda *_: None)
        code = child.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
