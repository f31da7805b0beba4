"""Builds what leads a rollout: the reader of decisions, and the writer of this host's deployment file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from paywarden.ops.wiring import stores
from paywarden.ops.wiring.scoring import ServeSettings
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.models.rollout.rollout import Orders, Version
    from paywarden.scoring.server.deployment import ReleasePaths
    from paywarden.streams.rollouts.leader import RolloutLeader


def rollout_leader(source: Source, *, look_every_s: float) -> RolloutLeader:
    """Returns the leader of the newest rollout. Raises Misconfigured or BrokerUnavailable."""
    from paywarden.models.rollout.log import FileRolloutLog, RolloutKeeper
    from paywarden.models.rollout.settings import RolloutSettings
    from paywarden.streams.rollouts.leader import RolloutLeader

    log = FileRolloutLog(Path(source.section("rollout", RolloutSettings).log))
    return RolloutLeader(
        stores.kafka_settings(source),
        stores.schema_ids(source),
        RolloutKeeper(log),
        deployment_writer(source),
        look_every_s=look_every_s,
    )


def deployment_writer(source: Source) -> Callable[[Orders], None]:
    """Returns a function that makes the `serve` of this host, which shares the settings, serve orders.

    It raises Misconfigured if a policy cannot be found, or the file cannot be written.
    """
    from paywarden.schemas.private_files import make_private_folder
    from paywarden.scoring.server.deployment import DEPLOYMENT, Deployment, write_deployment

    runtime = Path(source.section("serve", ServeSettings).runtime)

    def write(orders: Orders) -> None:
        try:
            make_private_folder(runtime)
        except OSError as error:
            raise Misconfigured(f"[serve] runtime: cannot make {runtime}: {error.strerror}") from error
        deployment = Deployment(
            active=_paths(source, orders.champion),
            candidate=None if orders.candidate is None else _paths(source, orders.candidate),
            rollout=orders.rollout if orders.candidate is not None else "",
            share=orders.share,
            salt=orders.salt if orders.candidate is not None else "",
        )
        write_deployment(runtime / DEPLOYMENT, deployment)

    return write


def _paths(source: Source, version: Version) -> ReleasePaths:
    from paywarden.scoring.server.deployment import ReleasePaths

    policy = _policy_file(source, version.policy_digest)
    return ReleasePaths(str(Path(version.bundle).absolute()), policy, version.bundle_digest, version.policy_digest)


def _policy_file(source: Source, digest: str) -> str:
    """Returns the registry's file of a policy; empty for the policy of the configuration."""
    from paywarden.models.registry.settings import ModelRegistrySettings

    if not digest:
        return ""
    folder = Path(source.section("models", ModelRegistrySettings).folder).absolute()
    path = folder / "policies" / digest / "policy.toml"
    if not path.exists():
        raise Misconfigured(f"there is no policy {digest} in {folder}: register it with `paywarden models register`")
    return str(path)
