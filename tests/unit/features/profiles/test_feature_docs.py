from __future__ import annotations

import numpy as np
import pytest

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import merchant_id
from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.features.catalogue.entity import Catalogue, Entity, ratio, request
from paywarden.features.profiles.engine import Events, FeatureEngine
from paywarden.features.profiles.feature_docs import Listing, listing_of
from tests.checkout import CHECKOUT

PAGE = CHECKOUT / "docs" / "reference" / "features.md"

card = Entity("card", "card_id")
device = Entity("device", "device_id")
pair = Entity("card_device", ("card_id", "device_id"))
SMALL = Catalogue(
    [card, device, pair],
    [
        request.amount("amount"),
        card.amount_mean("mean", "7d", hop="6h"),
        card.count_trend("trend", "1d", "30d"),
        device.count("uses", "1h"),
        pair.seconds_since_first("known_for"),
        card.is_new("new_merchant", merchant_id, among=4),
        ratio("to_mean", "amount", "mean"),
    ],
)


@pytest.fixture(scope="module")
def listing() -> Listing:
    return listing_of(SMALL, FeatureEngine(SMALL))


def test_each_feature_is_listed_with_all_its_columns(listing: Listing) -> None:
    by_name = {feature.name: feature for feature in listing.features}
    assert list(by_name) == list(SMALL.names)
    mean = by_name["mean"]
    assert (mean.entity, mean.window, mean.hop, mean.unit) == ("card", "7d", "6h", "minor units")
    assert mean.missing_when == "no payments in the window"
    assert (by_name["trend"].window, by_name["trend"].hop) == ("1d : 30d", "1h : 1d")
    assert by_name["uses"].missing_when == "the payment has no device_id"
    assert by_name["known_for"].missing_when == "first payment of the card_device; the payment has no device_id"
    assert by_name["amount"].missing_when == "never"
    assert by_name["to_mean"].missing_when == "amount or mean is missing, or mean is 0"


def test_an_entity_is_listed_with_the_size_of_its_profiles(listing: Listing) -> None:
    engine = FeatureEngine(SMALL)
    one, none, first = np.ones(1, np.int64), np.full(1, -1, np.int64), np.zeros(1, np.int64)
    events = Events(np.array([0, 1]), np.zeros(1, np.uint8), first, one, none, one, none)
    attributes = np.full((1, kernel.ATTRIBUTE_COUNT), 5000, dtype=np.int64)
    attributes[0, kernel.TIME_MS] = 1_700_000_000_000
    for number, entity in enumerate(listing.entities):
        state = engine.apply(number, events, attributes, [None], engine.new_slots(0)).states[0]
        assert abs(entity.bytes_after_one_payment - len(state)) < 10
        assert entity.bytes_max == engine.plan.profile_bytes_max(number) > entity.bytes_after_one_payment
        assert entity.kept_days == engine.plan.ttl_s(number) // 86_400
    assert [(entity.name, entity.key, entity.features) for entity in listing.entities] == [
        ("card", "card_id", 3),
        ("device", "device_id", 1),
        ("card_device", "card_id + device_id", 1),
    ]


def test_the_page_of_the_documentation_equals_the_catalogue() -> None:
    """`python -m paywarden.ops.reference` writes the page again."""
    assert PAGE.read_text(encoding="utf-8") == listing_of(CATALOGUE, FeatureEngine()).to_markdown() + "\n"
