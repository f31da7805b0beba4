"""Profiles of another catalogue: what both keep is what it was, what is new starts empty, what is gone is gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import channel, country, declined, device_id, mcc, merchant_id
from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.catalogue.expressions import Feature
from paywarden.features.catalogue.windows import DAY_MS, HOUR_MS
from paywarden.features.profiles.engine import FeatureEngine, UnreadableProfile
from tests.unit.features.kernel.profiles import (
    Change,
    apply,
    apply_groups,
    card,
    features,
    label,
    merchant,
    payment,
    profile,
    row,
    vectors,
)
from tests.worlds.stream.packed import read_packed, resealed, sources_of, write_packed

NOON_MS = 1_530_446_400_000
LATER_MS = NOON_MS + 40 * DAY_MS
AFTER_MS = NOON_MS + 5 * DAY_MS

BASE: tuple[Feature, ...] = (
    card.count("count_1d", "1d"),
    card.amount_mean("mean_1d", "1d"),
    card.amount_max("max_1d", "1d"),
    card.count("ecom_30d", "30d", where=channel == "ecom"),
    card.distinct("merchants_30d", merchant_id, "30d", bits=128),
    card.entropy("mccs_30d", mcc, "30d", buckets=4),
    card.fraud_count("frauds_7d", "7d", delay="1d"),
    card.fraud_amount_zscore("fraud_zscore_7d", "7d", delay="1d"),
    card.fraud_share("labelled_share_7d", "7d", delay="1d", labelled_only=True),
    card.is_new("new_merchant", merchant_id, among=3),
    card.seconds_since_same("since_merchant", merchant_id, among=3),
    card.last_amount("last_amount"),
    card.seconds_since_first("since_first"),
    merchant.count("merchant_30d", "30d"),
    merchant.fraud_count("merchant_frauds", "7d", delay="1d"),
)


def without(*names: str) -> tuple[Feature, ...]:
    return tuple(feature for feature in BASE if feature.name not in names)


@dataclass(frozen=True)
class Changed:
    """Another catalogue; `new` are the features that the first cannot have filled."""

    features: tuple[Feature, ...]
    new: tuple[str, ...] = ()


CATALOGUES = {
    "the same": Changed(BASE),
    "another order": Changed(BASE[::-1]),
    "a column more in a table": Changed((*BASE, card.amount_min("min_1d", "1d")), ("min_1d",)),
    "a column more before the others": Changed((card.amount_sum("sum_30d", "30d"), *BASE), ("sum_30d",)),
    "a condition more": Changed((*BASE, card.count("declined_1d", "1d", where=declined)), ("declined_1d",)),
    "a sketch more": Changed((*BASE, card.distinct("mccs_1d", mcc, "1d")), ("mccs_1d",)),
    "a table more": Changed((*BASE, card.count("count_10m", "10m")), ("count_10m",)),
    "a table less": Changed(without("count_1d", "mean_1d", "max_1d")),
    "a column less": Changed(without("max_1d")),
    "a sketch less": Changed(without("merchants_30d", "mccs_30d")),
    "labels less": Changed(without("frauds_7d", "fraud_zscore_7d", "labelled_share_7d")),
    "a memory more": Changed((*BASE, card.is_new("new_country", country)), ("new_country",)),
    "a memory before the others": Changed((card.is_new("new_device", device_id), *BASE), ("new_device",)),
    "memories less": Changed(without("new_merchant", "since_merchant", "last_amount")),
    "a longer window": Changed((*BASE, card.count("count_2d", "2d", hop="1h"))),
    "a shorter window": Changed((*without("ecom_30d"), card.count("ecom_20d", "20d", where=channel == "ecom"))),
    "a condition that is another": Changed(
        (*without("ecom_30d"), card.count("ecom_30d", "30d", where=channel == "pos")), ("ecom_30d",)
    ),
    "a hop that is another": Changed((*without("count_1d"), card.count("count_1d", "1d", hop="2h")), ("count_1d",)),
    "nothing but what is new": Changed(
        (card.count_decayed("x", "1h", "4h", hop="30m"), merchant.count("y", "2d")), ("x", "y")
    ),
}
WHAT = st.sampled_from(list(CATALOGUES))


@cache
def engine(what: str) -> FeatureEngine:
    return FeatureEngine(Catalogue((card, merchant), CATALOGUES[what].features))


def kept(what: str) -> set[str]:
    """The names of the features that both catalogues have, and mean the same by."""
    old = {feature.name: feature.value for feature in BASE}
    return {feature.name for feature in CATALOGUES[what].features if old.get(feature.name) == feature.value}


FIELDS = st.fixed_dictionaries(
    {
        "merchant_id": st.sampled_from(["m1", "m2", "m3", "m4", "m5"]),
        "mcc": st.sampled_from([None, "5411", "5812"]),
        "country": st.sampled_from([None, "DE", "FR"]),
        "device_id": st.sampled_from([None, "d"]),
        "channel": st.sampled_from([None, "ecom", "pos"]),
        "declined": st.sampled_from([None, True, False]),
    }
)


def changes(first_ms: int, last_ms: int, first_offset: int) -> st.SearchStrategy[list[Change]]:
    """Payments and labels of these times, by sources; an offset that is not above those before it is a replay."""
    times = st.integers(first_ms, last_ms)
    sources = st.tuples(st.integers(0, 3), st.integers(first_offset, first_offset + 10**6))
    payments = st.builds(
        lambda time_ms, amount, at, fields: payment(time_ms, amount, source=at[0], offset=at[1], **fields),
        *(times, st.integers(0, 10**6), sources, FIELDS),
    )
    labels = st.builds(
        lambda time_ms, weight, at, fields: label(time_ms, weight, source=4 + at[0], offset=at[1], **fields),
        *(times, st.sampled_from([1, 1, -1, 4, 5]), sources, FIELDS),
    )
    return st.lists(st.one_of(payments, payments, labels), min_size=1, max_size=20)


SEEN = {"merchant_id": "m1", "mcc": "5411", "country": "DE", "device_id": "d"}
States = dict[str, bytes | None]


def states_of(of: FeatureEngine, heard: Sequence[Change], before: States | None = None) -> States:
    """Profiles of a card and a merchant that both heard of these events."""
    known = before or {}
    return {entity: profile(of, entity, heard, known.get(entity)) for entity in ("card", "merchant")}


def seen(of: FeatureEngine, states: States, now_ms: int) -> dict[str, float]:
    """The features of the card's payment at the merchant."""
    return features(of, now_ms, 700, states, **SEEN)


