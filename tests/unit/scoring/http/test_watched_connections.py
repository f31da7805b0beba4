"""A connection that the fast path reads itself behaves like one that its transport reads."""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from paywarden.scoring.engine.batching import batcher, caller_pauses
from paywarden.scoring.engine.batching.batcher import AdmissionSettings
from paywarden.scoring.engine.one_call import Chunk
from paywarden.scoring.http import read_call
from paywarden.scoring.http.connection import USUAL_READS, HttpConnection
from paywarden.scoring.http.settings import HttpSettings
from paywarden.scoring.net.tokens import Tokens
from tests.patience import PATIENCE_S
from tests.worlds.endpoint.http_worker import (
    BANK,
    SHOP,
    Caller,
    Sent,
    Worker,
    answered,
    request,
    until,
    watch,
)
from tests.worlds.endpoint.http_world import PATIENT, get, post


async def watched(worker: Worker, **options: Any) -> Caller:
    """Returns a caller whose connection is watched, with the head of a payment `p-0000` known."""
    caller = await worker.connect(**options)
    token = options.get("token", "")
    for number in range(2):
        await caller.ask(request(0, f"w{len(worker.callers)}-{number:03}", token=token))
    await watch(caller, {SHOP: b"shop", BANK: b"bank"}.get(token, b""))
    return caller


def test_a_connection_is_watched_after_usual_reads_and_until_an_unusual_one(
    in_worker: Callable[..., None], sent: Sent
) -> None:
    async def steps(worker: Worker) -> None:
        caller = await worker.connect()
        await caller.ask(request(0, "p-0000"))
        for number in range(1, USUAL_READS + 1):
            assert not caller.is_watched()
            await caller.ask(request(0, f"p-{number:04}"))
        assert caller.is_watched()
        assert sent.read == 0
        for number in range(20):
            assert answered(await caller.ask(request(0, f"q-{number:04}"))).payment_id == f"q-{number:04}"
        assert sent.read == 20
        assert (await caller.ask(get("/livez"))).body == b'{"live":true}'
        assert not caller.is_watched()
        for number in range(USUAL_READS + 1):
            await caller.ask(request(0, f"r-{number:04}"))
        assert caller.is_watched()
        assert sent.read == 21

    in_worker(steps)


def test_a_head_of_another_length_does_not_end_the_watch(in_worker: Callable[..., None], sent: Sent) -> None:
    async def steps(worker: Worker) -> None:
        caller, other = await watched(worker), await worker.connect()
        # The server knows this head, but the watched connection has not had it yet.
        await other.ask(request(0, "a-longer-0000"))
        for number in range(1, 4):
            before = sent.read
            assert answered(await caller.ask(request(0, f"a-longer-{number:04}"))).payment_id[-1] == str(number)
            assert sent.read == before + (number > 1)
        assert caller.is_watched()

    in_worker(steps)


# No connection is closed because it was idle for long.
NEVER_IDLE = HttpSettings(port=0, idle_timeout_ms=int(10_000 * PATIENCE_S))


def test_a_caller_that_goes_is_noticed(in_worker: Callable[..., None]) -> None:
    async def steps(worker: Worker) -> None:
        connections = worker.server._connections
        closed, half = await watched(worker), await watched(worker)
        assert connections.count == 2
        closed.raw.close()
        await until(lambda: connections.count == 1)
        half.send(request(0, "w2-002"))
        half.raw.shutdown(socket.SHUT_WR)
        assert answered(await half.reply()).payment_id == "w2-002"
        await until(lambda: connections.count == 0)

    in_worker(steps, http=NEVER_IDLE)


def test_a_connection_that_is_reset_is_noticed(in_worker: Callable[..., None]) -> None:
    async def steps(worker: Worker) -> None:
        for sends in (False, True):
            caller = await tcp_caller(worker)
            # Closing sends a reset.
            caller.raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if sends:
                caller.send(request(0, "t-0009"))
            caller.raw.close()
            await until(lambda: worker.server._connections.count == 0)

    in_worker(steps, http=NEVER_IDLE)


async def tcp_caller(worker: Worker) -> Caller:
    listener = socket.create_server(("127.0.0.1", 0))
    raw = socket.create_connection(listener.getsockname())
    ours, _ = listener.accept()
    listener.close()
    raw.setblocking(False)
    ours.setblocking(False)
    loop = asyncio.get_running_loop()
    _, connection = await loop.connect_accepted_socket(lambda: HttpConnection(worker.server), ours)
    caller = Caller(raw, connection)
    for number in range(2):
        await caller.ask(request(0, f"t-{len(worker.payment_ids()):03}{number}"))
    await watch(caller)
    return caller


