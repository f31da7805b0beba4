"""The compiled half of scoring/engine/records.py: writes responses, and the outbox records around them, as bytes.

    frame     u32 size │ u32 crc │ record                                   what the outbox appends
    record    request │ response │ decided_time_ms │ vector │ digest │ caller │ origin │ latency │ trace
                                                                            schemas/proto/outbox.proto, OutboxRecord
    response  payment_id │ decision_id │ score │ tail │ age                 schemas/proto/scoring.proto, ScoreResponse

1. A protobuf message is a sequence of fields. A field is a tag (eight times its number, plus its wire type), and then a
   varint, eight bytes, or a length and that many bytes.
2. Two concatenated messages of one type are their merge. Therefore tail (action, reasons, version, flags), digest and
   origin (bundle, policy, arm) come serialised, and the loop writes only the other fields. A tail says which origin its
   record has.
3. It writes the fields in the order of their numbers, so the bytes are those that protobuf itself would write.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from paywarden.features.kernel.layout import U8
from paywarden.features.kernel.plan_schema import positions
from paywarden.features.kernel.toolkit.byte_ranges import copy_bytes
from paywarden.features.kernel.toolkit.crc import crc32_of_record
from paywarden.features.kernel.toolkit.frame import address, size
from paywarden.features.kernel.toolkit.jit import compiled, inlined
from paywarden.features.kernel.toolkit.machine_words import store_word
from paywarden.features.kernel.toolkit.varint import varint_size, write_varint

# Tags of the response and of the record.
_PAYMENT_ID, _DECISION_ID, _SCORE = 0x0A, 0x12, 0x19
_AGE = 0x40
_REQUEST, _RESPONSE, _TIME, _VECTOR, _CALLER = 0x0A, 0x12, 0x18, 0x22, 0x32
_LATENCY = 0x78
FRAME_BYTES = 8
# The most bytes of a record beside its parts: frame, tags, lengths, score, time, number of the decision.
OVERHEAD_BYTES = 128
_DASH = 45
# The pieces of `constants`.
PREFIX, DIGEST = range(2)
# Columns of `bounds`: where each frame begins, and where its response begins and ends.
FRAME, RESPONSE, END = range(3)


class RecordSlots(NamedTuple):
    """The frame of `write_records`. Unless stated otherwise, an array is int64 with one number per decision."""

    bodies: int
    """The requests, concatenated, uint8."""
    body_sizes: int
    ids: int
    """The payments' ids, concatenated, uint8."""
    id_sizes: int
    callers: int
    """The callers' names, concatenated, uint8."""
    caller_sizes: int
    traces: int
    """The serialised traces of the records, field and all, concatenated, uint8."""
    trace_sizes: int
    arrivals: int
    """float64; when each request arrived, in seconds of the clock of `decided_s`."""
    scores: int
    """float64; NaN for a decision without a score."""
    tail_numbers: int
    """The number of each response's tail."""
    tails: int
    """The tails, concatenated, uint8."""
    tail_ends: int
    """Where each tail ends."""
    tail_origins: int
    """The number of each tail's origin."""
    origins: int
    """The origins, concatenated, uint8."""
    origin_ends: int
    """Where each origin ends."""
    constants: int
    """The prefix of decision ids and the digest, concatenated, uint8."""
    constant_ends: int
    """Where PREFIX and DIGEST end."""
    vectors: int
    """A row of bytes for each decision."""
    out: int
    """Filled: the frames, concatenated, uint8. It must be large enough."""
    bounds: int
    """Shape (decisions, 3). Filled: FRAME, RESPONSE and END of each."""


SLOT = positions(RecordSlots)


@inlined
def _hex_digits(number: int) -> int:
    size = 1
    while number > 15:
        number >>= 4
        size += 1
    return size


@inlined
def _write_hex(out: U8, at: int, number: int, digits: int) -> int:
    for place in range(digits):
        digit = number >> 4 * (digits - 1 - place) & 15
        out[at + place] = 48 + digit if digit < 10 else 87 + digit
    return at + digits


@inlined
def _write_word32(out: U8, at: int, number: int) -> None:
    for place in range(4):
        out[at + place] = number >> 8 * place & 255


