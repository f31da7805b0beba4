"""Writes the vectors that all clients are tested with: ops/clients/vectors/*.json.

    python ops/clients/python/make_vectors.py [--check]

Each case has its input, chosen here, and its expected result, which the pure modules of the Python client compute.
`--check` writes nothing: it names the files that differ from the ones it would write, and exits with 1.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from paywarden_client.answers import Decision, read_answer
from paywarden_client.attempts import BROKEN, REFUSED, CallPlan, cause_of, deadline_header
from paywarden_client.card_numbers import is_card_number
from paywarden_client.errors import WrongRequest, WrongSettings
from paywarden_client.payments import Payment, body_of
from paywarden_client.reconciling import next_due_ms
from paywarden_client.requests import headers_of
from paywarden_client.routing import host_order, route_of
from paywarden_client.stand_in import PAYMENTS_OF_CARD_MAX, StandIn, StandInPolicy

FOLDER = Path(__file__).parents[1] / "vectors"
KEY = "00112233445566778899aabbccddeeff"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

Case = tuple[str, Any]


# Expected results


def want_card_number(given: Any) -> Any:
    return is_card_number(given["field"], given["text"])


def want_route(given: Any) -> Any:
    return route_of(bytes.fromhex(given["key_hex"]), given["card_id"])


def want_hosts(given: Any) -> Any:
    return host_order(given["key"], given["urls"])


def want_request(given: Any) -> Any:
    payment = Payment(**given["payment"], fields=given.get("fields", {}))
    route_key = given.get("route_key_hex")
    try:
        body = body_of(payment)
    except WrongRequest as error:
        return {"wrong_field": error.field}
    headers = headers_of(
        deadline_header(given.get("left_ms", 40)),
        token=given.get("token"),
        route=None if route_key is None else route_of(bytes.fromhex(route_key), payment.card_id),
        traceparent=given.get("traceparent"),
    )
    return {"body": json.loads(body), "headers": dict(headers)}


def want_answer(given: Any) -> Any:
    try:
        found = read_answer(given["payment_id"], given["status"], given["body"].encode())
    except WrongRequest as error:
        return {"wrong_request": {"code": error.code, "field": error.field, "message": error.message}}
    return {"decision": decision_object(found)} if isinstance(found, Decision) else {"cause": found}


def decision_object(decision: Decision) -> Mapping[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(decision).items()}


def want_attempts(given: Any) -> Any:
    plan = CallPlan(given["order"], given["avoided"], given["pinned"])
    attempts: list[dict[str, Any]] = []
    pause_ms: float | None = 0
    for event in given["events"]:
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


def want_policy(given: Any) -> Any:
    try:
        StandInPolicy.of(given)
    except WrongSettings as error:
        return {"wrong_at": error.where}
    return {"wrong_at": None}


def want_stand_ins(given: Any) -> Any:
    stand_in = StandIn(StandInPolicy.of(given["policy"]), given.get("cards_max", 100_000))
    decided = []
    for step in given["steps"]:
        decision = stand_in.decide(Payment(**step["payment"]), step["cause"], step["now_ms"])
        decided.append({"action": decision.action, "reasons": list(decision.reasons)})
    return decided


def want_reconciliation(given: Any) -> Any:
    due_ms = next_due_ms(given["asked"], given["since_ms"])
    return None if due_ms is None else int(due_ms)


# Inputs


def card_numbers() -> Iterator[Case]:
    cards = {
        "Visa, 16 digits": "4111111111111111",
        "Visa, 13 digits": "4222222222222",
        "Visa, 19 digits": "4000000000000000006",
        "Mastercard": "5555555555554444",
        "Mastercard of the 2 series": "2223003122003222",
        "American Express": "378282246310005",
        "Diners Club": "30569309025904",
        "Discover": "6011111111111117",
        "JCB": "3530111333300000",
        "Maestro": "6304000000000000",
        "UnionPay": "6200000000000005",
        "UATP of no network": "100000000000009",
        "of a network, too short for it": "2223000000006",
    }
    for name, text in cards.items():
        yield f"{name}, as card", {"field": "card_id", "text": text}
        yield f"{name}, as payment", {"field": "payment_id", "text": text}
    for name, text in {
        "grouped by spaces": "4111 1111 1111 1111",
        "grouped by dashes": "4111-1111-1111-1111",
        "with a space in front": " 4111111111111111",
        "a wrong check digit": "4111111111111112",
        "12 digits": "411111111111",
        "12 digits with a right check digit": "400000000002",
        "20 digits": "41111111111111111115",
        "letters in front": "tok_4111111111111111",
        "letters behind": "4111111111111111x",
        "dots between": "4111.1111.1111.1111",
        "a token": "card-000001",
        "a UUID": "0f8fad5b-d9cb-469f-a165-70867728950e",
        "zeros": "0000000000000000",
        "dashes alone": "----------------",
        "digits that are not ASCII": "４１１１１１１１１１１１１１１１",
    }.items():
        yield name, {"field": "card_id", "text": text}
    for field in ("merchant_id", "device_id", "ip", "channel", "customer_id"):
        yield f"Visa in {field}", {"field": field, "text": "4111111111111111"}
    yield "an order number with a right check digit", {"field": "payment_id", "text": "1000000000000000009"}
    yield "an acquirer's merchant number", {"field": "merchant_id", "text": "000000000000000"}


def routes() -> Iterator[Case]:
    for card in ("card-000001", "c", "card-000002", "Kärtchen", "カード", "x" * 256, "tok_4f9c"):
        yield f"card {card[:12]}", {"key_hex": KEY, "card_id": card}
    yield "another key", {"key_hex": "ff" * 32, "card_id": "card-000001"}
    yield "a key longer than a block", {"key_hex": "ab" * 100, "card_id": "card-000001"}


def deadlines() -> Iterator[Case]:
    for left in (40, 39.97, 39.5, 39.49, 38.5, 1.4, 0.5, 0.2, 0, -3, 600_000, 700_000):
        yield f"{left} ms left", left


def hosts() -> Iterator[Case]:
    two = ["http://10.0.0.1:8080", "http://10.0.0.2:8080"]
    four = ["http://a:8080", "http://b:8080", "http://c:8080", "http://d:8080"]
    yield "one host", {"key": "x", "urls": two[:1]}
    for number in range(5):
        yield f"two hosts, key {number}", {"key": f"key-{number}", "urls": two}
    for number in range(4):
        yield f"four hosts, key {number}", {"key": f"{number:032x}", "urls": four}
    yield "the third of four is away", {"key": f"{1:032x}", "urls": [*four[:2], four[3]]}
    yield "a key that is not ASCII", {"key": "Kärtchen", "urls": four}


def requests() -> Iterator[Case]:
    base = {
        "payment_id": "p-1",
        "event_time_ms": 1700000000000,
        "card_id": "card-000001",
        "merchant_id": "merchant-0001",
        "amount_minor": 4999,
        "currency": "EUR",
    }
    whole = base | {
        "device_id": "d-1",
        "ip": "192.0.2.7",
        "mcc": "5411",
        "country": "DE",
        "channel": "ecom",
        "utc_offset_minutes": -60,
    }
    yield "the required fields", {"payment": base}
    yield "all fields", {"payment": whole}
    yield "an amount of 0", {"payment": base | {"amount_minor": 0, "utc_offset_minutes": 0}}
    yield "the largest amount", {"payment": base | {"amount_minor": 10**11}}
    yield "text beyond ASCII", {"payment": base | {"merchant_id": "Café Zoë", "channel": "カード"}}
    yield "quotes and a backslash", {"payment": base | {"merchant_id": 'a"b\\c/d'}}
    fields = {"customer_id": "c-9", "weight": 12.5, "is_gift": True, "basket": 3}
    yield "declared fields", {"payment": base, "fields": fields}
    yield "a declared field with the name of another", {"payment": base, "fields": {"mcc": "5411"}}
    yield "a token", {"payment": base, "token": "secret-token-0123456789"}
    yield "a route key", {"payment": base, "route_key_hex": KEY}
    yield "a trace", {"payment": base, "traceparent": TRACE}
    for name, trace in {
        "of another version": "01" + TRACE[2:],
        "in capital letters": TRACE.upper(),
        "that is cut": TRACE[:-1],
        "with more behind it": TRACE + "-x",
        "that is empty": "",
        "with a line feed": TRACE + "\n",
    }.items():
        yield f"a trace {name}", {"payment": base, "traceparent": trace}
    yield (
        "all headers",
        {
            "payment": whole,
            "token": "t" * 20,
            "route_key_hex": KEY,
            "traceparent": TRACE,
            "left_ms": 24.6,
        },
    )
    for field in ("payment_id", "card_id"):
        yield f"{field} is empty", {"payment": base | {field: ""}}
    for name, value in {
        "0": 0,
        "in seconds": 1_700_000_000,
        "in microseconds": 1_700_000_000_000_000,
        "before 2000": 946_684_799_999,
        "after 2099": 4_102_444_800_000,
        "negative": -1,
    }.items():
        yield f"a time that is {name}", {"payment": base | {"event_time_ms": value}}
    yield "the first time", {"payment": base | {"event_time_ms": 946_684_800_000}}
    yield "the last time", {"payment": base | {"event_time_ms": 4_102_444_799_999}}
    yield "a negative amount", {"payment": base | {"amount_minor": -1}}
    yield "an amount that is too large", {"payment": base | {"amount_minor": 10**11 + 1}}
    for text in ("", "eur", "EU", "EURO", "E1R", "EUR\n", "ÄÖÜ", "ＥＵＲ"):
        yield f"the currency {text!r}", {"payment": base | {"currency": text}}
    yield "a currency that nobody knows", {"payment": base | {"currency": "XXQ"}}
    for field in ("payment_id", "card_id", "merchant_id", "device_id", "ip", "channel"):
        yield f"a card number in {field}", {"payment": whole | {field: "4111111111111111"}}
    yield "a card number in a declared field", {"payment": base, "fields": {"customer_id": "5555 5555 5555 4444"}}
    yield "the first wrong field is named", {"payment": base | {"merchant_id": "4111111111111111", "card_id": ""}}


def answers() -> Iterator[Case]:
    right: dict[str, Any] = {
        "payment_id": "p-1",
        "decision_id": "69c4f3d72332924a-1",
        "score": 0.016212636562103123,
        "action": "approve",
        "reasons": [],
        "model_version": "m-a223efa542d7",
        "flags": ["unknown_merchant"],
        "profile_age_ms": 284,
    }

    def ok(changes: dict[str, Any], *without: str) -> Any:
        body = {name: value for name, value in (right | changes).items() if name not in without}
        return {"payment_id": "p-1", "status": 200, "body": json.dumps(body, ensure_ascii=False)}

    reasons = ["score_at_or_above_decline_threshold", "feature:card_count_1h=7 (+0.83)"]
    yield "approved", ok({})
    yield "declined with reasons", ok({"action": "decline", "score": 0.97, "reasons": reasons})
    yield (
        "in review, without a model",
        ok({"action": "review", "score": 0, "model_version": "", "flags": ["model_absent"]}),
    )
    yield "without an age", ok({}, "profile_age_ms")
    yield "an age of null", ok({"profile_age_ms": None})
    yield "a negative age", ok({"profile_age_ms": -5})
    yield "the largest age", ok({"profile_age_ms": 2**53 - 1})
    yield "only what must be there", ok({}, *(name for name in right if name not in ("payment_id", "action")))
    yield "a score of 1", ok({"score": 1})
    yield "names that nobody knows", ok({"later": {"a": [1]}, "more": None})
    yield "reasons beyond ASCII", ok({"reasons": ["rule:großer_betrag"]})
    wrong: dict[str, dict[str, Any]] = {
        "another payment": {"payment_id": "p-2"},
        "an unknown action": {"action": "maybe"},
        "an action in capital letters": {"action": "APPROVE"},
        "a score above 1": {"score": 1.5},
        "a score below 0": {"score": -0.1},
        "a score as text": {"score": "0.5"},
        "a score of true": {"score": True},
        "a score of null": {"score": None},
        "reasons that are no list": {"reasons": "x"},
        "a reason that is no text": {"reasons": [1]},
        "flags of null": {"flags": None},
        "a decision id that is a number": {"decision_id": 7},
        "a model version of null": {"model_version": None},
        "an age with a fraction": {"profile_age_ms": 1.5},
        "an age as text": {"profile_age_ms": "284"},
        "a NaN, which is no JSON, under a name that nobody knows": {"later": float("nan")},
        "an age that not all languages read exactly": {"profile_age_ms": 2**53},
        "an age beyond any whole number": {"profile_age_ms": 1e300},
    }
    for name, changes in wrong.items():
        yield name, ok(changes)
    yield "no action", ok({}, "action")
    yield "no payment id", ok({}, "payment_id")
    for name, body in {"nothing": "", "no JSON": "<html>", "cut": '{"payment_id": "p-1"', "a list": "[]"}.items():
        yield f"a body that is {name}", {"payment_id": "p-1", "status": 200, "body": body}
    error = '{"error":{"code":"invalid_argument","field":"event_time_ms","message":"is missing or 0"}}'
    for status in (400, 409, 413, 415):
        yield f"{status} with a field", {"payment_id": "p-1", "status": status, "body": error}
    for name, body in {
        "without a body": "",
        "with a page": "<h1>Bad request</h1>",
        "without names": '{"error": {}}',
        "with an error of text": '{"error": "no"}',
        "with a code alone": '{"error": {"code": "invalid_argument"}}',
        "with values of other types": '{"error": {"code": 3, "field": null, "message": ["x"]}}',
        "with a long message": json.dumps({"error": {"code": "c", "field": "f", "message": "m" * 400}}),
    }.items():
        yield f"400 {name}", {"payment_id": "p-1", "status": 400, "body": body}
    for status in (201, 204, 301, 401, 402, 403, 404, 405, 408, 411, 417, 429, 431, 500, 501, 502, 503, 504, 505):
        yield f"{status}", {"payment_id": "p-1", "status": status, "body": error}


def attempts() -> Iterator[Case]:
    def case(*events: tuple[str | int, float], order: Any = (0,), avoided: Any = (), pinned: int | None = None) -> Any:
        return {
            "order": list(order),
            "avoided": list(avoided),
            "pinned": pinned,
            "events": [{"met": met, "left_ms": left} for met, left in events],
        }

    for met in (200, 400, 401, 404, 409, 429, 500, 504, "late"):
        yield f"{met} at first", case((met, 30))
    yield "broken, then answered", case((BROKEN, 30), (200, 20))
    yield "broken twice", case((BROKEN, 30), (BROKEN, 20))
    yield "broken, then refused", case((BROKEN, 30), (REFUSED, 20))
    yield "broken, then late", case((BROKEN, 30), ("late", 0))
    yield "broken, then 503", case((BROKEN, 30), (503, 20))
    yield "broken with 5 ms left", case((BROKEN, 5), (200, 2))
    yield "broken with less than 5 ms left", case((BROKEN, 4.9))
    yield "refused, then answered", case((REFUSED, 39), (200, 20))
    yield "refused twice", case((REFUSED, 39), (REFUSED, 30))
    yield "refused with 10 ms left", case((REFUSED, 10), (200, 3))
    yield "refused with less than 10 ms left", case((REFUSED, 9.9))
    yield "503, then answered", case((503, 30), (200, 20))
    yield "503 twice", case((503, 30), (503, 20))
    yield "503, then 400", case((503, 30), (400, 20))
    yield "503, then 429", case((503, 30), (429, 20))
    yield "503 with less than 10 ms left", case((503, 9))
    yield "of two hosts, the first", case((200, 30), order=(1, 0))
    yield "of two hosts, the first is avoided", case((200, 30), order=(1, 0), avoided=(1,))
    yield "of two hosts, both are avoided", case((200, 30), order=(1, 0), avoided=(0, 1))
    yield "refused, then the other host", case((REFUSED, 30), (200, 20), order=(1, 0))
    yield "refused by both hosts", case((REFUSED, 30), (REFUSED, 29), order=(1, 0))
    yield "refused, and the other host breaks", case((REFUSED, 30), (BROKEN, 20), order=(1, 0))
    yield "refused with 5 ms left, then the other host", case((REFUSED, 5), (200, 2), order=(1, 0))
    yield "refused by the second, back at the first", case((REFUSED, 30), (200, 20), order=(1, 0), avoided=(1,))
    yield "broken stays at its host", case((BROKEN, 30), (200, 20), order=(1, 0))
    yield "broken, then refused, stays at its host", case((BROKEN, 30), (REFUSED, 20), order=(1, 0))
    yield "503 stays at its host", case((503, 30), (200, 20), order=(1, 0))
    yield "of three hosts, the next", case((REFUSED, 30), (200, 20), order=(2, 0, 1))
    yield "of three hosts, the last avoids none", case((REFUSED, 30), (200, 20), order=(2, 0, 1), avoided=(2,))
    yield "pinned to the second host", case((200, 30), order=(1, 0), pinned=0)
    yield "pinned to an avoided host", case((200, 30), order=(1, 0), avoided=(0,), pinned=0)
    yield "pinned and refused", case((REFUSED, 30), (200, 20), order=(1, 0), pinned=0)
    yield "pinned and refused twice", case((REFUSED, 30), (REFUSED, 20), order=(1, 0), pinned=0)


def policies() -> Iterator[Case]:
    def limits(*found: Any, **more: Any) -> Any:
        return {"name": "p", "otherwise": "approve", "limits": list(found)} | more

    def limit(**more: Any) -> Any:
        return {"name": "a", "action": "review"} | more

    by_card = {"card_count_over": 3, "window_s": 600}
    yield "every payment to review", {"name": "review-all", "otherwise": "review"}
    yield (
        "one of each condition",
        limits(
            limit(amount_over={"EUR": 20000, "*": 10000}, mcc_in=["7995", "7800-7802", "missing"]),
            limit(name="b", card_count_over=0, card_sum_over={"EUR": 0}, window_s=86400),
        ),
    )
    yield "no object", ["x"]
    yield "an unknown name", limits(more=1)
    yield "no name", {"otherwise": "review"}
    yield "a name with a space", limits(name="a b")
    yield "an unknown action", limits(otherwise="maybe")
    yield "limits that are no list", limits(limits={})
    yield "65 limits", limits(limits=[limit(name=f"n{number}", amount_over={"EUR": 1}) for number in range(65)])
    yield "a limit that approves", limits(limit(action="approve", amount_over={"EUR": 1}))
    yield "a limit that is a text", limits("x")
    yield "a limit without a condition", limits(limit())
    yield "a name that is taken", limits(limit(amount_over={"EUR": 1}), limit(amount_over={"EUR": 2}))
    yield "an unknown condition", limits(limit(amount_over={"EUR": 1}, merchant_in=["x"]))
    yield "a currency in small letters", limits(limit(amount_over={"EUR": 1, "usd": 1}))
    yield "no amounts", limits(limit(amount_over={}))
    yield "an amount with a fraction", limits(limit(amount_over={"EUR": 1.5}))
    yield "a negative amount", limits(limit(amount_over={"EUR": -1}))
    yield "too large an amount", limits(limit(name="b", amount_over={"EUR": 1}), limit(amount_over={"EUR": 10**11 + 1}))
    yield "an amount of true", limits(limit(amount_over={"EUR": True}))
    yield "a code of three digits", limits(limit(mcc_in=["7995", "799"]))
    yield "a code that is a number", limits(limit(mcc_in=[7995]))
    yield "a range that goes back", limits(limit(mcc_in=["7802-7800"]))
    yield "no codes", limits(limit(mcc_in=[]))
    yield "a count without a window", limits(limit(card_count_over=3))
    yield "a window without a count", limits(limit(amount_over={"EUR": 1}, window_s=600))
    yield "too large a count", limits(limit(**by_card | {"card_count_over": 101}))
    yield "a window of 0", limits(limit(**by_card | {"window_s": 0}))
    yield "too long a window", limits(limit(**by_card | {"window_s": 86401}))
    yield "a sum in a currency in small letters", limits(limit(card_sum_over={"eur": 1}, window_s=600))


def stand_ins() -> Iterator[Case]:
    count = [0]

    def step(now_ms: float = 0, cause: str = "late", **more: Any) -> Any:
        count[0] += 1
        payment = {
            "payment_id": f"p-{count[0]}",
            "event_time_ms": 1700000000000,
            "card_id": "c-1",
            "merchant_id": "m-1",
            "amount_minor": 1000,
            "currency": "EUR",
        }
        return {"now_ms": now_ms, "cause": cause, "payment": payment | more}

    def case(limits: Any, *steps: Any, otherwise: str = "approve", **more: Any) -> Any:
        return {"policy": {"name": "p", "otherwise": otherwise, "limits": limits}, "steps": list(steps)} | more

    large = {"name": "large", "action": "review", "amount_over": {"EUR": 20000, "USD": 25000}}
    huge = {"name": "huge", "action": "decline", "amount_over": {"*": 100000}}
    gambling = {"name": "gambling", "action": "decline", "mcc_in": ["7995", "7800-7802"]}
    unknown = {"name": "no-mcc", "action": "review", "mcc_in": ["missing"]}
    often = {"name": "often", "action": "review", "card_count_over": 2, "window_s": 600}
    much = {"name": "much", "action": "decline", "card_sum_over": {"EUR": 5000}, "window_s": 600}

    yield "every cause", case([], *(step(cause=cause) for cause in ("late", "busy", "unreachable", "broken", "failed")))
    yield "causes of answers", case([], *(step(cause=cause) for cause in ("overloaded", "unavailable", "unauthorized")))
    yield "otherwise review", case([], step(), otherwise="review")
    yield (
        "otherwise decline, and a limit that reviews",
        case([large], step(amount_minor=30000), step(), otherwise="decline"),
    )
    yield (
        "amounts about the limit",
        case([large], step(amount_minor=20000), step(amount_minor=20001), step(amount_minor=0)),
    )
    yield (
        "another currency's limit",
        case([large], step(amount_minor=20001, currency="USD"), step(amount_minor=25001, currency="USD")),
    )
    yield "a currency without a limit is over it", case([large], step(amount_minor=0, currency="JPY"))
    yield (
        "the limit of all other currencies",
        case([huge], step(amount_minor=100000, currency="JPY"), step(amount_minor=100001, currency="JPY")),
    )
    yield "the strictest action and its reasons alone", case([large, huge], step(amount_minor=200000))
    yield "both limits of one action", case([huge, gambling], step(amount_minor=200000, mcc="7995"))
    yield (
        "codes of merchants",
        case([gambling], *(step(mcc=mcc) for mcc in ("7994", "7995", "7799", "7800", "7801", "7802", "7803")), step()),
    )
    yield "a missing code", case([unknown], step(), step(mcc="5411"))
    yield (
        "all conditions of a limit must hold",
        case(
            [large | {"mcc_in": ["5411"]}],
            step(amount_minor=30000, mcc="5411"),
            step(amount_minor=30000, mcc="5412"),
            step(amount_minor=100, mcc="5411"),
        ),
    )
    yield "payments of a card", case([often], step(), step(1), step(2), step(3, card_id="c-2"))
    yield "a window that slides", case([often], step(0), step(300_000), step(599_999), step(600_000), step(1_300_000))
    yield (
        "a payment asked again counts once",
        case([often], *(step(time, payment_id="same") for time in (0, 1, 2, 3)), step(4), step(5)),
    )
    yield (
        "a payment asked again counts at its first time",
        case(
            [often],
            step(0, payment_id="same"),
            step(599_999, payment_id="same"),
            step(600_000),
            step(600_001),
            step(600_002),
        ),
    )
    yield (
        "declined payments do not count",
        case([often, gambling], step(0, mcc="7995"), step(1, mcc="7995"), step(2), step(3), step(4)),
    )
    yield "payments in review count", case([often, unknown], step(0), step(1), step(2, mcc="5411"))
    yield "sums of a card", case([much], step(amount_minor=3000), step(1, amount_minor=2000), step(2, amount_minor=1))
    yield (
        "a declined payment adds nothing",
        case([much], step(amount_minor=3000), step(1, amount_minor=2001), step(2, amount_minor=2000)),
    )
    yield (
        "sums by currency",
        case(
            [much | {"card_sum_over": {"EUR": 5000, "*": 9000}}],
            step(amount_minor=5000),
            step(1, amount_minor=9000, currency="USD"),
            step(2, amount_minor=1, currency="USD"),
        ),
    )
    yield (
        "a sum that slides",
        case([much], step(0, amount_minor=5000), step(599_999, amount_minor=1), step(600_000, amount_minor=5000)),
    )
    yield (
        "two windows",
        case(
            [often, much | {"window_s": 60}],
            step(0, amount_minor=5000),
            step(59_999, amount_minor=1),
            step(60_000, amount_minor=5000),
            step(61_000, amount_minor=0),
        ),
    )
    yield (
        "count and sum together",
        case(
            [
                {
                    "name": "both",
                    "action": "decline",
                    "card_count_over": 1,
                    "card_sum_over": {"EUR": 1500},
                    "window_s": 60,
                }
            ],
            step(0, amount_minor=1600),
            step(60_000, amount_minor=100),
            step(60_001, amount_minor=100),
            step(60_002, amount_minor=1400),
        ),
    )
    yield (
        "count with amount",
        case(
            [often | {"amount_over": {"EUR": 500}}],
            step(0),
            step(1),
            step(2, amount_minor=500),
            step(3, amount_minor=501),
        ),
    )
    yield (
        "the card counted longest ago is forgotten",
        case(
            [often | {"card_count_over": 1}],
            step(0, card_id="a"),
            step(1, card_id="b"),
            step(2, card_id="a"),
            step(3, card_id="c"),
            step(4, card_id="a"),
            step(5, card_id="b"),
            cards_max=2,
        ),
    )
    yield "a count of 0", case([often | {"card_count_over": 0}], step())
    yield (
        "more payments of a card than are kept",
        case(
            [{"name": "full", "action": "decline", "card_sum_over": {"EUR": 10**6}, "window_s": 600}],
            *(step(number, amount_minor=1) for number in range(PAYMENTS_OF_CARD_MAX + 2)),
        ),
    )


def reconciliation() -> Iterator[Case]:
    for asked, since in ((0, 0), (1, 1002), (2, 3010), (3, 7040), (4, 15_050), (5, 31_060), (6, 61_070), (20, 500_000)):
        yield f"asked {asked} times", {"asked": asked, "since_ms": since}
    yield "the last moment", {"asked": 9, "since_ms": 510_000}
    yield "too late", {"asked": 9, "since_ms": 510_001}


FILES: Mapping[str, tuple[str, Callable[[], Iterator[Case]], Callable[[Any], Any]]] = {
    "card_numbers": ("Texts that are card numbers, and others (rule 4).", card_numbers, want_card_number),
    "routes": ("The routing header (rule 7).", routes, want_route),
    "deadlines": ("The header x-deadline-ms (rule 9).", deadlines, deadline_header),
    "hosts": ("The order of hosts (rule 11).", hosts, want_hosts),
    "requests": ("Bodies and headers (rules 1 to 6).", requests, want_request),
    "answers": ("What statuses and bodies mean (rule 22).", answers, want_answer),
    "attempts": ("Hosts, retries and causes (rules 12 to 15).", attempts, want_attempts),
    "policies": ("Right and wrong policies (rule 24).", policies, want_policy),
    "stand_ins": ("Decisions in the service's place (rules 23 and 24).", stand_ins, want_stand_ins),
    "reconciliation": ("When a payment is asked about again (rule 25).", reconciliation, want_reconciliation),
}


def text_of(name: str) -> str:
    """Returns the file's text: a case a line, so that changes can be read."""
    about, cases, want = FILES[name]
    lines = [
        "  " + json.dumps({"name": case, "in": given, "want": want(given)}, ensure_ascii=False)
        for case, given in cases()
    ]
    names = [case for case, _ in cases()]
    assert len(set(names)) == len(names), f"two cases of {name} have one name"
    return f'{{"about": {json.dumps(about)}, "cases": [\n' + ",\n".join(lines) + "\n]}\n"


def main() -> int:
    wrong = []
    for name in FILES:
        path, text = FOLDER / f"{name}.json", text_of(name)
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        wrong.append(path.name)
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
    if wrong and "--check" in sys.argv:
        sys.stderr.write(f"ops/clients/vectors: {', '.join(wrong)} differ: python ops/clients/python/make_vectors.py\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
