"""The report of a rollout: complete, from the log alone, the same bytes from the same events."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from paywarden.models.rollout.judgement import MoneyInterval, OutcomeCounts, judge, judge_outcomes
from paywarden.models.rollout.rollout import EventKind, Rollout, RolloutEvent, after
from paywarden.models.rollout.rollout_log import event_of, event_record
from paywarden.models.rollout.rollout_report import _shares, rollout_html
from paywarden.schemas.errors import Misconfigured
from tests.unit.models.rollout.test_judgement import counts_of
from tests.unit.models.rollout.test_rollout import PLAN, event, start_of

HOUR_MS = 3_600_000


def looks(step: int, cards: int, hours: float, **ratios: float) -> RolloutEvent:
    judgement = judge(PLAN, step, counts_of(cards, ratios=ratios, step=step, plan=PLAN))
    return RolloutEvent(EventKind.LOOKED, int(hours * HOUR_MS), "analysis", step=step, judgement=judgement)


def outcome_look(hours: float) -> RolloutEvent:
    shares = np.array([PLAN.comparing_share(step) for step in range(PLAN.last_step)])
    cards = np.array([[9_000, 1_000], [4_000, 4_000]])
    events = np.array([cards // 100] * 3)
    counts = OutcomeCounts(cards, events, 0.0, shares, 500, MoneyInterval(1_200_00, 1_250_00, -90_00, 190_00))
    return RolloutEvent(EventKind.OUTCOMES, int(hours * HOUR_MS), "analysis", judgement=judge_outcomes(PLAN, counts))


EVENTS = [
    event(EventKind.STARTED, 0, start=start_of()),
    event(EventKind.READY, 1),
    *(looks(0, 80_000 * (number + 1), 0.16 * (number + 1)) for number in range(5)),
    outcome_look(1),
    looks(1, 400_000, 1.1, decline=2.0),
]


def test_the_same_events_give_the_same_bytes_and_the_whole_story() -> None:
    page = rollout_html(EVENTS, "r-1", currency="EUR")
    assert page == rollout_html([event_of(event_record(each)) for each in EVENTS], "r-1", currency="EUR")
    for words in (
        "Rollout r-1: rolled back",
        "Rolled back: decline is more frequent with the candidate (",
        "The most it reached is 50 %.",
        "To go on to 50 %, ratios must lie between 0.50 and 1.50.",
        "Approved fraud cost EUR 1,250 in 1,000 payments with the candidate and EUR 1,200 with the champion.",
        "between EUR −90 and EUR +190",
        '<td class="text">ann</td>',
        "a test",
    ):
        assert words in page, words


def test_the_share_changes_at_once_also_where_nobody_looked() -> None:
    """It sank slowly from the last look on, and an abort was not drawn at all."""
    aborted = [*EVENTS[:7], event(EventKind.ABORTED, int(0.9 * HOUR_MS))]
    rollout: Rollout | None = None
    history: list[tuple[RolloutEvent, Rollout]] = []
    for each in aborted:
        rollout = after(rollout, each)
        history.append((each, rollout))
    corners = _shares(history)
    assert corners[-2][0] == corners[-1][0] == 0.9
    assert corners[-2][1] > corners[-1][1] == 0
    assert all(here == there or hour == at for (hour, here), (at, there) in pairwise(corners))


def test_texts_of_people_are_escaped() -> None:
    rude = replace(EVENTS[0], why="<script>alert(1)</script>")
    assert "<script>" not in rollout_html([rude], "r-1", currency="")


def test_another_name_is_refused_in_one_line() -> None:
    with pytest.raises(Misconfigured, match="there is no rollout with the name 'r-9' in the log"):
        rollout_html(EVENTS, "r-9", currency="")
