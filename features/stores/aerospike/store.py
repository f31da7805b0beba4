"""The profile store on Aerospike: an entity is a set, the id is the record's key, the profile is one bin.

    key b"card:C1" in the first profile set      set card,       key C1
    key b"card:C1" in the profile set b1         set b1$card,    key C1     (no entity's name has a dollar sign)

A record's version is its generation. The server increases it with each write and compares it in the operation that
writes (compare-and-set). This also makes retries safe. An attempt that the client gave up may still be on its way.
Without a version it could land after a newer write of the record; with a version it finds another generation.

If a write meets another generation, the store reads those records again. If they already hold the bytes to be written,
an earlier attempt was carried out and its answer was lost. Then the store writes them once more at that generation, and
only the server's answer to this write counts: a node that the network has cut off reads its own copy back, although no
other node has it.

An erased record must stay erased. A server that starts cold reads its devices again, where older versions of a record
may still lie. A *durable* delete leaves a tombstone against that, which only an Enterprise server has. On any other
server `delete` writes a marker in the record's place: a number instead of bytes. No caller ever sees a marker: to
`read`, `scan` and `write` the record is absent.

client.py explains the client itself; calls.py wraps each call; servers.py asks the nodes about themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from types import MappingProxyType
from typing import Any, NamedTuple

import aerospike
from aerospike import exception as client_errors
from aerospike_helpers.batch.records import BatchRecord, BatchRecords, Remove, Write
from aerospike_helpers.operations import operations

from paywarden.features.stores.aerospike.calls import Calls
from paywarden.features.stores.aerospike.client import (
    OK,
    OPENING,
    RECORD_EXISTS,
    RECORD_NOT_FOUND,
    WRONG_GENERATION,
    AerospikeSettings,
    batch_policy,
    call_policy,
    check_batch,
    check_settings,
    connect,
    delete_policy,
    describe,
    error_of,
    marker_policy,
    write_policy,
)
from paywarden.features.stores.aerospike.metrics import AerospikeMetrics
from paywarden.features.stores.aerospike.migration import MigrationWatch
from paywarden.features.stores.aerospike.scan import ScannedRecord, SetScan, set_counts
from paywarden.features.stores.aerospike.servers import (
    Forbidden,
    NodeReport,
    ask_nodes,
    takes_ttl,
    why_forbidden,
)
from paywarden.features.stores.base import (
    ABSENT,
    ScanProgress,
    StoreHealth,
    TtlS,
    Versioned,
    check_write,
    conflict,
    different_ttls,
    join_key,
    split_key,
)
from paywarden.schemas.errors import Misconfigured, PaywardenError, StoreUnavailable

__all__ = ["AerospikeMetrics", "AerospikeSettings", "AerospikeStore"]

# A record's place: namespace, set, key.
Place = tuple[str, str, bytearray]

_DAY_S = 86_400
_STOPPED = ("stop_writes", "clock_skew_stop_writes")
_DONE = (OK,)
_DONE_OR_ABSENT = (OK, RECORD_NOT_FOUND)
# The answers for a record at another version: it is gone, changed, or exists.
_ANOTHER_VERSION = (RECORD_NOT_FOUND, WRONG_GENERATION, RECORD_EXISTS)

# How often a record is written again that changes between the reading and the writing.
_SETTLE_ATTEMPTS_MAX = 3

# Stands between a profile set's name and an entity's name. Aerospike allows it; neither of the two contains it.
SET_SEPARATOR = "$"
SET_NAME_CHARS_MAX = 63


class _Found(NamedTuple):
    """The value and the generation of a record. None with a generation is a marker; generation 0 means no record."""

    value: bytes | None
    generation: int

    @property
    def is_marker(self) -> bool:
        return self.value is None and self.generation != 0


@dataclass(frozen=True)
class _Erasing:
    """How this cluster's records are erased: durably, or by a marker that expires after some seconds (0: never)."""

    is_durable: bool
    marker_expires: bool


