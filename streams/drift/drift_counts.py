"""Count the decisions of one partition by the minute they were made and by model version. Uses no clock and no store.

    offset  made at   version          cell
    7       12:05:10  m1         ->    12:05, m1
    8       12:05:50  m1         ->    12:05, m1
    9       12:06:01  m2         ->    12:06, m2
    10      09:00:00  m1         ->    no cell if that is older than KEPT_MS: counted in `Totals.old` only

1. `add` notes a decision; offsets rise. A decision whose offset was counted before changes nothing.
2. `take` goes through the added decisions, oldest first. Each belongs to one *cell*, a minute and a model; otherwise
   `Totals` says why it has none. It takes at most ROWS_MAX decisions in at most CELLS_MAX cells, and moves `progress`.
3. `counted` counts the rows of a cell.

The result depends only on the order of the decisions, not on how they are cut into batches. The one exception is a
decision from the future: `take` compares its time with the clock.

A version is the model's version. For hosts that serve a variant it is "VERSION/VARIANT", which is counted, watched and
reported as a version of its own. A *model* is a version together with the binning its decisions are counted in. If no
bundle of a version is known, its scores are counted in a grid of our own, without features. That is enough to learn the
baseline.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from paywarden.models.drift.binning import DIMENSIONS, FEATURE_BINS, Binning
from paywarden.models.drift.counts import Counts, DecisionRows, count_rows
from paywarden.models.policy.policy import ACTIONS, FLAGS, MODEL_ABSENT
from paywarden.streams.counts.checkpoint import PendingRows
from paywarden.streams.counts.label_cap import has_place, take_place
from paywarden.streams.drift.drift_settings import DriftSettings

MINUTE_MS = 60_000
# The most decisions of one partition that are taken at once. One record has to hold their counts: at most about 360
# bytes a decision with 60 features.
ROWS_MAX = 2_000
CELLS_MAX = 16
# A decision that is older than the partition's newest by more than this is not counted: its tile is gone.
KEPT_MS = 48 * 60 * MINUTE_MS
OTHER_VERSION = "other"
"""Stands for the versions beyond `versions_max`."""
# A version without a decision for this long gives its place to another.
_IDLE_MS = 60 * MINUTE_MS
UNKNOWN_HIGH_RISK_AT = 0.5
"""The score from which a payment counts as high risk if no bundle of its version is known; an edge of the grid."""
# In log odds, in steps of a quarter: from 1 in 22,000 to all but 1 in 22,000.
_GRID = np.arange(-10.0, 10.01, 0.25)

# A decision that waits to be counted is its offset and these fields. A tuple takes a fifth of the memory of the record.
_FIELDS = (
    "decided_time_ms", "model_version", "score", "action", "vector", *DIMENSIONS, "flags", "profile_age_ms",
)  # fmt: skip
_fields_of = itemgetter(*_FIELDS)
DecisionRow: TypeAlias = tuple[Any, ...]
_OFFSET, _DECIDED, _VERSION, _SCORE, _ACTION, _VECTOR = range(6)
_DIMENSIONS = slice(6, 6 + len(DIMENSIONS))
_FLAGS, _AGE = 6 + len(DIMENSIONS), 7 + len(DIMENSIONS)


_ACTIONS = {name: number for number, name in enumerate(ACTIONS)}


class Model(NamedTuple):
    """A version, and a digest of the binning its decisions are counted in. Counts of two models are never mixed."""

    version: str
    binning: str


class CountCell(NamedTuple):
    """A minute, which begins at `minute_ms`, and a model: one count belongs to them."""

    minute_ms: int
    model: Model


def row_of(offset: int, record: Mapping[str, Any]) -> DecisionRow:
    """Return a decision as a row, with the variant in its version."""
    row = (offset, *_fields_of(record))
    variant = record.get("variant")
    return (*row[:_VERSION], f"{row[_VERSION]}/{variant}", *row[_VERSION + 1 :]) if variant else row


def base_version(version: str) -> str:
    """Return the model's own version, without the variant."""
    return version.partition("/")[0]


class Binnings:
    """The binning of every model version. `missed` is called with each version that is not known."""

    def __init__(self, known: Mapping[str, Binning]) -> None:
        self._known = dict(known)
        self._grid = unknown_binning()
        self.missed: Callable[[str], object] = lambda _: None

    def learn(self, version: str, binning: Binning) -> None:
        """Count decisions of a version in this binning from now on."""
        self._known[version] = binning

    def of(self, version: str) -> tuple[Model, Binning]:
        """Return the model as it is counted now, and its binning; for an unknown version, the grid."""
        binning = self._known.get(base_version(version))
        if binning is None:
            self.missed(version)
            binning = self._grid
        return model_of(version, binning), binning

    def in_grid(self, version: str) -> tuple[Model, Binning]:
        """Return the version counted in the grid: payments, actions and scores, without features."""
        return model_of(version, self._grid), self._grid

    def is_known(self, version: str) -> bool:
        """Whether a bundle with this version is here."""
        return base_version(version) in self._known

    def is_current(self, model: Model) -> bool:
        """Whether this is how decisions of the version are counted now."""
        return self.of(model.version)[0] == model

    def binning_of(self, model: Model) -> Binning | None:
        """Return the binning the model's counts were counted in; None if its bundle is no longer here."""
        for counted_as, binning in (self.of(model.version), self.in_grid(model.version)):
            if counted_as == model:
                return binning
        return None


