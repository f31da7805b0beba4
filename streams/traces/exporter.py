"""Reads topic decisions, and sends the spans of sampled ones to a collector of OpenTelemetry (OTLP over HTTP).

1. Read some records.
2. Make the spans of the sampled decisions.
3. Send them. While the collector is away, try again with growing pauses.
4. Commit.

A process of its own does it, so neither a scoring worker nor the companion ever waits for a collector. After a crash
some decisions come again, and give the same spans.
"""

from __future__ import annotations

import logging
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from threading import Event
from typing import Any

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from paywarden.schemas.avro import Decoder
from paywarden.schemas.errors import InvalidEvent, Misconfigured, TemporaryFailure
from paywarden.streams.kafka.reading import Record
from paywarden.streams.traces.spans import request_of, spans_of
from paywarden.streams.traces.trace_settings import TracingSettings

_log = logging.getLogger(__name__)

_PAUSE_S_FIRST, _PAUSE_S_MAX = 0.5, 30.0
# OTLP: statuses of a collector that is overloaded or away. Any other refusal would come again.
_TRY_AGAIN = frozenset({408, 429, 502, 503, 504})


class TraceExporter:
    """The loop. `read` returns records, `commit` commits all that were returned; neither blocks for long."""

    def __init__(
        self,
        settings: TracingSettings,
        decoder: Decoder,
        read: Callable[[], Sequence[Record]],
        commit: Callable[[], object],
        pause_first_s: float = _PAUSE_S_FIRST,
    ) -> None:
        self._settings, self._decoder, self._read, self._commit = settings, decoder, read, commit
        self._pause_first_s = pause_first_s
        self.sent = self.refused = self.undecodable = 0
        """Spans that the collector took, spans that it refused for good, and records that are no decisions."""

    def run(self, stop: Event) -> None:
        """Export until `stop` is set."""
        while not stop.is_set():
            if records := self._read():
                spans = [span for record in records for span in self._spans(record)]
                if spans and not self._send(spans, stop):
                    return
                self._commit()

    def _spans(self, record: Record) -> list[Span]:
        if record.value is None:
            return []
        try:
            decision: dict[str, Any] = self._decoder.decode(record.value)
        except InvalidEvent:
            self.undecodable += 1
            return []
        return spans_of(decision, record.timestamp_ms)

    def _send(self, spans: Sequence[Span], stop: Event) -> bool:
        """Send until the collector has taken or refused the spans. Returns False if stopped before."""
        body, pause_s = request_of(spans).SerializeToString(), self._pause_first_s
        while True:
            try:
                self._post(body)
            except TemporaryFailure as error:
                _log.warning("%s: trying again in %.1f s", error, pause_s)
                if stop.wait(pause_s):
                    return False
                pause_s = min(2 * pause_s, _PAUSE_S_MAX)
            except Misconfigured as error:
                _log.error("%s: %d spans are dropped", error, len(spans))
                self.refused += len(spans)
                return True
            else:
                self.sent += len(spans)
                return True

    def _post(self, body: bytes) -> None:
        """Raises TemporaryFailure if it is worth trying again, Misconfigured if not."""
        address = f"{self._settings.collector.rstrip('/')}/v1/traces"
        request = urllib.request.Request(address, body, {"Content-Type": "application/x-protobuf"})
        try:
            with urllib.request.urlopen(request, timeout=self._settings.timeout_s):
                return
        except urllib.error.HTTPError as error:
            with error:
                text = f"the collector at {address} answers {error.code}"
                raise (TemporaryFailure if error.code in _TRY_AGAIN else Misconfigured)(text) from error
        except OSError as error:
            raise TemporaryFailure(f"the collector at {address} does not answer: {error}") from error
