"""Callers that break HTTP/2, or ask for too much within it: they are refused clearly, and no other caller notices."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paywarden.schemas.proto.split_pb2 import SplitBatchRequest
from paywarden.scoring.grpc.grpc_settings import GrpcSettings
from paywarden.scoring.grpc.messages import frame
from tests.services.clients.grpc_raw import (
    ACK,
    BATCH,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    FrameClient,
    RawClient,
    call_headers,
    pack_headers,
    raw_frame,
)
from tests.worlds.endpoint.grpc_served import GrpcServed, payment

PAYMENT = payment().SerializeToString()
BLOCK = pack_headers(call_headers())
OPEN_1 = raw_frame(HEADERS, END_HEADERS, 1, BLOCK)
CALL_1 = OPEN_1 + raw_frame(DATA, END_STREAM, 1, frame(PAYMENT))
GREETING = PREFACE + raw_frame(SETTINGS, 0, 0)

PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, COMPRESSION_ERROR = 1, 3, 6, 9
CALM = 0xB


@pytest.fixture(scope="module")
def served() -> Iterator[GrpcServed]:
    with GrpcServed(GrpcSettings()) as one:
        yield one


@pytest.fixture
def bystander(served: GrpcServed) -> Iterator[RawClient]:
    """A connection with a call in flight that must be answered, regardless of other connections."""
    with RawClient(served) as client:
        stream_id = client.open()
        client.push()
        yield client
        client.data(stream_id, frame(payment("bystander").SerializeToString()))
        client.push()
        assert client.answer(stream_id).status == 0


BROKEN_CONNECTIONS: dict[str, tuple[bytes, set[int]]] = {
    "HTTP/1.1": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", {PROTOCOL_ERROR}),
    "a wrong preface": (b"PRI * HTTP/2.1\r\n\r\nSM\r\n\r\n" + raw_frame(SETTINGS, 0, 0), {PROTOCOL_ERROR}),
    "no SETTINGS first": (PREFACE + raw_frame(PING, 0, 0, bytes(8)), {PROTOCOL_ERROR}),
    "a frame too large": (GREETING + (20_000).to_bytes(3, "big") + b"\0\0\0\0\0\1", {FRAME_SIZE_ERROR}),
    "DATA before HEADERS": (GREETING + raw_frame(DATA, END_STREAM, 1, frame(PAYMENT)), {PROTOCOL_ERROR}),
    "a stream of even number": (
        GREETING + raw_frame(HEADERS, END_HEADERS | END_STREAM, 2, BLOCK),
        {PROTOCOL_ERROR},
    ),
    "HEADERS on stream 0": (GREETING + raw_frame(HEADERS, END_HEADERS, 0, BLOCK), {PROTOCOL_ERROR}),
    "a zero WINDOW_UPDATE": (GREETING + raw_frame(WINDOW_UPDATE, 0, 0, bytes(4)), {PROTOCOL_ERROR}),
    "a WINDOW_UPDATE that overflows": (
        GREETING + raw_frame(WINDOW_UPDATE, 0, 0, (2**31 - 1).to_bytes(4, "big")),
        {FLOW_CONTROL_ERROR},
    ),
    "a WINDOW_UPDATE of a stream that never was": (
        GREETING + raw_frame(WINDOW_UPDATE, 0, 7, (1).to_bytes(4, "big")),
        {PROTOCOL_ERROR},
    ),
    "another frame between HEADERS and CONTINUATION": (
        GREETING + raw_frame(HEADERS, 0, 1, BLOCK[:20]) + raw_frame(PING, 0, 0, bytes(8)),
        {PROTOCOL_ERROR},
    ),
    "a CONTINUATION of another stream": (
        GREETING + raw_frame(HEADERS, 0, 1, BLOCK[:20]) + raw_frame(CONTINUATION, END_HEADERS, 3, BLOCK[20:]),
        {PROTOCOL_ERROR},
    ),
    "a CONTINUATION of nothing": (GREETING + raw_frame(CONTINUATION, END_HEADERS, 1, BLOCK), {PROTOCOL_ERROR}),
    "a PUSH_PROMISE": (GREETING + OPEN_1 + raw_frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4)), {PROTOCOL_ERROR}),
    "headers that cannot be unpacked": (
        GREETING + raw_frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff"),
        {PROTOCOL_ERROR, COMPRESSION_ERROR},
    ),
    "a PING of wrong size": (GREETING + raw_frame(PING, 0, 0, bytes(7)), {FRAME_SIZE_ERROR}),
    "SETTINGS of wrong size": (GREETING + raw_frame(SETTINGS, 0, 0, bytes(5)), {FRAME_SIZE_ERROR}),
    "a SETTINGS acknowledgement that says something": (
        GREETING + raw_frame(SETTINGS, ACK, 0, bytes(6)),
        {FRAME_SIZE_ERROR, PROTOCOL_ERROR},
    ),
    "a window of impossible size": (
        PREFACE + raw_frame(SETTINGS, 0, 0, b"\0\4" + (2**31).to_bytes(4, "big")),
        {FLOW_CONTROL_ERROR},
    ),
    "RST_STREAM of a stream that never was": (GREETING + raw_frame(RST_STREAM, 0, 9, bytes(4)), {PROTOCOL_ERROR}),
    "garbage": (GREETING + bytes(range(256)) * 40, {PROTOCOL_ERROR, FRAME_SIZE_ERROR}),
}


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize("what", BROKEN_CONNECTIONS)
def test_a_violation_of_http2_ends_the_connection_with_the_reason(served: GrpcServed, what: str) -> None:
    sent, codes = BROKEN_CONNECTIONS[what]
    with FrameClient(served, sent) as client:
        client.read_to_end()
        assert {code for _, code in client.goaways()} & codes, client.frames()


NEVER_SCORED = {
    "HEADERS on a stream that is over": CALL_1 + raw_frame(HEADERS, END_HEADERS | END_STREAM, 1, BLOCK),
    "DATA on a stream that is over": CALL_1 + raw_frame(DATA, END_STREAM, 1, frame(PAYMENT)),
    "HEADERS in the middle of a call": OPEN_1 + raw_frame(HEADERS, END_HEADERS, 1, BLOCK),
    "a call on a stream below the last": raw_frame(HEADERS, END_HEADERS, 5, BLOCK)
    + FrameClient.call_frames(3, frame(PAYMENT)),
    "a call whose stream is reset by a wrong window": OPEN_1
    + raw_frame(WINDOW_UPDATE, 0, 1, bytes(4))
    + raw_frame(DATA, END_STREAM, 1, frame(PAYMENT)),
}


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize("what", NEVER_SCORED)
def test_frames_on_the_wrong_stream_are_not_scored(served: GrpcServed, what: str) -> None:
    served.scorer.chunks.clear()
    with FrameClient(served) as client:
        client.send(NEVER_SCORED[what])
        client.socket.shutdown(socket.SHUT_WR)
        client.read_to_end()
    assert served.scorer.scored in ([], ["p1"] if what.endswith("is over") else [])


BROKEN_STREAMS = {
    "a header in capitals": [*call_headers(), (b"X-Upper", b"1")],
    "no path": [header for header in call_headers() if header[0] != b":path"],
    "a pseudo-header twice": [(b":path", b"/a"), *call_headers()],
    "a pseudo-header after the others": [*call_headers()[1:], call_headers()[0]],
    "a header of HTTP/1.1": [*call_headers(), (b"connection", b"close")],
    "a newline in a value": [*call_headers(), (b"x-a", b"1\r\n2")],
    "a content-length that is wrong": [*call_headers(), (b"content-length", b"3")],
    "te that is not trailers": [*(h for h in call_headers() if h[0] != b"te"), (b"te", b"gzip")],
}


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize("what", BROKEN_STREAMS)
def test_a_call_whose_head_is_malformed_is_never_scored(served: GrpcServed, what: str) -> None:
    served.scorer.chunks.clear()
    with FrameClient(served) as client:
        client.send(client.call_frames(1, frame(PAYMENT), BROKEN_STREAMS[what]))
        # The server resets the stream or ends the whole connection; both name the reason.
        while not any(kind in (RST_STREAM, GOAWAY) for kind, _, _, _ in client.frames()):
            assert client.read(), client.frames()
    assert served.scorer.scored == []


FLOODS: dict[str, bytes] = {
    "PING": raw_frame(PING, 0, 0, bytes(8)) * 3000,
    "SETTINGS": raw_frame(SETTINGS, 0, 0) * 3000,
    "WINDOW_UPDATE": raw_frame(WINDOW_UPDATE, 0, 0, (1).to_bytes(4, "big")) * 3000,
    "empty DATA": OPEN_1 + raw_frame(DATA, 0, 1) * 3000,
    "empty DATA of a health check": raw_frame(
        HEADERS, END_HEADERS, 1, pack_headers(call_headers(b"/grpc.health.v1.Health/Check"))
    )
    + raw_frame(DATA, 0, 1) * 3000,
    "calls reset at once": b"".join(
        raw_frame(HEADERS, END_HEADERS, number, BLOCK) + raw_frame(RST_STREAM, 0, number, b"\0\0\0\x08")
        for number in range(1, 6001, 2)
    ),
    "whole calls reset at once": b"".join(
        raw_frame(HEADERS, END_HEADERS, number, BLOCK)
        + raw_frame(DATA, END_STREAM, number, frame(PAYMENT))
        + raw_frame(RST_STREAM, 0, number, b"\0\0\0\x08")
        for number in range(1, 6001, 2)
    ),
    "CONTINUATION": raw_frame(HEADERS, 0, 1, BLOCK) + raw_frame(CONTINUATION, 0, 1, b"") * 1000,
    "a header list too large": raw_frame(HEADERS, 0, 1, BLOCK)
    + raw_frame(CONTINUATION, 0, 1, pack_headers([(b"x", b"y" * 10_000)]))
    + raw_frame(CONTINUATION, END_HEADERS, 1, pack_headers([(b"x", b"y" * 10_000)])),
    "too many headers": raw_frame(HEADERS, END_HEADERS, 1, pack_headers([*call_headers(), *[(b"a", b"b")] * 60])),
    # The header is in the table once, and the block refers to it 100 times with a byte each.
    "a header bomb": raw_frame(
        HEADERS, END_HEADERS, 1, BLOCK + b"\x40" + pack_headers([(b"x", b"y" * 3000)])[1:] + b"\xbe" * 40
    ),
}


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize("what", FLOODS)
def test_a_flood_is_told_to_be_calm(served: GrpcServed, what: str) -> None:
    with FrameClient(served) as client:
        client.send(FLOODS[what])
        client.read_to_end()
        assert [code for _, code in client.goaways()] == [CALM]


def test_a_caller_who_goes_on_sending_has_time_to_read_why_it_is_over(served: GrpcServed) -> None:
    """If the server closed at once, the kernel would send a reset, and the caller might never read the GOAWAY."""
    with FrameClient(served) as client:
        client.send(FLOODS["PING"])
        client.read_to_end()
        for _ in range(5):
            client.socket.sendall(raw_frame(PING, 0, 0, bytes(8)))
            time.sleep(0.02)
        assert [code for _, code in client.goaways()] == [CALM]


def test_a_call_that_was_reset_in_a_flood_is_not_scored(served: GrpcServed) -> None:
    served.scorer.chunks.clear()
    with FrameClient(served) as client:
        client.send(FLOODS["whole calls reset at once"])
        client.read_to_end()
    assert len(served.scorer.scored) == 0


def test_frames_that_ask_for_nothing_are_free_in_proportion_to_answers(served: GrpcServed) -> None:
    """Go's client sends a PING for nearly every answer: thousands a second must not end a connection that works."""
    with RawClient(served) as client:
        for _ in range(60):
            streams = [client.call(PAYMENT) for _ in range(20)]
            client.push()
            for stream_id in streams:
                assert client.answer(stream_id).status == 0
            client.send_raw(raw_frame(PING, 0, 0, bytes(8)) * 40)
        assert client.goaways == []


