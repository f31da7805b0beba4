"""From the rows of three topics to comparisons: each pair apart, repeated records once, amounts and outcomes joined."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from paywarden.features.profiles.money import load_rates
from paywarden.models.metrics.costs import CostSettings
from paywarden.streams.kafka.topic_rows import rows_schema
from paywarden.streams.shadow.report import (
    DECISION_COLUMNS,
    OUTCOME_COLUMNS,
    SHADOW_COLUMNS,
    ShadowReport,
    shadow_report,
)

MS = 1_764_000_000_000
COSTS = CostSettings(review_cost_minor=500, fraud_loss_share=1.0, declined_margin_share=0.05)


def shadow_row(number: int, champion: str, ours: str, **changes: Any) -> dict[str, Any]:
    return {
        "decision_id": f"d-{number}",
        "card_id": f"c-{number // 2}",
        "decided_time_ms": MS + number,
        "challenger": "b-42",
        "is_shadow_host": False,
        "champion_bundle_digest": "a",
        "champion_policy_digest": "p",
        "champion_score": 0.25,
        "champion_action": champion,
        "challenger_bundle_digest": "b",
        "challenger_policy_digest": "p",
        "challenger_score": 0.75,
        "challenger_action": ours,
    } | changes


def decision_row(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "decision_id": f"d-{number}",
        "payment_id": f"p-{number}",
        "event_time_ms": MS,
        "decided_time_ms": MS + number,
        "amount_minor": 10_000,
        "currency": "EUR",
        "bundle_digest": "a",
        "policy_digest": "p",
    } | changes


def outcome_row(number: int, label: str, time_ms: int = 1) -> dict[str, Any]:
    return {"payment_id": f"p-{number}", "outcome_time_ms": time_ms, "label": label}


def table(topic: str, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, pa.schema([rows_schema(topic).field(name) for name in columns]))


def report(
    shadow: list[dict[str, Any]], decisions: list[dict[str, Any]], outcomes: list[dict[str, Any]]
) -> ShadowReport:
    return shadow_report(
        table("shadow-decisions", SHADOW_COLUMNS, shadow),
        table("decisions", DECISION_COLUMNS, decisions),
        table("outcomes", OUTCOME_COLUMNS, outcomes),
        rates=load_rates(),
        costs=COSTS,
    )


def test_amounts_outcomes_and_the_share_with_a_partner_are_joined() -> None:
    found = report(
        [shadow_row(0, "approve", "decline"), shadow_row(3, "decline", "review"), shadow_row(2, "approve", "approve")],
        [*map(decision_row, range(4)), decision_row(9), decision_row(1, decision_id="d-x", bundle_digest="other")],
        # The later outcome corrects the earlier one, in any order of reading.
        [outcome_row(0, "fraud", 5), outcome_row(0, "genuine", 2), outcome_row(3, "genuine")],
    )
    (pair,) = found.pairs
    comparison = pair.comparison
    assert (pair.first_time_ms, pair.last_time_ms, found.without_decision) == (MS, MS + 3, 0)
    assert (comparison.payments, comparison.cards, comparison.labelled) == (3, 2, 2)
    # The share of the champion's four decisions in that time.
    assert comparison.paired_share == 0.75
    assert comparison.agreement.payments == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert comparison.agreement.frauds == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    by_name = {one.name: one.difference for one in comparison.differences}
    assert by_name["score"] == 0.5
    assert by_name["net_minor"] == pytest.approx((10_000 + (10_000 * 0.05 - 500)) / 2)


def test_a_repeated_record_counts_once_and_one_without_its_decision_not_at_all() -> None:
    once = [shadow_row(number, "approve", "review") for number in range(4)]
    decisions = list(map(decision_row, range(4)))
    outcomes = [outcome_row(number, "genuine") for number in range(4)]
    twice = report([*once, *once[1:], shadow_row(7, "approve", "review")], [*decisions, *decisions], outcomes)
    assert twice.without_decision == 1
    # Equal scores have no rank correlation, and NaN equals nothing.
    assert repr(twice.pairs) == repr(report(once, decisions, outcomes).pairs)
    (pair,) = twice.pairs
    assert (pair.comparison.payments, pair.comparison.paired_share) == (4, 1.0)


def test_each_pair_of_champion_and_challenger_is_compared_by_itself() -> None:
    rows = [
        shadow_row(0, "approve", "review"),
        shadow_row(0, "approve", "decline", challenger="strict", challenger_bundle_digest="a"),
        shadow_row(1, "review", "review", champion_bundle_digest="a2"),
        shadow_row(2, "review", "review", champion_bundle_digest="a2"),
        shadow_row(3, "approve", "review", is_shadow_host=True),
    ]
    decisions = [decision_row(number, bundle_digest="a2" if number in (1, 2) else "a") for number in range(4)]
    found = report(rows, decisions, [])
    told = {
        (one.challenger, one.champion_bundle_digest, one.is_shadow_host): one.comparison.payments for one in found.pairs
    }
    assert told == {
        ("b-42", "a", False): 1,
        ("strict", "a", False): 1,
        ("b-42", "a2", False): 2,
        ("b-42", "a", True): 1,
    }
    assert [one.last_time_ms for one in found.pairs] == sorted((one.last_time_ms for one in found.pairs), reverse=True)
    assert all(one.comparison.paired_share == 1.0 for one in found.pairs)


def test_nothing_gives_no_pair_and_a_currency_without_a_rate_no_money() -> None:
    assert report([], [], []) == ShadowReport((), 0)
    (pair,) = report([shadow_row(0, "approve", "review")], [decision_row(0, currency="NGN")], []).pairs
    assert pair.comparison.payments == 1
