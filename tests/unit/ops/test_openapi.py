"""The OpenAPI description: it has every field, answer and refusal, and allows what the endpoint takes."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
from hypothesis import given
from hypothesis import strategies as st

from paywarden.ops.openapi import openapi_document
from paywarden.schemas.payment_fields import PaymentFields
from paywarden.schemas.proto.scoring_pb2 import ScoreResponse
from paywarden.schemas.request_proto import field_rows
from paywarden.scoring.engine.batching import batcher
from paywarden.scoring.engine.batching.batcher import AdmissionSettings
from paywarden.scoring.http import refusals
from paywarden.scoring.http.http_settings import HttpSettings
from paywarden.scoring.metrics.worker_metrics import ROUTES
from paywarden.scoring.requests.json_form import JSON
from paywarden.scoring.requests.validation import RequestLimits
from tests.checkout import CHECKOUT
from tests.worlds.stream.declarations import declarations, declared_payments

STATUSES = (400, 401, 408, 409, 413, 415, 417, 429, 431, 500, 503, 504, 505)


def request_schema(document: dict[str, Any]) -> Any:
    return document["components"]["schemas"]["ScoreRequest"]


def operations(document: dict[str, Any]) -> dict[str, Any]:
    every = [operation for path in document["paths"].values() for operation in path.values()]
    return {operation["operationId"]: operation for operation in every}


@given(st.data())
def test_every_payment_of_a_declaration_fits_its_description(data: st.DataObject) -> None:
    declaration = data.draw(declarations())
    schema = request_schema(openapi_document(declaration.fields))
    assert list(schema["properties"]) == [row.name for row in field_rows(declaration.fields)]
    validator = jsonschema_rs.validator_for(schema)
    for payment in data.draw(declared_payments(declaration)):
        values = {name: value for name, value in payment.values.items() if name != "declined"}
        validator.validate(values)
        # null is absent, but for a field that is required.
        for name in schema["properties"]:
            assert validator.is_valid({**values, name: None}) == (name not in schema["required"])
            assert not validator.is_valid({**values, name: [values.get(name)]})


def test_every_route_of_the_server_is_described() -> None:
    assert operations(openapi_document()).keys() == set(ROUTES) - {"none"}


def test_the_file_has_each_refusal_and_the_fields_of_every_payment() -> None:
    document = openapi_document()
    assert document == json.loads((CHECKOUT / "ops" / "openapi.json").read_text(encoding="utf-8"))
    shown = {
        (status, *example["value"]["error"].values())
        for status, answer in zip(STATUSES, document["components"]["responses"].values(), strict=True)
        for example in answer["content"]["application/json"]["examples"].values()
    }
    of_http = [one for one in vars(refusals).values() if isinstance(one, refusals.HttpRefusal)]
    fixed = [
        one for one in vars(batcher).values() if isinstance(one, batcher.Refusal) and one is not batcher.NOT_DECIDED
    ]
    given = {(one.status, one.code, one.field, one.message) for one in of_http if one.status not in (404, 405)}
    given |= {(refusals.status_of(one.code), one.code, one.field, one.message) for one in fixed}
    assert given <= shown


def test_an_answer_has_the_described_fields_and_no_others() -> None:
    schema = openapi_document()["components"]["schemas"]["ScoreResponse"]
    full = ScoreResponse(payment_id="p", score=1.0, action="review", flags=["x"], reasons=["y"], profile_age_ms=0)
    answer = json.loads(JSON.render(full.SerializeToString()))
    assert answer.keys() == schema["properties"].keys()
    full.ClearField("profile_age_ms")
    assert json.loads(JSON.render(full.SerializeToString())).keys() == set(schema["required"])


def test_the_description_has_the_limits_of_the_configuration() -> None:
    limits = RequestLimits(id_bytes_max=20, amount_minor_max=500, batch_size_max=3, unknown_fields="ignore")
    document = openapi_document(
        PaymentFields(), limits=limits, http=HttpSettings(port=9, body_bytes_max=77), admission=AdmissionSettings()
    )
    schema = request_schema(document)
    assert "additionalProperties" not in schema
    assert schema["properties"]["card_id"]["maxLength"] == 20
    assert schema["properties"]["amount_minor"]["maximum"] == 500
    assert document["components"]["schemas"]["ScoreBatchRequest"]["properties"]["requests"]["maxItems"] == 3
    assert document["servers"] == [{"url": "http://localhost:9"}]
    assert "at most 77 bytes" in json.dumps(document["components"]["responses"])
