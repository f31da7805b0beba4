"""The log of rollouts: after a crash at any byte, and with several writers, a rollout is where its log says."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.models.rollout import log as log_module
from paywarden.models.rollout.judgement import Finding, MeasureEvidence
from paywarden.models.rollout.log import (
    NOTED_EVERY_MS,
    NOTES_A_STEP,
    FileRolloutLog,
    MemoryRolloutLog,
    RolloutKeeper,
    event_of,
    event_record,
)
from paywarden.models.rollout.rollout import (
    LOOK_GAP_MAX_MS,
    EventKind,
    Phase,
    Rollout,
    RolloutEvent,
    after,
    replayed,
)
from paywarden.schemas.errors import Misconfigured
from tests.unit.models.rollout.test_rollout import event, judgement, look, outcomes, some_events, start_of

EVENTS = [
    event(EventKind.STARTED, 0, start=start_of()),
    event(EventKind.READY, 1),
    look(Finding.NO_DATA, 2),
    look(Finding.INCONCLUSIVE, 3),
    event(EventKind.PAUSED, 4),
    event(EventKind.RESUMED, 5),
    look(Finding.HARM, 6),
]


def filled(path: Path, events: list[RolloutEvent] = EVENTS) -> RolloutKeeper:
    keeper = RolloutKeeper(FileRolloutLog(path))
    for each in events:
        keeper.take(each)
    return keeper


@given(some_events())
def test_an_event_is_the_same_after_it_was_written(each: RolloutEvent) -> None:
    assert event_of(json.loads(json.dumps(event_record(each)))) == each


def test_killed_at_any_byte_the_rollout_is_where_the_whole_lines_say(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    filled(whole)
    content = whole.read_bytes()
    ends = [place + 1 for place, byte in enumerate(content) if byte == ord("\n")]
    cut = tmp_path / "cut.jsonl"
    for size in {*range(0, len(content), 97), *(end + more for end in ends for more in (-1, 0, 1))}:
        cut.write_bytes(content[:size])
        lines = sum(end <= size for end in ends)
        assert RolloutKeeper(FileRolloutLog(cut)).rollout == replayed(EVENTS[:lines])
        # The next writer cuts off the torn line.
        keeper = RolloutKeeper(FileRolloutLog(cut))
        if lines and not (keeper.rollout is None or keeper.rollout.has_ended):
            keeper.take(RolloutEvent(EventKind.ABORTED, 9, "ann", "over"))
            assert cut.read_bytes()[: ends[lines - 1]] == content[: ends[lines - 1]]
            assert len(FileRolloutLog(cut).events()) == lines + 1


def _line(each: RolloutEvent, **changes: None) -> bytes:
    return json.dumps(event_record(each) | changes).encode() + b"\n"


@pytest.mark.parametrize("step", [99, -99, 10**30])
def test_harm_at_a_step_that_the_plan_has_not_rolls_back(tmp_path: Path, step: int) -> None:
    """It raised IndexError in every process that read it, and nobody could roll back."""
    keeper = filled(tmp_path / "rollouts.jsonl", EVENTS[:2])
    found = keeper.take(replace(look(Finding.HARM, 2), step=step))
    assert (found.phase, found.cause) == (Phase.ROLLED_BACK, judgement(Finding.HARM).line)
    assert filled(tmp_path / "rollouts.jsonl", []).rollout == found


def test_damage_before_the_end_is_named_and_never_written_behind(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.jsonl"
    filled(path, EVENTS[:3])
    lines = path.read_bytes().splitlines(keepends=True)
    for wrong in (
        b"{}\n",
        b"nothing\n",
        lines[1].replace(b'"by": "ann"', b'"by": 3'),
        b'{"kind": "ready"}\n',
        # Read without a word, they ended the leader, the console and each command with an assertion.
        _line(look(Finding.WITHIN, 1), judgement=None),
        _line(outcomes(Finding.WITHIN, 1), judgement=None),
        _line(EVENTS[0], start=None),
        b"[1]\n",
    ):
        path.write_bytes(lines[0] + wrong + lines[2])
        with pytest.raises(
            Misconfigured, match=r"rollouts\.jsonl, line 2: wanted an event of a rollout, got something else"
        ):
            RolloutKeeper(FileRolloutLog(path))
        assert path.read_bytes() == lines[0] + wrong + lines[2]


def test_two_keepers_of_one_log_never_write_past_each_other(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.jsonl"
    mine = filled(path, EVENTS[:2])
    other = RolloutKeeper(FileRolloutLog(path))
    other.take(event(EventKind.PAUSED, 3))
    with pytest.raises(Misconfigured, match="r-1 is paused, not running"):
        mine.take(event(EventKind.PAUSED, 4))
    assert mine.take(event(EventKind.RESUMED, 5)).phase is Phase.RUNNING
    assert other.refresh() == mine.rollout


def test_threads_that_share_a_log_see_each_event_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The companion's metrics read it for each scrape. A second reader comes at each line that the first one reads."""
    path = tmp_path / "rollouts.jsonl"
    filled(path)
    log, seen = FileRolloutLog(path), list[list[RolloutEvent]]()

    def read_by_another_thread(record: Mapping[str, Any]) -> RolloutEvent:
        monkeypatch.setattr(log_module, "event_of", event_of)
        other = threading.Thread(target=lambda: seen.append(log.events()))
        other.start()
        other.join()
        monkeypatch.setattr(log_module, "event_of", read_by_another_thread)
        return event_of(record)

    monkeypatch.setattr(log_module, "event_of", read_by_another_thread)
    seen.append(log.events())
    assert seen == [EVENTS] * (len(EVENTS) + 1)
    assert log.events() == EVENTS


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


