"""Run drift detection over past decisions, on the clock of the decisions themselves.

It is the stream's own detection (streams/drift/detection.py) with lists in place of the store and the topics:

    counts of five minutes ─► VirtualDetection ─┬─ the block of five minutes ─► DriftDetection ─► alerts, in a list
                                                ├─ at a full hour, its sum   ─►
                                                └─ at midnight, the day's    ─►

Counts may also come by the hour: a run is then twelve times as short, and blocks of five minutes are not evaluated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from prometheus_client import CollectorRegistry

from paywarden.models.drift.counts import Counts, count_rows
from paywarden.models.drift.detectors import DAY_MS, HOUR_MS, LENGTHS_MS, DetectorSettings
from paywarden.models.drift.reference import Reference
from paywarden.schemas.errors import Misconfigured
from paywarden.streams.alerts.alerts import Alert, AlertSettings, State, rank_of
from paywarden.streams.drift.backtest_files import Injection, PastPart
from paywarden.streams.drift.detection import DriftDetection
from paywarden.streams.drift.drift_counts import Binnings, Model
from paywarden.streams.drift.drift_evaluation import PAST_WEEKS, of_overall
from paywarden.streams.drift.drift_metrics import DetectionMetrics
from paywarden.streams.drift.drift_settings import TrainingComparisonSettings
from paywarden.streams.drift.learning import LiveReferences, counted_binning

PastHours: TypeAlias = dict[int, dict[Model, bytes]]
"""By the start of an hour, the counts of each model's OVERALL as bytes."""
FIVE_MS = LENGTHS_MS[0]
_PAST_MS = PAST_WEEKS * 7 * DAY_MS


@dataclass
class RememberedAlerts:
    """An AlertTeller that keeps every alert, and its record as the topic would have it."""

    alerts: list[Alert] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)

    def send(self, alert: Alert, record: dict[str, Any]) -> None:
        """See AlertTeller."""
        self.alerts.append(alert)
        self.records.append(record)

    def flush(self) -> None:
        """See AlertTeller."""


class VirtualDetection:
    """Drift detection whose past is in memory and whose time is that of the counts it is given."""

    def __init__(
        self,
        references: Mapping[str, Reference],
        *,
        detectors: DetectorSettings,
        alerts: AlertSettings,
        training: TrainingComparisonSettings | None = None,
        learning_days: int = 7,
        past: PastHours | None = None,
    ) -> None:
        """`references`: the references of bundles, by model version. `learning_days`: see DriftSettings.

        `past`: hours before the first that `take` gets, which actions, flags and ages are learnt from.
        """
        self.told = RememberedAlerts()
        self.binnings = Binnings({version: counted_binning(reference) for version, reference in references.items()})
        self.past: PastHours = dict(past or {})
        self._of_hour: dict[str, Counts] = {}
        self._of_day: dict[str, Counts] = {}
        self.detection = DriftDetection(
            references,
            LiveReferences(references, self.binnings, self._hours, days_min=learning_days),
            detectors=detectors,
            alerts=alerts,
            teller=self.told,
            acknowledgements=lambda: (),
            metrics=DetectionMetrics(CollectorRegistry()),
            training=training,
        )

    def take(self, start_ms: int, length_ms: int, counts: Mapping[str, Counts]) -> None:
        """Take the counts of the next five minutes or of the next hour, by version; they come in order of time.

        Versions are counted in `binnings.of`. A version without decisions is left out.
        """
        assert length_ms in (FIVE_MS, HOUR_MS)
        there = {version: of_version for version, of_version in counts.items() if of_version.payments[0]}
        if length_ms == FIVE_MS:
            self.detection.evaluate(start_ms, FIVE_MS, there)
        _add(self._of_hour, there)
        end_ms = start_ms + length_ms
        if end_ms % HOUR_MS == 0:
            self._keep(end_ms - HOUR_MS)
            self.detection.evaluate(end_ms - HOUR_MS, HOUR_MS, self._of_hour)
            _add(self._of_day, self._of_hour)
            self._of_hour = {}
        if end_ms % DAY_MS == 0:
            self.detection.evaluate(end_ms - DAY_MS, DAY_MS, self._of_day)
            self._of_day = {}

    def _keep(self, hour_ms: int) -> None:
        """Keep the part of the hour that the stream keeps for weeks, and drop older hours."""
        self.past[hour_ms] = {
            self.binnings.of(version)[0]: of_overall(counts).to_bytes() for version, counts in self._of_hour.items()
        }
        self.past.pop(hour_ms - _PAST_MS - DAY_MS, None)

    def _hours(self, start_ms: int, end_ms: int) -> Iterator[tuple[int, dict[Model, Counts]]]:
        for hour in range(start_ms, end_ms, HOUR_MS):
            stored = self.past.get(hour, {})
            yield (
                hour,
                {model: Counts.from_bytes(data, self.binnings.of(model.version)[1]) for model, data in stored.items()},
            )


