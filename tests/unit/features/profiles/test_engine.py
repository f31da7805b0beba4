"""The engine: warm once and for all, within its limits, and clear about profiles it cannot read."""

from __future__ import annotations

import gc
import weakref
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paywarden.features import kernel
from paywarden.features.catalogue import attributes
from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.catalogue.windows import DAY_MS, HOUR_MS, MINUTE_MS
from paywarden.features.profiles.engine import FeatureEngine, UnreadableProfile
from paywarden.features.stores.base import RECORD_BYTES_MAX
from paywarden.schemas.errors import Misconfigured
from tests.parity.features_worlds import DECLARED, every_word
from tests.unit.features.kernel.profiles import (
    USUAL,
    apply,
    apply_groups,
    bound_vector,
    card,
    label,
    payment,
    profile,
    row,
    seen_by,
    vector,
    vectors,
)
from tests.worlds.stream.packed import read_packed, with_sources, write_packed

NOON_MS = 1_530_446_400_000


@cache
def engine() -> FeatureEngine:
    return FeatureEngine(USUAL)


def test_each_group_gets_only_its_own_events() -> None:
    groups = [[payment(NOON_MS, 1)], [], [payment(NOON_MS, 2), payment(NOON_MS, 3)]]
    known = profile(engine(), "card", [payment(NOON_MS, 9)])
    states = [None, known, known]
    together = apply_groups(engine(), "card", groups, states)
    singly = [profile(engine(), "card", group, state) for group, state in zip(groups, states, strict=True)]
    assert together.states == singly
    assert together.applied.tolist() == [1, 1, 1]


def test_an_engine_accepts_no_groups() -> None:
    result = apply_groups(engine(), "card", [], [])
    assert (result.states, result.applied.tolist(), result.late) == ([], [], 0)


def test_an_entity_without_events_counts_as_unknown() -> None:
    empty = profile(engine(), "card", [])
    left = vector(engine(), NOON_MS, 5, {"card": empty})
    np.testing.assert_array_equal(left, vector(engine(), NOON_MS, 5, {"card": None}))


def test_an_unknown_entity_shows_nothing_of_an_earlier_one() -> None:
    # All are read into one scratch, and each kind lies in it in its own way.
    names = rich().plan.entity_names
    busy = {
        name: profile(
            rich(), name, [payment(NOON_MS - hour * 3_600_000, 5, country="DE", mcc="1") for hour in range(9)]
        )
        for name in names
    }
    asked = row(NOON_MS, 7, country="FR", mcc="1", merchant_id="m")
    alone = vectors(rich(), [asked], [dict.fromkeys(names)])[0]
    for known in names:
        found = vectors(rich(), [asked] * 3, [busy, {**dict.fromkeys(names), known: busy[known]}, dict.fromkeys(names)])
        np.testing.assert_array_equal(found[2], alone)
        of_others = [
            place
            for place, feature in enumerate(every_word(DECLARED).features)
            if feature.entity not in ("", known) and feature.unit != "ratio"
        ]
        np.testing.assert_array_equal(found[1][of_others], alone[of_others])


def test_new_slots_are_all_missing() -> None:
    slots = engine().new_slots(3)
    assert slots.shape == (3, engine().plan.slot_count)
    assert np.isnan(slots).all()


def too_many_sources(state: bytes) -> bytes:
    sources = tuple((source, 0) for source in range(kernel.SOURCES_MAX + 1))
    return write_packed(with_sources(read_packed(state), sources))


BROKEN = {
    "it is not of layout version 6": lambda state: bytes([0]) + state[1:],
    "it is damaged": lambda state: state[:-1],
    "it has more than 128 source partitions": too_many_sources,
}


@pytest.mark.parametrize("reason", list(BROKEN))
@pytest.mark.parametrize("entity", ["card", "merchant", "device"])
def test_an_unreadable_profile_says_which_kind_and_why_but_not_whose(reason: str, entity: str) -> None:
    good = profile(engine(), entity, [payment(NOON_MS, 4711)])
    states = {"card": None, "merchant": None, "device": None, entity: BROKEN[reason](good)}
    with pytest.raises(UnreadableProfile) as seen:
        vector(engine(), NOON_MS, 5, states)
    with pytest.raises(UnreadableProfile) as bound:
        bound_vector(engine(), row(NOON_MS, 5), states)
    with pytest.raises(UnreadableProfile) as applied:
        apply(engine(), entity, [payment(NOON_MS, 4711)], states[entity])
    assert str(seen.value) == str(applied.value) == f"a stored {entity} profile cannot be read: {reason}"
    assert str(bound.value) == str(seen.value)


