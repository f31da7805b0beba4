"""Turn the counts of blocks into alerts: references, detectors and the open alerts put together.

    counts of a block, by version ─► signals ─► DriftWatches ─► alerts raised, escalated or cleared ─► topic
                  references ───────────┘          ▲    ▲
                  acknowledgements, from their topic    │
    counts of a day, by version ─► weeks compared with the training window

Each version is watched by itself: the scores of two models are never compared. Watching starts with a version's first
block. If that comes in the middle of an hour or a day, this hour or day counts nothing. If a version has no signals any
more, its alerts are cleared. A version without a block for a day is forgotten, and its alerts are cleared, too.

An alert is on its topic before the state that knows of it is saved. After a crash the same alert is sent again, word
for word.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from paywarden.models.drift.counts import Counts
from paywarden.models.drift.detectors import DAY_MS, DetectorSettings
from paywarden.models.drift.reference import Reference
from paywarden.models.drift.signal_layout import Kinds
from paywarden.models.drift.signals import FEATURE_PREFIX, PROFILE_AGE, Block, Signal
from paywarden.schemas.errors import InvalidEvent
from paywarden.streams.alerts.alert_records import Acknowledgement, Histograms, record_of
from paywarden.streams.alerts.alert_watch import DriftWatch, open_alerts_in
from paywarden.streams.alerts.alerts import Alert, AlertSettings, Comparison, State
from paywarden.streams.drift.drift_counts import base_version
from paywarden.streams.drift.drift_metrics import DetectionMetrics
from paywarden.streams.drift.drift_settings import TrainingComparisonSettings
from paywarden.streams.drift.learning import FollowedLevels, LiveReferences
from paywarden.streams.drift.training_watch import TrainingWatch, pack, unpack

_log = logging.getLogger(__name__)

# One watch in the packed state: the length of its version's name and of its own state, in bytes.
_ENTRY = struct.Struct("<HI")
# The entry with the state of the comparison with training. No model version has an empty name.
_TRAINING = ""
_SILENT_MS = DAY_MS

Acknowledgements = Callable[[], Iterable[Acknowledgement]]
"""Returns all acknowledgements, the oldest first."""


class AlertTeller(Protocol):
    """Sends alerts to their topic."""

    def send(self, alert: Alert, record: dict[str, Any]) -> None:
        """Queue an alert, with its record."""

    def flush(self) -> None:
        """Return once all queued alerts are on the topic. Raises BrokerUnavailable."""


class DriftDetection:
    """The Detection that streams/drift/drift_evaluation.py calls, one call at a time."""

    def __init__(
        self,
        references: Mapping[str, Reference],
        live: LiveReferences,
        *,
        detectors: DetectorSettings,
        alerts: AlertSettings,
        teller: AlertTeller,
        acknowledgements: Acknowledgements,
        metrics: DetectionMetrics,
        training: TrainingComparisonSettings | None = None,
    ) -> None:
        """`references`: the references of bundles, by model version. `training`: the default settings if None."""
        self._references, self._live = dict(references), live
        self._levels = FollowedLevels(references.values())
        self._watches = DriftWatches(self._signals_of, detectors, alerts, training or TrainingComparisonSettings())
        self._teller, self._acknowledgements, self._metrics = teller, acknowledgements, metrics

    def learn(self, reference: Reference) -> None:
        """Compare decisions of one more model with its reference, from the next block on."""
        self._references[reference.model_version] = reference
        self._levels.add(reference)

    def restore(self, state: bytes) -> None:
        """Continue from a state that `state` returned; with empty or damaged bytes, start again."""
        try:
            self._restore(state)
        except InvalidEvent as error:
            _log.warning("drift detection starts again, and open alerts are not cleared: %s", error)
            self._restore(b"")

    def _restore(self, state: bytes) -> None:
        watches = self._levels.restore(state)
        self._watches.restore(watches, lambda version: self._references.get(base_version(version)))

    def evaluate(self, start_ms: int, length_ms: int, counts: Mapping[str, Counts]) -> None:
        """Evaluate a block.

        Raises StoreUnavailable if the past cannot be read, BrokerUnavailable if the alerts could not be sent.
        """
        references = {version: self._references_of(version, start_ms) for version in counts}
        blocks = {
            version: self._block(references[version], of_version, start_ms, length_ms)
            for version, of_version in counts.items()
        }
        if length_ms == DAY_MS:
            self._follow(start_ms, counts)
        for said in self._acknowledgements():
            self._watches.acknowledge(said)
        alerts = self._watches.step(blocks, start_ms + length_ms)
        if length_ms == DAY_MS:
            alerts += self._compare_with_training(start_ms, counts)
        for alert in alerts:
            version = alert.model_version
            self._tell(alert, references.get(version, ()), counts.get(version))
        if alerts:
            self._teller.flush()
        for version, of_version in counts.items():
            own = self._references.get(base_version(version))
            if own is not None:
                self._metrics.note(version, length_ms, own, of_version)
        self._metrics.open_alerts(self._watches.open_alerts)

    def state(self) -> bytes:
        """Return the state that all blocks so far have led to."""
        return self._levels.to_bytes() + self._watches.to_bytes()

    def _compare_with_training(self, day_ms: int, counts: Mapping[str, Counts]) -> list[Alert]:
        """Compare the week that ends with this day with the training window of each version that has one."""
        own = {version: self._references.get(base_version(version)) for version in counts}
        there = {version: (reference, counts[version]) for version, reference in own.items() if reference is not None}
        alerts = self._watches.compare(day_ms, there)
        for version in there:
            week = self._watches.week_of(version)
            if week is not None:
                self._metrics.training(version, week.distances)
        return alerts

    def _references_of(self, version: str, time_ms: int) -> tuple[Reference, ...]:
        both = self._references.get(base_version(version)), self._live.of(version, time_ms)
        return tuple(reference for reference in both if reference is not None)

    def _signals_of(self, version: str) -> tuple[Signal, ...]:
        both = self._references.get(base_version(version)), self._live.nothing_of(version)
        return tuple(signal for reference in both if reference is not None for signal in reference.layout.signals)

    def _block(self, references: tuple[Reference, ...], counts: Counts, start_ms: int, length_ms: int) -> Block:
        """Return the block of all signals of a version."""
        first, *others = references
        # A learnt reference follows live decisions by itself, so only a bundle's reference moves.
        moved = self._levels.of(first) if Kinds.INPUTS in first.kinds else None
        block = first.block(counts, start_ms, length_ms, moved)
        for other in others:
            block = block.joined(other.block(counts, start_ms, length_ms))
        return block

    def _follow(self, start_ms: int, counts: Mapping[str, Counts]) -> None:
        """Move the levels by one day. If a model has variants, the one with the most payments decides."""
        # Sorted by size, so the variant with the most payments is the last and stays.
        by_size = sorted(counts.items(), key=lambda item: (int(item[1].payments[0]), item[0]))
        most = {base_version(version): of_version for version, of_version in by_size}
        for version, reference in self._references.items():
            if version in most:
                moved = self._levels.of(reference)
                self._levels.follow(reference, reference.block(most[version], start_ms, DAY_MS, moved))

    def _tell(self, alert: Alert, references: tuple[Reference, ...], current: Counts | None) -> None:
        context: dict[str, Any] = {}
        reference: Reference | None = None
        week = self._watches.week_of(alert.model_version)
        if alert.comparison is Comparison.TRAINING:
            segment = 0
            if week is not None:
                reference, context["histograms"] = week.reference, week.histograms(alert)
        else:
            reference = next((one for one in references if alert.signal in one.layout.numbers), None)
            segment = 0 if reference is None else reference.layout.segments.index(alert.segment)
            if reference is not None and current is not None:
                context["histograms"] = histograms_of(alert.subject, segment, reference, current)
                context["flags"] = flag_shares(current, segment)
        if reference is not None:
            context["reference_count"] = int(reference.counts.payments[segment])
            context["reference_times_ms"] = (reference.start_ms, reference.end_ms)
        self._teller.send(alert, record_of(alert, **context))


def flag_shares(counts: Counts, segment: int) -> dict[str, float]:
    """Return the share of a segment's payments that had each flag. Flags that no payment had are left out."""
    payments = int(counts.payments[segment])
    flag_counts = zip(counts.binning.flags, counts.flags[segment].tolist(), strict=False)
    return {flag: count / payments for flag, count in flag_counts if count}


