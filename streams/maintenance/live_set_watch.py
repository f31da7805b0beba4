"""The stream worker of whichever profile set is live.

A rebuild swaps another set in (streams/maintenance/rebuild.py). Every worker looks at the register of sets now and
then: when a
swap has begun it finishes its batch, leaves the group of the old set and waits; when the swap has ended it works for
the set that is live then, in that set's group, from where the rebuild had come.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from threading import Event, Thread

from paywarden.features.stores.profile_sets import LiveSet
from paywarden.schemas.errors import TemporaryFailure
from paywarden.streams.profiles.pipeline import Pipeline

_log = logging.getLogger(__name__)

# A rebuild waits for all workers to notice; profiles stand still for as long.
LOOK_EVERY_S = 1.0


class LiveWorker:
    """`run` in one thread; `stop` is an event any thread or signal handler may set."""

    def __init__(
        self,
        look: Callable[[], LiveSet],
        open_pipeline: Callable[[str], AbstractContextManager[Pipeline]],
        *,
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        """`look` reads the register; `open_pipeline` makes the worker of a set, and lets go of its store afterwards."""
        self._look, self._open_pipeline, self._look_every_s = look, open_pipeline, look_every_s
        self._pipeline: Pipeline | None = None
        self._waits_for = "it has not started yet"

    def run(self, stop: Event) -> None:
        """Work until `stop` is set. Raises what `Pipeline.run` and opening one raise."""
        while not stop.is_set():
            live = self._look()
            if live.next is not None:
                self._waits_for = "another profile set is being swapped in"
                stop.wait(self._look_every_s)
                continue
            with self._open_pipeline(live.name) as pipeline:
                self._pipeline = pipeline
                self._work(pipeline, live, stop)
                self._pipeline = None

    def problems(self) -> Sequence[str]:
        """Why this worker is not ready; empty when it is. From any thread."""
        pipeline = self._pipeline
        return [self._waits_for] if pipeline is None else pipeline.problems()

    def _work(self, pipeline: Pipeline, live: LiveSet, stop: Event) -> None:
        ended = Event()
        failures: list[BaseException] = []

        def watch_over() -> None:
            try:
                self._watch(live, stop, ended)
            except BaseException as error:  # noqa: BLE001  # raised below, in the worker's thread
                failures.append(error)
                ended.set()

        watch = Thread(target=watch_over, name="live-set", daemon=True)
        watch.start()
        try:
            # Once it is in the group a rebuild waits for it. If the swap began before, the rebuild may have found
            # nobody, and what this one sent would come behind what the rebuild publishes.
            pipeline.run(ended, may_begin=lambda: self._look() == live)
        finally:
            ended.set()
            watch.join()
        if failures:
            raise failures[0]

    def _watch(self, live: LiveSet, stop: Event, ended: Event) -> None:
        """Sets `ended` when the worker is to stop or another set is on its way. Raises what no look can mend."""
        looked_s = 0.0
        while not ended.is_set():
            # Short: a stop should not take as long as a look.
            if stop.wait(min(0.1, self._look_every_s)):
                ended.set()
                return
            looked_s += 0.1
            if looked_s < self._look_every_s:
                continue
            looked_s = 0.0
            try:
                now = self._look()
            except TemporaryFailure as error:
                _log.warning("the register of profile sets does not answer: %s", error)
                continue
            if now != live:
                _log.info("profile set %r is not the live one for long", live.name)
                ended.set()
