"""What the words of a catalogue do with their arguments: check them, and turn them into expressions.

    where=declined              ->  Condition(declined is 2)         `condition_of`
    of=merchant_id              ->  the column of merchant_id        `counted_column`
    frauds / payments           ->  Derived(DIVIDE, ...)             `quotient`

An argument that a word cannot take raises Misconfigured with the file and line of the catalogue.
"""

from __future__ import annotations

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import Attribute, AttributeKind, Condition
from paywarden.features.catalogue.expressions import Derived, Expression, Operation
from paywarden.features.catalogue.windows import wrong


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
