"""The caller's trace: the header `traceparent` of W3C Trace Context, packed into 25 bytes.

    00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
       trace id, 16 bytes               span id, 8 bytes  flags, 1 byte: 1 is "sampled"

A header that is malformed counts as none, as the recommendation asks: a payment is never refused for its trace.
"""

from __future__ import annotations

import re

TRACE_BYTES = 25
SAMPLED = 1
"""The bit of the flags by which the caller asks that the trace be recorded."""
# A later version may append fields, which are left out. Version ff, and ids of zeros, are not valid.
_HEADER = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
_HEADER_BYTES = 55


def packed_trace(header: bytes) -> bytes:
    """Returns the trace of a `traceparent`, TRACE_BYTES long; empty if the header is not valid."""
    match = _HEADER.fullmatch(header[:_HEADER_BYTES])
    if match is None or not _ends_well(header):
        return b""
    return bytes.fromhex((match[1] + match[2] + match[3]).decode())


def _ends_well(header: bytes) -> bool:
    """Whether nothing follows the flags, or, in a version to come, another field."""
    return len(header) == _HEADER_BYTES or (not header.startswith(b"00") and header[_HEADER_BYTES:][:1] == b"-")


def traceparent_of(trace: bytes) -> str | None:
    """Returns the header, as version 00 writes it; None without a trace."""
    if len(trace) != TRACE_BYTES:
        return None
    text = trace.hex()
    return f"00-{text[:32]}-{text[32:48]}-{text[48:]}"


def ids_of(trace: bytes) -> dict[str, str]:
    """Returns the ids of trace and span in hex, as log lines have them (ops/log_schema.json); empty without a trace."""
    text = trace.hex()
    return {"trace_id": text[:32], "span_id": text[32:48]} if trace else {}
