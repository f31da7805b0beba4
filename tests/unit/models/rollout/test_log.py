"""What gets into the log of rollouts: events that may happen, and few of the looks."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.models.rollout.judgement import Finding, MeasureEvidence
from paywarden.models.rollout.rollout import (
    LOOK_GAP_MAX_MS,
    EventKind,
    Phase,
    Rollout,
    RolloutEvent,
    after,
    replayed,
)
from paywarden.models.rollout.rollout_log import (
    NO_EVENT,
    NOTED_EVERY_MS,
    NOTES_A_STEP,
    RolloutKeeper,
    event_of,
    event_record,
    only_leader,
)
from paywarden.schemas.errors import Misconfigured
from tests.unit.models.rollout.test_rollout import event, judgement, look, outcomes, start_of
from tests.worlds.rollout.memory_log import MemoryRolloutLog

EVENTS = [
    event(EventKind.STARTED, 0, start=start_of()),
    event(EventKind.READY, 1),
    look(Finding.NO_DATA, 2),
    look(Finding.INCONCLUSIVE, 3),
    event(EventKind.PAUSED, 4),
    event(EventKind.RESUMED, 5),
    look(Finding.HARM, 6),
]


def filled(log: MemoryRolloutLog, events: list[RolloutEvent] = EVENTS) -> RolloutKeeper:
    keeper = RolloutKeeper(log)
    for each in events:
        keeper.take(each)
    return keeper


@pytest.mark.parametrize("step", [99, -99, 10**30])
def test_harm_at_a_step_that_the_plan_has_not_rolls_back(step: int) -> None:
    """It raised IndexError in every process that read it, and nobody could roll back."""
    log = MemoryRolloutLog()
    found = filled(log, EVENTS[:2]).take(replace(look(Finding.HARM, 2), step=step))
    assert (found.phase, found.cause) == (Phase.ROLLED_BACK, judgement(Finding.HARM).line)
    assert RolloutKeeper(log).rollout == found


@pytest.mark.parametrize("each", [*EVENTS, outcomes(Finding.WITHIN, 9)])
def test_an_event_is_read_as_it_was_written(each: RolloutEvent) -> None:
    assert event_of(json.loads(json.dumps(event_record(each)))) == each


@pytest.mark.parametrize(
    "record",
    [
        {},
        [1],
        {"kind": "ready"},
        event_record(EVENTS[1]) | {"by": 3},
        event_record(EVENTS[1]) | {"kind": "flown"},
        # Read without a word, they ended the leader, the console and each command with an assertion.
        event_record(look(Finding.WITHIN, 1)) | {"judgement": None},
        event_record(outcomes(Finding.WITHIN, 1)) | {"judgement": None},
        event_record(EVENTS[0]) | {"start": None},
    ],
)
def test_a_record_of_something_else_is_no_event(record: Any) -> None:
    with pytest.raises((*NO_EVENT, Misconfigured)):
        event_of(record)


def test_two_keepers_of_one_log_never_write_past_each_other() -> None:
    log = MemoryRolloutLog()
    mine, other = filled(log, EVENTS[:2]), RolloutKeeper(log)
    other.take(event(EventKind.PAUSED, 3))
    with pytest.raises(Misconfigured, match="r-1 is paused, not running"):
        mine.take(event(EventKind.PAUSED, 4))
    assert mine.take(event(EventKind.RESUMED, 5)).phase is Phase.RUNNING
    assert other.refresh() == mine.rollout


def test_of_two_that_start_at_once_one_is_refused() -> None:
    class Racing(MemoryRolloutLog):
        """Another process is faster at the first event."""

        def append(self, event: RolloutEvent, known: int) -> bool:
            if not known and event.start != start_of("r-fast"):
                super().append(replace(EVENTS[0], start=start_of("r-fast")), 0)
            return super().append(event, known)

    log = Racing()
    with pytest.raises(Misconfigured, match="r-fast runs already"):
        RolloutKeeper(log).take(EVENTS[0])
    assert len(log.events()) == 1


MINUTE_MS, DAY_MS = 60_000, 86_400_000
# A plan with ten segments has as many measures.
MEASURES = tuple(
    MeasureEvidence(f"score_upper country={place}", -1.234567890123, False, (200, 190), 0.912345678901, 1.0876, False)
    for place in range(37)
)


def wide_look(finding: Finding, time_ms: int) -> RolloutEvent:
    narrow = look(finding, time_ms)
    assert narrow.judgement is not None
    return replace(narrow, judgement=replace(narrow.judgement, measures=MEASURES))


def test_months_of_looks_at_one_step_are_a_fraction_of_a_log() -> None:
    """A note every five minutes filled 64 MiB in a month, and then the log took only rollbacks and aborts.

    The candidate is at the edge of the margin: the finding changes at each look.
    """
    findings = (Finding.WITHIN, Finding.INCONCLUSIVE)
    log, plan = MemoryRolloutLog(), replace(start_of().plan, step_hours=(1_500.0, 1.0))
    keeper = RolloutKeeper(log)
    for each in (replace(EVENTS[0], start=replace(start_of(), plan=plan)), EVENTS[1]):
        keeper.take(each)
    shown: Rollout | None = None
    times_ms = range(9 * MINUTE_MS, 60 * DAY_MS, 9 * MINUTE_MS)
    for number, time_ms in enumerate(times_ms):
        shown = keeper.take(wide_look(findings[number % len(findings)], time_ms))
    assert shown is not None
    assert shown.elapsed_ms == times_ms[-1] - 1, "no look is lost"
    events = log.events()
    # An entry has a signature, and names of its own: 700 bytes do.
    size = sum(len(json.dumps(event_record(each))) + 700 for each in events)
    assert size < 8 * 2**20
    reader = RolloutKeeper(log).rollout
    assert reader is not None
    assert shown.elapsed_ms - reader.elapsed_ms <= shown.elapsed_ms // NOTES_A_STEP


@given(
    st.lists(st.tuples(st.integers(0, 90 * MINUTE_MS), st.sampled_from(["look", "look", "look", "pause"])), max_size=60)
)
def test_a_step_has_the_time_of_all_looks_though_few_are_noted(happened: list[tuple[int, str]]) -> None:
    log, time_ms = MemoryRolloutLog(), 1
    keeper, plain = RolloutKeeper(log), replayed(EVENTS[:2])
    for each in EVENTS[:2]:
        keeper.take(each)
    for gap_ms, what in happened:
        events = [look(Finding.INCONCLUSIVE, time_ms + gap_ms)]
        if what == "pause":
            # A lead looks at a paused rollout, too.
            events += [event(EventKind.PAUSED, time_ms + gap_ms + 1), look(Finding.NO_DATA, time_ms + gap_ms + 2)]
            events.append(event(EventKind.RESUMED, time_ms + gap_ms + 90 * MINUTE_MS))
        for each in events:
            # People's events come from processes of their own.
            shown = (keeper if each.kind is EventKind.LOOKED else RolloutKeeper(log)).take(each)
            plain, time_ms = after(plain, each), each.time_ms
            assert (shown.phase, shown.step) == (plain.phase, plain.step)
            if each.kind is EventKind.LOOKED:
                assert shown.elapsed_ms == plain.elapsed_ms
    reader = RolloutKeeper(log).rollout
    assert reader is not None
    assert plain is not None
    assert 0 <= plain.elapsed_ms - reader.elapsed_ms <= max(NOTED_EVERY_MS, time_ms // NOTES_A_STEP) + LOOK_GAP_MAX_MS


def test_a_lead_that_is_killed_costs_its_step_a_hundredth_of_its_age() -> None:
    log = MemoryRolloutLog()
    keeper = RolloutKeeper(log)
    for each in EVENTS[:2]:
        keeper.take(each)
    for minute in range(1, 5 * 24 * 60):
        if minute % (24 * 60) == 0:
            keeper = RolloutKeeper(log)
        shown = keeper.take(look(Finding.INCONCLUSIVE, minute * MINUTE_MS))
    lost = sum(day * DAY_MS // NOTES_A_STEP for day in range(1, 5))
    assert 5 * DAY_MS - lost - MINUTE_MS <= shown.elapsed_ms <= 5 * DAY_MS


def test_a_clock_that_was_ahead_in_one_rollout_keeps_no_look_out_of_the_next() -> None:
    log = MemoryRolloutLog()
    keeper = RolloutKeeper(log)
    for each in (*EVENTS[:2], look(Finding.INCONCLUSIVE, 365 * DAY_MS), event(EventKind.ABORTED, 5)):
        keeper.take(each)
    keeper.take(event(EventKind.STARTED, 6, start=start_of("r-2")))
    for each in (event(EventKind.READY, 7), *(look(Finding.INCONCLUSIVE, minute * MINUTE_MS) for minute in (1, 7))):
        keeper.take(each)
    assert [each.time_ms for each in log.events()[-2:]] == [MINUTE_MS, 7 * MINUTE_MS]


def test_outcomes_are_noted_when_their_finding_changes() -> None:
    log = MemoryRolloutLog()
    keeper = RolloutKeeper(log)
    for each in (*EVENTS[:2], outcomes(Finding.NO_DATA, 3), outcomes(Finding.NO_DATA, 4), outcomes(Finding.WITHIN, 5)):
        keeper.take(each)
    assert [each.time_ms for each in log.events()] == [0, 1, 3, 5]


def test_a_log_has_one_leader_and_the_next_one_is_told_who_leads(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with only_leader(log), pytest.raises(Misconfigured) as refused, only_leader(log):
        pass
    assert f"process {os.getpid()} leads the rollouts of {log} already" in str(refused.value)
    with only_leader(log):
        pass
