"""A registry in a folder with a champion and a candidate, and the rollouts in its log."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paywarden.models.bundle.version import Version
from paywarden.models.registry.registry import Registry, Signer
from paywarden.models.rollout.plan import RolloutPlan
from paywarden.models.rollout.registry_log import RegistryRolloutLog, proposed_versions
from paywarden.models.rollout.rollout import EventKind, Rollout, RolloutEvent, Start
from paywarden.models.rollout.rollout_log import RolloutKeeper
from paywarden.ops.wiring.registry import model_registry
from paywarden.schemas.settings import Source
from tests.worlds.rollout.manifests import bundle_to_register, policy_to_register
from tests.worlds.rollout.registry import START_MS, key_of, people_file

ROLES = {"anna": ("propose", "promote", "roll_back", "rollout"), "ben": ("approve", "rollout"), "lead": ("lead",)}
SALT = "00" * 16
# What the program that leads rollouts signs.
_BY_LEAD = (EventKind.READY, EventKind.LOOKED, EventKind.OUTCOMES, EventKind.GONE)


@dataclass(frozen=True)
class SignedRollouts:
    """`models`: the settings [models]. `versions`: champion and candidate, the bundles `old` and `new`.

    The key of each person is NAME.pem in the folder.
    """

    models: dict[str, object]
    versions: tuple[Version, Version]
    registry: Registry

    @classmethod
    def at(cls, folder: Path, *, begin_ms: int = START_MS) -> SignedRollouts:
        """`begin_ms`: when the champion was promoted; rollouts come later."""
        people = people_file(folder, ROLES)
        models: dict[str, object] = {
            "people": str(people), "folder": str(folder / "registry"), "key_file": str(folder / "anna.pem"),
        }  # fmt: skip
        registry = model_registry(Source({"models": models}, {}))
        anna, policy = Signer("anna", key_of("anna")), policy_to_register(0.5)
        *_, first = registry.register(anna, bundle_to_register(folder / "old"), policy, why="w", now_ms=begin_ms)
        registry.promote(anna, first.digest, why="w", now_ms=begin_ms)
        *_, second = registry.register(anna, bundle_to_register(folder / "new"), policy, why="w", now_ms=begin_ms)
        return cls(models, proposed_versions(registry.state(), second.digest), registry)

    @property
    def settings(self) -> str:
        """The settings [models] as TOML."""
        return "[models]\n" + "".join(f'{name} = "{value}"\n' for name, value in self.models.items())

    @property
    def log(self) -> RegistryRolloutLog:
        """The log, to be read."""
        return RegistryRolloutLog(self.registry, None)

    @property
    def path(self) -> Path:
        """The file of the log."""
        return self.registry.log.path

    @property
    def rollout(self) -> Rollout:
        """The newest rollout."""
        found = RolloutKeeper(self.log).rollout
        assert found is not None
        return found

    def keeper(self, by: str) -> RolloutKeeper:
        """Returns a keeper whose events a person signs."""
        return RolloutKeeper(RegistryRolloutLog(self.registry, Signer(by, key_of(by))))

    def take(self, event: RolloutEvent, by: str = "anna") -> Rollout:
        """Take an event, signed by the lead if it is the lead's."""
        return self.keeper("lead" if event.kind in _BY_LEAD else by).take(event)

    def start(self, plan: RolloutPlan, time_ms: int, name: str = "r-1", *, shadow: bool = False) -> Rollout:
        """Start a rollout of the candidate."""
        start = Start(name, SALT, *self.versions, plan, shadow)
        return self.take(RolloutEvent(EventKind.STARTED, time_ms, "anna", "a test", start))
