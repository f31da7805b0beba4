"""The versions that a deployment file may name if there is a registry, for any writer of the file."""

from __future__ import annotations

from dataclasses import replace

from paywarden.models.bundle.version import Version
from paywarden.models.registry import entries as kinds
from paywarden.models.registry.entries import Entry
from paywarden.models.registry.permissions import refusal_of_deployment
from paywarden.models.registry.registry_rules import Rules, state_of
from tests.worlds.rollout.registry import Writer, digest, people_of

PEOPLE = people_of()


def version(name: str, policy: str = "") -> Version:
    return Version(digest(f"bundle {name}"), digest(f"policy {policy or name}"))


def refusal(writer: Writer, **roles: str) -> str:
    state = state_of(writer.log, PEOPLE, Rules("paywarden", approvals=1))
    return refusal_of_deployment(writer.log, state, {role: version(name) for role, name in roles.items()})


def approved(writer: Writer, name: str) -> Entry:
    proposal = writer.proposal(name)
    writer.add(kinds.APPROVED, "ben", proposal=proposal.digest)
    return proposal


def test_only_what_was_approved_and_promoted_or_tried_may_be_served() -> None:
    writer = Writer()
    assert refusal(writer, active="anything") == "", "before the first promotion the log says nothing"
    for name in ("a", "b"):
        writer.add(kinds.PROMOTED, "cleo", proposal=approved(writer, name).digest)
    candidate, waiting = approved(writer, "c"), writer.proposal("d")
    assert "candidate: wanted" in refusal(writer, active="b", candidate="c")
    started = {"event": "", "rollout": "r-1", "mode": "canary"}
    state = state_of(writer.log, PEOPLE, Rules("paywarden", approvals=1))
    assert state.champion is not None
    champion = state.champion.digest
    # It breaks a rule, so it counts for nothing.
    writer.add(kinds.ROLLOUT_STARTED, "anna", started, proposal=waiting.digest, champion=champion)
    writer.add(kinds.ROLLOUT_STARTED, "anna", started, proposal=candidate.digest, champion=champion)
    assert refusal(writer, active="b", previous="a", candidate="c") == ""
    # The file of a host may be behind the log.
    assert refusal(writer, active="a") == ""
    assert refusal(writer, active="c").startswith(
        "active: wanted a version that the registry has promoted, got bundle "
    )
    assert "candidate: wanted" in refusal(writer, active="b", candidate="d")
    assert "previous: wanted" in refusal(writer, active="b", previous="d")


def test_a_bundle_with_the_policy_of_another_version_is_not_allowed() -> None:
    writer = Writer()
    for name in ("a", "b"):
        writer.add(kinds.PROMOTED, "cleo", proposal=approved(writer, name).digest)
    state = state_of(writer.log, PEOPLE, Rules("paywarden", approvals=1))
    assert refusal_of_deployment(writer.log, state, {"active": version("a", "b")})
    unknown = replace(version("a"), policy="")
    assert "policy (none)" in refusal_of_deployment(writer.log, state, {"active": unknown})
