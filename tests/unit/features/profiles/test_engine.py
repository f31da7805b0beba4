"""The engine: warm once and for all, within its limits, and clear about profiles it cannot read."""

from __future__ import annotations

import gc
import weakref
from functools import cache
from typing import Any

import numpy as np
import pytest

from paywarden.features import kernel
from paywarden.features.catalogue import attributes
from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.features.catalogue.entity import Catalogue
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


def test_an_engine_accepts_no_groups() -> None:
    result = apply_groups(engine(), "card", [], [])
    assert (result.states, result.applied.tolist(), result.late) == ([], [], 0)


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


def test_the_largest_profile_of_the_shipped_catalogue_fits_a_store() -> None:
    assert FeatureEngine(CATALOGUE).profile_bytes_max <= RECORD_BYTES_MAX


def test_a_catalogue_whose_profiles_might_not_fit_a_store_is_refused() -> None:
    # Found at start, not when the first busy card cannot be written any more.
    large = [
        card.distinct(f"x{number}", attribute, "4000m", hop="1m", bits=1024)
        for number, attribute in enumerate((attributes.mcc, attributes.merchant_id))
    ]
    with pytest.raises(Misconfigured, match="a store takes 1000000: longer hops or shorter windows"):
        FeatureEngine(Catalogue((card,), large))


# Bound arrays: what a scoring worker calls, a thousand times a second, with arrays that stay.


@cache
def rich() -> FeatureEngine:
    return FeatureEngine(every_word(DECLARED))


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
