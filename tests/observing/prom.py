"""A real Prometheus on loopback that scrapes daemons under test, by the shipped rules with shorter durations."""

import contextlib
import json
import re
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from observing.shipped import RULES
from support.tools import tool
from support.waiting import wait_for

SHORTER = 60
"""By which all durations of the rules are divided."""
SCRAPES = "1s"
_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def shorter(duration: str) -> str:
    """One duration as Prometheus writes it, divided."""
    found = re.fullmatch(r"(\d+)(ms|s|m|h|d)", duration)
    assert found, duration
    return f"{int(found[1]) * _UNITS[found[2]] // SHORTER}ms"


def shortened(rule: Mapping[str, Any]) -> dict[str, Any]:
    """A shipped rule with its durations divided, all by the same: `for`, ranges, and seconds that are compared with."""
    expr = re.sub(r"\[(\w+)\]", lambda one: f"[{shorter(one[1])}]", rule["expr"])
    if re.search(r"_seconds:\w+ > \d+$", expr):
        expr = re.sub(r"> (\d+)$", lambda one: f"> {int(one[1]) / SHORTER:g}", expr)
    made = {**rule, "expr": expr}
    if "for" in rule:
        made["for"] = shorter(rule["for"])
    return made


class Prometheus:
    """The server, once it is ready."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **asked: str | float) -> Any:
        """The data of an answer of its API. Fails with what it says is wrong."""
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(asked)}"
        try:
            with urllib.request.urlopen(address, timeout=60) as answer:
                told = json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{asked}: {error.read().decode()}") from None
        assert told["status"] == "success", told
        return told["data"]

    def values(self, expr: str, since: float) -> list[float]:
        """All numbers that a query gives at each second from a moment until now."""
        found = self.get("query_range", query=expr, start=since, end=time.time(), step="1s")["result"]
        numbers = [float(value) for series in found for _, value in series["values"]]
        return [number for number in numbers if number == number]

    def value(self, expr: str) -> float | None:
        """The one number that a query gives now; None where it gives none."""
        found = self.get("query", query=expr)["result"]
        return float(found[0]["value"][1]) if len(found) == 1 else None

    def firing(self) -> dict[str, list[dict[str, Any]]]:
        """The alerts that fire now by name."""
        found: dict[str, list[dict[str, Any]]] = {}
        for one in self.get("alerts")["alerts"]:
            if one["state"] == "firing":
                found.setdefault(one["labels"]["alertname"], []).append(one)
        return found

    def wait_firing(self, alert: str, job: str | None = None) -> dict[str, Any]:
        """The alert once it fires, for a job where it is about one."""

        def fires() -> dict[str, Any] | None:
            all_of_it = self.firing().get(alert, [])
            return next((one for one in all_of_it if one["labels"].get("job") == job), None)

        return wait_for(fires, timeout=180, message=f"{alert} does not fire for {job}")


@contextlib.contextmanager
def prometheus(folder: Path, jobs: Mapping[str, Sequence[str]]) -> Iterator[Prometheus]:
    """A Prometheus that scrapes each job's addresses, with its data in `folder`."""
    program = tool("prometheus", package="prometheus")
    for name in ("recording", "alerts"):
        loaded = yaml.safe_load((RULES / f"{name}.yml").read_text(encoding="utf-8"))
        for group in loaded["groups"]:
            group["interval"] = SCRAPES
            group["rules"] = [shortened(rule) for rule in group["rules"]]
        (folder / f"{name}.yml").write_text(yaml.safe_dump(loaded), encoding="utf-8")
    settings = yaml.safe_load((RULES / "prometheus.yml").read_text(encoding="utf-8"))
    settings["global"] = {
        "scrape_interval": SCRAPES,
        "scrape_timeout": SCRAPES,
        "evaluation_interval": SCRAPES,
    }
    settings["scrape_configs"] = [
        {"job_name": job, "static_configs": [{"targets": list(addresses)}]} for job, addresses in jobs.items()
    ]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    with open(folder / "log", "w+", encoding="utf-8") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
                "--log.level=warn",
            ],
            cwd=folder,
            stdout=log,
            stderr=log,
        )

        def ready() -> bool:
            assert process.poll() is None, (folder / "log").read_text(encoding="utf-8")
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"http://{address}/-/ready", timeout=60),
            ):
                return True
            return False

        try:
            wait_for(ready, timeout=120, message="Prometheus is not ready")
            yield Prometheus(f"http://{address}")
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=60)
            process.kill()
            process.wait()
