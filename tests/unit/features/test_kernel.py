"""The kernel: what a profile knows as of a moment, how it is stored, and that no bytes lead it out of bounds."""

from __future__ import annotations

import datetime
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from features import kernel
from features.catalogue import CATALOGUE
from features.declare import DAY_MS, HOUR_MS, MINUTE_MS, Catalogue, Entity, request
from features.engine import FeatureEngine, UnreadableProfile
from features.money import _RATE_MAX, AMOUNT_MINOR_MAX, RATE_SCALE
from features.plan import compile_plan
from tests.unit.features.profiles import Change, apply, events_of, features, label, payment, profile, vector

# A Sunday at midnight: the beginning of a tile of every hop.
SUNDAY_MS = 1_530_403_200_000
NOON_MS = SUNDAY_MS + 12 * HOUR_MS
AMOUNT_MAX = AMOUNT_MINOR_MAX * _RATE_MAX // RATE_SCALE


@cache
def engine() -> FeatureEngine:
    return FeatureEngine()


def seen(name: str, now_ms: int, changes: Sequence[Change], *, amount: int = 0) -> float:
    """One feature of a payment now, after these events of its entity; NaN when it is missing."""
    entity = name.removeprefix("amount_to_").split("_")[0]
    state = profile(engine(), entity, changes) if changes else None
    return features(engine(), now_ms, amount, {entity: state})[name]


# What the payment says itself.


@given(time_ms=st.integers(1, 4_000_000_000_000))
def test_hour_night_and_weekend_are_those_of_the_utc_calendar(time_ms: int) -> None:
    moment = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(milliseconds=time_ms)
    found = features(engine(), time_ms, 0, {})
    assert found["hour"] == moment.hour
    assert found["night"] == (moment.time() < datetime.time(7))
    assert found["weekend"] == (moment.isoweekday() >= 6)


def test_an_amount_is_rounded_to_float32() -> None:
    assert features(engine(), NOON_MS, 2**24 + 1, {})["amount"] == 2**24


# Windows.


@pytest.mark.parametrize(
    ("name", "hop_ms", "length_ms"),
    [
        ("card_count_10m", MINUTE_MS, 10 * MINUTE_MS),
        ("card_count_1h", MINUTE_MS, HOUR_MS),
        ("card_count_1d", HOUR_MS, DAY_MS),
        ("card_count_7d", 6 * HOUR_MS, 7 * DAY_MS),
        ("card_count_30d", DAY_MS, 30 * DAY_MS),
    ],
)
def test_a_window_holds_the_tiles_that_touch_it_and_no_other(name: str, hop_ms: int, length_ms: int) -> None:
    # Seen from the middle of a tile, so that the oldest tile is touched but not covered.
    now_ms = SUNDAY_MS + hop_ms // 2
    oldest_ms = SUNDAY_MS - length_ms
    assert seen(name, now_ms, [payment(oldest_ms)]) == 1
    assert seen(name, now_ms, [payment(oldest_ms - 1)]) == 0
    assert seen(name, now_ms, [payment(now_ms)]) == 1
    assert seen(name, now_ms, [payment(SUNDAY_MS + hop_ms - 1)]) == 1
    assert seen(name, now_ms, [payment(SUNDAY_MS + hop_ms)]) == 0
    # The tile goes when the moment has moved on to the next one.
    assert seen(name, SUNDAY_MS + hop_ms, [payment(oldest_ms)]) == 0


def test_a_delayed_window_ends_with_the_last_tile_wholly_before_the_delay() -> None:
    # The share over one day with a delay of seven has tiles of six hours.
    now_ms = SUNDAY_MS
    fraud = "merchant_fraud_share_1d"

    def share(payment_ms: int) -> float:
        return seen(fraud, now_ms, [payment(payment_ms), label(payment_ms, 1)])

    assert share(now_ms - 7 * DAY_MS - 1) == 1
    assert np.isnan(share(now_ms - 7 * DAY_MS))
    assert share(now_ms - 8 * DAY_MS) == 1
    assert np.isnan(share(now_ms - 8 * DAY_MS - 1))
    # A millisecond before midnight the last six hours are not wholly before it.
    assert np.isnan(seen(fraud, now_ms - 1, [payment(now_ms - 7 * DAY_MS - 1)]))


