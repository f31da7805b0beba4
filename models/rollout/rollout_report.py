"""Write the report of a rollout: one HTML file for the person who answers for it, made from the log alone.

It shows what was compared and by which rules, the evidence over time, the mature outcomes and the money, who approved
the candidate, and who did what and why. It depends on the log alone, so the same log gives the same bytes. It names no
card, no payment and no machine.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from functools import partial

from paywarden.models.bundle.version import Version
from paywarden.models.replay.report.page import NO_NUMBER, Figure, decimal, percent
from paywarden.models.replay.report.plots import Plot, PlotLine, drawing_of, linear_axis
from paywarden.models.replay.report.renderer import render
from paywarden.models.rollout.judgement import Judgement
from paywarden.models.rollout.plan import OUTCOME_MEASURES
from paywarden.models.rollout.rollout import Agreed, EventKind, Phase, Rollout, RolloutEvent, after
from paywarden.models.rollout.shares import percent_text
from paywarden.schemas.errors import Misconfigured

_HOUR_MS = 3_600_000
# The plot of evidence goes no lower and no higher: beyond these it says nothing more.
_EVIDENCE_MIN, _EVIDENCE_MAX = -12.0, 12.0
_TITLES = {
    Phase.PENDING: "Waits for hosts",
    Phase.RUNNING: "Running",
    Phase.PAUSED: "Paused",
    Phase.PROVISIONAL: "On all cards, provisionally",
    Phase.PROMOTED: "Promoted",
    Phase.ROLLED_BACK: "Rolled back",
    Phase.ABORTED: "Aborted",
}


def _title(rollout: Rollout) -> str:
    return "In the shadow" if rollout.in_shadow else _TITLES[rollout.phase]


def rollout_html(
    events: Sequence[RolloutEvent], name: str, *, currency: str, agreed: Sequence[Agreed] | None = None
) -> str:
    """Return the whole file as text. `events`: of a log, in order. `currency`: the reference currency.

    `agreed`: who approved the candidate; None if there is no registry that would know.
    Raises Misconfigured if there is no rollout with this name, or if an event does not fit.
    """
    history = _history(events, name)
    rollout = history[-1][1]
    plan = rollout.start.plan
    return render(
        "rollout.html",
        title=f"Rollout {name}",
        state=_title(rollout),
        rollout=rollout,
        is_running=rollout.phase is Phase.RUNNING,
        plan=plan,
        began=_moment(history[0][0].time_ms),
        now=_moment(rollout.time_ms),
        hours=_hours_text((rollout.time_ms - history[0][0].time_ms) / _HOUR_MS),
        most=max(one.share for _, one in history),
        version=_version,
        share_text=percent_text,
        figures_of_evidence=_evidence(history),
        steps=sorted(_newest(history).items()),
        measure_rows=partial(_measure_rows, plan.with_margin),
        currency=currency,
        agreed=None if agreed is None else [[_moment(one.time_ms), one.by, one.what, one.why] for one in agreed],
        acts=_acts(history),
        measures=[(measure.name, measure.meaning) for measure in (*plan.measures, *OUTCOME_MEASURES)],
    )


def _history(events: Sequence[RolloutEvent], name: str) -> list[tuple[RolloutEvent, Rollout]]:
    """Return the events of one rollout, each with the state after it."""
    history = []
    rollout: Rollout | None = None
    for event in events:
        rollout = after(rollout, event)
        if rollout.start.name == name:
            history.append((event, rollout))
    if not history:
        raise Misconfigured(f"there is no rollout with the name {name!r} in the log")
    return history


def _version(version: Version) -> str:
    return f"{version.model or NO_NUMBER}: bundle {version.bundle[:16]}, policy {version.policy[:16]}"


def _evidence(history: Sequence[tuple[RolloutEvent, Rollout]]) -> list[Figure]:
    """Return the plots of evidence and share over time; none if nobody has looked yet."""
    start_ms = history[0][0].time_ms
    looks = [
        ((event.time_ms - start_ms) / _HOUR_MS, event.judgement, rollout)
        for event, rollout in history
        if event.kind is EventKind.LOOKED and event.judgement is not None
    ]
    if not looks:
        return []
    points = [(hour, min(max(found.evidence, _EVIDENCE_MIN), _EVIDENCE_MAX)) for hour, found, _ in looks]
    hints = [f"{hour:.1f} hours: {found.measure}, {found.evidence:.1f}" for hour, found, _ in looks]
    shares = _shares(history)
    hours = linear_axis("hours since the start", 0, max(hour for hour, _ in shares), lambda hour: f"{hour:g}")
    highest = max(1.0, *(evidence for _, evidence in points))
    evidence = Plot(
        "Evidence of harm over time",
        hours,
        linear_axis("log evidence over its threshold", _EVIDENCE_MIN, highest, lambda value: f"{value:g}"),
        [PlotLine(points, "challenger", hints=hints), PlotLine([(0, 0), (hours.high, 0)], "ideal")],
        [("challenger", "strongest measure"), ("ideal", "rolls back")],
    )
    share = Plot(
        "The candidate's share of the cards over time",
        hours,
        linear_axis("share of the cards", 0, max(share for _, share in shares), lambda value: percent(value, 0)),
        [PlotLine(shares, "challenger")],
    )
    return [
        Figure(
            "Evidence of harm",
            drawing_of(evidence),
            "The measure with the strongest evidence at each look: the logarithm of its e-value over its threshold. At "
            "0 the rollout is rolled back. It may be looked at any number of times.",
        ),
        Figure("Share", drawing_of(share), "A step goes on when its least time is over and it is within."),
    ]


def _shares(history: Sequence[tuple[RolloutEvent, Rollout]]) -> list[tuple[float, float]]:
    """Return the corners of the share over time: it changes at once, for a step and for the way back."""
    corners = [(0.0, 0.0)]
    for event, rollout in history:
        hour, share = (event.time_ms - history[0][0].time_ms) / _HOUR_MS, rollout.share / 10_000
        if share != corners[-1][1]:
            corners.append((hour, corners[-1][1]))
        corners.append((hour, share))
    return corners


def _newest(history: Sequence[tuple[RolloutEvent, Rollout]]) -> dict[int, Judgement]:
    """Return the newest finding of each step."""
    return {
        event.step: event.judgement
        for event, _ in history
        if event.kind is EventKind.LOOKED and event.judgement is not None
    }


def _measure_rows(with_margin: Collection[str], judgement: Judgement) -> list[list[str]]:
    champion, candidate = judgement.cards
    rows = []
    for one in judgement.measures:
        theirs, ours = one.events
        within = NO_NUMBER if one.name not in with_margin else "yes" if one.is_within else "not yet"
        rows.append(
            [
                one.name,
                within,
                percent(theirs / champion) if champion else NO_NUMBER,
                percent(ours / candidate) if candidate else NO_NUMBER,
                decimal(one.low, 2),
                "any" if math.isinf(one.high) else decimal(one.high, 2),
                decimal(one.evidence, 1),
            ]
        )
    return rows


def _acts(history: Sequence[tuple[RolloutEvent, Rollout]]) -> list[list[str]]:
    """Return who did what: the events that changed the rollout."""
    rows = []
    before: Rollout | None = None
    for event, rollout in history:
        is_moved = before is None or (before.phase, before.step) != (rollout.phase, rollout.step)
        if is_moved or event.kind not in (EventKind.LOOKED, EventKind.OUTCOMES):
            became = f"{rollout.phase.value.replace('_', ' ')}, {percent_text(rollout.share)}"
            rows.append([_moment(event.time_ms), event.by, event.kind.value, became, event.why or rollout.cause])
        before = rollout
    return rows


def _moment(time_ms: int) -> str:
    try:
        return datetime.fromtimestamp(time_ms / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return str(time_ms)


def _hours_text(hours: float) -> str:
    return f"{hours:.1f} hours" if hours < 72 else f"{hours / 24:.1f} days"
