"""Judge a step: is the candidate harmful, within the margin, or is it not known yet?

    mismatch       the share of cards is wrong: the comparison is worthless, and rolls back, too
    harm           an event is more frequent with the candidate, or as harmful less frequent, beyond the tolerance
    no data        fewer than `cards_min` new cards of an arm
    within         every measure is within the step's margin, with nothing left out
    inconclusive   none of these: the step goes on as it is

The first that applies is the finding. Only `within` lets a rollout go on, and time alone never does.

Evidence of a day starts again, though some of its cards were seen on an earlier day. For that reason it has a share of
`alpha` of its own: within the day each card shows its arm once, and with nothing different no card's events depend on
its arm. Gains of several days are never multiplied, since a card that often has events would count again and again.

Two risks are bounded, each over all looks together. A candidate that differs in nothing is stopped with a probability
of at most `alpha`. A candidate that is outside the margin in some measure is called `within` with a probability of at
most `alpha` a step: it would have to pass in that measure too, so no split among measures is needed
(R. Berger, "Multiparameter hypothesis testing and acceptance sampling", 1982).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.models.metrics.intervals import wilson_interval
from paywarden.models.rollout.plan import OUTCOME_MEASURES, Part, RolloutPlan
from paywarden.models.rollout.rollout_evidence import (
    Floats,
    log_evidence,
    log_evidence_below,
    log_share_evidence,
    log_threshold,
    ratio_interval,
)
from paywarden.models.rollout.rollout_tally import Counts, StepCounts
from paywarden.models.rollout.shares import CANDIDATE, CHAMPION

_MONEY = ("champion", "candidate", "low", "high")


class Finding(Enum):
    """The result of a look at a step, or at mature outcomes."""

    MISMATCH = "mismatch"
    HARM = "harm"
    NO_DATA = "no_data"
    WITHIN = "within"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class MeasureEvidence:
    """One measure at one look. `evidence`: the logarithm of the e-value divided by its threshold, so 0 is enough.

    `events`: the cards whose first payment had the event, champion and candidate. `low`, `high`: the interval of the
    ratio of candidate to champion, valid at all looks.
    """

    name: str
    evidence: float
    is_fall: bool
    events: tuple[int, int]
    low: float
    high: float
    is_within: bool


@dataclass(frozen=True)
class MoneyInterval:
    """Losses by approved fraud in minor units of the reference currency for 1,000 payments, and their difference.

    `low`, `high`: the interval of candidate minus champion, valid at all looks in the limit of many cards.
    """

    champion: float
    candidate: float
    low: float
    high: float


@dataclass(frozen=True)
class MissedByArm:
    """What an arm missed: it is shown to people, and decides nothing.

    `first_frauds`: the first fraud of each card in the rollout, and how many of these the arm stopped. `bursts`: of one
    card; `approved_before_stop`: the mean number of payments approved before the first stop, with its 95 % interval of
    this look. None where there is none. `frauds`: all of them, those that a rule stopped, such as one with a list, and
    those that the score alone stopped.
    """

    first_frauds: int
    first_stopped: int
    frauds: int
    by_rules: int
    by_score: int
    bursts: int
    approved_before_stop: float | None
    approved_low: float | None
    approved_high: float | None

    @property
    def line(self) -> str:
        """What the arm missed, in a line for an operator."""
        text = f"{self.first_stopped:,} of {self.first_frauds:,} first frauds of a card stopped"
        if self.first_frauds:
            share = self.first_stopped / self.first_frauds
            low, high = wilson_interval(share, self.first_frauds)
            text += f" ({share:.1%}, 95 % interval {low:.1%} to {high:.1%})"
        if left := self.frauds - self.by_rules:
            low, high = wilson_interval(self.by_score / left, left)
            text += (
                f"; of {self.frauds:,} frauds rules and lists stopped {self.by_rules:,}, and the score "
                f"{self.by_score:,} of the others ({self.by_score / left:.1%}, 95 % interval {low:.1%} to {high:.1%})"
            )
        if self.approved_before_stop is not None:
            text += f"; {self.approved_before_stop:.1f} payments of a burst approved before the first stop"
        if self.approved_low is not None:
            text += f" (95 % interval {self.approved_low:.1f} to {self.approved_high:.1f})"
        return text


@dataclass(frozen=True)
class Judgement:
    """The result of a look. `measure`: the one with the strongest evidence of harm, and `evidence` is its evidence."""

    finding: Finding
    measure: str
    evidence: float
    cards: tuple[int, int]
    measures: tuple[MeasureEvidence, ...]
    money: MoneyInterval | None = None
    missed: tuple[MissedByArm, MissedByArm] | None = None
    """The champion's and the candidate's, by mature outcomes."""

    @property
    def line(self) -> str:
        """The finding in one line for an operator."""
        champion, candidate = self.cards
        of = f"{candidate:,} cards of the candidate, {champion:,} of the champion"
        if self.finding is Finding.MISMATCH:
            return f"the cards are not split as they should be: {of}"
        if self.finding is Finding.HARM:
            worst = next(one for one in self.measures if one.name == self.measure)
            direction = "less" if worst.is_fall else "more"
            return f"{worst.name} is {direction} frequent with the candidate ({_interval_text(worst)}; {of})"
        if self.finding is Finding.NO_DATA:
            return f"no data: {of}"
        if self.finding is Finding.WITHIN:
            return f"every measure is within its margin ({of})"
        missing = [one for one in self.measures if not one.is_within]
        return f"not known yet: {', '.join(one.name for one in missing[:3])} not within the margin ({of})"


def _interval_text(evidence: MeasureEvidence) -> str:
    if math.isinf(evidence.high):
        return f"at least {evidence.low:.2f} times"
    return f"{evidence.low:.2f} to {evidence.high:.2f} times"


def judge(plan: RolloutPlan, step: int, counts: StepCounts) -> Judgement:
    """Returns the judgement of one look at a step."""
    harms, falls = harm_evidence(plan, step, counts)
    mismatch = float(mismatch_evidence(plan, step, counts))
    measures = tuple(_measures(plan, step, counts, harms, falls))
    worst = int(np.argmax(harms))
    champion, candidate = (int(count) for count in counts.cards)
    if mismatch >= 0:
        finding = Finding.MISMATCH
    elif harms[worst] >= 0:
        finding = Finding.HARM
    elif candidate < plan.cards_min or champion < plan.cards_min:
        finding = Finding.NO_DATA
    else:
        finding = Finding.WITHIN if all(one.is_within for one in measures) else Finding.INCONCLUSIVE
    evidence = mismatch if finding is Finding.MISMATCH else float(harms[worst])
    return Judgement(finding, plan.measures[worst].name, evidence, (champion, candidate), measures)


def harm_evidence(plan: RolloutPlan, step: int, counts: StepCounts) -> tuple[Floats, NDArray[np.bool_]]:
    """Returns the evidence of harm of each measure over its threshold, and whether it is of a fall.

    Both have shape (..., measures), for one look or many. At 0 and above the measure stops the rollout.
    """
    found = [
        harm_evidence_of(plan, step, index, counts.step[..., index, :], counts.day[..., index, :], counts.day_number)
        for index in range(len(plan.measures))
    ]
    return np.stack([evidence for evidence, _ in found], axis=-1), np.stack([is_fall for _, is_fall in found], axis=-1)


def harm_evidence_of(
    plan: RolloutPlan, step: int, index: int, of_step: Counts, of_day: Counts, day_number: Counts
) -> tuple[Floats, NDArray[np.bool_]]:
    """Returns the same of one measure, both with shape (...). `of_step`, `of_day`: its counts, shape (..., 2)."""
    share, measure = np.array([plan.comparing_share(step)]), plan.measures[index]
    needed = log_threshold(plan.alpha_of(measure.part) / 2)
    # The n-th day of a step has 1 / (n (n + 1)) of half of the step's alpha: these shares sum to 1.
    spent = np.log(day_number * (day_number + 1.0))
    found = []
    for falls in measure.directions:
        whole, day = (
            log_evidence(
                block[..., CANDIDATE, None],
                block[..., CHAMPION, None],
                share,
                ratio=plan.harm_from(falls=falls),
                falls=falls,
            )
            for block in (of_step, of_day)
        )
        found.append(np.maximum(whole, day - spent) - needed)
    return np.maximum(found[0], found[-1]), np.asarray(found[-1] > found[0])


def mismatch_evidence(plan: RolloutPlan, step: int, counts: StepCounts) -> Floats:
    """Returns the evidence that cards are not split as they should be, over its threshold. Shape (...)."""
    share = np.array([plan.comparing_share(step)])
    evidence = log_share_evidence(counts.cards[..., CANDIDATE, None], counts.cards[..., CHAMPION, None], share)
    return evidence - log_threshold(plan.alpha_of(Part.SPLIT))


def within_margin(plan: RolloutPlan, step: int, counts: StepCounts) -> NDArray[np.bool_]:
    """Returns whether every measure with a margin is within it, shape (...), for one look or many.

    `judge` says the same of one look, with the intervals; here only the two ends of the margin are tested.
    """
    share = np.array([plan.comparing_share(step)])
    needed = log_threshold(plan.alpha)
    low, high = plan.ratio_limits(step)
    known = counts.cards.min(axis=-1) >= plan.cards_min
    for index, measure in enumerate(plan.measures):
        if measure.has_margin:
            ours, theirs = (counts.first[..., index, arm, None] for arm in (CANDIDATE, CHAMPION))
            fits = log_evidence(ours, theirs, share, ratio=high, falls=True) >= needed
            if measure.falls_are_harm and low > 0:
                fits &= log_evidence(ours, theirs, share, ratio=low) >= needed
            rare = log_evidence_below(ours[..., 0], counts.cards[..., CANDIDATE], plan.rare_limit(step)) >= needed
            known = known & (fits | rare)
    return np.asarray(known, dtype=np.bool_)


def _measures(
    plan: RolloutPlan, step: int, counts: StepCounts, harms: Floats, falls: NDArray[np.bool_]
) -> list[MeasureEvidence]:
    share, needed = np.array([plan.comparing_share(step)]), log_threshold(plan.alpha)
    low_limit, high_limit = plan.ratio_limits(step)
    champion, candidate = counts.first[:, CHAMPION], counts.first[:, CANDIDATE]
    lows, highs = ratio_interval(candidate[:, None], champion[:, None], share, needed)
    cards = counts.cards[CANDIDATE]
    rare = log_evidence_below(candidate, cards, plan.rare_limit(step)) >= needed
    found = []
    for index, measure in enumerate(plan.measures):
        low, high = float(lows[index]), float(highs[index])
        fits = high <= high_limit and (low >= low_limit or not measure.falls_are_harm)
        found.append(
            MeasureEvidence(
                measure.name,
                float(harms[index]),
                bool(falls[index]),
                (int(champion[index]), int(candidate[index])),
                low,
                high,
                is_within=not measure.has_margin or bool(rare[index]) or fits,
            )
        )
    return found


@dataclass(frozen=True)
class OutcomeCounts:
    """Cards with mature outcomes, by step: each step is a stratum, with the candidate's share of then.

    `cards`: cards with a mature outcome, shape (strata, 2). `events`: shape (outcome measures, strata, 2).
    `amount_evidence`: log of the e-value of the amount of approved fraud (WeightedEvidence, over all steps).
    `shares`: the candidate's share of the cards of each stratum, shape (strata,). `labelled`: cards of both arms
    with a reported outcome.
    """

    cards: Counts
    events: Counts
    amount_evidence: float
    shares: Floats
    labelled: int
    money: MoneyInterval | None = None
    missed: tuple[MissedByArm, MissedByArm] | None = None


def judge_outcomes(plan: RolloutPlan, counts: OutcomeCounts) -> Judgement:
    """Returns the judgement of a candidate by mature outcomes, with the margin of all payments.

    Payments must be at least `label_days` old: the labels of younger ones come in the order of their discovery. Where
    nobody reports outcomes, all payments look genuine: fewer than `labels_min` cards with an outcome are no data.
    """
    limit, needed = 1 + plan.margin, log_threshold(plan.alpha)
    harm_needed = log_threshold(plan.alpha_of(Part.OUTCOMES))
    champion, candidate = (int(count) for count in counts.cards.sum(axis=0))
    measures = []
    for measure, events in zip(OUTCOME_MEASURES, counts.events, strict=True):
        theirs, ours = events[:, CHAMPION], events[:, CANDIDATE]
        is_amount = measure.name == "fraud_amount"
        evidence = counts.amount_evidence if is_amount else float(log_evidence(ours, theirs, counts.shares))
        low, high = (float(end) for end in ratio_interval(ours, theirs, counts.shares, needed))
        rare = float(log_evidence_below(ours.sum(), candidate, min(plan.rare_share, 0.5))) >= needed
        is_within = not measure.has_margin or high <= limit or rare
        pair = (int(theirs.sum()), int(ours.sum()))
        measures.append(MeasureEvidence(measure.name, evidence - harm_needed, False, pair, low, high, is_within))
    worst = max(measures, key=lambda one: one.evidence)
    if worst.evidence >= 0:
        finding = Finding.HARM
    elif min(champion, candidate) < plan.cards_min or counts.labelled < plan.labels_min:
        finding = Finding.NO_DATA
    else:
        finding = Finding.WITHIN if all(one.is_within for one in measures) else Finding.INCONCLUSIVE
    return Judgement(
        finding, worst.name, worst.evidence, (champion, candidate), tuple(measures), counts.money, counts.missed
    )


def judgement_record(judgement: Judgement) -> dict[str, Any]:
    """Returns a judgement as values that JSON can hold; an infinite ratio is None."""
    return {
        "finding": judgement.finding.value,
        "measure": judgement.measure,
        "evidence": judgement.evidence,
        "cards": list(judgement.cards),
        "money": None if judgement.money is None else asdict(judgement.money),
        "missed": None if judgement.missed is None else [asdict(one) for one in judgement.missed],
        "measures": [
            {
                "name": one.name,
                "evidence": one.evidence,
                "is_fall": one.is_fall,
                "events": list(one.events),
                "low": one.low,
                "high": None if math.isinf(one.high) else one.high,
                "is_within": one.is_within,
            }
            for one in judgement.measures
        ],
    }


def judgement_of(record: dict[str, Any]) -> Judgement:
    """Returns the judgement of a record that `judgement_record` made. Raises KeyError, TypeError or ValueError."""
    measures: Sequence[dict[str, Any]] = record["measures"]
    return Judgement(
        Finding(record["finding"]),
        str(record["measure"]),
        float(record["evidence"]),
        (int(record["cards"][0]), int(record["cards"][1])),
        tuple(
            MeasureEvidence(
                str(one["name"]),
                float(one["evidence"]),
                bool(one["is_fall"]),
                (int(one["events"][0]), int(one["events"][1])),
                float(one["low"]),
                math.inf if one["high"] is None else float(one["high"]),
                bool(one["is_within"]),
            )
            for one in measures
        ),
        None if record["money"] is None else MoneyInterval(**{name: float(record["money"][name]) for name in _MONEY}),
        None if record["missed"] is None else (_missed_of(record["missed"][0]), _missed_of(record["missed"][1])),
    )


_MISSED = ("first_frauds", "first_stopped", "frauds", "by_rules", "by_score", "bursts")


def _missed_of(record: dict[str, Any]) -> MissedByArm:
    counts = (int(record[name]) for name in _MISSED)
    names = ("approved_before_stop", "approved_low", "approved_high")
    return MissedByArm(*counts, *(None if record[name] is None else float(record[name]) for name in names))
