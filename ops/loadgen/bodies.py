"""Prepares requests before a load begins, so that a request costs one join of three byte strings when it is due.

    protobuf   0a 14 <payment_id, 20 bytes> 10 <event_time_ms, 6 bytes> │ everything else as it was serialised
    JSON       {"payment_id":"<20 characters>","event_time_ms":<13 digits>,│ everything else

The payment id has a fixed width and the time follows it. The bytes before and after them never change.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence

from paywarden.features.kernel.toolkit.varint import encode_varint
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest

CONTENT_TYPES = ("application/x-protobuf", "application/json")
_ID_BYTES = 20
_NUMBER_DIGITS = 11


def stamped_bodies(
    requests: Sequence[ScoreRequest], *, id_prefix: str, content_type: str = CONTENT_TYPES[0]
) -> Iterator[bytes]:
    """Yields the requests again and again, each with a new payment id and the time at which it is taken.

    `id_prefix` has up to 9 ASCII characters; ids with different prefixes never collide. Raises Misconfigured.
    """
    prefix = id_prefix.encode()
    width = _ID_BYTES - _NUMBER_DIGITS
    if not requests or len(prefix) > width or content_type not in CONTENT_TYPES:
        raise Misconfigured(
            f"load: wanted requests, an id prefix of at most {width} bytes and a content type of {CONTENT_TYPES}"
        )
    if content_type == "application/json":
        rest = [_json_rest(request) for request in requests]
        return _bodies(rest, b'{"payment_id":"' + prefix.ljust(width, b"-"), b'","event_time_ms":%d')
    rest = [_protobuf_rest(request) for request in requests]
    return _bodies(rest, b"\x0a" + bytes((_ID_BYTES,)) + prefix.ljust(width, b"-"), b"")


def _bodies(rest: Sequence[bytes], before: bytes, time_format: bytes) -> Iterator[bytes]:
    stamp_ms, stamp = 0, b""
    for number, after in zip(itertools.count(), itertools.cycle(rest)):
        now_ms = time.time_ns() // 1_000_000
        if now_ms != stamp_ms:
            stamp_ms = now_ms
            stamp = time_format % now_ms if time_format else b"\x10" + encode_varint(now_ms)
        yield before + b"%011d" % number + stamp + after


def _protobuf_rest(request: ScoreRequest) -> bytes:
    # The class of a project's requests is made when the process starts.
    rest = type(request)()
    rest.CopyFrom(request)
    # Scalars that are not set take no bytes.
    rest.payment_id, rest.event_time_ms = "", 0
    return rest.SerializeToString()


def _json_rest(request: ScoreRequest) -> bytes:
    # Not protobuf's own JSON: there 64-bit numbers are texts.
    fields = {field.name: value for field, value in request.ListFields()}
    fields.pop("payment_id", None)
    fields.pop("event_time_ms", None)
    fields["amount_minor"] = request.amount_minor
    return b"," + json.dumps(fields, separators=(",", ":"))[1:].encode()
