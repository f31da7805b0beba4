"""Features two hops away: replay, scoring and the plain way give the same bits, with any threads, lag and overlay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from paywarden.features.catalogue.attributes import identity_column
from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.datasets.catalogue_check import check_catalogue
from paywarden.features.history.overlay import HistoryOverlay
from paywarden.features.history.point_in_time import PointInTimeReplay
from paywarden.features.history.staleness import Staleness
from paywarden.features.history.thread_pool import ThreadPool
from paywarden.features.profiles.engine import FeatureEngine
from tests.parity.comparison import differing, same_bits
from tests.parity.features_worlds import (
    ENTITY_KEYS,
    RATES,
    Heard,
    OfEntity,
    Outcome,
    Said,
    World,
    catalogue_of,
    change_of,
    payment_of,
    two_hops,
    worlds,
)
from tests.parity.test_features_against_naive import history_of, keys_of, passed, plainly, row_of
from tests.unit.features.kernel.profiles import bound_vector, profile, vectors

Vectors = NDArray[np.float32]
START_MS, DAY_MS = 1_530_403_200_000, 86_400_000


def streamed(heard: Sequence[Heard], of: FeatureEngine) -> Vectors:
    """Returns the vectors of payments event by event: from packed profiles, the neighbours' found by identity."""
    plan = of.plan
    columns = {plan.entity_names[hop.target]: identity_column(hop.attribute) for hop in plan.hops}
    profiles: dict[bytes, bytes] = {}
    key_of: dict[tuple[str, int], bytes] = {}
    rows = []
    for event in heard:
        keys, row = keys_of(of.plan, event.payment), row_of(event.payment)

        def neighbour(entity: str, identity: int) -> bytes | None:
            return profiles.get(key_of.get((entity, identity), b""))

        if event.weight is None:
            states = {entity: profiles.get(key) for entity, key in keys.items()}
            rows.append(vectors(of, [row], [states], neighbour)[0])
            assert same_bits(bound_vector(of, row, states, neighbour), rows[-1])
        for entity, key in keys.items():
            profiles[key] = profile(of, entity, [change_of(event)], profiles.get(key))
            if entity in columns:
                key_of[entity, row[columns[entity]]] = key
    return np.array(rows, dtype=np.float32).reshape(len(rows), plan.feature_count)


def read(said: Sequence[Said]) -> tuple[FeatureEngine, Catalogue]:
    catalogue = catalogue_of(said)
    return FeatureEngine(catalogue), catalogue


def replayed(world: World, of: FeatureEngine, **options: Any) -> Vectors:
    rows = options.pop("rows", 1000)
    return np.concatenate(
        [c.vectors for c in PointInTimeReplay(history_of(world), of, RATES, **options).chunks(rows=rows)]
    )


def assert_same(got: Vectors, wanted: Vectors, of: FeatureEngine) -> None:
    assert got.shape == wanted.shape
    assert list(differing(of.plan.names, got, wanted)) == []


@settings(max_examples=15)
@given(said=two_hops(ENTITY_KEYS, ()), world=worlds(), rows=st.sampled_from([1, 2, 3, 7, 1000]))
def test_replay_and_scoring_give_the_plain_bits(said: list[Said], world: World, rows: int) -> None:
    of, catalogue = read(said)
    heard = world.heard()
    one_by_one = streamed(heard, of)
    assert_same(one_by_one, plainly(catalogue, heard), of)
    assert_same(passed(world, of, rows)[0], one_by_one, of)
    with ThreadPool(2) as crew:
        assert_same(replayed(world, of, rows=rows, crew=crew), one_by_one, of)


@settings(max_examples=8)
@given(said=two_hops(ENTITY_KEYS, ()), world=worlds(), data=st.data())
def test_events_in_any_order_give_the_plain_bits(said: list[Said], world: World, data: st.DataObject) -> None:
    of, catalogue = read(said)
    heard = data.draw(st.permutations(world.heard()))
    assert_same(streamed(heard, of), plainly(catalogue, heard), of)


@settings(max_examples=8)
@given(said=two_hops(ENTITY_KEYS, ()), world=worlds(8), rows=st.integers(1, 8), data=st.data())
def test_neighbours_lag_like_all_profiles(said: list[Said], world: World, rows: int, data: st.DataObject) -> None:
    of, catalogue = read(said)
    lag_ms = data.draw(st.sampled_from([1, 60_000, 3_600_000, DAY_MS]))
    lag = Staleness.read(f"{lag_ms}ms")
    found = replayed(world, of, rows=rows, staleness=lag)
    with ThreadPool(2) as crew:
        assert_same(replayed(world, of, rows=rows, staleness=lag, crew=crew), found, of)
    for row, payment in enumerate(world.payments):
        until = payment.time_ms - lag_ms
        seen = [place for place, other in enumerate(world.payments) if other.time_ms <= until and place < row]
        known = [outcome for outcome in world.outcomes if outcome.time_ms < until and outcome.payment in seen]
        outcomes = [Outcome(seen.index(one.payment), one.time_ms, one.is_fraud) for one in known]
        heard = World([world.payments[place] for place in seen], outcomes).heard()
        wanted = plainly(catalogue, [*heard, Heard(payment)])[-1:]
        assert_same(found[row : row + 1], wanted, of)
    # Payments that only an overlay knows stand in no list and in no neighbour's profile.
    overlay = HistoryOverlay(1, 600_000, 16)
    with_overlay = replayed(world, of, rows=rows, staleness=lag, overlay=overlay)
    hops = [place for place, feature in enumerate(said) if feature.word.endswith("_of_last")]
    columns = [of.plan.names.index(said[place].name) for place in hops]
    assert with_overlay[:, columns].tobytes() == found[:, columns].tobytes()


