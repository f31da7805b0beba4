"""Findings about a cluster's settings, findings that still allow a start, and the result of a small write."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry

from paywarden.features.stores.aerospike.cluster_check import (
    ERROR,
    WARNING,
    ClusterFinding,
    ClusterLook,
    examine,
    try_to_write,
)
from paywarden.features.stores.aerospike.metrics import AerospikeMetrics
from paywarden.features.stores.aerospike.sets import AerospikeSets
from paywarden.features.stores.aerospike.store import AerospikeSettings, AerospikeStore
from paywarden.schemas.errors import Misconfigured, StoreUnavailable
from tests.standin.aerospike_cluster import StandInCluster
from tests.standin.aerospike_server import Fault, StandIn
from tests.standin.patience import quick_settings

ROLE_VIOLATION = 81
DAY_S = 86_400


@pytest.fixture
def cluster() -> Iterator[StandInCluster]:
    """A cluster without a finding, but for the login that the stand-in does not have."""
    with StandInCluster(node_count=3) as running:
        for node in running.nodes:
            node.service_config["min-cluster-size"] = "2"
        yield running


def secured(settings: AerospikeSettings) -> AerospikeSettings:
    # Only for `examine`: the stand-in has no login and no TLS.
    return replace(settings, user="paywarden", password="secret", tls=True)


def findings(cluster: StandInCluster, **settings: object) -> list[ClusterFinding]:
    plain = quick_settings(*cluster.hosts)
    with closing(AerospikeStore(plain)) as store:
        changed: AerospikeSettings = replace(secured(plain), **settings)  # type: ignore[arg-type]
        return examine(store.reports(), changed, longest_ttl_s=91 * DAY_S)


def test_a_cluster_as_the_documents_want_it_has_no_finding(cluster: StandInCluster) -> None:
    assert findings(cluster) == []


@pytest.mark.parametrize(
    ("setting", "value", "severity"),
    [
        ("nsup-period", "0", ERROR),
        ("conflict-resolution-policy", "generation", WARNING),
        ("disable-write-dup-res", "true", WARNING),
        ("read-consistency-level-override", "one", WARNING),
        ("write-commit-level-override", "master", WARNING),
        ("reject-non-xdr-writes", "true", ERROR),
        ("evict-sys-memory-pct", "70", WARNING),
        ("storage-engine.evict-used-pct", "60", WARNING),
        ("high-water-memory-pct", "60", WARNING),
        ("evicted_objects", "7", WARNING),
        ("max-record-size", "131072", ERROR),
        ("stop_writes", "true", ERROR),
    ],
)
def test_a_dangerous_setting_of_one_node_is_found_and_names_the_node(
    cluster: StandInCluster, setting: str, value: str, severity: str
) -> None:
    cluster.nodes[1].namespace_config[setting] = value
    (finding,) = findings(cluster)
    assert finding.level == severity
    assert setting.partition("_")[0] in finding.what
    assert setting == "max-record-size" or cluster.nodes[1].node_name in finding.what
    assert finding.so
    assert finding.want


def test_every_finding_is_told_at_once_errors_first(cluster: StandInCluster) -> None:
    for node in cluster.nodes:
        node.namespace_config |= {"nsup-period": "0", "conflict-resolution-policy": "generation"}
        node.service_config["min-cluster-size"] = "1"
    found = findings(cluster)
    assert [finding.level for finding in found] == [ERROR, WARNING, WARNING]
    assert "nsup-period is 0 on every node" in found[0].what
    assert {"min-cluster-size is 1", "conflict-resolution-policy is not last-update-time on every node"} == {
        finding.what for finding in found[1:]
    }


def test_ttl_without_nsup_is_no_finding_where_it_is_allowed(cluster: StandInCluster) -> None:
    for node in cluster.nodes:
        node.namespace_config |= {"nsup-period": "0", "allow-ttl-without-nsup": "true"}
    assert findings(cluster) == []


def test_conflict_resolution_is_no_concern_of_strong_consistency(cluster: StandInCluster) -> None:
    for node in cluster.nodes:
        node.namespace_config |= {"strong-consistency": "true", "conflict-resolution-policy": "generation"}
    assert findings(cluster) == []


def test_our_own_settings_are_looked_at_too(cluster: StandInCluster) -> None:
    assert [one.what for one in findings(cluster, user="", tls=False)] == ["there is no login"]
    assert [one.what for one in findings(cluster, tls=False)] == ["TLS is off"]
    assert findings(cluster, record_bytes_max=2_000_000)[0].what == "max-record-size is 1048576 bytes"


def test_markers_must_outlive_profiles_on_a_community_server(cluster: StandInCluster) -> None:
    assert findings(cluster, marker_days=90) == []
    cluster.records.is_enterprise = False
    assert [one.what for one in findings(cluster, marker_days=90)] == ["[aerospike] marker_days is 90"]
    assert findings(cluster, marker_days=0) == []
    assert findings(cluster, marker_days=92) == []


ONE_COPY = {"effective_replication_factor": "1"}


@pytest.mark.parametrize(
    ("of_namespace", "build", "level", "what"),
    [
        ({}, "5.7.0.31", ERROR, "an old server on {node}"),
        ({**ONE_COPY, "replication-factor": "1"}, None, WARNING, "a record has a single copy"),
        ({"ns_cluster_size": "2"}, None, WARNING, "the nodes differ about the cluster's size"),
        ({"clock_skew_stop_writes": "true"}, None, ERROR, "clock_skew_stop_writes on {node}"),
        ({"storage-engine": "memory"}, None, WARNING, "the namespace is in memory alone on {node}"),
    ],
)
def test_what_a_node_says_of_itself_is_looked_at(
    cluster: StandInCluster, of_namespace: dict[str, str], build: str | None, level: str, what: str
) -> None:
    with closing(AerospikeStore(quick_settings(*cluster.hosts))) as store:
        first, *others = store.reports()
        settings = secured(store.settings)
    kept = {name: said for name, said in first.namespace.items() if not name.startswith("storage-engine.device")}
    odd = replace(first, namespace=kept | of_namespace, build=build or first.build)
    (finding,) = examine([odd, *others], settings)
    assert (finding.level, finding.what) == (level, what.format(node=first.name))
    assert examine([first, *others], settings) == []


def test_nodes_without_the_namespace_and_no_node_at_all_are_errors(cluster: StandInCluster) -> None:
    with closing(AerospikeStore(quick_settings(*cluster.hosts))) as store:
        reports, settings = [replace(report, namespace={}) for report in store.reports()], secured(store.settings)
    assert "the nodes do not have the namespace" in {one.what for one in examine(reports, settings)}
    (finding,) = examine([], settings)
    assert (finding.level, finding.what, finding.is_passing) == (ERROR, "no node answers", True)


def test_a_node_that_does_not_answer_is_a_finding_that_passes(cluster: StandInCluster) -> None:
    with closing(AerospikeStore(quick_settings(*cluster.hosts))) as store:
        cluster.nodes[2].info_faults.add(Fault.drop())
        (finding,) = examine(store.reports(), secured(store.settings))
    assert finding.what == "2 of 3 nodes answer"
    assert finding.is_passing


@pytest.mark.parametrize("build", ["8.1.0.3", "8.1.2.0"])
def test_a_server_that_does_not_know_release_gives_its_report(server: StandIn, build: str) -> None:
    server.build, server.records.is_enterprise = build, False
    with closing(AerospikeStore(quick_settings(server.address))) as store:
        (report,) = store.reports()
    assert (report.build, report.is_enterprise) == (build, False)
    assert report.namespace["effective_replication_factor"] == "1"


def test_a_set_with_a_limit_is_named(cluster: StandInCluster) -> None:
    cluster.records.count_limits["card"] = 1_000
    with closing(AerospikeStore(quick_settings(*cluster.hosts))) as store:
        store.write({b"card:1": b"value"}, ttl_s=0)
    (finding,) = findings(cluster)
    assert finding.what == "set card has a limit"


# At the start


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as running:
        yield running


def sets_of(server: StandIn, cluster_check: str, registry: CollectorRegistry | None = None) -> AerospikeSets:
    settings = replace(quick_settings(server.address), cluster_check=cluster_check)
    metrics = AerospikeMetrics(registry)
    return AerospikeSets(settings, ("card",), metrics=metrics, look=ClusterLook(settings, metrics))


def test_a_development_server_works_with_a_loud_log_line_for_each_finding(
    server: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    registry = CollectorRegistry()
    sets = sets_of(server, "warn", registry)
    for _ in range(2):
        with closing(sets.open("")) as store:
            store.write({b"card:1": b"value"}, ttl_s=60)
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [line for line in told if "a record has a single copy" in line] == told[:1]
    assert len(told) == 2
    assert all(server.address in line for line in told)
    assert registry.get_sample_value("paywarden_store_findings", {"level": "warning"}) == 2
    assert registry.get_sample_value("paywarden_store_findings", {"level": "error"}) == 0


def test_what_is_new_is_told_at_the_next_look(server: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    sets = sets_of(server, "warn")
    sets.open("").close()
    caplog.clear()
    server.namespace_config["nsup-period"] = "0"
    sets.open("").close()
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "nsup-period is 0" in record.getMessage()


def test_a_cluster_that_is_required_to_be_safe_is_refused_with_every_finding(server: StandIn) -> None:
    server.namespace_config["conflict-resolution-policy"] = "generation"
    with pytest.raises(Misconfigured, match="cluster_check requires") as refused:
        sets_of(server, "require").open("")
    assert "single copy" in str(refused.value)
    assert "last-update-time" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_required_cluster_starts_while_a_node_is_down(cluster: StandInCluster) -> None:
    settings = quick_settings(*cluster.hosts)
    look = ClusterLook(replace(secured(settings), cluster_check="require"), AerospikeMetrics())
    with closing(AerospikeStore(settings)) as store:
        cluster.nodes[2].info_faults.add(Fault.drop())
        look.at(store.reports())
        for node in cluster.nodes:
            node.namespace_config["conflict-resolution-policy"] = "generation"
        with pytest.raises(Misconfigured):
            look.at(store.reports())


def test_a_required_cluster_without_a_report_is_tried_again(server: StandIn) -> None:
    server.info_faults.add(Fault())
    server.info_faults.add(Fault.drop(), times=3)
    with pytest.raises(StoreUnavailable, match="cluster_check requires"):
        sets_of(server, "require").open("")


def test_with_off_nobody_looks(server: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    sets_of(server, "off").open("").close()
    assert caplog.records == []


# A small write


def test_a_user_who_may_write_leaves_nothing_behind(server: StandIn) -> None:
    with closing(AerospikeStore(quick_settings(server.address))) as store:
        assert try_to_write(store) == []
    assert server.records.by_digest == {}


def test_a_user_without_the_role_is_found(server: StandIn) -> None:
    with closing(AerospikeStore(quick_settings(server.address))) as store:
        server.faults.add(Fault.refuse_records(ROLE_VIOLATION), times=3)
        (finding,) = try_to_write(store)
    assert finding.level == ERROR
    assert "lacks the role" in finding.what


def test_a_server_that_takes_only_small_records_is_found(server: StandIn) -> None:
    server.records.record_bytes_max = 100_000
    with closing(AerospikeStore(quick_settings(server.address))) as store:
        (finding,) = try_to_write(store)
    assert "record_bytes_max" in finding.what
