"""A payment as one row of integers. Conditions, sketches and memories use these numbers.

A row has ATTRIBUTE_COUNT numbers: first the public code of each attribute below, then the identities of the texts
that a payer may choose freely. 0 means "missing" in all but the times and amounts. The amount in the reference currency
is kernel.UNKNOWN_AMOUNT where the currency has no rate.

- A text becomes its CRC-32 plus one: the same on every host, cheap, and never 0. Conditions and categories compare
  these codes with words that the catalogue names.
- An identity is a keyed hash of a text (features/catalogue/identity.py). Sketches and memories take identities: anyone
  can make texts of one CRC-32, and nobody without the key can make texts of one identity. Currency and merchant
  category need none, since two texts of the same three or four characters never have the same CRC-32.
- A country becomes its position among the two-letter codes, so that it can index a table: AD is 4, DE is 83.
- A flag becomes 1 (no) or 2 (yes).
- A declared number becomes itself plus kernel.NUMBER_ZERO, in units of its last digit. Its order stays.

A declared field (fields.py) has two columns more, by its number. An e-mail address and a derived field have no public
code: their column holds 1 where the field is there.

The stream stores the codes until the outcomes of their payments arrive. Codes may be added at their end, never moved.
"""

from __future__ import annotations

import enum
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from paywarden.features import kernel
from paywarden.features.catalogue.identity import LAPTOP_KEY, IdentityKey
from paywarden.features.catalogue.windows import line_of_caller, wrong_at
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.payment_fields import (
    FIELD,
    TABLE_ALONE,
    UTC_OFFSET_MINUTES_MAX,
    Band,
    DerivedField,
    Form,
    PaymentField,
    PaymentFields,
)

_COUNTRY = FIELD["country"]
# Fits the numbers of a plan. No payment has a larger amount.
AMOUNT_MAX = 2**62


class AttributeKind(enum.Enum):
    """How an attribute becomes a number."""

    TIME = "time"
    AMOUNT = "amount"
    TEXT = "text"
    COUNTRY = "country"
    FLAG = "flag"
    OFFSET = "offset"
    NUMBER = "number"


ConditionCode = tuple[int, ...]
"""A condition in numbers: column, operator, value. One made of others has the count of its parts as its column, 0 as
its value, and the codes of the parts behind it."""


@dataclass(frozen=True)
class Condition:
    """A yes-or-no question about a payment's row. Every comparison with a missing attribute is false.

    `declined & (amount >= 220_00)`, `|` and `~` make one of others: `~` of a comparison holds where the attribute is
    missing, too.
    """

    column: int
    operator: int
    value: int
    # Not compared: `declined` and `declined == True` are one condition, and must not become two columns of a table.
    text: str = field(compare=False)
    attribute: str = field(compare=False)
    parts: ConditionCode = ()

    @property
    def code(self) -> ConditionCode:
        return (self.column, self.operator, self.value, *self.parts)

    @property
    def is_joined(self) -> bool:
        return self.operator >= kernel.ALL_OF

    def __and__(self, other: object) -> Condition:
        return _joined(kernel.ALL_OF, "and", self, other)

    def __or__(self, other: object) -> Condition:
        return _joined(kernel.ANY_OF, "or", self, other)

    def __invert__(self) -> Condition:
        return _joined(kernel.NONE_OF, "", self)

    __rand__ = __and__
    __ror__ = __or__

    def __bool__(self) -> bool:
        joined = "and, or, not, if and 1 < x < 3 cannot use it; write (one) & (other), (one) | (other) or ~(one)"
        raise TypeError(f"the condition {self.text} is about a payment and has no truth value in Python: {joined}")


def parts_of(code: ConditionCode) -> list[ConditionCode]:
    """Returns the codes of the parts that a condition joins; none for a comparison."""
    if code[1] < kernel.ALL_OF:
        return []
    parts, at = [], 3
    for _ in range(code[0]):
        first, open_parts = at, 1
        while open_parts:
            open_parts += (code[at] if code[at + 1] >= kernel.ALL_OF else 0) - 1
            at += 3
        parts.append(code[first:at])
    return parts


