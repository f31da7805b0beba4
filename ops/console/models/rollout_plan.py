"""Plan a rollout and start it: the candidate, the steps, the margins, and the power of each step.

    /rollout/plan    GET   candidate, steps, margins, traffic ──► the plan with its power, and the digest of the plan
    /rollout/start   POST  the same, and that digest          ──► the same event as by `paywarden rollout start`

The digest is of champion, candidate and plan. A person who starts a rollout has therefore seen its plan: if the
champion has changed meanwhile, or a number in the form, nothing starts. The rules of the log decide as ever: where
there is a registry, the candidate is a proposal with its approvals.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

from paywarden.ops.console.models.candidates import Candidate, bundles, proposals, versions
from paywarden.ops.console.models.desk import Desk
from paywarden.ops.console.pages import Done, Field, Page, PageRefused, Shown, Visit
from paywarden.ops.console.people import Role
from paywarden.schemas.errors import Misconfigured, PaywardenError

if TYPE_CHECKING:
    from paywarden.models.rollout.plan import RolloutMeasure, RolloutPlan
    from paywarden.models.rollout.rollout import Version

STARTERS = frozenset({Role.MODEL_OWNER})
PLAN_PATH = "/rollout/plan"
# By their meaning: each is a quantile of the champion's answers or scores before the rollout.
_KNOWN_SHARES = {"slow": 0.01, "score_upper": 0.10}
_ASKED_SHARES = ("review", "decline")
_LIST_CHARS_MAX = 200

_CANDIDATE = Field("candidate", "The digest of a proposal, or of a bundle where there is no registry")
_PLAN_FIELDS = (
    Field("steps", "Shares of the cards in percent, the last one 100: 1, 5, 25, 100", chars_max=_LIST_CHARS_MAX),
    Field("hours", "How long each step but the last takes at least, in hours: 1, 6, 24", chars_max=_LIST_CHARS_MAX),
    Field(
        "margin", "By how much an event may be rarer or more frequent among all cards", kind="number", low=0, high=10
    ),
    Field("tolerance", "A difference up to this is no harm", kind="number", low=0, high=1),
    Field("alpha", "The probability that a candidate that differs in nothing is stopped", kind="number", low=0, high=1),
    Field("shadow", "Begin in the shadow: the candidate decides without effect, and gets no card", choices=("yes",)),
)
_TRAFFIC_FIELDS = (
    Field("cards_a_day", "How many different cards pay in a day, for the power", kind="number", low=1, high=1e10),
    Field("review", "How many of 100 payments are sent to review now", kind="number", low=0, high=99),
    Field("decline", "How many of 100 payments are declined now", kind="number", low=0, high=99),
)


@dataclass(frozen=True)
class SeenTraffic:
    """The index's traffic of 24 hours: payments, and shares of actions in the first `sample` of the newest hour."""

    payments: int
    sample: int
    review: float
    decline: float


@dataclass(frozen=True)
class FoundRatio:
    """The smallest ratio of a measure that a step finds with a probability of 80 %; None if it finds nothing."""

    measure: str
    ratio: float | None


@dataclass(frozen=True)
class PlannedStep:
    """A step of the plan. `low` and `high`: the ratios between which the candidate must lie to go on.

    `goes_on_hours`: after how long it goes on, if nothing differs; None for never. `waits_for`: the slowest measure.
    """

    share: float
    hours: float
    low: float
    high: float
    found: tuple[FoundRatio, ...]
    goes_on_hours: float | None
    waits_for: str


@dataclass(frozen=True)
class PlanView:
    """A plan. `trouble`: why there is none, or why it cannot start. `digest`: a start must name it; "" without one.

    `asked`: the fields of the form. `measures`: the compared measures, with their meaning.
    """

    asked: Mapping[str, str]
    candidates: tuple[Candidate, ...]
    candidate: Candidate | None
    champion: str
    steps: tuple[PlannedStep, ...]
    measures: tuple[tuple[str, str], ...]
    hours: float | None
    digest: str
    trouble: str
    seen: SeenTraffic | None
    has_registry: bool
    needs_passphrase: bool
    may_sign: bool


Seen = Callable[[int], SeenTraffic | None]
"""Return the traffic of the day before a time; None if it is not known."""


