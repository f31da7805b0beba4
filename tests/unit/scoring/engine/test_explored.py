"""Exploration in the scorer: what a record says about the coin, and what it may cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from paywarden.models.policy.exploration import EXPLORED, Exploration, ExplorationSettings, FileLedger
from paywarden.models.policy.policy import ConfiguredRule, ConfiguredShare, Policy, PolicySettings, threshold_reason
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.scoring.engine.model_chain import ModelChain
from paywarden.scoring.engine.records import Origin
from paywarden.scoring.metrics.model import ModelMetrics
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from tests.unit.scoring.engine.test_scorer import Host, requests, score_many
from tests.worlds.small import small_world
from tests.worlds.small.small_history import profiles

KEY, SHARE = bytes(range(16)), 0.25
DECLINING = PolicySettings(review_at=1e-9, decline_at=1e-9)
ORIGINS = (Origin("ab" * 32, "cd" * 32), Origin("", "cd" * 32))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    made.fill(profiles())
    yield made
    made.close()


def exploration(ledger: FileLedger, budget: int = 1 << 40, payment_max: int = 1 << 30) -> Exploration:
    settings = ExplorationSettings(share=SHARE, budget_minor_a_day=budget, payment_minor_max=payment_max)
    return Exploration(settings, key=KEY, ledger=ledger)


def decided(
    host: Host, explored: Exploration | None, policy: PolicySettings = DECLINING, origins: Sequence[Origin] = ORIGINS
) -> list[OutboxEntry]:
    """Returns the decisions about all payments of a policy that declines."""
    host.scorer._exploration = explored
    models = ModelChain((small_world.loaded_bundle(),), metrics=ModelMetrics.declare(MetricsRegistry()))
    host.scorer.take_up(host.scorer.served(models, Policy(policy, review_at=0.5, decline_at=0.9), origins))
    host.outbox.entries.clear()
    score_many(host.scorer, requests())
    return list(host.outbox.entries)


def amount_of(entry: OutboxEntry) -> int:
    request = entry.request
    amount = small_world.rates().convert(request.amount_minor, request.currency, request.event_time_ms)
    assert amount is not None
    return amount


def test_what_the_coin_approves_says_so_with_its_chance_and_the_rest_with_theirs(host: Host, tmp_path: Path) -> None:
    explored, plain = exploration(FileLedger(tmp_path / "spent")), decided(host, None)
    before = host.counted()
    entries = decided(host, explored)
    approved = 0
    for entry, without in zip(entries, plain, strict=True):
        assert (without.response.action, without.HasField("propensity")) == ("decline", False)
        wins = explored.coin(entry.request.payment_id) < SHARE * 2**64
        approved += wins
        assert entry.propensity == (SHARE if wins else 1 - SHARE)
        assert entry.response.action == ("approve" if wins else "decline")
        reasons = list(entry.response.reasons)
        assert reasons == [EXPLORED, *without.response.reasons] if wins else list(without.response.reasons)
        assert threshold_reason("decline") in reasons
        assert (entry.bundle_digest, entry.policy_digest) == (without.bundle_digest, without.policy_digest)
        assert (entry.response.score, entry.vector) == (without.response.score, without.vector)
    assert len(entries) * 0.15 < approved < len(entries) * 0.35
    assert host.counted()["approve"] == approved
    assert host.counted()["decline"] - before["decline"] == len(entries) - approved
    assert host.metrics.explored.value == approved
    assert host.metrics.explored_minor.value == sum(
        amount_of(entry) for entry in entries if entry.response.action == "approve"
    )


def test_a_large_payment_and_what_a_rule_declines_are_declined_as_before(host: Host, tmp_path: Path) -> None:
    ceiling = sorted(map(amount_of, decided(host, None)))[len(requests()) // 2]
    seen = set()
    for entry in decided(host, exploration(FileLedger(tmp_path / "spent"), payment_max=ceiling)):
        is_small = amount_of(entry) <= ceiling
        assert entry.HasField("propensity") == is_small
        seen.add((is_small, entry.response.action))
    assert seen == {(True, "approve"), (True, "decline"), (False, "decline")}
    policy = PolicySettings(rules=(ConfiguredRule("all", "amount >= 0", "decline"),))
    for entry in decided(host, exploration(FileLedger(tmp_path / "other")), policy):
        assert (entry.response.action, entry.HasField("propensity")) == ("decline", False)


def test_workers_of_a_host_share_its_budget_also_when_one_begins_again(host: Host, tmp_path: Path) -> None:
    amounts = sum(map(amount_of, decided(host, None)))
    budget, approved, rounds = amounts // 8, 0, []
    for _ in range(4):
        # A new worker on the same day; the one before it was killed without a word.
        entries = decided(host, exploration(FileLedger(tmp_path / "spent"), budget=budget, payment_max=budget))
        spent = sum(amount_of(entry) for entry in entries if entry.response.action == "approve")
        approved += spent
        rounds.append(spent)
    assert 0 < approved <= budget
    assert rounds[0] > 0
    assert host.metrics.explored_minor.value == approved


def test_a_worker_never_waits_for_another_that_has_the_ledger(host: Host, tmp_path: Path) -> None:
    first = FileLedger(tmp_path / "spent")
    assert first.hold()
    for entry in decided(host, exploration(FileLedger(tmp_path / "spent"))):
        assert (entry.response.action, entry.HasField("propensity")) == ("decline", False)
    first.close()
    again = decided(host, exploration(FileLedger(tmp_path / "spent")))
    assert {entry.response.action for entry in again} == {"approve", "decline"}


def test_in_an_arm_of_a_rollout_the_chance_is_that_of_the_coin_where_it_was_tossed(host: Host, tmp_path: Path) -> None:
    arm = Origin("ef" * 32, "01" * 32, "r-7", "candidate", 0.05)
    entries = decided(host, exploration(FileLedger(tmp_path / "spent")), origins=(arm, arm))
    assert {entry.propensity for entry in entries} == {SHARE, 1 - SHARE}
    assert {(entry.rollout, entry.arm) for entry in entries} == {("r-7", "candidate")}
    none = decided(host, exploration(FileLedger(tmp_path / "spent"), budget=1, payment_max=1), origins=(arm, arm))
    assert {entry.propensity for entry in none} == {0.05}


def test_a_score_band_of_the_policy_has_its_own_share_and_propensity(host: Host, tmp_path: Path) -> None:
    scores = [entry.response.score for entry in decided(host, None)]
    middle = float(np.mean(scores))
    bands = (ConfiguredShare(0.0, 0.5), ConfiguredShare(middle, 0.125))
    explored = exploration(FileLedger(tmp_path / "spent"))
    approved = set[tuple[bool, bool]]()
    for entry in decided(host, explored, replace(DECLINING, explored=bands)):
        of_band = entry.response.score >= middle
        share = bands[of_band].share
        wins = explored.coin(entry.request.payment_id) < share * 2**64
        approved |= {(of_band, wins)}
        assert (entry.response.action, entry.propensity) == (("approve", share) if wins else ("decline", 1 - share))
    assert len(approved) == 4
