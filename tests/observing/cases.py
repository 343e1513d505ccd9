"""For each alert: series under which it fires, the moment before that at which it does not, and series under which
it never does although they come near. In the notation of promtool, one value a minute."""

from dataclasses import dataclass, field

Series = dict[str, str]
"""Values by selector; a job and an instance are added where the selector has none."""

_W = {"envfabric_writer": "1x3000"}
_INFO = {"envfabric_build_info": "1x3000"}
_PUBLISH = "envfabric_commit_to_publish_seconds_bucket"


@dataclass(frozen=True)
class Case:
    """One alert's."""

    sick: Series
    before: int
    """Minutes after which it does not fire yet."""
    fires: int
    """Minutes after which it does."""
    well: list[Series]
    labels: dict[str, str] = field(default_factory=lambda: {"job": "envfabric"})
    every: str = "1m"
    """How often the rules are evaluated: a day of minutes is much work."""


BY_INSTANCE = {"job": "envfabric", "instance": "one:9466"}


def _specs(**states: int) -> Series:
    return _W | {f'envfabric_specs{{state="{state}"}}': f"{count}x3000" for state, count in states.items()}


def _publish(quick: str) -> Series:
    return {f'{_PUBLISH}{{le="{le}"}}': quick if le == "300" else "0+1x300" for le in ("300", "1800", "+Inf")}


def _two(one: int, other: int) -> Series:
    return {
        "envfabric_writer": f"{one}x60",
        'envfabric_writer{job="envfabric", instance="two:9466"}': f"{other}x60",
    }