def same(left: float, right: float) -> bool:
    return left == right or (np.isnan(left) and np.isnan(right))


def assert_same(left: dict[str, float], right: dict[str, float], names: set[str]) -> None:
    assert {name for name in names if not same(left[name], right[name])} == set()


EARLY = changes(NOON_MS - 20 * DAY_MS, NOON_MS, 0)
LATE = changes(NOON_MS, NOON_MS + 5 * DAY_MS, 10**7)


# Measures of both catalogues.


@settings(max_examples=40)
@given(what=WHAT, early=EARLY, late=LATE, days=st.integers(0, 30))
def test_measures_of_both_catalogues_are_kept_and_go_on(
    what: str, early: list[Change], late: list[Change], days: int
) -> None:
    old, new = engine("the same"), engine(what)
    stored = states_of(old, early)
    now_ms = NOON_MS + days * DAY_MS
    # As it is read, and as it is when events have been applied to it.
    assert_same(seen(new, stored, now_ms), seen(old, stored, now_ms), kept(what))
    assert_same(
        seen(new, states_of(new, late, stored), AFTER_MS),
        seen(old, states_of(old, late, stored), AFTER_MS),
        kept(what),
    )


@settings(max_examples=40)
@given(what=WHAT, early=EARLY, late=LATE)
def test_a_new_measure_starts_empty_and_counts_from_then_on(what: str, early: list[Change], late: list[Change]) -> None:
    old, new = engine("the same"), engine(what)
    names = set(CATALOGUES[what].new)
    stored = states_of(old, early)
    newest = max(change.time_ms for change in early if change.kind == kernel.PAYMENT or change.weight)
    assert_same(seen(new, stored, NOON_MS), seen(new, {"card": None, "merchant": None}, NOON_MS), names)
    # A table is cut by the newest event, of those before too.
    late = [replace(change, row=(max(change.time_ms, newest), *change.row[1:])) for change in late]
    assert_same(seen(new, states_of(new, late, stored), AFTER_MS), seen(new, states_of(new, late), AFTER_MS), names)