class Backtest:
    """Counts past decisions by five minutes and version, and hands the counts to a VirtualDetection."""

    def __init__(self, detection: VirtualDetection, *, length_ms: int = FIVE_MS) -> None:
        """`length_ms`: five minutes, or an hour, which takes a tenth of the time and evaluates no shorter blocks."""
        self._detection, self._length_ms = detection, length_ms
        self._open: dict[str, Counts] = {}
        self._open_ms = -1
        self.first_ms = self.newest_ms = -1
        self.decisions: dict[str, int] = {}

    def run(self, parts: Iterable[PastPart]) -> None:
        """Take all decisions, which come in order of time, up to the end of the last block.

        Raises Misconfigured for vectors of other features than a version's reference has.
        """
        for part in parts:
            starts = part.time_ms - part.time_ms % self._length_ms
            firsts = np.flatnonzero(np.diff(starts, prepend=-1))
            for first, end in zip(firsts.tolist(), [*firsts[1:].tolist(), len(starts)], strict=True):
                self._move_to(int(starts[first]))
                self._count(part, first, end)
            self.first_ms = int(part.time_ms[0]) if self.first_ms < 0 else self.first_ms
            self.newest_ms = int(part.time_ms[-1])
        if self._open_ms >= 0:
            self._move_to(self._open_ms + self._length_ms)

    def _move_to(self, start_ms: int) -> None:
        """Evaluate all blocks before this time, also those without a decision."""
        if self._open_ms < 0:
            # Begin at a full hour, so that no hour is missing its beginning.
            self._open_ms = start_ms - start_ms % HOUR_MS
        while self._open_ms < start_ms:
            self._detection.take(self._open_ms, self._length_ms, self._open)
            self._open, self._open_ms = {}, self._open_ms + self._length_ms

    def _count(self, part: PastPart, first: int, end: int) -> None:
        versions = part.versions[first:end]
        for version in sorted(set(versions)):
            places = first + np.flatnonzero(versions == version)
            _, binning = self._detection.binnings.of(version)
            widths = part.widths[places]
            if self._detection.binnings.is_known(version) and (widths != binning.feature_count).any():
                raise Misconfigured(
                    f"decisions of model {version} have vectors of {int(widths[widths != binning.feature_count][0])} "
                    f"features, and its reference has {binning.feature_count}: they are of another catalogue"
                )
            rows = part.part(places)
            # A version without a reference is counted without features.
            rows = replace(rows, vectors=rows.vectors[:, : binning.feature_count])
            _add(self._open, {version: count_rows(binning, rows)})
            self.decisions[version] = self.decisions.get(version, 0) + len(rows.scores)


@dataclass(frozen=True)
class Detected:
    """The detection of an injected change: the first alert that names it. Hours are NaN without one."""

    injection: Injection
    hours: float
    comparison: str = ""
    severity: str = ""
    worst: str = ""


def detected(injection: Injection, alerts: Sequence[Alert]) -> Detected:
    """Return when the first alert named an injected change, by which comparison, and the worst severity."""
    named = [
        alert
        for alert in alerts
        if alert.time_ms > injection.at_ms
        and alert.state is not State.CLEARED
        and injection.is_about(alert.subject, alert.segment)
    ]
    if not named:
        return Detected(injection, float("nan"))
    first, worst = named[0], max((alert.severity for alert in named), key=rank_of)
    hours = (first.time_ms - injection.at_ms) / HOUR_MS
    return Detected(injection, hours, str(first.comparison), str(first.severity), str(worst))


def _add(sums: dict[str, Counts], more: Mapping[str, Counts]) -> None:
    for version, counts in more.items():
        if version in sums:
            sums[version].add(counts)
        else:
            sums[version] = counts.copy()
