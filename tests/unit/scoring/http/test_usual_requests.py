"""A whole worker behind its HTTP front: usual requests are read by their cached head, with the replies of any other."""

from __future__ import annotations

import asyncio
import itertools
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from paywarden.schemas.proto.scoring_pb2 import ScoreResponse
from paywarden.scoring.engine.batching import refusal_budget
from paywarden.scoring.engine.batching.batcher import AdmissionSettings
from paywarden.scoring.http import http_connection as connection
from paywarden.scoring.net import connections
from paywarden.scoring.net.tokens import Tokens
from tests.worlds.endpoint.http_worker import BANK, NOW_MS, SHOP, Worker, answered, request, until
from tests.worlds.endpoint.http_world import Reply, get, post


def test_every_answer_has_its_record_and_is_counted(in_worker: Callable[..., None]) -> None:
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


def test_what_a_socket_does_not_take_follows_when_it_does(in_worker: Callable[..., None]) -> None:
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


def test_each_decision_names_its_caller(in_worker: Callable[..., None], tokens: Tokens) -> None:
    async def steps(worker: Worker) -> None:
        shop, bank = await worker.connect(token=SHOP), await worker.connect(token=BANK)
        for number in range(3):
            # The second of each pair comes after one of the same caller.
            for caller, token, name in ((shop, SHOP, "s"), (shop, SHOP, "t"), (bank, BANK, "b"), (bank, BANK, "c")):
                reply = await caller.ask(request(0, f"{name}-{number}", token=token))
                assert answered(reply).payment_id == f"{name}-{number}"
        assert [record.caller for record in worker.records()[-12:]] == ["shop", "shop", "bank", "bank"] * 3

    in_worker(steps, tokens=tokens)


def test_a_request_with_a_withdrawn_token_is_refused(
    in_worker: Callable[..., None], tokens: Tokens, tmp_path: Path
) -> None:
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


def never(_: bytes) -> None:
    """Take no request for a usual one."""


async def replies_to(
    worker: Worker, script: list[tuple[int, str, int, bool]], name: str, *, is_usual: bool
) -> list[list[object]]:
    """Return what each of two callers reads until the server ends its connection.

    Without `is_usual` every request goes through the reader.
    """
    callers = [await worker.connect() for _ in range(2)]
    usual = worker.server.heads.usual
    worker.server.heads.usual = usual if is_usual else never  # type: ignore[assignment,method-assign]
    try:
        together = [(0, "usual", 0, False), (1, "usual", 0, True)]
        ends = [(0, "closes", 0, False), (1, "closes", 0, False)]
        for number, (whose, kind, cut, turns) in enumerate([*together, *script, *together, *ends]):
            data = bytes_of(kind, f"{name}-{number:02}")
            for piece in [piece for piece in (data[:cut], data[cut:]) if piece]:
                callers[whose].connection.data_received(piece)
                for _ in range(3 if turns else 0):
                    await asyncio.sleep(0)
        return [[told(reply) for reply in await caller.all_replies()] for caller in callers]
    finally:
        worker.server.heads.usual = usual  # type: ignore[method-assign]


def told(reply: Reply) -> object:
    """Returns a reply without what differs each time."""
    headers = {name: value for name, value in reply.headers.items() if name not in ("date", "content-length")}
    if headers["content-type"] != "application/x-protobuf":
        return reply.status, headers, re.sub(rb'"(decision|payment)_id":"[^"]*"', b"", reply.body)
    response = ScoreResponse.FromString(reply.body)
    response.decision_id = ""
    response.payment_id = response.payment_id.rpartition("-")[2]
    return reply.status, headers, response


def test_whatever_is_read_in_whatever_order_the_replies_are_the_readers(tmp_path: Path) -> None:
    loop, names = uvloop.new_event_loop(), itertools.count()

    async def open_worker() -> Worker:
        return Worker(tmp_path)

    worker = loop.run_until_complete(open_worker())

    @settings(max_examples=40, deadline=None)
    @given(SCRIPTS)
    def replies_are_equal(script: list[tuple[int, str, int, bool]]) -> None:
        usual, read = (
            loop.run_until_complete(replies_to(worker, script, f"{next(names):06}", is_usual=is_usual))
            for is_usual in (True, False)
        )
        assert usual == read
        worker.hang_up()

    try:
        replies_are_equal()
    finally:
        worker.close()
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()


def test_beyond_the_budget_of_refusals_a_connection_is_held(
    in_worker: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusal_budget, "REFUSING_SHARE", 0.0)
    monkeypatch.setattr(connections, "_HOLD_ALL_S", 0.0)
    monkeypatch.setattr(connections, "_LOOK_S", 60.0)

    async def steps(worker: Worker) -> None:
        callers = [await worker.connect() for _ in range(6)]
        budget = worker.batcher._budget
        budget._left_s = 2.5 * connection.HttpCall.refusal_s
        for number, caller in enumerate(callers):
            caller.connection.data_received(request(0, f"p-{number}"))
        assert [(await caller.reply()).status for caller in callers] == [200] * 2 + [429] * 4
        assert [bool(caller.connection._is_held) for caller in callers] == [False] * 4 + [True] * 2

    in_worker(steps, admission=AdmissionSettings(deadline_ms=60_000, wait_ms_max=60_000, queue_payments_max=2))


