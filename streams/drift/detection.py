"""Blocks of counts in, alerts on their topic out: references, detectors and the book of alerts put together.

    counts of a block, by version ─► signals ─► DriftWatches ─► what was raised, escalated or cleared ─► topic
                  references ───────────┘            ▲
                  acknowledgements, read from their topic

An alert is on its topic before the state that knows of it is saved: after a crash it is told again, word for word.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from paywarden.models.drift.counts import Counts
from paywarden.models.drift.detectors import DAY_MS, DetectorSettings
from paywarden.models.drift.reference import Reference
from paywarden.models.drift.signal_layout import Kinds
from paywarden.models.drift.signals import FEATURE_PREFIX, PROFILE_AGE, Block, Signal
from paywarden.schemas.errors import InvalidEvent
from paywarden.streams.alerts.alerts import Alert, AlertSettings, State
from paywarden.streams.alerts.records import Acknowledgement, Histograms
from paywarden.streams.alerts.watch import DriftWatch, open_alerts_in
from paywarden.streams.drift.counts import base_version
from paywarden.streams.drift.learning import FollowedLevels, LiveReferences
from paywarden.streams.drift.metrics import DetectionMetrics

_log = logging.getLogger(__name__)

# Of one watch within the state: the bytes of its version's name, and of its own state.
_ENTRY = struct.Struct("<HI")
_SILENT_MS = DAY_MS

Acknowledgements = Callable[[], Iterable[Acknowledgement]]
"""All there are, the oldest first."""


class AlertTeller(Protocol):
    """Where alerts go."""

    def send(
        self,
        alert: Alert,
        *,
        histograms: Histograms | None = None,
        reference_count: int = 0,
        flags: Mapping[str, float] | None = None,
    ) -> None:
        """Queue an alert."""

    def flush(self) -> None:
        """On return all of them are where they should be. Raises BrokerUnavailable."""


class DriftDetection:
    """What drift_evaluation.py calls; see Detection there. One call at a time."""

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
    ) -> None:
        """`references`: of bundles, by model version."""
        self._references, self._live = dict(references), live
        self._levels = FollowedLevels(references.values())
        self._watches = DriftWatches(self._signals_of, detectors, alerts)
        self._teller, self._acknowledgements, self._metrics = teller, acknowledgements, metrics

    def restore(self, state: bytes) -> None:
        """Go on from a state that `state` returned; empty: from none."""
        try:
            self._watches.restore(self._levels.restore(state))
        except InvalidEvent as error:
            _log.warning("drift detection begins anew, and open alerts are not cleared: %s", error)
            self._watches.restore(self._levels.restore(b""))

    def evaluate(self, start_ms: int, length_ms: int, counts: Mapping[str, Counts]) -> None:
        """Take a block in.

        Raises StoreUnavailable where the past cannot be read, BrokerUnavailable where what was found could not be told.
        """
        references = {version: self._references_of(version, start_ms) for version in counts}
        blocks = {
            version: self._block(references[version], one, start_ms, length_ms) for version, one in counts.items()
        }
        if length_ms == DAY_MS:
            self._follow(start_ms, counts)
        for said in self._acknowledgements():
            self._watches.acknowledge(said)
        told = self._watches.step(blocks, start_ms + length_ms)
        for alert in told:
            version = alert.model_version
            self._tell(alert, references.get(version, ()), counts.get(version))
        if told:
            self._teller.flush()
        for version, one in counts.items():
            own = self._references.get(base_version(version))
            if own is not None:
                self._metrics.note(version, length_ms, own, one)
        self._metrics.open_alerts(self._watches.open_alerts)

    def state(self) -> bytes:
        """What all blocks so far have led to."""
        return self._levels.to_bytes() + self._watches.to_bytes()

    def _references_of(self, version: str, time_ms: int) -> tuple[Reference, ...]:
        both = self._references.get(base_version(version)), self._live.of(version, time_ms)
        return tuple(one for one in both if one is not None)

    def _signals_of(self, version: str) -> tuple[Signal, ...]:
        both = self._references.get(base_version(version)), self._live.nothing_of(version)
        return tuple(signal for one in both if one is not None for signal in one.layout.signals)

    def _block(self, references: tuple[Reference, ...], counts: Counts, start_ms: int, length_ms: int) -> Block:
        """All signals of a version."""
        first, *others = references
        # What is learnt of live decisions follows them by itself.
        moved = self._levels.of(first) if Kinds.INPUTS in first.kinds else None
        block = first.block(counts, start_ms, length_ms, moved)
        for other in others:
            block = block.joined(other.block(counts, start_ms, length_ms))
        return block

    def _follow(self, start_ms: int, counts: Mapping[str, Counts]) -> None:
        """A day moves the levels for what comes after it; of a model's variants, that of the one with most payments."""
        # The last one of several stays.
        by_size = sorted(counts.items(), key=lambda item: (int(item[1].payments[0]), item[0]))
        most = {base_version(version): one for version, one in by_size}
        for version, reference in self._references.items():
            if version in most:
                moved = self._levels.of(reference)
                self._levels.follow(reference, reference.block(most[version], start_ms, DAY_MS, moved))

    def _tell(self, alert: Alert, references: tuple[Reference, ...], current: Counts | None) -> None:
        reference = next((one for one in references if alert.signal in one.layout.numbers), None)
        if reference is None:
            self._teller.send(alert)
            return
        segment = reference.layout.segments.index(alert.segment)
        reference_count = int(reference.counts.payments[segment])
        if current is None:
            self._teller.send(alert, reference_count=reference_count)
            return
        self._teller.send(
            alert,
            histograms=histograms_of(alert.subject, segment, reference, current),
            reference_count=reference_count,
            flags=flag_shares(current, segment),
        )


