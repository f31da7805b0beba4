import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from paywarden.ops.loadgen.load_run import LoadAnswer, arrival_times, run_load
from paywarden.ops.loadgen.report import LoadReport
from paywarden.ops.loadgen.target import LoadOptions
from paywarden.schemas.errors import Misconfigured
from tests.patience import PATIENCE_S

Handler = Callable[["FakeServer", bytes], Awaitable[bytes]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class FakeServer:
    """Answers each request as `handler` says; b"" closes the connection instead."""

    def __init__(self, handler: Handler) -> None:
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.connection_count = 0
        self.stalled = asyncio.Event()
        self._handler = handler

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connection_count += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                body = await reader.readexactly(size)
                self.heads.append(head)
                self.bodies.append(body)
                answer = await self._handler(self, body)
                writer.write(answer)
                if not answer or b"Connection: close" in answer:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


async def always_ok(_: FakeServer, __: bytes) -> bytes:
    return OK


Load = Callable[[str, Iterator[bytes]], Awaitable[LoadReport]]


def loaded(
    handler: Handler,
    bodies: Iterator[bytes] | None = None,
    *,
    load: Load | None = None,
    rate: float = 500,
    seconds: float = 0.1,
    on_answer: Callable[[LoadAnswer], None] | None = None,
    **options: Any,
) -> tuple[LoadReport, FakeServer]:
    """Runs a load of 50 requests (or `load`, or as the options say) on a fake server."""

    async def default(target: str, bodies: Iterator[bytes]) -> LoadReport:
        return await run_load(
            target,
            bodies,
            rate=rate,
            seconds=seconds,
            arrivals="fixed",
            on_answer=on_answer,
            options=LoadOptions(**options),
        )

    async def run() -> tuple[LoadReport, FakeServer]:
        fake = FakeServer(handler)
        server = await asyncio.start_server(fake, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            report = await (load or default)(
                f"http://127.0.0.1:{port}", itertools.repeat(b"body") if bodies is None else bodies
            )
        finally:
            fake.stalled.set()
            server.close()
        return report, fake

    return uvloop.run(run())


def test_all_requests_are_sent_with_their_bodies_and_counted() -> None:
    report, fake = loaded(always_ok, iter([b"%d" % number for number in range(100)]))
    assert (report.sent, report.ok, report.shed, report.errors) == (50, 50, 0, 0)
    assert sorted(fake.bodies) == sorted(b"%d" % number for number in range(50))
    assert 0 < report.p50_ms <= report.p90_ms <= report.p95_ms <= report.p99_ms <= report.p999_ms <= report.max_ms


def test_a_stall_is_in_the_latency_of_every_request_that_was_due_in_it() -> None:
    """Coordinated omission: a loop that waits for its answer before it asks again would see one slow answer."""

    async def stalls_once(fake: FakeServer, _: bytes) -> bytes:
        if len(fake.bodies) == 1:
            asyncio.get_running_loop().call_later(0.4, fake.stalled.set)
        await fake.stalled.wait()
        return OK

    report, fake = loaded(stalls_once, rate=100, seconds=0.4, connections_max=1)
    assert (report.ok, fake.connection_count) == (40, 1)
    # Due evenly over the 400 ms of the stall: the median waited for about half of it.
    assert report.p50_ms > 150
    assert report.max_ms > 350


def test_a_load_ends_that_stalled_while_connections_were_opened() -> None:
    """When the time to connect ran out just then, uvloop closed the connection without a word, and `run` hung."""

    async def stalling(_: FakeServer, __: bytes) -> bytes:
        time.sleep(0.06)  # client and server share the loop
        return OK

    async def bounded(target: str, bodies: Iterator[bytes]) -> LoadReport:
        load = run_load(target, bodies, rate=500, seconds=0.2, options=LoadOptions(timeout_ms=50))
        return await asyncio.wait_for(load, PATIENCE_S)

    report, _ = loaded(stalling, load=bounded)
    assert report.ok + report.errors == report.sent > 50


def test_an_error_of_the_bodies_ends_a_load() -> None:
    def failing() -> Iterator[bytes]:
        yield b"1"
        raise OSError("no more bodies")

    async def bounded(target: str, bodies: Iterator[bytes]) -> LoadReport:
        return await asyncio.wait_for(run_load(target, bodies, rate=100, seconds=9), PATIENCE_S)

    with pytest.raises(OSError, match="no more bodies"):
        loaded(always_ok, failing(), load=bounded)


def test_a_load_ends_when_the_bodies_do() -> None:
    report, fake = loaded(always_ok, iter([b"1", b"2", b"3"]), seconds=600)
    assert (report.sent, report.ok) == (3, 3)
    assert sorted(fake.bodies) == [b"1", b"2", b"3"]


def test_a_refused_connection_is_one_clear_error() -> None:
    async def run() -> None:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        await run_load(f"http://127.0.0.1:{port}", itertools.repeat(b""), rate=1, seconds=1)

    with pytest.raises(Misconfigured, match=r"cannot connect to 127\.0\.0\.1:\d+: Connection refused"):
        uvloop.run(run())


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:80",
        "ftp://127.0.0.1",
        "http://",
        "http://u:p@h",
        "http://h:port",
        "http://h:99999",
        "grpc://",
        "http+unix:///s",
    ],
)
def test_a_target_that_is_no_url_of_ours_is_refused(target: str) -> None:
    with pytest.raises(Misconfigured, match="load: "):
        asyncio.run(run_load(target, itertools.repeat(b""), rate=1, seconds=1))


def test_a_token_is_sent_and_in_no_repr() -> None:
    _, fake = loaded(always_ok, token="se-cret", headers={"X-Timeout": "40"})
    assert b"\r\nAuthorization: Bearer se-cret\r\n" in fake.heads[0]
    assert b"\r\nX-Timeout: 40\r\n" in fake.heads[0]
    assert "se-cret" not in repr(LoadOptions(token="se-cret"))


def test_a_missed_deadline_is_an_error_of_its_own_and_a_refusal() -> None:
    async def by_turns(fake: FakeServer, _: bytes) -> bytes:
        statuses = (b"504 Gateway Timeout", b"429 Too Many Requests", b"200 OK", b"503 Service Unavailable")
        return b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % statuses[len(fake.bodies) % 4]

    report, _ = loaded(by_turns, rate=800)
    assert (report.sent, report.ok, report.shed) == (80, 20, 20)
    assert (report.errors, report.deadline_exceeded, report.unavailable, report.unanswered) == (40, 20, 20, 0)
    assert 0 < report.shed_p50_ms <= report.shed_p99_ms <= report.shed_max_ms


@given(st.integers(0, 1000))
def test_poisson_arrivals_ascend_and_come_at_the_rate(seed: int) -> None:
    due = arrival_times(1000, 2, "poisson", seed)
    assert (np.diff(due) >= 0).all()
    assert 0 <= due[0] <= due[-1] < 2
    # Six standard deviations.
    assert abs(len(due) - 2000) < 6 * 2000**0.5
