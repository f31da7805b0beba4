from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from features.history import History, history_of_tables
from models import training
from models.bundle import GOLDEN, MANIFEST, Manifest, load_bundle, read_manifest
from models.evaluation import Days
from models.predictor import GtilPredictor
from models.training import TrainingSettings, TrainingTable, train_bundle, training_table
from schemas.errors import BundleRefused, Misconfigured
from scoring.policy import Policy, PolicySettings
from tests import small_world
from tests.small_world import DAY_MS, SETTINGS, TRAINING_DAYS

QUICK = replace(SETTINGS, trees=3, folds=2)


def table_of(history: History, window: Days, delay: int = 7) -> TrainingTable:
    return training_table(
        history, window, engine=small_world.engine(), rates=small_world.rates(), label_delay_days=delay
    )


def train(table: TrainingTable, destination: Path, settings: TrainingSettings = QUICK) -> Manifest:
    return train_bundle(table, TRAINING_DAYS, destination, engine=small_world.engine(), settings=settings)


def part_of(table: TrainingTable, rows: slice) -> TrainingTable:
    return TrainingTable(table.vectors[rows], table.label[rows], table.day[rows])


def history_with_outcomes(outcomes: list[tuple[int, int, str]]) -> History:
    """Two payments on day 10 and one on day 11; outcomes are (payment, time ms, label)."""
    times = [10 * DAY_MS + 5, 10 * DAY_MS + 6, 11 * DAY_MS]
    payments = pa.table(
        {
            "payment_id": [f"p{number}" for number in range(3)],
            "event_time_ms": times,
            "card_id": ["c"] * 3,
            "merchant_id": ["m"] * 3,
            "amount_minor": [100] * 3,
            "currency": ["EUR"] * 3,
            **{name: pa.nulls(3, pa.string()) for name in ("device_id", "ip", "mcc", "country", "channel")},
        }
    )
    columns = {
        "payment_id": pa.array([f"p{payment}" for payment, _, _ in outcomes], pa.string()),
        "outcome_time_ms": pa.array([time_ms for _, time_ms, _ in outcomes], pa.int64()),
        "label": pa.array([label for _, _, label in outcomes], pa.string()),
        "source": pa.nulls(len(outcomes), pa.string()),
    }
    return history_of_tables(payments, pa.table(columns))


# The training table


def test_the_table_holds_the_window_and_nothing_else() -> None:
    table, history = small_world.table(), small_world.history()
    days = history.event_time_ms // DAY_MS
    assert table.vectors.shape == (int(TRAINING_DAYS.contains(days).sum()), len(small_world.engine().plan.names))
    assert table.vectors.dtype == np.float32
    assert (table.day.min(), table.day.max()) == (TRAINING_DAYS.first, TRAINING_DAYS.last)


def test_labels_that_arrive_after_the_window_and_the_delay_are_not_used() -> None:
    known_by_ms = (10 + 1 + 7) * DAY_MS
    history = history_with_outcomes([(0, known_by_ms, "fraud"), (1, known_by_ms + 1, "fraud")])
    assert table_of(history, Days(10, 10)).label.tolist() == [1, 0]


def test_a_correction_counts_if_it_arrives_in_time() -> None:
    known_by_ms = (10 + 1 + 7) * DAY_MS
    outcomes = [(0, 12 * DAY_MS, "fraud"), (1, 12 * DAY_MS, "fraud")]
    corrections = [(0, known_by_ms, "genuine"), (1, known_by_ms + 1, "genuine")]
    history = history_with_outcomes(outcomes + corrections)
    assert table_of(history, Days(10, 10)).label.tolist() == [0, 1]


def test_a_payment_without_an_outcome_counts_as_genuine() -> None:
    assert table_of(history_with_outcomes([]), Days(10, 11)).label.tolist() == [0, 0, 0]


def test_features_know_nothing_that_came_after_the_window() -> None:
    """The same rows, whether the history goes on after the window or not."""
    payments, outcomes = small_world.tables()
    end_ms = (TRAINING_DAYS.last + 1) * DAY_MS
    count = int((small_world.history().event_time_ms < end_ms).sum())
    known = outcomes.filter(pa.compute.less(outcomes["outcome_time_ms"], end_ms))
    cut = table_of(history_of_tables(payments.slice(0, count), known), TRAINING_DAYS)
    assert cut.vectors.tobytes() == small_world.table().vectors.tobytes()


