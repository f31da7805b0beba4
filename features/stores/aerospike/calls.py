"""Wraps each call of the Aerospike store to its cluster: circuit breaker, timing, counting, and errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aerospike import exception as client_errors

from paywarden.features.stores.aerospike.client import (
    BUSY,
    AerospikeSettings,
    CallFailed,
    describe,
    error_of,
    reason_of,
)
from paywarden.features.stores.aerospike.metrics import BREAKER_OPEN, MISCONFIGURED, AerospikeMetrics
from paywarden.features.stores.circuit_breaker import CircuitBreaker
from paywarden.schemas.errors import Misconfigured, PaywardenError, StoreUnavailable


class Calls:
    """Wraps every call to the cluster. Safe to use from several threads.

    `clock` returns seconds that never go back.
    """

    def __init__(self, settings: AerospikeSettings, metrics: AerospikeMetrics, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._last_failure = ""
        self._breaker = CircuitBreaker(
            failure_count_max=settings.breaker_failure_count_max,
            cooldown_ms=settings.breaker_cooldown_ms,
            on_change=metrics.breaker_is,
        )

    @contextmanager
    def call(self, operation: str) -> Iterator[None]:
        """Wrap one call; `operation` is one of OPERATIONS.

        Errors of the client, and CallFailed, become StoreUnavailable or Misconfigured. While the breaker is open, the
        block does not run, and this raises StoreUnavailable at once.
        """
        started = self._clock()
        ticket = self._breaker.admit(_ms(started))
        if ticket is None:
            self._metrics.call_failed(operation, BREAKER_OPEN)
            raise StoreUnavailable(f"{describe(self._settings)}: {operation} not tried: {self._breaker_line()}")
        try:
            yield
        except client_errors.AerospikeError as error:
            raise self._failed(operation, ticket, error.code, type(error).__name__) from error
        except CallFailed as failed:
            raise self._failed(operation, ticket, failed.code, failed.what) from None
        else:
            self._breaker.succeeded(ticket)
        finally:
            self._metrics.call_ended(operation, self._clock() - started)
            # For a block that ended in any other way. After `succeeded` or `failed` this call has no effect.
            self._breaker.abandoned(ticket)

    def breaker_reason(self) -> str:
        """Returns in one line why no call would be tried now; empty if one would."""
        return self._breaker_line() if self._breaker.wait_ms(_ms(self._clock())) else ""

    def _failed(self, operation: str, ticket: int, code: int | None, what: str) -> PaywardenError:
        error = error_of(self._settings, code, operation, what)
        reason = MISCONFIGURED if isinstance(error, Misconfigured) else reason_of(code)
        self._metrics.call_failed(operation, reason)
        if reason in (MISCONFIGURED, BUSY):
            # The cluster has answered, so the next call may succeed.
            self._breaker.succeeded(ticket)
        else:
            self._last_failure = f"{operation} failed ({what}, code {code})"
            self._breaker.failed(ticket, _ms(self._clock()))
        return error

    def _breaker_line(self) -> str:
        wait_ms = self._breaker.wait_ms(_ms(self._clock()))
        if wait_ms:
            return f"the circuit breaker is open after {self._last_failure}, the next call is tried in {wait_ms} ms"
        return f"the circuit breaker is half-open after {self._last_failure}, and another call is being tried"


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