def columns_of_condition(code: ConditionCode) -> set[int]:
    """Returns the columns of a payment's row that a condition reads."""
    return set().union(*map(columns_of_condition, parts)) if (parts := parts_of(code)) else {code[0]}


def _joined(operator: int, word: str, *given: object) -> Condition:
    conditions = [_side(one) for one in given]
    codes = {
        code
        for one in conditions
        for code in (parts_of(one.code) if one.operator == operator != kernel.NONE_OF else [one.code])
    }
    if len(codes) == 1 and operator != kernel.NONE_OF:
        return conditions[0]
    texts = [f"({one.text})" if one.is_joined and one.operator != operator else one.text for one in conditions]
    text = f" {word} ".join(texts) if word else f"not {texts[0]}"
    parts = tuple(number for code in sorted(codes) for number in code)
    return Condition(len(codes), operator, 0, text, "", parts)


def _side(given: object) -> Condition:
    """Returns one side of `&`, `|` or `~`: a condition, or a flag alone."""
    if isinstance(given, Condition):
        return given
    if isinstance(given, Attribute) and given.kind is AttributeKind.FLAG:
        return Condition(given.column, kernel.EQUAL, 2, given.name, given.name)
    raise _wrong(f"&, | and ~ join conditions in brackets, as in (amount >= 500) & declined; got {given!r}")


@dataclass(frozen=True, eq=False, repr=False)
class Attribute:
    """One attribute. A catalogue writes conditions with it: `channel == "ecom"`, `amount >= 220_00`."""

    name: str
    column: int
    kind: AttributeKind
    # A declared attribute has these: its field, or what it derives from, and the line that declares it.
    field: PaymentField | None = None
    derived: DerivedField | Band | None = None
    line: str = ""

    @property
    def number(self) -> int:
        """Returns the number of a declared field; 0 for a field that every payment has."""
        declared = self.field or self.derived
        return declared.number if declared is not None else 0

    @property
    def has_public_code(self) -> bool:
        """Returns whether conditions and categories can compare the attribute with words of a catalogue."""
        return self.derived is None and (self.field is None or self.field.form is not Form.EMAIL)

    @property
    def is_comparable(self) -> bool:
        """Returns whether values have an order: amounts, and declared numbers."""
        return self.kind in (AttributeKind.AMOUNT, AttributeKind.NUMBER)

    def __eq__(self, other: object) -> Condition:  # type: ignore[override]
        return Condition(self.column, kernel.EQUAL, self._code(other), f"{self.name} == {other!r}", self.name)

    def __ne__(self, other: object) -> Condition:  # type: ignore[override]
        if self.is_comparable:
            raise self._other_comparison()
        return Condition(self.column, kernel.DIFFERENT, self._code(other), f"{self.name} != {other!r}", self.name)

    def __ge__(self, other: float) -> Condition:
        return Condition(self.column, kernel.AT_LEAST, self._amount(other), f"{self.name} >= {other}", self.name)

    def __lt__(self, other: float) -> Condition:
        operator = kernel.BELOW if self.kind is AttributeKind.AMOUNT else kernel.BELOW_IF_PRESENT
        return Condition(self.column, operator, self._amount(other), f"{self.name} < {other}", self.name)

    # Without these Python says that it cannot compare an int with an Attribute, and not what to write.
    def __gt__(self, other: float) -> Condition:
        self._amount(other)
        raise self._other_comparison()

    def __le__(self, other: float) -> Condition:
        self._amount(other)
        raise self._other_comparison()

    def __and__(self, other: object) -> Condition:
        return _joined(kernel.ALL_OF, "and", self, other)

    def __or__(self, other: object) -> Condition:
        return _joined(kernel.ANY_OF, "or", self, other)

    def __invert__(self) -> Condition:
        return _joined(kernel.NONE_OF, "", self)

    # Without brackets, `amount >= 500 & declined` asks for 500 & declined.
    __rand__ = __and__
    __ror__ = __or__

    def __hash__(self) -> int:
        return hash((self.name, self.column))

    def __repr__(self) -> str:
        return f"the field {self.name!r}"

    def _other_comparison(self) -> Misconfigured:
        return _wrong(f"{self.name} is {self._what}, and is compared with ==, >= or <")

    @property
    def _what(self) -> str:
        return "an amount" if self.kind is AttributeKind.AMOUNT else "a number"

    def _amount(self, other: object) -> int:
        if not self.is_comparable:
            raise _wrong(f"{self.name} is no amount and no number: only these are at least, or below, another")
        return self._code(other)

    def _code(self, other: object) -> int:
        if not self.has_public_code:
            raise _wrong(f"{self.name} has only keyed hashes, which no catalogue can name")
        if self.kind is AttributeKind.NUMBER and self._is_value(other):
            return number_code(self.field.scaled(other))  # type: ignore[union-attr,arg-type]
        if self.kind is AttributeKind.AMOUNT and type(other) is int and 0 <= other <= AMOUNT_MAX:
            return other
        # A value that a field refuses never equals the field: a merchant category "grocery", a BIN of four digits.
        text = self.field or FIELD.get(self.name)
        if self.kind is AttributeKind.TEXT and type(other) is str and text is not None and text.is_right(other):
            return text_code(other)
        if self.kind is AttributeKind.COUNTRY and type(other) is str and is_country(other):
            return country_code(other)
        if self.kind is AttributeKind.FLAG and type(other) is bool:
            return flag_code(other)
        wanted = {
            AttributeKind.AMOUNT: "a whole number of minor units",
            AttributeKind.TEXT: text.wanted if text is not None else "",
            AttributeKind.COUNTRY: "two capital letters",
            AttributeKind.FLAG: "True or False",
            AttributeKind.NUMBER: self.field.wanted if self.field is not None else "",
        }.get(self.kind, "nothing")
        raise _wrong(f"{self.name} is compared with {other!r}; it can be compared with {wanted}")

    def _is_value(self, other: object) -> bool:
        assert self.field is not None
        if type(other) not in ((int, float) if self.field.is_decimal else (int,)):
            return False
        return self.field.is_right(other)


