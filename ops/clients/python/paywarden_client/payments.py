"""A payment, its check, and its body."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from .card_numbers import is_card_number
from .errors import WrongRequest

Value = str | int | float | bool

_ENCODE = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode


@dataclass(frozen=True)
class Payment:
    """An attempt to pay, to be scored.

    `payment_id` is unique for each attempt, and the idempotency key of its retries. `card_id` is a token that stands
    for the card, never its number. `amount_minor` is in minor units of `currency`: 1050 is 10.50 EUR.
    `event_time_ms` is in milliseconds since 1970 UTC. `fields` holds the fields that the service's project declares.
    """

    payment_id: str
    event_time_ms: int
    card_id: str
    merchant_id: str
    amount_minor: int
    currency: str
    device_id: str | None = None
    ip: str | None = None
    mcc: str | None = None
    country: str | None = None
    channel: str | None = None
    utc_offset_minutes: int | None = None
    fields: Mapping[str, Value] = field(default_factory=dict)


_NAMES = tuple(name for name in Payment.__dataclass_fields__ if name != "fields")
_KNOWN = frozenset(_NAMES)
# From 2000 on and before 2100: no count of seconds or microseconds of these years is one of milliseconds of them.
_TIME_MS_MIN, _TIME_MS_END = 946_684_800_000, 4_102_444_800_000
AMOUNT_MAX = 10**11
_CURRENCY = re.compile("[A-Z]{3}")


def body_of(payment: Payment) -> bytes:
    """Returns the payment as JSON, in ASCII.

    Raises WrongRequest: an id is missing, a wrong time, amount or currency, a card number, a name twice.
    """
    values = {name: value for name, value in payment.__dict__.items() if value is not None and name != "fields"}
    for name in ("payment_id", "card_id"):
        if not values.get(name):
            raise WrongRequest("is missing or empty", field=name)
    if type(payment.event_time_ms) is not int or not _TIME_MS_MIN <= payment.event_time_ms < _TIME_MS_END:
        raise WrongRequest("wanted milliseconds since 1970 UTC, from 2000 to 2099", field="event_time_ms")
    if type(payment.amount_minor) is not int or not 0 <= payment.amount_minor <= AMOUNT_MAX:
        raise WrongRequest(f"wanted a whole number of minor units from 0 to {AMOUNT_MAX}", field="amount_minor")
    if not isinstance(payment.currency, str) or not _CURRENCY.fullmatch(payment.currency):
        raise WrongRequest("wanted three capital letters, A to Z (ISO 4217)", field="currency")
    for name, value in payment.fields.items():
        if name in _KNOWN:
            raise WrongRequest("is not a field that a project declares", field=name)
        values[name] = value
    for name, value in values.items():
        if isinstance(value, str):
            if is_card_number(name, value):
                raise WrongRequest("looks like a real card number; wanted a token that stands for it", field=name)
            if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
                raise WrongRequest("is not valid Unicode text", field=name)
    try:
        return _ENCODE(values).encode()
    except (TypeError, ValueError):
        pass
    # Not from that error, whose text may hold a value.
    raise WrongRequest("holds a value that is no text, number, true or false")
