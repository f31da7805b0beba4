"""Keeps a machine's copy of the log equal to the topic's, and a scoring host's deployment file as the log says.

Every `sync_s` seconds, in a thread of the companion, or of a console, which has no deployment file:

1. `sync`: entries of other hosts come into the copy, and rollbacks from a time without Kafka go out.
2. `deploy`: the deployment file of this host is made equal to the copy. That needs no Kafka.
3. If one of them raises, the follower says so once, counts it, and does the other all the same. It closes the topic and
   opens it again in the next round. A file of people that has changed is read again in the same way.
4. A fork is such a failure: nothing is changed until somebody has looked.

After a failure the workers go on with their present releases. It does not end the companion and does not make it
unready. The pages of a console say that their copy may lack entries.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

from prometheus_client import CollectorRegistry, Counter, Gauge

from paywarden.schemas.errors import PaywardenError
from paywarden.schemas.rare_line import RareLine
from paywarden.streams.registry.shared_log import SharedLog

_log = logging.getLogger(__name__)

# A stop of the companion waits this long for a round; Kafka may not answer.
_JOIN_TIMEOUT_S = 2.0
# The message for each trouble, and for its end.
_COPY = "this host's log is not equal to the topic's", "this host's log is equal to the topic's again"
_FILE = "this host's deployment file is not what its log says", "this host's deployment file is what its log says again"


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
            "Times this host's log of the model registry, or its deployment file, could not be brought up to date.",
            registry=registry,
        )


class LogFollower:
    """Follows the topic from `__enter__` to `__exit__`, in a thread of its own, or while `run` runs.

    `open_log` opens the shared log; None where the log is on this host alone. `stamp` returns something that changes
    when the log must be opened again. `deploy` makes this host serve the releases of its copy; None where nothing is
    served. `metrics` may be None for a process that has no page of metrics.
    """

    def __init__(
        self,
        open_log: Callable[[], AbstractContextManager[SharedLog]] | None,
        *,
        deploy: Callable[[], object] | None,
        stamp: Callable[[], object],
        every_s: float,
        metrics: FollowerMetrics | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_log, self._stamp, self._deploy = open_log, stamp, deploy
        self._every_s, self._metrics = every_s, metrics
        self._opened: ExitStack | None = None
        self._log: SharedLog | None = None
        self._stamped: object = None
        # The last logged trouble of the copy, and of the deployment file.
        self._told = {_COPY: "", _FILE: ""}
        # Everybody who may write to the topic can send records that count for nothing.
        self._refused, self._clock = RareLine(), clock
        # When the copy was last equal to the topic's. Before that: the start.
        self._synced_s, self._has_synced = time.time(), open_log is None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.run, args=(self._stop,), name="model-registry", daemon=True)

    def __enter__(self) -> LogFollower:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(_JOIN_TIMEOUT_S)

    def step(self) -> None:
        """Run one round. Raises nothing."""
        # An entry that a command has written on this host does not wait for Kafka.
        self._update()
        if self._open_log is not None:
            self._sync(self._open_log)
            self._update()

    def behind(self) -> tuple[float, str] | None:
        """Returns since when (epoch seconds) the copy may lack entries of the topic, and why; None if it lacks none."""
        if self._told[_COPY]:
            return self._synced_s, self._told[_COPY]
        return None if self._has_synced else (self._synced_s, "it is being read")

    def run(self, stop: threading.Event) -> None:
        """Run a round every `every_s` seconds until `stop` is set, and close the topic. Raises nothing."""
        while not stop.is_set():
            self.step()
            stop.wait(self._every_s)
        self.close()

    def _update(self) -> None:
        if self._deploy is None:
            return
        try:
            self._deploy()
        except Exception as error:  # noqa: BLE001 - a failure here must not end the companion
            self._note(_FILE, error)
            return
        self._mended(_FILE)

    def _sync(self, open_log: Callable[[], AbstractContextManager[SharedLog]]) -> None:
        try:
            stamp = self._stamp()
            if stamp != self._stamped:
                self.close()
            if self._log is None:
                opened = ExitStack()
                self._log = opened.enter_context(open_log())
                self._opened, self._stamped = opened, stamp
            done = self._log.sync()
        except Exception as error:  # noqa: BLE001 - a failure here must not end the companion
            self._note(_COPY, error)
            self.close()
            return
        if count := self._refused.due(self._clock(), done.refused_now):
            reason = done.refused[-1].reason
            _log.warning("model registry: %d more records of the topic count for nothing, the last: %s", count, reason)
        self._mended(_COPY)
        self._synced_s, self._has_synced = time.time(), True
        if self._metrics is not None:
            self._metrics.synced.set(self._synced_s)

    def close(self) -> None:
        """Close the topic; the next round opens it again."""
        opened, self._opened, self._log = self._opened, None, None
        if opened is not None:
            opened.close()

    def _note(self, part: tuple[str, str], error: Exception) -> None:
        if self._metrics is not None:
            self._metrics.failures.inc()
        told = str(error) or type(error).__name__
        if told != self._told[part]:
            # Anything else than a PaywardenError is a bug.
            bug = None if isinstance(error, PaywardenError) else error
            _log.error("model registry: %s: %s", part[0], told, exc_info=bug)
        self._told[part] = told

    def _mended(self, part: tuple[str, str]) -> None:
        if self._told[part]:
            _log.info("model registry: %s", part[1])
        self._told[part] = ""
