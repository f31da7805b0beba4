"""Features of the payment itself (`request`), and features made of two earlier ones.

request.hour("hour")                                          14.0 for a payment at 14:35 local time
request.category("channel", channel, ["pos", "ecom"])         1.0 for ecom, 2.0 for any other channel
ratio("amount_to_mean", "amount", "card_amount_mean_30d")     3.0 for three times the card's mean amount
difference("above_mean", "amount", "card_amount_mean_30d")    minor units above the card's mean amount
product_of("risk", "device_fraud_share", "merchant_share")     one share times the other
"""

from __future__ import annotations

from collections.abc import Sequence

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import AMOUNT_MAX, Attribute, Condition, amount
from paywarden.features.catalogue.entity_words.arguments import (
    at_most,
    attribute_value,
    compared_columns,
    condition_of,
    counted_column,
    in_unit,
    is_moment,
    number_column,
    own_number,
    spoken_most,
    unit_of,
)
from paywarden.features.catalogue.expressions import Derived, Expression, Feature, Operation
from paywarden.features.catalogue.fields import Coordinates
from paywarden.features.catalogue.windows import line_of_caller, wrong

# Models take categories as whole numbers up to 4,095. One number stands for all values that are not listed.
CATEGORIES_MAX = 4095
# A meaning names at most this many values of a category, and the last one.
_LISTED_IN_WORDS_MAX = 8


class request:  # noqa: N801 - a catalogue reads it as a word, not as a class
    """Words for features of the payment itself.

    Hours and days are in the payer's local time if the payment has a UTC offset, else in UTC.
    """

    @staticmethod
    def amount(name: str) -> Feature:
        """Returns the amount in minor units of the reference currency."""
        return _of_request(name, attribute_value(amount), "amount in the reference currency", "minor units")

    @staticmethod
    def hour(name: str) -> Feature:
        """Returns the hour of the day, 0 to 23."""
        return _of_request(name, Derived(Operation.HOUR), "hour of the day, local time", "hours")

    @staticmethod
    def night(name: str) -> Feature:
        """Returns 1 from 00:00 to 06:59, else 0."""
        return _of_request(name, Derived(Operation.NIGHT), "whether the hour is 0 to 6, local time", "0 or 1")

    @staticmethod
    def weekend(name: str) -> Feature:
        """Returns 1 on Saturday and Sunday, else 0."""
        return _of_request(name, Derived(Operation.WEEKEND), "whether it is Saturday or Sunday, local time", "0 or 1")

    @staticmethod
    def weekday(name: str) -> Feature:
        """Returns the day of the week: 0 is Monday."""
        return _of_request(name, Derived(Operation.WEEKDAY), "day of the week, local time; Monday is 0", "days")

    @staticmethod
    def round_zeros(name: str) -> Feature:
        """Returns how many zeros end the amount, in minor units of its own currency: 3 for 12000."""
        meaning = "number of zeros at the end of the amount in minor units of its own currency"
        return _of_request(name, Derived(Operation.TRAILING_ZEROS), meaning, "digits")

    @staticmethod
    def below_limit(name: str, limits: Sequence[int]) -> Feature:
        """Returns how far the amount is below the next limit, as a share of the limit: 0.01 for 99 and a limit of 100.

        `limits` are in minor units of the reference currency, ascending. Missing at and above the last limit.
        """
        are_listed = isinstance(limits, Sequence) and bool(limits)
        are_amounts = are_listed and all(type(limit) is int and 0 < limit <= AMOUNT_MAX for limit in limits)
        if not are_amounts or list(limits) != sorted(set(limits)):
            raise wrong(name, f"limits must be amounts above 0, each larger than the one before, got {limits!r}")
        value = Derived(Operation.BELOW_LIMIT, numbers=tuple(limits))
        spoken = ", ".join(str(limit) for limit in limits)
        meaning = f"how far the amount is below the next limit of {spoken}, as a share of that limit"
        return _of_request(name, value, meaning, "share", "the amount is at or above the last limit")

    @staticmethod
    def holds(name: str, condition: Condition | Attribute) -> Feature:
        """Returns 1 if a condition holds for the payment, else 0; missing when the payment lacks the attribute.

        A condition that joins others, or asks for the hour or weekday, is never missing.
        """
        held = condition_of(name, condition)
        assert held is not None
        if held.operator >= kernel.HOUR_AMONG:
            return _of_request(name, Derived(Operation.MEETS, numbers=held.code), f"whether {held.text}", "0 or 1")
        value = Derived(Operation.HOLDS, numbers=(held.column, held.operator, held.value))
        missing = f"the payment has no {held.attribute}"
        return _of_request(name, value, f"whether {held.text}", "0 or 1", missing)

    @staticmethod
    def category(name: str, attribute: Attribute, among: Sequence[str]) -> Feature:
        """Returns the position of the attribute's value in a list: 0 for the first, `len(among)` for any other value.

        The number is a name and not an amount: list the feature in `[training] categorical`. Missing when the payment
        lacks the attribute. The list is part of the feature: models must be trained again after a change of its
        values or their order.
        """
        column = counted_column(name, attribute)
        is_list = isinstance(among, Sequence) and not isinstance(among, str)
        if not is_list or not 0 < len(among) <= CATEGORIES_MAX:
            got = f"the text {among!r}" if isinstance(among, str) else len(among) if is_list else repr(among)
            raise wrong(name, f"`among` must list 1 to {CATEGORIES_MAX} values, got {got}")
        codes = [(attribute == value).value for value in among]
        if len(set(codes)) < len(codes):
            raise wrong(name, f"`among` lists {_listed_twice(among, codes)}")
        value = Derived(Operation.CATEGORY, numbers=(column, *codes))
        meaning = f"{attribute.name} as a number: {_spoken_list(among)}; {len(among)} is any other value"
        return _of_request(name, value, meaning, "category", f"the payment has no {attribute.name}")

    @staticmethod
    def number(name: str, of: Attribute) -> Feature:
        """Returns a number of payment.py in its own unit; missing when the payment lacks it.

        For a moment there is `seconds_since`.
        """
        if number_column(name, of) == amount.column or is_moment(of):
            raise wrong(name, "wanted a number of payment.py; there are request.amount and request.seconds_since too")
        value = in_unit(own_number(of), of)
        return _of_request(name, value, of.name, unit_of(of), f"the payment has no {of.name}")

    @staticmethod
    def seconds_since(name: str, moment: Attribute, *, most: str = "") -> Feature:
        """Returns the age of a moment at the payment, such as an account's; below 0 if the moment is still to come.

        `most` bounds it on both sides.
        """
        if not is_moment(moment):
            raise wrong(name, f"wanted a moment of payment.py, got {moment!r}")
        value = at_most(name, in_unit(own_number(moment), moment), most)
        meaning = f"time since {moment.name}{spoken_most(most)}"
        return _of_request(name, value, meaning, "seconds", f"the payment has no {moment.name}")

    @staticmethod
    def equal(name: str, one: Attribute, other: Attribute) -> Feature:
        """Returns 1 if two attributes of one kind have the same value, else 0; missing when one is missing."""
        value = Derived(Operation.SAME_VALUE, numbers=compared_columns(name, one, other))
        missing = f"the payment has no {one.name} or no {other.name}"
        return _of_request(name, value, f"whether {one.name} and {other.name} are the same", "0 or 1", missing)

    @staticmethod
    def distance_km(name: str, one: Coordinates, other: Coordinates) -> Feature:
        """Returns the great-circle distance of two places; missing when one is missing."""
        if not isinstance(one, Coordinates) or not isinstance(other, Coordinates):
            raise wrong(name, f"wanted coordinates of payment.py, got {one!r} and {other!r}")
        if one is other:
            raise wrong(name, f"the distance from {one.name} to itself is always 0")
        columns = (one.latitude, one.longitude, other.latitude, other.longitude)
        value = Derived(Operation.DISTANCE, numbers=tuple(each.column for each in columns))
        missing = f"the payment has no {one.name} or no {other.name}"
        return _of_request(name, value, f"distance from {one.name} to {other.name}", "km", missing)


