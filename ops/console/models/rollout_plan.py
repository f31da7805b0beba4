"""Plan a rollout and start it: the candidate, the steps, the margins, and the power of each step.

    /rollout/plan    GET   candidate, steps, margins, traffic ──► the plan with its power, and the digest of the plan
    /rollout/start   POST  the same, and that digest          ──► the same event as by `paywarden rollout start`

The digest is of champion, candidate and plan. A person who starts a rollout has therefore seen its plan: if the
champion has changed meanwhile, or a number in the form, nothing starts. The rules of the log decide as ever: the
candidate is a proposal with its approvals.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

from paywarden.models.bundle.version import Version
from paywarden.models.rollout.plan import RolloutPlan
from paywarden.models.rollout.power import Traffic, power
from paywarden.models.rollout.rollout_settings import RolloutSettings
from paywarden.ops.console.background import remembered
from paywarden.ops.console.decisions.index_connection import OpenedIndex
from paywarden.ops.console.models.models_desk import Desk
from paywarden.ops.console.page_rows import Done, Field, Page, PageRefused, Shown, Visit
from paywarden.ops.console.people import Role
from paywarden.ops.wiring import rollouts
from paywarden.schemas.errors import Misconfigured, PaywardenError

STARTERS = frozenset({Role.MODEL_OWNER})
PLAN_PATH = "/rollout/plan"
# By their meaning: each is a quantile of the champion's answers or scores before the rollout.
_KNOWN_SHARES = {"slow": 0.01, "score_upper": 0.10}
_ASKED_SHARES = ("review", "decline")
_LIST_CHARS_MAX = 200

_CANDIDATE = Field("candidate", "The digest of a proposal")
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
_START_FIELDS = (
    Field("plan", "The digest of the plan, as /rollout/plan gave it", is_required=True, chars_max=64),
    Field("why", "Why, for the log", is_required=True),
    Field("passphrase", "The passphrase of your key"),
)
_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000
_SAMPLE_MAX = 1_000
_SEEN_KEPT_MS = 60_000


@dataclass(frozen=True)
class Candidate:
    """An open proposal, by its digest. `is_approved`: it has its approvals."""

    digest: str
    name: str
    about: str
    is_approved: bool


@dataclass(frozen=True)
class SeenTraffic:
    """The index's traffic of 24 hours: payments, and shares of actions in the first `sample` of the newest hour."""

    payments: int
    sample: int
    review: float
    decline: float


Seen = Callable[[int], SeenTraffic | None]
"""Returns the traffic of the day before a time; None if it is not known."""


def index_traffic(opened: OpenedIndex, decode: Callable[[bytes], Mapping[str, Any]]) -> Seen:
    """Return a function that counts the last day in the index of decisions, at most once a minute."""

    def counted(now_ms: int) -> SeenTraffic | None:
        with opened.used() as (index, _):
            hours = index.hours_between(now_ms - _DAY_MS, now_ms)
            if not hours:
                return None
            newest = hours[-1][0] * _HOUR_MS
            bodies = index.bodies_between(newest, newest + _HOUR_MS - 1, _SAMPLE_MAX)
        actions = [decode(body)["action"] for _, body in bodies]
        count = max(1, len(actions))
        payments = sum(number for _, number in hours)
        return SeenTraffic(payments, len(actions), actions.count("review") / count, actions.count("decline") / count)

    known = remembered(counted, _SEEN_KEPT_MS)

    def seen(now_ms: int) -> SeenTraffic | None:
        try:
            return known(now_ms)
        except PaywardenError:
            return None

    return seen


