"""Categorical features: trees learn sets, and values in no set get LightGBM's scores."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
from numpy.typing import NDArray

from paywarden.models.bundle.bundle import MODEL_TEXT, native_library
from paywarden.models.bundle.compiler import compiler_name
from paywarden.models.bundle.explanations import CATEGORICAL, DECISION, FEATURE, read_trees
from paywarden.models.bundle.predictor import GtilPredictor, NativePredictor
from paywarden.models.training.table import TrainingTable
from paywarden.models.training.training import train_bundle
from paywarden.models.training.training_settings import CATEGORY_MAX
from paywarden.schemas.errors import Misconfigured
from tests.services.missing_tools import COMPILER
from tests.worlds.small import small_world
from tests.worlds.small.synthetic_rows import WINDOW, synthetic_table

NAMES = small_world.engine().plan.names
HOUR = NAMES.index("hour")
SETTINGS = replace(
    small_world.SETTINGS, categorical=("hour",), cascade=True, cascade_trees=5, cascade_disagreement_max=0.05
)


@cache
def table() -> TrainingTable:
    """Frauds happen at three unrelated hours, and where the first column is high."""
    made = synthetic_table(width=len(NAMES))
    random = np.random.default_rng(5)
    hours = random.integers(0, 24, len(made.label)).astype(np.float32)
    vectors = made.vectors.copy()
    vectors[:, HOUR] = hours
    vectors[random.random(len(hours)) < 0.05, HOUR] = np.nan
    log_odds = -4.0 + 1.5 * vectors[:, 0] + 3.0 * np.isin(hours, [2, 11, 19])
    label = (random.random(len(hours)) < 1 / (1 + np.exp(-log_odds))).astype(np.int64)
    return TrainingTable(vectors, label, made.day)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("categories") / "bundle"
    train_bundle(table(), WINDOW, folder, engine=small_world.engine(), settings=SETTINGS)
    return folder


def rows_at(*hours: float) -> NDArray[np.float32]:
    """Twenty payments at each of these hours."""
    rows = np.repeat(table().vectors[:20], len(hours), axis=0)
    rows[:, HOUR] = np.tile(np.array(hours, dtype=np.float32), 20)
    return rows


def test_trees_learn_sets_of_the_feature_and_of_no_other(bundle: Path) -> None:
    trees = read_trees(bundle / MODEL_TEXT, len(NAMES))
    asks_sets = (trees.nodes[:, DECISION] & CATEGORICAL) != 0
    assert asks_sets.any()
    assert set(trees.nodes[asks_sets, FEATURE].tolist()) == {HOUR}
    assert HOUR not in trees.nodes[~asks_sets, FEATURE]
    assert any({2, 11, 19} <= trees.categories(node) for node in np.flatnonzero(asks_sets).tolist())


def test_categories_never_seen_and_missing_ones_score_as_lightgbm_has_it(bundle: Path) -> None:
    rows = rows_at(2, 23, 24, 31, 32, 99, CATEGORY_MAX, 2.0**24, -1, np.nan, np.inf, -np.inf)
    wanted = np.asarray(lightgbm.Booster(model_file=str(bundle / MODEL_TEXT)).predict(rows, raw_score=True))
    assert np.array_equal(GtilPredictor(bundle / MODEL_TEXT).margins(rows), wanted)
    if compiler_name() is not None:
        assert np.array_equal(NativePredictor(native_library(bundle), len(NAMES)).margins(rows), wanted)
    # Values in no set (never seen, too large, negative, missing) all score alike.
    unseen = wanted.reshape(20, 12)[:, 2:]
    assert (unseen == unseen[:, :1]).all()


@pytest.mark.skipif(compiler_name() is None, reason=COMPILER.reason)
def test_sets_are_compiled_as_a_walk(bundle: Path) -> None:
    note = json.loads((native_library(bundle).parent / "build.json").read_text(encoding="utf-8"))
    assert note["generator"] == "walk"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"categorical": ("hours",)}, r"categorical: there is no feature 'hours'; did you mean hour\?"),
        ({"categorical": (NAMES[0],)}, f"categorical: wanted whole numbers from 0 to 4095 for {NAMES[0]}, got -"),
        ({"monotone": {"hour": 1}}, "categorical: hour has a direction in training.monotone"),
    ],
)
def test_values_that_cannot_be_categories_are_refused_in_one_line(
    tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    with pytest.raises(Misconfigured, match=named):
        train_bundle(
            table(), WINDOW, tmp_path / "b", engine=small_world.engine(), settings=replace(SETTINGS, **changed)
        )
    assert list(tmp_path.iterdir()) == []