def histograms_of(subject: str, segment: int, reference: Reference, current: Counts) -> Histograms | None:
    """Return the histograms of a subject in one segment; None if the subject is no distribution."""
    binning, expected = reference.binning, reference.counts
    if subject == "score":
        return Histograms.of_score(binning, expected.scores[segment], current.scores[segment])
    if subject == PROFILE_AGE:
        return Histograms.of_ages(expected.ages[segment], current.ages[segment])
    if subject.startswith(FEATURE_PREFIX):
        feature = reference.feature_names.index(subject.removeprefix(FEATURE_PREFIX))
        return Histograms.of_feature(
            binning, feature, expected.features[segment, feature], current.features[segment, feature]
        )
    return None


class DriftWatches:
    """A watch for each model version, and its comparison with training. Not thread-safe.

    `signals_of` returns a version's signals in the order of its blocks. A version without signals is not watched.
    """

    def __init__(
        self,
        signals_of: Callable[[str], Sequence[Signal]],
        detectors: DetectorSettings,
        alerts: AlertSettings,
        training: TrainingComparisonSettings,
    ) -> None:
        self._signals_of, self._detectors, self._alerts, self._training = signals_of, detectors, alerts, training
        self._watches: dict[str, DriftWatch] = {}
        # The comparisons outlive a day without decisions, and their state as bytes: it changes once a day.
        self._weeks: dict[str, TrainingWatch] = {}
        self._packed_weeks: bytes | None = None
        # Open alerts of versions that are no longer watched: the next block clears them.
        self._orphans: list[Alert] = []

    def step(self, blocks: Mapping[str, Block], end_ms: int) -> list[Alert]:
        """Evaluate the blocks of one span of time, by version; return the alerts raised, escalated or cleared."""
        alerts = [replace(alert, state=State.CLEARED, time_ms=end_ms) for alert in self._orphans]
        self._orphans = []
        for version, block in sorted(blocks.items()):
            watch = self._watches.get(version) or self._begin(version)
            alerts += watch.step(block) if watch is not None else []
        for version, watch in sorted(self._watches.items()):
            if end_ms - max(watch.seen_to_ms.values()) >= _SILENT_MS:
                alerts += watch.book.close(end_ms)
                del self._watches[version]
        return alerts

    def compare(self, day_ms: int, counts: Mapping[str, tuple[Reference, Counts]]) -> list[Alert]:
        """Take a day's counts by version, each with its reference, once `step` has its block.

        Returns the alerts of the comparison with training that were raised, escalated, repeated or cleared.
        """
        self._packed_weeks = None
        end_ms, alerts = day_ms + DAY_MS, list[Alert]()
        for version, watch in sorted(self._watches.items()):
            if version not in counts:
                alerts += watch.book.close(end_ms, Comparison.TRAINING)
                continue
            reference, of_version = counts[version]
            week = self._weeks.get(version)
            if week is None or week.reference is not reference:
                alerts += watch.book.close(end_ms, Comparison.TRAINING)
                week = self._weeks[version] = TrainingWatch(version, reference, self._training)
            alerts += week.step(day_ms, of_version, watch.book)
        self._weeks = {version: week for version, week in self._weeks.items() if not week.is_idle(end_ms)}
        return alerts

    def week_of(self, version: str) -> TrainingWatch | None:
        """Return the comparison of a version with its training; None if there is none."""
        return self._weeks.get(version)

    def _begin(self, version: str) -> DriftWatch | None:
        signals = self._signals_of(version)
        if not signals:
            return None
        watch = self._watches[version] = DriftWatch(version, signals, self._detectors, self._alerts)
        return watch

    def acknowledge(self, said: Acknowledgement) -> bool:
        """Note that somebody has seen an alert. Returns False if no such alert is open."""
        books = [watch.book for watch in self._watches.values()]
        return any(book.acknowledge(said.alert_id, by=said.by, until_ms=said.until_ms) for book in books)

    @property
    def open_alerts(self) -> list[Alert]:
        """The open alerts of all versions."""
        return [alert for _, watch in sorted(self._watches.items()) for alert in watch.open_alerts]

    def to_bytes(self) -> bytes:
        """Return the whole state, for `restore`."""
        if self._packed_weeks is None:
            self._packed_weeks = pack(self._weeks)
        watches = b"".join(_entry(version, watch.to_bytes()) for version, watch in sorted(self._watches.items()))
        return watches + _entry(_TRAINING, self._packed_weeks)

    def restore(self, state: bytes, reference_of: Callable[[str], Reference | None]) -> None:
        """Restore the state that `to_bytes` returned; empty bytes begin from nothing. Raises InvalidEvent for damage.

        A version whose signals have changed begins from nothing, and so does the comparison of a version whose
        reference has changed. The next block clears their alerts, and those of versions that are no longer watched.
        """
        states = _states_in(state)
        weeks = unpack(states.pop(_TRAINING, b""), reference_of, self._training)
        self._watches, self._orphans, self._weeks, self._packed_weeks = {}, [], weeks, None
        for version, part in states.items():
            watch = self._begin(version)
            if watch is None:
                self._orphans += open_alerts_in(part)
                continue
            try:
                watch.restore(part)
            except InvalidEvent as error:
                _log.warning("drift detection of model %s starts again: %s", version, error)
                del self._watches[version]
                self._orphans += open_alerts_in(part)
            if version not in weeks:
                self._orphans += watch.book.close(0, Comparison.TRAINING)


def _entry(version: str, state: bytes) -> bytes:
    """Return a state under a name; nothing for an empty state."""
    name = version.encode()
    return _ENTRY.pack(len(name), len(state)) + name + state if state else b""


def _states_in(state: bytes) -> dict[str, bytes]:
    states, place = {}, 0
    while place < len(state):
        if place + _ENTRY.size > len(state):
            raise InvalidEvent("the state of drift detection is damaged: it is cut off")
        name_bytes, state_bytes = _ENTRY.unpack_from(state, place)
        middle = place + _ENTRY.size + name_bytes
        place = middle + state_bytes
        if place > len(state):
            raise InvalidEvent("the state of drift detection is damaged: it is cut off")
        try:
            version = state[middle - name_bytes : middle].decode()
        except UnicodeDecodeError as error:
            raise InvalidEvent("the state of drift detection is damaged") from error
        states[version] = state[middle:place]
    return states
