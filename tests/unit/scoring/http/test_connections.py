from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from paywarden.scoring.engine.batching.batcher import AdmissionSettings, Call, Refusal
from paywarden.scoring.http import http_front as front
from paywarden.scoring.http.http_settings import HttpSettings
from tests.fakes.http_memory import MemoryWorld
from tests.services.product.processes import wait_until
from tests.worlds.endpoint.http_world import (
    PATIENT,
    WAIT_SECONDS,
    Client,
    Served,
    get,
    payment,
    payment_ids,
    post,
    post_json,
    serving,
)


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


def test_the_second_wish_to_upgrade_in_one_read_is_refused(client: Client) -> None:
    wish = get("/livez", headers="Connection: Upgrade\r\nUpgrade: h2c\r\n")
    client.send(wish + wish)
    assert [client.reply().status, client.reply().status] == [200, 400]


@pytest.mark.parametrize("sent", [b"", b"\r\n" * 5, get("/livez")], ids=["nothing", "newlines", "a-request"])
def test_an_unused_connection_is_closed_without_a_word(sent: bytes) -> None:
    with serving(replace(PATIENT, idle_timeout_ms=200)) as served, served.connected() as client:
        client.send(sent)
        if sent.startswith(b"GET"):
            assert client.reply().status == 200
        assert client.is_closed_by_server()


def test_a_front_without_a_connection_sleeps_and_watches_over_the_next_one() -> None:
    with serving(replace(PATIENT, idle_timeout_ms=200)) as served:
        for _ in range(2):
            with served.connected() as client:
                assert client.is_closed_by_server()
            wait_until(lambda: served.server.connections._sweeper is None, "no timer is left")


@pytest.fixture
def many_scrapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let /metrics be asked for as often as a test likes: its answers are the large ones."""
    monkeypatch.setattr(front, "_SCRAPES_PER_SECOND_MAX", 100_000)


def send_without_reading(client: Client, request: bytes) -> None:
    """Send until 40 MB are sent, which is more than all buffers on the way hold."""
    for _ in range(40_000_000 // (100 * len(request))):
        client.send(request * 100)


@pytest.mark.usefixtures("many_scrapes")
def test_a_caller_who_reads_nothing_is_not_read_from() -> None:
    with serving(metrics_text=b"m" * 100_000) as served, served.connected() as client:
        client.raw.settimeout(1)
        with pytest.raises(TimeoutError):
            send_without_reading(client, get("/metrics"))
        with served.connected() as other:
            assert other.ask(get("/livez")).status == 200


@pytest.mark.usefixtures("many_scrapes")
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


@pytest.mark.usefixtures("many_scrapes")
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


def test_a_connection_above_the_limit_is_refused_until_another_one_ends() -> None:
    with serving(replace(PATIENT, connections_max=1)) as served:
        with served.connected() as first:
            assert first.ask(post_json(payment())).status == 200
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


def test_a_host_that_was_taken_over_ends_with_its_last_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it can take over again. Its callers would have had ten minutes."""
    monkeypatch.setattr(front, "_FAREWELL_MS", 600_000)
    served = Served(PATIENT, b"")
    with served.connected() as first, served.connected() as second:
        assert first.ask(get("/livez")).status == second.ask(get("/livez")).status == 200
        served.begin_stop(is_taken_over=True)
        while (reply := first.ask(get("/livez"))).headers.get("connection") != "close":
            assert reply.status == 200
        assert first.is_closed_by_server()
        # The other one still has its time.
        reply = second.ask(post_json(payment()))
        assert (reply.status, reply.headers["connection"]) == (200, "close")
    served.join()


# Order


def test_answers_leave_in_the_order_of_requests_even_if_a_later_is_ready(served: Served) -> None:
    with served.connected() as client:
        client.send(
            post_json(payment("a"))
            + get("/nowhere")
            + post_json(payment("b"))
            + get("/livez")
            + post_json(payment("c"), headers="x-deadline-ms: 0\r\n")
            + post_json({"requests": [payment("d")]}, path="/v1/score:batch")
            + b"garbage\r\n\r\n"
        )
        replies = [client.reply() for _ in range(7)]
        assert [reply.status for reply in replies] == [200, 404, 200, 200, 400, 200, 400]
        assert [replies[index].json["payment_id"] for index in (0, 2)] == ["a", "b"]
        assert replies[3].json == {"live": True}
        assert client.is_closed_by_server()


def test_a_refusal_by_admission_keeps_its_place_and_has_a_retry_after() -> None:
    with serving(admission=AdmissionSettings(queue_payments_max=2)) as served, served.connected() as client:
        client.send(b"".join(post_json(payment(name)) for name in "abcd"))
        replies = [client.reply() for _ in range(4)]
        assert [reply.status for reply in replies] == [200, 200, 429, 429]
        assert [reply.headers.get("retry-after") for reply in replies] == [None, None, "2", "1"]
        assert [reply.json["payment_id"] for reply in replies[:2]] == ["a", "b"]


