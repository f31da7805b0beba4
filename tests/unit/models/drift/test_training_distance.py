"""Distances of whole distributions from the training window, and how much of them is natural."""

from __future__ import annotations

import numpy as np
import pytest

from paywarden.models.drift.binning import FEATURE_BINS, Binning
from paywarden.models.drift.counts import Counts
from paywarden.models.drift.detectors import HOUR_MS
from paywarden.models.drift.training_distance import (
    DayRows,
    Distances,
    Natural,
    Subject,
    Subjects,
    chance_psi,
)

BINNING = Binning(
    np.array([0.2, 0.5, 0.8]),
    np.tile(np.arange(FEATURE_BINS - 1, dtype=np.float32), (2, 1)),
    (("app", "web"), ("DE",), ()),
)
SUBJECTS = Subjects(BINNING, ("amount", "age"))


def counts_of(seed: int, payments: int = 1000, web: float = 0.74) -> Counts:
    """Return counts in which every feature is as in any other seed, and `web` is the share of one channel."""
    rng, counts = np.random.default_rng(seed), Counts.empty(BINNING)
    for segment in range(len(BINNING.segments)):
        counts.scores[segment] = rng.multinomial(payments, [0.4, 0.3, 0.2, 0.1])
        counts.features[segment] = rng.multinomial(payments, np.full(FEATURE_BINS + 1, 1 / (FEATURE_BINS + 1)), size=2)
    app, on_web = rng.multinomial(payments, [1 - web, web])
    counts.payments[:] = [payments, app, on_web, 0, 0, payments, 0, 0, 0, payments]
    return counts


def distances(one: Counts, other: Counts) -> Distances:
    return SUBJECTS.distances(SUBJECTS.row(one), SUBJECTS.row(other))


def test_each_subject_has_its_own_histogram_in_a_row() -> None:
    counts = counts_of(1)
    row = SUBJECTS.row(counts)
    assert len(row) == SUBJECTS.cells
    assert [subject.name for subject in SUBJECTS.all[:3]] == ["score", "feature:amount", "feature:age"]
    assert SUBJECTS.all[3:] == tuple(Subject("traffic", name) for name in ("channel", "country", "mcc"))
    np.testing.assert_array_equal(SUBJECTS.of(row, 2), counts.features[0, 1])
    assert SUBJECTS.segments[0] == ("channel=app", "channel=web", "channel=none", "channel=other")
    np.testing.assert_array_equal(SUBJECTS.of(row, 3), counts.payments[1:5])


def test_a_shift_of_the_mix_is_measured_as_the_page_says() -> None:
    then, now = counts_of(1, 1_000_000), counts_of(1, 1_000_000, web=0.28)
    found = distances(then, now)
    assert found.psi[3] == pytest.approx(0.92, abs=0.01)
    assert found.outside[3] == pytest.approx(0.46, abs=0.005)
    assert found.psi[[0, 1, 2, 4, 5]].max() < 1e-4


@pytest.mark.parametrize("seed", range(3))
def test_a_later_week_lies_no_further_than_is_natural(seed: int) -> None:
    hours = [(hour * HOUR_MS, counts_of(seed * 1000 + hour // 24, 200)) for hour in range(0, 28 * 24, 6)]
    days = DayRows(SUBJECTS, hours)
    assert [start_ms for start_ms, _ in days] == [start_ms for start_ms, _ in hours]
    natural, total, week = days.natural(), np.zeros(SUBJECTS.cells), np.zeros(SUBJECTS.cells)
    for _, counts in hours:
        total += SUBJECTS.row(counts)
    for later in range(28):
        week += SUBJECTS.row(counts_of(seed * 1000 + 500 + later, 200))
    found = SUBJECTS.distances(total, week)
    # Some luck is left: the furthest of a past's weeks is no bound for later ones.
    assert (found.psi <= 2 * natural.psi_of(found.count) + 1e-3).all()
    assert natural.psi.max() < 0.05


def test_fewer_payments_make_more_distance_natural() -> None:
    natural = Natural(np.array([0.01, 0.02], dtype=np.float32), payments=1000.0)
    np.testing.assert_allclose(natural.psi_of(np.array([500, 4000])), [0.02, 0.02], rtol=1e-6)
    assert chance_psi(11, 1000, 1000) == pytest.approx(0.02)
