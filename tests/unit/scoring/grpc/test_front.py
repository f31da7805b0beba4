from __future__ import annotations

import contextlib
import gzip
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.proto import health_pb2, reflection_pb2
from paywarden.schemas.proto.scoring_pb2 import ScoreBatchRequest, ScoreBatchResponse, ScoreResponse
from paywarden.scoring.engine.batching import refusal_budget
from paywarden.scoring.engine.batching.batcher import AdmissionSettings, Refusal
from paywarden.scoring.engine.batching.queue_limit import QueueLimit
from paywarden.scoring.grpc import grpc_connection as connection
from paywarden.scoring.grpc.grpc_settings import GrpcSettings
from paywarden.scoring.grpc.http2 import ENHANCE_YOUR_CALM, Http2Session
from paywarden.scoring.grpc.messages import frame
from paywarden.scoring.net import connections
from paywarden.scoring.requests.trace_context import packed_trace
from tests.patience import PATIENCE_S
from tests.services.clients.grpc_raw import (
    ACK,
    BATCH,
    GOAWAY,
    PING,
    Answer,
    FrameClient,
    RawClient,
    call_headers,
    raw_frame,
)
from tests.services.product.processes import wait_until
from tests.worlds.endpoint.grpc_served import PATIENT, GrpcServed, payment

HEALTH_CHECK = b"/grpc.health.v1.Health/Check"
HEALTH_WATCH = b"/grpc.health.v1.Health/Watch"
REFLECTION = b"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
PAYMENT = payment().SerializeToString()


@pytest.fixture(scope="module")
def shared() -> Iterator[GrpcServed]:
    with GrpcServed(GrpcSettings()) as served:
        yield served


@pytest.fixture
def served(shared: GrpcServed) -> GrpcServed:
    shared.scorer.chunks.clear()
    shared.scorer.refuses.clear()
    return shared


@pytest.fixture
def client(served: GrpcServed) -> Iterator[RawClient]:
    with RawClient(served) as connected:
        yield connected


def response_of(answer: Answer) -> ScoreResponse:
    assert answer.status == 0, answer
    assert answer.data[0] == 0
    assert int.from_bytes(answer.data[1:5], "big") == len(answer.data) - 5
    return ScoreResponse.FromString(answer.data[5:])


@pytest.mark.parametrize("count", [5, 3000])
def test_a_batch_above_the_limit_is_refused(client: RawClient, count: int) -> None:
    """3,000 payments were told to try again later, for ever."""
    answer = client.ask(ScoreBatchRequest(requests=[payment()] * count).SerializeToString(), call_headers(BATCH))
    assert (answer.status, answer.headers[b"paywarden-field"]) == (3, b"requests")
    assert answer.message == f"requests: must hold 1 to 4 requests, holds {count}".encode()


def test_a_payment_is_scored(client: RawClient, served: GrpcServed) -> None:
    counted = served.counted("Score", "ok")
    answer = client.ask(PAYMENT)
    assert answer.headers == {b":status": b"200", b"content-type": b"application/grpc"}
    assert response_of(answer) == ScoreResponse(payment_id="p1", score=0.5, action="approve")
    assert answer.trailers == {b"grpc-status": b"0"}
    assert served.counted("Score", "ok") == counted + 1


def test_a_batch_is_scored(client: RawClient) -> None:
    batch = ScoreBatchRequest(requests=[payment("a"), payment("b")]).SerializeToString()
    answer = client.ask(batch, call_headers(BATCH))
    assert [r.payment_id for r in ScoreBatchResponse.FromString(answer.data[5:]).responses] == ["a", "b"]


def test_streams_of_one_read_are_scored_together_and_written_once(client: RawClient, served: GrpcServed) -> None:
    client.ask(PAYMENT)
    served.scorer.chunks.clear()
    streams = [client.call(payment(f"s{index}").SerializeToString()) for index in range(16)]
    reads = client.read_count
    client.push()
    for stream_id in streams:
        client.answer(stream_id)
    assert served.scorer.chunks == [[f"s{index}" for index in range(16)]]
    assert client.read_count == reads + 1
    assert [response_of(client.answers[s]).payment_id for s in streams] == [f"s{index}" for index in range(16)]