def test_a_new_mean_over_an_old_count_is_low_until_its_window_passes() -> None:
    """A limit that docs/limits.md names: what is new starts empty, and shares what was there. A backfill repairs it."""
    old = FeatureEngine(Catalogue((card,), (card.count("count", "1d"),)))
    new = FeatureEngine(Catalogue((card,), (card.count("count", "1d"), card.amount_mean("mean", "1d"))))
    state = profile(new, "card", [payment(NOON_MS, 50)], profile(old, "card", [payment(NOON_MS, 50)] * 9))
    assert features(new, NOON_MS, 0, {"card": state})["mean"] == 5
    later = NOON_MS + 26 * HOUR_MS
    assert features(new, later, 0, {"card": profile(new, "card", [payment(later, 50)], state)})["mean"] == 50


@settings(max_examples=60)
@given(early=EARLY, late=LATE, what=st.sampled_from([what for what in CATALOGUES if not CATALOGUES[what].new]))
def test_a_migration_without_new_measures_gives_fresh_bytes(early: list[Change], late: list[Change], what: str) -> None:
    if what == "a longer window":
        # The tiles that its table had dropped are lost: only the kept tiles can be the same.
        early = [replace(change, row=(NOON_MS, *change.row[1:])) for change in early]
    old, new = engine("the same"), engine(what)
    assert states_of(new, late, states_of(old, early)) == states_of(new, [*early, *late])
    for entity, state in states_of(old, early).items():
        assert state is not None
        assert new.migrated(new.plan.entity_names.index(entity), state) == states_of(new, early)[entity]


def test_a_longer_window_has_only_the_tiles_that_were_kept() -> None:
    old = FeatureEngine(Catalogue((card,), (card.count("x", "1d"),)))
    new = FeatureEngine(Catalogue((card,), (card.count("x", "2d", hop="1h"),)))
    days = [payment(NOON_MS - hours * HOUR_MS) for hours in (36, 30, 20, 0)]
    state = profile(old, "card", days)
    assert features(new, NOON_MS, 0, {"card": state})["x"] == 2
    assert features(new, NOON_MS, 0, {"card": profile(new, "card", days)})["x"] == 4


@pytest.mark.parametrize(("room", "left"), [(1, 1), (2, 2), (3, 3), (8, 3)])
def test_a_memory_of_another_size_keeps_the_latest(room: int, left: int) -> None:
    new = FeatureEngine(Catalogue((card,), (card.seconds_since_same("since", merchant_id, among=room),)))
    state = profile(engine("the same"), "card", [payment(NOON_MS + n, merchant_id=f"m{n}") for n in range(9)])
    known = [
        n for n in range(9) if not np.isnan(features(new, LATER_MS, 0, {"card": state}, merchant_id=f"m{n}")["since"])
    ]
    assert known == list(range(9 - left, 9))


def test_migrating_back_loses_only_what_the_other_catalogue_lacks() -> None:
    heard = [payment(NOON_MS - hour * HOUR_MS, 100 + hour, merchant_id="m1", mcc="5411") for hour in range(5)]
    old, other = engine("the same"), engine("a column less")
    stored = states_of(old, heard)
    back = states_of(old, [], states_of(other, [], stored))
    assert_same(seen(old, back, NOON_MS), seen(old, stored, NOON_MS), kept("a column less"))
    assert np.isnan(seen(old, back, NOON_MS)["max_1d"])
    assert engine("another order").migrated(0, stored["card"] or b"") is stored["card"]


