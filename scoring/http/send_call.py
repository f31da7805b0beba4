"""The compiled half of scoring/http/fast_path.py: makes answers of the responses of a chunk, and sends them.

    HTTP/1.1 200 OK … Content-Length:  │ 123 │ \\r\\n\\r\\n │ response
    `head`, the same for all           │ its size        │ from the buffer in which its record was written

It calls `send` of the C library once for each answer. A socket that takes none or a part of its answer is no error
here: `sent` says how much it took, and Python hands the rest to the connection's transport.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from paywarden.features.kernel.layout import U8
from paywarden.features.kernel.plan_schema import positions
from paywarden.features.kernel.toolkit.byte_ranges import copy_bytes
from paywarden.features.kernel.toolkit.frame import address, address_number, size
from paywarden.features.kernel.toolkit.intrinsics import call_c, put_word_at, word_at
from paywarden.features.kernel.toolkit.jit import compiled, inlined
from paywarden.scoring.engine import record_bytes as records

# Places in `numbers`: the address of `send` and its flags; the size of `head`; the addresses of the counter of answers,
# and of the first bucket and the sum of the histogram of their times.
SEND, FLAGS, HEAD_SIZE, ANSWERED, BUCKETS, SUM = range(6)
NUMBER_COUNT = 6
# The file of an answer that nobody may send here.
NO_FILE = -1
# The most bytes of an answer beside head and response: the digits of the size, and the empty line.
OVERHEAD_BYTES = 24


class SendSlots(NamedTuple):
    """The frame of `send_answers`. Unless stated otherwise, an array is int64 with one number per answer."""

    numbers: int
    """SEND to SUM."""
    head: int
    """The beginning of every answer, up to its size, uint8."""
    files: int
    """The number of each connection's socket, or NO_FILE."""
    bounds: int
    """The bounds of the histogram of times, float64, in seconds."""
    unit: int
    """How many units of its sum a second has, float64, one."""
    out: int
    """Filled: the answers, one after the other, uint8. It must be large enough."""
    ends: int
    """Filled: where each answer ends."""
    sent: int
    """Filled: how many bytes of each answer its socket has taken."""


SLOT = positions(SendSlots)


@inlined
def _write_decimal(out: U8, at: int, number: int) -> int:
    digits, rest = 1, number
    while rest > 9:
        rest //= 10
        digits += 1
    for place in range(digits):
        out[at + digits - 1 - place] = 48 + number % 10
        number //= 10
    return at + digits


@compiled(makes_arrays=True)
def send_answers(frame_at: int, records_at: int, count: int, now_s: float) -> int:
    """Send the first `count` responses of the frame of `write_records` at `records_at`, and count them.

    `now_s` is by the clock of their arrivals. Returns how many answers were not taken whole.
    """
    numbers = carray(address(frame_at, SLOT.numbers), NUMBER_COUNT, np.int64)
    head = carray(address(frame_at, SLOT.head), size(frame_at, SLOT.head), np.uint8)
    files = carray(address(frame_at, SLOT.files), count, np.int64)
    bounds = carray(address(frame_at, SLOT.bounds), size(frame_at, SLOT.bounds), np.float64)
    unit = carray(address(frame_at, SLOT.unit), 1, np.float64)[0]
    out = carray(address(frame_at, SLOT.out), size(frame_at, SLOT.out), np.uint8)
    ends = carray(address(frame_at, SLOT.ends), count, np.int64)
    sent = carray(address(frame_at, SLOT.sent), count, np.int64)
    written = carray(address(records_at, records.SLOT.out), size(records_at, records.SLOT.out), np.uint8)
    places = carray(address(records_at, records.SLOT.bounds), (count, 3), np.int64)
    arrivals = carray(address(records_at, records.SLOT.arrivals), count, np.float64)
    out_at = address_number(frame_at, SLOT.out)
    at, unfinished, total = 0, 0, 0.0
    for number in range(count):
        start, end = places[number, records.RESPONSE], places[number, records.END]
        begun = at
        at = _write_decimal(out, copy_bytes(head, 0, numbers[HEAD_SIZE], out, at), end - start)
        out[at] = 13
        out[at + 1] = 10
        out[at + 2] = 13
        out[at + 3] = 10
        at = copy_bytes(written, start, end - start, out, at + 4)
        ends[number] = at
        taken = 0
        if files[number] != NO_FILE:
            taken = max(0, call_c(numbers[SEND], files[number], out_at + begun, at - begun, numbers[FLAGS]))
        sent[number] = taken
        unfinished += 1 if taken < at - begun else 0
        seconds = max(0.0, now_s - arrivals[number])
        bucket = 0
        while bucket < len(bounds) and bounds[bucket] < seconds:
            bucket += 1
        put_word_at(numbers[BUCKETS] + 8 * bucket, word_at(numbers[BUCKETS] + 8 * bucket) + 1)
        total += seconds
    put_word_at(numbers[SUM], word_at(numbers[SUM]) + int(total * unit))
    put_word_at(numbers[ANSWERED], word_at(numbers[ANSWERED]) + count)
    return unfinished


def warm_up() -> None:
    """Load or compile the call, so that no payment waits for it."""
    send_answers.compile("int64(int64, int64, int64, float64)")  # type: ignore[attr-defined]