def test_sums_means_and_maxima_are_of_the_window() -> None:
    changes = [payment(NOON_MS - 40 * DAY_MS, 999), payment(NOON_MS - 3 * DAY_MS, 60), payment(NOON_MS - MINUTE_MS, 20)]
    assert seen("card_amount_sum_1h", NOON_MS, changes) == 20
    assert seen("card_amount_mean_1d", NOON_MS, changes) == 20
    assert seen("card_amount_mean_7d", NOON_MS, changes) == 40
    assert seen("card_amount_max_30d", NOON_MS, changes) == 60
    assert seen("amount_to_card_mean_7d", NOON_MS, changes, amount=100) == 2.5
    assert seen("amount_to_card_max_30d", NOON_MS, changes, amount=120) == 2


def test_what_there_was_none_of_is_missing_and_a_count_is_zero() -> None:
    for changes in ([], [payment(NOON_MS - 60 * DAY_MS, 5)]):
        assert seen("card_count_30d", NOON_MS, changes) == 0
        assert seen("card_amount_sum_1h", NOON_MS, changes) == 0
        for name in (
            "card_amount_mean_30d",
            "card_amount_max_30d",
            "amount_to_card_mean_30d",
            "amount_to_card_max_30d",
        ):
            assert np.isnan(seen(name, NOON_MS, changes, amount=5))
        assert np.isnan(seen("merchant_fraud_share_30d", NOON_MS, changes))


def test_a_mean_of_zero_makes_its_ratio_missing() -> None:
    assert seen("card_amount_mean_1d", NOON_MS, [payment(NOON_MS, 0)]) == 0
    assert np.isnan(seen("amount_to_card_mean_1d", NOON_MS, [payment(NOON_MS, 0)], amount=5))
    assert seen("card_amount_max_30d", NOON_MS, [payment(NOON_MS, 0)]) == 0


def test_all_of_an_entity_that_takes_no_part_is_missing() -> None:
    found = features(engine(), NOON_MS, 7, {"card": None, "merchant": None})
    assert all(np.isnan(value) for name, value in found.items() if name.startswith("device"))
    assert found["card_count_1d"] == found["merchant_count_1d"] == 0
    # Nothing of the one before is left in the scratch.
    device = profile(engine(), "device", [payment(NOON_MS, 1)])
    assert features(engine(), NOON_MS, 7, {"device": device})["device_count_1d"] == 1
    assert np.isnan(features(engine(), NOON_MS, 7, {})["device_count_1d"])


def test_recency_is_seconds_since_the_newest_and_the_oldest_payment() -> None:
    changes = [payment(NOON_MS - 400 * DAY_MS), payment(NOON_MS - 1500), payment(NOON_MS - 2 * DAY_MS)]
    assert seen("card_seconds_since_last", NOON_MS, changes) == 1.5
    assert seen("card_seconds_since_first", NOON_MS, changes) == 400 * 86_400
    assert seen("card_seconds_since_last", NOON_MS - 1600, changes) == 0
    assert np.isnan(seen("card_seconds_since_last", NOON_MS, []))
    assert np.isnan(seen("card_seconds_since_first", NOON_MS, []))


# Point in time.


def test_what_an_event_sees_is_what_was_known_just_before_it() -> None:
    changes = [payment(NOON_MS, 10), payment(NOON_MS, 30), payment(NOON_MS + 1, 5)]
    slots = engine().new_slots(3)
    engine().apply(0, events_of([changes], with_rows=True), [None], slots)
    requests = np.array([[change.time_ms, change.amount] for change in changes])
    vectors = engine().vectors_of_slots(requests, slots)
    named = [dict(zip(CATALOGUE.names, row, strict=True)) for row in vectors.tolist()]
    assert [row["card_count_10m"] for row in named] == [0, 1, 2]
    assert np.isnan(named[0]["card_amount_mean_1d"])
    assert [row["card_amount_mean_1d"] for row in named[1:]] == [10, 20]
    assert np.isnan(named[0]["card_seconds_since_last"])


def test_an_event_applied_before_fills_no_slots() -> None:
    state = profile(engine(), "card", [payment(NOON_MS, 1, source=0, offset=5)])
    slots = engine().new_slots(1)
    again = events_of([[payment(NOON_MS, 1, source=0, offset=5)]], with_rows=True)
    assert engine().apply(0, again, [state], slots).applied.tolist() == [0]
    assert np.isnan(slots).all()


