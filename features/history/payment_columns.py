"""Whole columns of payments, of a history or of rows of topics, and the rules of schemas/payment_fields.py for them.

Arrow looks through a column for values that may be wrong, which are few or none. `PaymentField.problem_of` then
decides about each of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paywarden.features.catalogue.attributes import flag_code
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.payment_fields import CARD_DIGITS_MIN, FIELDS, PATTERNS, Form, PaymentField

TEXT_FIELDS = tuple(field for field in FIELDS if field.is_text)
NUMBER_FIELDS = tuple(field for field in FIELDS if field.is_number)

_DIGITS = f"^[0-9 -]{{{CARD_DIGITS_MIN},}}$"
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = rf"^(?:{_OCTET}\.){{3}}{_OCTET}$"

PAYMENTS_FILE = "payments.parquet"

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Coded:
    """A column of strings as numbers: row i holds `names[codes[i]]`, or nothing where the code is -1.

    Names are distinct, in ascending order and all used, so codes do not depend on how a file was encoded. They are
    strings; those of an e-mail field, or of its domain, may be int64: keyed hashes in place of the texts.
    """

    codes: npt.NDArray[np.int32]
    names: pa.Array

    def __len__(self) -> int:
        return len(self.codes)


def coded_values(values: pa.Array) -> Coded:
    """Returns an array of strings, or of whole numbers, as a column."""
    # A dictionary from a file may hold unused, repeated and null entries, so this builds its own.
    encoded = values.dictionary_encode()
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    new_code = np.empty(len(order) + 1, dtype=np.int32)
    new_code[order] = np.arange(len(order))
    new_code[-1] = -1
    old_code = encoded.indices.fill_null(-1).to_numpy()
    return Coded(codes=new_code[old_code], names=encoded.dictionary.take(pa.array(order)))


def plain_texts(column: pa.ChunkedArray) -> pa.Array:
    """Returns a column as one array of strings, whatever its encoding and chunks."""
    whole = column.cast(pa.string()).combine_chunks()
    # An empty or single-chunk column may come back chunked or not, depending on the version.
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole


def whole_numbers(table: pa.Table, name: str) -> pa.ChunkedArray:
    try:
        return table[name].cast(pa.int64())
    except pa.ArrowInvalid as error:
        # Without Arrow's message, which quotes the value.
        raise Misconfigured(f"column {name} holds a whole number that does not fit 64 bits") from error


def flag_codes(payments: pa.Table, name: str) -> Int64Array:
    """Returns a column of flags in the codes of features/catalogue/attributes.py."""
    if name not in payments.column_names:
        return np.zeros(len(payments), dtype=np.int64)
    column = payments[name].cast(pa.bool_())
    codes = pc.if_else(column, flag_code(True), flag_code(False)).fill_null(0)
    return np.asarray(codes.to_numpy(), dtype=np.int64)


def refuse_wrong_text(field: PaymentField, names: pa.Array, codes: npt.NDArray[np.integer]) -> None:
    """Raises Misconfigured that names the first row whose text breaks a rule; row i has the text names[codes[i]]."""
    wrong = wrong_texts(field, names)
    if wrong.any():
        # Code -1 means no text. As an index it takes the last element.
        row = int(np.argmax(np.append(wrong, False)[codes]))
        raise _wrong_value(field, names[int(codes[row])].as_py(), row)


def refuse_wrong_number(field: PaymentField, numbers: npt.NDArray[Any], wrong: npt.NDArray[np.bool_]) -> None:
    """Raises Misconfigured that names the first wrong row."""
    if wrong.any():
        row = int(np.argmax(wrong))
        raise _wrong_value(field, numbers[row].item(), row)


def _wrong_value(field: PaymentField, value: str | float, row: int) -> Misconfigured:
    return Misconfigured(f"{PAYMENTS_FILE}, row {row}: {field.name} {field.problem_of(value)}")


def wrong_texts(field: PaymentField, texts: pa.Array) -> NDArray[np.bool_]:
    """Returns where an array of strings without nulls breaks the rules, shape (texts,)."""
    wrong = np.zeros(len(texts), dtype=np.bool_)
    suspects = np.flatnonzero(_may_be_wrong(field, texts))
    values = texts.take(pa.array(suspects)).to_pylist()
    wrong[suspects] = [bool(field.problem_of(value)) for value in values]
    return wrong


def wrong_numbers(field: PaymentField, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Returns where an array of whole numbers breaks the rules."""
    wrong: NDArray[np.bool_] = (numbers < field.minimum) | (numbers > field.maximum)
    return wrong


def scaled_decimals(field: PaymentField, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns `PaymentField.scaled` of each value, as whole numbers in float64; NaN and infinity stay."""
    scaled: NDArray[np.float64] = np.rint(values * 10.0**field.decimals)
    return scaled


def wrong_decimals(field: PaymentField, scaled: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Returns where values of `scaled_decimals` break the rules."""
    right: NDArray[np.bool_] = (scaled >= field.minimum) & (scaled <= field.maximum)
    return ~right


def _may_be_wrong(field: PaymentField, texts: pa.Array) -> NDArray[Any]:
    """Returns all texts that may be wrong; some of them are right."""
    if field.form is Form.CURRENCY:
        return np.ones(len(texts), dtype=np.bool_)
    if field.form in PATTERNS:
        return _numpy(pc.invert(pc.match_substring_regex(texts, f"^{PATTERNS[field.form]}$")))
    if field.form is Form.ADDRESS:
        return _numpy(pc.invert(pc.match_substring_regex(texts, _IPV4)))
    size = pc.binary_length(texts)
    suspects = _numpy(pc.or_(pc.equal(size, 0), pc.greater(size, field.size_max)))
    suspects |= ~_numpy(pc.ascii_is_printable(texts))
    suspects |= _numpy(pc.match_substring_regex(texts, _DIGITS))
    return suspects


def _numpy(flags: pa.Array) -> NDArray[np.bool_]:
    return np.array(flags.to_numpy(zero_copy_only=False), dtype=np.bool_)
