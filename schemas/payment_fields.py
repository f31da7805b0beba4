"""The table of a payment's fields. Every reader of payments takes its rules from here.

    reader                         module                                      payment comes from
    JSON, protobuf                 scoring/requests/{json,protobuf}_form.py    the endpoint
    protobuf, compiled             scoring/requests/fast_requests.py           the endpoint
    Avro                           streams/profiles/decoder.py                 the topic `payments`
    Avro, compiled                 streams/profiles/fast_intake.py             the topic `payments`
    Parquet, rows of topics        features/history/payment_columns.py         a history, an archive

A reader refuses a payment with the first wrong field in the order of the table. It says what it got and what it
wanted, as in `country: is text of 7 characters; wanted two capital letters, A to Z (ISO 3166-1 alpha-2)`.
A message never holds an id, a text or an amount: each may be a card number in the wrong field.

No text may be a card number. For `card_id`, any 13 to 19 digits with a right check digit are one. For the other texts
the digits must also begin as the numbers of a card network do: one in ten numbers has a right check digit by chance,
and order numbers and acquirers' merchant numbers are such numbers.

Readers differ as `PaymentField.differs` says, and in their handling of a field that nobody declared. A JSON
request with one is refused, or read without it (`[limits] unknown_fields`). Protobuf and Avro know fields by number or
by schema, and ignore the others. Readers differ in nothing else.

A project declares fields of its own besides these (features/catalogue/fields.py). `PaymentFields` holds both:

    PaymentFields()                                the fields below
    PaymentFields(declared=(customer_id, …))       the fields below, then those of a project
"""

from __future__ import annotations

import enum
import ipaddress
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from paywarden.schemas.currencies import MINOR_DIGITS
from paywarden.schemas.errors import InvalidEvent, Misconfigured

# A key of the store has at most 511 bytes: an entity's name (at most 63 bytes), a colon and the id.
ID_BYTES_MAX = 256
# The longest IPv6 address with a zone, and any name of a channel.
WORD_BYTES_MAX = 64
# A billion euros. Multiplied by the largest exchange rate it still fits into 63 bits (features/profiles/money.py).
AMOUNT_MINOR_MAX = 10**11
# Offsets run from -12 to +14 hours; a day either way is room for any clock.
UTC_OFFSET_MINUTES_MAX = 1439
# Digits of a payment card's number, ISO/IEC 7812-1.
CARD_DIGITS_MIN, CARD_DIGITS_MAX = 13, 19
# The first four digits (from, to) and the lengths (from, to) of card networks' numbers: Mir, Mastercard, Diners Club,
# American Express, JCB, Visa, Maestro, Discover and UnionPay, with room for those that share a range.
_NETWORKS = (
    (2200, 2204, 16, 19),
    (2221, 2720, 16, 16),
    (3000, 3059, 14, 19),
    (3095, 3095, 14, 19),
    (3400, 3499, 15, 15),
    (3528, 3589, 16, 19),
    (3600, 3699, 14, 19),
    (3700, 3799, 15, 15),
    (3800, 3999, 14, 19),
    (4000, 4999, 13, 19),
    (5000, 5099, 13, 19),
    (5100, 5599, 16, 16),
    (5600, 5899, 13, 19),
    (6000, 6999, 13, 19),
    (8171, 8171, 16, 19),
)
# From 2000 on and before 2100. No millisecond count of these years is also a count of seconds or microseconds of them.
TIME_MS_MIN, TIME_MS_END = 946_684_800_000, 4_102_444_800_000

_DAY_MS = 86_400_000
# A larger bound would have no effect: the table's own bounds are closer.
TIME_BOUND_MS_MAX = TIME_MS_END - TIME_MS_MIN


class Form(enum.Enum):
    """The form that values of a field have."""

    ID = "id"
    CARD_TOKEN = "card token"
    WORD = "word"
    CURRENCY = "currency"
    MCC = "merchant category code"
    COUNTRY = "country"
    TIME = "time"
    AMOUNT = "amount"
    OFFSET = "offset"
    FLAG = "flag"
    # Only declared fields have the forms that follow.
    INTEGER = "integer"
    DECIMAL = "decimal"
    MONEY = "money"
    INSTANT = "instant"
    ADDRESS = "address"
    EMAIL = "e-mail"
    BIN = "bank identification number"


