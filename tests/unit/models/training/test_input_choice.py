"""Codes become categories, and clocks are kept, where held-out days gain by it beyond chance."""

from __future__ import annotations

import json

import numpy as np
import pytest

from paywarden.models.metrics.evaluation import average_precision
from paywarden.models.training.boosting import HeldOut
from paywarden.models.training.input_choice import (
    CATEGORY,
    LEFT_OUT,
    InputChange,
    InputChoice,
    InputRows,
    _precisions,
    choose_inputs,
    input_changes,
    input_choice_of,
)
from paywarden.models.training.training_settings import TrainingSettings

NAMES = ("tells", "code", "noise_code", "age")
SETTINGS = TrainingSettings(
    trees=12, learning_rate=0.2, max_depth=3, leaves=7, max_bin=255, threads=1, min_rows_in_leaf=10, leave_out=("age",)
)
CHANGES = input_changes(SETTINGS, ("code", "noise_code"), ("age",))
ROWS = 4000


def fold() -> InputRows:
    """Fraud depends on the first feature, on the age, and on every third of 60 codes. Cards have four payments."""
    random = np.random.default_rng(4)

    def made() -> tuple[np.ndarray, np.ndarray]:
        vectors = random.normal(size=(ROWS, len(NAMES))).astype(np.float32)
        vectors[:, 1], vectors[:, 2] = random.integers(0, 60, (2, ROWS))
        log_odds = -4.5 + vectors[:, 0] + 1.5 * vectors[:, 3] + 2.5 * (vectors[:, 1] * 7 % 60 < 20)
        return vectors, (random.random(ROWS) < 1 / (1 + np.exp(-log_odds))).astype(np.int64)

    vectors, label = made()
    later, known = made()
    return InputRows(vectors, label, HeldOut(later, known), np.arange(ROWS) // 4)


@pytest.fixture(scope="module")
def choice() -> InputChoice:
    return choose_inputs([fold()], SETTINGS, NAMES, CHANGES, is_over=lambda: False)


def test_what_held_out_days_gain_by_is_taken_and_noise_is_not(choice: InputChoice) -> None:
    assert {one.change for one in choice.taken} == {
        InputChange(CATEGORY, "code", joins=True),
        InputChange(LEFT_OUT, "age", joins=False),
    }
    assert all(0 < one.low < one.gain < one.high for one in choice.taken)
    assert [one.change.feature for one in choice.others] == ["noise_code"]
    assert choice.others[0].low <= 0
    lines = choice.in_words()
    assert any(line.startswith("chosen on held-out days: age kept: average precision +0.") for line in lines)
    assert lines[-1].startswith("tried on held-out days, and not chosen: noise_code as a category: ")


def test_changes_lead_to_settings_and_back() -> None:
    as_category, _, kept = CHANGES
    changed = kept.applied(as_category.applied(SETTINGS))
    assert (changed.categorical, changed.leave_out) == (("code",), ())
    back = input_changes(changed, ("code",), ("age",))
    assert [one.in_words() for one in back] == ["code as a number", "age left out"]
    assert back[1].applied(back[0].applied(changed)) == SETTINGS


def test_a_manifest_keeps_the_choice(choice: InputChoice) -> None:
    assert input_choice_of(json.loads(json.dumps(choice.record()))) == choice


def test_nothing_is_taken_when_the_time_is_over() -> None:
    asked = iter([False, False, True, True])
    late = choose_inputs([fold()], SETTINGS, NAMES, CHANGES, is_over=lambda: next(asked))
    assert (late.taken, len(late.others)) == ((), 1)
    assert late.in_words()[-1] == "further inputs were not tried: the minutes were over"


def test_precision_with_weights_is_that_of_repeated_rows() -> None:
    random = np.random.default_rng(1)
    label, score = random.integers(0, 2, 50), random.integers(0, 9, 50) / 9
    weight = random.integers(0, 3, 50)
    (found,) = _precisions(label, score, [weight.astype(np.float64)])
    assert found == pytest.approx(average_precision(np.repeat(label, weight), np.repeat(score, weight)))
