"""A small world with features two hops away: a catalogue, a past, its profiles, and payments that are scored.

Neighbours are of every kind of key: text in the clear, an address, an e-mail address and a network as keyed hashes.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.catalogue import fields as declare
from paywarden.features.catalogue.attributes import ATTRIBUTES, device_id, identity_column, ip
from paywarden.features.catalogue.entity import Catalogue, Entity, ratio, request
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.schemas.request_proto import request_class
from paywarden.scoring.requests.validation import RequestLimits
from tests.oracles.step_decoder import CheckedPayments, StepDecoder
from tests.parity.features_worlds import RATES
from tests.unit.features.kernel import profiles as words

START_MS = 1_764_000_000_000
NOW_MS = START_MS + 40 * 24 * 3_600_000
MINUTE_MS = 60_000

FIELDS = declare.Payment(
    declare.email("buyer_email", 1, required=False),
    declare.network("subnet", 2, of=ip, bits=24, bits_v6=48),
)
card, merchant = Entity("card", key="card_id"), Entity("merchant", key="merchant_id")
device, address = Entity("device", key="device_id"), Entity("address", key="ip")
buyer, subnet = Entity("buyer", key="buyer_email"), Entity("subnet", key="subnet")
CATALOGUE = Catalogue(
    entities=(card, merchant, device, address, buyer, subnet),
    features=(
        request.amount("amount"),
        merchant.amount_mean("merchant_mean", "30d"),
        merchant.count("merchant_count", "7d"),
        card.distinct("card_devices", device_id, "1d"),
        card.amount_max("card_max", "30d"),
        buyer.count("buyer_count", "30d"),
        subnet.count("subnet_count", "30d"),
        address.amount_mean("address_mean", "30d"),
        device.seconds_since_last("device_age"),
        card.largest_of_last("worst_merchant", merchant, "merchant_mean", 4),
        card.mean_of_last("merchants_count", merchant, "merchant_count", 4),
        card.mean_of_last("merchants_mean", merchant, "merchant_mean", 2),
        card.largest_of_last("buyers", buyer, "buyer_count", 3),
        card.largest_of_last("subnets", subnet, "subnet_count", 2),
        card.mean_of_last("addresses", address, "address_mean", 2),
        device.largest_of_last("cards_devices", card, "card_devices", 3),
        merchant.mean_of_last("cards_max", card, "card_max", 8),
        card.largest_of_last("device_ages", device, "device_age", 2),
        ratio("of_worst", "amount", "worst_merchant"),
    ),
    payment=FIELDS,
)


@cache
def engine() -> FeatureEngine:
    """Returns an engine. It is warm after the first call."""
    return FeatureEngine(CATALOGUE)


def decoder() -> StepDecoder:
    limits = RequestLimits(past_ms_max=400 * 24 * 3_600_000, future_ms_max=24 * 3_600_000)
    return StepDecoder(engine().plan, RATES, limits)


def drawn(random_: random.Random, number: int, time_ms: int) -> dict[str, Any]:
    """Draws a payment of few cards, merchants and devices. Some fields are missing now and then."""
    values: dict[str, Any] = {
        "payment_id": f"p-{number}",
        "event_time_ms": time_ms,
        "card_id": f"c-{random_.randrange(8)}",
        "merchant_id": f"m-{random_.randrange(9)}",
        "amount_minor": random_.randrange(1, 90_000),
        "currency": "EUR",
    }
    if random_.random() < 0.8:
        values["device_id"] = f"d-{random_.randrange(6)}"
    if random_.random() < 0.8:
        values["ip"] = random_.choice(
            ["192.0.2.7", "192.0.2.99", "198.51.100.1", "2001:db8::1", "2001:DB8::1", "2001:db8:1::2"]
        )
    if random_.random() < 0.8:
        names = ["ann", "Ann", "ANN", *(f"b{number}" for number in range(9))]
        values["buyer_email"] = f"{random_.choice(names)}@example.com"
    return values


def body_of(values: Mapping[str, Any]) -> bytes:
    return request_class(FIELDS.fields)(**values).SerializeToString()


def checked(payments: Sequence[Mapping[str, Any]]) -> CheckedPayments:
    found, errors = decoder().read([body_of(values) for values in payments], NOW_MS)
    assert not errors
    return found


def heard(seed: int, count: int = 150) -> list[dict[str, Any]]:
    """Draws payments of the last three weeks, in order of time."""
    random_ = random.Random(seed)
    times = sorted(NOW_MS - random_.randrange(1, 20 * 24 * 60) * MINUTE_MS for _ in range(count))
    return [drawn(random_, number, time_ms) for number, time_ms in enumerate(times)]


class Past:
    """A past and its profiles, as the stream would make them."""

    def __init__(self, seed: int, count: int = 150) -> None:
        self._random = random.Random(seed)
        past = heard(seed, count)
        self.profiles = profiles_of(engine(), past)
        self._keys = keys_by_identity(past)

    def asked(self, count: int) -> list[dict[str, Any]]:
        """Draws payments of now. Some are of a card or merchant that nobody knows."""
        payments = [drawn(self._random, 10_000 + number, NOW_MS - self._random.randrange(9)) for number in range(count)]
        for values in payments:
            if self._random.random() < 0.1:
                values[self._random.choice(["card_id", "merchant_id", "device_id"])] = "nobody"
        return payments

    def profile_of(self, entity: str, identity: int) -> bytes | None:
        key = self._keys.get((entity, identity))
        return None if key is None else self.profiles.get(key)

    def vectors(self, payments: CheckedPayments, known: Mapping[bytes, bytes] | None = None) -> NDArray[np.float32]:
        """Returns the vectors of payments by the kernel alone, neighbours found by the identities in rows.

        `known`: the profiles by key that the payments themselves see.
        """
        names, states = engine().plan.entity_names, self.profiles if known is None else known
        seen = [
            {name: states.get(key) for name, key in zip(names, keys, strict=True) if key}
            for keys in (payments.keys[at : at + len(names)] for at in range(0, len(payments.keys), len(names)))
        ]
        return words.vectors(engine().clone_for_thread(), payments.rows.tolist(), seen, self.profile_of)


def profiles_of(made_by: FeatureEngine, past: Sequence[Mapping[str, Any]]) -> dict[bytes, bytes]:
    """Returns the profiles of a past by key."""
    payments, names = checked(past), engine().plan.entity_names
    groups: dict[bytes, list[words.Change]] = {}
    for place, key in enumerate(payments.keys):
        if key:
            row = tuple(payments.rows[place // len(names)].tolist())
            groups.setdefault(key, []).append(words.Change(kernel.PAYMENT, row, 1))
    found: dict[bytes, bytes] = {}
    for name in made_by.plan.entity_names:
        own = [key for key in groups if key.startswith(f"{name}:".encode())]
        states = words.apply_groups(made_by, name, [groups[key] for key in own], [None] * len(own)).states
        found |= dict(zip(own, states, strict=True))
    return found


def keys_by_identity(past: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], bytes]:
    """Returns the key of each profile by entity and identity, from the rows that remember it."""
    payments, plan = checked(past), engine().plan
    columns = {one.name: one.column for one in (*ATTRIBUTES, *FIELDS.attributes)}
    found: dict[tuple[str, int], bytes] = {}
    for place, key in enumerate(payments.keys):
        number, entity = divmod(place, plan.entity_count)
        if key:
            column = identity_column(columns[plan.entity_keys[entity][0]])
            found[plan.entity_names[entity], int(payments.rows[number, column])] = key
    return found