# Forms whose values match one pattern. A currency must be one of ISO 4217, too.
PATTERNS: Mapping[Form, str] = {
    Form.CURRENCY: "[A-Z]{3}",
    Form.MCC: "[0-9]{4}",
    Form.COUNTRY: "[A-Z]{2}",
    Form.BIN: "[0-9]{6,8}",
    # RFC 5321 allows more; no provider gives such addresses.
    Form.EMAIL: "[!-?A-~]{1,64}@[A-Za-z0-9.-]{1,190}",
}
_TEXTS = (Form.ID, Form.CARD_TOKEN, Form.WORD, Form.ADDRESS, *PATTERNS)
_WHOLE = (Form.TIME, Form.AMOUNT, Form.OFFSET, Form.INTEGER, Form.MONEY, Form.INSTANT)
# A double holds every whole number up to this one.
WHOLE_MAX = 2**53
DECIMALS_MAX = 9
# Numbers of declared fields. A payment's row has two columns for each number up to the largest in use.
DECLARED_MAX = 64


@dataclass(frozen=True)
class PaymentField:
    """A line of the table.

    `size_max` is the most bytes of UTF-8 that a text may have; `minimum` and `maximum` bound a number. `differs` says
    where readers differ on purpose, and why. With `column_may_lack` a Parquet file need not have the column.

    A declared field also has these. `number` never changes: records with the field keep their meaning when other fields
    come and go. `decimals` are the digits after the point that a DECIMAL keeps: its bounds are in units of the last one
    (minimum -9_000 with 2 decimals is -90.00). `unit` says what a number counts, `among` which values of a text are
    known. The value of a personal field is never logged or shown.
    """

    name: str
    form: Form
    wanted: str
    is_required: bool = False
    size_max: int = 0
    minimum: int = 0
    maximum: int = 0
    at_endpoint: bool = True
    column_may_lack: bool = False
    differs: str = ""
    number: int = 0
    decimals: int = 0
    unit: str = ""
    among: tuple[str, ...] = ()
    is_personal: bool = False

    @property
    def is_text(self) -> bool:
        """Returns whether values are texts."""
        return self.form in _TEXTS

    @property
    def is_number(self) -> bool:
        """Returns whether values are whole numbers."""
        return self.form in _WHOLE

    @property
    def is_decimal(self) -> bool:
        """Returns whether values are numbers that may have a fraction."""
        return self.form is Form.DECIMAL

    def scaled(self, value: float) -> int:
        """Returns a DECIMAL's value in units of its last digit: 1234 for 12.344 with 2 decimals. It must be finite.

        A tie goes to the even neighbour, as NumPy and compiled code round.
        """
        return round(value * 10.0**self.decimals)

    def __getstate__(self) -> dict[str, Any]:
        # Without what was cached: a function made here cannot be sent to another process.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    # Made once for each field: a check of a whole payment takes only a few microseconds.
    @cached_property
    def is_right(self) -> Callable[[Any], bool]:
        """Returns the rule, a function that says whether the field may hold a value of the right type."""
        least, most = self.minimum, self.size_max if self.is_text else self.maximum
        if self.form is Form.CURRENCY:
            return MINOR_DIGITS.__contains__
        if self.form in PATTERNS:
            matches = re.compile(PATTERNS[self.form]).fullmatch
            return lambda text: matches(text) is not None
        if self.form is Form.ADDRESS:
            return is_address
        if self.is_decimal:
            # A finite value may be infinite in units of its last digit, and then it has no whole number.
            largest = 2.0 * WHOLE_MAX / 10.0**self.decimals
            return lambda value: abs(value) <= largest and least <= self.scaled(value) <= most
        if self.form is Form.CARD_TOKEN:
            # Most tokens begin with a letter.
            return lambda text: _is_id(text, most) and (text[0].isalpha() or not looks_like_card_number(text))
        if self.is_text:
            return lambda text: _is_id(text, most) and (text[0].isalpha() or not is_number_of_a_network(text))
        return (lambda number: least <= number <= most) if self.is_number else lambda _: True

    def problem_of(self, value: Any) -> str:
        """Returns what is wrong with a value of the right type; empty when it is right. A missing value is None."""
        if value is None:
            return self._missing() if self.is_required else ""
        if self.is_right(value):
            return ""
        if self.is_text:
            return self._text_problem(value)
        if self.form is Form.TIME:
            return _time_problem(self, value) if value else self._missing()
        if self.is_decimal:
            return f"is out of bounds; wanted {self.wanted}"
        beyond = f"below {self.minimum}" if value < self.minimum else f"above {self.maximum}"
        return f"is {beyond}; wanted {self.wanted}"

    def narrowed(self, largest: int) -> PaymentField:
        """Returns the field with another largest size or number, in its rule and in its message."""
        before = self.size_max if self.is_text else self.maximum
        wanted = self.wanted.replace(str(before), str(largest))
        if self.is_text:
            return replace(self, size_max=largest, wanted=wanted)
        return replace(self, maximum=largest, wanted=wanted)

    def _missing(self) -> str:
        # A protobuf request without a time or an id reads as one with 0 or an empty text.
        also = " or 0" if self.form is Form.TIME else " or empty" if self.is_text else ""
        return f"is missing{also}; wanted {self.wanted}"

    def _text_problem(self, value: str) -> str:
        if not value:
            return self._missing() if self.is_required else f"is empty; wanted {self.wanted}"
        if self.form is Form.ADDRESS:
            return f"is no IPv4 or IPv6 address; wanted {self.wanted}"
        if self.form is Form.CURRENCY and re.fullmatch(PATTERNS[self.form], value):
            return f"is no currency of ISO 4217; wanted {self.wanted}"
        if self.form in PATTERNS:
            return f"is text of {len(value)} character{'s' * (len(value) != 1)}; wanted {self.wanted}"
        size = len(value.encode())
        if size > self.size_max:
            return f"is {size} bytes long; wanted {self.wanted}"
        if not value.isprintable():
            return f"holds a control character; wanted {self.wanted}"
        return f"looks like a real card number; wanted {self.wanted}"


