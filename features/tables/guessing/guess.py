"""A first mapping, guessed from the first rows of a table, with comments for its reader.

    is_fraud: 0, 1                       [label] column = "is_fraud", fraud = ["1"], genuine = ["0"]
    trans_date: 2019-01-01 00:00:18      event_time_ms, an ISO time
    cc_num: passes Luhn                  card_id, with hash = true
    merch_lat, merch_long                coordinates of one's own, in payment.py: "merch"

Names weigh first, then values. Nothing is read beyond the first rows, and no value of an id is written down.
"""

from __future__ import annotations

import csv
import keyword
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from paywarden.features.kernel import NUMBER_MAX_IN_SUMS
from paywarden.features.profiles.money import load_rates
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
from paywarden.features.tables.mapping import InputForm
from paywarden.features.tables.sources import TableFiles, files_of, first_bytes, is_csv, value_type
from paywarden.features.tables.texts import RIGHT, read_times, steps_of_format
from paywarden.schemas.payment_fields import (
    DECLARED_MAX,
    ID_BYTES_MAX,
    PATTERNS,
    WHOLE_MAX,
    Form,
    PaymentFields,
    is_address,
    looks_like_card_number,
)

_ROWS = 20_000
# Values of a column that are read to find how it writes numbers.
_NUMBERS = 2000
_CATEGORIES_MAX = 30
# Fields of one's own that a guess makes. A few numbers are left for later fields.
_DECLARED_GUESSED = 60
# Columns that a comment proposes for an id, if no column's name matches.
_CANDIDATES = 6
_DELIMITERS = ",;\t|"
# Letters that Unicode does not take apart.
_WITHOUT_STROKES = str.maketrans({"ł": "l", "Ł": "L", "ø": "o", "Ø": "O", "đ": "d", "Đ": "D", "ı": "i", "ß": "ss",
                                  "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "þ": "th", "Þ": "Th"})  # fmt: skip
# Bytes that Windows-1252 gives no character.
_CP1252_NONE = frozenset(b"\x81\x8d\x8f\x90\x9d")
_MISSING = ("NULL", "null", "NA", "N/A", "NaN", "nan", "None", "\\N", "?")
_TIME_FORMATS = (
    "iso",
    "%m/%d/%Y %H:%M:%S",
    "%d/%m/%Y %H:%M:%S",
    "%m/%d/%Y %H:%M",
    "%d/%m/%Y %H:%M",
    "%d.%m.%Y %H:%M:%S",
    "%d.%m.%Y %H:%M",
    "%d.%m.%Y %H.%M.%S",
    "%d.%m.%Y %H.%M",
    "%Y/%m/%d %H:%M:%S",
    "%Y-%m-%d %H.%M.%S",
    "%d-%m-%Y %H:%M:%S",
    "%d-%m-%Y %H:%M",
    "%m/%d/%Y %I:%M:%S %p",
    "%d/%m/%Y %I:%M:%S %p",
    "%m/%d/%Y %I:%M %p",
    "%d/%m/%Y %I:%M %p",
    "%m/%d/%y %I:%M %p",
    "%m/%d/%y %H:%M",
    "%d/%m/%y %H:%M",
    "%d.%m.%y %H:%M",
    "%b %d, %Y %I:%M %p",
    "%b %d, %Y %H:%M:%S",
    "%d-%b-%Y %H:%M:%S",
    "%Y%m%d%H%M%S",
    "%m/%d/%Y",
    "%d/%m/%Y",
    "%d.%m.%Y",
    "%m/%d/%y",
    "%d/%m/%y",
    "%d.%m.%y",
    "%b %d, %Y",
)
# Epoch numbers of the years from 2000 to 2100.
_EPOCHS = (("seconds", 1), ("milliseconds", 10**3), ("microseconds", 10**6), ("nanoseconds", 10**9))


# The names of columns of times, of columns of a date of birth, and what a suggested field's name may begin with.
_TIME_NAME = re.compile(r"time|date|(^|_)(ts|at|on|unix|epoch|since|opened|created)($|_)")
_BIRTH_NAME = re.compile(r"birth|born|(^|_)dob($|_)")
_EARLY_YEAR = re.compile(r"(?<![0-9])19[0-9]{2}(?![0-9])")
_OWN = "own_"


def _is_currency(text: str) -> bool:
    return re.fullmatch(PATTERNS[Form.CURRENCY], text) is not None


def _is_word(text: str) -> bool:
    return text.isprintable() and len(text.encode()) <= ID_BYTES_MAX


def _is_bin(text: str) -> bool:
    return re.fullmatch(PATTERNS[Form.BIN], text) is not None


@dataclass(frozen=True)
class GuessedMapping:
    """The texts of a mapping and of a payment.py, which may be empty, and a line for each field found and lacking."""

    mapping: str
    payment: str
    found: Sequence[str]
    lacking: Sequence[str]
    column_count: int
    declared_count: int
    left_out_count: int
    """Columns that could be fields of one's own, too: more than a payment may have."""


@dataclass
class _Column:
    """A column's name, type and values in the first rows."""

    name: str
    texts: list[str]
    rows: int
    kind: pa.DataType
    numbers: NumberForm = PLAIN
    plain: str = field(init=False)

    def __post_init__(self) -> None:
        name = _without_accents(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", self.name)).lower()
        self.plain = re.sub(r"[^a-z0-9]+", "_", name).strip("_")
        self.distinct = Counter(self.texts)
        if self.numbers != PLAIN and self.share(self.numbers.fits) > MOST:
            self.texts = [self.numbers.plain(text) for text in self.texts]
            self.distinct = Counter(self.texts)

    def share(self, is_right: Callable[[str], bool]) -> float:
        """Returns which share of the values that are there are right."""
        right = sum(count for text, count in self.distinct.items() if is_right(text))
        return right / len(self.texts) if self.texts else 0.0

    @property
    def is_number(self) -> bool:
        return self.share(is_plain_number) > MOST

    @property
    def is_whole(self) -> bool:
        return self.share(lambda text: re.fullmatch(r"[+-]?[0-9]+", text) is not None) > MOST

    @property
    def holds_cards(self) -> bool:
        return self.share(looks_like_card_number) > 0.5

    @property
    def time_format(self) -> str:
        """Returns the format of times that are texts, or the unit of times that are numbers; empty for others."""
        if pa.types.is_timestamp(self.kind) or pa.types.is_date(self.kind):
            return "iso"
        if self.is_number:
            # A card number may look like a time in microseconds.
            if self.holds_cards:
                return ""
            numbers = [float(text) for text in self.distinct if is_plain_number(text)]
            within = [unit for unit, scale in _EPOCHS if all(9.46e8 * scale <= one < 4.1e9 * scale for one in numbers)]
            return within[0] if within else ""
        return next((form for form in _TIME_FORMATS if self.reads(form)), "")

    def reads(self, form: str) -> bool:
        """Returns whether nearly all values are times of a format. A day's do not tell day and month apart."""
        texts = list(self.distinct)
        return _reads(form, texts[:_NUMBERS]) and _reads(form, texts)


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
    numbers = number_form_of(set(texts[name][:_NUMBERS]) for name, column in rows.columns.items() if _is_text(column))
    form = replace(form, decimal=numbers.decimal, thousands=numbers.thousands)
    columns = [
        _Column(name, texts[name], len(column), column.type, numbers if _is_text(column) else PLAIN)
        for name, column in rows.columns.items()
    ]
    others = {
        name: other
        for name, column in rows.columns.items()
        if _is_text(column) and (other := other_form_of(set(texts[name][:_NUMBERS]), numbers)) is not None
    }
    return _Guess(columns, form, missing, fields, unreadable, others).whole(str(table))


def _is_text(column: pa.Array) -> bool:
    kind = value_type(column.type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def _without_accents(text: str) -> str:
    """Returns a text with the letters below accents and strokes: "Händler" is "Handler", "Płatność" is "Platnosc"."""
    plain = unicodedata.normalize("NFKD", text.translate(_WITHOUT_STROKES))
    return "".join(one for one in plain if not unicodedata.combining(one))


def _few(column: pa.Array) -> set[str]:
    return set(pc.unique(as_texts(column)).slice(0, 5000).to_pylist())


class _Guess:
    def __init__(
        self,
        columns: list[_Column],
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
        payment, declared, left_out = self._payment()
        if ignored:
            text += ["", "# Columns that are not used:", *(f"#   {line}" for line in ignored)]
        count = len(self._columns) + len(self._unreadable)
        return GuessedMapping("\n".join(text) + "\n", payment, self._found, self._lacking, count, declared, left_out)

    def _input(self) -> list[str]:
        lines = []
        if self._form.delimiter != ",":
            lines.append(f"delimiter = {_quoted(self._form.delimiter)}")
        if self._form.encoding != "utf-8":
            lines.append(f"encoding = {_quoted(self._form.encoding)}")
        if self._form.decimal != ".":
            lines.append(f"decimal = {_quoted(self._form.decimal)}")
        if self._form.thousands:
            lines.append(f"thousands = {_quoted(self._form.thousands)}")
        if self._missing:
            lines.append(f"missing = {_list(self._missing)}")
        if self._others:
            lines.append("# A table writes all its numbers in one way. These columns have another one:")
            lines += [
                f"#   {_quoted(name)}: decimal = {_quoted(other.decimal)}, thousands = {_quoted(other.thousands)}"
                for name, other in self._others.items()
            ]
        return ["[input]", *lines, ""] if lines else []

    def _take(self, names: str, is_right: Callable[[_Column], bool]) -> _Column | None:
        """Returns the best column whose name matches, and takes it away from those left."""
        matches = re.compile(names)
        fitting = [column for column in self._left.values() if matches.fullmatch(column.plain) and is_right(column)]
        if not fitting:
            return None
        # A shorter name says less about anything else.
        best = max(fitting, key=lambda column: (len(column.texts) / max(1, column.rows) > 0.5, -len(column.plain)))
        del self._left[best.name]
        return best

    def _say(self, field: str, column: _Column, what: str = "") -> None:
        self._found.append(f"{field:<16} {column.name}{f' ({what})' if what else ''}")

    def _lack(self, field: str, why: str) -> None:
        self._lacking.append(f"{field:<16} {why}")

    def _candidates(self) -> str:
        """Returns columns whose values come again as ids do: more than a category has, and fewer than rows."""
        fitting = [
            column
            for column in self._left.values()
            if _CATEGORIES_MAX < len(column.distinct) < 0.8 * len(column.texts)
            and len(column.texts) > 0.8 * column.rows
            and not column.time_format
            and not self._is_measure(column)
            and column.share(_is_word) > MOST
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
        is_right: Callable[[_Column], bool] = lambda one: len(one.distinct) == len(one.texts) == one.rows > 1  # noqa: E731
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

    def _with(self, field: str, column: _Column, line: str, what: str = "") -> str:
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
            unit = "hours" if step.plain in ("step", "hour") else "seconds"
            keys = f'format = "{unit}", origin = "2024-01-01T00:00:00Z"'
            line = f"event_time_ms = {{ column = {_quoted(step.name)}, {keys} }}"
            return self._with(field, step, f"# Counted from a start that the table does not name.\n{line}", unit)
        form = column.time_format
        if form in (unit for unit, _ in _EPOCHS):
            return self._with(
                field, column, f'event_time_ms = {{ column = {_quoted(column.name)}, format = "{form}" }}', form
            )
        clock = self._clock(column, form)
        if clock is not None:
            has_seconds = clock.share(lambda text: text.count(":") == 2) > MOST
            of_twelve = clock.share(lambda text: text[-1:] in "mM") > MOST
            hours = "%I:%M" if of_twelve else "%H:%M"
            form = f"{form} {hours}{':%S' * has_seconds}{' %p' * of_twelve}"
            keys = f'format = "{form.replace("iso", "%Y-%m-%d")}", zone = "UTC"'
            line = f"event_time_ms = {{ columns = {_list((column.name, clock.name))}, {keys} }}    # whose clock?"
            self._say(field, clock, "the time of the day")
            return self._with(field, column, line, form)
        keys = "" if form == "iso" else f', format = "{form}"'
        note = ""
        if form[:5] in ("%m/%d", "%d/%m") and column.reads(_swapped(form)):
            note = f"# Day and month may be the other way round: {_swapped(form)}.\n"
        line = f'event_time_ms = {{ column = {_quoted(column.name)}{keys}, zone = "UTC" }}    # whose clock?'
        return self._with(field, column, note + line, form)

    def _clock(self, column: _Column, form: str) -> _Column | None:
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
            return f'{line}\n{field} = {{ constant = "unknown" }}'
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
        keys += f", strip = {_quoted(strip)}" if strip else ""
        self._money = strip + column.name
        line = (
            f"amount_minor = {{ column = {_quoted(column.name)}{keys} }}"
            if keys
            else f"amount_minor = {_quoted(column.name)}"
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
        digits = load_rates().minor_digits
        return max([2, *(digits.get(text, 2) for column in columns for text in column.distinct)])

    @property
    def _form_of_numbers(self) -> NumberForm:
        return NumberForm(self._form.decimal, self._form.thousands)

    def _strip(self, column: _Column) -> str | None:
        """Returns the characters around a column's numbers; None if it holds none, or holds texts that are right."""
        if column.is_number:
            return ""
        return stripped_of(list(column.distinct)[:_NUMBERS], self._form_of_numbers)

    def _said_beside_amounts(self) -> str:
        """Returns lines about columns of amounts with words or signs that mean something, such as two currencies."""
        lines = []
        for column in self._left.values():
            around = around_numbers(list(column.distinct)[:_NUMBERS], self._form_of_numbers)
            if re.fullmatch(FIELD_NAMES["amount_minor"], column.plain) and any(map(any, around)):
                told = ", ".join(repr(" ".join(filter(None, pair))) for pair in around[:5] if any(pair))
                lines.append(
                    f"# {column.name!r} has {told} at its numbers. Make columns of plain numbers and of currencies.\n"
                )
        return "".join(lines)

    def _holds_prices(self, column: _Column) -> bool:
        """Returns whether values look like prices by themselves: most have two decimals, or a currency beside them."""
        cents = re.compile(r"[^.]*[0-9]+\.[0-9]{2}[^.0-9]*").fullmatch
        form, is_number = self._form_of_numbers, column.is_number
        if self._strip(column) is None:
            return False
        return column.share(lambda text: cents(text if is_number else form.plain(text)) is not None) > 0.8

    def _is_measure(self, column: _Column) -> bool:
        return (column.is_number and not column.is_whole) or self._holds_prices(column)

    def _only(self, is_right: Callable[[_Column], bool]) -> _Column | None:
        """Returns the one column that is right by its values, whatever its name, and takes it away from those left."""
        fitting = [column for column in self._left.values() if column.texts and is_right(column)]
        if len(fitting) != 1:
            return None
        del self._left[fitting[0].name]
        return fitting[0]

    def _currency(self, field: str) -> str:
        is_right: Callable[[_Column], bool] = lambda one: one.share(lambda text: _is_currency(text.upper())) > MOST  # noqa: E731
        column = self._take(FIELD_NAMES[field], is_right)
        column = column or self._only(lambda one: one.share(_is_currency) > MOST)
        if column is None:
            code = next((code for sign, code in CURRENCY_SIGNS.items() if sign in self._money), "EUR")
            self._lack(field, f"no column names it: the mapping says {code}")
            return f'currency = {{ constant = "{code}" }}    # no column names it: which is it?'
        return self._with(field, column, f"currency = {_quoted(column.name)}")

    def _word(self, field: str) -> str:
        rules: dict[str, Callable[[str], bool]] = {
            "ip": is_address,
            "mcc": lambda text: re.fullmatch("[0-9]{3,4}", text) is not None,
            "country": lambda text: re.fullmatch("[A-Za-z]{2}", text) is not None,
            "channel": lambda _: True,
            "declined": lambda text: text.lower() in ("0", "1", "true", "false", "yes", "no"),
            "propensity": lambda text: re.fullmatch("0?[.,][0-9]*[1-9][0-9]*|1([.,]0*)?", text) is not None,
        }
        is_few: Callable[[_Column], bool] = lambda one: field != "channel" or len(one.distinct) <= _CATEGORIES_MAX  # noqa: E731
        column = self._take(FIELD_NAMES[field], lambda one: is_few(one) and one.share(rules[field]) > MOST)
        if column is None:
            return ""
        return self._with(field, column, f"{field} = {_quoted(column.name)}")

    def _own_line(self, one: object) -> str:
        name = getattr(one, "name", "")
        column = self._take(re.escape(name), lambda _: True)
        if column is None and name.startswith(_OWN):
            # The suggested payment.py calls a column so if its name is a word already.
            column = self._take(re.escape(name.removeprefix(_OWN)), lambda _: True)
        side = next((side for side in (LATITUDE, LONGITUDE) if name.endswith(f"_{side.name}")), None)
        if column is None and side is not None:
            place = name.removesuffix(f"_{side.name}")
            column = self._take(side.pattern, lambda one: place_of(one.plain, side) == place)
        if column is None:
            return ""
        form = getattr(one, "form", None)
        source = _source(column, hash=form is Form.EMAIL)
        if form is Form.INSTANT and column.time_format not in ("", "iso"):
            source = f'{{ column = {_quoted(column.name)}, format = "{column.time_format}" }}'
        return self._with(name, column, f"{name} = {source}")

    def _label(self) -> _Column | None:
        column = self._take(LABEL, lambda one: 1 <= len(one.distinct) <= 6)
        is_said: Callable[[str], bool] = lambda text: text.lower() in FRAUD_WORDS + GENUINE_WORDS  # noqa: E731
        return column or self._take(DISPUTE, lambda one: one.share(is_said) > MOST)

    def _label_lines(self, label: _Column | None, label_time: _Column | None) -> list[str]:
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
        lines = ["[label]", f"column = {_quoted(label.name)}", f"fraud = {_list(fraud)}", f"genuine = {_list(genuine)}"]
        if unknown:
            lines.append(f"unknown = {_list(unknown)}    # which of these mean fraud?")
        if label_time is not None:
            form = label_time.time_format
            keys = "" if form == "iso" else f', format = "{form}"'
            keys += "" if label_time.is_number else ', zone = "UTC"'
            lines.append(f"time = {{ column = {_quoted(label_time.name)}{keys} }}")
            self._say("label time", label_time, form)
        return [
            *lines,
            "# The table must say when a label was known, or you must: features and training count on it.",
            'delay = "7d"    # or { median = "10d", sigma = 0.8 }, or { quantiles = ["1d", "7d", "30d", "90d"] }',
        ]

    def _payment(self) -> tuple[str, int, int]:
        """Returns a payment.py for the columns left, how many of them it has, and for how many it has no room."""
        chosen: dict[str, tuple[str, str, str]] = {}
        left_out = 0
        taken = {*self._fields.by_name, *keyword.kwlist}
        places, fields = self._places(), 0
        for column in self._left.values():
            name = column.plain if column.plain[:1].isalpha() else f"field_{column.plain}"
            word, rest, columns = *self._declared(column, name), f"column {column.name!r}"
            if column.name in places:
                (name, columns), word, rest = places[column.name], "coordinates", ""
            name = name[:50] if name not in taken else f"{_OWN}{name}"[:50]
            if not word or name in chosen:
                continue
            more = 2 if word == "coordinates" else 1
            if fields + more <= _DECLARED_GUESSED:
                chosen[name] = word, rest, columns
                fields += more
            else:
                left_out += more
        lines, names, words = list[str](), list[str](), [word for word, _, _ in chosen.values()]
        number = 1
        for place, (name, (word, rest, columns)) in enumerate(chosen.items(), 1):
            # A field is a variable of payment.py. The words of its other lines must stay words.
            name = f"{_OWN}{name}"[:63] if name in words[place:] else name
            names.append(name)
            lines.append(f"{name} = {word}({_quoted(name)}, {number}{rest})    # {columns}")
            # Coordinates are two fields.
            number += 2 if word == "coordinates" else 1
        if left_out:
            lines.append(f"# {left_out} columns more could be fields. A payment has at most {DECLARED_MAX}: choose.")
        if not names:
            return "", 0, 0
        head = [
            '"""Fields of our own: a first guess. A number belongs to its field for ever."""',
            "",
            f"from paywarden.features.catalogue.fields import Payment, {', '.join(sorted(set(words)))}",
        ]
        payment = "\n".join([*head, "", *lines, "", f"PAYMENT = Payment({', '.join(names)})", ""])
        return payment, fields, left_out

    def _places(self) -> dict[str, tuple[str, str]]:
        """Returns the place that a column is a side of, and both columns' names in words, by the column's name."""
        sides: list[dict[str, _Column]] = []
        for side in (LATITUDE, LONGITUDE):
            holds_side = [
                one
                for one in self._left.values()
                if re.fullmatch(side.pattern, one.plain) and one.is_number and one.share(side.holds) > MOST
            ]
            sides.append({place_of(one.plain, side): one for one in holds_side})
        latitudes, longitudes = sides
        found: dict[str, tuple[str, str]] = {}
        for place in latitudes.keys() & longitudes.keys():
            pair = latitudes[place], longitudes[place]
            both = f"columns {pair[0].name!r} and {pair[1].name!r}"
            found |= {one.name: (place, both) for one in pair}
        return found

    def _declared(self, column: _Column, name: str) -> tuple[str, str]:
        """Returns a word of features/catalogue/fields.py and its other arguments; empty for a column without use."""
        if len(column.texts) < column.rows * 0.01 or len(column.distinct) < 2:
            return "", ""
        for side in (LATITUDE, LONGITUDE):
            if column.is_number and re.fullmatch(side.pattern, name) and column.share(side.holds) > MOST:
                most = side.degrees
                return "decimal", f', unit="degrees", least=-{most}, most={most}, decimals=6, personal=True'
        if re.search(r"(^|_)(bin|iin)$", name) and column.share(_is_bin) > MOST:
            return "bin_number", ""
        if column.holds_cards:
            return "", ""
        if {text.lower() for text in column.distinct} <= {"0", "1", "true", "false", "yes", "no", "y", "n", "t", "f"}:
            return "flag", ""
        if column.share(lambda text: re.fullmatch(PATTERNS[Form.EMAIL], text) is not None) > MOST:
            return "email", ""
        if not column.is_number and column.share(is_address) > MOST:
            return "address", ""
        if column.time_format and (not column.is_number or _TIME_NAME.search(name)):
            is_early = not column.is_number and any(map(_EARLY_YEAR.search, column.distinct))
            earliest = ', earliest="1900-01-01"' if is_early else ""
            return "time", earliest + (", personal=True" if _BIRTH_NAME.search(name) else "")
        if re.search("country", name) and column.share(lambda text: re.fullmatch("[A-Z]{2}", text) is not None) > MOST:
            return "country", ""
        if column.is_number:
            return self._number(column, name)
        # Rows with line breaks or long notes would be refused.
        if column.share(_is_word) <= MOST:
            return "", ""
        if len(column.distinct) <= _CATEGORIES_MAX:
            return "category", f", among={_list(sorted(filter(_is_word, column.distinct)))}"
        return "text", ", personal=True"

    def _number(self, column: _Column, name: str) -> tuple[str, str]:
        if re.search(r"(^|_)(id|num|no|number|zip|code|acct|account)$", name):
            return "text", ", personal=True"
        numbers = [float(text) for text in column.distinct if is_plain_number(text)]
        finest = 0 if column.is_whole else max(len(text.partition(".")[2]) for text in column.distinct)
        decimals = min(6, finest)
        # A field holds 2**53 units of its last digit.
        while decimals and 10 * max(map(abs, numbers)) * 10**decimals > WHOLE_MAX:
            decimals -= 1
        bounds = [_beyond(one, 10**decimals) for one in numbers]
        least, most = min(0, *bounds), max(1, *bounds)
        if column.is_whole:
            return "integer", f', unit="count", least={least}, most={most}'
        return "decimal", f', unit="units", least={least}, most={most}, decimals={decimals}'


def _beyond(number: float, scale: int) -> int:
    """Returns a round bound of a field with 1 / scale as its last digit: a number that was seen is within it.

    It is ten times further out, or as far as sums allow (kernel.NUMBER_MAX_IN_SUMS).
    """
    next_round = int(f"1{'0' * len(str(int(abs(number))))}")
    size = next((one for one in (10 * next_round, next_round) if one * scale <= NUMBER_MAX_IN_SUMS), next_round)
    size = min(size, WHOLE_MAX // scale)
    return -size if number < 0 else size


def _is_nearly_unique(column: _Column) -> bool:
    return len(column.texts) == column.rows and 0 < column.rows - len(column.distinct) <= column.rows * (1 - MOST) / 2


def _swapped(form: str) -> str:
    return form.replace("%m/%d", "%_").replace("%d/%m", "%m/%d").replace("%_", "%d/%m")


def _reads(form: str, texts: Sequence[str]) -> bool:
    """Returns whether nearly all texts are times of a format."""
    if not texts:
        return False
    array = pa.array(texts, pa.string())
    _, offsets, content = array.buffers()
    local, offset = np.zeros(len(texts), np.int64), np.zeros(len(texts), np.int64)
    status = np.ones(len(texts), np.int8)
    read_times(np.frombuffer(content, np.uint8), np.frombuffer(offsets, np.int32)[: len(texts) + 1],
               steps_of_format("" if form == "iso" else form), local, offset, status)  # fmt: skip
    return bool((status == RIGHT).mean() > MOST)


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


def _source(column: _Column, *, hash: bool = False) -> str:  # noqa: A002 - the key's name
    return f"{{ column = {_quoted(column.name)}, hash = true }}" if hash else _quoted(column.name)


def _quoted(text: str) -> str:
    """Returns a text as TOML and Python both read it: one line, with no character that a file would not show."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(one if one.isprintable() else _code(ord(one)) for one in escaped) + '"'


def _code(character: int) -> str:
    return f"\\u{character:04x}" if character < 0x10000 else f"\\U{character:08x}"


def _list(texts: Iterable[str]) -> str:
    return "[" + ", ".join(_quoted(text) for text in texts) + "]"
