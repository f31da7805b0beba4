from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from paywarden.schemas.errors import Misconfigured, TemporaryFailure
from paywarden.schemas.proto.scoring_pb2 import ScoreBatchRequest, ScoreBatchResponse, ScoreRequest, ScoreResponse
from paywarden.schemas.proto.split_pb2 import SplitBatchRequest
from paywarden.scoring.engine.batching.batcher import (
    IN_PROGRESS,
    AdmissionSettings,
    Call,
    DeadlineExceeded,
    MicroBatcher,
    Overloaded,
    Refusal,
)
from paywarden.scoring.engine.batching.caller_queues import QUANTUM, SHARED_CHUNK
from paywarden.scoring.requests.protobuf_form import PROTOBUF
from tests.oracles.reading import ReadsFirst
from tests.oracles.step_decoder import CheckedPayments
from tests.patience import PATIENCE_S
from tests.worlds.endpoint.payments import euro_intake

NOW_MS = 1_700_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Scorer(ReadsFirst):
    """Answers with the payment's id, records each chunk, and lets the clock advance."""

    def __init__(self, clock: Clock) -> None:
        self.intake = euro_intake()
        self.asked: list[list[str]] = []
        self.payment_s = 0.0
        self.bad: dict[str, Exception | Refusal] = {}
        self._clock = clock

    def score_many(
        self,
        payments: CheckedPayments,
        now_ms: int,
        batches: Sequence[range] = (),  # noqa: ARG002
    ) -> list[bytes | Refusal]:
        assert now_ms == NOW_MS
        requests = list(payments)
        self._clock.now += self.payment_s * len(requests)
        self.asked.append([request.payment_id for request in requests])
        results: list[bytes | Refusal] = []
        for request in requests:
            bad = self.bad.get(request.payment_id)
            if isinstance(bad, Exception):
                raise bad
            results.append(bad or ScoreResponse(payment_id=request.payment_id).SerializeToString())
        return results

    def readiness(self) -> list[str]:
        return []


class Connection:
    def __init__(self) -> None:
        self.collected: list[str] = []
        self.sent: list[list[str]] = []
        self.is_held = False

    def flush(self) -> None:
        self.sent.append(self.collected)
        self.collected = []

    def hold(self) -> None:
        self.is_held = True


class AskedCall(Call):
    refusal_s = 10e-6

    def __init__(
        self, connection: Connection, payload: bytes, deadline: float, *, is_batch: bool, caller: bytes = b""
    ) -> None:
        self.connection, self._to = connection, connection
        self.payload, self.form, self.is_batch = payload, PROTOBUF, is_batch
        self.arrived, self.deadline, self.cancelled, self.caller, self.trace = 100.0, deadline, False, caller, b""

    def answer(self, body: bytes) -> None:
        responses = ScoreBatchResponse.FromString(body).responses if self.is_batch else [ScoreResponse.FromString(body)]
        self._to.collected.append("+".join(response.payment_id for response in responses))

    def refuse(self, refusal: Refusal) -> None:
        self._to.collected.append(":".join(part for part in (refusal.code, refusal.field) if part))


class World:
    def __init__(self, **settings: int) -> None:
        self.clock = Clock()
        self.scorer = Scorer(self.clock)
        self.batcher = MicroBatcher(
            self.scorer,
            intake=euro_intake(),
            settings=AdmissionSettings(**settings),
            now_ms=lambda: NOW_MS,
            now_s=self.clock,
        )
        self.connections: list[Connection] = []

    def ask(
        self,
        *ids: str,
        on: Connection | None = None,
        deadline: float = 100.04,
        caller: bytes = b"",
        **values: Any,
    ) -> AskedCall:
        """Submit one call on a new connection; several payments make a batch."""
        connection = on or Connection()
        if on is None:
            self.connections.append(connection)
        requests = [request(payment_id, **values) for payment_id in ids]
        message = ScoreBatchRequest(requests=requests) if len(ids) > 1 else requests[0]
        call = AskedCall(connection, message.SerializeToString(), deadline, is_batch=len(ids) > 1, caller=caller)
        self.batcher.submit(call)
        return call

    def run(self, ask: Callable[[], object], turns: int = 20) -> None:
        async def main() -> None:
            ask()
            for _ in range(turns):
                await asyncio.sleep(0)

        asyncio.run(main())

    @property
    def sent(self) -> list[list[list[str]]]:
        return [connection.sent for connection in self.connections]