def test_a_refused_event_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.jsonl"
    keeper = filled(path, EVENTS[:2])
    content = path.read_bytes()
    with pytest.raises(Misconfigured):
        keeper.take(event(EventKind.PROMOTED, 3))
    assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o600


@given(st.lists(st.sampled_from([Finding.WITHIN, Finding.INCONCLUSIVE, Finding.NO_DATA]), max_size=300))
def test_what_is_not_written_costs_no_time_and_changes_nothing(findings: list[Finding]) -> None:
    log, every_ms = MemoryRolloutLog(), 60_000
    keeper = RolloutKeeper(log)
    plain: Rollout | None = None
    events = [*EVENTS[:2], *(look(found, (place + 1) * every_ms) for place, found in enumerate(findings))]
    for each in events:
        shown = keeper.take(each)
        plain = after(plain, each)
        assert (shown.phase, shown.step, shown.elapsed_ms) == (plain.phase, plain.step, plain.elapsed_ms)
    changes = sum(a is not b for a, b in pairwise(findings))
    assert len(log.events()) <= 2 + len(findings) * every_ms // NOTED_EVERY_MS + changes + 4


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


@pytest.mark.parametrize("findings", [(Finding.INCONCLUSIVE,), (Finding.WITHIN, Finding.INCONCLUSIVE)])
def test_a_year_of_looks_at_one_step_is_a_fraction_of_a_log(findings: tuple[Finding, ...]) -> None:
    """A note every five minutes filled 64 MiB in a month, and then the log took only rollbacks and aborts.

    The other lead has a candidate at the edge of the margin: its finding is another one at each look.
    """
    log, plan = MemoryRolloutLog(), replace(start_of().plan, step_hours=(9_000.0, 1.0))
    keeper = RolloutKeeper(log)
    for each in (replace(EVENTS[0], start=replace(start_of(), plan=plan)), EVENTS[1]):
        keeper.take(each)
    shown: Rollout | None = None
    times_ms = range(9 * MINUTE_MS, 365 * DAY_MS, 9 * MINUTE_MS)
    for number, time_ms in enumerate(times_ms):
        shown = keeper.take(wide_look(findings[number % len(findings)], time_ms))
    assert shown is not None
    assert shown.elapsed_ms == times_ms[-1] - 1, "no look is lost"
    events = log.events()
    # An entry has a signature, and names of its own: 700 bytes do.
    size = sum(len(json.dumps(event_record(each))) + 700 for each in events)
    assert size < (8 if len(findings) == 1 else 24) * 2**20
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


def test_two_weeks_of_outcomes_that_say_the_same_are_a_few_lines() -> None:
    """They are judged every minute, and a signed log is read whole by each command."""
    log = MemoryRolloutLog()
    keeper = RolloutKeeper(log)
    for each in EVENTS[:2]:
        keeper.take(each)
    days, minutes = 14, 30
    for number in range(days * 24 * 60 // minutes):
        keeper.take(outcomes(Finding.INCONCLUSIVE, 10 + number * minutes * 60_000))
    assert len(log.events()) <= 2 + 4 * days + 1
    assert keeper.rollout is not None
    assert keeper.rollout.outcomes is not None


def test_a_log_that_cannot_be_read_or_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"cannot read the rollouts in .*: Is a directory"):
        RolloutKeeper(FileRolloutLog(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(Misconfigured, match=r"cannot (read|write) the rollouts .*: Not a directory"):
        filled(tmp_path / "file" / "rollouts.jsonl")


def test_a_log_has_one_leader_and_the_next_one_is_told_who_leads(tmp_path: Path) -> None:
    log = FileRolloutLog(tmp_path / "rollouts.jsonl")
    with log.leading(), pytest.raises(Misconfigured) as refused, FileRolloutLog(tmp_path / "rollouts.jsonl").leading():
        pass
    assert f"process {os.getpid()} leads the rollouts of {tmp_path}/rollouts.jsonl already" in str(refused.value)
    with log.leading():
        pass


def test_the_times_of_steps_are_those_of_the_log(tmp_path: Path) -> None:
    keeper = filled(tmp_path / "log", EVENTS[:2])
    for minute in range(1, 75):
        assert keeper.rollout is not None
        keeper.take(look(Finding.WITHIN, minute * 60_000, keeper.rollout.step))
    assert keeper.steps_ms == [1, 31 * 60_000, 61 * 60_000]
    assert RolloutKeeper(FileRolloutLog(tmp_path / "log")).steps_ms == keeper.steps_ms
