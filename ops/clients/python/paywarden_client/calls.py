"""The part that the threaded and the asyncio client share: everything but their sockets.

call = core.begin(payment, …)     checks, body, plan of attempts
core.request(call)                bytes of an attempt
core.after(call, met)             a pause before the next attempt, or the end: Decision, cause or WrongRequest
core.finish(call, end)            the caller's result: the decision, or a stand-in
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass

from .answers import BUSY, CLOSED, FAILED, LATE, Decision, read_answer
from .attempts import AVOID_MS, BROKEN, DEADLINE_MS_MAX, REFUSED, CallPlan, cause_of, deadline_header
from .errors import WrongRequest
from .http1 import request_bytes
from .payments import Payment, body_of
from .reconciling import ANSWERED, EXPIRED, FULL, ReconcileQueue, Waiting
from .reconciling import CLOSED as QUEUE_CLOSED
from .reconciling import REFUSED as QUEUE_REFUSED
from .requests import headers_of
from .routing import host_order, route_of
from .settings import ClientSettings, Hooks, Target, require_token
from .stand_in import StandIn

VERSION = "1.0.0"
SCORE, SHADOW, RECONCILE = "score", "shadow", "reconcile"
_USER_AGENT = ("user-agent", f"paywarden-client-python/{VERSION}")

# The result of an attempt: an answer (status, body), or one of REFUSED, BROKEN, LATE, BUSY, FAILED, CLOSED.
Met = str | tuple[int, bytes]


@dataclass
class Call:
    """One call, from its begin to its end. Times are in seconds of `time.monotonic`."""

    operation: str
    payment: Payment
    body: bytes
    plan: CallPlan
    route: str | None
    traceparent: str | None
    began_s: float
    deadline_s: float


class Core:
    """The part of a client without sockets. Safe for threads."""

    def __init__(self, settings: ClientSettings, hooks: Hooks) -> None:
        self.settings, self._hooks = settings, hooks
        self.targets = [Target.of(url) for url in settings.targets]
        self.queue = ReconcileQueue(settings.queue_max)
        self.is_closed = False
        self._stand_in = StandIn(settings.policy, settings.cards_max)
        self._lock = threading.Lock()
        self._avoided_until = [0.0] * len(self.targets)

    # A call

    def begin(
        self, payment: Payment, deadline_ms: float | None, traceparent: str | None, operation: str = SCORE
    ) -> Call:
        """Returns a new call. Raises WrongRequest."""
        began_s = time.monotonic()
        deadline_ms = self.settings.deadline_ms if deadline_ms is None else deadline_ms
        if not 1 <= deadline_ms <= DEADLINE_MS_MAX:
            raise WrongRequest(f"wanted 1 to {DEADLINE_MS_MAX}", field="deadline_ms")
        body = body_of(payment)
        key = self.settings.route_key
        route = None if key is None else route_of(key, payment.card_id)
        order, pinned = [0], None
        avoided: tuple[int, ...] = ()
        if len(self.targets) > 1:
            order = host_order(route or payment.card_id, self.settings.targets)
            avoided = tuple(place for place in order if self._avoided_until[place] > began_s)
            if len(self.queue):
                with self._lock:
                    pinned = self.queue.pinned(payment.payment_id)
        plan = CallPlan(order, avoided, pinned)
        return Call(operation, payment, body, plan, route, traceparent, began_s, began_s + deadline_ms / 1000.0)

    def request(self, call: Call) -> bytes:
        """Returns the bytes of the call's attempt, and notes that it is sent. Raises WrongSettings (a token)."""
        target = self.targets[call.plan.host]
        left_ms = (call.deadline_s - time.monotonic()) * 1000.0
        token = self.settings.token
        if callable(token):
            token = require_token(token())
        headers = headers_of(deadline_header(left_ms), token=token, route=call.route, traceparent=call.traceparent)
        headers.append(_USER_AGENT)
        call.plan.sent()
        return request_bytes(target.path, target.authority, headers, call.body)

    def avoid(self, place: int) -> None:
        """Let new payments go to other hosts for a while."""
        self._avoided_until[place] = time.monotonic() + AVOID_MS / 1000.0

    def after(self, call: Call, met: Met) -> float | Decision | str:
        """Returns the pause before the next attempt in seconds, or how the call ends. Raises WrongRequest."""
        code = met if isinstance(met, str) else met[0]
        if call.operation != RECONCILE and not self.is_closed and (code in (REFUSED, BROKEN) or code == 503):
            left_ms = (call.deadline_s - time.monotonic()) * 1000.0
            pause_ms = call.plan.retry_pause_ms(code, left_ms)
            if pause_ms is not None:
                return pause_ms / 1000.0
        if isinstance(met, str):
            return cause_of(met)
        return read_answer(call.payment.payment_id, *met)

    def refused(self, call: Call) -> None:
        """Note that the service refused the request as wrong."""
        self._end_waiting(call.payment.payment_id, None, QUEUE_REFUSED)
        self._count(call, QUEUE_REFUSED)

    def finish(self, call: Call, end: Decision | str) -> Decision:
        """Returns the caller's result: the decision, or a stand-in, which waits in the queue from now on."""
        if isinstance(end, Decision):
            if len(self.queue):
                self._end_waiting(call.payment.payment_id, end, ANSWERED)
            self._count(call, ANSWERED)
            return end
        now_s = time.monotonic()
        with self._lock:
            decision = self._stand_in.decide(call.payment, end, now_s * 1000.0)
            waits = not self.is_closed and self.queue.put(call.payment, decision, call.plan.sent_to, now_s)
        if not waits:
            self._reconciled(decision, None, QUEUE_CLOSED if self.is_closed else FULL)
        self._count(call, end)
        return decision

    # Reconciliation

    def due(self) -> Waiting | None:
        """Returns the stand-in that is to be asked about now."""
        with self._lock:
            return self.queue.take_due(time.monotonic())

    def next_due_s(self) -> float | None:
        """Returns when the next stand-in is to be asked about."""
        with self._lock:
            return self.queue.next_due_s()

    def begin_again(self, waiting: Waiting, deadline_ms: float) -> Call:
        """Returns the call that asks about a stand-in again."""
        return self.begin(waiting.payment, deadline_ms, None, RECONCILE)

    def reconciled(self, waiting: Waiting, call: Call, end: Decision | str | WrongRequest) -> None:
        """Note the result of a call for a stand-in."""
        payment_id = waiting.payment.payment_id
        if isinstance(end, Decision):
            self._end_waiting(payment_id, end, ANSWERED)
            self._count(call, ANSWERED)
        elif isinstance(end, WrongRequest):
            self._end_waiting(payment_id, None, QUEUE_REFUSED)
            self._count(call, QUEUE_REFUSED)
        else:
            with self._lock:
                waits = self.queue.failed(waiting, call.plan.sent_to, time.monotonic())
            if not waits:
                self._reconciled(waiting.stand_in, None, EXPIRED)
            self._count(call, end)

    def close(self) -> None:
        """Give the stand-ins that wait to the hook. Calls from now on are stand-ins."""
        self.is_closed = True
        with self._lock:
            left = list(self.queue.drain())
        for waiting in left:
            self._reconciled(waiting.stand_in, None, QUEUE_CLOSED)

    def _end_waiting(self, payment_id: str, decision: Decision | None, end: str) -> None:
        with self._lock:
            waiting = self.queue.end(payment_id)
        if waiting is not None:
            self._reconciled(waiting.stand_in, decision, end)

    # Hooks

    def shadowed(self, own: object, call: Call | None, end: Decision | str) -> None:
        """Give both decisions to the hook."""
        decision, cause = (end, "") if isinstance(end, Decision) else (None, end)
        if self._hooks.on_shadow is not None:
            with contextlib.suppress(Exception):
                self._hooks.on_shadow(own, decision, cause)
        if call is not None:
            self._count(call, cause or ANSWERED)
        elif self._hooks.on_call is not None:
            with contextlib.suppress(Exception):
                self._hooks.on_call(SHADOW, cause, 0.0, 0)

    def _reconciled(self, stand_in: Decision, decision: Decision | None, end: str) -> None:
        if self._hooks.on_reconciled is not None:
            with contextlib.suppress(Exception):
                self._hooks.on_reconciled(stand_in, decision, end)

    def _count(self, call: Call, outcome: str) -> None:
        if self._hooks.on_call is not None:
            with contextlib.suppress(Exception):
                self._hooks.on_call(call.operation, outcome, time.monotonic() - call.began_s, call.plan.attempts)


__all__ = ["BROKEN", "BUSY", "CLOSED", "FAILED", "LATE", "REFUSED", "Call", "Core", "Met"]
