"""A profile in words: what is shown is what is stored, and what the kernel makes of it."""

from __future__ import annotations

import json
from collections import Counter
from decimal import Decimal

import numpy as np
import pytest

from paywarden.features.catalogue.attributes import amount, amount_minor, channel, country, declined, merchant_id
from paywarden.features.catalogue.entity import Catalogue, Entity, ratio, request
from paywarden.features.catalogue.fields import Payment, band
from paywarden.features.history.point_in_time import PointInTimeReplay
from paywarden.features.profiles.engine import FeatureEngine, UnreadableProfile
from paywarden.features.profiles.keys import SEPARATOR, entity_key, hashed_id
from paywarden.features.profiles.profile_view import View, to_json, to_lines, typed_key, utc, view_profile
from paywarden.schemas.errors import InvalidEvent, Misconfigured
from tests.unit.features.kernel.profiles import USUAL, Change, label, payment, profile
from tests.unit.features.kernel.profiles import features as features_of
from tests.worlds.small import small_history

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
NOON_MS = 19_844 * DAY_MS + 12 * HOUR_MS  # 2024-05-01T12:00:00Z

card = Entity("card", key="card_id")
merchant = Entity("merchant", key="merchant_id")
pair = Entity("card_merchant", key=("card_id", "merchant_id"))

CATALOGUE = Catalogue(
    entities=(card, merchant, pair),
    features=(
        request.amount("amount"),
        card.count("count_1h", "1h"),
        card.count("ecom_1h", "1h", where=channel == "ecom"),
        card.amount_std("std_1h", "1h"),
        card.amount_max("max_1h", "1h"),
        card.amount_min("min_1h", "1h", where=amount >= 100_00),
        card.distinct("merchants_1d", merchant_id, "1d"),
        card.entropy("entropy_1d", merchant_id, "1d", buckets=4),
        card.fraud_share("fraud_share_7d", "7d", delay="1d"),
        card.fraud_streak_amount_mean("streak_mean_7d", "7d", delay="1d"),
        card.last_amount("last_amount"),
        card.is_new("new_country", country, among=3),
        card.is_new("new_merchant", merchant_id, among=2),
        card.amount_zscore("zscore_1h", "1h"),
        card.seconds_since_last("since_last"),
        ratio("max_to_std", "max_1h", "std_1h"),
        ratio("amount_to_max", "amount", "max_1h"),
        merchant.count("merchant_count_1h", "1h"),
        ratio("card_to_merchant", "count_1h", "merchant_count_1h"),
        pair.count("pair_count_1h", "1h"),
        merchant.share("merchant_declined", "1h", of=declined),
    ),
)
ENGINE = FeatureEngine(CATALOGUE)
EVENTS = (
    payment(NOON_MS, 1_00, merchant_id="M1", country="DE", channel="ecom", source=0, offset=17),
    payment(NOON_MS + 1, 250_50, merchant_id="M2", country="FR", channel="pos", source=6, offset=3),
    payment(NOON_MS + HOUR_MS + 500, 20_00, merchant_id="M1", country="DE", channel="ecom", source=0, offset=40),
    label(NOON_MS, -1, amount=1_00, source=1, offset=8),
)


def shown_of(state: bytes, entity: int = 0, as_of_ms: int = NOON_MS) -> View:
    return view_profile(ENGINE, CATALOGUE, entity, state, as_of_ms=as_of_ms, source_name=source_name)


def view(changes: tuple[Change, ...] = EVENTS, entity: str = "card", as_of_ms: int = NOON_MS + 2 * HOUR_MS) -> View:
    return shown_of(profile(ENGINE, entity, changes), ENGINE.plan.entity_names.index(entity), as_of_ms)


def tiles(hop: str, of: View) -> list[View]:
    (found,) = [table["tiles"] for table in of["tables"] if (table["hop"], table["labels"]) == (hop, False)]
    assert isinstance(found, list)
    return found


def features_in(of: View) -> dict[str, View]:
    return {feature["name"]: feature for feature in of["features"]}


def source_name(source: int) -> str:
    return f"source {source}"


def lines(of: View | None = None) -> list[str]:
    return [" ".join(line.split()) for line in to_lines(of or view())]


def test_the_square_of_the_largest_amount_is_exact() -> None:
    large = 10**11
    shown = shown_of(profile(ENGINE, "card", [payment(NOON_MS, large), payment(NOON_MS, large - 1)]))
    (tile,) = tiles("1m", shown)
    assert isinstance(tile["squares"], Decimal)
    assert tile["squares"] * 10_000 == large**2 + (large - 1) ** 2


