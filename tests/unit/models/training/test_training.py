from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from numpy.typing import NDArray

from paywarden.features.history.history import history_of_tables
from paywarden.models.bundle.bundle import (
    MANIFEST,
    MODEL_TEXT,
    Manifest,
    calibrated,
    load_bundle,
    read_manifest,
)
from paywarden.models.bundle.predictor import GtilPredictor
from paywarden.models.drift.reference import REFERENCE, read_reference
from paywarden.models.drift.table_segments import TableSegments
from paywarden.models.drift.training_distance import outside
from paywarden.models.metrics.distances import psi
from paywarden.models.training import training
from paywarden.models.training.sampling import GenuineSample
from paywarden.models.training.table import LabelRules, TrainingTable, training_table
from paywarden.models.training.training import train_bundle
from paywarden.models.training.training_settings import TrainingSettings
from paywarden.schemas.errors import BundleRefused, Misconfigured
from tests.worlds.small import small_world
from tests.worlds.small.small_world import DAY_MS, SETTINGS, TRAINING_DAYS
from tests.worlds.small.synthetic_rows import WINDOW, synthetic_table

QUICK = replace(SETTINGS, trees=3, folds=2)


def train(table: TrainingTable, destination: Path, settings: TrainingSettings = QUICK) -> Manifest:
    return train_bundle(table, TRAINING_DAYS, destination, engine=small_world.engine(), settings=settings)


def part_of(table: TrainingTable, rows: slice) -> TrainingTable:
    return TrainingTable(table.vectors[rows], table.label[rows], table.day[rows])


def plain_table() -> TrainingTable:
    """The rows without their times and segments: such a bundle has no reference, and takes half the time."""
    return part_of(small_world.table(), slice(None))


def wide_table(**changed: Any) -> TrainingTable:
    """Synthetic rows as wide as the catalogue. The first two columns predict fraud, the others are noise."""
    return synthetic_table(width=len(small_world.engine().plan.names), **changed)


@pytest.fixture(scope="module")
def quick_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a reference, of the small world. Do not change it."""
    folder = tmp_path_factory.mktemp("quick") / "bundle"
    train(small_world.table(), folder)
    return folder


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains as on a machine without a C compiler, in a third of the time. No digest depends on the library."""
    monkeypatch.setattr("paywarden.models.training.training.compiler_name", lambda: None)


