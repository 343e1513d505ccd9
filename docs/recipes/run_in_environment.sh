#!/bin/sh
# Runs an environment's Python where envfabric is not installed:
#
#     ENVFABRIC_ROOT=/mnt/nas ./run_in_environment.sh etl/extract extract.py --day 2026-01-31
#
# With envfabric it is `envfabric exec etl/extract -- python extract.py …`, which sets the spec's env_vars, too. Neither
# holds a lease: docs/leases.md has a script for what runs longer than the collector's grace period.
set -eu
id=$1
shift
# A client of NFS may go on showing the index from before until it has looked at the folder.
ls "$ENVFABRIC_ROOT" >/dev/null
python=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["python"][sys.argv[2]])' \
    "$ENVFABRIC_ROOT/index.json" "$id")
# Read once, and kept: this path is one sealed environment, and index.json names another one after the next commit.
VIRTUAL_ENV=${python%/bin/python}
PATH=${python%/python}:$PATH
export VIRTUAL_ENV PATH
exec "$python" "$@"
