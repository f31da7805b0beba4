"""Exchanges the overlay's rows with other hosts, in a thread of its own (scoring/state/overlay_rows.py has the rows).

    host A   table ─ new rows ─► datagrams over UDP ─► every peer
    host B   datagrams ─► checked ─► table

A lost datagram is no loss: the stream brings the same payments within a second. Hosts therefore acknowledge and repeat
nothing, and no host waits for another.

1. The thread sleeps until a datagram comes, or until it is time to look for new rows: every ROUND_S while there were
   some, every IDLE_S otherwise. A look at a table without new rows reads one number.
2. New rows go to every peer, at most ROWS_AT_ONCE a round: bytes are bounded. Rows beyond that are counted as missed.
3. A peer's name may stand for many addresses (a headless service of Kubernetes). Names are looked up every LOOK_UP_S,
   in a thread: rows wait ANSWER_S for a name server that hangs, and then go to the addresses that are known.
4. The thread rests after a batch of datagrams most of which were dropped: a flood takes a few percent of a core.
5. A failure is counted and logged once, and the step is tried again. Neither the mirror nor shipping notices.

Overlays are for catalogues and keys that are the same on all hosts: anything else is dropped and counted by reason.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter

from paywarden.features.profiles.plan import Plan
from paywarden.schemas.addresses import host_and_port
from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.state.overlay import OverlaySettings
from paywarden.scoring.state.overlay_rows import Drop, RowDatagrams, SharedRows

_log = logging.getLogger(__name__)

ROUND_S, IDLE_S = 0.05, 0.25
LOOK_UP_S = 10.0
# A name server that is well answers in milliseconds.
ANSWER_S = 2.0
_RETRY_S = 1.0
# Datagrams of one round, before the host's own rows have their turn.
_RECEIVED_AT_ONCE = 256
# Between two batches of a flood. 256 datagrams take about a millisecond.
_FLOOD_REST_S = 0.02
_BUFFER_BYTES = 1 << 20


class ExchangeMetrics:
    """Counts rows that came and went, and dropped rows and datagrams."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, documentation: str, *labels: str) -> Counter:
            return Counter(f"paywarden_companion_overlay_{name}", documentation, labels, registry=registry)

        self.sent = counter("rows_sent", "Payments answered by this host and sent to other hosts, once each.")
        self.received = counter("rows_received", "Payments answered by other hosts that are pending here.")
        self.missed = counter("rows_missed", "Payments answered by this host and sent to no other host.")
        self.refused = counter("rows_refused", "Payments of other hosts not added: no room, or another time.")
        self.dropped = counter("datagrams_dropped", "Datagrams of other hosts that were dropped, by reason.", "reason")
        self.failures = counter("exchange_failures", "Times the exchange with other hosts failed and began anew.")
        for reason in Drop:
            self.dropped.labels(reason.value)