def test_an_empty_window_is_refused_with_its_days() -> None:
    with pytest.raises(Misconfigured, match="there is no payment from 1970-01-13 to 1970-01-14"):
        table_of(history_with_outcomes([]), Days(12, 13))


# Training


def test_the_same_data_and_settings_give_the_same_version_and_model(tmp_path: Path) -> None:
    first, second = train(small_world.table(), tmp_path / "a"), train(small_world.table(), tmp_path / "b")
    assert first == second
    for name in first.files:
        if name != GOLDEN:  # a zip file holds the time it was written
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_other_settings_or_data_give_another_version(tmp_path: Path) -> None:
    versions = {
        train(small_world.table(), tmp_path / "a").model_version,
        train(small_world.table(), tmp_path / "b", replace(QUICK, trees=4)).model_version,
        train(small_world.table(), tmp_path / "d", replace(QUICK, feature_fraction=0.5)).model_version,
        train(small_world.table(), tmp_path / "e", replace(QUICK, bagging_fraction=0.5)).model_version,
        train(part_of(small_world.table(), slice(0, 8000)), tmp_path / "c").model_version,
    }
    assert len(versions) == 5


def test_the_manifest_says_what_the_bundle_is_of() -> None:
    manifest, plan = read_manifest(small_world.trained_bundle()), small_world.engine().plan
    assert manifest.catalogue_digest == plan.digest
    assert manifest.feature_names == list(plan.names)
    assert (manifest.train_from, manifest.train_to) == ("2024-01-03", "2024-01-20")
    assert manifest.training_payments == len(small_world.table().label)
    assert manifest.training_frauds == int(small_world.table().label.sum())
    assert manifest.parameters["trees"] == SETTINGS.trees
    assert sum(manifest.score_counts) == manifest.training_payments
    assert len(manifest.score_edges) == len(manifest.score_counts) + 1


def test_the_golden_file_holds_real_and_invented_rows() -> None:
    with np.load(small_world.trained_bundle() / GOLDEN) as golden:
        vectors, margins = golden["vectors"], golden["margins"]
    assert vectors.shape == (2 * training.GOLDEN_ROWS, len(small_world.engine().plan.names))
    assert margins.shape == (len(vectors),)
    real = {row.tobytes() for row in small_world.table().vectors}
    assert all(row.tobytes() in real for row in vectors[: training.GOLDEN_ROWS])
    assert not all(row.tobytes() in real for row in vectors[training.GOLDEN_ROWS :])
    assert len(np.unique(margins)) > 50


def test_thresholds_are_ordered_and_a_policy_takes_them() -> None:
    manifest = read_manifest(small_world.trained_bundle())
    assert 0 < manifest.review_at <= manifest.decline_at <= 1
    Policy(PolicySettings(), review_at=manifest.review_at, decline_at=manifest.decline_at)


def test_scores_are_roughly_calibrated_on_the_days_after_the_window() -> None:
    """As many frauds as the scores promise, within a factor of two: nothing finer holds for a hundred frauds."""
    after = table_of(small_world.history(), Days(TRAINING_DAYS.last + 1, TRAINING_DAYS.last + 10), delay=60)
    promised = small_world.loaded_bundle().score(after.vectors).sum()
    assert 0.5 < promised / after.label.sum() < 2


def test_high_scores_hold_more_frauds_than_low_ones() -> None:
    after = table_of(small_world.history(), Days(TRAINING_DAYS.last + 1, TRAINING_DAYS.last + 10), delay=60)
    order = np.argsort(small_world.loaded_bundle().score(after.vectors))
    tenth = len(order) // 10
    assert after.label[order[-tenth:]].mean() > 3 * after.label[order[:-tenth]].mean()