def test_more_streams_than_allowed_are_refused_and_not_scored(served: GrpcServed) -> None:
    served.scorer.chunks.clear()
    with FrameClient(served) as client:
        # The client may not have read the limit in SETTINGS yet, so it may try these calls again elsewhere.
        client.send(b"".join(raw_frame(HEADERS, END_HEADERS, number, BLOCK) for number in range(1, 400, 2)))
        client.send(raw_frame(DATA, END_STREAM, 399, frame(PAYMENT)))
        client.wait_for(RST_STREAM, 399)
        resets = [payload for kind, _, _, payload in client.frames() if kind == RST_STREAM]
        assert set(resets) == {(7).to_bytes(4, "big")}
        assert len(resets) == 200 - 128
        client.send(raw_frame(DATA, END_STREAM, 1, frame(PAYMENT)))
        client.wait_for(HEADERS, 1)
    assert served.scorer.scored == ["p1"]


def test_streams_that_provoke_resets_by_us_are_bounded_too(served: GrpcServed) -> None:
    """As in CVE-2025-8671: the caller breaks a stream, so that the server resets it, and opens the next."""
    burst = b"".join(
        raw_frame(HEADERS, END_HEADERS, number, BLOCK) + raw_frame(WINDOW_UPDATE, 0, number, b"\x7f\xff\xff\xff")
        for number in range(1, 6001, 2)
    )
    with FrameClient(served) as client:
        client.send(burst)
        client.read_to_end()
        # libnghttp2 ends the connection at the first.
        assert [code for _, code in client.goaways()] == [FLOW_CONTROL_ERROR]