@dataclass(frozen=True, eq=False, repr=False)
class Clock:
    """The hour or the weekday of a payment, in the payer's local time or in UTC: `hour >= 22`, `weekday == 0`.

    A condition keeps the values for which it holds, one bit for each.
    """

    name: str
    operator: int
    size: int

    def __eq__(self, other: object) -> Condition:  # type: ignore[override]
        return self._among("==", other, lambda one, bound: one == bound)

    def __ne__(self, other: object) -> Condition:  # type: ignore[override]
        return self._among("!=", other, lambda one, bound: one != bound)

    def __ge__(self, other: int) -> Condition:
        return self._among(">=", other, lambda one, bound: one >= bound)

    def __gt__(self, other: int) -> Condition:
        return self._among(">", other, lambda one, bound: one > bound)

    def __le__(self, other: int) -> Condition:
        return self._among("<=", other, lambda one, bound: one <= bound)

    def __lt__(self, other: int) -> Condition:
        return self._among("<", other, lambda one, bound: one < bound)

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"the {self.name}"

    def _among(self, sign: str, other: object, is_met: Callable[[int, int], bool]) -> Condition:
        if type(other) is not int or not 0 <= other < self.size:
            raise _wrong(f"{self.name} is compared with {other!r}; it is a whole number from 0 to {self.size - 1}")
        values = sum(1 << one for one in range(self.size) if is_met(one, other))
        return Condition(kernel.UTC_OFFSET, self.operator, values, f"{self.name} {sign} {other}", self.name)


