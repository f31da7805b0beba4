"""Changes to inputs, weights, sampling and trees are taken where held-out days gain by them beyond chance."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import replace

import numpy as np
import pytest

from paywarden.models.metrics.evaluation import average_precision
from paywarden.models.training.boosting import HeldOut, aged, fit_seconds
from paywarden.models.training.changes import (
    ChangeChoice,
    FoldRows,
    TriedDelay,
    _precisions,
    change_choice_of,
    changes_to_try,
    choose_changes,
    gains_of_vectors,
)
from paywarden.models.training.training_settings import TrainingSettings

NAMES = ("tells", "code", "noise_code", "age")
SETTINGS = TrainingSettings(
    trees=12, learning_rate=0.2, max_depth=3, leaves=7, max_bin=255, threads=1, min_rows_in_leaf=10, leave_out=("age",)
)
CHANGES = [
    one
    for one in changes_to_try(SETTINGS, day_count=30, codes=("code", "noise_code"), growing=("age",), is_capped=False)
    if one.joins or one.leaves
]
ROWS = 4000


def fold() -> FoldRows:
    """Fraud depends on the first feature, on the age, and on every third of 60 codes. Cards have four payments."""
    random = np.random.default_rng(4)

    def made() -> tuple[np.ndarray, np.ndarray]:
        vectors = random.normal(size=(ROWS, len(NAMES))).astype(np.float32)
        vectors[:, 1], vectors[:, 2] = random.integers(0, 60, (2, ROWS))
        log_odds = -4.5 + vectors[:, 0] + 1.5 * vectors[:, 3] + 2.5 * (vectors[:, 1] * 7 % 60 < 20)
        return vectors, (random.random(ROWS) < 1 / (1 + np.exp(-log_odds))).astype(np.int64)

    vectors, label = made()
    later, known = made()
    return FoldRows(vectors, label, np.arange(ROWS) // 400, HeldOut(later, known), np.arange(ROWS) // 4)


@pytest.fixture(scope="module")
def choice() -> ChangeChoice:
    return choose_changes([fold()], SETTINGS, NAMES, CHANGES, seconds=60.0)


def test_what_held_out_days_gain_by_is_taken_and_noise_is_not(choice: ChangeChoice) -> None:
    taken = [one.change.words for one in choice.taken]
    assert taken[:2] == ["age kept", "code as a category"]
    assert all(0 < one.low < one.gain < one.high for one in choice.taken)
    assert not any("noise_code" in words for words in taken)
    lines = choice.in_words()
    assert lines[0].startswith("chosen on held-out days: age kept: average precision +0.")
    assert lines[-1].startswith("not chosen on held-out days: noise_code as a smoothed category: ")


def test_changes_lead_to_settings_and_back() -> None:
    kept, as_category, smoothed, *_ = CHANGES
    changed = smoothed.applied(kept.applied(as_category.applied(SETTINGS)))
    assert (changed.categorical, changed.leave_out) == (("code",), ())
    assert changed.category_smoothing > SETTINGS.category_smoothing
    back = changes_to_try(changed, day_count=30, codes=("code",), growing=("age",), is_capped=False)
    assert [one.words for one in back if one.joins or one.leaves] == ["age left out", "code as a number"]


def test_a_cap_on_trees_that_was_reached_is_tried_twice_as_high() -> None:
    def words(settings: TrainingSettings, *, is_capped: bool) -> list[str]:
        changes = changes_to_try(settings, day_count=30, codes=(), growing=(), is_capped=is_capped)
        return [one.words for one in changes]

    assert words(SETTINGS, is_capped=True)[-1] == "24 trees"
    assert "24 trees" not in words(SETTINGS, is_capped=False)
    stated = replace(SETTINGS, fraud_weight=2.0, age_half_life_days=9, bagging_fraction=0.5)
    assert words(stated, is_capped=False) == []


def test_rows_weigh_half_for_each_half_life_before_the_newest() -> None:
    settings, day = replace(SETTINGS, age_half_life_days=10), np.array([0, 10, 20])
    plain, weighted = aged(None, day, settings), aged(np.array([4.0, 2.0, 1.0]), day, settings)
    assert plain is not None
    assert weighted is not None
    assert plain / plain[-1] == pytest.approx([0.25, 0.5, 1.0])
    assert weighted == pytest.approx([1.0, 1.0, 1.0])
    assert aged(None, day, SETTINGS) is None


def test_a_manifest_keeps_the_choice(choice: ChangeChoice) -> None:
    assert change_choice_of(json.loads(json.dumps(choice.record()))) == choice


def test_the_seconds_set_the_work_and_no_clock_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work has room for two changes; a clock that runs away changes nothing."""
    seconds = 3.5 * fit_seconds(ROWS, len(NAMES), SETTINGS)
    first = choose_changes([fold()], SETTINGS, NAMES, CHANGES, seconds=seconds)
    ticks = itertools.count(step=3600)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(ticks)))
    assert choose_changes([fold()], SETTINGS, NAMES, CHANGES, seconds=seconds) == first
    assert (len(first.tried), len(first.not_tried)) == (2, len(CHANGES) - 2)
    assert first.in_words()[-1].startswith("not tried within the work of --choose-seconds: ")


def test_a_large_table_is_tried_on_a_sample_that_stands_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paywarden.models.training.changes.ROWS_MIN", 100)
    seconds = 0.4 * (1 + len(CHANGES)) * fit_seconds(ROWS, len(NAMES), SETTINGS)
    sampled = choose_changes([fold()], SETTINGS, NAMES, CHANGES, seconds=seconds)
    assert sampled.rows[0] <= 0.4 * sampled.rows[1] == 0.4 * ROWS
    assert not sampled.not_tried
    thin = fold().thinned(1000)
    assert thin.weight is not None
    assert thin.weight.sum() == pytest.approx(ROWS, rel=0.02)


def test_precision_with_weights_is_that_of_repeated_rows() -> None:
    random = np.random.default_rng(1)
    label, score = random.integers(0, 2, 50), random.integers(0, 9, 50) / 9
    weight = random.integers(0, 3, 50)
    (found,) = _precisions(label, score, [weight.astype(np.float64)])
    assert found == pytest.approx(average_precision(np.repeat(label, weight), np.repeat(score, weight)))


def test_other_vectors_of_the_same_rows_gain_what_they_tell() -> None:
    whole = fold()
    blind, held_out = whole.vectors.copy(), whole.held_out.vectors.copy()
    blind[:, 0] = held_out[:, 0] = 0.0
    without = replace(whole, vectors=blind, held_out=replace(whole.held_out, vectors=held_out))
    ((gain, low, high),) = gains_of_vectors([without], [[whole]], SETTINGS, NAMES, seconds=60.0)
    assert 0 < low < gain < high
    assert TriedDelay(1, gain, low, high).in_words().endswith("): set it")
    (same,) = gains_of_vectors([whole], [[whole]], SETTINGS, NAMES, seconds=60.0)
    assert same == (0.0, 0.0, 0.0)
    assert TriedDelay(1, *same).in_words().endswith("): chance may explain that")
