"""Looks for settings of a cluster with which it loses, forgets or refuses records. Changes nothing.

    error      profiles cannot be written, or not all of them
    warning    acknowledged records can be lost, or come back after they were erased

`examine` takes the nodes' reports; docs/operate/aerospike.md has a configuration without findings.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from paywarden.features.stores.aerospike.client import AerospikeSettings, describe
from paywarden.features.stores.aerospike.metrics import FINDING_LEVELS, AerospikeMetrics
from paywarden.features.stores.aerospike.servers import NodeReport, number, takes_ttl
from paywarden.features.stores.aerospike.store import AerospikeStore
from paywarden.schemas.errors import Misconfigured, PaywardenError, StoreUnavailable

_log = logging.getLogger(__name__)

ERROR, WARNING = FINDING_LEVELS
_LOG_LEVELS = {ERROR: logging.ERROR, WARNING: logging.WARNING}

_BUILD_MIN = (6, 0)
_DAY_S = 86_400
# In a set of its own, where `paywarden` also looks for a record when it opens the store.
_PROBE_KEY = b"paywarden:check"
_PROBE_TTL_S = 60
# The parts of a record besides our bytes: its header, key, and the name of set and bin.
_RECORD_OVERHEAD_BYTES = 1_024
# With two nodes a majority would be both, and one node's loss would stop everything.
_MAJORITY_NODE_COUNT = 3
# Settings that let a namespace remove records before their time, in the words of servers from 6.0 on.
_EVICTION = (
    "evict-sys-memory-pct",
    "evict-indexes-memory-pct",
    "storage-engine.evict-used-pct",
    "index-type.evict-mounts-pct",
    "sindex-type.evict-mounts-pct",
    "high-water-memory-pct",
    "high-water-disk-pct",
)


@dataclass(frozen=True)
class ClusterFinding:
    """One thing that is wrong: what was seen, what it does, and what to set instead.

    `is_passing` if it may be over without a change of settings: a node that is down, or clocks that differ.
    """

    level: str
    what: str
    so: str
    want: str
    is_passing: bool = False

    def __str__(self) -> str:
        return f"{self.what}: {self.so}; wanted {self.want}"


def examine(
    reports: Sequence[NodeReport], settings: AerospikeSettings, *, longest_ttl_s: int = 0
) -> list[ClusterFinding]:
    """Returns every finding, errors first. `longest_ttl_s` is the longest time to live of a profile, 0 if unknown."""
    if not reports:
        return [
            ClusterFinding(
                ERROR, "no node answers", "nothing is known about the cluster", "a cluster that answers", True
            )
        ]
    found = [finding for check in _CHECKS for finding in check(reports, settings)]
    if not all(report.is_enterprise for report in reports):
        found += _marker_findings(settings, longest_ttl_s)
    return sorted(found, key=lambda finding: finding.level != ERROR)


def _nodes(reports: Sequence[NodeReport], is_wrong: Callable[[NodeReport], bool]) -> str:
    """Returns the names of the nodes that are wrong, "every node" or an empty text."""
    wrong = [report.name for report in reports if is_wrong(report)]
    return "every node" if len(wrong) == len(reports) else ", ".join(wrong)


def _expiry(reports: Sequence[NodeReport], _: AerospikeSettings) -> Iterator[ClusterFinding]:
    if where := _nodes(reports, lambda report: not takes_ttl(report.namespace)):
        yield ClusterFinding(
            ERROR, f"nsup-period is 0 on {where}", "no profile can be written, since profiles expire", "nsup-period 120"
        )


def _stopped(reports: Sequence[NodeReport], _: AerospikeSettings) -> Iterator[ClusterFinding]:
    for name in ("stop_writes", "clock_skew_stop_writes"):
        if where := _nodes(reports, lambda report, name=name: report.namespace.get(name) == "true"):  # type: ignore[misc]
            want = "room, and clocks in step (NTP)"
            yield ClusterFinding(ERROR, f"{name} on {where}", "no record can be written now", want, is_passing=True)


def _build(reports: Sequence[NodeReport], _: AerospikeSettings) -> Iterator[ClusterFinding]:
    if where := _nodes(reports, lambda report: _is_too_old(report.build)):
        yield ClusterFinding(ERROR, f"an old server on {where}", "it has no batch writes", "Aerospike 6.0 or newer")


def _is_too_old(build: str) -> bool:
    parts = build.split(".")[:2]
    return all(part.isdecimal() for part in parts) and bool(build) and tuple(map(int, parts)) < _BUILD_MIN


def _record_size(reports: Sequence[NodeReport], settings: AerospikeSettings) -> Iterator[ClusterFinding]:
    wanted = settings.record_bytes_max + _RECORD_OVERHEAD_BYTES
    # 0 is no limit of its own. Before 7.1 the size of a block was the limit.
    for name in ("max-record-size", "storage-engine.write-block-size"):
        limits = [limit for report in reports if (limit := number(report.namespace, name))]
        if limits and min(limits) < wanted:
            yield ClusterFinding(
                ERROR,
                f"{name} is {min(limits)} bytes",
                "a larger record is refused for ever",
                f"{wanted} bytes, or a smaller [aerospike] record_bytes_max",
            )
            return


def _copies(reports: Sequence[NodeReport], _: AerospikeSettings) -> Iterator[ClusterFinding]:
    copies = [count for report in reports if (count := number(report.namespace, "effective_replication_factor"))]
    if not copies:
        yield ClusterFinding(
            ERROR, "the nodes do not have the namespace", "nothing can be read or written", "the namespace"
        )
        return
    if min(copies) == 1:
        configured = [number(report.namespace, "replication-factor") or 1 for report in reports]
        yield ClusterFinding(
            WARNING,
            "a record has a single copy",
            "a killed node loses its last second of acknowledged writes, and a lost one all of its records",
            "replication-factor 2 on two nodes or more; after a kill run `paywarden admin store verify`",
            # With two copies configured, it is the other nodes that are missing.
            is_passing=min(configured) > 1 and len(reports) == 1,
        )
    sizes = [size for report in reports if (size := number(report.namespace, "ns_cluster_size"))]
    if sizes and max(sizes) != len(reports):
        yield ClusterFinding(
            WARNING,
            f"{len(reports)} of {max(sizes)} nodes answer",
            "the others were not looked at",
            "all of them",
            True,
        )
    if len(set(sizes)) > 1:
        yield ClusterFinding(WARNING, "the nodes differ about the cluster's size", "it is parted", "one cluster", True)
    size = max(sizes, default=1)
    minima = [number(report.service, "min-cluster-size") or 1 for report in reports]
    if size >= _MAJORITY_NODE_COUNT and min(minima) <= size // 2:
        yield ClusterFinding(
            WARNING,
            f"min-cluster-size is {min(minima)}",
            "when the network parts, both sides take writes, and one side's are lost",
            f"min-cluster-size {size // 2 + 1}",
        )


def _conflicts(reports: Sequence[NodeReport], _: AerospikeSettings) -> Iterator[ClusterFinding]:
    def resolves_wrongly(report: NodeReport) -> bool:
        policy = report.namespace.get("conflict-resolution-policy", "last-update-time")
        return report.namespace.get("strong-consistency") != "true" and policy != "last-update-time"

    if where := _nodes(reports, resolves_wrongly):
        yield ClusterFinding(
            WARNING,
            f"conflict-resolution-policy is not last-update-time on {where}",
            "a record that was written 65,535 times goes back to an old copy when a node returns",
            "conflict-resolution-policy last-update-time",
        )


def _overrides(reports: Sequence[NodeReport], _: AerospikeSettings) -> Iterator[ClusterFinding]:
    for name, wrong, so, want in (
        ("read-consistency-level-override", "one", "a read may miss what was acknowledged", "off"),
        ("write-commit-level-override", "master", "a write is acknowledged before it has its copies", "off"),
        ("disable-write-dup-res", "true", "a node that comes back writes over newer copies", "false"),
        ("reject-non-xdr-writes", "true", "no record can be written", "false"),
    ):
        if where := _nodes(reports, lambda report, name=name, wrong=wrong: report.namespace.get(name) == wrong):  # type: ignore[misc]
            level = ERROR if name == "reject-non-xdr-writes" else WARNING
            yield ClusterFinding(level, f"{name} is {wrong} on {where}", so, f"{name} {want}")


def _eviction(reports: Sequence[NodeReport], _: AerospikeSettings) -> Iterator[ClusterFinding]:
    for name in _EVICTION:
        if where := _nodes(reports, lambda report, name=name: bool(number(report.namespace, name))):  # type: ignore[misc]
            yield ClusterFinding(
                WARNING,
                f"{name} is set on {where}",
                "profiles are removed before their time when it is full",
                f"{name} 0",
            )
    if where := _nodes(reports, lambda report: bool(number(report.namespace, "evicted_objects"))):
        yield ClusterFinding(
            WARNING, f"{where} has evicted records", "profiles are missing", "a rebuild, more room", True
        )


def _storage(reports: Sequence[NodeReport], _: AerospikeSettings) -> Iterator[ClusterFinding]:
    def is_in_memory_alone(report: NodeReport) -> bool:
        of_namespace = report.namespace
        has_device = any(name.startswith(("storage-engine.device", "storage-engine.file[")) for name in of_namespace)
        return of_namespace.get("storage-engine") == "memory" and not has_device

    if where := _nodes(reports, is_in_memory_alone):
        yield ClusterFinding(
            WARNING,
            f"the namespace is in memory alone on {where}",
            "its records are gone when all nodes that have a copy stop at once",
            "a device or a file",
        )


def _set_limits(reports: Sequence[NodeReport], _: AerospikeSettings) -> Iterator[ClusterFinding]:
    names = sorted(
        {
            name
            for report in reports
            for name, of_set in report.sets.items()
            if number(of_set, "stop-writes-count") or number(of_set, "stop-writes-size")
        }
    )
    if names:
        yield ClusterFinding(
            WARNING, f"set {', '.join(names)} has a limit", "at the limit its writes stop, and the stream waits", "none"
        )


def _login(_: Sequence[NodeReport], settings: AerospikeSettings) -> Iterator[ClusterFinding]:
    if not settings.user and settings.auth_mode != "pki":
        yield ClusterFinding(
            WARNING, "there is no login", "anyone who reaches the port reads and writes", "security, a user, TLS"
        )
    if not settings.tls and (settings.user or settings.auth_mode == "pki"):
        yield ClusterFinding(WARNING, "TLS is off", "records travel as they are", "[aerospike] tls = true")


def _marker_findings(settings: AerospikeSettings, longest_ttl_s: int) -> Iterator[ClusterFinding]:
    if settings.marker_days and settings.marker_days * _DAY_S <= longest_ttl_s:
        yield ClusterFinding(
            WARNING,
            f"[aerospike] marker_days is {settings.marker_days}",
            f"profiles live for {longest_ttl_s // _DAY_S} days, and an erased one may come back after its marker",
            "a longer time, or 0 for ever",
        )


_CHECKS: tuple[Callable[[Sequence[NodeReport], AerospikeSettings], Iterator[ClusterFinding]], ...] = (
    _expiry,
    _stopped,
    _build,
    _record_size,
    _copies,
    _conflicts,
    _overrides,
    _eviction,
    _storage,
    _set_limits,
    _login,
)


class ClusterLook:
    """Looks at the cluster whenever a process opens a profile set, and does what `cluster_check` says."""

    def __init__(self, settings: AerospikeSettings, metrics: AerospikeMetrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._told: set[str] = set()

    def at(self, reports: Sequence[NodeReport]) -> None:
        """Log each finding that was not logged before.

        With "require" raises Misconfigured, unless all findings pass, and StoreUnavailable without any report.
        """
        if self._settings.cluster_check == "off":
            return
        if not reports and self._settings.cluster_check == "require":
            raise StoreUnavailable(
                f"{describe(self._settings)}: no node says how it is set up, as [aerospike] cluster_check requires"
            )
        found = examine(reports, self._settings)
        for level in FINDING_LEVELS:
            self._metrics.found(level, sum(finding.level == level for finding in found))
        for finding in found:
            if str(finding) not in self._told:
                _log.log(_LOG_LEVELS[finding.level], "%s: %s", describe(self._settings), finding)
        self._told = set(map(str, found))
        lasting = [str(finding) for finding in found if not finding.is_passing]
        if lasting and self._settings.cluster_check == "require":
            raise Misconfigured(
                f"{describe(self._settings)} is not as [aerospike] cluster_check requires: {'; '.join(lasting)}"
            )


def try_to_write(store: AerospikeStore) -> list[ClusterFinding]:
    """Write, read and erase one record of the largest size that expires; returns a finding if one of these fails."""
    value = bytes(store.settings.record_bytes_max)
    try:
        store.write({_PROBE_KEY: value}, ttl_s=_PROBE_TTL_S)
        is_there = store.read([_PROBE_KEY]) == [value]
        store.delete([_PROBE_KEY])
    except PaywardenError as error:
        return [
            ClusterFinding(ERROR, str(error), "profiles cannot be written, read or erased", "a user who may, and room")
        ]
    if is_there:
        return []
    return [
        ClusterFinding(
            ERROR, "a record that was written is not there", "profiles are lost", "a look at the servers' logs"
        )
    ]
