"""The words a feature catalogue is written in, and the checks on what is written.

A catalogue is a list of features. Each is one of

* a *request feature*: from the payment itself (`request.hour("hour")`);
* an *entity feature*: from what happened before to the payment's card, merchant or device, over a window
  (`card.count("card_count_1d", "1d")`);
* a *ratio* of two features declared earlier.

Windows are sawtooth windows. Time is cut into tiles of one `hop`; a window of length L seen at time t holds
every whole tile that touches (t - L, t], so it reaches back between L and L + hop. A window with a `delay`
holds only tiles that lie wholly before t - delay: it is exactly L long and ends between `delay` and
`delay + hop` ago, which is what a label that takes `delay` to arrive needs.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from schemas.errors import Misconfigured

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

_UNITS_MS = {"m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS}
_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")
# An entity's name begins the keys of its profiles, and these begin those of other records beside them.
_TAKEN = frozenset({"payment", "progress"})


class Measure(enum.Enum):
    """What a tile keeps about its events. All are integers whose order of arrival cannot matter."""

    COUNT = "count"
    AMOUNT_SUM = "amount_sum"
    AMOUNT_MAX = "amount_max"
    FRAUD_COUNT = "fraud_count"


class RequestValue(enum.Enum):
    """What the kernel can compute from the payment alone."""

    AMOUNT = "amount"
    HOUR = "hour"
    NIGHT = "night"
    WEEKEND = "weekend"


class Recency(enum.Enum):
    """What an entity's profile knows besides its tiles."""

    SINCE_LAST = "seconds_since_last"
    SINCE_FIRST = "seconds_since_first"


@dataclass(frozen=True)
class Window:
    """A sawtooth window in whole hops: tiles of age `newest_age` to `oldest_age`, the current tile being 0."""

    length_ms: int
    hop_ms: int
    delay_ms: int

    @property
    def newest_age(self) -> int:
        return self.delay_ms // self.hop_ms + 1 if self.delay_ms else 0

    @property
    def oldest_age(self) -> int:
        return (self.delay_ms + self.length_ms) // self.hop_ms


@dataclass(frozen=True)
class WindowedMeasure:
    """One measure of one entity over one window: what roll-up computes."""

    entity: str
    measure: Measure
    window: Window


@dataclass(frozen=True)
class EntityRecency:
    entity: str
    recency: Recency


Operand = WindowedMeasure | EntityRecency | RequestValue


@dataclass(frozen=True)
class Feature:
    """One named number of the vector: `numerator`, or `numerator / denominator` where there is one.

    Operands are roll-up results, request values, or the names of features declared earlier. A quotient with a
    denominator of zero, and anything computed from a missing operand, is missing (NaN).
    """

    name: str
    meaning: str
    unit: str
    numerator: Operand | str
    denominator: Operand | str | None = None


@dataclass(frozen=True)
class Entity:
    """Something payments have in common. `key` is the payment field that names it; absent means no entity."""

    name: str
    key: str

    def count(self, name: str, window: str, *, delay: str = "", hop: str = "") -> Feature:
        """Payments in the window."""
        meaning = f"payments of the {self.name} in {_spoken(window, delay)}"
        return Feature(name, meaning, "payments", self._over(Measure.COUNT, window, delay, hop))

    def amount_mean(self, name: str, window: str, *, hop: str = "") -> Feature:
        """Mean amount of the payments in the window; missing when there are none."""
        total = self._over(Measure.AMOUNT_SUM, window, "", hop)
        meaning = f"mean amount of the {self.name} in {_spoken(window)}"
        return Feature(name, meaning, "minor units", total, self._over(Measure.COUNT, window, "", hop))

    def amount_sum(self, name: str, window: str, *, hop: str = "") -> Feature:
        """Sum of the amounts in the window."""
        meaning = f"total amount of the {self.name} in {_spoken(window)}"
        return Feature(name, meaning, "minor units", self._over(Measure.AMOUNT_SUM, window, "", hop))

    def amount_max(self, name: str, window: str, *, hop: str = "") -> Feature:
        """Largest amount in the window; missing when there are none."""
        meaning = f"largest amount of the {self.name} in {_spoken(window)}"
        return Feature(name, meaning, "minor units", self._over(Measure.AMOUNT_MAX, window, "", hop))

    def fraud_share(self, name: str, window: str, *, delay: str, hop: str = "") -> Feature:
        """Share of the window's payments known to be fraud; missing when there were no payments."""
        frauds = self._over(Measure.FRAUD_COUNT, window, delay, hop)
        meaning = f"share of fraud of the {self.name} in {_spoken(window, delay)}"
        return Feature(name, meaning, "share", frauds, self._over(Measure.COUNT, window, delay, hop))

    def seconds_since_last(self, name: str) -> Feature:
        """Seconds since the newest payment; 0 when that is later than this one; missing when there is none."""
        meaning = f"time since the last payment of the {self.name}"
        return Feature(name, meaning, "seconds", EntityRecency(self.name, Recency.SINCE_LAST))

    def seconds_since_first(self, name: str) -> Feature:
        """Seconds since the oldest payment ever; 0 when that is later than this one; missing when there is none."""
        meaning = f"time since the first payment of the {self.name}"
        return Feature(name, meaning, "seconds", EntityRecency(self.name, Recency.SINCE_FIRST))

    def _over(self, measure: Measure, window: str, delay: str, hop: str) -> WindowedMeasure:
        return WindowedMeasure(self.name, measure, _window(window, delay, hop))


