"""The made world "shop": payments with fields of a project's own, fraud of several kinds, and the truth about each.

    simulate_shop(cards=3000, days=90, seed=1)
        payments   the thirteen fields of every payment, and those of SHOP_COLUMNS
        outcomes   who reports what, and when
        truth      each payment's probability of fraud, which a real history never has

The columns are those that `paywarden init` declares in payment.py. Each step has its own random stream: people, usual
payments, frauds, labels, outcomes. The same arguments give the same tables.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from paywarden.features.datasets.fraud_patterns import ECOM, NONE
from paywarden.features.datasets.shop_people import (
    ALL_DOMAINS,
    PAYMENTS_PER_DAY,
    PRODUCTS,
    SHOP_CATEGORIES,
    ShopWorld,
    draw_world,
)
from paywarden.features.datasets.shop_situations import (
    SECURE,
    SITUATIONS,
    ShopPayments,
    draw_payments,
    made_up_accounts,
)
from paywarden.features.datasets.simulated_columns import (
    COUNTRIES,
    ids,
    minor_amounts,
    named,
    outcomes_table,
    span_of,
)
from paywarden.features.history.history import numbered_ids
from paywarden.schemas.errors import Misconfigured

SHOP_COLUMNS = (
    "customer_id",
    "account_opened_ms",
    "buyer_email",
    "product",
    "items",
    "shipping_minor",
    "is_gift",
    "card_bin",
    "billing_country",
    "billing_name",
    "delivery_name",
    "home_latitude",
    "home_longitude",
    "delivery_latitude",
    "delivery_longitude",
    "three_d_secure",
)
"""The columns besides those that every payment has."""
TRUTH_FILE = "truth.parquet"
TRUTH_COLUMNS = (
    ("payment_id", "string", "The payment's id, in the order of payments.parquet."),
    ("fraud_probability", "double", "The probability with which the payment's label was drawn."),
    ("situation", "string", f"The situation that the payment is part of: {', '.join(SITUATIONS)}."),
)
"""The columns of TRUTH_FILE: name, type and meaning."""


class ShopTables(NamedTuple):
    """A made history, and the truth about it.

    `truth` has a row for each payment, in the same order: `payment_id`, `fraud_probability` as the generator drew the
    label with it, and the `situation`.
    """

    payments: pa.Table
    outcomes: pa.Table
    truth: pa.Table


def simulate_shop(*, cards: int, days: int, seed: int, end_time_ms: int | None = None) -> ShopTables:
    """Returns `days` days of `cards` cards, sorted by time, as `simulate` does for its world.

    Cards of fraudsters' accounts, and numbers that they try, come on top. Raises Misconfigured for an impossible span.
    """
    start_ms, end_ms = span_of(cards=cards, days=days, seed=seed, end_time_ms=end_time_ms)
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence((seed, 2)).spawn(7)]
    rng_shops, rng_people, rng_usual, rng_fraud, rng_labels, rng_outcomes, rng_columns = streams
    world = draw_world(
        rng_shops,
        rng_people,
        cards=cards,
        made_up=made_up_accounts(cards * days * PAYMENTS_PER_DAY),
        start_ms=start_ms,
        end_ms=end_ms,
    )
    payments = draw_payments(rng_usual, rng_fraud, world)
    probability = 1.0 / (1.0 + np.exp(-payments.log_odds))
    payment_id = numbered_ids("p", np.arange(len(payments)), width=10)
    is_fraud = rng_labels.random(len(payments)) < probability
    truth = {
        "payment_id": payment_id,
        "fraud_probability": probability,
        "situation": named(payments.situation, SITUATIONS),
    }
    return ShopTables(
        _payments_table(rng_columns, world, payments, payment_id),
        outcomes_table(rng_outcomes, payments.time_ms, is_fraud, payment_id),
        pa.table(truth),
    )


def write_truth(folder: Path, truth: pa.Table) -> None:
    """Write the truth about each payment beside the history's files. Raises Misconfigured if it cannot be written."""
    partial = (folder / TRUTH_FILE).with_suffix(".partial")
    try:
        pq.write_table(truth, partial, compression="zstd")
        partial.replace(folder / TRUTH_FILE)
    except OSError as error:
        raise Misconfigured(f"cannot write {folder / TRUTH_FILE}: {error.strerror or error}") from error


