"""Candidates for a rollout: the open proposals of the registry. Without a registry, the bundles beside that of [serve].

Nobody names a folder in a form: the answers would tell which folders the console's machine has.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paywarden.models.bundle.bundle import read_manifest
from paywarden.models.rollout.rollout import Version
from paywarden.ops.console.pages import PageRefused
from paywarden.ops.wiring import ServeSettings, rollouts
from paywarden.schemas.errors import PaywardenError
from paywarden.schemas.settings import Source

_BUNDLES_MAX = 100


@dataclass(frozen=True)
class Candidate:
    """A candidate for a rollout. `digest`: of the proposal, or of the bundle. `is_approved`: it has its approvals."""

    digest: str
    name: str
    about: str
    is_approved: bool = True


def proposals(view: Mapping[str, Any]) -> tuple[Candidate, ...]:
    """Return the open proposals of a registry, as `Desk.registry` gives it."""
    return tuple(
        Candidate(
            one["digest"],
            f"{one['version']['model_version'] or one['version']['bundle'][:12]} with the policy "
            f"{one['version']['policy'][:12]}",
            f"{one['why']} ({one['by']})",
            one["is_approved"],
        )
        for one in view["proposals"]
    )


def bundles(source: Source) -> tuple[Candidate, ...]:
    """Return the bundles in the folder of the bundle of [serve], other than it, for the same feature catalogue."""
    champion = Path(source.section("serve", ServeSettings).bundle).absolute()
    found: dict[str, Candidate] = {}
    try:
        now = read_manifest(champion)
        folders = sorted(path.parent for path in champion.parent.glob("*/manifest.json"))
    except (PaywardenError, OSError):
        return ()
    for folder in folders[:_BUNDLES_MAX]:
        with suppress(PaywardenError, OSError):
            one = read_manifest(folder)
            if one.digest != now.digest and one.catalogue_digest == now.catalogue_digest:
                found.setdefault(one.digest, Candidate(one.digest, one.model_version, str(folder)))
    return tuple(found.values())


def versions(source: Source, candidate: str) -> tuple[Version, Version]:
    """Return champion and candidate: of the proposal, or of the bundle beside that of [serve], with this digest.

    Raises Misconfigured, PageRefused.
    """
    if rollouts.has_registry(source):
        return rollouts.proposed(source, candidate)
    folder = next((one.about for one in bundles(source) if one.digest == candidate), None)
    if folder is None:
        raise PageRefused(409, "There is no such bundle beside that of [serve] bundle.")
    return rollouts.bundle_versions([source.section("serve", ServeSettings).bundle, folder])
