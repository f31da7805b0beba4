"""Decisions of one partition, counted by the minute they were made and by model version. No clock, no store in here.

1. `add` notes what was read, in order of offsets. A decision that is counted already, by its offset, changes nothing.
2. `take` looks at what was added, oldest first: each decision belongs to one *cell*, a minute and a model, or to
   none and is only counted as why (`Totals`). It takes at most ROWS_MAX, in at most CELLS_MAX cells, and says what
   holds after them.
3. `counted` counts the rows of a cell.

What comes out depends on the order of the decisions alone, not on how they are cut into batches: but for whether one
lies in the future, which is by the clock when it is taken.

A version is the model's; of hosts that serve a variant "VERSION/VARIANT", which is counted, watched and told as one of
its own. A model is a version with the binning its decisions are counted in. Of a version that no bundle is known of,
the scores are counted in a grid of our own, and no features: enough to learn from what is usual.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from paywarden.models.drift.binning import DIMENSIONS, FEATURE_BINS, Binning
from paywarden.models.drift.counts import Counts, DecisionRows, count_rows
from paywarden.models.policy.policy import ACTIONS, FLAGS, MODEL_ABSENT
from paywarden.streams.drift.settings import DriftSettings
from paywarden.streams.faust.checkpoint import PendingRows
from paywarden.streams.faust.label_cap import has_place, take_place

MINUTE_MS = 60_000
# Of one partition, what is taken at once: a record has to hold what is counted of it, at most some 360 bytes a decision
# with 60 features.
ROWS_MAX = 2_000
CELLS_MAX = 16
# How far back before a partition's newest decision one is still counted: as long as its tile is there.
KEPT_MS = 48 * 60 * MINUTE_MS
OTHER_VERSION = "other"
"""Stands for the versions beyond `versions_max`."""
# A version that no decision had for so long gives its place to another.
_IDLE_MS = 60 * MINUTE_MS
UNKNOWN_HIGH_RISK_AT = 0.5
"""Of a version that no bundle is known of, what counts as high risk; an edge of the grid."""
# In log odds: from 1 in 22,000 to all but 1 in 22,000, by a quarter.
_GRID = np.arange(-10.0, 10.01, 0.25)

# A decision as it waits to be counted: its offset and these fields. A tuple takes a fifth of the memory of the record.
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
    """A version, and a digest of the binning that its decisions are counted in: counts of two are never mixed."""

    version: str
    binning: str


class CountCell(NamedTuple):
    """What one count is of. `minute_ms`: when the minute begins."""

    minute_ms: int
    model: Model


def row_of(offset: int, record: Mapping[str, Any]) -> DecisionRow:
    """A decision as it waits."""
    row = (offset, *_fields_of(record))
    variant = record.get("variant")
    return (*row[:_VERSION], f"{row[_VERSION]}/{variant}", *row[_VERSION + 1 :]) if variant else row


def base_version(version: str) -> str:
    """The model's own, without the variant."""
    return version.partition("/")[0]


class Binnings:
    """The binning of every model version."""

    def __init__(self, known: Mapping[str, Binning]) -> None:
        self._known = dict(known)
        self._grid = unknown_binning()

    def of(self, version: str) -> tuple[Model, Binning]:
        """The model as it is counted now; of an unknown version, in the grid."""
        binning = self._known.get(base_version(version), self._grid)
        return model_of(version, binning), binning

    def in_grid(self, version: str) -> tuple[Model, Binning]:
        """Payments, actions and scores alone."""
        return model_of(version, self._grid), self._grid

    def is_known(self, version: str) -> bool:
        """Whether a bundle with this version is here."""
        return base_version(version) in self._known

    def is_current(self, model: Model) -> bool:
        """Whether this is how decisions of the version are counted now."""
        return self.of(model.version)[0] == model

    def binning_of(self, model: Model) -> Binning | None:
        """What the model's counts were counted in; None where that is of a bundle that is here no more."""
        for known, binning in (self.of(model.version), self.in_grid(model.version)):
            if known == model:
                return binning
        return None


def model_of(version: str, binning: Binning) -> Model:
    """The version as it is counted in this binning."""
    return Model(version, binning.digest_text)


