"""The client for threads."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from .answers import BUSY, CLOSED, FAILED, LATE, Decision
from .attempts import BROKEN, REFUSED
from .calls import SHADOW, Call, Core, Met
from .connections import DeadlinePassed, HostConnections, NoConnection, NoneFree, literal, resolve
from .errors import PaywardenError, WrongRequest
from .http1 import AnswerError
from .payments import Payment
from .reconciling import APART_S, DEADLINE_MS
from .settings import ClientSettings, Hooks

Own = TypeVar("Own")
# Shadow calls that are asked at a time; further ones wait in their queue.
_SHADOW_THREADS = 8


class Client:
    """Asks the service for decisions. Any number of threads may call it.

        with Client(ClientSettings("https://paywarden:8443", token=key, route_key=route_key)) as client:
            decision = client.score(payment)

    It starts threads of its own: make it after a fork. Raises WrongSettings.
    """

    def __init__(self, settings: ClientSettings, hooks: Hooks | None = None) -> None:
        tls = settings.tls()
        self._core = Core(settings, hooks or Hooks())
        self._hosts = [HostConnections(target, settings, tls) for target in self._core.targets]
        self._wakes_resolver, self._wakes_reconciler = threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []
        self._start_lock = threading.Lock()
        self._is_reconciling = False
        self._shadow_lock = threading.Lock()
        self._shadow_threads: ThreadPoolExecutor | None = None
        self._shadows = 0
        named = [host for host in self._hosts if not literal(host.target)]
        for host in self._hosts:
            host.set_addresses(literal(host.target))
        if named:
            self._start(self._resolve, named)

    def score(self, payment: Payment, *, deadline_ms: float | None = None, traceparent: str | None = None) -> Decision:
        """Returns the service's decision, or a stand-in, by the deadline. Raises WrongRequest."""
        call = self._core.begin(payment, deadline_ms, traceparent)
        try:
            end = self._end_of(call)
        except WrongRequest:
            self._core.refused(call)
            raise
        decision = self._core.finish(call, end)
        if decision.stand_in and not self._is_reconciling:
            self._start_reconciling()
        return decision

    def shadow(self, payment: Payment, own: Own, *, traceparent: str | None = None) -> Own:
        """Returns `own` at once, and asks the service in the background: `on_shadow` gets both. Never raises."""
        with self._shadow_lock:
            threads = self._shadow_threads
            if threads is None and not self._core.is_closed:
                threads = self._shadow_threads = ThreadPoolExecutor(_SHADOW_THREADS, "paywarden-shadow")
            has_room = threads is not None and self._shadows < self._core.settings.shadow_max
            self._shadows += has_room
        if not has_room:
            self._core.shadowed(own, None, CLOSED if self._core.is_closed else BUSY)
            return own
        assert threads is not None
        deadline_s = time.monotonic() + self._core.settings.deadline_ms / 1000.0
        try:
            threads.submit(self._shadow, payment, own, traceparent, deadline_s)
        except RuntimeError:
            # It was closed in this moment.
            self._core.shadowed(own, None, CLOSED)
        return own

    def waiting_count(self) -> int:
        """Returns how many stand-ins wait to be asked about again."""
        return len(self._core.queue)

    def close(self) -> None:
        """Close the connections; `on_reconciled` gets the stand-ins that wait. Calls from now on are stand-ins."""
        self._core.close()
        self._wakes_resolver.set()
        self._wakes_reconciler.set()
        with self._shadow_lock:
            threads, self._shadow_threads = self._shadow_threads, None
        if threads is not None:
            threads.shutdown()
        for host in self._hosts:
            host.close()
        for thread in self._threads:
            # A name may take the system's resolver long: that thread is a daemon.
            thread.join(1.0)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # A call

    def _end_of(self, call: Call) -> Decision | str:
        while True:
            end = self._core.after(call, self._attempt(call))
            if not isinstance(end, float):
                return end
            if end:
                time.sleep(end)

    def _attempt(self, call: Call) -> Met:
        if self._core.is_closed:
            return CLOSED
        plan = call.plan
        host = self._hosts[plan.host]
        try:
            connection = host.take(call.deadline_s, fresh=plan.attempts > 1)
        except NoConnection:
            self._core.avoid(plan.host)
            self._wakes_resolver.set()
            return REFUSED
        except NoneFree:
            return BUSY
        except DeadlinePassed:
            return LATE
        try:
            answer = connection.exchange(self._core.request(call), call.deadline_s)
        except DeadlinePassed:
            host.drop(connection)
            return LATE
        except OSError:
            host.drop(connection)
            return BROKEN
        except (AnswerError, PaywardenError):
            host.drop(connection)
            return FAILED
        except BaseException:
            host.drop(connection)
            raise
        if answer.says_close:
            self._core.avoid(plan.host)
        if answer.keeps:
            host.give_back(connection)
        else:
            host.drop(connection)
        return answer.status, answer.body

    def _shadow(self, payment: Payment, own: object, traceparent: str | None, deadline_s: float) -> None:
        call: Call | None = None
        end: Decision | str
        try:
            call = self._core.begin(payment, None, traceparent, SHADOW)
            call.deadline_s = deadline_s
            end = self._end_of(call)
        except WrongRequest:
            end = "refused"
        except Exception:  # noqa: BLE001 - shadow mode changes nothing for the caller
            end = FAILED
        finally:
            with self._shadow_lock:
                self._shadows -= 1
        self._core.shadowed(own, call, end)

    # In the background

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, name="paywarden-client", daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _start_reconciling(self) -> None:
        with self._start_lock:
            if self._is_reconciling or self._core.is_closed or not len(self._core.queue):
                return
            self._is_reconciling = True
            self._start(self._reconcile)

    def _reconcile(self) -> None:
        core = self._core
        while not core.is_closed:
            waiting = core.due()
            if waiting is None:
                due_s = core.next_due_s()
                # A stand-in that comes meanwhile is due in a second at the earliest.
                pause_s = 1.0 if due_s is None else min(max(due_s - time.monotonic(), 0.0), 1.0)
                self._wakes_reconciler.wait(pause_s)
                continue
            try:
                call = core.begin_again(waiting, DEADLINE_MS)
                end: Decision | str | WrongRequest = self._end_of(call)
            except WrongRequest as error:
                end = error
            core.reconciled(waiting, call, end)
            self._wakes_reconciler.wait(APART_S)

    def _resolve(self, hosts: list[HostConnections]) -> None:
        while not self._core.is_closed:
            self._wakes_resolver.clear()
            for host in hosts:
                host.set_addresses(resolve(host.target))
            # At most ten times a second, however many connections fail.
            time.sleep(0.1)
            if not self._core.is_closed:
                self._wakes_resolver.wait(self._core.settings.resolve_s)
