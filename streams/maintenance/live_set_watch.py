"""Run a stream worker for the profile set that is live, also across a swap of sets.

A rebuild swaps another set in (streams/maintenance/rebuild.py). Every worker looks at the register of sets once a
second:

    register           worker
    live a             works for a, in a's group
    live a, next b     finishes its batch, leaves a's group, waits
    live b             works for b, in b's group, from the offsets where the rebuild ended

A fault: a swap begins just before the worker joins its group. The rebuild may then have found the group
empty. The worker therefore looks at the register once more when it is a member, before it reads.

A register that is damaged, gone or away ends no worker that runs: a swap would have to read it, too. A worker that
finds no store at its start waits for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from threading import Event, Thread

from paywarden.features.stores.base import RegisterUnreadable
from paywarden.features.stores.profile_sets import LiveSet
from paywarden.schemas.errors import StoreUnavailable, TemporaryFailure
from paywarden.streams.profiles.pipeline import Pipeline

_log = logging.getLogger(__name__)

# A rebuild waits until all workers have noticed the swap, and profiles stand still meanwhile.
LOOK_EVERY_S = 1.0


class _Ended(Event):
    """Set when a worker must leave its set. It counts as set once `stop` is."""

    def __init__(self, stop: Event) -> None:
        super().__init__()
        self._stop = stop

    def is_set(self) -> bool:
        return super().is_set() or self._stop.is_set()


class LiveWorker:
    """Works for the live set. `run` it in one thread; any thread or signal handler may set the event `stop`."""

    def __init__(
        self,
        look: Callable[[], LiveSet],
        open_pipeline: Callable[[str], AbstractContextManager[Pipeline]],
        *,
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        """`look` reads the register. `open_pipeline` makes the worker of a set and closes its store afterwards."""
        self._look, self._open_pipeline, self._look_every_s = look, open_pipeline, look_every_s
        self._pipeline: Pipeline | None = None
        self._waits_for = "it has not started yet"

    def run(self, stop: Event) -> None:
        """Work until `stop` is set. Waits for a store that is away. Raises the other errors of pipelines."""
        while not stop.is_set():
            try:
                live = self._look()
                if live.next is None:
                    with self._open_pipeline(live.name) as pipeline:
                        self._pipeline = pipeline
                        self._work(pipeline, live, stop)
                    continue
                self._wait("another profile set is being swapped in", stop)
            except StoreUnavailable as error:
                self._wait(str(error), stop)
            finally:
                self._pipeline = None

    def _wait(self, why: str, stop: Event) -> None:
        if why != self._waits_for:
            _log.warning("the worker waits: %s", why)
        self._pipeline, self._waits_for = None, why
        stop.wait(self._look_every_s)

    def problems(self) -> Sequence[str]:
        """Returns why this worker is not ready; empty if it is. Any thread may call it."""
        pipeline = self._pipeline
        return [self._waits_for] if pipeline is None else pipeline.problems()

    def turns(self) -> bool:
        """Returns whether the worker makes rounds. Any thread may call it."""
        pipeline = self._pipeline
        return pipeline is None or pipeline.turns()

    def _work(self, pipeline: Pipeline, live: LiveSet, stop: Event) -> None:
        ended = _Ended(stop)
        failures: list[BaseException] = []

        def watch_over() -> None:
            try:
                self._watch(live, ended)
            except BaseException as error:  # noqa: BLE001  # raised below, in the worker's thread
                failures.append(error)
                ended.set()

        watch = Thread(target=watch_over, name="live-set", daemon=True)
        watch.start()
        try:
            # A rebuild waits for members of the group. If the swap began before this worker joined, the rebuild may
            # have found the group empty. This worker's records would then follow those that the rebuild publishes.
            pipeline.run(ended, may_begin=lambda: self._look() == live)
        finally:
            ended.set()
            watch.join()
        if failures:
            raise failures[0]

    def _watch(self, live: LiveSet, ended: Event) -> None:
        """Set `ended` when another set is coming. Raises errors that do not pass.

        A register that cannot be read cannot be changed, either: the worker goes on with its set.
        """
        told = ""
        # It sleeps from one look to the next: a stop needs no wake-up, because the pipeline sees it, too.
        while not ended.wait(self._look_every_s) and not ended.is_set():
            try:
                now = self._look()
            except (TemporaryFailure, RegisterUnreadable) as error:
                if str(error) != told:
                    _log.warning("the register of profile sets does not answer, and this worker goes on: %s", error)
                told = str(error)
                continue
            if told:
                _log.info("the register of profile sets answers again")
                told = ""
            if now != live:
                _log.info("another profile set replaces %r: this worker leaves its group", live.name)
                break
        ended.set()
