"""The words a feature catalogue is written in, and the checks on what is written.

A catalogue is a list of features. Each is one of

* a *request feature*: from the payment itself (`request.hour("hour")`);
* an *entity feature*: from what happened before to the payment's card, merchant, device, or card at this merchant
  (`card.count("card_count_1d", "1d")`);
* a feature *made of earlier ones* (`ratio`).

Windows are sawtooth windows. Time is cut into tiles of one `hop`; a window of length L seen at time t holds
every whole tile that touches (t - L, t], so it reaches back between L and L + hop: what it counts too much is at
most what happened in one hop. A window with a `delay` holds only tiles that lie wholly before t - delay: it is
exactly L long and ends between `delay` and `delay + hop` ago, which is what a label that takes `delay` to arrive
needs. Without a `hop` it is at most a quarter of the window.

A payment never counts itself, unless a feature says `including_this`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import (
    AMOUNT_MAX,
    ATTRIBUTES,
    Attribute,
    AttributeKind,
    Condition,
    amount,
    country,
)
from paywarden.features.catalogue.expressions import (
    Column,
    Derived,
    EntityRecency,
    Expression,
    Feature,
    Measure,
    Operation,
    Recency,
    Recollection,
    Reduction,
    Remembered,
    WindowedMeasure,
    stored_values,
)
from paywarden.features.catalogue.windows import HOUR_MS, duration_ms, line_of_caller, window_of, wrong, wrong_at
from paywarden.schemas.errors import Misconfigured

# What a card does is seen in its last few dozen partners; every one more costs six bytes a profile.
MEMORY_MAX = 64

# Each is a bit in the sets that a model asks about: models take whole numbers up to 4,095, and one is for all others.
CATEGORIES_MAX = 4095
_LISTED_IN_WORDS_MAX = 8

# Fields that every payment has.
_ALWAYS_THERE = frozenset({"card_id", "merchant_id"})
_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")
# An entity's name begins the keys of its profiles, and these begin those of other records beside them.
BESIDE_PROFILES = ("payment", "progress")


@dataclass(frozen=True)
class Entity:
    """Something payments have in common. `key` is the payment field that names it, or several that do together.

    A payment that lacks one of them has no such entity: its features are missing.
    """

    name: str
    key: str | tuple[str, ...]
    line: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "line", line_of_caller())

    @property
    def keys(self) -> tuple[str, ...]:
        """The payment's fields that name it, in order."""
        return (self.key,) if isinstance(self.key, str) else self.key

    # How many, how often.

    def count(
        self,
        name: str,
        window: str,
        *,
        where: Condition | Attribute | None = None,
        delay: str = "",
        hop: str = "",
        including_this: bool = False,
    ) -> Feature:
        """Payments in the window; with `including_this`, this one too."""
        count: Expression = self._over(name, Column(Measure.COUNT, _condition(name, where)), window, delay, hop)
        _check_including(name, including_this, where)
        if including_this:
            count = Derived(Operation.ADD, (count, Derived(Operation.NUMBER, numbers=(1,))))
        meaning = f"payments{_spoken_where(where)} of the {self.name} in {_spoken(window, delay)}"
        return self._feature(name, count, meaning + _spoken_including(including_this), "payments", window=window)

    def rate(self, name: str, window: str, *, where: Condition | Attribute | None = None, hop: str = "") -> Feature:
        """Payments an hour over the window."""
        length_ms = window_of(name, window, "", hop).length_ms
        count = self._over(name, Column(Measure.COUNT, _condition(name, where)), window, "", hop)
        value = Derived(Operation.SCALE, (count,), (HOUR_MS, length_ms))
        meaning = f"payments{_spoken_where(where)} an hour of the {self.name} in {_spoken(window)}"
        return self._feature(name, value, meaning, "payments an hour", window=window)

    def share(self, name: str, window: str, *, of: Condition | Attribute, delay: str = "", hop: str = "") -> Feature:
        """Share of the window's payments for which a condition holds; missing when there were none."""
        held = self._over(name, Column(Measure.COUNT, _condition(name, of)), window, delay, hop)
        count = self._over(name, Column(Measure.COUNT), window, delay, hop)
        meaning = f"share{_spoken_where(of)} of the {self.name}'s payments in {_spoken(window, delay)}"
        return self._feature(name, _quotient(held, count), meaning, "share", "no payments in the window", window)

    def count_decayed(
        self, name: str, half_life: str, window: str, *, where: Condition | Attribute | None = None, hop: str = ""
    ) -> Feature:
        """Payments in the window, each counting half as much for every half-life of its tile's age."""
        column = Column(Measure.COUNT, _condition(name, where))
        value = self._decayed(name, column, half_life, window, hop)
        meaning = f"payments{_spoken_where(where)} of the {self.name} in {_spoken(window)}, halved every {half_life}"
        return self._feature(name, value, meaning, "payments", window=window)

    def count_trend(self, name: str, short: str, long: str) -> Feature:
        """Rate of payments over the short window against the long one: 1 is as ever; missing after a long silence."""
        column = Column(Measure.COUNT)
        recent, usual = self._over(name, column, short, "", ""), self._over(name, column, long, "", "")
        if recent.window.length_ms >= usual.window.length_ms:
            raise wrong(name, f"the first window, {short!r}, must be shorter than the second, {long!r}")
        share = _quotient(recent, usual)
        value = Derived(Operation.SCALE, (share,), (usual.window.length_ms, recent.window.length_ms))
        meaning = f"how often the {self.name} pays in {_spoken(short)}, against {_spoken(long)}"
        return self._feature(name, value, meaning, "ratio", "no payments in the long window", f"{short} : {long}")

    def distinct(
        self,
        name: str,
        of: Attribute,
        window: str,
        *,
        bits: int = 64,
        where: Condition | Attribute | None = None,
        hop: str = "",
    ) -> Feature:
        """How many different values of an attribute, by linear counting in a bitmap of `bits`.

        With n values in m bits the standard error is sqrt(m (e^(n/m) - n/m - 1)) / n: under 12 % up to n = 64 for
        64 bits, under 4 % up to n = 1024 for 1024. The result is at most m ln m.
        """
        if bits not in (64, 128, 256, 512, 1024):
            raise wrong(name, f"bits must be 64, 128, 256, 512 or 1024, got {bits!r}")
        column = Column(Measure.DISTINCT_BITS, _condition(name, where), _counted(name, of), bits // 64)
        value = self._over(name, column, window, "", hop, Reduction.UNION)
        meaning = (
            f"different values of {of.name} among the {self.name}'s payments{_spoken_where(where)} in {_spoken(window)}"
        )
        return self._feature(name, value, meaning, f"values, ± {distinct_error(bits, bits):.0%}", window=window)

    def entropy(self, name: str, of: Attribute, window: str, *, buckets: int = 8, hop: str = "") -> Feature:
        """How evenly payments spread over an attribute's values, hashed to `buckets`: 0 bits when all are alike."""
        counts = self._buckets(name, of, window, buckets, hop)
        value = Derived(Operation.ENTROPY, (counts,), (buckets,))
        meaning = f"how evenly the {self.name} spreads over {of.name} in {_spoken(window)}"
        return self._feature(name, value, meaning, f"bits, over {buckets} buckets", "no payments in the window", window)

    def top_share(self, name: str, of: Attribute, window: str, *, buckets: int = 8, hop: str = "") -> Feature:
        """Share of an attribute's commonest value, hashed to `buckets`: values that share one count together."""
        counts = self._buckets(name, of, window, buckets, hop)
        value = Derived(Operation.TOP_SHARE, (counts,), (buckets,))
        meaning = f"share of the {self.name}'s commonest {of.name} in {_spoken(window)}"
        return self._feature(
            name, value, meaning, f"share, over {buckets} buckets", "no payments in the window", window
        )

    # How much. Amounts are in minor units of the reference currency.

    def amount_sum(
        self, name: str, window: str, *, where: Condition | Attribute | None = None, hop: str = ""
    ) -> Feature:
        """Sum of the amounts in the window."""
        value = self._over(name, Column(Measure.AMOUNT_SUM, _condition(name, where)), window, "", hop)
        meaning = f"total amount{_spoken_where(where)} of the {self.name} in {_spoken(window)}"
        return self._feature(name, value, meaning, "minor units", window=window)

    def amount_mean(
        self,
        name: str,
        window: str,
        *,
        where: Condition | Attribute | None = None,
        hop: str = "",
        including_this: bool = False,
    ) -> Feature:
        """Mean amount of the payments in the window, with `including_this` of this one too; missing of none."""
        condition = _condition(name, where)
        _check_including(name, including_this, where)
        total: Expression = self._over(name, Column(Measure.AMOUNT_SUM, condition), window, "", hop)
        count: Expression = self._over(name, Column(Measure.COUNT, condition), window, "", hop)
        if including_this:
            total = Derived(Operation.ADD, (total, _attribute_value(amount)))
            count = Derived(Operation.ADD, (count, Derived(Operation.NUMBER, numbers=(1,))))
        meaning = f"mean amount{_spoken_where(where)} of the {self.name} in {_spoken(window)}"
        missing = "" if including_this else "no payments in the window"
        meaning += _spoken_including(including_this)
        return self._feature(name, _quotient(total, count), meaning, "minor units", missing, window)

    def amount_std(
        self, name: str, window: str, *, where: Condition | Attribute | None = None, hop: str = ""
    ) -> Feature:
        """Standard deviation of the amounts in the window (of a sample: n - 1); missing of fewer than two."""
        value = self._deviation(name, _condition(name, where), window, hop)
        meaning = f"standard deviation of the amount{_spoken_where(where)} of the {self.name} in {_spoken(window)}"
        return self._feature(name, value, meaning, "minor units", "fewer than two payments in the window", window)

    def amount_zscore(
        self, name: str, window: str, *, where: Condition | Attribute | None = None, hop: str = ""
    ) -> Feature:
        """By how many standard deviations of the window's amounts this one is above their mean."""
        condition = _condition(name, where)
        total = self._over(name, Column(Measure.AMOUNT_SUM, condition), window, "", hop)
        count = self._over(name, Column(Measure.COUNT, condition), window, "", hop)
        deviation = self._deviation(name, condition, window, hop)
        value = Derived(Operation.STANDARD_SCORE, (_attribute_value(amount), _quotient(total, count), deviation))
        meaning = f"how far the amount is from the mean{_spoken_where(where)} of the {self.name} in {_spoken(window)}"
        missing = "fewer than two payments in the window, or all alike"
        return self._feature(name, value, meaning, "standard deviations", missing, window)

    def amount_max(
        self, name: str, window: str, *, where: Condition | Attribute | None = None, hop: str = ""
    ) -> Feature:
        """Largest amount in the window; missing when there are none."""
        column = Column(Measure.AMOUNT_MAX, _condition(name, where))
        value = self._over(name, column, window, "", hop, Reduction.LARGEST)
        meaning = f"largest amount{_spoken_where(where)} of the {self.name} in {_spoken(window)}"
        return self._feature(name, value, meaning, "minor units", "no payments in the window", window)

    def amount_min(
        self, name: str, window: str, *, where: Condition | Attribute | None = None, hop: str = ""
    ) -> Feature:
        """Smallest amount in the window; missing when there are none."""
        column = Column(Measure.AMOUNT_MIN, _condition(name, where))
        value = self._over(name, column, window, "", hop, Reduction.SMALLEST)
        meaning = f"smallest amount{_spoken_where(where)} of the {self.name} in {_spoken(window)}"
        return self._feature(name, value, meaning, "minor units", "no payments in the window", window)

    def amount_decayed(self, name: str, half_life: str, window: str, *, hop: str = "") -> Feature:
        """Sum of the window's amounts, each counting half as much for every half-life of its tile's age."""
        value = self._decayed(name, Column(Measure.AMOUNT_SUM), half_life, window, hop)
        meaning = f"total amount of the {self.name} in {_spoken(window)}, halved every {half_life}"
        return self._feature(name, value, meaning, "minor units", window=window)

    # Known fraud. Labels come days later: `delay` is how old a payment must be for its label to count as known.

    def fraud_count(
        self, name: str, window: str, *, delay: str, where: Condition | Attribute | None = None, hop: str = ""
    ) -> Feature:
        """The window's payments that are known to be fraud."""
        value = self._over(name, Column(Measure.FRAUD_COUNT, _condition(name, where)), window, delay, hop)
        meaning = f"frauds{_spoken_where(where)} of the {self.name} in {_spoken(window, delay)}"
        return self._feature(name, value, meaning, "payments", window=window)

    def fraud_share(
        self, name: str, window: str, *, delay: str, where: Condition | Attribute | None = None, hop: str = ""
    ) -> Feature:
        """Share of the window's payments known to be fraud; missing when there were no payments."""
        condition = _condition(name, where)
        frauds = self._over(name, Column(Measure.FRAUD_COUNT, condition), window, delay, hop)
        count = self._over(name, Column(Measure.COUNT, condition), window, delay, hop)
        meaning = f"share of fraud{_spoken_where(where)} of the {self.name} in {_spoken(window, delay)}"
        return self._feature(name, _quotient(frauds, count), meaning, "share", "no payments in the window", window)

    def fraud_share_decayed(self, name: str, half_life: str, window: str, *, delay: str, hop: str = "") -> Feature:
        """`fraud_share` with payments counting half as much for every half-life of their tile's age."""
        frauds = self._decayed(name, Column(Measure.FRAUD_COUNT), half_life, window, hop, delay)
        count = self._decayed(name, Column(Measure.COUNT), half_life, window, hop, delay)
        meaning = f"share of fraud of the {self.name} in {_spoken(window, delay)}, halved every {half_life}"
        return self._feature(name, _quotient(frauds, count), meaning, "share", "no payments in the window", window)

    def seconds_since_fraud(self, name: str, window: str, *, delay: str, hop: str = "") -> Feature:
        """Age of the newest tile of the window that holds a known fraud, in whole hops."""
        value = self._over(name, Column(Measure.FRAUD_COUNT), window, delay, hop, Reduction.NEWEST)
        meaning = f"time since the last fraud of the {self.name} in {_spoken(window, delay)}"
        return self._feature(name, value, meaning, "seconds", "no known fraud in the window", window)

    def seconds_since_first_fraud(self, name: str, window: str, *, delay: str, hop: str = "") -> Feature:
        """Age of the oldest tile of the window that holds a known fraud, in whole hops."""
        value = self._over(name, Column(Measure.FRAUD_COUNT), window, delay, hop, Reduction.OLDEST)
        meaning = f"time since the first fraud of the {self.name} in {_spoken(window, delay)}"
        return self._feature(name, value, meaning, "seconds", "no known fraud in the window", window)

    def seconds_since_genuine(self, name: str, window: str, *, delay: str, hop: str = "") -> Feature:
        """Age of the newest tile of the window that holds a payment not known to be fraud, in whole hops."""
        value = self._fraud_beside(name, window, delay, hop, Reduction.NEWEST_OTHER)
        meaning = f"time since the last payment of the {self.name} not known as fraud in {_spoken(window, delay)}"
        return self._feature(name, value, meaning, "seconds", "no such payment in the window", window)

    def fraud_streak(self, name: str, window: str, *, delay: str, hop: str = "") -> Feature:
        """Known frauds of the window since the newest tile that holds a payment not known to be fraud.

        A compromised terminal has a streak: everything is fraud, until it is found out.
        """
        value = self._fraud_beside(name, window, delay, hop, Reduction.STREAK)
        meaning = f"frauds of the {self.name} in a row, up to the end of {_spoken(window, delay)}"
        return self._feature(name, value, meaning, "payments", window=window)

    def fraud_streak_seconds(self, name: str, window: str, *, delay: str, hop: str = "") -> Feature:
        """Age of the oldest tile with a fraud of that streak, in whole hops; missing when there is no streak."""
        value = self._fraud_beside(name, window, delay, hop, Reduction.STREAK_AGE)
        meaning = f"how long ago the {self.name}'s frauds in a row began, in {_spoken(window, delay)}"
        return self._feature(name, value, meaning, "seconds", "no frauds in a row", window)

    def fraud_streak_amount_mean(self, name: str, window: str, *, delay: str, hop: str = "") -> Feature:
        """Mean amount of that streak's frauds; missing when there is no streak.

        Where all is fraud the amounts are as ever; a streak of unusual amounts is about the cards, not the place.
        """
        total = self._fraud_beside(name, window, delay, hop, Reduction.STREAK_SUM, Column(Measure.FRAUD_AMOUNT))
        count = self._fraud_beside(name, window, delay, hop, Reduction.STREAK)
        meaning = f"mean amount of the {self.name}'s frauds in a row, up to the end of {_spoken(window, delay)}"
        return self._feature(name, _quotient(total, count), meaning, "minor units", "no frauds in a row", window)

    # When, and what before.

    def seconds_since_last(self, name: str) -> Feature:
        """Seconds since the newest payment; 0 when that is later than this one; missing when there is none."""
        meaning = f"time since the last payment of the {self.name}"
        value = EntityRecency(self.name, Recency.SINCE_LAST)
        return self._feature(name, value, meaning, "seconds", f"first payment of the {self.name}")

    def seconds_since_first(self, name: str) -> Feature:
        """Seconds since the oldest payment ever; 0 when that is later than this one; missing when there is none."""
        meaning = f"time since the first payment of the {self.name}"
        value = EntityRecency(self.name, Recency.SINCE_FIRST)
        return self._feature(name, value, meaning, "seconds", f"first payment of the {self.name}")

    def last_amount(self, name: str) -> Feature:
        """The amount of the payment before; of payments of one millisecond, the largest."""
        value = Remembered(self.name, amount.column, 1, Recollection.LAST_VALUE)
        meaning = f"amount of the {self.name}'s payment before"
        return self._feature(name, value, meaning, "minor units", f"first payment of the {self.name}")

    def is_new(self, name: str, attribute: Attribute, *, among: int = 32) -> Feature:
        """1 when this value of an attribute is not among the latest `among` different ones, else 0."""
        value = self._remembered(name, attribute, among, Recollection.IS_NEW)
        meaning = f"whether {attribute.name} is none of the {self.name}'s latest {among}"
        return self._feature(name, value, meaning, "0 or 1", f"the payment has no {attribute.name}")

    def seconds_since_same(self, name: str, attribute: Attribute, *, among: int = 32) -> Feature:
        """Seconds since the last payment with this value of an attribute, if it is among the latest `among`."""
        value = self._remembered(name, attribute, among, Recollection.SINCE_SAME)
        meaning = f"time since the {self.name}'s last payment with this {attribute.name}"
        return self._feature(name, value, meaning, "seconds", f"{attribute.name} is none of the latest {among}")

    def travel_kmh(self, name: str, *, among: int = 8) -> Feature:
        """Speed of a journey from the last payment's country to this one's, between the countries' middles.

        0 in the same country; a journey is taken to last a minute at least. Above 1,000 km/h nobody travels.
        """
        value = self._remembered(name, country, among, Recollection.TRAVEL_KMH)
        meaning = f"how fast the {self.name} came here from the country of its last payment"
        return self._feature(name, value, meaning, "km/h", "a country is not known")

    def _feature(
        self, name: str, value: Expression, meaning: str, unit: str, missing: str = "", window: str = ""
    ) -> Feature:
        optional = " or ".join(key for key in self.keys if key not in _ALWAYS_THERE)
        reasons = [reason for reason in (missing, optional and f"the payment has no {optional}") if reason]
        missing = "; ".join(reasons) or "never"
        return Feature(name, value, meaning, unit, missing, self.name, window, line_of_caller())

    def _over(
        self,
        name: str,
        column: Column,
        window: str,
        delay: str,
        hop: str,
        reduction: Reduction = Reduction.SUM,
    ) -> WindowedMeasure:
        return WindowedMeasure(self.name, column, window_of(name, window, delay, hop), reduction)

    def _decayed(
        self, name: str, column: Column, half_life: str, window: str, hop: str, delay: str = ""
    ) -> WindowedMeasure:
        over = window_of(name, window, delay, hop)
        return WindowedMeasure(self.name, column, over, Reduction.DECAYED, duration_ms(name, half_life))

    def _fraud_beside(
        self, name: str, window: str, delay: str, hop: str, reduction: Reduction, summed: Column | None = None
    ) -> WindowedMeasure:
        over = window_of(name, window, delay, hop)
        fraud, payments = Column(Measure.FRAUD_COUNT), Column(Measure.COUNT)
        return WindowedMeasure(self.name, fraud, over, reduction, beside=payments, summed=summed)

    def _deviation(self, name: str, condition: Condition | None, window: str, hop: str) -> Derived:
        measures = (Measure.COUNT, Measure.AMOUNT_SUM, Measure.SQUARES_LOW, Measure.SQUARES_HIGH)
        sums = tuple(self._over(name, Column(measure, condition), window, "", hop) for measure in measures)
        return Derived(Operation.DEVIATION, sums)

    def _buckets(self, name: str, of: Attribute, window: str, buckets: int, hop: str) -> WindowedMeasure:
        if buckets not in (2, 4, 8, 16, 32):
            raise wrong(name, f"buckets must be 2, 4, 8, 16 or 32, got {buckets!r}")
        column = Column(Measure.BUCKET_COUNTS, None, _counted(name, of), buckets)
        return self._over(name, column, window, "", hop)

    def _remembered(self, name: str, attribute: Attribute, among: int, recollection: Recollection) -> Remembered:
        if not 1 <= among <= MEMORY_MAX:
            raise wrong(name, f"`among` must be 1 to {MEMORY_MAX}, got {among!r}")
        return Remembered(self.name, _counted(name, attribute), among, recollection)


class request:  # noqa: N801 - reads as a word of the language, not as a class
    """Features of the payment itself. Hours and days are the payer's where the payment has its UTC offset, else UTC."""

    @staticmethod
    def amount(name: str) -> Feature:
        """The amount in minor units of the reference currency."""
        return _of_request(name, _attribute_value(amount), "amount in the reference currency", "minor units")

    @staticmethod
    def hour(name: str) -> Feature:
        """Hour of the day, 0 to 23."""
        return _of_request(name, Derived(Operation.HOUR), "hour of the day, local", "hours")

    @staticmethod
    def night(name: str) -> Feature:
        """1 from 00:00 to 06:59, else 0."""
        return _of_request(name, Derived(Operation.NIGHT), "whether it is night (hour 0 to 6), local", "0 or 1")

    @staticmethod
    def weekend(name: str) -> Feature:
        """1 on Saturday and Sunday, else 0."""
        return _of_request(name, Derived(Operation.WEEKEND), "whether it is Saturday or Sunday, local", "0 or 1")

    @staticmethod
    def weekday(name: str) -> Feature:
        """Day of the week: 0 is Monday."""
        return _of_request(name, Derived(Operation.WEEKDAY), "day of the week, local, Monday is 0", "days")

    @staticmethod
    def round_zeros(name: str) -> Feature:
        """How round the amount is: decimal zeros at the end of it in minor units of its own currency."""
        meaning = "zeros at the end of the amount in its own currency"
        return _of_request(name, Derived(Operation.TRAILING_ZEROS), meaning, "digits")

    @staticmethod
    def below_limit(name: str, limits: Sequence[int]) -> Feature:
        """How far the amount is below the next of these limits, as a share of the limit: 0.01 for 99 of 100.

        Limits are minor units of the reference currency, ascending. Missing at and above the last.
        """
        are_amounts = bool(limits) and all(type(limit) is int and 0 < limit <= AMOUNT_MAX for limit in limits)
        if not are_amounts or list(limits) != sorted(set(limits)):
            raise wrong(name, f"limits must be amounts above 0, each larger than the one before, got {limits!r}")
        value = Derived(Operation.BELOW_LIMIT, numbers=tuple(limits))
        spoken = ", ".join(str(limit) for limit in limits)
        meaning = f"how far the amount is below the next of {spoken}"
        return _of_request(name, value, meaning, "share", "the amount is at or above the last limit")

    @staticmethod
    def holds(name: str, condition: Condition | Attribute) -> Feature:
        """1 when a condition holds for the payment, else 0; missing when it lacks the attribute."""
        held = _condition(name, condition)
        assert held is not None
        value = Derived(Operation.HOLDS, numbers=(held.column, held.operator, held.value))
        missing = f"the payment has no {ATTRIBUTES[held.column].name}"
        return _of_request(name, value, f"whether {held.text}", "0 or 1", missing)

    @staticmethod
    def category(name: str, attribute: Attribute, among: Sequence[str]) -> Feature:
        """Which of the listed values an attribute has: 0 for the first. Any other value is `len(among)`.

        A name for something, no amount of it: to be named in `[training] categorical`. Missing when the payment lacks
        the attribute. The list is part of the feature: with another one, or another order, models must be trained anew.
        """
        column = _counted(name, attribute)
        if isinstance(among, str) or not 0 < len(among) <= CATEGORIES_MAX:
            got = f"the text {among!r}" if isinstance(among, str) else len(among)
            raise wrong(name, f"`among` must list 1 to {CATEGORIES_MAX} values, got {got}")
        codes = [(attribute == value).value for value in among]
        if len(set(codes)) < len(codes):
            raise wrong(name, f"`among` lists {_listed_twice(among, codes)}")
        value = Derived(Operation.CATEGORY, numbers=(column, *codes))
        meaning = f"which of {_spoken_list(among)} {attribute.name} is; {len(among)} is any other"
        return _of_request(name, value, meaning, "category", f"the payment has no {attribute.name}")


def ratio(name: str, numerator: str, denominator: str) -> Feature:
    """One earlier feature over another; missing when either is missing or the second is zero."""
    value = Derived(Operation.DIVIDE, (numerator, denominator))
    missing = f"{numerator} or {denominator} is missing, or {denominator} is 0"
    return Feature(name, value, f"{numerator} over {denominator}", "ratio", missing, line=line_of_caller())


def distinct_error(count: int, bits: int) -> float:
    """Relative standard error of linear counting with `count` values in `bits` (Whang et al. 1990)."""
    load = count / bits
    return float((bits * (2.718281828459045**load - load - 1)) ** 0.5 / count)


def _quotient(numerator: Expression, denominator: Expression) -> Derived:
    return Derived(Operation.DIVIDE, (numerator, denominator))


def _attribute_value(attribute: Attribute) -> Derived:
    return Derived(Operation.ATTRIBUTE_VALUE, numbers=(attribute.column,))


def _of_request(name: str, value: Expression, meaning: str, unit: str, missing: str = "") -> Feature:
    return Feature(name, value, meaning, unit, missing or "never", "", "", line_of_caller())


def _condition(name: str, asked: Condition | Attribute | None) -> Condition | None:
    if asked is None or isinstance(asked, Condition):
        return asked
    if isinstance(asked, Attribute) and asked.kind is AttributeKind.FLAG:
        return Condition(asked.column, kernel.EQUAL, 2, asked.name)
    raise wrong(name, f"a condition is a flag, or an attribute compared with a value, got {asked!r}")


def _check_including(name: str, including_this: bool, where: Condition | Attribute | None) -> None:
    if including_this and where is not None:
        raise wrong(name, "`including_this` counts this payment whatever it is: it cannot go with `where`")


def _counted(name: str, attribute: Attribute) -> int:
    if not isinstance(attribute, Attribute) or attribute.kind not in (AttributeKind.TEXT, AttributeKind.COUNTRY):
        raise wrong(name, f"wanted an attribute whose values can be told apart, such as merchant_id, got {attribute!r}")
    return attribute.column


def _listed_twice(among: Sequence[str], codes: Sequence[int]) -> str:
    """Says which value has the code of one before it."""
    first: dict[int, str] = {}
    for value, code in zip(among, codes, strict=True):
        if (other := first.setdefault(code, value)) != value:
            return f"{other!r} and {value!r}, which share a checksum"
    return f"{next(value for value in among if among.count(value) > 1)!r} twice"


def _spoken_list(values: Sequence[str]) -> str:
    """The first few of them, as 'pos' (0), 'ecom' (1)."""
    shown = ", ".join(f"{value!r} ({place})" for place, value in enumerate(values[:_LISTED_IN_WORDS_MAX]))
    return shown if len(values) <= _LISTED_IN_WORDS_MAX else f"{shown} … {values[-1]!r} ({len(values) - 1})"


def _spoken(window: str, delay: str = "") -> str:
    return f"the {window} that ended {delay} ago" if delay else f"the last {window}"


def _spoken_where(condition: Condition | Attribute | None) -> str:
    if condition is None:
        return ""
    return f" where {condition.text if isinstance(condition, Condition) else condition.name}"


def _spoken_including(including_this: bool) -> str:
    return ", this one included" if including_this else ""


@dataclass(frozen=True)
class Catalogue:
    """Entities and features, checked. The order of `features` is the order of the vector."""

    entities: Sequence[Entity]
    features: Sequence[Feature]
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Raises Misconfigured, with the line, for whatever is wrong."""
        object.__setattr__(self, "names", tuple(feature.name for feature in self.features))
        _check_entities(self.entities)
        _check_features(self.features, {entity.name for entity in self.entities})


def _check_entities(entities: Sequence[Entity]) -> None:
    if not entities:
        raise Misconfigured("feature catalogue: it declares no entity")
    fields = {attribute.name for attribute in ATTRIBUTES if attribute.kind is AttributeKind.TEXT}
    lines: dict[str, str] = {}
    for entity in entities:
        name = entity.name
        if not _NAME.match(name):
            raise wrong_at(entity.line, f"the entity {name!r} is not a lower_case name")
        if name in BESIDE_PROFILES:
            raise wrong_at(entity.line, f"an entity cannot be called {name!r}")
        if name in lines:
            raise wrong_at(entity.line, f"an entity is declared twice: {name!r}, first in {lines[name]}")
        for key in entity.keys:
            if key not in fields:
                wanted = ", ".join(sorted(fields))
                raise wrong_at(entity.line, f"entity {name!r}: payments have no key field {key!r}; there are {wanted}")
        if not entity.keys or len(set(entity.keys)) != len(entity.keys):
            raise wrong_at(entity.line, f"entity {name!r}: its key fields must be different ones, at least one")
        lines[name] = entity.line


def _check_features(features: Sequence[Feature], entities: set[str]) -> None:
    if not features:
        raise Misconfigured("feature catalogue: it declares no feature")
    declared = {feature.name: feature.line for feature in features}
    seen: dict[str, str] = {}
    for feature in features:
        if not _NAME.match(feature.name):
            raise wrong_at(feature.line, f"{feature.name!r} is not a lower_case name")
        if feature.name in seen:
            raise wrong_at(feature.line, f"{feature.name!r} is declared twice, first in {seen[feature.name]}")
        _check_value(feature, feature.value, seen, declared)
        for stored in stored_values(feature.value):
            if stored.entity not in entities:
                raise wrong_at(feature.line, f"{feature.name!r} is of the undeclared entity {stored.entity!r}")
        seen[feature.name] = feature.line


def _check_value(feature: Feature, value: Expression, seen: dict[str, str], declared: dict[str, str]) -> None:
    if isinstance(value, Derived):
        for operand in value.operands:
            _check_value(feature, operand, seen, declared)
    if isinstance(value, str) and value not in seen:
        if value in declared:
            later = f"which is declared after it, in {declared[value]}"
            raise wrong_at(feature.line, f"{feature.name!r} uses {value!r}, {later}: that way it could go in circles")
        raise wrong_at(feature.line, f"{feature.name!r} uses {value!r}, which is not declared")
