"""Features computed the plainest way: from the list of an entity's events, without profiles, tiles or compiled code.

    card.count("x", "1h")      how many of the card's earlier payments lie in tiles that touch the last hour

`paywarden features --check` compares the compiled code with it, to the bit. It reads the same rows of a payment and the
same expressions, and does all the rest again in Python's own numbers: windows, memories, sketches, formulas.
"""

from __future__ import annotations

import datetime
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import Condition, ConditionCode, identity_column, parts_of
from paywarden.features.catalogue.codes.countries import load_places
from paywarden.features.catalogue.expressions import (
    LABEL_MEASURES,
    Column,
    Derived,
    EntityRecency,
    Expression,
    Feature,
    Latest,
    Measure,
    NeighbourReduction,
    Neighbours,
    Operation,
    Recency,
    Recollection,
    Reduction,
    Remembered,
    WindowedMeasure,
    stored_values,
)
from paywarden.features.catalogue.windows import HOUR_MS, MINUTE_MS, Window

_EARTH_RADIUS_KM = 6371.0
_WEIGHT_UNIT = 2**30
_MICRODEGREE = math.pi / 180_000_000.0
# Columns in which 0 is a value. An amount below 0 is not known.
_ALWAYS_THERE = (kernel.TIME_MS, kernel.AMOUNT, kernel.AMOUNT_MINOR)

Row = Sequence[int]


class NotPlain(Exception):
    """This module does not know a word of the feature."""


@dataclass
class PlainEvents:
    """The events of an entity: its payments' rows, and (row, weight) of each change of a label.

    A weight from 3 on is that of a first label: 4 genuine, 5 fraud.
    """

    payments: list[Row] = field(default_factory=list)
    labels: list[tuple[Row, int]] = field(default_factory=list)

    def rows(self) -> Iterator[Row]:
        """Yields the rows of all events."""
        yield from self.payments
        yield from (row for row, _ in self.labels)


Others = Mapping[tuple[str, int], PlainEvents]
"""The events of entities by name and identity."""
Reaches = Mapping[tuple[str, int, bool], int]
"""How many milliseconds back an entity keeps tiles of a hop, of payments or (True) of labels."""


def plain_vector(
    features: Sequence[Feature], now: Row, known: Mapping[str, PlainEvents], others: Others = MappingProxyType({})
) -> dict[str, float]:
    """Returns the features of a payment by name, NaN where missing. A feature that this module cannot do is left out.

    `known` has the events of each entity that the payment has, by the entity's name; `others` those of all entities
    that may be neighbours.
    """
    named = {feature.name: feature.value for feature in features}
    moment = _Moment(now, known, named, others, _reaches(named.values()))
    found = {}
    for feature in features:
        try:
            found[feature.name] = float(moment.value(feature.name))
        except NotPlain:
            continue
    return found


