"""One hostile person with the role `propose` alone, who writes entries with tools of their own."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from paywarden.models.bundle.signature import fingerprint
from paywarden.models.registry import entries as kinds
from paywarden.models.registry import model_log as registry_log
from paywarden.models.registry.copies import REFUSED_MAX, TopicReader
from paywarden.models.registry.entries import Entry, Value
from paywarden.models.registry.model_log import LogFile
from paywarden.models.registry.people import ADMIN, APPROVE, PROMOTE, PROPOSE, ROLL_BACK
from paywarden.models.registry.registry import Registry, Signer, proposal_named, version_named
from paywarden.models.registry.registry_rules import RegistryState, Rules, refusal_of, state_of
from paywarden.schemas.errors import RegistryRefused
from tests.worlds.rollout.registry import CATALOGUE, Writer, digest, key_of, people_of
from tests.worlds.rollout.registry_hosts import Host, MemoryTopic

YEAR_9999_MS = 253_402_300_799_999
PEOPLE = people_of(
    {
        "anna": frozenset({PROPOSE}),
        "ben": frozenset({APPROVE}),
        "cleo": frozenset({APPROVE}),
        "dora": frozenset({PROMOTE, ROLL_BACK, ADMIN}),
        "eve": frozenset({PROPOSE}),
    }
)
TWO = Rules(approvals=2)
EVES_KEY = fingerprint(key_of("eve").public_key())


def state(writer: Writer, at_ms: int | None = None) -> RegistryState:
    return state_of(writer.log, PEOPLE, TWO, at_ms=at_ms)


def dated_9999(writer: Writer) -> Entry:
    files = {"policy.toml": digest("eve")}
    return writer.add(kinds.REGISTERED_POLICY, "eve", time_ms=YEAR_9999_MS, policy=digest("eve"), files=files)


def promoted(writer: Writer, name: str) -> None:
    proposal = writer.proposal(name)
    for approver in ("ben", "cleo"):
        writer.add(kinds.APPROVED, approver, proposal=proposal.digest)
    writer.add(kinds.PROMOTED, "dora", proposal=proposal.digest)


def test_an_entry_dated_9999_stops_nobody_but_its_signer() -> None:
    writer = Writer()
    dated_9999(writer)
    promoted(writer, "one")
    champion = state(writer).champion
    assert champion is not None
    assert (champion.bundle, state(writer).ignored) == (digest("bundle one"), ())
    own = writer.entry(kinds.REGISTERED_POLICY, "eve", policy=digest("2"), files={"policy.toml": digest("2")})
    assert "older than an entry before it" in refusal_of(writer.log, own, PEOPLE, TWO)
    # Its own key is revoked all the same, also by its owner.
    for by in ("dora", "eve"):
        revocation = writer.entry(kinds.KEY_REVOKED, by, revoked=EVES_KEY)
        assert refusal_of(writer.log, revocation, PEOPLE, TWO) == ""
    # A signer may still not date an entry back: an approval that has expired would count again.
    old = writer.entry(kinds.APPROVED, "ben", time_ms=writer.now_ms - 3_600_000, proposal=digest("any"))
    assert "older than an entry before it" in refusal_of(writer.log, old, PEOPLE, TWO)


def test_a_revocation_fits_behind_any_entry_and_moves_no_other() -> None:
    """A flood of entries came before each revocation: it named an entry that was no longer the last."""
    writer = Writer()
    first = writer.proposal("one", "eve")
    promoted(writer, "two")
    writer.add(kinds.KEY_REVOKED, "eve", time_ms=YEAR_9999_MS, previous=first.digest, revoked=EVES_KEY)
    promoted(writer, "three")
    now = state(writer, writer.now_ms)
    assert now.champion is not None
    assert now.champion.bundle == digest("bundle three"), "its time hides no later entry"
    assert digest("bundle one") not in now.bundles
    assert state(writer).ignored == ()


def test_a_revocation_takes_back_only_what_nobody_else_uses() -> None:
    writer = Writer()
    approved, left = writer.proposal("approved", "eve"), writer.proposal("left", "eve")
    writer.add(kinds.APPROVED, "ben", proposal=approved.digest)
    parts: dict[str, Value] = {"bundle": digest("bundle approved"), "catalogue": CATALOGUE, "policy": digest("p")}
    writer.add(kinds.REGISTERED_POLICY, "anna", policy=digest("p"), files={"policy.toml": digest("p")})
    others = writer.add(kinds.PROPOSED, "anna", parts)
    writer.add(kinds.KEY_REVOKED, "dora", revoked=EVES_KEY)
    found = state(writer)
    assert found.proposals.keys() == {approved.digest, others.digest}
    assert left.digest not in found.proposals
    assert found.bundles.keys() == {digest("bundle approved")}
    assert found.policies.keys() == {digest("policy approved"), digest("p")}


def test_the_whole_digest_of_a_proposal_names_that_proposal_alone() -> None:
    """A model that was called like another proposal's digest made that proposal impossible to name."""
    writer = Writer()
    good = writer.proposal("one")
    files = {"manifest.json": digest("eve")}
    for bundle, model in ((digest("eve"), good.digest), (good.digest, "m-1")):
        what: dict[str, Value] = {
            "bundle": bundle,
            "catalogue": CATALOGUE,
            "model_version": model,
            "files": files,
        }
        writer.add(kinds.REGISTERED_BUNDLE, "eve", what)
        writer.add(kinds.PROPOSED, "eve", bundle=bundle, policy=digest("policy one"), catalogue=CATALOGUE)
    found = state(writer)
    assert len(found.proposals) == 3
    assert proposal_named(found, good.digest).by == "anna"
    assert version_named(writer.log, found, good.digest).bundle == digest("bundle one")
    with pytest.raises(RegistryRefused, match=rf"names 3 proposals: {good.digest} by anna, .* by eve; give the whole"):
        proposal_named(found, digest("policy one"))


