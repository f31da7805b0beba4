"""A circuit breaker for each node of a cluster: one node that fails does not stop the records of the others.

    a batch fails for records 3 and 7    the nodes that own them get a failure, the others a success
    a whole batch or a status fails      CLUSTER gets it, and concerns every call
    a page of a scan fails               SCANS gets it; a scan concerns every node

Breakers exist only while something fails: as long as nothing does, a call costs one test of an empty dictionary. Which
node owns a record comes from the partition map, as it was before the failure: nobody else knows about a dead node.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Iterable, Sequence
from threading import Lock

import aerospike
import numpy as np
from aerospike import exception as client_errors

from paywarden.features.stores.aerospike.client import AerospikeSettings
from paywarden.features.stores.circuit_breaker import BreakerState, CircuitBreaker

CLUSTER = ""
SCANS = "scans"
_PARTITION_COUNT = 4096
_MAP_BYTES = _PARTITION_COUNT // 8

# A record's place: (namespace, set, key).
Place = tuple[str, str, bytearray]


class PartitionMap:
    """The master node of each partition. Safe to use from several threads."""

    def __init__(self, client: aerospike.Client, settings: AerospikeSettings) -> None:
        self._client, self._settings = client, settings
        self._node_of = [CLUSTER] * _PARTITION_COUNT
        self._refreshed_ms: int | None = None

    def refresh(self, now_ms: int) -> None:
        """Ask every node for its partitions, unless that was done within `tend_interval_ms`. Raises nothing.

        Partitions that no node claims keep their last owner.
        """
        if self._refreshed_ms is not None and now_ms < self._refreshed_ms + self._settings.tend_interval_ms:
            return
        self._refreshed_ms = now_ms
        node_of = self._node_of.copy()
        try:
            names = [node["node_name"] for node in self._client.get_node_names()]
        except client_errors.AerospikeError:
            return
        for name in names:
            for partition in self._masters(name):
                node_of[partition] = name
        self._node_of = node_of

    def node_of(self, place: Place) -> str:
        """Returns the master's name; CLUSTER if it is not known."""
        digest = aerospike.calc_digest(*place)
        return self._node_of[int.from_bytes(digest[:2], "little") % _PARTITION_COUNT]

    def _masters(self, name: str) -> Iterable[int]:
        """Returns the partitions that a node is the master of, none if it does not answer."""
        try:
            answer = self._client.info_single_node("replicas", name, {"timeout": self._settings.info_timeout_ms})
        except client_errors.AerospikeError:
            return ()
        for one in answer.partition("\t")[2].strip().split(";"):
            namespace, _, columns = one.partition(":")
            parts = columns.split(",")
            # regime, number of copies, then a bitmap for each copy; the first is the masters'.
            if namespace == self._settings.namespace and len(parts) > 2:
                return _bits(parts[2])
        return ()


def _bits(encoded: str) -> list[int]:
    """Returns the numbers of the bits that are set, the first in the highest bit of its byte; none if damaged."""
    try:
        bitmap = base64.b64decode(encoded, validate=True)
    except ValueError:
        return []
    if len(bitmap) != _MAP_BYTES:
        return []
    return np.flatnonzero(np.unpackbits(np.frombuffer(bitmap, dtype=np.uint8))).tolist()


class Admission:
    """The result of `admit`: the tickets of the breakers that a call concerns, or the reason not to make it."""

    def __init__(self, tickets: dict[str, tuple[CircuitBreaker, int]], refused: str | None = None) -> None:
        self.tickets = tickets
        self.refused = refused


