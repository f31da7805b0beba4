import asyncio
import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace

import pytest
import uvloop
from google.protobuf.message import Message

from schemas.errors import InvalidEvent, Misconfigured, StoreUnavailable
from schemas.scoring_pb2 import ScoreBatchRequest, ScoreBatchResponse, ScoreRequest, ScoreResponse
from scoring.http import HttpServer, HttpSettings, open_listener, reserve_port
from scoring.metrics import HttpMetrics, Registry
from scoring.wire import DeadlineExceeded, Overloaded, RequestLimits

NOW_MS = 1_700_000_000_000
# A test that needs a timeout to pass lowers it; none runs into one of the others.
PATIENT = HttpSettings(port=0)
WAIT_SECONDS = 20


class FakeScorer:
    """Answers 0.5 to everything, or raises what it is told to."""

    def __init__(self) -> None:
        self.raises: Exception | None = None
        self.missing: list[str] = []
        self.seen: list[str] = []
        self.action = "approve"

    def score(self, request: ScoreRequest, now_ms: int) -> ScoreResponse:
        assert now_ms == NOW_MS
        if self.raises is not None:
            raise self.raises
        self.seen.append(request.payment_id)
        return ScoreResponse(payment_id=request.payment_id, score=0.5, action=self.action)

    def score_batch(self, requests: Sequence[ScoreRequest], now_ms: int) -> list[ScoreResponse]:
        return [self.score(request, now_ms) for request in requests]

    def readiness(self) -> list[str]:
        return self.missing


class Served:
    """A server on a loop of its own thread, and what a test needs of it."""

    def __init__(self, settings: HttpSettings, metrics_text: bytes) -> None:
        self.scorer = FakeScorer()
        self.registry = Registry()
        self.metrics = HttpMetrics.declare(self.registry)
        self.server = HttpServer(
            self.scorer,
            settings,
            limits=RequestLimits(batch_size_max=4),
            currencies=frozenset({"EUR"}),
            metrics=self.metrics,
            metrics_text=lambda: metrics_text,
            now_ms=lambda: NOW_MS,
        )
        self._stop = asyncio.Event()
        self._started: Future[tuple[int, asyncio.AbstractEventLoop]] = Future()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._serve()))
        self._thread.start()
        self.port, self.loop = self._started.result(WAIT_SECONDS)

    async def _serve(self) -> None:
        with reserve_port("127.0.0.1", 0) as held:
            port = held.getsockname()[1]
            await self.server.start(open_listener("127.0.0.1", port, backlog=64))
            self._started.set_result((port, asyncio.get_running_loop()))
            await self._stop.wait()
            await self.server.stop()

    def begin_stop(self) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)

    def join(self) -> None:
        self._thread.join(WAIT_SECONDS)
        assert not self._thread.is_alive(), "the server did not stop"

    def counted(self, route: str, code: int) -> int:
        return self.metrics.requests[route, code].value

    @contextlib.contextmanager
    def connected(self) -> Iterator["Client"]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_SECONDS) as raw:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield Client(raw)