class request:  # noqa: N801 - reads as a word of the language, not as a class
    """Features of the payment itself."""

    @staticmethod
    def amount(name: str) -> Feature:
        """The amount in minor units of the reference currency."""
        return Feature(name, "amount in the reference currency", "minor units", RequestValue.AMOUNT)

    @staticmethod
    def hour(name: str) -> Feature:
        """Hour of the day, UTC, 0 to 23."""
        return Feature(name, "hour of the day, UTC", "hours", RequestValue.HOUR)

    @staticmethod
    def night(name: str) -> Feature:
        """1 from 00:00 to 06:59 UTC, else 0."""
        return Feature(name, "whether it is night (hour 0 to 6), UTC", "0 or 1", RequestValue.NIGHT)

    @staticmethod
    def weekend(name: str) -> Feature:
        """1 on Saturday and Sunday UTC, else 0."""
        return Feature(name, "whether it is Saturday or Sunday, UTC", "0 or 1", RequestValue.WEEKEND)


def ratio(name: str, numerator: str, denominator: str) -> Feature:
    """One earlier feature over another; missing when either is missing or the second is zero."""
    return Feature(name, f"{numerator} over {denominator}", "ratio", numerator, denominator)


@dataclass(frozen=True)
class Catalogue:
    """Entities and features, checked. The order of `features` is the order of the vector."""

    entities: Sequence[Entity]
    features: Sequence[Feature]
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(feature.name for feature in self.features))
        _check_entities(self.entities)
        _check_features(self.features, {entity.name for entity in self.entities})


def _check_entities(entities: Sequence[Entity]) -> None:
    names = [entity.name for entity in entities]
    if not names:
        raise Misconfigured("feature catalogue: it declares no entity")
    for name in names:
        if not _NAME.match(name):
            raise Misconfigured(f"feature catalogue: the entity {name!r} is not a lower_case name")
        if name in _TAKEN:
            raise Misconfigured(f"feature catalogue: an entity cannot be called {name!r}")
    if len(set(names)) != len(names):
        raise Misconfigured(f"feature catalogue: an entity is declared twice: {_first_repeated(names)!r}")


def _check_features(features: Sequence[Feature], entities: set[str]) -> None:
    if not features:
        raise Misconfigured("feature catalogue: it declares no feature")
    seen: set[str] = set()
    for feature in features:
        if not _NAME.match(feature.name):
            raise Misconfigured(f"feature catalogue: {feature.name!r} is not a lower_case name")
        if feature.name in seen:
            raise Misconfigured(f"feature catalogue: {feature.name!r} is declared twice")
        for operand in (feature.numerator, feature.denominator):
            _check_operand(feature.name, operand, entities, seen)
        seen.add(feature.name)


def _check_operand(name: str, operand: Operand | str | None, entities: set[str], seen: set[str]) -> None:
    if isinstance(operand, str) and operand not in seen:
        raise Misconfigured(f"feature catalogue: {name!r} uses {operand!r}, which is not declared before it")
    if isinstance(operand, WindowedMeasure | EntityRecency) and operand.entity not in entities:
        raise Misconfigured(f"feature catalogue: {name!r} is of the undeclared entity {operand.entity!r}")


def _first_repeated(names: Sequence[str]) -> str:
    return next(name for index, name in enumerate(names) if name in names[:index])


def _window(length: str, delay: str, hop: str) -> Window:
    length_ms, delay_ms = _duration_ms(length), _duration_ms(delay) if delay else 0
    hop_ms = _duration_ms(hop) if hop else _default_hop_ms(length_ms, delay_ms)
    if length_ms % hop_ms or delay_ms % hop_ms:
        delayed = f" and delay {delay!r}" if delay else ""
        raise Misconfigured(f"feature catalogue: window {length!r}{delayed} must be whole hops of {_in_units(hop_ms)}")
    return Window(length_ms, hop_ms, delay_ms)


def _default_hop_ms(length_ms: int, delay_ms: int) -> int:
    """At most a quarter of the window, of few distinct hops, so that features share their tiles.

    Never under a minute, and with a delay never under six hours: a table reaches over the delay too.
    """
    if length_ms < 4 * HOUR_MS and not delay_ms:
        return MINUTE_MS
    if length_ms <= DAY_MS and not delay_ms:
        return HOUR_MS
    return 6 * HOUR_MS if length_ms <= 7 * DAY_MS else DAY_MS


def _duration_ms(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,3}[mhd]", text):
        raise Misconfigured(f"feature catalogue: {text!r} is not a duration such as 10m, 1h or 30d")
    return int(text[:-1]) * _UNITS_MS[text[-1]]


def _in_units(duration_ms: int) -> str:
    unit = next(unit for unit in "dhm" if duration_ms % _UNITS_MS[unit] == 0)
    return f"{duration_ms // _UNITS_MS[unit]}{unit}"


def _spoken(window: str, delay: str = "") -> str:
    return f"the {window} that ended {delay} ago" if delay else f"the last {window}"