def test_a_fraud_taken_back_leaves_a_share_of_zero() -> None:
    then_ms = NOON_MS - 10 * DAY_MS
    made = [payment(then_ms), payment(then_ms + HOUR_MS)]
    assert seen("merchant_fraud_share_30d", NOON_MS, [*made, label(then_ms, 1)]) == 0.5
    assert seen("merchant_fraud_share_30d", NOON_MS, [*made, label(then_ms, 1), label(then_ms, -1)]) == 0


def test_a_label_that_changes_nothing_leaves_no_trace() -> None:
    made = [payment(NOON_MS)]
    assert profile(engine(), "merchant", [*made, label(NOON_MS + DAY_MS, 0)]) == profile(engine(), "merchant", made)


# Order of arrival.


def test_events_too_late_for_a_table_are_counted_and_leave_that_table_alone() -> None:
    result = apply(engine(), "card", [payment(NOON_MS, 1), payment(NOON_MS - 2 * DAY_MS, 5), payment(NOON_MS, 1)])
    assert result.late == 1
    found = features(engine(), NOON_MS, 0, {"card": result.states[0]})
    assert [found[f"card_count_{window}"] for window in ("1h", "1d", "7d")] == [2, 2, 3]


@pytest.mark.parametrize(("window", "length_ms"), [("1h", HOUR_MS), ("1d", DAY_MS), ("7d", 7 * DAY_MS)])
def test_a_table_keeps_the_oldest_tile_that_its_window_can_touch_and_no_older(window: str, length_ms: int) -> None:
    card = Entity("card", key="card_id")
    of = FeatureEngine(Catalogue((card,), (card.count("count", window),)))
    newest, oldest_ms = payment(SUNDAY_MS), SUNDAY_MS - length_ms
    for old, late in ((payment(oldest_ms), 0), (payment(oldest_ms - 1), 1)):
        in_order, behind = apply(of, "card", [old, newest]), apply(of, "card", [newest, old])
        assert (in_order.late, behind.late) == (0, late)
        assert in_order.states == behind.states
        assert features(of, SUNDAY_MS, 0, {"card": behind.states[0]})["count"] == 2 - late


def test_a_label_is_not_late_for_tables_that_hold_no_labels() -> None:
    # Every label comes days after its payment, and each used to count as late for the tiles of minutes.
    changes = [payment(NOON_MS), payment(NOON_MS + 8 * DAY_MS), label(NOON_MS, 1)]
    assert apply(engine(), "merchant", changes).late == 0
    assert apply(engine(), "card", changes).late == 0
    assert apply(engine(), "merchant", [payment(NOON_MS + 60 * DAY_MS), label(NOON_MS, 1)]).late == 1


def test_a_payment_older_than_the_newest_event_sees_its_longest_windows_cut_short() -> None:
    # A table is cut by the newest event alone. That makes order of arrival not matter in the end, and costs a
    # late payment the tiles that only it could still see.
    oldest, newest = payment(NOON_MS - 30 * DAY_MS), payment(NOON_MS + DAY_MS)
    assert seen("card_count_30d", NOON_MS, [oldest]) == 1
    assert seen("card_count_30d", NOON_MS, [oldest, newest]) == 0
    assert seen("card_count_30d", NOON_MS, [payment(NOON_MS - 29 * DAY_MS), newest]) == 1


@given(data=st.data(), lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4))
def test_sources_may_interleave_in_any_way(data: st.DataObject, lengths: list[int]) -> None:
    queues = [
        [payment(SUNDAY_MS + (7 * s + o) * HOUR_MS, s + o, source=9 - s, offset=2 * o) for o in range(n)]
        for s, n in enumerate(lengths)
    ]
    in_turn = [change for queue in queues for change in queue]
    order = data.draw(st.permutations([s for s, n in enumerate(lengths) for _ in range(n)]))
    taken = [iter(queue) for queue in queues]
    mixed = [next(taken[s]) for s in order]
    result = apply(engine(), "card", mixed)
    assert result.states == apply(engine(), "card", in_turn).states
    assert result.applied.all()