class _Moment:
    """A payment with what is known of its entities."""

    def __init__(
        self,
        now: Row,
        known: Mapping[str, PlainEvents],
        named: Mapping[str, Expression],
        others: Others,
        reaches: Reaches,
    ) -> None:
        self._now, self._now_ms, self._known = now, now[kernel.TIME_MS], known
        self._named, self._others, self._reaches = named, others, reaches
        self._values: dict[str, float] = {}

    def value(self, value: Expression) -> float:
        if isinstance(value, str):
            if value not in self._values:
                self._values[value] = float(self.value(self._named[value]))
            return self._values[value]
        if isinstance(value, Derived):
            return self._derived(value)
        if value.entity not in self._known:
            return math.nan
        events = self._known[value.entity]
        if isinstance(value, WindowedMeasure):
            return self._inside(value, events).value(value)
        if isinstance(value, EntityRecency):
            return self._recency(value, events)
        if isinstance(value, Neighbours):
            return self._neighbours(value, events)
        return self._of_latest(value, events) if isinstance(value, Latest) else self._remembered(value, events)

    def _inside(self, value: WindowedMeasure, events: PlainEvents) -> _Inside:
        hop_ms = value.window.hop_ms
        newest = max((row[kernel.TIME_MS] for row in events.rows()), default=0) // hop_ms * hop_ms
        firsts = [newest - self._reaches.get((value.entity, hop_ms, is_label), 0) for is_label in (False, True)]
        return _Inside(value.window, events, self._now_ms, firsts)

    # Features of the payment itself, and of other values.

    def _derived(self, value: Derived) -> float:
        if value.operation in (Operation.DEVIATION, Operation.ENTROPY, Operation.TOP_SHARE):
            return self._of_counts(value)
        operands = [self.value(operand) for operand in value.operands]
        known: dict[Operation, Callable[[], float]] = {
            Operation.ATTRIBUTE_VALUE: lambda: self._attribute(value.numbers[0]),
            Operation.HOUR: lambda: _local(self._now).hour,
            Operation.NIGHT: lambda: _local(self._now).hour < 7,
            Operation.WEEKEND: lambda: _local(self._now).isoweekday() in (6, 7),
            Operation.WEEKDAY: lambda: _local(self._now).isoweekday() - 1,
            Operation.TRAILING_ZEROS: self._trailing_zeros,
            Operation.BELOW_LIMIT: lambda: self._below_limit(value.numbers),
            Operation.HOLDS: lambda: self._holds(*value.numbers),
            Operation.MEETS: lambda: float(_meets(self._now, value.numbers)),
            Operation.CATEGORY: lambda: self._category(value.numbers),
            Operation.NUMBER: lambda: value.numbers[0],
            Operation.ADD: lambda: operands[0] + operands[1],
            Operation.DIVIDE: lambda: _over(*operands),
            Operation.SCALE: lambda: operands[0] * value.numbers[0] / value.numbers[1],
            Operation.STANDARD_SCORE: lambda: _over(operands[0] - operands[1], operands[2]),
            Operation.SUBTRACT: lambda: operands[0] - operands[1],
            Operation.MULTIPLY: lambda: operands[0] * operands[1],
            Operation.CLIP: lambda: _clipped(operands[0], value.numbers[0]),
            Operation.SURPRISE: lambda: _surprise(*operands),
            Operation.DECLARED_NUMBER: lambda: _number_or_nan(self._now, value.numbers[0]),
            # The column behind that of a moment stands for its age.
            Operation.AGE_MS: lambda: _number_or_nan(self._now, value.numbers[0] + 1),
            Operation.SAME_VALUE: lambda: self._same_value(*value.numbers),
            Operation.DISTANCE: lambda: _distance_of([_number(self._now, column) for column in value.numbers]),
        }
        if value.operation not in known:
            raise NotPlain(value.operation)
        return known[value.operation]()

    def _of_counts(self, value: Derived) -> float:
        measure = value.operands[0]
        assert isinstance(measure, WindowedMeasure)
        if measure.entity not in self._known:
            return math.nan
        inside = self._inside(measure, self._known[measure.entity])
        if value.operation is Operation.DEVIATION:
            column = measure.column
            if column.measure is Measure.COUNT:
                return _deviation([_amount(row) for row in inside.payments(column.condition)])
            if column.measure is Measure.FRAUD_COUNT:
                return _deviation(*inside.labelled_amounts(column.condition))
            return _deviation(inside.numbers(column))
        counts = inside.bucket_counts(measure.column, value.numbers[0])
        if not counts:
            return math.nan
        if value.operation is Operation.TOP_SHARE:
            return max(counts) / sum(counts)
        return sum((-(count / sum(counts)) * math.log2(count / sum(counts)) for count in counts), 0.0)

    def _attribute(self, column: int) -> float:
        if column not in _ALWAYS_THERE:
            raise NotPlain(column)
        return math.nan if self._now[column] < 0 else self._now[column]

    def _trailing_zeros(self) -> float:
        digits = str(self._now[kernel.AMOUNT_MINOR])
        return 0 if digits == "0" else len(digits) - len(digits.rstrip("0"))

    def _below_limit(self, limits: Sequence[int]) -> float:
        above = [limit for limit in limits if limit > self._now[kernel.AMOUNT] >= 0]
        return (min(above) - self._now[kernel.AMOUNT]) / min(above) if above else math.nan

    def _holds(self, column: int, operator: int, wanted: int) -> float:
        if self._now[column] < 0 or (self._now[column] == 0 and column not in _ALWAYS_THERE):
            return math.nan
        return float(_meets(self._now, (column, operator, wanted)))

    def _category(self, numbers: Sequence[int]) -> float:
        code, codes = self._now[numbers[0]], numbers[1:]
        if code == 0:
            return math.nan
        return codes.index(code) if code in codes else len(codes)

    def _same_value(self, column: int, other: int) -> float:
        mine, theirs = self._now[column], self._now[other]
        return float(mine == theirs) if mine and theirs else math.nan

    # Features of earlier payments.

    def _recency(self, value: EntityRecency, events: PlainEvents) -> float:
        times = [row[kernel.TIME_MS] for row in events.payments]
        if not times:
            return math.nan
        return max(0, self._now_ms - (max(times) if value.recency is Recency.SINCE_LAST else min(times))) / 1000

    def _remembered(self, value: Remembered, events: PlainEvents) -> float:
        if value.recollection is Recollection.LAST_VALUE:
            if value.attribute != kernel.AMOUNT:
                raise NotPlain(value.recollection)
            known = [row for row in events.payments if row[kernel.AMOUNT] >= 0]
            last = max(((row[kernel.TIME_MS], row[kernel.AMOUNT]) for row in known), default=None)
            return math.nan if last is None or last[0] > self._now_ms else last[1]
        latest = self._latest(value, events)
        mine = self._now[identity_column(value.attribute)]
        if value.recollection is Recollection.IS_NEW:
            return math.nan if mine == 0 else float(mine not in latest)
        if value.recollection is Recollection.SINCE_SAME:
            return (self._now_ms - latest[mine]) / 1000 if mine in latest else math.nan
        if value.recollection is not Recollection.TRAVEL_KMH:
            raise NotPlain(value.recollection)
        if mine == 0 or not latest:
            return math.nan
        there = next(iter(latest))
        hours = max(self._now_ms - latest[there], MINUTE_MS) / HOUR_MS
        return 0.0 if there == mine else _distance_km(there, mine) / hours

    def _of_latest(self, value: Latest, events: PlainEvents) -> float:
        """Answers a question about one of the latest payments. A later one than this payment's time does not count."""
        kept = [_kept(row, value.fields) for row in events.payments]
        times = [row[kernel.TIME_MS] for row in events.payments]
        whole = [
            (time_ms, one) for time_ms, one in zip(times, kept, strict=True) if None not in one or not value.is_whole
        ]
        # A missing value is below all others.
        order = [(time_ms, [(one is not None, one or 0) for one in row], row) for time_ms, row in whole]
        order = sorted(order, key=lambda item: item[:2], reverse=True)[: value.capacity]
        latest = [(time_ms, row) for time_ms, _, row in order if time_ms <= self._now_ms]
        if value.recollection in (Recollection.COUNT_SAME, Recollection.QUANTILE):
            return self._over_latest(value, [row for _, row in latest])
        if value.place >= len(latest):
            return math.nan
        time_ms, there = latest[value.place]
        if value.recollection is Recollection.AGO:
            return (self._now_ms - time_ms) / 1000
        before = there[value.field]
        if value.recollection is Recollection.NUMBER_OF:
            return math.nan if before is None else before
        here = _kept(self._now, value.fields)
        if value.recollection is Recollection.IS_SAME:
            mine = here[value.field]
            return math.nan if mine is None or before is None else float(mine == before)
        distance_km = _distance_of([*there[:2], *here[:2]])
        if value.recollection is Recollection.DISTANCE_KM:
            return distance_km
        if value.recollection is not Recollection.SPEED_KMH:
            raise NotPlain(value.recollection)
        return distance_km / (max(self._now_ms - time_ms, MINUTE_MS) / HOUR_MS)

    def _over_latest(self, value: Latest, latest: Sequence[Sequence[int | None]]) -> float:
        is_count = value.recollection is Recollection.COUNT_SAME
        if is_count or len(value.fields) > 1:
            mine = _kept(self._now, value.fields)[-1]
            latest = [row for row in latest if row[-1] == mine]
            if mine is None or is_count:
                return math.nan if mine is None else len(latest)
        numbers = sorted(number for number, *_ in latest if number is not None)
        if not numbers:
            return math.nan
        place, rest = divmod((len(numbers) - 1) * value.place, 1000)
        low = numbers[place]
        return float(low) + float(numbers[place + 1] - low) * rest / 1000 if rest else float(low)

    def _neighbours(self, value: Neighbours, events: PlainEvents) -> float:
        """Returns a feature of the latest neighbours, each seen through its own events alone."""
        found = []
        for identity in self._latest(value, events):
            other = self._others.get((value.target, identity))
            if other is not None:
                there = _Moment(self._now, {value.target: other}, self._named, {}, self._reaches)
                found.append(float(np.float32(there.value(value.feature))))
        found = [number for number in found if not math.isnan(number)]
        if not found:
            return math.nan
        if value.reduction is NeighbourReduction.LARGEST:
            return max(found)
        total = 0.0
        # One by one, the newest first: `sum` would round once, at the end.
        for number in found:
            total += number
        return total / len(found)

    def _latest(self, value: Remembered | Neighbours, events: PlainEvents) -> dict[int, int]:
        """Returns the latest distinct identities with the time of each, the newest first."""
        last: dict[int, int] = {}
        for row in events.payments:
            identity = row[identity_column(value.attribute)]
            if identity:
                last[identity] = max(row[kernel.TIME_MS], last.get(identity, 0))
        order = sorted(last.items(), key=lambda item: (item[1], item[0]), reverse=True)[: value.capacity]
        return {identity: time_ms for identity, time_ms in order if time_ms <= self._now_ms}


