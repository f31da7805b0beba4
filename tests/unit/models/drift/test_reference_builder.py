"""References made from past decisions: their bins, segments and signals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from paywarden.models.drift.binning import DIMENSIONS, FEATURE_BINS, NONE, OTHER
from paywarden.models.drift.detectors import DAY_MS, HOUR_MS
from paywarden.models.drift.reference import Reference
from paywarden.models.drift.reference_builder import Live, PastDecisions, make_reference
from paywarden.models.drift.signal_layout import Kinds
from paywarden.models.drift.signals import Signal
from paywarden.models.drift.table_segments import TableSegments

FIRST_MS = 20_000 * DAY_MS
THRESHOLDS = (0.8, 0.95)
NAMES = ("even", "few", "constant", "absent")


def past_of(
    *,
    days: float = 3,
    rows: int = 3000,
    scores: NDArray[np.float64] | None = None,
    vectors: NDArray[np.float32] | None = None,
    values: dict[str, list[str | None]] | None = None,
    live: Live | None = None,
) -> PastDecisions:
    """Returns decisions spread evenly over the days. Columns that are not given are random."""
    random = np.random.default_rng(1)
    if vectors is None:
        columns = (random.random(rows), random.integers(0, 5, rows), np.full(rows, 7), np.full(rows, np.nan))
        vectors = np.stack(columns, axis=1).astype(np.float32)
    columns_of = {name: [None] * rows for name in DIMENSIONS} | (values or {})
    return PastDecisions(
        random.random(rows) if scores is None else scores,
        vectors,
        TableSegments(
            FIRST_MS + (np.arange(rows) * (days * DAY_MS / max(rows, 1))).astype(np.int64),
            tuple(np.array(columns_of[name], dtype=object) for name in DIMENSIONS),
        ),
        live,
    )


def made(past: PastDecisions, flags: tuple[str, ...] = ()) -> Reference:
    names = [f"f{number}" for number in range(past.vectors.shape[1])]
    found = make_reference(past, model_version="v1", feature_names=names, thresholds=THRESHOLDS, flags=flags)
    assert found is not None
    return found


def edges_of(column: NDArray[np.float32]) -> NDArray[np.float32]:
    """The finite edges of a feature with these values."""
    vectors = column[:, None]
    edges = made(past_of(rows=len(column), vectors=vectors)).binning.feature_edges[0]
    assert len(edges) == FEATURE_BINS - 1
    return np.asarray(edges[np.isfinite(edges)])


def bins_of(edges: NDArray[np.float32], values: list[float]) -> list[int]:
    return list(np.searchsorted(edges, np.array(values, dtype=np.float32), side="right").tolist())


def test_thresholds_are_edges_of_scores() -> None:
    reference = made(past_of())
    assert set(THRESHOLDS) <= set(reference.binning.score_edges.tolist())
    assert reference.review_at == THRESHOLDS[0]
    assert (np.diff(reference.binning.score_edges) > 0).all()
    # The share at or above the threshold is just that.
    value, _ = reference.layout.values(reference.counts)
    scores = past_of().scores
    assert value[reference.layout.numbers[Signal("score", "high_risk", "overall")]] == np.mean(scores >= THRESHOLDS[0])


def test_payments_that_no_model_scored_are_in_no_bin_of_scores() -> None:
    scores = np.random.default_rng(3).random(3000)
    scores[::3] = np.nan
    reference = made(past_of(scores=scores))
    assert np.isfinite(reference.binning.score_edges).all()
    assert reference.counts.scores[0].sum() == 2000
    assert reference.counts.payments[0] == 3000


def test_a_value_that_many_payments_have_has_a_bin_of_its_own() -> None:
    random = np.random.default_rng(4)
    column = np.where(random.random(3000) < 0.4, 0.25, random.random(3000)).astype(np.float32)
    edges = edges_of(column)
    below, above = np.nextafter(np.float32(0.25), np.array([-1, 1], dtype=np.float32))
    own = bins_of(edges, [0.25])[0]
    assert bins_of(edges, [float(below), float(above)]) == [own - 1, own + 1]
    counts = made(past_of(vectors=column[:, None])).counts
    assert counts.features[0, 0, own] == np.count_nonzero(column == np.float32(0.25))


@settings(max_examples=20)
@given(arrays(np.float32, 60, elements=st.floats(0, 30, width=32) | st.just(3.0) | st.just(np.nan) | st.just(np.inf)))
def test_edges_of_any_feature_rise_and_are_no_more_than_there_is_room_for(column: NDArray[np.float32]) -> None:
    edges = edges_of(column)
    assert len(edges) <= FEATURE_BINS - 1
    assert (np.diff(edges) > 0).all()
    # Only bins of a single value hold much more than their share of the payments.
    finite = column[np.isfinite(column)]
    bins = np.searchsorted(edges, finite, side="right")
    for number in np.unique(bins):
        inside = finite[bins == number]
        assert len(np.unique(inside)) == 1 or len(inside) <= 2 * (len(finite) / (FEATURE_BINS - 1) + 1)


def test_values_named_none_or_other_get_no_segment_of_their_own() -> None:
    channels = [NONE, OTHER, "pos", None] * 750
    reference = made(past_of(values={"channel": channels}))
    assert reference.binning.values[0] == ("pos",)
    assert len(set(reference.binning.segments)) == len(reference.binning.segments)
    of_segments = dict(zip(reference.binning.segments, reference.counts.payments.tolist(), strict=True))
    assert (of_segments["channel=none"], of_segments["channel=other"]) == (750, 1500)


@pytest.mark.parametrize(
    ("days", "rows", "is_made"), [(0.5, 100, False), (1, 100, False), (1.5, 100, True), (1, 0, False)]
)
def test_less_than_two_days_give_no_reference(days: float, rows: int, is_made: bool) -> None:
    past = past_of(days=days, rows=rows)
    found = make_reference(past, model_version="v1", feature_names=NAMES, thresholds=THRESHOLDS)
    assert (found is not None) == is_made


def test_hours_are_expected_as_in_the_past() -> None:
    # In the first hour of each day all scores are the highest.
    past = past_of(days=8, rows=8000)
    first = past.segments.time_ms % DAY_MS < HOUR_MS
    scores = np.where(first, 0.99, past.scores * 0.9)
    reference = made(past_of(days=8, rows=8000, scores=scores))
    location = reference.layout.numbers[Signal("score", "location", "overall")]
    expected = [
        reference.baseline.expected(reference.layout, FIRST_MS + 8 * DAY_MS + hour * HOUR_MS, HOUR_MS)[0][location]
        for hour in (0, 12)
    ]
    assert expected[0] > 0.9
    assert expected[1] == pytest.approx(0.48, abs=0.03)


def test_only_live_decisions_have_quality_signals() -> None:
    trained = made(past_of())
    assert trained.kinds == Kinds.SCORE | Kinds.INPUTS
    flags = [["unknown_card", "odd"], ["odd", "odder"], []] * 1000
    live = Live(np.array([0, 1, 2] * 1000), flags, np.array([-1, 500, 3000] * 1000))
    reference = made(past_of(live=live), flags=("unknown_card",))
    assert reference.kinds == trained.kinds | Kinds.QUALITY
    assert reference.counts.flags[0].tolist() == [1000, 2000]
    value, _ = reference.layout.values(reference.counts)
    for subject, statistic, share in (
        ("action", "review", 1 / 3),
        ("action", "decline", 1 / 3),
        ("flag:unknown_card", "share", 1 / 3),
        ("flag:other", "share", 2 / 3),
        ("profile_age", "missing", 1 / 3),
    ):
        number = reference.layout.numbers[Signal(subject, statistic, "overall")]
        assert value[number] == pytest.approx(share)
        assert reference.baseline.level[number] == pytest.approx(share, abs=0.01)
