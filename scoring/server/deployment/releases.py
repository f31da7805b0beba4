"""Releases: a bundle and a policy that decide together, as checked files, and in memory.

    RUNTIME/
      deployment.json    what should be served (deployment_file.py); written by an operator's command
      ready/KEY/         a release that was checked: a copy of its bundle, and models/policy/prepared_policy.py
      orders-PID.json    the releases that the supervisor PID serves, and the candidate's share, which workers read

The supervisor loads a release once, before it forks the workers that serve it. They inherit it, and share its memory.

A release's key is made of the digests of its bundle and its policy. Equal keys mean equal decisions, so a folder that
is there is never written again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from paywarden.features.catalogue.entity import Catalogue
from paywarden.models.bundle.bundle import Bundle, load_bundle
from paywarden.models.bundle.version import Version
from paywarden.models.policy.prepared_policy import PreparedPolicy, load_policy
from paywarden.models.rollout.shares import BASIS_POINTS, SALT_BYTES
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import read_regular
from paywarden.scoring.engine.records import Origin
from paywarden.scoring.metrics.release import ShownRelease
from paywarden.scoring.server.deployment.deployment_file import Deployment, ReleasePaths, release_key

READY_BUNDLE = "bundle"
"""The folder of a checked release that holds the bundle's copy."""
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class ReleaseSource(Protocol):
    """Finds and checks the releases to serve. Every method reads the configuration again."""

    config: Path
    """The configuration file, whether it exists or not."""

    def wanted(self) -> Deployment:
        """Returns the deployment of the configuration, without a deployment file. Raises Misconfigured."""

    def refusal_of(self, deployment: Deployment) -> str:
        """Returns why the registry does not allow a deployment file; empty if it does, or there is none.

        Raises Misconfigured if its log cannot be read.
        """

    def load(self, paths: ReleasePaths) -> Release:
        """Load a release in this process. Raises Misconfigured, BundleRefused."""

    def prepare(self, paths: ReleasePaths, ready: Path) -> str:
        """Check a release and write it below `ready`, unless it is there. Returns its key.

        It loads the bundle's native code, so it runs in a process of its own. Raises Misconfigured, BundleRefused,
        OSError.
        """


@dataclass(frozen=True)
class ReleaseOrders:
    """The keys of the releases that a host serves, and the candidate's share of the cards."""

    active: str
    previous: str = ""
    candidate: str = ""
    rollout: str = ""
    share: int = 0
    salt: str = ""

    @property
    def keys(self) -> list[str]:
        """The keys of all releases that stay in the supervisor's memory, each once."""
        return [key for key in dict.fromkeys((self.active, self.previous, self.candidate)) if key]

    def role_of(self, key: str) -> str:
        """Returns the first role that a release has."""
        return next(role for role in ("active", "previous", "candidate") if getattr(self, role) == key)


@dataclass(frozen=True)
class Release:
    """A release in memory. `bundles`: those of the chain, the primary one first."""

    key: str
    bundles: Sequence[Bundle]
    policy: PreparedPolicy
    origins: tuple[Origin, ...]

    def origins_in(self, rollout: str, arm: str, share: int) -> tuple[Origin, ...]:
        """Returns its origins as an arm of a rollout that has `share` basis points of the cards; "" is no rollout."""
        if not rollout:
            return self.origins
        return tuple(
            replace(origin, rollout=rollout, arm=arm, propensity=share / BASIS_POINTS) for origin in self.origins
        )

    @property
    def model_version(self) -> str:
        return self.bundles[0].manifest.model_version

    def shown(self, role: str) -> ShownRelease:
        """Returns the release as the metrics show it."""
        origin = self.origins[0]
        return ShownRelease(role, Version(origin.bundle_digest, origin.policy_digest, model=self.model_version))


@dataclass(frozen=True)
class Serving:
    """The releases that a generation of workers has in memory, by key, and the orders that it was forked for."""

    orders: ReleaseOrders
    releases: Mapping[str, Release]

    @classmethod
    def of(cls, release: Release) -> Serving:
        """Returns a generation that serves one release."""
        return cls(ReleaseOrders(release.key), {release.key: release})

    @property
    def active(self) -> Release:
        return self.releases[self.orders.active]

    def covers(self, orders: ReleaseOrders) -> bool:
        """Whether this generation can follow the orders: only the candidate's share is another, or it is dropped."""
        return orders.active == self.orders.active and orders.candidate in ("", self.orders.candidate)


def release_of(bundles: Sequence[Bundle], digests: Sequence[str], policy: PreparedPolicy) -> Release:
    """Returns a release of bundles with these digests. The bundles behind the first one are fallbacks."""
    origins = tuple(Origin(digest, policy.digest) for digest in (*digests, ""))
    return Release(release_key(Version(digests[0], policy.digest)), bundles, policy, origins)


def load_release(
    key: str,
    ready: Path,
    catalogue: Catalogue,
    catalogue_digest: str,
    *,
    fallbacks: Sequence[Bundle],
    fallback_digests: Sequence[str],
    earlier: PreparedPolicy,
) -> Release:
    """Load a checked release: some 0.1 s. Raises BundleRefused, Misconfigured."""
    policy = load_policy(ready / key, catalogue, earlier)
    bundle = load_bundle(ready / key / READY_BUNDLE, catalogue_digest=catalogue_digest)
    return release_of((bundle, *fallbacks), (bundle.manifest.digest, *fallback_digests), policy)


def orders_path(runtime: Path, supervisor: int) -> Path:
    """Returns the file of a supervisor's orders."""
    return runtime / f"orders-{supervisor}.json"


def read_orders(path: Path) -> ReleaseOrders:
    """Returns the orders. Raises Misconfigured if the file is gone or damaged."""
    try:
        content: dict[str, Any] = json.loads(read_regular(path))
        orders = ReleaseOrders(**content)
        texts = (orders.active, orders.previous, orders.candidate, orders.rollout, orders.salt)
        is_right = all(isinstance(text, str) for text in texts) and type(orders.share) is int
        is_right = is_right and 0 <= orders.share <= BASIS_POINTS and len(bytes.fromhex(orders.salt)) in (0, SALT_BYTES)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Misconfigured(f"{path} cannot be read: {error}") from error
    if not is_right:
        raise Misconfigured(f"{path} cannot be read: a field has another type or value")
    return orders


def write_orders(path: Path, orders: ReleaseOrders) -> None:
    """Replace the file in one step. Raises OSError."""
    unfinished = path.with_suffix(".unfinished")
    # An earlier write may have left anything there.
    unfinished.unlink(missing_ok=True)
    # Private from the start. To take permissions away later changes the file, as if somebody had damaged it.
    with open(os.open(unfinished, _NEW, 0o600), "w", encoding="utf-8") as file:
        json.dump(asdict(orders), file)
    os.replace(unfinished, path)
