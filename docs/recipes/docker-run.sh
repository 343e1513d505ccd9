#!/bin/sh
# Runs a command in an environment of the NAS, in a container of docs/recipes/Dockerfile, in this folder:
#
#     ./docker-run.sh etl/extract python extract.py --day 2026-01-31
#
# ROOT is mounted at the path that it has everywhere, and read-only: nothing of it is written to. What runs longer than
# the collector's grace period takes a lease (docs/leases.md), and needs ROOT/leases once more, without `readonly`.
set -eu
root=${ENVFABRIC_ROOT:-/mnt/nas}
id=$1
shift
exec docker run --rm --init --user "$(id -u):$(id -g)" \
    --mount "type=bind,src=$root,dst=$root,readonly" \
    --mount "type=bind,src=$PWD,dst=/job" --workdir /job \
    --env "ENVFABRIC_ROOT=$root" \
    envfabric-node envfabric exec "$id" -- "$@"
