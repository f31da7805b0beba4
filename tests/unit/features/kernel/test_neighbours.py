"""Features two hops away: the lists of neighbours, and what is read from their profiles, by hand-made profiles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import device_id, merchant_id
from paywarden.features.catalogue.entity import Catalogue, ratio
from paywarden.features.catalogue.identity import LAPTOP_KEY
from paywarden.features.profiles.engine import FeatureEngine, UnreadableProfile
from tests.unit.features.kernel.profiles import card, device, merchant, payment, profile, row, seen_by

START_MS = 1_764_000_000_000
MINUTE_MS = 60_000
HOPS = Catalogue(
    entities=(card, merchant, device),
    features=(
        merchant.amount_mean("merchant_mean", "1d"),
        merchant.count("merchant_count", "1d"),
        merchant.last_amount("merchant_last"),
        card.largest_of_last("largest", merchant, "merchant_mean", 3),
        card.mean_of_last("mean", merchant, "merchant_mean", 3),
        card.is_new("is_new", merchant_id, among=3),
        card.distinct("card_devices", device_id, "30d"),
        device.largest_of_last("cards_devices", card, "card_devices", 2),
        card.mean_of_last("last_amounts", merchant, "merchant_last", 2),
        ratio("of_largest", "mean", "largest"),
    ),
)
CARD, MERCHANT, DEVICE = range(3)


@pytest.fixture(scope="module")
def engine() -> FeatureEngine:
    return FeatureEngine(HOPS)


def card_at(engine: FeatureEngine, *merchants: str) -> bytes:
    """The profile of a card that paid at these merchants, one a minute."""
    return profile(
        engine, "card", [payment(START_MS + n * MINUTE_MS, 5, merchant_id=one) for n, one in enumerate(merchants)]
    )


def listed(engine: FeatureEngine, time_ms: int, states: Mapping[str, bytes | None]) -> list[int]:
    """The neighbours of a payment, group by group."""
    seen = seen_by(engine, [row(time_ms)], [states])
    identities = np.full((1, len(engine.plan.listed)), -1, dtype=np.int64)
    engine.list_neighbours(seen.attributes, seen.presence, seen.states, seen.bounds, identities)
    found: list[int] = identities[0].tolist()
    return found


def hops_of(engine: FeatureEngine, time_ms: int, states: Sequence[bytes | None]) -> NDArray[np.float64]:
    """The results of a payment. Neighbours: None for an empty place of the list, b"" for a profile that is gone."""
    assert len(states) == len(engine.plan.listed)
    presence = np.array(
        [kernel.ABSENT if one is None else kernel.KNOWN if one else kernel.UNKNOWN for one in states], dtype=np.uint8
    )
    packed = [one or b"" for one in states]
    hops = engine.new_hops(1)
    engine.fill_hops(
        np.array([row(time_ms)], dtype=np.int64),
        presence,
        np.frombuffer(bytearray(b"".join(packed)), dtype=np.uint8),
        np.concatenate(([0], np.cumsum([len(one) for one in packed]))).astype(np.int64),
        hops,
    )
    found: NDArray[np.float64] = hops[0]
    return found


def merchant_with(engine: FeatureEngine, *amounts: int) -> bytes:
    return profile(engine, "merchant", [payment(START_MS + n, amount) for n, amount in enumerate(amounts)])


def test_a_neighbour_whose_profile_is_gone_has_the_features_of_an_empty_one() -> None:
    """A store forgets a merchant when its windows are empty. A replay keeps it, and counts 0 payments."""
    features = merchant.count("count", "1h"), card.largest_of_last("busiest", merchant, "count", 2)
    engine = FeatureEngine(Catalogue((card, merchant), features))
    kept = profile(engine, "merchant", [payment(START_MS)])
    later = START_MS + 24 * 60 * MINUTE_MS
    assert hops_of(engine, later, [kept, None]).tolist() == [0.0]
    assert hops_of(engine, later, [b"", None]).tolist() == [0.0]
    assert math.isnan(hops_of(engine, later, [None, None])[0])


def test_neighbours_of_another_catalogue_are_migrated(engine: FeatureEngine) -> None:
    features = (merchant.amount_mean("mean", "1d"), card.is_new("new", merchant_id, among=3))
    other = FeatureEngine(Catalogue((card, merchant), (*features, merchant.count("count", "7d"))))
    assert listed(engine, START_MS + MINUTE_MS, {"card": card_at(other, "m1")})[2] == LAPTOP_KEY.of("m1")
    old = profile(other, "merchant", [payment(START_MS, 700)])
    assert hops_of(engine, START_MS + MINUTE_MS, [None, None, None, old, None, None, None])[1] == 700.0


def test_a_damaged_neighbour_is_named_by_its_kind(engine: FeatureEngine) -> None:
    damaged = bytearray(merchant_with(engine, 100))
    damaged[-1] ^= 1
    with pytest.raises(UnreadableProfile, match="a stored merchant profile cannot be read: it is damaged"):
        hops_of(engine, START_MS, [None, None, None, bytes(damaged), None, None, None])


def test_a_catalogue_without_hops_has_none() -> None:
    engine = FeatureEngine(Catalogue((card,), (card.count("count", "1d"),)))
    assert (engine.plan.hops, engine.plan.listed, engine.plan.hop_slot_count) == ((), (), 0)
    assert engine.new_hops(3).shape == (3, 0)
