"""The parity gate tries the inputs that engines get wrong, and refuses every deviation."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import lightgbm
import numpy as np
import pytest
from numpy.typing import NDArray

from paywarden.models.bundle import parity
from paywarden.models.bundle.bitvectors import _beside_zeros
from paywarden.models.bundle.bundle import MODEL_TEXT
from paywarden.models.bundle.compiler import GENERATORS, compile_library, compiler_name
from paywarden.models.bundle.explanations import CATEGORICAL, DECISION, FEATURE, LEFT, RIGHT, ZERO, Trees, read_trees
from paywarden.models.bundle.parity import ParityGate, edge_rows, special_rows
from paywarden.models.bundle.predictor import GtilPredictor, NativePredictor
from paywarden.schemas.errors import BundleRefused
from tests.worlds.small import small_world

F32 = NDArray[np.float32]
FEATURES = len(small_world.engine().plan.names)


@cache
def text() -> Path:
    return small_world.trained_bundle() / MODEL_TEXT


@cache
def payments() -> F32:
    return np.ascontiguousarray(small_world.table().vectors[::40])


@cache
def gate() -> ParityGate:
    return ParityGate.of(text(), payments())


class WrongFor(GtilPredictor):
    """Gives LightGBM's bits, except in rows that a predicate picks."""

    def __init__(self, picks: object) -> None:
        super().__init__(text())
        self._picks = picks

    def margins(self, vectors: F32) -> NDArray[np.float64]:
        found = super().margins(vectors)
        return np.where(self._picks(vectors), np.nextafter(found, np.inf), found)  # type: ignore[operator]


def reached(trees: Trees, row: F32, node: int) -> bool:
    """Whether a row's path passes a node, by walking down the tree as LightGBM does for numbers."""
    roots = [root for root in trees.roots.tolist() if root <= node]
    at = max(roots)
    while at >= 0 and at != node:
        feature, decision = trees.nodes[at, FEATURE], trees.nodes[at, DECISION]
        value = float(row[feature])
        if decision & CATEGORICAL:
            is_left = value == value and int(value) in trees.categories(at)
        else:
            is_left = bool(decision & 2) if value != value and decision >> 2 == 2 else value <= trees.thresholds[at]
        at = int(trees.nodes[at, LEFT if is_left else RIGHT])
    return bool(at == node)


def test_every_split_is_tried_below_at_and_above_its_threshold() -> None:
    trees = read_trees(text(), FEATURES)
    count = len(trees.nodes)
    rows = edge_rows(trees, payments(), np.arange(count)).reshape(count, 4, FEATURES)
    for node in range(count):
        feature, threshold = trees.nodes[node, FEATURE], trees.thresholds[node]
        below, at, above, missing = rows[node][:, feature]
        assert below < threshold
        assert below <= at <= above
        assert above > threshold
        assert np.nextafter(np.nextafter(below, np.float32(np.inf)), np.float32(np.inf)) == above
        assert np.isnan(missing)
        # Skip paths that test the same feature again, because its value has changed.
        others = [row for row in rows[node] if reached(trees, row, node)]
        assert others, f"no row comes to split {node}"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_tried_in_every_feature(value: float) -> None:
    rows = special_rows(read_trees(text(), FEATURES), payments())
    for feature in range(FEATURES):
        found = rows[:, feature]
        assert (np.isnan(found) if np.isnan(value) else found == value).any()


def test_one_row_at_one_edge_that_is_scored_otherwise_refuses() -> None:
    trees = read_trees(text(), FEATURES)
    # A split whose threshold is exactly a float32, where "at" and "below" differ.
    feature, threshold = int(trees.nodes[0, FEATURE]), np.float32(trees.thresholds[0])
    with pytest.raises(
        BundleRefused, match=r"the GTIL scores \d+ of \d+ rows differently from LightGBM \(rows at the edges"
    ):
        gate().require(WrongFor(lambda rows: rows[:, feature] == np.nextafter(threshold, np.float32(np.inf))))