def test_more_connections_than_one_report_holds_are_all_answered(in_worker: Callable[..., None], sent: Sent) -> None:
    async def steps(worker: Worker) -> None:
        callers = [await watched(worker) for _ in range(read_call.EVENTS_MAX + 40)]
        before = sent.read
        asked = [f"p{number:05}" for number in range(len(callers))]
        for caller, payment_id in zip(callers, asked, strict=True):
            caller.send(request(0, payment_id))
        assert [answered(await caller.reply()).payment_id for caller in callers] == asked
        assert sent.read - before == len(callers)

    in_worker(steps)


@pytest.mark.parametrize("cut", [0, 40, 100, -20, None])
def test_requests_of_one_connection_are_answered_in_order(in_worker: Callable[..., None], cut: int | None) -> None:
    async def steps(worker: Worker) -> None:
        caller = await watched(worker)
        data = b"".join(request(0, f"p-{number:04}") for number in range(3))
        for piece in pieces(data, cut):
            caller.send(piece)
            await asyncio.sleep(0.005)
        replies = [answered(await caller.reply()).payment_id for _ in range(3)]
        assert replies == [f"p-{number:04}" for number in range(3)]
        assert worker.payment_ids()[-3:] == replies

    in_worker(steps)


def pieces(data: bytes, cut: int | None) -> Iterable[bytes]:
    if cut is None:
        return [data[:300], data[300:301], data[301:]]
    return [piece for piece in (data[:cut], data[cut:]) if piece]


def test_requests_behind_one_that_waits_are_answered_after_it(in_worker: Callable[..., None]) -> None:
    async def steps(worker: Worker) -> None:
        caller = await watched(worker)
        path = worker.server.fast_path
        assert path is not None
        # The worker reads, and does not come to answer.
        answer = worker.batcher.answer
        worker.batcher.answer = lambda: None  # type: ignore[method-assign]
        caller.send(request(0, "p-0001"))
        await until(lambda: len(path) == 1)
        worker.batcher.answer = answer  # type: ignore[method-assign]
        caller.send(get("/livez") + request(0, "p-0002"))
        assert answered(await caller.reply()).payment_id == "p-0001"
        assert (await caller.reply()).body == b'{"live":true}'
        assert answered(await caller.reply()).payment_id == "p-0002"

    in_worker(steps)


def test_a_caller_that_goes_takes_all_his_requests_along(in_worker: Callable[..., None]) -> None:
    async def steps(worker: Worker) -> None:
        gone, stays = await watched(worker), await watched(worker)
        path = worker.server.fast_path
        assert path is not None
        answer = worker.batcher.answer
        worker.batcher.answer = lambda: None  # type: ignore[method-assign]
        gone.send(request(0, "p-0001"))
        await until(lambda: len(path) == 1)
        gone.send(request(0, "p-0002"))
        # The next turn of the loop reads it.
        await asyncio.sleep(0)
        gone.connection.abort()
        gone.connection.connection_lost(None)
        worker.batcher.answer = answer  # type: ignore[method-assign]
        assert answered(await stays.ask(request(0, "w2-002"))).payment_id == "w2-002"
        assert not {"p-0001", "p-0002"} & {*worker.payment_ids()}

    in_worker(steps)


def test_a_request_that_is_larger_than_a_read_is_answered(in_worker: Callable[..., None]) -> None:
    async def steps(worker: Worker) -> None:
        caller = await watched(worker)
        for size in (read_call.READ_BYTES, 5 * read_call.READ_BYTES):
            await watch(caller)
            reply = await caller.ask(post(b'{"payment_id": "' + b"x" * size + b'"}', path="/v1/score:batch"))
            assert reply.status == 400
            assert not caller.is_watched()
        assert answered(await caller.ask(request(0, "p-0001"))).payment_id == "p-0001"

    in_worker(steps)