def _payments_table(
    rng: np.random.Generator, world: ShopWorld, payments: ShopPayments, payment_id: pa.Array
) -> pa.Table:
    count, people = len(payments), world.customers
    country = world.shops.country[payments.shop]
    currencies = sorted({entry.currency for entry in COUNTRIES})
    currency = np.array([currencies.index(entry.currency) for entry in COUNTRIES])[country]
    offset = np.array([60 * entry.utc_offset_hours for entry in COUNTRIES], dtype=np.int32)
    amount_minor = minor_amounts(payments.eur_cents, country, np.full(count, ECOM, dtype=np.int8))
    is_delivered = payments.recipient != NONE
    shipping = np.where(is_delivered, amount_minor * rng.uniform(0.02, 0.12, count), 0).astype(np.int64)
    # A home that is known is that of a customer.
    is_known = payments.payer < len(people)
    payer = np.minimum(payments.payer, len(people) - 1)
    customer = np.where(payments.is_guest | ~is_known, NONE, payments.payer)
    return pa.table(
        {
            "payment_id": payment_id,
            "event_time_ms": payments.time_ms,
            "card_id": ids("card-", payments.card, width=6),
            "merchant_id": ids("shop-", payments.shop, width=5),
            "device_id": ids("device-", payments.device, width=7),
            "ip": _addresses(payments),
            "amount_minor": amount_minor,
            "currency": named(currency, currencies),
            "mcc": named(world.shops.category[payments.shop], [entry.mcc for entry in SHOP_CATEGORIES]),
            "country": named(country, [entry.code for entry in COUNTRIES]),
            "channel": named(np.zeros(count, dtype=np.int8), ("ecom",)),
            "utc_offset_minutes": offset[people.country[payer]],
            "declined": rng.random(count) < payments.declined_share,
            "customer_id": ids("customer-", customer, width=6),
            "account_opened_ms": pa.array(people.opened_ms[payer], mask=customer == NONE),
            "buyer_email": _mailboxes(payments),
            "product": named(payments.product, PRODUCTS),
            "items": payments.items.astype(np.int64),
            "shipping_minor": pa.array(shipping, mask=~is_delivered),
            "is_gift": payments.is_gift,
            "card_bin": named(payments.card_bin, [f"{400_000 + 7_919 * number}" for number in range(64)]),
            "billing_country": named(payments.billing_country, [entry.code for entry in COUNTRIES]),
            "billing_name": ids("person-", payments.payer, width=6),
            "delivery_name": ids("person-", payments.recipient, width=6),
            **_places("home", people.latitude[payer], people.longitude[payer], is_known),
            **_places("delivery", payments.latitude, payments.longitude, is_delivered),
            "three_d_secure": named(payments.secure, SECURE),
        }
    )


def _places(name: str, latitude: np.ndarray, longitude: np.ndarray, is_known: np.ndarray) -> dict[str, pa.Array]:
    """Returns two columns of degrees, to six digits after the point."""
    columns = {f"{name}_latitude": latitude, f"{name}_longitude": longitude}
    return {key: pa.array(np.round(degrees, 6), mask=~is_known) for key, degrees in columns.items()}


def _addresses(payments: ShopPayments) -> pa.Array:
    """Returns private addresses, which name no real network. Networks repeat after 65,536."""
    code, address = np.unique(payments.network % 65_536 * 256 + payments.host, return_inverse=True)
    texts = [f"10.{n >> 16}.{n >> 8 & 255}.{1 + (n & 255)}" for n in code.tolist()]
    return named(address, texts)


def _mailboxes(payments: ShopPayments) -> pa.Array:
    code, mailbox = np.unique(payments.mailbox * np.int64(16) + payments.domain, return_inverse=True)
    return named(mailbox, [f"buyer{n // 16}@{ALL_DOMAINS[n % 16]}" for n in code.tolist()])
