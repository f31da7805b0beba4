"""Numbers of a column, whether floats or texts, in whole units of their last digit, exactly.

"1,234.50", 2 digits     whole "1234", part "5"     123450
"1.5e3", 2 digits        digits 15, shift 2 + 3 - 1  150000
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paywarden.features.tables.columns.arrow_columns import Flags, Int64Array, as_texts, flags_of
from paywarden.features.tables.mapping import InputForm
from paywarden.schemas.payment_fields import WHOLE_MAX

RIGHT, NO_NUMBER, TOO_FINE, TOO_LARGE = 0, 1, 2, 3
"""Why a text cannot be read. A missing one is RIGHT and counts for nothing."""
# The third decimal of a float in currency units, as in features/datasets/handbook.py.
_FLOAT_TOLERANCE = 1e-3
# One to three digits before the first separator of thousands; not all of them are 0.
_FIRST_THOUSANDS = "(?:[1-9][0-9]{0,2}|0[1-9][0-9]?|00[1-9])"
# Digits that 64 bits hold, whatever they are.
_DIGITS_MAX = 19
_POWERS = 10 ** np.arange(_DIGITS_MAX + 1, dtype=np.uint64)


class NumberReader:
    """Reads numbers as the files of a mapping write them.

    Three digits follow the last separator of thousands, and two or three each other (1,00,000 in India): where the
    point is a comma, 12.50 is no number rather than 1250. No thousands are counted from 0: there, 0.855 is no number
    rather than 855.
    """

    def __init__(self, form: InputForm) -> None:
        self._form = form
        point, between = re.escape(form.decimal), re.escape(form.thousands)
        grouped = rf"{_FIRST_THOUSANDS}(?:{between}[0-9]{{2,3}})*{between}[0-9]{{3}}|" if between else ""
        digits = rf"(?P<whole>{grouped}[0-9]*)(?:{point}(?P<part>[0-9]*))?"
        self._expression = rf"^(?P<sign>[+-]?){digits}(?:[eE](?P<power>[+-]?[0-9]{{1,3}}))?$"

    def scaled(
        self, column: pa.Array, digits: NDArray[np.int8], strip: str = "", *, rounds: bool = False
    ) -> tuple[Int64Array, NDArray[np.int8], Flags]:
        """Return numbers in units of digit `digits` after the point, the status of each, and which are missing.

        Digits beyond are refused unless they are 0, or with `rounds` rounded half to even.
        """
        if pa.types.is_floating(column.type):
            return _of_floats(column, digits, rounds=rounds)
        texts = as_texts(column, self._form.missing)
        missing, (sign, whole, part, power, strange) = flags_of(pc.is_null(texts)), self._parts(texts, strip)
        figures = pc.utf8_ltrim(pc.binary_join_element_wise(whole, part, ""), "0")
        size, exponent = _integers(pc.utf8_length(figures)), _integers(power.cast(pa.int64()))
        # A digit that is not 0 stands for all those that have no room.
        is_long = size > _DIGITS_MAX
        figures = pc.if_else(
            is_long, pc.binary_join_element_wise(pc.utf8_slice_codeunits(figures, 0, _DIGITS_MAX - 1), "1", ""), figures
        )
        value = np.asarray(pc.if_else(pc.equal(figures, ""), "0", figures).cast(pa.uint64()).to_numpy())
        shift = digits + exponent - _integers(pc.utf8_length(part)) + np.where(is_long, size - _DIGITS_MAX, 0)
        shift[value == 0] = 0
        size = np.minimum(size, _DIGITS_MAX)
        # Or the digits that have no room count.
        too_large = ((shift > 0) & (size + shift > _DIGITS_MAX)) | (is_long & (shift >= -1))
        value = np.where(shift < -_DIGITS_MAX, np.minimum(value, np.uint64(1)), value)
        value *= _POWERS[np.where(too_large, 0, np.clip(shift, 0, _DIGITS_MAX))]
        unit = _POWERS[np.clip(-shift, 0, _DIGITS_MAX)]
        number, rest = value // unit, value % unit
        # Not twice the rest, which may have no room.
        other = unit - rest
        number += ((rest > other) | ((rest == other) & (number % np.uint64(2) == 1))) if rounds else np.uint64(0)
        too_large |= number >= 2**63
        status = np.where(too_large, TOO_LARGE, np.where((rest > 0) & (not rounds), TOO_FINE, RIGHT)).astype(np.int8)
        status[strange] = NO_NUMBER
        numbers = np.where(status == RIGHT, number, 0).astype(np.int64)
        return np.where(flags_of(pc.equal(sign, "-")), -numbers, numbers), status, missing

    def floats(self, texts: pa.Array, strip: str) -> tuple[pa.Array, Flags]:
        """Return texts as floats, and which are no numbers."""
        sign, whole, part, power, strange = self._parts(texts, strip)
        plain = pc.binary_join_element_wise(pc.replace_substring(sign, "+", ""), "0", whole, ".", part, "0e", power, "")
        is_number = pa.array(~strange & flags_of(pc.is_valid(texts)))
        return pc.if_else(is_number, plain, pa.scalar(None, pa.string())).cast(pa.float64()), strange

    def _parts(self, texts: pa.Array, strip: str) -> tuple[pa.Array, pa.Array, pa.Array, pa.Array, Flags]:
        """Return sign, digits before and after the point without zeros at their ends, exponent, and no numbers."""
        if strip:
            texts = pc.utf8_trim(texts, strip + " ")
        found = pc.extract_regex(texts, self._expression)
        sign, whole, part, power = (found.field(place).fill_null("") for place in range(4))
        if self._form.thousands:
            whole = pc.replace_substring(whole, self._form.thousands, "")
        # `strip` may leave an empty text. It is no number, and not a missing one.
        is_empty = pc.and_(pc.equal(whole, ""), pc.equal(part, ""))
        strange = flags_of(pc.or_(pc.is_null(found), is_empty)) & flags_of(pc.is_valid(texts))
        power = pc.if_else(pc.equal(power, ""), "0", pc.utf8_ltrim(power, "+"))
        return sign, pc.utf8_ltrim(whole, "0"), pc.utf8_rtrim(part, "0"), power, strange


def _integers(column: pa.Array) -> Int64Array:
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.int64)


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
