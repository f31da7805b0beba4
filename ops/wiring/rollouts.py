"""Builds the log of rollouts and the leader of one."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from paywarden.ops.wiring import registry, stores
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.models.bundle.version import Version
    from paywarden.models.rollout.plan import RolloutPlan
    from paywarden.models.rollout.registry_log import RegistryRolloutLog
    from paywarden.models.rollout.rollout import Agreed, Start
    from paywarden.streams.rollouts.leader import RolloutLeader


_log = logging.getLogger(__name__)


def read_rollouts(source: Source) -> RegistryRolloutLog:
    """Returns the log of rollouts, to be read. Raises Misconfigured, also without a registry."""
    from paywarden.models.rollout.registry_log import RegistryRolloutLog

    return RegistryRolloutLog(registry.model_registry(source), None)


def agreed(source: Source, rollout: str) -> list[Agreed]:
    """Returns who registered, proposed and approved the candidate of a rollout. Raises Misconfigured."""
    from paywarden.models.rollout.registry_log import approvals_of

    return approvals_of(registry.model_registry(source), rollout)


@contextmanager
def written_rollouts(
    source: Source, tell: Callable[[str], object], key: str | None
) -> Iterator[tuple[RegistryRolloutLog, str]]:
    """Yields the log of rollouts, and who writes to it: the owner of the key.

    When the block has ended, this host serves the releases of the registry's log, if it is a scoring host. `tell` gets
    a line if this host alone has the new entries. Raises Misconfigured.
    """
    from paywarden.models.rollout.registry_log import RegistryRolloutLog

    with registry.shared_registry(source, tell) as shared:
        signer = registry.signer(source, key, shared)
        yield RegistryRolloutLog(shared, signer), signer.name


def proposed(source: Source, candidate: str) -> tuple[Version, Version]:
    """Returns the champion, and the open proposal that a text names, or that is of a bundle's folder.

    The candidate's files are checked. Raises RegistryRefused.
    """
    from paywarden.models.bundle.bundle import read_manifest
    from paywarden.models.rollout.registry_log import proposed_versions

    named = read_manifest(Path(candidate)).digest if Path(candidate).is_dir() else candidate
    found = registry.model_registry(source)
    versions = proposed_versions(found.state(), named)
    # A rollout of files that no host has stays pending, and keeps all others from starting.
    require_candidate(source, versions[1])
    return versions


def start_of(name: str, versions: tuple[Version, Version], plan: RolloutPlan, *, shadow: bool, time_ms: int) -> Start:
    """Returns the first event of a rollout, with a salt of its own. Without a name it gets one by the time."""
    from paywarden.models.rollout.rollout import Start
    from paywarden.models.rollout.shares import SALT_BYTES

    return Start(name or f"r-{time_ms // 1000}", secrets.token_hex(SALT_BYTES), *versions, plan, shadow)


def require_candidate(source: Source, candidate: Version) -> None:
    """Raise Misconfigured if the files of a rollout's candidate are gone or have changed."""
    from paywarden.models.registry.artefacts import BUNDLES, POLICIES

    found = registry.model_registry(source)
    state = found.state()
    found.store.folder(BUNDLES, candidate.bundle, state.bundles[candidate.bundle].files)
    found.store.folder(POLICIES, candidate.policy, state.policies[candidate.policy].files)


@contextmanager
def rollout_leader(source: Source, *, look_every_s: float, key: str | None = None) -> Iterator[RolloutLeader]:
    """Yields the leader of the newest rollout, the only one of its log on this host while the context lasts.

    The registry's log is followed meanwhile. Raises Misconfigured, for another leader too, or BrokerUnavailable.
    """
    from prometheus_client import CollectorRegistry

    from paywarden.models.rollout.rollout_log import RolloutKeeper, only_leader
    from paywarden.streams.rollouts.leader import RolloutLeader

    with (
        only_leader(registry.model_registry(source).log.path),
        written_rollouts(source, _log.warning, key) as (log, _),
        registry.following_registry(source, CollectorRegistry()),
    ):
        yield RolloutLeader(
            stores.kafka_settings(source),
            stores.schema_ids(source),
            RolloutKeeper(log),
            lambda: registry.deploy_here(source, _log.error),
            rates=stores.rate_table(source),
            gone=lambda version: _trouble(source, version),
            look_every_s=look_every_s,
        )


def _trouble(source: Source, version: Version) -> str:
    """Returns the fault of a candidate's files; empty if there is none."""
    found = registry.model_registry(source)
    state = found.state()
    rollout = state.rollout
    if rollout is None or rollout.version != version:
        return ""
    try:
        found.files_of(state, rollout.version, any_processor=True)
    except Misconfigured as error:
        return str(error)
    return ""
