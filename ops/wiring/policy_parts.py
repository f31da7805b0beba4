"""Builds the policy that the settings describe, with the thresholds of a bundle where they name none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from paywarden.ops.wiring.serve_settings import ServeSettings
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.features.catalogue.entity import Catalogue
    from paywarden.models.policy.policy import Policy


def policy(source: Source, *, review_at: float, decline_at: float, catalogue: Catalogue) -> Policy:
    """Returns the policy of the settings, with the bundle's thresholds if the settings have none.

    `source` may be a policy's own file: the catalogue is that of the deployment.
    """
    from paywarden.models.policy.lists import read_lists
    from paywarden.models.policy.policy import Policy, PolicySettings

    settings = source.section("policy", PolicySettings)
    return Policy(
        settings,
        review_at=review_at,
        decline_at=decline_at,
        lists=read_lists(settings.lists),
        catalogue=catalogue,
    )


def bundle_thresholds(source: Source, bundle: str | None) -> tuple[float, float]:
    """Returns `review_at` and `decline_at` of the bundle; zeros without one. Raises BundleRefused."""
    from paywarden.models.bundle.bundle import MANIFEST, read_manifest

    folder = Path(bundle or source.section("serve", ServeSettings).bundle)
    if bundle is None and not (folder / MANIFEST).exists():
        return 0.0, 0.0
    manifest = read_manifest(folder)
    return manifest.review_at, manifest.decline_at
