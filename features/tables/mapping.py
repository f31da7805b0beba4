"""The mapping: which column of a table is which field of a payment.

    [input]
    missing = ["NULL"]

    [fields]
    payment_id = "transaction"
    event_time_ms = { column = "when", format = "%d/%m/%Y %H:%M", zone = "Europe/Berlin" }
    card_id = { column = "pan", hash = true }
    merchant_id = "shop"
    amount_minor = "amount"
    currency = { constant = "EUR" }
    channel = { column = "entry", values = { W = "ecom", C = "pos" }, other = "refuse" }

    [label]
    column = "is_fraud"
    fraud = ["1"]
    genuine = ["0"]
    delay = "7d"

Mistakes are refused with file, line and key, all in one message, before the table is opened.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from paywarden.features.catalogue.fields import decimal
from paywarden.features.history.history import PROPENSITY
from paywarden.features.tables.labels import DelayTable, delay_of_quantiles, fixed_delay, lognormal_delay
from paywarden.features.tables.zones import Zone, is_zone
from paywarden.schemas.durations import duration_ms_of
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import read_regular
from paywarden.schemas.payment_fields import DECLARED_MAX, TABLE_ALONE, Form, PaymentField, PaymentFields

FORMATS = ("csv", "parquet")
UNITS = ("seconds", "milliseconds", "microseconds", "nanoseconds", "minutes", "hours", "days")
"""Units of a time that is a number. All but the first four need an origin."""
AMBIGUOUS = ("first", "second", "refuse")
OTHERS = ("keep", "missing", "refuse")
DIRECTIVES = "YmdHMSfybBpIzjT"
"""The letters that may follow a % in a time's format."""

DELAY_MS_MAX = 3650 * 86_400_000
_MONEY = (Form.AMOUNT, Form.MONEY)
_TIMES = (Form.TIME, Form.INSTANT)

# Ids that stand for one that is not known. Payments with such an id would be those of one card, or of one merchant.
_PLACEHOLDERS = frozenset({"", "?", "-", "0", "none", "null", "n/a", "na", "nan", "unknown", "todo", "xxx"})

_Settings = TypeVar("_Settings")
_Arguments = ParamSpec("_Arguments")
_Read = TypeVar("_Read")


@dataclass(frozen=True)
class InputForm:
    """The form of the files. `columns` names those of CSV files that have no head line.

    A cell is without the blanks at its ends; an empty one, and one with a text of `missing`, holds no value.
    """

    format: str = ""
    delimiter: str = ","
    quote: str = '"'
    encoding: str = "utf-8"
    columns: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    decimal: str = "."
    thousands: str = ""


@dataclass(frozen=True)
class TimeSource:
    """How a column tells a time. `zone` is a zone's name or an offset; `zone_column` holds these."""

    format: str = "iso"
    zone: str = "UTC"
    zone_column: str = ""
    ambiguous: str = "first"
    origin: str = ""

    @property
    def is_number(self) -> bool:
        """Returns whether the column counts a unit since 1970 or since the origin."""
        return self.format in UNITS

    @property
    def is_date(self) -> bool:
        """Returns whether a format names days alone."""
        directives = set(re.findall("%(.)", self.format))
        return self.format != "iso" and not self.is_number and not directives & set("HIMSfT")


@dataclass(frozen=True)
class FieldSource:
    """Where the values of one field come from: a column, a constant, or, for an id, the row's position or columns."""

    column: str = ""
    columns: tuple[str, ...] = ()
    constant: str | int | float | bool | None = None
    made_from: str = ""
    from_zone: bool = False
    values: Mapping[str, str] | None = None
    other: str = "keep"
    time: TimeSource = TimeSource()
    unit: str = "major"
    round: bool = False
    strip: str = ""
    prefix: str = ""
    hash: bool = False

    @property
    def used(self) -> tuple[str, ...]:
        """Returns the columns that the field is read from."""
        zone = (self.time.zone_column,) if self.time.zone_column else ()
        return (*((self.column,) if self.column else ()), *self.columns, *zone)


