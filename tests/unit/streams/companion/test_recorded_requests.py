"""The companion reads and ships the record of any request that a worker answers."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given
from hypothesis import strategies as st

from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds
from paywarden.schemas.proto.scoring_pb2 import ScoreBatchRequest, ScoreRequest, ScoreResponse
from paywarden.schemas.proto.split_pb2 import SplitBatchRequest
from paywarden.scoring.engine.batching.batcher import Chunk
from paywarden.scoring.requests.json_form import JSON
from paywarden.scoring.requests.protobuf_form import PROTOBUF
from paywarden.scoring.state.outbox import OutboxReader
from paywarden.streams.companion.shipment import read_entry
from paywarden.streams.companion.shipping import decision_of
from tests.unit.scoring.engine.test_batches import World
from tests.worlds.endpoint.hostile_requests import groups, hostile_bodies
from tests.worlds.endpoint.http_world import NOW_MS

ids = st.text("abcXYZ019-é€", min_size=1, max_size=20)
sent_requests = st.builds(
    ScoreRequest,
    payment_id=ids,
    event_time_ms=st.integers(NOW_MS - 2000, NOW_MS + 500),
    card_id=ids,
    merchant_id=ids,
    device_id=st.none() | ids,
    ip=st.none() | st.just("10.0.0.1"),
    amount_minor=st.integers(0, 10_000_000),
    currency=st.just("EUR"),
    mcc=st.none() | st.just("5411"),
    country=st.none() | st.just("DE"),
    channel=st.none() | st.just("ecom"),
    utc_offset_minutes=st.none() | st.integers(-1439, 1439),
)
ENCODER = Encoder("decisions", LocalSchemaIds().id_of("decisions"))
DECODER = Decoder("decisions", LocalSchemaIds())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    # Without the decision cache: ids repeat between examples.
    made = World(tmp_path_factory.mktemp("world"), remembers=False)
    yield made
    made.close()


def understood(body: bytes) -> ScoreRequest:
    request = ScoreRequest.FromString(body)
    request.DiscardUnknownFields()
    return request


def as_json(request: ScoreRequest) -> bytes:
    return json.dumps({field.name: value for field, value in request.ListFields()}).encode()


def check(world: World, taken: list[bytes], expected: list[ScoreRequest | None]) -> None:
    """Score the requests and assert what the outbox holds about those that are answered. None: any, or no answer."""
    begun = world.outbox.position
    results = world.scorer.score(Chunk(taken), NOW_MS)
    answers = [ScoreResponse.FromString(each) for each in results if isinstance(each, bytes)]
    answered = [each for each, result in zip(expected, results, strict=True) if isinstance(result, bytes)]
    records = OutboxReader(world.where, "worker-0").read(begun, 1000) if answers else []
    assert len(records) == len(answers) == len(answered)
    for (_, payload), answer, request in zip(records, answers, answered, strict=True):
        entry = read_entry(payload)
        assert entry.response == answer
        assert entry.request == request
        assert len(UnknownFieldSet(entry)) == len(UnknownFieldSet(entry.request)) == 0
        decision = DECODER.decode(ENCODER.encode(decision_of(entry)))
        assert (decision["payment_id"], decision["card_id"]) == (entry.request.payment_id, entry.request.card_id)


@given(st.lists(sent_requests.map(lambda each: each.SerializeToString()) | hostile_bodies(sent_requests), max_size=4))
def test_every_record_about_protobuf_is_read_as_what_was_understood(world: World, bodies: list[bytes]) -> None:
    readable: list[tuple[bytes, ScoreRequest | None]] = []
    for body in bodies:
        try:
            readable.append((PROTOBUF.take(body), understood(body)))
        except Exception:  # noqa: BLE001 - protobuf refuses it, and so does the decoder
            readable.append((PROTOBUF.take(body), None))
    check(world, [taken for taken, _ in readable], [request for _, request in readable])


@given(st.lists(sent_requests, min_size=1, max_size=4))
def test_every_record_about_json_is_read_as_what_was_sent(world: World, sent: list[ScoreRequest]) -> None:
    check(world, [JSON.take(as_json(request)) for request in sent], [*sent])
    batch = b'{"requests":[%s]}' % b",".join(map(as_json, sent))
    check(world, [*JSON.take_batch(batch, 10)], [*sent])


@given(st.lists(sent_requests, min_size=1, max_size=4), st.data())
def test_nothing_unknown_in_a_batch_reaches_a_record(
    world: World, sent: list[ScoreRequest], data: st.DataObject
) -> None:
    extras = [data.draw(st.integers(0, 99).map(groups)) for _ in sent]
    requests = [request.SerializeToString() + extra for request, extra in zip(sent, extras, strict=True)]
    body = SplitBatchRequest(requests=requests).SerializeToString() + data.draw(st.integers(0, 100).map(groups))
    check(world, [*PROTOBUF.take_batch(body, 10)], [*sent])
    plain = ScoreBatchRequest(requests=sent).SerializeToString()
    check(world, [*PROTOBUF.take_batch(plain, 10)], [*sent])
