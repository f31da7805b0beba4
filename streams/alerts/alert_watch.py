"""Watch one model version block by block: its detectors and its open alerts together, and their state as bytes.

The bytes hold the whole state: a restored watch continues exactly as the original would, to the bit. Their size is
bounded by the number of signals, at 86 bytes each (about 35 when packed), and by the open alerts. Each subject and each
segment has at most one open alert.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import astuple

import numpy as np

from paywarden.models.drift.detectors import DAY_MS, Detectors, DetectorSettings
from paywarden.models.drift.signals import Block, Signal
from paywarden.schemas.errors import InvalidEvent
from paywarden.streams.alerts.alerts import Alert, AlertSettings, State
from paywarden.streams.alerts.book import AlertBook, BlockFindings
from paywarden.streams.alerts.causes import Cause, SignalTable, cause_of

_FORMAT = 1
# The format, and the length of the JSON part in bytes.
_HEADER = struct.Struct("<BI")
_DIGEST_BYTES = 16
_START = _HEADER.size + _DIGEST_BYTES
# An open alert takes about 4 kB of JSON, so this is far more than there can be.
_HEAD_BYTES_MAX = 64 * 1024 * 1024
# Fast enough to pack the state once a block; higher levels save hardly one percent.
_ZLIB_LEVEL = 1
# Errors that reading damaged bytes may raise.
_UNREADABLE = (zlib.error, ValueError, KeyError, TypeError, AttributeError, RecursionError)


class DriftWatch:
    """Detectors and open alerts of one model version. Not thread-safe."""

    def __init__(
        self,
        model_version: str,
        signals: Sequence[Signal],
        detectors: DetectorSettings,
        alerts: AlertSettings,
        *,
        falls_only: bool = False,
        gone_after_ms: int = DAY_MS,
    ) -> None:
        """`falls_only`: see Detectors; `gone_after_ms`: see BlockFindings."""
        self.detectors = Detectors(signals, detectors, falls_only=falls_only)
        table = SignalTable(self.detectors.signals)
        minima = {signal: detectors.effect_min(signal) for signal in table.signals}
        self.book = AlertBook()
        self._findings = BlockFindings(model_version, table, alerts, minima, self.book, gone_after_ms)
        self._model_version = model_version
        # The end of the last block of each length: an earlier block is ignored.
        self.seen_to_ms: dict[int, int] = {}

    @property
    def open_alerts(self) -> list[Alert]:
        """The alerts that have not cleared, the oldest first."""
        return sorted(self.book.open.values(), key=lambda alert: (alert.raised_ms, alert.alert_id))

    def step(self, block: Block) -> list[Alert]:
        """Evaluate a block; return the alerts it raised, escalated or cleared.

        Blocks of one length come in order of time. A block that was evaluated before changes nothing.
        """
        if block.start_ms < self.seen_to_ms.get(block.length_ms, block.start_ms):
            return []
        if not self.seen_to_ms:
            # The version has only a part of an hour or a day that began earlier: a day from 23:00 on has other payments
            # than a day, and a single day may raise an alert.
            self.detectors.settle(range(len(self.detectors.signals)), block.start_ms)
        self.seen_to_ms[block.length_ms] = block.end_ms
        alerts = self._findings.step(block, self.detectors.step(block))
        for alert in alerts:
            if alert.state is State.CLEARED:
                self._settle(alert)
        return alerts

    def _settle(self, alert: Alert) -> None:
        """Keep an hour or a day that contains part of a cleared change from raising it again."""
        open_members = {index for other in self.book.open.values() for index in other.members}
        self.detectors.forget([index for index in alert.members if index not in open_members], alert.time_ms)
        reach = [index for index, signal in enumerate(self.detectors.signals) if _may_have_moved(alert, signal)]
        self.detectors.settle(reach, alert.time_ms)

    def to_bytes(self) -> bytes:
        """Return the whole state, for `restore`."""
        head = json.dumps(
            {
                "model_version": self._model_version,
                "seen_to_ms": sorted(self.seen_to_ms.items()),
                "open": [alert.to_dict() for alert in self.book.open.values()],
            },
            separators=(",", ":"),
        ).encode()
        arrays = b"".join(kept.tobytes() for kept in self.detectors.state)
        return _HEADER.pack(_FORMAT, len(head)) + self._digest() + zlib.compress(head + arrays, _ZLIB_LEVEL)

    def restore(self, state: bytes) -> None:
        """Restore the state that `to_bytes` returned. Raises InvalidEvent for other signals and for damaged bytes."""
        head_bytes = _head_bytes(state)
        if state[_HEADER.size : _START] != self._digest():
            raise InvalidEvent("the state of drift detection is of another model or other signals")
        whole = head_bytes + sum(kept.nbytes for kept in self.detectors.state)
        try:
            # Never unpack more than the state should hold, whatever the bytes say.
            content = zlib.decompressobj().decompress(state[_START:], whole + 1)
            if len(content) != whole:
                raise InvalidEvent("the state of drift detection is damaged: it is cut off or too long")
            head = json.loads(content[:head_bytes])
            alerts = [Alert.from_dict(fields) for fields in head["open"]]
            seen_to_ms = {int(length): int(end) for length, end in head["seen_to_ms"]}
        except _UNREADABLE as error:
            raise InvalidEvent("the state of drift detection is damaged") from error
        self.seen_to_ms = seen_to_ms
        self.book.open = {alert.alert_id: alert for alert in alerts}
        start = head_bytes
        for kept in self.detectors.state:
            kept[...] = np.frombuffer(content, kept.dtype, kept.size, start).reshape(kept.shape)
            start += kept.nbytes

    def _digest(self) -> bytes:
        """Return a digest of the model version and the signals, which the state belongs to."""
        text = "\n".join((self._model_version, *("\t".join(astuple(signal)) for signal in self.detectors.signals)))
        return hashlib.sha256(text.encode()).digest()[:_DIGEST_BYTES]


def open_alerts_in(state: bytes) -> list[Alert]:
    """Return the open alerts in a state that any watch's `to_bytes` returned. Raises InvalidEvent."""
    head_bytes = _head_bytes(state)
    try:
        head = json.loads(zlib.decompressobj().decompress(state[_START:], head_bytes))
        return [Alert.from_dict(fields) for fields in head["open"]]
    except _UNREADABLE as error:
        raise InvalidEvent("the state of drift detection is damaged") from error


def _head_bytes(state: bytes) -> int:
    if len(state) < _START or state[0] != _FORMAT:
        raise InvalidEvent("the state of drift detection is damaged or of another release")
    head_bytes = int(_HEADER.unpack_from(state)[1])
    if not 0 < head_bytes <= _HEAD_BYTES_MAX:
        raise InvalidEvent("the state of drift detection is damaged")
    return head_bytes


def _may_have_moved(alert: Alert, signal: Signal) -> bool:
    """Whether the change behind an alert can have moved this signal."""
    if signal.subject == alert.subject:
        return True
    cause = cause_of(signal.subject)
    if alert.cause is Cause.PROFILES:
        return cause is not Cause.TRAFFIC
    # A feature may move others that share its source; traffic moves everything.
    return alert.cause is Cause.TRAFFIC or cause > alert.cause or cause is alert.cause
