"""Ships decisions in a thread of its own, so that shipping and the mirror never wait for each other.

    main thread        changelog ─► mirror            (streams/companion/companion.py)
    shipping thread    outboxes ─► topic decisions    (streams/companion/shipping.py)

1. In every round let the shipper advance. If it had nothing to send, wait a moment; if no transaction is due yet, wait
   until then.
2. Once a second look for new outboxes and set the metrics.
3. If anything raises, the process ends: the outboxes keep the decisions, and the next companion goes on. A broker that
   is away raises nothing (streams/companion/shipping.py).
4. When the process stops, ship the decisions that are left, and end.
"""

from __future__ import annotations

import threading
import time

from paywarden.streams.companion.companion_health import CompanionHealth
from paywarden.streams.companion.companion_metrics import CompanionMetrics
from paywarden.streams.companion.shipping import Shipper

# The wait of a round without new decisions. A lone decision waits for half of it, and each look reads directories.
_IDLE_S = 0.25
_LOOK_AROUND_EVERY_S = 1.0


class ShippingThread:
    """Runs a shipper beside the thread that made it."""

    def __init__(self, shipper: Shipper, metrics: CompanionMetrics, health: CompanionHealth) -> None:
        self._shipper, self._metrics, self._health = shipper, metrics, health
        self._stop = threading.Event()
        self._drain_until = 0.0
        self._thread = threading.Thread(target=self._run, name="shipping", daemon=True)
        self.error: Exception | None = None
        """Why shipping has failed; None if it has not."""
        self._ended = threading.Event()

    def start(self, ended: threading.Event) -> None:
        """Start the thread. It sets `ended` if shipping fails."""
        self._ended = ended
        self._thread.start()

    def stop(self, drain_s: float) -> None:
        """Ship the decisions that are left, for at most `drain_s`, and end the thread."""
        # The round under way may wait for the broker, and its time counts.
        self._drain_until = time.monotonic() + drain_s
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def shipped(self) -> int:
        """Decisions shipped since the start."""
        return self._shipper.shipped

    def _run(self) -> None:
        try:
            self._work()
            self._shipper.find_workers()
            self._shipper.drain(self._drain_until - time.monotonic())
        except Exception as error:  # noqa: BLE001 - the caller of `stop` raises it
            self.error = error
            self._ended.set()

    def _work(self) -> None:
        """Run rounds until the stop."""
        next_look = time.monotonic()
        while not self._stop.is_set():
            if time.monotonic() >= next_look:
                self._look_around()
                next_look = time.monotonic() + _LOOK_AROUND_EVERY_S
            if self._shipper.advance() == 0:
                wait_s = self._shipper.due_in_s() or _IDLE_S
                self._stop.wait(min(wait_s, max(0.0, next_look - time.monotonic())))
            self._health.note_shipping_round()

    def _look_around(self) -> None:
        self._shipper.find_workers()
        self._metrics.shipping(
            shipped=self._shipper.shipped,
            under_way=self._shipper.under_way,
            waiting_bytes=self._shipper.waiting_bytes(),
            set_aside=self._shipper.set_aside(),
            set_aside_counts=self._shipper.set_aside_counts(),
        )
