from __future__ import annotations

import logging

import pytest

from paywarden.schemas.errors import StoreUnavailable
from paywarden.schemas.proto.scoring_pb2 import ScoreBatchRequest, ScoreBatchResponse, ScoreRequest, ScoreResponse
from paywarden.scoring.engine.batching.batcher import DeadlineExceeded, Overloaded
from tests.worlds.endpoint.http_world import Client, Served, get, payment, post, post_json, post_protobuf


def test_a_payment_is_scored_in_the_format_it_came_in(client: Client) -> None:
    as_json = client.ask(post_json(payment()))
    assert (as_json.status, as_json.headers["content-type"]) == (200, "application/json")
    assert as_json.json["action"] == "approve"
    as_protobuf = client.ask(post_protobuf(ScoreRequest(**payment())))  # type: ignore[arg-type]
    assert as_protobuf.headers["content-type"] == "application/x-protobuf"
    assert ScoreResponse.FromString(as_protobuf.body).payment_id == "p-1"


def test_a_batch_is_answered_in_order_in_the_format_it_came_in(client: Client) -> None:
    batch = {"requests": [payment("a"), payment("b")]}
    as_json = client.ask(post_json(batch, path="/v1/score:batch"))
    responses = as_json.json["responses"]
    assert isinstance(responses, list)
    assert [response["payment_id"] for response in responses] == ["a", "b"]
    message = ScoreBatchRequest(requests=[ScoreRequest(**payment(name)) for name in ("a", "b")])  # type: ignore[arg-type]
    as_protobuf = client.ask(post_protobuf(message, path="/v1/score:batch"))
    answered = ScoreBatchResponse.FromString(as_protobuf.body)
    assert [response.payment_id for response in answered.responses] == ["a", "b"]


def test_every_answer_has_a_date_and_no_word_of_what_serves(client: Client) -> None:
    reply = client.ask(get("/livez"))
    assert reply.headers["date"] == "Tue, 14 Nov 2023 22:13:20 GMT"
    assert "server" not in reply.headers


def test_livez_is_200_even_when_not_ready(served: Served, client: Client) -> None:
    served.scorer.missing = ["mirror: not warm"]
    assert client.ask(get("/livez")).status == 200


def test_readyz_lists_what_is_missing(served: Served, client: Client) -> None:
    assert client.ask(get("/readyz")).json == {"ready": True, "missing": []}
    served.scorer.missing = ["mirror: not warm"]
    reply = client.ask(get("/readyz"))
    assert (reply.status, reply.json) == (503, {"ready": False, "missing": ["mirror: not warm"]})


def test_metrics_shows_the_text_it_is_given(client: Client) -> None:
    reply = client.ask(get("/metrics"))
    assert reply.body == b"# metrics\n"
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")


def test_head_is_get_without_the_body(client: Client) -> None:
    client.send(get("/livez", "HEAD"))
    assert client.reply(to_head=True).headers["content-length"] == str(len(b'{"live":true}'))
    assert client.ask(get("/livez")).status == 200


def test_a_query_or_an_absolute_target_is_still_the_same_route(client: Client) -> None:
    assert client.ask(get("/livez?probe=1")).status == 200
    assert client.ask(get("http://test/livez")).status == 200


@pytest.mark.parametrize("path", ["/", "/v1/score/", "/v1/scores", "*", "//livez", "/%6civez"])
def test_an_unknown_route_is_404_and_the_connection_lives_on(client: Client, path: str) -> None:
    reply = client.ask(get(path))
    assert (reply.status, reply.error["code"]) == (404, "not_found")
    assert client.ask(post(b"some body", path="/nowhere")).status == 404
    assert client.ask(get("/livez")).status == 200


