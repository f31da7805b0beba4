"""Scores together all the requests that one turn of the event loop has read.

    front ─ submit ─► queue ─ once a turn ─► Format.take ─► Scorer.score ─► Call.answer ─► flush

1. A front submits every request as a `Call` when its last byte has arrived. Admission control runs at once, before
   anything is parsed. It estimates the wait from the payments in the queue and the recent time per payment. A call
   that would wait too long, or pass its deadline, is refused (load shedding). A queue that gathered in a moment may be
   three times as long as one that stands (scoring/engine/batching/queue_limit.py). Callers share the worker: each has
   its own queue, and a share of every limit (scoring/engine/batching/caller_queues.py).
2. When the loop has read all its sockets, the batcher takes at most `chunk_payments` payments from the queue and
   scores them together. Then the loop reads again, so that under overload refusals leave between two chunks. The
   batcher never waits for more requests: a lone request is a chunk of one.
3. The batcher does not score a call past its deadline, or one that was cancelled. If another worker is deciding about
   the same payment, the call goes back to the queue after 1 ms.
4. A wrong request gets its refusal, and the other requests of the chunk get their answers.
5. A batch is decided whole or not at all. The scorer gets the places of each batch in its chunk, and the batcher asks
   about none of a batch's payments alone.

Example: 40 requests have arrived in one turn, with `chunk_payments = 32`. The first 32 are scored and their answers
written; the loop reads its sockets; then the other 8 are scored, with requests that arrived meanwhile.

Not thread-safe: everything happens in the event loop.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, NamedTuple, Protocol

from paywarden.schemas.errors import InvalidEvent, Misconfigured, TemporaryFailure
from paywarden.schemas.settings import internal
from paywarden.scoring.engine.batching.caller_queues import QUANTUM, SHARED_CHUNK, CallerQueues, CallerRates
from paywarden.scoring.engine.batching.queue_limit import QueueLimit
from paywarden.scoring.engine.batching.refusal_budget import RefusalBudget
from paywarden.scoring.engine.bugs import BugLog
from paywarden.scoring.idempotency.decision_cache import PaymentIdReused
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.metrics.worker_metrics import StageTimes
from paywarden.scoring.requests.decoder import RequestDecoder
from paywarden.scoring.requests.format import Format
from paywarden.scoring.requests.validation import RequestTooLarge, field_in_batch, message_of

# Codes of refusals, under the names that gRPC has for them.
INVALID_ARGUMENT = "invalid_argument"
ALREADY_EXISTS = "already_exists"
RESOURCE_EXHAUSTED = "resource_exhausted"
DEADLINE_EXCEEDED = "deadline_exceeded"
UNAVAILABLE = "unavailable"
INTERNAL = "internal"
# The one without gRPC's name: there it is RESOURCE_EXHAUSTED, in HTTP 413.
TOO_LARGE = "too_large"
UNAUTHENTICATED = "unauthenticated"


class Overloaded(TemporaryFailure):
    """The worker has more to do than it can do in time: refused at once (429 / resource_exhausted)."""


class DeadlineExceeded(TemporaryFailure):
    """The answer would come too late to be of use (504 / deadline_exceeded)."""


class Refusal(NamedTuple):
    """The reason why a request gets no answer. `field` names the wrong field, or is empty. It quotes no payload."""

    code: str
    message: str
    field: str = ""


# Another worker is deciding about this payment. The batcher asks again; the caller sees this only at its deadline.
IN_PROGRESS = Refusal(UNAVAILABLE, "this payment is being decided: try again")
_QUEUE_FULL = Refusal(RESOURCE_EXHAUSTED, "more is asked than can be answered in time: try again later")
_OVER_RATE = Refusal(RESOURCE_EXHAUSTED, "more payments than this caller may send in a second: try again later")
_TOO_LATE = Refusal(DEADLINE_EXCEEDED, "the deadline has passed")
_BUG = Refusal(INTERNAL, "internal error")
# For a request whose batch holds one that is refused. It stays inside: the caller gets that request's refusal.
NOT_DECIDED = Refusal(INVALID_ARGUMENT, "another request of the batch is refused")


class Chunk(NamedTuple):
    """Payments that are scored together: serialised ScoreRequests.

    The last three lists have an item for each, or none.

    `batches` are the places of payments that belong together, ascending. `arrivals` say when each request arrived, in
    seconds of `time.perf_counter`. `callers` are names, and `traces` as in scoring/requests/trace_context.py; empty
    where a request has none.
    """

    bodies: Sequence[bytes]
    batches: Sequence[range] = ()
    arrivals: Sequence[float] = ()
    callers: Sequence[bytes] = ()
    traces: Sequence[bytes] = ()

    def chosen(self, places: Sequence[int]) -> Chunk:
        """Returns the payments at `places`, which ascend. A batch is chosen whole or not at all."""
        begins = (range(bisect_left(places, batch.start), bisect_left(places, batch.stop)) for batch in self.batches)
        return Chunk(
            [self.bodies[place] for place in places],
            [batch for batch in begins if batch],
            [self.arrivals[place] for place in places] if self.arrivals else (),
            [self.callers[place] for place in places] if self.callers else (),
            [self.traces[place] for place in places] if self.traces else (),
        )


class Scorer(Protocol):
    """Scores payments. The event loop calls it, so every microsecond it takes delays all callers."""

    def score(self, chunk: Chunk, now_ms: int) -> Sequence[bytes | Refusal]:
        """Returns a serialised ScoreResponse for each payment, in order, or a refusal.

        The decision of every response is in the outbox already. IN_PROGRESS means: ask again in a moment. Either all
        payments of a batch are answered, or none of them is decided. Then one has the refusal for the caller, the
        others have NOT_DECIDED.

        Raises TemporaryFailure for all of them. Any other exception is a bug, and nothing is claimed or recorded then:
        the batcher scores batches and single payments one by one, and those that raise again get "internal".
        """

    def readiness(self) -> list[str]:
        """Returns one line for each thing that is missing; an empty list when the scorer is ready."""


class Flushable(Protocol):
    """A connection that collects its answers until `flush`."""

    def flush(self) -> None:
        """Send all answers since the last flush in one write."""

    def hold(self) -> None:
        """Read nothing more for a moment: the worker has no time to refuse further calls (refusal_budget.py)."""


class Call(ABC):
    """One request, from its arrival until it is answered. Each front derives its own call and knows where answers go.

    `payload` is the message in the format `form`; with `is_batch` it holds a batch of requests. `caller` is the
    caller's name (scoring/net/caller_names.py), empty when callers show neither token nor certificate. `arrived` and
    `deadline` are in seconds of `time.perf_counter`. `trace` is the request's trace, 25 bytes, or empty
    (scoring/requests/trace_context.py). `cancelled` is set when the caller no longer waits.

    The batcher calls `answer` or `refuse` exactly once. Neither may raise or write to the socket: `connection.flush`
    follows. The batcher may call `refuse` from within `submit`.
    """

    __slots__ = ("arrived", "caller", "cancelled", "connection", "deadline", "form", "is_batch", "payload", "trace")

    # The seconds of a worker that reading a call and refusing it costs; each front's own constant.
    refusal_s: ClassVar[float]
    payload: bytes
    caller: bytes
    form: Format
    is_batch: bool
    arrived: float
    deadline: float
    cancelled: bool
    connection: Flushable
    trace: bytes

    @abstractmethod
    def answer(self, body: bytes) -> None:
        """Take the rendered response."""

    @abstractmethod
    def refuse(self, refusal: Refusal) -> None:
        """Take the reason why there is no response."""


@dataclass(frozen=True)
class AdmissionSettings:
    """The limits of admission: a request beyond them is refused at once, so that admitted ones are answered in time."""

    # The server's deadline; the caller's may be earlier. The promise is a p99 of 42 ms with the network's share.
    deadline_ms: int = 40
    # The longest estimated wait in a queue that stands, which means more load than the worker can carry. A longer queue
    # has no more payments answered, only later: at 15 ms the p99 of answers was 20.4 ms, at 10 ms 13.5. Payments that
    # come together in one moment may wait three times as long. Both are below the deadline because the estimate can be
    # too low.
    wait_ms_max: int = 10
    # Bounds memory, however fast the worker is. A request counts as a payment for every 4 KiB, so 16 MiB wait at most.
    queue_payments_max: int = internal(4096)
    # Payments scored in one go. A larger chunk makes no payment cheaper, and the next read waits for it.
    chunk_payments: int = internal(32)
    # Payments that a worker takes from one caller in a second; for bursts see caller_queues.py. 0: no limit.
    caller_payments_per_second: int = 0

    def __post_init__(self) -> None:
        """Raises Misconfigured naming the setting. The parent of the workers calls it, before any worker starts."""
        for field in fields(self):
            value, smallest = getattr(self, field.name), 0 if field.name == "caller_payments_per_second" else 1
            if value < smallest:
                raise Misconfigured(f"[admission] {field.name}: wanted at least {smallest}, got {value}")


def refusal_of(error: InvalidEvent | TemporaryFailure) -> Refusal:
    """Returns the refusal that tells the caller about an expected failure."""
    if isinstance(error, PaymentIdReused):
        return Refusal(ALREADY_EXISTS, message_of(error), error.field)
    if isinstance(error, RequestTooLarge):
        return Refusal(TOO_LARGE, message_of(error), error.field)
    if isinstance(error, InvalidEvent):
        return Refusal(INVALID_ARGUMENT, message_of(error), error.field)
    if isinstance(error, Overloaded):
        return Refusal(RESOURCE_EXHAUSTED, str(error))
    if isinstance(error, DeadlineExceeded):
        return Refusal(DEADLINE_EXCEEDED, str(error))
    return Refusal(UNAVAILABLE, str(error))


# For how long a caller counts as being there after its last call.
_COMPANY_S = 1.0
# The pause before the batcher asks again about a payment that another worker is deciding. Most decisions take less.
_RETRY_PAUSE_S = 0.001
# A chunk has no more payments than the worker scores in this time, so that refusals do not wait longer for it.
_CHUNK_S = 0.004
# A batch is not parsed before it is admitted. Its payments are estimated: a request is rarely shorter than this.
_REQUEST_BYTES = 80
# A single request counts as one more payment for each of these many bytes: the queue is limited in bytes, too.
_PAYMENT_BYTES = 4096


class MicroBatcher:
    """The queue between all fronts of a worker and its scorer. See the module."""

    def __init__(
        self,
        scorer: Scorer,
        *,
        intake: RequestDecoder,
        settings: AdmissionSettings,
        stages: StageTimes | None = None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        now_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`intake` has the limits and the fields of requests. `stages` must be the object that the scorer has, too."""
        self._stages = stages or StageTimes(MetricsRegistry())
        self.settings, self._intake = settings, intake
        self.scorer = scorer
        self._now_ms, self._now_s = now_ms, now_s
        self._queue: CallerQueues[Call] = CallerQueues()
        self._rates = CallerRates(settings.caller_payments_per_second)
        self._has_rates = settings.caller_payments_per_second > 0
        self._budget = RefusalBudget(now_s())
        # When a call came from another caller than the one before it.
        self._changed_at = float("-inf")
        # The caller of the last call, and its queue.
        self._last_caller, self._last_queue = b"", self._queue.of(b"")
        self._turn = self._queue.turn
        # Whether any caller has had a name.
        self._has_names = False
        # Whether any request has had a trace.
        self._has_traces = False
        self._scheduled = False
        self._limit = QueueLimit(
            wait_s_max=settings.wait_ms_max / 1000,
            deadline_s=settings.deadline_ms / 1000,
            chunk_payments=settings.chunk_payments,
        )
        # When the last chunk ended, if calls have been waiting ever since; None if the queue was empty then.
        self._busy_since: float | None = None
        self._payments_max = settings.queue_payments_max
        self._bugs = BugLog()

    @property
    def is_overloaded(self) -> bool:
        """Whether more is asked than can be answered."""
        return self._limit.stands

    def is_too_late(self, waited_s: float) -> bool:
        """Whether a call that waited unread for `waited_s` is too late: under overload, longer than calls may wait."""
        return waited_s > (self._limit.wait_s_max if self._limit.stands else self.settings.deadline_ms / 1000)

    def has_time_for_connection(self, cost_s: float) -> bool:
        """Take the cost of a connection that was accepted. Returns whether the worker has time for another one."""
        return not self._limit.stands or self._budget.spend(self._now_s(), cost_s)

    @property
    def queued_payments(self) -> int:
        """The number of payments in the queue. For batches it is an estimate."""
        return self._queue.payments

    def submit(self, call: Call) -> None:
        """Queue a call, which is answered after this turn of the loop; or refuse it now."""
        weight = self._weight_of_batch(call) if call.is_batch else len(call.payload) // _PAYMENT_BYTES + 1
        if call.caller != self._last_caller:
            self._change_caller(call)
        queue, turn = self._last_queue, self._turn
        ahead, payments_max = queue.payments, self._payments_max
        # Nearly always there is one caller, or only one who waits.
        if turn and (len(turn) > 1 or turn[0] is not queue):
            ahead += self._queue.ahead_of(queue) - queue.payments
            payments_max //= self._queue.callers_with(queue)
        limit = self._limit
        wait_s = ahead * limit.cost_s(ahead)
        if wait_s > limit.wait_s_max or queue.payments + weight > payments_max:
            limit.note_refused()
            self._refuse_more(call, _QUEUE_FULL)
            return
        if call.arrived + wait_s > call.deadline:
            call.refuse(_TOO_LATE if call.arrived > call.deadline else _QUEUE_FULL)
            return
        if self._has_rates and not self._rates.spend(call.caller, weight, call.arrived):
            self._refuse_more(call, _OVER_RATE)
            return
        if call.trace:
            self._has_traces = True
        calls = queue.calls
        if not calls:
            self._queue.begin(queue)
        calls.append((call, weight))
        queue.payments += weight
        if not self._scheduled:
            self._schedule()

    def _weight_of_batch(self, call: Call) -> int:
        """Returns the estimated number of payments in a batch that has not been read yet.

        It is at most what a batch may have: one with more is refused when it is read. An empty queue takes any batch.
        """
        payments = min(len(call.payload) // _REQUEST_BYTES, self._intake.limits.batch_size_max)
        return min(max(payments, len(call.payload) // _PAYMENT_BYTES + 1), self._payments_max)

    def _change_caller(self, call: Call) -> None:
        """Note that a call is of another caller than the one before it."""
        self._last_caller, self._has_names = call.caller, True
        self._last_queue = self._queue.of(call.caller)
        self._changed_at = call.arrived

    def _has_company(self, now: float) -> bool:
        """Whether calls of more than one caller have come within the last second."""
        return now - self._changed_at <= _COMPANY_S

    def _refuse_more(self, call: Call, refusal: Refusal) -> None:
        """Refuse a call because its caller has sent too much already."""
        call.refuse(refusal)
        if not self._budget.spend(call.arrived, call.refusal_s):
            call.connection.hold()

    def _note_begun(self) -> None:
        if self._busy_since is None and self._limit.stands:
            self._limit.note_begun(self._now_s())

    def _schedule(self) -> None:
        self._scheduled = True
        self._note_begun()
        asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        """Answer one chunk; then let the loop read before the next."""
        self._scheduled = False
        began = self._now_s()
        self._stages.begin(began)
        chunk = self._take(began)
        if chunk.calls:
            self._give(chunk.calls, chunk.counts, self._results(chunk.asked))
            ended = self._now_s()
            # Waiting calls also wait for the reading and refusing between two chunks, so that time counts as well.
            worked_s = ended - (began if self._busy_since is None else self._busy_since)
            self._limit.note_chunk(len(chunk.asked.bodies), worked_s, self._queue.payments, ended)
            self._busy_since = ended
        if self._turn:
            if not self._scheduled:
                self._schedule()
        else:
            self._busy_since = None
            self._limit.note_empty()

    def _take(self, now: float) -> _Taken:
        """Take the next chunk from the queue; refuse the calls that are late or cannot be read."""
        calls: list[Call] = []
        counts: list[int] = []
        requests: list[bytes] = []
        batches: list[range] = []
        refused: dict[Flushable, None] = {}
        turn, fills = self._turn, True
        count_max = min(self.settings.chunk_payments, self._limit.payments_in(_CHUNK_S))
        if self._has_names and (len(turn) > 1 or self._has_company(now)):
            # With time to spare, chunks make others wait least.
            fills = self._limit.stands
            count_max = min(count_max, SHARED_CHUNK if fills else QUANTUM)
        while turn and len(requests) < count_max and (fills or not requests):
            for call in self._queue.take(count_max - len(requests), fills=fills):
                if call.cancelled:
                    continue
                if now > call.deadline:
                    call.refuse(_TOO_LATE)
                    refused[call.connection] = None
                    continue
                try:
                    if call.is_batch:
                        batch = call.form.take_batch(
                            call.payload, self._intake.limits.batch_size_max, self._intake.schema
                        )
                        batches.append(range(len(requests), len(requests) + len(batch)))
                        self._rates.give_back(call.caller, self._weight_of_batch(call) - len(batch))
                        requests += batch
                        counts.append(len(batch))
                    else:
                        requests.append(call.form.take(call.payload, self._intake.schema))
                        counts.append(1)
                except InvalidEvent as error:
                    call.refuse(refusal_of(error))
                    refused[call.connection] = None
                    continue
                calls.append(call)
        callers: list[bytes] = []
        if self._has_names:
            for call, count in zip(calls, counts, strict=True):
                callers += [call.caller] * count
        traces: list[bytes] = []
        if self._has_traces and any(call.trace for call in calls):
            for call, count in zip(calls, counts, strict=True):
                traces += [call.trace] * count
        arrivals = [call.arrived for call in calls]
        if len(requests) != len(calls):
            arrivals = [call.arrived for call, count in zip(calls, counts, strict=True) for _ in range(count)]
        for connection in refused:
            connection.flush()
        if self._stages.is_timed:
            for call in calls:
                self._stages.wait(now - call.arrived)
        return _Taken(calls, counts, Chunk(requests, batches, arrivals, callers, traces))

    def _give(self, calls: Sequence[Call], counts: Sequence[int], results: Sequence[bytes | Refusal]) -> None:
        """Answer calls, each with its part of the results: `counts` says how many requests each call has."""
        assert len(results) == sum(counts), "the scorer answers every request"
        touched: dict[Flushable, None] = {}
        first = 0
        for call, count in zip(calls, counts, strict=True):
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

    def _results(self, chunk: Chunk) -> Sequence[bytes | Refusal]:
        """Returns an answer or a refusal for each request of a chunk. Never raises: nothing above could answer it."""
        count = len(chunk.bodies)
        try:
            return self.scorer.score(chunk, self._now_ms())
        except TemporaryFailure as error:
            return [refusal_of(error)] * count
        except Exception as error:  # noqa: BLE001 - a bug in one request must not end the worker for all others
            units, answers = list(units_of(count, chunk.batches)), list[bytes | Refusal]()
            if len(units) == 1:
                answers += [_BUG] * count
            else:
                for unit in units:
                    answers += self._results(chunk.chosen(unit))
            # A bug is logged once, and by now with the name of the caller whose payment has it.
            self._bugs.note(error, "scoring", _only(chunk.callers), _only(chunk.traces))
            return answers

    def _asks_again(self, call: Call, weight: int) -> bool:
        """Put a call back into the queue after a pause. Returns False when its deadline is nearer than the pause."""
        if self._now_s() + _RETRY_PAUSE_S > call.deadline:
            return False
        asyncio.get_running_loop().call_later(_RETRY_PAUSE_S, self._take_back, call, weight)
        return True

    def _take_back(self, call: Call, weight: int) -> None:
        """Queue a call again. It has been admitted, so it is not checked a second time."""
        self._queue.append(self._queue.of(call.caller), call, weight)
        if not self._scheduled:
            self._schedule()


class _Taken(NamedTuple):
    """Calls, the number of requests in each, and all requests."""

    calls: list[Call]
    counts: list[int]
    asked: Chunk


def units_of(count: int, batches: Sequence[range]) -> Iterator[range]:
    """Yields the places of `count` payments, in order: each batch as one range, every other payment alone."""
    place = 0
    for batch in (*batches, range(count, count)):
        yield from (range(single, single + 1) for single in range(place, batch.start))
        if batch:
            yield batch
        place = batch.stop


def _only(names: Sequence[bytes]) -> bytes:
    """Returns the name that all of these are; empty if they differ."""
    return names[0] if len(set(names)) == 1 else b""


def _answer_batch(call: Call, results: Sequence[bytes | Refusal]) -> None:
    """Answer a batch with all its responses, or with the first refusal that is not NOT_DECIDED."""
    responses: list[bytes] = []
    for index, result in enumerate(results):
        if isinstance(result, bytes):
            responses.append(result)
        elif result is not NOT_DECIDED:
            call.refuse(result._replace(field=field_in_batch(index, result.field)))
            return
    call.answer(call.form.render_batch(responses))
