"""The digest of a catalogue: it changes with the meaning of any feature and with the order of the features."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from paywarden.features.catalogue.attributes import Attribute
from paywarden.features.catalogue.checks import columns_of
from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.catalogue.expressions import Derived, Expression
from paywarden.features.profiles.keys import has_hashed_key


def digest_of(catalogue: Catalogue) -> str:
    """Returns 16 hex digits that change with any feature and with the order of the features."""
    entities = [[entity.name, *entity.keys] for entity in catalogue.entities]
    features = [[feature.name, _described(feature.value)] for feature in catalogue.features]
    used = set().union(*(columns_of(feature.value) for feature in catalogue.features))
    # Fields that no feature uses may come and go, and so may names: a field is its number and what its values mean.
    keys = {key for entity in catalogue.entities for key in entity.keys}
    fields = [
        [*_meaning_of(one), *(_meaning_in_keys(one) if one.name in keys else ())]
        for one in catalogue.payment.attributes
        if used & {one.column, one.column + 1} or one.name in keys
    ]
    parts = [entities, features, fields] if fields else [entities, features]
    text = json.dumps(parts, sort_keys=True, default=lambda item: item.value)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _meaning_of(attribute: Attribute) -> list[object]:
    if attribute.derived is not None:
        return [type(attribute.derived).__name__, {**asdict(attribute.derived), "name": ""}]
    assert attribute.field is not None
    return [attribute.number, attribute.field.form.value, attribute.field.decimals]


def _meaning_in_keys(attribute: Attribute) -> list[object]:
    """Returns whether keys hold the field's hash or its value: a profile is found again only under its key."""
    declared = attribute.field or attribute.derived
    assert declared is not None
    return ["hashed" if has_hashed_key(declared) else "plain"]


def _described(value: Expression) -> object:
    if isinstance(value, str):
        return value
    if isinstance(value, Derived):
        # An operation must not look like a feature of the same name.
        return {value.operation.value: [[_described(operand) for operand in value.operands], value.numbers]}
    return asdict(value, dict_factory=_without_names)


def _without_names(members: list[tuple[str, object]]) -> dict[str, object]:
    """Returns the members of an expression as a dict, without a condition's attribute, and parts that it lacks."""
    return {
        name: member
        for name, member in members
        if not (name == "attribute" and isinstance(member, str)) and not (name == "parts" and member == ())
    }
