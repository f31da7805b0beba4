"""Training rows: which payments their vectors may use, and which labels are known at which time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from paywarden.features.history.history import History, history_of_tables
from paywarden.features.history.staleness import Staleness
from paywarden.models.metrics.evaluation import Days
from paywarden.models.metrics.labels import LabelCounts
from paywarden.models.training.table import LabelRules, TrainingTable, require_both_kinds, training_table, window_labels
from paywarden.models.training.training_settings import TrainingSettings
from paywarden.schemas.errors import Misconfigured
from tests.worlds.small import small_world
from tests.worlds.small.small_world import DAY_MS, TRAINING_DAYS

# 2024-01-01; days are counted from it.
FIRST_DAY = 19_723


def table_of(
    history: History, window: Days, delay: int = 7, *, unknown_labels: str = "genuine", weight_max: float = 0.0
) -> TrainingTable:
    return training_table(
        history,
        window,
        engine=small_world.engine(),
        rates=small_world.rates(),
        labels=LabelRules(delay, unknown_labels, weight_max),
    )


def day_ms(day: int) -> int:
    return (FIRST_DAY + day) * DAY_MS


def days(first: int, last: int) -> Days:
    return Days(FIRST_DAY + first, FIRST_DAY + last)


def test_rows_of_stale_profiles_lack_what_came_last() -> None:
    history = history_with_outcomes([])
    window = days(10, 11)
    column = small_world.engine().plan.names.index("card_count_1d")
    counts = {}
    for lag in ("0", "1s"):
        table = training_table(
            history,
            window,
            engine=small_world.engine(),
            rates=small_world.rates(),
            labels=LabelRules(7),
            staleness=Staleness.read(lag),
        )
        counts[lag] = table.vectors[:, column].tolist()
    assert counts == {"0": [0, 1, 2], "1s": [0, 0, 2]}


def test_a_lag_is_stored_with_the_model() -> None:
    assert TrainingSettings().of_the_model()["profile_lag"] == "0"
    assert TrainingSettings(profile_lag="1s").of_the_model()["profile_lag"] == "1s"


def history_with_outcomes(outcomes: list[tuple[int, int, str]]) -> History:
    """Two payments on day 10 and one on day 11; outcomes are (payment, time ms, label)."""
    times = [day_ms(10) + 5, day_ms(10) + 6, day_ms(11)]
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


def test_labels_that_arrive_after_the_window_and_the_delay_are_not_used() -> None:
    known_by_ms = day_ms(10 + 1 + 7)
    history = history_with_outcomes([(0, known_by_ms, "fraud"), (1, known_by_ms + 1, "fraud")])
    assert table_of(history, days(10, 10)).label.tolist() == [1, 0]


def test_a_correction_counts_if_it_arrives_in_time() -> None:
    known_by_ms = day_ms(10 + 1 + 7)
    outcomes = [(0, day_ms(12), "fraud"), (1, day_ms(12), "fraud")]
    corrections = [(0, known_by_ms, "genuine"), (1, known_by_ms + 1, "genuine")]
    history = history_with_outcomes(outcomes + corrections)
    assert table_of(history, days(10, 10)).label.tolist() == [0, 1]


def test_features_know_nothing_that_came_after_the_window() -> None:
    """Rows are the same whether the history continues after the window or not."""
    payments, outcomes = small_world.tables()
    end_ms = (TRAINING_DAYS.last + 1) * DAY_MS
    count = int((small_world.history().event_time_ms < end_ms).sum())
    known = outcomes.filter(pa.compute.less(outcomes["outcome_time_ms"], end_ms))
    cut = table_of(history_of_tables(payments.slice(0, count), known), TRAINING_DAYS)
    assert cut.vectors.tobytes() == small_world.table().vectors.tobytes()


def test_an_empty_window_is_refused_with_its_days() -> None:
    with pytest.raises(Misconfigured, match="there is no payment from 2024-01-13 to 2024-01-14"):
        table_of(history_with_outcomes([]), days(12, 13))


def test_a_window_outside_the_data_is_refused_with_the_days_there_are() -> None:
    with pytest.raises(Misconfigured, match="the data is from 2024-01-11 to 2024-01-12"):
        window_labels(history_with_outcomes([]), days(3, 9), 7)


def test_data_without_a_payment_is_refused() -> None:
    payments, outcomes = small_world.tables()
    nothing = history_of_tables(payments.slice(0, 0), outcomes.slice(0, 0))
    with pytest.raises(Misconfigured, match="the data holds none at all"):
        table_of(nothing, TRAINING_DAYS)


def test_a_table_gives_the_labels_known_on_an_earlier_day() -> None:
    said = [(0, day_ms(12), "fraud"), (1, day_ms(12) + 1, "fraud"), (0, day_ms(14), "genuine")]
    table = table_of(history_with_outcomes(said), days(10, 11))
    assert table.label_known_by(day_ms(12) - 1).tolist() == [0, 0, 0]
    assert table.label_known_by(day_ms(12)).tolist() == [1, 0, 0]
    assert table.label_known_by(day_ms(14) - 1).tolist() == [1, 1, 0]
    assert table.label_known_by(day_ms(14)).tolist() == [0, 1, 0] == table.label.tolist()


def test_the_outcomes_of_other_days_are_not_in_a_table() -> None:
    history = history_with_outcomes([(0, day_ms(12), "fraud"), (2, day_ms(12), "fraud")])
    assert table_of(history, days(11, 11)).label_known_by(day_ms(13)).tolist() == [1]
    assert table_of(history, days(10, 10)).label_known_by(day_ms(13)).tolist() == [1, 0]


@pytest.mark.parametrize("frauds", [0, 1, 5])
def test_a_window_without_frauds_or_without_anything_else_is_refused(frauds: int) -> None:
    label = np.zeros(5, dtype=np.int64)
    label[:frauds] = 1
    with pytest.raises(Misconfigured, match=f"the training window has {frauds} frauds in 5 payments"):
        require_both_kinds(label)


def test_payments_without_a_known_label_are_left_out_with_their_vectors() -> None:
    """The second of three payments has no outcome. Most have one, so with `auto` its label is not known."""
    history = history_with_outcomes([(0, day_ms(12), "fraud"), (2, day_ms(12), "genuine")])
    whole, cut = (table_of(history, days(10, 11), unknown_labels=kind) for kind in ("genuine", "auto"))
    assert cut.row is not None
    assert cut.row.tolist() == [0, 2]
    assert cut.label.tolist() == [1, 0]
    assert cut.vectors.tobytes() == whole.vectors[[0, 2]].tobytes()
    assert cut.label_known_by(day_ms(12)).tolist() == [1, 0]
    assert cut.label_known_by(day_ms(12) - 1).tolist() == [0, 0]
    assert cut.label_counts == LabelCounts(fraud=1, genuine=1, taken_for_genuine=0, left_out=1)
    assert whole.label_counts == LabelCounts(fraud=1, genuine=1, taken_for_genuine=1, left_out=0)


def test_a_payment_that_is_stated_as_unknown_is_no_row() -> None:
    """Only a fraud is reported: without the statement the two others count as genuine."""
    history = history_with_outcomes([(0, day_ms(12), "fraud")])
    assert table_of(history, days(10, 11), unknown_labels="auto").label.tolist() == [1, 0, 0]
    history = replace(history, never_labelled=np.array([True, True, True]))
    table = table_of(history, days(10, 11), unknown_labels="auto")
    assert table.label.tolist() == [1]
    assert table.label_counts == LabelCounts(fraud=1, genuine=0, taken_for_genuine=0, left_out=2)


def test_the_delay_of_a_fraud_is_that_of_its_first_report() -> None:
    said = [(0, day_ms(12), "fraud"), (0, day_ms(13), "fraud"), (2, day_ms(14), "fraud"), (1, day_ms(12), "genuine")]
    table = table_of(history_with_outcomes(sorted(said, key=lambda outcome: outcome[1])), days(10, 11))
    history = history_with_outcomes([])
    wanted = sorted([day_ms(12) - int(history.event_time_ms[0]), day_ms(14) - int(history.event_time_ms[2])])
    assert table.fraud_delay_ms is not None
    assert table.fraud_delay_ms.tolist() == wanted


def test_a_row_weighs_the_inverse_of_its_propensity_and_1_on_average() -> None:
    """The second payment is not known and left out: its weight counts for nothing."""
    history = history_with_outcomes([(0, day_ms(12), "fraud"), (2, day_ms(12), "genuine")])
    history = replace(history, propensity=np.array([0.5, 0.001, 0.01]))
    table = table_of(history, days(10, 11), unknown_labels="auto", weight_max=6.0)
    assert table.weight is not None
    assert table.weight.tolist() == [0.5, 1.5]
    assert table.weight_counts is not None
    assert (table.weight_counts.payments, table.weight_counts.clipped) == (2, 1)
    ignored = table_of(history, days(10, 11), unknown_labels="auto")
    assert ignored.weight is None
    assert ignored.vectors.tobytes() == table.vectors.tobytes()


def test_a_sample_has_all_frauds_and_whole_newest_days(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paywarden.models.training.sampling.WHOLE_DAYS_MAX", 2)
    whole = small_world.table()
    tables = [
        training_table(
            small_world.history(),
            TRAINING_DAYS,
            engine=small_world.engine(),
            rates=small_world.rates(),
            labels=LabelRules(small_world.LABEL_DELAY_DAYS, sample_share=0.3, seed=seed),
        )
        for seed in (0, 1)
    ]
    rows = [set(table.row.tolist()) for table in tables if table.row is not None]
    assert whole.row is not None
    for table, mine in zip(tables, rows, strict=True):
        assert mine >= set(whole.row[(whole.label == 1) | (whole.day >= TRAINING_DAYS.last - 1)].tolist())
        before = (table.label == 0) & ~table.whole
        assert before.sum() == pytest.approx(
            0.3 * ((whole.label == 0) & (whole.day < TRAINING_DAYS.last - 1)).sum(), rel=0.1
        )
        assert table.weight is not None
        assert np.unique(table.weight[before]).tolist() == [1 / 0.3]
        assert np.unique(table.weight[~before]).tolist() == [1.0]
    assert rows[0] != rows[1]
