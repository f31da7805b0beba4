"""The rows a model is trained on: a window's payments as they were seen when they were made, and what became of them.

A row's vector knows nothing that came after its payment. Its label is what was known `label_delay_days` after the
window, corrections up to then included and none that came later; a payment without an outcome by then counts as
genuine. The table keeps the outcomes it had by then, so that a part of the window can be looked at as on a day before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paywarden.features.history.history import History, labels_known_by
from paywarden.features.history.point_in_time import PointInTimeReplay
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import RateTable
from paywarden.models.drift.binning import DIMENSIONS
from paywarden.models.drift.table_segments import TableSegments
from paywarden.models.metrics.evaluation import DAY_MS, Days, date_of_day, day_of_time
from paywarden.models.training.settings import CATEGORY_MAX, TrainingSettings
from paywarden.schemas.errors import Misconfigured


@dataclass(frozen=True)
class TableOutcomes:
    """What became known of a table's rows, in the order it did: `row`, `time_ms`, `fraud` (outcomes,)."""

    row: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    fraud: NDArray[np.bool_]


@dataclass(frozen=True)
class TrainingTable:
    """Point-in-time rows: `vectors` (rows, features) float32, `label` (rows,) 0 or 1, `day` (rows,) UTC days.

    `outcomes` are those that `label` follows from; without them a label counts as known at once. Without `segments` a
    bundle has no reference for drift detection.
    """

    vectors: NDArray[np.float32]
    label: NDArray[np.int64]
    day: NDArray[np.int64]
    outcomes: TableOutcomes | None = None
    segments: TableSegments | None = None

    def label_known_by(self, time_ms: int) -> NDArray[np.int64]:
        """The labels as they were known at that time, if it is no later than that of `label`. Shape (rows,)."""
        if self.outcomes is None:
            return self.label
        known = int(np.searchsorted(self.outcomes.time_ms, time_ms, side="right"))
        label = np.zeros_like(self.label)
        # NumPy keeps the last of repeated assignments: a correction wins.
        label[self.outcomes.row[:known]] = self.outcomes.fraud[:known]
        return label


def training_table(
    history: History,
    window: Days,
    *,
    engine: FeatureEngine,
    rates: RateTable,
    label_delay_days: int,
    progress: Callable[[int], object] | None = None,
) -> TrainingTable:
    """The rows of a window as they were seen when they happened. Raises Misconfigured for an unusable window."""
    first, last = _rows_of(history, window)
    vectors = np.empty((last - first, engine.plan.feature_count), dtype=np.float32)
    for chunk in PointInTimeReplay(history, engine, rates).chunks(first=first, last=last, progress=progress):
        vectors[chunk.first - first : chunk.last - first] = chunk.vectors
    return TrainingTable(
        vectors,
        window_labels(history, window, label_delay_days),
        day_of_time(history.event_time_ms[first:last]),
        _outcomes(history, first, last, _known_by_ms(window, label_delay_days)),
        TableSegments(
            history.event_time_ms[first:last],
            tuple(history.texts(dimension, slice(first, last)) for dimension in DIMENSIONS),
        ),
    )


def window_labels(history: History, window: Days, label_delay_days: int) -> NDArray[np.int64]:
    """The labels of a window's rows, 0 or 1, without the work of computing vectors. Raises as `training_table`."""
    first, last = _rows_of(history, window)
    known = labels_known_by(history, _known_by_ms(window, label_delay_days))[first:last]
    return np.asarray(known == 1, dtype=np.int64)


def require_both_kinds(label: NDArray[np.int64]) -> None:
    """Raises Misconfigured where there are no two frauds, or nothing else."""
    frauds = int(label.sum())
    if frauds < 2 or frauds == len(label):
        raise Misconfigured(f"the training window has {frauds} frauds in {len(label)} payments")


def require_categories(table: TrainingTable, settings: TrainingSettings, feature_names: Sequence[str]) -> None:
    """Raises Misconfigured for a feature of training.categorical whose values are no small whole numbers."""
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


def _outcomes(history: History, first: int, last: int, known_by_ms: int) -> TableOutcomes:
    payment, time_ms = history.outcome_payment, history.outcome_time_ms
    is_of_table = (payment >= first) & (payment < last) & (time_ms <= known_by_ms)
    return TableOutcomes(payment[is_of_table] - first, time_ms[is_of_table], history.outcome_fraud[is_of_table])