def test_a_wrong_value_names_its_field_in_message_and_trailer(client: RawClient) -> None:
    answer = client.ask(payment(amount_minor=-1).SerializeToString())
    assert answer.status == 3
    assert answer.message == b"amount_minor: is below 0; wanted a whole number of minor units from 0 to 100000000000"
    assert answer.headers[b"paywarden-field"] == b"amount_minor"


def test_one_wrong_request_spoils_nothing_for_its_neighbours(client: RawClient) -> None:
    good, bad = client.call(PAYMENT), client.call(b"\xff\xff")
    client.push()
    assert client.answer(bad).status == 3
    assert client.answer(good).status == 0


@pytest.mark.parametrize(("code", "number"), [("already_exists", 6), ("unauthenticated", 16), ("internal", 13)])
def test_a_refusal_of_the_scorer_has_the_number_of_grpc(
    client: RawClient, served: GrpcServed, code: str, number: int
) -> None:
    served.scorer.refuses["p1"] = Refusal(code, "no")
    answer = client.ask(PAYMENT)
    assert (answer.status, answer.message) == (number, b"no")


@pytest.mark.parametrize(
    "headers",
    [
        call_headers(content_type=b"application/json"),
        call_headers(content_type=b"application/grpc+json"),
        [header for header in call_headers() if header[0] != b"content-type"],
    ],
)
def test_a_content_type_other_than_grpc_is_a_415_of_http(client: RawClient, headers: list[tuple[bytes, bytes]]) -> None:
    answer = client.ask(PAYMENT, headers)
    assert answer.headers[b":status"] == b"415"


def test_a_get_is_a_405_of_http(client: RawClient) -> None:
    stream_id = client.open([(b":method", b"GET"), *call_headers()[1:]], ended=True)
    client.push()
    assert client.answer(stream_id).headers[b":status"] == b"405"


@pytest.mark.parametrize("path", [b"/", b"/paywarden.scoring.v1.Scoring/Other", b"/a/b", b"/%00"])
def test_an_unknown_method_is_unimplemented(client: RawClient, path: bytes) -> None:
    assert client.ask(PAYMENT, call_headers(path)).status == 12


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 12),
        (frame(PAYMENT) + frame(PAYMENT), 12),
        (frame(PAYMENT)[:-1], 13),
        (b"\0\0", 13),
        (frame(bytes(17_000)), 8),
        (b"\1" + frame(PAYMENT)[1:], 13),
        (b"\7" + frame(PAYMENT)[1:], 13),
    ],
)
def test_a_request_that_is_not_one_message_is_never_scored(
    client: RawClient, served: GrpcServed, data: bytes, status: int
) -> None:
    stream_id = client.open()
    client.data(stream_id, data)
    client.push()
    assert client.answer(stream_id).status == status
    assert served.scorer.scored == []


def test_a_too_large_message_is_refused_before_all_of_it_has_arrived(client: RawClient) -> None:
    stream_id = client.open()
    client.data(stream_id, b"\0" + (1 << 30).to_bytes(4, "big"), ended=False)
    client.push()
    assert client.answer(stream_id).status == 8
    client.wait(lambda: client.answers[stream_id].reset == 0)
    assert response_of(client.ask(PAYMENT)).payment_id == "p1"


def test_a_request_in_many_small_frames_is_put_together(client: RawClient) -> None:
    stream_id = client.open()
    for byte in frame(PAYMENT):
        client.data(stream_id, bytes([byte]), ended=False)
        client.push()
    client.data(stream_id, b"", ended=True)
    client.push()
    assert response_of(client.answer(stream_id)).payment_id == "p1"


