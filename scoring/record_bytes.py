"""The compiled half of scoring/records.py: responses, and outbox records around them, as bytes.

    frame     u32 size │ u32 crc │ record                                   what the outbox appends
    record    request │ response │ decided_time_ms │ vector │ digest        schemas/outbox.proto, OutboxRecord
    response  payment_id │ decision_id │ score │ tail │ age                 schemas/scoring.proto, ScoreResponse

A protobuf message is its fields one after the other, each a tag (its number times eight, and how it is stored) and a
varint, eight bytes, or a length and so many bytes. Two serialised messages of one kind, one behind the other, are the
message of both. So tail (action, reasons, version, flags), age and digest come serialised, and only the rest is written
here, in the order of the fields: the bytes are those that protobuf itself would write.
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit  # type: ignore[attr-defined]
from numpy.typing import NDArray

from features.kernel import load_word, pointer, store_word
from scoring.compiled import inlined

# Every number the compiled code depends on stands in this file: numba's cache looks at no other.

I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
F64 = NDArray[np.float64]

# Fields of the response and of the record.
_PAYMENT_ID, _DECISION_ID, _SCORE = 0x0A, 0x12, 0x19
_REQUEST, _RESPONSE, _TIME, _VECTOR = 0x0A, 0x12, 0x18, 0x22
FRAME_BYTES = 8
# What a record has at most beside its parts: frame, tags, lengths, the score, the time, a decision's number.
OVERHEAD_BYTES = 128
_DASH = 45
# In the order of the frame.
ARRAYS = (
    *("bodies", "body_sizes", "ids", "id_sizes", "scores", "tail_numbers", "tails", "tail_ends", "constants"),
    *("constant_ends", "vectors", "crc_tables", "out", "bounds"),
)
# Pieces of the constants.
PREFIX, AGE, DIGEST = range(3)
# Columns of the bounds: where each frame begins, and where its response begins and ends.
FRAME, RESPONSE, END = range(3)
# No array is longer; the true lengths are the caller's.
_ANY = 1 << 40


@inlined
def _varint_size(number: int) -> int:
    size = 1
    while number > 127:
        number >>= 7
        size += 1
    return size


@inlined
def _write_varint(out: U8, at: int, number: int) -> int:
    """Seven bits a byte, the lowest first; all but the last have the highest bit set. Returns where it ends."""
    while number > 127:
        out[at] = number & 127 | 128
        number >>= 7
        at += 1
    out[at] = number
    return at + 1


@inlined
def _copy(source: U8, start: int, size: int, out: U8, at: int) -> int:
    for offset in range(size):
        out[at + offset] = source[start + offset]
    return at + size


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
def _checksum(tables: I64, data: U8, at: int, end: int) -> int:
    """CRC-32 as zlib has it, eight bytes a step (Kounavis and Berry, "slicing by 8", 2005)."""
    crc = np.int64(0xFFFFFFFF)
    while at + 8 <= end:
        word = load_word(data, at)
        low = (word ^ crc) & 0xFFFFFFFF
        high = word >> 32 & 0xFFFFFFFF
        crc = (
            tables[7, low & 255]
            ^ tables[6, low >> 8 & 255]
            ^ tables[5, low >> 16 & 255]
            ^ tables[4, low >> 24]
            ^ tables[3, high & 255]
            ^ tables[2, high >> 8 & 255]
            ^ tables[1, high >> 16 & 255]
            ^ tables[0, high >> 24]
        )
        at += 8
    while at < end:
        crc = tables[0, (crc ^ data[at]) & 255] ^ crc >> 8
        at += 1
    return int(crc ^ 0xFFFFFFFF)


@inlined
def _write_word32(out: U8, at: int, number: int) -> None:
    for place in range(4):
        out[at + place] = number >> 8 * place & 255


# With reference counting: without it numba makes no arrays, and these have nothing to count.
@njit(cache=True)
def write_records(frame_at: int, count: int, vector_bytes: int, decision: int, time_ms: int) -> int:
    """Write the frames of `count` decisions made at `time_ms`, the first of them with the number `decision`.

    The frame at `frame_at` holds the addresses of ARRAYS. Bodies and ids lie one behind the other; `scores` are NaN
    where there is none; `tail_numbers` say which of the tails each response has, and `tail_ends` where each tail ends.
    `out` must be large enough. Returns how many bytes were written; `bounds` says where each frame and response lies.
    """
    frame = carray(pointer(frame_at), 14, np.int64)
    bodies = carray(pointer(frame[0]), _ANY, np.uint8)
    body_sizes = carray(pointer(frame[1]), count, np.int64)
    ids = carray(pointer(frame[2]), _ANY, np.uint8)
    id_sizes = carray(pointer(frame[3]), count, np.int64)
    scores = carray(pointer(frame[4]), count, np.float64)
    score_words = carray(pointer(frame[4]), count, np.int64)
    tail_numbers = carray(pointer(frame[5]), count, np.int64)
    tails = carray(pointer(frame[6]), _ANY, np.uint8)
    tail_ends = carray(pointer(frame[7]), _ANY, np.int64)
    constants = carray(pointer(frame[8]), _ANY, np.uint8)
    constant_ends = carray(pointer(frame[9]), 3, np.int64)
    vectors = carray(pointer(frame[10]), _ANY, np.uint8)
    crc_tables = carray(pointer(frame[11]), (8, 256), np.int64)
    out = carray(pointer(frame[12]), _ANY, np.uint8)
    bounds = carray(pointer(frame[13]), (count, 3), np.int64)
    prefix_size = constant_ends[PREFIX]
    age, age_size = prefix_size, constant_ends[AGE] - constant_ends[PREFIX]
    digest, digest_size = constant_ends[AGE], constant_ends[DIGEST] - constant_ends[AGE]
    at, body, payment_id = 0, 0, 0
    for number in range(count):
        body_size, id_size, tail = body_sizes[number], id_sizes[number], tail_numbers[number]
        tail_start = tail_ends[tail - 1] if tail > 0 else 0
        tail_size = tail_ends[tail] - tail_start
        digits = _hex_digits(decision + number)
        decision_size = prefix_size + 1 + digits
        # A field that holds its default is left out.
        has_score = scores[number] == scores[number] and scores[number] != 0.0
        size = 2 + _varint_size(id_size) + id_size + _varint_size(decision_size) + decision_size
        size += tail_size + age_size + (9 if has_score else 0)
        bounds[number, FRAME] = at
        begun = at + FRAME_BYTES
        out[begun] = _REQUEST
        at = _copy(bodies, body, body_size, out, _write_varint(out, begun + 1, body_size))
        out[at] = _RESPONSE
        at = _write_varint(out, at + 1, size)
        bounds[number, RESPONSE] = at
        out[at] = _PAYMENT_ID
        at = _copy(ids, payment_id, id_size, out, _write_varint(out, at + 1, id_size))
        out[at] = _DECISION_ID
        at = _copy(constants, 0, prefix_size, out, _write_varint(out, at + 1, decision_size))
        out[at] = _DASH
        at = _write_hex(out, at + 1, decision + number, digits)
        if has_score:
            out[at] = _SCORE
            store_word(out, at + 1, score_words[number])
            at += 9
        at = _copy(tails, tail_start, tail_size, out, at)
        at = _copy(constants, age, age_size, out, at)
        bounds[number, END] = at
        out[at] = _TIME
        at = _write_varint(out, at + 1, time_ms)
        out[at] = _VECTOR
        at = _copy(vectors, number * vector_bytes, vector_bytes, out, _write_varint(out, at + 1, vector_bytes))
        at = _copy(constants, digest, digest_size, out, at)
        _write_word32(out, begun - FRAME_BYTES, at - begun)
        _write_word32(out, begun - 4, _checksum(crc_tables, out, begun, at))
        body += body_size
        payment_id += id_size
    return at