def _reaches(values: Iterable[Expression]) -> Reaches:
    """Returns how far before the tile of its newest event an entity keeps tiles: as far as its longest window."""
    reaches: dict[tuple[str, int, bool], int] = {}
    for stored in (stored for value in values for stored in stored_values(value)):
        if isinstance(stored, WindowedMeasure):
            reach_ms = stored.window.length_ms + stored.window.delay_ms
            for column in (stored.column, stored.beside, stored.summed):
                if column is not None:
                    is_label = column.measure in LABEL_MEASURES
                    key = (stored.entity, stored.window.hop_ms, is_label)
                    reaches[key] = max(reaches.get(key, 0), reach_ms)
    return reaches


class _Inside:
    """The events of an entity in a window, without those in tiles before `firsts`: of payments, and of labels."""

    def __init__(self, window: Window, events: PlainEvents, now_ms: int, firsts: Sequence[int]) -> None:
        self._window, self._events, self._now_ms, self._firsts = window, events, now_ms, firsts

    def value(self, value: WindowedMeasure) -> float:
        column, measure, reduction = value.column, value.column.measure, value.reduction
        if reduction is Reduction.SUM:
            return self._sum(column)
        if reduction in (Reduction.LARGEST, Reduction.SMALLEST) and measure in (Measure.AMOUNT_MAX, Measure.AMOUNT_MIN):
            amounts = [row[kernel.AMOUNT] for row in self.payments(column.condition) if row[kernel.AMOUNT] >= 0]
            chosen = max if reduction is Reduction.LARGEST else min
            return chosen(amounts) if amounts else math.nan
        if reduction in (Reduction.LARGEST_NUMBER, Reduction.SMALLEST_NUMBER):
            numbers = self.numbers(column)
            wanted = max if reduction is Reduction.LARGEST_NUMBER else min
            return wanted(numbers) if numbers else math.nan
        if reduction is Reduction.UNION and measure is Measure.DISTINCT_BITS:
            bits = 64 * column.parts
            places = {_hash(code) % bits for code in self._codes(column)}
            return bits * math.log(bits / max(1, bits - len(places)))
        if reduction is Reduction.DECAYED:
            return self._decayed(column, value.half_life_ms)
        if measure is Measure.FRAUD_COUNT:
            return self._frauds(value)
        raise NotPlain(reduction)

    def payments(self, condition: Condition | None) -> list[Row]:
        return [row for row in self._events.payments if self._is_inside(row, 0) and _met(row, condition)]

    def numbers(self, column: Column) -> list[int]:
        """Returns the numbers that a column's payments have."""
        found = (_number(row, column.attribute) for row in self.payments(column.condition))
        return [number for number in found if number is not None]

    def labelled_amounts(self, condition: Condition | None) -> tuple[list[int], list[int]]:
        """Returns the amount of each label that became known, and its weight: -1 takes a fraud back."""
        labels = self._labels(condition)
        return [_amount(row) for row, _ in labels], [weight for _, weight in labels]

    def _labels(self, condition: Condition | None) -> list[tuple[Row, int]]:
        """Returns the changes of known frauds."""
        labels = ((row, weight - 4 if weight > 1 else weight) for row, weight in self._events.labels)
        return [(row, weight) for row, weight in labels if weight and self._is_inside(row, 1) and _met(row, condition)]

    def _is_inside(self, row: Row, kind: int) -> bool:
        hop_ms, length_ms, delay_ms = self._window.hop_ms, self._window.length_ms, self._window.delay_ms
        start = row[kernel.TIME_MS] // hop_ms * hop_ms
        if start < self._firsts[kind]:
            # The entity has dropped the tile: a newer event came first.
            return False
        if delay_ms == 0:
            # Tiles that touch (now - length, now].
            return start <= self._now_ms and start + hop_ms > self._now_ms - length_ms
        # Tiles wholly before now - delay, exactly as many as the window is long.
        end = (self._now_ms - delay_ms) // hop_ms * hop_ms
        return start + hop_ms <= end and start >= end - length_ms

    def _age(self, row: Row) -> int:
        """Returns the age of a row's tile, in tiles."""
        return self._now_ms // self._window.hop_ms - row[kernel.TIME_MS] // self._window.hop_ms

    def _sum(self, column: Column) -> int:
        condition = column.condition
        if column.measure is Measure.COUNT:
            return len(self.payments(condition))
        if column.measure is Measure.AMOUNT_SUM:
            return sum(_amount(row) for row in self.payments(condition))
        if column.measure is Measure.FRAUD_COUNT:
            return sum(weight for _, weight in self._labels(condition))
        if column.measure is Measure.LABELLED_COUNT:
            labels = self._events.labels
            return sum(weight > 1 and self._is_inside(row, 1) and _met(row, condition) for row, weight in labels)
        if column.measure is Measure.FRAUD_AMOUNT:
            return sum(weight * _amount(row) for row, weight in self._labels(condition))
        if column.measure in (Measure.NUMBER_COUNT, Measure.NUMBER_SUM):
            numbers = self.numbers(column)
            return len(numbers) if column.measure is Measure.NUMBER_COUNT else sum(numbers)
        raise NotPlain(column.measure)

    def _by_age(self, column: Column) -> dict[int, int]:
        """Returns a sum for each tile that has events, by its age, the newest first."""
        if column.measure in (Measure.COUNT, Measure.AMOUNT_SUM):
            count = column.measure is Measure.COUNT
            parts = [(row, 1 if count else _amount(row)) for row in self.payments(column.condition)]
        elif column.measure is Measure.NUMBER_SUM:
            rows = [(row, _number(row, column.attribute)) for row in self.payments(column.condition)]
            parts = [(row, number) for row, number in rows if number is not None]
        elif column.measure is Measure.FRAUD_COUNT:
            parts = self._labels(column.condition)
        elif column.measure is Measure.FRAUD_AMOUNT:
            parts = [(row, weight * _amount(row)) for row, weight in self._labels(column.condition)]
        else:
            raise NotPlain(column.measure)
        sums: dict[int, int] = {}
        for row, number in parts:
            sums[self._age(row)] = sums.get(self._age(row), 0) + number
        return dict(sorted(sums.items()))

    def _decayed(self, column: Column, half_life_ms: int) -> float:
        total = 0.0
        for age, number in self._by_age(column).items():
            total += number * round(_WEIGHT_UNIT * 0.5 ** (age * self._window.hop_ms / half_life_ms))
        return total / _WEIGHT_UNIT

    def _frauds(self, value: WindowedMeasure) -> float:
        frauds = self._by_age(value.column)
        of_fraud = [age for age, count in frauds.items() if count > 0]
        if value.reduction in (Reduction.NEWEST, Reduction.OLDEST):
            chosen = min if value.reduction is Reduction.NEWEST else max
            return chosen(of_fraud) * self._window.hop_ms / 1000 if of_fraud else math.nan
        assert value.beside is not None
        genuine = [age for age, count in self._by_age(value.beside).items() if count > frauds.get(age, 0)]
        if value.reduction is Reduction.NEWEST_OTHER:
            return min(genuine) * self._window.hop_ms / 1000 if genuine else math.nan
        streak = [age for age in of_fraud if not genuine or age < min(genuine)]
        if value.reduction is Reduction.STREAK:
            return sum(frauds[age] for age in streak)
        if value.reduction is Reduction.STREAK_AGE:
            return max(streak) * self._window.hop_ms / 1000 if streak else math.nan
        if value.reduction is Reduction.STREAK_SUM and value.summed is not None:
            amounts = self._by_age(value.summed)
            return sum(amounts[age] for age in streak)
        raise NotPlain(value.reduction)

    def _codes(self, column: Column) -> list[int]:
        codes = (row[identity_column(column.attribute)] for row in self.payments(column.condition))
        return [code for code in codes if code]

    def bucket_counts(self, column: Column, buckets: int) -> list[int]:
        """Returns the number of payments in each bucket that has any, in the order of the buckets."""
        counts: dict[int, int] = {}
        for code in self._codes(column):
            counts[_hash(code) % buckets] = counts.get(_hash(code) % buckets, 0) + 1
        return [count for _, count in sorted(counts.items())]