@given(
    offsets=st.lists(st.integers(0, 2**40), min_size=1, max_size=10, unique=True).map(sorted),
    first=st.integers(0, 9),
    length=st.integers(1, 10),
)
def test_a_stretch_of_offsets_heard_again_changes_nothing(offsets: list[int], first: int, length: int) -> None:
    changes = [payment(SUNDAY_MS + offset, 3, source=4, offset=offset) for offset in offsets]
    state = profile(engine(), "card", changes)
    again = changes[first : first + length]
    repeated = apply(engine(), "card", again, state)
    assert repeated.states == [state]
    assert repeated.applied.tolist() == [0] * len(again)
    assert repeated.late == 0
    newer = apply(engine(), "card", [*again, payment(SUNDAY_MS, 3, source=4, offset=offsets[-1] + 1)], state)
    assert newer.applied.tolist() == [0] * len(again) + [1]


def test_offsets_of_one_source_say_nothing_of_another() -> None:
    state = profile(engine(), "card", [payment(NOON_MS, 1, source=3, offset=100)])
    for source in (0, 2, 4):
        assert apply(engine(), "card", [payment(NOON_MS, 1, source=source, offset=0)], state).applied.tolist() == [1]


def test_as_many_sources_as_there_is_room_for_are_told_apart() -> None:
    order = list(range(kernel.SOURCES_MAX))
    random.Random(1).shuffle(order)
    state = profile(engine(), "card", [payment(NOON_MS, 1, source=source, offset=source) for source in order])
    again = [payment(NOON_MS, 1, source=source, offset=source) for source in order]
    assert apply(engine(), "card", again, state).applied.sum() == 0


# The stored form.


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


Table = Sequence[tuple[int, Sequence[int]]]


def stored(
    entity: str,
    *,
    sources: Sequence[tuple[int, int]] = (),
    first_ms: int = 0,
    last_ms: int = 0,
    newest_ms: int = 0,
    tables: Sequence[Table] = (),
) -> bytes:
    """The stored form as the head of the kernel describes it; a table is (tile's number, measures) rows."""
    words = engine().plan.words
    section = words[kernel.ENTITIES_AT + engine().plan.entity_names.index(entity)]
    numbers = [len(sources), *(number for pair in sources for number in pair)]
    numbers += [first_ms, last_ms - first_ms, newest_ms - last_ms]
    for number in range(words[section + kernel.TABLE_COUNT]):
        rows = tables[number] if tables else ()
        numbers.append(len(rows))
        before = 0
        for tile, measures in rows:
            numbers += [tile - before, *(2 * m if m >= 0 else -2 * m - 1 for m in measures)]
            before = tile
    head = bytes([kernel.LAYOUT_VERSION]) + int(words[section + kernel.DIGEST]).to_bytes(4, "big")
    return head + b"".join(varint(number) for number in numbers)