class AerospikeStore:
    """A ProfileStore on an Aerospike cluster (server 6.0 or newer).

    Opening connects: it raises StoreUnavailable when no host answers, and Misconfigured when the cluster is
    there but the namespace, the login or a setting is wrong. `clock` gives seconds that never go back; `sleep`
    is how a scan waits. `set_prefix` begins the names of its sets: features/stores/aerospike/sets.py. `lifetimes_s`
    says of some kinds how long their records live at most: their markers need no longer.
    """

    def __init__(
        self,
        settings: AerospikeSettings,
        *,
        set_prefix: str = "",
        lifetimes_s: Mapping[str, int] = MappingProxyType({}),
        metrics: AerospikeMetrics | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        check_settings(settings)
        self._settings = settings
        self._namespace, self._set_prefix = settings.namespace, set_prefix
        self._lifetimes_s = lifetimes_s
        # By entity. There are few, and every key of every call needs one.
        self._set_names: dict[str, str] = {}
        self._metrics = AerospikeMetrics() if metrics is None else metrics
        self._clock = clock
        self._sleep = sleep
        self._client = connect(settings)
        self._calls = Calls(settings, self._metrics, clock)
        self._migration = MigrationWatch(self._client, settings, self._metrics)
        self._erasing_mode: _Erasing | None = None
        self._is_closed = False
        self._closing = Lock()
        try:
            self._probe()
            self._batch_policy = batch_policy(settings, is_strong=self._is_strong())
        except PaywardenError:
            self.close()
            raise
        self._metrics.opened(self, self._retry_count)

    @property
    def settings(self) -> AerospikeSettings:
        return self._settings

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See ProfileStore. One round trip to each node for every `batch_record_count_max` keys."""
        return [value for value, _ in self.read_versioned(keys)]

    def read_versioned(self, keys: Sequence[bytes]) -> list[Versioned]:
        """See ProfileStore. Needs no more round trips than `read`."""
        places = [self._place(key) for key in keys]
        found: list[Versioned] = []
        for chunk in _chunks(places, self._settings.batch_record_count_max):
            found += [
                Versioned(None, ABSENT) if one.value is None else Versioned(*one) for one in self._read_chunk(chunk)
            ]
        return found

    def write(self, values: Mapping[bytes, bytes], *, ttl_s: TtlS, versions: Mapping[bytes, int] | None = None) -> None:
        """See ProfileStore. One round trip to each node for every `batch_record_count_max` records."""
        check_write(values, ttl_s=ttl_s, record_bytes_max=self._settings.record_bytes_max)
        policies = _WritePolicies(ttl_s)
        for chunk in self._write_chunks(values):
            self._write_chunk(chunk, versions or {}, policies)

    def delete(self, keys: Sequence[bytes]) -> None:
        """See ProfileStore. Erased records stay erased, also when servers start cold."""
        erasing = self._erasing()
        places = [self._place(key) for key in keys]
        for chunk in _chunks(places, self._settings.batch_record_count_max):
            with self._calls.call("delete", why_forbidden=self._why_forbidden(chunk, erasing.marker_expires)):
                batch = self._client.batch_write(BatchRecords(self._erasures(chunk, erasing)), self._batch_policy)
                check_batch(batch, fine=_DONE_OR_ABSENT)
            self._metrics.deleted.inc(len(chunk))

    def scan(self, entity: str, *, progress: ScanProgress | None = None) -> Iterator[tuple[bytes, bytes]]:
        """See ProfileStore. Holds one page of `scan_page_record_count` records in memory.

        Reads at most `scan_records_per_second`. Tries a failed page again for `scan_patience_ms`. Reports progress
        after each page; the expected total comes from the cluster's statistics.
        """
        set_name = set_name_of(self._set_prefix, entity)
        scan = SetScan(self._client, self._calls, self._settings, set_name, clock=self._clock, sleep=self._sleep)
        for page in scan.pages(progress):
            self._metrics.scanned.inc(len(page))
            for record in page:
                scanned = self._scanned(entity, record)
                if scanned is not None:
                    yield scanned

    def counts(self) -> dict[str, int]:
        """Returns the number of records of each kind (card, payment, …), from the nodes' own statistics.

        It includes expired records that are not yet removed, and markers of erased ones. It has every set of this
        prefix; without a prefix also the sets of others in the namespace. Raises StoreUnavailable unless all nodes
        answer.
        """
        found = set_counts(self._client, self._settings)
        prefix = self._set_prefix
        names = {name: name.removeprefix(prefix) for name in found if name.startswith(prefix)}
        return {entity: found[name] for name, entity in names.items() if SET_SEPARATOR not in entity}

    def health(self) -> StoreHealth:
        """See ProfileStore. Asks each node for its status and takes up to `info_timeout_ms` a node."""
        found = self._migration.look()
        stopped = [name for name in _STOPPED if any(one.get(name) == "true" for one in found)]
        reason = ""
        if not found:
            reason = "no answer from any node"
        elif any("effective_replication_factor" not in one for one in found):
            reason = "the cluster no longer has this namespace"
        elif stopped:
            reason = f"takes no writes now ({stopped[0]})"
        return StoreHealth(reason and f"{describe(self._settings)}: {reason}", self._migration.why_hidden)

    def reports(self) -> list[NodeReport]:
        """Returns the reports of the nodes that answer, about themselves."""
        return ask_nodes(self._client, self._settings)

    def close(self) -> None:
        """See ProfileStore. A closed store raises StoreUnavailable."""
        self._metrics.closed(self)
        with self._closing:
            self._is_closed = True
            self._client.close()

    def _retry_count(self) -> int:
        # Asked by a thread that collects metrics, any time; of a closed client it would end the process.
        with self._closing:
            return 0 if self._is_closed else int(self._client.get_stats().retry_count)

    def _place(self, key: bytes) -> Place:
        entity, identity = split_key(key)
        set_name = self._set_names.get(entity)
        if set_name is None:
            set_name = self._set_names[entity] = set_name_of(self._set_prefix, entity)
        return self._namespace, set_name, bytearray(identity)

    def _probe(self) -> None:
        """Read a record that need not exist, to test the whole path to a node that owns the namespace."""
        place = (self._settings.namespace, "paywarden", bytearray(b"probe"))
        policy = {
            **call_policy(self._settings),
            "replica": aerospike.POLICY_REPLICA_SEQUENCE,
        }
        try:
            self._client.exists(place, policy)
        except client_errors.AerospikeError as error:
            raise error_of(self._settings, error.code, OPENING, type(error).__name__) from error

    def _is_strong(self) -> bool:
        """Returns whether the namespace has strong consistency. Raises StoreUnavailable if no node says."""
        found = self._migration.look()
        if not found:
            raise StoreUnavailable(f"{describe(self._settings)}: no node says what the namespace is")
        return found[0].get("strong-consistency") == "true"

    def _erasing(self) -> _Erasing:
        """Returns how to erase. Asks the nodes once. Raises StoreUnavailable if none answers."""
        if self._erasing_mode is None:
            reports = self.reports()
            if not reports:
                raise StoreUnavailable(f"{describe(self._settings)}: no node says whether it deletes durably")
            is_durable = all(report.is_enterprise for report in reports)
            marker_expires = self._settings.marker_days > 0 and all(takes_ttl(report.namespace) for report in reports)
            self._erasing_mode = _Erasing(is_durable, marker_expires and not is_durable)
        return self._erasing_mode

    def _erasures(self, places: list[Place], erasing: _Erasing) -> list[BatchRecord]:
        if erasing.is_durable:
            return [Remove(place, policy=delete_policy()) for place in places]
        # The time is for people who look at the database. Any number is a marker.
        operation = [operations.write(self._settings.bin_name, int(time.time()))]
        policies = {set_name: self._marker_policy(set_name, erasing) for _, set_name, _ in places}
        return [Write(place, operation, policy=policies[place[1]]) for place in places]

    def _marker_policy(self, set_name: str, erasing: _Erasing) -> dict[str, Any]:
        """Returns the policy of a marker that outlives every older version of a record of this set."""
        if not erasing.marker_expires:
            return marker_policy(0)
        marker_s = self._settings.marker_days * _DAY_S
        lifetime_s = self._lifetimes_s.get(set_name.removeprefix(self._set_prefix))
        # A day more, for clocks that differ.
        return marker_policy(marker_s if lifetime_s is None else min(marker_s, lifetime_s + _DAY_S))

    def _why_forbidden(self, places: Sequence[Place], expires: bool) -> Callable[[], Forbidden]:
        return lambda: why_forbidden(self.reports(), {place[1] for place in places}, expires=expires)

    def _read_chunk(self, places: list[Place]) -> list[_Found]:
        with self._calls.call("read"):
            batch = self._client.batch_read(places, [self._settings.bin_name], self._batch_policy)
            check_batch(batch, fine=_DONE_OR_ABSENT)
        self._metrics.read.inc(len(places))
        return [self._found(one) for one in batch.batch_records]

    def _found(self, one: BatchRecord) -> _Found:
        if one.record is None or one.result == RECORD_NOT_FOUND:
            return _Found(None, 0)
        return _Found(self._bin(one.record[2], one.key[1]), one.record[1]["gen"])

    def _write_of(self, place: Place, value: bytes, policies: _TtlPolicies, version: int | None) -> Write:
        operation = [operations.write(self._settings.bin_name, value)]
        if version is None:
            return Write(place, operation, policy=policies.whatever_there_is)
        if version == ABSENT:
            return Write(place, operation, policy=policies.absent)
        return Write(place, operation, meta={"gen": version}, policy=policies.at_generation)

    def _write_chunk(
        self, chunk: list[tuple[bytes, bytes]], versions: Mapping[bytes, int], policies: _WritePolicies
    ) -> None:
        places = [self._place(key) for key, _ in chunk]
        writes = [
            self._write_of(place, value, policies.of(key), versions.get(key))
            for place, (key, value) in zip(places, chunk, strict=True)
        ]
        # An answer about versions is fine only where versions were asked about.
        is_versioned = any(key in versions for key, _ in chunk)
        conflict_count, unsettled = 0, self._send(chunk, places, writes, policies, is_versioned=is_versioned)
        for _ in range(_SETTLE_ATTEMPTS_MAX):
            if unsettled:
                count, unsettled = self._settle(unsettled, versions, policies)
                conflict_count += count
        conflict_count += len(unsettled)
        self._metrics.conflict.inc(conflict_count)
        if conflict_count:
            raise conflict(conflict_count, len(chunk))

    def _send(
        self,
        chunk: list[tuple[bytes, bytes]],
        places: list[Place],
        writes: list[Write],
        policies: _WritePolicies,
        *,
        is_versioned: bool,
    ) -> list[tuple[bytes, bytes]]:
        """Make the writes; returns the records that are at another version."""
        fine = (*_DONE, *_ANOTHER_VERSION) if is_versioned else _DONE
        with self._calls.call("write", why_forbidden=self._why_forbidden(places, policies.expires)):
            batch = self._client.batch_write(BatchRecords(writes), self._batch_policy)
            check_batch(batch, fine=fine)
        answers = zip(chunk, batch.batch_records, strict=True)
        unsettled = [record for record, one in answers if one.result in _ANOTHER_VERSION]
        self._metrics.written.inc(len(chunk) - len(unsettled))
        return unsettled

    def _settle(
        self, unsettled: list[tuple[bytes, bytes]], versions: Mapping[bytes, int], policies: _WritePolicies
    ) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Write records again that already hold the bytes to be written, or a marker where they were to be absent.

        Returns how many hold something else, and those that have changed again.
        """
        records, writes, conflict_count = [], [], 0
        for (key, value), one in zip(
            unsettled, self._read_chunk([self._place(key) for key, _ in unsettled]), strict=True
        ):
            if one.value != value and not (one.is_marker and versions.get(key) == ABSENT):
                conflict_count += 1
                continue
            self._metrics.confirmed.inc(not one.is_marker)
            records.append((key, value))
            writes.append(self._write_of(self._place(key), value, policies.of(key), one.generation))
        places = [self._place(key) for key, _ in records]
        left = self._send(records, places, writes, policies, is_versioned=True) if records else []
        return conflict_count, left

    def _bin(self, bins: dict[str, Any], entity: str) -> bytes | None:
        """Returns the stored bytes, None for a marker."""
        value = bins.get(self._settings.bin_name)
        if isinstance(value, int):
            return None
        if not isinstance(value, bytes | bytearray):
            raise Misconfigured(
                f"a record of set {entity} has no bytes in bin {self._settings.bin_name}: "
                "bin_name differs from the one that wrote it, or something else writes to this set"
            )
        return bytes(value)

    def _scanned(self, entity: str, record: ScannedRecord) -> tuple[bytes, bytes] | None:
        """Returns the key and the value, None for a marker."""
        (_, _, identity, _), _, bins = record
        value = self._bin(bins, entity)
        if value is None:
            return None
        if not isinstance(identity, bytes | bytearray):
            raise Misconfigured(f"a record of set {entity} has no key of bytes: something else writes to this set")
        return join_key(entity, bytes(identity)), value

    def _write_chunks(self, values: Mapping[bytes, bytes]) -> Iterator[list[tuple[bytes, bytes]]]:
        """Yield the records in batches within both limits. A record over `batch_bytes_max` goes alone."""
        chunk: list[tuple[bytes, bytes]] = []
        chunk_bytes = 0
        for key, value in values.items():
            too_big = chunk_bytes + len(value) > self._settings.batch_bytes_max
            if chunk and (too_big or len(chunk) == self._settings.batch_record_count_max):
                yield chunk
                chunk, chunk_bytes = [], 0
            chunk.append((key, value))
            chunk_bytes += len(value)
        if chunk:
            yield chunk


class _WritePolicies:
    """The conditions of a write on the replaced records. Made once for all records of a write."""

    def __init__(self, ttl_s: TtlS) -> None:
        self._ttl_s = ttl_s
        self._by_ttl = {seconds: _TtlPolicies(seconds) for seconds in different_ttls(ttl_s)}
        self.expires = any(self._by_ttl)

    def of(self, key: bytes) -> _TtlPolicies:
        """Returns those of one record."""
        return self._by_ttl[self._ttl_s if isinstance(self._ttl_s, int) else self._ttl_s[key]]


class _TtlPolicies:
    """The conditions of the writes of records that live equally long."""

    def __init__(self, ttl_s: int) -> None:
        self.whatever_there_is = write_policy(ttl_s)
        self.absent = self.whatever_there_is | {"exists": aerospike.POLICY_EXISTS_CREATE}
        self.at_generation = self.whatever_there_is | {
            # To the server a record that is gone has generation 0, which differs as well; this does not rely on it.
            "exists": aerospike.POLICY_EXISTS_REPLACE,
            "gen": aerospike.POLICY_GEN_EQ,
        }


def set_name_of(prefix: str, entity: str) -> str:
    """Returns the name of an entity's Aerospike set. Raises Misconfigured if it is too long."""
    name = prefix + entity
    if len(name) > SET_NAME_CHARS_MAX:
        raise Misconfigured(
            f"the name of entity {entity} is too long: Aerospike takes {SET_NAME_CHARS_MAX} characters of a set's "
            f"name, and {len(prefix)} are taken by that of the profile set"
        )
    return name


def _chunks(places: list[Place], count_max: int) -> Iterator[list[Place]]:
    for start in range(0, len(places), count_max):
        yield places[start : start + count_max]
