from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from paywarden.schemas.proto.split_pb2 import SplitBatchRequest
from tests.services.hosts.flood import flooded
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
    post_protobuf,
    serving,
)


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


def test_a_too_large_chunked_body_is_413_and_the_answer_is_not_lost() -> None:
    with serving(replace(PATIENT, body_bytes_max=1000)) as served, served.connected() as client:
        client.send(b"POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n")
        client.send(b"Transfer-Encoding: chunked\r\n\r\n" + b"190\r\n" + b"x" * 400 + b"\r\n")
        with contextlib.suppress(OSError):
            # Far more than the buffers of both sides hold, so an answer followed by a reset would be lost.
            for _ in range(2000):
                client.send(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        assert client.reply().status == 413


@pytest.mark.parametrize("linger_ms", [200, 60_000])
def test_after_a_refusal_what_still_comes_is_thrown_away_for_a_while(linger_ms: int) -> None:
    """If the server closed at once, the kernel would send a reset, and the caller might never read the refusal."""
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


def test_the_time_of_a_request_counts_from_its_first_byte() -> None:
    with serving(replace(PATIENT, request_timeout_ms=3000)) as served, served.connected() as client:
        time.sleep(3.2)
        client.send(get("/livez")[:-2])
        assert client.ask(get("/livez")[-2:]).status == 200


def test_a_caller_who_drips_does_not_extend_his_time() -> None:
    with serving(replace(PATIENT, request_timeout_ms=200)) as served, served.connected() as slow:
        with contextlib.suppress(OSError):
            slow.send(b"GET /livez HTTP/1.1\r\nA: ")
            for _ in range(60):
                slow.send(b"b")
                time.sleep(0.01)
        assert slow.reply().status == 408


# Slow, silent and lost callers


def test_a_body_that_drips_is_408_and_others_are_served_meanwhile() -> None:
    request = post_json(payment())
    with serving(replace(PATIENT, request_timeout_ms=300)) as served, served.connected() as slow:
        # A cached head must not give the body more time.
        assert slow.ask(request).status == 200
        slow.send(request[:-20])
        with served.connected() as other, contextlib.suppress(OSError):
            for byte in request[-20:]:
                assert other.ask(request).status == 200
                slow.send(bytes([byte]))
                time.sleep(0.05)
        assert slow.reply().status == 408
        assert slow.is_closed_by_server()


def test_a_body_shorter_than_announced_takes_no_byte_of_another_connection(served: Served) -> None:
    request = post_json(payment("short"))
    with served.connected() as beside:
        with served.connected() as short:
            short.send(request[:-10])
            short.raw.shutdown(socket.SHUT_WR)
            assert short.is_closed_by_server()
        assert beside.ask(post_json(payment())).json["payment_id"] == "p-1"
    assert served.scorer.seen == ["p-1"]


def test_bytes_beyond_the_announced_body_are_refused_as_another_request(client: Client) -> None:
    client.send(post_json(payment()) + b"left over\r\n\r\n")
    assert client.reply().status == 200
    assert client.reply().status == 400
    assert client.is_closed_by_server()


# Connections that never send a payment, bodies that nobody wants


def test_silent_connections_at_the_limit_keep_no_probe_and_no_caller_out() -> None:
    """1,024 of them used to lock out everyone, probes included, for 74 seconds."""
    with serving(replace(PATIENT, connections_max=20)) as served, contextlib.ExitStack() as stack:
        bystander = stack.enter_context(served.connected())
        assert bystander.ask(post_json(payment())).status == 200
        silent = [stack.enter_context(served.connected()) for _ in range(19)]
        for number, client in enumerate(silent):
            client.send((b"", b"GET /li", post_json(payment())[:-5], b"POST /v1/score HTTP/1.1\r\nHo")[number % 4])
        for _ in range(5):
            with served.connected() as probe:
                assert probe.ask(get("/readyz")).status == 200
        newcomer = stack.enter_context(served.connected())
        assert newcomer.ask(post_json(payment("new"))).status == 200
        # The oldest went first, and nobody who had sent a payment.
        assert silent[0].is_closed_by_server()
        assert bystander.ask(post_json(payment())).status == 200
        assert newcomer.ask(post_json(payment("new-2"))).status == 200
        assert served.metrics.connections.evicted.value >= 1
        assert served.metrics.connections.refused.value == 0


def test_connections_that_come_again_and_again_keep_no_caller_out() -> None:
    with serving(replace(PATIENT, connections_max=200)) as served, served.connected() as bystander:
        assert bystander.ask(post_json(payment())).status == 200
        with flooded(f"http://127.0.0.1:{served.port}", "/v1/score", 400) as flood:
            number = 0
            while flood.made < 2000:
                number += 1
                with served.connected() as newcomer:
                    assert newcomer.ask(post_json(payment(f"new-{number}"))).status == 200
                assert bystander.ask(post_json(payment(f"old-{number}"))).status == 200
        assert served.metrics.connections.refused.value == 0


def test_a_connection_that_only_asks_for_health_gives_way_too() -> None:
    with serving(replace(PATIENT, connections_max=2)) as served, contextlib.ExitStack() as stack:
        probe, caller = (stack.enter_context(served.connected()) for _ in range(2))
        assert probe.ask(get("/livez")).status == 200
        assert caller.ask(post_json(payment())).status == 200
        assert stack.enter_context(served.connected()).ask(post_json(payment("p-2"))).status == 200
        assert probe.is_closed_by_server()
        assert caller.ask(post_json(payment("p-3"))).status == 200


def test_when_all_have_sent_payments_a_new_connection_is_refused() -> None:
    with serving(replace(PATIENT, connections_max=2)) as served, contextlib.ExitStack() as stack:
        for number in range(2):
            client = stack.enter_context(served.connected())
            assert client.ask(post_json(payment(f"p-{number}"))).status == 200
        with served.connected() as late:
            assert late.reply().status == 503
            assert late.is_closed_by_server()
        assert served.metrics.connections.refused.value == 1


def test_the_body_of_a_refused_request_is_not_kept() -> None:
    """It used to be collected to its end, half a megabyte of it, and then thrown away."""
    body = b"x" * 100_000
    with serving() as served, served.connected() as client:
        head = f"POST /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        client.send(head + body[:-1])
        wait_in_loop(served, lambda: _arriving_bytes(served) == [len(body) - 1])
        assert served.server.arriving.count == 0
        assert client.ask(body[-1:]).status == 404
        assert client.ask(get("/livez")).status == 200


def test_incomplete_bodies_of_all_connections_together_are_limited() -> None:
    request = post(b"x" * 1000)
    with serving(replace(PATIENT, arriving_bytes_max=2500)) as served, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(served.connected()) for _ in range(2)]
        for client in slow:
            client.send(request[:-1])
        wait_in_loop(served, lambda: served.server.arriving.count == 2 * 999)
        with served.connected() as third:
            third.send(request[:-1])
            reply = third.reply()
            assert (reply.status, reply.error["message"][:23]) == (503, "too much is arriving at")
            assert third.is_closed_by_server()
        # A whole request needs no room, and the room comes back.
        with served.connected() as beside:
            assert beside.ask(post_json(payment())).status == 200
        slow[0].raw.close()
        assert slow[1].ask(request[-1:]).status == 400
        wait_in_loop(served, lambda: served.server.arriving.count == 0)