def test_bytes_of_incomplete_requests_are_counted_and_released(client: RawClient, served: GrpcServed) -> None:
    streams = [client.open() for _ in range(4)]
    for stream_id in streams:
        client.data(stream_id, frame(PAYMENT)[:20], ended=False)
    client.push()
    wait_until(lambda: served.server.arriving_bytes == 80, "four parts are held")
    client.data(streams[0], frame(PAYMENT)[20:])
    client.reset(streams[1])
    client.data(streams[2], bytes(17_000), ended=False)
    client.push()
    wait_until(lambda: served.server.arriving_bytes == 20, "one part is held")
    client.socket.close()
    wait_until(lambda: served.server.arriving_bytes == 0, "none is held")


def test_parts_of_requests_are_limited_over_all_connections() -> None:
    with (
        GrpcServed(GrpcSettings(arriving_bytes_max=1000)) as served,
        RawClient(served) as one,
        RawClient(served) as two,
    ):
        first, second = one.open(), two.open()
        one.data(first, frame(bytes(900))[:600], ended=False)
        one.push()
        wait_until(lambda: served.server.arriving_bytes == 600, "the first part is held")
        two.data(second, frame(bytes(900))[:600], ended=False)
        two.push()
        assert two.answer(second).status == 8
        assert two.ask(PAYMENT).status == 0


@pytest.mark.parametrize("packed", [True, False])
def test_a_compressed_request_is_scored(client: RawClient, packed: bool) -> None:
    stream_id = client.open(call_headers(call_headers()[2][1], (b"grpc-encoding", b"gzip")))
    client.data(stream_id, b"\1" + frame(gzip.compress(PAYMENT))[1:] if packed else frame(PAYMENT))
    client.push()
    assert response_of(client.answer(stream_id)).payment_id == "p1"


def test_a_bomb_is_refused(client: RawClient) -> None:
    stream_id = client.open(call_headers(call_headers()[2][1], (b"grpc-encoding", b"gzip")))
    client.data(stream_id, b"\1" + frame(gzip.compress(bytes(1_000_000)))[1:])
    client.push()
    assert client.answer(stream_id).status == 8


def test_an_unknown_compression_is_unimplemented_and_says_which_are_known(client: RawClient) -> None:
    answer = client.ask(PAYMENT, call_headers(call_headers()[2][1], (b"grpc-encoding", b"snappy")))
    assert answer.status == 12
    assert answer.headers[b"grpc-accept-encoding"] == b"identity,deflate,gzip"


def test_metadata_is_accepted_and_ignored(client: RawClient) -> None:
    more = [(b"x-request-id", b"7"), (b"trace-bin", b"AAEC"), (b"x-request-id", b"8")]
    assert client.ask(PAYMENT, [*call_headers(), *more]).status == 0


def test_the_trace_of_a_call_reaches_the_scorer(client: RawClient, served: GrpcServed) -> None:
    header = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    for more in ([(b"traceparent", header)], [(b"traceparent", b"00-no")], []):
        assert client.ask(PAYMENT, [*call_headers(), *more]).status == 0
    assert served.scorer.traces[-3:] == [packed_trace(header), b"", b""]


def test_a_malformed_timeout_is_an_invalid_argument(client: RawClient) -> None:
    answer = client.ask(PAYMENT, [*call_headers(), (b"grpc-timeout", b"soon")])
    assert answer.status == 3
    assert answer.headers[b"paywarden-field"] == b"grpc-timeout"


def test_a_deadline_that_has_passed_is_not_scored(client: RawClient, served: GrpcServed) -> None:
    assert client.ask(PAYMENT, [*call_headers(), (b"grpc-timeout", b"0m")]).status == 4
    assert served.scorer.scored == []


def test_the_callers_deadline_counts_from_the_head_of_the_call(client: RawClient, served: GrpcServed) -> None:
    stream_id = client.open([*call_headers(), (b"grpc-timeout", b"50m")])
    client.push()
    time.sleep(0.06)
    client.data(stream_id, frame(PAYMENT))
    client.push()
    assert client.answer(stream_id).status == 4
    assert served.scorer.scored == []


