"""Metrics: the names and labels of the contract, there from the start."""

import pytest
from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from envfabric.core.errors import Reason
from envfabric.telemetry.metrics import Metrics

COUNTERS = {
    "reconciles_total", "reconcile_failures_total", "builds_total", "build_failures_total",
    "closure_requests_total", "closure_hits_total", "link_fallbacks_total", "gc_removed_total",
    "gc_reclaimed_bytes_total", "fetches_total", "fetch_failures_total",
    "farm_lost_builds_total", "farm_refusals_total", "drift_total", "bytecode_linked_total",
    "bytecode_compiled_total", "gc_runs_total", "gc_failures_total",
}  # fmt: skip
GAUGES = {
    "build_info", "reconcile_last_success_timestamp_seconds", "builds_in_progress", "build_queue_length",
    "store_logical_bytes", "store_physical_bytes", "disk_saved_bytes", "store_closures", "store_inodes",
    "specs", "index_last_publish_timestamp_seconds", "writer", "leases",
    "revision_held_back", "bytecode_inodes", "bytecode_bytes", "root_size_bytes", "root_free_bytes",
    "root_inodes", "root_free_inodes", "lease_hosts", "leased_closures",
    "leased_oldest_built_timestamp_seconds", "gc_last_success_timestamp_seconds",
}  # fmt: skip
HISTOGRAMS = {"reconcile_duration_seconds", "build_duration_seconds", "commit_to_publish_seconds"}
LABELS = {
    "build_failures_total": ("reason", {reason.value for reason in Reason}),
    "build_duration_seconds_count": (
        "phase",
        {"resolve", "sync", "bytecode", "seal", "validate", "total"},
    ),
    "drift_total": ("kind", {"closure", "seal", "generation", "link"}),
    "leased_closures": ("use", {"served", "superseded", "absent"}),
    "specs": ("state", {"pending", "building", "ready", "stale", "failed"}),
}


@pytest.fixture
def families() -> list[Metric]:
    """All of its own that a daemon exports that has just begun, as a Prometheus reads it."""
    return [one for one in exported() if not one.name.startswith("process_")]


def exported() -> list[Metric]:
    """All that a daemon exports that has just begun."""
    metrics = Metrics()
    metrics.describe("0.1.0", "0.13.8")
    return list(text_string_to_metric_families(generate_latest(metrics.registry).decode()))


def samples(families: list[Metric], name: str) -> dict[tuple[tuple[str, str], ...], float]:
    """A series' values by its labels."""
    return {
        tuple(sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
        if sample.name == f"envfabric_{name}"
    }


@pytest.mark.parametrize(
    ("kind", "names"), [("counter", COUNTERS), ("gauge", GAUGES), ("histogram", HISTOGRAMS)]
)
def test_exactly_the_contracts_names(families: list[Metric], kind: str, names: set[str]) -> None:
    """Each name of the contract is exported with its type, and no other."""
    ending = "_total" if kind == "counter" else ""
    found = {f"{one.name}{ending}" for one in families if one.type == kind}
    assert found == {f"envfabric_{name}" for name in names}
    assert {one.type for one in families} == {"counter", "gauge", "histogram"}


@pytest.mark.parametrize("name", sorted(COUNTERS | GAUGES - {"build_info"}))
def test_every_series_is_there_from_the_start(families: list[Metric], name: str) -> None:
    """Everything is exported as 0 before it first happens: a rate over it works at once."""
    values = samples(families, name)
    assert values
    assert set(values.values()) == {0.0}


@pytest.mark.parametrize("name", LABELS)
def test_known_label_values_are_there_from_the_start(families: list[Metric], name: str) -> None:
    """Each reason, phase and state has its series before it first happens, and there are no others."""
    label, values = LABELS[name]
    assert samples(families, name) == {((label, value),): 0.0 for value in values}


def test_labels_are_the_contracts(families: list[Metric]) -> None:
    """No label but the contract's: above all no spec id, digest or commit, which would be series each."""
    used = {label for family in families for sample in family.samples for label in sample.labels}
    assert used == {"reason", "phase", "state", "kind", "use", "le", "version", "uv", "python"}


def test_no_created_series(families: list[Metric]) -> None:
    """There are no _created series, which double the number for nothing."""
    names = {sample.name for family in families for sample in family.samples}
    assert [name for name in names if name.endswith("_created")] == []


def test_every_metric_explains_itself(families: list[Metric]) -> None:
    """Each has a text, begins with the prefix, and is in base units."""
    for family in families:
        assert len(family.documentation) > 10, family.name
        assert family.name.startswith("envfabric_")
        assert not family.name.endswith(("_ms", "_milliseconds", "_kb", "_mb", "_percent"))


def test_build_buckets_reach_half_an_hour(families: list[Metric]) -> None:
    """A build that takes as long as it may still falls into a bucket with an end."""
    ends = {float(dict(labels)["le"]) for labels in samples(families, "build_duration_seconds_bucket")}
    assert max(end for end in ends if end != float("inf")) == 1800.0


def test_build_info_names_the_versions(families: list[Metric]) -> None:
    """build_info is 1 with the versions of the daemon, of uv and of Python."""
    ((labels, value),) = samples(families, "build_info").items()
    assert value == 1.0
    assert dict(labels)["version"] == "0.1.0"
    assert dict(labels)["uv"] == "0.13.8"
    assert dict(labels)["python"].startswith("3.")


def test_the_process_shows_itself() -> None:
    """When it started, and what it takes: under the names that every exporter of Prometheus has them by."""
    found = {one.name: one.samples[0].value for one in exported() if one.name.startswith("process_")}
    assert found.keys() >= {"process_start_time_seconds", "process_resident_memory_bytes", "process_open_fds"}
    assert all(found.values())


def test_two_daemons_do_not_share_values() -> None:
    """Each instance has a registry of its own."""
    one, two = Metrics(), Metrics()
    one.builds.inc()
    assert two.registry.get_sample_value("envfabric_builds_total") == 0.0
    assert one.registry.get_sample_value("envfabric_builds_total") == 1.0