def test_a_view_says_when_the_profile_began_what_it_remembers_and_what_it_contains() -> None:
    memories = {memory["attribute"]: memory["values"] for memory in view()["memories"]}
    assert [item["value"] for item in memories["amount"]] == ["20.00"]
    assert [item["value"] for item in memories["merchant_id"]] == [None, None]
    shown = lines()
    assert "first payment 2024-05-01T12:00:00Z" in shown
    assert "last payment 2024-05-01T13:00:00.500Z" in shown
    assert "latest values of country: 2, at most 3" in shown
    assert "2024-05-01T12:00:00.001Z FR" in shown
    assert "2024-05-01T12:00:00.001Z (only a checksum)" in shown
    at = shown.index("contains, by source partition: 3")
    assert shown[at + 1 : at + 4] == ["source 0 offset 40", "source 1 offset 8", "source 6 offset 3"]


def test_features_are_what_a_payment_at_that_time_would_see() -> None:
    as_of_ms = NOON_MS + HOUR_MS + 20_000
    wanted = features_of(ENGINE, as_of_ms, 0, {"card": profile(ENGINE, "card", EVENTS)})
    shown = features_in(view(as_of_ms=as_of_ms))
    for name in ("count_1h", "ecom_1h", "std_1h", "max_1h", "merchants_1d", "last_amount", "since_last", "max_to_std"):
        assert np.float32(shown[name]["value"]) == np.float32(wanted[name])
    assert f"count_1h {3} payments" in lines(view(as_of_ms=as_of_ms))
    assert "since_last 19.5 seconds" in lines(view(as_of_ms=as_of_ms))


def test_a_feature_that_has_no_value_says_why_and_others_entities_have_none() -> None:
    shown = features_in(view())
    assert not {"amount", "merchant_count_1h", "card_to_merchant", "pair_count_1h"} & shown.keys()
    for name in ("new_country", "new_merchant", "zscore_1h", "amount_to_max"):
        assert (shown[name]["value"], shown[name]["missing"]) == (None, "it depends on the payment")
    assert "zscore_1h - it depends on the payment" in lines()
    late = features_in(view(as_of_ms=NOON_MS + 9 * DAY_MS))["max_1h"]
    assert late["value"] is None
    assert late["missing"].startswith("no payments in the window")


def test_a_view_before_the_newest_event_says_so() -> None:
    remark = "(the profile has newer events: what it has dropped since then is not in these)"
    assert remark in lines(view(as_of_ms=NOON_MS))
    assert remark not in lines(view())


def test_a_profile_of_another_catalogue_is_shown_as_migrated() -> None:
    other = FeatureEngine(Catalogue((card,), (card.count("count_1h", "1h"), card.count("count_2d", "2d"))))
    state = profile(other, "card", EVENTS)
    shown = shown_of(state, as_of_ms=NOON_MS + 2 * HOUR_MS)
    assert shown["is_migrated"]
    assert shown["size_bytes"] == len(state)
    assert shown["digest"] == f"{int.from_bytes(state[1:5], 'little'):08x}"
    assert any(line.endswith("of another catalogue: shown as migrated to this one") for line in lines(shown))
    assert [tile["count"] for tile in tiles("1m", shown)] == [2, 1]
    assert shown["sources"] == view()["sources"]


def test_a_wrong_byte_anywhere_is_refused_or_shown_and_never_a_bug() -> None:
    state = profile(ENGINE, "card", EVENTS)
    for place in range(len(state)):
        for flip in (1, 0x80, 0xFF):
            damaged = state[:place] + bytes([state[place] ^ flip]) + state[place + 1 :]
            try:
                shown = shown_of(damaged)
            except UnreadableProfile:
                continue
            to_json(shown)
            to_lines(shown)


