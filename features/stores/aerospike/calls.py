"""Wraps each call of the Aerospike store to its cluster: timing, counting, and errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aerospike import exception as client_errors

from paywarden.features.stores.aerospike.client import (
    FORBIDDEN,
    AerospikeSettings,
    CallFailed,
    describe,
    error_of,
    reason_of,
)
from paywarden.features.stores.aerospike.metrics import MISCONFIGURED, AerospikeMetrics
from paywarden.features.stores.aerospike.servers import Forbidden
from paywarden.schemas.errors import Misconfigured, PaywardenError, StoreUnavailable


class Calls:
    """Wraps every call to the cluster. Safe to use from several threads. `clock` returns seconds."""

    def __init__(self, settings: AerospikeSettings, metrics: AerospikeMetrics, clock: Callable[[], float]) -> None:
        self._settings, self._metrics, self._clock = settings, metrics, clock

    @contextmanager
    def call(self, operation: str, *, why_forbidden: Callable[[], Forbidden] | None = None) -> Iterator[None]:
        """Wrap one call; `operation` is one of OPERATIONS.

        Errors of the client, and CallFailed, become StoreUnavailable or Misconfigured. `why_forbidden` is asked if the
        server forbids the call.
        """
        started = self._clock()
        try:
            yield
        except client_errors.AerospikeError as error:
            raise self._failed(operation, error.code, type(error).__name__, why_forbidden) from error
        except CallFailed as failed:
            raise self._failed(operation, failed.code, failed.what, why_forbidden) from None
        finally:
            self._metrics.call_ended(operation, self._clock() - started)

    def _failed(
        self, operation: str, code: int | None, what: str, why_forbidden: Callable[[], Forbidden] | None
    ) -> PaywardenError:
        error = error_of(self._settings, code, operation, what)
        if code == FORBIDDEN and why_forbidden is not None:
            why = why_forbidden()
            message = f"{describe(self._settings)}: {operation} is forbidden: {why.why} ({what}, code {code})"
            error = Misconfigured(message) if why.is_lasting else StoreUnavailable(message)
        self._metrics.call_failed(operation, MISCONFIGURED if isinstance(error, Misconfigured) else reason_of(code))
        return error