def _met(row: Row, condition: Condition | None) -> bool:
    return condition is None or _meets(row, condition.code)


def _meets(row: Row, asked: ConditionCode) -> bool:
    kind, wanted = asked[1], asked[2]
    if kind >= kernel.ALL_OF:
        found = [_meets(row, part) for part in parts_of(asked)]
        return all(found) if kind == kernel.ALL_OF else any(found) == (kind == kernel.ANY_OF)
    code = row[asked[0]]
    if kind == kernel.EQUAL:
        return code == wanted
    if kind == kernel.DIFFERENT:
        return code not in (0, wanted)
    if kind == kernel.AT_LEAST:
        return code >= wanted
    if kind == kernel.BELOW:
        return 0 <= code < wanted
    if kind == kernel.BELOW_IF_PRESENT:
        return 0 < code < wanted
    if kind in (kernel.HOUR_AMONG, kernel.WEEKDAY_AMONG):
        there = _local(row)
        value = there.hour if kind == kernel.HOUR_AMONG else there.isoweekday() - 1
        return bool(wanted & 1 << value)
    raise NotPlain(kind)


def _local(row: Row) -> datetime.datetime:
    """Returns the local time of a payment, UTC where its offset is not known."""
    moment = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(milliseconds=row[kernel.TIME_MS])
    code = row[kernel.UTC_OFFSET]
    return moment + datetime.timedelta(minutes=code - kernel.OFFSET_ZERO) if code else moment