def test_the_json_view_has_the_same_content() -> None:
    found = json.loads(to_json(view()))
    assert found["entity"] == "card"
    assert found["first_payment"] == "2024-05-01T12:00:00Z"
    minutes = next(table for table in found["tables"] if table["hop"] == "1m")
    assert minutes["tiles"][1] == {
        "start": "2024-05-01T13:00:00Z",
        "count": 1,
        "count where channel == 'ecom'": 1,
        "sum": 20.0,
        "squares": 400.0,
        "max": 20.0,
        "min where amount >= 10000": None,
    }
    countries = next(memory for memory in found["memories"] if memory["attribute"] == "country")
    assert countries["values"][0] == {"value": "DE", "last_seen": "2024-05-01T13:00:00.500Z"}
    assert found["sources"] == {"source 0": 40, "source 1": 8, "source 6": 3}
    values = {feature["name"]: feature["value"] for feature in found["features"]}
    assert values["last_amount"] == 2000.0
    assert values["new_country"] is None
    assert found["as_of"] == "2024-05-01T14:00:00Z"


def test_every_profile_of_a_world_can_be_shown_and_counts_its_payments() -> None:
    history, engine = small_history.history(), FeatureEngine(USUAL)
    passage = PointInTimeReplay(history, engine, small_history.rates())
    for _ in passage.chunks():
        pass
    passage.finish()
    as_of_ms = int(history.event_time_ms[-1])
    for entity, name in enumerate(engine.plan.entity_names):
        payments = Counter(passage.entities[entity].codes.tolist())
        for code, state in enumerate(passage.profiles[entity]):
            assert state is not None
            shown = view_profile(engine, USUAL, entity, state, as_of_ms=as_of_ms, source_name=source_name)
            assert shown["entity"] == name
            # A world of thirty days: the days that a profile keeps hold all of it.
            assert sum(tile["count"] for tile in tiles("1d", shown)) == payments[code]
            to_lines(shown)
            to_json(shown)


def test_a_typed_id_becomes_the_key_of_the_store() -> None:
    assert typed_key(ENGINE.plan, "card:C1") == (0, b"card:C1")
    assert typed_key(ENGINE.plan, "card:C:1,2") == (0, b"card:C:1,2")
    assert typed_key(ENGINE.plan, "card_merchant:C1,M:1") == (2, f"card_merchant:C1{SEPARATOR}M:1".encode())
    assert typed_key(ENGINE.plan, "merchant:Späti") == (1, "merchant:Späti".encode())


@pytest.mark.parametrize("text", ["4000123412341234", "crad:4000123412341234", ":4000123412341234", "", "card"])
def test_an_unknown_entity_is_refused_and_what_was_typed_is_not_repeated(text: str) -> None:
    with pytest.raises(Misconfigured, match="one of card, merchant, card_merchant") as refused:
        typed_key(ENGINE.plan, text)
    assert "4000" not in str(refused.value)


@pytest.mark.parametrize("ids", ["4000", "4000,M1,x", ""])
def test_a_combination_needs_all_of_its_ids(ids: str) -> None:
    with pytest.raises(
        Misconfigured, match="wanted card_merchant:card_id,merchant_id, 2 ids with commas between"
    ) as no:
        typed_key(ENGINE.plan, f"card_merchant:{ids}")
    assert "4000" not in str(no.value)


def test_an_empty_id_is_refused() -> None:
    with pytest.raises(Misconfigured, match="wanted card:card_id; card_id is empty"):
        typed_key(ENGINE.plan, "card:")
    with pytest.raises(Misconfigured, match="merchant_id is empty"):
        typed_key(ENGINE.plan, "card_merchant:C1,")


def test_a_band_is_typed_as_its_number_and_there_is_no_other() -> None:
    size = band("size", 1, of=amount_minor, bounds=(10_00, 50_00))
    of_size = Entity("card_size", key=("card_id", "size"))
    plan = FeatureEngine(Catalogue((of_size,), (of_size.count("x", "1d"),), Payment(size))).plan
    _, key = typed_key(plan, "card_size:C1,02")
    assert key == entity_key("card_size", ["C1", hashed_id(plan.key.of("02"))])
    with pytest.raises(Misconfigured, match="wanted card_size:card_id,size; size is a band from 00 to 02"):
        typed_key(plan, "card_size:C1,2")


def test_an_id_that_no_key_can_hold_is_refused() -> None:
    with pytest.raises(Misconfigured, match="must be UTF-8"):
        typed_key(ENGINE.plan, "card:\udcff")
    with pytest.raises(InvalidEvent):
        typed_key(ENGINE.plan, f"card_merchant:C{SEPARATOR},M1")


def test_times_are_in_utc_to_the_millisecond_whatever_the_year() -> None:
    assert utc(1) == "1970-01-01T00:00:00.001Z"
    assert utc(NOON_MS) == "2024-05-01T12:00:00Z"
    assert utc(2**52).startswith("144683-")
