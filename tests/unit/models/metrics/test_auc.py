"""Areas under curves have scikit-learn's bits and take a tenth of its memory; also other measures' memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.models.metrics import auc as areas
from paywarden.models.metrics import comparison, curves, segments, tally
from paywarden.models.metrics.auc import areas_under_curves
from paywarden.models.metrics.comparison import score_shift
from paywarden.models.metrics.costs import CostSettings
from paywarden.models.metrics.curves import at_capacity, threshold_curve
from paywarden.models.metrics.evaluation import auc_roc, average_precision, card_precision_at_k
from paywarden.models.metrics.segments import DecidedPayments, by_group

RANDOM = np.random.default_rng(4)
ROWS = 400_000
FRAUD = RANDOM.random(ROWS) < 0.01
SCORE = 1 / (1 + np.exp(6 - 4 * FRAUD - RANDOM.normal(0, 1.2, ROWS)))
# Trees give many equal scores.
SCORE[::2] = SCORE[::2].round(4)
OTHER = np.clip(SCORE + RANDOM.normal(0, 0.01, ROWS), 0, 1)
DAY = np.sort(RANDOM.integers(19_000, 19_020, ROWS))
CARD = RANDOM.integers(0, ROWS // 10, ROWS).astype(np.int32)
AMOUNT = RANDOM.integers(1, 100_000, ROWS)
ACTION = (SCORE > 0.2).astype(np.int8)
GROUP = RANDOM.choice(3, ROWS, p=[0.9, 0.05, 0.05]).astype(np.int32)


def by_scikit_learn(fraud: np.ndarray, score: np.ndarray) -> tuple[float, float]:
    label = fraud.astype(np.int64)
    return auc_roc(label, score), average_precision(label, score)


def same_bits(first: tuple[float, float], second: tuple[float, float]) -> bool:
    return np.array(first).tobytes() == np.array(second).tobytes()


@given(
    rows=st.lists(st.tuples(st.booleans(), st.integers(0, 12)), min_size=1, max_size=120),
    together=st.integers(1, 40),
    unit=st.sampled_from([0.1, 1 / 12, 1e-9, 1.0, 1e-310]),
)
def test_areas_are_those_of_scikit_learn_to_the_bit(rows: list[tuple[bool, int]], together: int, unit: float) -> None:
    fraud, score = np.array([fraud for fraud, _ in rows]), unit * np.array([float(number) for _, number in rows])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(areas, "_ROWS", together)
        assert same_bits(areas_under_curves(fraud, score), by_scikit_learn(fraud, score))


def test_areas_of_many_scores_are_those_of_scikit_learn_to_the_bit() -> None:
    assert same_bits(areas_under_curves(FRAUD, SCORE), by_scikit_learn(FRAUD, SCORE))


def test_the_scores_are_left_as_they_are_and_a_negative_zero_is_a_zero() -> None:
    score = np.array([0.5, -0.0, 0.0, 0.25])
    fraud = np.array([True, True, False, False])
    assert same_bits(areas_under_curves(fraud, score), by_scikit_learn(fraud, score))
    assert score.tobytes() == np.array([0.5, -0.0, 0.0, 0.25]).tobytes()


MEASURES: dict[str, tuple[Callable[[], object], int]] = {
    # The measured call, and the most bytes per row it may take.
    "areas": (lambda: areas_under_curves(FRAUD, SCORE), 12),
    "card precision": (lambda: str(vars(card_precision_at_k(DAY, CARD, FRAUD.view(np.int8), SCORE))), 14),
    "review capacity": (lambda: at_capacity(DAY, FRAUD, SCORE, AMOUNT, 100), 14),
    "thresholds": (lambda: threshold_curve(FRAUD, SCORE, AMOUNT, CostSettings()), 12),
    "all": (lambda: by_group(["all"], np.zeros(ROWS, np.uint8), decided(), CostSettings()), 32),
    "groups": (lambda: by_group(["a", "b", "c"], GROUP, decided(), CostSettings()), 42),
    "score shift": (lambda: score_shift(SCORE, OTHER), 36),
}


def decided() -> DecidedPayments:
    return DecidedPayments(ACTION, SCORE, FRAUD, AMOUNT, has_outcomes=True)


def look_at_few_together(patched: pytest.MonkeyPatch, rows: int) -> None:
    for module in (areas, comparison, curves, segments, tally):
        patched.setattr(module, "_ROWS", rows)


@pytest.mark.parametrize("what", list(MEASURES))
def test_how_many_rows_are_looked_at_together_changes_no_bit(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, _ = MEASURES[what]
    look_at_few_together(monkeypatch, ROWS)
    whole = repr(measure())
    look_at_few_together(monkeypatch, 4_099)
    assert repr(measure()) == whole


@pytest.mark.parametrize("what", list(MEASURES))
def test_measures_take_few_bytes_a_row(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, bytes_max = MEASURES[what]
    look_at_few_together(monkeypatch, 4_096)
    tracemalloc.start()
    try:
        measure()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak / ROWS < bytes_max
