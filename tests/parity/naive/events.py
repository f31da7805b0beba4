"""Payments and labels as they arrive, and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

FIELDS = (
    *("currency", "utc_offset_minutes", "declined", "card_id", "merchant_id", "device_id", "ip", "mcc", "country"),
    "channel",
)
# The fields that tests declare besides them: how many digits each number has after the point, or None for a moment.
DECLARED_NUMBERS: dict[str, int | None] = {
    "basket_kg": 3,
    "items": 0,
    "opened": None,
    "tip": 0,
    **dict.fromkeys(("home_latitude", "home_longitude", "shop_latitude", "shop_longitude"), 6),
}
DECLARED_TEXTS = ("product", "billed_to", "shipped_to")
# `tip` is an amount of money: its world says it in the reference currency too.
REFERENCE = {"tip": "tip_in_reference"}
DECLARED_NAMES = (*DECLARED_NUMBERS, *DECLARED_TEXTS, "ship_country", *REFERENCE.values())


@dataclass(frozen=True)
class Payment:
    """`amount` is in minor units of the reference currency, and below 0 it is not known.

    `fields` is by name; a missing field is absent or None.
    """

    time_ms: int
    amount: int
    amount_minor: int
    fields: Mapping[str, object]


@dataclass(frozen=True)
class Heard:
    """One arrival: a new payment (`weight` None), or a change of its label (+1 fraud, -1 fraud taken back)."""

    payment: Payment
    weight: int | None = None


# Texts of fields that a project declares: each tells its kind itself.


class HashedText(str):
    """A text whose code in sketches and memories is a keyed hash."""

    __slots__ = ()


class CountryText(str):
    """A country."""

    __slots__ = ()


def tables_of(heard: Sequence[Heard]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns (payments, labels), each row with `arrival`, payment's time, amounts and fields, and `weight`."""
    names = list(dict.fromkeys([*FIELDS, *DECLARED_NAMES, *(name for event in heard for name in event.payment.fields)]))
    names = [name for name in names if name not in ("payment_id", "event_time_ms", "amount_minor")]
    rows: list[dict[str, object]] = [
        {
            "arrival": arrival,
            "time_ms": event.payment.time_ms,
            "amount": event.payment.amount,
            "amount_minor": event.payment.amount_minor,
            "weight": event.weight,
            **{name: event.payment.fields.get(name) for name in names},
        }
        for arrival, event in enumerate(heard)
    ]
    numbers = ["arrival", "time_ms", "amount", "amount_minor"]
    table = pd.DataFrame(rows, columns=[*numbers, "weight", *names], dtype=object)
    is_label = table["weight"].notna()
    payments, labels = table[~is_label], table[is_label]
    return payments.astype(dict.fromkeys(numbers, "int64")), labels.astype(dict.fromkeys([*numbers, "weight"], "int64"))