@pytest.mark.parametrize("payments", [1, 3])
def test_the_kind_of_an_unreadable_profile_is_right_among_several_payments(payments: int) -> None:
    good = {name: profile(engine(), name, [payment(NOON_MS, 1)]) for name in ("card", "merchant", "device")}
    known: list[dict[str, bytes | None]] = [dict(good) for _ in range(payments)]
    known[-1]["merchant"] = good["merchant"][:-1]
    with pytest.raises(UnreadableProfile, match="a stored merchant profile"):
        vectors(engine(), [row(NOON_MS)] * payments, known)


def test_an_unreadable_profile_among_several_is_not_hidden_by_the_others() -> None:
    good = profile(engine(), "card", [payment(NOON_MS, 1)])
    groups = [[payment(NOON_MS, 1)]] * 3
    with pytest.raises(UnreadableProfile, match="a stored card profile cannot be read: it is damaged"):
        apply_groups(engine(), "card", groups, [None, good, good[:-1]])


def test_an_unreadable_profile_is_a_configuration_error() -> None:
    assert issubclass(UnreadableProfile, Misconfigured)


def test_the_129th_source_is_refused() -> None:
    state = profile(engine(), "card", [payment(NOON_MS, source=n) for n in range(kernel.SOURCES_MAX)])
    assert apply(engine(), "card", [payment(NOON_MS, source=3, offset=1)], state).applied.tolist() == [1]
    with pytest.raises(UnreadableProfile, match="a stored card profile cannot be read: it has more than 128 source"):
        apply(engine(), "card", [payment(NOON_MS, source=kernel.SOURCES_MAX)], state)


def test_an_engine_still_works_after_an_unreadable_profile() -> None:
    good = profile(engine(), "card", [payment(NOON_MS, 1)])
    with pytest.raises(UnreadableProfile):
        vector(engine(), NOON_MS, 5, {"card": good[:-1]})
    assert profile(engine(), "card", [], good) == good


def test_the_largest_profile_of_the_shipped_catalogue_fits_a_store() -> None:
    assert FeatureEngine(CATALOGUE).profile_bytes_max <= RECORD_BYTES_MAX


def test_a_merchants_first_fraud_counts_within_an_hour_of_the_delay() -> None:
    # A compromised terminal's first fraud tells of all that follow: tiles of six hours let its first day go by.
    of = FeatureEngine(CATALOGUE)
    paid = NOON_MS + 59 * MINUTE_MS
    state = profile(of, "merchant", [payment(paid, 5), label(paid, 1, amount=5)])

    def seen(time_ms: int) -> dict[str, np.float32]:
        return dict(zip(of.plan.names, vector(of, time_ms, 5, {"merchant": state}), strict=True))

    early, due = seen(paid + 7 * DAY_MS), seen(NOON_MS + 7 * DAY_MS + HOUR_MS)
    told = ("merchant_fraud_share_1d", "merchant_fraud_share_7d", "merchant_fraud_share_30d", "merchant_fraud_streak")
    assert [due[name] for name in told] == [1.0] * len(told)
    assert due["merchant_fraud_streak_amount_mean"] == 5
    assert early["merchant_fraud_streak"] == 0
    assert np.isnan(early["merchant_fraud_share_30d"])


def test_a_catalogue_whose_profiles_might_not_fit_a_store_is_refused() -> None:
    # Found at start, not when the first busy card cannot be written any more.
    large = [
        card.distinct(f"x{number}", attribute, "4000m", hop="1m", bits=1024)
        for number, attribute in enumerate((attributes.mcc, attributes.merchant_id))
    ]
    with pytest.raises(Misconfigured, match="a store takes 1000000: longer hops or shorter windows"):
        FeatureEngine(Catalogue((card,), large))


# Bound arrays: what a scoring worker calls, a thousand times a second, with arrays that stay.


CHANGES = st.lists(
    st.one_of(
        st.builds(
            lambda time_ms, amount, country, merchant: payment(time_ms, amount, country=country, merchant_id=merchant),
            st.integers(NOON_MS - 10**9, NOON_MS),
            st.integers(0, 10**9),
            st.sampled_from([None, "DE", "FR", "ZZ"]),
            st.sampled_from(["m1", "m2"]),
        ),
        st.builds(label, st.integers(NOON_MS - 10**9, NOON_MS), st.sampled_from([1, -1])),
    ),
    max_size=6,
)


@cache
def rich() -> FeatureEngine:
    return FeatureEngine(every_word(DECLARED))