# Offsets.


@settings(max_examples=60)
@given(what=WHAT, early=EARLY, data=st.data())
def test_a_replay_after_a_migration_is_still_a_replay(what: str, early: list[Change], data: st.DataObject) -> None:
    old, new = engine("the same"), engine(what)
    # In order of offset, as partitions are read.
    early = sorted(early, key=lambda change: (change.source, change.offset))
    for entity, state in states_of(old, early).items():
        assert state is not None
        again = early[data.draw(st.integers(0, len(early) - 1)) :]
        result = apply(new, entity, again, state)
        assert not result.applied.any()
        assert result.late == 0
        assert result.states == [new.migrated(new.plan.entity_names.index(entity), state)]
        assert sources_of(result.states[0]) == sources_of(state)


def test_all_sources_go_over_up_to_the_maximum() -> None:
    heard = [payment(NOON_MS, source=source, offset=2**40 + source) for source in range(kernel.SOURCES_MAX)]
    state = profile(engine("the same"), "card", heard)
    assert sources_of(profile(engine("a table less"), "card", [], state)) == sources_of(state)


# Where they are read.


def test_profiles_of_both_catalogues_are_applied_together() -> None:
    old, new = engine("the same"), engine("a column more in a table")
    heard, more = [payment(NOON_MS, 5, merchant_id="m1")], [payment(NOON_MS + 1, 7, merchant_id="m2")]
    mine, theirs = profile(new, "card", heard), profile(old, "card", heard)
    result = apply_groups(new, "card", [more, more, more, more], [theirs, None, mine, theirs])
    assert result.applied.tolist() == [1, 1, 1, 1]
    assert result.states == [profile(new, "card", more, state) for state in (theirs, None, mine, theirs)]
    assert result.states[0] != result.states[2]
    assert result.late == 0


def test_vectors_of_several_payments_see_profiles_of_both_catalogues() -> None:
    old, new = engine("the same"), engine("a condition more")
    heard = [payment(NOON_MS, 5, merchant_id="m1", declined=True)]
    card_old, card_new = profile(old, "card", heard), profile(new, "card", heard)
    merchant_old = profile(old, "merchant", heard)
    known: list[States] = [
        {"card": card_old, "merchant": merchant_old},
        {"card": None, "merchant": merchant_old},
        {"card": card_new},
        {},
        {"card": card_new, "merchant": None},
        {"merchant": merchant_old, "card": card_old},
    ]
    rows = [row(NOON_MS + number, number, **SEEN) for number in range(len(known))]
    together = vectors(new, rows, known)
    singly = np.array([vectors(new, [one], [states])[0] for one, states in zip(rows, known, strict=True)])
    np.testing.assert_array_equal(together, singly)
    named = [dict(zip(new.plan.names, found, strict=True)) for found in together.tolist()]
    assert [found["count_1d"] for found in named[:3]] == [1, 0, 1]
    assert [found["declined_1d"] for found in named[:3]] == [0, 0, 1]
    assert named[0]["merchant_30d"] == named[1]["merchant_30d"] == 1
    assert np.isnan(named[3]["count_1d"])


def test_a_migration_shows_nothing_of_an_earlier_profile() -> None:
    # Its scratch held a profile of its own shape.
    new = engine("a table more")
    profile(new, "card", [payment(NOON_MS, 5), payment(NOON_MS, 6)])
    state = profile(engine("the same"), "card", [payment(NOON_MS, 7)])
    found = seen(new, {"card": state, "merchant": None}, NOON_MS)
    assert (found["count_1d"], found["count_10m"]) == (1, 0)


# Unreadable profiles.


@pytest.fixture
def foreign() -> bytes:
    return profile(
        engine("the same"), "card", [payment(NOON_MS, 5, merchant_id="m1", source=3, offset=8), label(NOON_MS, 1)]
    )


