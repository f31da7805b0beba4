"""The numbers that stand for texts in sketches and memories, and decide between two values of one moment."""

from __future__ import annotations

import re
import zlib
from functools import lru_cache

import pandas as pd

from tests.parity.naive.events import DECLARED_TEXTS, CountryText, HashedText

# The key for laptops, and the texts that have an identity.
_KEY = b"paywarden-laptop"
_KEYED = ("card_id", "merchant_id", "device_id", "ip", "channel", *DECLARED_TEXTS)


def _siphash(text: bytes) -> int:
    """SipHash-2-4 as its paper describes it."""
    mask = 2**64 - 1
    low, high = int.from_bytes(_KEY[:8], "little"), int.from_bytes(_KEY[8:], "little")
    v = [low ^ 0x736F6D6570736575, high ^ 0x646F72616E646F6D, low ^ 0x6C7967656E657261, high ^ 0x7465646279746573]

    def left(value: int, bits: int) -> int:
        return (value << bits | value >> 64 - bits) & mask

    def half_round(a: int, b: int, c: int, d: int, first: int, second: int) -> None:
        v[a] = (v[a] + v[b]) & mask
        v[c] = (v[c] + v[d]) & mask
        v[b] = left(v[b], first) ^ v[a]
        v[d] = left(v[d], second) ^ v[c]
        v[a] = left(v[a], 32)

    def rounds(count: int) -> None:
        for _ in range(count):
            half_round(0, 1, 2, 3, 13, 16)
            half_round(2, 1, 0, 3, 17, 21)

    whole = text + bytes(-(len(text) + 1) % 8) + bytes([len(text) % 256])
    for at in range(0, len(whole), 8):
        word = int.from_bytes(whole[at : at + 8], "little")
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


# Worlds have few texts, and each is asked for again and again. A text that tells its kind is another than its letters.
@lru_cache(maxsize=10_000, typed=True)
def code_of(name: str, value: object) -> int:
    """Returns the number that stands for a text in hashes and decides between two values of one moment."""
    text = str(value)
    if name in _KEYED or isinstance(value, HashedText):
        return _siphash(text.encode()) >> 2 | 1 << 62
    checksum = zlib.crc32(text.encode()) + 1
    if name not in ("country", "ship_country") and not isinstance(value, CountryText):
        return checksum
    if re.fullmatch("[A-Z]{2}", text):
        return 26 * (ord(text[0]) - ord("A")) + ord(text[1]) - ord("A") + 1
    return checksum + 26 * 26


def codes_of(rows: pd.DataFrame, name: str) -> list[int]:
    return [code_of(name, value) for value in rows[name].dropna()]


def hash_of(code: int) -> int:
    """SplitMix64's finaliser, without its lowest bit."""
    mask = 2**64 - 1
    bits = (code + 0x9E3779B97F4A7C15) & mask
    bits = ((bits ^ bits >> 30) * 0xBF58476D1CE4E5B9) & mask
    bits = ((bits ^ bits >> 27) * 0x94D049BB133111EB) & mask
    return (bits ^ bits >> 31) >> 1


def bucket_counts(rows: pd.DataFrame, name: str, buckets: int) -> pd.Series:
    """Returns the number of payments in each bucket that has any, in order of the buckets."""
    return (
        pd.Series([hash_of(code) % buckets for code in codes_of(rows, name)], dtype="int64").value_counts().sort_index()
    )


def latest_values(rows: pd.DataFrame, name: str, among: int, now_ms: int) -> dict[object, int]:
    """Returns the `among` latest distinct values with the time each was last seen, newest first.

    A value whose latest payment is after now is left out: its older payments are forgotten, as with tiles.
    """
    last = rows[rows[name].notna()].groupby(name, sort=False)["time_ms"].max()
    order = sorted(last.items(), key=lambda item: (item[1], code_of(name, item[0])), reverse=True)
    return {value: int(time_ms) for value, time_ms in order[:among] if time_ms <= now_ms}
