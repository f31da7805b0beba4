"""Features computed the simplest way, in pandas, as a reference for the kernel.

This module has no profile, no plan and no program. It offers the words of the catalogue's language a second time. A
catalogue that is written for features/catalogue/entity.py can be read with these words instead; each feature is then
computed from a table of the events that had arrived. The meaning of each word, condition and window is written here
again, from the documents alone. The code is slow and easy to read.

It shares with the kernel only the parts that the documents promise to the bit:

- a text's code and its hash (linear counting and buckets depend on them, and the choice between two values of one
  moment);
- the weight of a tile, rounded to 2**-30;
- the order of the last few floating-point operations of a formula.
"""

from __future__ import annotations

import csv
import datetime
import importlib.util
import math
import operator
import re
import types
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tests.checkout import CHECKOUT

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<": operator.lt,
}
ROOT = CHECKOUT / "features" / "catalogue"
SECOND_MS = 1000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
EARTH_RADIUS_KM = 6371.0
MILLIONTH = math.pi / 180_000_000.0
FIELDS = (
    *("currency", "utc_offset_minutes", "declined", "card_id", "merchant_id", "device_id", "ip", "mcc", "country"),
    "channel",
)
# The fields that tests declare besides them: how many digits each number has after the point, or None for a moment.
DECLARED_NUMBERS: dict[str, int | None] = {
    "basket_kg": 3,
    "items": 0,
    "opened": None,
    "tip": 0,
    **dict.fromkeys(("home_latitude", "home_longitude", "shop_latitude", "shop_longitude"), 6),
}
DECLARED_TEXTS = ("product", "billed_to", "shipped_to")
# `tip` is an amount of money: its world says it in the reference currency too.
REFERENCE = {"tip": "tip_in_reference"}
DECLARED_NAMES = (*DECLARED_NUMBERS, *DECLARED_TEXTS, "ship_country", *REFERENCE.values())


@dataclass(frozen=True)
class Payment:
    """`amount` is in minor units of the reference currency. `fields` is by name; a missing field is absent or None."""

    time_ms: int
    amount: int
    amount_minor: int
    fields: Mapping[str, object]


@dataclass(frozen=True)
class Heard:
    """One arrival: a new payment (`weight` None), or a change of its label (+1 fraud, -1 fraud taken back)."""

    payment: Payment
    weight: int | None = None


# Texts of fields that a project declares: each tells its kind itself.


class HashedText(str):
    """A text whose code in sketches and memories is a keyed hash."""

    __slots__ = ()


class CountryText(str):
    """A country."""

    __slots__ = ()


# The events so far, as tables.


