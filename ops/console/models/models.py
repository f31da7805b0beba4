"""The page of models and rollouts, and its acts."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paywarden.ops.console.models.changes import ModelFacts
from paywarden.ops.console.models.desk import Desk, RegistryView, RolloutView
from paywarden.ops.console.models.rollout_plan import Seen, Starting
from paywarden.ops.console.pages import Done, Field, Missing, Page, Section, Shown, Visit
from paywarden.ops.console.people import Role

if TYPE_CHECKING:
    from paywarden.streams.registry.follower import LogFollower

OWNERS = frozenset({Role.MODEL_OWNER})
STOPPERS = frozenset({Role.MODEL_OWNER, Role.LEAD})
"""The roles that may take something back. An act that stops harm needs no model owner."""

_WHY = Field("why", "Why, for the log", is_required=True)
_PASSPHRASE = Field("passphrase", "The passphrase of your key, where there is a registry")
_PROPOSAL = Field("proposal", "The digest of the proposal", is_required=True)
_VERSION_S = 1.0
_ROLLOUT_ACTS = {"pause": "paused", "resume": "resumed", "abort": "aborted", "promote": "promoted"}


@dataclass(frozen=True)
class ModelsView:
    """The registry and the newest rollout. `may_sign`: the console has the key that the person's acts need.

    `configured`: the model of the console's configuration, where there is no registry; None if it cannot be read.
    """

    registry: RegistryView
    rollout: RolloutView
    needs_passphrase: bool
    may_own: bool
    may_stop: bool
    may_sign: bool
    configured: ModelFacts | None


class Models:
    """The section `Models`."""

    def __init__(self, desk: Desk, seen: Seen = lambda _: None, follower: LogFollower | None = None) -> None:
        """`seen`: the last day's traffic in the index of decisions, for the plan of a rollout.

        `follower`: keeps the registry's log equal to its topic, where there is one.
        """
        self._desk, self._starting, self._follower = desk, Starting(desk, seen), follower
        # Each open page asks every second.
        self._version = (-math.inf, "")

    def section(self) -> Section:
        """Return the section."""
        signed = (_WHY, _PASSPHRASE)
        proposal = (_PROPOSAL, *signed)
        act = Field("act", "What to do", is_required=True, choices=("pause", "abort"))
        go_on = Field("act", "What to do", is_required=True, choices=("resume", "promote"))
        pages = (
            Page("/models", self.show, "Versions, approvals and the newest rollout"),
            Page("/models/version", self.show_version, "A text that changes with the rollout"),
            Page("/models/approve", self.approve, "Approve a proposal", "POST", OWNERS, proposal),
            Page("/models/promote", self.promote, "Let a proposal decide", "POST", OWNERS, proposal),
            Page(
                "/models/rollback",
                self.roll_back,
                "Go back to the version before",
                "POST",
                STOPPERS,
                (_WHY, _PASSPHRASE),
            ),
            Page(
                "/rollout/stop", self.rollout, "Pause or abort the rollout", "POST", STOPPERS, (act, _WHY, _PASSPHRASE)
            ),
            Page("/rollout/go-on", self.rollout, "Resume or promote it", "POST", OWNERS, (go_on, _WHY, _PASSPHRASE)),
            *self._starting.pages(),
        )
        if self._follower is None:
            return Section("models", "Models", "/models", pages)
        follower = self._follower
        return Section("models", "Models", "/models", pages, background=(follower.run,), missing=self.missing)

    def missing(self) -> list[Missing]:
        """Return that the registry's log may lack entries of its topic, while it may."""
        behind = None if self._follower is None else self._follower.behind()
        if behind is None:
            return []
        since_s, why = behind
        return [Missing("The topic of the model registry", round(since_s * 1000), why)]

    def show(self, visit: Visit) -> Shown:
        """Show the registry and the newest rollout."""
        view = ModelsView(
            self._desk.registry(visit.person, visit.now_ms),
            self._desk.rollout(),
            self._desk.has_registry,
            visit.person.may(OWNERS),
            visit.person.may(STOPPERS),
            self._desk.may_sign(visit.person),
            None if self._desk.has_registry else self._desk.configured(),
        )
        return Shown("models/models.html", view, "Models and rollouts")

    def show_version(self, _: Visit) -> Shown:
        """Say whether the rollout has changed."""
        read_s, version = self._version
        if time.monotonic() - read_s >= _VERSION_S:
            version = self._desk.rollout().version
            self._version = time.monotonic(), version
        return Shown("", {"version": version}, "Version")

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