def test_an_ignored_entry_names_no_version() -> None:
    writer = Writer()
    promoted(writer, "one")
    promoted(writer, "two")
    wrong = {"bundle": digest("bundle two"), "policy": digest("policy one"), "catalogue": "0" * 16}
    writer.add(kinds.PROPOSED, "eve", wrong)
    found = state(writer)
    assert len(found.ignored) == 1
    assert version_named(writer.log, found, digest("policy one")).bundle == digest("bundle one")


def test_a_flood_of_proposals_leaves_room_for_those_of_others() -> None:
    writer = Writer()
    mine = writer.proposal("one")
    eves = [writer.proposal(f"{number}", "eve") for number in range(25)]
    writer.add(kinds.APPROVED, "ben", proposal=eves[5].digest)
    newest = [writer.proposal(f"new {number}", "eve") for number in range(18)]
    proposals = [one.digest for one in state(writer).proposals.values()]
    assert proposals == [one.digest for one in (mine, eves[5], eves[24], *newest)]


def test_a_flood_of_entries_fills_one_share_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log of each host grew beyond what anybody reads, and not even a rollback was possible."""
    monkeypatch.setattr(registry_log, "KEY_BYTES_MAX", 20_000)
    monkeypatch.setattr(registry_log, "LATE_BYTES", 30_000)
    monkeypatch.setattr(registry_log, "LOG_BYTES_MAX", 80_000)
    topic = MemoryTopic()
    host = Host(tmp_path, topic, "one", PEOPLE)
    start = Writer()
    promoted(start, "one")
    promoted(start, "two")
    host.log.append(lambda _: start.log.entries)
    flood = Writer(start.log)
    for number in count():
        # Entries that take something back are accepted behind any entry. Hers count for nothing.
        kind = kinds.ROLLED_BACK if number % 2 else kinds.REGISTERED_POLICY
        flood.add(kind, "eve", policy=digest(f"{number}"), files={"policy.toml": digest("x" * number)})
        if len(flood.content) > 150_000:
            break
    topic.lines += [entry.line for entry in flood.log.entries[len(start.log.entries) :]]
    host.log.sync()
    hers = sum(len(entry.line) + 1 for entry in host.file.read().entries if entry.by == "eve")
    assert 15_000 < hers <= 20_000
    # Everybody else goes on, and her key is revoked.
    registry = Registry(host.log, PEOPLE, TWO, None)  # type: ignore[arg-type]
    dora = Signer("dora", key_of("dora"))
    registry.note(dora, kinds.KEY_REVOKED, {"revoked": EVES_KEY}, why="a test", now_ms=start.now_ms)
    registry.roll_back(dora, why="a test", now_ms=start.now_ms)
    champion = registry.state().champion
    assert champion is not None
    assert champion.bundle == digest("bundle one")
    assert LogFile(host.file.path).read().entries[-1].line == topic.lines[-1]
    # An honest tool says so before it sends.
    eve = Signer("eve", key_of("eve"))
    with pytest.raises(RegistryRefused, match=f"the key {EVES_KEY} has signed .* bytes of the log, its whole share"):
        registry.note(eve, kinds.REGISTERED_POLICY, {}, why="a test", now_ms=start.now_ms)


def test_records_of_the_topic_without_effect_are_kept_up_to_a_limit() -> None:
    reader = TopicReader(PEOPLE)
    reader.take(b"garbage %d" % number for number in range(3 * REFUSED_MAX))
    assert (len(reader.refused), reader.refused_count) == (REFUSED_MAX, 3 * REFUSED_MAX)