def test_a_margin_of_negative_zero_is_not_zero() -> None:
    rows = parity.GateRows("rows", payments()[:1], np.array([0.0]))

    class Zero:
        native = False

        def margins(self, vectors: F32) -> NDArray[np.float64]:
            return np.full(len(vectors), -0.0)

    with pytest.raises(BundleRefused, match="1 of 1 rows"):
        parity.require_same_bits(Zero(), rows)


def test_a_categorical_split_is_tried_inside_outside_unseen_and_missing(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    data = np.column_stack([random.integers(0, 12, 3000), random.normal(size=3000)]).astype(np.float32)
    label = (np.isin(data[:, 0], [1, 4, 7]) ^ (data[:, 1] > 1)).astype(int)
    dataset = lightgbm.Dataset(data, label, categorical_feature=[0])
    model = lightgbm.train({"objective": "binary", "verbosity": -1}, dataset, num_boost_round=3)
    model.save_model(tmp_path / "model.txt")
    trees = read_trees(tmp_path / "model.txt", 2)
    (first, *_) = np.flatnonzero(trees.nodes[:, DECISION] & CATEGORICAL).tolist()
    inside, outside, unseen, missing = edge_rows(trees, data[:50], np.array([first]))[:, 0]
    assert int(inside) in trees.categories(first)
    assert int(outside) not in trees.categories(first)
    assert unseen > 12
    assert np.isnan(missing)
    ParityGate.of(tmp_path / "model.txt", data[:50]).require(GtilPredictor(tmp_path / "model.txt"))


@cache
def model_with_splits_beside_zero() -> tuple[Path, F32]:
    """A model whose splits stand at -1e-35 and 1e-35: LightGBM gives the zeros of a column a bin of their own."""
    random = np.random.default_rng(7)
    values = random.normal(size=(4000, 3)).astype(np.float32)
    values[random.random(values.shape) < 0.4] = 0.0
    labels = ((values[:, 0] == 0.0) ^ (values[:, 1] < 0.0)).astype(float)
    settings = {"objective": "binary", "max_bin": 31, "num_leaves": 15, "verbose": -1, "seed": 1, "num_threads": 1}
    booster = lightgbm.train(settings, lightgbm.Dataset(values, labels), num_boost_round=20)
    path = Path(tempfile.mkdtemp(prefix="paywarden-test-")) / "model.txt"
    booster.save_model(str(path))
    return path, values[:500]


def test_a_model_that_splits_beside_zero_passes_in_every_engine(tmp_path: Path) -> None:
    """LightGBM takes 1e-35 for 0 when it predicts, on either side of the split."""
    model, rows = model_with_splits_beside_zero()
    trees = read_trees(model, rows.shape[1])
    assert {-ZERO, ZERO} <= set(trees.thresholds.tolist())
    gate = ParityGate.of(model, rows)
    gate.require(GtilPredictor(model))
    for generator in GENERATORS if compiler_name() else ():
        library = tmp_path / generator.replace(" ", "-") / "model.so"
        compile_library(model, rows.shape[1], library, generator=generator)
        gate.require(NativePredictor(library, rows.shape[1]))


def test_a_threshold_beside_zero_sends_every_value_where_lightgbm_does() -> None:
    around = [np.nextafter(edge, side) for edge in (-ZERO, 0.0, ZERO) for side in (-np.inf, edge, np.inf)]
    thresholds = [*around, -1e-36, 1e-36, -1.0, 1.0, -np.inf, np.inf]
    zero = np.float32(ZERO)
    values = [np.nextafter(np.float32(edge), np.float32(side)) for edge in (-zero, 0, zero) for side in (-9, edge, 9)]
    for threshold in map(float, thresholds):
        for value in (*map(float, values), -2.0, 2.0, 1e-36, -0.0):
            goes_right = (0.0 if abs(value) <= ZERO else value) > threshold
            assert (value > _beside_zeros(threshold)) == goes_right, (threshold, value)
