"""The compiled half of scoring/http/fast_path.py that reads: from sockets with bytes to requests that wait.

    epoll_wait ─► recv ─┬─ a known head and its whole body ─► `data`, behind the requests that wait
                        └─ anything else ─► `others`, for Python

It calls `epoll_wait` and `recv` of the C library: once for all sockets, and once for each socket that has bytes. Epoll
reports a socket once for new bytes (edge-triggered). Therefore all sockets of one report are read: one that is left out
would wait for its caller's next bytes. One report may tell of a request and of the end behind it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from paywarden.features.kernel.plan_schema import positions
from paywarden.features.kernel.toolkit.byte_ranges import copy_bytes, is_same
from paywarden.features.kernel.toolkit.frame import address, address_number, size
from paywarden.features.kernel.toolkit.intrinsics import call_c, loose_word_at
from paywarden.features.kernel.toolkit.jit import compiled
from paywarden.scoring.engine import record_bytes as records
from paywarden.scoring.requests import request_bytes as requests

# Places in `numbers`. First what stays: the addresses of the C library's functions, the flags of `recv`, epoll's file,
# the size of its events, and the flags of those that tell of an end. Then the inputs: how many requests may wait, and
# the number of the caller whose requests do.
# Then the state: how many wait, and how many bytes they have.
EPOLL_WAIT, RECV, MEMMOVE, FLAGS, EPOLL, EVENT_BYTES, ENDED, ROOM, CALLER, WAITING, USED = range(11)
NUMBER_COUNT = 11
# The most sockets that are read at once, and the bytes that are read of each. Requests of so many bytes are not usual.
EVENTS_MAX, READ_BYTES = 256, 8192
# The most requests that wait, and the most bytes that they have.
WAITING_MAX, WAITING_BYTES = 1024, 1 << 20
# Places in an entry of `entries`: the connection's file, and the sizes of the request and of its body.
FILE, SIZE, BODY = range(3)
ENTRY_WIDTH = 3
# Places in an entry of `others`: the connection's file, the number of bytes that were read (0 or less for none), and 1
# if epoll may be silent about what follows: more bytes, or an end that it has told of already.
OTHER_FILE, READ, ENDS_WATCH = range(3)
OTHER_WIDTH = 3
# Places in an entry of `head_places`: where the head of requests of this size begins in `heads`, and its size or 0.
HEAD_AT, HEAD_SIZE = range(2)
# The state of a connection: no request of it waits, or one does.
IDLE, WAITS = range(2)
_LOW_HALF = (1 << 32) - 1


class ReadSlots(NamedTuple):
    """The frame of this file's functions. Unless stated otherwise, an array is int64."""

    numbers: int
    """EPOLL_WAIT to USED."""
    events: int
    """EVENTS_MAX times EVENT_BYTES, uint8. Scratch space."""
    data: int
    """The bytes of the requests that wait, in order, and READ_BYTES more, uint8."""
    entries: int
    """Shape (WAITING_MAX, ENTRY_WIDTH): FILE to BODY of each request that waits."""
    arrivals: int
    """When each of them arrived, float64."""
    states: int
    """IDLE or WAITS, by file."""
    callers: int
    """The number of each watched connection's caller, by file."""
    answered: int
    """When each connection's last answer left, by file, float64, in seconds of the loop's clock."""
    heads: int
    """The known heads, concatenated, uint8."""
    head_places: int
    """Shape (READ_BYTES, 2): HEAD_AT and HEAD_SIZE by the size of the whole request."""
    others: int
    """Shape (EVENTS_MAX, OTHER_WIDTH). Filled: OTHER_FILE to ENDS_WATCH of each read that Python gets."""
    others_data: int
    """Filled: the bytes of these reads, concatenated, uint8."""
    files: int
    """Filled by `hand_on`: the files of the chunk's connections."""


SLOT = positions(ReadSlots)


