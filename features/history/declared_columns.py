"""The columns of a project's own fields in a history (features/catalogue/fields.py).

    declared                            column of payments.parquet     in the history
    text, category, address, BIN        string                         Coded
    country                             string                         Coded
    e-mail                              string, or int64 hashes        Coded, in small letters
    integer, money, time                integer                        codes: the number + NUMBER_ZERO
    decimal                             float or integer               codes, in units of its last digit
    flag                                boolean                        codes: 1 no, 2 yes
    network, domain, band               none                           Coded, made from the source

A code of 0 is a missing value. A file that Paywarden writes has no e-mail addresses. Their column holds the keyed hash
of each address, and the column of a domain that of the domain. Such a file gives the same features as the addresses do,
for the deployment whose key made the hashes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import number_code
from paywarden.features.history.payment_columns import (
    PAYMENTS_FILE,
    Coded,
    Int64Array,
    coded_values,
    flag_codes,
    plain_texts,
    refuse_wrong_number,
    refuse_wrong_text,
    scaled_decimals,
    whole_numbers,
    wrong_decimals,
    wrong_numbers,
)
from paywarden.features.kernel.layout import DAY_MS, EPOCH_WEEKDAY, HOUR_MS, MINUTE_MS
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.payment_fields import (
    AMOUNT_MINOR,
    HOUR,
    WEEKDAY,
    DerivedField,
    EmailDomain,
    Form,
    PaymentField,
    PaymentFields,
)

_PART_ROWS = 1 << 20


def of_table(payments: pa.Table, fields: PaymentFields, ip: Coded) -> dict[str, Coded | Int64Array]:
    """Returns the columns of declared and derived fields by name. `ip` is the column of addresses of the table.

    Raises Misconfigured that names the first row that breaks a rule.
    """
    columns: dict[str, Coded | Int64Array] = {}
    for field in fields.declared:
        if field.is_text:
            coded = coded_values(values_of(field, payments))
            refuse_wrong_values(field, coded.names, coded.codes)
            columns[field.name] = in_small_letters(coded) if field.form is Form.EMAIL else coded
        else:
            columns[field.name] = codes_of(field, payments)
    for derived in fields.derived:
        source = ip if derived.of == "ip" else columns[derived.of]
        assert isinstance(source, Coded)
        if takes_hashes(derived, source):
            columns[derived.name] = coded_values(domain_hashes(derived, payments))
        else:
            columns[derived.name] = derived_column(derived, source)
    return columns


def band_columns(
    fields: PaymentFields,
    columns: Mapping[str, Coded | Int64Array],
    time_ms: Int64Array,
    offset_code: Int64Array,
    amount_minor: Int64Array,
) -> dict[str, Coded]:
    """Returns the columns of bands by name. `columns` are those of declared fields."""
    made = {}
    for band in fields.bands:
        codes = np.zeros(len(time_ms), dtype=np.int32)
        for start in range(0, len(time_ms), _PART_ROWS):
            part = slice(start, start + _PART_ROWS)
            is_there = np.True_
            if band.of == AMOUNT_MINOR:
                number = amount_minor[part]
            elif band.of in (HOUR, WEEKDAY):
                offset_ms = np.where(offset_code[part] == 0, 0, offset_code[part] - kernel.OFFSET_ZERO) * MINUTE_MS
                local_ms = time_ms[part] + offset_ms
                is_hour = band.of == HOUR
                number = local_ms % DAY_MS // HOUR_MS if is_hour else (local_ms // DAY_MS + EPOCH_WEEKDAY) % 7
            else:
                found = columns[band.of]
                assert not isinstance(found, Coded)
                number, is_there = found[part] - number_code(0), found[part] != 0
            codes[part] = np.where(is_there, np.searchsorted(band.bounds, number, side="right"), -1)
        made[band.name] = _those_that_occur(codes, band.texts)
    return made


def _those_that_occur(codes: NDArray[np.int32], texts: Sequence[str]) -> Coded:
    """Returns a column without the texts that no payment has. Code -1 is a missing value, and stays."""
    parts = [slice(start, start + _PART_ROWS) for start in range(0, len(codes), _PART_ROWS)]
    found = np.zeros(len(texts) + 1, dtype=np.bool_)
    for part in parts:
        found[codes[part]] = True
    found[-1] = False
    new_code = np.where(found, np.cumsum(found) - 1, -1).astype(np.int32)
    for part in parts:
        codes[part] = new_code[codes[part]]
    return Coded(codes, pa.array(np.array([*texts, ""], dtype=object)[found], pa.string()))


def values_of(field: PaymentField, payments: pa.Table) -> pa.Array:
    """Returns the column of a text field as strings, or as int64 if it holds the hashes of e-mail addresses."""
    if field.name not in payments.column_names:
        return pa.nulls(len(payments), pa.string())
    column = payments[field.name]
    return one_array(column) if holds_hashes(column.type) else plain_texts(column)


def holds_hashes(kind: pa.DataType) -> bool:
    """Returns whether a column of this type holds keyed hashes."""
    return bool(pa.types.is_int64(kind))


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """Returns a column as one array."""
    whole = column.combine_chunks()
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole


def refuse_wrong_values(field: PaymentField, names: pa.Array, codes: NDArray[np.integer[Any]]) -> None:
    """Raises Misconfigured that names the first row whose text, or hash, breaks a rule; row i has names[codes[i]]."""
    if not holds_hashes(names.type):
        refuse_wrong_text(field, names, codes)
        return
    wrong = np.append(names.to_numpy() < kernel.IDENTITY_BIT, False)[codes]
    if wrong.any():
        row = int(np.argmax(wrong))
        wanted = f"{field.wanted}, or its keyed hash"
        raise Misconfigured(f"{PAYMENTS_FILE}, row {row}: {field.name} is a number that is no hash; wanted {wanted}")


def in_small_letters(coded: Coded) -> Coded:
    """Returns a column of e-mail addresses with each address in small letters. Hashes stay."""
    if holds_hashes(coded.names.type):
        return coded
    return _renamed(coded, pc.utf8_lower(coded.names).to_pylist())


def codes_of(field: PaymentField, payments: pa.Table) -> Int64Array:
    """Returns the codes of a column that holds no texts. Raises Misconfigured for the first row that breaks a rule."""
    if field.form is Form.FLAG:
        return flag_codes(payments, field.name)
    if field.name not in payments.column_names:
        return np.zeros(len(payments), dtype=np.int64)
    column = payments[field.name]
    is_there = np.asarray(pc.is_valid(column).to_numpy(), dtype=np.bool_)
    if field.is_decimal:
        try:
            values = np.asarray(column.cast(pa.float64()).fill_null(0.0).to_numpy(), dtype=np.float64)
        except pa.ArrowInvalid as error:
            raise Misconfigured(f"{PAYMENTS_FILE}: column {field.name} has a number of over 2**53") from error
        scaled = scaled_decimals(field, values)
        refuse_wrong_number(field, values, is_there & wrong_decimals(field, scaled))
        numbers = np.where(is_there, scaled, 0.0).astype(np.int64)
    else:
        numbers = np.asarray(whole_numbers(payments, field.name).fill_null(0).to_numpy(), dtype=np.int64)
        refuse_wrong_number(field, numbers, is_there & wrong_numbers(field, numbers))
    return np.where(is_there, numbers + number_code(0), 0)


def takes_hashes(derived: DerivedField, source: Coded) -> bool:
    """Returns whether a derived field has a column of its own, because its source holds hashes."""
    return isinstance(derived, EmailDomain) and holds_hashes(source.names.type)


def domain_hashes(derived: DerivedField, payments: pa.Table) -> pa.Array:
    """Returns the column of a domain's hashes. Raises Misconfigured if there is none, or it holds other numbers."""
    if derived.name not in payments.column_names:
        raise Misconfigured(
            f"{PAYMENTS_FILE}: column {derived.name} is missing: {derived.of} holds keyed hashes, and no domain can be "
            "read from these"
        )
    hashes = one_array(payments[derived.name].cast(pa.int64()))
    if (hashes.fill_null(kernel.IDENTITY_BIT).to_numpy() < kernel.IDENTITY_BIT).any():
        raise Misconfigured(f"{PAYMENTS_FILE}: column {derived.name} holds a number that is no keyed hash")
    return hashes


def derived_column(derived: DerivedField, source: Coded) -> Coded:
    """Returns the column of a derived field."""
    return _renamed(source, [derived.value_of(name) for name in source.names.to_pylist()])


def _renamed(coded: Coded, names: list[str]) -> Coded:
    """Returns a column with other names for the same numbers. An empty name is a missing value."""
    distinct = sorted(set(names) - {""})
    number_of = {name: number for number, name in enumerate(distinct)}
    # Code -1 takes the last entry.
    new_code = np.array([*(number_of.get(name, -1) for name in names), -1], dtype=np.int32)
    return Coded(new_code[coded.codes], pa.array(distinct, pa.string()))