@pytest.mark.parametrize("pipelined_max", [1, 2, 7])
def test_a_connection_has_at_most_pipelined_max_unanswered_requests(pipelined_max: int) -> None:
    with serving(replace(PATIENT, pipelined_max=pipelined_max)) as served, served.connected() as client:
        depths: list[int] = []
        submit = served.batcher.submit

        def note(call: Call) -> None:
            submit(call)
            depths.append(served.batcher.queued_payments)

        served.batcher.submit = note  # type: ignore[method-assign]
        names = [f"p-{index}" for index in range(300)]
        client.send(b"".join(post_json(payment(name)) for name in names))
        assert payment_ids(client, 300) == names
        assert max(depths) == pipelined_max


def test_the_requests_of_a_caller_who_left_are_not_scored() -> None:
    async def main() -> None:
        world = MemoryWorld(PATIENT)
        leaving, unsent = world.connect()
        staying, sent = world.connect()
        leaving.data_received(post_json(payment("unwanted")) * 100)
        staying.data_received(post_json(payment("wanted")))
        leaving.connection_lost(None)
        for _ in range(10):
            await asyncio.sleep(0)
        assert world.scorer.seen == ["wanted"]
        assert (unsent.written, sent.written.count(b"200 OK")) == (b"", 1)

    asyncio.run(main())


def test_answers_with_some_statuses_say_what_to_do(served: Served) -> None:
    served.scorer.refuses = {
        "taken": Refusal("already_exists", "answered otherwise"),
        "full": Refusal("unavailable", "the outbox is full"),
        "odd": Refusal("some_other_code", "?"),
    }
    with served.connected() as client:
        taken, full, odd = (client.ask(post_json(payment(name))) for name in ("taken", "full", "odd"))
    assert (taken.status, taken.error["code"]) == (409, "already_exists")
    assert (full.status, full.headers["retry-after"]) == (503, "1")
    assert (odd.status, odd.error["code"]) == (500, "some_other_code")
    assert served.counted("score", 409) == 1


def test_a_bug_in_a_route_is_a_500_and_one_line_and_the_worker_goes_on(
    served: Served, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    served.scorer.missing = None  # type: ignore[assignment]
    for _ in range(2):
        assert client.ask(get("/readyz")).status == 500
    assert client.ask(get("/livez")).status == 200
    assert len(caplog.records) == 1
    assert "bug while answering readyz: TypeError" in caplog.text


@pytest.mark.parametrize("room", [1 << 20, 150])
@pytest.mark.parametrize("begun", ["", "head", "head but its last byte", "body"])
def test_a_read_of_a_thousand_requests_lets_others_come_in_between(room: int, begun: str) -> None:
    """Looking at all of them at once took a worker 10 ms for each such read, and each connection brings one.

    `begun`: the part of the first request that an earlier read has brought.
    """
    request, pipelined_max = post_json(payment()), 4
    head = request.index(b"\r\n\r\n") + 4
    earlier = {"": 0, "head": 20, "head but its last byte": head - 1, "body": head + 10}[begun]

    async def main() -> None:
        world = MemoryWorld(HttpSettings(pipelined_max=pipelined_max, arriving_bytes_max=room))
        (noisy, answers), (quiet, _) = world.connect(), world.connect()
        taken: list[str] = []
        for name, connection in (("noisy", noisy), ("quiet", quiet)):
            take = connection.take

            def note(*arguments: Any, name: str = name, take: Callable[..., None] = take) -> None:
                taken.append(name)
                take(*arguments)

            connection.take = note  # type: ignore[method-assign, assignment]
        if earlier:
            noisy.data_received(request[:earlier])
        noisy.data_received((request * 1000)[earlier:])
        quiet.data_received(request)
        if room > len(request) * 1000:
            assert taken == ["noisy"] * pipelined_max + ["quiet"]
        for _ in range(3000):
            await asyncio.sleep(0)
        # Without room for what is not read yet, the next request is refused, and the connection closes.
        has_room = room > len(request) * 1000
        assert taken.count("noisy") == (1000 if has_room else pipelined_max + 1)
        assert answers.written.count(b"HTTP/1.1 200 ") == (1000 if has_room else pipelined_max)
        assert answers.written.count(b"HTTP/1.1 503 ") == (0 if has_room else 1)
        assert world.server.arriving.count == 0
        noisy.data_received(request * 1000)
        noisy.connection_lost(None)
        assert world.server.arriving.count == 0

    asyncio.run(main())


def test_what_is_unread_is_answered_after_the_caller_has_ended_his_half() -> None:
    async def main() -> None:
        world = MemoryWorld(HttpSettings(pipelined_max=2))
        connection, transport = world.connect()
        connection.data_received(post_json(payment()) * 7)
        connection.eof_received()
        for _ in range(100):
            await asyncio.sleep(0)
        assert transport.written.count(b"HTTP/1.1 200 ") == 7
        assert transport.ended

    asyncio.run(main())