def model_of(version: str, binning: Binning) -> Model:
    """Return the model of a version that is counted in this binning."""
    return Model(version, binning.digest_text)


def unknown_binning() -> Binning:
    """Return the grid: scores in steps of a quarter in log odds, no features, and the segments of every binning."""
    edges = 1.0 / (1.0 + np.exp(-_GRID))
    return Binning(edges, np.zeros((0, FEATURE_BINS - 1), dtype=np.float32), ((),) * len(DIMENSIONS), FLAGS)


@dataclass
class Totals:
    """Numbers of decisions of a partition since it exists. `decisions` is all of them; the others are parts of it.

    - `late`: counted in a cell, but perhaps after its block was evaluated.
    - `unknown`: the version has no bundle here.
    - `other`: counted as OTHER_VERSION, because there were too many versions.
    - `future`, `old`: not counted in any cell.
    """

    decisions: int = 0
    late: int = 0
    future: int = 0
    old: int = 0
    unknown: int = 0
    other: int = 0

    def less(self, earlier: Totals) -> dict[str, int]:
        """Return by how much each number has grown since `earlier`."""
        return {part.name: getattr(self, part.name) - getattr(earlier, part.name) for part in fields(self)}


@dataclass
class CountingProgress:
    """The state before the decision at offset `next_offset`. Together with later decisions it decides all later counts.

    `first_ms`, `newest_ms`: the earliest and newest decision times, 0 before the first decision. `versions`: the
    versions that are counted apart, each with its newest decision time.
    """

    next_offset: int = 0
    first_ms: int = 0
    newest_ms: int = 0
    versions: dict[str, int] = field(default_factory=dict)
    totals: Totals = field(default_factory=Totals)

    def copy(self) -> CountingProgress:
        """Return a copy that can be changed."""
        return CountingProgress(
            self.next_offset, self.first_ms, self.newest_ms, dict(self.versions), Totals(**vars(self.totals))
        )


class _UsualCell(NamedTuple):
    """The cell that decisions of a version were last put into: its minute, the length of its vectors, and its rows."""

    minute_ms: int
    vector_bytes: int
    rows: list[DecisionRow]


class _UsualRows:
    """Takes the usual decisions of a batch: they go into the cell of the last one of their version.

    It changes `progress` and the cells in the same way as `PartitionCounts` does for every other decision.
    """

    def __init__(self, progress: CountingProgress, binnings: Binnings, settings: DriftSettings, now_ms: int) -> None:
        self._progress, self._binnings = progress, binnings
        self._newest_max_ms, self._grace_ms = now_ms + settings.future_ms_max, settings.grace_ms
        self._cells: dict[str, _UsualCell] = {}

    def takes(self, row: DecisionRow) -> bool:
        """Take a decision, or return False and change nothing."""
        progress, decided_ms, version = self._progress, row[_DECIDED], row[_VERSION]
        newest_ms, cell = progress.newest_ms, self._cells.get(version)
        if (
            cell is None
            or not cell.minute_ms <= decided_ms < cell.minute_ms + MINUTE_MS
            or len(row[_VECTOR]) != cell.vector_bytes
            or not newest_ms - KEPT_MS <= decided_ms <= self._newest_max_ms
            or version not in progress.versions
        ):
            return False
        cell.rows.append(row)
        progress.totals.decisions += 1
        progress.totals.late += decided_ms < newest_ms - self._grace_ms
        if decided_ms > newest_ms:
            progress.newest_ms = decided_ms
        if decided_ms > progress.versions[version]:
            progress.versions[version] = decided_ms
        if decided_ms < progress.first_ms:
            progress.first_ms = decided_ms
        return True

    def note(self, row: DecisionRow, cell: CountCell, rows: list[DecisionRow]) -> None:
        """Note into which cell a decision was put. The next ones of a version with a bundle may follow it."""
        version = row[_VERSION]
        if cell.model.version == version and self._binnings.is_known(version):
            self._cells[version] = _UsualCell(cell.minute_ms, len(row[_VECTOR]), rows)


