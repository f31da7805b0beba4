"""The clients of ops/clients do what their specification says: one suite, through the driver of each client."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.patience import PATIENCE_S
from tests.services.certificates import Authority
from tests.services.clients.client_drivers import CLIENTS, DRIVERS, Driver, typescript
from tests.services.fetch import ServiceMissing
from tests.services.hosts.scripted_host import ScriptedHost
from tests.services.product.processes import wait_until

# An answer must come on any machine; a call without an answer is given up soon.
PATIENT_MS, SHORT_MS = 30_000, 60
KEY = "00112233445566778899aabbccddeeff"
CARD_NUMBER = "4111111111111111"
REVIEW_LARGE = {
    "name": "p",
    "otherwise": "approve",
    "limits": [{"name": "large", "action": "review", "amount_over": {"EUR": 1000}}],
}


@pytest.fixture(scope="module", params=list(DRIVERS))
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    """One driver for the module. Each test gives it settings of its own."""
    try:
        command = DRIVERS[request.param]()
    except ServiceMissing as error:
        pytest.skip(str(error))
    with Driver(command) as running:
        yield running


def make(driver: Driver, *hosts: ScriptedHost, **settings: Any) -> None:
    # A connection that takes longer than it may is an attempt, and a busy machine takes longer than by default.
    patient = {"deadline_ms": PATIENT_MS, "connect_timeout_ms": PATIENT_MS}
    given = {"urls": [host.url for host in hosts], "events": ["call"]} | patient
    assert "ready" in driver.ask(settings=given | settings)
    # The client of the test before has ended.
    driver.drop_events()


def payment(payment_id: str, **more: Any) -> dict[str, Any]:
    return {
        "payment_id": payment_id,
        "event_time_ms": time.time_ns() // 1_000_000,
        "card_id": "card-1",
        "merchant_id": "merchant-1",
        "amount_minor": 1050,
        "currency": "EUR",
    } | more


def score(driver: Driver, payment_id: str, *, deadline_ms: int | None = None, **more: Any) -> dict[str, Any]:
    """Score a payment, and returns the decision or the refusal, with what the hook of calls got."""
    line: dict[str, Any] = {"score": payment(payment_id, **more)}
    if deadline_ms is not None:
        line["deadline_ms"] = deadline_ms
    found = driver.ask(**line)
    counted = event(driver, "call")
    while counted["operation"] != "score":
        counted = event(driver, "call")
    result: dict[str, Any] = found.get("decision") or found["wrong_request"]
    return result | {"outcome": counted["outcome"], "attempts": counted["attempts"]}


def event(driver: Driver, name: str) -> dict[str, Any]:
    """Returns the next event of this name; others are dropped."""
    while True:
        found = driver.event()
        if found["event"] == name:
            return found


def unused_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_request_has_body_and_headers_and_an_answer_is_a_decision(driver: Driver) -> None:
    with ScriptedHost() as host:
        make(driver, host, token="secret-token", route_key_hex=KEY, urls=[f"{host.url}/behind/"])
        decision = score(driver, "p-1", mcc="5411", fields={"is_gift": True})
    assert decision == {
        "payment_id": "p-1",
        "decision_id": "d-p-1",
        "score": 0.25,
        "action": "approve",
        "reasons": [],
        "model_version": "m-1",
        "flags": [],
        "profile_age_ms": 7,
        "stand_in": False,
        "outcome": "answered",
        "attempts": 1,
    }
    (request,) = host.requests
    assert request.path == "/behind/v1/score"
    assert request.payment == payment("p-1", mcc="5411", is_gift=True) | {
        "event_time_ms": request.payment["event_time_ms"]
    }
    assert request.headers["authorization"] == "Bearer secret-token"
    assert request.headers["content-type"] == "application/json"
    assert len(request.headers["x-paywarden-route"]) == 32
    assert PATIENT_MS / 2 < int(request.headers["x-deadline-ms"]) <= PATIENT_MS


@pytest.mark.parametrize("word", ["then_close", "say_close", "to_end", "old"])
def test_a_connection_that_ends_is_not_used_again_and_costs_no_attempt(driver: Driver, word: str) -> None:
    with ScriptedHost(word) as host:
        make(driver, host, idle_ms=PATIENT_MS)
        decisions = [score(driver, f"p-{number}") for number in range(3)]
    assert [decision["outcome"] for decision in decisions] == ["answered"] * 3
    assert host.connections == 3
    # Whether the end has arrived before the next call is a matter of moments where nobody has announced it.
    assert word == "then_close" or [decision["attempts"] for decision in decisions] == [1, 1, 1]


def test_a_kept_connection_that_its_host_has_closed_costs_no_attempt(driver: Driver) -> None:
    with ScriptedHost("then_close") as host:
        make(driver, host, idle_ms=PATIENT_MS)
        score(driver, "p-1")

        def is_closed() -> bool:
            # The end of the host's half has arrived, or the client has closed its own.
            open_to_host = [one for one in psutil.Process(driver.pid).net_connections("tcp") if one.raddr]
            return not any(one.raddr.port == host.port and one.status == "ESTABLISHED" for one in open_to_host)

        wait_until(is_closed, "the host has closed the connection")
        assert score(driver, "p-2")["attempts"] == 1


@pytest.mark.parametrize("word", ["break", "half", 503])
def test_a_call_that_breaks_is_retried_once_with_the_same_body(driver: Driver, word: str | int) -> None:
    with ScriptedHost(word, "answer") as host:
        make(driver, host)
        decision = score(driver, "p-1")
    assert (decision["stand_in"], decision["attempts"]) == (False, 2)
    first, second = host.requests
    assert first.body == second.body
    assert first.connection != second.connection or word == 503


@pytest.mark.parametrize(
    ("word", "cause"), [("break", "broken"), (503, "unavailable"), ("junk", "failed"), ("endless", "failed")]
)
def test_a_call_without_an_answer_gets_a_stand_in_by_the_policy(driver: Driver, word: str | int, cause: str) -> None:
    with ScriptedHost(word) as host:
        make(driver, host, policy=REVIEW_LARGE)
        decision = score(driver, "p-1")
    assert decision == {
        "payment_id": "p-1",
        "decision_id": "",
        "score": None,
        "action": "review",
        "reasons": [f"stand_in:{cause}", "limit:large"],
        "model_version": "",
        "flags": ["stand_in"],
        "profile_age_ms": None,
        "stand_in": True,
        "outcome": cause,
        "attempts": 2 if cause in ("broken", "unavailable") else 1,
    }


def test_a_host_that_is_silent_is_left_at_the_deadline(driver: Driver) -> None:
    with ScriptedHost("hang", "answer") as host:
        make(driver, host)
        decision = score(driver, "p-1", deadline_ms=SHORT_MS)
        assert (decision["outcome"], decision["attempts"]) == ("late", 1)
        # The late answer's connection is not used for the next call.
        assert score(driver, "p-2")["outcome"] == "answered"
    assert [request.connection for request in host.requests] == [0, 1]
    assert host.disturbed == 0
    assert int(host.requests[0].headers["x-deadline-ms"]) <= SHORT_MS


def test_a_wrong_request_is_an_error_and_no_stand_in(driver: Driver) -> None:
    with ScriptedHost(400) as host:
        make(driver, host)
        found = score(driver, "p-1")
    wanted = {"code": "some_code", "field": "some_field", "message": "is wrong", "outcome": "refused", "attempts": 1}
    assert found == wanted


@pytest.mark.parametrize("field", ["card_id", "payment_id", "device_id", "customer_id"])
def test_a_card_number_is_never_sent_nor_repeated(driver: Driver, field: str) -> None:
    before = len(driver.printed)
    with ScriptedHost() as host:
        make(driver, host)
        more = {"fields": {field: CARD_NUMBER}} if field == "customer_id" else {field: CARD_NUMBER}
        found = driver.ask(score=payment("p-1") | more)["wrong_request"]
    assert (found["field"], found["code"]) == (field, "not_sent")
    assert host.requests == []
    assert not [line for line in driver.printed[before:] if CARD_NUMBER in line]


@pytest.mark.parametrize(
    ("field", "value"), [("amount_minor", -1), ("currency", "eur"), ("event_time_ms", 1_700_000_000)]
)
def test_no_stand_in_approves_what_the_service_would_refuse(driver: Driver, field: str, value: object) -> None:
    """While the service was late, a stand-in approved a payment of -1."""
    with ScriptedHost("hang") as host:
        make(driver, host, deadline_ms=SHORT_MS, policy={"name": "p", "otherwise": "approve", "limits": []})
        found = driver.ask(score=payment("p-1") | {field: value})["wrong_request"]
    assert (found["field"], found["code"]) == (field, "not_sent")
    assert host.requests == []


# Several hosts


def test_a_host_that_refuses_hands_its_payments_to_the_other_one(driver: Driver) -> None:
    with ScriptedHost() as host:
        make(driver, host, urls=[unused_url(), host.url])
        decisions = [score(driver, f"p-{number}", card_id=f"card-{number}") for number in range(12)]
    assert {decision["outcome"] for decision in decisions} == {"answered"}
    assert len(host.requests) == 12


def test_a_card_keeps_its_host_and_cards_are_spread(driver: Driver) -> None:
    with ScriptedHost() as one, ScriptedHost() as other:
        make(driver, one, other)
        for number in range(40):
            score(driver, f"p-{number}", card_id=f"card-{number % 20}")
    first, second = ({request.payment["card_id"] for request in host.requests} for host in (one, other))
    assert len(first) + len(second) == 20
    assert min(len(first), len(second)) > 0


def test_a_host_that_says_close_is_avoided_for_a_while(driver: Driver) -> None:
    with ScriptedHost("say_close") as one, ScriptedHost("say_close") as other:
        # A deadline that never ends, so that only the order of hosts decides.
        make(driver, one, other)
        score(driver, "p-1")
        leaving, staying = (one, other) if one.requests else (other, one)
        staying.script("answer")
        assert score(driver, "p-2")["attempts"] == 1
    # Unless a second has passed between the two calls.
    assert len(leaving.requests) + len(staying.requests) == 2
    assert len(leaving.requests) >= 1


def test_a_payment_that_was_sent_is_never_sent_to_another_host(driver: Driver) -> None:
    with ScriptedHost("break") as one, ScriptedHost("break") as other:
        make(driver, one, other)
        for number in range(8):
            assert score(driver, f"p-{number}", card_id=f"card-{number}")["outcome"] == "broken"
    sent = [{request.payment["payment_id"] for request in host.requests} for host in (one, other)]
    assert sent[0] & sent[1] == set()
    assert len(sent[0] | sent[1]) == 8


def test_a_payment_that_is_asked_again_goes_where_it_was_sent(driver: Driver) -> None:
    """Also if its host is avoided meanwhile. Until it has an answer, nobody knows whether that host has decided."""
    with ScriptedHost("break") as one, ScriptedHost("break") as other:
        make(driver, one, other)
        assert score(driver, "p-1")["outcome"] == "broken"
        leaving = one if one.requests else other
        leaving.script("say_close")
        score(driver, "p-2")
        assert score(driver, "p-1")["outcome"] == "answered"
    staying = other if leaving is one else one
    assert "p-1" not in {request.payment["payment_id"] for request in staying.requests}


# Reconciliation, shadow, close


def test_a_stand_in_is_reconciled_with_the_answer_that_comes_later(driver: Driver) -> None:
    with ScriptedHost("break", "break", "answer") as host:
        make(driver, host)
        assert score(driver, "p-1")["stand_in"] is True
        found = event(driver, "reconciled")
    assert found == {"event": "reconciled", "payment_id": "p-1", "end": "answered", "action": "approve"}
    assert len({request.body for request in host.requests}) == 1


def test_a_full_queue_and_a_closed_client_tell_of_each_stand_in(driver: Driver) -> None:
    with ScriptedHost("hang") as host:
        make(driver, host, queue_max=1, deadline_ms=SHORT_MS)
        assert driver.ask(score=payment("p-1"))["decision"]["stand_in"] is True
        assert driver.ask(score=payment("p-2"))["decision"]["stand_in"] is True
        assert event(driver, "reconciled") == {
            "event": "reconciled",
            "payment_id": "p-2",
            "end": "full",
            "action": None,
        }
        # Settings that come again close the client before.
        driver.ask(settings={"urls": [host.url]})
        assert event(driver, "reconciled") == {
            "event": "reconciled",
            "payment_id": "p-1",
            "end": "closed",
            "action": None,
        }


@pytest.mark.parametrize(
    ("word", "action", "cause"), [("answer", "approve", ""), ("hang", None, "late"), (429, None, "overloaded")]
)
def test_shadow_mode_returns_the_callers_own_decision(
    driver: Driver, word: str | int, action: str | None, cause: str
) -> None:
    with ScriptedHost(word) as host:
        make(driver, host, deadline_ms=SHORT_MS if word == "hang" else PATIENT_MS)
        assert driver.ask(shadow=payment("p-1"), own="decline") == {"own": "decline"}
        found = event(driver, "shadow")
    assert found == {"event": "shadow", "payment_id": "p-1", "own": "decline", "action": action, "cause": cause}


def test_a_call_that_finds_no_free_connection_in_time_is_busy(driver: Driver) -> None:
    with ScriptedHost("hang") as host:
        make(driver, host, connections_max=1)
        driver.ask(shadow=payment("p-1"), own="approve")
        wait_until(lambda: bool(host.requests), "the shadow call has the connection")
        assert score(driver, "p-2", deadline_ms=SHORT_MS)["outcome"] == "busy"
    assert event(driver, "shadow")["action"] is None


# TLS and settings


def test_a_client_trusts_its_authority_alone(driver: Driver, tmp_path: Path) -> None:
    ours, other = Authority(tmp_path), Authority(tmp_path, "other")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*ours.sign("server"))
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_verify_locations(ours.path)
    certificate, key = ours.sign("client")
    with ScriptedHost(tls=server) as host:
        make(driver, host, ca=ours.path, certificate=certificate, key=key)
        assert [score(driver, f"p-{number}")["outcome"] for number in range(2)] == ["answered", "answered"]
        make(driver, host, ca=other.path, certificate=certificate, key=key)
        assert score(driver, "p-3")["outcome"] == "unreachable"
    assert len(host.requests) == 2


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"urls": []}, "urls"),
        ({"urls": ["ftp://host"]}, "urls"),
        ({"urls": ["http://host?x=1"]}, "urls"),
        ({"deadline_ms": 0}, "deadline_ms"),
        ({"token": "two words"}, "token"),
        ({"route_key_hex": "00ff"}, "route_key"),
        ({"policy": {"name": "p", "otherwise": "maybe"}}, "otherwise"),
        ({"urls": ["https://host"], "ca": "/nowhere"}, "ca"),
        ({"certificate": "/nowhere"}, "key"),
    ],
)
def test_a_wrong_setting_is_named_when_the_client_is_made(driver: Driver, settings: dict[str, Any], where: str) -> None:
    assert driver.ask(settings={"urls": ["http://127.0.0.1:1"]} | settings) == {"wrong_settings": where}


# Vectors


def _typescript_tests(file: str) -> str:
    """Returns what node prints of a file of the client's own tests. Skips without node."""
    try:
        built = typescript()
    except ServiceMissing as error:
        pytest.skip(str(error))
    done = subprocess.run(
        ["node", "--test", f"dist/test/{file}.test.js"],
        cwd=built,
        env={**os.environ, "PAYWARDEN_VECTORS": str(CLIENTS / "vectors")},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def test_the_typescript_client_passes_all_vectors() -> None:
    printed = _typescript_tests("vectors")
    counted = {name: int(count) for name, count in re.findall(r"^(?:#|ℹ) (pass|fail|skipped) (\d+)$", printed, re.M)}
    cases = sum(len(json.loads(path.read_text("utf-8"))["cases"]) for path in (CLIENTS / "vectors").glob("*.json"))
    assert counted == {"pass": cases, "fail": 0, "skipped": 0}


def test_the_typescript_client_bears_a_loop_that_stands_still() -> None:
    _typescript_tests("client")
