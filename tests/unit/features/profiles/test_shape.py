"""The shape in every packed profile: it says what the numbers are, and what becomes of them in another catalogue."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from paywarden.features.catalogue import attributes
from paywarden.features.catalogue.attributes import amount, channel, declined, hour, merchant_id
from paywarden.features.catalogue.entity import Catalogue
from paywarden.features.catalogue.expressions import LABEL_MEASURES, Feature
from paywarden.features.kernel import layout
from paywarden.features.profiles.plan import compile_plan
from paywarden.features.profiles.shape import (
    MEASURES,
    ColumnShape,
    LatestShape,
    Shape,
    TableShape,
    decode_shape,
    shape_of,
    translation,
)
from paywarden.schemas.errors import Misconfigured
from tests.parity.features_worlds import DECLARED, every_word
from tests.unit.features.kernel.profiles import card


def shape(*features: Feature) -> Shape:
    """Returns the shape of a card's profiles."""
    return compile_plan(Catalogue((card,), features)).shapes[0]


CONDITIONS = st.one_of(st.none(), st.tuples(st.integers(0, 20), st.integers(0, 3), st.integers(0, 2**33)))
COLUMNS = st.builds(ColumnShape, st.integers(0, 30), st.integers(0, 30), st.integers(1, 64), CONDITIONS)


def _of_one_kind(columns: list[ColumnShape]) -> tuple[ColumnShape, ...]:
    """Those that the same kind of events changes as the first."""
    return tuple(column for column in columns if column.is_label == columns[0].is_label)


TABLES = st.builds(
    TableShape,
    st.integers(1, 90 * 86_400).map(lambda seconds: 1000 * seconds),
    st.lists(COLUMNS, max_size=5).map(_of_one_kind),
)
MEMORIES = st.tuples(st.integers(1, 20), st.integers(1, 64))
LATEST = st.builds(
    LatestShape,
    st.lists(st.tuples(st.integers(0, 200), st.booleans()), max_size=8).map(tuple),
    st.integers(1, 8),
    st.booleans(),
)
SHAPES = st.builds(
    Shape,
    st.lists(TABLES, max_size=4).map(tuple),
    st.lists(MEMORIES, max_size=4).map(tuple),
    st.lists(LATEST, max_size=3).map(tuple),
)


# As it is written.


def test_measures_keep_their_places_for_ever() -> None:
    # Stored profiles name them by these numbers.
    assert [measure.value for measure in MEASURES[:9]] == [
        "count",
        "amount_sum",
        "squares_low",
        "squares_high",
        "amount_max",
        "amount_min",
        "distinct_bits",
        "bucket_counts",
        "fraud_count",
    ]


def test_a_shape_is_written_as_these_bytes() -> None:
    found = shape(
        card.count("a", "1d"),
        card.count("b", "1d", where=declined),
        card.distinct("c", merchant_id, "1d", bits=128),
        card.is_new("d", merchant_id, among=5),
    )
    # One table of an hour and three columns: counts plain and where column 5 is (0) 2, two words of column 7.
    assert found.encode() == bytes([1, 0x90, 0x1C, 3, 0, 1, 5, 0, 2, 6 * 4 + 2, 7, 2, 1, 7, 5])


@given(of=SHAPES)
def test_a_written_shape_is_read_back(of: Shape) -> None:
    assert decode_shape(of.encode()) == of


def test_the_shapes_of_every_word_are_read() -> None:
    for found in compile_plan(every_word(DECLARED)).shapes:
        assert decode_shape(found.encode()) == found


@given(of=SHAPES, data=st.data())
def test_a_shape_that_is_cut_or_longer_is_damaged(of: Shape, data: st.DataObject) -> None:
    whole = of.encode()
    for wrong in (whole[: data.draw(st.integers(0, len(whole) - 1))], whole + b"\0", whole + b"\x80"):
        with pytest.raises(Misconfigured, match="it is damaged"):
            decode_shape(wrong)


@settings(max_examples=125)
@given(data=st.binary(max_size=40))
@example(data=b"\0\x80")
@example(data=b"\xff" * 30 + b"\x01")
@example(data=bytes([1, 1, 1, 2, 0, *([0xFF] * 9), 1, 0]))
def test_any_bytes_are_a_shape_or_damaged(data: bytes) -> None:
    # Numbers beyond 64 bits used to be an OverflowError, not an unreadable profile.
    try:
        found = decode_shape(data)
    except Misconfigured:
        return
    translation(found, shape(card.count("a", "1d")))
    assert all(table.hop_ms > 0 for table in found.tables)


@pytest.mark.parametrize(
    "wrong",
    [
        Shape((TableShape(0, ()),), ()),
        Shape((TableShape(1000, (ColumnShape(6, 7, 0, None),)),), ()),
        Shape((TableShape(1000, (ColumnShape(6, 7, 65, None),)),), ()),
        Shape((TableShape(1000, (ColumnShape(6, 7, 2**62, None),)),), ()),
        Shape((TableShape(1000, (ColumnShape(0, 0, 1, None), ColumnShape(8, 0, 1, None))),), ()),
    ],
    ids=[
        "a hop of nothing",
        "a column of no words",
        "a column too wide",
        "a column that overflows",
        "payments and labels in one table",
    ],
)
def test_a_shape_that_no_catalogue_has_is_damaged(wrong: Shape) -> None:
    with pytest.raises(Misconfigured, match="it is damaged"):
        decode_shape(wrong.encode())


