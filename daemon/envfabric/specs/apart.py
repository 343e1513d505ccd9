"""Reads long TOML in a process of its own: who wrote it decides how long that takes, and how much memory.

tomllib is Python: a file of some megabytes that was made for it would keep every thread of the daemon waiting, and
take gigabytes. The process gets the bytes and gives JSON back; its time and memory have an end, and so has what
comes back. Knows nothing of specs; what it starts has none of the daemon's environment.
"""

import json
import os
import subprocess
import sys
import tomllib
from typing import Any

CPU, MEMORY = 10, 1024**3
"""Seconds of processor and bytes of address space. The longest locks that uv writes take 2 s and 100 MB."""
MOST_PARTS = 250_000
"""Tables and lists of one file: each costs the daemon some hundred bytes. Long real ones have 50 000."""
_LONGEST = 120.0
"""Seconds after which a machine that gives the process no time is not waited for any more."""

_PROGRAM = """
import json, resource, sys, tomllib
cpu, memory, parts = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
try:
    document = tomllib.loads(sys.stdin.buffer.read().decode())
    text = json.dumps(document, default=str, ensure_ascii=False)
    if text.count("{") + text.count("[") > parts:
        raise ValueError(f"more than {parts} tables and lists are not read")
except tomllib.TOMLDecodeError as error:
    text = json.dumps(["toml", str(error)])
except RecursionError:
    text = json.dumps(["deep", ""])
except ValueError as error:
    text = json.dumps(["value", str(error)])
sys.stdout.buffer.write(text.encode())
"""


def parse_apart(raw: bytes) -> dict[str, Any]:
    """The document, with moments as texts. Raises what `tomllib.loads` raises, and `ValueError` at a bound."""
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(CPU), str(MEMORY), str(MOST_PARTS)]
    # What an interpreter outside of the system's folders needs to start.
    passed = {name: value for name, value in os.environ.items() if name == "LD_LIBRARY_PATH"}
    try:
        done = subprocess.run(
            command, input=raw, env=passed, cwd="/", capture_output=True, timeout=_LONGEST, check=False
        )
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode != 0:
        raise ValueError(
            f"reading it takes more than {CPU} s or {MEMORY >> 20} MiB, and what uv writes takes a part of that"
        )
    found = json.loads(done.stdout)
    if isinstance(found, dict):
        return found
    kind, text = found
    if kind == "deep":
        raise RecursionError
    raise (tomllib.TOMLDecodeError if kind == "toml" else ValueError)(text)