@settings(max_examples=60)
@given(changes=CHANGES, presence=st.lists(st.sampled_from(["absent", "unknown", "known"]), min_size=4, max_size=4))
def test_a_bound_call_gives_the_bits_of_an_unbound_one(changes: list[Any], presence: list[str]) -> None:
    asked = row(NOON_MS, 777, country="US", merchant_id="m1", channel="ecom")
    states = {
        name: profile(rich(), name, changes) if kind == "known" else None
        for name, kind in zip(rich().plan.entity_names, presence, strict=True)
        if kind != "absent"
    }
    assert bound_vector(rich(), asked, states).tobytes() == vectors(rich(), [asked], [states])[0].tobytes()


def test_a_bound_call_sees_the_current_content_of_its_arrays() -> None:
    states = {"card": profile(engine(), "card", [payment(NOON_MS, 5)] * 3)}
    seen = seen_by(engine(), [row(NOON_MS, 5)], [states])
    fill = engine().bind(seen.attributes, seen.presence, seen.states, seen.bounds, seen.out)
    place = engine().plan.names.index("card_count_1h")
    fill(1)
    assert seen.out[0, place] == 3
    seen.attributes[0, kernel.TIME_MS] += 10**10
    fill(1)
    assert seen.out[0, place] == 0
    seen.presence[0] = kernel.ABSENT
    fill(1)
    assert np.isnan(seen.out[0, place])


def test_a_bound_call_fills_the_requested_number_of_rows() -> None:
    rows = [row(NOON_MS, 5), row(NOON_MS + 1, 7), row(NOON_MS + 2, 9)]
    known: list[dict[str, bytes | None]] = [
        {"card": profile(engine(), "card", [payment(NOON_MS, 5)] * count)} for count in (1, 2, 3)
    ]
    seen = seen_by(engine(), rows, known)
    seen.out[:] = 77
    fill = engine().bind(seen.attributes, seen.presence, seen.states, seen.bounds, seen.out)
    fill(2)
    assert seen.out[:2].tobytes() == vectors(engine(), rows, known)[:2].tobytes()
    assert np.all(seen.out[2] == 77)
    fill(0)
    with pytest.raises(AssertionError):
        fill(4)


def test_a_bound_call_keeps_its_arrays_alive() -> None:
    # The kernel has only their addresses: freed memory would be reused for something else.
    seen = seen_by(engine(), [row(NOON_MS, 5)], [{"card": profile(engine(), "card", [payment(NOON_MS, 5)])}])
    arrays = (seen.attributes, seen.presence, seen.states, seen.bounds, seen.out)
    references = [weakref.ref(array) for array in arrays]
    fill = engine().bind(*arrays)
    del seen, arrays
    gc.collect()
    assert all(reference() is not None for reference in references)
    fill(1)
    del fill
    gc.collect()
    assert all(reference() is None for reference in references)


def test_a_bound_call_migrates_profiles_of_another_catalogue() -> None:
    other = FeatureEngine(Catalogue((card,), (card.count("x", "1h"), card.amount_min("y", "1h"))))
    states: dict[str, bytes | None] = {"card": profile(other, "card", [payment(NOON_MS, 5)] * 3)}
    found = bound_vector(engine(), row(NOON_MS, 5), states)
    assert found[engine().plan.names.index("card_count_1h")] == 3
    assert found.tobytes() == vectors(engine(), [row(NOON_MS, 5)], [states])[0].tobytes()


def test_arrays_that_do_not_fit_cannot_be_bound() -> None:
    seen = seen_by(engine(), [row(NOON_MS, 5)], [{}])
    good = (seen.attributes, seen.presence, seen.states, seen.bounds, seen.out)
    engine().bind(*good)(1)
    wrong: dict[int, list[Any]] = {
        0: [
            np.zeros((2, kernel.ATTRIBUTE_COUNT), dtype=np.int64),
            seen.attributes.astype(np.int32),
            seen.attributes[:, ::2],
        ],
        1: [seen.presence[:2], seen.presence.astype(np.int64)],
        2: [seen.states.astype(np.int8)],
        3: [seen.bounds[:3], seen.bounds.astype(np.uint64)],
        4: [seen.out[:, :-1], seen.out.astype(np.float64), np.empty((2, engine().plan.feature_count), np.float32)],
    }
    for place, arrays in wrong.items():
        for array in arrays:
            asked: list[Any] = list(good)
            asked[place] = array
            with pytest.raises(AssertionError):
                engine().bind(*asked)