def is_address(text: str) -> bool:
    """Returns whether a text is an IPv4 or IPv6 address, without a zone."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def _is_id(text: str, size_max: int) -> bool:
    """Returns whether a text can be an id: it is printable, because ids end up in keys, logs and terminals."""
    return 0 < (len(text) if text.isascii() else len(text.encode())) <= size_max and text.isprintable()


_LIMITS_MAY_BE_TIGHTER = (
    "[limits] of the endpoint may allow less than the table, never more: "
    "then every payment that is scored can also be read from the topic."
)
_WORD = f"printable text of 1 to {WORD_BYTES_MAX} bytes"


def _id(name: str, *, is_required: bool = True) -> PaymentField:
    wanted = f"printable text of 1 to {ID_BYTES_MAX} bytes"
    return PaymentField(name, Form.ID, wanted, is_required, ID_BYTES_MAX, differs=_LIMITS_MAY_BE_TIGHTER)


FIELDS = (
    _id("payment_id"),
    PaymentField(
        "event_time_ms",
        Form.TIME,
        "milliseconds since 1970 UTC",
        is_required=True,
        minimum=TIME_MS_MIN,
        maximum=TIME_MS_END - 1,
        differs="The endpoint asks for a time near now, the topic for one near the record's arrival on Kafka: a topic "
        "that is read again in a year gives the same payments. Dead letters may be retried for weeks, so the topic "
        "reaches further back. A history is old by nature, and only has to lie between 2000 and 2100.",
    ),
    PaymentField(
        "card_id",
        Form.CARD_TOKEN,
        f"a token of 1 to {ID_BYTES_MAX} bytes of printable text",
        is_required=True,
        size_max=ID_BYTES_MAX,
        differs=_LIMITS_MAY_BE_TIGHTER,
    ),
    _id("merchant_id"),
    _id("device_id", is_required=False),
    PaymentField("ip", Form.WORD, _WORD, size_max=WORD_BYTES_MAX, differs=_LIMITS_MAY_BE_TIGHTER),
    PaymentField(
        "amount_minor",
        Form.AMOUNT,
        f"a whole number of minor units from 0 to {AMOUNT_MINOR_MAX}",
        is_required=True,
        maximum=AMOUNT_MINOR_MAX,
        differs=_LIMITS_MAY_BE_TIGHTER,
    ),
    PaymentField(
        "currency",
        Form.CURRENCY,
        "three capital letters, A to Z (ISO 4217)",
        is_required=True,
    ),
    PaymentField("mcc", Form.MCC, "four digits (ISO 18245)"),
    PaymentField("country", Form.COUNTRY, "two capital letters, A to Z (ISO 3166-1 alpha-2)"),
    PaymentField("channel", Form.WORD, _WORD, size_max=WORD_BYTES_MAX, differs=_LIMITS_MAY_BE_TIGHTER),
    PaymentField(
        "utc_offset_minutes",
        Form.OFFSET,
        f"whole minutes from {-UTC_OFFSET_MINUTES_MAX} to {UTC_OFFSET_MINUTES_MAX}",
        minimum=-UTC_OFFSET_MINUTES_MAX,
        maximum=UTC_OFFSET_MINUTES_MAX,
        column_may_lack=True,
        differs="A Parquet file may lack the column.",
    ),
    PaymentField(
        "declined",
        Form.FLAG,
        "true or false",
        at_endpoint=False,
        column_may_lack=True,
        differs="A request has no such field: the payment is not declined yet. A Parquet file may lack the column.",
    ),
)
FIELD = {field.name: field for field in FIELDS}


@dataclass(frozen=True)
class NetworkPrefix:
    """A derived field: the network of an address, `bits` long for IPv4 and `bits_v6` for IPv6."""

    name: str
    number: int
    of: str
    bits: int
    bits_v6: int

    def value_of(self, text: str) -> str:
        """Returns the network of an address: "192.0.2.0/24". Empty for a text that is no address."""
        if not is_address(text):
            return ""
        address = ipaddress.ip_address(text)
        bits = self.bits if address.version == 4 else self.bits_v6
        return str(ipaddress.ip_network((address, bits), strict=False))


@dataclass(frozen=True)
class EmailDomain:
    """A derived field: the part behind the @ of an e-mail address, in small letters."""

    name: str
    number: int
    of: str

    def value_of(self, text: str) -> str:
        """Returns the domain: "example.com"."""
        return text.rpartition("@")[2].lower()


DerivedField = NetworkPrefix | EmailDomain

# Sources of a band that are no declared field: the payer's local hour and weekday, and the amount. No field has a name
# with a space.
HOUR, WEEKDAY, AMOUNT_MINOR = "local hour", "local weekday", "amount_minor"
BANDS_MAX = 64


@dataclass(frozen=True)
class Band:
    """A field that no payment brings: between which bounds a number of the payment lies, or its local hour or weekday.

    `bounds` ascend, and are in units of the last of `decimals` digits. Each begins a band: with the bounds 1000 and
    5000, 1000 is in the second one, "01".
    """

    name: str
    number: int
    of: str
    bounds: tuple[int, ...]
    decimals: int = 0

    @property
    def texts(self) -> list[str]:
        """Returns the text of each band, ascending."""
        return [f"{band:02}" for band in range(len(self.bounds) + 1)]

    def value_of(self, values: Mapping[str, Any]) -> str:
        """Returns the band of a payment, from its values by name: "01". Empty if it lacks the number."""
        if self.of in (HOUR, WEEKDAY):
            local_ms = values["event_time_ms"] + (values.get("utc_offset_minutes") or 0) * 60_000
            number = local_ms % _DAY_MS // 3_600_000 if self.of == HOUR else (local_ms // _DAY_MS + 3) % 7
        else:
            value = values.get(self.of)
            if value is None:
                return ""
            number = round(value * 10.0**self.decimals)
        return f"{bisect_right(self.bounds, number):02}"


@dataclass(frozen=True)
class PaymentFields:
    """All fields of a payment: those of the table, and those that a project declares.

    A derived field, or a band, is computed from another field: no payment brings it. Numbers and names are unique among
    all (features/catalogue/fields.py checks them).
    """

    declared: tuple[PaymentField, ...] = ()
    derived: tuple[DerivedField, ...] = ()
    bands: tuple[Band, ...] = ()

    @cached_property
    def all(self) -> tuple[PaymentField, ...]:
        """Returns the fields that a payment can bring, in order: the table's, then the declared ones."""
        return (*FIELDS, *self.declared)

    @cached_property
    def by_name(self) -> Mapping[str, PaymentField]:
        """Returns the fields that a payment can bring, by name."""
        return {field.name: field for field in self.all}

    @property
    def number_max(self) -> int:
        """Returns the largest number of a declared or derived field, or a band; 0 without any."""
        return max((field.number for field in (*self.declared, *self.derived, *self.bands)), default=0)


