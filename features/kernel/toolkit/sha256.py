"""HMAC-SHA-256 of short texts for compiled code (FIPS 180-4, RFC 2104): the route of a card, many at once.

    hmac(key, text) = sha256(key ^ 5c… , sha256(key ^ 36… , text))

The two blocks of the key are the same for each text. `work_of` takes them in once, and each text of at most 55 bytes
then costs two blocks: some 0.6 µs, where Python's `hmac.digest` takes several. Only the first 32 bits are wanted.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from paywarden.features.kernel.layout import I64, U8
from paywarden.features.kernel.toolkit.jit import compiled, inlined

_BLOCK_BYTES = 64
_WORDS = 8
# Places in the array of `work_of`.
_SCHEDULE, _STATE, _WORK_SIZE = 16, 80, 88


def _roots(power: float, count: int) -> NDArray[np.uint32]:
    """Returns the first 32 bits of the fractions of roots of the first primes."""
    primes = [n for n in range(2, 312) if all(n % divisor for divisor in range(2, int(n**0.5) + 1))][:count]
    return np.array([int((prime**power % 1) * 2**32) for prime in primes], dtype=np.uint32)


_ROUND_WORDS = _roots(1 / 3, 64)
_START = _roots(1 / 2, 8)


def work_of(key: bytes) -> NDArray[np.uint32]:
    """Returns the work array of a key for the functions of this module. One thread at a time may use it.

    Shape (88,): the hash's state after each of the key's two blocks, eight words inside and eight outside; scratch.
    """
    padded = (hashlib.sha256(key).digest() if len(key) > _BLOCK_BYTES else key).ljust(_BLOCK_BYTES, b"\0")
    work = np.zeros(_WORK_SIZE, dtype=np.uint32)
    schedule = work[_SCHEDULE:_STATE]
    for half, mask in ((work[:_WORDS], 0x36), (work[_WORDS : 2 * _WORDS], 0x5C)):
        half[:] = _START
        schedule[:16] = np.frombuffer(bytes(byte ^ mask for byte in padded), dtype=">u4")
        _mix(half, schedule)
    return work


@inlined
def _right(value: np.uint32, bits: int) -> np.uint32:
    return np.uint32((value >> np.uint32(bits)) | (value << np.uint32(32 - bits)))


@compiled()
def _mix(state: NDArray[np.uint32], schedule: NDArray[np.uint32]) -> None:
    """Take one block into `state`. Its 16 words stand at the head of `schedule`, which has room for 64."""
    for number in range(16, 64):
        before, near = schedule[number - 15], schedule[number - 2]
        low = _right(before, 7) ^ _right(before, 18) ^ (before >> np.uint32(3))
        high = _right(near, 17) ^ _right(near, 19) ^ (near >> np.uint32(10))
        schedule[number] = schedule[number - 16] + low + schedule[number - 7] + high
    a, b, c, d, e, f, g, h = (
        state[0], state[1], state[2], state[3], state[4], state[5], state[6], state[7],
    )  # fmt: skip
    for number in range(64):
        mixed = _right(e, 6) ^ _right(e, 11) ^ _right(e, 25)
        first = np.uint32(h + mixed + ((e & f) ^ (~e & g)) + _ROUND_WORDS[number] + schedule[number])
        mixed = _right(a, 2) ^ _right(a, 13) ^ _right(a, 22)
        second = np.uint32(mixed + ((a & b) ^ (a & c) ^ (b & c)))
        h, g, f, e = g, f, e, np.uint32(d + first)
        d, c, b, a = c, b, a, np.uint32(first + second)
    state[0] += a
    state[1] += b
    state[2] += c
    state[3] += d
    state[4] += e
    state[5] += f
    state[6] += g
    state[7] += h


@compiled()
def _first_word(data: U8, start: int, end: int, work: NDArray[np.uint32]) -> int:
    """Returns the first 32 bits of the HMAC of data[start:end]. `work` is of `work_of`."""
    schedule, state = work[_SCHEDULE:_STATE], work[_STATE:_WORK_SIZE]
    for word in range(_WORDS):
        state[word] = work[word]
    length = end - start
    at = 0
    while True:
        for word in range(16):
            value = np.uint32(0)
            for _ in range(4):
                value = np.uint32(value << np.uint32(8))
                if at < length:
                    value |= np.uint32(data[start + at])
                elif at == length:
                    value |= np.uint32(0x80)
                at += 1
            schedule[word] = value
        # The mark stands in this block or an earlier one, and eight bytes are free for the length.
        is_last = at - length >= 9
        if is_last:
            schedule[15] = np.uint32((length + _BLOCK_BYTES) * 8)
        _mix(state, schedule)
        if is_last:
            break
    for word in range(_WORDS):
        schedule[word] = state[word]
        state[word] = work[_WORDS + word]
    schedule[_WORDS] = np.uint32(0x80000000)
    for word in range(_WORDS + 1, 15):
        schedule[word] = np.uint32(0)
    schedule[15] = np.uint32((_BLOCK_BYTES + 4 * _WORDS) * 8)
    _mix(state, schedule)
    return np.int64(state[0])  # type: ignore[return-value]


@compiled()
def first_words(data: U8, ends: I64, work: NDArray[np.uint32], found: I64) -> None:
    """Fill `found` with the first 32 bits of the HMAC of texts one after the other: text i ends at ends[i] of `data`.

    `work`: of `work_of`.
    """
    start = 0
    for number in range(len(ends)):
        found[number] = _first_word(data, start, ends[number], work)
        start = ends[number]


@compiled()
def unmarked_rows(
    data: U8, ends: I64, count: int, work: NDArray[np.uint32], marks: NDArray[np.bool_], rows: I64
) -> int:
    """Fill `rows` with the numbers of the texts whose mark is not set, and return how many these are.

    A text's mark is marks[first 32 bits of its HMAC % len(marks)]. `count`: of the texts; see `first_words`.
    """
    start, found = 0, 0
    for number in range(count):
        if not marks[_first_word(data, start, ends[number], work) % len(marks)]:
            rows[found] = number
            found += 1
        start = ends[number]
    return found
