"""A whole rollout, from decisions to its end: harm rolls back, sameness takes every step, a restart changes nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from paywarden.models.bundle.version import Version
from paywarden.models.policy.policy import APPROVE, DECLINE, REVIEW
from paywarden.models.rollout.judgement import Finding
from paywarden.models.rollout.plan import plan_of
from paywarden.models.rollout.rollout import EventKind, Phase, Rollout, RolloutEvent, Start
from paywarden.models.rollout.rollout_analysis import EventBounds, RolloutAnalysis, RolloutDecisions, event_bits
from paywarden.models.rollout.rollout_log import RolloutKeeper
from paywarden.models.rollout.shares import CANDIDATE, CIRCLE, arms_at
from paywarden.schemas.errors import InvalidEvent, Misconfigured
from tests.worlds.rollout.memory_log import MemoryRolloutLog

PLAN = plan_of([10, 50, 100], step_hours=(0.5, 0.5), segments=("country=FR",))
BOUNDS = EventBounds(slow_ms=20.0, score_upper=0.9, score_top=0.99)
MINUTE_MS = 60_000


def keeper_of(plan: object = PLAN) -> RolloutKeeper:
    keeper = RolloutKeeper(MemoryRolloutLog())
    start = Start("r-1", "00" * 16, Version("a"), Version("b"), plan)  # type: ignore[arg-type]
    keeper.take(RolloutEvent(EventKind.STARTED, 0, "ann", "a test", start))
    keeper.take(RolloutEvent(EventKind.READY, 0, "host"))
    return keeper


def decisions_at(minute: int, share: int, *, declines: float = 0.03, slow: float = 0.01) -> RolloutDecisions:
    """Returns 5,000 payments of a minute; the candidate's share of declines and of slow answers is given."""
    random, count = np.random.default_rng(minute), 5_000
    position = (random.random(count) * CIRCLE).astype(np.uint64)
    arm = arms_at(position, share)
    ours = arm == CANDIDATE
    odds = random.random(count)
    action = np.where(odds < np.where(ours, declines, 0.03), DECLINE, np.where(odds > 0.95, REVIEW, APPROVE))
    return RolloutDecisions(
        position,
        arm,
        minute * MINUTE_MS + np.sort(random.integers(0, MINUTE_MS, count)),
        random.random(count),
        action.astype(np.int8),
        np.zeros(count, dtype=bool),
        random.random(count) < 0.01,
        np.where(random.random(count) < np.where(ours, slow, 0.01), 30.0, 5.0),
        {"country=FR": random.random(count) < 0.2},
    )


def rolled_out(
    minutes: int, *, restarts: bool = False, declines: float = 0.03, slow: float = 0.01
) -> tuple[Rollout, int]:
    """Returns the rollout after some minutes with a look each, and the minute in which it left its last phase."""
    keeper = keeper_of()
    analysis, seen = RolloutAnalysis(keeper, BOUNDS), list[RolloutDecisions]()
    for minute in range(minutes):
        rollout = keeper.rollout
        assert rollout is not None
        decisions = decisions_at(minute, rollout.share, declines=declines, slow=slow)
        seen.append(decisions)
        if restarts and minute % 7 == 3:
            analysis = RolloutAnalysis(keeper, BOUNDS)
            for earlier in seen[:-1]:
                analysis.add(earlier)
        analysis.add(decisions)
        looked = analysis.look((minute + 1) * MINUTE_MS)
        assert looked is not None
        if looked.phase is not Phase.RUNNING:
            return looked, minute
    assert keeper.rollout is not None
    return keeper.rollout, minutes


def test_a_candidate_that_is_the_same_takes_every_step_and_no_step_early() -> None:
    rollout, minute = rolled_out(100)
    assert rollout.phase is Phase.PROVISIONAL
    assert minute >= 59


def test_while_not_all_can_be_read_no_step_is_taken_and_the_log_shows_that_somebody_looks() -> None:
    """The lead wrote nothing into the log, and the person on duty was paged: nobody leads."""
    keeper = keeper_of()
    analysis = RolloutAnalysis(keeper, BOUNDS)
    looks = []
    for minute in range(60):
        analysis.add(decisions_at(minute, 1_000))
        looked = analysis.look((minute + 1) * MINUTE_MS, is_whole=False)
        assert looked is not None
        assert (looked.phase, looked.step) == (Phase.RUNNING, 0)
        looks.append(looked.time_ms)
    assert [event.time_ms for event in keeper.events[2:]] == [MINUTE_MS * (1 + 5 * number) for number in range(12)]
    assert {event.judgement.finding for event in keeper.events[2:] if event.judgement} == {Finding.NO_DATA}
    rollout = analysis.look(61 * MINUTE_MS)
    assert rollout is not None
    assert rollout.step == 1
    # Harm counts all the same.
    for minute in range(61, 90):
        analysis.add(decisions_at(minute, 5_000, declines=0.09))
    rollout = analysis.look(90 * MINUTE_MS, is_whole=False)
    assert rollout is not None
    assert rollout.phase is Phase.ROLLED_BACK