def refused(state: bytes, entity: str = "card") -> str:
    """Why another catalogue's engine does not take this, in all places where it is read."""
    new = engine("a column more before the others")
    number = new.plan.entity_names.index(entity)
    reads: list[Callable[[], object]] = [
        lambda: new.migrated(number, state),
        lambda: profile(new, entity, [payment(NOON_MS)], state),
        lambda: seen(new, {"card": None, "merchant": None, entity: state}, NOON_MS),
    ]
    reasons = set()
    for read in reads:
        with pytest.raises(UnreadableProfile) as unreadable:
            read()
        reasons.add(str(unreadable.value))
    (reason,) = reasons
    return reason.removeprefix(f"a stored {entity} profile cannot be read: ")


@pytest.mark.parametrize("version", [0, 1, 5, 7, 255])
def test_another_version_is_not_migrated(version: int, foreign: bytes) -> None:
    assert refused(bytes([version]) + foreign[1:]) == "it is not of layout version 6"


def test_a_profile_cut_anywhere_is_not_migrated(foreign: bytes) -> None:
    for size in range(1, len(foreign)):
        assert refused(foreign[:size]) == "it is damaged"
    assert refused(foreign + b"\0") == "it is damaged"


def test_an_invalid_shape_is_refused(foreign: bytes) -> None:
    packed = read_packed(foreign)
    for shape in (b"", b"\x01", b"\xff" * 40, packed.shape[:-1], packed.shape + b"\0", bytes([0, 0])):
        assert refused(write_packed(replace(packed, shape=shape))) == "it is damaged"


def numbered(state: bytes, place: int, number: int) -> bytes:
    return write_packed(read_packed(state).with_number(place, number))


# The numbers of a foreign card: three times, sources, three tables' rows, two memories' values.
@pytest.mark.parametrize("place", range(3, 9))
@pytest.mark.parametrize("number", [-1, 129, 10**6])
def test_lengths_that_do_not_add_up_are_refused(place: int, number: int, foreign: bytes) -> None:
    assert refused(numbered(foreign, place, number)) == "it is damaged"


def test_a_tile_older_than_the_new_table_keeps_is_dropped(foreign: bytes) -> None:
    new, state = engine("a column more before the others"), numbered(foreign, 9, NOON_MS // HOUR_MS)
    assert seen(new, {"card": state, "merchant": None}, NOON_MS)["count_1d"] == 0
    assert seen(new, {"card": foreign, "merchant": None}, NOON_MS)["count_1d"] == 1


@pytest.mark.parametrize(
    ("place", "number"),
    [
        *((0, -5), (0, 2**60), (1, -(2**62)), (2, -(2**62))),
        *((9, 2**50), (9, -1), (9, NOON_MS // HOUR_MS + 1)),
    ],
    ids=[
        *("a first time", "a time of no clock", "a last time", "a newest time"),
        *("a tile before all", "a tile to come", "a tile before 1970"),
    ],
)
def test_impossible_tiles_and_times_are_refused(place: int, number: int, foreign: bytes) -> None:
    new, state = engine("a column more before the others"), numbered(foreign, place, number)
    with pytest.raises(UnreadableProfile, match="it is damaged"):
        profile(new, "card", [payment(NOON_MS)], state)
    with pytest.raises(UnreadableProfile, match="it is damaged"):
        seen(new, {"card": state, "merchant": None}, NOON_MS)


@settings(max_examples=100)
@given(place=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_foreign_profile_with_a_byte_changed_is_refused_or_can_be_used(place: int, value: int) -> None:
    state = bytearray(_foreign())
    state[place % len(state)] = value
    new = engine("a column more before the others")
    try:
        updated = profile(new, "card", [payment(NOON_MS, 7, merchant_id="m2")], resealed(bytes(state)))
    except UnreadableProfile:
        return
    assert profile(new, "card", [], updated) == updated
    assert len(updated) <= new.profile_bytes_max


@cache
def _foreign() -> bytes:
    heard = [payment(NOON_MS - n * HOUR_MS, n, merchant_id=f"m{n}", mcc="5411", source=n, offset=n) for n in range(6)]
    return profile(engine("the same"), "card", [*heard, label(NOON_MS - DAY_MS, 1)])
