"""What one turn of the event loop has read, answered together.

    front ─ submit ─► queue ─ once a turn ─► Intake.read ─► Scorer.score_many ─► Call.answer ─► connection.flush

1. A front hands every request over as a `Call` as soon as its last byte is there. Whether it can be answered in
   time is decided then and there, before any of it is parsed: by what waits already, what a payment has taken
   lately, and the call's deadline. What cannot is refused at once.
2. When the loop has read all there was to read, what waits is scored together, `chunk_payments` payments at most;
   then the loop reads again before the next chunk, so that under a flood refusals leave between chunks. Nobody
   ever waits for another request to arrive: a lone request is a chunk of one.
3. A call past its deadline, or no longer wanted, is not scored. One whose payment another worker is deciding about at
   this moment waits a little and is asked again.
4. One wrong request spoils nothing for its neighbours: it gets its refusal, they get their answers.

Not thread-safe: everything happens in the event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from paywarden.schemas.errors import InvalidEvent, Misconfigured, TemporaryFailure
from paywarden.scoring.engine.bugs import BugLog
from paywarden.scoring.engine.busy_poll import BusyPoll
from paywarden.scoring.idempotency.decision_cache import PaymentIdReused
from paywarden.scoring.metrics.shared import Registry
from paywarden.scoring.metrics.worker import StageTimes
from paywarden.scoring.requests.decoder import RequestDecoder
from paywarden.scoring.requests.format import Format, TakenRequest
from paywarden.scoring.requests.payments import CheckedPayments
from paywarden.scoring.requests.validation import field_in_batch, message_of

# Codes of refusals, by gRPC's names.
INVALID_ARGUMENT = "invalid_argument"
ALREADY_EXISTS = "already_exists"
RESOURCE_EXHAUSTED = "resource_exhausted"
DEADLINE_EXCEEDED = "deadline_exceeded"
UNAVAILABLE = "unavailable"
INTERNAL = "internal"
UNAUTHENTICATED = "unauthenticated"


class Overloaded(TemporaryFailure):
    """The worker has more to do than it can do in time: refused at once (429 / resource_exhausted)."""


class DeadlineExceeded(TemporaryFailure):
    """The answer would come too late to be of use (504 / deadline_exceeded)."""


class Refusal(NamedTuple):
    """Why there is no answer. `field` is empty where none is to blame. No part of the payload is in it."""

    code: str
    message: str
    field: str = ""


# Of a payment that another worker is deciding about: by the deadline the caller is told, before it we ask again.
IN_PROGRESS = Refusal(UNAVAILABLE, "this payment is being decided: try again")
_QUEUE_FULL = Refusal(RESOURCE_EXHAUSTED, "more is asked than can be answered in time: try again later")
_TOO_LATE = Refusal(DEADLINE_EXCEEDED, "the deadline has passed")
_BUG = Refusal(INTERNAL, "internal error")
# Of a request in a batch with one that is wrong. Nobody is told.
_NOT_DECIDED = Refusal(INVALID_ARGUMENT, "another request of the batch is wrong")


class Scorer(Protocol):
    """What scores payments. Called from the event loop, so every microsecond of it delays all callers."""

    def score_many(self, payments: CheckedPayments, now_ms: int) -> Sequence[bytes | Refusal]:
        """A serialised ScoreResponse for each payment, in order, or why there is none; the decision is in the outbox.

        IN_PROGRESS wants to be asked again in a moment.

        May raise TemporaryFailure for all of them. Anything else raised is a bug: what can be
        answered one by one is, the rest gets "internal".
        """

    def readiness(self) -> list[str]:
        """Empty when ready to score well; else one line for each thing that is missing."""


class Flushable(Protocol):
    """A connection that collects its answers until it is told to send them."""

    def flush(self) -> None:
        """Send all answers given since the last time, in one write."""


class Call(ABC):
    """One request at a front, until it is answered. Fronts derive from it and know where the answer goes.

    `payload` is the message in `form`, a batch of requests where `is_batch`. `arrived` and `deadline` are in seconds
    of `time.perf_counter`. Once `cancelled`, nobody wants the answer. Exactly one of `answer` and `refuse` is called,
    once; neither may raise or write to the socket: `connection.flush` follows. A refusal may come from within `submit`.
    """

    __slots__ = ("arrived", "cancelled", "connection", "deadline", "form", "is_batch", "payload")

    payload: bytes
    form: Format
    is_batch: bool
    arrived: float
    deadline: float
    cancelled: bool
    connection: Flushable

    @abstractmethod
    def answer(self, body: bytes) -> None:
        """The rendered response."""

    @abstractmethod
    def refuse(self, refusal: Refusal) -> None:
        """There will be no response, for this reason."""


@dataclass(frozen=True)
class AdmissionSettings:
    """When a request is refused at once, so that what is admitted is answered in time."""

    # Our own deadline for every request, beside the caller's: the promise is a p99 of 42 ms, some of it the network's.
    deadline_ms: int = 40
    # The longest a request may have to wait for those before it. Less than the deadline: estimates are off at times.
    wait_ms_max: int = 15
    # However fast we are: this bounds memory.
    queue_payments_max: int = 4096
    # Scored in one go. More makes no payment cheaper, and the next read waits for it.
    chunk_payments: int = 32

    def __post_init__(self) -> None:
        """Raises Misconfigured naming the setting, in the parent of the workers already."""
        for name in ("deadline_ms", "wait_ms_max", "queue_payments_max", "chunk_payments"):
            if getattr(self, name) < 1:
                raise Misconfigured(f"[admission] {name}: wanted at least 1, got {getattr(self, name)}")


def refusal_of(error: InvalidEvent | TemporaryFailure) -> Refusal:
    """How an expected failure is told to the caller."""
    if isinstance(error, PaymentIdReused):
        return Refusal(ALREADY_EXISTS, message_of(error), error.field)
    if isinstance(error, InvalidEvent):
        return Refusal(INVALID_ARGUMENT, message_of(error), error.field)
    if isinstance(error, Overloaded):
        return Refusal(RESOURCE_EXHAUSTED, str(error))
    if isinstance(error, DeadlineExceeded):
        return Refusal(DEADLINE_EXCEEDED, str(error))
    return Refusal(UNAVAILABLE, str(error))


# Until the first chunk has shown it: what a payment takes, in seconds.
_FIRST_COST_S = 100e-6
# How much the last chunk counts in the running cost of a payment.
_COST_WEIGHT = 0.1
# After which a payment that another worker decides about is asked for again: most decisions take less.
_UNDER_WAY_S = 0.001
# What a batch holds is not known before it is parsed: a request of a payment is rarely shorter than this.
_REQUEST_BYTES = 80


class MicroBatcher:
    """The queue between all fronts of a worker and its scorer."""

    def __init__(
        self,
        scorer: Scorer,
        *,
        intake: RequestDecoder,
        settings: AdmissionSettings,
        stages: StageTimes | None = None,
        busy_poll: BusyPoll | None = None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        now_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`intake` is the scorer's alone. `stages` are those that the scorer has, too."""
        self._stages = stages or StageTimes(Registry())
        self.settings, self._intake = settings, intake
        self.scorer = scorer
        self._now_ms, self._now_s = now_ms, now_s
        self._queue: deque[tuple[Call, int]] = deque()
        self._queued_payments = 0
        self._scheduled = False
        self._cost_s = _FIRST_COST_S
        # When the chunk before ended, if calls have been waiting ever since.
        self._busy_since: float | None = None
        self._wait_s_max = settings.wait_ms_max / 1000
        self._bugs = BugLog()
        self._busy_poll = busy_poll or BusyPoll(0)

    @property
    def queued_payments(self) -> int:
        """How many payments wait, those of batches estimated."""
        return self._queued_payments

    def submit(self, call: Call) -> None:
        """Take a call; it is answered after this turn of the loop, or refused now."""
        weight = 1 if not call.is_batch else max(1, len(call.payload) // _REQUEST_BYTES)
        wait_s = self._queued_payments * self._cost_s
        if wait_s > self._wait_s_max or self._queued_payments + weight > self.settings.queue_payments_max:
            call.refuse(_QUEUE_FULL)
            return
        if call.arrived + wait_s > call.deadline:
            call.refuse(_TOO_LATE if call.arrived > call.deadline else _QUEUE_FULL)
            return
        self._queue.append((call, weight))
        self._queued_payments += weight
        if not self._scheduled:
            self._schedule()

    def _schedule(self) -> None:
        self._scheduled = True
        asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        """Answer one chunk; then let the loop read before the next."""
        self._scheduled = False
        began = self._now_s()
        self._stages.begin(began)
        chunk = self._take(began)
        if chunk.requests:
            self._answer(chunk)
            ended = self._now_s()
            # While calls wait, what is read and refused between two chunks keeps them waiting, too.
            cost_s = (ended - (began if self._busy_since is None else self._busy_since)) / len(chunk.requests)
            self._cost_s += _COST_WEIGHT * (cost_s - self._cost_s)
            self._busy_since = ended
        if self._queue:
            self._schedule()
        else:
            self._busy_since = None
            self._busy_poll.extend(self._now_s())

    def _take(self, now: float) -> _Chunk:
        """The next chunk. Calls that come to nothing are refused."""
        calls: list[Call] = []
        counts: list[int] = []
        requests: list[TakenRequest] = []
        refused: dict[Flushable, None] = {}
        queue, count_max = self._queue, self.settings.chunk_payments
        while queue and len(requests) < count_max:
            call, weight = queue.popleft()
            self._queued_payments -= weight
            if call.cancelled:
                continue
            if now > call.deadline:
                call.refuse(_TOO_LATE)
                refused[call.connection] = None
                continue
            try:
                if call.is_batch:
                    batch = call.form.take_batch(call.payload, self._intake.limits.batch_size_max)
                    requests += batch
                    counts.append(len(batch))
                else:
                    requests.append(call.form.take(call.payload))
                    counts.append(1)
            except InvalidEvent as error:
                call.refuse(refusal_of(error))
                refused[call.connection] = None
                continue
            calls.append(call)
        for connection in refused:
            connection.flush()
        if self._stages.is_timed:
            for call in calls:
                self._stages.wait(now - call.arrived)
        return _Chunk(calls, counts, requests)

    def _answer(self, chunk: _Chunk) -> None:
        results = self._results(chunk)
        assert len(results) == len(chunk.requests), "the scorer answers every request"
        touched: dict[Flushable, None] = {}
        first = 0
        for call, count in zip(chunk.calls, chunk.counts, strict=True):
            result = results[first]
            if call.is_batch:
                own = results[first : first + count]
                if not (IN_PROGRESS in own and self._asks_again(call, count)):
                    _answer_batch(call, own)
                    touched[call.connection] = None
            elif type(result) is bytes:
                call.answer(call.form.render(result))
                touched[call.connection] = None
            elif not (result is IN_PROGRESS and self._asks_again(call, count)):
                assert isinstance(result, Refusal)
                call.refuse(result)
                touched[call.connection] = None
            first += count
        for connection in touched:
            connection.flush()
        if self._stages.is_timed:
            self._stages.lap("answer", len(results))

    def _results(self, chunk: _Chunk) -> Sequence[bytes | Refusal]:
        """An answer or a refusal for each request of a chunk. Of a batch, all are decided or none."""
        payments, wrong = self._intake.read(chunk.requests, self._now_ms())
        if self._stages.is_timed:
            self._stages.lap("parse", len(chunk.requests))
        if not wrong:
            return self._score(payments)
        count, spoilt = len(chunk.requests), set(_spoilt(chunk.counts, wrong))
        results = [refusal_of(wrong[place]) if place in wrong else _NOT_DECIDED for place in range(count)]
        right = [place for place in range(count) if place not in wrong]
        decided = [index for index, place in enumerate(right) if place not in spoilt]
        if not decided:
            return results
        answers: list[bytes | Refusal] = [*results]
        for index, answer in zip(decided, self._score(payments.chosen(decided)), strict=True):
            answers[right[index]] = answer
        return answers

    def _asks_again(self, call: Call, weight: int) -> bool:
        """Put a call back for a moment; False when its deadline is too near for that."""
        if self._now_s() + _UNDER_WAY_S > call.deadline:
            return False
        asyncio.get_running_loop().call_later(_UNDER_WAY_S, self._take_back, call, weight)
        return True

    def _take_back(self, call: Call, weight: int) -> None:
        """It was admitted once."""
        self._queue.append((call, weight))
        self._queued_payments += weight
        if not self._scheduled:
            self._schedule()

    def _score(self, payments: CheckedPayments) -> Sequence[bytes | Refusal]:
        """Never raises: this is the top of a request."""
        try:
            return self.scorer.score_many(payments, self._now_ms())
        except TemporaryFailure as error:
            return [refusal_of(error)] * len(payments)
        except Exception as error:  # noqa: BLE001 - a bug in one request must not end the worker for all others
            self._bugs.note(error, "scoring")
            if len(payments) == 1:
                return [_BUG]
            return [self._score(payments.chosen([index]))[0] for index in range(len(payments))]


class _Chunk(NamedTuple):
    """Calls, how many requests each of them holds, and the requests of all of them, in order."""

    calls: list[Call]
    counts: list[int]
    requests: list[TakenRequest]


def _spoilt(counts: Sequence[int], wrong: Iterable[int]) -> Iterator[int]:
    """The places of all requests that share a call with one that is wrong."""
    ends = list(itertools.accumulate(counts))
    for call in sorted({bisect_right(ends, place) for place in wrong}):
        yield from range(ends[call] - counts[call], ends[call])


def _answer_batch(call: Call, results: Sequence[bytes | Refusal]) -> None:
    """All responses, or the first refusal that has a reason of its own."""
    responses: list[bytes] = []
    for index, result in enumerate(results):
        if isinstance(result, bytes):
            responses.append(result)
        elif result is not _NOT_DECIDED:
            call.refuse(result._replace(field=field_in_batch(index, result.field)))
            return
    call.answer(call.form.render_batch(responses))
