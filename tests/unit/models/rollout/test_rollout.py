"""The states of a rollout: no way from a lack of evidence to a promotion, and every way back stays open."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.models.bundle.version import Version
from paywarden.models.rollout.judgement import Finding, Judgement, MeasureEvidence
from paywarden.models.rollout.plan import plan_of
from paywarden.models.rollout.rollout import (
    ENDED,
    EventKind,
    Phase,
    Rollout,
    RolloutEvent,
    Start,
    after,
    replayed,
)
from paywarden.schemas.errors import Misconfigured

PLAN = plan_of([10, 50, 100], step_hours=(0.5, 0.5), label_days=1.0)
MINUTE_MS, DAY_MS = 60_000, 86_400_000
CHAMPION, CANDIDATE = Version("a" * 64), Version("b" * 64)


def start_of(name: str = "r-1", candidate: Version = CANDIDATE) -> Start:
    return Start(name, "00" * 16, CHAMPION, candidate, PLAN)


def event(kind: EventKind, time_ms: int = 0, *, start: Start | None = None) -> RolloutEvent:
    return RolloutEvent(kind, time_ms, "ann", "a test", start)


def look(finding: Finding, time_ms: int, step: int = 0) -> RolloutEvent:
    return RolloutEvent(EventKind.LOOKED, time_ms, "analysis", step=step, judgement=judgement(finding))


def outcomes(finding: Finding, time_ms: int) -> RolloutEvent:
    return RolloutEvent(EventKind.OUTCOMES, time_ms, "analysis", judgement=judgement(finding))


def judgement(finding: Finding) -> Judgement:
    worst = MeasureEvidence("decline", 0.0, False, (20, 9), 1.5, 12.0, is_within=False)
    return Judgement(finding, "decline", 0.0, (1000, 100), (worst,))


def running() -> Rollout:
    state = replayed([event(EventKind.STARTED, start=start_of()), event(EventKind.READY)])
    assert state is not None
    return state


def provisional(time_ms: int = 100 * MINUTE_MS) -> Rollout:
    return replace(running(), phase=Phase.PROVISIONAL, step=2, since_ms=time_ms, time_ms=time_ms)


def test_a_rollout_that_stays_within_reaches_all_cards_and_is_promoted_by_a_person() -> None:
    state, shares = running(), []
    for minute in range(1, 75):
        state = after(state, look(Finding.WITHIN, minute * MINUTE_MS, state.step))
        shares.append(state.share)
    assert (shares[28], shares[29], shares[58], shares[59]) == (1_000, 5_000, 5_000, 10_000)
    assert state.phase is Phase.PROVISIONAL
    end_ms = state.since_ms + DAY_MS
    state = after(state, outcomes(Finding.WITHIN, end_ms))
    state = after(state, event(EventKind.PROMOTED, end_ms))
    assert (state.phase, state.share) == (Phase.PROMOTED, 10_000)
    assert state.line == "r-1: promoted, promoted by ann: a test"


ANY_FINDING = st.sampled_from(list(Finding))
KINDS = st.sampled_from(list(EventKind))


@st.composite
def some_events(draw: st.DrawFn) -> RolloutEvent:
    kind, time_ms = draw(KINDS), draw(st.integers(-DAY_MS, 3 * DAY_MS))
    if kind is EventKind.LOOKED:
        watched_ms = draw(st.one_of(st.just(0), st.integers(-DAY_MS, 3 * DAY_MS)))
        return replace(look(draw(ANY_FINDING), time_ms, draw(st.integers(0, 1))), watched_ms=watched_ms)
    if kind is EventKind.OUTCOMES:
        return outcomes(draw(ANY_FINDING), time_ms)
    start = replace(start_of(draw(st.sampled_from(["r-1", "r-2"]))), shadow=draw(st.booleans()))
    return event(kind, time_ms, start=start)


def next_state(state: Rollout | None, this: RolloutEvent) -> Rollout | None:
    """Returns the state after an event; None if it is refused."""
    try:
        return after(state, this)
    except Misconfigured:
        return None


@given(st.lists(some_events(), max_size=60), st.booleans())
def test_whatever_comes_in_whatever_order_the_rules_hold(events: list[RolloutEvent], is_in_order: bool) -> None:
    state: Rollout | None = None
    for this in sorted(events, key=lambda one: one.time_ms) if is_in_order else events:
        following = next_state(state, this)
        if following is None:
            continue
        found = this.judgement.finding if this.judgement is not None else None
        if state is not None and following.start == state.start:
            assert not state.has_ended, "an end is an end"
            assert following.time_ms >= state.time_ms
            assert found is Finding.WITHIN or following.share <= max(state.share, PLAN.steps[0])
            if following.phase is Phase.PROMOTED:
                assert state.phase is Phase.PROVISIONAL
                assert state.outcomes is not None
                assert state.outcomes.finding is Finding.WITHIN
        else:
            assert state is None or state.has_ended, "one rollout at a time"
        state = following


@given(st.lists(st.sampled_from([Finding.INCONCLUSIVE, Finding.NO_DATA]), min_size=1, max_size=200))
def test_no_lack_of_evidence_ever_moves_a_rollout(findings: list[Finding]) -> None:
    state, final = running(), provisional()
    for hour, finding in enumerate(findings):
        state = after(state, look(finding, (hour + 1) * 60 * MINUTE_MS))
        final = after(final, outcomes(finding, final.time_ms + DAY_MS))
        with pytest.raises(Misconfigured, match="are not within the margin"):
            after(final, event(EventKind.PROMOTED, final.time_ms))
    assert (state.phase, state.step, final.phase) == (Phase.RUNNING, 0, Phase.PROVISIONAL)


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase not in ENDED])
@pytest.mark.parametrize(
    ("stop", "cause"),
    [
        (look(Finding.HARM, -5), "decline"),
        (look(Finding.MISMATCH, -5), "the cards are not split as they should be"),
        (outcomes(Finding.HARM, -5), "decline"),
        (
            RolloutEvent(EventKind.GONE, -5, "host", "bundle /b: no manifest"),
            "the candidate is gone: bundle /b: no manifest",
        ),
        (RolloutEvent(EventKind.ABORTED, -5, "ann", "enough"), "aborted by ann: enough"),
    ],
)
def test_every_way_back_is_open_in_every_phase_and_whatever_the_clock_says(
    phase: Phase, stop: RolloutEvent, cause: str
) -> None:
    state = after(replace(running(), phase=phase), stop)
    assert state.phase in (Phase.ROLLED_BACK, Phase.ABORTED)
    assert (state.share, state.time_ms) == (0, 0)
    assert state.cause.startswith(cause)


def test_a_pause_holds_the_share_and_a_harm_in_it_rolls_back() -> None:
    paused = after(running(), event(EventKind.PAUSED, 1))
    for minute in range(1, 90):
        paused = after(paused, look(Finding.WITHIN, minute * MINUTE_MS))
    assert (paused.share, paused.elapsed_ms) == (1_000, 0)
    assert after(paused, look(Finding.MISMATCH, 0)).phase is Phase.ROLLED_BACK
    resumed = after(paused, event(EventKind.RESUMED, 90 * MINUTE_MS))
    assert after(resumed, look(Finding.WITHIN, 91 * MINUTE_MS)).elapsed_ms == MINUTE_MS


def test_a_rollout_in_the_shadow_gets_no_card_before_somebody_resumes_it() -> None:
    state = after(None, event(EventKind.STARTED, start=replace(start_of(), shadow=True)))
    for kind in (EventKind.READY, EventKind.PAUSED, EventKind.PROMOTED):
        with pytest.raises(Misconfigured):
            after(state, event(kind, 1))
    assert after(state, look(Finding.WITHIN, MINUTE_MS)).share == 0
    assert "pending in the shadow" in state.line
    resumed = after(state, event(EventKind.RESUMED, DAY_MS))
    assert (resumed.phase, resumed.in_shadow, resumed.share, resumed.since_ms) == (Phase.PENDING, False, 0, DAY_MS)
    begun = after(resumed, event(EventKind.READY, DAY_MS + 1))
    assert (begun.phase, begun.share) == (Phase.RUNNING, 1_000)
    aborted = after(state, event(EventKind.ABORTED, 5))
    assert (aborted.phase, aborted.in_shadow) == (Phase.ABORTED, False)


def test_a_rollout_whose_clock_was_a_year_ahead_hinders_no_later_one() -> None:
    ahead = after(running(), look(Finding.INCONCLUSIVE, 365 * DAY_MS))
    with pytest.raises(Misconfigured, match=r"the clock is \d+ ms behind"):
        after(ahead, look(Finding.WITHIN, MINUTE_MS))
    ended = after(ahead, event(EventKind.ABORTED, MINUTE_MS))
    assert after(ended, event(EventKind.STARTED, MINUTE_MS, start=start_of("r-2"))).time_ms == MINUTE_MS


def test_a_candidate_that_goes_outside_the_margin_again_cannot_be_promoted() -> None:
    state = provisional()
    later = state.time_ms + 2 * DAY_MS
    state = after(after(state, outcomes(Finding.WITHIN, later)), outcomes(Finding.INCONCLUSIVE, later))
    with pytest.raises(Misconfigured, match="are not within the margin"):
        after(state, event(EventKind.PROMOTED, later))


@given(st.sampled_from(list(Phase)), st.integers(0, 1))
def test_the_candidate_has_the_share_of_its_phase(phase: Phase, step: int) -> None:
    state = replace(running(), phase=phase, step=step)
    shares = {Phase.RUNNING: PLAN.steps[step], Phase.PAUSED: PLAN.steps[step]}
    assert state.share == {**shares, Phase.PROVISIONAL: 10_000, Phase.PROMOTED: 10_000}.get(phase, 0)


ENDED_STATE = replace(running(), phase=Phase.ABORTED, time_ms=5)


@pytest.mark.parametrize(
    ("state", "wrong", "message"),
    [
        (None, event(EventKind.PAUSED), "there is no rollout"),
        (
            running(),
            event(EventKind.STARTED, start=start_of("r-2")),
            "r-1 runs already (r-1: running at 10 %): wanted one at a time",
        ),
        (
            ENDED_STATE,
            event(EventKind.STARTED, 5, start=start_of()),
            "there was one with the name r-1: wanted another name",
        ),
        (
            None,
            event(EventKind.STARTED, start=start_of(candidate=replace(CHAMPION, model="another name"))),
            "candidate and champion are the same, with digest aaaaaaaaaaaa",
        ),
        (ENDED_STATE, event(EventKind.RESUMED), "r-1 has ended (aborted)"),
        (running(), event(EventKind.RESUMED), "r-1 is running, not paused"),
        (provisional(), event(EventKind.PAUSED), "r-1 is provisional, not running"),
        (running(), event(EventKind.READY), "r-1 is running, not pending"),
        (running(), event(EventKind.PROMOTED), "r-1: running at 10 %: wanted one that has reached all cards"),
        (
            provisional(0),
            event(EventKind.PROMOTED, DAY_MS // 2),
            "r-1 has had all cards for 0.5 days: wanted 1, until labels have come",
        ),
        (
            provisional(0),
            event(EventKind.PROMOTED, DAY_MS),
            "the mature outcomes of r-1 are not within the margin: none was looked at",
        ),
        (running(), replace(event(EventKind.ABORTED), why=""), "wanted who and why, got by 'ann', why ''"),
        (
            replace(running(), time_ms=9),
            look(Finding.WITHIN, 2),
            "the clock is 7 ms behind the newest event of r-1; it goes on when the clock is right",
        ),
    ],
)
def test_an_event_that_must_not_happen_is_refused_in_one_line(
    state: Rollout | None, wrong: RolloutEvent, message: str
) -> None:
    with pytest.raises(Misconfigured) as refused:
        after(state, wrong)
    assert str(refused.value) == f"rollout not {wrong.kind.value}: {message}"