hour = Clock("hour", kernel.HOUR_AMONG, 24)
weekday = Clock("weekday", kernel.WEEKDAY_AMONG, 7)
event_time = Attribute("event_time_ms", kernel.TIME_MS, AttributeKind.TIME)
amount = Attribute("amount", kernel.AMOUNT, AttributeKind.AMOUNT)
amount_minor = Attribute("amount_minor", kernel.AMOUNT_MINOR, AttributeKind.AMOUNT)
currency = Attribute("currency", 3, AttributeKind.TEXT)
utc_offset = Attribute("utc_offset_minutes", kernel.UTC_OFFSET, AttributeKind.OFFSET)
declined = Attribute("declined", 5, AttributeKind.FLAG)
card_id = Attribute("card_id", 6, AttributeKind.TEXT)
merchant_id = Attribute("merchant_id", 7, AttributeKind.TEXT)
device_id = Attribute("device_id", 8, AttributeKind.TEXT)
ip = Attribute("ip", 9, AttributeKind.TEXT)
mcc = Attribute("mcc", 10, AttributeKind.TEXT)
country = Attribute("country", kernel.COUNTRY, AttributeKind.COUNTRY)
channel = Attribute("channel", 12, AttributeKind.TEXT)

ATTRIBUTES = (
    event_time,
    amount,
    amount_minor,
    currency,
    utc_offset,
    declined,
    card_id,
    merchant_id,
    device_id,
    ip,
    mcc,
    country,
    channel,
)
# A declared field cannot have these names: a payment has them, or a catalogue uses them.
RESERVED_NAMES = frozenset({*FIELD, *(attribute.name for attribute in ATTRIBUTES)})
# The texts that have an identity, in the order of its columns, which follow those of the codes.
KEYED = (card_id, merchant_id, device_id, ip, channel)
_IDENTITY_OF = {attribute.column: kernel.CODE_COUNT + number for number, attribute in enumerate(KEYED)}
ATTRIBUTE_COUNT = kernel.ATTRIBUTE_COUNT
assert (len(ATTRIBUTES), len(KEYED)) == (kernel.CODE_COUNT, kernel.IDENTITY_COUNT)
assert ATTRIBUTE_COUNT == kernel.CODE_COUNT + kernel.IDENTITY_COUNT
assert kernel.UTC_OFFSET_MINUTES_MAX == UTC_OFFSET_MINUTES_MAX


def _wrong(what: str) -> Misconfigured:
    return wrong_at(line_of_caller(), what)


def identity_column(column: int) -> int:
    """Returns the column of an attribute's identity; `column` itself for an attribute without one.

    A declared text or country has its identity in the next column.
    """
    return column + 1 if column >= ATTRIBUTE_COUNT else _IDENTITY_OF.get(column, column)


def declared_column(number: int) -> int:
    """Returns the column of the code of a declared field. Its identity, or its other amount, stands in the next one."""
    return ATTRIBUTE_COUNT + 2 * (number - 1)


def text_code(text: str) -> int:
    """Returns the public code of a text, 1 to 2**32. It never changes."""
    return zlib.crc32(text.encode()) + 1


def is_country(text: str) -> bool:
    """Returns whether a text has the form of an ISO 3166-1 alpha-2 code."""
    return _COUNTRY.is_right(text)


def country_code(text: str) -> int:
    """Returns 1 to 676 for two capital letters. Any other text gets a larger code and has no place on the map."""
    return 26 * (ord(text[0]) - 65) + ord(text[1]) - 64 if is_country(text) else text_code(text) + kernel.COUNTRY_CODES


def flag_code(value: bool) -> int:
    """Returns 1 for no, 2 for yes."""
    return 2 if value else 1


def number_code(value: int) -> int:
    """Returns the code of a declared number, above 0. `value` is in units of its last digit."""
    return value + kernel.NUMBER_ZERO


