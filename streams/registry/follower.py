"""Keeps a scoring host's copy of the log equal to the topic's, in a thread of the companion.

1. Every `[models] sync_s` seconds, `sync`: entries of other hosts come into the copy, and a rollback from a time
without
   Kafka goes out.
2. If anything raises, say so once, count it, close the topic, and open it anew in the next round. A file of people that
   has changed is read again in the same way.
3. A fork is such a failure: nothing is changed until somebody has looked.

The copy is all that the workers of the host read. A failure here keeps them with what they know; it does not end the
companion and does not make it unready.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

from prometheus_client import CollectorRegistry, Counter, Gauge

from paywarden.schemas.errors import PaywardenError
from paywarden.streams.registry.shared_log import SharedLog

_log = logging.getLogger(__name__)

# A stop of the companion waits this long for a round; Kafka may not answer.
_JOIN_TIMEOUT_S = 2.0


class FollowerMetrics:
    """The metrics of a follower."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.synced = Gauge(
            "paywarden_companion_model_registry_synced_timestamp_seconds",
            "When this host's log of the model registry was last equal to the topic's.",
            registry=registry,
        )
        self.failures = Counter(
            "paywarden_companion_model_registry_failures",
            "Times this host's log of the model registry could not be made equal to the topic's.",
            registry=registry,
        )


class LogFollower:
    """Follows the topic from `__enter__` to `__exit__`.

    `open_log` opens the shared log. `stamp` returns something that changes when the log must be opened anew.
    """

    def __init__(
        self,
        open_log: Callable[[], AbstractContextManager[SharedLog]],
        *,
        stamp: Callable[[], object],
        every_s: float,
        metrics: FollowerMetrics,
    ) -> None:
        self._open_log, self._stamp = open_log, stamp
        self._every_s, self._metrics = every_s, metrics
        self._opened: ExitStack | None = None
        self._log: SharedLog | None = None
        self._stamped: object = None
        self._told = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model-registry", daemon=True)

    def __enter__(self) -> LogFollower:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(_JOIN_TIMEOUT_S)

    def step(self) -> None:
        """Run one round. Raises nothing."""
        try:
            stamp = self._stamp()
            if stamp != self._stamped:
                self.close()
            if self._log is None:
                opened = ExitStack()
                self._log = opened.enter_context(self._open_log())
                self._opened, self._stamped = opened, stamp
            done = self._log.sync()
        except Exception as error:  # noqa: BLE001 - a failure here must not end the companion
            self._note(error)
            self.close()
            return
        for refused in done.refused[len(done.refused) - done.refused_now :]:
            _log.warning("model registry: a record of the topic counts for nothing: %s", refused.reason)
        if self._told:
            _log.info("model registry: this host's log is equal to the topic's again")
        self._told = ""
        self._metrics.synced.set(time.time())

    def close(self) -> None:
        """Close the topic; the next round opens it anew."""
        opened, self._opened, self._log = self._opened, None, None
        if opened is not None:
            opened.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.step()
            self._stop.wait(self._every_s)
        self.close()

    def _note(self, error: Exception) -> None:
        self._metrics.failures.inc()
        if not isinstance(error, PaywardenError):
            _log.error("model registry: a bug ended a round of the follower", exc_info=error)
        elif str(error) != self._told:
            _log.error("model registry: this host's log is not equal to the topic's: %s", error)
        self._told = str(error)
