"""Finds the features, entities and derived fields that use each declared field.

    buyer_email    entity buyer; derived buyer_domain
    items          features items, card_items_step
    billing_name   feature to_the_payer

A feature uses a field if its value asks for it, in a condition too, or if it is made of a feature that does. The fields
of an entity's key are listed with the entity, and not again with each of its features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import columns_of_condition, declared_column
from paywarden.features.catalogue.checks import columns_of_operation
from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.catalogue.expressions import (
    Column,
    Derived,
    Expression,
    Latest,
    Neighbours,
    Remembered,
    WindowedMeasure,
)


@dataclass(frozen=True)
class FieldUses:
    """The names of the features, entities and derived fields that use a declared field, in the catalogue's order."""

    entities: tuple[str, ...] = ()
    derived: tuple[str, ...] = ()
    features: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """Returns the names in a phrase; "nothing" if there are none."""
        kinds = (
            ("entity", "entities", self.entities),
            ("derived", "derived", self.derived),
            ("feature", "features", self.features),
        )
        parts = [f"{one if len(names) == 1 else many} {', '.join(names)}" for one, many, names in kinds if names]
        return "; ".join(parts) or "nothing"

    @property
    def summary(self) -> str:
        """Returns the phrase with the features counted, not named, where there are more than two."""
        if len(self.features) <= 2:
            return self.words
        counted = f"{len(self.features)} features"
        others = FieldUses(self.entities, self.derived).words
        return counted if others == "nothing" else f"{others}; {counted}"


def field_uses(catalogue: Catalogue) -> dict[str, FieldUses]:
    """Returns the uses of each declared field, derived ones too, by the field's name."""
    columns_of: dict[str, frozenset[int]] = {}
    for feature in catalogue.features:
        columns_of[feature.name] = frozenset(_columns(feature.value, columns_of))
    uses, fields = {}, catalogue.payment.fields
    for attribute in catalogue.payment.attributes:
        # A field has two columns: its code, and its identity or its other amount.
        own = {declared_column(attribute.number), declared_column(attribute.number) + 1}
        uses[attribute.name] = FieldUses(
            entities=tuple(entity.name for entity in catalogue.entities if attribute.name in entity.keys),
            derived=tuple(one.name for one in (*fields.derived, *fields.bands) if one.of == attribute.name),
            features=tuple(name for name, columns in columns_of.items() if columns & own),
        )
    return uses


def _columns(value: Expression, known: dict[str, frozenset[int]]) -> Iterator[int]:
    """Yields the columns of the payment's row that a value asks for. `known` has those of the earlier features."""
    if isinstance(value, str):
        yield from known[value]
    elif isinstance(value, Derived):
        yield from columns_of_operation(value)
        for operand in value.operands:
            yield from _columns(operand, known)
    elif isinstance(value, WindowedMeasure):
        for column in value.columns:
            yield from _of_column(column)
    elif isinstance(value, (Remembered, Neighbours)):
        yield value.attribute
    elif isinstance(value, Latest):
        yield from (column for column, _ in value.fields)


def _of_column(column: Column) -> Iterator[int]:
    if column.condition is not None:
        yield from columns_of_condition(column.condition.code)
    if column.attribute >= kernel.ATTRIBUTE_COUNT:
        yield column.attribute