def offset_code(minutes: int) -> int:
    """Returns the code of a UTC offset, above 0. An offset beyond UTC_OFFSET_MINUTES_MAX counts as missing: 0."""
    return minutes + kernel.OFFSET_ZERO if abs(minutes) <= UTC_OFFSET_MINUTES_MAX else 0


CODES: Mapping[AttributeKind, Callable[..., int]] = {
    AttributeKind.TEXT: text_code,
    AttributeKind.COUNTRY: country_code,
    AttributeKind.FLAG: flag_code,
    AttributeKind.OFFSET: offset_code,
}

# Attributes that are read from a payment's fields under their own name. The caller computes the first three.
_FIELDS = tuple((a.name, a.column, CODES[a.kind]) for a in ATTRIBUTES if a.kind in CODES)


def row_of(
    fields: Mapping[str, object],
    *,
    event_time_ms: int,
    amount: int | None,
    amount_minor: int,
    key: IdentityKey = LAPTOP_KEY,
    declared: DeclaredRow | None = None,
) -> list[int]:
    """Returns a payment's row from its fields by name. A field that is None or missing becomes 0.

    `amount` is in minor units of the reference currency, None without a rate; `amount_minor` in those of the payment's
    own. The row has `declared.width` numbers.
    """
    amount = kernel.UNKNOWN_AMOUNT if amount is None else amount
    row = [0] * (ATTRIBUTE_COUNT if declared is None else declared.width)
    row[kernel.TIME_MS], row[kernel.AMOUNT], row[kernel.AMOUNT_MINOR] = event_time_ms, amount, amount_minor
    for name, column, code in _FIELDS:
        value = fields.get(name)
        if value is not None:
            row[column] = code(value)
    for column, attribute in enumerate(KEYED, kernel.CODE_COUNT):
        text = fields.get(attribute.name)
        if text is not None:
            row[column] = key.of(text)  # type: ignore[arg-type]
    if declared is not None:
        declared.fill(row, {**fields, "event_time_ms": event_time_ms, "amount_minor": amount_minor}, key)
    return row


class DeclaredRow:
    """Fills the columns of declared fields, the slow way. Tests compare the compiled readers with it."""

    def __init__(self, fields: PaymentFields, convert: Callable[[int, Mapping[str, object]], int | None]) -> None:
        """`convert` returns an amount in the reference currency, from one in the currency of the payment given.

        None stands for a currency without a rate.
        """
        self._fields, self._convert = fields, convert
        self.width = row_width(fields)

    def fill(self, row: list[int], values: Mapping[str, object], key: IdentityKey) -> None:
        """Write the columns of each field that is there."""
        for one in self._fields.declared:
            value = values.get(one.name)
            if value is not None:
                column = declared_column(one.number)
                row[column], row[column + 1] = self._pair(one, value, values, key)
        texts: dict[int, str] = {band.number: band.value_of(values) for band in self._fields.bands}
        for derived in self._fields.derived:
            source = values.get(derived.of)
            texts[derived.number] = "" if source is None else derived.value_of(str(source))
        for number, text in texts.items():
            if text:
                column = declared_column(number)
                row[column], row[column + 1] = 1, key.of(text)

    def _pair(
        self, declared: PaymentField, value: Any, values: Mapping[str, object], key: IdentityKey
    ) -> tuple[int, int]:
        """Returns the two numbers of a field."""
        if declared.form is Form.COUNTRY:
            return (code := country_code(value)), code
        if declared.form is Form.EMAIL:
            return 1, key.of(value.lower())
        if declared.is_text:
            return text_code(value), key.of(value)
        if declared.form is Form.FLAG:
            return flag_code(value), 0
        if declared.form is Form.MONEY:
            converted = self._convert(value, values)
            return 0 if converted is None else number_code(converted), number_code(value)
        return number_code(declared.scaled(value) if declared.is_decimal else value), 0


def row_width(fields: PaymentFields = TABLE_ALONE) -> int:
    """Returns how many numbers a payment's row has."""
    return ATTRIBUTE_COUNT + 2 * fields.number_max