@dataclass(frozen=True)
class LabelSource:
    """The column with the label, its values, and when a label was known.

    With a `file` its columns are those of a table of its own, whose `payment_id` has the ids of the payments. Without a
    `column` each of its payments is a fraud; payments that it does not name are as `others` says.
    """

    column: str
    fraud: tuple[str, ...]
    genuine: tuple[str, ...]
    unknown: tuple[str, ...] = ()
    time_column: str = ""
    time: TimeSource = TimeSource()
    fraud_delay: DelayTable | None = None
    genuine_delay: DelayTable | None = None
    seed: int = 0
    file: str = ""
    payment_id: str = ""
    others: str = "genuine"
    input: InputForm = InputForm()

    @property
    def says_unknown(self) -> bool:
        """Whether it says of some payments that nobody knows their label, beside those that are genuine."""
        return bool(self.genuine) and (bool(self.unknown) or self.others == "unknown")

    @property
    def used(self) -> tuple[str, ...]:
        """Returns the columns that the label is read from."""
        names = (self.payment_id, self.column, self.time_column, self.time.zone_column)
        return tuple(dict.fromkeys(name for name in names if name))


@dataclass(frozen=True)
class TableMapping:
    """A whole mapping. `name` is that of its file, for messages."""

    name: str
    input: InputForm
    fields: Mapping[str, FieldSource]
    label: LabelSource | None
    payment: PaymentFields = TABLE_ALONE

    @property
    def columns(self) -> tuple[str, ...]:
        """Returns the columns of the table that the mapping uses, each once."""
        names = [name for source in self.fields.values() for name in source.used]
        own = self.label is not None and not self.label.file
        return tuple(dict.fromkeys([*names, *(self.label.used if self.label is not None and own else ())]))

    @property
    def needs_key(self) -> bool:
        """Returns whether a field is hashed."""
        return any(source.hash for source in self.fields.values())


