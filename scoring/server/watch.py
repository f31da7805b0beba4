"""Watches the parts of a worker twice a second: mirror, release, tokens, certificate, outbox, and its parent.

1. Each step is guarded: if one fails, the others run all the same, and it is tried again in the next round.
2. A failure is logged when it is new and when it is over, and counted in every round that it lasts.
3. At the end of each round the worker's heart beats. If the watch stands still, so does the heart, and the supervisor
   replaces the worker (scoring/server/heartbeat.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from paywarden.schemas.errors import PaywardenError
from paywarden.scoring.metrics.shared_metrics import Counter, MetricsRegistry

_log = logging.getLogger(__name__)

STEPS = ("mirror", "release", "tokens", "certificate", "outbox", "unshipped", "ready")
_ROUND_S = 0.5


class WorkerMustEnd(PaywardenError):
    """The worker cannot go on, and only another process can."""


def declare_failures(registry: MetricsRegistry) -> dict[str, Counter]:
    """Returns a counter for each of STEPS."""
    return {
        step: registry.counter(
            "paywarden_watch_failures_total",
            "Rounds of a worker's watch in which a step failed: it is tried again twice a second.",
            ("step",),
            (step,),
        )
        for step in STEPS
    }


class WorkerWatch:
    """Runs the steps in rounds. A step fails if it raises, or returns False because it has logged its failure itself.

    A step that raises WorkerMustEnd ends the watch.
    """

    def __init__(
        self,
        steps: Mapping[str, Callable[[], object]],
        failures: Mapping[str, Counter],
        beat: Callable[[], object],
        *,
        round_s: float = _ROUND_S,
    ) -> None:
        self._steps, self._failures, self._beat, self._round_s = steps, failures, beat, round_s
        # The last logged error of each failing step.
        self._told: dict[str, object] = {}

    async def run(self) -> None:
        """Make rounds until a step says that the worker must end."""
        try:
            while True:
                self.make_round()
                await asyncio.sleep(self._round_s)
        except WorkerMustEnd as error:
            _log.error("%s: stopping", error)

    def make_round(self) -> None:
        """Run every step once. Raises WorkerMustEnd."""
        for name, step in self._steps.items():
            self._run(name, step)
        self._beat()

    def _run(self, name: str, step: Callable[[], object]) -> None:
        try:
            if step() is False:
                self._failures[name].add(1)
                return
        except WorkerMustEnd:
            raise
        except Exception as error:  # noqa: BLE001 - one step that fails must not keep the others from running
            self._failures[name].add(1)
            self._tell(name, error)
            return
        if self._told.pop(name, None) is not None:
            _log.info("the watch over %s works again", name)

    def _tell(self, name: str, error: Exception) -> None:
        kind = (type(error), getattr(error, "errno", None))
        if self._told.get(name) == kind:
            return
        self._told[name] = kind
        is_expected = isinstance(error, PaywardenError | OSError)
        _log.error("the watch over %s fails, and tries again: %s", name, error, exc_info=None if is_expected else error)
