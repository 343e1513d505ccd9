"""Writes the dashboards' JSON beside this file: `python dashboards/generate.py`, with the dev dependencies.

The JSON is committed and is what Grafana is given; a test compares it with what this makes.
"""

import json
import sys
from pathlib import Path

from cluster import cluster
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from health import health
from storage import storage


def made() -> dict[str, str]:
    """The JSON of each dashboard by its file's name."""
    boards = {f"{one.__name__}.json": one().build() for one in (health, storage, cluster)}
    for board in boards.values():
        for number, panel in enumerate(board.panels or [], 1):
            # A panel's own address hangs on it.
            panel.id_val = number
    return {
        name: json.dumps(board, cls=JSONEncoder, indent=2, sort_keys=True) + "\n"
        for name, board in boards.items()
    }


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name, text in made().items():
        (target / name).write_text(text, encoding="utf-8")