def _amount(row: Row) -> int:
    """Returns the part of a payment in a sum of amounts: none if its amount is not known."""
    return max(0, row[kernel.AMOUNT])


def _number(row: Row, column: int) -> int | None:
    """Returns an attribute's number, None where it is missing. The column behind that of a moment is its age in ms."""
    if column < kernel.ATTRIBUTE_COUNT:
        return row[column] if row[column] >= 0 else None
    # Codes of declared fields stand in every second column.
    is_age = (column - kernel.ATTRIBUTE_COUNT) % 2 == 1
    code = row[column - is_age]
    if code == 0:
        return None
    number = code - kernel.NUMBER_ZERO
    return row[kernel.TIME_MS] - number if is_age else number


def _number_or_nan(row: Row, column: int) -> float:
    number = _number(row, column)
    return math.nan if number is None else number


def _kept(row: Row, fields: Sequence[tuple[int, bool]]) -> list[int | None]:
    """Returns the fields of a payment that a memory keeps: numbers, or identities of texts."""
    return [_number(row, column) if is_number else row[identity_column(column)] or None for column, is_number in fields]


def _distance_of(numbers: Sequence[int | None]) -> float:
    """Returns the distance between two places, in millionths of a degree: latitude and longitude of each."""
    known = [number * _MICRODEGREE for number in numbers if number is not None]
    return _great_circle_km(*known) if len(known) == 4 else math.nan


