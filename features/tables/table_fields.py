"""Columns of a table become columns of a history. A row that cannot become a payment is refused, with its reason.

    rows of a file ─► each field in the order of schemas/payment_fields.py: a column of values, and what is wrong where
                  ─► a row's first wrong field is its reason; the other rows are payments

A reason names column and field. It never holds a value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from paywarden.features.catalogue.windows import DAY_MS
from paywarden.features.history.history import NEVER_LABELLED, numbered_ids
from paywarden.features.history.payment_columns import wrong_numbers, wrong_texts
from paywarden.features.tables.columns.arrow_columns import Flags, Int64Array, Wrong, arrow_type, as_texts, flags_of
from paywarden.features.tables.columns.label_table import LabelTable
from paywarden.features.tables.columns.number_reader import NO_NUMBER, RIGHT, TOO_FINE, TOO_LARGE, NumberReader
from paywarden.features.tables.columns.time_reader import TimeReader
from paywarden.features.tables.labels import FRAUD, GENUINE, UNKNOWN, DelayTable, hashes_of, shares_of
from paywarden.features.tables.mapping import FieldSource, LabelSource, TableMapping, TimeSource
from paywarden.features.tables.refusals import Reason, Refused, RowReasons
from paywarden.features.tables.sources import TableRows
from paywarden.schemas.currencies import MINOR_DIGITS
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.payment_fields import Form, PaymentField

# Columns of a converted part besides the fields.
ROW, FILE, LINE, LABEL, KNOWN_MS = "@row", "@file", "@line", "@label", "@known_ms"
# A part of a bad column may hold as many reasons as rows.
_REASONS_MAX = 50
_TRUE, _FALSE = ("true", "1", "yes", "y", "t"), ("false", "0", "no", "n", "f")


@dataclass(frozen=True)
class Converted:
    """Payments, with the columns above, and the rows that are no payments."""

    payments: pa.Table
    refused: Sequence[Refused]


@dataclass(frozen=True)
class _Values:
    """A column of values, null where there is none, and the wrong rows with reasons. Wrong values are never used."""

    values: pa.Array
    wrong: Sequence[Wrong] = ()
    offset_minutes: Int64Array | None = None


class TableConverter:
    """Makes payments of rows."""

    def __init__(
        self,
        mapping: TableMapping,
        key: bytes = b"",
        *,
        now_ms: int,
        labels: LabelTable | None = None,
    ) -> None:
        """`key` makes tokens of hashed ids, and labels known after `now_ms` are left out.

        `labels` are those of the mapping's second table, if it has one.
        Raises Misconfigured for a constant that its field may not hold, and if a key is needed and missing.
        """
        if mapping.needs_key and not key:
            hashed = ", ".join(name for name, source in mapping.fields.items() if source.hash)
            how = "openssl rand -hex 16 > key, and --key key"
            raise Misconfigured(f"{mapping.name}: {hashed} is hashed, which needs a key: {how}")
        self._mapping, self._key, self._now_ms, self._labels = mapping, key, now_ms, labels
        self._numbers = NumberReader(mapping.input)
        self._decimal = mapping.input.decimal
        self._time_reader = TimeReader(mapping.input, self._numbers)
        self._fields = [field for field in mapping.payment.all if field.name in mapping.fields]
        # Amounts need the currency, and an offset may need the time.
        late = (Form.AMOUNT, Form.MONEY, Form.OFFSET)
        self._order = sorted(self._fields, key=lambda field: field.form in late)
        for field in self._fields:
            constant = mapping.fields[field.name].constant
            if constant is not None and field.is_text and (problem := field.problem_of(_text_of(constant))):
                raise Misconfigured(f"{mapping.name}: [fields] {field.name}: the constant {problem}")

    @property
    def schema(self) -> pa.Schema:
        """Returns the columns of `Converted.payments`: every field of the table, the mapped ones of the project.

        NEVER_LABELLED is among them if the mapping says that some labels are unknown.
        """
        named = {field.name for field in self._fields}
        kept = [one for one in self._mapping.payment.all if one.name in named or not one.column_may_lack]
        columns = [(one.name, arrow_type(one)) for one in kept]
        if self._mapping.label is not None and self._mapping.label.says_unknown:
            columns.append((NEVER_LABELLED, pa.bool_()))
        added = ((ROW, pa.int64()), (FILE, pa.int32()), (LINE, pa.int64()), (LABEL, pa.int8()), (KNOWN_MS, pa.int64()))
        return pa.schema([*columns, *added])

    def convert(self, rows: TableRows) -> Converted:
        """Returns the payments of some rows."""
        values: dict[str, _Values] = {}
        for field in self._order:
            values[field.name] = self._required(field, self._read(field, rows, values))
        reasons = RowReasons(len(rows))
        for field in self._fields:
            for wrong, column, text in values[field.name].wrong:
                reasons.add(wrong, Reason(column, field.name, text))
        label, known_ms, never = self._label(rows, values, reasons)
        schema = self.schema
        found = {name: of_field.values for name, of_field in values.items()} | {NEVER_LABELLED: never}
        found |= {ROW: rows.numbers, FILE: np.full(len(rows), rows.file, dtype=np.int32), LINE: rows.lines}
        found |= {LABEL: label, KNOWN_MS: known_ms}
        columns = [found[one.name] if one.name in found else pa.nulls(len(rows), one.type) for one in schema]
        table = pa.Table.from_arrays(columns, schema=schema)
        if reasons.is_any:
            table = table.filter(pa.array(reasons.code == 0))
        torn = [Refused(rows.file, line, Reason("", "", text)) for line, text in rows.torn]
        return Converted(table, [*torn, *reasons.refused(rows)])

    def _required(self, field: PaymentField, found: _Values) -> _Values:
        if not field.is_required or not found.values.null_count:
            return found
        column = self._mapping.fields[field.name].column
        # After the others: a wrong value is no missing one.
        missing = (flags_of(pc.is_null(found.values)), column, field.problem_of(None))
        return _Values(found.values, [*found.wrong, missing], found.offset_minutes)

    def _read(self, field: PaymentField, rows: TableRows, before: Mapping[str, _Values]) -> _Values:
        source = self._mapping.fields[field.name]
        if source.made_from == "position":
            return _Values(numbered_ids("r", rows.numbers, width=12))
        if source.columns and field.is_text:
            return self._made_id(field, source, rows)
        if source.from_zone:
            minutes = before["event_time_ms"].offset_minutes
            assert minutes is not None
            return self._bounded(field, "", minutes, np.zeros(len(rows), dtype=np.bool_), [])
        column = self._column(source, rows)
        if field.is_text:
            return self._texts(field, source, column)
        if field.form in (Form.TIME, Form.INSTANT):
            return self._times(field, source.column or " + ".join(source.columns), source.time, column, rows)
        if field.form is Form.FLAG:
            return self._flags(field, source, column)
        if field.is_decimal:
            return self._decimals(field, source, column)
        return self._whole(field, source, column, self._digits(field, source, before, len(rows)))

    def _column(self, source: FieldSource, rows: TableRows) -> pa.Array:
        if source.constant is not None:
            return pa.repeat(pa.scalar(_text_of(source.constant), pa.string()), len(rows))
        if source.columns:
            return pc.binary_join_element_wise(*(self._as_texts(rows.columns[name]) for name in source.columns), " ")
        return rows.columns[source.column]

    def _as_texts(self, column: pa.Array) -> pa.Array:
        return as_texts(column, self._mapping.input.missing)

    # Texts

    def _texts(self, field: PaymentField, source: FieldSource, column: pa.Array) -> _Values:
        if field.name == "payment_id":
            texts = self._spelled(field, source, self._as_texts(column))
            return _Values(texts, self._wrong_texts(field, source, texts, np.arange(len(texts))))
        encoded = self._as_texts(column).dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        names = encoded.dictionary
        wrong: list[Wrong] = []
        if source.values is not None:
            names, unknown = _mapped(names, source)
            wrong += _where(unknown, codes, source.column, "is not one of the values that the mapping lists")
        names = self._spelled(field, source, names)
        wrong += self._wrong_texts(field, source, names, codes)
        return _Values(names.take(encoded.indices), wrong)

    def _spelled(self, field: PaymentField, source: FieldSource, texts: pa.Array) -> pa.Array:
        """Returns texts as the history has them: codes in capitals, merchant categories with four digits, tokens."""
        if field.form in (Form.CURRENCY, Form.COUNTRY):
            texts = pc.utf8_upper(texts)
        if field.form is Form.MCC:
            is_short = pc.match_substring_regex(texts, "^[0-9]{1,3}$")
            texts = pc.if_else(is_short, pc.utf8_lpad(texts, 4, "0"), texts)
        if source.hash:
            token = self._email_token if field.form is Form.EMAIL else self._token
            texts = pa.array([None if text is None else token(text) for text in texts.to_pylist()], pa.string())
        if source.prefix:
            texts = pc.binary_join_element_wise(pa.scalar(source.prefix), texts, "")
        return texts

    def _token(self, text: str) -> str:
        # The letter before it: no token is a card number.
        return "h" + hashlib.blake2b(text.encode(), key=self._key, digest_size=16).hexdigest()

    def _email_token(self, text: str) -> str:
        """Returns an address with a token before the @. Its domain stays."""
        local, at, domain = text.lower().rpartition("@")
        return f"{self._token(local + at + domain)}@{domain}" if at else self._token(text)

    def _wrong_texts(
        self, field: PaymentField, source: FieldSource, names: pa.Array, codes: NDArray[Any]
    ) -> list[Wrong]:
        is_wrong = wrong_texts(field, names.fill_null("x" if field.form is not Form.ADDRESS else "::"))
        is_wrong &= ~flags_of(pc.is_null(names))
        problems: dict[str, Flags] = {}
        for place in np.flatnonzero(is_wrong).tolist():
            problem = field.problem_of(names[place].as_py())
            if problem not in problems and len(problems) >= _REASONS_MAX:
                problem = f"is wrong; wanted {field.wanted}"
            problems.setdefault(problem, np.zeros(len(names), dtype=np.bool_))[place] = True
        if any("card number" in problem for problem in problems):
            hint = "; `hash = true` makes tokens" if field.form is not Form.WORD else ""
            problems = {text + (hint if "card number" in text else ""): where for text, where in problems.items()}
        return [one for text, where in problems.items() for one in _where(where, codes, source.column, text)]

    def _made_id(self, field: PaymentField, source: FieldSource, rows: TableRows) -> _Values:
        """Returns ids made of columns: rows that are alike in these have the same id."""
        texts = [self._as_texts(rows.columns[name]).fill_null("") for name in source.columns]
        joined = pc.binary_join_element_wise(*texts, "\x1f")
        if source.hash:
            return _Values(self._spelled(field, source, joined))
        # Two hashes of 62 bits: among a billion ids no two are the same by chance.
        halves = [hashes_of(joined, low, 0) & (2**62 - 1) for low in (1, 2)]
        ids = pa.array([f"r{one:016x}{other:016x}" for one, other in zip(*map(np.ndarray.tolist, halves), strict=True)])
        return _Values(pc.binary_join_element_wise(pa.scalar(source.prefix), ids, "") if source.prefix else ids)

    # Numbers

    def _digits(
        self, field: PaymentField, source: FieldSource, before: Mapping[str, _Values], count: int
    ) -> NDArray[np.int8]:
        """Returns how many digits after the point are one unit of the field, for each row."""
        if field.form not in (Form.AMOUNT, Form.MONEY) or source.unit == "minor":
            return np.zeros(count, dtype=np.int8)
        encoded = before["currency"].values.dictionary_encode()
        digits = [MINOR_DIGITS.get(name, 2) for name in encoded.dictionary.to_pylist()]
        found: NDArray[np.int8] = np.array([*digits, 2], dtype=np.int8)[
            encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        ]
        return found

    def _whole(self, field: PaymentField, source: FieldSource, column: pa.Array, digits: NDArray[np.int8]) -> _Values:
        numbers, status, missing = self._numbers.scaled(column, digits, source.strip, rounds=source.round)
        finest = "minor unit of its currency" if field.form in (Form.AMOUNT, Form.MONEY) else "whole number"
        said = f"is finer than the {finest}; `round = true` rounds"
        if finest == "whole number":
            said = "has a fraction; `round = true` rounds"
        wanted = field.wanted
        if field.form in (Form.AMOUNT, Form.MONEY) and source.unit == "major":
            # The field counts minor units, and the table does not.
            wanted = "an amount of its currency, such as 1999" + self._decimal + "50"
        wrong = [
            (status == NO_NUMBER, source.column, f"is no number; wanted {wanted}"),
            (status == TOO_FINE, source.column, said),
            (status == TOO_LARGE, source.column, f"is too large; wanted {field.wanted}"),
        ]
        return self._bounded(field, source.column, numbers, missing | (status != RIGHT), wrong)

    def _bounded(
        self, field: PaymentField, column: str, numbers: Int64Array, missing: Flags, wrong: list[Wrong]
    ) -> _Values:
        """Returns numbers after a check of the field's bounds; null where `missing`."""
        outside = wrong_numbers(field, numbers) & ~missing
        if outside.any():
            problems: dict[str, Flags] = {}
            low, high = numbers < field.minimum, numbers > field.maximum
            for where in (outside & low, outside & high):
                if where.any():
                    problems.setdefault(field.problem_of(int(numbers[int(np.argmax(where))])), where)
            wrong = [*wrong, *((where, column, text) for text, where in problems.items())]
        return _Values(pa.array(numbers, mask=missing), wrong)

    def _decimals(self, field: PaymentField, source: FieldSource, column: pa.Array) -> _Values:
        if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
            numbers, problem = column.cast(pa.float64()), np.zeros(len(column), dtype=np.bool_)
            missing = flags_of(pc.or_(pc.is_null(numbers), pc.fill_null(pc.is_nan(numbers), True)))
        else:
            texts = self._as_texts(column)
            missing = flags_of(pc.is_null(texts))
            numbers, problem = self._numbers.floats(texts, source.strip)
        values = np.where(missing | problem, 0.0, numbers.fill_null(0).to_numpy(zero_copy_only=False))
        scaled = np.rint(values * 10.0**field.decimals)
        outside = ~(np.isfinite(values) & (scaled >= field.minimum) & (scaled <= field.maximum))
        wrong = [
            (problem, source.column, f"is no number; wanted {field.wanted}"),
            (outside & ~missing & ~problem, source.column, f"is out of bounds; wanted {field.wanted}"),
        ]
        return _Values(pa.array(values, mask=missing | problem), wrong)

    def _flags(self, field: PaymentField, source: FieldSource, column: pa.Array) -> _Values:
        if pa.types.is_boolean(column.type) and source.values is None:
            return _Values(column)
        encoded = self._as_texts(column).dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        names, wrong = encoded.dictionary, list[Wrong]()
        if source.values is not None:
            names, unknown = _mapped(names, source)
            wrong += _where(unknown, codes, source.column, "is not one of the values that the mapping lists")
        flags = [None if name is None else _flag_of(name) for name in names.to_pylist()]
        strange = [name is not None and flag is None for name, flag in zip(names.to_pylist(), flags, strict=True)]
        wrong += _where(np.array(strange, dtype=np.bool_), codes, source.column, f"wanted {field.wanted}")
        return _Values(pa.array(flags, pa.bool_()).take(encoded.indices), wrong)

    # Times

    def _times(self, field: PaymentField, name: str, source: TimeSource, column: pa.Array, rows: TableRows) -> _Values:
        time_ms, missing, offset, wrong = self._time_reader.moments(name, source, column, rows)
        for where, _, _ in wrong:
            missing = missing | where
        found = self._bounded(field, name, time_ms, missing, wrong)
        return _Values(found.values, found.wrong, offset)

    # Labels

    def _label(self, rows: TableRows, values: Mapping[str, _Values], reasons: RowReasons) -> tuple[pa.Array, ...]:
        """Returns the label of each row, when it was known, and whether the table says that it never was."""
        source, count = self._mapping.label, len(rows)
        if source is None:
            nothing = pa.nulls(count, pa.int64())
            return pa.array(np.full(count, UNKNOWN, dtype=np.int8)), nothing, nothing
        if self._labels is not None:
            ids = self._as_texts(rows.columns[self._mapping.fields["payment_id"].column])
            rows, named = self._labels.joined(rows, ids)
            where = f"{source.file}: "
        else:
            named, where = np.ones(count, dtype=np.bool_), ""
        label, strange = self._said(source, rows) if source.column else (np.full(count, FRAUD, dtype=np.int8), ~named)
        label[~named] = GENUINE if source.others == "genuine" else UNKNOWN
        why = "is not one of the values that [label] lists"
        reasons.add(strange & named, Reason(where + source.column, "label", why))
        event_ms = values["event_time_ms"].values.fill_null(0).to_numpy(zero_copy_only=False)
        known_ms = np.zeros(count, dtype=np.int64)
        untold = np.ones(count, dtype=np.bool_)
        if source.time_column:
            column, time_name = rows.columns[source.time_column], where + source.time_column
            told_ms, missing, _, wrong = self._time_reader.moments(time_name, source.time, column, rows)
            # A label that was known on a day counts as known when the day ends.
            told_ms = told_ms + np.where(self._time_reader.are_dates(source.time, column), DAY_MS - 1, 0)
            for wrong_where, name, text in wrong:
                reasons.add(wrong_where, Reason(name, "label time", text))
                missing = missing | wrong_where
            early = ~missing & (told_ms < event_ms) & (label != UNKNOWN) & (event_ms > 0)
            reasons.add(early, Reason(time_name, "label time", "lies before its payment"))
            known_ms, untold = np.where(missing, 0, told_ms), missing
        for value, delay in ((FRAUD, source.fraud_delay), (GENUINE, source.genuine_delay)):
            chosen = untold & (label == value)
            if delay is None:
                reasons.add(
                    chosen, Reason(where + source.time_column, "label time", "is missing, and [label] has no delay")
                )
            elif chosen.any():
                known_ms[chosen] = (event_ms + self._delays(delay, values, source.seed, count))[chosen]
        never = pa.array(label == UNKNOWN)
        label[(label != UNKNOWN) & (known_ms > self._now_ms)] = UNKNOWN
        return pa.array(label), pa.array(known_ms, mask=label == UNKNOWN), never

    def _said(self, source: LabelSource, rows: TableRows) -> tuple[NDArray[np.int8], Flags]:
        """Returns the label of each row, and which rows have a value that [label] does not list."""
        encoded = self._as_texts(rows.columns[source.column]).dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        known = {**dict.fromkeys(source.fraud, FRAUD), **dict.fromkeys(source.genuine, GENUINE)}
        known |= dict.fromkeys(source.unknown, UNKNOWN)
        names = encoded.dictionary.to_pylist()
        labels = np.array([*(known.get(name, UNKNOWN) for name in names), UNKNOWN], dtype=np.int8)
        strange = np.array([*(name not in known for name in names), False], dtype=np.bool_)
        return labels[codes], strange[codes]

    def _delays(self, delay: DelayTable, values: Mapping[str, _Values], seed: int, count: int) -> Int64Array:
        if len(set(delay.quantiles_ms)) == 1:
            return np.full(count, int(delay.quantiles_ms[0]), dtype=np.int64)
        return delay.delays_ms(shares_of(values["payment_id"].values, seed))


def _text_of(constant: str | int | float | bool) -> str:
    return str(constant).lower() if isinstance(constant, bool) else str(constant)


def _mapped(names: pa.Array, source: FieldSource) -> tuple[pa.Array, Flags]:
    """Returns names after the mapping's `values`, and which are refused."""
    assert source.values is not None
    found, unknown = [], []
    for name in names.to_pylist():
        is_known = name in source.values
        found.append(source.values[name] or None if is_known else name if source.other == "keep" else None)
        unknown.append(not is_known and source.other == "refuse")
    return pa.array(found, pa.string()), np.array(unknown, dtype=np.bool_)


def _where(of_names: Flags, codes: NDArray[Any], column: str, text: str) -> list[Wrong]:
    """Returns the rows whose name is marked. Code -1 is no name."""
    return [(np.append(of_names, False)[codes], column, text)] if of_names.any() else []


def _flag_of(name: str) -> bool | None:
    word = name.lower()
    return True if word in _TRUE else False if word in _FALSE else None