def test_the_stored_form_is_as_described() -> None:
    # A merchant: minutes and hours hold counts, six hours counts and frauds, days sums and frauds too.
    changes = [
        payment(NOON_MS, 300, source=2, offset=7),
        payment(NOON_MS + 1, 5, source=0, offset=1000),
        label(NOON_MS, 1, source=1, offset=0),
        label(NOON_MS, -1, source=1, offset=3),
        label(NOON_MS + DAY_MS, -1, source=1, offset=4),
    ]
    hour, quarter, day = (NOON_MS // hop_ms for hop_ms in (HOUR_MS, 6 * HOUR_MS, DAY_MS))
    assert profile(engine(), "merchant", changes) == stored(
        "merchant",
        sources=[(0, 1000), (1, 4), (2, 7)],
        first_ms=NOON_MS,
        last_ms=NOON_MS + 1,
        newest_ms=NOON_MS + DAY_MS,
        # A day later the tile of minutes has gone. The label that came before its payment is less than none.
        tables=[
            [],
            [(hour, [2])],
            [(quarter, [2, 0]), (quarter + 4, [0, -1])],
            [(day, [2, 305, 0]), (day + 1, [0, 0, -1])],
        ],
    )


def test_the_profile_of_a_usual_card_is_small() -> None:
    # Once a day for two months: the sketch in the design asks for under 500 bytes.
    changes = [payment(NOON_MS + day * DAY_MS, 4200 + day, source=6, offset=10**7 + day) for day in range(60)]
    assert len(profile(engine(), "card", changes)) < 400


CHANGES = st.lists(
    st.one_of(
        st.builds(
            payment,
            st.integers(1, 2**42),
            st.integers(0, AMOUNT_MAX),
            source=st.integers(0, kernel.SOURCES_MAX - 1),
            offset=st.integers(0, 2**62),
        ),
        st.builds(
            payment,
            st.integers(SUNDAY_MS, SUNDAY_MS + 40 * DAY_MS),
            st.sampled_from([0, AMOUNT_MAX]),
            source=st.just(-1),
        ),
        st.builds(label, st.integers(SUNDAY_MS, SUNDAY_MS + 40 * DAY_MS), st.sampled_from([-1, 0, 1])),
    ),
    max_size=25,
)
ENTITIES = st.sampled_from(["card", "merchant", "device"])


@given(changes=CHANGES, entity=ENTITIES)
def test_unpacking_and_packing_gives_the_same_bytes(changes: list[Change], entity: str) -> None:
    state = profile(engine(), entity, changes)
    assert profile(engine(), entity, [], state) == state


@given(changes=CHANGES, more=CHANGES, entity=ENTITIES)
def test_a_profile_never_outgrows_the_room_made_for_it(changes: list[Change], more: list[Change], entity: str) -> None:
    plan = engine().plan
    state = profile(engine(), entity, changes)
    grown = profile(engine(), entity, more, state)
    for packed, before, events in ((state, 0, changes), (grown, len(state), more)):
        assert len(packed) <= before + plan.packed_bytes_fixed + len(events) * plan.packed_bytes_per_event
        assert len(packed) <= engine().profile_bytes_max


def full(entity: str, *, tiles_to_ms: int = 2**43, newest_ms: int = 2**43) -> bytes:
    """A profile with every source and every tile there is room for, of the largest numbers.

    `tiles_to_ms` is where its tiles end; a `newest_ms` before that is a lie.
    """
    plan, limit = engine().plan, 2**62 - 1
    section = plan.words[kernel.ENTITIES_AT + plan.entity_names.index(entity)]
    tables = []
    for number in range(plan.words[section + kernel.TABLE_COUNT]):
        at = plan.words[section + kernel.TABLES_AT] + number * kernel.TABLE_SIZE
        newest = tiles_to_ms // int(plan.words[at + kernel.HOP_MS])
        tiles = range(newest - int(plan.words[at + kernel.CAPACITY]) + 1, newest + 1)
        tables.append([(tile, [limit] * int(plan.words[at + kernel.COLUMN_COUNT])) for tile in tiles])
    sources = [(2**56 + source, 2**63 - 1) for source in range(kernel.SOURCES_MAX)]
    return stored(entity, sources=sources, first_ms=1, last_ms=1, newest_ms=newest_ms, tables=tables)


@pytest.mark.parametrize("hop_ms", [MINUTE_MS, HOUR_MS, 6 * HOUR_MS, DAY_MS])
@pytest.mark.parametrize("entity", ["card", "merchant", "device"])
def test_events_that_each_need_a_tile_and_a_source_of_their_own_find_room(entity: str, hop_ms: int) -> None:
    changes = [
        payment(SUNDAY_MS + number * hop_ms, AMOUNT_MAX, source=2**30 + number, offset=2**62) for number in range(60)
    ]
    room = engine().plan.packed_bytes_fixed + len(changes) * engine().plan.packed_bytes_per_event
    assert len(profile(engine(), entity, changes)) <= room


@pytest.mark.parametrize("entity", ["card", "merchant", "device"])
def test_a_full_profile_is_read_and_stays_within_the_largest_size(entity: str) -> None:
    state = full(entity)
    assert profile(engine(), entity, [], state) == state
    assert 2000 < len(state) <= engine().profile_bytes_max
    # One tile comes, one goes.
    later = profile(engine(), entity, [payment(2**43 + DAY_MS, AMOUNT_MAX)], state)
    assert len(later) <= engine().profile_bytes_max


# Bytes that are not a profile.


def status_of(entity: str, state: bytes) -> str:
    """Read, see and update these bytes as a profile; why not, or nothing when it could be done."""
    try:
        vector(engine(), NOON_MS, 1, {entity: state})
        changes = [payment(SUNDAY_MS + hop_ms, 7, source=5, offset=1) for hop_ms in (0, MINUTE_MS, HOUR_MS, DAY_MS)]
        updated = apply(engine(), entity, changes, state).states[0]
    except UnreadableProfile as error:
        return str(error).partition("cannot be read: ")[2]
    assert len(updated) <= engine().profile_bytes_max
    return ""


GOOD = [payment(SUNDAY_MS + number * HOUR_MS, 500, source=number % 3, offset=number) for number in range(30)]


def test_every_truncation_is_seen() -> None:
    state = profile(engine(), "merchant", GOOD)
    assert status_of("merchant", state) == ""
    for length in range(1, len(state)):
        assert status_of("merchant", state[:length]) == "it is damaged"
    assert status_of("merchant", state + b"\0") == "it is damaged"


def test_another_version_and_another_digest_are_told_apart() -> None:
    state = profile(engine(), "card", GOOD)
    assert "layout version" in status_of("card", bytes([kernel.LAYOUT_VERSION + 1]) + state[1:])
    for place in range(1, 5):
        other = bytearray(state)
        other[place] ^= 1
        assert status_of("card", bytes(other)) == "it belongs to another feature catalogue"
    assert status_of("merchant", state) == "it belongs to another feature catalogue"


DAY = SUNDAY_MS // DAY_MS
DAMAGED = {
    "a number of ten bytes": stored("card") + b"\xff" * 9 + b"\x01",
    "sources that do not ascend": stored("card", sources=[(3, 1), (3, 2)]),
    "times that add up to over 63 bits": stored("card")[:6] + varint(2**63 - 1) + varint(1) + bytes(5),
    "tiles newer than the newest event": stored(
        "card", newest_ms=SUNDAY_MS, tables=[[], [], [], [(DAY + 1, [1, 1, 1])]]
    ),
    "tiles that should have gone": stored("card", newest_ms=SUNDAY_MS, tables=[[], [], [], [(DAY - 31, [1, 1, 1])]]),
    "one tile twice": stored("card", newest_ms=SUNDAY_MS, tables=[[], [], [], [(DAY, [1, 1, 1]), (DAY, [1, 1, 1])]]),
    # The kernel used to take this, and to put the next tile where the table after it begins.
    "a full table of tiles that are all to come": stored(
        "card", newest_ms=1, tables=[[], [], [], [(DAY + number, [1, 1, 1]) for number in range(31)]]
    ),
    "full tables of tiles that are all to come": full("card", newest_ms=1),
    "more tiles than there is room for": stored(
        "card", newest_ms=SUNDAY_MS, tables=[[], [], [], [(DAY - 32 + number, [1, 1, 1]) for number in range(32)]]
    ),
}


@pytest.mark.parametrize("what", list(DAMAGED))
def test_bytes_that_no_profile_can_have_are_refused(what: str) -> None:
    assert status_of("card", DAMAGED[what]) == "it is damaged"


def test_the_good_neighbour_of_those_bytes_is_taken() -> None:
    tiles = [(DAY - 30 + number, [1, 1, 1]) for number in range(31)]
    assert status_of("card", stored("card", newest_ms=SUNDAY_MS, tables=[[], [], [], tiles])) == ""


def test_more_sources_than_there_is_room_for_are_refused() -> None:
    sources = [(number, 0) for number in range(kernel.SOURCES_MAX + 1)]
    assert status_of("card", stored("card", sources=sources)) == "it has more than 128 source partitions"
    full_of_sources = stored("card", sources=sources[:-1])
    assert status_of("card", full_of_sources) == ""
    with pytest.raises(UnreadableProfile, match="more than 128 source partitions"):
        apply(engine(), "card", [payment(NOON_MS, 1, source=128)], full_of_sources)


@settings(max_examples=200)
@given(
    entity=ENTITIES,
    edits=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6),
    cut=st.integers(0, 3),
    is_full=st.booleans(),
)
def test_mutated_bytes_are_read_or_refused(entity: str, edits: list[tuple[int, int]], cut: int, is_full: bool) -> None:
    state = bytearray(full(entity) if is_full else profile(engine(), entity, GOOD))
    for place, value in edits:
        # Past the digest: before it there is nothing to find.
        state[5 + place % (len(state) - 5)] = value
    status_of(entity, bytes(state[: len(state) - cut]))


