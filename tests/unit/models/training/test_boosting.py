"""Growing trees: on which rows, how many, and with which monotone constraints."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import lightgbm
import numpy as np
import pytest

from paywarden.models.training.boosting import HeldOut, binned, grow, grow_until_worse, model_text
from paywarden.models.training.calibration import log_loss
from paywarden.models.training.training_settings import TrainingSettings
from paywarden.schemas.errors import Misconfigured
from tests.worlds.small.synthetic_rows import synthetic_table

NAMES = ("steep", "gentle", "noise_a", "noise_b")
SETTINGS = TrainingSettings(trees=30, learning_rate=0.2, max_bin=255)
TABLE = synthetic_table()
AFTER = synthetic_table(seed=1)


def grown(settings: TrainingSettings) -> Any:
    return grow(binned(TABLE.vectors, TABLE.label, settings, NAMES), settings, NAMES)


# Rows


def test_rows_in_parts_give_the_bits_of_rows_in_one_array() -> None:
    parts = [TABLE.vectors[:7], TABLE.vectors[7:900], TABLE.vectors[900:]]
    in_parts = grow(binned(parts, TABLE.label, SETTINGS, NAMES), SETTINGS, NAMES)
    assert model_text(in_parts) == model_text(grown(SETTINGS))


# Stopping early


def losses(settings: TrainingSettings, trees: int) -> list[float]:
    """Returns the log loss of the held-out rows with one tree, two trees, and so on."""
    model = grown(replace(settings, trees=trees))
    return [log_loss(AFTER.label, model.predict(AFTER.vectors, num_iteration=count)) for count in range(1, trees + 1)]


def test_growing_stops_at_the_lowest_held_out_log_loss() -> None:
    settings = replace(SETTINGS, trees=300, early_stopping_rounds=10)
    data = binned(TABLE.vectors, TABLE.label, settings, NAMES)
    model, trees = grow_until_worse(data, HeldOut(AFTER.vectors, AFTER.label), settings, NAMES)
    seen = losses(settings, trees + settings.early_stopping_rounds)
    assert trees == int(np.argmin(seen)) + 1 < settings.trees
    assert model.best_score["valid_0"]["log_loss"] == pytest.approx(min(seen))


# Directions


def scanned(model: Any, feature: int) -> Any:
    """Returns the margins of a hundred rows (first axis) while one feature rises."""
    rows = np.repeat(AFTER.vectors[:100], 200, axis=0)
    rows[:, feature] = np.tile(np.linspace(-4, 4, 200, dtype=np.float32), 100)
    return model.predict(rows, raw_score=True).reshape(100, 200)


@pytest.mark.parametrize(("feature", "direction"), [(0, 1), (2, 1), (2, -1), (3, -1)])
def test_margins_never_go_against_the_direction_of_a_feature(feature: int, direction: int) -> None:
    free = np.diff(scanned(grown(SETTINGS), feature)) * direction
    bound = np.diff(scanned(grown(replace(SETTINGS, monotone={NAMES[feature]: direction})), feature)) * direction
    assert free.min() < 0, "without the direction some margin goes against it"
    assert bound.min() >= 0


# Text and refusals


def test_the_model_text_omits_the_threads_and_can_be_read_back() -> None:
    texts = {model_text(grown(replace(SETTINGS, threads=threads))) for threads in (1, 2, 3)}
    assert len(texts) == 1
    again = lightgbm.Booster(model_str=texts.pop())
    assert np.array_equal(again.predict(AFTER.vectors), grown(SETTINGS).predict(AFTER.vectors))


def test_lightgbms_refusal_becomes_one_line() -> None:
    with pytest.raises(Misconfigured, match="LightGBM cannot train with the") as caught:
        grown(replace(SETTINGS, max_bin=0))
    assert "\n" not in str(caught.value)
