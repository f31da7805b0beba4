"""Spans of sampled decisions reach a collector that speaks OTLP, once each, after any of its answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.requests.trace_context import packed_trace
from paywarden.streams.companion.shipping import decision_of
from paywarden.streams.kafka.reading import Record
from paywarden.streams.traces.exporter import TraceExporter
from paywarden.streams.traces.spans import spans_of
from paywarden.streams.traces.trace_settings import TracingSettings
from tests.services.servers.collector import Collector

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
DECIDED_MS, SHIPPED_MS = 1_700_000_000_000, 1_700_000_000_250
IDS = LocalSchemaIds()


def decision(number: int = 1, *, flags: str | None = "01", latency_us: int | None = 900) -> dict[str, Any]:
    """A decision as the companion makes it; `flags` None: its request had no trace."""
    header = "" if flags is None else f"00-{TRACE}-{PARENT}-{flags}"
    return decision_of(
        OutboxEntry(
            request=ScoreRequest(payment_id=f"p{number}", card_id="card-1", currency="EUR"),
            response=ScoreResponse(decision_id=f"d-{number}", action="decline", model_version="m-1"),
            decided_time_ms=DECIDED_MS,
            latency_us=latency_us,
            trace=packed_trace(header.encode()),
        )
    )


def record(made: dict[str, Any]) -> Record:
    value = Encoder("decisions", IDS.id_of("decisions")).encode(made)
    return Record("decisions", 0, 0, None, value, SHIPPED_MS, None)


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def export(address: str, batches: Sequence[Sequence[Record]]) -> tuple[TraceExporter, int]:
    """Export batches until there are none; returns the exporter and the number of commits."""
    stop, waiting, commits = threading.Event(), list(batches), 0

    def read() -> Sequence[Record]:
        if not waiting:
            stop.set()
            return ()
        return waiting.pop(0)

    def commit() -> None:
        nonlocal commits
        commits += 1

    exporter = TraceExporter(TracingSettings(address), Decoder("decisions", IDS), read, commit, pause_first_s=0.001)
    exporter.run(stop)
    return exporter, commits


def test_a_sampled_decision_is_two_spans_in_the_callers_trace(collector: Collector) -> None:
    export(collector.address, [[record(decision())]])
    score, ship = collector.spans
    assert {span.trace_id.hex() for span in (score, ship)} == {TRACE}
    assert (score.name, score.parent_span_id.hex()) == ("score", PARENT)
    assert (ship.name, ship.parent_span_id) == ("ship", score.span_id)
    assert score.end_time_unix_nano - score.start_time_unix_nano == 900_000
    assert (score.end_time_unix_nano, ship.end_time_unix_nano) == (DECIDED_MS * 1_000_000, SHIPPED_MS * 1_000_000)
    told = {attribute.key: attribute.value.string_value for attribute in score.attributes}
    assert told == {"paywarden.decision_id": "d-1", "paywarden.action": "decline", "paywarden.model_version": "m-1"}
    assert b"card-1" not in collector.taken[0].SerializeToString()


@pytest.mark.parametrize("flags", ["00", "02", None])
def test_a_decision_that_the_caller_did_not_sample_is_no_span(flags: str | None) -> None:
    assert spans_of(decision(flags=flags), SHIPPED_MS) == []


def test_a_decision_that_comes_again_gives_the_same_spans_and_others_give_others() -> None:
    first, again, other = (spans_of(decision(number), SHIPPED_MS) for number in (1, 1, 2))
    assert first == again
    assert len({span.span_id for span in (*first, *other)}) == 4


def test_a_span_never_ends_before_it_begins() -> None:
    for latency_us in (None, 0, 5):
        for shipped_ms in (0, DECIDED_MS - 5, SHIPPED_MS):
            for span in spans_of(decision(latency_us=latency_us), shipped_ms):
                assert span.start_time_unix_nano <= span.end_time_unix_nano


@pytest.mark.parametrize("decided_ms", [-(1 << 63), -1, 0, (1 << 63) - 1])
def test_a_decision_of_any_time_becomes_spans_that_can_be_sent(decided_ms: int) -> None:
    made = spans_of(decision() | {"decided_time_ms": decided_ms}, SHIPPED_MS)
    assert all(span.start_time_unix_nano <= span.end_time_unix_nano for span in made)
    assert len(made) == 2


def test_a_collector_that_is_overloaded_gets_every_span_later(collector: Collector) -> None:
    collector.answers = [503, 429, 502]
    exporter, commits = export(collector.address, [[record(decision(number))] for number in range(3)])
    assert collector.codes[:4] == [503, 429, 502, 200]
    assert (exporter.sent, exporter.refused, commits) == (6, 0, 3)
    assert len({span.span_id for span in collector.spans}) == 6


def test_a_refusal_for_good_drops_one_batch_and_goes_on(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    collector.answers = [400]
    exporter, commits = export(collector.address, [[record(decision(1))], [record(decision(2))]])
    assert (exporter.sent, exporter.refused, commits) == (2, 2, 2)
    assert "answers 400: 2 spans are dropped" in caplog.text


def test_nothing_is_committed_while_the_collector_is_away() -> None:
    stop = threading.Event()
    committed: list[object] = []

    def read() -> Sequence[Record]:
        # The next pause ends at once.
        stop.set()
        return [record(decision())]

    exporter = TraceExporter(
        TracingSettings("http://127.0.0.1:1"), Decoder("decisions", IDS), read, lambda: committed.append(1)
    )
    exporter.run(stop)
    assert (exporter.sent, committed) == (0, [])


def test_records_that_are_no_decisions_are_counted_and_passed_over(collector: Collector) -> None:
    wrong = record(decision())._replace(value=b"no decision")
    exporter, commits = export(collector.address, [[wrong, record(decision())._replace(value=None)]])
    assert (exporter.sent, exporter.undecodable, commits, collector.taken) == (0, 1, 1, [])
