"""The rows that a model is trained on: a window's payments with point-in-time vectors and labels.

A row's vector uses nothing that came after its payment. Its label is the last outcome known `label_delay_days` after
the window; later corrections are ignored. The setting `unknown_labels` says what a payment without an outcome by then
is: genuine, or not known and left out (models/metrics/labels.py). The table keeps the outcomes with their times, so
that a search can see the labels as they were known on an earlier day.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paywarden.features.catalogue.attributes import flag_code
from paywarden.features.history.history import History, labels_known_by
from paywarden.features.history.overlay import HistoryOverlay
from paywarden.features.history.point_in_time import PointInTimeReplay
from paywarden.features.history.staleness import Staleness
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import RateTable
from paywarden.models.drift.binning import DIMENSIONS
from paywarden.models.drift.table_segments import TableSegments
from paywarden.models.metrics.evaluation import DAY_MS, Days, date_of_day, day_of_time
from paywarden.models.metrics.first_strikes import Strikes, strikes_of
from paywarden.models.metrics.labels import GENUINE, LabelCounts, kept_labels, mature_before_ms
from paywarden.models.metrics.propensity import WeightCounts, inverse_weights, weight_counts
from paywarden.models.metrics.value_detected import ScoredPayments
from paywarden.models.training.settings import CATEGORY_MAX, TrainingSettings
from paywarden.schemas.errors import Misconfigured


@dataclass(frozen=True)
class TableOutcomes:
    """The outcomes of a table's rows, in the order in which they became known. All columns: (outcomes,)."""

    row: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    fraud: NDArray[np.bool_]


@dataclass(frozen=True)
class TrainingTable:
    """Point-in-time rows.

    `vectors`: (rows, features), float32. `label`: (rows,), 0 or 1. `day`: (rows,), UTC days since 1970-01-01.
    `outcomes`: the outcomes behind `label`; without them, labels count as known at once.
    `segments`: needed for the bundle's reference for drift detection.
    `row`: (rows,), each row's place in the history. `label_counts`: the labels of the window's payments.
    `fraud_delay_ms`: (frauds,), ascending: after how long each fraud of the table became known.
    `weight`: (rows,), how many payments each row stands for, 1 on average; None means 1. `weight_counts`: its effect.
    `amount_minor`, `card`: (rows,), in minor units of the reference currency, and codes of the history. `strikes`: the
    frauds among the rows, and which are the first of their card.
    """

    vectors: NDArray[np.float32]
    label: NDArray[np.int64]
    day: NDArray[np.int64]
    outcomes: TableOutcomes | None = None
    segments: TableSegments | None = None
    row: NDArray[np.int64] | None = None
    label_counts: LabelCounts | None = None
    fraud_delay_ms: NDArray[np.int64] | None = None
    weight: NDArray[np.float64] | None = None
    weight_counts: WeightCounts | None = None
    amount_minor: NDArray[np.int64] | None = None
    card: NDArray[np.int32] | None = None
    strikes: Strikes | None = None

    def scored(self, score: NDArray[np.float64]) -> ScoredPayments | None:
        """Returns the rows with scores, (rows,); None if the table has no amounts."""
        if self.amount_minor is None or self.card is None or self.strikes is None:
            return None
        return ScoredPayments(self.label == 1, score, self.amount_minor, self.card, self.strikes)

    def weight_of(self, rows: NDArray[np.bool_]) -> NDArray[np.float64] | None:
        """Returns the weights of some rows; None where all rows stand for themselves."""
        return None if self.weight is None else self.weight[rows]

    def label_known_by(self, time_ms: int) -> NDArray[np.int64]:
        """Returns the labels as known at a time, but never later than those of `label`. Shape (rows,)."""
        if self.outcomes is None:
            return self.label
        count = int(np.searchsorted(self.outcomes.time_ms, time_ms, side="right"))
        label = np.zeros_like(self.label)
        # With repeated indexes NumPy keeps the last value, so a correction wins.
        label[self.outcomes.row[:count]] = self.outcomes.fraud[:count]
        return label


@dataclass(frozen=True)
class LabelRules:
    """The rules for a payment's label."""

    # The last outcome that is known `delay_days` after the window's last day.
    delay_days: int
    # The meaning of a payment without an outcome, as in the setting `unknown_labels` of [training].
    unknown: str = GENUINE
    # The largest weight that a propensity gives; 0 ignores propensities.
    propensity_weight_max: float = 0.0


def training_table(
    history: History,
    window: Days,
    *,
    engine: FeatureEngine,
    rates: RateTable,
    labels: LabelRules,
    staleness: Staleness | None = None,
    overlay: HistoryOverlay | None = None,
    progress: Callable[[int], object] | None = None,
) -> TrainingTable:
    """Returns the rows of a window that have a label. Raises Misconfigured as `window_labels` does.

    `staleness`: how far profiles lag behind; None for not at all. `overlay`: how scoring hosts see payments that lag.
    """
    found = window_labels(history, window, labels.delay_days, labels.unknown)
    first, last = _rows_of(history, window)
    vectors = np.empty((len(found.row), engine.plan.feature_count), dtype=np.float32)
    filled = 0
    point_in_time = PointInTimeReplay(history, engine, rates, staleness=staleness, overlay=overlay)
    for chunk in point_in_time.chunks(first=first, last=last, progress=progress):
        start, end = np.searchsorted(found.row, (chunk.first, chunk.last)).tolist()
        rows = found.row[start:end] - chunk.first
        vectors[filled : filled + len(rows)] = chunk.vectors if len(rows) == len(chunk.vectors) else chunk.vectors[rows]
        filled += len(rows)
    known_by_ms = _known_by_ms(window, labels.delay_days)
    weight = counts = None
    if history.propensity is not None and labels.propensity_weight_max:
        propensity = history.propensity[found.row]
        counts = weight_counts(propensity, found.label == 1, labels.propensity_weight_max)
        weight = inverse_weights(propensity, labels.propensity_weight_max)
        # On average 1, so that the settings of growth mean the same.
        weight /= weight.mean()
    return TrainingTable(
        vectors,
        found.label,
        day_of_time(history.event_time_ms[found.row]),
        _outcomes(history, found.row, known_by_ms),
        TableSegments(
            history.event_time_ms[found.row],
            tuple(history.texts(dimension, found.row) for dimension in DIMENSIONS),
        ),
        found.row,
        found.counts,
        fraud_delays(history, first, last, known_by_ms),
        weight,
        counts,
        # An amount that is not known counts for none.
        np.maximum(point_in_time.amounts[found.row], 0),
        history.card.codes[found.row],
        strikes_of(history, np.flatnonzero(labels_known_by(history, known_by_ms) == 1), found.row, found.label == 1),
    )


