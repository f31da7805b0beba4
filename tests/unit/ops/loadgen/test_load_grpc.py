"""The load's gRPC side against grpcio's own server, and its TLS against Python's."""

from __future__ import annotations

import asyncio
import itertools
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop

from paywarden.ops.loadgen.load_run import LoadAnswer, run_load
from paywarden.ops.loadgen.report import LoadReport
from paywarden.ops.loadgen.target import LoadOptions
from paywarden.schemas.errors import Misconfigured
from tests.services.certificates import Authority
from tests.unit.ops.loadgen.test_load import FakeServer, always_ok

METHOD = "/paywarden.scoring.v1.Scoring/Score"
Behaviour = Callable[[bytes, Any], bytes]


class _Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, behaviour: Behaviour) -> None:
        self.methods: list[str] = []
        self.metadata: list[dict[str, str]] = []
        self._behaviour = behaviour

    def service(self, details: Any) -> Any:
        self.methods.append(details.method)
        self.metadata.append(dict(details.invocation_metadata))
        return grpc.unary_unary_rpc_method_handler(self._behaviour)


@contextmanager
def serving(
    behaviour: Behaviour, *, credentials: Any = None, streams_max: int = 1000
) -> Iterator[tuple[str, _Handler]]:
    handler = _Handler(behaviour)
    server = grpc.server(
        ThreadPoolExecutor(4), handlers=(handler,), options=[("grpc.max_concurrent_streams", streams_max)]
    )
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}", handler
    finally:
        server.stop(None).wait()


def loaded(address: str, bodies: Iterator[bytes] | None = None, *, scheme: str = "grpc", **options: Any) -> LoadReport:
    """50 requests, unless the bodies are fewer."""
    on_answer = options.pop("on_answer", None)
    load = run_load(
        f"{scheme}://{address}",
        itertools.repeat(b"body") if bodies is None else bodies,
        rate=500,
        seconds=0.1,
        arrivals="fixed",
        on_answer=on_answer,
        options=LoadOptions(**({"connections": 2} | options)),
    )
    return uvloop.run(load)


def test_calls_go_to_the_scoring_method_with_their_bodies_and_the_token() -> None:
    seen = []

    def echo(body: bytes, _: Any) -> bytes:
        seen.append(body)
        return b"re:" + body

    answers: list[LoadAnswer] = []
    with serving(echo) as (address, handler):
        report = loaded(
            address, (b"%d" % n for n in itertools.count()), on_answer=answers.append, token="abc", headers={"X-A": "b"}
        )
    assert (report.sent, report.ok, report.shed, report.errors) == (50, 50, 0, 0)
    assert sorted(seen) == sorted(b"%d" % number for number in range(50))
    assert set(handler.methods) == {METHOD}
    assert handler.metadata[0]["authorization"] == "Bearer abc"
    assert handler.metadata[0]["x-a"] == "b"
    assert {(answer.status, answer.body) for answer in answers} == {(200, b"re:%d" % number) for number in range(50)}


def test_shed_late_and_failed_calls_are_counted_apart() -> None:
    codes = itertools.cycle(
        [
            grpc.StatusCode.OK,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.DATA_LOSS,
        ]
    )
    lock = threading.Lock()

    def by_turns(_: bytes, context: Any) -> bytes:
        with lock:
            code = next(codes)
        if code is not grpc.StatusCode.OK:
            context.abort(code, "no")
        return b""

    answers: list[LoadAnswer] = []
    with serving(by_turns) as (address, _):
        report = loaded(address, on_answer=answers.append)
    assert (report.sent, report.ok, report.shed, report.errors, report.deadline_exceeded) == (50, 10, 10, 30, 10)
    assert (report.unavailable, report.unanswered) == (0, 0)
    assert sorted(answer.status for answer in answers) == sorted([200, 429, 504, 400, 500] * 10)


def test_no_more_streams_are_used_than_the_server_allows() -> None:
    lock, now, most = threading.Lock(), 0, 0

    def slow(_: bytes, __: Any) -> bytes:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        threading.Event().wait(0.02)
        with lock:
            now -= 1
        return b""

    with serving(slow, streams_max=10) as (address, _):
        report = loaded(address, connections=1, streams=1000)
    # A stream that has just ended may still count at grpcio, which then refuses the next one unseen.
    assert (report.ok + report.shed, report.errors) == (50, 0)
    assert report.ok >= 10
    assert 1 < most <= 10


def test_a_server_without_http2_makes_errors_not_a_standstill() -> None:
    async def run() -> LoadReport:
        async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(10)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(babble, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            return await run_load(f"grpc://127.0.0.1:{port}", itertools.repeat(b""), rate=100, seconds=0.2)
        finally:
            server.close()

    # Several times: whether a request is due between the babble and the end of the connection is up to chance.
    for _ in range(5):
        report = uvloop.run(run())
        assert report.sent == report.errors > 0


def test_https_works_and_an_unsigned_certificate_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.sign("server")

    async def run(ca_file: str) -> LoadReport:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
        server = await asyncio.start_server(FakeServer(always_ok), "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        options = LoadOptions(ca_file=ca_file)
        try:
            return await run_load(
                f"https://127.0.0.1:{port}", itertools.repeat(b"body"), rate=100, seconds=0.2, options=options
            )
        finally:
            server.close()

    report = uvloop.run(run(authority.path))
    assert report.ok == report.sent > 0
    with pytest.raises(Misconfigured, match="no TLS"):
        uvloop.run(run(""))
