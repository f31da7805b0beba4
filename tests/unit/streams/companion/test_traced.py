"""A decision on its topic has the trace of its request, and records of before have none."""

from __future__ import annotations

from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry, OutboxRecord
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.requests.trace_context import packed_trace
from paywarden.streams.companion.shipment import read_entry
from paywarden.streams.companion.shipping import decision_of

HEADER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
REQUEST = ScoreRequest(payment_id="p", event_time_ms=1, card_id="c", merchant_id="m", amount_minor=1, currency="EUR")
RESPONSE = ScoreResponse(payment_id="p", decision_id="d-1", action="approve", score=0.5)


def shipped(trace: bytes) -> object:
    record = OutboxRecord(
        request=REQUEST.SerializeToString(), response=RESPONSE.SerializeToString(), decided_time_ms=2, trace=trace
    )
    entry = read_entry(record.SerializeToString())
    assert isinstance(entry, OutboxEntry)
    ids = LocalSchemaIds()
    value = Encoder("decisions", ids.id_of("decisions")).encode(decision_of(entry))
    return Decoder("decisions", ids).decode(value)["traceparent"]


def test_the_decision_has_the_header_of_the_request() -> None:
    assert shipped(packed_trace(HEADER.encode())) == HEADER


def test_a_decision_without_a_trace_has_null() -> None:
    assert shipped(b"") is None
