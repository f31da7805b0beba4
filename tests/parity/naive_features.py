"""Features the obvious way: what features/declare.py says, worked out from a list of everything that is known.

No tiles, no state, no tables: for each feature of each payment it goes over all that came before. Slow, and
written from the documented meaning alone, so that it can be the judge of the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.declare import (
    DAY_MS,
    HOUR_MS,
    Catalogue,
    EntityRecency,
    Measure,
    Operand,
    Recency,
    RequestValue,
    Window,
    WindowedMeasure,
)


@dataclass(frozen=True)
class Payment:
    """`amount` in minor units of the reference currency; `ids` by the entity's name, None where there is none."""

    time_ms: int
    amount: int
    ids: Mapping[str, str | None]


@dataclass(frozen=True)
class Outcome:
    """`payment` is the payment's place in the list of payments."""

    payment: int
    time_ms: int
    is_fraud: bool


@dataclass(frozen=True)
class Known:
    """A payment that was made, and whether it is known by now to be fraud."""

    payment: Payment
    is_fraud: bool = False


def naive_history(
    catalogue: Catalogue, payments: Sequence[Payment], outcomes: Sequence[Outcome]
) -> NDArray[np.float32]:
    """The vector each payment had when it was made, shape (payments, features).

    `payments` are in order of time, `outcomes` in the order they became known. A payment comes before an
    outcome of the same millisecond.
    """
    rows = []
    for row, payment in enumerate(payments):
        fraud = {o.payment: o.is_fraud for o in outcomes if o.time_ms < payment.time_ms}
        known = [Known(payments[i], fraud.get(i, False)) for i in range(row)]
        rows.append(naive_vector(catalogue, payment, known))
    return np.array(rows, dtype=np.float32).reshape(len(payments), len(catalogue.features))


def naive_vector(catalogue: Catalogue, payment: Payment, known: Sequence[Known]) -> NDArray[np.float32]:
    """The features of one payment, given what is known before it. Shape (features,), missing is NaN."""
    values: dict[str, float] = {}

    def value_of(operand: Operand | str) -> float:
        return values[operand] if isinstance(operand, str) else _operand(operand, payment, known)

    for feature in catalogue.features:
        value = value_of(feature.numerator)
        if feature.denominator is not None:
            value = _quotient(value, value_of(feature.denominator))
        values[feature.name] = value
    return np.array([values[name] for name in catalogue.names], dtype=np.float64).astype(np.float32)


def same_bits(left: NDArray[np.float32], right: NDArray[np.float32]) -> bool:
    """Whether two arrays of float32 hold the same bits, any NaN being like any other."""
    assert left.dtype == right.dtype == np.float32
    if left.shape != right.shape:
        return False
    both_missing = np.isnan(left) & np.isnan(right)
    same = np.ascontiguousarray(left).view(np.uint32) == np.ascontiguousarray(right).view(np.uint32)
    return bool((same | both_missing).all())


def differing(
    catalogue: Catalogue, got: NDArray[np.float32], wanted: NDArray[np.float32]
) -> Iterator[tuple[int, str, float, float]]:
    """(row, feature, got, wanted) for all that are not the same: what a failed test should show."""
    for row in range(len(wanted)):
        for column, name in enumerate(catalogue.names):
            if not same_bits(got[row, column : column + 1], wanted[row, column : column + 1]):
                yield row, name, float(got[row, column]), float(wanted[row, column])


def _operand(operand: Operand, payment: Payment, known: Sequence[Known]) -> float:
    if isinstance(operand, RequestValue):
        return float(_request_value(operand, payment))
    identity = payment.ids[operand.entity]
    if identity is None:
        return math.nan
    own = [k for k in known if k.payment.ids[operand.entity] == identity]
    if isinstance(operand, EntityRecency):
        return _recency(operand.recency, payment.time_ms, [k.payment.time_ms for k in own])
    return _windowed(operand, payment.time_ms, own)


def _request_value(value: RequestValue, payment: Payment) -> int:
    hour = payment.time_ms // HOUR_MS % 24
    # Day 0 was a Thursday, so days 2 and 3 of each week counted from it are its Saturday and Sunday.
    weekend = payment.time_ms // DAY_MS % 7 in (2, 3)
    return {
        RequestValue.AMOUNT: payment.amount,
        RequestValue.HOUR: hour,
        RequestValue.NIGHT: int(hour in range(7)),
        RequestValue.WEEKEND: int(weekend),
    }[value]


def _recency(recency: Recency, now_ms: int, times_ms: Sequence[int]) -> float:
    if not times_ms:
        return math.nan
    since_ms = max(times_ms) if recency is Recency.SINCE_LAST else min(times_ms)
    return max(0, now_ms - since_ms) / 1000


def _windowed(operand: WindowedMeasure, now_ms: int, own: Iterable[Known]) -> float:
    inside = [k for k in own if _holds(operand.window, now_ms, k.payment.time_ms)]
    amounts = [k.payment.amount for k in inside]
    match operand.measure:
        case Measure.COUNT:
            return float(len(inside))
        case Measure.AMOUNT_SUM:
            return float(sum(amounts))
        case Measure.AMOUNT_MAX:
            return float(max(amounts)) if amounts else math.nan
        case Measure.FRAUD_COUNT:
            return float(sum(k.is_fraud for k in inside))


def _holds(window: Window, now_ms: int, event_ms: int) -> bool:
    """Whether the tile of an event, the stretch [start, end) of time, is one of the window's."""
    start = event_ms - event_ms % window.hop_ms
    end = start + window.hop_ms
    if window.delay_ms == 0:
        # It touches (now - length, now].
        return start <= now_ms and end > now_ms - window.length_ms
    # The window ends with the last tile that lies wholly before now - delay, and is exactly `length` long.
    limit_ms = now_ms - window.delay_ms
    window_end = limit_ms - limit_ms % window.hop_ms
    return window_end - window.length_ms <= start and end <= window_end


def _quotient(numerator: float, denominator: float) -> float:
    return math.nan if denominator == 0 else numerator / denominator