TABLE_ALONE = PaymentFields()
"""The fields of a payment where a project declares none."""


@dataclass(frozen=True)
class TimeBounds:
    """How far a payment's time may lie before and after its arrival, in milliseconds."""

    past_ms_max: int
    future_ms_max: int

    def __post_init__(self) -> None:
        assert self.past_ms_max >= 0
        assert self.future_ms_max >= 0

    def has(self, event_time_ms: int, *, arrived_ms: int, now_ms: int) -> bool:
        """Returns whether a payment's time lies within the bounds. `arrived_ms` is 0 when the arrival is not known.

        `now_ms` is a bound as well: a producer whose clock is ahead must not carry payments into the future.
        """
        if arrived_ms <= 0:
            return event_time_ms <= now_ms + self.future_ms_max
        return arrived_ms - self.past_ms_max <= event_time_ms <= min(arrived_ms, now_ms) + self.future_ms_max

    def problem_of(self, event_time_ms: int, *, arrived_ms: int, now_ms: int) -> str:
        """Returns what is wrong with a time of the right form; empty when it is right."""
        if self.has(event_time_ms, arrived_ms=arrived_ms, now_ms=now_ms):
            return ""
        if arrived_ms > 0 and event_time_ms < arrived_ms - self.past_ms_max:
            return _too_far(arrived_ms - event_time_ms, self.past_ms_max, "past")
        latest_ms = min(arrived_ms, now_ms) if arrived_ms > 0 else now_ms
        return _too_far(event_time_ms - latest_ms, self.future_ms_max, "future")