def request(payment_id: str, **values: Any) -> ScoreRequest:
    fields: dict[str, Any] = {
        "event_time_ms": NOW_MS,
        "card_id": "card",
        "merchant_id": "merchant",
        "amount_minor": 1,
        "currency": "EUR",
    }
    return ScoreRequest(payment_id=payment_id, **(fields | values))


def test_the_calls_of_one_turn_are_scored_together_and_written_once() -> None:
    world = World()

    def ask() -> None:
        first = Connection()
        world.connections.append(first)
        world.ask("a", on=first)
        world.ask("b")
        world.ask("c", on=first)

    world.run(ask)
    assert world.scorer.asked == [["a", "b", "c"]]
    assert world.sent == [[["a", "c"]], [["b"]]]


def test_a_full_chunk_is_answered_before_the_next_one_begins() -> None:
    world = World(chunk_payments=2)
    world.run(lambda: [world.ask(name) for name in "abcde"])
    assert world.scorer.asked == [["a", "b"], ["c", "d"], ["e"]]


def test_the_loop_turns_between_chunks() -> None:
    world = World(chunk_payments=1)
    seen: list[int] = []

    async def main() -> None:
        for name in "abc":
            world.ask(name)
        for _ in range(4):
            seen.append(len(world.scorer.asked))
            await asyncio.sleep(0)

    asyncio.run(main())
    assert seen == [0, 1, 2, 3]


def test_a_wrong_request_names_its_field_and_the_others_are_answered() -> None:
    world = World()
    world.run(lambda: [world.ask("a"), world.ask("b", amount_minor=-1), world.ask("c")])
    assert world.scorer.asked == [["a", "c"]]
    assert world.sent == [[["a"]], [["invalid_argument:amount_minor"]], [["c"]]]


def test_a_batch_is_answered_as_one_in_its_order() -> None:
    world = World()
    world.run(lambda: [world.ask("a"), world.ask("b", "c"), world.ask("d")])
    assert world.scorer.asked == [["a", "b", "c", "d"]]
    assert world.sent == [[["a"]], [["b+c"]], [["d"]]]


def test_a_batch_with_a_refused_payment_is_refused_and_says_which() -> None:
    world = World()
    world.scorer.bad["c"] = Refusal("invalid_argument", "no rate", "currency")
    world.run(lambda: world.ask("b", "c"))
    assert world.sent == [[["invalid_argument:requests[1].currency"]]]


def test_a_payment_that_the_scorer_refuses_is_refused_alone() -> None:
    world = World()
    world.scorer.bad["b"] = Refusal("unavailable", "no room")
    world.run(lambda: [world.ask("a"), world.ask("b")])
    assert world.sent == [[["a"]], [["unavailable"]]]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (TemporaryFailure("no room"), "unavailable"),
        (Overloaded("full"), "resource_exhausted"),
        (DeadlineExceeded("late"), "deadline_exceeded"),
    ],
)
def test_a_temporary_failure_of_the_scorer_refuses_all_its_payments(error: Exception, told: str) -> None:
    world = World()
    world.scorer.bad["b"] = error
    world.run(lambda: [world.ask("a"), world.ask("b")])
    assert world.sent == [[[told]], [[told]]]


def test_a_bug_fails_only_its_own_request_and_its_text_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.scorer.bad["b"] = ValueError("card-secret")
    world.run(lambda: [world.ask("a"), world.ask("b", caller=b"checkout"), world.ask("c", caller=b"wallet")])
    assert world.sent == [[["a"]], [["internal"]], [["c"]]]
    assert len(caplog.records) == 1
    assert "bug while scoring for checkout: ValueError at" in caplog.text
    assert "card-secret" not in caplog.text


def test_a_call_past_its_deadline_is_refused_and_not_scored() -> None:
    world = World(chunk_payments=1)
    world.scorer.payment_s = 0.05
    world.run(lambda: [world.ask("a"), world.ask("b")])
    assert world.scorer.asked == [["a"]]
    assert world.sent == [[["a"]], [["deadline_exceeded"]]]