class Reply:
    def __init__(self, head: bytes, body: bytes) -> None:
        status_line, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(status_line.split()[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        self.body = body

    @property
    def json(self) -> dict[str, object]:
        loaded = json.loads(self.body)
        assert isinstance(loaded, dict)
        return loaded

    @property
    def error(self) -> dict[str, str]:
        error = self.json["error"]
        assert isinstance(error, dict)
        return error


class Client:
    """A raw socket, and just enough HTTP to read answers."""

    def __init__(self, raw: socket.socket) -> None:
        self.raw = raw
        self._buffer = b""

    def send(self, data: bytes) -> None:
        self.raw.sendall(data)

    def ask(self, data: bytes) -> Reply:
        self.send(data)
        return self.reply()

    def until(self, end: bytes) -> bytes:
        while end not in self._buffer:
            data = self.raw.recv(65536)
            assert data, f"closed after {self._buffer!r}"
            self._buffer += data
        found, _, self._buffer = self._buffer.partition(end)
        return found

    def reply(self, *, to_head: bool = False) -> Reply:
        reply = Reply(self.until(b"\r\n\r\n"), b"")
        size = 0 if to_head else int(reply.headers.get("content-length", 0))
        while len(self._buffer) < size:
            data = self.raw.recv(65536)
            assert data, "closed in a body"
            self._buffer += data
        reply.body, self._buffer = self._buffer[:size], self._buffer[size:]
        return reply

    def is_closed_by_server(self) -> bool:
        """Waits for it; any byte that comes instead is a failure."""
        with contextlib.suppress(ConnectionResetError):
            return self._buffer == b"" and self.raw.recv(1) == b""
        return True


@contextlib.contextmanager
def serving(settings: HttpSettings = PATIENT, metrics_text: bytes = b"# metrics\n") -> Iterator[Served]:
    served = Served(settings, metrics_text)
    try:
        yield served
    finally:
        served.begin_stop()
        served.join()


@pytest.fixture
def served() -> Iterator[Served]:
    with serving() as one:
        yield one


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with served.connected() as one:
        yield one


def payment(payment_id: str = "p-1", **changes: object) -> dict[str, object]:
    return {
        "payment_id": payment_id,
        "event_time_ms": NOW_MS,
        "card_id": "c-1",
        "merchant_id": "m-1",
        "amount_minor": 1000,
        "currency": "EUR",
    } | changes


def post(body: bytes, *, path: str = "/v1/score", content_type: str = "application/json", headers: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: {content_type}\r\n"
    return f"{head}{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


def post_json(value: object, *, path: str = "/v1/score", headers: str = "") -> bytes:
    return post(json.dumps(value).encode(), path=path, headers=headers)


def post_protobuf(message: Message, *, path: str = "/v1/score") -> bytes:
    return post(message.SerializeToString(), path=path, content_type="application/x-protobuf")


def get(path: str, method: str = "GET", headers: str = "") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: test\r\n{headers}\r\n".encode()


def payment_ids(client: Client, count: int) -> list[object]:
    return [client.reply().json["payment_id"] for _ in range(count)]


# Routes and formats


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
        "message": "must be from 0 to 100000000000",
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


def test_a_batch_above_the_limit_is_refused(client: Client) -> None:
    reply = client.ask(post_json({"requests": [payment()] * 5}, path="/v1/score:batch"))
    assert (reply.status, reply.error["field"]) == (400, "requests")


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (Overloaded("too much to do"), 429, "resource_exhausted"),
        (DeadlineExceeded("too late"), 504, "deadline_exceeded"),
        (StoreUnavailable("no mirror"), 503, "unavailable"),
        (InvalidEvent("cannot be", field="mcc"), 400, "invalid_argument"),
    ],
)
def test_what_the_scorer_raises_on_purpose_has_its_status(
    served: Served, client: Client, raised: Exception, status: int, code: str
) -> None:
    served.scorer.raises = raised
    reply = client.ask(post_json(payment()))
    assert (reply.status, reply.error["code"]) == (status, code)
    served.scorer.raises = None
    assert client.ask(post_json(payment())).status == 200
    assert (served.counted("score", status), served.counted("score", 200)) == (1, 1)


def test_a_bug_in_the_scorer_is_500_without_detail_logged_once_and_the_worker_serves_on(
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
    assert "in score" in caplog.text
    assert "4111" not in caplog.text


def test_requests_are_counted_by_route_and_code(served: Served, client: Client) -> None:
    client.ask(post_json(payment()))
    client.ask(post_json({}))
    client.ask(get("/nowhere"))
    assert [served.counted(*key) for key in (("score", 200), ("score", 400), ("none", 404))] == [1, 1, 1]
    assert served.metrics.seconds["score"].count == 2


# Connections


def test_pipelined_requests_are_answered_in_order(client: Client) -> None:
    names = [f"p-{index}" for index in range(200)]
    client.send(b"".join(post_json(payment(name)) for name in names))
    assert payment_ids(client, 200) == names


def test_a_request_may_come_byte_by_byte(client: Client) -> None:
    for byte in post_json(payment()):
        client.send(bytes([byte]))
    assert client.reply().status == 200


def test_a_chunked_body_is_put_together_and_its_trailer_changes_nothing(client: Client) -> None:
    body = json.dumps(payment()).encode()
    head = b"POST /v1/score HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(body[i : i + 7]), body[i : i + 7]) for i in range(0, len(body), 7))
    client.send(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nContent-Type: x\r\n\r\n")
    assert client.reply().status == 200
    assert client.ask(get("/livez")).status == 200


def test_connection_close_is_answered_and_then_closed(client: Client) -> None:
    reply = client.ask(get("/livez", headers="Connection: close\r\n") + get("/livez"))
    assert (reply.status, reply.headers["connection"]) == (200, "close")
    assert client.is_closed_by_server()


def test_http_1_0_is_closed_unless_it_asks_to_keep_the_connection(client: Client) -> None:
    reply = client.ask(b"GET /livez HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert (reply.status, reply.headers["connection"]) == (200, "keep-alive")
    assert client.ask(b"GET /livez HTTP/1.0\r\n\r\n").status == 200
    assert client.is_closed_by_server()


def test_a_caller_who_expects_100_gets_it_before_the_body(client: Client) -> None:
    body = json.dumps(payment()).encode()
    head, _ = post(body, headers="Expect: 100-continue\r\n").split(b"\r\n\r\n", 1)
    assert client.ask(head + b"\r\n\r\n").status == 100
    assert client.ask(body).status == 200


def test_a_caller_who_expects_100_after_another_request_gets_both_in_order(client: Client) -> None:
    body = json.dumps(payment("second")).encode()
    head, _ = post(body, headers="Expect: 100-continue\r\n").split(b"\r\n\r\n", 1)
    client.send(post_json(payment("first")) * 100 + head + b"\r\n\r\n")
    assert payment_ids(client, 100) == ["first"] * 100
    assert client.reply().status == 100
    assert client.ask(body).json["payment_id"] == "second"


def test_a_caller_who_expects_100_is_refused_before_the_body(client: Client) -> None:
    head, _ = post(b"x" * 10, path="/nowhere", headers="Expect: 100-continue\r\n").split(b"\r\n\r\n", 1)
    assert client.ask(head + b"\r\n\r\n").status == 404
    assert client.is_closed_by_server()


def test_another_expectation_is_417(client: Client) -> None:
    assert client.ask(post_json(payment(), headers="Expect: tea\r\n")).status == 417


@pytest.mark.parametrize("size", [0, 40])
def test_a_wish_to_upgrade_is_ignored_with_its_body_in_either_part(client: Client, size: int) -> None:
    wish = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    request = post_json(payment(), headers=wish)
    client.send(request[: len(request) - size])
    client.send(request[len(request) - size :] + post_json(payment("p-2")))
    assert payment_ids(client, 2) == ["p-1", "p-2"]


def test_a_wish_to_upgrade_in_every_request_is_refused_at_the_second_of_one_read(client: Client) -> None:
    wish = get("/livez", headers="Connection: Upgrade\r\nUpgrade: h2c\r\n")
    client.send(wish + wish)
    assert [client.reply().status, client.reply().status] == [200, 400]


# Abuse


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost test\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost : test\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /livez HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_garbage_is_400_and_closes_and_others_are_served(served: Served, client: Client, garbage: bytes) -> None:
    reply = client.ask(garbage)
    assert (reply.status, reply.headers["connection"]) == (400, "close")
    assert client.is_closed_by_server()
    with served.connected() as other:
        assert other.ask(get("/livez")).status == 200


def test_garbage_after_requests_does_not_take_their_answers(client: Client) -> None:
    client.send(post_json(payment()) * 100 + b"\x00garbage")
    assert payment_ids(client, 100) == ["p-1"] * 100
    assert client.reply().status == 400
    assert client.is_closed_by_server()


@pytest.mark.parametrize("version", ["2.0", "0.9"])
def test_another_version_is_505(client: Client, version: str) -> None:
    assert client.ask(f"GET /livez HTTP/{version}\r\nHost: a\r\n\r\n".encode()).status == 505


def test_a_tunnel_is_refused(client: Client) -> None:
    assert client.ask(b"CONNECT test:443 HTTP/1.1\r\nHost: test:443\r\n\r\n\x16\x03\x01").status == 405
    assert client.is_closed_by_server()


def test_a_body_announced_too_large_is_413_before_it_is_sent(client: Client) -> None:
    head = f"POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Length: {PATIENT.body_bytes_max + 1}\r\n\r\n"
    assert client.ask(head.encode()).status == 413
    assert client.is_closed_by_server()


def test_a_chunked_body_too_large_is_413_while_it_comes_and_the_answer_is_not_lost() -> None:
    with serving(replace(PATIENT, body_bytes_max=1000)) as served, served.connected() as client:
        client.send(b"POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n")
        client.send(b"Transfer-Encoding: chunked\r\n\r\n" + b"190\r\n" + b"x" * 400 + b"\r\n")
        with contextlib.suppress(OSError):
            # Far more than the buffers of both sides hold: an answer before a reset would be lost.
            for _ in range(2000):
                client.send(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        assert client.reply().status == 413


@pytest.mark.parametrize("linger_ms", [200, 60_000])
def test_after_a_refusal_what_still_comes_is_thrown_away_for_a_while(linger_ms: int) -> None:
    """Closed at once, the kernel would answer it with a reset, which can take the refusal from the caller."""
    with serving(replace(PATIENT, linger_ms=linger_ms)) as served, served.connected() as client:
        assert client.ask(b"garbage\r\n\r\n").status == 400
        assert client.is_closed_by_server()
        deadline = time.monotonic() + (WAIT_SECONDS if linger_ms < 1000 else 0.5)
        was_cut = False
        while time.monotonic() < deadline and not was_cut:
            time.sleep(0.02)
            try:
                client.send(b"more")
            except ConnectionError:
                was_cut = True
        assert was_cut == (linger_ms < 1000)


def test_the_largest_body_is_read() -> None:
    body = json.dumps(payment()).encode()
    with serving(replace(PATIENT, body_bytes_max=len(body))) as served, served.connected() as client:
        assert client.ask(post(body)).status == 200
        assert client.ask(post(body + b" ")).status == 413
    chunked = b"POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    chunked += b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(body), body)
    with serving(replace(PATIENT, body_bytes_max=len(body))) as served, served.connected() as client:
        assert client.ask(chunked + b"0\r\n\r\n").status == 200
        assert client.ask(chunked + b"1\r\n \r\n").status == 413


@pytest.mark.parametrize(
    "head",
    [
        b"GET /livez HTTP/1.1\r\n" + b"A: b\r\n" * 65 + b"\r\n",
        b"GET /livez HTTP/1.1\r\n" + b"A: " + b"b" * 17_000 + b"\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n" + b"A" * 17_000 + b": b\r\n\r\n",
        b"GET /" + b"a" * 17_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n" + (b"A: " + b"b" * 1000 + b"\r\n") * 20 + b"\r\n",
    ],
    ids=["count", "value", "name", "target", "sum"],
)
def test_too_much_head_is_431(client: Client, head: bytes) -> None:
    assert client.ask(head).status == 431
    assert client.is_closed_by_server()


def test_a_header_without_end_is_431_before_it_ends(client: Client) -> None:
    client.send(b"GET /livez HTTP/1.1\r\nA: ")
    with contextlib.suppress(OSError):
        for _ in range(100):
            client.send(b"b" * 1000)
            time.sleep(0.001)
    assert client.reply().status == 431


def test_overhead_of_chunks_without_end_is_413() -> None:
    settings = replace(PATIENT, body_bytes_max=1000, head_bytes_max=1000)
    with serving(settings) as served, served.connected() as client:
        client.send(b"POST /livez HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;")
        with contextlib.suppress(OSError):
            for _ in range(200):
                client.send(b"x" * 100)
                time.sleep(0.001)
        assert client.reply().status == 413


def test_a_request_that_is_cut_off_harms_nobody(served: Served) -> None:
    for cut in range(1, len(post_json(payment())), 13):
        with served.connected() as client:
            client.send(post_json(payment())[:cut])
            client.raw.shutdown(socket.SHUT_WR)
            assert client.is_closed_by_server()
    assert served.scorer.seen == []
    with served.connected() as other:
        assert other.ask(get("/livez")).status == 200


def test_a_caller_who_stops_sending_still_gets_all_answers(client: Client) -> None:
    client.send(post_json(payment()) * 100)
    client.raw.shutdown(socket.SHUT_WR)
    assert payment_ids(client, 100) == ["p-1"] * 100
    assert client.is_closed_by_server()


def test_a_request_that_takes_too_long_is_408_and_others_are_served_meanwhile() -> None:
    with serving(replace(PATIENT, request_timeout_ms=200)) as served, served.connected() as slow:
        slow.send(b"GET /livez HTTP/1.1\r\nHost")
        with served.connected() as other:
            assert [other.ask(get("/livez")).status for _ in range(5)] == [200] * 5
        assert slow.reply().status == 408
        assert slow.is_closed_by_server()


def test_the_time_of_a_request_counts_from_its_first_byte() -> None:
    with serving(replace(PATIENT, request_timeout_ms=1000)) as served, served.connected() as client:
        time.sleep(1.2)
        client.send(get("/livez")[:-2])
        time.sleep(0.4)
        assert client.ask(get("/livez")[-2:]).status == 200


def test_a_caller_who_drips_does_not_extend_his_time() -> None:
    with serving(replace(PATIENT, request_timeout_ms=200)) as served, served.connected() as slow:
        with contextlib.suppress(OSError):
            slow.send(b"GET /livez HTTP/1.1\r\nA: ")
            for _ in range(60):
                slow.send(b"b")
                time.sleep(0.01)
        assert slow.reply().status == 408


@pytest.mark.parametrize("sent", [b"", b"\r\n" * 5, get("/livez")], ids=["nothing", "newlines", "a-request"])
def test_an_unused_connection_is_closed_without_a_word(sent: bytes) -> None:
    with serving(replace(PATIENT, idle_timeout_ms=200)) as served, served.connected() as client:
        client.send(sent)
        if sent.startswith(b"GET"):
            assert client.reply().status == 200
        assert client.is_closed_by_server()


def send_without_reading(client: Client, request: bytes) -> None:
    """Until 40 MB are sent, which is more than any buffer on the way holds."""
    for _ in range(40_000_000 // (100 * len(request))):
        client.send(request * 100)


def test_a_caller_who_reads_nothing_is_not_read_from() -> None:
    with serving(metrics_text=b"m" * 100_000) as served, served.connected() as client:
        client.raw.settimeout(1)
        with pytest.raises(TimeoutError):
            send_without_reading(client, get("/metrics"))
        with served.connected() as other:
            assert other.ask(get("/livez")).status == 200


def test_a_caller_who_reads_nothing_is_cut_in_the_end() -> None:
    settings = replace(PATIENT, write_timeout_ms=300)
    with serving(settings, metrics_text=b"m" * 100_000) as served, served.connected() as client:
        client.raw.settimeout(0.2)
        with contextlib.suppress(OSError):
            send_without_reading(client, get("/metrics"))
        assert served.counted("metrics", 200) < 1000
        with served.connected() as other:
            assert other.ask(get("/livez")).status == 200
        deadline = time.monotonic() + WAIT_SECONDS
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < deadline:
                with contextlib.suppress(TimeoutError):
                    client.send(b"x")
            pytest.fail("the connection was not cut")


def test_a_caller_who_reads_late_gets_everything_in_order() -> None:
    with serving(metrics_text=b"m" * 50_000) as served, served.connected() as client:
        client.send(b"".join(get("/metrics") + post_json(payment(f"p-{i}")) for i in range(100)))
        time.sleep(0.2)
        for index in range(100):
            assert len(client.reply().body) == 50_000
            assert client.reply().json["payment_id"] == f"p-{index}"


def test_a_caller_with_many_requests_lets_others_go_in_between(served: Served) -> None:
    order: list[str] = []
    served.scorer.seen = order
    with served.connected() as greedy, served.connected() as modest:
        assert greedy.ask(get("/livez")).status == modest.ask(get("/livez")).status == 200
        gate = threading.Event()
        served.loop.call_soon_threadsafe(gate.wait, WAIT_SECONDS)
        greedy.send(post_json(payment("greedy")) * 500)
        modest.send(post_json(payment("modest")))
        gate.set()
        assert modest.reply().status == 200
        payment_ids(greedy, 500)
    assert order.index("modest") < 500


def test_a_connection_above_the_limit_is_refused_and_one_that_ends_makes_room() -> None:
    with serving(replace(PATIENT, connections_max=1)) as served:
        with served.connected() as first:
            assert first.ask(get("/livez")).status == 200
            with served.connected() as second:
                assert second.reply().status == 503
                assert second.is_closed_by_server()
            assert first.ask(get("/livez")).status == 200
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            with served.connected() as third:
                if third.ask(get("/livez")).status == 200:
                    break
            assert time.monotonic() < deadline


# Stop


def test_a_stop_finishes_what_is_in_flight_and_closes_what_is_not() -> None:
    served = Served(PATIENT, b"")
    request = post_json(payment())
    with served.connected() as idle, served.connected() as busy:
        assert idle.ask(get("/livez")).status == busy.ask(get("/livez")).status == 200
        busy.send(request[:-5])
        assert idle.ask(get("/livez")).status == 200
        served.begin_stop()
        assert idle.is_closed_by_server()
        reply = busy.ask(request[-5:])
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        assert busy.is_closed_by_server()
    served.join()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", served.port), timeout=WAIT_SECONDS)


def test_a_stop_answers_all_pipelined_requests_that_were_read() -> None:
    served = Served(PATIENT, b"")
    with served.connected() as client:
        assert client.ask(get("/livez")).status == 200
        client.send(post_json(payment())[:-5])
        with served.connected() as other:
            assert other.ask(get("/livez")).status == 200
            served.begin_stop()
            assert other.is_closed_by_server()
        client.send(post_json(payment())[-5:] + post_json(payment()) * 2)
        replies = [client.reply() for _ in range(3)]
        assert [reply.headers.get("connection") for reply in replies] == [None, None, "close"]
    served.join()


def test_a_stop_does_not_wait_for_ever() -> None:
    served = Served(replace(PATIENT, stop_timeout_ms=200), b"")
    with served.connected() as client:
        client.send(get("/livez")[:-2])
        with served.connected() as other:
            assert other.ask(get("/livez")).status == 200
        served.begin_stop()
        served.join()
        assert client.is_closed_by_server()


def test_while_it_drains_a_server_is_not_ready_and_still_answers() -> None:
    served = Served(replace(PATIENT, drain_delay_ms=400), b"")
    with served.connected() as client:
        assert client.ask(get("/readyz")).status == 200
        served.begin_stop()
        statuses = []
        while (reply := client.ask(get("/readyz"))).headers.get("connection") != "close":
            statuses.append(reply.status)
        assert (reply.status, reply.json["missing"]) == (503, ["the worker is stopping"])
        with served.connected() as late:
            assert late.ask(post_json(payment())).status == 200
    served.join()


# Listeners


def test_workers_share_a_reserved_port_and_another_parent_cannot_have_it() -> None:
    with reserve_port("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
        with pytest.raises(Misconfigured, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            reserve_port("127.0.0.1", port)
        with (
            open_listener("127.0.0.1", port, backlog=1) as one,
            open_listener("127.0.0.1", port, backlog=1) as two,
        ):
            assert one.getsockname() == two.getsockname()
            with pytest.raises(Misconfigured):
                reserve_port("127.0.0.1", port)


@pytest.mark.parametrize("reuse_port", [0, 1])
def test_a_port_that_a_stranger_listens_on_is_refused(reuse_port: int) -> None:
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse_port)
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        with pytest.raises(Misconfigured):
            reserve_port("127.0.0.1", stranger.getsockname()[1])


def test_a_port_can_be_had_again_at_once_after_a_server_that_closed_its_connections() -> None:
    with serving() as served, served.connected() as client:
        assert client.ask(get("/livez", headers="Connection: close\r\n")).status == 200
        assert client.is_closed_by_server()
        port = served.port
    with reserve_port("127.0.0.1", port) as held:
        assert held.getsockname()[1] == port


def test_a_host_that_does_not_exist_is_one_clear_error() -> None:
    with pytest.raises(Misconfigured, match=r"cannot listen on nowhere\.invalid:80"):
        reserve_port("nowhere.invalid", 80)


def test_nothing_of_a_request_is_logged(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    assert client.ask(post_json(payment())).status == 200
    assert client.ask(post_json(payment(card_id="4111111111111111"))).status == 400
    assert "4111" not in caplog.text
    assert "c-1" not in caplog.text