@dataclass(frozen=True)
class WindowLabels:
    """The labels of a window. `row`: the payments that have one, ascending. `label`: (rows,), 0 or 1."""

    row: NDArray[np.int64]
    label: NDArray[np.int64]
    counts: LabelCounts


def window_labels(history: History, window: Days, label_delay_days: int, unknown_labels: str = GENUINE) -> WindowLabels:
    """Returns the labels of a window's rows, without computing vectors.

    Raises Misconfigured for a window without payments, or without a payment whose label is known.
    """
    first, last = _rows_of(history, window)
    known_by_ms = _known_by_ms(window, label_delay_days)
    label = labels_known_by(history, known_by_ms)[first:last]
    kept, counts = kept_labels(
        label,
        history.declined_code[first:last] == flag_code(True),
        history.event_time_ms[first:last] < mature_before_ms(history, known_by_ms),
        unknown_labels,
        None if history.never_labelled is None else history.never_labelled[first:last],
    )
    if not kept.any():
        raise Misconfigured(
            f"of {counts.payments} payments from {date_of_day(window.first)} to {date_of_day(window.last)} none has an "
            f"outcome by {date_of_day(window.last + label_delay_days)}: training.unknown_labels leaves them all out"
        )
    return WindowLabels(first + np.flatnonzero(kept), np.asarray(label[kept] == 1, dtype=np.int64), counts)


def fraud_delays(history: History, first: int, last: int, known_by_ms: int) -> NDArray[np.int64]:
    """Returns after how many milliseconds the frauds among these rows became known, ascending, (frauds,).

    A fraud that was reported several times counts once, with its first report.
    """
    payment, time_ms = history.outcome_payment, history.outcome_time_ms
    is_of_table = (payment >= first) & (payment < last) & (time_ms <= known_by_ms) & history.outcome_fraud
    rows, earliest = np.unique(payment[is_of_table], return_index=True)
    return np.sort(time_ms[is_of_table][earliest] - history.event_time_ms[rows])


def blocks_of(day: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Returns for each row the number of its block of whole days, from 0. `day`: (rows,), ascending."""
    days = np.unique(day)
    # With too few days, cut by rows, which are in order of time.
    block_of = np.searchsorted(days, day) if len(days) >= count else np.arange(len(day))
    return np.asarray(block_of * count // (int(block_of.max()) + 1), dtype=np.int64)


def require_both_kinds(label: NDArray[np.int64]) -> None:
    """Raises Misconfigured with fewer than two frauds, or without a genuine payment."""
    frauds = int(label.sum())
    if frauds < 2 or frauds == len(label):
        raise Misconfigured(f"the training window has {frauds} frauds in {len(label)} payments")


def require_categories(table: TrainingTable, settings: TrainingSettings, feature_names: Sequence[str]) -> None:
    """Raises Misconfigured if a feature of training.categorical has values other than small whole numbers."""
    for name in settings.categorical:
        values = table.vectors[:, feature_names.index(name)]
        values = values[~np.isnan(values)]
        if ((values < 0) | (values > CATEGORY_MAX) | (values != np.floor(values))).any():
            raise Misconfigured(
                f"training.categorical: wanted whole numbers from 0 to {CATEGORY_MAX} for {name}, "
                f"got {float(values.min()):g} to {float(values.max()):g}"
            )


def _known_by_ms(window: Days, label_delay_days: int) -> int:
    return (window.last + 1 + label_delay_days) * DAY_MS


def _rows_of(history: History, window: Days) -> tuple[int, int]:
    first, last = np.searchsorted(history.event_time_ms, [window.first * DAY_MS, (window.last + 1) * DAY_MS]).tolist()
    if first == last:
        raise Misconfigured(
            f"there is no payment from {date_of_day(window.first)} to {date_of_day(window.last)}: {_extent(history)}"
        )
    return first, last


def _extent(history: History) -> str:
    if len(history) == 0:
        return "the data holds none at all"
    first_day, last_day = (date_of_day(int(history.event_time_ms[row] // DAY_MS)) for row in (0, -1))
    return f"the data is from {first_day} to {last_day}"


def _outcomes(history: History, row: NDArray[np.int64], known_by_ms: int) -> TableOutcomes:
    """Returns the outcomes of these rows, at least one and ascending."""
    payment, time_ms = history.outcome_payment, history.outcome_time_ms
    place = np.searchsorted(row, payment)
    is_of_table = (row[np.minimum(place, len(row) - 1)] == payment) & (time_ms <= known_by_ms)
    return TableOutcomes(place[is_of_table], time_ms[is_of_table], history.outcome_fraud[is_of_table])