def flag_shares(counts: Counts, segment: int) -> dict[str, float]:
    """Of the payments of a segment, the share that had each flag; flags that none had are left out."""
    payments = int(counts.payments[segment])
    found = zip(counts.binning.flags, counts.flags[segment].tolist(), strict=False)
    return {flag: count / payments for flag, count in found if count}


def histograms_of(subject: str, segment: int, reference: Reference, current: Counts) -> Histograms | None:
    """Of what a subject is about, in one segment; None where that is no histogram."""
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
    """A watch for each model version. Not thread-safe.

    `signals_of`: a version's, in the order in which its blocks have them; without any it is not watched.
    """

    def __init__(
        self, signals_of: Callable[[str], Sequence[Signal]], detectors: DetectorSettings, alerts: AlertSettings
    ) -> None:
        self._signals_of, self._detectors, self._alerts = signals_of, detectors, alerts
        self._watches: dict[str, DriftWatch] = {}
        # Open alerts of a state whose versions are watched no more: cleared with the next block.
        self._orphans: list[Alert] = []

    def step(self, blocks: Mapping[str, Block], end_ms: int) -> list[Alert]:
        """Take in the blocks of one span of time, by model version; returns alerts raised, escalated or cleared."""
        told = [replace(alert, state=State.CLEARED, time_ms=end_ms) for alert in self._orphans]
        self._orphans = []
        for version, block in sorted(blocks.items()):
            watch = self._watches.get(version) or self._begin(version)
            told += watch.step(block) if watch is not None else []
        for version, watch in sorted(self._watches.items()):
            if end_ms - max(watch.seen_to_ms.values()) >= _SILENT_MS:
                told += watch.close(end_ms)
                del self._watches[version]
        return told

    def _begin(self, version: str) -> DriftWatch | None:
        signals = self._signals_of(version)
        if not signals:
            return None
        watch = self._watches[version] = DriftWatch(version, signals, self._detectors, self._alerts)
        return watch

    def acknowledge(self, said: Acknowledgement) -> bool:
        """Note that somebody has seen an alert; False when no such alert is open."""
        watches = self._watches.values()
        return any(watch.acknowledge(said.alert_id, by=said.by, until_ms=said.until_ms) for watch in watches)

    @property
    def open_alerts(self) -> list[Alert]:
        """Of all versions."""
        return [alert for _, watch in sorted(self._watches.items()) for alert in watch.open_alerts]

    def to_bytes(self) -> bytes:
        """The whole state."""
        parts = []
        for version, watch in sorted(self._watches.items()):
            name, state = version.encode(), watch.to_bytes()
            parts += [_ENTRY.pack(len(name), len(state)), name, state]
        return b"".join(parts)

    def restore(self, state: bytes) -> None:
        """Become what `to_bytes` was taken of; of nothing, new. Raises InvalidEvent for damaged bytes.

        A version whose signals are others by now begins anew, and its alerts, as those of versions that are watched no
        more, are cleared with the next block.
        """
        found = _states_in(state)
        self._watches, self._orphans = {}, []
        for version, part in found.items():
            watch = self._begin(version)
            if watch is None:
                self._orphans += open_alerts_in(part)
                continue
            try:
                watch.restore(part)
            except InvalidEvent as error:
                _log.warning("drift detection of model %s begins anew: %s", version, error)
                del self._watches[version]
                self._orphans += open_alerts_in(part)


def _states_in(state: bytes) -> dict[str, bytes]:
    found, place = {}, 0
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
        found[version] = state[middle:place]
    return found