def _over(numerator: float, denominator: float) -> float:
    return math.nan if denominator == 0 else numerator / denominator


def _clipped(value: float, most: int) -> float:
    return value if math.isnan(value) else min(max(value, -most), most)


def _surprise(count: float, total: float, usual: float, past: float) -> float:
    """Returns how much likelier the usual count is than this one: beta-binomial, in nats, in steps of 1/1024."""
    if math.isnan(count) or math.isnan(usual):
        return math.nan
    count, usual = min(count, total), max(usual, 1e-6)
    others = max(past - usual, 1e-6)

    def log_chance(marked: float) -> float:
        ways = math.lgamma(total + 1) - math.lgamma(marked + 1) - math.lgamma(total - marked + 1)
        both = math.lgamma(marked + usual) + math.lgamma(total - marked + others) - math.lgamma(total + usual + others)
        return ways + both

    expected = math.floor(total * (usual / (usual + others)))
    if count <= expected:
        return 0.0
    return math.floor(max(0.0, log_chance(expected) - log_chance(count)) * 1024 + 0.5) / 1024


def _deviation(amounts: Sequence[int], weights: Sequence[int] | None = None) -> float:
    weights = [1] * len(amounts) if weights is None else weights
    count, total = sum(weights), float(sum(map(operator.mul, weights, amounts)))
    if count < 2:
        return math.nan
    squares = float(sum(weight * amount * amount for amount, weight in zip(amounts, weights, strict=True)))
    return math.sqrt(max(0.0, squares * count - total * total) / (count * (count - 1.0)))