def test_the_same_data_and_settings_give_the_same_bundle(
    quick_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read_manifest(quick_bundle)
    # Train again on another day: no file may contain the time.
    monkeypatch.setattr("time.time", lambda: 2e9)
    second = train(small_world.table(), tmp_path / "b")
    assert first.digest == second.digest
    assert REFERENCE in first.files
    for name in (*first.files, MANIFEST):
        assert (quick_bundle / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def harmless_table(seed: int, rows: int = 6000) -> TrainingTable:
    """Rows with 1 % of easily found frauds: a model gives most of the others one of few margins."""
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(rows, len(small_world.engine().plan.names))).astype(np.float32)
    is_fraud = ((vectors[:, 0] > 2.2) & (vectors[:, 1] > -1)) ^ (random.random(rows) < 0.001)
    plain = synthetic_table(rows=rows)
    time_ms = WINDOW.first * DAY_MS + np.arange(rows) * ((WINDOW.last - WINDOW.first + 1) * DAY_MS // rows)
    nothing = np.full(rows, None, dtype=object)
    segments = TableSegments(time_ms, (nothing, nothing, nothing))
    return replace(plain, vectors=vectors, label=is_fraud.astype(np.int64), segments=segments)


@pytest.mark.usefixtures("without_library")
@pytest.mark.parametrize("cascade", [False, True])
def test_scores_of_later_days_lie_where_the_reference_expects_them(tmp_path: Path, cascade: bool) -> None:
    settings = replace(QUICK, trees=60, folds=3, early_stopping_rounds=0, cascade=cascade, cascade_trees=20)
    settings = replace(settings, cascade_disagreement_max=0.05)
    bundle = tmp_path / "bundle"
    train_bundle(harmless_table(1), WINDOW, bundle, engine=small_world.engine(), settings=settings)
    reference = read_reference(bundle / REFERENCE)
    loaded = load_bundle(bundle, catalogue_digest=small_world.engine().plan.digest)
    for seed in (1, 2):
        # Also in its own window, where out-of-fold scores lay in other bins: those of models of fewer days.
        margins = loaded.predictor.margins(harmless_table(seed).vectors)
        scores = calibrated(margins, loaded.manifest.calibration_slope, loaded.manifest.calibration_intercept)
        places = np.searchsorted(reference.binning.score_edges, scores, side="right")
        now, then = np.bincount(places, minlength=reference.binning.score_bins), reference.counts.scores[0]
        assert psi(then, now) < 0.1
        assert outside(then, now) < 0.05


@pytest.mark.usefixtures("without_library")
def test_the_number_of_threads_changes_no_byte_of_a_bundle(tmp_path: Path) -> None:
    settings = replace(QUICK, trees=30, early_stopping_rounds=5, search_budget=3, bagging_fraction=0.7, seed=4)
    table = wide_table()
    first = train_bundle(table, WINDOW, tmp_path / "a", engine=small_world.engine(), settings=settings)
    other = train_bundle(
        table, WINDOW, tmp_path / "b", engine=small_world.engine(), settings=replace(settings, threads=3)
    )
    assert len(first.validation["tried"]) == 3
    assert first.digest == other.digest
    assert (tmp_path / "a" / MODEL_TEXT).read_bytes() == (tmp_path / "b" / MODEL_TEXT).read_bytes()


@pytest.mark.usefixtures("without_library")
def test_a_correction_that_came_too_late_changes_no_byte_of_a_bundle(quick_bundle: Path, tmp_path: Path) -> None:
    payments, outcomes = small_world.tables()
    known_by_ms = (TRAINING_DAYS.last + 1 + small_world.LABEL_DELAY_DAYS) * DAY_MS
    in_time = outcomes.filter(pc.less_equal(outcomes["outcome_time_ms"], known_by_ms))
    taken_back = pa.table(
        {
            "payment_id": in_time["payment_id"],
            "outcome_time_ms": pa.array([known_by_ms + 1] * len(in_time), pa.int64()),
            "label": pa.array(["genuine"] * len(in_time), in_time["label"].type),
            "source": pa.nulls(len(in_time), in_time["source"].type),
        }
    )
    corrected = training_table(
        history_of_tables(payments, pa.concat_tables([in_time, taken_back.select(in_time.column_names)])),
        TRAINING_DAYS,
        engine=small_world.engine(),
        rates=small_world.rates(),
        labels=LabelRules(small_world.LABEL_DELAY_DAYS),
    )
    assert train(corrected, tmp_path / "a").digest == read_manifest(quick_bundle).digest


@pytest.mark.usefixtures("without_library")
def test_the_number_of_trees_found_on_the_held_out_days_is_grown_on_all(tmp_path: Path) -> None:
    settings = replace(QUICK, trees=60, learning_rate=0.3, early_stopping_rounds=10)
    bundle = tmp_path / "bundle"
    manifest = train_bundle(wide_table(), WINDOW, bundle, engine=small_world.engine(), settings=settings)
    (fold,) = manifest.validation["tried"][0]["folds"]
    assert manifest.parameters["trees"] == fold["trees"] < 60
    assert (bundle / MODEL_TEXT).read_text(encoding="utf-8").count("\nTree=") == fold["trees"]
    assert manifest.training_payments == len(wide_table().label)


@pytest.mark.parametrize("share", [1.0, 0.1])
def test_the_mean_score_of_new_rows_is_within_a_tenth_of_their_fraud_share(tmp_path: Path, share: float) -> None:
    """With any share of the genuine rows: each counts as often as the payments that it stands for."""
    table, other = wide_table(rows=20_000), wide_table(rows=40_000, seed=1)
    sample = GenuineSample(share, 0, int(table.day[-1]))
    ids = pa.array([str(row) for row in range(len(table.label))])
    taken = sample.takes(ids, table.label, table.day)
    table = TrainingTable(table.vectors[taken], table.label[taken], table.day[taken])
    if share < 1.0:
        assert len(table.label) < 0.4 * 20_000
        table = replace(table, weight=sample.weights(table.label, table.day), sample=sample)
    settings = replace(QUICK, trees=30)
    manifest = train_bundle(table, WINDOW, tmp_path / "b", engine=small_world.engine(), settings=settings)
    bundle = load_bundle(tmp_path / "b", catalogue_digest=small_world.engine().plan.digest)
    assert bundle.score(other.vectors).mean() == pytest.approx(other.label.mean(), rel=0.1)
    assert manifest.parameters["genuine_sample_share"] == share
    assert (manifest.evidence["sampled"] is None) == (share == 1.0)


@pytest.mark.usefixtures("without_library")
def test_no_tree_asks_for_a_clock_or_for_what_is_left_out(tmp_path: Path) -> None:
    """The first column tells frauds, but its setting leaves it out. The third grows with the data."""
    table, names = wide_table(rows=3000), small_world.engine().plan.names
    table.vectors[:, 2] = np.arange(3000) + 500 * table.label
    settings = replace(QUICK, trees=10, leave_out=(names[0],))
    manifest = train_bundle(table, WINDOW, tmp_path / "b", engine=small_world.engine(), settings=settings)
    assert manifest.parameters["leave_out"] == [names[0], names[2]]
    assert (manifest.importance_split[0], manifest.importance_split[2]) == (0, 0)
    assert manifest.most_important(1)[0][0] == names[1]
    assert [feature["name"] for feature in manifest.evidence["drifting"]] == [names[2]]


def test_a_bundle_with_directions_passes_the_gate_and_keeps_them(tmp_path: Path) -> None:
    table, names = wide_table(), small_world.engine().plan.names
    settings = replace(QUICK, trees=30, monotone={names[2]: -1})
    train_bundle(table, WINDOW, tmp_path / "b", engine=small_world.engine(), settings=settings)
    bundle = load_bundle(tmp_path / "b", catalogue_digest=small_world.engine().plan.digest)
    rows = np.repeat(table.vectors[:50], 100, axis=0)
    rows[:, 2] = np.tile(np.linspace(-4, 4, 100, dtype=np.float32), 50)
    assert np.diff(bundle.score(rows).reshape(50, 100)).max() <= 0


def test_a_direction_for_an_unknown_feature_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(
        Misconfigured, match=r"monotone: there is no feature 'card_count_1hr'; did you mean card_count_1h\?"
    ):
        train(small_world.table(), tmp_path / "b", replace(QUICK, monotone={"card_count_1hr": 1}))


@pytest.mark.usefixtures("without_library")
def test_a_block_of_days_with_a_handful_of_payments_is_no_bug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Every 600th row says how a model scores what it has seen. The middle block has 8.
    monkeypatch.setattr(training, "_SEEN_ROWS_MAX", 10)
    table = harmless_table(1)
    day = np.full(len(table.day), WINDOW.first)
    day[3001:3009], day[3009:] = WINDOW.first + 1, WINDOW.last
    settings = replace(QUICK, folds=3, early_stopping_rounds=0)
    train_bundle(replace(table, day=day), WINDOW, tmp_path / "b", engine=small_world.engine(), settings=settings)
    assert read_reference(tmp_path / "b" / REFERENCE).counts.scores[0].sum() == len(table.day)


def test_a_window_without_fraud_is_refused(tmp_path: Path) -> None:
    table = small_world.table()
    none = TrainingTable(table.vectors, np.zeros_like(table.label), table.day)
    with pytest.raises(Misconfigured, match=f"has 0 frauds in {len(table.label)} payments"):
        train(none, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_labels_that_no_feature_can_tell_are_refused(tmp_path: Path) -> None:
    table = small_world.table()
    blind = TrainingTable(np.zeros_like(table.vectors), table.label, table.day)
    with pytest.raises(Misconfigured, match="no better than chance"):
        train(blind, tmp_path / "bundle")


@pytest.mark.usefixtures("without_library")
def test_a_window_of_one_day_is_cut_by_rows(tmp_path: Path) -> None:
    table = small_world.table()
    one_day = TrainingTable(table.vectors, table.label, np.full_like(table.day, 5))
    assert train(one_day, tmp_path / "bundle", replace(QUICK, folds=3, trees=10)).metrics["auc_roc"] > 0.5


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"folds": 1}, r"training\.folds"),
        ({"trees": 0}, r"training\.trees"),
        ({"decline_share": 0.2}, r"training\.decline_share"),
        ({"decline_share": 0.0}, r"training\.decline_share"),
        ({"review_share": 1.0}, r"training\.decline_share"),
        ({"genuine_sample_share": 0.0}, r"training\.genuine_sample_share"),
        ({"genuine_sample_share": 1.1}, r"training\.genuine_sample_share"),
        ({"validation_days": -1}, r"training\.validation_days"),
        ({"validation_folds": 0}, r"training\.validation_folds"),
        ({"early_stopping_rounds": -1}, r"training\.early_stopping_rounds"),
        ({"search_budget": -1}, r"training\.search_budget"),
        ({"seed": -1}, r"training\.seed"),
        ({"label_delay_days": -1}, r"training\.label_delay_days"),
        ({"monotone": {"card_count_1h": 2}}, r"training\.monotone: wanted 1 or -1 for card_count_1h, got 2"),
        ({"max_bin": 0}, "max_bin"),
        ({"leaves": 1}, "num_leaves"),
        ({"feature_fraction": 0.0}, "feature_fraction"),
        ({"bagging_fraction": 1.5}, "bagging_fraction"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_line(tmp_path: Path, changed: dict[str, Any], named: str) -> None:
    with pytest.raises(Misconfigured, match=named) as caught:
        train(small_world.table(), tmp_path / "bundle", replace(QUICK, **changed))
    assert "\n" not in str(caught.value)


# The destination of the bundle


def test_a_bundle_replaces_the_one_before_it_and_scores_with_the_new_model(tmp_path: Path) -> None:
    destination = tmp_path / "bundle"
    digest, rows = small_world.engine().plan.digest, small_world.table().vectors[:100]
    train(plain_table(), destination)
    before = load_bundle(destination, catalogue_digest=digest).score(rows)
    manifest = train(plain_table(), destination, replace(QUICK, trees=6))
    loaded = load_bundle(destination, catalogue_digest=digest)
    assert loaded.manifest == manifest
    assert not np.array_equal(loaded.score(rows), before)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_folder_that_holds_something_else_is_not_replaced(tmp_path: Path) -> None:
    """`--out .` once deleted the content of the working directory."""
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(Misconfigured, match="holds something that is no bundle"):
        train(plain_table(), tmp_path)
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "years of work"


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bundle").write_text("", encoding="utf-8")
    with pytest.raises(Misconfigured, match="is a file"):
        train(plain_table(), tmp_path / "bundle")
    with pytest.raises(Misconfigured, match="cannot write a bundle to"):
        train(plain_table(), tmp_path / "bundle" / "deeper")


def test_a_model_that_fails_the_parity_gate_leaves_the_old_bundle_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = tmp_path / "bundle"
    old = train(plain_table(), destination)

    class Rounding(GtilPredictor):
        def margins(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
            rounded: NDArray[np.float64] = np.nextafter(super().margins(vectors), 0.0)
            return rounded

    monkeypatch.setattr(training, "GtilPredictor", Rounding)
    with pytest.raises(BundleRefused, match=r"the GTIL scores \d+ of \d+ rows differently from LightGBM"):
        train(plain_table(), destination, replace(QUICK, trees=5))
    assert json.loads((destination / MANIFEST).read_text(encoding="utf-8"))["model_version"] == old.model_version
