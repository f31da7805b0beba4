"""The Python API for notebooks gives what the commands give."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from paywarden.features.history.history import write_history
from paywarden.models.analysis.analysis import Analysis, evaluate
from paywarden.models.metrics.evaluation import date_of_day
from paywarden.schemas.errors import Misconfigured
from tests.worlds.small import small_world
from tests.worlds.small.small_world import FIRST_DAY, TRAINING_DAYS

FROM, TO = date_of_day(TRAINING_DAYS.first), date_of_day(TRAINING_DAYS.last)


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return Analysis(small_world.history(), small_world.engine(), small_world.rates())


def test_features_are_those_of_training_to_the_bit(analysis: Analysis) -> None:
    table = analysis.features(FROM, TO, label_delay_days=small_world.LABEL_DELAY_DAYS)
    trained = small_world.table()
    assert table.column_names[:4] == ["payment_id", "event_time_ms", "card_id", "label"]
    vectors = np.column_stack([table[name].to_numpy() for name in analysis.engine.plan.names])
    assert vectors.astype(np.float32).tobytes() == trained.vectors.tobytes()
    assert [label == "fraud" for label in table["label"].to_pylist()] == (trained.label == 1).tolist()


def test_a_replay_and_an_evaluation_of_its_decisions_agree(analysis: Analysis) -> None:
    window = (date_of_day(FIRST_DAY + 22), date_of_day(FIRST_DAY + 27))
    replayed = analysis.replay(small_world.trained_bundle(), *window)
    decisions, champion = replayed.decisions, replayed.results.champion
    own = evaluate(
        decisions["label"],
        decisions["score"],
        event_time_ms=decisions["event_time_ms"],
        card_id=decisions["card_id"],
    )
    assert (own.payments, own.frauds) == (champion.whole.payments, champion.whole.frauds)
    assert (own.auc_roc, own.average_precision) == (champion.auc_roc, champion.average_precision)
    assert own.card_precision_at_100 == champion.card_precision_at_100
    assert own.average_precision_interval == pytest.approx(champion.average_precision_interval)
    assert champion.calibration is not None
    assert own.calibration is not None
    assert own.calibration.ratio == champion.calibration.ratio
    assert "card_count_1h" in decisions.column_names


def test_labels_may_be_texts_numbers_or_missing() -> None:
    texts = evaluate(["fraud", None, "genuine"], [0.9, 0.1, 0.2])
    numbers = evaluate([1, math.nan, 0], np.array([0.9, 0.1, 0.2]))
    assert repr(texts) == repr(numbers)
    assert (texts.payments, texts.frauds, texts.average_precision) == (2, 1, 1.0)


def test_frauds_alone_are_not_measured() -> None:
    # Labels of seven days where "genuine" takes thirty: random scores had an average precision of 1.0.
    with pytest.raises(Misconfigured, match="all 2 known labels are fraud, wanted genuine ones as well"):
        evaluate(["fraud", None, "fraud"], [0.1, 0.2, 0.3])


def test_wrong_columns_are_refused() -> None:
    with pytest.raises(Misconfigured, match="2 labels, but 1 scores"):
        evaluate([1, 0], [0.5])
    with pytest.raises(Misconfigured, match="wanted scores from 0 to 1"):
        evaluate([1], [1.5])
    with pytest.raises(Misconfigured, match="row 1: wanted fraud, genuine, 1, 0 or nothing"):
        evaluate([1, "maybe"], [0.5, 0.5])


def test_a_folder_is_opened_and_an_unknown_feature_refused(tmp_path: Path) -> None:
    payments, outcomes = small_world.tables()
    write_history(tmp_path, payments, outcomes)
    opened = Analysis.open(tmp_path)
    assert len(opened.history) == len(payments)
    with pytest.raises(Misconfigured, match="there is no feature 'x'"):
        opened.features(names=["x"])