class Starting:
    """The pages that plan and start a rollout."""

    def __init__(self, desk: Desk, seen: Seen = lambda _: None) -> None:
        self._desk, self._seen = desk, seen

    def pages(self) -> tuple[Page, ...]:
        """Return the pages."""
        why = Field("why", "Why, for the log", is_required=True)
        passphrase = Field("passphrase", "The passphrase of your key, where there is a registry")
        digest = Field("plan", "The digest of the plan, as /rollout/plan gave it", is_required=True, chars_max=64)
        named = replace(_CANDIDATE, is_required=True)
        return (
            Page(
                PLAN_PATH,
                self.plan,
                "The plan of a rollout, and the power of each step",
                roles=STARTERS,
                fields=(_CANDIDATE, *_PLAN_FIELDS, *_TRAFFIC_FIELDS),
            ),
            Page(
                "/rollout/start",
                self.start,
                "Start a rollout by a plan that was shown",
                "POST",
                STARTERS,
                (named, *_PLAN_FIELDS, digest, why, passphrase),
            ),
        )

    def plan(self, visit: Visit) -> Shown:
        """Show a plan."""
        asked = self._asked(visit)
        candidates, trouble = self._candidates(visit)
        chosen = next((one for one in candidates if one.digest == asked.get("candidate")), None)
        view = PlanView(
            asked,
            candidates,
            chosen,
            "",
            (),
            (),
            None,
            "",
            trouble or self._running(),
            self._seen(visit.now_ms),
            self._desk.has_registry,
            self._desk.has_registry,
            self._desk.may_sign(visit.person),
        )
        if chosen is not None and not view.trouble:
            view = self._planned(view, chosen, visit)
        return Shown("models/plan.html", view, "Plan a rollout")

    def _planned(self, view: PlanView, chosen: Candidate, visit: Visit) -> PlanView:
        """Return the view with steps and power, or with the fault of the plan."""
        from paywarden.models.rollout.power import Traffic, power

        try:
            plan = self._plan(visit)
            compared = versions(self._desk.source, chosen.digest)
            shares = {**_KNOWN_SHARES, **{name: visit.number(name) / 100 for name in _ASKED_SHARES if visit.text(name)}}
            lines = power(plan, Traffic(visit.number("cards_a_day"), shares)) if visit.text("cards_a_day") else []
        except PaywardenError as error:
            return replace(view, trouble=str(error))
        steps = []
        for step, those in groupby(lines, key=lambda line: line.step):
            of_step = list(those)
            slowest = max(of_step, key=lambda line: line.hours)
            steps.append(
                PlannedStep(
                    of_step[0].share_percent / 100,
                    of_step[0].step_hours,
                    *plan.ratio_limits(step),
                    tuple(FoundRatio(line.measure, _finite(line.ratio)) for line in of_step),
                    _finite(slowest.hours),
                    slowest.measure,
                )
            )
        hours = [one.goes_on_hours for one in steps]
        return replace(
            view,
            champion=compared[0].bundle_digest,
            steps=tuple(steps),
            measures=_meanings(plan.measures),
            hours=None if None in hours else sum(one or 0.0 for one in hours),
            # Nobody starts a rollout whose power they have not seen.
            digest=digest_of(compared, plan, visit.text("shadow")) if steps else "",
        )

    def start(self, visit: Visit) -> Done:
        """Start a rollout. Raises PageRefused, Misconfigured."""
        candidate, why = visit.text("candidate"), visit.text("why")
        if candidate not in [one.digest for one in self._candidates(visit)[0]]:
            raise PageRefused(409, "There is no such candidate any more. Plan the rollout again.")
        plan = self._plan(visit)
        compared = versions(self._desk.source, candidate)
        if visit.text("plan") != digest_of(compared, plan, visit.text("shadow")):
            raise PageRefused(409, "This is not the plan that was shown, or the champion has changed. Plan it again.")
        line = self._desk.start_rollout(
            visit.person, visit.text("passphrase"), compared, plan, why, visit.now_ms, shadow=bool(visit.text("shadow"))
        )
        visit.did("rollout_started", f"candidate:{candidate}", why=why)
        return Done("/models", f"Rollout {line}.")

    def _plan(self, visit: Visit) -> RolloutPlan:
        """Return the plan of the settings with the changes of the form. Raises Misconfigured."""
        from paywarden.models.rollout.settings import RolloutSettings

        asked = self._asked(visit)
        return replace(
            self._desk.source.section("rollout", RolloutSettings),
            steps=_numbers("steps", asked["steps"]),
            step_hours=_numbers("hours", asked["hours"]),
            margin=float(asked["margin"]),
            tolerance=float(asked["tolerance"]),
            alpha=float(asked["alpha"]),
        ).plan()

    def _asked(self, visit: Visit) -> dict[str, str]:
        """Return the fields of the form: the sent values, else those of the settings."""
        from paywarden.models.rollout.settings import RolloutSettings

        found = self._desk.source.section("rollout", RolloutSettings)
        asked = {
            "steps": ", ".join(f"{one:g}" for one in found.steps),
            "hours": ", ".join(f"{one:g}" for one in found.step_hours),
            **{name: f"{getattr(found, name):g}" for name in ("margin", "tolerance", "alpha")},
        }
        names = [one.name for one in (_CANDIDATE, *_PLAN_FIELDS, *_TRAFFIC_FIELDS)]
        return asked | {name: visit.text(name) for name in names if visit.text(name)}

    def _candidates(self, visit: Visit) -> tuple[tuple[Candidate, ...], str]:
        """Return the candidates, and why they are not known; "" if they are."""
        if not self._desk.has_registry:
            return bundles(self._desk.source), ""
        view = self._desk.registry(visit.person, visit.now_ms)
        return proposals(view), view.trouble

    def _running(self) -> str:
        """Return why no rollout can start now; empty if one can."""
        found = self._desk.rollout()
        if found.trouble:
            return f"the log of rollouts cannot be read: {found.trouble}"
        return "" if found.has_ended else f"the rollout {found.name} has not ended: one runs at a time"


def digest_of(compared: Sequence[Version], plan: RolloutPlan, shadow: str) -> str:
    """Return the digest of the rollout that would start."""
    content = json.dumps([[asdict(one) for one in compared], asdict(plan), bool(shadow)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _meanings(measures: Sequence[RolloutMeasure]) -> tuple[tuple[str, str], ...]:
    return tuple((one.name, one.meaning) for one in measures)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise Misconfigured(f"rollout {name}: wanted numbers with commas between them, got {text!r}") from None
