"""Columns of Arrow as texts and flags, whatever their types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paywarden.schemas.payment_fields import WHOLE_MAX, Form, PaymentField

Flags = NDArray[np.bool_]
Int64Array = NDArray[np.int64]
Wrong = tuple[Flags, str, str]
"""Which rows are wrong, the column to blame, and why."""


def arrow_type(field: PaymentField) -> pa.DataType:
    """Returns the type of a field's column in a history."""
    if field.is_text:
        return pa.string()
    if field.is_decimal:
        return pa.float64()
    return pa.bool_() if field.form is Form.FLAG else pa.int64()


def as_texts(column: pa.Array, missing: Sequence[str] = ()) -> pa.Array:
    """Returns a column of any type as texts, without the blanks at their ends, null where there is no value.

    Whole numbers have no point, as 4111.0 would: ids are often kept as floats.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        return as_texts(column.cast(kind.value_type), missing)
    if pa.types.is_floating(kind):
        column = column.cast(pa.float64())
        is_whole = pc.fill_null(pc.and_(pc.equal(pc.floor(column), column), pc.less(pc.abs(column), WHOLE_MAX)), False)
        whole = pc.if_else(is_whole, column, 0.0).cast(pa.int64()).cast(pa.string())
        column = pc.if_else(pc.is_nan(column), None, column)
        return _present(pc.if_else(is_whole, whole, column.cast(pa.string())), missing)
    if pa.types.is_boolean(kind):
        return _present(pc.if_else(column, "true", "false"), missing)
    texts = column.cast(pa.string())
    return _present(pc.ascii_trim_whitespace(texts) if kind == pa.string() or pa.types.is_large_string(kind) else texts,
                    missing)  # fmt: skip


def _present(texts: pa.Array, missing: Sequence[str]) -> pa.Array:
    absent = pc.is_in(texts, value_set=pa.array(["", *missing], pa.string()))
    if not pc.any(absent, min_count=0).as_py():
        return texts
    return pc.if_else(absent, pa.scalar(None, pa.string()), texts)


def flags_of(column: pa.Array) -> Flags:
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.bool_)


def flags_at(places: NDArray[Any], count: int) -> Flags:
    flags = np.zeros(count, dtype=np.bool_)
    flags[places] = True
    return flags