@pytest.mark.usefixtures("bystander")
def test_unknown_frames_and_priorities_are_ignored(served: GrpcServed) -> None:
    with FrameClient(served) as client:
        client.send(raw_frame(0xEE, 0xFF, 0, b"grease") + raw_frame(PRIORITY, 0, 3, b"\0\0\0\0\x10") + CALL_1)
        assert client.wait_for(DATA, 1)


VALID = GREETING + b"".join(FrameClient.call_frames(number, frame(PAYMENT)) for number in (1, 3, 5))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_a_damaged_stream_neither_ends_the_server_nor_gets_a_false_score(
    served: GrpcServed, data: st.DataObject
) -> None:
    damaged = bytearray(VALID)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "repeat"])):
            case "flip":
                damaged[at] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del damaged[at : at + data.draw(st.integers(1, 40))]
            case "insert":
                damaged[at:at] = data.draw(st.binary(min_size=1, max_size=20))
            case _:
                damaged[at:at] = damaged[at : at + data.draw(st.integers(1, 200))]
        if not damaged:
            break
    served.scorer.chunks.clear()
    with FrameClient(served, bytes(damaged)) as client:
        client.socket.shutdown(socket.SHUT_WR)
        client.read_to_end()
    # A damaged payment may still be valid, but its bytes must be those that were sent.
    for payment_id in served.scorer.scored:
        assert payment_id.encode() in bytes(damaged)
    with RawClient(served) as client:
        assert client.ask(PAYMENT).status == 0


