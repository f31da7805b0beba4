"""The conditions of a search of decisions, and its results: plain values.

    Search(card_id="card-17", action="decline", score_min=0.8)     at most 50 decisions, the newest first
        keys       hash("card", "card-17")                         looked up
        residual   action = decline, score >= 0.8                  stands beside each key

A *key* is a 64-bit hash of a kind and a value. A decision has a key for its payment, card, merchant, device and
address. It has one for each rule, segment and flag that is among its reasons, for an action that is not `approve`, and
for its score from KEYED_SCORE_MIN on, in hundredths. Most decisions are approvals with a lower score, without these.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import xxhash

from paywarden.schemas.errors import InvalidEvent

ACTIONS = ("approve", "review", "decline")
"""The actions; the database holds their places in this tuple."""
PAGE_ROWS_MAX = 200
"""A page cannot have more rows."""
KEYED_SCORE_MIN = 0.02
"""Decisions with this score or a higher one are found by it without a look at the others."""
_SCORE_BANDS = 100
# The most telling first: a card has fewer decisions than a merchant.
_TEXTS = ("payment_id", "card_id", "device_id", "ip", "merchant_id", "rule", "segment", "flag")
_TEXT_MAX = 512
_SEGMENT_REASONS = ("score_at_or_above_review_threshold:", "score_at_or_above_decline_threshold:")
_RULE = "rule:"
_HALF = 1 << 63
_TIME_MAX_MS = 1 << 53


def listed(numbers: Iterable[int]) -> str:
    """Returns numbers as SQL lists them."""
    return ", ".join(map(str, sorted(numbers)))


def key_hash(kind: str, value: str) -> int:
    """Returns the hash of a key, a signed number of 64 bits."""
    return xxhash.xxh3_64_intdigest(f"{kind}\0{value}".encode(errors="surrogatepass")) - _HALF


def score_key(band: int) -> int:
    """Returns the hash of the scores from `band` hundredths on, to below the next hundredth."""
    return key_hash("score", str(band))


def decision_keys(decision: Mapping[str, Any]) -> Iterator[int]:
    """Yields the hashes of a decision's keys, but for its payment's. A hash may come twice."""
    for kind in ("card_id", "merchant_id", "device_id", "ip"):
        if decision[kind]:
            yield key_hash(kind, decision[kind])
    for reason in decision["reasons"]:
        if reason.startswith(_RULE):
            yield key_hash("rule", reason.removeprefix(_RULE))
        for prefix in _SEGMENT_REASONS:
            if reason.startswith(prefix):
                yield key_hash("segment", reason.removeprefix(prefix))
    for flag in decision["flags"]:
        yield key_hash("flag", flag)
    if decision["action"] != ACTIONS[0]:
        yield key_hash("action", decision["action"])
    if decision["score"] >= KEYED_SCORE_MIN:
        yield score_key(_band(decision["score"]))


def _band(score: float) -> int:
    return min(int(score * _SCORE_BANDS), _SCORE_BANDS)


@dataclass(frozen=True, order=True)
class Place:
    """A decision's place in the order of all: its time, then the hash of its payment's id."""

    time_ms: int
    payment_hash: int

    def to_text(self) -> str:
        """Returns the place for an address or a form."""
        raw = self.time_ms.to_bytes(8, "big", signed=True) + self.payment_hash.to_bytes(8, "big", signed=True)
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")

    @classmethod
    def from_text(cls, text: str) -> Place:
        """Reads the text of `to_text`. Raises InvalidEvent for any other text."""
        try:
            raw = base64.b64decode(text + "==", altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        if len(raw) != 16:
            raise InvalidEvent("wanted a place that a page of results gave", field="after")
        return cls(int.from_bytes(raw[:8], "big", signed=True), int.from_bytes(raw[8:], "big", signed=True))


@dataclass(frozen=True)
class Search:
    """The conditions of a search. An empty text, None and the whole range of scores set no condition.

    `first_ms`, `last_ms`: times of decisions, both included. `rule`, `segment` and `flag` are names. A segment is found
    where it set the threshold that the score reached. Raises InvalidEvent naming the field that is wrong.
    """

    payment_id: str = ""
    card_id: str = ""
    merchant_id: str = ""
    device_id: str = ""
    ip: str = ""
    first_ms: int | None = None
    last_ms: int | None = None
    action: str = ""
    rule: str = ""
    segment: str = ""
    flag: str = ""
    score_min: float = 0.0
    score_max: float = 1.0

    def __post_init__(self) -> None:
        for name in _TEXTS:
            if len(getattr(self, name)) > _TEXT_MAX:
                raise InvalidEvent(f"wanted at most {_TEXT_MAX} characters, got {len(getattr(self, name))}", field=name)
        if self.action not in ("", *ACTIONS):
            raise InvalidEvent(f"wanted one of {', '.join(ACTIONS)}", field="action")
        for name in ("score_min", "score_max"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InvalidEvent("wanted a score from 0 to 1", field=name)
        if self.score_min > self.score_max:
            raise InvalidEvent("wanted at most score_max", field="score_min")
        for name in ("first_ms", "last_ms"):
            time_ms = getattr(self, name)
            if time_ms is not None and not 0 <= time_ms < _TIME_MAX_MS:
                raise InvalidEvent("wanted epoch milliseconds", field=name)
        if self.first_ms is not None and self.last_ms is not None and self.first_ms > self.last_ms:
            raise InvalidEvent("wanted at most last_ms", field="first_ms")

    @property
    def is_of_few(self) -> bool:
        """Whether it asks for something that has few decisions, wherever they are: a payment, a card, a device."""
        return bool(self.payment_id or self.card_id or self.device_id or self.ip)

    def keys(self) -> list[tuple[int, ...]]:
        """Returns the keys that a decision must have, the most telling first: one hash of each tuple."""
        asked: list[tuple[int, ...]] = [
            (key_hash(name, getattr(self, name)),) for name in _TEXTS if getattr(self, name)
        ]
        if self.score_min >= KEYED_SCORE_MIN:
            asked.append(tuple(score_key(band) for band in range(_band(self.score_min), _band(self.score_max) + 1)))
        if self.action not in ("", ACTIONS[0]):
            asked.append((key_hash("action", self.action),))
        # Score and action stand beside every key: they are looked up only where nothing better is asked for.
        texts = sum(bool(getattr(self, name)) for name in _TEXTS)
        return asked[:texts] if texts else asked[:1]


@dataclass(frozen=True)
class Known:
    """The newest outcome of a payment."""

    label: str
    time_ms: int
    source: str


@dataclass(frozen=True)
class LinkedPayment:
    """A decision's payment, its outcome and its entities: the columns that a picture of links needs."""

    place: Place
    outcome: Known | None
    decision_id: str
    payment_id: str
    card_id: str
    merchant_id: str
    device_id: str
    ip: str


