"""`envfabric pythons`: which interpreters there are, which requests mean them, and how many closures they carry.

Reads ROOT and changes nothing: what a daemon brought the collector removes, and the rest is for a person to.
"""

import json
import os
from pathlib import Path

import typer
from rich.table import Table

from envfabric.build.pythons import listed
from envfabric.cli.options import AsJson, Config, RootOption
from envfabric.cli.show import console
from envfabric.client import index
from envfabric.core.ids import shown
from envfabric.store.root import open_root


def pythons(*, as_json: AsJson = False, root: RootOption = None, config: Config = None) -> None:
    """List the interpreters that environments are made from, and what uses each."""
    found = listed(open_root(Path(index.find_root(root, config))))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    table = Table("VERSION", "WHERE", "CLOSURES", "ASKED FOR AS", "PATH", box=None)
    for one in found:
        where = "on the NAS" if one["managed"] else f"on {os.uname().nodename}"
        if one["managed"] and not one["brought"]:
            where += ", by hand"
        # The bar separates what a spec asks for from its requires-python.
        asked = ", ".join(request.rstrip("|").replace("|", " ") for request in one["requests"])
        table.add_row(
            shown(one["version"], 40),
            where if one["present"] else "gone",
            str(one["closures"]),
            shown(asked, 200) or "-",
            shown(one["path"], 300),
        )
    console().print(table)