def test_a_call_that_arrives_past_its_deadline_is_refused_at_once() -> None:
    world = World()
    world.run(lambda: world.ask("a", deadline=99.0))
    assert world.scorer.asked == []
    assert world.connections[0].collected == ["deadline_exceeded"]


async def all_are_answered(world: World) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not all(connection.sent for connection in world.connections):
            await asyncio.sleep(0.001)


def test_a_payment_that_another_worker_decides_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.scorer.bad["b"] = IN_PROGRESS
    score_many = world.scorer.score_many

    def decided_meanwhile(*chunk: Any) -> list[bytes | Refusal]:
        results = score_many(*chunk)
        world.scorer.bad.clear()
        return results

    monkeypatch.setattr(world.scorer, "score_many", decided_meanwhile)

    async def main() -> None:
        world.ask("a")
        world.ask("b", "c")
        await all_are_answered(world)

    asyncio.run(main())
    assert world.scorer.asked == [["a", "b", "c"], ["b", "c"]]
    assert world.sent == [[["a"]], [["b+c"]]]
    assert world.batcher.queued_payments == 0


def test_a_payment_still_in_progress_at_the_deadline_is_unavailable() -> None:
    world = World()
    world.scorer.bad["a"] = IN_PROGRESS
    world.scorer.payment_s = 0.02

    async def main() -> None:
        world.ask("a")
        await all_are_answered(world)

    asyncio.run(main())
    assert world.scorer.asked == [["a"], ["a"]]
    assert world.sent == [[["unavailable"]]]


def test_a_call_that_its_caller_gave_up_is_not_scored() -> None:
    world = World()

    def ask() -> None:
        world.ask("a").cancelled = True
        world.ask("b")

    world.run(ask)
    assert world.scorer.asked == [["b"]]
    assert world.sent == [[], [["b"]]]


def test_a_call_that_would_wait_too_long_is_refused_at_once() -> None:
    """Before any payment was scored, the batcher assumes 100 µs per payment, so 30 of them take three milliseconds."""
    world = World(wait_ms_max=1)
    world.run(lambda: [world.ask(f"{n}") for n in range(35)])
    assert [len(asked) for asked in world.scorer.asked] == [31]
    assert [c.collected for c in world.connections[31:]] == [["resource_exhausted"]] * 4


def test_the_time_per_payment_is_learned() -> None:
    world = World(wait_ms_max=10, chunk_payments=1)
    world.scorer.payment_s = 0.004
    world.run(lambda: [world.ask(f"{n}", deadline=200.0) for n in range(30)], turns=100)
    before = len(world.scorer.asked)
    # That queue stood. Payments that come a while later may be a burst.
    world.clock.now += 0.2
    world.run(lambda: [world.ask(f"{n}", deadline=200.0) for n in range(30)], turns=100)
    assert before == 30
    # At 4 ms each, 8 payments take more than 30 ms, which is what may gather in a moment.
    assert len(world.scorer.asked) - before == 8


def test_a_worker_that_stood_still_once_refuses_nothing_of_what_has_gathered() -> None:
    """One chunk that takes 30 ms has lost its core. Taken for the cost of a payment, it refused calls for a while."""
    world = World(wait_ms_max=10)
    world.scorer.payment_s = 0.00005
    world.run(lambda: [world.ask(f"{n}", deadline=200.0) for n in range(40)], turns=20)
    world.scorer.payment_s = 0.03
    world.run(lambda: [world.ask("stalled", deadline=200.0)], turns=5)
    world.scorer.payment_s = 0.00005
    before = sum(map(len, world.scorer.asked))
    world.run(lambda: [world.ask(f"after-{n}", deadline=200.0) for n in range(64)], turns=20)
    assert sum(map(len, world.scorer.asked)) - before == 64


def test_reading_between_chunks_counts_in_the_time_per_payment() -> None:
    """Under overload most of the time goes into refusals, and a queued payment waits for them, too."""
    world = World(wait_ms_max=10, chunk_payments=1)
    world.scorer.payment_s = 0.001

    async def flood() -> None:
        for number in range(40):
            world.ask(f"{number}", deadline=200.0)
        while world.batcher.queued_payments:
            world.clock.now += 0.004
            await asyncio.sleep(0)

    asyncio.run(flood())
    assert len(world.scorer.asked) == 40
    world.clock.now += 0.2
    world.run(lambda: [world.ask(f"{n}", deadline=200.0) for n in range(30)], turns=100)
    # Each takes 5 ms; without what comes between them all 30 would be admitted.
    assert len(world.scorer.asked) - 40 == 7


