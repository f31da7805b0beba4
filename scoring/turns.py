"""What one turn of the event loop has read, answered together.

    front ─ submit ─► queue ─ once a turn ─► parse, check ─► Scorer.score_many ─► Call.answer ─► connection.flush

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
import logging
import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from schemas.errors import InvalidEvent, Misconfigured, TemporaryFailure
from schemas.scoring_pb2 import ScoreRequest, ScoreResponse
from scoring import wire
from scoring.answered import PaymentIdReused
from scoring.metrics import Registry
from scoring.wire import DeadlineExceeded, Format, Overloaded, RequestLimits
from scoring.worker_metrics import StageTimes

_log = logging.getLogger(__name__)

# Codes of refusals, by gRPC's names.
INVALID_ARGUMENT = "invalid_argument"
ALREADY_EXISTS = "already_exists"
RESOURCE_EXHAUSTED = "resource_exhausted"
DEADLINE_EXCEEDED = "deadline_exceeded"
UNAVAILABLE = "unavailable"
INTERNAL = "internal"
UNAUTHENTICATED = "unauthenticated"


class Refusal(NamedTuple):
    """Why there is no answer. `field` is empty where none is to blame. No part of the payload is in it."""

    code: str
    message: str
    field: str = ""


# Of a payment that another worker is deciding about: by the deadline the caller is told, before it we ask again.
UNDER_WAY = Refusal(UNAVAILABLE, "this payment is being decided: try again")
_QUEUE_FULL = Refusal(RESOURCE_EXHAUSTED, "more is asked than can be answered in time: try again later")
_TOO_LATE = Refusal(DEADLINE_EXCEEDED, "the deadline has passed")
_BUG = Refusal(INTERNAL, "internal error")


class Scorer(Protocol):
    """What scores payments. Called from the event loop, so every microsecond of it delays all callers."""

    def score_many(self, requests: Sequence[ScoreRequest], now_ms: int) -> Sequence[ScoreResponse | Refusal]:
        """One result for each validated request, in order; a response's decision is in the outbox by then.

        UNDER_WAY wants to be asked again in a moment.

        May raise InvalidEvent or TemporaryFailure for all of them. Anything else raised is a bug: what can be
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
        return Refusal(ALREADY_EXISTS, wire.message_of(error), error.field)
    if isinstance(error, InvalidEvent):
        return Refusal(INVALID_ARGUMENT, wire.message_of(error), error.field)
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


