"""Stored profiles where a project's declarations change: what both catalogues use stays, and the rest starts again."""

from __future__ import annotations

from typing import Any

import numpy as np

from paywarden.features import kernel
from paywarden.features.catalogue import fields
from paywarden.features.catalogue.attributes import DeclaredRow, row_of
from paywarden.features.catalogue.entity import Catalogue, Entity, request
from paywarden.features.catalogue.expressions import Feature
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.keys import hashed_id
from paywarden.features.profiles.profile_view import typed_key
from tests.unit.features.kernel.profiles import Change, profile, vectors

HOUR_MS = 3_600_000
NOW_MS = 1_764_000_000_000
CUSTOMER = fields.text("customer_id", 3, personal=True)
ITEMS = fields.integer("items", 1, unit="items", least=0, most=100)
GIFT = fields.flag("is_gift", 7)
customer = Entity("customer", key="customer_id")
LARGE = customer.count("large_7d", "7d", where=ITEMS >= 10)
KINDS = customer.distinct("gift_customers", CUSTOMER, "7d")
GIFTS = customer.count("gifts_7d", "7d", where=GIFT)


def engine_of(declared: fields.Payment, *features: Feature) -> FeatureEngine:
    return FeatureEngine(Catalogue((customer,), features, declared))


def change(engine: FeatureEngine, hours: int, **values: Any) -> Change:
    declared = DeclaredRow(engine.plan.fields, lambda amount, _: amount)
    row = row_of(values, event_time_ms=NOW_MS + hours * HOUR_MS, amount=100, amount_minor=100, declared=declared)
    return Change(kernel.PAYMENT, tuple(row), 1)


BEFORE = engine_of(fields.Payment(CUSTOMER, ITEMS), LARGE, KINDS)
AFTER = engine_of(fields.Payment(ITEMS, GIFT, CUSTOMER), request.hour("hour"), GIFTS, LARGE, KINDS)


def seen(engine: FeatureEngine, state: bytes, hours: int) -> dict[str, float]:
    row = change(engine, hours, items=1, is_gift=True, customer_id="c-1").row
    vector = vectors(engine, [row[: engine.plan.row_width]], [{"customer": state}])[0]
    return dict(zip(engine.plan.names, map(float, vector), strict=True))


def test_a_profile_keeps_what_both_catalogues_use_when_a_field_comes() -> None:
    old = [change(BEFORE, hour, items=items, customer_id="c-1") for hour, items in enumerate((5, 10, 50))]
    stored = profile(BEFORE, "customer", old)
    assert seen(BEFORE, stored, 4) == {"large_7d": 2, "gift_customers": seen(BEFORE, stored, 4)["gift_customers"]}
    new = change(AFTER, 3, items=70, is_gift=True, customer_id="c-1")
    migrated = profile(AFTER, "customer", [new], stored)
    after = seen(AFTER, migrated, 4)
    assert (after["large_7d"], after["gifts_7d"]) == (3, 1)
    assert after["gift_customers"] == seen(BEFORE, stored, 4)["gift_customers"]
    # As if the field had always been declared, and had been missing before.
    afresh = [change(AFTER, hour, items=items, customer_id="c-1") for hour, items in enumerate((5, 10, 50))]
    assert profile(AFTER, "customer", [*afresh, new]) == migrated


def test_a_profile_keeps_the_rest_when_a_field_goes() -> None:
    events = [change(AFTER, 0, items=10, is_gift=True, customer_id="c-1"), change(AFTER, 1, items=1)]
    back = BEFORE.migrated(0, profile(AFTER, "customer", events))
    assert back == profile(
        BEFORE, "customer", [change(BEFORE, 0, items=10, customer_id="c-1"), change(BEFORE, 1, items=1)]
    )


def test_sixteen_entities_work_together() -> None:
    texts = [fields.text(f"x{number}", number) for number in range(1, 17)]
    entities = [Entity(f"e{number}", key=f"x{number}") for number in range(1, 17)]
    features = [one.count(f"count_{one.name}", "1d") for one in entities]
    engine = FeatureEngine(Catalogue(entities, features, fields.Payment(*texts)))
    event = change(engine, 0, **{f"x{number}": "a" for number in range(1, 17)})
    states: dict[str, bytes | None] = {f"e{n}": profile(engine, f"e{n}", [event] * n) for n in range(1, 16)}
    found = vectors(engine, [event.row], [states])[0]
    assert found[:15].tolist() == list(range(1, 16))
    assert np.isnan(found[15])


def test_an_operator_types_the_value_and_the_key_has_its_hash() -> None:
    plan = BEFORE.plan
    assert typed_key(plan, "customer:c-1") == (0, f"customer:{hashed_id(plan.key.of('c-1'))}".encode())


def test_the_digest_changes_with_the_way_keys_are_made() -> None:
    public = fields.text("customer_id", 3)
    one = Catalogue((customer,), (request.hour("hour"),), fields.Payment(CUSTOMER))
    other = Catalogue((customer,), (request.hour("hour"),), fields.Payment(public))
    digests = [FeatureEngine(catalogue).plan.digest for catalogue in (one, other)]
    assert digests[0] != digests[1]
