"""A prepared policy decides like its original, to the bit, even if the original changes or vanishes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.models.policy import mapped_list
from paywarden.models.policy.mapped_list import MappedList
from paywarden.models.policy.policy import ConfiguredRule, ConfiguredSegment, Facts, Policy, PolicySettings
from paywarden.models.policy.prepared_policy import PreparedPolicy, load_policy, prepare_policy
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest


@pytest.mark.parametrize("mapped_from", [1, 10_000])
def test_a_prepared_policy_decides_as_the_policy_and_shares_its_lists(
    tmp_path: Path, mapped_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped_list, "MAPPED_FROM", mapped_from)
    settings = PolicySettings(
        on_mirror_stale="review",
        rules=(ConfiguredRule("known", "card_id in lists.good", "approve", override=True),),
        segments=(ConfiguredSegment("large", "amount > 5000", 0.1, 0.2),),
        lists={"good": ("@file",)},
    )
    lists = {"good": frozenset({"c-1", "ä"})}
    policy = Policy(settings, review_at=0.3, decline_at=0.9, lists=lists)
    prepare_policy(policy, tmp_path, review_at=0.3, decline_at=0.9)
    loaded = load_policy(tmp_path, CATALOGUE)
    assert (loaded.digest, loaded.policy.lists) == (policy.digest, lists)
    assert isinstance(loaded.policy.lists["good"], MappedList) == (mapped_from == 1)
    assert loaded.policy.digest == policy.digest
    vector = np.zeros(len(CATALOGUE.features), dtype=np.float32)
    for card in ("c-1", "c-2"):
        for amount in (1000, 6000):
            for score in (0.15, 0.25, 0.95, None):
                for flags in ((), ("mirror_stale",)):
                    payment = ScoreRequest(card_id=card, merchant_id="m", amount_minor=amount, currency="EUR")
                    facts = Facts(payment, amount, vector, score, flags)
                    assert loaded.policy.decide(facts) == policy.decide(facts)
    assert load_policy(tmp_path, CATALOGUE, loaded).policy.lists is loaded.policy.lists
    assert load_policy(tmp_path, CATALOGUE, loaded).policy is loaded.policy
    looser = PreparedPolicy.of(Policy(settings, review_at=0.4, decline_at=0.9, lists=lists))
    # Another bundle's thresholds make another policy.
    assert load_policy(tmp_path, CATALOGUE, looser).policy.thresholds == (0.3, 0.9)
    other = Policy(settings, review_at=0.3, decline_at=0.9, lists={"good": frozenset({"c-9"})})
    assert load_policy(tmp_path, CATALOGUE, PreparedPolicy.of(other)).policy.lists == lists
    whole = (tmp_path / "policy.json").read_text(encoding="utf-8")
    (tmp_path / "policy.json").write_text(whole.replace('"review_at": 0.3', '"review_at": 0.8'), encoding="utf-8")
    with pytest.raises(Misconfigured, match="checksum is wrong"):
        load_policy(tmp_path, CATALOGUE)
    (tmp_path / "policy.json").write_text("{", encoding="utf-8")
    with pytest.raises(Misconfigured, match="gone or damaged"):
        load_policy(tmp_path, CATALOGUE)