@pytest.mark.parametrize(("declines", "slow", "measure"), [(0.06, 0.01, "decline"), (0.03, 0.05, "slow")])
def test_a_harmful_candidate_is_rolled_back_in_its_first_step(declines: float, slow: float, measure: str) -> None:
    rollout, minute = rolled_out(100, declines=declines, slow=slow)
    assert (rollout.phase, rollout.step) == (Phase.ROLLED_BACK, 0)
    assert rollout.cause.startswith(f"{measure} is more frequent with the candidate")
    assert minute < 30


def test_an_analysis_that_starts_again_and_again_finds_the_same_at_the_same_time() -> None:
    assert rolled_out(60, restarts=True, declines=0.045) == rolled_out(60, declines=0.045)
    # In the second step, whose counts begin with it.
    second, _ = rolled_out(39, restarts=True)
    assert (second, second.step) == (rolled_out(39)[0], 1)


def test_hosts_may_act_on_a_new_share_some_seconds_later() -> None:
    """The decisions until then have no candidate among them, which would look like a wrong split."""
    findings = {}
    for settle_s in (0.0, 10.0):
        keeper = keeper_of(replace(PLAN, settle_s=settle_s))
        analysis = RolloutAnalysis(keeper, BOUNDS)
        late, there = decisions_at(0, 0), decisions_at(0, 1_000)
        is_late = late.decided_ms < 3_000
        analysis.add(chosen(late, is_late))
        analysis.look(3_000)
        analysis.add(chosen(there, ~is_late))
        looked = analysis.look(MINUTE_MS)
        assert looked is not None
        findings[settle_s] = looked.phase
    assert findings == {0.0: Phase.ROLLED_BACK, 10.0: Phase.RUNNING}


def chosen(decisions: RolloutDecisions, rows: NDArray[np.bool_]) -> RolloutDecisions:
    columns = {name: column[rows] for name, column in vars(decisions).items() if name != "in_segment"}
    return RolloutDecisions(**columns, in_segment={name: had[rows] for name, had in decisions.in_segment.items()})


def test_nothing_is_counted_while_nothing_is_compared() -> None:
    empty = RolloutAnalysis(RolloutKeeper(MemoryRolloutLog()), BOUNDS)
    empty.add(decisions_at(0, 0))
    assert (empty.look(1), empty.counts_from_ms) == (None, None)
    keeper = keeper_of()
    analysis = RolloutAnalysis(keeper, BOUNDS)
    assert analysis.counts_from_ms == 0
    ended = keeper.take(RolloutEvent(EventKind.ABORTED, 1, "ann", "over"))
    assert analysis.look(2) == ended


def test_an_unknown_latency_is_refused_unless_latency_is_left_out() -> None:
    decisions = decisions_at(0, 1_000)
    unknown = replace(decisions, latency_ms=np.full(len(decisions.position), np.nan))
    with pytest.raises(InvalidEvent, match="latency_ms: wanted a latency, or `slow` in leave_out, got none"):
        event_bits(PLAN, BOUNDS, unknown)
    without = plan_of([10, 50, 100], segments=("country=FR",), leave_out=("slow",))
    assert "slow" not in [measure.name for measure in without.measures]
    assert event_bits(without, BOUNDS, unknown).any()


def test_bounds_come_from_the_champion_and_must_make_sense() -> None:
    latency, scores = np.linspace(0, 100, 101), np.linspace(0, 1, 101)
    assert EventBounds.of_champion(latency, scores) == EventBounds(99.0, 0.9, 0.99)
    with pytest.raises(Misconfigured, match="from before the rollout, got none; abort it, and start another one"):
        EventBounds.of_champion(latency[:0], scores)
    with pytest.raises(Misconfigured, match="slow_ms: wanted more than 0, got 0"):
        EventBounds(0.0, 0.1, 0.2)
    with pytest.raises(Misconfigured, match=r"wanted 0 <= score_upper <= score_top <= 1, got 0\.9 and 0\.1"):
        EventBounds(1.0, 0.9, 0.1)
