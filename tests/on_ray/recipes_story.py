"""Types what the recipes for Ray tell, on a cluster of one node that `ray start` made, and tells what came of it.

    recipes_story.py REPORT    in a folder with the recipes, with a user's variables in the environment

All at once, as each of them takes seconds to start, in which it mostly waits.
"""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from recipes.written import commands

LIMIT = 150.0
"""Seconds for each of the things that work."""


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def typed(command: str, env: dict[str, str]) -> dict[str, object]:
    """A command as a user's shell runs it."""
    done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, timeout=LIMIT)
    return {"code": done.returncode, "text": done.stdout + done.stderr}


def answer(url: str, serving: "subprocess.Popen[bytes]") -> str:
    """What is served there, once something is."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end and serving.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=10) as got:
            return str(got.read().decode())
        time.sleep(0.1)
    return "no answer"


def started(env: dict[str, str]) -> dict[str, str]:
    """Starts the node; gives the variables for whoever uses it."""
    dashboard, temporary = free_port(), env["RAY_TMPDIR"]
    words = [
        *("--head", "--node-ip-address=127.0.0.1", "--port=0", f"--dashboard-port={dashboard}"),
        *(f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}"),
        *(
            f"--temp-dir={temporary}",
            "--num-cpus=6",
            "--object-store-memory=80000000",
            "--disable-usage-stats",
        ),
    ]
    done = subprocess.run(["ray", "start", *words], env=env, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    address = Path(temporary, "ray_current_cluster").read_text().strip()
    return env | {"RAY_ADDRESS": address, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}


def main(report: str) -> None:
    # With the last one the node's address is the loopback's, as asked for.
    mine = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    env = started(os.environ | mine | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"})
    told: dict[str, object] = {}
    serve, curl = commands("ray_serve.py")
    port = free_port()
    with ThreadPoolExecutor() as threads, Path("serve.log").open("wb") as log:
        names = ("ray_job.py", "ray_data.py")
        jobs = {name: threads.submit(typed, commands(name)[0], env) for name in names}
        told["serve start"] = typed(f"serve start --http-port {port}", env)
        serving = subprocess.Popen(["bash", "-c", serve], env=env, stdout=log, stderr=log)
        url = curl.split('"')[1].replace("localhost:8000", f"127.0.0.1:{port}")
        told["ray_serve.py"] = {"answer": answer(url, serving), "text": Path("serve.log").read_text()}
        told |= {name: job.result() for name, job in jobs.items()}
    Path(report).write_text(json.dumps(told))
    # Whoever runs this ends the node, and Serve.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
