"""A first mapping, guessed from the first rows of a table, with comments for its reader.

    is_fraud: 0, 1                       [label] column = "is_fraud", fraud = ["1"], genuine = ["0"]
    trans_date: 2019-01-01 00:00:18      event_time_ms, an ISO time
    cc_num: passes Luhn                  card_id, with hash = true
    merch_lat, merch_long                coordinates of one's own, in payment.py: "merch"

Names weigh first, then values. Nothing is read beyond the first rows, and no value of an id is written down.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from paywarden.features.tables.columns.arrow_columns import as_texts
from paywarden.features.tables.guessing.column_names import (
    CLOCK,
    CURRENCY_SIGNS,
    DISPUTE,
    FIELD_NAMES,
    FRAUD_WORDS,
    GENUINE_WORDS,
    LABEL,
    LABEL_TIME,
    LATITUDE,
    LONGITUDE,
    STEPS,
    place_of,
)
from paywarden.features.tables.guessing.number_forms import (
    MOST,
    PLAIN,
    NumberForm,
    around_numbers,
    is_plain_number,
    number_form_of,
    other_form_of,
    stripped_of,
)
from paywarden.features.tables.guessing.quoting import quoted, quoted_list
from paywarden.features.tables.guessing.suggested_fields import CATEGORIES_MAX, OWN, SuggestedFields, is_word
from paywarden.features.tables.guessing.table_column import EPOCH_UNITS, VALUES_READ, TableColumn
from paywarden.features.tables.mapping import InputForm
from paywarden.features.tables.sources import TableFiles, files_of, first_bytes, is_csv, value_type
from paywarden.schemas.currencies import MINOR_DIGITS
from paywarden.schemas.payment_fields import (
    Form,
    PaymentFields,
    is_address,
)

_ROWS = 20_000
# Columns that a comment proposes for an id, if no column's name matches.
_CANDIDATES = 6
_DELIMITERS = ",;\t|"
_HOUR = re.compile("[01]?[0-9]|2[0-3]")
# Bytes that Windows-1252 gives no character.
_CP1252_NONE = frozenset(b"\x81\x8d\x8f\x90\x9d")
_MISSING = ("NULL", "null", "NA", "N/A", "NaN", "nan", "None", "\\N", "?")


def _is_currency(text: str) -> bool:
    return text in MINOR_DIGITS


@dataclass(frozen=True)
class GuessedMapping:
    """The texts of a mapping, and of a payment.py and a catalogue.py, which may be empty.

    `found` and `lacking` have a line for each field.
    """

    mapping: str
    payment: str
    catalogue: str
    found: Sequence[str]
    lacking: Sequence[str]
    column_count: int
    declared_count: int
    left_out_count: int
    """Columns that could be fields of one's own, too: more than a payment may have."""


def guess_mapping(table: str | Path, fields: PaymentFields) -> GuessedMapping:
    """Returns a first mapping of a table's columns. Raises Misconfigured for a file that is no table."""
    form = _form_of(table)
    files = TableFiles(table, form, ())
    unreadable = {
        name: f"holds no texts, numbers or times ({kind})" for name, kind in files.unreadable_columns().items()
    }
    head, later = files.heads[0], [set(one) for one in files.heads[1:]]
    once = [name for name in head if head.count(name) == 1 and name and name not in unreadable]
    wanted = [name for name in once if all(name in names for names in later)]
    unreadable = {**unreadable, **{name: "is not in every file" for name in once if name not in wanted}}
    rows = TableFiles(table, form, wanted).first_rows(_ROWS)
    missing = [text for text in _MISSING if any(text in _few(column) for column in rows.columns.values())]
    texts = {name: as_texts(column, missing).drop_null().to_pylist() for name, column in rows.columns.items()}
    numbers = number_form_of(
        set(texts[name][:VALUES_READ]) for name, column in rows.columns.items() if _is_text(column)
    )
    form = replace(form, decimal=numbers.decimal, thousands=numbers.thousands)
    columns = [
        TableColumn(name, texts[name], len(column), column.type, numbers if _is_text(column) else PLAIN)
        for name, column in rows.columns.items()
    ]
    others = {
        name: other
        for name, column in rows.columns.items()
        if _is_text(column) and (other := other_form_of(set(texts[name][:VALUES_READ]), numbers)) is not None
    }
    return _Guess(columns, form, missing, fields, unreadable, others).whole(str(table))