@pytest.mark.parametrize("timeout", [b"1H", b"99999999S"])
def test_our_own_deadline_holds_where_the_callers_is_later(timeout: bytes) -> None:
    with GrpcServed(GrpcSettings(), admission=AdmissionSettings(deadline_ms=30)) as served:
        held = threading.Event()
        with RawClient(served) as client:
            client.ask(PAYMENT)
            # Keep the loop busy between the read and the turn that would score.
            real = served.batcher.submit

            def submit_and_sleep(call: object) -> None:
                real(call)  # type: ignore[arg-type]
                time.sleep(0.05)
                held.set()

            served.batcher.submit = submit_and_sleep  # type: ignore[method-assign]
            assert client.ask(PAYMENT, [*call_headers(), (b"grpc-timeout", timeout)]).status == 4
            assert held.is_set()


def test_a_call_cancelled_before_its_turn_is_not_scored(client: RawClient, served: GrpcServed) -> None:
    counted = served.counted("Score", "cancelled")
    kept, dropped = (
        client.call(payment("kept").SerializeToString()),
        client.call(payment("dropped").SerializeToString()),
    )
    whole = client.pending()
    client.reset(dropped)
    client.send_raw(whole + client.pending())
    assert client.answer(kept).status == 0
    assert served.scorer.scored == ["kept"]
    assert served.counted("Score", "cancelled") == counted + 1


def test_calls_of_a_connection_that_is_gone_are_not_scored(served: GrpcServed, client: RawClient) -> None:
    counted = served.counted("Score", "cancelled")
    client.open()
    client.push()
    # The kernel may drop unread bytes with the connection. This answer proves that the server has read the call.
    assert client.ask(b"", call_headers(HEALTH_CHECK)).status == 0
    client.socket.close()
    wait_until(lambda: served.counted("Score", "cancelled") == counted + 1, "the call is given up")


def test_scoring_and_reflection_need_a_token_but_health_does_not() -> None:
    with (
        GrpcServed(GrpcSettings(), caller_of=lambda value: b"good" if value == b"Bearer good" else None) as served,
        RawClient(served) as client,
    ):
        for headers in (call_headers(), [*call_headers(), (b"authorization", b"Bearer bad")], call_headers(REFLECTION)):
            assert client.ask(PAYMENT, headers).status == 16
        assert served.scorer.scored == []
        assert client.ask(PAYMENT, [*call_headers(), (b"authorization", b"Bearer good")]).status == 0
        assert client.ask(b"", call_headers(HEALTH_CHECK)).status == 0
        assert served.counted("Score", "unauthenticated") == 2
    assert served.scorer.callers == [b"good"]


def health(client: RawClient, service: str = "") -> Answer:
    return client.ask(health_pb2.HealthCheckRequest(service=service).SerializeToString(), call_headers(HEALTH_CHECK))


def statuses(data: bytes) -> list[int]:
    """Returns the statuses of all messages of a Watch so far."""
    found = []
    while len(data) >= 5:
        size = int.from_bytes(data[1:5], "big")
        found.append(health_pb2.HealthCheckResponse.FromString(data[5 : 5 + size]).status)
        data = data[5 + size :]
    return [int(status) for status in found]


def test_health_is_the_scorers_readiness(client: RawClient, served: GrpcServed) -> None:
    for service in ("", "paywarden.scoring.v1.Scoring"):
        assert statuses(health(client, service).data) == [1]
    served.scorer.missing.append("no mirror")
    assert statuses(health(client).data) == [2]
    served.scorer.missing.clear()
    assert health(client, "other").status == 5


def test_health_lists_what_it_knows(client: RawClient) -> None:
    answer = client.ask(b"", call_headers(b"/grpc.health.v1.Health/List"))
    assert set(health_pb2.HealthListResponse.FromString(answer.data[5:]).statuses) == {
        "",
        "paywarden.scoring.v1.Scoring",
    }