def test_a_window_without_fraud_is_refused(tmp_path: Path) -> None:
    table = small_world.table()
    none = TrainingTable(table.vectors, np.zeros_like(table.label), table.day)
    with pytest.raises(Misconfigured, match=f"has 0 frauds in {len(table.label)} payments"):
        train(none, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_window_of_nothing_but_fraud_is_refused(tmp_path: Path) -> None:
    table = small_world.table()
    only = TrainingTable(table.vectors[:50], np.ones(50, dtype=np.int64), table.day[:50])
    with pytest.raises(Misconfigured, match="has 50 frauds in 50 payments"):
        train(only, tmp_path / "bundle")


def test_labels_that_no_feature_can_tell_are_refused(tmp_path: Path) -> None:
    table = small_world.table()
    blind = TrainingTable(np.zeros_like(table.vectors), table.label, table.day)
    with pytest.raises(Misconfigured, match="no better than chance"):
        train(blind, tmp_path / "bundle")


def test_a_window_of_one_day_is_cut_by_rows(tmp_path: Path) -> None:
    table = small_world.table()
    one_day = TrainingTable(table.vectors, table.label, np.full_like(table.day, 5))
    assert train(one_day, tmp_path / "bundle", replace(QUICK, folds=3, trees=10)).metrics["auc_roc"] > 0.5


def test_more_folds_than_rows_are_no_bug(tmp_path: Path) -> None:
    rows = [*np.flatnonzero(small_world.table().label)[:2].tolist(), 0, 1]
    table = small_world.table()
    tiny = TrainingTable(table.vectors[rows], table.label[rows], np.full(4, 5))
    with pytest.raises(Misconfigured):
        train(tiny, tmp_path / "bundle", replace(QUICK, folds=10))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"folds": 1}, r"training\.folds"),
        ({"trees": 0}, r"training\.trees"),
        ({"decline_share": 0.2}, r"training\.decline_share"),
        ({"decline_share": 0.0}, r"training\.decline_share"),
        ({"review_share": 1.0}, r"training\.decline_share"),
        ({"max_bin": 0}, "max_bin"),
        ({"leaves": 1}, "num_leaves"),
        ({"feature_fraction": 0.0}, "feature_fraction"),
        ({"bagging_fraction": 1.5}, "bagging_fraction"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_line(
    tmp_path: Path, changed: dict[str, float], named: str
) -> None:
    with pytest.raises(Misconfigured, match=named) as caught:
        train(small_world.table(), tmp_path / "bundle", replace(QUICK, **changed))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


# The place of the bundle


def test_a_bundle_replaces_the_one_before_it_and_scores_with_the_new_model(tmp_path: Path) -> None:
    destination = tmp_path / "bundle"
    digest, rows = small_world.engine().plan.digest, small_world.table().vectors[:100]
    train(small_world.table(), destination)
    before = load_bundle(destination, catalogue_digest=digest).score(rows)
    manifest = train(small_world.table(), destination, replace(QUICK, trees=6))
    loaded = load_bundle(destination, catalogue_digest=digest)
    assert loaded.manifest == manifest
    assert not np.array_equal(loaded.score(rows), before)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_folder_that_holds_something_else_is_not_replaced(tmp_path: Path) -> None:
    """`--out .` once emptied the folder it was typed in."""
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(Misconfigured, match="holds something that is no bundle"):
        train(small_world.table(), tmp_path)
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "years of work"


def test_an_empty_folder_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundle").mkdir()
    train(small_world.table(), Path("bundle"))
    assert (tmp_path / "bundle" / MANIFEST).is_file()


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bundle").write_text("", encoding="utf-8")
    with pytest.raises(Misconfigured, match="is a file"):
        train(small_world.table(), tmp_path / "bundle")
    with pytest.raises(Misconfigured, match="cannot write a bundle to"):
        train(small_world.table(), tmp_path / "bundle" / "deeper")


def test_a_model_that_fails_the_parity_gate_leaves_the_old_bundle_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = tmp_path / "bundle"
    old = train(small_world.table(), destination)

    class Rounding(GtilPredictor):
        def margins(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
            rounded: NDArray[np.float64] = np.nextafter(super().margins(vectors), 0.0)
            return rounded

    monkeypatch.setattr(training, "GtilPredictor", Rounding)
    with pytest.raises(BundleRefused, match=r"the GTIL scores \d+ of \d+ rows unlike LightGBM"):
        train(small_world.table(), destination, replace(QUICK, trees=5))
    assert json.loads((destination / MANIFEST).read_text(encoding="utf-8"))["model_version"] == old.model_version