class Stream:
    """Payments from many callers against a worker whose time per chunk has a fixed part. It notes each payment's wait.

    A chunk takes 36 µs and each payment in it 13, so that one costs 49 µs alone and 14 in a chunk of 32.
    """

    def __init__(self, due: Sequence[float], *, stop_at: float = 0.0, stop_s: float = 0.0) -> None:
        """`due`: when payments arrive. At `stop_at` the worker has no core for `stop_s`."""
        self.world = World()
        self.waits: list[tuple[float, float]] = []
        self.refused: list[tuple[float, str]] = []
        self._due, self._stop_at, self._stop_s = due, stop_at, stop_s
        self._score = self.world.scorer.score_many
        self.world.scorer.score_many = self._scored  # type: ignore[method-assign]

    def run(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        clock, number = self.world.clock, 0
        while number < len(self._due) or self.world.batcher.queued_payments:
            if not self.world.batcher.queued_payments:
                clock.now = max(clock.now, self._due[number])
            now = clock.now
            while number < len(self._due) and self._due[number] <= now:
                clock.now += 2e-6
                self._ask(self._due[number])
                number += 1
            await asyncio.sleep(0)

    def _ask(self, due: float) -> None:
        self.world.batcher.submit(StreamCall(self, due, self.world.clock.now))

    def _scored(self, payments: CheckedPayments, now_ms: int, batches: Sequence[range] = ()) -> list[bytes | Refusal]:
        clock = self.world.clock
        clock.now += 36e-6 + 13e-6 * len(payments)
        if self._stop_s and clock.now >= self._stop_at:
            clock.now += self._stop_s
            self._stop_s = 0.0
        return self._score(payments, now_ms, batches)


class StreamCall(AskedCall):
    def __init__(self, stream: Stream, due: float, arrived: float) -> None:
        super().__init__(Connection(), request("payment").SerializeToString(), arrived + 0.04, is_batch=False)
        self._stream, self._due, self.arrived = stream, due, arrived

    def answer(self, body: bytes) -> None:  # noqa: ARG002
        self._stream.waits.append((self._due, self._stream.world.clock.now - self.arrived))

    def refuse(self, refusal: Refusal) -> None:
        self._stream.refused.append((self._due, refusal.code))


def evenly(begin: float, end: float, each_second: float) -> list[float]:
    return [begin + number / each_second for number in range(round((end - begin) * each_second))]


# A few full chunks, from which a batcher learns what a payment costs in them.
LEARNED = [100.0 + 0.04 * (number // 64) for number in range(20 * 64)]


@pytest.mark.parametrize("stop_ms", [10, 20, 40])
def test_calls_that_gather_while_the_worker_stops_are_not_refused(stop_ms: int) -> None:
    """At half load a chunk has one or two payments, and each costs three times as much as in a full chunk."""
    stream = Stream(LEARNED + evenly(101.0, 101.25, 20_000), stop_at=101.1, stop_s=stop_ms / 1000)
    stream.run()
    assert stream.refused == []
    assert len(stream.waits) == len(LEARNED) + 5_000


def test_after_a_long_stop_what_cannot_be_answered_in_time_is_refused() -> None:
    stream = Stream(LEARNED + evenly(101.0, 101.4, 20_000), stop_at=101.1, stop_s=0.15)
    stream.run()
    assert {code for _, code in stream.refused} == {"resource_exhausted"}
    # 3,000 gather. A worker that answered a payment in 15 µs would answer 2,000 of them in 30 ms.
    assert 1_000 < len(stream.refused) < 2_500
    # All but the chunk that the stop has interrupted.
    assert max(wait for due, wait in stream.waits if due > 101.1) < 0.04


def test_a_queue_that_stands_is_held_to_the_usual_wait() -> None:
    """At three times the capacity only the first 25 ms' calls wait for longer than `wait_ms_max`."""
    stream = Stream(LEARNED + evenly(101.0, 101.4, 200_000))
    stream.run()
    assert {code for _, code in stream.refused} == {"resource_exhausted"}
    assert 0.015 < max(wait for due, wait in stream.waits if 101.0 < due < 101.025) < 0.04
    assert 0.007 < max(wait for due, wait in stream.waits if due > 101.025) < 0.012


def test_an_overload_is_not_over_because_callers_paused_for_a_moment() -> None:
    """The payments that they held back come at once. Such a burst may not wait three times as long: more follow."""
    held_back = [101.225] * 1_000
    stream = Stream(LEARNED + evenly(101.0, 101.2, 200_000) + held_back + evenly(101.225, 101.4, 200_000))
    stream.run()
    assert max(wait for due, wait in stream.waits if due > 101.025) < 0.02


def test_a_queue_that_gets_shorter_does_not_stand() -> None:
    """Payments from a long stop take long to answer, also while others come. No payment is refused meanwhile."""
    stream = Stream(LEARNED + evenly(101.0, 101.4, 25_000), stop_at=101.1, stop_s=0.06)
    stream.run()
    assert stream.refused == []


def test_when_an_overload_is_over_a_stop_is_no_reason_to_refuse() -> None:
    stream = Stream([*evenly(100.0, 100.1, 200_000), *evenly(100.2, 100.4, 20_000)], stop_at=100.3, stop_s=0.04)
    stream.run()
    assert stream.refused
    assert max(due for due, _ in stream.refused) < 100.1


def test_a_pause_between_calls_is_no_cost_of_a_payment() -> None:
    world = World(wait_ms_max=10)
    world.scorer.payment_s = 0.0001

    async def now_and_then() -> None:
        for number in range(50):
            world.ask(f"{number}", deadline=200.0)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            world.clock.now += 1.0

    asyncio.run(now_and_then())
    world.run(lambda: [world.ask(f"{n}", deadline=300.0) for n in range(90)], turns=100)
    assert len(world.scorer.asked[-1]) + len(world.scorer.asked[-2]) + len(world.scorer.asked[-3]) == 90


def test_a_call_is_refused_when_the_queue_takes_longer_than_its_deadline() -> None:
    world = World()
    world.run(lambda: [*(world.ask(f"{n}") for n in range(10)), world.ask("hurried", deadline=100.0005)])
    assert world.connections[-1].collected == ["resource_exhausted"]
    assert len(world.scorer.asked[0]) == 10


def test_a_batch_counts_for_as_many_payments_as_it_seems_to_hold() -> None:
    world = World(queue_payments_max=150)
    ids = [f"a payment of some length, the {n}th of them" for n in range(100)]
    world.run(lambda: [world.ask(*ids), world.ask(*ids)])
    assert world.connections[0].sent[0] != ["resource_exhausted"]
    assert world.connections[1].collected == ["resource_exhausted"]


@pytest.mark.parametrize("settings", [{}, {"queue_payments_max": 50}, {"caller_payments_per_second": 100}])
def test_a_batch_of_too_many_payments_is_refused_as_such(settings: dict[str, int]) -> None:
    """3,000 payments seemed more than the queue can hold: the caller was told to try again later, for ever."""
    world = World(**settings)
    world.run(lambda: world.ask(*(f"payment-{n}" for n in range(3000)), merchant_id="m" * 80))
    assert world.connections[0].sent == [["invalid_argument:requests"]]


def test_the_queue_is_empty_again_after_all_is_answered() -> None:
    world = World()
    world.run(lambda: [world.ask("a"), world.ask("b", "c"), world.ask("d", amount_minor=-1)])
    assert world.batcher.queued_payments == 0


@pytest.mark.parametrize("name", ["deadline_ms", "wait_ms_max", "queue_payments_max", "chunk_payments"])
def test_a_setting_below_one_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(Misconfigured, match=name):
        World(**{name: 0})


def test_one_chunk_in_sixteen_measures_each_stage() -> None:
    world = World(chunk_payments=4)
    world.run(lambda: [world.ask(f"{n}") for n in range(4 * 33)], turns=60)
    counted = {stage: histogram.count for stage, histogram in world.batcher._stages.seconds.items()}
    assert {stage: count for stage, count in counted.items() if count} == {"wait": 8, "answer": 8}


# Callers with names


def refused_at_once(world: World) -> int:
    """Returns how many calls admission has refused. Their front, which is not here, would flush them."""
    return sum(connection.collected == ["resource_exhausted"] for connection in world.connections)


def test_a_noisy_caller_fills_his_share_and_the_other_one_is_admitted() -> None:
    world = World(queue_payments_max=64, chunk_payments=32)

    def ask() -> None:
        for number in range(200):
            world.ask(f"noisy-{number}", caller=b"noisy")
        world.ask("quiet", caller=b"quiet")

    world.run(ask)
    assert world.sent[-1] == [["quiet"]]
    # The whole queue for one caller; the quiet one came only after it was full.
    assert refused_at_once(world) == 200 - 64
    # The quiet caller's payment waits for a short chunk of the noisy one at most, and has a chunk of its own.
    assert ["quiet"] in world.scorer.asked[:2]
    assert max(map(len, world.scorer.asked)) == QUANTUM


def test_a_worker_that_cannot_answer_all_fills_its_chunks() -> None:
    world = World(queue_payments_max=4096, deadline_ms=1000, wait_ms_max=1000)
    world.scorer.payment_s = 0.001

    def ask() -> None:
        for number in range(200):
            world.ask(f"noisy-{number}", caller=b"noisy", deadline=110.0)
        world.ask("quiet", caller=b"quiet", deadline=110.0)

    world.run(ask, turns=40)
    sizes = [len(chunk) for chunk in world.scorer.asked]
    assert sizes[:3] == [QUANTUM, 1, QUANTUM] or sizes[:2] == [1, QUANTUM]
    assert max(sizes) == SHARED_CHUNK


def test_a_caller_alone_gets_whole_chunks() -> None:
    world = World(chunk_payments=32)
    world.run(lambda: [world.ask(f"p-{number}") for number in range(64)])
    assert [len(chunk) for chunk in world.scorer.asked] == [32, 32]


def test_with_another_caller_waiting_each_has_half_of_the_limits() -> None:
    world = World(queue_payments_max=64)

    def ask() -> None:
        world.ask("quiet", caller=b"quiet")
        for number in range(200):
            world.ask(f"noisy-{number}", caller=b"noisy")

    world.run(ask)
    assert refused_at_once(world) == 200 - 32


def test_large_requests_count_by_their_bytes() -> None:
    """They used to count as one payment each, so that 4,096 bodies of half a megabyte could wait."""
    world = World(queue_payments_max=10)
    large = "x" * 9000  # as long as three payments of 4 KiB
    world.run(lambda: [world.ask(f"p-{number}", card_id=large) for number in range(5)])
    assert refused_at_once(world) == 2


def test_a_caller_above_his_rate_is_refused_and_others_are_not() -> None:
    world = World(caller_payments_per_second=5)

    def ask() -> None:
        for number in range(8):
            world.ask(f"p-{number}", caller=b"noisy")
        world.ask("q", caller=b"quiet")

    world.run(ask)
    assert refused_at_once(world) == 3
    assert world.sent[-1] == [["q"]]


def test_a_rate_counts_the_payments_that_a_batch_has() -> None:
    """Before it is read, a batch of long requests is taken for many short ones."""
    world = World(caller_payments_per_second=200)
    long = "m" * 250

    def ask() -> None:
        world.ask("a", "b", caller=b"one", merchant_id=long)

    for _ in range(2):
        world.run(ask)
    left, _ = world.batcher._rates._buckets[b"one"]
    assert left == 200 - 4


def test_a_request_too_large_for_a_record_is_refused_alone_and_named() -> None:
    """It used to be an assertion in the writer of records: 500 for the caller, and a bug in the log."""
    world = World()
    large = request("p-2").SerializeToString() + b"\xfa\x01" + b"\x80\x80\x09" + b"x" * (9 << 14)
    batch = SplitBatchRequest(requests=[request("p-1").SerializeToString(), large]).SerializeToString()
    connection = Connection()

    def ask() -> None:
        world.ask("p-3")
        world.batcher.submit(AskedCall(connection, batch, 100.04, is_batch=True))

    world.run(ask)
    assert world.sent == [[["p-3"]]]
    assert connection.sent == [["too_large:requests[1]"]]
