"""The rules of schemas/payment_fields.py for whole columns of payments: a history's, or rows of topics.

Arrow looks through a column for values that may be wrong, which are few or none. `PaymentField.problem_of` has the last
word about each of these.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paywarden.schemas.payment_fields import CARD_DIGITS_MIN, FIELDS, PATTERNS, PaymentField

TEXT_FIELDS = tuple(field for field in FIELDS if field.is_text)
NUMBER_FIELDS = tuple(field for field in FIELDS if field.is_number)

_DIGITS = f"^[0-9 -]{{{CARD_DIGITS_MIN},}}$"


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


def _may_be_wrong(field: PaymentField, texts: pa.Array) -> NDArray[Any]:
    """Returns all texts that may be wrong; some of them are right."""
    if field.form in PATTERNS:
        return _numpy(pc.invert(pc.match_substring_regex(texts, f"^{PATTERNS[field.form]}$")))
    size = pc.binary_length(texts)
    suspects = _numpy(pc.or_(pc.equal(size, 0), pc.greater(size, field.size_max)))
    suspects |= ~_numpy(pc.ascii_is_printable(texts))
    suspects |= _numpy(pc.match_substring_regex(texts, _DIGITS))
    return suspects


def _numpy(flags: pa.Array) -> NDArray[np.bool_]:
    return np.array(flags.to_numpy(zero_copy_only=False), dtype=np.bool_)