CASES = {
    "EnvfabricAbsent": Case({"node_load1": "1x30"}, 4, 7, [_INFO], {}),
    "EnvfabricReconcileStuck": Case(
        _W
        | {
            "process_start_time_seconds": "0x300",
            "envfabric_reconcile_last_success_timestamp_seconds": "60x300",
        },
        14,
        18,
        [
            _W
            | {
                "process_start_time_seconds": "0x300",
                "envfabric_reconcile_last_success_timestamp_seconds": "0+60x300",
            },
            # One that has only just begun, and has not looked yet.
            _W
            | {
                "process_start_time_seconds": "900x300",
                "envfabric_reconcile_last_success_timestamp_seconds": "0x300",
            },
            # A standby, whose last look is long ago.
            {
                "envfabric_writer": "0x300",
                "process_start_time_seconds": "0x300",
                "envfabric_reconcile_last_success_timestamp_seconds": "60x300",
            },
        ],
    ),
    "EnvfabricBuildsFailing": Case(
        {'envfabric_build_failures_total{reason="fetch"}': "0 0 1x60"},
        8,
        16,
        [
            {'envfabric_build_failures_total{reason="policy"}': "0+1x60"},
            {'envfabric_build_failures_total{reason="fetch"}': "3x60"},
        ],
    ),
    "EnvfabricIndexStale": Case(
        _specs(building=1, ready=3) | {"envfabric_index_last_publish_timestamp_seconds": "0x300"},
        38,
        43,
        [
            _specs(building=0, ready=3) | {"envfabric_index_last_publish_timestamp_seconds": "0x300"},
            _specs(building=1, ready=3) | {"envfabric_index_last_publish_timestamp_seconds": "0+60x300"},
        ],
    ),
    "EnvfabricPublishSlow": Case(_publish("0x300"), 8, 15, [_publish("0+1x300"), _publish("0x2 100x300")]),
    "EnvfabricTargetDown": Case(
        {"up": "0x30"}, 4, 7, [{"up": "1x30"}, {'up{job="node", instance="one:9100"}': "0x30"}], BY_INSTANCE
    ),
    "EnvfabricStandbyOnly": Case(_two(0, 0), 4, 8, [_two(1, 0)]),
    "EnvfabricTwoWriters": Case(_two(1, 1), 1, 5, [_two(1, 0)]),
    "EnvfabricRestarting": Case(
        _INFO | {"process_start_time_seconds": "0x4 300x4 600x4 900x60"},
        12,
        20,
        [
            _INFO | {"process_start_time_seconds": "0x20 1200x20 2400x20"},
            {"process_start_time_seconds": "0x4 300x4 600x4 900x60"},
        ],
        BY_INSTANCE,
    ),
    "EnvfabricFetchFailing": Case(
        {"envfabric_fetches_total": "0+1x60", "envfabric_fetch_failures_total": "0+1x60"},
        8,
        20,
        [
            {"envfabric_fetches_total": "0+1x60", "envfabric_fetch_failures_total": "0x9 1x3 2x60"},
            {"envfabric_fetches_total": "0x60", "envfabric_fetch_failures_total": "0x60"},
        ],
        BY_INSTANCE,
    ),
    "EnvfabricRevisionHeldBack": Case(
        {"envfabric_revision_held_back": "1x30"}, 4, 7, [{"envfabric_revision_held_back": "0x30"}]
    ),
    "EnvfabricEnvironmentsFailing": Case(_specs(stale=1, ready=9), 28, 33, [_specs(stale=0, ready=9)]),
    "EnvfabricManyFailing": Case(
        _specs(failed=2, stale=1, ready=7), 13, 18, [_specs(failed=1, stale=1, ready=8)]
    ),
    "EnvfabricLinkFallback": Case(
        {"envfabric_link_fallbacks_total": "0x4 7x60"},
        4,
        10,
        [{"envfabric_link_fallbacks_total": "7x60"}],
        BY_INSTANCE,
    ),
    "EnvfabricDiskLow": Case(
        {"envfabric_root_size_bytes": "100x60", "envfabric_root_free_bytes": "9x60"},
        13,
        18,
        [{"envfabric_root_size_bytes": "100x60", "envfabric_root_free_bytes": "11x60"}],
    ),
    "EnvfabricDiskFull": Case(
        {"envfabric_root_size_bytes": "100x60", "envfabric_root_free_bytes": "2x60"},
        4,
        8,
        [{"envfabric_root_size_bytes": "100x60", "envfabric_root_free_bytes": "4x60"}],
    ),
    "EnvfabricInodesLow": Case(
        {"envfabric_root_inodes": "100x60", "envfabric_root_free_inodes": "9x60"},
        13,
        18,
        [
            {"envfabric_root_inodes": "100x60", "envfabric_root_free_inodes": "11x60"},
            # A file system that does not count them.
            {"envfabric_root_inodes": "0x60", "envfabric_root_free_inodes": "0x60"},
        ],
    ),
    "EnvfabricCollectorFailing": Case(
        {"envfabric_gc_runs_total": "0x60 1x60 2x60", "envfabric_gc_failures_total": "0x60 1x60 2x60"},
        50,
        150,
        [
            {"envfabric_gc_runs_total": "0x60 1x60 2x60", "envfabric_gc_failures_total": "0x60 1x120"},
            {"envfabric_gc_runs_total": "0+1x180", "envfabric_gc_failures_total": "0x180"},
        ],
        BY_INSTANCE,
    ),
    "EnvfabricCollectorIdle": Case(
        _W | {"envfabric_gc_last_success_timestamp_seconds": "60x2000"},
        1480,
        1540,
        [
            _W | {"envfabric_gc_last_success_timestamp_seconds": "0x2000"},
            {"envfabric_writer": "0x2000", "envfabric_gc_last_success_timestamp_seconds": "60x2000"},
        ],
        BY_INSTANCE,
        "20m",
    ),
    "EnvfabricDrift": Case(
        {'envfabric_drift_total{kind="closure"}': "0x4 1x60"},
        4,
        10,
        [{'envfabric_drift_total{kind="link"}': "0x4 1x60"}, {'envfabric_drift_total{kind="seal"}': "2x60"}],
        {"job": "envfabric", "kind": "closure"},
    ),
    "EnvfabricLeasedClosureAbsent": Case(
        _W | {'envfabric_leased_closures{use="absent"}': "1x60"},
        13,
        18,
        [
            _W | {'envfabric_leased_closures{use="superseded"}': "1x60"},
            {"envfabric_writer": "0x60", 'envfabric_leased_closures{use="absent"}': "1x60"},
        ],
    ),
    "EnvfabricFilesOpen": Case(
        _INFO | {"process_open_fds": "81x60", "process_max_fds": "100x60"},
        13,
        18,
        [
            _INFO | {"process_open_fds": "79x60", "process_max_fds": "100x60"},
            {"process_open_fds": "81x60", "process_max_fds": "100x60"},
        ],
        BY_INSTANCE,
    ),
    "EnvfabricFarmLosing": Case(
        {"envfabric_farm_lost_builds_total": "0x4 9x60"},
        4,
        10,
        [{"envfabric_farm_lost_builds_total": "0x4 3x60", "envfabric_farm_refusals_total": "0x4 9x60"}],
        BY_INSTANCE,
    ),
}