@settings(max_examples=200)
@given(entity=ENTITIES, tail=st.binary(max_size=300))
@example(entity="card", tail=b"")
def test_any_bytes_are_read_or_refused(entity: str, tail: bytes) -> None:
    status_of(entity, tail or b"\0")
    status_of(entity, stored(entity)[:5] + tail)


# Bounds. Compiled code reads and writes where its indices say; here they are checked, in a process of its own.


def run_with_bounds_checked() -> None:
    """Every path of the kernel, with damaged profiles too; an index out of bounds is an IndexError."""
    assert os.environ["NUMBA_BOUNDSCHECK"] == "1"
    with pytest.raises(IndexError):
        kernel.advance_source(np.full(3, kernel.SOURCES_MAX - 1), 1, 1)
    chance = random.Random(7)
    for entity in ("card", "merchant", "device"):
        run_events(entity, chance)
        for _ in range(1500):
            state = bytearray(full(entity) if chance.random() < 0.3 else profile(engine(), entity, GOOD))
            for _ in range(chance.randrange(5)):
                state[chance.randrange(5, len(state))] = chance.randrange(256)
            status_of(entity, bytes(state[: len(state) - chance.choice([0, 0, 0, chance.randrange(len(state))])]))
            status_of(entity, stored(entity)[:5] + chance.randbytes(chance.randrange(60)))
        for damaged in DAMAGED.values():
            status_of(entity, stored(entity)[:5] + damaged[5:])
        # What would overflow if it were taken: full tables that make room for nothing, and too many sources.
        assert status_of(entity, full(entity, tiles_to_ms=SUNDAY_MS + 90 * DAY_MS, newest_ms=1)) == "it is damaged"
        too_many = [(number, 0) for number in range(2000)]
        assert "source partitions" in status_of(entity, stored(entity, sources=too_many))