class Turns:
    """The queue between all fronts of a worker and its scorer."""

    def __init__(
        self,
        scorer: Scorer,
        *,
        settings: AdmissionSettings,
        limits: RequestLimits,
        currencies: frozenset[str],
        stages: StageTimes | None = None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        now_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`currencies` are those that can be converted. `stages` are those that the scorer has, too."""
        self._stages = stages or StageTimes(Registry())
        self.settings, self._limits, self._currencies = settings, limits, currencies
        self.scorer = scorer
        self._now_ms, self._now_s = now_ms, now_s
        self._queue: deque[tuple[Call, int]] = deque()
        self._queued_payments = 0
        self._scheduled = False
        self._cost_s = _FIRST_COST_S
        # When the chunk before ended, if calls have been waiting ever since.
        self._busy_since: float | None = None
        self._wait_s_max = settings.wait_ms_max / 1000
        self._bugs_logged: set[tuple[str, str, int]] = set()

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
        calls, parts, requests = self._take(began)
        if requests:
            self._answer(calls, parts, requests)
            ended = self._now_s()
            # While calls wait, what is read and refused between two chunks keeps them waiting, too.
            cost_s = (ended - (began if self._busy_since is None else self._busy_since)) / len(requests)
            self._cost_s += _COST_WEIGHT * (cost_s - self._cost_s)
            self._busy_since = ended
        if self._queue:
            self._schedule()
        else:
            self._busy_since = None

    def _take(self, now: float) -> tuple[list[Call], list[int], list[ScoreRequest]]:
        """The next chunk: calls, how many requests each of them holds, and all requests."""
        calls: list[Call] = []
        parts: list[int] = []
        requests: list[ScoreRequest] = []
        refused: dict[Flushable, None] = {}
        now_ms = self._now_ms()
        while self._queue and len(requests) < self.settings.chunk_payments:
            call, weight = self._queue.popleft()
            self._queued_payments -= weight
            if call.cancelled:
                continue
            if now > call.deadline:
                call.refuse(_TOO_LATE)
                refused[call.connection] = None
                continue
            try:
                found = self._parse(call, now_ms)
            except InvalidEvent as error:
                call.refuse(refusal_of(error))
                refused[call.connection] = None
                continue
            calls.append(call)
            parts.append(len(found))
            requests += found
        for connection in refused:
            connection.flush()
        if self._stages.is_timed:
            for call in calls:
                self._stages.wait(now - call.arrived)
            self._stages.lap("parse", len(requests))
        return calls, parts, requests

    def _parse(self, call: Call, now_ms: int) -> Sequence[ScoreRequest]:
        if not call.is_batch:
            request = call.form.parse(call.payload)
            wire.validate(request, now_ms=now_ms, limits=self._limits, currencies=self._currencies)
            return (request,)
        requests = call.form.parse_batch(call.payload, self._limits.batch_size_max)
        wire.validate_batch(requests, now_ms=now_ms, limits=self._limits, currencies=self._currencies)
        return requests

    def _answer(self, calls: Sequence[Call], parts: Sequence[int], requests: Sequence[ScoreRequest]) -> None:
        results = self._score(requests)
        assert len(results) == len(requests), "the scorer answers every request"
        touched: dict[Flushable, None] = {}
        first = 0
        for call, count in zip(calls, parts, strict=True):
            under_way = any(result is UNDER_WAY for result in results[first : first + count])
            if under_way and self._asks_again(call, count):
                first += count
                continue
            touched[call.connection] = None
            if not call.is_batch:
                result = results[first]
                if type(result) is Refusal:
                    call.refuse(result)
                else:
                    assert isinstance(result, ScoreResponse)
                    call.answer(call.form.render(result))
            else:
                _answer_batch(call, results[first : first + count])
            first += count
        for connection in touched:
            connection.flush()
        if self._stages.is_timed:
            self._stages.lap("answer", len(requests))

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

    def _score(self, requests: Sequence[ScoreRequest]) -> Sequence[ScoreResponse | Refusal]:
        """Never raises: this is the top of a request."""
        try:
            return self.scorer.score_many(requests, self._now_ms())
        except (InvalidEvent, TemporaryFailure) as error:
            return [refusal_of(error)] * len(requests)
        except Exception as error:  # noqa: BLE001 - a bug in one request must not end the worker for all others
            self._log_bug(error)
            if len(requests) == 1:
                return [_BUG]
            return [self._score([request])[0] for request in requests]

    def _log_bug(self, error: Exception) -> None:
        """Once per place it is raised at, without the error's text: that may quote the payload."""
        frames = traceback.extract_tb(error.__traceback__)
        place = (type(error).__name__, frames[-1].filename, frames[-1].lineno or 0)
        if place not in self._bugs_logged:
            self._bugs_logged.add(place)
            trace = "".join(traceback.format_list(frames))
            _log.error("bug while scoring: %s at\n%s", type(error).__name__, trace)


def _answer_batch(call: Call, results: Sequence[ScoreResponse | Refusal]) -> None:
    """All responses, or the first refusal there is."""
    responses: list[ScoreResponse] = []
    for index, result in enumerate(results):
        if isinstance(result, Refusal):
            where = f"requests[{index}]"
            field = f"{where}.{result.field}" if result.field else ""
            call.refuse(Refusal(result.code, result.message, field))
            return
        responses.append(result)
    call.answer(call.form.render_batch(responses))
