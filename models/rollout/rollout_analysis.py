"""The analysis of a running rollout: decisions in, looks out.

    decisions ──► events of each payment ──► StepTally of the running step ──► judge ──► RolloutKeeper

`add` takes decisions as they come, `look` judges every few seconds. A new step gets a new tally, which begins where the
log says that the step began, and `settle_s` later: until then hosts may still act on the earlier share. A process
that starts again is fed the decisions since `counts_from_ms` again; then it is where it was.

The bounds of slow answers and of high scores come from the champion's time before the first cards, and never change.
A measure that nothing is known about must be left out of the plan (RolloutPlan.leave_out). An unknown value is refused:
taken for "no event", it would pass for a good one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from paywarden.models.policy.policy import DECLINE, REVIEW
from paywarden.models.rollout.judgement import Finding, judge
from paywarden.models.rollout.plan import RolloutPlan
from paywarden.models.rollout.rollout import EventKind, Phase, Rollout, RolloutEvent
from paywarden.models.rollout.rollout_log import RolloutKeeper
from paywarden.models.rollout.rollout_tally import StepTally
from paywarden.schemas.errors import InvalidEvent, Misconfigured

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class EventBounds:
    """Bounds from before the rollout: the ms from which an answer is slow, the scores of the highest 10 % and 1 %."""

    slow_ms: float
    score_upper: float
    score_top: float

    def __post_init__(self) -> None:
        """Raises Misconfigured for bounds that cannot be."""
        if not self.slow_ms > 0:
            raise Misconfigured(f"rollout bounds: slow_ms: wanted more than 0, got {self.slow_ms:g}")
        if not 0 <= self.score_upper <= self.score_top <= 1:
            raise Misconfigured(
                "rollout bounds: wanted 0 <= score_upper <= score_top <= 1, "
                f"got {self.score_upper:g} and {self.score_top:g}"
            )

    @classmethod
    def of_champion(cls, latency_ms: Floats, scores: Floats) -> EventBounds:
        """Returns the bounds of a champion's decisions before the rollout. Raises Misconfigured without any."""
        if not len(latency_ms) or not len(scores):
            raise Misconfigured(
                "rollout bounds: wanted decisions of the champion from before the rollout, got none; "
                "abort it, and start another one when the champion has decided for an hour, or with --shadow now: "
                "then the hour before it is resumed counts"
            )
        upper, top = (float(np.quantile(scores, share)) for share in (0.9, 0.99))
        return cls(float(np.quantile(latency_ms, 0.99)), upper, top)


@dataclass(frozen=True)
class RolloutDecisions:
    """Decisions as columns, each of shape (payments,).

    `arm`: who decided. `action`: an index into ACTIONS. `is_failed`: a model failed or none gave a score.
    `is_flagged`: it has a flag other than for an unknown entity. `latency_ms`: NaN if not known. `in_segment`: by
    segment of the plan.
    """

    position: NDArray[np.uint64]
    arm: NDArray[np.int8]
    decided_ms: NDArray[np.int64]
    score: Floats
    action: NDArray[np.int8]
    is_failed: NDArray[np.bool_]
    is_flagged: NDArray[np.bool_]
    latency_ms: Floats
    in_segment: Mapping[str, NDArray[np.bool_]]


def event_bits(plan: RolloutPlan, bounds: EventBounds, decisions: RolloutDecisions) -> NDArray[np.uint64]:
    """Returns the events of each payment as bits in the order of the plan's measures, (payments,).

    Raises InvalidEvent for a latency that is not known, if the plan measures latency.
    """
    measured = {measure.name for measure in plan.measures}
    if "slow" in measured and np.isnan(decisions.latency_ms).any():
        raise InvalidEvent("wanted a latency, or `slow` in leave_out, got none", field="latency_ms")
    had = {
        "slow": decisions.latency_ms >= bounds.slow_ms,
        "error": decisions.is_failed,
        "flag": decisions.is_flagged,
        "review": decisions.action == REVIEW,
        "decline": decisions.action == DECLINE,
        "score_upper": decisions.score >= bounds.score_upper,
        "score_top": decisions.score >= bounds.score_top,
    }
    bits = np.zeros(len(decisions.position), dtype=np.uint64)
    for place, measure in enumerate(plan.measures):
        name, _, segment = measure.name.partition(" ")
        happened = had[name] & decisions.in_segment[segment] if segment else had[name]
        bits |= happened.astype(np.uint64) << np.uint64(place)
    return bits


class RolloutAnalysis:
    """Counts the decisions of the running step, and looks. Not thread-safe."""

    def __init__(self, keeper: RolloutKeeper, bounds: EventBounds, *, by: str = "analysis") -> None:
        """`by`: the name of this process, for the log."""
        self._keeper, self._bounds, self._by = keeper, bounds, by
        self._tally: StepTally | None = None
        self._of: tuple[str, int] = ("", -1)

    @property
    def counts_from_ms(self) -> int | None:
        """From when on decisions count; None while nothing is compared. A new process needs all decisions since."""
        running = self._running()
        return None if running is None else running.since_ms

    def add(self, decisions: RolloutDecisions) -> None:
        """Count decisions, each once. They are ignored while nothing is compared.

        Raises InvalidEvent for an unknown latency or arm.
        """
        running = self._running()
        if running is not None:
            bits = event_bits(running.start.plan, self._bounds, decisions)
            self._tally_of(running).add(decisions.position, decisions.arm, bits, decisions.decided_ms)

    def look(self, now_ms: int, *, is_whole: bool = True) -> Rollout | None:
        """Judge the running step and return the rollout after that; None if there has been none.

        `is_whole`: whether all decisions so far have been added. If not, the look finds harm or no data: the log shows
        that somebody looks. Raises Misconfigured while the clock is behind the log; harm is taken even then.
        """
        running = self._running()
        if running is None:
            return self._keeper.rollout
        judgement = judge(running.start.plan, running.step, self._tally_of(running).counts(now_ms))
        why = ""
        if not is_whole and judgement.finding is not Finding.HARM:
            judgement, why = replace(judgement, finding=Finding.NO_DATA), "not all decisions can be read"
        return self._keeper.take(
            RolloutEvent(EventKind.LOOKED, now_ms, self._by, why, step=running.step, judgement=judgement)
        )

    def _running(self) -> Rollout | None:
        rollout = self._keeper.refresh()
        if rollout is None or rollout.phase not in (Phase.RUNNING, Phase.PAUSED):
            return None
        return rollout

    def _tally_of(self, rollout: Rollout) -> StepTally:
        step = (rollout.start.name, rollout.step)
        if self._tally is None or self._of != step:
            plan = rollout.start.plan
            self._tally = StepTally(plan, rollout.step, rollout.since_ms + round(plan.settle_s * 1_000))
            self._of = step
        return self._tally
