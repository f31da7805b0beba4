"""The fields that a project declares, as a table.

field        number  form     unit   wanted                                kept
customer_id  1       id              printable text of 1 to 256 bytes      personal: hashed in keys, never shown
items        6       integer  items  a whole number from 0 to 1000         as it is
ip_network   13      network         derived from ip                       as keyed hash
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paywarden.features.catalogue.fields import Payment
from paywarden.schemas.payment_fields import DerivedField, Form, NetworkPrefix, PaymentField

_COLUMNS = ("field", "number", "form", "unit", "wanted", "kept")


@dataclass(frozen=True)
class ListedField:
    """One declared field. `unit` is empty for a field that is no number."""

    name: str
    number: int
    form: str
    unit: str
    wanted: str
    is_required: bool
    kept: str

    @property
    def cells(self) -> tuple[str, ...]:
        """Returns the field's row of the table."""
        wanted = f"{self.wanted}, in every payment" if self.is_required else self.wanted
        return self.name, str(self.number), self.form, self.unit, wanted, self.kept


def listed_fields(payment: Payment) -> tuple[ListedField, ...]:
    """Returns the declared fields in the order of their numbers."""
    declared = (one.field or one.derived for one in payment.attributes)
    return tuple(sorted((_listed(one) for one in declared if one is not None), key=lambda one: one.number))


def field_lines(fields: Sequence[ListedField]) -> list[str]:
    """Returns aligned columns for a terminal."""
    rows = [_COLUMNS, *(field.cells for field in fields)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return lines


def field_table(fields: Sequence[ListedField]) -> list[str]:
    """Returns the table in Markdown."""
    rows = [_COLUMNS, *((f"`{field.name}`", *field.cells[1:]) for field in fields)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(_COLUMNS))
    return lines


def _listed(field: PaymentField | DerivedField) -> ListedField:
    if not isinstance(field, PaymentField):
        form = "network" if isinstance(field, NetworkPrefix) else "e-mail domain"
        return ListedField(field.name, field.number, form, "", f"derived from {field.of}", False, "as a keyed hash")
    if field.form is Form.EMAIL:
        kept = "as a keyed hash"
    else:
        kept = "personal: hashed in keys, never shown" if field.is_personal else "as it is"
    wanted = field.wanted
    if field.among:
        wanted = f"{', '.join(field.among[:4])}{' …' if len(field.among) > 4 else ''}, or any other text"
    return ListedField(field.name, field.number, field.form.value, field.unit, wanted, field.is_required, kept)
