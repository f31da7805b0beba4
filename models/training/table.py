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
import pyarrow as pa
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
from paywarden.models.training.sampling import GenuineSample, whole_days_from
from paywarden.models.training.training_settings import CATEGORY_MAX, TrainingSettings
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
    `sample`: which payments are rows, where not all are (models/training/sampling.py).
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
    sample: GenuineSample | None = None

    @property
    def whole(self) -> NDArray[np.bool_]:
        """The rows of days of which all payments are rows, (rows,)."""
        is_whole = np.ones(len(self.day), dtype=np.bool_)
        return is_whole if self.sample is None else np.asarray(self.day >= self.sample.whole_from)

    def scored(self, score: NDArray[np.float64]) -> ScoredPayments | None:
        """Returns the rows of whole days with their scores; None if the table has no amounts. `score`: (rows,)."""
        if self.amount_minor is None or self.card is None or self.strikes is None:
            return None
        whole = self.whole
        return ScoredPayments(
            self.label[whole] == 1, score[whole], self.amount_minor[whole], self.card[whole], self.strikes.of(whole)
        )

    def parts_of(self, rows: NDArray[np.bool_]) -> list[NDArray[np.float32]]:
        """Returns the vectors of some rows without a copy: one part for each run of such rows."""
        ends = np.flatnonzero(np.diff(rows, prepend=False, append=False))
        return [self.vectors[first:end] for first, end in ends.reshape(-1, 2).tolist()]

    def vectors_of(self, rows: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Returns the vectors of some rows; a copy only if other rows stand between them."""
        parts = self.parts_of(rows)
        return parts[0] if len(parts) == 1 else self.vectors[rows]

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
    # The share of the genuine payments that become rows, and the seed that draws them.
    sample_share: float = 1.0
    seed: int = 0

    @classmethod
    def of(cls, settings: TrainingSettings) -> LabelRules:
        """Returns the rules of the settings."""
        return cls(
            settings.label_delay_days,
            settings.unknown_labels,
            settings.propensity_weight_max,
            settings.genuine_sample_share,
            settings.seed,
        )


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
    found = training_rows(history, window, labels)
    first, last = _rows_of(history, window)
    vectors = np.empty((len(found.row), engine.plan.feature_count), dtype=np.float32)
    filled = 0
    point_in_time = PointInTimeReplay(history, engine, rates, staleness=staleness, overlay=overlay)
    for chunk in point_in_time.chunks(first=first, last=last, progress=progress):
        start, end = np.searchsorted(found.row, (chunk.first, chunk.last)).tolist()
        rows = found.row[start:end] - chunk.first
        vectors[filled : filled + len(rows)] = chunk.vectors if len(rows) == len(chunk.vectors) else chunk.vectors[rows]
        filled += len(rows)
    return table_of(
        history, found, vectors, point_in_time.amounts[found.row], outcomes_until_ms(window, labels), labels
    )


def table_of(
    history: History,
    found: WindowLabels,
    vectors: NDArray[np.float32],
    amount_minor: NDArray[np.int64],
    known_by_ms: int,
    labels: LabelRules,
) -> TrainingTable:
    """Returns the rows of a history with their vectors and amounts.

    `history`: at least the rows, and all frauds known at `known_by_ms`.
    """
    day, sample = day_of_time(history.event_time_ms[found.row]), found.sample
    weight = None if sample is None else sample.weights(found.label, day)
    counts = None
    outcomes = _outcomes(history, found.row, known_by_ms)
    if history.propensity is not None and labels.propensity_weight_max:
        propensity = history.propensity[found.row]
        counts = weight_counts(propensity, found.label == 1, labels.propensity_weight_max)
        inverse = inverse_weights(propensity, labels.propensity_weight_max)
        # On average 1, so that the settings of growth mean the same.
        inverse /= inverse.mean() if weight is None else np.average(inverse, weights=weight)
        weight = inverse if weight is None else weight * inverse
    return TrainingTable(
        vectors,
        found.label,
        day,
        outcomes,
        TableSegments(
            history.event_time_ms[found.row],
            tuple(history.texts(dimension, found.row) for dimension in DIMENSIONS),
        ),
        found.row,
        found.counts,
        fraud_delays(history, found.row, outcomes),
        weight,
        counts,
        # An amount that is not known counts for none.
        np.maximum(amount_minor, 0),
        history.card.codes[found.row],
        strikes_of(history, np.flatnonzero(labels_known_by(history, known_by_ms) == 1), found.row, found.label == 1),
        sample,
    )


@dataclass(frozen=True)
class WindowLabels:
    """The labels of a window. `row`: the payments that have one, ascending. `label`: (rows,), 0 or 1.

    `counts`: of all payments of the window. `sample`: which of the labelled payments are rows; None for all.
    """

    row: NDArray[np.int64]
    label: NDArray[np.int64]
    counts: LabelCounts
    sample: GenuineSample | None = None


def training_rows(history: History, window: Days, labels: LabelRules) -> WindowLabels:
    """Returns the rows of a training table with their labels. Raises Misconfigured as `window_labels` does."""
    found = window_labels(history, window, labels.delay_days, labels.unknown)
    if labels.sample_share >= 1.0:
        return found
    day = day_of_time(history.event_time_ms[found.row])
    days, counts = np.unique(day_of_time(history.event_time_ms[slice(*_rows_of(history, window))]), return_counts=True)
    by_day = dict(zip(days.tolist(), counts.tolist(), strict=True))
    sample = GenuineSample(labels.sample_share, labels.seed, whole_days_from(by_day, window))
    ids = history.payment_id.take(pa.array(found.row)).cast(pa.string())
    taken = sample.takes(ids, found.label, day)
    return WindowLabels(found.row[taken], found.label[taken], found.counts, sample)


def window_labels(history: History, window: Days, label_delay_days: int, unknown_labels: str = GENUINE) -> WindowLabels:
    """Returns the labels of a window's rows, without computing vectors.

    Raises Misconfigured for a window without payments, or without a payment whose label is known.
    """
    first, last = _rows_of(history, window)
    by_ms = (window.last + 1 + label_delay_days) * DAY_MS
    label = labels_known_by(history, by_ms)[first:last]
    kept, counts = kept_labels(
        label,
        history.declined_code[first:last] == flag_code(True),
        history.event_time_ms[first:last] < mature_before_ms(history, by_ms),
        unknown_labels,
        None if history.never_labelled is None else history.never_labelled[first:last],
    )
    if not kept.any():
        raise none_known(counts, window, label_delay_days)
    return WindowLabels(first + np.flatnonzero(kept), np.asarray(label[kept] == 1, dtype=np.int64), counts)


def none_known(counts: LabelCounts, window: Days, label_delay_days: int) -> Misconfigured:
    """Returns the error of a window without a payment whose label is known."""
    return Misconfigured(
        f"of {counts.payments} payments from {date_of_day(window.first)} to {date_of_day(window.last)} none has an "
        f"outcome by {date_of_day(window.last + label_delay_days)}: training.unknown_labels leaves them all out"
    )


def fraud_delays(history: History, row: NDArray[np.int64], outcomes: TableOutcomes) -> NDArray[np.int64]:
    """Returns after how many milliseconds the frauds among these rows became known, ascending, (frauds,).

    A fraud that was reported several times counts once, with its first report.
    """
    frauds, earliest = np.unique(outcomes.row[outcomes.fraud], return_index=True)
    return np.sort(outcomes.time_ms[outcomes.fraud][earliest] - history.event_time_ms[row[frauds]])


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


def outcomes_until_ms(window: Days, labels: LabelRules) -> int:
    """Returns the time up to which outcomes count for a window's labels."""
    return (window.last + 1 + labels.delay_days) * DAY_MS


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
