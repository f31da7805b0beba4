"""Worlds in which fraud changes from week to week, as tables of rows: for the promise on later days.

Fraud comes in series of a day: a stolen card is used about twice. Its level wanders from week to week. Frauds become
known after 4 days on average, and 3 % of them never. Seeds give other worlds of the same kind.

    unknown     two in five genuine payments have no label, and are no rows
    clock       a feature grows with the age of the data, and tells frauds apart while the model can still know
    shift       on a day in the last half, fraud becomes half as frequent, or twice, at every score
    categories  a category of 166 values, whose shares of payments wander
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from paywarden.models.bundle.bundle import calibrated
from paywarden.models.metrics.evaluation import DAY_MS, Days
from paywarden.models.training.boosting import binned, grow
from paywarden.models.training.calibration import fit_calibration
from paywarden.models.training.promise import Promise, make_promise
from paywarden.models.training.table import TableOutcomes, TrainingTable, blocks_of
from paywarden.models.training.training_settings import TrainingSettings

KINDS = ("unknown", "clock", "shift", "categories")
DAYS = Days(20_000, 20_239)
DELAY_DAYS, MONTH_DAYS = 7, 30
PAYMENTS_A_DAY = 250
NAMES = ("tells", "hints", "noise", "code", "age")
_CODES, _SERIES = 166, 2.0
_SETTINGS = TrainingSettings(trees=50, learning_rate=0.1, max_bin=255, label_delay_days=DELAY_DAYS, threads=1)


def forward_month(kind: str, seed: int, *, payments_a_day: int = PAYMENTS_A_DAY) -> tuple[Promise, float]:
    """Return the promise of a training, and the fraud rate of the month to come as a multiple of the mean score.

    The model and its calibration are made as in models/training/training.py: a Platt scaling of out-of-fold margins.
    """
    table, month = world(kind, seed, payments_a_day)
    leave_out = ("age",) if kind == "clock" else ()
    settings = replace(_SETTINGS, leave_out=leave_out, categorical=("code",) if kind == "categories" else ())
    fold, margins = blocks_of(table.day, settings.folds), np.empty(len(table.label))
    for number in range(settings.folds):
        rest, mine = fold != number, fold == number
        model = grow(binned(table.vectors[rest], table.label[rest], settings, NAMES), settings, NAMES)
        margins[mine] = model.predict(table.vectors[mine], raw_score=True)
    slope, intercept = fit_calibration(margins, table.label)
    model = grow(binned(table.vectors, table.label, settings, NAMES), settings, NAMES)
    score = calibrated(model.predict(month.vectors, raw_score=True), slope, intercept)
    return make_promise(table, DAYS, settings, NAMES), float(month.label.mean() / score.mean())


def world(kind: str, seed: int, payments_a_day: int) -> tuple[TrainingTable, TrainingTable]:
    """Return the table of DAYS, with its outcomes, and that of the month which begins DELAY_DAYS after it."""
    random = np.random.default_rng([KINDS.index(kind), seed])
    day_count = DAYS.last - DAYS.first + 1 + DELAY_DAYS + MONTH_DAYS
    age = np.repeat(np.arange(day_count), payments_a_day)
    rows = len(age)
    vectors = random.normal(size=(rows, len(NAMES))).astype(np.float32)
    # By week: an autoregressive level of log-odds, with a standard deviation of 0.15 in the long run.
    level = np.zeros(day_count // 7 + 1)
    for week in range(1, len(level)):
        level[week] = 0.8 * level[week - 1] + random.normal(0.0, 0.09)
    log_odds = -5.6 + 1.2 * vectors[:, 0] + 0.5 * vectors[:, 1] + level[age // 7]
    vectors[:, 3] = random.integers(0, _CODES, rows)
    if kind == "categories":
        effect, trend = random.normal(0.0, 0.8, _CODES), random.normal(0.0, 1.0, _CODES)
        share = np.exp(trend * np.linspace(-0.5, 0.5, day_count)[:, None])
        for day in range(day_count):
            of_day = random.choice(_CODES, payments_a_day, p=share[day] / share[day].sum())
            vectors[day * payments_a_day : (day + 1) * payments_a_day, 3] = of_day
        log_odds += effect[vectors[:, 3].astype(int)]
    vectors[:, 4] = age + random.exponential(2.0, rows) if kind == "clock" else random.normal(size=rows)
    if kind == "clock":
        log_odds += 0.15 * np.sin(age / 20.0)
    if kind == "shift":
        turn = random.integers((DAYS.last - DAYS.first) // 2, DAYS.last - DAYS.first)
        log_odds += np.where(age >= turn, random.choice((-1.0, 1.0)) * np.log(2.0), 0.0)
    begins = random.random(rows) < 1.0 / (1.0 + np.exp(-log_odds))
    # Each fraud begins a series: the next payments of the day are frauds of the same card, and look alike.
    label = np.zeros(rows, dtype=np.int64)
    for row, more in zip(np.flatnonzero(begins), random.geometric(1.0 / _SERIES, int(begins.sum())), strict=True):
        series = slice(row, min(row + more, (age[row] + 1) * payments_a_day))
        label[series], vectors[series, :3] = 1, vectors[row, :3]
    known_ms = (DAYS.first + age) * DAY_MS + (random.exponential(4.0, rows) * DAY_MS).astype(np.int64)
    label[random.random(rows) < 0.03] = 0
    kept = (label == 1) | (random.random(rows) < 0.6) if kind == "unknown" else np.ones(rows, dtype=np.bool_)
    first_ahead = DAYS.last - DAYS.first + 1 + DELAY_DAYS
    return (
        _table(vectors, label, age, known_ms, kept & (age <= DAYS.last - DAYS.first)),
        _table(vectors, label, age, known_ms, kept & (age >= first_ahead)),
    )


def _table(
    vectors: np.ndarray, label: np.ndarray, age: np.ndarray, known_ms: np.ndarray, part: np.ndarray
) -> TrainingTable:
    """Return some rows, with labels as known DELAY_DAYS after the last of them."""
    until_ms = (DAYS.first + int(age[part].max()) + 1 + DELAY_DAYS) * DAY_MS
    is_known = known_ms[part] <= until_ms
    known = np.where(is_known, label[part], 0)
    order = np.flatnonzero(is_known)[np.argsort(known_ms[part][is_known], kind="stable")]
    outcomes = TableOutcomes(order, known_ms[part][order], known[order] == 1)
    return TrainingTable(vectors[part], known, DAYS.first + age[part], outcomes)