def tables_of(heard: Sequence[Heard]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns (payments, labels), each row with `arrival`, payment's time, amounts and fields, and `weight`."""
    names = list(dict.fromkeys([*FIELDS, *DECLARED_NAMES, *(name for event in heard for name in event.payment.fields)]))
    names = [name for name in names if name not in ("payment_id", "event_time_ms", "amount_minor")]
    rows: list[dict[str, object]] = [
        {
            "arrival": arrival,
            "time_ms": event.payment.time_ms,
            "amount": event.payment.amount,
            "amount_minor": event.payment.amount_minor,
            "weight": event.weight,
            **{name: event.payment.fields.get(name) for name in names},
        }
        for arrival, event in enumerate(heard)
    ]
    numbers = ["arrival", "time_ms", "amount", "amount_minor"]
    table = pd.DataFrame(rows, columns=[*numbers, "weight", *names], dtype=object)
    is_label = table["weight"].notna()
    payments, labels = table[~is_label], table[is_label]
    return payments.astype(dict.fromkeys(numbers, "int64")), labels.astype(dict.fromkeys([*numbers, "weight"], "int64"))


@dataclass(frozen=True)
class Window:
    """A window as the catalogue declares it, in milliseconds."""

    entity: str
    length_ms: int
    delay_ms: int
    hop_ms: int
    of: tuple[bool, ...] = (False,)
    """Whether it looks at labels, and whether at payments: False for payments, True for labels."""

    @property
    def reach_ms(self) -> int:
        """Returns how far before the current tile the oldest tile begins that the window can hold."""
        return self.length_ms + self.delay_ms


@dataclass
class Moment:
    """A payment, and the events that its entities had received when it arrived.

    `reach_ms` says for each entity and hop how far its longest window goes, of payments or of labels. The entity
    dropped older tiles when it received its newest event.
    """

    now: Payment
    payments: pd.DataFrame
    labels: pd.DataFrame
    keys: Mapping[str, tuple[str, ...]]
    reach_ms: Mapping[tuple[str, int, bool], int]
    values: dict[str, float] = field(default_factory=dict)
    _own: dict[str, tuple[pd.DataFrame, pd.DataFrame] | None] = field(default_factory=dict)
    _inside: dict[tuple[Window, bool], pd.DataFrame] = field(default_factory=dict)

    def own(self, entity: str) -> tuple[pd.DataFrame, pd.DataFrame] | None:
        """Returns (payments, labels) of the payment's entity, or None if it has none."""
        if entity not in self._own:
            ids = {key: self.now.fields.get(key) for key in self.keys[entity]}
            found = None
            if None not in ids.values():
                found = (_with(self.payments, ids), _with(self.labels, ids))
            self._own[entity] = found
        return self._own[entity]

    def inside(self, window: Window, where: Condition | None = None, *, labels: bool = False) -> pd.DataFrame | None:
        """Returns the entity's payments (or labels) in a window that meet a condition, or None without an entity."""
        own = self.own(window.entity)
        if own is None:
            return None
        if (window, labels) not in self._inside:
            newest_ms = max((int(table["time_ms"].max()) for table in own if len(table)), default=0)
            self._inside[window, labels] = self._cut(window, own[labels], newest_ms, labels)
        rows = self._inside[window, labels]
        return rows if where is None else rows[where.of(rows)]

    def _cut(self, window: Window, rows: pd.DataFrame, newest_ms: int, labels: bool) -> pd.DataFrame:
        hop_ms, now_ms = window.hop_ms, self.now.time_ms
        start = rows["time_ms"].to_numpy() // hop_ms * hop_ms
        end = start + hop_ms
        if window.delay_ms == 0:
            # Tiles that touch (now - length, now].
            is_inside = (start <= now_ms) & (end > now_ms - window.length_ms)
        else:
            # Tiles wholly before now - delay, exactly `length` of them.
            last_end = (now_ms - window.delay_ms) // hop_ms * hop_ms
            is_inside = (end <= last_end) & (start >= last_end - window.length_ms)
        is_inside &= start >= newest_ms // hop_ms * hop_ms - self.reach_ms[window.entity, hop_ms, labels]
        return rows[is_inside]


def _with(table: pd.DataFrame, wanted: Mapping[str, object]) -> pd.DataFrame:
    for name, value in wanted.items():
        table = table[table[name] == value]
    return table


# Conditions.


@dataclass(frozen=True)
class Condition:
    """Compares an attribute with a value. `operator` is how Python writes the comparison."""

    field: str
    operator: str
    value: object

    def of(self, rows: pd.DataFrame) -> pd.Series:
        """Returns which rows meet the condition. A row that lacks the attribute does not."""
        return rows[self.field].map(self.holds).astype(bool)

    def holds(self, value: Any) -> bool:
        return value is not None and bool(OPERATORS[self.operator](value, self.value))


class Attribute:
    """An attribute in a condition."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> Condition:  # type: ignore[override]
        return Condition(self.name, "==", other)

    def __ne__(self, other: object) -> Condition:  # type: ignore[override]
        return Condition(self.name, "!=", other)

    def __ge__(self, other: object) -> Condition:
        return Condition(self.name, ">=", other)

    def __lt__(self, other: object) -> Condition:
        return Condition(self.name, "<", other)

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def is_number(self) -> bool:
        return self.name == "amount" or self.name in DECLARED_NUMBERS

    @property
    def parts(self) -> int:
        """Returns how many of its last digits make one of its unit; a moment is an age in ms, and its unit a second."""
        digits = DECLARED_NUMBERS.get(self.name, 0)
        return 1000 if digits is None else 10**digits

    def number(self, of: Mapping[str, Any]) -> int | None:
        """Returns the number of a payment, in units of its last digit."""
        value = of.get(REFERENCE.get(self.name, self.name))
        if value is None:
            return None
        if self.name != "amount" and DECLARED_NUMBERS[self.name] is None:
            return int(of["time_ms"]) - int(value)
        last_digits: int = round(value * self.parts)
        return last_digits

    def numbers(self, rows: pd.DataFrame) -> list[int]:
        """Returns the numbers of those payments that have one."""
        found = (self.number(row) for row in rows.to_dict("records"))
        return [number for number in found if number is not None]

    def rank(self, of: Mapping[str, Any]) -> float:
        """Returns what decides between two payments of one moment."""
        value = self.number(of) if self.is_number else of.get(self.name)
        if value is None:
            return -math.inf
        return int(value) if self.is_number else _code(self.name, value)


@dataclass(frozen=True)
class Coordinates:
    """A place: two fields in degrees."""

    name: str

    @property
    def latitude(self) -> Attribute:
        return ATTRIBUTES[f"{self.name}_latitude"]

    @property
    def attributes(self) -> tuple[Attribute, Attribute]:
        return ATTRIBUTES[f"{self.name}_latitude"], ATTRIBUTES[f"{self.name}_longitude"]

    def radians(self, of: Mapping[str, Any]) -> tuple[float, float] | None:
        latitude, longitude = (attribute.number(of) for attribute in self.attributes)
        return None if latitude is None or longitude is None else (latitude * MILLIONTH, longitude * MILLIONTH)


def _of(now: Payment) -> dict[str, Any]:
    """Returns a payment by the names of a table's columns."""
    return {**now.fields, "time_ms": now.time_ms, "amount": now.amount, "amount_minor": now.amount_minor}


def _haversine_km(origin: tuple[float, float] | None, destination: tuple[float, float] | None) -> float:
    if origin is None or destination is None:
        return math.nan
    (lat, lon), (to_lat, to_lon) = origin, destination
    half = math.sin((to_lat - lat) / 2.0) ** 2
    half += math.cos(lat) * math.cos(to_lat) * math.sin((to_lon - lon) / 2.0) ** 2
    return 2.0 * EARTH_RADIUS_KM * math.asin(min(1.0, math.sqrt(half)))


def _lately(rows: pd.DataFrame, of: Sequence[Attribute], payments: int, now: Payment) -> list[dict[str, Any]]:
    """Returns the latest payments, newest first; those after now take their places, and are left out."""
    records = rows.to_dict("records")
    ordered = sorted(records, key=lambda row: (row["time_ms"], *(each.rank(row) for each in of)), reverse=True)
    return [
        {str(name): value for name, value in row.items()} for row in ordered[:payments] if row["time_ms"] <= now.time_ms
    ]


def _having(rows: pd.DataFrame, of: Sequence[Attribute]) -> pd.DataFrame:
    for attribute in of:
        rows = rows[rows[attribute.name].notna()]
    return rows


Where = Condition | Attribute | None
ATTRIBUTES = {name: Attribute(name) for name in ("amount", "amount_minor", *FIELDS, *DECLARED_NAMES)}
PLACES_DECLARED = {name: Coordinates(name) for name in ("home", "shop")}


def _asked(where: Where) -> Condition | None:
    return Condition(where.name, "==", True) if isinstance(where, Attribute) else where


# Features.


@dataclass(frozen=True)
class Feature:
    name: str
    value: Callable[[Moment], float]
    windows: tuple[Window, ...] = ()
    with_delay: Callable[[str], Feature] | None = None


def _waits(word: Callable[..., Feature]) -> Callable[..., Feature]:
    """A word for frauds without a delay waits for that of its catalogue."""

    def made(entity: Entity, name: str, *arguments: str, delay: str = "", **options: Any) -> Feature:
        def with_delay(of_catalogue: str) -> Feature:
            return word(entity, name, *arguments, delay=of_catalogue, **options)

        return with_delay(delay) if delay else Feature(name, lambda _: math.nan, (), with_delay)

    return made


def _plain(rows: pd.Series) -> list[int]:
    """Returns Python's integers, which do not overflow."""
    return [int(value) for value in rows]


def _over(numerator: float, denominator: float) -> float:
    return math.nan if denominator == 0 else numerator / denominator


@dataclass(frozen=True)
class Entity:
    name: str
    key: str | tuple[str, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,) if isinstance(self.key, str) else self.key

    def count(
        self,
        name: str,
        window: str,
        *,
        where: Where = None,
        delay: str = "",
        hop: str = "",
        including_this: bool = False,
    ) -> Feature:
        return self._of_payments(name, window, where, lambda rows, _: len(rows) + including_this, delay, hop)

    def rate(self, name: str, window: str, *, where: Where = None, hop: str = "") -> Feature:
        length_ms = _duration_ms(window)
        return self._of_payments(name, window, where, lambda rows, _: len(rows) * HOUR_MS / length_ms, hop=hop)

    def share(self, name: str, window: str, *, of: Where, delay: str = "", hop: str = "") -> Feature:
        asked = _asked(of)
        assert asked is not None
        return self._of_payments(
            name, window, None, lambda rows, _: _over(int(asked.of(rows).sum()), len(rows)), delay, hop
        )

    def count_decayed(self, name: str, half_life: str, window: str, *, where: Where = None, hop: str = "") -> Feature:
        over = self._window(window, hop=hop)
        return self._of_payments(
            name, window, where, lambda rows, now: _decayed(rows, None, _duration_ms(half_life), now, over), hop=hop
        )

    def count_trend(self, name: str, short: str, long: str) -> Feature:
        windows = (self._window(short), self._window(long))

        def value(moment: Moment) -> float:
            recent, usual = (moment.inside(window) for window in windows)
            if recent is None or usual is None:
                return math.nan
            return _over(len(recent), len(usual)) * _duration_ms(long) / _duration_ms(short)

        return Feature(name, value, windows)

    def distinct(
        self, name: str, of: Attribute, window: str, *, bits: int = 64, where: Where = None, hop: str = ""
    ) -> Feature:
        def value(rows: pd.DataFrame, _: Payment) -> float:
            places = {_hash(code) % bits for code in _codes(rows, of.name)}
            return bits * math.log(bits / max(1, bits - len(places)))

        return self._of_payments(name, window, where, value, hop=hop)

    def entropy(self, name: str, of: Attribute, window: str, *, buckets: int = 8, hop: str = "") -> Feature:
        def value(rows: pd.DataFrame, _: Payment) -> float:
            counts = _bucket_counts(rows, of.name, buckets)
            shares = [float(count / counts.sum()) for count in counts]
            return sum((-share * math.log2(share) for share in shares), 0.0) if shares else math.nan

        return self._of_payments(name, window, None, value, hop=hop)

    def top_share(self, name: str, of: Attribute, window: str, *, buckets: int = 8, hop: str = "") -> Feature:
        def value(rows: pd.DataFrame, _: Payment) -> float:
            counts = _bucket_counts(rows, of.name, buckets)
            return float(counts.max() / counts.sum()) if len(counts) else math.nan

        return self._of_payments(name, window, None, value, hop=hop)

    def amount_sum(self, name: str, window: str, *, where: Where = None, hop: str = "") -> Feature:
        return self._of_payments(name, window, where, lambda rows, _: int(rows["amount"].sum()), hop=hop)

    def amount_mean(
        self, name: str, window: str, *, where: Where = None, hop: str = "", including_this: bool = False
    ) -> Feature:
        def value(rows: pd.DataFrame, now: Payment) -> float:
            amounts = _plain(rows["amount"]) + ([now.amount] if including_this else [])
            return _over(sum(amounts), len(amounts))

        return self._of_payments(name, window, where, value, hop=hop)

    def amount_std(self, name: str, window: str, *, where: Where = None, hop: str = "") -> Feature:
        return self._of_payments(name, window, where, lambda rows, _: _deviation(rows), hop=hop)

    def amount_zscore(self, name: str, window: str, *, where: Where = None, hop: str = "") -> Feature:
        def value(rows: pd.DataFrame, now: Payment) -> float:
            return _over(now.amount - _over(int(rows["amount"].sum()), len(rows)), _deviation(rows))

        return self._of_payments(name, window, where, value, hop=hop)

    def amount_max(self, name: str, window: str, *, where: Where = None, hop: str = "") -> Feature:
        return self._of_payments(
            name, window, where, lambda rows, _: int(rows["amount"].max()) if len(rows) else math.nan, hop=hop
        )

    def amount_min(self, name: str, window: str, *, where: Where = None, hop: str = "") -> Feature:
        return self._of_payments(
            name, window, where, lambda rows, _: int(rows["amount"].min()) if len(rows) else math.nan, hop=hop
        )

    def amount_decayed(self, name: str, half_life: str, window: str, *, hop: str = "") -> Feature:
        over = self._window(window, hop=hop)
        return self._of_payments(
            name, window, None, lambda rows, now: _decayed(rows, "amount", _duration_ms(half_life), now, over), hop=hop
        )

    @_waits
    def fraud_count(self, name: str, window: str, *, delay: str, where: Where = None, hop: str = "") -> Feature:
        return self._of_labels(name, window, where, delay, hop, lambda labels, _: int(labels["weight"].sum()))

    @_waits
    def fraud_share(self, name: str, window: str, *, delay: str, where: Where = None, hop: str = "") -> Feature:
        return self._of_both(
            name, window, where, delay, hop, lambda rows, labels, _: _over(int(labels["weight"].sum()), len(rows))
        )

    @_waits
    def fraud_share_smoothed(
        self,
        name: str,
        window: str,
        *,
        prior: float,
        prior_weight: int,
        delay: str,
        where: Where = None,
        hop: str = "",
    ) -> Feature:
        expected = round(prior * prior_weight * 10**6) / 10**6

        def value(rows: pd.DataFrame, labels: pd.DataFrame, _: Payment) -> float:
            return (int(labels["weight"].sum()) + expected) / (len(rows) + prior_weight)

        return self._of_both(name, window, where, delay, hop, value)

    @_waits
    def fraud_share_decayed(self, name: str, half_life: str, window: str, *, delay: str, hop: str = "") -> Feature:
        over, half_life_ms = self._window(window, delay, hop), _duration_ms(half_life)

        def value(rows: pd.DataFrame, labels: pd.DataFrame, now: Payment) -> float:
            frauds = _decayed(labels, "weight", half_life_ms, now, over)
            return _over(frauds, _decayed(rows, None, half_life_ms, now, over))

        return self._of_both(name, window, None, delay, hop, value)

    @_waits
    def seconds_since_fraud(self, name: str, window: str, *, delay: str, hop: str = "") -> Feature:
        over = self._window(window, delay, hop)
        return self._of_labels(name, window, None, delay, hop, lambda labels, now: _fraud_age_s(labels, now, over, min))

    @_waits
    def seconds_since_first_fraud(self, name: str, window: str, *, delay: str, hop: str = "") -> Feature:
        over = self._window(window, delay, hop)
        return self._of_labels(name, window, None, delay, hop, lambda labels, now: _fraud_age_s(labels, now, over, max))

    @_waits
    def seconds_since_genuine(self, name: str, window: str, *, delay: str, hop: str = "") -> Feature:
        over = self._window(window, delay, hop)

        def value(rows: pd.DataFrame, labels: pd.DataFrame, now: Payment) -> float:
            ages = _genuine_ages(rows, labels, now, over)
            return min(ages) * over.hop_ms / 1000 if ages else math.nan

        return self._of_both(name, window, None, delay, hop, value)

    @_waits
    def fraud_streak(self, name: str, window: str, *, delay: str, hop: str = "") -> Feature:
        over = self._window(window, delay, hop)
        return self._of_both(
            name, window, None, delay, hop, lambda rows, labels, now: int(_streak(rows, labels, now, over).sum())
        )

    @_waits
    def fraud_streak_seconds(self, name: str, window: str, *, delay: str, hop: str = "") -> Feature:
        over = self._window(window, delay, hop)

        def value(rows: pd.DataFrame, labels: pd.DataFrame, now: Payment) -> float:
            streak = _streak(rows, labels, now, over)
            return int(streak.index.max()) * over.hop_ms / 1000 if len(streak) else math.nan

        return self._of_both(name, window, None, delay, hop, value)

    @_waits
    def fraud_streak_amount_mean(self, name: str, window: str, *, delay: str, hop: str = "") -> Feature:
        over = self._window(window, delay, hop)

        def value(rows: pd.DataFrame, labels: pd.DataFrame, now: Payment) -> float:
            streak = _streak(rows, labels, now, over)
            told = labels[_ages(labels, now, over).isin(streak.index)]
            return _over(sum(_plain(told["weight"] * told["amount"])), int(streak.sum()))

        return self._of_both(name, window, None, delay, hop, value)

    def seconds_since_last(self, name: str, *, most: str = "") -> Feature:
        def value(rows: pd.DataFrame, now: Payment) -> float:
            return _within(max(0, now.time_ms - int(rows["time_ms"].max())) / 1000, most)

        return self._of_all(name, value)

    def seconds_since_first(self, name: str, *, most: str = "") -> Feature:
        def value(rows: pd.DataFrame, now: Payment) -> float:
            return _within(max(0, now.time_ms - int(rows["time_ms"].min())) / 1000, most)

        return self._of_all(name, value)

    def last_amount(self, name: str) -> Feature:
        def value(rows: pd.DataFrame, now: Payment) -> float:
            latest = rows.sort_values(["time_ms", "amount"]).iloc[-1]
            return int(latest["amount"]) if latest["time_ms"] <= now.time_ms else math.nan

        return self._of_all(name, value)

    def sum(self, name: str, window: str, *, of: Attribute, where: Where = None, hop: str = "") -> Feature:
        return self._of_payments(name, window, where, lambda rows, _: sum(of.numbers(rows)) / of.parts, hop=hop)

    def mean(self, name: str, window: str, *, of: Attribute, where: Where = None, hop: str = "") -> Feature:
        def value(rows: pd.DataFrame, _: Payment) -> float:
            numbers = of.numbers(rows)
            return _over(sum(numbers), len(numbers)) / of.parts

        return self._of_payments(name, window, where, value, hop=hop)

    def std(self, name: str, window: str, *, of: Attribute, where: Where = None, hop: str = "") -> Feature:
        return self._of_payments(
            name, window, where, lambda rows, _: _deviation_of(of.numbers(rows)) / of.parts, hop=hop
        )

    def zscore(self, name: str, window: str, *, of: Attribute, where: Where = None, hop: str = "") -> Feature:
        def value(rows: pd.DataFrame, now: Payment) -> float:
            mine, numbers = of.number(_of(now)), of.numbers(rows)
            if mine is None:
                return math.nan
            return _over(mine - _over(sum(numbers), len(numbers)), _deviation_of(numbers))

        return self._of_payments(name, window, where, value, hop=hop)

    def max(self, name: str, window: str, *, of: Attribute, where: Where = None, hop: str = "") -> Feature:
        return self._of_payments(
            name, window, where, lambda rows, _: max(of.numbers(rows), default=math.nan) / of.parts, hop=hop
        )

    def min(self, name: str, window: str, *, of: Attribute, where: Where = None, hop: str = "") -> Feature:
        return self._of_payments(
            name, window, where, lambda rows, _: min(of.numbers(rows), default=math.nan) / of.parts, hop=hop
        )

    def sum_decayed(
        self, name: str, half_life: str, window: str, *, of: Attribute, where: Where = None, hop: str = ""
    ) -> Feature:
        over = self._window(window, hop=hop)

        def value(rows: pd.DataFrame, now: Payment) -> float:
            having = _having(rows, (of,)).copy()
            having["number"] = pd.Series(of.numbers(having), index=having.index, dtype="int64")
            return _decayed(having, "number", _duration_ms(half_life), now, over) / of.parts

        return self._of_payments(name, window, where, value, hop=hop)

    def last(self, prefix: str, payments: int, *, of: Sequence[Attribute] = (), most: str = "") -> tuple[Feature, ...]:
        def feature(place: int, name: str, value: Callable[[dict[str, Any], Payment], float]) -> Feature:
            def at_place(rows: pd.DataFrame, now: Payment) -> float:
                latest = _lately(rows, of, payments, now)
                return value(latest[place], now) if place < len(latest) else math.nan

            return self._of_all(name, at_place)

        def remembered(attribute: Attribute) -> Callable[[dict[str, Any], Payment], float]:
            def value(then: dict[str, Any], now: Payment) -> float:
                if attribute.is_number:
                    number = attribute.number(then)
                    return math.nan if number is None else number / attribute.parts
                theirs, mine = then[attribute.name], now.fields.get(attribute.name)
                return math.nan if theirs is None or mine is None else float(theirs == mine)

            return value

        return tuple(
            feature(place, f"{prefix}_{place + 1}_{what}", value)
            for place in range(payments)
            for what, value in [
                ("seconds", lambda then, now: _within((now.time_ms - then["time_ms"]) / 1000, most)),
                *((attribute.name, remembered(attribute)) for attribute in of),
            ]
        )

    def last_value(self, name: str, *, of: Attribute) -> Feature:
        def value(rows: pd.DataFrame, now: Payment) -> float:
            latest = _lately(_having(rows, (of,)), (of,), 1, now)
            return (of.number(latest[0]) or 0) / of.parts if latest else math.nan

        return self._of_all(name, value)

    def difference_to_last(self, name: str, *, of: Attribute) -> Feature:
        def value(rows: pd.DataFrame, now: Payment) -> float:
            latest, mine = _lately(_having(rows, (of,)), (of,), 1, now), of.number(_of(now))
            return (mine - (of.number(latest[0]) or 0)) / of.parts if latest and mine is not None else math.nan

        return self._of_all(name, value)

    def distance_to_last_km(self, name: str, place: Coordinates) -> Feature:
        def value(rows: pd.DataFrame, now: Payment) -> float:
            latest = _lately(_having(rows, place.attributes), place.attributes, 1, now)
            return _haversine_km(place.radians(latest[0]), place.radians(_of(now))) if latest else math.nan

        return self._of_all(name, value)

    def speed_kmh(self, name: str, place: Coordinates) -> Feature:
        def value(rows: pd.DataFrame, now: Payment) -> float:
            latest = _lately(_having(rows, place.attributes), place.attributes, 1, now)
            if not latest:
                return math.nan
            hours = max(now.time_ms - int(latest[0]["time_ms"]), MINUTE_MS) / HOUR_MS
            return _haversine_km(place.radians(latest[0]), place.radians(_of(now))) / hours

        return self._of_all(name, value)

    def is_new(self, name: str, attribute: Attribute, *, among: int = 32) -> Feature:
        def value(rows: pd.DataFrame, now: Payment) -> float:
            mine = now.fields.get(attribute.name)
            return math.nan if mine is None else float(mine not in _latest(rows, attribute.name, among, now.time_ms))

        def value_of_none(now: Payment) -> float:
            return math.nan if now.fields.get(attribute.name) is None else 1.0

        return self._of_all(name, value, value_of_none)

    def seconds_since_same(self, name: str, attribute: Attribute, *, among: int = 32, most: str = "") -> Feature:
        def value(rows: pd.DataFrame, now: Payment) -> float:
            mine, latest = now.fields.get(attribute.name), _latest(rows, attribute.name, among, now.time_ms)
            return _within((now.time_ms - latest[mine]) / 1000, most) if mine in latest else math.nan

        return self._of_all(name, value)

    def travel_kmh(self, name: str, *, among: int = 8) -> Feature:
        def value(rows: pd.DataFrame, now: Payment) -> float:
            here, latest = now.fields.get("country"), _latest(rows, "country", among, now.time_ms)
            if here is None or not latest:
                return math.nan
            there = next(iter(latest))
            if there == here:
                return 0.0
            hours = max(now.time_ms - latest[there], MINUTE_MS) / HOUR_MS
            return _distance_km(there, here) / hours

        return self._of_all(name, value)

    def _window(self, length: str, delay: str = "", hop: str = "") -> Window:
        length_ms, delay_ms = _duration_ms(length), _duration_ms(delay) if delay else 0
        hop_ms = _duration_ms(hop) if hop else _usual_hop_ms(length_ms, delay_ms)
        return Window(self.name, length_ms, delay_ms, hop_ms)

    def _of_payments(
        self,
        name: str,
        length: str,
        where: Where,
        value: Callable[[pd.DataFrame, Payment], float],
        delay: str = "",
        hop: str = "",
    ) -> Feature:
        window = self._window(length, delay, hop)

        def of(moment: Moment) -> float:
            rows = moment.inside(window, _asked(where))
            return math.nan if rows is None else value(rows, moment.now)

        return Feature(name, of, (window,))

    def _of_both(
        self,
        name: str,
        length: str,
        where: Where,
        delay: str,
        hop: str,
        value: Callable[[pd.DataFrame, pd.DataFrame, Payment], float],
    ) -> Feature:
        window = replace(self._window(length, delay, hop), of=(False, True))

        def of(moment: Moment) -> float:
            rows = moment.inside(window, _asked(where))
            labels = moment.inside(window, _asked(where), labels=True)
            return math.nan if rows is None or labels is None else value(rows, labels, moment.now)

        return Feature(name, of, (window,))

    def _of_labels(
        self,
        name: str,
        length: str,
        where: Where,
        delay: str,
        hop: str,
        value: Callable[[pd.DataFrame, Payment], float],
    ) -> Feature:
        window = replace(self._window(length, delay, hop), of=(True,))

        def of(moment: Moment) -> float:
            labels = moment.inside(window, _asked(where), labels=True)
            return math.nan if labels is None else value(labels, moment.now)

        return Feature(name, of, (window,))

    def _of_all(
        self,
        name: str,
        value: Callable[[pd.DataFrame, Payment], float],
        value_of_none: Callable[[Payment], float] = lambda _: math.nan,
    ) -> Feature:
        """Computes a feature from all payments the entity ever had; `value_of_none` if it had none."""

        def of(moment: Moment) -> float:
            own = moment.own(self.name)
            if own is None:
                return math.nan
            return value(own[0], moment.now) if len(own[0]) else value_of_none(moment.now)

        return Feature(name, of)


class request:  # noqa: N801 - as in the language it repeats
    @staticmethod
    def amount(name: str) -> Feature:
        return Feature(name, lambda moment: moment.now.amount)

    @staticmethod
    def hour(name: str) -> Feature:
        return Feature(name, lambda moment: _local(moment.now).hour)

    @staticmethod
    def night(name: str) -> Feature:
        return Feature(name, lambda moment: _local(moment.now).time() < datetime.time(7))

    @staticmethod
    def weekend(name: str) -> Feature:
        return Feature(name, lambda moment: _local(moment.now).isoweekday() in (6, 7))

    @staticmethod
    def weekday(name: str) -> Feature:
        return Feature(name, lambda moment: _local(moment.now).isoweekday() - 1)

    @staticmethod
    def round_zeros(name: str) -> Feature:
        def value(moment: Moment) -> float:
            digits = str(moment.now.amount_minor)
            return len(digits) - len(digits.rstrip("0")) if moment.now.amount_minor else 0

        return Feature(name, value)

    @staticmethod
    def below_limit(name: str, limits: Sequence[int]) -> Feature:
        def value(moment: Moment) -> float:
            above = [limit for limit in limits if limit > moment.now.amount]
            return (min(above) - moment.now.amount) / min(above) if above else math.nan

        return Feature(name, value)

    @staticmethod
    def holds(name: str, condition: Condition | Attribute) -> Feature:
        asked = _asked(condition)
        assert asked is not None

        def value(moment: Moment) -> float:
            now = moment.now
            mine = {**now.fields, "amount": now.amount, "amount_minor": now.amount_minor}.get(asked.field)
            return math.nan if mine is None else float(asked.holds(mine))

        return Feature(name, value)

    @staticmethod
    def category(name: str, attribute: Attribute, among: Sequence[str]) -> Feature:
        def value(moment: Moment) -> float:
            mine = moment.now.fields.get(attribute.name)
            if mine is None:
                return math.nan
            return among.index(str(mine)) if mine in among else len(among)

        return Feature(name, value)

    @staticmethod
    def number(name: str, of: Attribute) -> Feature:
        def value(moment: Moment) -> float:
            number = of.number(_of(moment.now))
            return math.nan if number is None else number / of.parts

        return Feature(name, value)

    @staticmethod
    def seconds_since(name: str, moment: Attribute, *, most: str = "") -> Feature:
        age = request.number(name, moment)
        return replace(age, value=lambda now: _within(age.value(now), most))

    @staticmethod
    def equal(name: str, one: Attribute, other: Attribute) -> Feature:
        def value(moment: Moment) -> float:
            left, right = moment.now.fields.get(one.name), moment.now.fields.get(other.name)
            return math.nan if left is None or right is None else float(left == right)

        return Feature(name, value)

    @staticmethod
    def distance_km(name: str, one: Coordinates, other: Coordinates) -> Feature:
        return Feature(name, lambda moment: _haversine_km(one.radians(_of(moment.now)), other.radians(_of(moment.now))))


def _within(seconds: float, most: str) -> float:
    """Returns seconds from -most to most; NaN stays NaN."""
    limit = _duration_ms(most) / 1000 if most else math.inf
    return seconds if abs(seconds) <= limit or math.isnan(seconds) else math.copysign(limit, seconds)


def ratio(name: str, numerator: str, denominator: str) -> Feature:
    return Feature(name, lambda moment: _over(moment.values[numerator], moment.values[denominator]))


@dataclass(frozen=True)
class Catalogue:
    entities: Sequence[Entity]
    features: Sequence[Feature]
    payment: object = None
    label_delay: str = "7d"

    def __post_init__(self) -> None:
        told = tuple(f if f.with_delay is None else f.with_delay(self.label_delay) for f in self.features)
        object.__setattr__(self, "features", told)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(feature.name for feature in self.features)

    def vector(
        self, now: Payment, payments: pd.DataFrame, labels: pd.DataFrame, before: int | None = None
    ) -> NDArray[np.float32]:
        """Returns the features of a payment, given the tables up to its arrival. Shape (features,), missing is NaN."""
        reach_ms: dict[tuple[str, int, bool], int] = {}
        for window in (window for feature in self.features for window in feature.windows):
            for is_label in window.of:
                key = (window.entity, window.hop_ms, is_label)
                reach_ms[key] = max(reach_ms.get(key, 0), window.reach_ms)
        if before is not None:
            payments, labels = payments[payments["arrival"] < before], labels[labels["arrival"] < before]
        keys = {entity.name: entity.keys for entity in self.entities}
        moment = Moment(now, payments, labels, keys, reach_ms)
        for feature in self.features:
            moment.values[feature.name] = float(feature.value(moment))
        return np.array([moment.values[name] for name in self.names], dtype=np.float64).astype(np.float32)

    def vectors(self, heard: Sequence[Heard]) -> NDArray[np.float32]:
        """Returns the vector of each payment when it arrived, in order of arrival. Shape (payments, features)."""
        payments, labels = tables_of(heard)
        rows = [
            self.vector(event.payment, payments, labels, before)
            for before, event in enumerate(heard)
            if event.weight is None
        ]
        return np.array(rows, dtype=np.float32).reshape(len(rows), len(self.features))


WORDS = types.SimpleNamespace(
    Entity=Entity, request=request, ratio=ratio, Catalogue=Catalogue, PAYMENT=None, **ATTRIBUTES, **PLACES_DECLARED
)
"""The language in which a catalogue is read."""


def shipped_catalogue() -> Catalogue:
    """Returns features/catalogue/catalogue.py, read with the words above."""
    declared: dict[str, Any] = {"Entity": Entity, "request": request, "ratio": ratio, "Catalogue": Catalogue}
    asked: dict[str, Any] = {
        name.removesuffix("_minutes"): attribute for name, attribute in ATTRIBUTES.items() if name not in DECLARED_NAMES
    }
    spec = importlib.util.spec_from_file_location("catalogue_in_naive_words", ROOT / "catalogue.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with (
        mock.patch.multiple("paywarden.features.catalogue.entity", **declared),
        mock.patch.multiple("paywarden.features.catalogue.attributes", **asked),
    ):
        spec.loader.exec_module(module)
    catalogue: Catalogue = module.CATALOGUE
    return catalogue


# Comparing.


def same_bits(left: NDArray[np.float32], right: NDArray[np.float32]) -> bool:
    """Returns whether two arrays of float32 hold the same bits. Any two NaNs count as equal."""
    assert left.dtype == right.dtype == np.float32
    if left.shape != right.shape:
        return False
    both_missing = np.isnan(left) & np.isnan(right)
    same = np.ascontiguousarray(left).view(np.uint32) == np.ascontiguousarray(right).view(np.uint32)
    return bool((same | both_missing).all())


def differing(
    names: Sequence[str], got: NDArray[np.float32], wanted: NDArray[np.float32]
) -> Iterator[tuple[int, str, float, float]]:
    """Returns (row, feature, got, wanted) for each difference: the message of a failed test."""
    for row in range(len(wanted)):
        for column, name in enumerate(names):
            if not same_bits(got[row, column : column + 1], wanted[row, column : column + 1]):
                yield row, name, float(got[row, column]), float(wanted[row, column])


# Functions that the words above share.


def _duration_ms(text: str) -> int:
    amount, unit = re.fullmatch(r"([0-9]+)([smhd])", text).groups()  # type: ignore[union-attr]
    return int(amount) * {"s": SECOND_MS, "m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS}[unit]


def _usual_hop_ms(length_ms: int, delay_ms: int) -> int:
    """Returns at most a quarter of the window, out of a short list. With a delay, at least 6 hours."""
    if delay_ms == 0:
        if length_ms < 4 * MINUTE_MS:
            return 15 * SECOND_MS
        if length_ms < 4 * HOUR_MS:
            return MINUTE_MS
        if length_ms <= DAY_MS:
            return HOUR_MS
        return 6 * HOUR_MS if length_ms < 4 * DAY_MS else DAY_MS
    return 6 * HOUR_MS if length_ms <= 7 * DAY_MS else DAY_MS


def _ages(rows: pd.DataFrame, now: Payment, window: Window) -> pd.Series:
    """Returns the age of each tile, in tiles."""
    return now.time_ms // window.hop_ms - rows["time_ms"] // window.hop_ms


def _decayed(rows: pd.DataFrame, amounts: str | None, half_life_ms: int, now: Payment, window: Window) -> float:
    """Weighs each tile by its age, the newest first. A tile's weight is rounded to 2**-30."""
    total = 0.0
    for age, tile in rows.groupby(_ages(rows, now, window)):
        weight = round(2**30 * 0.5 ** (age * window.hop_ms / half_life_ms))
        total += (len(tile) if amounts is None else int(tile[amounts].sum())) * weight
    return total / 2**30


def _deviation(rows: pd.DataFrame) -> float:
    return _deviation_of(_plain(rows["amount"]))


def _deviation_of(amounts: Sequence[int]) -> float:
    count, total = len(amounts), float(sum(amounts))
    if count < 2:
        return math.nan
    squares = float(sum(amount * amount for amount in amounts))
    return math.sqrt(max(0.0, squares * count - total * total) / (count * (count - 1.0)))


def _fraud_age_s(labels: pd.DataFrame, now: Payment, window: Window, which: Callable[[Iterable[int]], int]) -> float:
    by_age = labels["weight"].groupby(_ages(labels, now, window)).sum()
    ages = _plain(by_age.index[by_age > 0].to_series())
    return which(ages) * window.hop_ms / 1000 if ages else math.nan


def _genuine_ages(rows: pd.DataFrame, labels: pd.DataFrame, now: Payment, window: Window) -> list[int]:
    """Returns the ages of the tiles with more payments than known frauds."""
    made = rows["time_ms"].groupby(_ages(rows, now, window)).count()
    frauds = labels["weight"].groupby(_ages(labels, now, window)).sum()
    more = made.sub(frauds, fill_value=0)
    return [int(age) for age in more.index[more > 0]]


def _streak(rows: pd.DataFrame, labels: pd.DataFrame, now: Payment, window: Window) -> pd.Series:
    """Returns the frauds, by the age of their tile, that are newer than every tile with a genuine payment."""
    end = min(_genuine_ages(rows, labels, now, window), default=math.inf)
    frauds = labels["weight"].groupby(_ages(labels, now, window)).sum()
    return frauds[(frauds > 0) & (frauds.index < end)]


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


def _code(name: str, value: object) -> int:
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


def _codes(rows: pd.DataFrame, name: str) -> list[int]:
    return [_code(name, value) for value in rows[name].dropna()]


def _hash(code: int) -> int:
    """SplitMix64's finaliser, without its lowest bit."""
    mask = 2**64 - 1
    bits = (code + 0x9E3779B97F4A7C15) & mask
    bits = ((bits ^ bits >> 30) * 0xBF58476D1CE4E5B9) & mask
    bits = ((bits ^ bits >> 27) * 0x94D049BB133111EB) & mask
    return (bits ^ bits >> 31) >> 1


def _bucket_counts(rows: pd.DataFrame, name: str, buckets: int) -> pd.Series:
    """Returns the number of payments in each bucket that has any, in order of the buckets."""
    return pd.Series([_hash(code) % buckets for code in _codes(rows, name)], dtype="int64").value_counts().sort_index()


def _latest(rows: pd.DataFrame, name: str, among: int, now_ms: int) -> dict[object, int]:
    """Returns the `among` latest distinct values with the time each was last seen, newest first.

    A value whose latest payment is after now is left out: its older payments are forgotten, as with tiles.
    """
    last = rows[rows[name].notna()].groupby(name, sort=False)["time_ms"].max()
    order = sorted(last.items(), key=lambda item: (item[1], _code(name, item[0])), reverse=True)
    return {value: int(time_ms) for value, time_ms in order[:among] if time_ms <= now_ms}


def _places() -> dict[str, tuple[float, float]]:
    """Returns latitude and longitude by country, in radians, rounded to tenths of a degree."""
    unit = math.pi / 1800.0
    with (ROOT / "codes" / "countries.csv").open(encoding="ascii", newline="") as file:
        return {
            row["country"]: (round(10 * float(row["latitude"])) * unit, round(10 * float(row["longitude"])) * unit)
            for row in csv.DictReader(file)
        }


PLACES = _places()


def _distance_km(origin: object, destination: object) -> float:
    """Returns the distance by the haversine formula."""
    return _haversine_km(PLACES.get(str(origin)), PLACES.get(str(destination)))


def _local(payment: Payment) -> datetime.datetime:
    """Returns the payer's local time if the payment has its offset, else UTC."""
    offset = payment.fields.get("utc_offset_minutes")
    known = isinstance(offset, int) and abs(offset) < 24 * 60
    moment = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(milliseconds=payment.time_ms)
    return moment + datetime.timedelta(minutes=offset) if known else moment  # type: ignore[arg-type]