def ratio(name: str, numerator: str, denominator: str) -> Feature:
    """Returns one earlier feature divided by another; missing when either is missing or the second is zero."""
    missing = f"{numerator} or {denominator} is missing, or {denominator} is 0"
    return _of_two(name, Operation.DIVIDE, numerator, denominator, "divided by", "ratio", missing)


def difference(name: str, one: str, other: str) -> Feature:
    """Returns one earlier feature minus another; missing when either is."""
    return _of_two(name, Operation.SUBTRACT, one, other, "minus", "difference", f"{one} or {other} is missing")


def product_of(name: str, one: str, other: str) -> Feature:
    """Returns one earlier feature times another; missing when either is."""
    return _of_two(name, Operation.MULTIPLY, one, other, "times", "product", f"{one} or {other} is missing")


def _of_two(name: str, operation: Operation, one: str, other: str, spoken: str, unit: str, missing: str) -> Feature:
    for given in (one, other):
        if not isinstance(given, str):
            raise wrong(name, f"wanted the names of two earlier features, got {given!r}")
    return Feature(
        name, Derived(operation, (one, other)), f"{one} {spoken} {other}", unit, missing, line=line_of_caller()
    )


def _of_request(name: str, value: Expression, meaning: str, unit: str, missing: str = "") -> Feature:
    return Feature(name, value, meaning, unit, missing or "never", "", "", line_of_caller())


def _listed_twice(among: Sequence[str], codes: Sequence[int]) -> str:
    """Names a value that is listed twice, or two values that share a code."""
    first: dict[int, str] = {}
    for value, code in zip(among, codes, strict=True):
        if (other := first.setdefault(code, value)) != value:
            return f"{other!r} and {value!r}, which share a checksum"
    return f"{next(value for value in among if among.count(value) > 1)!r} twice"


def _spoken_list(values: Sequence[str]) -> str:
    """Returns the first values with their positions, such as: 'pos' (0), 'ecom' (1)."""
    shown = ", ".join(f"{value!r} ({place})" for place, value in enumerate(values[:_LISTED_IN_WORDS_MAX]))
    return shown if len(values) <= _LISTED_IN_WORDS_MAX else f"{shown} … {values[-1]!r} ({len(values) - 1})"