def test_a_watch_tells_every_change(client: RawClient, served: GrpcServed) -> None:
    stream_id = client.call(b"", call_headers(HEALTH_WATCH))
    unknown = client.call(b"\x0a\x01x", call_headers(HEALTH_WATCH))
    client.push()
    answer = client.answers[stream_id]
    client.wait(lambda: statuses(answer.data) == [1])
    served.scorer.missing.append("no mirror")
    client.wait(lambda: statuses(answer.data) == [1, 2])
    served.scorer.missing.clear()
    client.wait(lambda: statuses(answer.data) == [1, 2, 1])
    assert statuses(client.answers[unknown].data) == [3]
    client.reset(stream_id)
    client.push()
    assert client.ask(PAYMENT).status == 0


def test_a_watch_gets_the_last_status_and_ends_with_ok() -> None:
    with GrpcServed(GrpcSettings()) as served, RawClient(served) as client:
        stream_id = client.call(b"", call_headers(HEALTH_WATCH))
        client.push()
        client.wait(lambda: statuses(client.answers[stream_id].data) == [1])
        served.begin_stop()
        answer = client.answer(stream_id)
        assert statuses(answer.data) == [1, 2]
        assert answer.status == 0


def test_watches_are_limited(client: RawClient) -> None:
    streams = [client.call(b"", call_headers(HEALTH_WATCH)) for _ in range(9)]
    client.push()
    assert client.answer(streams[-1]).status == 8


def reflect(client: RawClient, *requests: reflection_pb2.ServerReflectionRequest, path: bytes = REFLECTION) -> Answer:
    stream_id = client.open(call_headers(path))
    for request in requests:
        client.data(stream_id, frame(request.SerializeToString()), ended=False)
    client.data(stream_id, b"", ended=True)
    client.push()
    return client.answer(stream_id)


def reflected(answer: Answer) -> list[reflection_pb2.ServerReflectionResponse]:
    data, found = answer.data, []
    while data:
        size = int.from_bytes(data[1:5], "big")
        found.append(reflection_pb2.ServerReflectionResponse.FromString(data[5 : 5 + size]))
        data = data[5 + size :]
    return found


@pytest.mark.parametrize("version", [b"v1", b"v1alpha"])
def test_reflection_answers_each_question_in_order(client: RawClient, version: bytes) -> None:
    ask = reflection_pb2.ServerReflectionRequest
    answer = reflect(
        client,
        ask(host="h", list_services=""),
        ask(file_containing_symbol="paywarden.scoring.v1.Scoring.Score"),
        ask(file_by_filename="paywarden/schemas/proto/health.proto"),
        ask(file_containing_symbol="paywarden.outbox.v1.OutboxEntry"),
        ask(file_by_filename="paywarden/schemas/proto/store.proto"),
        ask(file_containing_extension=reflection_pb2.ExtensionRequest(containing_type="a", extension_number=1)),
        ask(all_extension_numbers_of_type="paywarden.scoring.v1.ScoreRequest"),
        ask(),
        path=REFLECTION.replace(b"v1", version),
    )
    services, scoring, by_name, internal, store, extension, numbers, nothing = reflected(answer)
    assert services.valid_host == "h"
    assert "paywarden.scoring.v1.Scoring" in [s.name for s in services.list_services_response.service]
    assert b"ScoreBatchRequest" in scoring.file_descriptor_response.file_descriptor_proto[0]
    assert b"HealthCheckRequest" in by_name.file_descriptor_response.file_descriptor_proto[0]
    assert [one.error_response.error_code for one in (internal, store, extension)] == [5, 5, 5]
    assert numbers.all_extension_numbers_response.base_type_name == "paywarden.scoring.v1.ScoreRequest"
    assert nothing.error_response.error_code == 3
    assert answer.status == 0


def test_answers_wait_for_the_callers_window_and_come_when_it_opens() -> None:
    with (
        GrpcServed(GrpcSettings()) as served,
        RawClient(served, settings={4: 10}) as client,
    ):
        client.wait(lambda: client.read_count > 0)
        stream_id = client.call(PAYMENT)
        client.push()
        answer = client.answers[stream_id]
        client.wait(lambda: len(answer.data) == 10)
        assert not answer.ended
        client.open_window(15, stream_id)
        client.wait(lambda: len(answer.data) == 15)
        client.open_window(1000, stream_id)
        assert response_of(client.answer(stream_id)).payment_id == "p1"


