"""Features of the payment itself."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tests.parity.naive.attributes import Attribute, Condition, Coordinates, condition_of
from tests.parity.naive.events import Payment
from tests.parity.naive.feature import Feature
from tests.parity.naive.places import haversine_km
from tests.parity.naive.windows import Moment, duration_ms


def named(now: Payment) -> dict[str, Any]:
    """Returns a payment by the names of a table's columns."""
    return {**now.fields, "time_ms": now.time_ms, "amount": now.amount, "amount_minor": now.amount_minor}


class request:  # noqa: N801 - as in the language it repeats
    @staticmethod
    def amount(name: str) -> Feature:
        return Feature(name, lambda moment: moment.now.amount if moment.now.amount >= 0 else math.nan)

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
            above = [limit for limit in limits if limit > moment.now.amount >= 0]
            return (min(above) - moment.now.amount) / min(above) if above else math.nan

        return Feature(name, value)

    @staticmethod
    def holds(name: str, condition: Condition | Attribute) -> Feature:
        asked = condition_of(condition)
        assert asked is not None

        def value(moment: Moment) -> float:
            now = moment.now
            mine = {**now.fields, "amount": now.amount, "amount_minor": now.amount_minor}.get(asked.field)
            is_known = mine is not None and (asked.field != "amount" or now.amount >= 0)
            return float(asked.holds(mine)) if is_known else math.nan

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
            number = of.number(named(moment.now))
            return math.nan if number is None else number / of.parts

        return Feature(name, value)

    @staticmethod
    def seconds_since(name: str, moment: Attribute, *, most: str = "") -> Feature:
        age = request.number(name, moment)
        return replace(age, value=lambda now: within(age.value(now), most), grows=not most)

    @staticmethod
    def equal(name: str, one: Attribute, other: Attribute) -> Feature:
        def value(moment: Moment) -> float:
            left, right = moment.now.fields.get(one.name), moment.now.fields.get(other.name)
            return math.nan if left is None or right is None else float(left == right)

        return Feature(name, value)

    @staticmethod
    def distance_km(name: str, one: Coordinates, other: Coordinates) -> Feature:
        return Feature(
            name, lambda moment: haversine_km(one.radians(named(moment.now)), other.radians(named(moment.now)))
        )


def within(seconds: float, most: str) -> float:
    """Returns seconds from -most to most; NaN stays NaN."""
    limit = duration_ms(most) / 1000 if most else math.inf
    return seconds if abs(seconds) <= limit or math.isnan(seconds) else math.copysign(limit, seconds)


def _local(payment: Payment) -> datetime.datetime:
    """Returns the payer's local time if the payment has its offset, else UTC."""
    offset = payment.fields.get("utc_offset_minutes")
    known = isinstance(offset, int) and abs(offset) < 24 * 60
    moment = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(milliseconds=payment.time_ms)
    return moment + datetime.timedelta(minutes=offset) if known else moment  # type: ignore[arg-type]