def unknown_binning() -> Binning:
    """Scores in steps of a quarter in log odds; no features, and no segments but those that every binning has."""
    edges = 1.0 / (1.0 + np.exp(-_GRID))
    return Binning(edges, np.zeros((0, FEATURE_BINS - 1), dtype=np.float32), ((),) * len(DIMENSIONS), FLAGS)


@dataclass
class Totals:
    """Of all decisions of a partition, ever: `decisions` is all of them, and each of the others is a part of it.

    `late`: counted, but when its block may have been looked at already. `unknown`: of a version without a bundle.
    `other`: of one version too many, counted as OTHER_VERSION. Not counted in any cell: `future`, `old`.
    """

    decisions: int = 0
    late: int = 0
    future: int = 0
    old: int = 0
    unknown: int = 0
    other: int = 0

    def less(self, earlier: Totals) -> dict[str, int]:
        """What has come since."""
        return {one.name: getattr(self, one.name) - getattr(earlier, one.name) for one in fields(self)}


@dataclass
class CountingProgress:
    """What holds before the decision at offset `next_offset`, from which all that comes later follows.

    `first_ms`, `newest_ms`: decision times, 0 before the first. `versions`: of those counted apart, their newest.
    """

    next_offset: int = 0
    first_ms: int = 0
    newest_ms: int = 0
    versions: dict[str, int] = field(default_factory=dict)
    totals: Totals = field(default_factory=Totals)

    def copy(self) -> CountingProgress:
        """Another that can be changed."""
        return CountingProgress(
            self.next_offset, self.first_ms, self.newest_ms, dict(self.versions), Totals(**vars(self.totals))
        )


class PartitionCounts(PendingRows[DecisionRow]):
    """What was read of a partition and has not been taken yet.

    One thread may `add` while another has what was handed over.
    """

    def __init__(self, progress: CountingProgress, binnings: Binnings, settings: DriftSettings) -> None:
        super().__init__(progress.next_offset, row_of)
        self.progress = progress.copy()
        self._binnings, self._settings = binnings, settings

    def take(self, now_ms: int) -> dict[CountCell, list[DecisionRow]]:
        """The oldest of what was handed over, by cell; `progress` is what holds after it."""
        cells: dict[CountCell, list[DecisionRow]] = {}
        taken = 0
        for row in self.handed_over[:ROWS_MAX]:
            cell = self._cell_of(row, now_ms)
            if cell is not None:
                rows = cells.get(cell)
                if rows is None:
                    if len(cells) == CELLS_MAX:
                        break
                    rows = cells[cell] = []
                rows.append(row)
            self._note(row, cell, now_ms)
            taken += 1
        del self.handed_over[:taken]
        self.progress.next_offset = self.handed_over[0][_OFFSET] if self.handed_over else self.handed_to
        return cells

    def _cell_of(self, row: DecisionRow, now_ms: int) -> CountCell | None:
        """None for a decision that is not counted. Changes nothing."""
        decided_ms = row[_DECIDED]
        if self._is_future(decided_ms, now_ms) or self._is_old(decided_ms):
            return None
        version = self._counted_as(row[_VERSION], decided_ms)
        model, binning = self._binnings.of(version)
        if len(row[_VECTOR]) != 4 * binning.feature_count:
            # Of another catalogue than the bundle, whose features these are not.
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
    """The counts of decisions that `take` put into one cell of a model with this binning."""
    columns = list(zip(*rows, strict=True))
    vectors = np.zeros((len(rows), 0), dtype=np.float32)
    if binning.feature_count:
        vectors = np.frombuffer(b"".join(columns[_VECTOR]), dtype="<f4").reshape(len(rows), binning.feature_count)
    flags = columns[_FLAGS]
    scores = np.array(columns[_SCORE], dtype=np.float64)
    # No model gave these.
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
    """For what is told of scores as they come."""
    return [row[_SCORE] for row in rows if MODEL_ABSENT not in row[_FLAGS]]


def actions_of(rows: Iterable[DecisionRow]) -> dict[str, int]:
    """How often each action was taken."""
    found: dict[str, int] = defaultdict(int)
    for row in rows:
        found[row[_ACTION]] += 1
    return dict(found)
