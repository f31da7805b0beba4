"""Checks features two hops away, and says which column of a payment names the neighbours.

    card.largest_of_last("card_worst_merchant", merchant, "merchant_fraud_share_30d", 4)

The other feature must be one of the merchant's profile alone: `merchant_fraud_share_30d` is, but how far *this* payment
is from the merchant's usual amount is not. Neighbours of neighbours would be three hops, and are refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from paywarden.features.catalogue.attributes import ATTRIBUTES, Attribute, AttributeKind, identity_column
from paywarden.features.catalogue.expressions import (
    ASK_PAYMENT,
    Derived,
    Expression,
    Feature,
    Latest,
    Neighbours,
    Operation,
    Recollection,
    Remembered,
    stored_values,
)
from paywarden.features.catalogue.windows import wrong_at
from paywarden.features.kernel import HOPS_MAX
from paywarden.schemas.errors import Misconfigured


def with_neighbours(
    features: Sequence[Feature], keys: Mapping[str, Sequence[str]], declared: Sequence[Attribute]
) -> tuple[Feature, ...]:
    """Returns the features; those two hops away know their column and unit. Raises Misconfigured.

    `keys` has the key fields of each declared entity. A word is in one order with what it uses: `check_features` has
    the errors about the names and the entities of features alone.
    """
    columns = {one.name: one.column for one in (*ATTRIBUTES, *declared) if one.kind is AttributeKind.TEXT}
    known: dict[str, Feature] = {}
    groups: dict[tuple[str, str, int], str] = {}
    made = []
    for feature in features:
        value = feature.value
        if isinstance(value, Neighbours):
            _check(feature, value, known, {one.name: one.line for one in features}, keys)
            column = columns[value.key]
            if identity_column(column) == column:
                told = f"payments have no identity of {value.key}, which names the {value.target}s"
                raise wrong_at(feature.line, f"{feature.name!r}: {told}: use an entity of another field")
            groups.setdefault((value.entity, value.target, value.capacity), feature.name)
            if len(groups) > HOPS_MAX:
                told = f"it needs a list of neighbours more than the {HOPS_MAX} that there may be"
                shared = "features with the same two entities and number share one"
                raise wrong_at(feature.line, f"{feature.name!r}: {told}: {shared}")
            feature = replace(feature, value=replace(value, attribute=column), unit=known[value.feature].unit)
        known[feature.name] = feature
        made.append(feature)
    return tuple(made)


def _check(
    feature: Feature,
    value: Neighbours,
    known: Mapping[str, Feature],
    lines: Mapping[str, str],
    keys: Mapping[str, Sequence[str]],
) -> None:
    def refused(what: str) -> Misconfigured:
        return wrong_at(feature.line, f"{feature.name!r} {what}")

    if value.feature == feature.name:
        raise refused("uses itself: a feature can use only earlier ones")
    if value.feature not in known and value.feature in lines:
        later = f"which is declared after it, in {lines[value.feature]}"
        raise refused(f"uses {value.feature!r}, {later}: a feature can use only earlier ones")
    if value.feature not in known:
        close = difflib.get_close_matches(value.feature, known, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise refused(f"uses {value.feature!r}, which is not declared{hint}")
    for name in (value.entity, value.target):
        if name not in keys:
            raise refused(f"uses the undeclared entity {name!r}")
    if tuple(keys[value.target]) != (value.key,):
        raise refused(f"uses another entity {value.target!r} than the catalogue declares")
    for used in _used(value.feature, known):
        if isinstance(known[used].value, Neighbours):
            raise refused(f"uses {used!r}, which is two hops away itself: wanted a feature of the {value.target} alone")
        if _asks_payment(known[used].value):
            told = f"uses {used!r}, which compares with the payment that is scored, or counts it"
            raise refused(f"{told}: wanted a feature of the {value.target}'s earlier payments alone")
        for stored in stored_values(known[used].value):
            if stored.entity != value.target:
                raise refused(f"uses {used!r} of {stored.entity}: wanted a feature of {value.target}")


def _used(name: str, known: Mapping[str, Feature]) -> Iterator[str]:
    """Yields the names of an earlier feature and of all that it uses."""
    yield name
    for operand in _names_in(known[name].value):
        yield from _used(operand, known)


def _names_in(value: Expression) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Derived):
        for operand in value.operands:
            yield from _names_in(operand)


def _asks_payment(value: Expression) -> bool:
    # `count(…, including_this=True)` is one more than the count. A smoothed share adds numbers below a division.
    is_counted = isinstance(value, Derived) and value.operation is Operation.ADD
    return is_counted or asks_payment(value)


def asks_payment(value: Expression) -> bool:
    """Returns whether a value, without the features that it names, needs a payment's own attributes."""
    if isinstance(value, Derived):
        return value.operation in ASK_PAYMENT or any(map(asks_payment, value.operands))
    if isinstance(value, Latest) and value.recollection is Recollection.QUANTILE:
        return len(value.fields) > 1
    return isinstance(value, (Remembered, Latest)) and value.recollection in ASK_PAYMENT
