"""A usual payment is answered without a call of its own, with the bytes, records and counts of any other."""

from __future__ import annotations

import asyncio
import itertools
import re
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from paywarden.models.policy.policy import FLAGS, Policy, PolicySettings
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.scoring.engine.batching import caller_pauses
from paywarden.scoring.engine.batching.batcher import AdmissionSettings, MicroBatcher
from paywarden.scoring.engine.model_chain import ModelChain
from paywarden.scoring.engine.one_call import OneCall
from paywarden.scoring.engine.scorer import PaymentScorer, ScorerOptions
from paywarden.scoring.http import send_call
from paywarden.scoring.http.connection import HttpConnection
from paywarden.scoring.http.front import HttpServer
from paywarden.scoring.idempotency import decision_cache
from paywarden.scoring.idempotency.decision_cache import DecisionCache, DecisionCacheMetrics, DecisionCacheSettings
from paywarden.scoring.metrics.model import ModelMetrics
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.metrics.worker import HttpMetrics, ScoringMetrics
from paywarden.scoring.net.tokens import Tokens
from paywarden.scoring.requests.decoder import RequestDecoder
from paywarden.scoring.requests.validation import RequestLimits
from paywarden.scoring.state.mirror import MirrorSettings, MirrorWriter
from paywarden.scoring.state.outbox import OutboxReader, OutboxSettings, OutboxWriter
from tests.patience import PATIENCE_S
from tests.worlds.endpoint.http_world import PATIENT, Reply, get, post
from tests.worlds.endpoint.requests import requests_of
from tests.worlds.small import small_world
from tests.worlds.small.small_history import profiles

PLAN = small_world.engine().plan
NOW_MS = int(small_world.history().event_time_ms[-1]) + 1000
KNOWN = requests_of(small_world.tables()[0].slice(0, 100), id_prefix="fast-")
UNHURRIED = AdmissionSettings(deadline_ms=60_000, wait_ms_max=60_000)


class Worker:
    """A whole worker's parts and its HTTP front, in the event loop of the test."""

    def __init__(self, folder: Path, admission: AdmissionSettings = UNHURRIED, tokens: Tokens | None = None) -> None:
        self.where = OutboxSettings(directory=str(folder / "outbox"), fsync="never")
        table = DecisionCacheSettings(path=str(folder / "answered"), payments_max=4096)
        decision_cache.prepare(table)
        mirror = MirrorSettings(path=str(folder / "mirror"), size_mb=64)
        if not Path(mirror.path).exists():
            writer = MirrorWriter(mirror)
            writer.apply(dict(profiles()), {0: 1}, NOW_MS)
            writer.close()
        registry = MetricsRegistry()
        self.outbox = OutboxWriter(self.where, "worker-0")
        self.cache = DecisionCache(table, self.where, 0, DecisionCacheMetrics.declare(registry))
        bundle = small_world.loaded_bundle()
        self.scorer = PaymentScorer(
            engine=small_world.engine(),
            models=ModelChain((bundle,), metrics=ModelMetrics.declare(registry)),
            policy=Policy(PolicySettings(), review_at=bundle.manifest.review_at, decline_at=bundle.manifest.decline_at),
            mirror=mirror,
            outbox=self.outbox,
            metrics=ScoringMetrics.declare(registry, flags=FLAGS, entities=PLAN.entity_names),
            options=ScorerOptions(answered=self.cache),
        )
        intake = RequestDecoder(PLAN, small_world.rates(), RequestLimits())
        self.batcher = MicroBatcher(
            self.scorer,
            intake=intake,
            settings=admission,
            whole=OneCall(self.scorer, intake),
            now_ms=lambda: NOW_MS,
        )
        self.metrics = HttpMetrics.declare(registry)
        self.callers: list[Caller] = []
        self.server = HttpServer(
            self.batcher,
            PATIENT,
            metrics=self.metrics,
            metrics_text=lambda: b"",
            tokens=tokens,
            now_ms=lambda: NOW_MS,
        )
        self.server.loop = asyncio.get_running_loop()

    async def connect(self, *, send_buffer: int = 0, token: str = "") -> Caller:
        """Open a connection on which a payment was answered already."""
        theirs, ours = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        if send_buffer:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        loop = asyncio.get_running_loop()
        _, connection = await loop.connect_accepted_socket(lambda: HttpConnection(self.server), ours)
        caller = Caller(theirs, connection)
        self.callers.append(caller)
        first = request(len(KNOWN) - 1, f"first-{len(self.callers)}", token=token)
        assert (await caller.ask(first)).status == 200
        return caller

    def payment_ids(self) -> list[str]:
        """Returns the ids of all payments with a record, in order."""
        return [record.request.payment_id for record in self.records()]

    def records(self) -> list[OutboxEntry]:
        reader = OutboxReader(self.where, "worker-0")
        return [OutboxEntry.FromString(payload) for _, payload in reader.read(0, 10_000)]

    def hang_up(self) -> None:
        for caller in self.callers:
            caller.connection.abort()
            caller.raw.close()
        self.callers.clear()

    def close(self) -> None:
        self.hang_up()
        self.cache.close()
        self.outbox.close()
        self.scorer.close_mirror()

    def counted(self) -> int:
        return self.metrics.requests["score", 200].value


