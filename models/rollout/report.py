"""Write the report of a rollout: one HTML file for the person who answers for it, made from the log alone.

It shows what was compared and by which rules, the evidence over time, the mature outcomes and the money, who approved
the candidate, and who did what and why. It depends on the log alone, so the same log gives the same bytes. It names no
card, no payment and no machine.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from datetime import UTC, datetime

from paywarden.models.replay.report.page import (
    NO_NUMBER,
    Card,
    Definitions,
    Figure,
    FigureCards,
    Figures,
    Heading,
    PageBlock,
    PageTable,
    Paragraph,
    decimal,
    money,
    notice,
    percent,
    whole,
)
from paywarden.models.replay.report.plots import Plot, PlotLine, drawing_of, linear_axis
from paywarden.models.replay.report.renderer import render_page
from paywarden.models.rollout.judgement import Judgement, MeasureEvidence
from paywarden.models.rollout.plan import OUTCOME_MEASURES, RolloutPlan
from paywarden.models.rollout.rollout import Agreed, EventKind, Phase, Rollout, RolloutEvent, Version, after
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
    """Returns the whole file as text. `events`: of a log, in order. `currency`: the reference currency.

    `agreed`: who approved the candidate; None if there is no registry that would know.
    Raises Misconfigured if there is no rollout with this name, or if an event does not fit.
    """
    history = _history(events, name)
    rollout = history[-1][1]
    return render_page(
        title=f"Rollout {name}",
        heading=f"Rollout {name}: {_title(rollout).lower()}",
        blocks=[
            *_head(history),
            *_evidence(history),
            *_steps(history),
            *_outcomes(rollout, currency),
            *_approvals(agreed),
            *_people(history),
            *_method(rollout.start.plan),
        ],
    )


def _history(events: Sequence[RolloutEvent], name: str) -> list[tuple[RolloutEvent, Rollout]]:
    """Returns the events of one rollout, each with the state after it."""
    history = []
    rollout: Rollout | None = None
    for event in events:
        rollout = after(rollout, event)
        if rollout.start.name == name:
            history.append((event, rollout))
    if not history:
        raise Misconfigured(f"there is no rollout with the name {name!r} in the log")
    return history


def _head(history: Sequence[tuple[RolloutEvent, Rollout]]) -> list[PageBlock]:
    (first, _), (_, rollout) = history[0], history[-1]
    start, plan = rollout.start, rollout.start.plan
    hours = (rollout.time_ms - first.time_ms) / _HOUR_MS
    cards = [
        Card("Share now", percent_text(rollout.share), f"The most it reached is {percent_text(_most(history))}."),
        Card("Time", _hours_text(hours), f"{_moment(first.time_ms)} to {_moment(rollout.time_ms)}."),
        Card("Margin", percent(plan.margin), "A step may change an event's frequency among all cards by at most this."),
        Card("Risk", percent(plan.alpha), "The chance that an equal candidate is stopped, over all looks."),
    ]
    return [
        Paragraph(f"{_title(rollout)}: {rollout.cause or 'the newest look decides about the next step'}.", "lead"),
        *([notice("Time alone never widens a share.")] if rollout.phase is Phase.RUNNING else []),
        Definitions([("Champion", _version(start.champion)), ("Candidate", _version(start.candidate))]),
        FigureCards(cards),
    ]


def _version(version: Version) -> str:
    policy = f"policy {version.policy_digest[:16]}" if version.policy_digest else "the policy of the configuration"
    return f"bundle {version.bundle or NO_NUMBER}, digest {version.bundle_digest[:16]}; {policy}"


def _most(history: Sequence[tuple[RolloutEvent, Rollout]]) -> int:
    return max(rollout.share for _, rollout in history)


def _evidence(history: Sequence[tuple[RolloutEvent, Rollout]]) -> list[PageBlock]:
    start_ms = history[0][0].time_ms
    looks = [
        ((event.time_ms - start_ms) / _HOUR_MS, event.judgement, rollout)
        for event, rollout in history
        if event.kind is EventKind.LOOKED and event.judgement is not None
    ]
    if not looks:
        return [Heading("Evidence over time"), Paragraph("Nobody has looked yet.", "soft")]
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
        Heading("Evidence over time"),
        Figures(
            [
                Figure(
                    "Evidence of harm",
                    drawing_of(evidence),
                    "The measure with the strongest evidence at each look: the logarithm of its e-value over its "
                    "threshold. At 0 the rollout is rolled back. It may be looked at any number of times.",
                ),
                Figure("Share", drawing_of(share), "A step goes on when its least time is over and it is within."),
            ]
        ),
    ]


def _shares(history: Sequence[tuple[RolloutEvent, Rollout]]) -> list[tuple[float, float]]:
    """Returns the corners of the share over time: it changes at once, for a step and for the way back."""
    corners = [(0.0, 0.0)]
    for event, rollout in history:
        hour, share = (event.time_ms - history[0][0].time_ms) / _HOUR_MS, rollout.share / 10_000
        if share != corners[-1][1]:
            corners.append((hour, corners[-1][1]))
        corners.append((hour, share))
    return corners


def _steps(history: Sequence[tuple[RolloutEvent, Rollout]]) -> list[PageBlock]:
    """The newest finding of each step, with every measure."""
    newest: dict[int, Judgement] = {}
    for event, _ in history:
        if event.kind is EventKind.LOOKED and event.judgement is not None:
            newest[event.step] = event.judgement
    plan = history[-1][1].start.plan
    blocks: list[PageBlock] = [Heading("The comparison of each step")]
    for step, judgement in sorted(newest.items()):
        low, high = plan.ratio_limits(step)
        champion, candidate = judgement.cards
        blocks += [
            Heading(f"{percent_text(plan.steps[step])}: {judgement.finding.value.replace('_', ' ')}", 3),
            Paragraph(
                f"{judgement.line[0].upper()}{judgement.line[1:]}. To go on to {percent_text(plan.steps[step + 1])}, "
                f"ratios must lie between {low:.2f} and {high:.2f}."
            ),
            _measures_table(judgement.measures, plan.with_margin, champion, candidate),
        ]
    return blocks if newest else []


def _measures_table(
    found: Sequence[MeasureEvidence], with_margin: Collection[str], champion: int, candidate: int
) -> PageTable:
    rows = []
    for one in found:
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
    heads = ["measure", "within", "champion's cards", "candidate's", "ratio at least", "at most", "evidence of harm"]
    return PageTable(heads, rows, text_columns=2)


def _outcomes(rollout: Rollout, currency: str) -> list[PageBlock]:
    blocks: list[PageBlock] = [Heading("Outcomes and money")]
    found, days = rollout.outcomes, rollout.start.plan.label_days
    if found is None:
        return [*blocks, Paragraph(f"No outcome has been looked at: labels take {days:g} days.", "soft")]
    champion, candidate = found.cards
    blocks += [
        Paragraph(f"{found.line[0].upper()}{found.line[1:]}. Payments are at least {days:g} days old."),
        _measures_table(found.measures, rollout.start.plan.with_margin, champion, candidate),
    ]
    if found.money is not None:
        theirs, ours, low, high = (
            money(value, currency, is_signed=is_signed)
            for value, is_signed in (
                (found.money.champion, False),
                (found.money.candidate, False),
                (found.money.low, True),
                (found.money.high, True),
            )
        )
        blocks.append(
            Paragraph(
                f"Approved fraud cost {ours} in 1,000 payments with the candidate and {theirs} with the champion. The "
                f"difference lies between {low} and {high}: this holds at all looks, in the limit of many cards."
            )
        )
    if found.missed is not None:
        arms = zip(("Champion", "Candidate"), found.missed, strict=True)
        blocks.append(Definitions([(name, f"{missed.line}.") for name, missed in arms]))
    return blocks


def _approvals(agreed: Sequence[Agreed] | None) -> list[PageBlock]:
    heading = Heading("Who approved the candidate")
    if agreed is None:
        return [heading, Paragraph("There is no registry, so nobody had to approve it.", "soft")]
    rows = [[_moment(one.time_ms), one.by, one.what, one.why] for one in agreed]
    return [heading, PageTable(["time (UTC)", "by", "what", "why"], rows, text_columns=4)]


def _people(history: Sequence[tuple[RolloutEvent, Rollout]]) -> list[PageBlock]:
    rows = []
    before: Rollout | None = None
    for event, rollout in history:
        is_moved = before is None or (before.phase, before.step) != (rollout.phase, rollout.step)
        if is_moved or event.kind not in (EventKind.LOOKED, EventKind.OUTCOMES):
            became = f"{rollout.phase.value.replace('_', ' ')}, {percent_text(rollout.share)}"
            rows.append([_moment(event.time_ms), event.by, event.kind.value, became, event.why or rollout.cause])
        before = rollout
    return [Heading("Who did what"), PageTable(["time (UTC)", "by", "event", "became", "why"], rows, text_columns=5)]


def _method(plan: RolloutPlan) -> list[PageBlock]:
    names = [(measure.name, measure.meaning) for measure in (*plan.measures, *OUTCOME_MEASURES)]
    return [
        Heading("How it was judged"),
        Paragraph(
            "A card belongs to one arm by a keyed hash of its id, and counts once for each event. If nothing differs, "
            "the arm of the next card with an event is a coin whose odds the split alone decides. The evidence is the "
            "gain of bets on other odds. It reaches its threshold with a probability of at most the risk, however "
            "often one looks, and whatever the payments of one card have in common."
        ),
        Paragraph(
            f"Steps: {', '.join(map(percent_text, plan.steps))}, with at least "
            f"{', '.join(f'{hours:g}' for hours in plan.step_hours)} hours each. A step needs {whole(plan.cards_min)} "
            f"new cards of each arm. An event of fewer than {percent(plan.rare_share)} of cards is within the margin."
        ),
        Definitions(names),
    ]


def _moment(time_ms: int) -> str:
    try:
        return datetime.fromtimestamp(time_ms / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return str(time_ms)


def _hours_text(hours: float) -> str:
    return f"{hours:.1f} hours" if hours < 72 else f"{hours / 24:.1f} days"
