import itertools
import time

import pytest

from paywarden.features.catalogue import fields
from paywarden.features.datasets.made_columns import with_declared_columns
from paywarden.features.datasets.simulator import simulate
from paywarden.ops.loadgen.bodies import stamped_bodies
from paywarden.ops.loadgen.traffic import requests_of
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.scoring.requests.format import Format
from paywarden.scoring.requests.json_form import JSON
from paywarden.scoring.requests.protobuf_form import PROTOBUF
from paywarden.scoring.requests.schema import RequestSchema

REQUESTS = [
    ScoreRequest(
        payment_id="old",
        event_time_ms=1,
        card_id=f"card-{number}",
        merchant_id="m",
        amount_minor=number,
        currency="EUR",
        mcc="5411",
        utc_offset_minutes=60,
    )
    for number in range(3)
]


@pytest.mark.parametrize("form", [PROTOBUF, JSON])
def test_bodies_repeat_the_requests_with_new_ids_and_times(form: Format) -> None:
    bodies = stamped_bodies(REQUESTS, id_prefix="a1", content_type=form.content_type)
    parsed = [
        ScoreRequest.FromString(taken if isinstance(taken, bytes) else taken.body)
        for taken in map(form.take, itertools.islice(bodies, 7))
    ]
    assert len({request.payment_id for request in parsed}) == 7
    assert {len(request.payment_id) for request in parsed} == {20}
    assert all(abs(request.event_time_ms - time.time() * 1000) < 60_000 for request in parsed)
    for index, request in enumerate(parsed):
        expected = REQUESTS[index % 3]
        request.payment_id, request.event_time_ms = expected.payment_id, expected.event_time_ms
        assert request == expected


@pytest.mark.parametrize("form", [PROTOBUF, JSON])
def test_bodies_have_the_fields_that_a_project_declares(form: Format) -> None:
    declared = fields.Payment(
        fields.text("customer_id", 1, required=True),
        fields.decimal("weight", 2, unit="kg", least=0, most=50, required=True),
        fields.flag("is_gift", 3, required=True),
        fields.email("buyer_email", 4, required=True),
        fields.integer("items", 5, unit="items", least=-9, most=9, required=True),
    ).fields
    payments, _ = simulate(cards=3, days=1, seed=1)
    requests = requests_of(with_declared_columns(payments.slice(0, 5), declared, seed=2), id_prefix="", fields=declared)
    schema = RequestSchema(declared)
    bodies = stamped_bodies(requests, id_prefix="a1", content_type=form.content_type)
    for request, body in zip(requests, bodies, strict=False):
        taken = form.take(body, schema)
        parsed = schema.message.FromString(taken if isinstance(taken, bytes) else taken.body)
        assert {"customer_id", "weight", "is_gift", "buyer_email", "items"} <= {f.name for f, _ in parsed.ListFields()}
        parsed.payment_id, parsed.event_time_ms = request.payment_id, request.event_time_ms
        assert parsed == request