def test_an_idle_worker_reads_from_a_held_connection_at_once(
    in_worker: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All connections were held, and a worker at five times its capacity waited a third of its time for work."""
    monkeypatch.setattr(connections, "HOLD_S", (60.0, 60.0))

    async def steps(worker: Worker) -> None:
        caller = await worker.connect()
        caller.connection.hold()
        await until(lambda: not caller.connection._is_held)
        assert answered(await caller.ask(request(0, "p-1"))).payment_id == "p-1"

    in_worker(steps)


def test_connections_are_held_one_after_the_other(in_worker: Callable[..., None]) -> None:
    """All were held within a turn of the loop, and the worker waited half a second for work."""

    async def steps(worker: Worker) -> None:
        callers = [await worker.connect() for _ in range(10)]
        for caller in callers:
            caller.connection._arrived = 100.0
            caller.connection.hold()
        assert 1 <= sum(bool(caller.connection._is_held) for caller in callers) <= 2
        for number, caller in enumerate(callers):
            caller.connection._arrived = 101.0 + number / 10
            caller.connection.hold()
        assert all(bool(caller.connection._is_held) for caller in callers)

    in_worker(steps)


@pytest.mark.parametrize("is_overloaded", [True, False])
def test_a_call_that_is_late_after_a_hold_ends_its_connection(
    in_worker: Callable[..., None], monkeypatch: pytest.MonkeyPatch, *, is_overloaded: bool
) -> None:
    monkeypatch.setattr(connections, "HOLD_S", (0.2, 0.2))
    monkeypatch.setattr(connections, "_HOLD_S_MAX", 0.4)
    monkeypatch.setattr(connections, "_HOLD_ALL_S", 0.0)
    monkeypatch.setattr(connections, "_LOOK_S", 60.0)

    async def steps(worker: Worker) -> None:
        hasty, patient = await worker.connect(), await worker.connect()
        worker.batcher._limit.stands = is_overloaded
        for caller in (hasty, patient):
            caller.connection.hold()
        hasty.send(request(0, "p-1"))
        await until(lambda: not patient.connection._is_held)
        assert answered(await patient.ask(request(0, "p-2"))).payment_id == "p-2"
        # An overloaded worker holds the hasty one for twice as long before it closes.
        assert not (is_overloaded and hasty.connection._transport.is_closing())
        assert await hasty.is_reset()
        assert "p-1" not in worker.payment_ids()

    in_worker(steps)


def test_a_call_that_comes_as_a_hold_ends_is_answered(
    in_worker: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HOLD_S", (0.2, 0.2))
    monkeypatch.setattr(connection, "unread_of", lambda _: connections.Unread(1, 0.001, has_gone=False))

    async def steps(worker: Worker) -> None:
        caller = await worker.connect()
        worker.batcher._limit.stands = True
        caller.connection.hold()
        caller.send(request(0, "p-1"))
        assert answered(await caller.reply()).payment_id == "p-1"

    in_worker(steps)


@pytest.mark.parametrize(
    ("is_overloaded", "waited_s", "is_held"), [(True, 1e6, True), (True, 0.0, False), (False, 1e6, False)]
)
def test_a_connection_accepted_too_late_is_held_under_overload(
    in_worker: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_overloaded: bool,
    waited_s: float,
    is_held: bool,
) -> None:
    """Its first call has waited in the kernel's queue, and to score it helps nobody."""
    monkeypatch.setattr(connection, "unread_of", lambda _: connections.Unread(1, waited_s, has_gone=False))
    monkeypatch.setattr(connections, "_LOOK_S", 60.0)

    async def steps(worker: Worker) -> None:
        worker.batcher._limit.stands = is_overloaded
        theirs, ours = socket.socketpair()
        with theirs:
            _, made = await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection.HttpConnection(worker.server), ours
            )
            assert bool(made._is_held) == is_held
            made.abort()

    in_worker(steps)


def test_nothing_of_a_held_connection_is_read_however_it_came(
    in_worker: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "unread_of", lambda _: connections.Unread(0, 0.001, has_gone=False))
    monkeypatch.setattr(connections, "_LOOK_S", 60.0)

    async def steps(worker: Worker) -> None:
        caller = await worker.connect()
        caller.connection.hold()
        caller.connection.data_received(request(0, "p-1") + request(0, "p-2")[:50])
        caller.connection.data_received(request(0, "p-2")[50:])
        await asyncio.sleep(0.01)
        assert not {"p-1", "p-2"} & {*worker.payment_ids()}
        assert [answered(await caller.reply()).payment_id for _ in range(2)] == ["p-1", "p-2"]

    in_worker(steps)