def test_without_room_for_requests_that_wait_the_next_is_503_and_the_connection_closes() -> None:
    settings = replace(PATIENT, pipelined_max=2, arriving_bytes_max=300)
    with serving(settings) as served, served.connected() as client:
        client.send(b"".join(post_json(payment(f"p-{number}")) for number in range(10)))
        assert [client.reply().status for _ in range(3)] == [200, 200, 503]
        assert client.is_closed_by_server()
        assert served.server.arriving.count == 0
        with served.connected() as other:
            assert other.ask(post_json(payment("last"))).json["payment_id"] == "last"


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_request_over_128_kib_is_413_and_says_so(is_chunked: bool) -> None:
    """It used to be accepted up to the limit of a batch, and then was a bug: 500."""
    unknown_field = b"\xfa\x01" + b"\x80\x80\x09" + b"x" * (9 << 14)
    with serving() as served, served.connected() as client:
        head = b"POST /v1/score HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-protobuf\r\n"
        if is_chunked:
            client.send(head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(unknown_field))
            with contextlib.suppress(OSError):
                client.send(unknown_field)
        else:
            client.send(head + b"Content-Length: %d\r\n\r\n" % len(unknown_field))
        reply = client.reply()
        assert (reply.status, reply.error["message"]) == (413, "body must be at most 131072 bytes")
        assert served.scorer.seen == []


def test_a_request_over_128_kib_in_a_batch_is_413_and_named(client: Client) -> None:
    large = b"\xfa\x01" + b"\x80\x80\x09" + b"x" * (9 << 14)
    batch = SplitBatchRequest(requests=[b"", large])
    reply = client.ask(post_protobuf(batch, path="/v1/score:batch"))
    assert reply.status == 413
    assert reply.error == {
        "code": "invalid_argument",
        "field": "requests[1]",
        "message": "must be at most 131072 bytes",
    }


def test_metrics_asked_for_without_end_are_429_and_payments_go_on(served: Served) -> None:
    with served.connected() as scraper, served.connected() as caller:
        scraper.send(get("/metrics") * 200)
        statuses = [scraper.reply().status for _ in range(200)]
        assert set(statuses) == {200, 429}
        assert caller.ask(post_json(payment())).status == 200


def _arriving_bytes(served: Served) -> list[int]:
    """Returns how much of an incomplete body each connection has received."""
    found = [connection._reader.arriving for connection in served.server.connections]
    return [arriving.body_bytes for arriving in found if arriving is not None]


def wait_in_loop(served: Served, condition: Callable[[], bool]) -> None:
    """Wait until a condition holds that is looked at in the server's loop."""
    deadline = time.monotonic() + WAIT_SECONDS
    seen: list[bool] = []
    while not (seen and seen[-1]):
        assert time.monotonic() < deadline
        served.loop.call_soon_threadsafe(lambda: seen.append(condition()))
        served.run_in_loop()
