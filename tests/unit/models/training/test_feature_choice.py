"""Features are dropped if exchanging their values within days does no harm, and held-out days are better without."""

from __future__ import annotations

import json

import numpy as np
import pytest

from paywarden.models.training.boosting import HeldOut
from paywarden.models.training.feature_choice import FeatureChoice, FoldRows, TriedFeatures, choose_features, told_of
from paywarden.models.training.training_settings import TrainingSettings

NOISE = tuple(f"noise_{number}" for number in range(20))
NAMES = ("tells", "day", *NOISE)
# Deep trees on few rows: noise does harm.
SETTINGS = TrainingSettings(
    trees=15, learning_rate=0.2, max_depth=6, leaves=31, l2=0.0, min_rows_in_leaf=5, max_bin=63, threads=1
)
ROWS, DAYS = 2000, 20


def fold() -> FoldRows:
    """The label depends on the first feature. The second is the day; the share of frauds doubles with the days."""
    random = np.random.default_rng(3)

    def made(days: range) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        day = np.sort(random.choice(np.array(days), ROWS))
        vectors = random.normal(size=(ROWS, len(NAMES))).astype(np.float32)
        vectors[:, 1] = day
        log_odds = -2.5 + 1.2 * vectors[:, 0] + day / DAYS
        return vectors, (random.random(ROWS) < 1 / (1 + np.exp(-log_odds))).astype(np.int64), day

    vectors, label, day = made(range(DAYS))
    later, known, _ = made(range(DAYS, DAYS + 5))
    return FoldRows(vectors, label, day, HeldOut(later, known))


@pytest.fixture(scope="module")
def choice() -> FeatureChoice:
    return choose_features([fold()], SETTINGS, NAMES, is_over=lambda: False)


def test_noise_is_dropped_where_held_out_days_are_better_without(choice: FeatureChoice) -> None:
    whole, few = choice.tried[0], choice.chosen
    assert few is not None
    assert few.average_precision > whole.average_precision
    assert few.log_loss <= whole.log_loss
    assert "tells" not in choice.dropped
    assert len({*choice.dropped} & {*NOISE}) > len(NOISE) / 2
    assert choice.in_words().startswith(f"{len(choice.dropped)} features dropped: average precision ")


def test_values_are_exchanged_within_days_alone(choice: FeatureChoice) -> None:
    assert choice.rise is not None
    assert choice.rise["day"] == (0.0, 0.0)
    mean, error = choice.rise["tells"]
    assert mean > 4 * error > 0


def test_the_same_seed_gives_the_same_choice_and_a_manifest_keeps_it(choice: FeatureChoice) -> None:
    assert choose_features([fold()], SETTINGS, NAMES, is_over=lambda: False) == choice
    kept = told_of(json.loads(json.dumps(choice.record())))
    assert (kept, kept.dropped) == (choice, choice.dropped)


@pytest.mark.parametrize("calls", [0, 3, 24])
def test_nothing_is_dropped_when_the_time_is_over(calls: int) -> None:
    asked = iter(range(1000))
    choice = choose_features([fold()], SETTINGS, NAMES, is_over=lambda: next(asked) >= calls)
    assert choice.dropped == ()
    assert choice.in_words() == "no features dropped: the minutes were over"


def test_a_set_that_is_better_by_one_measure_alone_is_kept() -> None:
    whole = TriedFeatures((), 0.60, 0.010)
    worse = TriedFeatures(("a",), 0.61, 0.011), TriedFeatures(("a", "b"), 0.60, 0.009)
    choice = FeatureChoice((whole, *worse), {})
    assert choice.dropped == ()
    assert choice.in_words() == (
        "no features dropped: on held-out days no model without some (tried: without 1, 2) is better"
    )