def _hash(code: int) -> int:
    """SplitMix64's finaliser, without its lowest bit."""
    mask = 2**64 - 1
    bits = (code + 0x9E3779B97F4A7C15) & mask
    bits = ((bits ^ bits >> 30) * 0xBF58476D1CE4E5B9) & mask
    bits = ((bits ^ bits >> 27) * 0x94D049BB133111EB) & mask
    return (bits ^ bits >> 31) >> 1


def _distance_km(origin: int, destination: int) -> float:
    """Returns the distance between the middles of two countries, by the haversine formula."""
    places = _places()
    if max(origin, destination) >= len(places) or not places[origin, 0] or not places[destination, 0]:
        return math.nan
    # Tenths of a degree plus 10,000.
    (lat, lon), (to_lat, to_lon) = (
        [(number - 10_000) * (math.pi / 1800.0) for number in places[code].tolist()] for code in (origin, destination)
    )
    return _great_circle_km(lat, lon, to_lat, to_lon)


def _great_circle_km(lat: float, lon: float, to_lat: float, to_lon: float) -> float:
    half = math.sin((to_lat - lat) / 2.0) ** 2
    half += math.cos(lat) * math.cos(to_lat) * math.sin((to_lon - lon) / 2.0) ** 2
    return 2.0 * _EARTH_RADIUS_KM * math.asin(min(1.0, math.sqrt(half)))


@cache
def _places() -> NDArray[np.int64]:
    return load_places()
