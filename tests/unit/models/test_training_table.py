"""The rows a model is trained on: what they may know, and what of the labels may be known when."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from features.history import History, history_of_tables
from models.evaluation import Days
from models.training_table import TrainingTable, require_both_kinds, training_table, window_labels
from schemas.errors import Misconfigured
from tests import small_world
from tests.small_world import DAY_MS, TRAINING_DAYS


def table_of(history: History, window: Days, delay: int = 7) -> TrainingTable:
    return training_table(
        history, window, engine=small_world.engine(), rates=small_world.rates(), label_delay_days=delay
    )


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


def test_a_window_outside_the_data_is_refused_with_the_days_there_are() -> None:
    with pytest.raises(Misconfigured, match="the data is from 1970-01-11 to 1970-01-12"):
        window_labels(history_with_outcomes([]), Days(3, 9), 7)


def test_data_without_a_payment_is_refused() -> None:
    payments, outcomes = small_world.tables()
    nothing = history_of_tables(payments.slice(0, 0), outcomes.slice(0, 0))
    with pytest.raises(Misconfigured, match="the data holds none at all"):
        table_of(nothing, TRAINING_DAYS)


def test_labels_can_be_had_without_the_vectors() -> None:
    labels = window_labels(small_world.history(), TRAINING_DAYS, small_world.LABEL_DELAY_DAYS)
    assert labels.tolist() == small_world.table().label.tolist()


def test_a_table_can_be_asked_what_was_known_on_a_day_before() -> None:
    said = [(0, 12 * DAY_MS, "fraud"), (1, 12 * DAY_MS + 1, "fraud"), (0, 14 * DAY_MS, "genuine")]
    table = table_of(history_with_outcomes(said), Days(10, 11))
    assert table.label_known_by(12 * DAY_MS - 1).tolist() == [0, 0, 0]
    assert table.label_known_by(12 * DAY_MS).tolist() == [1, 0, 0]
    assert table.label_known_by(14 * DAY_MS - 1).tolist() == [1, 1, 0]
    assert table.label_known_by(14 * DAY_MS).tolist() == [0, 1, 0] == table.label.tolist()


def test_a_table_never_knows_more_than_its_labels() -> None:
    """Outcomes that came too late for the labels are not in it, whatever time is asked for."""
    known_by_ms = (10 + 1 + 7) * DAY_MS
    history = history_with_outcomes([(0, 12 * DAY_MS, "fraud"), (0, known_by_ms + 1, "genuine")])
    assert table_of(history, Days(10, 10)).label_known_by(999 * DAY_MS).tolist() == [1, 0]


def test_the_outcomes_of_other_days_are_not_in_a_table() -> None:
    history = history_with_outcomes([(0, 12 * DAY_MS, "fraud"), (2, 12 * DAY_MS, "fraud")])
    assert table_of(history, Days(11, 11)).label_known_by(13 * DAY_MS).tolist() == [1]
    assert table_of(history, Days(10, 10)).label_known_by(13 * DAY_MS).tolist() == [1, 0]


@pytest.mark.parametrize("frauds", [0, 1, 5])
def test_a_window_without_frauds_or_without_anything_else_is_refused(frauds: int) -> None:
    label = np.zeros(5, dtype=np.int64)
    label[:frauds] = 1
    with pytest.raises(Misconfigured, match=f"the training window has {frauds} frauds in 5 payments"):
        require_both_kinds(label)
