"""The values of a payment by the names of conditions and features: attributes, conditions, places."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import pandas as pd

from tests.parity.naive.codes import code_of
from tests.parity.naive.events import DECLARED_NAMES, DECLARED_NUMBERS, FIELDS, REFERENCE

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<": operator.lt,
}
MILLIONTH = math.pi / 180_000_000.0


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
        if self.field == "amount" and value < 0:
            return False
        return value is not None and bool(OPERATORS[self.operator](value, self.value))


class Attribute:
    """An attribute in a condition.

    `digits` of a number stand after the point, and None says that it is a moment; the names of events.py have theirs.
    """

    def __init__(self, name: str, digits: int | EllipsisType | None = ...) -> None:
        self.name = name
        self.is_number = name == "amount" or name in DECLARED_NUMBERS or digits is not ...
        self._digits = DECLARED_NUMBERS.get(name, 0) if isinstance(digits, EllipsisType) else digits

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
    def is_moment(self) -> bool:
        """Returns whether its numbers are ages."""
        return self._digits is None

    @property
    def parts(self) -> int:
        """Returns how many of its last digits make one of its unit; a moment is an age in ms, and its unit a second."""
        return 1000 if self._digits is None else 10**self._digits

    @property
    def told_as(self) -> str:
        """Returns the column that has its number."""
        return REFERENCE.get(self.name, self.name)

    def number(self, of: Mapping[str, Any]) -> int | None:
        """Returns the number of a payment, in units of its last digit."""
        value = of.get(self.told_as)
        if value is None or (self.name == "amount" and value < 0):
            return None
        if self._digits is None:
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
        return int(value) if self.is_number else code_of(self.name, value)


@dataclass(frozen=True)
class Coordinates:
    """A place: two fields in degrees."""

    name: str

    @property
    def latitude(self) -> Attribute:
        return self.attributes[0]

    @property
    def attributes(self) -> tuple[Attribute, Attribute]:
        latitude, longitude = (Attribute(f"{self.name}_{side}", 6) for side in ("latitude", "longitude"))
        return latitude, longitude

    def radians(self, of: Mapping[str, Any]) -> tuple[float, float] | None:
        latitude, longitude = (attribute.number(of) for attribute in self.attributes)
        return None if latitude is None or longitude is None else (latitude * MILLIONTH, longitude * MILLIONTH)


Where = Condition | Attribute | None
ATTRIBUTES = {name: Attribute(name) for name in ("amount", "amount_minor", *FIELDS, *DECLARED_NAMES)}
PLACES_DECLARED = {name: Coordinates(name) for name in ("home", "shop")}


def condition_of(where: Where) -> Condition | None:
    return Condition(where.name, "==", True) if isinstance(where, Attribute) else where