@compiled(makes_arrays=True)
def read_ready(frame_at: int, arrived: float) -> int:
    """Read all sockets that have bytes, and let usual requests wait. Returns how many reads Python must look at.

    `arrived` is now, by the clock of arrivals. The number of requests that wait is in `numbers`.
    """
    numbers = carray(address(frame_at, SLOT.numbers), NUMBER_COUNT, np.int64)
    data = carray(address(frame_at, SLOT.data), size(frame_at, SLOT.data), np.uint8)
    entries = carray(address(frame_at, SLOT.entries), (WAITING_MAX, ENTRY_WIDTH), np.int64)
    arrivals = carray(address(frame_at, SLOT.arrivals), WAITING_MAX, np.float64)
    states = carray(address(frame_at, SLOT.states), size(frame_at, SLOT.states), np.int64)
    callers = carray(address(frame_at, SLOT.callers), size(frame_at, SLOT.callers), np.int64)
    heads = carray(address(frame_at, SLOT.heads), size(frame_at, SLOT.heads), np.uint8)
    head_places = carray(address(frame_at, SLOT.head_places), (READ_BYTES, 2), np.int64)
    others = carray(address(frame_at, SLOT.others), (EVENTS_MAX, OTHER_WIDTH), np.int64)
    others_data = carray(address(frame_at, SLOT.others_data), size(frame_at, SLOT.others_data), np.uint8)
    events_at, data_at = address_number(frame_at, SLOT.events), address_number(frame_at, SLOT.data)
    room = min(numbers[ROOM], WAITING_MAX)
    other, other_at = 0, 0
    ready = call_c(numbers[EPOLL_WAIT], numbers[EPOLL], events_at, EVENTS_MAX, 0) & _LOW_HALF
    if ready > EVENTS_MAX:
        return 0  # the call failed: it was interrupted
    for number in range(ready):
        # An event begins with its flags. Its last eight bytes hold the file, in the first four of them.
        event_at = events_at + number * numbers[EVENT_BYTES]
        has_ended = (loose_word_at(event_at) & numbers[ENDED]) != 0
        file = loose_word_at(event_at + numbers[EVENT_BYTES] - 8) & _LOW_HALF
        at = numbers[USED]
        got = call_c(numbers[RECV], file, data_at + at, READ_BYTES, numbers[FLAGS])
        is_whole = 0 < got < READ_BYTES and not has_ended
        if is_whole and states[file] == IDLE and callers[file] == numbers[CALLER]:
            head_size = head_places[got, HEAD_SIZE]
            if (
                head_size > 0
                and numbers[WAITING] < room
                and at + got <= WAITING_BYTES
                and is_same(heads, head_places[got, HEAD_AT], data, at, head_size)
            ):
                place = numbers[WAITING]
                entries[place, FILE], entries[place, SIZE], entries[place, BODY] = file, got, got - head_size
                arrivals[place], states[file] = arrived, WAITS
                numbers[WAITING], numbers[USED] = place + 1, at + got
                continue
        others[other, OTHER_FILE], others[other, READ] = file, got
        others[other, ENDS_WATCH] = 0 if is_whole else 1
        if got > 0:
            other_at = copy_bytes(data, at, got, others_data, other_at)
        other += 1
    return other


@compiled(makes_arrays=True)
def hand_on(frame_at: int, read_at: int, record_at: int, count: int) -> int:
    """Copy the bodies of the first `count` requests to the frame of `read_bodies`.

    Their arrivals go to that of `write_records`. Returns the number of bytes of the bodies, or -1 if they are too many.
    """
    data = carray(address(frame_at, SLOT.data), size(frame_at, SLOT.data), np.uint8)
    entries = carray(address(frame_at, SLOT.entries), (WAITING_MAX, ENTRY_WIDTH), np.int64)
    arrivals = carray(address(frame_at, SLOT.arrivals), WAITING_MAX, np.float64)
    files = carray(address(frame_at, SLOT.files), count, np.int64)
    bodies = carray(address(read_at, requests.SLOT.data), size(read_at, requests.SLOT.data), np.uint8)
    lengths = carray(address(read_at, requests.SLOT.lengths), count, np.int64)
    arrived = carray(address(record_at, records.SLOT.arrivals), count, np.float64)
    total = 0
    for number in range(count):
        total += entries[number, BODY]
    if total > len(bodies):
        return -1
    begun, body_at = 0, 0
    for number in range(count):
        following, length = begun + entries[number, SIZE], entries[number, BODY]
        body_at = copy_bytes(data, following - length, length, bodies, body_at)
        lengths[number], arrived[number], files[number] = length, arrivals[number], entries[number, FILE]
        begun = following
    return total


@compiled(makes_arrays=True)
def take_out(frame_at: int, place: int, count: int, now_s: float) -> None:
    """Take `count` requests out of those that wait, from `place` on. The others move up.

    `now_s`: when they were answered, in seconds of the loop's clock.
    """
    numbers = carray(address(frame_at, SLOT.numbers), NUMBER_COUNT, np.int64)
    entries = carray(address(frame_at, SLOT.entries), (WAITING_MAX, ENTRY_WIDTH), np.int64)
    arrivals = carray(address(frame_at, SLOT.arrivals), WAITING_MAX, np.float64)
    states = carray(address(frame_at, SLOT.states), size(frame_at, SLOT.states), np.int64)
    answered = carray(address(frame_at, SLOT.answered), size(frame_at, SLOT.answered), np.float64)
    before, taken = 0, 0
    for number in range(place):
        before += entries[number, SIZE]
    for number in range(place, place + count):
        taken += entries[number, SIZE]
        states[entries[number, FILE]], answered[entries[number, FILE]] = IDLE, now_s
    rest = numbers[USED] - before - taken
    if rest > 0:
        data_at = address_number(frame_at, SLOT.data)
        call_c(numbers[MEMMOVE], data_at + before, data_at + before + taken, rest, 0)
    for number in range(place, numbers[WAITING] - count):
        for column in range(ENTRY_WIDTH):
            entries[number, column] = entries[number + count, column]
        arrivals[number] = arrivals[number + count]
    numbers[WAITING] -= count
    numbers[USED] -= taken


def warm_up() -> None:
    """Load or compile the calls, so that no payment waits for them."""
    read_ready.compile("int64(int64, float64)")  # type: ignore[attr-defined]
    hand_on.compile("int64(int64, int64, int64, int64)")  # type: ignore[attr-defined]
    take_out.compile("none(int64, int64, int64, float64)")  # type: ignore[attr-defined]
