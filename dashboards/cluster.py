"""The dashboard of a cluster's use: who holds which environments, how old they are, and what the farm does."""

from grafana_foundation_sdk.builders.dashboard import Dashboard
from parts import Ask, board, graph, grown, number, of, writers

_THERE = 'use!="absent"'


def cluster() -> Dashboard:
    """What consumers hold by their leases."""
    made = board(
        "envfabric-cluster",
        "Environment Fabric: a cluster's use",
        "What the leases say of the environments in use: how many, on how many hosts, and whether they are the current "
        "ones. Readers without a lease are not seen.",
        "envfabricleasedclosureabsent",
    )
    made.with_panel(
        number(
            "In use now",
            "Leases in force, hosts that hold one, and closures that are held. Counted once a minute.",
            "short",
            [
                Ask(f"sum{writers('envfabric_leases')}", "leases"),
                Ask(f"sum{writers('envfabric_lease_hosts')}", "hosts"),
                Ask(f"sum{writers('envfabric_leased_closures')}", "closures"),
            ],
            width=10,
        )
    )
    made.with_panel(
        number(
            "Oldest in use",
            "The age of the oldest closure that somebody leases: work that goes on with what was built so long ago.",
            "s",
            [
                Ask(
                    f"time() - min({writers('envfabric_leased_oldest_built_timestamp_seconds')} > 0)",
                    "built",
                )
            ],
            width=6,
        )
    )
    made.with_panel(
        number(
            "Versions",
            "Daemons by release, uv and Python.",
            "short",
            [
                Ask(
                    f"count by (version, uv, python) ({of('envfabric_build_info')})",
                    "{{version}}, uv {{uv}}, Python {{python}}",
                )
            ],
        )
    )
    made.with_panel(
        graph(
            "Leases",
            "Leases in force and the hosts that hold them.",
            "short",
            [
                Ask(f"sum{writers('envfabric_leases')}", "leases"),
                Ask(f"sum{writers('envfabric_lease_hosts')}", "hosts"),
            ],
        )
    )
    made.with_panel(
        graph(
            "Which generations",
            "Leased closures by what the index has of them. served: named in it. superseded: of an earlier "
            "generation, or of a spec that is gone. absent: not in the store, which should never be.",
            "short",
            [Ask(f"sum by (use) {writers('envfabric_leased_closures')}", "{{use}}")],
            stacked=True,
        )
    )
    made.with_panel(
        graph(
            "Share of the store in use",
            "Leased closures out of those in the store.",
            "percentunit",
            [
                Ask(
                    f"sum{writers('envfabric_leased_closures', _THERE)} / "
                    f"sum{writers('envfabric_store_closures')}",
                    "leased",
                )
            ],
            most=1,
        )
    )
    made.with_panel(
        graph(
            "Farm",
            "Builds that were under way on a node when it was lost, and times that a node was found unfit to build.",
            "short",
            [
                Ask(f"sum({grown('envfabric_farm_lost_builds_total')})", "builds lost"),
                Ask(f"sum({grown('envfabric_farm_refusals_total')})", "nodes unfit"),
            ],
            bars=True,
        )
    )
    return made
