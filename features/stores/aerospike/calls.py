"""Wraps each call of the Aerospike store to its cluster: circuit breaker, timing, counting, and errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from aerospike import exception as client_errors

from paywarden.features.stores.aerospike.breakers import (
    CLUSTER,
    SCANS,
    Admission,
    NodeBreakers,
    PartitionMap,
    Place,
)
from paywarden.features.stores.aerospike.client import (
    BUSY,
    FORBIDDEN,
    FORBIDDEN_REASON,
    AerospikeSettings,
    CallFailed,
    describe,
    error_of,
    reason_of,
)
from paywarden.features.stores.aerospike.metrics import BREAKER_OPEN, MISCONFIGURED, AerospikeMetrics
from paywarden.features.stores.aerospike.servers import Forbidden
from paywarden.schemas.errors import Misconfigured, PaywardenError, StoreUnavailable


class Calls:
    """Wraps every call to the cluster. Safe to use from several threads.

    `clock` returns seconds that never go back. `owner` is the store, for the metrics.
    """

    def __init__(
        self,
        settings: AerospikeSettings,
        metrics: AerospikeMetrics,
        clock: Callable[[], float],
        partitions: PartitionMap,
        owner: object,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._partitions = partitions
        self._breakers = NodeBreakers(
            failure_count_max=settings.breaker_failure_count_max,
            cooldown_ms=settings.breaker_cooldown_ms,
            node_of=partitions.node_of,
            on_change=lambda state: metrics.breaker_is(state, owner),
        )

    @contextmanager
    def call(
        self,
        operation: str,
        places: Sequence[Place] = (),
        *,
        why_forbidden: Callable[[], Forbidden] | None = None,
    ) -> Iterator[None]:
        """Wrap one call; `operation` is one of OPERATIONS, `places` are its records, none for a scan.

        Errors of the client, and CallFailed, become StoreUnavailable or Misconfigured. While a breaker that the call
        concerns is open, the block does not run, and this raises StoreUnavailable at once. `why_forbidden` is asked
        if the server forbids the call.
        """
        started = self._clock()
        admission = self._breakers.admit(places, _ms(started), is_scan=operation == "scan")
        if admission.refused is not None:
            raise self.not_tried(operation, admission.refused)
        try:
            yield
        except client_errors.AerospikeError as error:
            blamed = {SCANS if operation == "scan" else CLUSTER}
            why = _ask(error.code, why_forbidden)
            raise self._failed(operation, admission, blamed, error.code, type(error).__name__, why) from error
        except CallFailed as failed:
            blamed = self._breakers.blamed_by(places, failed.positions)
            why = _ask(failed.code, why_forbidden)
            raise self._failed(operation, admission, blamed, failed.code, failed.what, why) from None
        else:
            self._breakers.ended(admission, (), "", _ms(started))
        finally:
            self._metrics.call_ended(operation, self._clock() - started)
            # For a block that ended in any other way.
            self._breakers.abandoned(admission)

    @property
    def has_open_node(self) -> bool:
        """Whether some node fails now, so that its records may be held back."""
        return self._breakers.has_open_node

    def held_back(self, places: Sequence[Place]) -> set[int]:
        """Returns the positions of records whose node fails now, so that the others can go first. Usually none."""
        return self._breakers.refused(places, _ms(self._clock()))

    def not_tried(self, operation: str, whose: str | None = None) -> StoreUnavailable:
        """Returns the error of a call that an open breaker refused, and counts it."""
        self._metrics.call_failed(operation, BREAKER_OPEN)
        line = self._breakers.refusal_line(_ms(self._clock()), whose)
        return StoreUnavailable(f"{describe(self._settings)}: {operation} not tried: {line}")

    def breaker_reason(self) -> str:
        """Returns in one line why some call would not be tried now; empty if every call would."""
        return self._breakers.refusal_line(_ms(self._clock()))

    def _failed(
        self,
        operation: str,
        admission: Admission,
        blamed: set[str],
        code: int | None,
        what: str,
        why: Forbidden | None,
    ) -> PaywardenError:
        error = error_of(self._settings, code, operation, what)
        if why is not None:
            message = f"{describe(self._settings)}: {operation} is forbidden: {why.why} ({what}, code {code})"
            error = Misconfigured(message) if why.is_lasting else StoreUnavailable(message)
        reason = MISCONFIGURED if isinstance(error, Misconfigured) else reason_of(code)
        self._metrics.call_failed(operation, reason)
        now_ms = _ms(self._clock())
        if reason in (MISCONFIGURED, BUSY, FORBIDDEN_REASON):
            # The cluster has answered, so the next call may succeed.
            blamed = set()
        self._breakers.ended(admission, blamed, f"{operation} failed ({what}, code {code})", now_ms)
        if blamed:
            self._partitions.refresh(now_ms)
        return error


def _ask(code: int | None, why_forbidden: Callable[[], Forbidden] | None) -> Forbidden | None:
    return why_forbidden() if code == FORBIDDEN and why_forbidden is not None else None


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
