"""Aerospike's wire protocol, the part that a key-value client uses: bytes to values and back.

    frame    version 2 (1 byte) · kind (1) · body size (6), then the body
    info     kind 1, text: requested names, one a line; answered by `name<TAB>value` lines
    message  kind 3: header (22 bytes) · fields · operations
    field    size (4) · kind (1) · data              size counts the kind
    operation  size (4) · what (1) · value type (1) · 0 (1) · name size (1) · name · value
    batch    a message with one field that holds a count, flags, and per record: index (4) ·
             digest (20) · a byte saying which parts of a message header follow · fields · operations

All numbers are big endian except the partition numbers of a scan. Decoding trusts the sender, which is the official
client. A bug in the client or here shows as a `struct.error` or an `IndexError` in the serving thread.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

INFO_KIND = 1
ADMIN_KIND = 2
MESSAGE_KIND = 3
FRAME_HEADER_BYTES = 8
DIGEST_BYTES = 20

FIELD_NAMESPACE = 0
FIELD_SET = 1
FIELD_KEY = 2
FIELD_DIGEST = 4
FIELD_RECORDS_PER_SECOND = 10
FIELD_PARTITIONS = 11
FIELD_DIGESTS = 12
FIELD_MAX_RECORDS = 13
FIELD_BATCH = 41

INFO1_ALL_BINS = 2
INFO1_BATCH = 8
INFO1_NO_BINS = 32
INFO1_ASK_ALL_COPIES = 64
INFO2_WRITE = 1
INFO2_DELETE = 2
INFO2_GENERATION = 4
INFO2_DURABLE_DELETE = 16
INFO2_CREATE_ONLY = 32
INFO3_LAST = 1
INFO3_PARTITION_DONE = 4
INFO3_UPDATE_ONLY = 8
INFO3_CREATE_OR_REPLACE = 16
INFO3_REPLACE_ONLY = 32
INFO3_STRICT_READ = 64
INFO3_RELAXED_READ = 128

OPERATION_READ = 1
OPERATION_WRITE = 2
VALUE_BLOB = 4

_BATCH_REPEAT = 1
_BATCH_INFO = 2
_BATCH_GENERATION = 4
_BATCH_TTL = 8
_BATCH_INFO4 = 16

# header size, info1, info2, info3, info4, result, generation, ttl, timeout or batch index, fields, operations
_HEADER = struct.Struct(">BBBBBBIIIHH")
_SIZED = struct.Struct(">IB")
_OPERATION = struct.Struct(">IBBBB")


@dataclass(frozen=True)
class Operation:
    """Read or write one bin. An empty `name` means all bins."""

    what: int
    name: str
    value_type: int = 0
    value: bytes = b""


@dataclass
class Request:
    """A request about one record, or for a scan. `index` is the record's place in its batch.

    The record must have `generation` if INFO2_GENERATION is set.
    """

    info1: int
    info2: int
    info3: int
    generation: int = 0
    ttl_s: int = 0
    fields: dict[int, bytes] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)
    index: int = 0

    @property
    def digest(self) -> bytes:
        """The record's key on the server: the client computes it from set and key."""
        return self.fields[FIELD_DIGEST]

    def text(self, kind: int) -> str:
        """Returns a field as text, empty if it was not sent."""
        return self.fields.get(kind, b"").decode()


def frame(kind: int, body: bytes) -> bytes:
    """Returns `body` with the header that gives its length."""
    return struct.pack(">Q", (2 << 56) | (kind << 48) | len(body)) + body


def frame_header(header: bytes) -> tuple[int, int]:
    """Returns (kind, body size) of a frame."""
    (word,) = struct.unpack(">Q", header)
    return (word >> 48) & 0xFF, word & 0xFFFF_FFFF_FFFF


def decode_message(body: bytes) -> Request:
    """Returns the request of a message frame. A batch is still packed in its batch field."""
    _, info1, info2, info3, _, _, generation, ttl_s, _, field_count, operation_count = _HEADER.unpack_from(body)
    request = Request(info1, info2, info3, generation, ttl_s)
    at = _take_fields(body, _HEADER.size, field_count, request.fields)
    _take_operations(body, at, operation_count, request.operations)
    return request


def batch_count(packed: bytes) -> int:
    """Returns the number of records of a batch field."""
    return int(struct.unpack_from(">I", packed)[0])


def decode_batch(packed: bytes) -> Iterator[Request]:
    """Returns the requests of a batch field, in the order sent."""
    at = 5
    previous = Request(0, 0, 0)
    for _ in range(batch_count(packed)):
        (index,) = struct.unpack_from(">I", packed, at)
        digest = packed[at + 4 : at + 4 + DIGEST_BYTES]
        parts = packed[at + 4 + DIGEST_BYTES]
        at += 5 + DIGEST_BYTES
        if parts != _BATCH_REPEAT:
            previous, at = _take_batch_header(packed, at, parts)
        yield replace(previous, fields={**previous.fields, FIELD_DIGEST: digest}, index=index)


def _take_batch_header(packed: bytes, at: int, parts: int) -> tuple[Request, int]:
    info1 = packed[at]
    info2 = info3 = generation = ttl_s = 0
    if parts & _BATCH_INFO:
        info2, info3 = packed[at + 1], packed[at + 2]
        at += 3
    else:
        at += 1
    at += 1 if parts & _BATCH_INFO4 else 0
    if parts & _BATCH_GENERATION:
        (generation,) = struct.unpack_from(">H", packed, at)
        at += 2
    if parts & _BATCH_TTL:
        (ttl_s,) = struct.unpack_from(">I", packed, at)
        at += 4
    field_count, operation_count = struct.unpack_from(">HH", packed, at)
    request = Request(info1, info2, info3, generation, ttl_s)
    at = _take_fields(packed, at + 4, field_count, request.fields)
    return request, _take_operations(packed, at, operation_count, request.operations)


def _take_fields(body: bytes, at: int, count: int, into: dict[int, bytes]) -> int:
    for _ in range(count):
        size, kind = _SIZED.unpack_from(body, at)
        into[kind] = body[at + 5 : at + 4 + size]
        at += 4 + size
    return at


def _take_operations(body: bytes, at: int, count: int, into: list[Operation]) -> int:
    for _ in range(count):
        size, what, value_type, _, name_size = _OPERATION.unpack_from(body, at)
        value_at = at + _OPERATION.size + name_size
        name = body[at + _OPERATION.size : value_at].decode()
        into.append(Operation(what, name, value_type, body[value_at : at + 4 + size]))
        at += 4 + size
    return at


def encode_message(
    *,
    result: int = 0,
    generation: int = 0,
    void_time_s: int = 0,
    index: int = 0,
    info3: int = 0,
    fields: dict[int, bytes] | None = None,
    bins: dict[str, tuple[int, bytes]] | None = None,
) -> bytes:
    """Returns one answer, to be framed alone or after others. `void_time_s` is when the record expires, 0 for never."""
    fields, bins = fields or {}, bins or {}
    header = _HEADER.pack(_HEADER.size, 0, 0, info3, 0, result, generation, void_time_s, index, len(fields), len(bins))
    parts = [header]
    parts += [_SIZED.pack(len(data) + 1, kind) + data for kind, data in fields.items()]
    for name, (value_type, value) in bins.items():
        size = 4 + len(name) + len(value)
        parts += [_OPERATION.pack(size, OPERATION_READ, value_type, 0, len(name)), name.encode(), value]
    return b"".join(parts)