class PaymentRules:
    """The rules of one reader: some fields of the table, and its bounds of time."""

    def __init__(self, fields: Sequence[PaymentField], times: TimeBounds) -> None:
        self._fields, self._times = fields, times
        self._lines = [(field.name, field.is_required, field.is_right) for field in fields]

    def check(self, values: Mapping[str, Any], *, arrived_ms: int, now_ms: int) -> None:
        """Raise InvalidEvent naming the first wrong field. A missing field is None, or not in `values`."""
        for name, is_required, is_right in self._lines:
            value = values.get(name)
            if is_required if value is None else not is_right(value):
                break
        else:
            if self._times.has(values["event_time_ms"], arrived_ms=arrived_ms, now_ms=now_ms):
                return
        raise self._first_wrong(values, arrived_ms, now_ms)

    def _first_wrong(self, values: Mapping[str, Any], arrived_ms: int, now_ms: int) -> InvalidEvent:
        for field in self._fields:
            value: Any = values.get(field.name)
            problem = field.problem_of(value)
            if not problem and field.form is Form.TIME:
                problem = self._times.problem_of(value, arrived_ms=arrived_ms, now_ms=now_ms)
            if problem:
                return InvalidEvent(problem, field=field.name)
        raise AssertionError("a payment that breaks no rule was refused")


def require_between(section: str, name: str, value: int, low: int, high: int) -> None:
    """Raise Misconfigured unless a setting lies between `low` and `high`, both included."""
    if not low <= value <= high:
        raise Misconfigured(f"[{section}] {name}: wanted {low} to {high}, got {value}")


def looks_like_card_number(text: str) -> bool:
    """Returns whether `text` is 13 to 19 digits, grouped or not, with a right check digit (Luhn, ISO/IEC 7812-1)."""
    digits = _ungrouped(text)
    return CARD_DIGITS_MIN <= len(digits) <= CARD_DIGITS_MAX and digits.isdecimal() and _passes_luhn(digits)


def is_number_of_a_network(text: str) -> bool:
    """Returns whether `text` looks like a card number, and begins and is as long as those of a card network."""
    if not looks_like_card_number(text):
        return False
    digits = _ungrouped(text)
    begin, size = int(digits[:4]), len(digits)
    return any(first <= begin <= last and least <= size <= most for first, last, least, most in _NETWORKS)


def _ungrouped(text: str) -> str:
    return text.replace(" ", "").replace("-", "")


def _passes_luhn(digits: str) -> bool:
    """Double every second digit from the right and add up all digits: the sum must be a multiple of 10."""
    values = [int(digit) for digit in reversed(digits)]
    doubled = sum(2 * value - 9 if value > 4 else 2 * value for value in values[1::2])
    return (sum(values[::2]) + doubled) % 10 == 0


def _time_problem(field: PaymentField, value: int) -> str:
    """Returns what is wrong with a time that is out of bounds."""
    # A number of ten digits or fewer is no card number: the message may repeat it.
    if field.minimum <= value * 1000 <= field.maximum:
        return f"{value} looks like seconds; wanted {field.wanted}"
    for unit, factor in (("microseconds", 1000), ("nanoseconds", 1_000_000)):
        if field.minimum <= value // factor <= field.maximum:
            return f"looks like {unit}; wanted {field.wanted}"
    return f"is {'before 2000' if value < field.minimum else 'after 2099'}; wanted {field.wanted}"


def _too_far(distance_ms: int, distance_ms_max: int, where: str) -> str:
    return f"is {_duration(distance_ms)} in the {where}; wanted at most {_duration(distance_ms_max)}"


def _duration(duration_ms: int) -> str:
    """Returns a duration as people say it: 45 s, 3.5 hours, 1 day."""
    for name, unit_ms in (("day", _DAY_MS), ("hour", 3_600_000)):
        if duration_ms >= unit_ms:
            count = f"{duration_ms / unit_ms:.4g}"
            return f"{count} {name}" if count == "1" else f"{count} {name}s"
    if duration_ms >= 1000:
        return f"{duration_ms / 1000:.4g} s"
    return f"{duration_ms} ms"
