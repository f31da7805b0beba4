"""The plan of a rollout, decided before it starts: the steps, the measures, the margins, the risk of an error.

Every *measure* is an event that a card has or has not, such as a declined payment. For each measure stand here in which
direction a difference is harm, its share of `alpha`, and whether the candidate must be shown to be within the margin.

`alpha` is the probability that anything stops a candidate that differs in nothing, over the whole rollout and over all
looks. It is split, so that all parts together stay below it (the union bound):

    measures of all payments   1/2     each measure alike, and each direction of a measure alike
    measures of segments       1/4     the same
    measures of outcomes       1/8     the same
    the share of cards         1/8
    steps                              each step that compares alike; outcomes have all steps together
    blocks of a step                   half for the whole step, half for its days: 1/2, 1/6, 1/12, … 1/(n (n + 1))

A part without measures leaves its share to the others.

The margin of a step follows from the share that comes next. A step may go on to share s if the candidate's ratio R lies
between 1 - margin / s and 1 + margin / s. The next step then changes an event's frequency among *all* cards by at most
`margin` of it, from the first step to the last:

    margin 0.25    next 5 %: 0 to 6    10 %: 0 to 3.5    25 %: 0 to 2    50 %: 0.5 to 1.5    100 %: 0.75 to 1.25
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from itertools import pairwise

from paywarden.models.rollout.shares import BASIS_POINTS, checked_steps
from paywarden.schemas.errors import Misconfigured

STEPS = (1.0, 5.0, 10.0, 25.0, 50.0, 100.0)
STEP_HOURS = (1.0, 6.0, 24.0, 24.0, 24.0)
SETTLE_S_MAX = 3_600.0
SEGMENTS_MAX = 19
"""The events of a payment are 64 bits: seven of all payments, and three for each segment."""


class Part(Enum):
    """A part of the measures, with a share of `alpha` of its own."""

    PAYMENTS = "payments"
    SEGMENTS = "segments"
    OUTCOMES = "outcomes"
    SPLIT = "split"


_PART_SHARES = {Part.PAYMENTS: 1 / 2, Part.SEGMENTS: 1 / 4, Part.OUTCOMES: 1 / 8, Part.SPLIT: 1 / 8}


@dataclass(frozen=True)
class RolloutMeasure:
    """An event that a card has or has not. `falls_are_harm`: fewer events are harm as well as more.

    `has_margin`: a step goes on only if the measure is within the margin.
    """

    name: str
    meaning: str
    part: Part
    falls_are_harm: bool
    has_margin: bool

    @property
    def directions(self) -> tuple[bool, ...]:
        """The directions of harm, as `falls` of `log_evidence`."""
        return (False, True) if self.falls_are_harm else (False,)


PAYMENT_MEASURES = (
    RolloutMeasure(
        "slow", "answered later than 99 % of the champion's answers before the rollout", Part.PAYMENTS, False, True
    ),
    RolloutMeasure("error", "a model failed, or none gave a score", Part.PAYMENTS, False, True),
    RolloutMeasure("flag", "flagged, other than for an unknown entity", Part.PAYMENTS, False, True),
    RolloutMeasure("review", "sent to review", Part.PAYMENTS, True, True),
    RolloutMeasure("decline", "declined", Part.PAYMENTS, True, True),
    RolloutMeasure("score_upper", "a score among the highest 10 % of before the rollout", Part.PAYMENTS, True, True),
    RolloutMeasure("score_top", "a score among the highest 1 % of before the rollout", Part.PAYMENTS, True, False),
)
"""The measures of all payments. The bounds of slow answers and high scores are fixed when the rollout starts."""
OUTCOME_MEASURES = (
    RolloutMeasure("fraud_approved", "approved, and fraud by its outcome", Part.OUTCOMES, False, True),
    RolloutMeasure("genuine_declined", "declined, and genuine by its outcome", Part.OUTCOMES, False, True),
    RolloutMeasure("fraud_amount", "the amount of approved fraud", Part.OUTCOMES, False, False),
)
"""The measures of mature outcomes. `fraud_amount` weighs each card by its amount."""
_IN_SEGMENTS = ("review", "decline", "score_upper")


def segment_measures(segments: Sequence[str]) -> tuple[RolloutMeasure, ...]:
    """Returns the measures within segments such as `country=FR`.

    Raises Misconfigured for too many segments, for one that is there twice, and for one that is no FIELD=VALUE.
    """
    if len(segments) > SEGMENTS_MAX:
        raise Misconfigured(f"rollout segments: wanted at most {SEGMENTS_MAX}, got {len(segments)}")
    for number, segment in enumerate(segments):
        name, _, value = segment.partition("=")
        if not name or not value:
            raise Misconfigured(f"rollout segments: wanted FIELD=VALUE, such as country=FR, got {segment!r}")
        if segment in segments[:number]:
            raise Misconfigured(f"rollout segments: {segment} is there twice")
    return tuple(
        RolloutMeasure(f"{measure.name} {segment}", f"{measure.meaning}, {segment}", Part.SEGMENTS, True, False)
        for segment in segments
        for measure in PAYMENT_MEASURES
        if measure.name in _IN_SEGMENTS
    )


@dataclass(frozen=True)
class RolloutPlan:
    """The rules of one rollout. Immutable, so that nobody moves a margin while the evidence comes in."""

    # Shares in basis points; the last one is all cards.
    steps: tuple[int, ...] = checked_steps(STEPS)
    # The least time of each step but the last.
    step_hours: tuple[float, ...] = STEP_HOURS
    segments: tuple[str, ...] = ()
    # How long hosts take to act on a new share. Decisions of these seconds do not count: their earlier arms
    # would look like a wrong split.
    settle_s: float = 10.0
    # Measures that nothing is known about here, such as `slow` where no latency is recorded.
    leave_out: tuple[str, ...] = ()
    alpha: float = 0.05
    margin: float = 0.25
    # A candidate that is meant to differ may have events this much more or less often before it is harm.
    tolerance: float = 0.0
    # An event rarer than this among the candidate's cards, divided by the share of the next step, is within the margin
    # whatever the champion's is.
    rare_share: float = 0.002
    # Fewer new cards of the candidate are no data.
    cards_min: int = 100
    # How long labels take to come: outcomes of younger payments are not looked at.
    label_days: float = 14.0
    # Fewer cards with an outcome, of both arms together, are no data.
    labels_min: int = 30
    # A larger approved fraud weighs no more in `fraud_amount`: minor units of the reference currency.
    fraud_cap: int = 100_000

    def __post_init__(self) -> None:
        """Raises Misconfigured naming the value that is out of range."""
        if len(self.steps) < 2:
            raise Misconfigured("rollout steps: wanted at least one below 100 %, since at 100 % nothing is compared")
        # A plan that somebody signed into the log was in nobody's settings.
        if not all(type(step) is int and step > before for before, step in pairwise((0, *self.steps))):
            raise Misconfigured(f"rollout steps: wanted rising whole basis points, got {self.steps!r}")
        if self.steps[-1] != BASIS_POINTS:
            raise Misconfigured(f"rollout steps: wanted 100 % as the last one, got {self.steps[-1] / 100:g} %")
        if len(self.step_hours) != len(self.steps) - 1:
            wanted = f"{len(self.steps) - 1}, one for each step but the last"
            raise Misconfigured(f"rollout hours: wanted {wanted}, got {len(self.step_hours)}")
        for hours in self.step_hours:
            if not 0 < hours < float("inf"):
                raise Misconfigured(f"rollout hours: wanted more than 0, got {hours:g}")
        for name, value, high in (
            ("alpha", self.alpha, 0.5),
            ("margin", self.margin, 10),
            ("rare_share", self.rare_share, 1),
        ):
            if not 0 < value < high:
                raise Misconfigured(f"rollout {name}: wanted above 0 and below {high:g}, got {value:g}")
        if not 0 <= self.tolerance < min(self.margin, 1):
            most = min(self.margin, 1)
            raise Misconfigured(f"rollout tolerance: wanted 0 to below {most:g}, got {self.tolerance:g}")
        for number, count in (
            ("cards_min", self.cards_min),
            ("labels_min", self.labels_min),
            ("fraud_cap", self.fraud_cap),
        ):
            if count < 1:
                raise Misconfigured(f"rollout {number}: wanted at least 1, got {count}")
        if not 0 <= self.settle_s <= SETTLE_S_MAX:
            raise Misconfigured(f"rollout settle_s: wanted 0 to {SETTLE_S_MAX:g}, got {self.settle_s:g}")
        if not 0 <= self.label_days < float("inf"):
            raise Misconfigured(f"rollout label_days: wanted at least 0, got {self.label_days:g}")
        segment_measures(self.segments)
        names = [measure.name for measure in PAYMENT_MEASURES]
        for name in self.leave_out:
            if name not in names:
                raise Misconfigured(f"rollout leave_out: wanted some of {', '.join(names)}, got {name!r}")
        if not any(measure.has_margin for measure in self.measures):
            raise Misconfigured("rollout leave_out: wanted at least one measure with a margin left, got none")

    @cached_property
    def measures(self) -> tuple[RolloutMeasure, ...]:
        """The measures of payments that are compared while a step runs, in the order of every array of counts."""
        every = (*PAYMENT_MEASURES, *segment_measures(self.segments))
        return tuple(measure for measure in every if measure.name.partition(" ")[0] not in self.leave_out)

    @property
    def last_step(self) -> int:
        """The index of the step with all cards, which compares nothing."""
        return len(self.steps) - 1

    def comparing_share(self, step: int) -> float:
        """Returns the candidate's share of the cards that a step compares: those that were not in an earlier step.

        Cards of earlier steps are left out, because their events have decided that this step began. The arms of the
        others are as random as on the first day.
        """
        before = self.steps[step - 1] if step else 0
        return (self.steps[step] - before) / (BASIS_POINTS - before)

    def ratio_limits(self, step: int) -> tuple[float, float]:
        """Returns the ratios between which the candidate must lie for the step to go on."""
        room = self.margin / (self.steps[step + 1] / BASIS_POINTS)
        return max(0.0, 1 - room), 1 + room

    def rare_limit(self, step: int) -> float:
        """Returns the probability below which an event is within the margin whatever the champion's is."""
        return min(self.rare_share / (self.steps[step + 1] / BASIS_POINTS), 0.5)

    def harm_from(self, *, falls: bool) -> float:
        """Returns the ratio beyond which a difference is harm."""
        return 1 - self.tolerance if falls else 1 + self.tolerance

    def alpha_of(self, part: Part) -> float:
        """Returns the share of `alpha` of one direction of one measure in one step; of SPLIT, that of one step."""
        counts = self._directions
        total = sum(_PART_SHARES[each] for each, count in counts.items() if count)
        steps = 1 if part is Part.OUTCOMES else self.last_step
        return self.alpha * _PART_SHARES[part] / total / counts[part] / steps

    @cached_property
    def with_margin(self) -> frozenset[str]:
        """The names of measures that must be within their margin before a step goes on."""
        return frozenset(one.name for one in (*self.measures, *OUTCOME_MEASURES) if one.has_margin)

    @cached_property
    def _directions(self) -> Mapping[Part, int]:
        counts = {Part.SPLIT: 1, Part.PAYMENTS: 0, Part.SEGMENTS: 0, Part.OUTCOMES: 0}
        for measure in (*self.measures, *OUTCOME_MEASURES):
            counts[measure.part] += len(measure.directions)
        return counts


def plan_of(percents: Sequence[float], **rest: object) -> RolloutPlan:
    """Returns a plan with steps in percent. Raises Misconfigured as `checked_steps` and RolloutPlan do."""
    steps = checked_steps(percents)
    if "step_hours" not in rest and len(steps) - 1 != len(STEP_HOURS):
        rest["step_hours"] = (STEP_HOURS[-1],) * (len(steps) - 1)
    return RolloutPlan(steps, **rest)  # type: ignore[arg-type]
