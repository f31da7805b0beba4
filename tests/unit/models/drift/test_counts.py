"""Decisions counted in bins and segments."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.models.drift.binning import DIMENSIONS, FEATURE_BINS, Binning
from paywarden.models.drift.counts import AGE_UNKNOWN, Counts, DecisionRows, count_rows
from paywarden.schemas.errors import InvalidEvent

INFINITY = float("inf")
EDGES = np.array(
    [[0.0, 1.0] + [INFINITY] * (FEATURE_BINS - 3), list(range(FEATURE_BINS - 1))],
    dtype=np.float32,
)
BINNING = Binning(np.array([0.1, 0.5]), EDGES, (("pos",), ("DE",), ()), ("unknown_card", "mirror_stale"))


def rows_of(seed: int, count: int) -> DecisionRows:
    random = np.random.default_rng(seed)
    vectors = random.choice(np.array([-1, 0, 0.5, 1, 3, 99, np.inf, np.nan], dtype=np.float32), (count, 2))
    return DecisionRows(
        random.choice(np.array([0.0, 0.1, 0.3, 0.9, np.nan]), count),
        random.integers(0, 3, count),
        vectors,
        [random.choice(["unknown_card", "mirror_stale", "odd", "odder"], size).tolist() for size in [0, 1, 3] * count][
            :count
        ],
        random.choice(np.array([-1, 0, 1000, 5000, 10**9]), count),
        [random.choice(np.array(["pos", "DE", None, "x"], dtype=object), count).tolist() for _ in DIMENSIONS],
    )


def obviously(rows: DecisionRows) -> Counts:
    """Payment by payment."""
    counts = Counts.empty(BINNING)
    bins = BINNING.bins_of_features(rows.vectors)
    for row, segments in enumerate(BINNING.segments_of(rows.values)):
        for segment in segments:
            counts.payments[segment] += 1
            counts.actions[segment, rows.actions[row]] += 1
            if rows.scores[row] == rows.scores[row]:
                counts.scores[segment, BINNING.bins_of_scores(rows.scores[row : row + 1])[0]] += 1
            for feature in range(2):
                counts.features[segment, feature, bins[row, feature]] += 1
            for place, flag in enumerate(BINNING.flags):
                counts.flags[segment, place] += flag in rows.flags[row]
            counts.flags[segment, -1] += any(flag not in BINNING.flags for flag in rows.flags[row])
            seconds = int(rows.ages_ms[row]) // 1000
            counts.ages[segment, AGE_UNKNOWN if rows.ages_ms[row] < 0 else min(seconds.bit_length(), 11)] += 1
    return counts


def same(one: Counts, other: Counts) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one.arrays, other.arrays, strict=True))


@given(st.integers(0, 2**32), st.integers(0, 40))
def test_rows_are_counted_as_if_one_by_one(seed: int, count: int) -> None:
    rows = rows_of(seed, count)
    assert same(count_rows(BINNING, rows), obviously(rows))


@given(st.integers(0, 2**32))
def test_counts_of_parts_add_up_to_those_of_the_whole(seed: int) -> None:
    one, other = rows_of(seed, 9), rows_of(seed + 1, 4)
    added = count_rows(BINNING, one)
    added.add(count_rows(BINNING, other))
    whole = Counts.empty(BINNING)
    whole.count(other)
    whole.count(one)
    assert same(added, whole)


@given(st.integers(0, 2**32), st.sampled_from([1, 255, 256, 70_000, 2**40]))
def test_counts_come_back_from_their_bytes(seed: int, times: int) -> None:
    counts = count_rows(BINNING, rows_of(seed, 7))
    for array in counts.arrays:
        array *= times
    assert same(Counts.from_bytes(counts.to_bytes(), BINNING), counts)


def test_a_copy_is_counted_on_apart() -> None:
    counts = count_rows(BINNING, rows_of(1, 3))
    counts.copy().count(rows_of(2, 3))
    assert same(counts, count_rows(BINNING, rows_of(1, 3)))


@pytest.mark.parametrize(
    "other",
    [
        replace(BINNING, score_edges=np.array([0.1, 0.6])),
        replace(BINNING, feature_edges=EDGES[::-1]),
        replace(BINNING, values=(("ecom",), ("DE",), ())),
        replace(BINNING, flags=("mirror_stale", "unknown_card")),
    ],
)
def test_counts_of_another_binning_are_refused(other: Binning) -> None:
    with pytest.raises(InvalidEvent, match=f"wanted counts of the binning {other.digest.hex()}, got some of"):
        Counts.from_bytes(Counts.empty(BINNING).to_bytes(), other)


def test_bytes_that_are_not_counts_are_refused() -> None:
    stored = count_rows(BINNING, rows_of(1, 5)).to_bytes()
    bomb = stored[:15] + Counts.empty(replace(BINNING, score_edges=np.linspace(0, 1, 64))).to_bytes()[15:]
    for wrong in (b"", stored[:10], b"\x09" + stored[1:], stored[:-3], stored[:15] + b"rubbish", bomb):
        with pytest.raises(InvalidEvent, match="counts"):
            Counts.from_bytes(wrong, BINNING)
