"""Requests with fields that a project declares, over HTTP; and what gRPC's reflection tells of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from paywarden.features.catalogue import fields
from paywarden.features.catalogue.entity import Catalogue, Entity
from paywarden.features.catalogue.fields import Payment
from paywarden.features.profiles.money import RATE_SCALE, RateTable
from paywarden.features.profiles.plan import compile_plan
from paywarden.schemas.proto import reflection_pb2
from paywarden.schemas.proto.split_pb2 import SplitBatchRequest
from paywarden.scoring.grpc.services import Reflection
from paywarden.scoring.requests.validation import RequestLimits
from tests.oracles.step_decoder import StepDecoder
from tests.worlds.endpoint.http_world import Client, Served, payment, post_json, post_protobuf, serving

customer = Entity("customer", "customer_id")
PAYMENT = Payment(
    fields.text("customer_id", 1, required=True), fields.decimal("weight", 2, unit="kg", least=0, most=500)
)
PLAN = compile_plan(Catalogue([customer], [customer.count("payments", "1d")], PAYMENT))
DECODER = StepDecoder(PLAN, RateTable({"EUR": [(0, RATE_SCALE)]}), RequestLimits(batch_size_max=4))


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(intake=DECODER) as running:
        yield running


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with served.connected() as connected:
        yield connected


def sent(payment_id: str, **more: Any) -> dict[str, Any]:
    return {**payment(payment_id), "customer_id": "c-9", "weight": 12, **more}


def test_a_payment_with_declared_fields_is_scored_in_both_formats(client: Client, served: Served) -> None:
    assert client.ask(post_json(sent("json"))).status == 200
    assert client.ask(post_protobuf(DECODER.schema.message(**sent("protobuf")))).status == 200
    batch = {"requests": [sent("batch-1"), sent("batch-2", weight=0.5)]}
    assert client.ask(post_json(batch, path="/v1/score:batch")).status == 200
    bodies = [DECODER.schema.message(**sent(f"batch-{number}")).SerializeToString() for number in (3, 4)]
    assert client.ask(post_protobuf(SplitBatchRequest(requests=bodies), path="/v1/score:batch")).status == 200
    assert served.scorer.seen == ["json", "protobuf", "batch-1", "batch-2", "batch-3", "batch-4"]


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"customer_id": None}, "customer_id", "is missing or empty; wanted printable text of 1 to 256 bytes"),
        ({"weight": "heavy"}, "weight", "is text; wanted a number from 0 to 500"),
        ({"weight": 501}, "weight", "is out of bounds; wanted a number from 0 to 500"),
        ({"wieght": 5}, "wieght", "is not a field of a request"),
        ({"customer_id": "4111 1111 1111 1111"}, "customer_id", "looks like a real card number; wanted"),
    ],
)
def test_a_wrong_field_is_refused_by_name(client: Client, changes: dict[str, Any], field: str, message: str) -> None:
    reply = client.ask(post_json(sent("wrong", **changes)))
    assert reply.status == 400
    assert reply.error["field"] == field
    assert reply.error["message"].startswith(message)
    batch = client.ask(post_json({"requests": [sent("right"), sent("wrong", **changes)]}, path="/v1/score:batch"))
    assert batch.error["field"] == f"requests[1].{field}"


def test_reflection_tells_the_fields_of_the_deployment() -> None:
    asked = reflection_pb2.ServerReflectionRequest(file_containing_symbol="paywarden.scoring.v1.ScoreRequest.weight")
    answer = Reflection(PAYMENT.fields).answer(asked.SerializeToString())
    assert isinstance(answer, bytes)
    found = reflection_pb2.ServerReflectionResponse.FromString(answer).file_descriptor_response
    file = FileDescriptorProto.FromString(found.file_descriptor_proto[0])
    request = next(message for message in file.message_type if message.name == "ScoreRequest")
    assert {field.name: field.number for field in request.field if field.number > 100} == {
        "customer_id": 101,
        "weight": 102,
    }