def _is_text(column: pa.Array) -> bool:
    kind = value_type(column.type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def _few(column: pa.Array) -> set[str]:
    return set(pc.unique(as_texts(column)).slice(0, 5000).to_pylist())


class _Guess:
    def __init__(
        self,
        columns: list[TableColumn],
        form: InputForm,
        missing: Sequence[str],
        fields: PaymentFields,
        unreadable: Mapping[str, str],
        others: Mapping[str, NumberForm],
    ) -> None:
        self._columns, self._form, self._missing, self._fields = columns, form, missing, fields
        self._unreadable, self._others = unreadable, others
        self._left = {column.name: column for column in columns if column.plain}
        self._found: list[str] = []
        self._lacking: list[str] = []
        # The characters beside the amounts, which may name their currency.
        self._money = ""
        # The format of the payments' times: labels are written by the same people.
        self._time_form = ""

    def whole(self, table: str) -> GuessedMapping:
        label, label_time = self._label(), self._take(LABEL_TIME, lambda one: bool(one.time_format))
        lines = [self._line(name) for name in FIELD_NAMES]
        own = [self._own_line(one) for one in self._fields.declared]
        text = [
            f"# A first mapping of {table}, guessed from its first rows. Read each line: a guess knows",
            "# names and values, and not what they mean. docs/data-science/your-data.md has every key.",
            "",
            *self._input(),
            "[fields]",
            *(line for line in [*lines, *own] if line),
            "",
            *self._label_lines(label, label_time),
        ]
        ignored = [f"{column.name!r}" for column in self._left.values()]
        ignored += [f"{name!r}: {why}" for name, why in self._unreadable.items()]
        suggested = SuggestedFields(self._left, self._fields)
        payment, declared, left_out = suggested.payment()
        if ignored:
            text += ["", "# Columns that are not used:", *(f"#   {line}" for line in ignored)]
        count = len(self._columns) + len(self._unreadable)
        return GuessedMapping(
            "\n".join(text) + "\n",
            payment,
            suggested.catalogue() if payment else "",
            self._found,
            self._lacking,
            count,
            declared,
            left_out,
        )

    def _input(self) -> list[str]:
        lines = []
        if self._form.delimiter != ",":
            lines.append(f"delimiter = {quoted(self._form.delimiter)}")
        if self._form.encoding != "utf-8":
            lines.append(f"encoding = {quoted(self._form.encoding)}")
        if self._form.decimal != ".":
            lines.append(f"decimal = {quoted(self._form.decimal)}")
        if self._form.thousands:
            lines.append(f"thousands = {quoted(self._form.thousands)}")
        if self._missing:
            lines.append(f"missing = {quoted_list(self._missing)}")
        if self._others:
            lines.append("# A table writes all its numbers in one way. These columns have another one:")
            lines += [
                f"#   {quoted(name)}: decimal = {quoted(other.decimal)}, thousands = {quoted(other.thousands)}"
                for name, other in self._others.items()
            ]
        return ["[input]", *lines, ""] if lines else []

    def _take(self, names: str, is_right: Callable[[TableColumn], bool]) -> TableColumn | None:
        """Returns the best column whose name matches, and takes it away from those left."""
        matches = re.compile(names)
        fitting = [column for column in self._left.values() if matches.fullmatch(column.plain) and is_right(column)]
        if not fitting:
            return None
        # A shorter name says less about anything else.
        best = max(fitting, key=lambda column: (len(column.texts) / max(1, column.rows) > 0.5, -len(column.plain)))
        del self._left[best.name]
        return best

    def _say(self, field: str, column: TableColumn, what: str = "") -> None:
        self._found.append(f"{field:<16} {column.name}{f' ({what})' if what else ''}")

    def _lack(self, field: str, why: str) -> None:
        self._lacking.append(f"{field:<16} {why}")

    def _candidates(self) -> str:
        """Returns columns whose values come again as ids do: more than a category has, and fewer than rows."""
        fitting = [
            column
            for column in self._left.values()
            if CATEGORIES_MAX < len(column.distinct) < 0.8 * len(column.texts)
            and len(column.texts) > 0.8 * column.rows
            and not column.time_format
            and not self._is_measure(column)
            and column.share(is_word) > MOST
        ]
        fitting.sort(key=lambda column: -len(column.distinct))
        return ", ".join(f"{column.name!r} ({len(column.distinct)} values)" for column in fitting[:_CANDIDATES])

    def _line(self, field: str) -> str:
        make = {
            "payment_id": self._payment_id,
            "event_time_ms": self._time,
            "card_id": self._id,
            "merchant_id": self._id,
            "device_id": self._id,
            "amount_minor": self._amount,
            "currency": self._currency,
        }.get(field, self._word)
        return make(field)

    def _payment_id(self, field: str) -> str:
        is_right: Callable[[TableColumn], bool] = lambda one: len(one.distinct) == len(one.texts) == one.rows > 1  # noqa: E731
        column = self._take(FIELD_NAMES[field], is_right)
        if column is None and (close := self._take(FIELD_NAMES[field], _is_nearly_unique)) is not None:
            more = close.rows - len(close.distinct)
            note = (
                f"# {more} of the first {close.rows} rows have the id of an earlier one. Those of the same values are"
            )
            line = f"{note}\n# left out, the others refused.\npayment_id = {_source(close, hash=close.holds_cards)}"
            return self._with(field, close, line, f"{more} of {close.rows} rows repeat one")
        # A column that tells every row apart names it, unless it is a time or a measure.
        column = column or self._only(lambda one: is_right(one) and not one.time_format and not self._is_measure(one))
        if column is None:
            note = "# No column is different in every row: ids are made of the rows' positions."
            return f'{note}\npayment_id = {{ made_from = "position" }}'
        return self._with(field, column, f"payment_id = {_source(column, hash=column.holds_cards)}")

    def _with(self, field: str, column: TableColumn, line: str, what: str = "") -> str:
        self._say(field, column, what)
        return line

    def _time(self, field: str) -> str:
        # A date that people can read rather than a count of seconds beside it.
        column = self._take(FIELD_NAMES[field], lambda one: bool(one.time_format) and not one.is_number)
        column = column or self._take(FIELD_NAMES[field], lambda one: bool(one.time_format))
        if column is None:
            column = next((one for one in self._left.values() if one.time_format), None)
            if column is not None:
                del self._left[column.name]
        if column is None:
            step = self._take(STEPS, lambda one: one.is_number)
            if step is None:
                self._lack(field, "no column holds times")
                return '# event_time_ms = { column = "?" }    # no column holds times; every payment needs one'
            if step.plain == "hour" and step.share(lambda text: _HOUR.fullmatch(text) is not None) == 1:
                self._lack(field, f"{step.name} has hours of the day, and no column says which day")
                return '# event_time_ms = { column = "?" }    # no column says the day; every payment needs one'
            unit = "hours" if step.plain in ("step", "hour") else "seconds"
            keys = f'format = "{unit}", origin = "2024-01-01T00:00:00Z"'
            line = f"event_time_ms = {{ column = {quoted(step.name)}, {keys} }}"
            return self._with(field, step, f"# Counted from a start that the table does not name.\n{line}", unit)
        form = column.time_format
        if form in EPOCH_UNITS:
            return self._with(
                field, column, f'event_time_ms = {{ column = {quoted(column.name)}, format = "{form}" }}', form
            )
        clock = self._clock(column, form)
        if clock is not None:
            has_seconds = clock.share(lambda text: text.count(":") == 2) > MOST
            of_twelve = clock.share(lambda text: text[-1:] in "mM") > MOST
            hours = "%I:%M" if of_twelve else "%H:%M"
            form = f"{form} {hours}{':%S' * has_seconds}{' %p' * of_twelve}"
            keys = f'format = "{form.replace("iso", "%Y-%m-%d")}", zone = "UTC"'
            line = f"event_time_ms = {{ columns = {quoted_list((column.name, clock.name))}, {keys} }}    # whose clock?"
            self._say(field, clock, "the time of the day")
            return self._with(field, column, line, form)
        keys = "" if form == "iso" else f', format = "{form}"'
        note = ""
        if form[:5] in ("%m/%d", "%d/%m") and column.reads(_swapped(form)):
            note = f"# Day and month may be the other way round: {_swapped(form)}.\n"
        self._time_form = form
        line = f'event_time_ms = {{ column = {quoted(column.name)}{keys}, zone = "UTC" }}    # whose clock?'
        return self._with(field, column, note + line, form)

    def _clock(self, column: TableColumn, form: str) -> TableColumn | None:
        """Returns the column with the times of the day, beside one of dates."""
        is_date = not re.search("%[HI]", form) and column.share(lambda text: len(text) <= 10) > MOST
        is_clock = re.compile("([01]?[0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?( [AaPp][Mm])?").fullmatch
        return (
            self._take(CLOCK, lambda one: one.share(lambda text: is_clock(text) is not None) > MOST)
            if is_date
            else None
        )

    def _id(self, field: str) -> str:
        column = self._take(FIELD_NAMES[field], lambda one: not one.time_format)
        if column is None:
            if field == "device_id":
                return ""
            candidates = self._candidates()
            told = f" These could be: {candidates}." if candidates else ""
            self._lack(field, f"no column looks like it.{told}")
            line = f"# No column looks like it. Name one: every payment needs it.{told}"
            whole = ' If all payments are those of one merchant: { constant = "its id" }.' * (field == "merchant_id")
            return f'{line}{whole}\n# {field} = {{ column = "?" }}'
        is_card = column.holds_cards
        line = f"{field} = {_source(column, hash=is_card)}"
        if is_card:
            line = f"# Card numbers: only tokens of them are written, made with --key.\n{line}"
        return self._with(field, column, line, "card numbers, hashed" if is_card else f"{len(column.distinct)} values")

    def _amount(self, field: str) -> str:
        column = self._take(FIELD_NAMES[field], lambda one: one.is_number or self._strip(one) is not None)
        column = column or self._only(lambda one: not one.time_format and self._holds_prices(one))
        if column is None:
            self._lack(field, "no column looks like an amount")
            line = '# amount_minor = { column = "?" }    # no column looks like an amount; every payment needs one'
            return self._said_beside_amounts() + line
        is_minor = "minor" in column.plain or "cents" in column.plain
        strip = "" if column.is_number else self._strip(column) or ""
        bare = [self._form_of_numbers.plain(text.strip(strip + " ")) if strip else text for text in column.distinct]
        finest = max((len(text.partition(".")[2].rstrip("0")) for text in bare if is_plain_number(text)), default=0)
        keys = (', unit = "minor"' if is_minor else "") + (", round = true" if finest > self._finest_digits() else "")
        keys += f", strip = {quoted(strip)}" if strip else ""
        self._money = strip + column.name
        line = (
            f"amount_minor = {{ column = {quoted(column.name)}{keys} }}"
            if keys
            else f"amount_minor = {quoted(column.name)}"
        )
        what = ""
        if column.is_whole and not is_minor:
            line += '    # whole numbers: if these are cents, unit = "minor"'
            what = 'whole numbers: if these are cents, unit = "minor"'
        return self._with(field, column, line, what)

    def _finest_digits(self) -> int:
        """Returns the most digits after the point that an amount in one of the table's currencies has, at least 2."""
        matches = re.compile(FIELD_NAMES["currency"])
        columns = [column for column in self._left.values() if matches.fullmatch(column.plain)]
        return max([2, *(MINOR_DIGITS.get(text, 2) for column in columns for text in column.distinct)])

    @property
    def _form_of_numbers(self) -> NumberForm:
        return NumberForm(self._form.decimal, self._form.thousands)

    def _strip(self, column: TableColumn) -> str | None:
        """Returns the characters around a column's numbers; None if it holds none, or holds texts that are right."""
        if column.is_number:
            return ""
        return stripped_of(list(column.distinct)[:VALUES_READ], self._form_of_numbers)

    def _said_beside_amounts(self) -> str:
        """Returns lines about columns of amounts with words or signs that mean something, such as two currencies."""
        lines = []
        for column in self._left.values():
            around = around_numbers(list(column.distinct)[:VALUES_READ], self._form_of_numbers)
            if re.fullmatch(FIELD_NAMES["amount_minor"], column.plain) and any(map(any, around)):
                told = ", ".join(repr(" ".join(filter(None, pair))) for pair in around[:5] if any(pair))
                lines.append(
                    f"# {column.name!r} has {told} at its numbers. Make columns of plain numbers and of currencies.\n"
                )
        return "".join(lines)

    def _holds_prices(self, column: TableColumn) -> bool:
        """Returns whether values look like prices by themselves: most have two decimals, or a currency beside them."""
        cents = re.compile(r"[^.]*[0-9]+\.[0-9]{2}[^.0-9]*").fullmatch
        form, is_number = self._form_of_numbers, column.is_number
        if self._strip(column) is None:
            return False
        return column.share(lambda text: cents(text if is_number else form.plain(text)) is not None) > 0.8

    def _is_measure(self, column: TableColumn) -> bool:
        return (column.is_number and not column.is_whole) or self._holds_prices(column)

    def _only(self, is_right: Callable[[TableColumn], bool]) -> TableColumn | None:
        """Returns the one column that is right by its values, whatever its name, and takes it away from those left."""
        fitting = [column for column in self._left.values() if column.texts and is_right(column)]
        if len(fitting) != 1:
            return None
        del self._left[fitting[0].name]
        return fitting[0]

    def _currency(self, field: str) -> str:
        is_right: Callable[[TableColumn], bool] = lambda one: one.share(lambda text: _is_currency(text.upper())) > MOST  # noqa: E731
        column = self._take(FIELD_NAMES[field], is_right)
        column = column or self._only(lambda one: one.share(_is_currency) > MOST)
        if column is None:
            code = next((code for sign, code in CURRENCY_SIGNS.items() if sign in self._money), "EUR")
            self._lack(field, f"no column names it: the mapping says {code}")
            return f'currency = {{ constant = "{code}" }}    # no column names it: which is it?'
        return self._with(field, column, f"currency = {quoted(column.name)}")

    def _word(self, field: str) -> str:
        rules: dict[str, Callable[[str], bool]] = {
            "ip": is_address,
            "mcc": lambda text: re.fullmatch("[0-9]{3,4}", text) is not None,
            "country": lambda text: re.fullmatch("[A-Za-z]{2}", text) is not None,
            "channel": lambda _: True,
            "declined": lambda text: text.lower() in ("0", "1", "true", "false", "yes", "no"),
            "propensity": lambda text: re.fullmatch("0?[.,][0-9]*[1-9][0-9]*|1([.,]0*)?", text) is not None,
        }
        is_few: Callable[[TableColumn], bool] = lambda one: field != "channel" or len(one.distinct) <= CATEGORIES_MAX  # noqa: E731
        column = self._take(FIELD_NAMES[field], lambda one: is_few(one) and one.share(rules[field]) > MOST)
        if column is None:
            return ""
        return self._with(field, column, f"{field} = {quoted(column.name)}")

    def _own_line(self, one: object) -> str:
        name = getattr(one, "name", "")
        column = self._take(re.escape(name), lambda _: True)
        if column is None and name.startswith(OWN):
            # The suggested payment.py calls a column so if its name is a word already.
            column = self._take(re.escape(name.removeprefix(OWN)), lambda _: True)
        side = next((side for side in (LATITUDE, LONGITUDE) if name.endswith(f"_{side.name}")), None)
        if column is None and side is not None:
            place = name.removesuffix(f"_{side.name}")
            column = self._take(side.pattern, lambda one: place_of(one.plain, side) == place)
        if column is None:
            return ""
        form = getattr(one, "form", None)
        source = _source(column, hash=form is Form.EMAIL)
        if form is Form.INSTANT and column.time_format not in ("", "iso"):
            source = f'{{ column = {quoted(column.name)}, format = "{column.time_format}" }}'
        return self._with(name, column, f"{name} = {source}")

    def _label(self) -> TableColumn | None:
        column = self._take(LABEL, lambda one: 1 <= len(one.distinct) <= 6)
        is_said: Callable[[str], bool] = lambda text: text.lower() in FRAUD_WORDS + GENUINE_WORDS  # noqa: E731
        return column or self._take(DISPUTE, lambda one: one.share(is_said) > MOST)

    def _label_lines(self, label: TableColumn | None, label_time: TableColumn | None) -> list[str]:
        if label is None:
            self._lack("label", "no column says what was fraud")
            return [
                "# No column says what was fraud. Without labels nothing can be trained. A second table may have them:",
                "# [label]",
                '# file = "chargebacks.csv"',
                '# payment_id = "?"          # its column with the ids',
                '# time = { column = "?" }',
                '# genuine_delay = "30d"     # when a payment that it does not name is known to be genuine',
            ]
        values = sorted(label.distinct)
        fraud = [one for one in values if one.lower() in FRAUD_WORDS]
        genuine = [one for one in values if one.lower() in GENUINE_WORDS]
        unknown = [one for one in values if one not in fraud and one not in genuine]
        share = sum(label.distinct[one] for one in fraud) / max(1, len(label.texts))
        self._say("label", label, f"{100 * share:.2g} % fraud")
        lines = [
            "[label]",
            f"column = {quoted(label.name)}",
            f"fraud = {quoted_list(fraud)}",
            f"genuine = {quoted_list(genuine)}",
        ]
        if unknown:
            lines.append(f"unknown = {quoted_list(unknown)}    # which of these mean fraud?")
        if label_time is not None:
            form = label_time.time_format
            if _swapped(form)[:5] == self._time_form[:5] and label_time.reads(_swapped(form)):
                form = _swapped(form)
            keys = "" if form == "iso" else f', format = "{form}"'
            keys += "" if label_time.is_number else ', zone = "UTC"'
            lines.append(f"time = {{ column = {quoted(label_time.name)}{keys} }}")
            self._say("label time", label_time, form)
        return [
            *lines,
            "# The table must say when a label was known, or you must: features and training count on it.",
            'delay = "7d"    # or { median = "10d", sigma = 0.8 }, or { quantiles = ["1d", "7d", "30d", "90d"] }',
        ]


def _is_nearly_unique(column: TableColumn) -> bool:
    return len(column.texts) == column.rows and 0 < column.rows - len(column.distinct) <= column.rows * (1 - MOST) / 2


def _swapped(form: str) -> str:
    return form.replace("%m/%d", "%_").replace("%d/%m", "%m/%d").replace("%_", "%d/%m")


def _form_of(table: str | Path) -> InputForm:
    """Returns delimiter and encoding of a table's first file."""
    path = _first_file(Path(table))
    if path is None:
        return InputForm()
    data = first_bytes(path, 1 << 16)
    encoding = "utf-8"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif not _is_utf8(data):
        # The encoding of Windows. It equals Latin-1 but for control characters, which no table has.
        encoding = "latin-1" if _CP1252_NONE & set(data) else "cp1252"
    text = data.decode(encoding, errors="ignore").removeprefix("\ufeff")
    lines = text.splitlines(keepends=True)
    widths = {one: len(next((row for row in csv.reader(lines, delimiter=one) if row), [])) for one in _DELIMITERS}
    delimiter = max(widths, key=lambda one: widths[one])
    return InputForm(delimiter=delimiter if widths[delimiter] > 1 else ",", encoding=encoding)


def _first_file(table: Path) -> Path | None:
    """Returns the first file if it is CSV."""
    names: Iterable[Path] = files_of(table) if table.exists() else []
    return next((one for one in names if is_csv(one)), None)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start > len(data) - 4
    return True


def _source(column: TableColumn, *, hash: bool = False) -> str:  # noqa: A002 - the key's name
    return f"{{ column = {quoted(column.name)}, hash = true }}" if hash else quoted(column.name)