class PartitionCounts(PendingRows[DecisionRow]):
    """The decisions of a partition that are read and not taken yet, and the progress after those that are taken."""

    def __init__(self, progress: CountingProgress, binnings: Binnings, settings: DriftSettings) -> None:
        super().__init__(progress.next_offset, row_of)
        self.progress = progress.copy()
        self._binnings, self._settings = binnings, settings

    def take(self, now_ms: int) -> dict[CountCell, list[DecisionRow]]:
        """Take the oldest decisions that were handed over; return them by cell. `progress` then holds after them."""
        cells: dict[CountCell, list[DecisionRow]] = {}
        taken = 0
        usual = _UsualRows(self.progress, self._binnings, self._settings, now_ms)
        for row in self.handed_over[:ROWS_MAX]:
            if usual.takes(row):
                taken += 1
                continue
            cell = self._cell_of(row, now_ms)
            if cell is not None:
                rows = cells.get(cell)
                if rows is None:
                    if len(cells) == CELLS_MAX:
                        break
                    rows = cells[cell] = []
                rows.append(row)
                usual.note(row, cell, rows)
            self._note(row, cell, now_ms)
            taken += 1
        del self.handed_over[:taken]
        self.progress.next_offset = self.handed_over[0][_OFFSET] if self.handed_over else self.handed_to
        return cells

    def _cell_of(self, row: DecisionRow, now_ms: int) -> CountCell | None:
        """Return the cell of a decision; None if it is not counted. Changes nothing."""
        decided_ms = row[_DECIDED]
        if self._is_future(decided_ms, now_ms) or self._is_old(decided_ms):
            return None
        version = self._counted_as(row[_VERSION], decided_ms)
        model, binning = self._binnings.of(version)
        if len(row[_VECTOR]) != 4 * binning.feature_count:
            # The vector comes from another catalogue than the bundle, so these are not the bundle's features.
            model, _ = self._binnings.in_grid(version)
        return CountCell(decided_ms - decided_ms % MINUTE_MS, model)

    def _note(self, row: DecisionRow, cell: CountCell | None, now_ms: int) -> None:
        progress, totals, decided_ms = self.progress, self.progress.totals, row[_DECIDED]
        totals.decisions += 1
        if cell is None:
            if self._is_future(decided_ms, now_ms):
                totals.future += 1
            else:
                totals.old += 1
            return
        totals.late += decided_ms < progress.newest_ms - self._settings.grace_ms
        totals.unknown += not self._binnings.is_known(row[_VERSION])
        version = cell.model.version
        if version == OTHER_VERSION and row[_VERSION] != OTHER_VERSION:
            totals.other += 1
        else:
            take_place(progress.versions, version, decided_ms, places=self._settings.versions_max)
        progress.newest_ms = max(progress.newest_ms, decided_ms)
        progress.first_ms = min(progress.first_ms or decided_ms, decided_ms)

    def _is_future(self, decided_ms: int, now_ms: int) -> bool:
        return decided_ms > now_ms + self._settings.future_ms_max

    def _is_old(self, decided_ms: int) -> bool:
        return decided_ms < self.progress.newest_ms - KEPT_MS

    def _counted_as(self, version: str, decided_ms: int) -> str:
        places = self._settings.versions_max
        is_apart = has_place(self.progress.versions, version, decided_ms, places=places, idle_ms=_IDLE_MS)
        return version if is_apart else OTHER_VERSION


def counted(binning: Binning, rows: Sequence[DecisionRow]) -> Counts:
    """Return the counts of decisions that `take` put into one cell of a model with this binning."""
    columns = list(zip(*rows, strict=True))
    vectors = np.zeros((len(rows), 0), dtype=np.float32)
    if binning.feature_count:
        vectors = np.frombuffer(b"".join(columns[_VECTOR]), dtype="<f4").reshape(len(rows), binning.feature_count)
    flags = columns[_FLAGS]
    scores = np.array(columns[_SCORE], dtype=np.float64)
    # No model computed these scores.
    scores[[MODEL_ABSENT in names for names in flags]] = np.nan
    ages = [-1 if age is None else age for age in columns[_AGE]]
    return count_rows(
        binning,
        DecisionRows(
            scores=scores,
            actions=np.array([_ACTIONS[name] for name in columns[_ACTION]]),
            vectors=vectors,
            flags=flags,
            ages_ms=np.array(ages, dtype=np.int64),
            values=columns[_DIMENSIONS],
        ),
    )


def scores_of(rows: Sequence[DecisionRow]) -> list[float]:
    """Return the scores that a model computed, for the metrics."""
    return [row[_SCORE] for row in rows if MODEL_ABSENT not in row[_FLAGS]]


def actions_of(rows: Iterable[DecisionRow]) -> dict[str, int]:
    """Return how often each action was taken."""
    action_counts: dict[str, int] = defaultdict(int)
    for row in rows:
        action_counts[row[_ACTION]] += 1
    return dict(action_counts)