def run_events(entity: str, chance: random.Random) -> None:
    """Profiles that grow from nothing to full and on, seen as they grow, in order and out of it."""
    number, state = engine().plan.entity_names.index(entity), None
    for batch_size in [1, 2, 50, 500, 3000, 3000]:
        changes = []
        for _ in range(batch_size):
            time_ms = SUNDAY_MS + chance.randrange(80 * DAY_MS) if chance.random() < 0.5 else SUNDAY_MS + 80 * DAY_MS
            source = chance.randrange(-1, kernel.SOURCES_MAX)
            offset = chance.randrange(2**62)
            if chance.random() < 0.7:
                time_ms += chance.randrange(HOUR_MS)
                changes.append(payment(time_ms, chance.choice([0, 1, AMOUNT_MAX]), source=source, offset=offset))
            else:
                changes.append(label(time_ms, chance.choice([-1, 0, 1]), source=source, offset=offset))
        slots = engine().new_slots(len(changes))
        (state,) = engine().apply(number, events_of([changes], with_rows=True), [state], slots).states
        requests = np.array([[change.time_ms, change.amount] for change in changes])
        engine().vectors_of_slots(requests, slots)
        vector(engine(), SUNDAY_MS + 80 * DAY_MS, 1, {entity: state})
    vector(engine(), NOON_MS, 1, {})
    vector(engine(), NOON_MS, 1, dict.fromkeys(engine().plan.entity_names))
    engine().apply(number, events_of([[], [payment(NOON_MS)], []]), [None, full(entity), full(entity)], slots)
    engine().apply(number, events_of([[]]), [None], slots)


def test_no_path_of_the_kernel_goes_out_of_bounds(tmp_path: Path) -> None:
    code = "from tests.unit.features import test_kernel; test_kernel.run_with_bounds_checked()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# Limits of the plan that the kernel relies on.


def test_more_entities_than_a_byte_can_tell_apart_are_still_named() -> None:
    # The entity of an unreadable profile used to be kept in three bits.
    names = [f"entity{number}" for number in range(12)]
    many = FeatureEngine(Catalogue([Entity(name, key="card_id") for name in names], [request.hour("hour")]))
    assert compile_plan(CATALOGUE).entity_count < len(names)
    with pytest.raises(UnreadableProfile, match="a stored entity11 profile"):
        vector(many, NOON_MS, 0, {"entity11": b"\0\0\0\0\0\0"})