def test_a_window_that_stays_shut_ends_the_connection_in_time() -> None:
    with (
        GrpcServed(GrpcSettings(write_timeout_ms=200)) as served,
        RawClient(served, settings={4: 0}) as client,
    ):
        client.call(PAYMENT)
        client.push()
        client.wait_closed()
        assert client.goaways[-1][1:] == (0xB, b"answers are not read")


def test_more_calls_are_refused_while_answers_wait_for_the_window() -> None:
    with (
        GrpcServed(GrpcSettings(unread_bytes_max=100)) as served,
        RawClient(served, settings={4: 0}) as client,
    ):
        streams = [client.call(PAYMENT) for _ in range(20)]
        client.push()
        client.wait(lambda: all(client.answers[stream_id].headers for stream_id in streams))
        late = client.ask(PAYMENT)
        assert (late.status, late.message) == (8, b"answers are not read")


def test_a_caller_who_does_not_read_is_not_read_from_and_ends_in_time() -> None:
    settings = GrpcSettings(write_timeout_ms=300, idle_frames_burst=10**9)
    with GrpcServed(settings) as served, RawClient(served) as client:
        client.wait(lambda: client.read_count > 0)
        pings = b"\0\0\x08\x06\0\0\0\0\0" + bytes(8)
        flood = pings * 1_000_000  # far more than the kernel's buffers take
        with pytest.raises(ConnectionError):
            client.send_raw(flood)


def stop_with_calls(served: GrpcServed, client: RawClient, count: int) -> list[Answer]:
    """Begin calls, stop the server, complete the calls."""
    streams = [client.open() for _ in range(count)]
    client.push()
    client.ping()
    client.push()
    client.wait(lambda: client.pongs == 1)
    served.begin_stop()
    client.wait(lambda: len(client.goaways) == 2)
    for stream_id in streams:
        client.data(stream_id, frame(PAYMENT))
    client.push()
    return [client.answer(stream_id) for stream_id in streams]


def test_a_stop_answers_what_is_in_flight_then_closes() -> None:
    with GrpcServed(GrpcSettings()) as served:
        with RawClient(served) as client:
            answers = stop_with_calls(served, client, 3)
            client.wait_closed()
        assert [answer.status for answer in answers] == [0, 0, 0]
        assert [(last, code) for last, code, _ in client.goaways] == [(2**31 - 1, 0), (5, 0)]
        served.join()


def test_a_call_that_crosses_the_notice_of_a_stop_is_answered() -> None:
    with GrpcServed(GrpcSettings()) as served:
        with RawClient(served) as client:
            client.ask(PAYMENT)
            served.begin_stop()
            # The first GOAWAY is sent but not read, so its PING is not answered before this call.
            time.sleep(0.1)
            stream_id = client.call(PAYMENT)
            client.push()
            assert client.answer(stream_id).status == 0
        served.join()


def test_a_stop_does_not_wait_for_ever() -> None:
    with GrpcServed(GrpcSettings(stop_timeout_ms=300)) as served:
        with RawClient(served) as client:
            client.open()
            client.push()
            served.begin_stop()
            client.wait_closed()
        served.join()


def test_a_delayed_stop_reports_not_serving_and_still_answers_calls() -> None:
    with GrpcServed(GrpcSettings(drain_delay_ms=3_000)) as served, RawClient(served) as client:
        client.ask(PAYMENT)
        served.begin_stop()
        wait_until(lambda: statuses(health(client).data) == [2], "health says so", every_s=0.01)
        assert client.ask(PAYMENT).status == 0
        assert client.goaways == []


def test_pings_are_answered_also_beside_calls(client: RawClient) -> None:
    client.ask(PAYMENT)
    client.ping()
    stream_id = client.call(PAYMENT)
    client.push()
    client.wait(lambda: client.pongs == 1)
    assert client.answer(stream_id).status == 0


