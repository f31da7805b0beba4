"""The profile store on Aerospike: an entity is a set, the id is the record's key, the profile is one bin.

    key b"card:C1" in the first profile set      set card,       key C1
    key b"card:C1" in the profile set b1         set b1$card,    key C1     (no entity's name has a dollar sign)

A record's version is its generation. The server increases it with each write and compares it in the operation that
writes (compare-and-set). This also makes retries safe. An attempt that the client gave up may still be on its way.
Without a version it could land after a newer write of the record; with a version it finds another generation.

If a write meets another generation, the store reads those records again. If they already hold the bytes to be written,
an earlier attempt succeeded and its answer was lost, so the write counts as done.

client.py explains the client itself; calls.py wraps each call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Lock
from typing import Any

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
    parse_info,
    write_policy,
)
from paywarden.features.stores.aerospike.metrics import AerospikeMetrics
from paywarden.features.stores.aerospike.scan import ScannedRecord, SetScan, set_counts
from paywarden.features.stores.base import (
    ABSENT,
    ScanProgress,
    StoreHealth,
    Versioned,
    check_write,
    conflict,
    join_key,
    split_key,
)
from paywarden.schemas.errors import Misconfigured, PaywardenError

__all__ = ["AerospikeMetrics", "AerospikeSettings", "AerospikeStore"]

_DONE = (OK,)
_DONE_OR_ABSENT = (OK, RECORD_NOT_FOUND)
# The answers for a record at another version: it is gone, changed, or exists.
_ANOTHER_VERSION = (RECORD_NOT_FOUND, WRONG_GENERATION, RECORD_EXISTS)

# Stands between a profile set's name and an entity's name. Aerospike allows it; neither of the two contains it.
SET_SEPARATOR = "$"
SET_NAME_CHARS_MAX = 63

# A record's place: (namespace, set, key).
_Place = tuple[str, str, bytearray]


class AerospikeStore:
    """A ProfileStore on an Aerospike cluster (server 6.0 or newer).

    Opening connects: it raises StoreUnavailable when no host answers, and Misconfigured when the cluster is
    there but the namespace, the login or a setting is wrong. `clock` gives seconds that never go back; `sleep`
    is how a scan waits. `set_prefix` begins the names of its sets: features/stores/aerospike/sets.py.
    """

    def __init__(
        self,
        settings: AerospikeSettings,
        *,
        set_prefix: str = "",
        metrics: AerospikeMetrics | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        check_settings(settings)
        self._settings = settings
        self._set_prefix = set_prefix
        self._metrics = AerospikeMetrics() if metrics is None else metrics
        self._clock = clock
        self._sleep = sleep
        self._calls = Calls(settings, self._metrics, clock)
        self._batch_policy = batch_policy(settings)
        self._client = connect(settings)
        self._is_closed = False
        self._closing = Lock()
        try:
            self._probe()
        except PaywardenError:
            self.close()
            raise
        self._metrics.count_retries_by(self._retry_count)

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See ProfileStore. One round trip to each node for every `batch_record_count_max` keys."""
        return [value for value, _ in self.read_versioned(keys)]

    def read_versioned(self, keys: Sequence[bytes]) -> list[Versioned]:
        """See ProfileStore. Needs no more round trips than `read`."""
        places = [self._place(key) for key in keys]
        found: list[Versioned] = []
        for chunk in _chunks(places, self._settings.batch_record_count_max):
            found += self._read_chunk(chunk)
        return found

    def write(self, values: Mapping[bytes, bytes], *, ttl_s: int, versions: Mapping[bytes, int] | None = None) -> None:
        """See ProfileStore. One round trip to each node for every `batch_record_count_max` records."""
        check_write(values, ttl_s=ttl_s, record_bytes_max=self._settings.record_bytes_max)
        policies = _WritePolicies(ttl_s)
        for chunk in self._write_chunks(values):
            self._write_chunk(chunk, versions or {}, policies)

    def delete(self, keys: Sequence[bytes]) -> None:
        """See ProfileStore."""
        policy = delete_policy()
        places = [self._place(key) for key in keys]
        for chunk in _chunks(places, self._settings.batch_record_count_max):
            removals = [Remove(place, policy=policy) for place in chunk]
            with self._calls.call("delete"):
                check_batch(self._client.batch_write(BatchRecords(removals), self._batch_policy), fine=_DONE_OR_ABSENT)
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
                yield self._scanned(entity, record)

    def counts(self) -> dict[str, int]:
        """Returns the number of records of each kind (card, payment, …), from the nodes' own statistics.

        It includes expired records that are not yet removed. It has every set of this prefix; without a prefix also
        the sets of others in the namespace. Raises StoreUnavailable unless all nodes answer.
        """
        found = set_counts(self._client, self._settings)
        prefix = self._set_prefix
        names = {name: name.removeprefix(prefix) for name in found if name.startswith(prefix)}
        return {entity: found[name] for name, entity in names.items() if SET_SEPARATOR not in entity}

    def health(self) -> StoreHealth:
        """See ProfileStore. Asks a node for its status and takes up to `info_timeout_ms`.

        While the breaker is open, it says so and makes no call.
        """
        place = describe(self._settings)
        reason = self._calls.breaker_reason()
        if reason:
            return StoreHealth(f"{place}: {reason}")
        asked = f"namespace/{self._settings.namespace}"
        try:
            answer = self._client.info_random_node(asked, {"timeout": self._settings.info_timeout_ms})
        except client_errors.AerospikeError as error:
            return StoreHealth(f"{place}: no answer ({type(error).__name__}, code {error.code})")
        said = parse_info(answer.partition("\t")[2].strip(), ";")
        if "effective_replication_factor" not in said:
            return StoreHealth(f"{place}: the cluster no longer has this namespace")
        stopped = [name for name in ("stop_writes", "clock_skew_stop_writes") if said.get(name) == "true"]
        return StoreHealth(f"{place}: takes no writes now ({stopped[0]})") if stopped else StoreHealth()

    def close(self) -> None:
        """See ProfileStore. A closed store raises StoreUnavailable."""
        with self._closing:
            self._is_closed = True
            self._client.close()

    def _retry_count(self) -> int:
        # Asked by a thread that collects metrics, any time; of a closed client it would end the process.
        with self._closing:
            return 0 if self._is_closed else int(self._client.get_stats().retry_count)

    def _place(self, key: bytes) -> _Place:
        entity, identity = split_key(key)
        return self._settings.namespace, set_name_of(self._set_prefix, entity), bytearray(identity)

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

    def _read_chunk(self, places: list[_Place]) -> list[Versioned]:
        with self._calls.call("read"):
            batch = self._client.batch_read(places, [self._settings.bin_name], self._batch_policy)
            check_batch(batch, fine=_DONE_OR_ABSENT)
        self._metrics.read.inc(len(places))
        return [self._versioned(one) for one in batch.batch_records]

    def _versioned(self, one: BatchRecord) -> Versioned:
        if one.record is None or one.result == RECORD_NOT_FOUND:
            return Versioned(None, ABSENT)
        return Versioned(self._bin(one.record[2], one.key[1]), one.record[1]["gen"])

    def _write_of(self, key: bytes, value: bytes, policies: _WritePolicies, version: int | None) -> Write:
        operation = [operations.write(self._settings.bin_name, value)]
        if version is None:
            return Write(self._place(key), operation, policy=policies.whatever_there_is)
        if version == ABSENT:
            return Write(self._place(key), operation, policy=policies.absent)
        return Write(self._place(key), operation, meta={"gen": version}, policy=policies.at_generation)

    def _write_chunk(
        self, chunk: list[tuple[bytes, bytes]], versions: Mapping[bytes, int], policies: _WritePolicies
    ) -> None:
        writes = [self._write_of(key, value, policies, versions.get(key)) for key, value in chunk]
        # An answer about versions is fine only where versions were asked about.
        is_versioned = any(key in versions for key, _ in chunk)
        fine = (*_DONE, *_ANOTHER_VERSION) if is_versioned else _DONE
        with self._calls.call("write"):
            batch = self._client.batch_write(BatchRecords(writes), self._batch_policy)
            check_batch(batch, fine=fine)
        answers = zip(chunk, batch.batch_records, strict=True)
        unsettled = [record for record, one in answers if one.result in _ANOTHER_VERSION]
        self._metrics.written.inc(len(chunk) - len(unsettled))
        if unsettled:
            self._settle(unsettled, len(chunk))

    def _settle(self, unsettled: list[tuple[bytes, bytes]], record_count: int) -> None:
        """Raises StoreConflict unless these records at another version already hold the bytes to be written."""
        found = self._read_chunk([self._place(key) for key, _ in unsettled])
        conflict_count = sum(one.value != value for (_, value), one in zip(unsettled, found, strict=True))
        self._metrics.confirmed.inc(len(unsettled) - conflict_count)
        self._metrics.conflict.inc(conflict_count)
        if conflict_count:
            raise conflict(conflict_count, record_count)

    def _bin(self, bins: dict[str, Any], entity: str) -> bytes:
        value = bins.get(self._settings.bin_name)
        if not isinstance(value, bytes | bytearray):
            raise Misconfigured(
                f"a record of set {entity} has no bytes in bin {self._settings.bin_name}: "
                "bin_name differs from the one that wrote it, or something else writes to this set"
            )
        return bytes(value)

    def _scanned(self, entity: str, record: ScannedRecord) -> tuple[bytes, bytes]:
        (_, _, identity, _), _, bins = record
        if not isinstance(identity, bytes | bytearray):
            raise Misconfigured(f"a record of set {entity} has no key of bytes: something else writes to this set")
        return join_key(entity, bytes(identity)), self._bin(bins, entity)

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
    """The conditions of a write on the replaced record. Made once for all records of a write."""

    def __init__(self, ttl_s: int) -> None:
        self.whatever_there_is = write_policy(ttl_s)
        self.absent = self.whatever_there_is | {"exists": aerospike.POLICY_EXISTS_CREATE}
        self.at_generation = self.whatever_there_is | {
            # To the server a record that is gone has generation 0, which differs as well; this does not lean on it.
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


def _chunks(places: list[_Place], count_max: int) -> Iterator[list[_Place]]:
    for start in range(0, len(places), count_max):
        yield places[start : start + count_max]
