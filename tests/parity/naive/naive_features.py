"""Features computed the simplest way, in pandas, as a reference for the kernel.

This folder has no profile, no plan and no program. It offers the words of the catalogue's language a second time. A
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

import importlib.util
import math
import operator
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tests.checkout import CHECKOUT
from tests.parity.naive.attributes import ATTRIBUTES, PLACES_DECLARED, Attribute, Coordinates, Where, condition_of
from tests.parity.naive.codes import bucket_counts, codes_of, hash_of, latest_values
from tests.parity.naive.events import DECLARED_NAMES, Heard, Payment, tables_of
from tests.parity.naive.feature import Feature, plain, quotient
from tests.parity.naive.labels import fraud_age_s, genuine_ages, streak_of
from tests.parity.naive.places import distance_km_between, haversine_km
from tests.parity.naive.request import named, request, within
from tests.parity.naive.windows import HOUR_MS, MINUTE_MS, Moment, Window, ages_of, decayed, duration_ms, usual_hop_ms

ROOT = CHECKOUT / "features" / "catalogue"


def _lately(rows: pd.DataFrame, of: Sequence[Attribute], payments: int, now: Payment) -> list[dict[str, Any]]:
    """Returns the latest payments, newest first; those after now take their places, and are left out."""
    times = rows["time_ms"].to_numpy()
    if len(times) > payments:
        # A value with enough newer ones has no place, however ties of one moment are broken.
        rows = rows[times >= np.partition(times, -payments)[-payments]]
    # pandas makes a record of forty columns slowly.
    columns = dict.fromkeys(["time_ms", *(name for each in of for name in (each.name, each.told_as))])
    records = rows[list(columns)].to_dict("records")
    ordered = sorted(records, key=lambda row: (row["time_ms"], *(each.rank(row) for each in of)), reverse=True)
    return [
        {str(name): value for name, value in row.items()} for row in ordered[:payments] if row["time_ms"] <= now.time_ms
    ]


def _having(rows: pd.DataFrame, of: Sequence[Attribute]) -> pd.DataFrame:
    for attribute in of:
        rows = rows[rows[attribute.told_as].notna()]
        if attribute.name == "amount":
            rows = _known(rows)
    return rows


def _waits(word: Callable[..., Feature]) -> Callable[..., Feature]:
    """A word for frauds without a delay waits for that of its catalogue."""

    def made(entity: Entity, name: str, *arguments: str, delay: str = "", **options: Any) -> Feature:
        def with_delay(of_catalogue: str) -> Feature:
            return word(entity, name, *arguments, delay=of_catalogue, **options)

        return with_delay(delay) if delay else Feature(name, lambda _: math.nan, (), with_delay)

    return made


def _of_numbers(word: Callable[..., Feature]) -> Callable[..., Feature]:
    """A word for numbers: those of a moment are ages, and grow with the data."""

    def made(entity: Entity, name: str, *arguments: str, of: Attribute, **options: Any) -> Feature:
        return replace(word(entity, name, *arguments, of=of, **options), grows=of.is_moment)

    return made


def _since(word: Callable[..., Feature]) -> Callable[..., Feature]:
    """A word for a time since something grows with the data, unless it has a `most`."""

    def made(entity: Entity, name: str, *arguments: Any, most: str = "", **options: Any) -> Feature:
        return replace(word(entity, name, *arguments, most=most, **options), grows=not most)

    return made


def _kept_within(feature: Feature, most: str) -> Feature:
    return replace(feature, value=lambda moment: within(feature.value(moment), most))


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
        length_ms = duration_ms(window)
        return self._of_payments(name, window, where, lambda rows, _: len(rows) * HOUR_MS / length_ms, hop=hop)

    def share(self, name: str, window: str, *, of: Where, delay: str = "", hop: str = "") -> Feature:
        asked = condition_of(of)
        assert asked is not None
        return self._of_payments(
            name, window, None, lambda rows, _: quotient(int(asked.of(rows).sum()), len(rows)), delay, hop
        )

    def count_decayed(self, name: str, half_life: str, window: str, *, where: Where = None, hop: str = "") -> Feature:
        over = self._window(window, hop=hop)
        return self._of_payments(
            name, window, where, lambda rows, now: decayed(rows, None, duration_ms(half_life), now, over), hop=hop
        )

    def count_trend(self, name: str, short: str, long: str) -> Feature:
        windows = (self._window(short), self._window(long))

        def value(moment: Moment) -> float:
            recent, usual = (moment.inside(window) for window in windows)
            if recent is None or usual is None:
                return math.nan
            return quotient(len(recent), len(usual)) * duration_ms(long) / duration_ms(short)

        return Feature(name, value, windows)

    def distinct(
        self, name: str, of: Attribute, window: str, *, bits: int = 64, where: Where = None, hop: str = ""
    ) -> Feature:
        def value(rows: pd.DataFrame, _: Payment) -> float:
            places = {hash_of(code) % bits for code in codes_of(rows, of.name)}
            return bits * math.log(bits / max(1, bits - len(places)))

        return self._of_payments(name, window, where, value, hop=hop)

    def entropy(self, name: str, of: Attribute, window: str, *, buckets: int = 8, hop: str = "") -> Feature:
        def value(rows: pd.DataFrame, _: Payment) -> float:
            counts = bucket_counts(rows, of.name, buckets)
            shares = [float(count / counts.sum()) for count in counts]
            return sum((-share * math.log2(share) for share in shares), 0.0) if shares else math.nan

        return self._of_payments(name, window, None, value, hop=hop)

    def top_share(self, name: str, of: Attribute, window: str, *, buckets: int = 8, hop: str = "") -> Feature:
        def value(rows: pd.DataFrame, _: Payment) -> float:
            counts = bucket_counts(rows, of.name, buckets)
            return float(counts.max() / counts.sum()) if len(counts) else math.nan

        return self._of_payments(name, window, None, value, hop=hop)

    def amount_sum(self, name: str, window: str, *, where: Where = None, hop: str = "") -> Feature:
        return self._of_payments(name, window, where, lambda rows, _: sum(_parts(rows)), hop=hop)

    def amount_mean(
        self, name: str, window: str, *, where: Where = None, hop: str = "", including_this: bool = False
    ) -> Feature:
        def value(rows: pd.DataFrame, now: Payment) -> float:
            amounts = _parts(rows) + ([now.amount if now.amount >= 0 else math.nan] if including_this else [])
            return quotient(sum(amounts), len(amounts))

        return self._of_payments(name, window, where, value, hop=hop)

    def amount_std(self, name: str, window: str, *, where: Where = None, hop: str = "") -> Feature:
        return self._of_payments(name, window, where, lambda rows, _: _deviation(rows), hop=hop)

    def amount_zscore(self, name: str, window: str, *, where: Where = None, hop: str = "") -> Feature:
        def value(rows: pd.DataFrame, now: Payment) -> float:
            mine = now.amount if now.amount >= 0 else math.nan
            return quotient(mine - quotient(sum(_parts(rows)), len(rows)), _deviation(rows))

        return self._of_payments(name, window, where, value, hop=hop)

    def amount_max(self, name: str, window: str, *, where: Where = None, hop: str = "") -> Feature:
        return self._of_payments(
            name, window, where, lambda rows, _: max(plain(_known(rows)["amount"]), default=math.nan), hop=hop
        )

    def amount_min(self, name: str, window: str, *, where: Where = None, hop: str = "") -> Feature:
        return self._of_payments(
            name, window, where, lambda rows, _: min(plain(_known(rows)["amount"]), default=math.nan), hop=hop
        )

    def amount_decayed(self, name: str, half_life: str, window: str, *, hop: str = "") -> Feature:
        over = self._window(window, hop=hop)
        return self._of_payments(
            name, window, None, lambda rows, now: decayed(rows, "amount", duration_ms(half_life), now, over), hop=hop
        )

    @_waits
    def fraud_count(self, name: str, window: str, *, delay: str, where: Where = None, hop: str = "") -> Feature:
        return self._of_labels(name, window, where, delay, hop, lambda labels, _: int(labels["weight"].sum()))

    @_waits
    def fraud_share(self, name: str, window: str, *, delay: str, where: Where = None, hop: str = "") -> Feature:
        return self._of_both(
            name, window, where, delay, hop, lambda rows, labels, _: quotient(int(labels["weight"].sum()), len(rows))
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
        over, half_life_ms = self._window(window, delay, hop), duration_ms(half_life)

        def value(rows: pd.DataFrame, labels: pd.DataFrame, now: Payment) -> float:
            frauds = decayed(labels, "weight", half_life_ms, now, over)
            return quotient(frauds, decayed(rows, None, half_life_ms, now, over))

        return self._of_both(name, window, None, delay, hop, value)

    @_waits
    def seconds_since_fraud(self, name: str, window: str, *, delay: str, hop: str = "") -> Feature:
        over = self._window(window, delay, hop)
        return self._of_labels(name, window, None, delay, hop, lambda labels, now: fraud_age_s(labels, now, over, min))

    @_waits
    def seconds_since_first_fraud(self, name: str, window: str, *, delay: str, hop: str = "") -> Feature:
        over = self._window(window, delay, hop)
        return self._of_labels(name, window, None, delay, hop, lambda labels, now: fraud_age_s(labels, now, over, max))

    @_waits
    def seconds_since_genuine(self, name: str, window: str, *, delay: str, hop: str = "") -> Feature:
        over = self._window(window, delay, hop)

        def value(rows: pd.DataFrame, labels: pd.DataFrame, now: Payment) -> float:
            ages = genuine_ages(rows, labels, now, over)
            return min(ages) * over.hop_ms / 1000 if ages else math.nan

        return self._of_both(name, window, None, delay, hop, value)

    @_waits
    def fraud_streak(self, name: str, window: str, *, delay: str, hop: str = "") -> Feature:
        over = self._window(window, delay, hop)
        return self._of_both(
            name, window, None, delay, hop, lambda rows, labels, now: int(streak_of(rows, labels, now, over).sum())
        )

    @_waits
    def fraud_streak_seconds(self, name: str, window: str, *, delay: str, hop: str = "") -> Feature:
        over = self._window(window, delay, hop)

        def value(rows: pd.DataFrame, labels: pd.DataFrame, now: Payment) -> float:
            streak = streak_of(rows, labels, now, over)
            return int(streak.index.max()) * over.hop_ms / 1000 if len(streak) else math.nan

        return self._of_both(name, window, None, delay, hop, value)

    @_waits
    def fraud_streak_amount_mean(self, name: str, window: str, *, delay: str, hop: str = "") -> Feature:
        over = self._window(window, delay, hop)

        def value(rows: pd.DataFrame, labels: pd.DataFrame, now: Payment) -> float:
            streak = streak_of(rows, labels, now, over)
            told = labels[ages_of(labels, now, over).isin(streak.index)]
            return quotient(sum(plain(told["weight"] * told["amount"].clip(lower=0))), int(streak.sum()))

        return self._of_both(name, window, None, delay, hop, value)

    @_since
    def seconds_since_last(self, name: str, *, most: str = "") -> Feature:
        def value(rows: pd.DataFrame, now: Payment) -> float:
            return within(max(0, now.time_ms - int(rows["time_ms"].max())) / 1000, most)

        return self._of_all(name, value)

    @_since
    def seconds_since_first(self, name: str, *, most: str = "") -> Feature:
        def value(rows: pd.DataFrame, now: Payment) -> float:
            return within(max(0, now.time_ms - int(rows["time_ms"].min())) / 1000, most)

        return self._of_all(name, value)

    def last_amount(self, name: str) -> Feature:
        def value(rows: pd.DataFrame, now: Payment) -> float:
            rows = _known(rows)
            if not len(rows):
                return math.nan
            latest = rows.sort_values(["time_ms", "amount"]).iloc[-1]
            return int(latest["amount"]) if latest["time_ms"] <= now.time_ms else math.nan

        return self._of_all(name, value)

    @_of_numbers
    def sum(self, name: str, window: str, *, of: Attribute, where: Where = None, hop: str = "") -> Feature:
        return self._of_payments(name, window, where, lambda rows, _: sum(_summed(of, rows)) / of.parts, hop=hop)

    @_of_numbers
    def mean(self, name: str, window: str, *, of: Attribute, where: Where = None, hop: str = "") -> Feature:
        def value(rows: pd.DataFrame, _: Payment) -> float:
            numbers = _summed(of, rows)
            return quotient(sum(numbers), len(numbers)) / of.parts

        return self._of_payments(name, window, where, value, hop=hop)

    @_of_numbers
    def std(self, name: str, window: str, *, of: Attribute, where: Where = None, hop: str = "") -> Feature:
        return self._of_payments(
            name, window, where, lambda rows, _: _deviation_of(_summed(of, rows)) / of.parts, hop=hop
        )

    def zscore(self, name: str, window: str, *, of: Attribute, where: Where = None, hop: str = "") -> Feature:
        def value(rows: pd.DataFrame, now: Payment) -> float:
            mine, numbers = of.number(named(now)), _summed(of, rows)
            if mine is None:
                return math.nan
            return quotient(mine - quotient(sum(numbers), len(numbers)), _deviation_of(numbers))

        return self._of_payments(name, window, where, value, hop=hop)

    @_of_numbers
    def max(self, name: str, window: str, *, of: Attribute, where: Where = None, hop: str = "") -> Feature:
        return self._of_payments(
            name, window, where, lambda rows, _: max(of.numbers(rows), default=math.nan) / of.parts, hop=hop
        )

    @_of_numbers
    def min(self, name: str, window: str, *, of: Attribute, where: Where = None, hop: str = "") -> Feature:
        return self._of_payments(
            name, window, where, lambda rows, _: min(of.numbers(rows), default=math.nan) / of.parts, hop=hop
        )

    @_of_numbers
    def sum_decayed(
        self, name: str, half_life: str, window: str, *, of: Attribute, where: Where = None, hop: str = ""
    ) -> Feature:
        over = self._window(window, hop=hop)

        def value(rows: pd.DataFrame, now: Payment) -> float:
            having = _having(rows, (of,)).copy()
            having["number"] = pd.Series(of.numbers(having), index=having.index, dtype="int64")
            return decayed(having, "number", duration_ms(half_life), now, over) / of.parts

        return self._of_payments(name, window, where, value, hop=hop)

    def last(self, prefix: str, payments: int, *, of: Sequence[Attribute] = (), most: str = "") -> tuple[Feature, ...]:
        def feature(place: int, name: str, value: Callable[[dict[str, Any], Payment], float], grows: bool) -> Feature:
            def at_place(rows: pd.DataFrame, now: Payment) -> float:
                latest = _lately(rows, of, payments, now)
                return value(latest[place], now) if place < len(latest) else math.nan

            return replace(self._of_all(name, at_place), grows=grows)

        def remembered(attribute: Attribute) -> Callable[[dict[str, Any], Payment], float]:
            def value(then: dict[str, Any], now: Payment) -> float:
                if attribute.is_number:
                    number = attribute.number(then)
                    return math.nan if number is None else number / attribute.parts
                theirs, mine = then[attribute.name], now.fields.get(attribute.name)
                return math.nan if theirs is None or mine is None else float(theirs == mine)

            return value

        return tuple(
            feature(place, f"{prefix}_{place + 1}_{what}", value, grows)
            for place in range(payments)
            for what, value, grows in [
                ("seconds", lambda then, now: within((now.time_ms - then["time_ms"]) / 1000, most), not most),
                *((attribute.name, remembered(attribute), attribute.is_moment) for attribute in of),
            ]
        )

    @_of_numbers
    def last_value(self, name: str, *, of: Attribute) -> Feature:
        def value(rows: pd.DataFrame, now: Payment) -> float:
            latest = _lately(_having(rows, (of,)), (of,), 1, now)
            return (of.number(latest[0]) or 0) / of.parts if latest else math.nan

        return self._of_all(name, value)

    @_of_numbers
    def difference_to_last(self, name: str, *, of: Attribute) -> Feature:
        def value(rows: pd.DataFrame, now: Payment) -> float:
            latest, mine = _lately(_having(rows, (of,)), (of,), 1, now), of.number(named(now))
            return (mine - (of.number(latest[0]) or 0)) / of.parts if latest and mine is not None else math.nan

        return self._of_all(name, value)

    def distance_to_last_km(self, name: str, place: Coordinates) -> Feature:
        def value(rows: pd.DataFrame, now: Payment) -> float:
            latest = _lately(_having(rows, place.attributes), place.attributes, 1, now)
            return haversine_km(place.radians(latest[0]), place.radians(named(now))) if latest else math.nan

        return self._of_all(name, value)

    def speed_kmh(self, name: str, place: Coordinates) -> Feature:
        def value(rows: pd.DataFrame, now: Payment) -> float:
            latest = _lately(_having(rows, place.attributes), place.attributes, 1, now)
            if not latest:
                return math.nan
            hours = max(now.time_ms - int(latest[0]["time_ms"]), MINUTE_MS) / HOUR_MS
            return haversine_km(place.radians(latest[0]), place.radians(named(now))) / hours

        return self._of_all(name, value)

    def is_new(self, name: str, attribute: Attribute, *, among: int = 32) -> Feature:
        def value(rows: pd.DataFrame, now: Payment) -> float:
            mine = now.fields.get(attribute.name)
            return (
                math.nan if mine is None else float(mine not in latest_values(rows, attribute.name, among, now.time_ms))
            )

        def value_of_none(now: Payment) -> float:
            return math.nan if now.fields.get(attribute.name) is None else 1.0

        return self._of_all(name, value, value_of_none)

    @_since
    def seconds_since_same(self, name: str, attribute: Attribute, *, among: int = 32, most: str = "") -> Feature:
        def value(rows: pd.DataFrame, now: Payment) -> float:
            mine, latest = now.fields.get(attribute.name), latest_values(rows, attribute.name, among, now.time_ms)
            return within((now.time_ms - latest[mine]) / 1000, most) if mine in latest else math.nan

        return self._of_all(name, value)

    def travel_kmh(self, name: str, *, among: int = 8) -> Feature:
        def value(rows: pd.DataFrame, now: Payment) -> float:
            here, latest = now.fields.get("country"), latest_values(rows, "country", among, now.time_ms)
            if here is None or not latest:
                return math.nan
            there = next(iter(latest))
            if there == here:
                return 0.0
            hours = max(now.time_ms - latest[there], MINUTE_MS) / HOUR_MS
            return distance_km_between(there, here) / hours

        return self._of_all(name, value)

    def largest_of_last(self, name: str, neighbour: Entity, feature: str, last: int) -> Feature:
        return self._of_last(name, neighbour, feature, last, lambda values: max(values))

    def mean_of_last(self, name: str, neighbour: Entity, feature: str, last: int) -> Feature:
        return self._of_last(name, neighbour, feature, last, lambda values: reduce(operator.add, values) / len(values))

    def _of_last(
        self, name: str, neighbour: Entity, feature: str, last: int, combined: Callable[[list[float]], float]
    ) -> Feature:
        """Combines the values of the last different neighbours, the newest first: each as a vector would have it."""
        (key,) = neighbour.keys

        def of(moment: Moment) -> float:
            own = moment.own(self.name)
            if own is None or not len(own[0]):
                return math.nan
            latest = latest_values(own[0], key, last, moment.now.time_ms)
            there = [moment.neighbour(neighbour.name, key, value).values[feature] for value in latest]
            values = [float(np.float32(value)) for value in there if not math.isnan(value)]
            return combined(values) if values else math.nan

        return Feature(name, of)

    def _window(self, length: str, delay: str = "", hop: str = "") -> Window:
        length_ms, delay_ms = duration_ms(length), duration_ms(delay) if delay else 0
        hop_ms = duration_ms(hop) if hop else usual_hop_ms(length_ms, delay_ms)
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
            rows = moment.inside(window, condition_of(where))
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
            rows = moment.inside(window, condition_of(where))
            labels = moment.inside(window, condition_of(where), labels=True)
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
            labels = moment.inside(window, condition_of(where), labels=True)
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


def ratio(name: str, numerator: str, denominator: str) -> Feature:
    return Feature(name, lambda moment: quotient(moment.values[numerator], moment.values[denominator]))


@dataclass(frozen=True)
class Catalogue:
    entities: Sequence[Entity]
    features: Sequence[Feature]
    payment: object = None
    label_delay: str = "7d"
    seconds_most: str = ""

    def __post_init__(self) -> None:
        told = tuple(f if f.with_delay is None else f.with_delay(self.label_delay) for f in self.features)
        if self.seconds_most:
            told = tuple(_kept_within(f, self.seconds_most) if f.grows else f for f in told)
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
        moment = Moment(
            now, payments, labels, keys, reach_ms, named={feature.name: feature.value for feature in self.features}
        )
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


def _known(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns the payments whose amount is known."""
    return rows[rows["amount"] >= 0]


def _parts(rows: pd.DataFrame) -> list[int]:
    """Returns the part of each payment in a sum: 0 for an amount that is not known."""
    return plain(rows["amount"].clip(lower=0))


def _summed(of: Attribute, rows: pd.DataFrame) -> list[int]:
    return _parts(rows) if of.name == "amount" else of.numbers(rows)


def _deviation(rows: pd.DataFrame) -> float:
    return _deviation_of(_parts(rows))


def _deviation_of(amounts: Sequence[int]) -> float:
    count, total = len(amounts), float(sum(amounts))
    if count < 2:
        return math.nan
    squares = float(sum(amount * amount for amount in amounts))
    return math.sqrt(max(0.0, squares * count - total * total) / (count * (count - 1.0)))