def test_connections_are_limited_and_one_too_many_is_refused() -> None:
    with GrpcServed(GrpcSettings(connections_max=1)) as served, RawClient(served) as first:
        first.ask(PAYMENT)
        with RawClient(served) as second:
            second.wait_closed()
            assert second.goaways == [(0, 0xB, b"too many connections")]
        assert first.ask(PAYMENT).status == 0


QUICK: dict[str, Callable[[RawClient], object]] = {
    "nothing": lambda client: client,
    "half a preface": lambda client: client.send_raw(b"PRI * HTTP"),
}


@pytest.mark.parametrize("what", QUICK)
def test_a_connection_that_never_speaks_http2_ends_in_time(what: str) -> None:
    with (
        GrpcServed(GrpcSettings(request_timeout_ms=200)) as served,
        RawClient(served, greets=False) as client,
    ):
        QUICK[what](client)
        client.socket.settimeout(PATIENCE_S)
        while client.socket.recv(1000):
            pass


def test_a_request_that_arrives_too_slowly_is_refused_alone() -> None:
    with (
        GrpcServed(GrpcSettings(request_timeout_ms=300)) as served,
        RawClient(served) as client,
    ):
        stream_id = client.open()
        client.data(stream_id, b"\0\0", ended=False)
        client.push()
        answer = client.answer(stream_id)
        assert (answer.status, answer.message) == (4, b"the request took too long to arrive")
        assert client.ask(PAYMENT).status == 0


def test_a_front_without_a_connection_sleeps_and_watches_over_the_next_one() -> None:
    with GrpcServed(GrpcSettings(idle_timeout_ms=200)) as served:
        for _ in range(2):
            with FrameClient(served) as client:
                client.wait_for(GOAWAY)
            wait_until(lambda: served.server.connections._sweeper is None, "no timer is left")


def test_an_idle_connection_is_closed_without_hurting_a_call() -> None:
    with GrpcServed(GrpcSettings(idle_timeout_ms=200)) as served, FrameClient(served) as client:
        client.send(client.call_frames(1, frame(PAYMENT)))
        client.wait_for(GOAWAY)
        assert client.goaways() == [(2**31 - 1, 0)]
        # A call crosses the first GOAWAY; the PING that came with it is answered afterwards.
        client.send(client.call_frames(3, frame(PAYMENT)) + raw_frame(PING, ACK, 0, bytes(8)))
        client.read_to_end()
        assert client.goaways() == [(2**31 - 1, 0), (3, 0)]
        assert served.scorer.scored == ["p1", "p1"]


def test_an_idle_connection_whose_caller_is_gone_is_cut() -> None:
    settings = GrpcSettings(idle_timeout_ms=1_000, stop_timeout_ms=200, linger_ms=200)
    with GrpcServed(settings) as served, RawClient(served) as client:
        client.ask(PAYMENT)
        client.socket.settimeout(PATIENCE_S)
        while client.socket.recv(1000):
            pass


def test_a_silent_watcher_gets_a_ping() -> None:
    settings = GrpcSettings(keepalive_ms=150, keepalive_timeout_ms=3_000)
    with GrpcServed(settings) as served, RawClient(served) as there, RawClient(served) as gone:
        for client in (there, gone):
            client.call(b"", call_headers(HEALTH_WATCH))
            client.push()
        there.socket.settimeout(0.05)

        def is_one_cut() -> bool:
            with contextlib.suppress(TimeoutError):
                there.read()
            return served.counted("Watch", "cancelled") == 1

        wait_until(is_one_cut, "the silent one is cut")
        # Both have watched for as long, but this client has answered no PING.
        assert gone.pongs == 0
        assert not there.closed


@pytest.mark.parametrize(("name", "value"), [("streams_max", 0), ("linger_ms", -1)])
def test_an_impossible_setting_is_refused_by_its_name(name: str, value: str | int) -> None:
    with pytest.raises(Misconfigured, match=f"grpc. {name}"):
        GrpcSettings(**{name: value})  # type: ignore[arg-type]