class NodeBreakers:
    """The breakers of a store. Safe to use from several threads. Times are ms of a clock that never goes back."""

    def __init__(
        self,
        *,
        failure_count_max: int,
        cooldown_ms: int,
        node_of: Callable[[Place], str],
        on_change: Callable[[BreakerState], object],
    ) -> None:
        self._failure_count_max, self._cooldown_ms = failure_count_max, cooldown_ms
        self._node_of = node_of
        self._on_change = on_change
        self._breakers: dict[str, CircuitBreaker] = {}
        self._last_failures: dict[str, str] = {}
        self._lock = Lock()

    @property
    def has_open_node(self) -> bool:
        """Whether the breaker of some node is open, so that its records may be refused."""
        return bool(self._breakers) and any(
            breaker.state is BreakerState.OPEN
            for name, breaker in list(self._breakers.items())
            if name not in (CLUSTER, SCANS)
        )

    def admit(self, places: Sequence[Place], now_ms: int, *, is_scan: bool = False) -> Admission:
        """Returns the admission of a call for these records."""
        if not self._breakers:
            return Admission({})
        concerned = self._concerned(places, is_scan=is_scan)
        tickets: dict[str, tuple[CircuitBreaker, int]] = {}
        for name, breaker in concerned.items():
            ticket = breaker.admit(now_ms)
            if ticket is None:
                self.abandoned(Admission(tickets))
                return Admission({}, refused=name)
            tickets[name] = breaker, ticket
        return Admission(tickets)

    def refused(self, places: Sequence[Place], now_ms: int) -> set[int]:
        """Returns the positions of records whose node should not be asked now."""
        with self._lock:
            closed_to = {name for name, breaker in self._breakers.items() if breaker.wait_ms(now_ms)}
        return {position for position, place in enumerate(places) if self._node_of(place) in closed_to}

    def ended(self, admission: Admission, blamed: Collection[str], what: str, now_ms: int) -> None:
        """Report that a call ended: with a failure of the `blamed` nodes, the others answered.

        A failure of CLUSTER or SCANS says nothing about any node.
        """
        says_nothing = CLUSTER in blamed or SCANS in blamed
        for name, (breaker, ticket) in admission.tickets.items():
            if name not in blamed:
                (breaker.abandoned if says_nothing else breaker.succeeded)(ticket)
        for name in blamed:
            breaker = self._breaker(name)
            taken = admission.tickets.get(name)
            # A call that began before the breaker existed has no ticket of it.
            own = taken[1] if taken is not None and taken[0] is breaker else breaker.admit(now_ms)
            if own is not None:
                self._last_failures[name] = what
                breaker.failed(own, now_ms)
        if self._breakers:
            self._forget_calm()

    def abandoned(self, admission: Admission) -> None:
        """Report that a call ended in a way that says nothing. After `ended` it has no effect."""
        for breaker, ticket in admission.tickets.values():
            breaker.abandoned(ticket)

    def blamed_by(self, places: Sequence[Place], failed: Collection[int]) -> set[str]:
        """Returns the nodes of the records at these positions; CLUSTER if there is none."""
        return {self._node_of(places[position]) for position in failed} or {CLUSTER}

    def refusal_line(self, now_ms: int, name: str | None = None) -> str:
        """Returns in one line why calls that concern `name` are not made; without it, of any open breaker, or empty."""
        with self._lock:
            breakers = dict(self._breakers)
        if name is None:
            name = next((one for one, breaker in breakers.items() if breaker.wait_ms(now_ms)), None)
        if name is None:
            return ""
        whose = f" (node {name})" if name not in (CLUSTER, SCANS) else ""
        last = self._last_failures.get(name, "a failure")
        wait_ms = breakers[name].wait_ms(now_ms) if name in breakers else 0
        if wait_ms:
            return f"the circuit breaker is open{whose} after {last}, the next call is tried in {wait_ms} ms"
        return f"the circuit breaker is half-open{whose} after {last}, and another call is being tried"

    def _concerned(self, places: Sequence[Place], *, is_scan: bool) -> dict[str, CircuitBreaker]:
        with self._lock:
            breakers = dict(self._breakers)
        if is_scan:
            return breakers
        names = {CLUSTER, *map(self._node_of, places)} if breakers.keys() - {CLUSTER, SCANS} else {CLUSTER}
        return {name: breaker for name, breaker in breakers.items() if name in names}

    def _breaker(self, name: str) -> CircuitBreaker:
        with self._lock:
            if name not in self._breakers:
                self._breakers[name] = CircuitBreaker(
                    failure_count_max=self._failure_count_max,
                    cooldown_ms=self._cooldown_ms,
                    on_change=lambda _: self._on_change(self._worst()),
                )
            return self._breakers[name]

    def _forget_calm(self) -> None:
        """Remove the breakers that are closed and have no failure."""
        with self._lock:
            for name in [name for name, breaker in self._breakers.items() if breaker.is_calm]:
                del self._breakers[name]
                self._last_failures.pop(name, None)

    def _worst(self) -> BreakerState:
        # Called under the lock of one breaker, which `state` does not need.
        states = {breaker.state for breaker in list(self._breakers.values())}
        for state in (BreakerState.OPEN, BreakerState.HALF_OPEN):
            if state in states:
                return state
        return BreakerState.CLOSED
