"""Reads the reports of an Aerospike cluster's nodes about themselves, and explains why a node forbids a write.

Each node is asked for its statistics and configuration. Result code 22 has several meanings, which only these tell
apart:

    nsup-period is 0            the namespace takes no records that expire          an administrator must change it
    clock_skew_stop_writes      the clocks of the nodes differ too much             passes
    stop-writes-count, -size    the set is at its limit                             passes when records go
    truncate_lut ahead          the set is being truncated up to a later time       passes
    strong-consistency          a delete that is not durable                        never asked for: store.py
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import aerospike
from aerospike import exception as client_errors

from paywarden.features.stores.aerospike.client import AerospikeSettings

# The server counts milliseconds from 2010-01-01 UTC.
_EPOCH_MS = 1_262_304_000_000
_SERVICE = "get-config:context=service"
_ENTERPRISE = ("enterprise", "federal")


@dataclass(frozen=True)
class NodeReport:
    """One node: statistics and configuration of the namespace, of its sets by name, and of the node itself.

    `edition` is empty if the node does not say. `build` is its version, such as 8.1.2.0.
    """

    name: str
    namespace: dict[str, str]
    sets: dict[str, dict[str, str]]
    service: dict[str, str]
    edition: str
    build: str

    @property
    def is_enterprise(self) -> bool | None:
        """Whether the node can delete durably. None if it does not say."""
        if not self.edition:
            return None
        return any(word in self.edition.lower() for word in _ENTERPRISE)


def ask_nodes(client: aerospike.Client, settings: AerospikeSettings) -> list[NodeReport]:
    """Returns the reports of the nodes that answer. Takes up to `info_timeout_ms` a node. Raises nothing."""
    try:
        names = [node["node_name"] for node in client.get_node_names()]
    except client_errors.AerospikeError:
        return []
    return [report for report in (_report(client, settings, name) for name in names) if report is not None]


def ask(client: aerospike.Client, settings: AerospikeSettings, node_name: str, *asked: str) -> dict[str, str] | None:
    """Returns a node's answers by name; None if it does not answer, or does not know one of the names."""
    try:
        answer = client.info_single_node("\n".join(asked), node_name, {"timeout": settings.info_timeout_ms})
    except client_errors.AerospikeError:
        return None
    return dict(line.partition("\t")[::2] for line in answer.splitlines())


def _report(client: aerospike.Client, settings: AerospikeSettings, name: str) -> NodeReport | None:
    of_namespace, of_sets = f"namespace/{settings.namespace}", f"sets/{settings.namespace}"
    said = ask(client, settings, name, of_namespace, of_sets, _SERVICE)
    if said is None:
        return None
    # Servers know `release` from 8.1.1 on. To one unknown name among several the client raises an error for them all.
    release = pairs_of((ask(client, settings, name, "release") or {}).get("release", ""), ";")
    earlier = {} if release else ask(client, settings, name, "edition", "build") or {}
    sets = (pairs_of(one, ":") for one in said[of_sets].split(";"))
    return NodeReport(
        name=name,
        namespace=pairs_of(said[of_namespace], ";"),
        sets={one["set"]: one for one in sets if "set" in one},
        service=pairs_of(said[_SERVICE], ";"),
        edition=release.get("edition") or earlier.get("edition", ""),
        build=release.get("version") or earlier.get("build", ""),
    )


def pairs_of(answer: str, separator: str) -> dict[str, str]:
    """Returns a server's `name=value` list. Semicolons separate that of a namespace, colons that of a set."""
    pairs = (pair.partition("=") for pair in answer.split(separator))
    return {name: value for name, _, value in pairs if name}


@dataclass(frozen=True)
class Forbidden:
    """Why the servers forbid a write, in words. `is_lasting` if only an administrator can change it."""

    why: str
    is_lasting: bool = False


def why_forbidden(
    reports: Iterable[NodeReport], set_names: Collection[str], *, expires: bool, now_ms: int | None = None
) -> Forbidden:
    """Returns why records of these sets may not be written; `expires` if they have a time to live."""
    now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    passing: list[str] = []
    for report in reports:
        of_namespace = report.namespace
        if expires and not takes_ttl(of_namespace):
            return Forbidden(
                f"nsup-period is 0 on node {report.name}, and such a namespace takes no records that expire", True
            )
        if of_namespace.get("clock_skew_stop_writes") == "true":
            passing.append(f"the clocks of the nodes differ too much (clock_skew_stop_writes on {report.name})")
        if of_namespace.get("reject-non-xdr-writes") == "true":
            passing.append(f"the namespace takes writes of XDR alone (reject-non-xdr-writes on {report.name})")
        if _is_truncated(of_namespace, now_ms):
            passing.append(f"the namespace is being truncated ({report.name})")
        for name in sorted(set_names & report.sets.keys()):
            passing += [f"set {name} {why} on {report.name}" for why in _limits_of(report.sets[name], now_ms)]
    if passing:
        return Forbidden("; ".join(dict.fromkeys(passing)))
    return Forbidden("no node says why: its log does")


def takes_ttl(of_namespace: dict[str, str]) -> bool:
    """Returns whether a namespace takes records that expire. True if it does not say."""
    return number(of_namespace, "nsup-period") != 0 or of_namespace.get("allow-ttl-without-nsup") == "true"


def _limits_of(of_set: dict[str, str], now_ms: int) -> Iterable[str]:
    count_max, size_max = number(of_set, "stop-writes-count"), number(of_set, "stop-writes-size")
    if count_max and (number(of_set, "objects") or 0) >= count_max:
        yield f"is at its stop-writes-count of {count_max}"
    if size_max and (number(of_set, "data_used_bytes") or 0) > size_max:
        yield f"is at its stop-writes-size of {size_max} bytes"
    if _is_truncated(of_set, now_ms):
        yield "is being truncated"


def _is_truncated(statistics: dict[str, str], now_ms: int) -> bool:
    until_ms = number(statistics, "truncate_lut")
    return until_ms is not None and until_ms + _EPOCH_MS > now_ms


def number(statistics: dict[str, str], name: str) -> int | None:
    """Returns a statistic or setting as a number, None if it is absent or no whole number."""
    text = statistics.get(name, "")
    return int(text) if text.isdecimal() else None
