"""The cache of heads: it changes no answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
from paywarden.scoring.engine.batching.batcher import AdmissionSettings
from paywarden.scoring.http.heads import Heads, RequestHead, Route
from paywarden.scoring.http.http_reader import RequestReader
from paywarden.scoring.http.http_settings import HttpSettings
from paywarden.scoring.net.tokens import Tokens
from paywarden.scoring.requests.protobuf_form import PROTOBUF as PROTOBUF_FORMAT
from paywarden.scoring.requests.trace_context import packed_trace
from tests.fakes.http_memory import MemoryWorld
from tests.worlds.endpoint.http_world import PATIENT, Served, get, payment, post, post_json, post_protobuf, serving

# Small limits, so that the tests reach them.
SETTINGS = HttpSettings(pipelined_max=3, body_bytes_max=400, head_bytes_max=600, header_count_max=12)


class ParserAlone(RequestReader):
    """A reader without the fast path: it gives every byte to the parser."""

    def _read(self, data: bytes, at: int) -> int:
        self._parse(data[at:])
        return len(data)


class World(MemoryWorld):
    """A server without sockets, whose connections get the reads of a test."""

    def __init__(self) -> None:
        super().__init__(SETTINGS)

    async def answers(self, reads: Sequence[bytes], *, parser_alone: bool) -> tuple[bytes, bool]:
        """Returns all answers on a new connection, and whether the server closed it."""
        connection, transport = self.connect()
        if parser_alone:
            connection._reader = ParserAlone(self.server.heads, SETTINGS, connection, self.server.arriving)
        for read in reads:
            connection.data_received(read)
            for _ in range(3):
                await asyncio.sleep(0)
        for _ in range(300):
            await asyncio.sleep(0)
        connection.connection_lost(None)
        self.traces = list(self.scorer.traces)
        self.scorer.traces.clear()
        return transport.written, transport.ended


TRACES = [f"00-{digit * 32}-{digit * 16}-0{number}" for number, digit in enumerate("a1f")]
PROTOBUF = post_protobuf(ScoreRequest(**payment()))  # type: ignore[arg-type]
JSON = post_json(payment())
USUAL = [
    PROTOBUF,
    JSON,
    post_json(payment("another-1")),
    post_json(payment(amount_minor=-1)),
    post_json({"requests": [payment("a"), payment("b")]}, path="/v1/score:batch"),
    post_json(payment(), headers="X-Trace: 1\r\n"),
    post_json(payment(), headers="x-deadline-ms: 50000\r\n"),
    post_json(payment(), headers="X-Deadline-Ms: 51000\r\n"),
    post_json(payment(), headers="X-DEADLINE-MS: 52000\r\n"),
    post_json(payment(), headers="x-deadline-ms:53000\r\n"),
    post_json(payment(), headers=f"traceparent: {TRACES[0]}\r\n"),
    post_json(payment(), headers=f"traceparent: {TRACES[1]}\r\nx-deadline-ms: 54000\r\n"),
]
UNUSUAL = [
    post_json(payment(), headers=f"Traceparent: {TRACES[2]}\r\n"),
    post_json(payment(), headers=f"traceparent: {TRACES[0]}\r\ntraceparent: {TRACES[1]}\r\n"),
    post_json(payment(), headers="traceparent: \r\n"),
    post_json(payment(), headers="traceparent: 00-00-00-00\r\n"),
    post_json(payment(), headers="x-deadline-ms: \r\n"),
    post_json(payment(), headers="x-deadline-ms: 0\r\n"),
    post_json(payment(), headers="x-deadline-ms: 999999\r\n"),
    post_json(payment(), headers="x-deadline-ms: \0\r\n"),
    post_json(payment(), headers="x-deadline-ms: 1000\r\nx-deadline-ms: 2000\r\n"),
    post_json(payment(), headers="Expect: 100-continue\r\n"),
    post_json(payment(), headers="Connection: close\r\n"),
    post_json(payment(), headers="Connection: Upgrade\r\nUpgrade: h2c\r\n"),
    JSON.replace(b"HTTP/1.1", b"HTTP/1.0"),
    JSON.replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"Host", b"Connection: keep-alive\r\nHost"),
    JSON.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\n"),
    JSON.replace(b"Content-Length", b"Content-Length: 7\r\nContent-Length"),
    JSON.replace(b"Host: test", b"Host: test\r\nHost: test"),
    JSON.replace(b"Host: test", b"Host: test\r\n folded"),
    b"POST /v1/score HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2\r\n{}\r\n0\r\n\r\n",
    post(b"", content_type="application/x-protobuf"),
    post(b"x" * 401),
    post(b"{}", content_type="text/plain"),
    post(b"{}", path="/nowhere"),
    get("/livez"),
    get("/livez", "HEAD"),
    get("/readyz"),
    get("/metrics"),
    get("/livez", headers="Connection: Upgrade\r\nUpgrade: h2c\r\n"),
    get("/livez", headers="A: " + "b" * 700 + "\r\n"),
    b"\r\n",
    b"\r\n\r\n",
    b"\r",
    b"\0garbage",
    b"GET / HTTP/9.9\r\n\r\n",
]


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """Draws the reads of one connection: requests of all kinds, some damaged, cut anywhere.

    At most one asks for an upgrade: a second one within a read is refused, and how much is one read depends on how many
    requests are unanswered.
    """
    usual, unusual = st.sampled_from(USUAL), st.sampled_from(UNUSUAL)
    drawn = draw(st.lists(st.one_of(usual, usual, usual, unusual), min_size=1, max_size=8))
    upgrades = [place for place, request in enumerate(drawn) if b"Upgrade" in request]
    requests = [request for place, request in enumerate(drawn) if place not in upgrades[1:]]
    stream = b"".join(requests)
    if draw(st.integers(0, 4)) == 0:
        place = draw(st.integers(0, len(stream)))
        removed = draw(st.integers(0, 20))
        stream = stream[:place] + draw(st.binary(max_size=3)) + stream[place + removed :]
    # Cut mostly between requests, where the fast path is taken.
    edges, total = [], 0
    for request in requests:
        total += len(request)
        edges += [total - 1, total, total, total + 1]
    cuts = draw(st.lists(st.one_of(st.sampled_from(edges), st.integers(0, len(stream))), max_size=8))
    places = sorted({0, len(stream), *(cut for cut in cuts if 0 <= cut < len(stream))})
    return [stream[start:end] for start, end in pairwise(places)]


@example([[JSON, JSON, JSON[:-5], JSON[-5:] + JSON]])
@example([[JSON], [JSON[:-1], JSON[-1:]], [JSON + b"\r", b"\n" + JSON]])
@example([[JSON], [b"\r\n" + JSON], [b"\r\n", JSON]])
@example([[USUAL[6]], [UNUSUAL[0]], [UNUSUAL[3]], [UNUSUAL[4]]])
@example([[USUAL[8]], [USUAL[9] + USUAL[8]]])
@given(st.lists(streams(), min_size=1, max_size=4))
def test_any_bytes_are_answered_as_by_the_parser_alone(connections: list[list[bytes]]) -> None:
    """Cached heads of earlier connections and requests change no answer and no close."""

    async def main() -> None:
        world = World()
        # The second time every cacheable head is cached.
        for reads in connections * 2:
            expected = await world.answers(reads, parser_alone=True), world.traces
            assert (await world.answers(reads, parser_alone=False), world.traces) == expected

    asyncio.run(main())


def test_the_second_of_two_equal_heads_is_not_parsed() -> None:
    class NoParser:
        def feed_data(self, data: bytes) -> None:
            raise AssertionError(f"parsed: {data!r}")

    async def main() -> None:
        world = World()
        for request in USUAL:
            assert (await world.answers([request], parser_alone=False))[0]
        connection, transport = world.connect()
        connection._reader._parser = cast(Any, NoParser())
        connection.data_received(b"".join(USUAL))
        connection.data_received(USUAL[6].replace(b"50000", b"51"))
        for _ in range(100):
            await asyncio.sleep(0)
        assert transport.written.count(b"HTTP/1.1 ") == len(USUAL) + 1

    asyncio.run(main())


@pytest.mark.parametrize("limit", [{"known_max": 10}, {"known_bytes_max": 1000}])
def test_no_more_heads_are_known_than_a_limit_allows(limit: dict[str, Any]) -> None:
    async def main() -> None:
        world = World()
        server = world.server
        server.heads = Heads(server.heads._routes, SETTINGS, deadline_ms=60_000, **limit)
        counts = set()
        for number in range(100):
            asked = post_json(payment(), headers=f"X-Number: {number:04}\r\n")
            assert b" 200 OK" in (await world.answers([asked], parser_alone=False))[0]
            counts.add(len(server.heads._known))
        assert 5 <= max(counts) <= 10
        assert min(counts) == 1

    asyncio.run(main())


def head_bytes(length: int, host: str = "one") -> bytes:
    lines = (
        "POST /v1/score HTTP/1.1",
        f"Host: {host}",
        f"Content-Type: {PROTOBUF_FORMAT.content_type}",
        f"Content-Length: {length}",
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def learned(heads: Heads, head: bytes) -> RequestHead:
    """Returns a head that `heads` has cached as that of a usual payment."""
    length = int(head.rpartition(b" ")[2])
    kept = RequestHead(Route("score", (b"POST",)), form=PROTOBUF_FORMAT, content_length=length, deadline_s=1.0)
    heads.learn(head, kept)
    assert kept.is_usual
    return kept


def test_no_head_is_usual_any_more_once_the_tokens_are_others(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("a" * 32, encoding="utf-8")
    file.chmod(0o600)
    tokens = Tokens(str(file))
    heads = Heads({}, HttpSettings(), deadline_ms=1000, tokens=tokens)
    read = head_bytes(4) + b"body"
    kept = learned(heads, head_bytes(4))
    assert heads.usual(read) is heads.usual(read) is kept
    file.write_text("b" * 32 + "\n" + "c" * 32, encoding="utf-8")
    assert tokens.refresh()
    assert heads.usual(read) is None


def test_a_deadline_makes_no_head_of_its_own(served: Served) -> None:
    with served.connected() as client:
        for deadline_ms in range(50_000, 50_100):
            assert client.ask(post_json(payment(), headers=f"x-deadline-ms: {deadline_ms}\r\n")).status == 200
    assert len(served.server.heads._known) == 1


def test_a_trace_makes_no_head_of_its_own_and_reaches_the_scorer(served: Served) -> None:
    sent = [f"00-{number:032x}-{number:016x}-01" for number in range(1, 100)]
    with served.connected() as client:
        for header in sent:
            assert client.ask(post_json(payment(), headers=f"traceparent: {header}\r\n")).status == 200
        assert client.ask(post_json(payment())).status == 200
    assert len(served.server.heads._known) == 2
    assert served.scorer.traces == [*(packed_trace(header.encode()) for header in sent), b""]


# Deadlines


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "600001", "1000000", "soon", "", "5 ms", "+5", "٣", "1, 2"])
@pytest.mark.parametrize("name", ["x-deadline-ms", "X-Deadline-Ms"])
def test_a_malformed_deadline_is_400_and_named_and_keeps_the_connection(served: Served, value: str, name: str) -> None:
    with served.connected() as client:
        assert client.ask(post_json(payment(), headers=f"{name}: 60000\r\n")).status == 200
        reply = client.ask(post_json(payment(), headers=f"{name}: {value}\r\n"))
        assert (reply.status, reply.error["field"], reply.error["code"]) == (400, "x-deadline-ms", "invalid_argument")
        assert client.ask(post_json(payment())).status == 200


class Deadlines:
    """Stands for `MicroBatcher`: records the seconds from each call's arrival to its deadline."""

    def __init__(self, served: Served) -> None:
        self.seconds: list[float] = []
        submit = served.batcher.submit

        def note(call: Any) -> None:
            self.seconds.append(round(call.deadline - call.arrived, 6))
            submit(call)

        served.batcher.submit = note  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "header", ["x-deadline-ms: {}", "X-Deadline-Ms: {}", "X-DEADLINE-MS: {}", "x-deadline-ms:  {}"]
)
def test_the_smaller_of_the_callers_deadline_and_ours_counts_known_or_not(header: str) -> None:
    with serving(admission=AdmissionSettings(deadline_ms=50_000, wait_ms_max=50_000)) as served:
        deadlines = Deadlines(served)
        with served.connected() as client:
            for value in ("30000", "40000", "1000", "600000", "40000"):
                asked = post_json(payment(), headers=header.format(value) + "\r\n")
                assert [client.ask(asked).status for _ in range(2)] == [200] * 2
            assert client.ask(post_json(payment())).status == 200
        assert deadlines.seconds == [30.0] * 2 + [40.0] * 2 + [1.0] * 2 + [50.0] * 2 + [40.0] * 2 + [50.0]


def test_a_request_past_its_deadline_is_504_and_not_scored() -> None:
    with serving(
        replace(PATIENT, pipelined_max=1), admission=AdmissionSettings(deadline_ms=60_000, wait_ms_max=60_000)
    ) as served:
        served.scorer.takes_s = 0.2
        with served.connected() as client:
            client.send(post_json(payment("a")) + post_json(payment("b"), headers="x-deadline-ms: 50\r\n"))
            first, second = client.reply(), client.reply()
        assert (first.status, second.status) == (200, 504)
        assert second.error["code"] == "deadline_exceeded"
        assert served.scorer.seen == ["a"]


def test_a_probe_has_no_deadline(served: Served) -> None:
    with served.connected() as client:
        assert client.ask(get("/livez", headers="x-deadline-ms: soon\r\n")).status == 200
