"""The page of models and rollouts, and its acts."""

from __future__ import annotations

from paywarden.ops.console.background import remembered
from paywarden.ops.console.models.models_desk import Desk
from paywarden.ops.console.models.rollout_plan import RolloutPlanPages, Seen
from paywarden.ops.console.page_rows import Done, Field, Missing, Page, Section, Shown, Visit
from paywarden.ops.console.people import Role
from paywarden.streams.registry.follower import LogFollower

OWNERS = frozenset({Role.MODEL_OWNER})
STOPPERS = frozenset({Role.MODEL_OWNER, Role.LEAD})
"""The roles that may take something back. An act that stops harm needs no model owner."""

_WHY = Field("why", "Why, for the log", is_required=True)
_PASSPHRASE = Field("passphrase", "The passphrase of your key")
_PROPOSAL = Field("proposal", "The digest of the proposal", is_required=True)
_SIGNED = (_WHY, _PASSPHRASE)
_STOP = (Field("act", "What to do", is_required=True, choices=("pause", "abort")), *_SIGNED)
_GO_ON = (Field("act", "What to do", is_required=True, choices=("resume", "promote")), *_SIGNED)
# Each open page asks every second.
_VERSION_MS = 1_000
_ROLLOUT_ACTS = {"pause": "paused", "resume": "resumed", "abort": "aborted", "promote": "promoted"}


class Models:
    """The section `Models`."""

    def __init__(self, desk: Desk, seen: Seen = lambda _: None, follower: LogFollower | None = None) -> None:
        """`seen`: the last day's traffic in the index of decisions, for the plan of a rollout.

        `follower`: keeps the registry's log equal to its topic, where there is one.
        """
        self._desk, self._plans, self._follower = desk, RolloutPlanPages(desk, seen), follower
        self._version = remembered(lambda _: desk.rollout()["version"], _VERSION_MS)

    def section(self) -> Section:
        """Return the section."""
        pages = (
            Page("/models", self.show, "Versions, approvals and the newest rollout"),
            Page("/models/version", self.show_version, "A text that changes with the rollout"),
            Page("/models/approve", self.approve, "Approve a proposal", "POST", OWNERS, (_PROPOSAL, *_SIGNED)),
            Page("/models/promote", self.promote, "Let a proposal decide", "POST", OWNERS, (_PROPOSAL, *_SIGNED)),
            Page("/models/rollback", self.roll_back, "Go back to the version before", "POST", STOPPERS, _SIGNED),
            Page("/rollout/stop", self.rollout, "Pause or abort the rollout", "POST", STOPPERS, _STOP),
            Page("/rollout/go-on", self.rollout, "Resume or promote it", "POST", OWNERS, _GO_ON),
            *self._plans.pages(),
        )
        work = () if self._follower is None else (self._follower.run,)
        return Section("models", "Models", "/models", pages, background=work, missing=self.missing)

    def missing(self) -> list[Missing]:
        """Return that the registry's log may lack entries of its topic, while it may."""
        behind = None if self._follower is None else self._follower.behind()
        if behind is None:
            return []
        since_s, why = behind
        return [Missing("The topic of the model registry", round(since_s * 1000), why)]

    def show(self, visit: Visit) -> Shown:
        """Show the registry and the newest rollout. `may_sign`: the console has the key that the person's acts need."""
        has_registry = self._desk.has_registry
        view = {
            "registry": self._desk.registry(visit.person, visit.now_ms),
            "rollout": self._desk.rollout(),
            "may_own": visit.person.may(OWNERS),
            "may_stop": visit.person.may(STOPPERS),
            "may_sign": self._desk.may_sign(visit.person),
            # The model of the console's configuration, where there is no registry; None if it cannot be read.
            "configured": None if has_registry else self._desk.configured(),
        }
        return Shown("models/models.html", view, "Models and rollouts")

    def show_version(self, visit: Visit) -> Shown:
        """Say whether the rollout has changed."""
        return Shown("", {"version": self._version(visit.now_ms)}, "Version")

    def approve(self, visit: Visit) -> Done:
        """Approve a proposal."""
        proposal, why = visit.text("proposal"), visit.text("why")
        done = self._desk.approve(visit.person, visit.text("passphrase"), proposal, why, visit.now_ms)
        visit.did("approved", f"proposal:{proposal}", why=why)
        return Done("/models", f"{done}.")

    def promote(self, visit: Visit) -> Done:
        """Promote a proposal."""
        proposal, why = visit.text("proposal"), visit.text("why")
        done = self._desk.promote(visit.person, visit.text("passphrase"), proposal, why, visit.now_ms)
        visit.did("promoted", f"proposal:{proposal}", why=why)
        return Done("/models", f"{done}.")

    def roll_back(self, visit: Visit) -> Done:
        """Roll back the champion."""
        why = visit.text("why")
        done = self._desk.roll_back(visit.person, visit.text("passphrase"), why, visit.now_ms)
        visit.did("rolled_back", "champion", why=why)
        return Done("/models", f"{done}.")

    def rollout(self, visit: Visit) -> Done:
        """Pause, resume, abort or promote the rollout."""
        act, why = visit.text("act"), visit.text("why")
        kind = _ROLLOUT_ACTS[act]
        line = self._desk.act_on_rollout(kind, visit.person, visit.text("passphrase"), why, visit.now_ms)
        visit.did(f"rollout_{kind}", "rollout", why=why)
        return Done("/models", f"Rollout {line}.")
