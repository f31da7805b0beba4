"""What stopped a payment: a list, the model, or rules alone."""

from __future__ import annotations

import numpy as np
import pytest

from paywarden.features.catalogue.catalogue import card
from paywarden.features.catalogue.entity import Catalogue, request
from paywarden.models.metrics.intervals import wilson_interval
from paywarden.models.policy.policy import ConfiguredRule, Policy, PolicySettings
from paywarden.models.replay.replayed_policy import ActionReasons
from paywarden.models.replay.stops import LISTS, MODEL, RULES, StoppedPayments, stops

LISTED = ConfiguredRule("blocked", "card_id in lists.blocked", "decline")


CATALOGUE = Catalogue(
    (card,),
    (
        request.amount("amount"),
        card.fraud_count("card_frauds_90d", "90d", delay="1d"),
        card.fraud_count("card_frauds_ever", "ever", delay="1d"),
        card.fraud_share("card_fraud_share_90d", "90d", delay="1d"),
        card.count("card_count_1h", "1h"),
    ),
)


def policy(*rules: ConfiguredRule) -> Policy:
    lists = {"blocked": frozenset({"c-1"}), "gambling": frozenset({"7995"})}
    return Policy(PolicySettings(rules=rules), review_at=0.1, decline_at=0.6, lists=lists, catalogue=CATALOGUE)


def test_what_a_list_catches_is_not_credited_to_the_model() -> None:
    causes = [
        ActionReasons("approve", ()),
        ActionReasons("decline", ("rule:blocked", "score_at_or_above_decline_threshold")),
        ActionReasons("review", ("score_at_or_above_review_threshold:shops", "rule:large")),
        ActionReasons("review", ("rule:large",)),
        ActionReasons("review", ("unknown_rate",)),
    ]
    cause = np.array([0, 0, 1, 1, 2, 3, 3, 4], dtype=np.int32)
    fraud = np.array([True, False, True, False, True, True, False, False])
    large = ConfiguredRule("large", "amount > 100", "review")
    found = stops(policy(LISTED, large), causes, cause, fraud, np.arange(8))
    assert found.by == {
        LISTS: StoppedPayments(2, 1, 5, 2),
        MODEL: StoppedPayments(1, 1, 4, 4),
        RULES: StoppedPayments(3, 1, 18, 5),
    }
    # Three frauds are left to model and rules, and two of them are stopped.
    assert found.unlisted_recall == pytest.approx(2 / 3)
    assert found.unlisted_recall_interval == wilson_interval(2 / 3, 3)


@pytest.mark.parametrize(
    ("when", "is_listed"),
    [
        ("card_id in lists.blocked and amount > 100", True),
        ("not (amount > 5 or card_id not in lists.blocked)", True),
        ("card_id not in lists.blocked", False),
        ("not card_id in lists.blocked and amount > 100", False),
        ("mcc in lists.gambling", False),
        ('card_id in ("c-1", "c-2")', False),
        # A known fraud blocks the card: until the window ends, which is the block's expiry.
        ("card_frauds_90d > 0 and amount > 100", True),
        ("card_frauds_ever >= 1", True),
        ("not (card_frauds_90d > 0)", False),
        ("card_frauds_90d >= 2", False),
        ("card_fraud_share_90d > 0", False),
        ("card_count_1h > 0", False),
    ],
)
def test_a_rule_is_a_lists_if_an_entity_must_be_listed_or_known_bad(when: str, is_listed: bool) -> None:
    of_list = policy(ConfiguredRule("some", when, "decline")).listed_reasons
    assert of_list == (frozenset({"rule:some"}) if is_listed else frozenset())
