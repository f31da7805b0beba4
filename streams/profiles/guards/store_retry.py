"""A store that is down or in conflict: the worker reads nothing, stays in its group and tries again (back-pressure)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Event
from typing import TypeVar

from paywarden.features.stores.base import ProfileStore, StoreConflict
from paywarden.schemas.errors import StoreUnavailable
from paywarden.streams.kafka.group_consumer import BatchConsumer
from paywarden.streams.profiles.profile_metrics import StreamMetrics

_log = logging.getLogger(__name__)
_Result = TypeVar("_Result")

_RETRY_MOST_S = 5.0
_ASK_STORE_EVERY_S = 1.0
# A node that restarts is away for longer.
_LOOK_AT_STORE_EVERY_S = 2.0
# A stop is seen after at most this long.
_LOOK_S = 0.1


class Abandoned(Exception):  # no error: it ends a batch that this worker does not own any more
    """Another worker got a partition of the batch, or the worker must stop."""


class StoreRetry:
    """Tries refused batches again, and knows why the store refuses them. Its `trouble` any thread may read."""

    def __init__(
        self, store: ProfileStore, metrics: StreamMetrics, *, first_pause_s: float, on_try: Callable[[], None]
    ) -> None:
        """Each further pause is twice as long as `first_pause_s`, up to 5 s. `on_try` is called before each try."""
        self._store, self._metrics = store, metrics
        self._first_pause_s, self._on_try = first_pause_s, on_try
        self.trouble = ""
        """Why the store does not take batches; empty if it does."""
        self.ask_at = 0.0
        """When the store may be asked next, of the monotonic clock."""
        self.why_hidden = ""
        """Why acknowledged records may read as absent; empty if none do."""
        self._look_at = 0.0

    def run(self, action: Callable[[], _Result], consumer: BatchConsumer, stop: Event) -> _Result:
        """Returns the action's result. Raises Abandoned."""
        pause_s = self._first_pause_s
        is_held = False
        try:
            while True:
                self._on_try()
                try:
                    result = action()
                except StoreConflict as error:
                    self._metrics.conflicts.inc()
                    _log.warning("another worker has written the same records, reading them again: %s", error)
                except StoreUnavailable as error:
                    self._metrics.retries.inc()
                    self._note(str(error))
                    _log.warning("the store cannot take the batch, trying again in %.1f s: %s", pause_s, error)
                else:
                    self._note("")
                    return result
                if not is_held:
                    consumer.hold()
                    is_held = True
                if not _wait(pause_s, consumer, stop):
                    raise Abandoned
                pause_s = min(2 * pause_s, _RETRY_MOST_S)
        finally:
            if is_held:
                consumer.release()

    def ask(self) -> None:
        """Ask the store after an abandoned batch: without a new batch nothing else shows that it is back."""
        if self.trouble and time.monotonic() >= self.ask_at:
            self.ask_at = time.monotonic() + _ASK_STORE_EVERY_S
            self._note(self._store.health().reason)

    def look(self, *, is_due: bool = False) -> None:
        """Learn whether the store may hide records: every two seconds, or now if `is_due`."""
        if is_due or time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_AT_STORE_EVERY_S
            self.why_hidden = self._store.health().why_hidden

    def _note(self, trouble: str) -> None:
        self.trouble = trouble and f"the store does not take batches: {trouble}"
        self._metrics.store_up.set(0 if trouble else 1)


def _wait(seconds: float, consumer: BatchConsumer, stop: Event) -> bool:
    """Wait, and not long past a stop. Returns False if the batch must be abandoned."""
    deadline = time.monotonic() + seconds
    while (left_s := deadline - time.monotonic()) > 0:
        if stop.is_set() or not consumer.wait(min(left_s, _LOOK_S)):
            return False
    return True
