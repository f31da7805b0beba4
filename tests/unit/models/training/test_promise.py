"""The promise on later days: what it is made of, what it may know, when there is none, and that it holds."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from paywarden.models.metrics.evaluation import DAY_MS, Days, date_of_day
from paywarden.models.training import promise
from paywarden.models.training.promise import PastWindow, Promise, make_promise, promise_of
from paywarden.models.training.table import TableOutcomes, TrainingTable
from paywarden.models.training.training_settings import TrainingSettings
from tests.worlds.small.forward_worlds import KINDS, forward_month

WINDOW, NAMES, DELAY = Days(100, 179), ("tells", "noise"), 7
SETTINGS = TrainingSettings(threads=1, label_delay_days=DELAY, min_rows_in_leaf=10)
ROWS = 16_000


def made(*, log_odds: float = -3.6, known_after_days: float = 2.0) -> TrainingTable:
    """80 days of 200 payments, of which about 4 % are frauds. Every label becomes known after the same time."""
    random = np.random.default_rng(5)
    vectors = random.normal(size=(ROWS, 2)).astype(np.float32)
    label = (random.random(ROWS) < 1 / (1 + np.exp(-log_odds - vectors[:, 0]))).astype(np.int64)
    day = WINDOW.first + np.arange(ROWS) // 200
    known_ms = day * DAY_MS + round(known_after_days * DAY_MS)
    end_ms = np.full(1, (WINDOW.last + 1 + DELAY) * DAY_MS)
    times = np.concatenate((known_ms, end_ms))
    outcomes = TableOutcomes(np.append(np.arange(ROWS), ROWS - 1), times, np.append(label, label[-1:]) == 1)
    return TrainingTable(vectors, label, day, outcomes)


@pytest.fixture(scope="module")
def table() -> TrainingTable:
    return made()


@pytest.fixture(scope="module")
def found(table: TrainingTable) -> Promise:
    return make_promise(table, WINDOW, SETTINGS, NAMES)


def windows(*ratios: float, frauds: int = 120) -> tuple[PastWindow, ...]:
    return tuple(PastWindow("", "", 10_000, frauds, 0.01 * ratio, 0.01) for ratio in ratios)


@pytest.mark.parametrize("kind", KINDS)
def test_it_holds_in_a_month_ahead(kind: str) -> None:
    """`python -m perf.promise` measures how often."""
    found, ratio = forward_month(kind, 2)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= ratio <= found.high < 10 * found.low


def test_five_windows_end_the_training_days_and_the_promise_begins_when_labels_are_known(found: Promise) -> None:
    assert [one.first_day for one in found.windows] == [date_of_day(day) for day in (130, 140, 150, 160, 170)]
    assert found.windows[-1].last_day == date_of_day(WINDOW.last)
    assert found.first_day == date_of_day(WINDOW.last + 1 + DELAY)
    assert found.last_day == date_of_day(WINDOW.last + DELAY + 10)
    assert found.low is not None
    assert found.high is not None
    assert 0.4 < found.low < 1.0 < found.high < 2.0


def test_it_is_students_interval_of_one_more_window() -> None:
    low, high = promise._interval(windows(0.5, 1.0, 2.0))
    assert (low, high) == pytest.approx((1 / high, math.exp(4.302653 * math.log(2) * math.sqrt(4 / 3))), rel=1e-6)


def test_windows_that_agree_by_chance_promise_no_more_than_their_frauds_allow() -> None:
    low, high = promise._interval(windows(1.0, 1.0, 1.0, 1.0, 1.0, frauds=77))
    assert high / low == pytest.approx(2.0, rel=1e-3)


def test_what_became_known_later_moves_no_score(table: TrainingTable, found: Promise) -> None:
    """The labels of the newest window and of the delay before it turn into fraud when the window has begun."""
    assert table.outcomes is not None
    origin = WINDOW.last - 9
    later = np.flatnonzero(table.outcomes.time_ms > origin * DAY_MS)
    fraud = table.outcomes.fraud.copy()
    fraud[later] = True
    label = np.where(table.day >= origin, 1, table.label)
    spoilt = replace(table, label=label, outcomes=replace(table.outcomes, fraud=fraud))
    newest = make_promise(spoilt, WINDOW, SETTINGS, NAMES).windows[-1]
    assert newest.fraud_share == 1.0
    assert newest.mean_score == found.windows[-1].mean_score


def test_windows_end_where_labels_can_have_come(table: TrainingTable) -> None:
    """The data ends with the training days: labels of the last week are not there yet."""
    assert table.outcomes is not None
    count = int(np.searchsorted(table.outcomes.time_ms, WINDOW.last * DAY_MS, side="right"))
    known = TableOutcomes(table.outcomes.row[:count], table.outcomes.time_ms[:count], table.outcomes.fraud[:count])
    cut = make_promise(replace(table, outcomes=known), WINDOW, SETTINGS, NAMES)
    assert cut.windows[-1].last_day == date_of_day(WINDOW.last - DELAY)
    assert cut.first_day == date_of_day(WINDOW.last + 1)


def test_rows_count_as_often_as_the_payments_they_stand_for(table: TrainingTable, found: Promise) -> None:
    kept = (table.label == 1) | (np.arange(ROWS) % 2 == 0)
    weight = np.where(table.label == 1, 1.0, 2.0)[kept]
    sampled = TrainingTable(table.vectors[kept], table.label[kept], table.day[kept], weight=weight)
    half = make_promise(sampled, WINDOW, SETTINGS, NAMES)
    for one, whole in zip(half.windows, found.windows, strict=True):
        assert one.fraud_share == pytest.approx(whole.fraud_share, rel=0.05)
        assert one.mean_score == pytest.approx(whole.mean_score, rel=0.15)


def test_a_past_that_says_too_little_promises_nothing_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is grown for it."""
    monkeypatch.delattr(promise, "grow")
    rare = make_promise(made(log_odds=-5.0), WINDOW, SETTINGS, NAMES)
    assert (rare.low, rare.high) == (None, None)
    assert rare.in_words() == [f"nothing is promised from 1970-07-07 to 1970-07-16: {rare.not_promised}"]
    assert "windows of 10 days one has " in rare.not_promised
    assert rare.not_promised.endswith(" frauds, and 20 are needed")
    short = make_promise(made(), Days(WINDOW.last - 11, WINDOW.last), SETTINGS, NAMES)
    assert short.not_promised.endswith(" have a past of 2 days with 40 known frauds, and 3 are needed")


def test_a_prior_shift_is_named_as_one() -> None:
    # Fraud halves, and the scores of earlier models do not.
    shifted = Promise("a", "b", 0.3, 1.5, windows(1.0, 1.05, 0.95, 1.0, 0.5))
    assert shifted.in_words()[1].startswith("prior shift: the fraud rate fell from 1.000% to 0.500% from ")
    rising = Promise("a", "b", 0.3, 1.5, windows(1.0, 1.05, 0.95, 1.0, 1.9))
    assert "the fraud rate rose from 1.000% to 1.900%" in rising.in_words()[1]
    # Fraud fell, as the scores said: no shift. Nor where chance explains it, or there is little to compare with.
    foreseen = replace(shifted.windows[-1], mean_score=0.005)
    for calm in ((*shifted.windows[:4], foreseen), windows(1.0, 1.05, 0.95, 1.0, 0.8), windows(1.0, 1.0, 0.3)):
        assert len(replace(shifted, windows=calm).in_words()) == 1


def test_a_manifest_keeps_it(found: Promise) -> None:
    read = json.loads(json.dumps(found.record()))
    assert read == found.record()
    assert promise_of(read) == found
