"""Finds the versions that the registry's log lets a host serve, no matter who has written its deployment file.

    active, previous    a version that was promoted at some time, with the approvals that were asked for then
    candidate           one of these, or the candidate of a rollout that was started with its approvals

A file may be a moment behind the log. The version that decided before is therefore allowed, and so is the one to go
back to. Before the first promotion the log says nothing, and everything is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping

from paywarden.models.bundle.version import Version
from paywarden.models.registry import entries as kinds
from paywarden.models.registry.model_log import RegistryLog
from paywarden.models.registry.registry_rules import RegistryState, version_of


def refusal_of_deployment(log: RegistryLog, state: RegistryState, versions: Mapping[str, Version]) -> str:
    """Returns which of the versions nobody has allowed, in one line; empty if all are.

    `versions`: by role, as in a deployment file. `state`: the state of the log.
    """
    if state.champion is None:
        return ""
    promoted = {one.version for one in state.history}
    tried = _tried(log, state)
    for role, version in versions.items():
        if version in promoted or (role == "candidate" and version in tried):
            continue
        bundle, policy = (digest[:12] or "(none)" for digest in (version.bundle, version.policy))
        wanted = "promoted, or tried in a rollout" if role == "candidate" else "promoted"
        return f"{role}: wanted a version that the registry has {wanted}, got bundle {bundle}, policy {policy}"
    return ""


def _tried(log: RegistryLog, state: RegistryState) -> set[Version]:
    """Returns the candidates of the rollouts that were started with their approvals."""
    ignored = {one.number for one in state.ignored}
    proposed: dict[str, Version] = {}
    tried = set[Version]()
    for number, entry in enumerate(log.entries, 1):
        if number in ignored:
            continue
        if entry.kind == kinds.PROPOSED:
            proposed[entry.digest] = version_of(entry, state.bundles)
        elif entry.kind == kinds.ROLLOUT_STARTED:
            tried.add(proposed[entry.text("proposal")])
    return tried