@compiled(makes_arrays=True)
def write_records(
    frame_at: int, count: int, vector_bytes: int, decision: int, age_ms: int, time_ms: int, decided_s: float
) -> int:
    """Write the frames of `count` decisions made at `time_ms`; the first has the number `decision`.

    `age_ms`: the profiles' age; negative if it is not known. `decided_s`: the moment of the decisions by the clock of
    the arrivals; NaN if these are not known. The frame at `frame_at` holds the arrays of SLOT. Returns the number of
    bytes written.
    """
    bodies = carray(address(frame_at, SLOT.bodies), size(frame_at, SLOT.bodies), np.uint8)
    body_sizes = carray(address(frame_at, SLOT.body_sizes), count, np.int64)
    ids = carray(address(frame_at, SLOT.ids), size(frame_at, SLOT.ids), np.uint8)
    id_sizes = carray(address(frame_at, SLOT.id_sizes), count, np.int64)
    callers = carray(address(frame_at, SLOT.callers), size(frame_at, SLOT.callers), np.uint8)
    caller_sizes = carray(address(frame_at, SLOT.caller_sizes), count, np.int64)
    traces = carray(address(frame_at, SLOT.traces), size(frame_at, SLOT.traces), np.uint8)
    trace_sizes = carray(address(frame_at, SLOT.trace_sizes), count, np.int64)
    scores = carray(address(frame_at, SLOT.scores), count, np.float64)
    arrivals = carray(address(frame_at, SLOT.arrivals), count, np.float64)
    score_words = carray(address(frame_at, SLOT.scores), count, np.int64)
    tail_numbers = carray(address(frame_at, SLOT.tail_numbers), count, np.int64)
    tails = carray(address(frame_at, SLOT.tails), size(frame_at, SLOT.tails), np.uint8)
    tail_ends = carray(address(frame_at, SLOT.tail_ends), size(frame_at, SLOT.tail_ends), np.int64)
    tail_origins = carray(address(frame_at, SLOT.tail_origins), size(frame_at, SLOT.tail_origins), np.int64)
    origins = carray(address(frame_at, SLOT.origins), size(frame_at, SLOT.origins), np.uint8)
    origin_ends = carray(address(frame_at, SLOT.origin_ends), size(frame_at, SLOT.origin_ends), np.int64)
    constants = carray(address(frame_at, SLOT.constants), size(frame_at, SLOT.constants), np.uint8)
    constant_ends = carray(address(frame_at, SLOT.constant_ends), 2, np.int64)
    vectors = carray(address(frame_at, SLOT.vectors), count * vector_bytes, np.uint8)
    out = carray(address(frame_at, SLOT.out), size(frame_at, SLOT.out), np.uint8)
    bounds = carray(address(frame_at, SLOT.bounds), (count, 3), np.int64)
    prefix_size = constant_ends[PREFIX]
    age_size = 1 + varint_size(age_ms) if age_ms >= 0 else 0
    digest, digest_size = prefix_size, constant_ends[DIGEST] - prefix_size
    at, body, payment_id, caller, trace = 0, 0, 0, 0, 0
    for number in range(count):
        body_size, id_size, tail = body_sizes[number], id_sizes[number], tail_numbers[number]
        tail_start = tail_ends[tail - 1] if tail > 0 else 0
        tail_size = tail_ends[tail] - tail_start
        digits = _hex_digits(decision + number)
        decision_size = prefix_size + 1 + digits
        # Protobuf leaves out a field that has its default value.
        has_score = scores[number] == scores[number] and scores[number] != 0.0
        response_size = 2 + varint_size(id_size) + id_size + varint_size(decision_size) + decision_size
        response_size += tail_size + age_size + (9 if has_score else 0)
        bounds[number, FRAME] = at
        begun = at + FRAME_BYTES
        out[begun] = _REQUEST
        at = copy_bytes(bodies, body, body_size, out, write_varint(out, begun + 1, body_size))
        out[at] = _RESPONSE
        at = write_varint(out, at + 1, response_size)
        bounds[number, RESPONSE] = at
        out[at] = _PAYMENT_ID
        at = copy_bytes(ids, payment_id, id_size, out, write_varint(out, at + 1, id_size))
        out[at] = _DECISION_ID
        at = copy_bytes(constants, 0, prefix_size, out, write_varint(out, at + 1, decision_size))
        out[at] = _DASH
        at = _write_hex(out, at + 1, decision + number, digits)
        if has_score:
            out[at] = _SCORE
            store_word(out, at + 1, score_words[number])
            at += 9
        at = copy_bytes(tails, tail_start, tail_size, out, at)
        if age_ms >= 0:
            out[at] = _AGE
            at = write_varint(out, at + 1, age_ms)
        bounds[number, END] = at
        out[at] = _TIME
        at = write_varint(out, at + 1, time_ms)
        out[at] = _VECTOR
        at = copy_bytes(vectors, number * vector_bytes, vector_bytes, out, write_varint(out, at + 1, vector_bytes))
        at = copy_bytes(constants, digest, digest_size, out, at)
        caller_size = caller_sizes[number]
        if caller_size > 0:
            out[at] = _CALLER
            at = copy_bytes(callers, caller, caller_size, out, write_varint(out, at + 1, caller_size))
        origin = tail_origins[tail]
        origin_start = origin_ends[origin - 1] if origin > 0 else 0
        at = copy_bytes(origins, origin_start, origin_ends[origin] - origin_start, out, at)
        if decided_s == decided_s:
            # A clock that is not the arrivals' must not make a negative number, which would take ten bytes.
            out[at] = _LATENCY
            at = write_varint(out, at + 1, int(max(0.0, min(1e15, (decided_s - arrivals[number]) * 1e6))))
        trace_size = trace_sizes[number]
        if trace_size > 0:
            at = copy_bytes(traces, trace, trace_size, out, at)
        _write_word32(out, begun - FRAME_BYTES, at - begun)
        _write_word32(out, begun - 4, crc32_of_record(out, begun, at))
        body += body_size
        payment_id += id_size
        caller += caller_size
        trace += trace_size
    return at
