"""The Python client does what the vectors of all clients say, and its card numbers are those of the service."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.schemas.payment_fields import FIELDS, is_number_of_a_network, looks_like_card_number
from paywarden_client.answers import Decision, read_answer
from paywarden_client.attempts import REFUSED, CallPlan, cause_of, deadline_header
from paywarden_client.card_numbers import is_card_number
from paywarden_client.errors import WrongRequest, WrongSettings
from paywarden_client.payments import Payment, body_of
from paywarden_client.reconciling import next_due_ms
from paywarden_client.requests import headers_of
from paywarden_client.routing import host_order, route_of
from paywarden_client.stand_in import StandIn, StandInPolicy
from tests.checkout import CHECKOUT

VECTORS = CHECKOUT / "ops" / "clients" / "vectors"


def want_card_number(case: Any) -> Any:
    return is_card_number(case["field"], case["text"])


def want_route(case: Any) -> Any:
    return route_of(bytes.fromhex(case["key_hex"]), case["card_id"])


def want_hosts(case: Any) -> Any:
    return host_order(case["key"], case["urls"])


def want_request(case: Any) -> Any:
    payment = Payment(**case["payment"], fields=case.get("fields", {}))
    route_key = case.get("route_key_hex")
    try:
        body = body_of(payment)
    except WrongRequest as error:
        return {"wrong_field": error.field}
    headers = headers_of(
        deadline_header(case.get("left_ms", 40)),
        token=case.get("token"),
        route=None if route_key is None else route_of(bytes.fromhex(route_key), payment.card_id),
        traceparent=case.get("traceparent"),
    )
    return {"body": json.loads(body), "headers": dict(headers)}


def want_answer(case: Any) -> Any:
    try:
        found = read_answer(case["payment_id"], case["status"], case["body"].encode())
    except WrongRequest as error:
        return {"wrong_request": {"code": error.code, "field": error.field, "message": error.message}}
    return {"decision": decision_object(found)} if isinstance(found, Decision) else {"cause": found}


def decision_object(decision: Decision) -> Mapping[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(decision).items()}


def want_attempts(case: Any) -> Any:
    plan = CallPlan(case["order"], case["avoided"], case["pinned"])
    attempts: list[dict[str, Any]] = []
    pause_ms: float | None = 0
    for event in case["events"]:
        assert pause_ms is not None, "an event after the last attempt"
        attempts.append({"host": plan.host, "pause_ms": int(pause_ms)})
        met = event["met"]
        if met != REFUSED:
            plan.sent()
        pause_ms = plan.retry_pause_ms(met, event["left_ms"])
    assert pause_ms is None, "the last event has an attempt after it"
    ends: dict[str, Any] = {"attempts": attempts, "sent_to": plan.sent_to}
    if isinstance(met, str):
        return ends | {"cause": cause_of(met)}
    try:
        found = read_answer("p", met, b'{"payment_id": "p", "action": "approve"}')
    except WrongRequest:
        return ends | {"refused": True}
    return ends | ({"cause": found} if isinstance(found, str) else {"answered": True})


def want_policy(case: Any) -> Any:
    try:
        StandInPolicy.of(case)
    except WrongSettings as error:
        return {"wrong_at": error.where}
    return {"wrong_at": None}


def want_stand_ins(case: Any) -> Any:
    stand_in = StandIn(StandInPolicy.of(case["policy"]), case.get("cards_max", 100_000))
    decided = []
    for step in case["steps"]:
        decision = stand_in.decide(Payment(**step["payment"]), step["cause"], step["now_ms"])
        decided.append({"action": decision.action, "reasons": list(decision.reasons)})
    return decided


def want_reconciliation(case: Any) -> Any:
    due_ms = next_due_ms(case["asked"], case["since_ms"])
    return None if due_ms is None else int(due_ms)


COMPUTED: Mapping[str, Callable[[Any], Any]] = {
    "card_numbers": want_card_number,
    "routes": want_route,
    "deadlines": deadline_header,
    "hosts": want_hosts,
    "requests": want_request,
    "answers": want_answer,
    "attempts": want_attempts,
    "policies": want_policy,
    "stand_ins": want_stand_ins,
    "reconciliation": want_reconciliation,
}


def test_every_file_of_vectors_is_tried() -> None:
    assert {path.stem for path in VECTORS.glob("*.json")} == COMPUTED.keys()


@pytest.mark.parametrize("name", COMPUTED)
def test_the_client_does_what_the_vectors_say(name: str) -> None:
    cases = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))["cases"]
    assert len({case["name"] for case in cases}) == len(cases)
    for case in cases:
        # As JSON: a client of another language knows no tuples.
        assert json.loads(json.dumps(COMPUTED[name](case["in"]))) == case["want"], case["name"]


grouped = st.text("0123456789 -", max_size=30)
networks = st.builds(
    lambda begin, rest: begin + rest,
    st.sampled_from(("4", "51", "2221", "34", "3095", "6", "8171", "9")),
    st.text("0123456789", min_size=8, max_size=18),
)


@given(grouped | networks | st.text(max_size=20), st.sampled_from([field.name for field in FIELDS if field.is_text]))
def test_the_client_and_the_service_refuse_the_same_card_numbers(text: str, field: str) -> None:
    refused = looks_like_card_number(text) if field == "card_id" else is_number_of_a_network(text)
    # The client leaves digits that are not ASCII to the service.
    assert is_card_number(field, text) == (refused and text.isascii())