class Caller:
    """The other end of a connection."""

    def __init__(self, raw: socket.socket, connection: HttpConnection) -> None:
        self.raw, self.connection, self._data = raw, connection, b""

    def send(self, data: bytes) -> None:
        self.raw.sendall(data)

    async def reply(self) -> Reply:
        loop = asyncio.get_running_loop()
        while True:
            head, found, rest = self._data.partition(b"\r\n\r\n")
            reply = Reply(head, b"") if found else None
            size = 0 if reply is None else int(reply.headers["content-length"])
            if reply is not None and len(rest) >= size:
                reply.body, self._data = rest[:size], rest[size:]
                return reply
            data = await asyncio.wait_for(loop.sock_recv(self.raw, 65536), PATIENCE_S)
            assert data, "the server has closed the connection"
            self._data += data

    async def all_replies(self) -> list[Reply]:
        """Returns all replies until the server ends the connection."""
        loop, replies = asyncio.get_running_loop(), list[Reply]()
        while data := await asyncio.wait_for(loop.sock_recv(self.raw, 65536), PATIENCE_S):
            self._data += data
        while self._data:
            replies.append(await self.reply())
        return replies

    async def ask(self, data: bytes) -> Reply:
        self.send(data)
        return await self.reply()


def request(place: int, payment_id: str, *, token: str = "", **changes: Any) -> bytes:
    """Returns a request over HTTP for a payment that the fast path takes."""
    message = ScoreRequest()
    message.CopyFrom(KNOWN[place])
    message.event_time_ms, message.payment_id = NOW_MS, payment_id
    for name, value in changes.items():
        setattr(message, name, value)
    headers = f"Authorization: Bearer {token}\r\n" if token else ""
    return post(message.SerializeToString(), content_type="application/x-protobuf", headers=headers)


def answered(reply: Reply) -> ScoreResponse:
    assert reply.status == 200
    return ScoreResponse.FromString(reply.body)