def test_silent_connections_at_the_limit_keep_no_caller_out() -> None:
    """1,024 of them used to lock out everyone for 300 seconds."""
    with GrpcServed(GrpcSettings(connections_max=10)) as served, contextlib.ExitStack() as stack:
        bystander = stack.enter_context(RawClient(served))
        assert bystander.ask(PAYMENT).status == 0
        silent = [stack.enter_context(FrameClient(served, opening)) for opening in (b"", PREFACE, GREETING) * 3]
        newcomer = stack.enter_context(RawClient(served))
        assert newcomer.ask(PAYMENT).status == 0
        silent[0].read_to_end()
        assert bystander.ask(PAYMENT).status == 0
        assert newcomer.ask(PAYMENT).status == 0
        assert served.metrics.connections.evicted.value >= 1


def test_when_all_have_made_calls_a_new_connection_is_told_to_calm_down() -> None:
    with GrpcServed(GrpcSettings(connections_max=2)) as served, contextlib.ExitStack() as stack:
        for _ in range(2):
            assert stack.enter_context(RawClient(served)).ask(PAYMENT).status == 0
        late = stack.enter_context(FrameClient(served, b""))
        late.read_to_end()
        assert [code for _, code in late.goaways()] == [CALM]
        assert served.metrics.connections.refused.value == 1


def test_a_request_over_128_kib_in_a_batch_is_resource_exhausted_and_named(served: GrpcServed) -> None:
    large = b"\xfa\x01" + b"\x80\x80\x09" + b"x" * (9 << 14)
    batch = SplitBatchRequest(requests=[b"", large]).SerializeToString()
    with RawClient(served) as client:
        answer = client.ask(batch, call_headers(BATCH))
        assert answer.status == 8
        assert answer.message == b"requests[1]: must be at most 131072 bytes"
