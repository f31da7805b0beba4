import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import Misconfigured
from scoring import load
from scoring.load import Answer, LoadReport, run_load

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


def loaded(handler: Handler, bodies: Iterator[bytes] | None = None, **options: object) -> tuple[LoadReport, FakeServer]:
    """Runs a load of 50 requests (or as `options` say) on a fake server."""

    async def run() -> tuple[LoadReport, FakeServer]:
        fake = FakeServer(handler)
        server = await asyncio.start_server(fake, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        settings: dict[str, object] = {"rate": 500, "seconds": 0.1, "arrivals": "fixed"}
        try:
            report = await run_load(
                f"http://127.0.0.1:{port}",
                itertools.repeat(b"body") if bodies is None else bodies,
                **(settings | options),  # type: ignore[arg-type]
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
    assert 0 < report.p50_ms <= report.p90_ms <= report.p99_ms <= report.p999_ms <= report.max_ms


def test_a_request_goes_to_the_scoring_route_as_protobuf_unless_told_otherwise() -> None:
    _, fake = loaded(always_ok)
    assert fake.heads[0].startswith(b"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"Content-Type: application/x-protobuf\r\n" in fake.heads[0]
    _, fake = loaded(always_ok, content_type="application/json")
    assert b"Content-Type: application/json\r\n" in fake.heads[0]


def test_connections_are_kept_and_used_again() -> None:
    _, fake = loaded(always_ok, rate=200, seconds=0.3)
    assert len(fake.bodies) == 60
    assert fake.connection_count < 60


def test_each_answer_is_handed_over() -> None:
    answers: list[Answer] = []
    report, _ = loaded(always_ok, iter([b"%d" % n for n in range(99)]), on_answer=answers.append)
    assert len(answers) == report.ok == 50
    assert sorted(answer.index for answer in answers) == list(range(50))
    assert all(answer.request == b"%d" % answer.index for answer in answers)
    assert {(answer.status, answer.body) for answer in answers} == {(200, b"ok")}
    assert max(answer.latency_ms for answer in answers) == report.max_ms


def test_shed_and_failed_requests_are_told_apart_and_not_in_the_latencies() -> None:
    async def by_turns(fake: FakeServer, _: bytes) -> bytes:
        statuses = (b"429 Too Many Requests", b"503 Service Unavailable", b"400 Bad Request")
        return b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % statuses[len(fake.bodies) % 3]

    report, _ = loaded(by_turns, rate=600)
    assert (report.sent, report.ok, report.shed, report.errors) == (60, 0, 20, 40)
    assert report.max_ms == 0.0


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


def test_connections_are_bounded() -> None:
    async def slow(_: FakeServer, __: bytes) -> bytes:
        await asyncio.sleep(0.02)
        return OK

    report, fake = loaded(slow, rate=1000, connections_max=4)
    assert report.ok == 100
    assert fake.connection_count <= 4


def test_requests_without_an_answer_end_as_errors() -> None:
    async def silent(fake: FakeServer, _: bytes) -> bytes:
        await fake.stalled.wait()
        return b""

    report, _ = loaded(silent, timeout_ms=200, connections_max=3)
    assert (report.sent, report.ok, report.errors) == (50, 0, 50)


def test_a_server_that_closes_without_an_answer_makes_errors_and_no_standstill() -> None:
    async def rude(fake: FakeServer, _: bytes) -> bytes:
        return b"" if len(fake.bodies) % 2 else OK

    report, _ = loaded(rude)
    assert report.ok + report.errors == report.sent == 50
    assert report.errors >= 20


def test_a_server_that_closes_after_its_answer_is_connected_to_again() -> None:
    async def closing(_: FakeServer, __: bytes) -> bytes:
        return b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

    report, fake = loaded(closing)
    assert (report.ok, report.errors) == (50, 0)
    assert fake.connection_count >= 50


def test_answers_that_are_no_http_are_errors() -> None:
    async def babble(_: FakeServer, __: bytes) -> bytes:
        return b"what?\r\n\r\n"

    report, _ = loaded(babble)
    assert (report.ok, report.errors) == (0, 50)


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
    "target", ["127.0.0.1:80", "https://127.0.0.1", "http://", "http://u:p@h", "http://h:port", "http://h:99999"]
)
def test_a_target_that_is_no_http_url_is_refused(target: str) -> None:
    with pytest.raises(Misconfigured, match="load: "):
        asyncio.run(run_load(target, itertools.repeat(b""), rate=1, seconds=1))


@pytest.mark.parametrize("options", [{"arrivals": "random"}, {"rate": 0}, {"seconds": -1}, {"connections_max": 0}])
def test_a_load_that_makes_no_sense_is_refused(options: dict[str, object]) -> None:
    settings: dict[str, object] = {"rate": 1, "seconds": 1} | options
    with pytest.raises(Misconfigured):
        asyncio.run(run_load("http://127.0.0.1:1", itertools.repeat(b""), **settings))  # type: ignore[arg-type]


def test_fixed_arrivals_are_evenly_spaced() -> None:
    assert list(load._schedule(4, 1, "fixed", 0)) == [0, 0.25, 0.5, 0.75]


@given(st.integers(0, 1000))
def test_poisson_arrivals_ascend_and_come_at_the_rate(seed: int) -> None:
    due = load._schedule(1000, 2, "poisson", seed)
    assert list(due) == sorted(due)
    assert 0 < due[0] <= due[-1] < 2
    # Six standard deviations.
    assert abs(len(due) - 2000) < 6 * 2000**0.5


def test_the_same_seed_gives_the_same_arrivals() -> None:
    assert load._schedule(100, 1, "poisson", 7) == load._schedule(100, 1, "poisson", 7)
    assert load._schedule(100, 1, "poisson", 7) != load._schedule(100, 1, "poisson", 8)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.sampled_from([0.5, 0.9, 0.99, 0.999, 1.0]))
def test_a_quantile_is_the_smallest_value_that_enough_do_not_exceed(values: list[float], share: float) -> None:
    quantile = load._quantile(sorted(values), share)
    assert sum(value <= quantile for value in values) >= share * len(values)
    assert sum(value < quantile for value in values) < share * len(values)