@settings(max_examples=5)
@given(said=two_hops(ENTITY_KEYS, ()), seed=st.integers(0, 1000))
def test_a_catalogues_check_knows_neighbours(said: list[Said], seed: int) -> None:
    checked = check_catalogue(catalogue_of(said), payments=60, seed=seed)
    assert checked.differences == ()
    assert not {one.name for one in said if one.word.endswith("_of_last")} & set(checked.not_plain)


RING = (
    Said("share", "merchant", "fraud_share", ("10d",), (("delay", "1d"), ("hop", "6h"))),
    Said("worst", "card", "largest_of_last", (OfEntity("merchant"), "share", 2), ()),
    Said("count", "merchant", "count", ("2d",), ()),
    Said("mean_count", "card", "mean_of_last", (OfEntity("merchant"), "count", 2), ()),
)


def told(world: World, name: str) -> list[float]:
    """The values of a feature of RING, the same in a replay and event by event."""
    of, _ = read(RING)
    found = replayed(world, of)
    assert_same(streamed(world.heard(), of), found, of)
    values: list[float] = found[:, of.plan.names.index(name)].tolist()
    return values


def test_a_list_ends_before_the_payment_and_begins_with_the_newest_merchant() -> None:
    at = [payment_of(START_MS + hour * 3_600_000, merchant_id=m) for hour, m in enumerate(["m1", "m2", "m3", "m1"])]
    crowd = [
        payment_of(START_MS - 3_600_000 + n, card_id="c2", merchant_id=m) for n, m in enumerate(["m1", "m1", "m3"])
    ]
    # Before the card's payments: m1 has 2 of c2, m3 has 1, m2 has none.
    assert np.array_equal(
        told(World([*crowd, *at], []), "mean_count")[3:],
        # nothing yet; m1: 3; m2: 1 and m1: 3; m3: 2 and m2: 1
        [np.nan, 3.0, 2.0, 1.5],
        equal_nan=True,
    )


def test_a_label_counts_from_the_moment_it_is_known() -> None:
    times = [START_MS, START_MS + 3 * DAY_MS, START_MS + 3 * DAY_MS + 1, START_MS + 3 * DAY_MS + 2]
    payments = [payment_of(time_ms, merchant_id=m) for time_ms, m in zip(times, ["m1", "m2", "m2", "m2"], strict=True)]
    known_at = Outcome(0, times[2], True)
    # The label arrives just after the third payment, which has the same millisecond.
    assert told(World(payments, [known_at]), "worst")[1:] == [0.0, 0.0, 1.0]


def test_one_merchants_fraud_warns_of_the_cards_that_paid_there() -> None:
    stolen = [payment_of(START_MS + n, card_id=f"c{n}", merchant_id="m1") for n in range(4)]
    later = [payment_of(START_MS + 5 * DAY_MS + n, card_id=f"c{n}", merchant_id="m2") for n in range(4)]
    outcomes = [Outcome(0, START_MS + 2 * DAY_MS, True), Outcome(1, START_MS + 3 * DAY_MS, True)]
    assert told(World([*stolen, *later], outcomes), "worst")[4:] == [0.5] * 4


def test_a_pending_payment_stands_in_no_list_and_in_no_neighbours_profile() -> None:
    payments = [
        payment_of(START_MS, card_id="c1", merchant_id="m1"),
        payment_of(START_MS, card_id="c9", merchant_id="m3"),
        payment_of(START_MS, card_id="c9", merchant_id="m3"),
        # These three are pending for one another: profiles are an hour old.
        payment_of(START_MS + DAY_MS, card_id="c1", merchant_id="m3"),
        payment_of(START_MS + DAY_MS + 1, card_id="c2", merchant_id="m1"),
        payment_of(START_MS + DAY_MS + 2, card_id="c1", merchant_id="m2"),
    ]
    of, _ = read(RING)
    column = of.plan.names.index("mean_count")
    lag, overlay = Staleness.read("1h"), HistoryOverlay(1, 600_000, 16)
    now = replayed(World(payments, []), of)[-1, column]
    # m3 has had three payments, and m1 two.
    assert now == 2.5
    for options in ({"staleness": lag}, {"staleness": lag, "overlay": overlay}):
        found = replayed(World(payments, []), of, **options)
        # c1 has been seen at m1 alone, and m1 has had one payment.
        assert found[-1, column] == 1.0
