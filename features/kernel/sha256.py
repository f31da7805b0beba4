"""HMAC-SHA-256 of short texts for compiled code (FIPS 180-4, RFC 2104): the route of a card, many at once.

    hmac(key, text) = sha256(key ^ 5c… , sha256(key ^ 36… , text))

The two blocks of the key are the same for each text. `key_states` takes them in once, and each text of at most 55 bytes
then costs two blocks: some 0.6 µs, where Python's `hmac.digest` takes several. Only the first 32 bits are wanted.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from paywarden.features.kernel.jit import compiled, inlined
from paywarden.features.kernel.layout import I64, U8

_BLOCK_BYTES = 64
_WORDS = 8


def _roots(power: float, count: int) -> NDArray[np.uint32]:
    """Returns the first 32 bits of the fractions of roots of the first primes."""
    primes = [n for n in range(2, 312) if all(n % divisor for divisor in range(2, int(n**0.5) + 1))][:count]
    return np.array([int((prime**power % 1) * 2**32) for prime in primes], dtype=np.uint32)


_ROUND_WORDS = _roots(1 / 3, 64)
_START = _roots(1 / 2, 8)


def key_states(key: bytes) -> NDArray[np.uint32]:
    """Returns what is left of a key after its own two blocks. Shape (16,): eight words inside, eight outside."""
    padded = (hashlib.sha256(key).digest() if len(key) > _BLOCK_BYTES else key).ljust(_BLOCK_BYTES, b"\0")
    states = np.concatenate((_START, _START))
    schedule = np.zeros(_BLOCK_BYTES, dtype=np.uint32)
    for half, mask in ((states[:_WORDS], 0x36), (states[_WORDS:], 0x5C)):
        schedule[:16] = np.frombuffer(bytes(byte ^ mask for byte in padded), dtype=">u4")
        _mix(half, schedule)
    return states


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
def first_words(
    data: U8, ends: I64, states: NDArray[np.uint32], work: NDArray[np.uint32], found: NDArray[np.uint32]
) -> None:
    """Fill `found` with the first 32 bits of the HMAC of texts one after the other: text i ends at ends[i] of `data`.

    `states`: of `key_states`. `work`: room for 72 words.
    """
    schedule, state = work[:64], work[64:72]
    start = 0
    for number in range(len(ends)):
        end = ends[number]
        for word in range(_WORDS):
            state[word] = states[word]
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
                schedule[15] = np.uint32((length + 64) * 8)
            _mix(state, schedule)
            if is_last:
                break
        for word in range(_WORDS):
            schedule[word] = state[word]
            state[word] = states[_WORDS + word]
        schedule[_WORDS] = np.uint32(0x80000000)
        for word in range(9, 15):
            schedule[word] = np.uint32(0)
        schedule[15] = np.uint32((64 + 32) * 8)
        _mix(state, schedule)
        found[number] = state[0]
        start = end
