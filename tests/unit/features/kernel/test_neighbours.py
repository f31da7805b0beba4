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


def test_groups_are_told_in_the_order_of_their_lists(engine: FeatureEngine) -> None:
    groups = [(hop.source, hop.target, hop.capacity, len(hop.results)) for hop in engine.plan.hops]
    assert groups == [(CARD, MERCHANT, 2, 1), (CARD, MERCHANT, 3, 2), (DEVICE, CARD, 2, 1)]
    assert engine.plan.listed == (MERCHANT,) * 5 + (CARD,) * 2


def test_a_list_has_the_latest_different_merchants_newest_first(engine: FeatureEngine) -> None:
    m1, m2, m3, m4 = LAPTOP_KEY.of_all(["m1", "m2", "m3", "m4"])
    state = card_at(engine, "m1", "m2", "m3", "m2", "m4")
    assert listed(engine, START_MS + 9 * MINUTE_MS, {"card": state}) == [m4, m2, m4, m2, m3, 0, 0]
    assert listed(engine, START_MS + 9 * MINUTE_MS, {"card": card_at(engine, "m1")}) == [m1, 0, m1, 0, 0, 0, 0]


def test_results_are_the_largest_and_the_mean_of_known_profiles(engine: FeatureEngine) -> None:
    cheap, dear = merchant_with(engine, 100, 300), merchant_with(engine, 1_001)
    result = hops_of(engine, START_MS + MINUTE_MS, [dear, None, cheap, None, dear, None, None])
    assert result.tolist()[:3] == [1_001.0, 1_001.0, (200.0 + 1_001.0) / 2]
    assert math.isnan(result[3])


def test_a_profile_is_read_as_of_the_payment(engine: FeatureEngine) -> None:
    states = [None, None, merchant_with(engine, 100), None, None, None, None]
    assert hops_of(engine, START_MS + MINUTE_MS, states)[1] == 100.0
    # The window of one day is over: the mean is missing.
    assert math.isnan(hops_of(engine, START_MS + 3 * 24 * 60 * MINUTE_MS, states)[1])


def test_a_neighbour_whose_profile_is_gone_has_the_features_of_an_empty_one() -> None:
    """A store forgets a merchant when its windows are empty. A replay keeps it, and counts 0 payments."""
    features = merchant.count("count", "1h"), card.largest_of_last("busiest", merchant, "count", 2)
    engine = FeatureEngine(Catalogue((card, merchant), features))
    kept = profile(engine, "merchant", [payment(START_MS)])
    later = START_MS + 24 * 60 * MINUTE_MS
    assert hops_of(engine, later, [kept, None]).tolist() == [0.0]
    assert hops_of(engine, later, [b"", None]).tolist() == [0.0]
    assert math.isnan(hops_of(engine, later, [None, None])[0])


def test_a_value_counts_as_the_float32_that_a_vector_has(engine: FeatureEngine) -> None:
    third = merchant_with(engine, 1, 1, 2)
    result = hops_of(engine, START_MS + MINUTE_MS, [None, None, third, None, None, None, None])
    assert result[2] == float(np.float32(4 / 3)) != 4 / 3


def test_a_mean_adds_up_in_the_order_of_the_list(engine: FeatureEngine) -> None:
    # 2**53 is the first whole number whose successor is no float64: added to it one by one, ones are lost.
    large, one = merchant_with(engine, 2**53), merchant_with(engine, 1)
    forward, backward = (2.0**53 + 1.0 + 1.0) / 3, (1.0 + 1.0 + 2.0**53) / 3
    assert forward != backward
    time_ms = START_MS + MINUTE_MS
    assert hops_of(engine, time_ms, [None, None, large, one, one, None, None])[2] == forward
    assert hops_of(engine, time_ms, [None, None, one, one, large, None, None])[2] == backward


def test_hops_become_features_that_others_can_use(engine: FeatureEngine) -> None:
    cheap, dear = merchant_with(engine, 100), merchant_with(engine, 300)
    hops = hops_of(engine, START_MS + MINUTE_MS, [None, None, cheap, dear, None, None, None])
    seen = seen_by(engine, [row(START_MS + MINUTE_MS)], [{"card": None}])
    engine.fill_vectors(seen.attributes, seen.presence, seen.states, seen.bounds, seen.out, hops.reshape(1, -1))
    of_name = dict(zip(engine.plan.names, seen.out[0].tolist(), strict=True))
    assert (of_name["largest"], of_name["mean"]) == (300.0, 200.0)
    assert of_name["of_largest"] == pytest.approx(200 / 300)
    bound = np.zeros_like(seen.out)
    engine.bind(seen.attributes, seen.presence, seen.states, seen.bounds, bound, hops.reshape(1, -1))(1)
    assert bound.tobytes() == seen.out.tobytes()


def test_without_hops_their_features_are_missing(engine: FeatureEngine) -> None:
    seen = seen_by(engine, [row(START_MS)], [{"card": card_at(engine, "m1")}])
    engine.fill_vectors(seen.attributes, seen.presence, seen.states, seen.bounds, seen.out)
    of_name = dict(zip(engine.plan.names, seen.out[0].tolist(), strict=True))
    assert math.isnan(of_name["largest"])
    assert math.isnan(of_name["cards_devices"])


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