def read_mapping(path: str | Path, payment: PaymentFields = TABLE_ALONE) -> TableMapping:
    """Returns the mapping of a file. Raises Misconfigured that names the file, the line and the key."""
    try:
        text = read_regular(path).decode("utf-8")
    except OSError as error:
        raise Misconfigured(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise Misconfigured(f"{path} is not UTF-8 text") from error
    return parse_mapping(text, str(path), payment)


def parse_mapping(text: str, name: str, payment: PaymentFields = TABLE_ALONE) -> TableMapping:
    """Returns the mapping of a text; `name` is that of its file."""
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, and brackets in brackets, are TOML that nobody can read.
        raise Misconfigured(f"{name}: {error}") from error
    return _Reader(text, name, payment).mapping(content)


class _Reader:
    """Reads the sections. Each message says where it is about."""

    def __init__(self, text: str, name: str, payment: PaymentFields) -> None:
        self._lines, self._name = text.splitlines(), name
        # A field of this name that the project declares is its own.
        self._has_propensity = PROPENSITY not in payment.by_name
        self._payment = (
            replace(payment, declared=(*payment.declared, _propensity())) if self._has_propensity else payment
        )
        self._payment_alone = payment
        self._mistakes: list[str] = []

    def mapping(self, content: Mapping[str, Any]) -> TableMapping:
        for section, value in content.items():
            self._try(self._check_section, section, value)
        self._raise_mistakes()
        form = self._try(self._input, content.get("input", {}))
        given: Mapping[str, Any] = content.get("fields", {})
        tried = {key: self._try(self._field, key, value) for key, value in given.items()}
        lacking = [one.name for one in self._payment.all if one.is_required and one.name not in given]
        if lacking:
            self._mistakes.append(f"{self._name}: [fields] must say where {', '.join(lacking)} comes from")
        label = self._try(self._label, content["label"]) if "label" in content else None
        self._raise_mistakes()
        assert form is not None
        sources = {key: source for key, source in tried.items() if source is not None}
        if (offset := sources.get("utc_offset_minutes")) is not None and offset.from_zone:
            self._check_from_zone(sources["event_time_ms"])
        if label is not None and label.file and not sources["payment_id"].column:
            wanted = f'"{label.payment_id}" has the ids of a column; [fields] payment_id must name that column'
            raise self._wrong("label", "payment_id", wanted)
        is_kept = self._has_propensity and PROPENSITY in sources
        return TableMapping(self._name, form, sources, label, self._payment if is_kept else self._payment_alone)

    def _try(
        self, read: Callable[_Arguments, _Read], *args: _Arguments.args, **options: _Arguments.kwargs
    ) -> _Read | None:
        """Returns what `read` returns; None after a mistake, which is kept for one message about all."""
        try:
            return read(*args, **options)
        except Misconfigured as error:
            self._mistakes.append(str(error))
            return None

    def _raise_mistakes(self) -> None:
        if len(self._mistakes) > 1:
            raise Misconfigured(f"{len(self._mistakes)} mistakes: {'; '.join(self._mistakes)}")
        if self._mistakes:
            raise Misconfigured(self._mistakes[0])

    def _check_section(self, section: str, value: object) -> None:
        if section not in ("input", "fields", "label"):
            raise self._wrong("", section, "there is no such section; there are [input], [fields] and [label]")
        if not isinstance(value, dict):
            raise self._wrong("", section, "must be a section")

    def _input(self, given: Mapping[str, Any], section: str = "input", name: str = "") -> InputForm:
        form = self._filled(InputForm, section, name, given)

        def wrong(key: str, what: str) -> Misconfigured:
            return self._wrong(section, name or key, f"{key}: {what}" if name else what)

        key = next((key for key in ("delimiter", "decimal") if len(getattr(form, key).encode()) != 1), "")
        if key:
            raise wrong(key, "must be one ASCII character")
        for key in ("quote", "thousands"):
            if len(getattr(form, key).encode()) > 1:
                raise wrong(key, "must be one ASCII character, or empty")
        if form.format not in ("", *FORMATS):
            raise wrong("format", f"must be one of {', '.join(FORMATS)}, got {form.format!r}")
        if form.quote == form.delimiter or form.delimiter in "\r\n" or form.quote in ("\r", "\n"):
            raise wrong("delimiter", "delimiter, quote and line ends must differ")
        if form.decimal == form.thousands:
            raise wrong("thousands", "must differ from decimal")
        if len(set(form.columns)) < len(form.columns):
            raise wrong("columns", "names a column twice")
        if not _is_encoding(form.encoding):
            raise wrong("encoding", f"is not the name of a text encoding: {form.encoding!r}")
        return form

    def _field(self, name: str, given: object) -> FieldSource:
        field = self._payment.by_name.get(name)
        if field is None:
            known = ", ".join(self._payment.by_name)
            raise self._wrong("fields", name, f"is no field of a payment; there are {known}")
        if isinstance(given, str):
            given = {"column": given}
        if not isinstance(given, dict):
            raise self._wrong("fields", name, 'must name a column, or be a table such as { constant = "EUR" }')
        time = {key: given[key] for key in given.keys() & _names(TimeSource)}
        rest = {key: value for key, value in given.items() if key not in time}
        source = self._filled(FieldSource, "fields", name, {**rest, "time": self._time("fields", name, time)})
        allowed = _keys_of(field)
        for key in given:
            if key not in allowed:
                raise self._wrong("fields", name, f"{key} is not for this field; wanted {', '.join(sorted(allowed))}")
        origins = [bool(source.column), bool(source.columns), source.constant is not None, bool(source.made_from)]
        if sum([*origins, source.from_zone]) != 1:
            raise self._wrong("fields", name, "must have one of " + ", ".join(sorted(allowed & _ORIGINS)))
        if source.columns and source.time.is_number:
            raise self._wrong("fields", name, "columns are for times that are texts: a date and a time of the day")
        if source.made_from not in ("", "position"):
            raise self._wrong("fields", name, f'made_from must be "position", got {source.made_from!r}')
        if source.other not in OTHERS:
            raise self._wrong("fields", name, f"other must be one of {', '.join(OTHERS)}, got {source.other!r}")
        if set("()-+") & set(source.strip):
            raise self._wrong("fields", name, "strip must not have ( ) - or +: these say that a number is below 0")
        if source.unit not in ("major", "minor"):
            raise self._wrong("fields", name, f"unit must be major or minor, got {source.unit!r}")
        if field.form is Form.EMAIL and not source.hash:
            raise self._wrong("fields", name, "must have hash = true: no history holds an e-mail address in clear")
        self._check_values(name, source)
        self._check_constant(name, source.constant)
        return source

    def _check_constant(self, name: str, constant: object) -> None:
        """Refuse an id that would give all payments one card, one device or an invented merchant."""
        if constant is None or name not in ("card_id", "device_id", "merchant_id"):
            return
        if name != "merchant_id":
            raise self._wrong("fields", name, "a constant makes all payments those of one; name the column of the ids")
        if str(constant).strip().lower() in _PLACEHOLDERS:
            wanted = "name the column of the ids, or give the id of the one merchant"
            raise self._wrong("fields", name, f"{constant!r} is no merchant; {wanted}")

    def _check_values(self, name: str, source: FieldSource) -> None:
        for key, value in (source.values or {}).items():
            if not isinstance(value, str):
                raise self._wrong("fields", name, f'values: {key} must be a text, as in {key} = "ecom"')
        if source.values is None and source.other != "keep":
            raise self._wrong("fields", name, "other is for a source with values")

    def _check_from_zone(self, time: FieldSource) -> None:
        if time.time.is_number or time.constant is not None:
            raise self._wrong("fields", "utc_offset_minutes", "from_zone needs times that are texts of a local clock")

    def _time(self, section: str, name: str, given: Mapping[str, Any]) -> TimeSource:
        time = self._filled(TimeSource, section, name, given)
        if time.format not in ("iso", *UNITS):
            self._check_format(section, name, time.format)
        if time.format in UNITS[4:] and not time.origin:
            raise self._wrong(section, name, f"times in {time.format} need an origin, as in 2020-01-01T00:00:00Z")
        if time.origin and not time.is_number:
            raise self._wrong(section, name, "origin is for times that are numbers")
        if time.origin and Zone.moment_ms(time.origin) is None:
            raise self._wrong(section, name, "origin must be a time such as 2020-01-01T00:00:00Z")
        if not is_zone(time.zone):
            raise self._wrong(
                section, name, f"zone must be a name such as Europe/Berlin or an offset, got {time.zone!r}"
            )
        if time.ambiguous not in AMBIGUOUS:
            raise self._wrong(section, name, f"ambiguous must be one of {', '.join(AMBIGUOUS)}, got {time.ambiguous!r}")
        return time

    def _check_format(self, section: str, name: str, form: str) -> None:
        directives = re.findall("%(.?)", form)
        wrong = next((one for one in directives if not one or one not in DIRECTIVES + "%"), None)
        if wrong is not None:
            raise self._wrong(section, name, f"format has %{wrong}, which is not one of %{' %'.join(DIRECTIVES)}")
        if not {"Y", "y"} & set(directives) or not ({"m", "b", "B"} & set(directives) or "j" in directives):
            wanted = f"iso, {', '.join(UNITS)}, or year, month and day as in %d/%m/%Y %H:%M"
            raise self._wrong(section, name, f"format must be {wanted}, got {form!r}")

    def _label(self, given: Mapping[str, Any]) -> LabelSource:
        known = {"column", "fraud", "genuine", "unknown", "time", "delay", "fraud_delay", "genuine_delay", "seed",
                 *_LABEL_FILE_KEYS}  # fmt: skip
        for key in given:
            if key not in known:
                raise self._wrong("label", key, f"there is no such key; there are {', '.join(sorted(known))}")
        lists = {key: self._texts("label", key, given.get(key, [])) for key in ("fraud", "genuine", "unknown")}
        column, seed = given.get("column", ""), given.get("seed", 0)
        file = self._label_file(given)
        if not isinstance(column, str) or not (column or file):
            raise self._wrong("label", "column", "must name the column with the label")
        if not lists["fraud"] and (column or not file):
            raise self._wrong("label", "fraud", "must list the values that mean fraud")
        values = [value for key in lists for value in lists[key]]
        if len(set(values)) < len(values):
            raise self._wrong("label", "genuine", "lists a value that another label has")
        if type(seed) is not int or not 0 <= seed < 2**63:
            raise self._wrong("label", "seed", "must be a whole number from 0")
        time = self._label_time(given.get("time"))
        delays = [self._delay(key, given.get(key, given.get("delay"))) for key in ("fraud_delay", "genuine_delay")]
        if time is None and None in delays:
            raise self._wrong("label", "delay", 'must say when a label was known: a time, or a delay such as "7d"')
        if file.get("others") == "genuine" and delays[1] is None:
            wanted = 'must say when a payment that the file does not name is known to be genuine, as in "30d"'
            raise self._wrong("label", "genuine_delay", wanted)
        time_column, source = time or ("", TimeSource())
        return LabelSource(column, lists["fraud"], lists["genuine"], lists["unknown"], time_column, source, delays[0],
                           delays[1], seed, **file)  # fmt: skip

    def _label_file(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the settings in [label] about a second table; nothing if it names none."""
        if "file" not in given:
            if key := next((key for key in ("payment_id", "others", "input") if key in given), ""):
                raise self._wrong("label", key, "is for labels of a second table: name it with `file`")
            return {}
        found = {key: given.get(key, "") for key in ("file", "payment_id")} | {"others": given.get("others", "genuine")}
        for key, value in found.items():
            if not isinstance(value, str) or not value:
                what = "the table with the labels" if key == "file" else "its column with the ids of the payments"
                raise self._wrong("label", key, f"must name {what}")
        if found["others"] not in ("genuine", "unknown"):
            raise self._wrong("label", "others", f"must be genuine or unknown, got {found['others']!r}")
        form = given.get("input", {})
        if not isinstance(form, dict):
            raise self._wrong("label", "input", 'must be a table such as { delimiter = ";" }')
        return {**found, "input": self._input(form, "label", "input")}

    def _label_time(self, given: object) -> tuple[str, TimeSource] | None:
        if given is None:
            return None
        given = {"column": given} if isinstance(given, str) else given
        if not isinstance(given, dict) or not isinstance(given.get("column"), str) or not given["column"]:
            raise self._wrong("label", "time", "must name a column, or be a table with a column")
        rest = {key: value for key, value in given.items() if key != "column"}
        return given["column"], self._time("label", "time", rest)

    def _delay(self, key: str, given: object) -> DelayTable | None:
        if given is None:
            return None
        key = key if any(line.split("=")[0].strip() == key for line in self._lines) else "delay"
        if (fixed := duration_ms_of(given)) is not None and fixed <= DELAY_MS_MAX:
            return fixed_delay(fixed)
        if isinstance(given, dict) and given.keys() == {"quantiles"}:
            listed = given["quantiles"] if isinstance(given["quantiles"], list) else []
            found = [duration_ms_of(one) for one in listed]
            known = [one for one in found if one is not None and one <= DELAY_MS_MAX]
            if len(known) == len(found) >= 2 and known == sorted(known):
                return delay_of_quantiles(known)
        if isinstance(given, dict) and given.keys() <= {"median", "sigma", "most"} >= {"median"}:
            median, most = duration_ms_of(given.get("median")), duration_ms_of(given.get("most", "365d"))
            sigma = given.get("sigma", 1.0)
            is_number = isinstance(sigma, int | float) and not isinstance(sigma, bool)
            if median and most and is_number and 0 <= sigma <= 5 and median <= most <= DELAY_MS_MAX:
                return lognormal_delay(median, float(sigma), most)
        wanted = '"7d", { quantiles = ["1d", "7d", "30d"] } in ascending order, or { median = "7d", sigma = 1.0 }'
        raise self._wrong("label", key, f"must be {wanted}")

    def _texts(self, section: str, key: str, given: object) -> tuple[str, ...]:
        if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
            raise self._wrong(section, key, 'must be a list of texts, as in ["1"]')
        return tuple(given)

    def _filled(self, kind: type[_Settings], section: str, name: str, given: Mapping[str, Any]) -> _Settings:
        """Returns a dataclass with the values given, after a check of their types."""
        values = {}
        for key, value in given.items():
            where = name or key
            if key not in _names(kind):
                raise self._wrong(
                    section, where, f"there is no key {key!r}; there are {', '.join(sorted(_names(kind) - {'time'}))}"
                )
            wanted = _TYPES.get(key, str)
            if key in ("columns", "missing"):
                value = self._texts(section, where, value)
            elif wanted is str and not isinstance(value, str):
                raise self._wrong(section, where, f"{key} must be a text, got {value!r}")
            elif wanted is bool and not isinstance(value, bool):
                raise self._wrong(section, where, f"{key} must be true or false, got {value!r}")
            elif wanted is dict and not isinstance(value, dict):
                raise self._wrong(section, where, f'{key} must be a table, as in {{ W = "ecom" }}')
            elif key == "constant" and not isinstance(value, str | int | float | bool):
                raise self._wrong(section, where, "constant must be a text, a number, true or false")
            values[key] = value
        return kind(**values)

    def _wrong(self, section: str, key: str, what: str) -> Misconfigured:
        line = self._line_of(section, key)
        where = f"[{section}] {key}" if section else f"[{key}]"
        return Misconfigured(f"{self._name}{f', line {line}' if line else ''}: {where}: {what}")

    def _line_of(self, section: str, key: str) -> int:
        """Returns the line of a key, 0 where no line begins with it."""
        inside = not section
        heads = (f"[{section}.{key}]",) if section else (f"[{key}]",)
        for number, line in enumerate(self._lines, 1):
            text = line.strip()
            if text in heads:
                return number
            if text.startswith("["):
                inside = text == f"[{section}]"
            elif inside and re.match(rf"[\"']?{re.escape(key)}[\"']?\s*[.=]", text):
                return number
        return 0


_LABEL_FILE_KEYS = ("file", "payment_id", "others", "input")
_ORIGINS = frozenset({"column", "columns", "constant", "made_from", "from_zone"})
_TYPES: Mapping[str, type] = {
    "values": dict, "round": bool, "hash": bool, "from_zone": bool, "constant": object, "time": object,
}  # fmt: skip


def _propensity() -> PaymentField:
    """Returns the column of a history that is no field of a payment: no request brings it, and no feature sees it."""
    field = decimal(PROPENSITY, DECLARED_MAX, unit="share", least=0, most=1, decimals=6).field
    assert field is not None
    return replace(field, minimum=1, wanted="a number above 0 and at most 1")


def _is_encoding(name: str) -> bool:
    try:
        # Python has encodings that make bytes of bytes, and one that refuses everything.
        b"a".decode(name)
    except UnicodeDecodeError:
        # A character of it has more bytes.
        return True
    except (LookupError, ValueError):
        return False
    return True


def _keys_of(field: PaymentField) -> frozenset[str]:
    """Returns the keys that the source of a field may have."""
    keys = {"column", "constant"}
    if field.name == "payment_id":
        return frozenset({"column", "columns", "made_from", "prefix", "hash"})
    if field.is_text:
        keys |= {"values", "other", "prefix"}
        if field.form not in (Form.CURRENCY, Form.COUNTRY, Form.MCC, Form.ADDRESS, Form.BIN):
            keys |= {"hash"}
    elif field.form in _TIMES:
        keys |= {"columns", *_names(TimeSource)}
    elif field.form is Form.FLAG:
        keys |= {"values", "other"}
    else:
        keys |= {"strip", "round"} | ({"unit"} if field.form in _MONEY else set())
        keys |= {"from_zone"} if field.form is Form.OFFSET else set()
    return frozenset(keys)


def _names(kind: type) -> frozenset[str]:
    return frozenset(field.name for field in fields(kind))
