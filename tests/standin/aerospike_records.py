"""The records of the stand-in: by digest, each with its bins, generation and time of expiry.

The module takes requests and returns encoded answers; it knows nothing of sockets. It keeps these rules of the real
server, because callers notice them:
- a TTL of 0 is the namespace's default (here: never), 0xFFFFFFFF is never, 0xFFFFFFFE keeps the record's expiry;
- a write merges its bins into the record unless it says replace;
- a write or delete may name the generation its record must have (code 3), be for new records only (code 5) or for
  existing records only (code 2). The checks come in the real server's order, and an absent record has generation 0;
- generations are 16 bits and start again at 1;
- a scan walks a partition in digest order, so that it can resume after a digest;
- a scan's answer names the partitions that are not available here (code 11), and no others;
- a record beyond the size limit is refused with code 13, an unknown namespace with code 20;
- code 22 means that a record would expire where expiry is switched off, that the clocks of the nodes differ too much,
  that a set is at its limit of records, or that it is being truncated up to a time that lies ahead;
- a durable delete is refused with code 25 by a server that is no Enterprise server; after a cold start, records that
  were deleted in another way are there again, unless they have expired or were written since;
- a linearized read needs strong consistency: a Community server refuses it with code 25;
- a killed server with a single copy of its records loses the writes that it had not flushed to its devices yet.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import Lock

from tests.standin.aerospike_wire import (
    DIGEST_BYTES,
    FIELD_DIGEST,
    FIELD_DIGESTS,
    FIELD_KEY,
    FIELD_MAX_RECORDS,
    FIELD_NAMESPACE,
    FIELD_PARTITIONS,
    FIELD_SET,
    INFO1_ALL_BINS,
    INFO1_ASK_ALL_COPIES,
    INFO1_NO_BINS,
    INFO2_CREATE_ONLY,
    INFO2_DELETE,
    INFO2_DURABLE_DELETE,
    INFO2_GENERATION,
    INFO2_WRITE,
    INFO3_CREATE_OR_REPLACE,
    INFO3_PARTITION_DONE,
    INFO3_RELAXED_READ,
    INFO3_REPLACE_ONLY,
    INFO3_STRICT_READ,
    INFO3_UPDATE_ONLY,
    OPERATION_WRITE,
    Request,
    encode_message,
)

PARTITION_COUNT = 4096
OK = 0
NOT_FOUND = 2
WRONG_GENERATION = 3
RECORD_EXISTS = 5
UNAVAILABLE = 11
TOO_BIG = 13
NAMESPACE_NOT_FOUND = 20
FORBIDDEN = 22
ENTERPRISE_ONLY = 25

_GENERATION_MAX = 65_535
_TTL_DEFAULT = 0
_TTL_NEVER = 0xFFFF_FFFF
_TTL_KEEP = 0xFFFF_FFFE
# Expiry travels as seconds since 2010-01-01 UTC.
_EPOCH_S = 1_262_304_000


def partition_of(digest: bytes) -> int:
    """Returns the partition of a digest, 0 to 4095."""
    return int.from_bytes(digest[:2], "little") % PARTITION_COUNT


@dataclass
class Record:
    """One stored record. `expires_s` is epoch seconds, None for never. `updated` grows with each write."""

    set_name: str
    key: bytes
    bins: dict[str, tuple[int, bytes]]
    generation: int = 1
    expires_s: float | None = None
    updated: int = 0

    @property
    def void_time_s(self) -> int:
        """The time of expiry as on the wire, 0 for never."""
        return 0 if self.expires_s is None else int(self.expires_s) - _EPOCH_S


# The versions of some records on a node that was away, by digest; None if it has none.
Copies = dict[bytes, Record | None]


@dataclass
class Records:
    """The records of one namespace. Safe to use from several threads.

    `resolves_by_generation` is the server's default for copies that differ; otherwise the latest write wins.
    """

    namespace: str
    clock: Callable[[], float]
    record_bytes_max: int = 1_048_576
    expiry_allowed: bool = True
    is_enterprise: bool = True
    resolves_by_generation: bool = False
    clock_skewed: bool = False
    strong_consistency: bool = False
    # How many reads were linearized.
    linearized_count: int = 0
    # By set: how many records it may have, and until when (epoch seconds) it is truncated.
    count_limits: dict[str, int] = field(default_factory=dict)
    truncated_until_s: dict[str, float] = field(default_factory=dict)
    by_digest: dict[bytes, Record] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self.write_count = 0
        # Records that were deleted without a tombstone, and that the devices still hold.
        self._undead: dict[bytes, Record] = {}
        self._flushed: dict[bytes, Record] = {}

    def parted(self) -> Records:
        """Returns what a node has that the network has cut off: the same records, from now on its own."""
        with self.lock:
            own = Records(self.namespace, self.clock, self.record_bytes_max, self.expiry_allowed, self.is_enterprise)
            own.by_digest = dict(self.by_digest)
        return own

    def flush(self) -> None:
        """Bring everything that was written so far to the devices."""
        with self.lock:
            self._flushed = dict(self.by_digest)

    def kill(self) -> None:
        """Lose what was not flushed, as a server does whose records have a single copy."""
        with self.lock:
            self.by_digest = dict(self._flushed)

    def start_cold(self) -> None:
        """Read everything from the devices again: deleted records, too."""
        with self.lock:
            for digest, record in self._undead.items():
                if record.expires_s is None or record.expires_s > self.clock():
                    self.by_digest.setdefault(digest, record)
            self._undead.clear()

    def truncate(self, set_name: str) -> None:
        """Remove every record of a set, for good."""
        with self.lock:
            for digest in [digest for digest, record in self.by_digest.items() if record.set_name == set_name]:
                del self.by_digest[digest]

    def replace(self, copies: Copies) -> Copies:
        """Let these copies take the place of the records; returns what was there."""
        with self.lock:
            had = {digest: self.by_digest.pop(digest, None) for digest in copies}
            self.by_digest |= {digest: record for digest, record in copies.items() if record is not None}
        return had

    def merge(self, copies: Copies) -> None:
        """End the migration of a node that was away: of each record the copy that wins stays."""
        with self.lock:
            for digest in list(copies):
                self._resolve(digest, copies)

    def _resolve(self, digest: bytes, copies: Copies) -> None:
        """Keep the copy that wins, here and on the node that was away."""
        if digest not in copies:
            return
        copy, here = copies.pop(digest), self.by_digest.get(digest)
        if copy is None or here is None:
            wins = copy is not None
        elif self.resolves_by_generation:
            wins = copy.generation > here.generation
        else:
            wins = copy.updated > here.updated
        if wins:
            assert copy is not None
            self.by_digest[digest] = copy

    def answer(self, request: Request, refusal: int = OK, copies: Copies | None = None) -> bytes:
        """Carry out a request about one record, unless a fault refuses it. Returns the result.

        `copies` is what the node has that was asked, where that differs. A write compares all copies first; a read does
        it if it says so.
        """
        copies = {} if copies is None else copies
        with self.lock:
            if refusal != OK:
                return encode_message(result=refusal, index=request.index)
            if request.text(FIELD_NAMESPACE) != self.namespace:
                return encode_message(result=NAMESPACE_NOT_FOUND, index=request.index)
            is_read = not request.info2 & (INFO2_DELETE | INFO2_WRITE)
            if request.info3 & (INFO3_STRICT_READ | INFO3_RELAXED_READ) == INFO3_STRICT_READ:
                if not self.strong_consistency:
                    return encode_message(result=ENTERPRISE_ONLY, index=request.index)
                self.linearized_count += 1
            if not is_read or request.info1 & INFO1_ASK_ALL_COPIES:
                self._resolve(request.digest, copies)
            if request.info2 & INFO2_DELETE:
                return self._delete(request)
            if request.info2 & INFO2_WRITE:
                return self._write(request)
            if request.digest in copies:
                return _read_answer(self._unless_expired(copies[request.digest]), request)
            return _read_answer(self._live(request.digest), request)

    def _live(self, digest: bytes) -> Record | None:
        return self._unless_expired(self.by_digest.get(digest))

    def _unless_expired(self, record: Record | None) -> Record | None:
        if record is None or (record.expires_s is not None and record.expires_s <= self.clock()):
            return None
        return record

    def set_counts(self) -> dict[str, int]:
        """Returns `set_count` of every set."""
        with self.lock:
            return dict(Counter(record.set_name for record in self.by_digest.values()))

    def set_count(self, set_name: str) -> int:
        """Returns the number of records in a set, including expired ones that are not removed yet."""
        with self.lock:
            return sum(record.set_name == set_name for record in self.by_digest.values())

    def _delete(self, request: Request) -> bytes:
        live = self._live(request.digest)
        is_durable = bool(request.info2 & INFO2_DURABLE_DELETE)
        if is_durable and not self.is_enterprise:
            return encode_message(result=ENTERPRISE_ONLY, index=request.index)
        if live is not None and _is_of_wrong_generation(live, request):
            return encode_message(result=WRONG_GENERATION, generation=live.generation, index=request.index)
        gone = self.by_digest.pop(request.digest, None)
        if is_durable:
            self._undead.pop(request.digest, None)
        elif gone is not None:
            self._undead[request.digest] = gone
        return encode_message(result=OK if live is not None else NOT_FOUND, index=request.index)

    def _write(self, request: Request) -> bytes:
        old = self._live(request.digest)
        refusal = _write_refusal(old, request)
        if refusal != OK:
            generation = 0 if old is None else old.generation
            return encode_message(result=refusal, generation=generation, index=request.index)
        is_replacement = request.info3 & (INFO3_CREATE_OR_REPLACE | INFO3_REPLACE_ONLY)
        bins = {} if old is None or is_replacement else dict(old.bins)
        for operation in request.operations:
            if operation.what == OPERATION_WRITE:
                bins[operation.name] = (operation.value_type, operation.value)
        if sum(len(value) for _, value in bins.values()) > self.record_bytes_max:
            return encode_message(result=TOO_BIG, index=request.index)
        expires_s = self._expiry(request.ttl_s, old)
        if self._is_forbidden(request.text(FIELD_SET), is_new=old is None, expires=expires_s is not None):
            return encode_message(result=FORBIDDEN, index=request.index)
        generation = 1 if old is None else old.generation % _GENERATION_MAX + 1
        self.write_count += 1
        key = request.fields.get(FIELD_KEY, b"" if old is None else old.key)
        self.by_digest[request.digest] = Record(
            request.text(FIELD_SET), key, bins, generation, expires_s, self.write_count
        )
        # A cold start finds this newer version.
        self._undead.pop(request.digest, None)
        return encode_message(generation=generation, index=request.index)

    def _is_forbidden(self, set_name: str, *, is_new: bool, expires: bool) -> bool:
        if self.clock_skewed or (expires and not self.expiry_allowed):
            return True
        if not is_new:
            return False
        if set_name in self.count_limits:
            held = sum(record.set_name == set_name for record in self.by_digest.values())
            if held >= self.count_limits[set_name]:
                return True
        return self.truncated_until_s.get(set_name, 0.0) > self.clock()

    def _expiry(self, ttl_s: int, old: Record | None) -> float | None:
        if ttl_s == _TTL_KEEP:
            return None if old is None else old.expires_s
        return None if ttl_s in (_TTL_DEFAULT, _TTL_NEVER) else self.clock() + ttl_s

    def scan(self, request: Request, is_here: Callable[[int], bool], copies: Copies) -> Iterator[bytes]:
        """Returns the encoded records of a scan's partitions, each partition from its start or after a digest.

        `copies` is what the node has that was asked, where that differs. A partition for which `is_here` is false gives
        no records, only the report that it is not available.
        """
        partitions = request.fields.get(FIELD_PARTITIONS, b"")
        starts = dict.fromkeys(struct.unpack(f"<{len(partitions) // 2}H", partitions), b"")
        digests = request.fields.get(FIELD_DIGESTS, b"")
        for at in range(0, len(digests), DIGEST_BYTES):
            digest = digests[at : at + DIGEST_BYTES]
            starts[partition_of(digest)] = digest
        for partition in [partition for partition in starts if not is_here(partition)]:
            del starts[partition]
            # A partition's answer has the partition's number where a record's answer has its generation.
            yield encode_message(result=UNAVAILABLE, info3=INFO3_PARTITION_DONE, generation=partition)
        left = int.from_bytes(request.fields.get(FIELD_MAX_RECORDS, b""), "big") or len(self.by_digest)
        with self.lock:
            for digest in sorted(self.by_digest):
                start = starts.get(partition_of(digest))
                record = self._unless_expired(copies[digest]) if digest in copies else self._live(digest)
                if start is None or digest <= start or record is None or left == 0:
                    continue
                if request.text(FIELD_SET) in ("", record.set_name):
                    left -= 1
                    yield self._scanned(digest, record, request)

    def _scanned(self, digest: bytes, record: Record, request: Request) -> bytes:
        fields = {
            FIELD_NAMESPACE: self.namespace.encode(),
            FIELD_DIGEST: digest,
            FIELD_SET: record.set_name.encode(),
        }
        if record.key:
            fields[FIELD_KEY] = record.key
        return encode_message(
            generation=record.generation,
            void_time_s=record.void_time_s,
            fields=fields,
            bins=_wanted_bins(record, request),
        )


def _read_answer(record: Record | None, request: Request) -> bytes:
    if record is None:
        return encode_message(result=NOT_FOUND, index=request.index)
    return encode_message(
        generation=record.generation,
        void_time_s=record.void_time_s,
        index=request.index,
        bins=_wanted_bins(record, request),
    )


def _write_refusal(old: Record | None, request: Request) -> int:
    """Returns why the record may not be written as the request wants, or OK if it may."""
    if old is None and request.info3 & (INFO3_UPDATE_ONLY | INFO3_REPLACE_ONLY):
        return NOT_FOUND
    if old is not None and request.info2 & INFO2_CREATE_ONLY:
        return RECORD_EXISTS
    return WRONG_GENERATION if _is_of_wrong_generation(old, request) else OK


def _is_of_wrong_generation(old: Record | None, request: Request) -> bool:
    has = 0 if old is None else old.generation
    return bool(request.info2 & INFO2_GENERATION) and request.generation != has


def _wanted_bins(record: Record, request: Request) -> dict[str, tuple[int, bytes]]:
    if request.info1 & INFO1_NO_BINS:
        return {}
    if request.info1 & INFO1_ALL_BINS or not request.operations:
        return record.bins
    return {op.name: record.bins[op.name] for op in request.operations if op.name in record.bins}