class OverlayExchange:
    """One host's side of the exchange. `with` runs it in a thread; a test calls `turn` by hand."""

    def __init__(
        self,
        settings: OverlaySettings,
        plan: Plan,
        metrics: ExchangeMetrics,
        *,
        rows: SharedRows | None = None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """Raises Misconfigured when the address cannot be listened at."""
        self._settings, self._metrics, self._now_ms = settings, metrics, now_ms
        self._rows, self._datagrams = rows or SharedRows(settings, plan), RowDatagrams(plan)
        self._socket = _listening(settings.exchange_address)
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self._peers: list[tuple[str, int]] = []
        self._next_look_up = 0.0
        self._look_up: threading.Thread | None = None
        self._missed = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="overlay-exchange", daemon=True)

    def __enter__(self) -> OverlayExchange:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._socket.close()
        self._rows.close()

    def _run(self) -> None:
        wait_s, is_failing = 0.0, False
        while not self._stop.is_set():
            try:
                wait_s = ROUND_S if self.turn(wait_s) else IDLE_S
                is_failing = False
            except Exception as error:  # noqa: BLE001 - not even a bug here may end the companion
                if not is_failing:
                    _log.exception("the exchange of the overlay's rows failed, and is tried again: %s", error)
                is_failing = True
                self._metrics.failures.inc()
                self._stop.wait(_RETRY_S)

    def turn(self, wait_s: float) -> bool:
        """Wait at most `wait_s` for a datagram, take datagrams, and send new rows. Returns whether there were any."""
        if not self._rows.look():
            self._stop.wait(_RETRY_S if wait_s else 0)
            return False
        if select.select([self._socket], [], [], wait_s)[0] and self._receive() > _RECEIVED_AT_ONCE // 2:
            self._stop.wait(_FLOOD_REST_S)
        return self._send()

    def _receive(self) -> int:
        """Take the datagrams of a round. Returns how many were dropped."""
        dropped = 0
        for _ in range(_RECEIVED_AT_ONCE):
            try:
                # One byte more than the largest of ours: a larger one is none of ours, and is not read to its end.
                datagram = self._socket.recv(self._datagrams.bytes_max + 1)
            except BlockingIOError:
                break
            except OSError:
                # A peer's port is closed: the network says so on this socket.
                continue
            rows = self._datagrams.read(datagram)
            if isinstance(rows, Drop):
                dropped += 1
                self._metrics.dropped.labels(rows.value).inc()
                continue
            added, full, untimely = self._rows.add(rows, self._now_ms())
            self._metrics.received.inc(added)
            self._metrics.refused.inc(full + untimely)
        return dropped

    def _send(self) -> bool:
        rows = self._rows.take_new()
        if self._rows.missed > self._missed:
            self._metrics.missed.inc(self._rows.missed - self._missed)
            self._missed = self._rows.missed
        if not len(rows):
            return False
        self._look_peers_up()
        for datagram in self._datagrams.of_rows(rows):
            for peer in self._peers:
                try:
                    self._socket.sendto(datagram, peer)
                except OSError:
                    # A host that is away, or a full buffer: the stream brings these payments, too.
                    continue
        self._metrics.sent.inc(len(rows))
        return True

    def _look_peers_up(self) -> None:
        """Begin to look the names of peers up, if it is time and no earlier look-up hangs."""
        if time.monotonic() < self._next_look_up or (self._look_up is not None and self._look_up.is_alive()):
            return
        self._next_look_up = time.monotonic() + LOOK_UP_S
        self._look_up = threading.Thread(target=self._find_peers, name="overlay-peers", daemon=True)
        self._look_up.start()
        self._look_up.join(ANSWER_S)

    def _find_peers(self) -> None:
        self._peers = _addresses_of(self._settings.peers, self._socket.family)


def _split(text: str) -> tuple[str, int]:
    """Returns host and port of an address of the settings, which have checked it."""
    parts = host_and_port(text, port_min=0)
    assert parts is not None
    return parts


def _listening(address: str) -> socket.socket:
    host, port = _split(address)
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        made = socket.socket(family, kind)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
            made.setblocking(False)
            made.bind(where)
        except OSError:
            made.close()
            raise
    except OSError as error:
        raise Misconfigured(f"[overlay] exchange_address: cannot listen at {address}: {error.strerror}") from error
    return made


def _addresses_of(peers: tuple[str, ...], family: int) -> list[tuple[str, int]]:
    """Returns the addresses of all peers whose names are known now."""
    found: dict[tuple[str, int], None] = {}
    for peer in peers:
        host, port = _split(peer)
        try:
            known = socket.getaddrinfo(host, port, family=family, type=socket.SOCK_DGRAM)
        except (OSError, UnicodeError):
            # The name does not exist, or is not valid. The other peers still get the rows.
            continue
        for _, _, _, _, where in known:
            found[str(where[0]), int(where[1])] = None
    return list(found)
