"""Checks the arguments of a catalogue's words, and turns them into expressions.

    where=declined              ->  Condition(declined is 2)         `condition_of`
    of=merchant_id              ->  the column of merchant_id        `counted_column`
    frauds / payments           ->  Derived(DIVIDE, ...)             `quotient`
    of=basket_weight            ->  the column of its numbers        `number_column`
    most="30d"                  ->  at most 2,592,000 seconds         `at_most`
    a fraud word without delay  ->  a feature that waits for one     `waits_for_label_delay`

An argument that a word cannot take raises Misconfigured with the file and line of the catalogue.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import Attribute, AttributeKind, Condition, amount, identity_column
from paywarden.features.catalogue.expressions import Derived, Expression, Feature, Operation
from paywarden.features.catalogue.windows import duration_ms, line_of_caller, wrong
from paywarden.schemas.payment_fields import TIME_MS_END, Form

_MS_PER_SECOND = 1000
_Arguments = ParamSpec("_Arguments")


def quotient(numerator: Expression, denominator: Expression) -> Derived:
    """Returns the first value divided by the second; the result is missing where the second is 0."""
    return Derived(Operation.DIVIDE, (numerator, denominator))


def attribute_value(attribute: Attribute) -> Derived:
    """Returns the payment's own value of an attribute."""
    return Derived(Operation.ATTRIBUTE_VALUE, numbers=(attribute.column,))


def condition_of(name: str, where: Condition | Attribute | None) -> Condition | None:
    """Returns the condition that `where` means for the feature `name`: a flag alone means that the flag is true.

    Raises Misconfigured for an attribute that is no flag.
    """
    if where is None or isinstance(where, Condition):
        return where
    if isinstance(where, Attribute) and where.kind is AttributeKind.FLAG:
        return Condition(where.column, kernel.EQUAL, 2, where.name, where.name)
    raise wrong(name, f"a condition is a flag, or an attribute compared with a value, got {where!r}")


def check_including(name: str, including_this: bool, where: Condition | Attribute | None) -> None:
    """Raises Misconfigured when a feature has both `including_this` and `where`."""
    if including_this and where is not None:
        raise wrong(name, "`including_this` counts this payment whatever it is: it cannot go with `where`")


def counted_column(name: str, attribute: Attribute) -> int:
    """Returns the column of an attribute that can be counted: a text or a country. Raises Misconfigured for others."""
    if not isinstance(attribute, Attribute) or attribute.kind not in (AttributeKind.TEXT, AttributeKind.COUNTRY):
        raise wrong(name, f"wanted an attribute whose values can be told apart, such as merchant_id, got {attribute!r}")
    return attribute.column


def number_column(name: str, of: Attribute) -> int:
    """Returns the column that names an attribute's numbers: that of its codes, or the next one for a moment.

    A moment counts as its age at its payment: the moments themselves only grow, and a model would learn the date.
    Raises Misconfigured for an attribute that has no number.
    """
    if isinstance(of, Attribute) and of.column == amount.column:
        return of.column
    if not isinstance(of, Attribute) or of.kind is not AttributeKind.NUMBER:
        wanted = "amount, or a field of payment.py that is a number, an amount of money or a moment"
        raise wrong(name, f"wanted {wanted}, got {of!r}")
    return of.column + _is_moment(of)


def summed_column(name: str, of: Attribute) -> int:
    """Returns `number_column`. Raises Misconfigured for a field whose sums could overflow."""
    column = number_column(name, of)
    field, most = of.field, kernel.NUMBER_MAX_IN_SUMS
    if field is not None and field.form in (Form.INTEGER, Form.DECIMAL):
        assert field.minimum is not None
        assert field.maximum is not None
        if field.minimum < -most or field.maximum > most:
            digits = most // 10**field.decimals
            raise wrong(name, f"sums need a field from -{digits} to {digits}: give {of.name} a `least` and a `most`")
    if field is not None and field.form is Form.INSTANT:
        assert field.minimum is not None
        if TIME_MS_END - field.minimum > most:
            raise wrong(name, f"sums need ages below 139 years: give {of.name} an `earliest` of 1961 or later")
    return column


