"""Encodes and decodes gRPC's messages, statuses and timeouts. Pure functions.

message   1 byte flag (1: compressed) │ 4 bytes size │ the bytes                 00 00 00 00 03 'a' 'b' 'c'
status    trailers after the message: grpc-status: 0
refusal   no message; the status is in the only headers of the answer
"""

from __future__ import annotations

import zlib
from functools import lru_cache

from paywarden.scoring.engine.batching.batcher import INTERNAL, INVALID_ARGUMENT, RESOURCE_EXHAUSTED, Refusal
from paywarden.scoring.grpc.http2 import Http2Headers

UNIMPLEMENTED = "unimplemented"

# gRPC's numbers by the names that refusals use.
CODES = {
    name: number
    for number, name in enumerate(
        (
            *("ok", "cancelled", "unknown", "invalid_argument", "deadline_exceeded", "not_found", "already_exists"),
            *("permission_denied", "resource_exhausted", "failed_precondition", "aborted", "out_of_range"),
            *("unimplemented", "internal", "unavailable", "data_loss", "unauthenticated"),
        )
    )
}

HEAD_BYTES = 5
ACCEPTED_ENCODINGS = b"identity,deflate,gzip"
# zlib's `wbits`, which selects the format around the compressed bytes.
_WINDOW_BITS = {b"deflate": 15, b"gzip": 31}
ENCODINGS = frozenset((b"identity", *_WINDOW_BITS))

_UNITS_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
# From gRPC's specification.
_TIMEOUT_DIGITS_MAX = 8

BAD_TIMEOUT = Refusal(INVALID_ARGUMENT, "must be 1 to 8 digits and one of H, M, S, m, u and n", "grpc-timeout")
UNKNOWN_ENCODING = Refusal(UNIMPLEMENTED, "grpc-encoding must be identity, deflate or gzip")
NOT_ONE_MESSAGE = Refusal(UNIMPLEMENTED, "this method takes exactly one message")
TRUNCATED = Refusal(INTERNAL, "the request ends within a message")
_NO_ENCODING = Refusal(INTERNAL, "a compressed message needs a grpc-encoding that compresses")
_BAD_FLAG = Refusal(INTERNAL, "a message's first byte must be 0 or 1")
_UNREADABLE = Refusal(INTERNAL, "the message cannot be decompressed")


def frame(message: bytes) -> bytes:
    """Returns the message as the bytes of DATA."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def message_size(data: bytes | bytearray) -> int | None:
    """Returns the size that the head of the first message in `data` states; None while the head is incomplete."""
    return int.from_bytes(data[1:HEAD_BYTES], "big") if len(data) >= HEAD_BYTES else None


def too_large(bytes_max: int) -> Refusal:
    """Returns the refusal of a message that is larger than `bytes_max`, packed or unpacked."""
    return Refusal(RESOURCE_EXHAUSTED, f"a message must be at most {bytes_max} bytes")


def read_only_message(data: bytes | bytearray, encoding: bytes, bytes_max: int) -> bytes | Refusal:
    """Returns the one message that a complete request must hold, or why it does not."""
    size = message_size(data)
    if size is None:
        return TRUNCATED if data else NOT_ONE_MESSAGE
    if size > bytes_max:
        return too_large(bytes_max)
    if len(data) < HEAD_BYTES + size:
        return TRUNCATED
    if len(data) > HEAD_BYTES + size:
        return NOT_ONE_MESSAGE
    return open_message(data[0], bytes(data[HEAD_BYTES:]), encoding, bytes_max)


def open_message(flag: int, body: bytes, encoding: bytes, bytes_max: int) -> bytes | Refusal:
    """Returns the message uncompressed. Never unpacks more than `bytes_max` + 1 bytes."""
    if flag == 0:
        return body
    if flag != 1:
        return _BAD_FLAG
    bits = _WINDOW_BITS.get(encoding)
    if bits is None:
        return _NO_ENCODING
    unpacker = zlib.decompressobj(bits)
    try:
        message = unpacker.decompress(body, bytes_max + 1)
    except zlib.error:
        return _UNREADABLE
    if len(message) > bytes_max:
        return too_large(bytes_max)
    if not unpacker.eof or unpacker.unused_data:
        return _UNREADABLE
    return message


def parse_timeout_s(value: bytes) -> float | None:
    """Returns the seconds of a grpc-timeout; None when it is malformed."""
    digits, unit_s = value[:-1], _UNITS_S.get(value[-1:])
    if unit_s is None or not digits.isdigit() or len(digits) > _TIMEOUT_DIGITS_MAX:
        return None
    return int(digits) * unit_s


def percent_encode(text: str) -> bytes:
    """Encode a grpc-message: bytes outside printable ASCII, and %, become %XX."""
    return b"".join(
        b"%c" % byte if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte for byte in text.encode()
    )


def status_trailers(refusal: Refusal) -> Http2Headers:
    """Returns the trailers that give a refusal's status, message and field."""
    message = f"{refusal.field}: {refusal.message}" if refusal.field else refusal.message
    trailers = [
        (b"grpc-status", b"%d" % CODES.get(refusal.code, CODES["unknown"])),
        (b"grpc-message", percent_encode(message)),
    ]
    if refusal.field:
        trailers.append((b"paywarden-field", percent_encode(refusal.field)))
    if refusal is UNKNOWN_ENCODING:
        trailers.append((b"grpc-accept-encoding", ACCEPTED_ENCODINGS))
    return trailers


# There are few different refusals, and some are frequent.
@lru_cache(maxsize=256)
def refusal_headers(refusal: Refusal) -> Http2Headers:
    """Return the whole answer to a refused call."""
    later = ((b"grpc-retry-pushback-ms", b"1000"),) if refusal.code == RESOURCE_EXHAUSTED else ()
    return ((b":status", b"200"), (b"content-type", b"application/grpc"), *status_trailers(refusal), *later)


def http_error(status: int) -> Http2Headers:
    """Returns the whole answer to a request that is not a gRPC call."""
    return ((b":status", b"%d" % status), (b"content-length", b"0"))


def is_grpc(content_type: bytes | None) -> bool:
    """Whether a content type is that of gRPC with protobuf."""
    if content_type in (b"application/grpc", b"application/grpc+proto"):
        return True
    essence = (content_type or b"").partition(b";")[0].strip().lower()
    return essence in (b"application/grpc", b"application/grpc+proto")