def test_a_call_of_a_held_caller_that_did_not_wait_is_reset_under_overload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HOLD_S", (2.0, 2.0))
    monkeypatch.setattr(connections, "_HOLD_S_MAX", 2.0)
    monkeypatch.setattr(connections, "_HOLD_ALL_S", 0.0)
    # And the worker always has something to do.
    monkeypatch.setattr(connections, "_LOOK_S", 60.0)
    monkeypatch.setattr(refusal_budget, "REFUSING_SHARE", 0.0)
    # The overload does not end.
    monkeypatch.setattr(QueueLimit, "note_begun", lambda *_: None)
    admission = replace(PATIENT, queue_payments_max=1)
    with (
        GrpcServed(GrpcSettings(idle_frames_burst=40, idle_frames_per_second=1), admission=admission) as served,
        RawClient(served) as hasty,
        RawClient(served) as patient,
    ):
        served.batcher._budget._left_s, served.batcher._limit.stands = 0.0, True
        served.batcher._limit.wait_s_max = served.batcher._limit._stand_s = 1.0
        for client in (hasty, patient):
            calls = [client.call(PAYMENT) for _ in range(2)]
            client.push()
            assert {client.answer(call).status for call in calls} == {0, 8}
        scored = len(served.scorer.scored)
        # More than may ask for nothing: these do ask for something.
        late = [hasty.call(PAYMENT) for _ in range(30)]
        hasty.push()
        assert {hasty.answer(call).reset for call in late} == {ENHANCE_YOUR_CALM}
        wait_until(lambda: not any(each._is_held for each in served.server.connections), "the holds are over")
        assert len(served.scorer.scored) == scored
        for client in (hasty, patient):
            assert client.ask(PAYMENT).status == 0


@pytest.mark.parametrize(("is_overloaded", "waited_s"), [(True, 1e6), (True, 0.0), (False, 1e6)])
def test_a_call_that_waited_too_long_to_be_accepted_is_reset_under_overload(
    monkeypatch: pytest.MonkeyPatch, *, is_overloaded: bool, waited_s: float
) -> None:
    """To score it helps nobody. Its caller asks again in the same connection."""
    found = iter([connections.Unread(1, waited_s, has_gone=False)])
    nothing = connections.Unread(0, 0.0, has_gone=False)
    monkeypatch.setattr(connection, "unread_of", lambda _: next(found, nothing))
    monkeypatch.setattr(connections, "HOLD_S", (0.1, 0.1))
    monkeypatch.setattr(connections, "_HOLD_S_MAX", 0.1)
    with GrpcServed(GrpcSettings(), admission=PATIENT) as served:
        served.batcher._limit.stands = is_overloaded
        with RawClient(served, greets=False) as client:
            is_reset = client.ask(PAYMENT).reset == ENHANCE_YOUR_CALM
            assert is_reset == (is_overloaded and waited_s > 0)
            assert client.ask(PAYMENT).status == 0
            assert len(served.scorer.scored) == 2 - is_reset


def pieces_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return how many bytes sessions receive at once from now on."""
    pieces: list[int] = []
    receive = Http2Session.receive

    def note(session: Http2Session, data: bytes) -> None:
        pieces.append(len(data))
        receive(session, data)

    monkeypatch.setattr(Http2Session, "receive", note)
    return pieces


def test_every_call_of_a_large_read_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large read is taken piece by piece, wherever that cuts a frame: others come in between."""
    pieces = pieces_read(monkeypatch)
    monkeypatch.setattr(connection, "_READ_BYTES", 50)
    admission = replace(PATIENT, caller_payments_per_second=20)
    with (
        GrpcServed(GrpcSettings(), admission=admission, caller_of=lambda value: value) as served,
        RawClient(served) as quiet,
        RawClient(served) as noisy,
    ):
        as_quiet, as_noisy = ([*call_headers(), (b"authorization", name)] for name in (b"quiet", b"noisy"))
        for _ in range(5):
            assert quiet.ask(PAYMENT, as_quiet).status == 0
            pieces.clear()
            calls = [noisy.call(PAYMENT, as_noisy) for _ in range(100)]
            noisy.push()
            assert {noisy.answer(call).status for call in calls} <= {0, 8}
            assert max(pieces) <= 50
