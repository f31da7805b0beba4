"""The fields that a project declares, as a table.

field        number  form     unit   wanted                            kept             protobuf      used by
items        6       integer  items  a whole number from 0 to 1000     as it is         int64 = 106   2 features
ip_network   13      network         derived from ip                   as a keyed hash                entity network
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.catalogue.field_uses import FieldUses, field_uses
from paywarden.schemas.payment_fields import Band, DerivedField, Form, NetworkPrefix, PaymentField
from paywarden.schemas.request_proto import field_number, protobuf_type

_COLUMNS = ("field", "number", "form", "unit", "wanted", "kept", "protobuf", "used by")


@dataclass(frozen=True)
class ListedField:
    """One declared field. `unit` is empty for a field that is no number, `protobuf` for one that no request has."""

    name: str
    number: int
    form: str
    unit: str
    wanted: str
    is_required: bool
    kept: str
    protobuf: str
    used_by: FieldUses

    @property
    def cells(self) -> tuple[str, ...]:
        """Returns the field's row of the table; its features are counted where they are many."""
        return *self._about, self.used_by.summary

    @property
    def whole_cells(self) -> tuple[str, ...]:
        """Returns the row with the names of all features that use the field."""
        return *self._about, self.used_by.words

    @property
    def _about(self) -> tuple[str, ...]:
        wanted = f"{self.wanted}, in every payment" if self.is_required else self.wanted
        return self.name, str(self.number), self.form, self.unit, wanted, self.kept, self.protobuf


def listed_fields(catalogue: Catalogue) -> tuple[ListedField, ...]:
    """Returns the declared fields in the order of their numbers."""
    uses = field_uses(catalogue)
    declared = (one.field or one.derived for one in catalogue.payment.attributes)
    listed = (_listed(one, uses[one.name]) for one in declared if one is not None)
    return tuple(sorted(listed, key=lambda one: one.number))


def field_lines(fields: Sequence[ListedField]) -> list[str]:
    """Returns aligned columns for a terminal."""
    rows = [_COLUMNS, *(field.cells for field in fields)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return lines


def field_table(fields: Sequence[ListedField]) -> list[str]:
    """Returns the table in Markdown."""
    rows = [_COLUMNS, *((f"`{field.name}`", *field.whole_cells[1:]) for field in fields)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(_COLUMNS))
    return lines


def _listed(field: PaymentField | DerivedField | Band, uses: FieldUses) -> ListedField:
    if not isinstance(field, PaymentField):
        form = "network" if isinstance(field, NetworkPrefix) else "e-mail domain"
        form = f"one of {len(field.bounds) + 1} bands" if isinstance(field, Band) else form
        return ListedField(
            name=field.name,
            number=field.number,
            form=form,
            unit="",
            wanted=f"derived from {field.of}",
            is_required=False,
            kept="as a keyed hash",
            protobuf="",
            used_by=uses,
        )
    if field.form is Form.EMAIL:
        kept = "as a keyed hash"
    else:
        kept = "personal: hashed in keys, never shown" if field.is_personal else "as it is"
    wanted = field.wanted
    if field.among:
        wanted = f"{', '.join(field.among[:4])}{' …' if len(field.among) > 4 else ''}, or any other text"
    return ListedField(
        name=field.name,
        number=field.number,
        form=field.form.value,
        unit=field.unit,
        wanted=wanted,
        is_required=field.is_required,
        kept=kept,
        protobuf=f"{protobuf_type(field)} = {field_number(field.number)}",
        used_by=uses,
    )