def test_a_request_behind_one_that_fills_a_read_is_answered(in_worker: Callable[..., None]) -> None:
    async def steps(worker: Worker) -> None:
        caller = await watched(worker)
        head, _, body = request(0, "p-0001").partition(b"\r\n\r\n")
        padding = read_call.READ_BYTES - len(head) - len(body) - len(b"\r\nX-Padding: \r\n\r\n")
        full = b"%b\r\nX-Padding: %b\r\n\r\n%b" % (head, b"x" * padding, body)
        assert len(full) == read_call.READ_BYTES
        for number in range(3):
            caller.send(full.replace(b"p-0001", b"p-000%d" % number) + request(0, f"q-{number:04}"))
            assert answered(await caller.reply()).payment_id == f"p-000{number}"
            assert answered(await caller.reply()).payment_id == f"q-{number:04}"
            await watch(caller)

    in_worker(steps)


def test_a_bug_with_one_connection_ends_that_one_alone(
    in_worker: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def steps(worker: Worker) -> None:
        callers = [await watched(worker) for _ in range(3)]

        def broken(_: bytes) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(callers[1].connection, "data_received", broken)
        for caller in callers:
            caller.send(get("/livez"))
        assert [(await callers[place].reply()).status for place in (0, 2)] == [200, 200]
        assert await callers[1].all_replies() == []
        assert answered(await callers[0].ask(request(0, "p-0001"))).payment_id == "p-0001"

    in_worker(steps)


def test_only_an_idle_connection_is_closed_after_a_time(in_worker: Callable[..., None]) -> None:
    async def steps(worker: Worker) -> None:
        caller = await watched(worker)
        connection, now = caller.connection, asyncio.get_running_loop().time()
        connection._since -= 2 * PATIENT.idle_timeout_ms / 1000
        path = worker.server.fast_path
        assert path is not None
        path._waiting._arrays["answered"][connection._file] = 0.0
        await caller.ask(request(0, "w1-002"))
        connection.check_timeouts(now)
        # A connection that is closing still answers in this turn of the loop.
        await asyncio.sleep(0.01)
        assert answered(await caller.ask(request(0, "w1-003"))).payment_id == "w1-003"
        connection.check_timeouts(now + 2 * PATIENT.idle_timeout_ms / 1000)
        assert await caller.all_replies() == []

    in_worker(steps)


def test_at_a_stop_watched_connections_close_and_requests_are_answered(in_worker: Callable[..., None]) -> None:
    async def steps(worker: Worker) -> None:
        idle, asks = await watched(worker), await watched(worker)
        stopped = asyncio.ensure_future(worker.server.stop())
        asks.connection.data_received(request(0, "w2-002"))
        reply = await asks.reply()
        assert (answered(reply).payment_id, reply.headers["connection"]) == ("w2-002", "close")
        assert await idle.all_replies() == []
        asks.raw.close()
        await stopped
        assert worker.server.fast_path is not None
        assert worker.server.fast_path._epoll is None

    in_worker(steps)


def test_a_host_that_was_taken_over_says_so_to_watched_connections(in_worker: Callable[..., None]) -> None:
    async def steps(worker: Worker) -> None:
        caller = await watched(worker)
        stopped = asyncio.ensure_future(worker.server.stop(is_taken_over=True))
        await asyncio.sleep(0)
        reply = await caller.ask(request(0, "w1-002"))
        assert (answered(reply).payment_id, reply.headers["connection"]) == ("w1-002", "close")
        caller.raw.close()
        await stopped

    in_worker(steps)


def test_a_caller_who_does_not_read_his_answers_gets_all_of_them(in_worker: Callable[..., None], sent: Sent) -> None:
    async def steps(worker: Worker) -> None:
        caller = await watched(worker, send_buffer=1)
        asked = [f"p{number:05}" for number in range(100)]
        for payment_id in asked:
            caller.send(request(0, payment_id))
            await until(lambda payment_id=payment_id: worker.payment_ids()[-1:] == [payment_id])  # type: ignore[misc]
        assert [answered(await caller.reply()).payment_id for _ in asked] == asked
        assert sent.unfinished > 0

    in_worker(steps)


def test_more_than_can_be_answered_in_time_is_refused(in_worker: Callable[..., None]) -> None:
    async def steps(worker: Worker) -> None:
        callers = [await watched(worker) for _ in range(8)]
        for number, caller in enumerate(callers):
            caller.send(request(0, f"p{number:05}"))
        assert sorted([(await caller.reply()).status for caller in callers]) == [200] * 4 + [429] * 4
        for number, caller in enumerate(callers):
            assert answered(await caller.ask(request(0, f"q{number:05}"))).payment_id == f"q{number:05}"

    in_worker(steps, admission=AdmissionSettings(deadline_ms=60_000, wait_ms_max=60_000, queue_payments_max=4))


def test_a_new_connection_with_the_number_of_an_old_one_begins_anew(in_worker: Callable[..., None]) -> None:
    async def steps(worker: Worker) -> None:
        caller = await watched(worker)
        file = caller.connection._file
        caller.connection.abort()
        await until(lambda: worker.server._connections.count == 0)
        caller.raw.close()
        for _ in range(20):
            if (next_one := await worker.connect()).connection._file == file:
                break
        assert next_one.connection._file == file
        assert not next_one.is_watched()
        assert answered(await next_one.ask(request(0, "w1-003"))).payment_id == "w1-003"

    in_worker(steps)


def test_the_next_chunk_is_unusual_and_all_are_answered(in_worker: Callable[..., None]) -> None:
    async def steps(worker: Worker) -> None:
        callers = [await watched(worker) for _ in range(3)]
        for caller, currency in zip(callers, ("EUR", "XXX", "EUR"), strict=True):
            caller.send(request(0, f"p-{len(currency)}{callers.index(caller):03}", currency=currency))
        assert [(await caller.reply()).status for caller in callers] == [200, 400, 200]
        assert not any(caller.is_watched() for caller in callers)
        worker.scorer.close_mirror()
        await watch(callers[0])
        assert "mirror_absent" in answered(await callers[0].ask(request(0, "w1-002"))).flags

    in_worker(steps)


def test_a_decision_names_its_own_caller(
    in_worker: Callable[..., None], tokens: Tokens, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No caller counts as company: whoever asks is alone.
    monkeypatch.setattr(caller_pauses, "_COMPANY_S", -1.0)

    async def steps(worker: Worker) -> None:
        shop, bank = await watched(worker, token=SHOP), await watched(worker, token=BANK)
        before = sent.read
        turns = [*[(shop, SHOP)] * 3, *[(bank, BANK)] * 3, *[(shop, SHOP)] * 3]
        for number, (caller, token) in enumerate(turns):
            payment_id = f"p{number:05}"
            assert answered(await caller.ask(request(0, payment_id, token=token))).payment_id == payment_id
            await watch(caller, {SHOP: b"shop", BANK: b"bank"}[token])
        assert [record.caller for record in worker.records()[-9:]] == [*["shop"] * 3, *["bank"] * 3, *["shop"] * 3]
        assert sent.read == before + 3
        # The bank's payments come through the shop's connection, too: it is a gateway's, and is not held for the bank.
        for number in range(3):
            assert answered(await bank.ask(request(0, f"q-{number:04}", token=BANK))).payment_id == f"q-{number:04}"
        await watch(shop, b"shop")
        before = sent.read
        assert answered(await shop.ask(request(0, "r-0000", token=BANK))).payment_id == "r-0000"
        assert sent.read == before
        assert shop.connection._is_shared
        assert [record.caller for record in worker.records()[-4:]] == ["bank"] * 4

    in_worker(steps, tokens=tokens)


def test_a_head_of_the_same_length_is_told_from_the_known_one(
    in_worker: Callable[..., None], tokens: Tokens, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caller_pauses, "_COMPANY_S", -1.0)

    async def steps(worker: Worker) -> None:
        caller = await watched(worker, token=SHOP)
        for number in range(3):
            await caller.ask(request(0, f"s-{number:04}", token=SHOP))
        before = sent.read
        assert before > 0
        assert caller.is_watched()
        await caller.ask(request(0, "b-0000", token=BANK))
        assert sent.read == before
        assert [record.caller for record in worker.records()[-2:]] == ["shop", "bank"]

    in_worker(steps, tokens=tokens)


def test_a_head_of_the_caller_before_is_not_known_to_the_next_one(
    in_worker: Callable[..., None], tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caller_pauses, "_COMPANY_S", -1.0)

    async def steps(worker: Worker) -> None:
        shop, bank = await watched(worker, token=SHOP), await watched(worker, token=BANK)
        for number in range(3):
            await shop.ask(request(0, f"s-{number:04}", token=SHOP))
        for number in range(3):
            await bank.ask(request(0, f"longer-{number:04}", token=BANK))
        await watch(bank, b"bank")
        await bank.ask(request(0, "longer-0003", token=BANK))
        assert bank.is_watched()
        # The fast path knows no head of the bank that has this length.
        await bank.ask(request(0, "s-0003", token=SHOP))
        assert [record.caller for record in worker.records()[-2:]] == ["bank", "shop"]

    in_worker(steps, tokens=tokens)


def test_a_payment_that_another_worker_decides_is_answered_before_the_next(
    in_worker: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher, "_RETRY_PAUSE_S", 0.05)

    async def steps(worker: Worker) -> None:
        caller = await watched(worker)
        path = worker.server.fast_path
        assert path is not None
        decide = path._whole.decide

        def undecided(chunk: Chunk, now_ms: int) -> list[bytes | batcher.Refusal]:  # noqa: ARG001
            return [batcher.IN_PROGRESS] * len(chunk)

        path._whole.decide = undecided  # type: ignore[method-assign]
        caller.send(request(0, "p-0001"))
        await until(lambda: bool(caller.connection._calls))
        path._whole.decide = decide  # type: ignore[method-assign]
        caller.send(request(0, "p-0002"))
        assert [answered(await caller.reply()).payment_id for _ in range(2)] == ["p-0001", "p-0002"]

    in_worker(steps)


def test_of_a_caller_who_reads_no_answers_no_more_is_read(in_worker: Callable[..., None]) -> None:
    async def steps(worker: Worker) -> None:
        caller = await watched(worker, send_buffer=1)
        sent = 0
        for number in range(3000):
            try:
                sent += caller.raw.send(request(0, f"p{number:05}"))
            except BlockingIOError:
                break
            await asyncio.sleep(0)
        # asyncio's limit is 64 KiB, and one answer more.
        assert caller.connection._transport.get_write_buffer_size() < 70_000

    in_worker(steps)


def test_an_answer_never_overtakes_bytes_that_wait_to_be_sent(in_worker: Callable[..., None], sent: Sent) -> None:
    async def steps(worker: Worker) -> None:
        caller = await watched(worker, send_buffer=1)
        path = worker.server.fast_path
        assert path is not None
        before, asked = len(worker.payment_ids()), 0
        while not caller.connection.has_unsent():
            caller.send(request(0, f"p{asked:05}"))
            asked += 1
            await until(lambda count=before + asked: len(worker.payment_ids()) == count)  # type: ignore[misc]
        # The socket has room again, and the loop has not turned since.
        caller.take_in(await asyncio.get_running_loop().sock_recv(caller.raw, 1 << 20))
        caller.send(request(0, f"p{asked:05}"))
        path._read_ready()
        replies = [answered(await caller.reply()).payment_id for _ in range(asked + 1)]
        assert replies == [f"p{number:05}" for number in range(asked + 1)]
        assert sent.unfinished > 0

    in_worker(steps)


def test_a_withdrawn_token_is_refused(
    in_worker: Callable[..., None], tokens: Tokens, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caller_pauses, "_COMPANY_S", -1.0)

    async def steps(worker: Worker) -> None:
        caller = await watched(worker, token=SHOP)
        await caller.ask(request(0, "w1-002", token=SHOP))
        assert caller.is_watched()
        (tmp_path / "tokens").write_text(f"bank:{BANK}\n")
        assert tokens.refresh()
        assert (await caller.ask(request(0, "w1-003", token=SHOP))).status == 401
        assert "w1-003" not in worker.payment_ids()

    in_worker(steps, tokens=tokens)


def test_without_epoll_connections_read_for_themselves(
    in_worker: Callable[..., None], sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(select, "epoll")

    async def steps(worker: Worker) -> None:
        caller = await worker.connect()
        for number in range(3 * USUAL_READS):
            assert answered(await caller.ask(request(0, f"p{number:05}"))).payment_id == f"p{number:05}"
        assert not caller.is_watched()
        assert sent.count >= 2 * USUAL_READS

    in_worker(steps)


def test_a_connection_that_cannot_be_watched_is_read_by_its_transport(in_worker: Callable[..., None]) -> None:
    class NoRoom:
        def fileno(self) -> int:
            return -1

        def register(self, *_: object) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            pass

    async def steps(worker: Worker) -> None:
        path = worker.server.fast_path
        assert path is not None
        path._epoll = NoRoom()  # type: ignore[assignment]
        caller = await worker.connect()
        for number in range(3 * USUAL_READS):
            assert answered(await caller.ask(request(0, f"p{number:05}"))).payment_id == f"p{number:05}"
        assert not caller.is_watched()
        path._epoll = None

    in_worker(steps)
