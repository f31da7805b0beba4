"""The checks on a whole catalogue. Each raises Misconfigured with the file, line and column of the catalogue:

feature catalogue, catalogue.py:16:10: an entity is declared twice: 'card', first in catalogue.py:14:8
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Protocol

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import (
    ATTRIBUTES,
    Attribute,
    AttributeKind,
    columns_of_condition,
    identity_column,
)
from paywarden.features.catalogue.expressions import (
    Derived,
    EntityRecency,
    Expression,
    Feature,
    Latest,
    Neighbours,
    Operation,
    Remembered,
    WindowedMeasure,
    stored_values,
)
from paywarden.features.catalogue.windows import wrong_at
from paywarden.schemas.errors import Misconfigured

_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")
# Keys of profiles begin with the entity's name. Keys of other records in the same stores begin with these.
BESIDE_PROFILES = ("payment", "progress")
# The operations whose first numbers are columns of attributes, and how many.
FIELD_COUNTS = {
    Operation.ATTRIBUTE_VALUE: 1,
    Operation.HOLDS: 1,
    Operation.CATEGORY: 1,
    Operation.DECLARED_NUMBER: 1,
    Operation.AGE_MS: 1,
    Operation.SAME_VALUE: 2,
    Operation.DISTANCE: 4,
}
ENTITIES_MAX = 16
# A vector is computed, scored and kept with its decision for each payment. The catalogues of this project have fewer
# than a tenth as many features.
FEATURES_MAX = 4000
# What a field is that can be no key. A key is a text, so that a profile has the same key in each path.
_NO_KEYS = {
    AttributeKind.COUNTRY: "a country",
    AttributeKind.FLAG: "true or false",
    AttributeKind.NUMBER: "a number",
    AttributeKind.AMOUNT: "an amount",
    AttributeKind.TIME: "a time",
    AttributeKind.OFFSET: "a time zone",
}


class DeclaredEntity(Protocol):
    """The parts of an entity that the checks read."""

    @property
    def name(self) -> str: ...
    @property
    def keys(self) -> tuple[str, ...]: ...
    @property
    def line(self) -> str: ...


def check_entities(entities: Sequence[DeclaredEntity], declared: Sequence[Attribute] = ()) -> None:
    """Check names and key fields. `declared` are the fields of a project. Raises Misconfigured."""
    if not entities:
        raise Misconfigured("feature catalogue: it declares no entity")
    if len(entities) > ENTITIES_MAX:
        raise wrong_at(entities[ENTITIES_MAX].line, f"there are {len(entities)} entities, at most {ENTITIES_MAX}")
    kinds = {one.name: one.kind for one in (*ATTRIBUTES, *declared)}
    fields = {name for name, kind in kinds.items() if kind is AttributeKind.TEXT}
    lines: dict[str, str] = {}
    for entity in entities:
        name = entity.name
        if not isinstance(name, str) or not _NAME.match(name):
            raise wrong_at(entity.line, f"the entity {name!r} is not a lower_case name")
        if name in BESIDE_PROFILES:
            raise wrong_at(entity.line, f"an entity cannot be called {name!r}")
        if name in lines:
            raise wrong_at(entity.line, f"an entity is declared twice: {name!r}, first in {lines[name]}")
        for key in entity.keys:
            if key in kinds and key not in fields:
                told = f"entity {name!r}: {key!r} is {_NO_KEYS[kinds[key]]}, and a key field is a text"
                raise wrong_at(
                    entity.line, f"{told}: declare another field in payment.py, as text(…), category(…) or band(…)"
                )
            if key not in fields:
                wanted = ", ".join(sorted(fields))
                raise wrong_at(entity.line, f"entity {name!r}: payments have no key field {key!r}; there are {wanted}")
        if not entity.keys or len(set(entity.keys)) != len(entity.keys):
            raise wrong_at(entity.line, f"entity {name!r}: it needs at least one key field, each field once")
        lines[name] = entity.line


def check_features(features: Sequence[Feature], entities: set[str]) -> None:
    """Check the names of features, and that each uses only declared entities and earlier features.

    Raises Misconfigured.
    """
    if not features:
        raise Misconfigured("feature catalogue: it declares no feature")
    if len(features) > FEATURES_MAX:
        raise wrong_at(features[FEATURES_MAX].line, f"there are {len(features)} features, at most {FEATURES_MAX}")
    declared = {feature.name: feature.line for feature in features if isinstance(feature.name, str)}
    seen: dict[str, str] = {}
    for feature in features:
        if not isinstance(feature.name, str) or not _NAME.match(feature.name):
            raise wrong_at(feature.line, f"{feature.name!r} is not a lower_case name")
        if feature.name in seen:
            raise wrong_at(feature.line, f"{feature.name!r} is declared twice, first in {seen[feature.name]}")
        _check_value(feature, feature.value, seen, declared)
        for stored in stored_values(feature.value):
            if stored.entity not in entities:
                raise wrong_at(feature.line, f"{feature.name!r} belongs to the undeclared entity {stored.entity!r}")
        seen[feature.name] = feature.line


def check_declared(features: Sequence[Feature], declared: Sequence[Attribute]) -> None:
    """Check that features use no declared field that `Catalogue(payment=…)` does not have. Raises Misconfigured."""
    columns = {one.column for one in declared} | {identity_column(one.column) for one in declared}
    for feature in features:
        for column in columns_of(feature.value):
            if column >= kernel.ATTRIBUTE_COUNT and column not in columns:
                number = (column - kernel.ATTRIBUTE_COUNT) // 2 + 1
                raise wrong_at(feature.line, f"{feature.name!r} uses a field, number {number}, which payment lacks")


def columns_of(value: Expression) -> set[int]:
    """Returns the columns of attributes that a value reads."""
    if isinstance(value, (str, EntityRecency)):
        return set()
    if isinstance(value, (Remembered, Neighbours)):
        return {value.attribute}
    if isinstance(value, Latest):
        return {column for column, _ in value.fields}
    if isinstance(value, WindowedMeasure):
        asked = [column.condition.code for column in value.columns if column.condition is not None]
        return {column.attribute for column in value.columns}.union(*map(columns_of_condition, asked))
    found: set[int] = set().union(*map(columns_of, value.operands))
    return found | columns_of_operation(value)


def columns_of_operation(value: Derived) -> set[int]:
    """Returns the columns of attributes that an operation itself reads."""
    if value.operation is Operation.MEETS:
        return columns_of_condition(value.numbers)
    return set(value.numbers[: FIELD_COUNTS.get(value.operation, 0)])


def _check_value(feature: Feature, value: Expression, seen: dict[str, str], declared: dict[str, str]) -> None:
    if isinstance(value, Derived):
        for operand in value.operands:
            _check_value(feature, operand, seen, declared)
    if isinstance(value, str) and value not in seen:
        if value == feature.name:
            raise wrong_at(feature.line, f"{feature.name!r} uses itself: a feature can use only earlier ones")
        if value in declared:
            later = f"which is declared after it, in {declared[value]}"
            raise wrong_at(
                feature.line, f"{feature.name!r} uses {value!r}, {later}: a feature can use only earlier ones"
            )
        close = difflib.get_close_matches(value, seen, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise wrong_at(feature.line, f"{feature.name!r} uses {value!r}, which is not declared{hint}")
