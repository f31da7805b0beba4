"""Signals of counts, compared with signals computed payment by payment."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from paywarden.models.drift.binning import DIMENSIONS, FEATURE_BINS, MISSING, OVERALL, Binning
from paywarden.models.drift.counts import AGE_UNKNOWN, Counts, DecisionRows, count_rows
from paywarden.models.drift.signal_layout import Kinds, Layout, Ranks
from paywarden.models.drift.signals import Signal
from paywarden.models.metrics.tally import DECLINED, REVIEWED

Floats = NDArray[np.float64]
ALL = Kinds.SCORE | Kinds.INPUTS | Kinds.QUALITY
HIGH_RISK_AT = 0.5
FEATURES = ("few", "many")
EDGES = np.array(
    [[0.0, 1.0, 3.0] + [np.inf] * (FEATURE_BINS - 4), np.linspace(-2, 2, FEATURE_BINS - 1)],
    dtype=np.float32,
)
BINNING = Binning(
    np.array([0.1, HIGH_RISK_AT, 0.9]), EDGES, (("ecom", "pos"), ("DE",), ()), ("unknown_card", "mirror_stale")
)


def rows_of(seed: int, count: int) -> DecisionRows:
    random = np.random.default_rng(seed)
    flags = np.array(["unknown_card", "mirror_stale", "odd", "odder"])
    return DecisionRows(
        # The threshold itself, the next below it, and no score.
        random.choice([0.0, 0.1, 0.3, np.nextafter(HIGH_RISK_AT, 0), HIGH_RISK_AT, 0.95, np.nan], count),
        random.integers(0, 3, count),
        random.choice(np.array([-3, 0, 0.4, 1, 1.5, 3, 99, np.nan], dtype=np.float32), (count, len(FEATURES))),
        [random.choice(flags, size).tolist() for size in random.integers(0, 4, count)],
        random.choice(np.array([-1, 0, 999, 1000, 5000, 10**9]), count),
        [random.choice(np.array(["ecom", "pos", "DE", None, "x"], dtype=object), count).tolist() for _ in DIMENSIONS],
    )


def layout_of(counts: Counts, kinds: Kinds = ALL) -> Layout:
    return Layout(BINNING, FEATURES, Ranks.of_counts(counts), high_risk_at=HIGH_RISK_AT, kinds=kinds)


def of_payments(rows: DecisionRows, signal: Signal, ranks: Ranks) -> Floats:
    """Returns the numbers that the signal averages, one for each payment."""
    places = BINNING.segments_of(rows.values)
    inside = np.asarray((places == BINNING.segments.index(signal.segment)).any(axis=1))
    name, _, told = signal.subject.partition(":")
    if name == "traffic":
        return inside.astype(np.float64)
    if name == "action":
        found = rows.actions == {"review": REVIEWED, "decline": DECLINED}[signal.statistic]
    elif name == "flag":
        found = np.array([any(_flag(flag) == told for flag in flags) for flags in rows.flags])
    elif name == "profile_age":
        bins = [min((age // 1000).bit_length(), AGE_UNKNOWN - 1) for age in rows.ages_ms.tolist()]
        is_known, places_of = rows.ages_ms >= 0, np.array(bins) / (AGE_UNKNOWN - 1)
        found = ~is_known if signal.statistic == "missing" else np.where(is_known, places_of, np.nan)
    elif signal.statistic == "high_risk":
        found = np.where(np.isnan(rows.scores), np.nan, rows.scores >= HIGH_RISK_AT)
    else:
        found = _ranks_of(rows, name, told, ranks)
        if signal.statistic == "missing":
            found = np.isnan(found)
        elif signal.statistic == "spread":
            found = np.abs(2 * found - 1)
    column = found.astype(np.float64)[inside]
    return np.asarray(column[~np.isnan(column)])


def _flag(name: str) -> str:
    return name if name in BINNING.flags else "other"


def _ranks_of(rows: DecisionRows, name: str, feature: str, ranks: Ranks) -> Floats:
    if name == "score":
        return np.where(np.isnan(rows.scores), np.nan, ranks.scores[BINNING.bins_of_scores(rows.scores)])
    number = FEATURES.index(feature)
    bins = BINNING.bins_of_features(rows.vectors)[:, number]
    return np.asarray(np.append(ranks.features[number], np.nan)[bins])


@given(st.integers(0, 2**32), st.integers(0, 30))
def test_a_signal_is_the_mean_over_its_payments_and_spread_their_variance(seed: int, count: int) -> None:
    rows, ranks = rows_of(seed, count), Ranks.of_counts(count_rows(BINNING, rows_of(seed + 1, 50)))
    layout = Layout(BINNING, FEATURES, ranks, high_risk_at=HIGH_RISK_AT, kinds=ALL)
    counts = count_rows(BINNING, rows)
    values, sizes, spread = layout.values_and_spread(counts)
    for found, same in zip(layout.values(counts), (values, sizes), strict=True):
        np.testing.assert_array_equal(found, same)
    for number, signal in enumerate(layout.signals):
        payments = of_payments(rows, signal, ranks)
        assert sizes[number] == len(payments), signal
        assert values[number] == pytest.approx(payments.mean() if len(payments) else np.nan, nan_ok=True), signal
        assert spread[number] == pytest.approx(payments.var() if len(payments) else 0, abs=1e-12), signal


@given(st.integers(0, 2**32), st.integers(1, 40))
def test_overall_is_the_mean_of_the_segments_of_each_dimension_by_payments(seed: int, count: int) -> None:
    layout = layout_of(count_rows(BINNING, rows_of(seed, 40)), Kinds.SCORE | Kinds.INPUTS)
    values, sizes = layout.values(count_rows(BINNING, rows_of(seed + 1, count)))
    for dimension in DIMENSIONS:
        segments = [name for name in layout.segments if name.startswith(f"{dimension}=")]
        assert sum(values[layout.numbers[Signal("traffic", "share", name)]] for name in segments) == pytest.approx(1)
        for signal, overall in layout.numbers.items():
            if signal.segment == OVERALL and sizes[overall]:
                parts = [layout.numbers[Signal(signal.subject, signal.statistic, name)] for name in segments]
                assert sizes[parts].sum() == sizes[overall]
                total = np.nansum(values[parts] * sizes[parts])
                assert values[overall] == pytest.approx(total / sizes[overall])


def test_places_as_ranks_rise_evenly_from_0_to_1() -> None:
    ranks = Ranks.of_places(BINNING)
    assert ranks.scores == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert ranks.features.shape == (len(FEATURES), MISSING)
    assert (ranks.features == ranks.features[0]).all()
    assert np.diff(ranks.features[0]) == pytest.approx(1 / (MISSING - 1))


def test_a_layout_has_the_signals_of_its_kinds() -> None:
    counts = Counts.empty(BINNING)
    segments = len(BINNING.segments)
    of_kinds = {
        kind: {(signal.subject, signal.statistic) for signal in layout_of(counts, kind).signals} for kind in Kinds
    }
    assert of_kinds[Kinds.SCORE] == {("score", name) for name in ("location", "spread", "high_risk")}
    assert of_kinds[Kinds.INPUTS] == {
        *((f"feature:{name}", statistic) for name in FEATURES for statistic in ("location", "spread", "missing")),
        ("traffic", "share"),
    }
    assert of_kinds[Kinds.QUALITY] == {
        *(("action", name) for name in ("review", "decline")),
        *((f"flag:{name}", "share") for name in ("unknown_card", "mirror_stale", "other")),
        *(("profile_age", name) for name in ("location", "missing")),
    }
    assert len(layout_of(counts).signals) == segments * sum(map(len, of_kinds.values())) - 1