def own_number(of: Attribute) -> Derived:
    """Returns the payment's own number, in units of its last digit; a moment's age in ms."""
    if of.kind is AttributeKind.AMOUNT:
        return attribute_value(of)
    return Derived(Operation.AGE_MS if _is_moment(of) else Operation.DECLARED_NUMBER, numbers=(of.column,))


def in_unit(value: Expression, of: Attribute) -> Expression:
    """Returns a value that is in units of the last digit in the field's own unit; an age in seconds."""
    digits = 10**of.field.decimals if of.field is not None else 1
    parts = _MS_PER_SECOND if _is_moment(of) else digits
    return value if parts == 1 else Derived(Operation.SCALE, (value,), (1, parts))


def at_most(name: str, value: Expression, most: str) -> Expression:
    """Returns a value in seconds, kept from -`most` to `most`, such as "30d"; the value itself for an empty `most`.

    A time since something grows with the age of the data. A model would never have seen its later values.
    """
    return Derived(Operation.CLIP, (value,), (duration_ms(name, most) // _MS_PER_SECOND,)) if most else value


def spoken_most(most: str) -> str:
    """Returns how a meaning speaks of `most`."""
    return f", at most {most}" if most else ""


def unit_of(of: Attribute) -> str:
    """Returns the unit of an attribute's numbers."""
    if _is_moment(of):
        return "seconds"
    return of.field.unit if of.field is not None else "minor units"


def spoken_number(of: Attribute) -> str:
    """Returns what a feature's meaning calls the number."""
    return f"{of.name}'s age" if _is_moment(of) else of.name


def is_moment(of: object) -> bool:
    """Returns whether an attribute is a declared moment."""
    return isinstance(of, Attribute) and _is_moment(of)


def _is_moment(of: Attribute) -> bool:
    return of.field is not None and of.field.form is Form.INSTANT


def compared_columns(name: str, one: Attribute, other: Attribute) -> tuple[int, int]:
    """Returns the columns in which two attributes of one kind have the same number for the same value.

    Raises Misconfigured for attributes of two kinds.
    """
    kinds = (AttributeKind.TEXT, AttributeKind.COUNTRY, AttributeKind.FLAG, AttributeKind.NUMBER)
    if not isinstance(one, Attribute) or not isinstance(other, Attribute) or one.kind not in kinds:
        raise wrong(name, f"wanted two texts, countries, flags or numbers of payment.py, got {one!r} and {other!r}")
    if _comparable(one) != _comparable(other):
        raise wrong(name, f"{one.name} and {other.name} are of two kinds, and never equal")
    if one.column == other.column:
        raise wrong(name, f"{one.name} is always equal to itself")
    if one.kind is not AttributeKind.TEXT:
        return one.column, other.column
    if one.number and other.number:
        # Nobody without the key can make two texts of one identity.
        return identity_column(one.column), identity_column(other.column)
    if not one.has_public_code or not other.has_public_code:
        raise wrong(name, f"{one.name} and {other.name} are of two kinds, and never equal")
    return one.column, other.column


def _comparable(attribute: Attribute) -> tuple[object, ...]:
    """Returns the properties that two attributes must share for their values to be compared."""
    field = attribute.field
    if attribute.kind is AttributeKind.NUMBER and field is not None:
        # A whole number and a decimal are compared by their last digits.
        return attribute.kind, field.form in (Form.INTEGER, Form.DECIMAL) or field.form, field.decimals
    return attribute.kind, field is not None and field.form is Form.EMAIL


def waits_for_label_delay(word: Callable[_Arguments, Feature]) -> Callable[_Arguments, Feature]:
    """Decorates a word for frauds: without a `delay` its feature waits for that of the catalogue."""
    signature = inspect.signature(word)

    @functools.wraps(word)
    def made(*arguments: _Arguments.args, **options: _Arguments.kwargs) -> Feature:
        if options.get("delay"):
            return word(*arguments, **options)
        named = signature.bind(*arguments, **options).arguments
        options.pop("delay", None)

        with_delay = functools.partial(made, *arguments, **options)
        return Feature(named["name"], "", "", "", "", line=line_of_caller(), with_delay=with_delay)

    return made