class RolloutPlanPages:
    """The pages that plan and start a rollout."""

    def __init__(self, desk: Desk, seen: Seen = lambda _: None) -> None:
        self._desk, self._seen = desk, seen

    def pages(self) -> tuple[Page, ...]:
        """Return the pages."""
        asked = (_CANDIDATE, *_PLAN_FIELDS, *_TRAFFIC_FIELDS)
        start = (replace(_CANDIDATE, is_required=True), *_PLAN_FIELDS, *_START_FIELDS)
        return (
            Page(PLAN_PATH, self.plan, "The plan of a rollout, and the power of each step", "GET", STARTERS, asked),
            Page("/rollout/start", self.start, "Start a rollout by a plan that was shown", "POST", STARTERS, start),
        )

    def plan(self, visit: Visit) -> Shown:
        """Show a plan. `trouble`: why there is none, or why it cannot start. `digest`: a start must name it."""
        candidates, trouble = self._candidates(visit)
        asked = self._asked(visit)
        chosen = next((one for one in candidates if one.digest == asked.get("candidate")), None)
        view: dict[str, Any] = {
            "asked": asked,
            "candidates": candidates,
            "candidate": chosen,
            "champion": "",
            "steps": [],
            "measures": [],
            "hours": None,
            "digest": "",
            "trouble": trouble or self._running(),
            "seen": self._seen(visit.now_ms),
            "may_sign": self._desk.may_sign(visit.person),
        }
        if chosen is not None and not view["trouble"]:
            try:
                view |= self._planned(chosen, visit)
            except PaywardenError as error:
                view["trouble"] = str(error)
        return Shown("models/plan.html", view, "Plan a rollout")

    def _planned(self, chosen: Candidate, visit: Visit) -> dict[str, Any]:
        """Return steps and power. Raises PaywardenError with the fault of the plan."""
        plan = self._plan(visit)
        compared = rollouts.proposed(self._desk.source, chosen.digest)
        shares = {**_KNOWN_SHARES, **{name: visit.number(name) / 100 for name in _ASKED_SHARES if visit.text(name)}}
        lines = power(plan, Traffic(visit.number("cards_a_day"), shares)) if visit.text("cards_a_day") else []
        steps = []
        for step, those in groupby(lines, key=lambda line: line.step):
            of_step = list(those)
            slowest = max(of_step, key=lambda line: line.hours)
            low, high = plan.ratio_limits(step)
            steps.append(
                {
                    "share": of_step[0].share_percent / 100,
                    "hours": of_step[0].step_hours,
                    # The ratios between which the candidate must lie to go on.
                    "low": low,
                    "high": high,
                    # The smallest ratio that the step finds with a probability of 80 %; None if it finds nothing.
                    "found": [{"measure": line.measure, "ratio": _finite(line.ratio)} for line in of_step],
                    # After how long it goes on, if nothing differs; None for never.
                    "goes_on_hours": _finite(slowest.hours),
                    "waits_for": slowest.measure,
                }
            )
        hours = [one["goes_on_hours"] for one in steps]
        return {
            "champion": compared[0].bundle,
            "steps": steps,
            "measures": [(one.name, one.meaning) for one in plan.measures],
            "hours": None if None in hours else sum(hours),
            # Nobody starts a rollout whose power they have not seen.
            "digest": digest_of(compared, plan, visit.text("shadow")) if steps else "",
        }

    def start(self, visit: Visit) -> Done:
        """Start a rollout. Raises PageRefused, Misconfigured."""
        candidate, why = visit.text("candidate"), visit.text("why")
        if candidate not in [one.digest for one in self._candidates(visit)[0]]:
            raise PageRefused(409, "There is no such candidate any more. Plan the rollout again.")
        plan = self._plan(visit)
        compared = rollouts.proposed(self._desk.source, candidate)
        if visit.text("plan") != digest_of(compared, plan, visit.text("shadow")):
            raise PageRefused(409, "This is not the plan that was shown, or the champion has changed. Plan it again.")
        line = self._desk.start_rollout(
            visit.person, visit.text("passphrase"), compared, plan, why, visit.now_ms, shadow=bool(visit.text("shadow"))
        )
        visit.did("rollout_started", f"candidate:{candidate}", why=why)
        return Done("/models", f"Rollout {line}.")

    def _plan(self, visit: Visit) -> RolloutPlan:
        """Return the plan of the settings with the changes of the form. Raises Misconfigured."""
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
        view = self._desk.registry(visit.person, visit.now_ms)
        candidates = (
            Candidate(
                one["digest"],
                f"{one['version']['model_version'] or one['version']['bundle'][:12]} "
                f"with the policy {one['version']['policy'][:12]}",
                f"{one['why']} ({one['by']})",
                one["is_approved"],
            )
            for one in view["proposals"]
        )
        return tuple(candidates), view["trouble"]

    def _running(self) -> str:
        """Return why no rollout can start now; empty if one can."""
        found = self._desk.rollout()
        if found["trouble"]:
            return f"the log of rollouts cannot be read: {found['trouble']}"
        return "" if found["has_ended"] else f"the rollout {found['name']} has not ended: one runs at a time"


def digest_of(compared: Sequence[Version], plan: RolloutPlan, shadow: str) -> str:
    """Return the digest of the rollout that would start."""
    content = json.dumps([[asdict(one) for one in compared], asdict(plan), bool(shadow)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise Misconfigured(f"rollout {name}: wanted numbers with commas between them, got {text!r}") from None