@dataclass(frozen=True)
class FoundRow:
    """A decision of the index. `worth_minor`: its amount in the reference currency; None without a rate."""

    place: Place
    decision_id: str
    payment_id: str
    event_time_ms: int
    card_id: str
    merchant_id: str
    device_id: str
    ip: str
    amount_minor: int
    currency: str
    worth_minor: int | None
    country: str
    channel: str
    score: float
    action: str
    reasons: tuple[str, ...]
    flags: tuple[str, ...]
    model_version: str
    outcome: Known | None = None

    @property
    def decided_time_ms(self) -> int:
        return self.place.time_ms


@dataclass(frozen=True)
class SearchPage:
    """Decisions, the newest first. `next`: the place behind which the search goes on; None where it is complete.

    A search without a key looks at a bounded number of decisions. A page may therefore be short, or even empty, and
    still have a `next`: `looked_from_ms` says how far back it has looked, None if to the beginning.
    """

    rows: list[FoundRow] = field(default_factory=list)
    next: Place | None = None
    looked_from_ms: int | None = None


def is_finite_score(score: float) -> bool:
    """Whether a decision's score can be stored: a number from 0 to 1."""
    return math.isfinite(score) and 0.0 <= score <= 1.0


def distinct(hashes: Iterable[int]) -> list[int]:
    """Returns hashes without repetitions, in order."""
    return list(dict.fromkeys(hashes))
