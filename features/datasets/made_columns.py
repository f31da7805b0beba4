"""Columns of declared fields for simulated payments, as a project's own payments would bring them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from paywarden.features.datasets.declared_values import declared_values
from paywarden.schemas.payment_fields import Form, PaymentField, PaymentFields


def with_declared_columns(payments: pa.Table, fields: PaymentFields, *, seed: int) -> pa.Table:
    """Returns a payments table with a column of plausible values for each declared field that it does not have yet.

    The same arguments give the same values.
    """
    missing = [field for field in fields.declared if field.name not in payments.column_names]
    if not missing:
        return payments
    cards = payments["card_id"].cast(pa.string())
    card = pc.index_in(cards, value_set=pc.unique(cards)).to_numpy().astype(np.int64)
    times, amounts = (payments[name].to_numpy() for name in ("event_time_ms", "amount_minor"))
    values = declared_values(fields, card, times, amounts, seed=seed)
    for field in missing:
        payments = payments.append_column(field.name, pa.array(values[field.name], _type_of(field)))
    return payments


def _type_of(field: PaymentField) -> pa.DataType:
    if field.is_text:
        return pa.string()
    if field.form is Form.FLAG:
        return pa.bool_()
    return pa.float64() if field.is_decimal else pa.int64()
