"""Plausible values for the fields that a project declares: for its demonstration and for the check of its catalogue.

    card 17    customer_id "customer_id-000014", buyer_email "buyer17@example.net", billing_country "US", 5 % missing

A card keeps the values that identify its holder, and some cards share them. Other values vary from payment to payment.
The same arguments give the same values. They say nothing about fraud.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from paywarden.schemas.payment_fields import Form, PaymentField, PaymentFields

Ints = npt.NDArray[np.int64]
MISSING_SHARE = 0.05
"""The share of payments without a field that is not required."""
_DAY_MS = 86_400_000
_COUNTRIES = ("DE", "FR", "GB", "US", "NL", "SE", "PL", "JP")
# Names and addresses that are kept for examples: RFC 2606 and RFC 2544.
_DOMAINS = ("example.com", "example.net", "example.org", "mail.example", "post.example")
_WORDS = 50


def declared_values(
    fields: PaymentFields, card: Ints, event_time_ms: Ints, amount_minor: Ints, *, seed: int
) -> dict[str, list[Any]]:
    """Returns the values of each declared field by name, None for a missing one. `card` numbers each payment's card.

    All three columns have shape (payments,).
    """
    values: dict[str, list[Any]] = {}
    for field in fields.declared:
        # By its number, so that another field changes none of these.
        rng = np.random.default_rng((seed, field.number))
        column = list(_column(field, rng, card, event_time_ms, amount_minor))
        if not field.is_required:
            column = [None if gone else one for one, gone in zip(column, _gone(rng, len(card)), strict=True)]
        values[field.name] = column
    return values


def _gone(rng: np.random.Generator, count: int) -> list[bool]:
    gone: list[bool] = (rng.random(count) < MISSING_SHARE).tolist()
    return gone


def _column(
    field: PaymentField, rng: np.random.Generator, card: Ints, event_time_ms: Ints, amount_minor: Ints
) -> Sequence[Any]:
    if field.is_text:
        return _texts(field, rng, card)
    if field.form is Form.FLAG:
        flags: list[bool] = (rng.random(len(card)) < 0.1).tolist()
        return flags
    if field.form is Form.MONEY:
        return _whole(amount_minor * rng.uniform(0, 0.1, len(card)), field)
    if field.form is Form.INSTANT:
        # A moment of the card, as the opening of its account: the same at each of its payments.
        first_ms = int(event_time_ms.min()) if len(event_time_ms) else 0
        return _whole(first_ms - _of_card(card, 1, 1500) * _DAY_MS, field)
    if field.unit == "degrees":
        # Places around a home in Europe.
        north, east = 36 + _of_card(card, 2, 2400) / 100, -9 + _of_card(card, 3, 3400) / 100
        home = north if field.name.endswith("_latitude") else east
        return _decimals(home + rng.normal(0, 0.05, len(card)), field)
    scale = 10**field.decimals
    least, most = field.minimum / scale, field.maximum / scale
    # Mostly small numbers within the bounds, and above 0 where these allow it.
    start = max(least, min(0.0, most))
    drawn = start + rng.lognormal(0, 1, len(card)) * min(most - start, 1000) / 20
    return _decimals(drawn, field) if field.is_decimal else _whole(drawn, field)


def _texts(field: PaymentField, rng: np.random.Generator, card: Ints) -> list[str]:
    """Returns texts from a pool, one for each payment."""
    count = int(card.max()) + 1 if len(card) else 0
    if field.form is Form.EMAIL:
        pool = [f"buyer{one - one % 9 // 8}@{_DOMAINS[one % len(_DOMAINS)]}" for one in range(count)]
    elif field.form is Form.BIN:
        pool = [f"{400_000 + one * 7919 % 60}" for one in range(count)]
    elif field.form is Form.ADDRESS:
        pool = [f"198.18.{one // 3 % 256}.{one % 250 + 1}" for one in range(count)]
    elif field.form is Form.COUNTRY:
        # Nearly always the card's own.
        home = [_COUNTRIES[one * one % len(_COUNTRIES)] for one in card.tolist()]
        away = rng.integers(0, 40, len(card)).tolist()
        return [_COUNTRIES[other] if other < len(_COUNTRIES) else own for own, other in zip(home, away, strict=True)]
    elif field.is_personal and not field.among:
        pool = [f"{field.name}-{one * 5 // 6:06d}" for one in range(count)]
    else:
        # The first words are the most frequent ones.
        words = field.among or tuple(f"{field.name}-{one}" for one in range(_WORDS))
        drawn = np.minimum(rng.geometric(min(0.5, 3 / len(words)), len(card)), len(words)) - 1
        return [_fitting(words[one], field) for one in drawn.tolist()]
    return [_fitting(pool[one], field) for one in card.tolist()]


def _fitting(text: str, field: PaymentField) -> str:
    # The end of an id tells it from others.
    return text if len(text.encode()) <= field.size_max else text[-field.size_max :]


def _of_card(card: Ints, salt: int, below: int) -> Ints:
    """Returns a number from 0 to `below` - 1 for each payment that is the same for a card."""
    mixed: Ints = (card * 2_654_435_761 + salt * 40_503) % 1_000_003 % below
    return mixed


def _whole(numbers: npt.NDArray[Any], field: PaymentField) -> list[int]:
    whole: list[int] = np.clip(np.floor(numbers), field.minimum, field.maximum).astype(np.int64).tolist()
    return whole


def _decimals(numbers: npt.NDArray[np.float64], field: PaymentField) -> list[float]:
    scale = 10**field.decimals
    rounded = np.clip(np.rint(numbers * scale), field.minimum, field.maximum) / scale
    decimals: list[float] = rounded.tolist()
    return decimals