@pytest.mark.parametrize(
    ("request_bytes", "allow"),
    [
        (get("/v1/score"), "POST"),
        (get("/v1/score", "DELETE"), "POST"),
        (post(b"", path="/livez"), "GET, HEAD"),
        (get("/livez", "OPTIONS"), "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_405_and_says_which_are_right(client: Client, request_bytes: bytes, allow: str) -> None:
    reply = client.ask(request_bytes)
    assert (reply.status, reply.headers["allow"]) == (405, allow)
    assert client.ask(get("/livez")).status == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        post(b"{}", content_type="text/plain"),
        post(b"{}", content_type="application/json; charset=latin-1"),
        post(b"{}", headers="Content-Encoding: gzip\r\n"),
        get("/v1/score", "POST"),
    ],
    ids=["type", "charset", "compressed", "none"],
)
def test_a_content_type_that_is_not_spoken_is_415(client: Client, request_bytes: bytes) -> None:
    assert client.ask(request_bytes).status == 415
    assert client.ask(get("/livez")).status == 200


# What the scorer and the values say


def test_a_wrong_value_is_400_and_names_its_field(served: Served, client: Client) -> None:
    reply = client.ask(post_json(payment(amount_minor=-1)))
    assert reply.status == 400
    assert reply.error == {
        "code": "invalid_argument",
        "field": "amount_minor",
        "message": "is below 0; wanted a whole number of minor units from 0 to 100000000000",
    }
    assert served.scorer.seen == []


def test_an_error_is_json_for_a_protobuf_request_too(client: Client) -> None:
    reply = client.ask(post_protobuf(ScoreRequest(payment_id="p")))
    assert (reply.status, reply.error["field"]) == (400, "event_time_ms")


def test_one_wrong_payment_refuses_its_batch_before_any_is_scored(served: Served, client: Client) -> None:
    batch = {"requests": [payment(), payment(currency="eur")]}
    reply = client.ask(post_json(batch, path="/v1/score:batch"))
    assert (reply.status, reply.error["field"]) == (400, "requests[1].currency")
    assert served.scorer.seen == []


@pytest.mark.parametrize("count", [5, 3000])
def test_a_batch_above_the_limit_is_refused(client: Client, count: int) -> None:
    """3,000 payments were told to try again later, for ever."""
    message = ScoreBatchRequest(requests=[ScoreRequest(**payment())] * count)  # type: ignore[arg-type]
    for request in (
        post_json({"requests": [payment()] * count}, path="/v1/score:batch"),
        post_protobuf(message, path="/v1/score:batch"),
    ):
        reply = client.ask(request)
        assert (reply.status, reply.error["field"]) == (400, "requests")
        assert reply.error["message"] == f"must hold 1 to 4 requests, holds {count}"


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (Overloaded("too much to do"), 429, "resource_exhausted"),
        (DeadlineExceeded("too late"), 504, "deadline_exceeded"),
        (StoreUnavailable("no mirror"), 503, "unavailable"),
    ],
)
def test_each_expected_failure_of_the_scorer_has_its_own_status(
    served: Served, client: Client, raised: Exception, status: int, code: str
) -> None:
    served.scorer.raises = raised
    reply = client.ask(post_json(payment()))
    assert (reply.status, reply.error["code"]) == (status, code)
    served.scorer.raises = None
    assert client.ask(post_json(payment())).status == 200
    assert (served.counted("score", status), served.counted("score", 200)) == (1, 1)


def test_a_bug_in_the_scorer_is_a_500_and_one_line_and_the_worker_goes_on(
    served: Served, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    served.scorer.raises = KeyError("card 4111111111111111")
    for _ in range(3):
        reply = client.ask(post_json(payment()))
        assert (reply.status, reply.error["message"]) == (500, "internal error")
    served.scorer.raises = None
    assert client.ask(post_json(payment())).status == 200
    assert len(caplog.records) == 1
    assert "KeyError" in caplog.text
    assert "4111" not in caplog.text


def test_requests_are_counted_by_route_and_code(served: Served, client: Client) -> None:
    client.ask(post_json(payment()))
    client.ask(post_json({}))
    client.ask(get("/nowhere"))
    assert [served.counted(*key) for key in (("score", 200), ("score", 400), ("none", 404))] == [1, 1, 1]
    assert served.metrics.seconds["score"].count == 2


def test_nothing_of_a_request_is_logged(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    assert client.ask(post_json(payment())).status == 200
    assert client.ask(post_json(payment(card_id="4111111111111111"))).status == 400
    assert "4111" not in caplog.text
    assert "c-1" not in caplog.text
