"""The stored form of profiles: it is as documented, small, and no bytes lead the kernel out of bounds."""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paywarden.features import kernel
from paywarden.features.catalogue import attributes
from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.catalogue.windows import DAY_MS, HOUR_MS, MINUTE_MS
from paywarden.features.kernel import codec
from paywarden.features.kernel.plan_schema import entity_section
from paywarden.features.profiles.engine import FeatureEngine, UnreadableProfile
from paywarden.features.profiles.money import _RATE_MAX, RATE_SCALE
from paywarden.schemas.payment_fields import AMOUNT_MINOR_MAX
from tests.parity.features_worlds import COUNTRIES, DECLARED, MERCHANTS, every_word
from tests.unit.features.kernel.profiles import (
    USUAL,
    Change,
    apply,
    apply_groups,
    card,
    label,
    payment,
    profile,
    vector,
)
from tests.worlds.stream.packed import (
    Packed,
    checksum_of,
    read_packed,
    resealed,
    widths_of,
    with_widths,
    write_packed,
)

# A Sunday at midnight: the beginning of a tile of every hop.
SUNDAY_MS = 1_530_403_200_000
NOON_MS = SUNDAY_MS + 12 * HOUR_MS
AMOUNT_MAX = AMOUNT_MINOR_MAX * _RATE_MAX // RATE_SCALE
ENTITIES = ("card", "merchant", "device")
INT64 = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 300),
    st.sampled_from([sign * 2**bits + beside for bits in range(63) for sign in (1, -1) for beside in (-1, 0, 1)]),
).filter(lambda number: -(2**63) <= number < 2**63)

Table = Sequence[tuple[int, Sequence[int]]]


@cache
def engine() -> FeatureEngine:
    return FeatureEngine(USUAL)


@cache
def rich() -> FeatureEngine:
    """Every measure, condition, sketch and memory there is."""
    return FeatureEngine(every_word(DECLARED))