class Sent:
    """Counts the answers that leave by the fast path, and those that their sockets do not take whole."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = self.unfinished = 0
        send = send_call.send_answers

        def counting(frame_at: int, records_at: int, count: int, now_s: float) -> int:
            self.count += count
            unfinished = send(frame_at, records_at, count, now_s)
            self.unfinished += unfinished
            return unfinished

        monkeypatch.setattr(send_call, "send_answers", counting)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    return Sent(monkeypatch)


@pytest.fixture
def in_worker(tmp_path: Path) -> Callable[..., None]:
    """Runs a coroutine with a worker, in an event loop as a worker has it."""

    def run(steps: Callable[[Worker], Awaitable[None]], **settings: Any) -> None:
        async def main() -> None:
            worker = Worker(tmp_path, **settings)
            try:
                await steps(worker)
            finally:
                worker.close()
                # Connections end in the loop.
                await asyncio.sleep(0.01)

        uvloop.run(main())

    return run


def without_ids(reply: Reply) -> tuple[int, dict[str, str], ScoreResponse]:
    response = answered(reply)
    response.decision_id = re.sub(r"^[0-9a-f]+-[0-9a-f]+$", "an id", response.decision_id)
    response.payment_id = ""
    return reply.status, reply.headers, response


def test_answers_have_the_bytes_that_a_call_would_get(in_worker: Callable[..., None], sent: Sent) -> None:
    async def steps(worker: Worker) -> None:
        caller = await worker.connect()
        for place in range(60):
            # The first of each length has a head that is not known yet.
            ordinary = await caller.ask(request(place, f"a-{place:04}"))
            before = sent.count
            fast = await caller.ask(request(place, f"b-{place:04}"))
            assert sent.count == before + 1
            assert without_ids(fast) == without_ids(ordinary)
            assert answered(fast).payment_id == f"b-{place:04}"

    in_worker(steps)


def test_every_answer_has_its_record_and_is_counted(in_worker: Callable[..., None], sent: Sent) -> None:
    async def steps(worker: Worker) -> None:
        callers = [await worker.connect() for _ in range(40)]
        await callers[0].ask(request(0, "p-0000"))
        before, times = worker.counted(), worker.metrics.seconds["score"].count
        asked = [f"p-{number:04}" for number in range(1, 41)]
        for caller, payment_id in zip(callers, asked, strict=True):
            caller.send(request(0, payment_id))
        assert [answered(await caller.reply()).payment_id for caller in callers] == asked
        assert worker.payment_ids()[-40:] == asked
        assert (worker.counted() - before, worker.metrics.seconds["score"].count - times) == (40, 40)
        assert sent.count >= 40

    in_worker(steps)


def test_a_payment_that_is_asked_again_gets_its_decision_again(in_worker: Callable[..., None]) -> None:
    async def steps(worker: Worker) -> None:
        caller, other = await worker.connect(), await worker.connect()
        await caller.ask(request(0, "p-0"))
        first = await caller.ask(request(0, "p-1"))
        for one in (caller, other):
            one.send(request(0, "p-1"))
        assert {(await one.reply()).body for one in (caller, other)} == {first.body}
        assert worker.payment_ids().count("p-1") == 1

    in_worker(steps)


def test_a_wrong_request_is_refused_and_its_neighbours_are_answered(in_worker: Callable[..., None]) -> None:
    async def steps(worker: Worker) -> None:
        callers = [await worker.connect() for _ in range(3)]
        await callers[0].ask(request(0, "p-0", currency="EUR"))
        for number, (caller, currency) in enumerate(zip(callers, ("EUR", "XXX", "EUR"), strict=True), 1):
            caller.send(request(0, f"p-{number}", currency=currency))
        replies = [await caller.reply() for caller in callers]
        assert [reply.status for reply in replies] == [200, 400, 200]
        assert replies[1].error["field"] == "currency"
        assert worker.payment_ids()[-2:] == ["p-1", "p-3"]

    in_worker(steps)


def test_a_second_request_behind_the_first_is_answered_second(in_worker: Callable[..., None]) -> None:
    async def steps(worker: Worker) -> None:
        caller = await worker.connect()
        await caller.ask(request(0, "p-0"))
        for data in (request(0, "p-1"), get("/livez"), request(0, "p-2")):
            # All three are handed to the connection before the loop turns.
            caller.connection.data_received(data)
        assert answered(await caller.reply()).payment_id == "p-1"
        assert (await caller.reply()).body == b'{"live":true}'
        assert answered(await caller.reply()).payment_id == "p-2"

    in_worker(steps)


def test_a_connection_that_ends_takes_its_request_along(in_worker: Callable[..., None]) -> None:
    async def steps(worker: Worker) -> None:
        gone, stays = await worker.connect(), await worker.connect()
        await stays.ask(request(0, "p-0"))
        gone.connection.data_received(request(0, "p-1"))
        stays.connection.data_received(request(0, "p-2"))
        gone.connection.connection_lost(None)
        assert answered(await stays.reply()).payment_id == "p-2"
        assert "p-1" not in worker.payment_ids()

    in_worker(steps)


def test_a_caller_that_has_ended_his_half_gets_his_answer(in_worker: Callable[..., None]) -> None:
    async def steps(worker: Worker) -> None:
        caller = await worker.connect()
        await caller.ask(request(0, "p-0"))
        caller.send(request(0, "p-1"))
        caller.raw.shutdown(socket.SHUT_WR)
        assert answered(await caller.reply()).payment_id == "p-1"

    in_worker(steps)


def test_what_a_socket_does_not_take_follows_when_it_does(in_worker: Callable[..., None], sent: Sent) -> None:
    async def steps(worker: Worker) -> None:
        # The smallest buffer: a few answers fill it.
        caller = await worker.connect(send_buffer=1)
        await caller.ask(request(0, "p-0000"))
        asked = [f"p-{number:04}" for number in range(1, 101)]
        for payment_id in asked:
            caller.send(request(0, payment_id))
            # Long enough for the worker to answer it, though nobody reads.
            await until(lambda payment_id=payment_id: worker.payment_ids()[-1:] == [payment_id])  # type: ignore[misc]
        assert [answered(await caller.reply()).payment_id for _ in asked] == asked
        assert 0 < sent.unfinished < 100

    in_worker(steps)


def test_a_late_request_is_refused_and_never_scored(in_worker: Callable[..., None]) -> None:
    async def steps(worker: Worker) -> None:
        caller = await worker.connect()
        await caller.ask(request(0, "p-0"))
        caller.connection.data_received(request(0, "p-1"))
        # The worker has lost its core for a while.
        time.sleep(1.1)
        assert (await caller.reply()).status == 504
        assert "p-1" not in worker.payment_ids()

    in_worker(steps, admission=AdmissionSettings(deadline_ms=1_000, wait_ms_max=1_000))


def test_more_than_can_be_answered_in_time_is_refused_at_once(in_worker: Callable[..., None]) -> None:
    async def steps(worker: Worker) -> None:
        callers = [await worker.connect() for _ in range(8)]
        await callers[0].ask(request(0, "p-0"))
        for number, caller in enumerate(callers, 1):
            caller.connection.data_received(request(0, f"p-{number}"))
        statuses = [(await caller.reply()).status for caller in callers]
        assert statuses == [200] * 4 + [429] * 4

    in_worker(steps, admission=AdmissionSettings(deadline_ms=60_000, wait_ms_max=60_000, queue_payments_max=4))


def test_at_a_stop_a_waiting_request_is_answered_and_then_it_closes(in_worker: Callable[..., None]) -> None:
    async def steps(worker: Worker) -> None:
        caller = await worker.connect()
        await caller.ask(request(0, "p-0"))
        # The loop begins the stop before it answers.
        stopped = asyncio.ensure_future(worker.server.stop())
        caller.connection.data_received(request(0, "p-1"))
        reply = await caller.reply()
        assert (answered(reply).payment_id, reply.headers["connection"]) == ("p-1", "close")
        caller.raw.close()
        await stopped

    in_worker(steps)


def test_without_a_mirror_payments_are_answered_in_steps(in_worker: Callable[..., None], sent: Sent) -> None:
    async def steps(worker: Worker) -> None:
        caller = await worker.connect()
        await caller.ask(request(0, "p-0"))
        before = sent.count
        worker.scorer.close_mirror()
        assert "mirror_absent" in answered(await caller.ask(request(0, "p-1"))).flags
        assert sent.count == before

    in_worker(steps)


SHOP, BANK = "shop-0123456789abcdef", "bank-0123456789abcdef"


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    file = tmp_path / "tokens"
    file.write_text(f"shop:{SHOP}\nbank:{BANK}\n")
    file.chmod(0o600)
    return Tokens(str(file))


def test_a_decision_of_the_fast_path_names_its_caller(
    in_worker: Callable[..., None], sent: Sent, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first name counts as another caller than the one before it.
    monkeypatch.setattr(caller_pauses, "_COMPANY_S", -1.0)

    async def steps(worker: Worker) -> None:
        caller = await worker.connect(token=SHOP)
        await caller.ask(request(0, "p-0", token=SHOP))
        before = sent.count
        assert answered(await caller.ask(request(0, "p-1", token=SHOP))).payment_id == "p-1"
        assert sent.count == before + 1
        assert [record.caller for record in worker.records()[-2:]] == ["shop", "shop"]

    in_worker(steps, tokens=tokens)


def test_several_callers_take_turns_and_not_the_fast_path(
    in_worker: Callable[..., None], sent: Sent, tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caller_pauses, "_COMPANY_S", 1e9)

    async def steps(worker: Worker) -> None:
        shop, bank = await worker.connect(token=SHOP), await worker.connect(token=BANK)
        await shop.ask(request(0, "p-0", token=SHOP))
        await bank.ask(request(0, "p-1", token=BANK))
        before = sent.count
        for number in range(3):
            # The second of each pair comes after one of the same caller.
            for caller, token, name in ((shop, SHOP, "s"), (shop, SHOP, "t"), (bank, BANK, "b"), (bank, BANK, "c")):
                reply = await caller.ask(request(0, f"{name}-{number}", token=token))
                assert answered(reply).payment_id == f"{name}-{number}"
        assert sent.count == before
        assert [record.caller for record in worker.records()[-12:]] == ["shop", "shop", "bank", "bank"] * 3
        # The other one has not been there for a while. A caller's next request is then one of another caller.
        monkeypatch.setattr(caller_pauses, "_COMPANY_S", -1.0)
        await shop.ask(request(0, "s-3", token=SHOP))
        assert sent.count == before
        await shop.ask(request(0, "s-4", token=SHOP))
        assert sent.count == before + 1

    in_worker(steps, tokens=tokens)


def test_a_withdrawn_token_takes_no_fast_path(in_worker: Callable[..., None], tokens: Tokens, tmp_path: Path) -> None:
    async def steps(worker: Worker) -> None:
        caller = await worker.connect(token=SHOP)
        await caller.ask(request(0, "p-0", token=SHOP))
        (tmp_path / "tokens").write_text(f"bank:{BANK}\n")
        assert tokens.refresh()
        assert (await caller.ask(request(0, "p-1", token=SHOP))).status == 401
        assert "p-1" not in worker.payment_ids()

    in_worker(steps, tokens=tokens)


KINDS = [*["usual"] * 8, "wrong", "json", "livez", "deadline", "closes", "broken"]
# Reads of two connections: whose, what, where its bytes are cut into two reads, and whether the loop turns then.
SCRIPTS = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from(KINDS), st.sampled_from([0, 0, 0, 0, 0, 30, 150]), st.booleans()),
    max_size=12,
)


def bytes_of(kind: str, payment_id: str) -> bytes:
    """Returns a request of a kind."""
    usual = request(0, payment_id)
    head, _, body = usual.partition(b"\r\n\r\n")
    match kind:
        case "wrong":
            return request(0, payment_id, currency="XXX")
        case "json":
            return post(PROTOBUF_AS_JSON % payment_id.encode())
        case "livez":
            return get("/livez")
        case "deadline":
            return head + b"\r\nX-Deadline-Ms: 50000\r\n\r\n" + body
        case "closes":
            return head + b"\r\nConnection: close\r\n\r\n" + body
        case "broken":
            return b"hello\r\n\r\n"
        case _:
            return usual


PROTOBUF_AS_JSON = (
    b'{"payment_id": "%%s", "event_time_ms": %d, "card_id": "c", "merchant_id": "m", "amount_minor": 1, '
    b'"currency": "EUR"}' % NOW_MS
)


async def replies_to(
    worker: Worker, script: list[tuple[int, str, int, bool]], name: str, *, is_fast: bool
) -> list[list[object]]:
    """Returns what each of two callers reads until the server ends its connection."""
    callers = [await worker.connect() for _ in range(2)]
    for caller in callers:
        await caller.ask(request(0, f"{name}-first-{len(worker.callers)}-{id(caller)}"))
        if not is_fast:
            caller.connection._fast_path = None
    together = [(0, "usual", 0, False), (1, "usual", 0, True)]
    ends = [(0, "closes", 0, False), (1, "closes", 0, False)]
    for number, (whose, kind, cut, turns) in enumerate([*together, *script, *together, *ends]):
        data = bytes_of(kind, f"{name}-{number:02}")
        for piece in [piece for piece in (data[:cut], data[cut:]) if piece]:
            callers[whose].connection.data_received(piece)
            if turns:
                await asyncio.sleep(0)
    return [[told(reply) for reply in await caller.all_replies()] for caller in callers]


def told(reply: Reply) -> object:
    """Returns a reply without what differs each time."""
    headers = {name: value for name, value in reply.headers.items() if name not in ("date", "content-length")}
    if headers["content-type"] != "application/x-protobuf":
        return reply.status, headers, re.sub(rb'"(decision|payment)_id":"[^"]*"', b"", reply.body)
    response = ScoreResponse.FromString(reply.body)
    response.decision_id = ""
    response.payment_id = response.payment_id.rpartition("-")[2]
    return reply.status, headers, response


def test_whatever_is_read_in_whatever_order_the_replies_are_those_of_calls(tmp_path: Path, sent: Sent) -> None:
    loop, names = uvloop.new_event_loop(), itertools.count()

    async def open_worker() -> Worker:
        return Worker(tmp_path)

    worker = loop.run_until_complete(open_worker())

    @settings(max_examples=100, deadline=None)
    @given(SCRIPTS)
    def replies_are_equal(script: list[tuple[int, str, int, bool]]) -> None:
        fast, calls = (
            loop.run_until_complete(replies_to(worker, script, f"{next(names):06}", is_fast=is_fast))
            for is_fast in (True, False)
        )
        assert fast == calls
        worker.hang_up()

    try:
        replies_are_equal()
        assert sent.count > 60
    finally:
        worker.close()
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it does not come"
        await asyncio.sleep(0.001)
