"""Numbers of a column, whether floats or texts, in whole units of their last digit."""

from __future__ import annotations

import re
from decimal import ROUND_HALF_EVEN, Decimal, DecimalException, localcontext

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paywarden.features.tables.columns.arrow_columns import Flags, Int64Array, as_texts, buffers_of, flags_of
from paywarden.features.tables.mapping import InputForm
from paywarden.features.tables.texts import NO_NUMBER, RIGHT, TOO_FINE, TOO_LARGE, read_decimals
from paywarden.schemas.payment_fields import WHOLE_MAX

# The third decimal of a float in currency units, as in features/datasets/handbook.py.
_FLOAT_TOLERANCE = 1e-3
# One to three digits before the first separator of thousands; not all of them are 0.
_FIRST_THOUSANDS = "([1-9][0-9]{0,2}|0[1-9][0-9]?|00[1-9])"


class NumberReader:
    """Reads numbers as the files of a mapping write them."""

    def __init__(self, form: InputForm) -> None:
        self._form = form

    def scaled(
        self, column: pa.Array, digits: NDArray[np.int8], strip: str = "", *, rounds: bool = False
    ) -> tuple[Int64Array, NDArray[np.int8], Flags]:
        """Returns numbers in units of their last digit, the status of each, and which are missing."""
        if pa.types.is_floating(column.type):
            return _of_floats(column, digits, rounds=rounds)
        texts = as_texts(column, self._form.missing)
        if strip:
            texts = pc.utf8_trim(texts, strip + " ")
        missing = flags_of(pc.is_null(texts))
        content, offsets = buffers_of(texts)
        numbers, status = np.empty(len(texts), dtype=np.int64), np.empty(len(texts), dtype=np.int8)
        form = self._form
        thousands = ord(form.thousands) if form.thousands else -1
        read_decimals(content, offsets, digits, ord(form.decimal), thousands, rounds, numbers, status)
        # `strip` may leave an empty text. It is no number, and not a missing one.
        status[(np.diff(offsets) == 0) & ~missing] = NO_NUMBER
        for row in np.flatnonzero(status == NO_NUMBER).tolist():
            text = texts[row].as_py().replace(form.decimal, ".") if "e" in texts[row].as_py().lower() else ""
            numbers[row], status[row] = _of_exponent(text, int(digits[row]), rounds=rounds)
        return numbers, status, missing

    def floats(self, texts: pa.Array, strip: str) -> tuple[pa.Array, Flags]:
        """Returns texts as floats, and which are no numbers."""
        form = self._form
        if strip:
            texts = pc.utf8_trim(texts, strip + " ")
        if form.thousands:
            # As in read_decimals: a separator elsewhere than between thousands makes no number.
            between = re.escape(form.thousands)
            grouped = pc.match_substring_regex(
                texts, rf"^[+-]?{_FIRST_THOUSANDS}({between}[0-9]{{2,3}})*{between}[0-9]{{3}}([^0-9{between}]|$)"
            )
            texts = pc.if_else(grouped, pc.replace_substring(texts, form.thousands, ""), texts)
            texts = pc.if_else(pc.match_substring(texts, form.thousands), "no number", texts)
        if form.decimal != ".":
            texts = pc.replace_substring(texts, form.decimal, ".")
        # Python's and Arrow's readers of numbers also accept other forms, and differ in them.
        is_number = pc.match_substring_regex(texts, r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$")
        plain = pc.if_else(is_number, pc.utf8_ltrim(texts, "+"), pa.scalar(None, pa.string()))
        return plain.cast(pa.float64()), flags_of(pc.invert(is_number.fill_null(True)))


def _of_floats(
    column: pa.Array, digits: NDArray[np.int8], *, rounds: bool
) -> tuple[Int64Array, NDArray[np.int8], Flags]:
    values = np.asarray(column.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False))
    missing = np.isnan(values)
    exact = np.where(missing, 0.0, values) * 10.0 ** digits.astype(np.float64)
    status = np.zeros(len(values), dtype=np.int8)
    large = ~(np.abs(exact) <= WHOLE_MAX)
    exact = np.where(large, 0.0, exact)
    near = np.rint(exact)
    if not rounds:
        status[np.abs(exact - near) > _FLOAT_TOLERANCE] = TOO_FINE
    status[large] = TOO_LARGE
    return near.astype(np.int64), status, missing


def _of_exponent(text: str, digits: int, *, rounds: bool) -> tuple[int, int]:
    """Returns (number, status) of a text such as 1.5e3."""
    try:
        value = Decimal(text)
        if not value.is_finite():
            return 0, NO_NUMBER
        # A number of more digits than this is too large whatever it is.
        if value.adjusted() > 18:
            return 0, TOO_LARGE
        with localcontext(prec=60):
            exact = value.scaleb(digits)
            near = exact.quantize(Decimal(1), rounding=ROUND_HALF_EVEN)
    except DecimalException:
        return 0, NO_NUMBER
    if abs(near) > 10**18:
        return 0, TOO_LARGE
    return (0, TOO_FINE) if near != exact and not rounds else (int(near), RIGHT)