def stored(
    entity: str,
    *,
    sources: Sequence[tuple[int, int]] = (),
    first_ms: int = 0,
    last_ms: int = 0,
    newest_ms: int = 0,
    tables: Sequence[Table] = (),
    memories: Sequence[Sequence[tuple[int, int]]] = (),
    latest: Sequence[Sequence[tuple[Sequence[int], int]]] = (),
    of: FeatureEngine | None = None,
) -> bytes:
    """The stored form as the head of the kernel describes it.

    A table is (tile's number, measures) rows, labels and all; a memory is (value, when last seen) pairs, and one of
    latest payments (values, when) pairs.
    """
    of = of or engine()
    number = of.plan.entity_names.index(entity)
    shape = of.plan.shapes[number]
    found_tables = tables or [()] * len(shape.tables)
    found_memories = memories or [()] * len(shape.memories)
    found_latest = latest or [()] * len(shape.latest)
    lengths = [len(sources), *(len(rows) for rows in (*found_tables, *found_memories, *found_latest))]
    columns = [[first_ms], [last_ms - first_ms], [newest_ms - last_ms], lengths]
    for table, rows in zip(shape.tables, found_tables, strict=True):
        is_label = [column.is_label for column in table.columns for _ in range(column.parts)]
        columns.append([newest_ms // table.hop_ms - tile for tile, _ in rows])
        for place, signed in enumerate(is_label):
            measures = [row[place] for _, row in rows]
            zigzag = [2 * measure if measure >= 0 else -2 * measure - 1 for measure in measures]
            columns.append(zigzag if signed else measures)
    for pairs in found_memories:
        times_ms = [newest_ms, *(time_ms for _, time_ms in pairs)]
        columns.append([value for value, _ in pairs])
        columns.append([before - time_ms for before, time_ms in itertools.pairwise(times_ms)])
    for kept, payments in zip(shape.latest, found_latest, strict=True):
        times_ms = [newest_ms, *(time_ms for _, time_ms in payments)]
        columns += [[values[field] for values, _ in payments] for field in range(len(kept.fields))]
        columns.append([before - time_ms for before, time_ms in itertools.pairwise(times_ms)])
    columns += [[source for source, _ in sources], [offset for _, offset in sources]]
    packed = read_packed(profile(of, entity, []))
    return write_packed(replace(packed, columns=tuple(map(tuple, columns))))


# The layout.


def test_the_stored_form_is_these_bytes() -> None:
    # If you change the layout, this test must fail: stores, changelog and mirrors hold profiles of this form.
    of = FeatureEngine(Catalogue((card,), (card.count("a", "1d"), card.is_new("b", attributes.country, among=2))))
    changes = [
        payment(NOON_MS, country="FR", source=3, offset=300),
        payment(NOON_MS + 2 * HOUR_MS, country="DE", source=3, offset=301),
    ]
    shape = bytes([1, *(0x90, 0x1C), 1, 0, 1, 11, 2])
    numbers = b"".join(
        [
            NOON_MS.to_bytes(6, "little"),
            (2 * HOUR_MS).to_bytes(3, "little"),
            # The newest event is the last payment. One source, two rows, two values.
            bytes([1, 2, 2]),
            # Tiles two hours and none older than the newest event's, and how many payments are in each.
            bytes([2, 0]),
            bytes([1, 1]),
            # DE and FR are the 83rd and 148th pair of letters. DE was seen at the newest event, FR two hours before.
            bytes([3 * 26 + 5, 5 * 26 + 18]),
            (0).to_bytes(3, "little") + (2 * HOUR_MS).to_bytes(3, "little"),
            bytes([3]),
            (301).to_bytes(2, "little"),
        ]
    )
    # Widths, two to a byte: times 6 3 0 and lengths 1; tiles 1 and counts 1; values 1 and times 3; source 1, offset 2.
    widths = bytes([0x36, 0x10, 0x11, 0x31, 0x21])
    digest = struct.pack("<I", entity_section(of.plan.words, 0).digest)
    head = bytes([6]) + digest + struct.pack("<H", len(shape)) + shape
    assert profile(of, "card", changes) == head + widths + numbers + checksum_of(head + widths + numbers)


def test_the_codecs_docstring_shows_the_bytes_of_a_real_profile() -> None:
    engine = FeatureEngine(Catalogue((card,), (card.count("count_1d", "1d"),)))
    times_ms = (1_700_000_000_000, 1_700_000_060_000)
    state = profile(engine, "card", [payment(time_ms) for time_ms in times_ms])
    example = (codec.__doc__ or "").split("Example:")[1]
    lines = re.findall(r"^    ((?:[0-9A-F]{2} )+) +\S", example, re.MULTILINE)
    assert bytes.fromhex("".join(lines)) == state


def test_the_stored_form_is_as_described() -> None:
    # A merchant: minutes and hours hold counts, six hours too, days sums; then frauds in tables of their own.
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
        # A day later the tile of minutes has gone. A label that was taken back counts 0, one before its label -1.
        tables=[
            [],
            [(hour, [2])],
            [(quarter, [2])],
            [(quarter, [0]), (quarter + 4, [-1])],
            [(day, [2, 305])],
            [(day, [0]), (day + 1, [-1])],
        ],
    )


NUMBERS = st.one_of(st.lists(INT64, max_size=6), st.lists(st.integers(-1, 2**10), max_size=60))


@settings(max_examples=100)
@given(
    columns=st.lists(NUMBERS, min_size=4, max_size=4),
    times=st.tuples(INT64, INT64, INT64),
    before=st.binary(max_size=3),
    after=st.sampled_from([0, 1, 7, 8, 9, 100]),
)
def test_numbers_of_every_width_are_decoded_wherever_the_buffer_ends(
    columns: list[list[int]], times: tuple[int, int, int], before: bytes, after: int
) -> None:
    # Near the end of the buffer the kernel reads byte by byte, before it eight bytes at once. A table of one column,
    # one of two, a memory and sources, all of their own length.
    one, two, memory, source = columns
    lengths = [len(source), len(one), len(two), len(memory)]
    table = [[time_ms] for time_ms in times] + [lengths, one, two, two[::-1], memory, memory, source, source[::-1]]
    packed = Packed(kernel.LAYOUT_VERSION, 0, b"", tuple(map(tuple, table)))
    body = write_packed(packed)[7:-8]
    data = np.frombuffer(bytearray(before + body + bytes([0xA5]) * after), dtype=np.uint8)
    found = np.full(len(packed.numbers) + 1, 77, dtype=np.int64)
    widths = np.array([1, 2, 2], dtype=np.int64)
    count = kernel.decode(data, len(before), len(before) + len(body), widths, found)
    assert count == len(packed.numbers)
    assert found[:count].tolist() == list(packed.numbers)
    assert found[count] == 77
    # Where there is room for one number less, none is written behind it.
    tight = np.full(count, 77, dtype=np.int64)
    assert kernel.decode(data, len(before), len(before) + len(body), widths, tight[:-1]) == -kernel.DAMAGED
    assert tight[-1] == 77


ROWS = st.fixed_dictionaries(
    {
        "merchant_id": st.sampled_from(MERCHANTS),
        # A profile can hold the code of a text that is no country, though no reader lets one through.
        "country": st.sampled_from([None, *COUNTRIES, "de"]),
        "mcc": st.sampled_from([None, "5411", "5812"]),
        "channel": st.sampled_from([None, "ecom"]),
        "declined": st.sampled_from([None, True, False]),
    }
)
CHANGES = st.lists(
    st.one_of(
        st.builds(
            lambda time_ms, amount, source, offset, fields: payment(
                time_ms, amount, source=source, offset=offset, **fields
            ),
            st.integers(1, 2**42),
            st.integers(0, AMOUNT_MAX),
            st.integers(0, kernel.SOURCES_MAX - 1),
            st.integers(0, 2**62),
            ROWS,
        ),
        st.builds(
            lambda time_ms, amount, fields: payment(time_ms, amount, **fields),
            st.integers(SUNDAY_MS, SUNDAY_MS + 40 * DAY_MS),
            st.sampled_from([0, AMOUNT_MAX]),
            ROWS,
        ),
        st.builds(label, st.integers(SUNDAY_MS, SUNDAY_MS + 40 * DAY_MS), st.sampled_from([-1, 0, 1])),
    ),
    max_size=25,
)
ENGINES = st.sampled_from([engine, rich])


@settings(max_examples=60)
@given(changes=CHANGES, entity=st.sampled_from(ENTITIES), of=ENGINES)
def test_unpacking_and_packing_gives_the_same_bytes(
    changes: list[Change], entity: str, of: Callable[[], FeatureEngine]
) -> None:
    state = profile(of(), entity, changes)
    assert profile(of(), entity, [], state) == state
    assert write_packed(read_packed(state)) == state
    assert of().migrated(of().plan.entity_names.index(entity), state) is state


# Room.


@settings(max_examples=60)
@given(changes=CHANGES, more=CHANGES, entity=st.sampled_from(ENTITIES), of=ENGINES)
def test_a_profile_never_outgrows_the_size_that_a_store_must_take(
    changes: list[Change], more: list[Change], entity: str, of: Callable[[], FeatureEngine]
) -> None:
    state = profile(of(), entity, changes)
    grown = profile(of(), entity, more, state)
    limit = of().plan.profile_bytes_max(of().plan.entity_names.index(entity))
    assert len(state) <= limit
    assert len(grown) <= limit
    assert limit <= of().profile_bytes_max


def test_profiles_that_outgrow_the_guessed_room_are_written() -> None:
    # Each becomes some 500 bytes from nothing, with one event; the guess is a hundred for each.
    groups = [[payment(NOON_MS + number, 5, merchant_id="m", country="DE", mcc="5411")] for number in range(1500)]
    states = apply_groups(rich(), "card", groups, [None] * len(groups)).states
    assert sum(map(len, states)) > 1500 * 200 + rich().profile_bytes_max
    assert states == [profile(rich(), "card", group) for group in groups]


def full(entity: str, *, tiles_to_ms: int = 2**43, newest_ms: int = 2**43, of: FeatureEngine | None = None) -> bytes:
    """A profile with every source, tile and memory there is room for, of the largest numbers.

    `tiles_to_ms` is where its tiles end; a `newest_ms` before that is a lie.
    """
    of = of or engine()
    number = of.plan.entity_names.index(entity)
    shape, limit = of.plan.shapes[number], 2**62 - 1
    tables = []
    for table, capacity in zip(shape.tables, of.plan.capacities[number], strict=True):
        newest = tiles_to_ms // table.hop_ms
        tables.append([(tile, [limit] * (table.width - 1)) for tile in range(newest - capacity + 1, newest + 1)])
    memories = [[(limit - place, newest_ms) for place in range(capacity)] for _, capacity in shape.memories]
    latest = [[([limit] * len(kept.fields), newest_ms)] * kept.capacity for kept in shape.latest]
    sources = [(2**56 + source, 2**63 - 1) for source in range(kernel.SOURCES_MAX)]
    times = {"first_ms": 1, "last_ms": 1, "newest_ms": newest_ms}
    return stored(entity, sources=sources, **times, tables=tables, memories=memories, latest=latest, of=of)


@pytest.mark.parametrize("entity", ENTITIES)
@pytest.mark.parametrize("of", [engine, rich])
def test_a_full_profile_is_read_and_stays_within_the_largest_size(entity: str, of: Callable[[], FeatureEngine]) -> None:
    state = full(entity, of=of())
    assert profile(of(), entity, [], state) == state
    assert 2000 < len(state) <= of().plan.profile_bytes_max(of().plan.entity_names.index(entity))
    # One tile comes, one goes.
    later = profile(of(), entity, [payment(2**43 + DAY_MS, AMOUNT_MAX)], state)
    assert len(later) <= of().profile_bytes_max


# Bytes that are not a profile.


def status_of(entity: str, state: bytes, of: FeatureEngine | None = None) -> str:
    """Read, see and update these bytes as a profile; why not, or nothing when it could be done."""
    of = of or engine()
    try:
        vector(of, NOON_MS, 1, {entity: state}, country="DE", merchant_id="m1")
        changes = [
            payment(SUNDAY_MS + hop_ms, 7, source=5, offset=1, merchant_id="m", country="FR")
            for hop_ms in (0, MINUTE_MS, HOUR_MS, DAY_MS)
        ]
        updated = apply(of, entity, changes, state).states[0]
    except UnreadableProfile as error:
        return str(error).partition("cannot be read: ")[2]
    assert len(updated) <= of.profile_bytes_max
    # A profile that was accepted and updated can be read again.
    assert profile(of, entity, [], updated) == updated
    return ""


GOOD = [
    payment(SUNDAY_MS + number * HOUR_MS, 500, source=number % 3, offset=number, merchant_id=f"m{number % 5}")
    for number in range(30)
]


@pytest.mark.parametrize("of", [engine, rich])
def test_every_truncation_is_refused(of: Callable[[], FeatureEngine]) -> None:
    state = profile(of(), "merchant", GOOD)
    assert status_of("merchant", state, of()) == ""
    for length in range(1, len(state)):
        assert status_of("merchant", state[:length], of()) == "it is damaged"
    assert status_of("merchant", state + b"\0", of()) == "it is damaged"


@pytest.mark.parametrize("version", [0, 1, 5, 7, 255])
def test_another_version_is_refused_by_its_number(version: int) -> None:
    state = profile(engine(), "card", GOOD)
    assert status_of("card", bytes([version]) + state[1:]) == "it is not of layout version 6"


# The checksum.


@pytest.mark.parametrize("of", [engine, rich])
@pytest.mark.parametrize("entity", ENTITIES)
def test_every_single_flipped_bit_of_a_profile_is_noticed(of: Callable[[], FeatureEngine], entity: str) -> None:
    # Without a checksum three of four went unnoticed: a flipped bit of a count is a count.
    state = profile(of(), entity, [*GOOD, label(SUNDAY_MS, 1)])
    number, words = of().plan.entity_names.index(entity), np.zeros(100_000, dtype=np.int64)
    data = np.frombuffer(bytearray(state), dtype=np.uint8)
    assert kernel.unpack(of().plan.words, number, data, 0, len(data), words) == kernel.OK
    for place in range(len(data)):
        for bit in range(8):
            data[place] ^= 1 << bit
            status = kernel.unpack(of().plan.words, number, data, 0, len(data), words)
            # The first byte is the version: that of another one has another checksum, or none.
            assert status == kernel.DAMAGED or (place == 0 and status == kernel.WRONG_VERSION)
            data[place] ^= 1 << bit


@pytest.mark.parametrize("place", [1, 4, 6, 20, -20, -1])
def test_a_flipped_bit_is_noticed_wherever_a_profile_is_read(place: int) -> None:
    state = bytearray(profile(engine(), "merchant", GOOD))
    state[place] ^= 1
    assert status_of("merchant", bytes(state)) == "it is damaged"
    # Also where it is read to be migrated.
    assert status_of("merchant", bytes(state), rich()) == "it is damaged"
    assert status_of("merchant", profile(engine(), "merchant", GOOD), rich()) == ""


@settings(max_examples=75)
@given(content=st.binary(max_size=100), before=st.binary(max_size=9), after=st.binary(min_size=8, max_size=9))
def test_the_checksum_is_as_described_wherever_the_bytes_stand(content: bytes, before: bytes, after: bytes) -> None:
    data = np.frombuffer(bytearray(before + content + after), dtype=np.uint8)
    found = kernel.checksum(data, len(before), len(before) + len(content))
    assert found.to_bytes(8, "little", signed=True) == checksum_of(content)


DAY = SUNDAY_MS // DAY_MS
# The columns of a card's days: count, sum, largest amount.
TILE = (1, 1, 2)


def with_days(days: Table, newest_ms: int) -> bytes:
    return stored("card", newest_ms=newest_ms, tables=[[], [], [], days])


def with_merchants(pairs: Sequence[tuple[int, int]], newest_ms: int = SUNDAY_MS) -> bytes:
    """A profile of the rich engine's merchant, whose last memory holds one device."""
    return stored("merchant", newest_ms=newest_ms, memories=[pairs], of=rich())


def with_seen(pairs: Sequence[tuple[int, int]], newest_ms: int = SUNDAY_MS) -> bytes:
    """A profile of the rich engine's card, with this in its first memory of several values."""
    capacities = [capacity for _, capacity in rich().plan.shapes[0].memories]
    place = next(place for place, capacity in enumerate(capacities) if capacity >= 3)
    memories = [pairs if other == place else () for other in range(len(capacities))]
    return stored("card", newest_ms=newest_ms, memories=memories, of=rich())


def with_payments(*payments: tuple[Sequence[int], int]) -> bytes:
    """A profile of the rich engine's card, with these among its latest three: amount, mcc and merchant each."""
    shape = rich().plan.shapes[0]
    latest = [payments if len(kept.fields) == 3 else () for kept in shape.latest]
    return stored("card", newest_ms=SUNDAY_MS, latest=latest, of=rich())


def changed(state: bytes, place: int, number: int) -> bytes:
    """With another number at a place."""
    return write_packed(read_packed(state).with_number(place, number))


DAMAGED = {
    "sources that do not ascend": stored("card", sources=[(3, 1), (3, 2)]),
    "a source below zero": stored("card", sources=[(-1, 1)]),
    "an offset below zero": stored("card", sources=[(1, -1)]),
    "fewer sources than are counted": changed(stored("card", sources=[(3, 1)]), 3, 2),
    "more sources than are counted": changed(stored("card", sources=[(3, 1)]), 3, 0),
    "sources below zero": changed(stored("card", sources=[(3, 1)]), 3, -1),
    "times that add up to over 63 bits": stored("card", first_ms=2**63 - 1, last_ms=2**63),
    "a first time beyond all clocks": stored("card", first_ms=2**60, last_ms=2**60, newest_ms=2**60),
    "a last time beyond all clocks": stored("card", last_ms=2**60, newest_ms=2**60),
    "a newest time beyond all clocks": stored("card", newest_ms=2**60),
    "a time below zero": stored("card", first_ms=-1),
    "a last payment before the first": stored("card", first_ms=5, last_ms=4, newest_ms=5),
    "a newest event before the last payment": stored("card", first_ms=5, last_ms=5, newest_ms=4),
    "two columns less than there are": write_packed(
        replace(read_packed(stored("card")), columns=read_packed(stored("card")).columns[:-2])
    ),
    "another length of its shape": resealed(stored("card")[:5] + bytes(2) + stored("card")[7:]),
    "tiles newer than the newest event": with_days([(DAY + 1, TILE)], SUNDAY_MS),
    "a second tile newer than the newest event": with_days([(DAY - 1, TILE), (DAY + 1, TILE)], SUNDAY_MS),
    "tiles that should have gone": with_days([(DAY - 31, TILE)], SUNDAY_MS),
    "one tile twice": with_days([(DAY, TILE), (DAY, TILE)], SUNDAY_MS),
    "tiles that go back": with_days([(DAY, TILE), (DAY - 1, TILE)], SUNDAY_MS),
    # The kernel used to take this, and to put the next tile where the table after it begins.
    "a full table of tiles that are all to come": with_days([(DAY + number, TILE) for number in range(31)], 1),
    "full tables of tiles that are all to come": full("card", newest_ms=1),
    "more tiles than there is room for": with_days([(DAY - 32 + number, TILE) for number in range(32)], SUNDAY_MS),
    "a number of tiles below zero": changed(with_days([(DAY, TILE)], SUNDAY_MS), 7, -1),
    "more tiles than there are": changed(with_days([(DAY, TILE)], SUNDAY_MS), 7, 2),
    "a tile before 1970": changed(with_days([(0, TILE)], 1), 8, 1),
    "a tile before all": changed(with_days([(DAY, TILE)], SUNDAY_MS), 8, 2**62),
    "an age below zero": changed(with_days([(DAY, TILE)], SUNDAY_MS), 8, -1),
    "an age that is wider than any is": changed(with_days([(DAY, TILE)], SUNDAY_MS), 8, 2**32),
}
DAMAGED_MEMORIES = {
    "a value seen after the newest event": with_seen([(5, SUNDAY_MS + 1)]),
    "values that do not get older": with_seen([(5, SUNDAY_MS - 1), (6, SUNDAY_MS)]),
    "values of one moment that ascend": with_seen([(5, SUNDAY_MS), (6, SUNDAY_MS)]),
    "one value twice": with_seen([(5, SUNDAY_MS), (5, SUNDAY_MS)]),
    "a value seen before 1970": with_seen([(5, 0)]),
    "a value seen long before 1970": with_seen([(5, -(2**62))]),
    "values when there is no event": with_seen([(5, 0)], newest_ms=0),
    "more values than there is room for": with_merchants([(6, SUNDAY_MS), (5, SUNDAY_MS)]),
    "a payment after the newest event": with_payments(((1, 5, 5), SUNDAY_MS + 1)),
    "payments that do not get older": with_payments(((1, 5, 5), SUNDAY_MS - 1), ((1, 5, 5), SUNDAY_MS)),
    "payments of one moment whose amounts ascend": with_payments(((3, 5, 5), SUNDAY_MS), ((5, 5, 5), SUNDAY_MS)),
    "payments of one moment whose texts ascend": with_payments(((3, 5, 5), SUNDAY_MS), ((3, 5, 6), SUNDAY_MS)),
    "more payments than there is room for": with_payments(*[((1, 5, 5), SUNDAY_MS)] * 4),
    "values below zero": changed(with_merchants([]), 4 + len(rich().plan.shapes[1].tables), -1),
}


@pytest.mark.parametrize("what", list(DAMAGED))
def test_impossible_bytes_are_refused(what: str) -> None:
    assert status_of("card", DAMAGED[what]) == "it is damaged"


def test_impossible_times_are_refused() -> None:
    far = 2**60 - 1
    assert status_of("card", stored("card", first_ms=far, last_ms=far + 1, newest_ms=far + 1)) == "it is damaged"


@pytest.mark.parametrize("tile", [2**63 - 1, 2**63, 2**63 + DAY - 1])
def test_a_tile_so_old_that_it_wraps_around_is_refused(tile: int) -> None:
    # A sum that overflows is not what it is in Python: compiled code takes it that none does, and a check of such a
    # sum used to be optimised away.
    assert status_of("card", with_days([(DAY - 1, TILE), (tile, TILE)], SUNDAY_MS)) == "it is damaged"


@pytest.mark.parametrize("what", list(DAMAGED_MEMORIES))
def test_impossible_memories_are_refused(what: str) -> None:
    entity = "merchant" if what in ("more values than there is room for", "values below zero") else "card"
    assert status_of(entity, DAMAGED_MEMORIES[what], rich()) == "it is damaged"


def test_valid_bytes_next_to_those_are_accepted() -> None:
    assert status_of("card", with_days([(DAY - 30 + number, TILE) for number in range(31)], SUNDAY_MS)) == ""
    assert status_of("card", with_seen([(6, SUNDAY_MS), (5, SUNDAY_MS), (9, SUNDAY_MS - 1)]), rich()) == ""
    assert status_of("card", with_seen([(6, 2), (5, 1)]), rich()) == ""
    assert status_of("card", with_payments(*[((3, 0, 5), SUNDAY_MS)] * 2, ((0, 9, 9), SUNDAY_MS)), rich()) == ""
    # -1 is kept as 2, and is below 0, which is kept as 1.
    assert status_of("card", with_payments(((1, 5, 5), SUNDAY_MS), ((2, 5, 5), SUNDAY_MS)), rich()) == ""
    far = 2**60 - 1
    assert status_of("card", stored("card", first_ms=far, last_ms=far, newest_ms=far)) == ""
    assert status_of("merchant", with_merchants([(6, SUNDAY_MS)]), rich()) == ""


@pytest.mark.parametrize("widths", ["one too wide", "one too narrow", "a width of nine", "one for no column"])
@pytest.mark.parametrize("entity", ["card", "merchant"])
def test_widths_that_do_not_add_up_are_refused(entity: str, widths: str) -> None:
    # A card has an even number of columns, a merchant an odd one: its last nibble is for none.
    packed = read_packed(profile(engine(), entity, GOOD))
    good, number = widths_of(packed), engine().plan.entity_names.index(entity)
    assert write_packed(packed) == with_widths(packed, good)
    assert len(packed.columns) % 2 == (entity == "merchant")
    if widths == "a width of nine":
        # As long as the width says, so that only the width is wrong.
        wrong = with_widths(packed, [9, *good[1:]])
    elif widths == "one for no column":
        if entity == "card":
            return
        state = bytearray(write_packed(packed))
        state[7 + len(packed.shape) + len(packed.columns) // 2] |= 0x10
        wrong = resealed(bytes(state))
    else:
        state = bytearray(write_packed(packed))
        place = 7 + len(packed.shape)
        state[place] += 1 if widths == "one too wide" else -1
        wrong = resealed(bytes(state))
    for padded in (b"", bytes(100)):
        # With room behind them the bytes are read eight at once.
        data = np.frombuffer(bytearray(wrong + padded), dtype=np.uint8)
        words = np.zeros(10_000, dtype=np.int64)
        assert kernel.unpack(engine().plan.words, number, data, 0, len(wrong), words) == kernel.DAMAGED
    assert status_of(entity, wrong) == "it is damaged"


def test_a_column_in_more_bytes_than_it_needs_is_read_and_written_shorter() -> None:
    packed = read_packed(profile(engine(), "card", GOOD))
    # Tiles take four bytes at most.
    table_widths = [table.width for table in engine().plan.shapes[0].tables]
    ages = {4 + sum(table_widths[:number]) for number in range(len(table_widths))}
    wide = [4 if place in ages else 8 for place in range(len(packed.columns))]
    assert profile(engine(), "card", [], with_widths(packed, wide)) == write_packed(packed)


def test_more_sources_than_there_is_room_for_are_refused() -> None:
    sources = [(number, 0) for number in range(kernel.SOURCES_MAX + 1)]
    assert status_of("card", stored("card", sources=sources)) == "it has more than 128 source partitions"
    full_of_sources = stored("card", sources=sources[:-1])
    assert status_of("card", full_of_sources) == ""
    with pytest.raises(UnreadableProfile, match="more than 128 source partitions"):
        apply(engine(), "card", [payment(NOON_MS, 1, source=128)], full_of_sources)
