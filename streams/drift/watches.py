"""Detection of all model versions at once, each apart: what two models say is never compared.

A version is watched from its first block on; when that comes in the middle of an hour or a day, it is judged by what
it has of them, once that is enough. One that has no signals any more has its alerts cleared, and so has one without a
block for a day, which is then forgotten.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from paywarden.models.drift.detectors import DAY_MS, DetectorSettings
from paywarden.models.drift.signals import Block, Signal
from paywarden.schemas.errors import InvalidEvent
from paywarden.streams.alerts.alerts import Alert, AlertSettings, State
from paywarden.streams.alerts.records import Acknowledgement
from paywarden.streams.alerts.watch import DriftWatch, open_alerts_in

_log = logging.getLogger(__name__)

# Of one watch within the state: the bytes of its version's name, and of its own state.
_ENTRY = struct.Struct("<HI")
_SILENT_MS = DAY_MS


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