def test_a_profile_says_its_digest_and_its_shape() -> None:
    assert shape_of(b"\x02abcd\x03\x00xyzrest") == (b"abcd", b"xyz")
    for size in range(10):
        with pytest.raises(Misconfigured, match="it is damaged"):
            shape_of(b"\x02abcd\x03\x00xyz"[:size])


# Its digest.


BASE = shape(card.count("a", "1d"), card.amount_sum("b", "7d"), card.is_new("c", merchant_id))
OTHERS = {
    "a measure": shape(card.count("a", "1d"), card.amount_max("b", "7d"), card.is_new("c", merchant_id)),
    "a hop": shape(card.count("a", "1d", hop="2h"), card.amount_sum("b", "7d"), card.is_new("c", merchant_id)),
    "a condition": shape(
        card.count("a", "1d", where=declined), card.amount_sum("b", "7d"), card.is_new("c", merchant_id)
    ),
    "a memory's room": shape(card.count("a", "1d"), card.amount_sum("b", "7d"), card.is_new("c", merchant_id, among=3)),
    "a memory's attribute": shape(card.count("a", "1d"), card.amount_sum("b", "7d"), card.is_new("c", channel)),
    "no memory": shape(card.count("a", "1d"), card.amount_sum("b", "7d")),
}


@pytest.mark.parametrize("what", list(OTHERS))
def test_the_digest_changes_with(what: str) -> None:
    assert OTHERS[what].digest([25, 8]) != BASE.digest([25, 8])


def test_the_digest_changes_with_how_many_tiles_are_kept() -> None:
    digests = {BASE.digest(capacities) for capacities in ([25, 8], [25, 9], [26, 8], [8, 25])}
    assert len(digests) == 4
    assert all(0 <= digest < 2**32 for digest in digests)


# Offsets.


# The translation of an old profile's numbers. `kernel.migrate` describes its layout.


def test_joined_conditions_survive_a_profile() -> None:
    one = (channel == "ecom") & ~(declined | (amount >= 5)) | (hour < 6)
    joined = shape(card.count("x", "1d", where=one))
    assert decode_shape(joined.encode()) == joined
    with pytest.raises(Misconfigured, match="it is damaged"):
        decode_shape(joined.encode()[:-4])


def test_another_condition_is_another_column() -> None:
    old = shape(card.count("a", "1d", where=channel == "ecom"))
    assert translation(old, shape(card.count("a", "1d", where=channel == "pos"))).tolist() == [1, 0, 2, 0, 0]
    assert translation(old, shape(card.count("b", "1d", where=channel == "ecom"))).tolist() == [1, 0, 2, 0, 1, 1, 1, 0]


def test_a_sketch_of_another_size_is_another_column() -> None:
    old = shape(card.distinct("a", merchant_id, "1d", bits=64))
    assert translation(old, shape(card.distinct("a", merchant_id, "1d", bits=128))).tolist() == [1, 0, 2, 0, 0]


def test_a_memory_goes_to_the_same_attribute_and_size_if_possible() -> None:
    column = merchant_id.column
    old = Shape((), ((column, 4), (column, 8), (attributes.mcc.column, 8)))
    assert translation(old, Shape((), ((column, 8), (column, 16)))).tolist() == [0, 3, 0, 1, 0, 1, -1, 1]
    assert translation(old, Shape((), ((column, 16),))).tolist() == [0, 3, 0, 1, 0, 1, -1, 1]
    assert translation(old, old).tolist() == [0, 3, 0, 1, 1, 1, 2, 1]


def test_latest_payments_go_to_those_of_the_same_fields_and_size_if_possible() -> None:
    fields = ((attributes.amount.column, True), (merchant_id.column, False))
    old = Shape((), ((1, 4),), (LatestShape(fields, 2, False), LatestShape(fields[:1], 1, True)))
    same = LatestShape(fields, 2, False)
    assert translation(old, old).tolist() == [0, 3, 0, 1, 1, 2, 2, 1]
    assert translation(old, Shape((), (), (replace(same, capacity=4), same))).tolist() == [0, 3, -1, 1, 1, 2, -1, 1]
    assert translation(old, Shape((), (), (replace(same, is_whole=True),))).tolist() == [0, 3, -1, 1, -1, 2, -1, 1]


@given(of=SHAPES)
@example(of=Shape((TableShape(1000, (ColumnShape(layout.FRAUD_SQUARES_LOW, 0, 1, None),)),), ()))
def test_a_shape_translates_to_itself_word_for_word(of: Shape) -> None:
    # With distinct hops and distinct columns, as in every compiled plan.
    tables = {
        (table.hop_ms, table.is_label): replace(table, columns=tuple(dict.fromkeys(table.columns)))
        for table in of.tables
    }
    own = Shape(tuple(tables[kind] for kind in sorted(tables)), ())
    steps = translation(own, own).tolist()
    at = 2
    for number, table in enumerate(own.tables):
        width, target, count = steps[at : at + 3]
        assert (width, target, count) == (table.width, number, table.width - 1)
        moves = steps[at + 3 : at + 3 + 3 * count]
        assert moves[0::3] == moves[1::3] == list(range(1, table.width))
        changed = {MEASURES.index(measure) for measure in LABEL_MEASURES}
        labels = [int(column.measure in changed) for column in table.columns for _ in range(column.parts)]
        assert moves[2::3] == labels
        at += 3 + 3 * count
