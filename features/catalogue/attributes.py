"""What is known of a payment, as one row of integers: what conditions ask, sketches count and profiles remember.

A row has ATTRIBUTE_COUNT numbers, one for each attribute below; 0 stands for "not there" in all but the times and
amounts. Text becomes its CRC-32 plus one: the same on every host, cheap, and never 0. Two texts that share a
checksum count as one value, which among the few dozen a profile remembers happens once in 10^8. A country is its
place among the two-letter codes, so that a table can be indexed by it.

Rows are kept with payments whose outcomes may come later: columns may be added at the end, never moved.
"""

from __future__ import annotations

import enum
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from paywarden.features import kernel
from paywarden.features.catalogue.windows import line_of_caller, wrong_at
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.payment_fields import FIELD, UTC_OFFSET_MINUTES_MAX

_COUNTRY = FIELD["country"]
# What a plan's numbers can hold, and no payment reaches.
AMOUNT_MAX = 2**62


class AttributeKind(enum.Enum):
    """How an attribute becomes a number."""

    TIME = "time"
    AMOUNT = "amount"
    TEXT = "text"
    COUNTRY = "country"
    FLAG = "flag"
    OFFSET = "offset"


@dataclass(frozen=True)
class Condition:
    """A question with a yes or no about a payment's row. An attribute that is not there answers no to all."""

    column: int
    operator: int
    value: int
    # `declined` and `declined == True` are one question, and must not be two columns of a table.
    text: str = field(compare=False)

    def __bool__(self) -> bool:
        raise TypeError(f"whether {self.text} is asked of payments: as a Python truth value it has none")


@dataclass(frozen=True, eq=False)
class Attribute:
    """One attribute, and in a catalogue a word to write conditions with: `channel == "ecom"`, `amount >= 220_00`."""

    name: str
    column: int
    kind: AttributeKind

    def __eq__(self, other: object) -> Condition:  # type: ignore[override]
        return Condition(self.column, kernel.EQUAL, self._code(other), f"{self.name} == {other!r}")

    def __ne__(self, other: object) -> Condition:  # type: ignore[override]
        if self.kind is AttributeKind.AMOUNT:
            raise _wrong(f"{self.name} is an amount, and is compared with ==, >= or <")
        return Condition(self.column, kernel.DIFFERENT, self._code(other), f"{self.name} != {other!r}")

    def __ge__(self, other: int) -> Condition:
        return Condition(self.column, kernel.AT_LEAST, self._amount(other), f"{self.name} >= {other}")

    def __lt__(self, other: int) -> Condition:
        return Condition(self.column, kernel.BELOW, self._amount(other), f"{self.name} < {other}")

    def __hash__(self) -> int:
        return hash((self.name, self.column))

    def _amount(self, other: object) -> int:
        if self.kind is not AttributeKind.AMOUNT:
            raise _wrong(f"{self.name} is not an amount: only an amount is at least, or below, another")
        return self._code(other)

    def _code(self, other: object) -> int:
        if self.kind is AttributeKind.AMOUNT and type(other) is int and 0 <= other <= AMOUNT_MAX:
            return other
        if self.kind is AttributeKind.TEXT and type(other) is str and other:
            return text_code(other)
        if self.kind is AttributeKind.COUNTRY and type(other) is str and is_country(other):
            return country_code(other)
        if self.kind is AttributeKind.FLAG and type(other) is bool:
            return flag_code(other)
        wanted = {
            AttributeKind.AMOUNT: "a whole number of minor units",
            AttributeKind.TEXT: "a text that is not empty",
            AttributeKind.COUNTRY: "two capital letters",
            AttributeKind.FLAG: "True or False",
        }.get(self.kind, "nothing")
        raise _wrong(f"{self.name} is compared with {other!r}; it can be compared with {wanted}")


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
ATTRIBUTE_COUNT = kernel.ATTRIBUTE_COUNT
assert kernel.UTC_OFFSET_MINUTES_MAX == UTC_OFFSET_MINUTES_MAX


def _wrong(what: str) -> Misconfigured:
    return wrong_at(line_of_caller(), what)


def text_code(text: str) -> int:
    """1 to 2**32, the same everywhere and for ever."""
    return zlib.crc32(text.encode()) + 1


def is_country(text: str) -> bool:
    """Whether it has the form of an ISO 3166-1 alpha-2 code."""
    return _COUNTRY.is_right(text)


def country_code(text: str) -> int:
    """1 to 676 for two capital letters; anything else is coded as a text is, and lies nowhere."""
    return 26 * (ord(text[0]) - 65) + ord(text[1]) - 64 if is_country(text) else text_code(text) + kernel.COUNTRY_CODES


def flag_code(value: bool) -> int:
    """1 for no, 2 for yes."""
    return 2 if value else 1


def offset_code(minutes: int) -> int:
    """Above 0 for every offset; one beyond UTC_OFFSET_MINUTES_MAX is a clock gone wrong, and counts as not there."""
    return minutes + kernel.OFFSET_ZERO if abs(minutes) <= UTC_OFFSET_MINUTES_MAX else 0


CODES: Mapping[AttributeKind, Callable[..., int]] = {
    AttributeKind.TEXT: text_code,
    AttributeKind.COUNTRY: country_code,
    AttributeKind.FLAG: flag_code,
    AttributeKind.OFFSET: offset_code,
}

# Attributes read from a payment's fields under their own name; the first three are worked out by the caller.
_FIELDS = tuple((a.name, a.column, CODES[a.kind]) for a in ATTRIBUTES if a.kind in CODES)


def row_of(fields: Mapping[str, object], *, event_time_ms: int, amount: int, amount_minor: int) -> list[int]:
    """A payment's row from its fields by name; a field that is None or not there is 0.

    `amount` is in minor units of the reference currency, `amount_minor` in those of the payment's own.
    """
    row = [0] * ATTRIBUTE_COUNT
    row[kernel.TIME_MS], row[kernel.AMOUNT], row[kernel.AMOUNT_MINOR] = event_time_ms, amount, amount_minor
    for name, column, code in _FIELDS:
        value = fields.get(name)
        if value is not None:
            row[column] = code(value)
    return row
