"""A challenger in the shadow: differences of pairs, with intervals that know that payments of a card go together."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from paywarden.models.bundle.version import Version
from paywarden.models.metrics.costs import CostSettings
from paywarden.models.rollout.shadow import ShadowColumns, ShadowRecord, ShadowSide, compare_shadow
from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds
from paywarden.schemas.errors import InvalidEvent

APPROVE, REVIEW, DECLINE = range(3)
COSTS = CostSettings(review_cost_minor=500, fraud_loss_share=1.0, declined_margin_share=0.05)
RECORD = ShadowRecord(
    *("d-1", "p-1", "C7", 1, "b-42", "c" * 16),
    ShadowSide(0.1, "approve", Version("a", "p")),
    ShadowSide(0.7, "decline", Version("b", "p")),
)


def columns_of(rows: list[tuple[int, float, float, int, int, int, int]]) -> ShadowColumns:
    kinds = (np.uint64, np.float64, np.float64, np.int8, np.int8, np.int64, np.int8)
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(kinds)
    return ShadowColumns(*(np.array(column, kind) for column, kind in zip(columns, kinds, strict=True)))


def test_the_differences_of_a_few_payments_are_those_by_hand() -> None:
    found = compare_shadow(
        columns_of(
            [
                (1, 0.1, 0.7, APPROVE, DECLINE, 10_000, 1),
                (2, 0.6, 0.5, DECLINE, REVIEW, 4_000, 0),
                (2, 0.2, 0.2, APPROVE, APPROVE, 1_000, -1),
                (3, 0.3, 0.2, APPROVE, APPROVE, 2_000, 0),
            ]
        ),
        champion_payments=5,
        costs=COSTS,
    )
    by_name = {one.name: one.difference for one in found.differences}
    assert (found.payments, found.cards, found.labelled, found.paired_share) == (4, 3, 3, 0.8)
    assert found.agreement.share == 0.5
    assert by_name == pytest.approx(
        {
            "score": 0.1,
            "approve_share": -0.25,
            "review_share": 0.25,
            "decline_share": 0.0,
            "fraud_approved_share": -1 / 3,
            "genuine_declined_share": -1 / 3,
            # The fraud that it stops; the margin that it keeps, less a review.
            "net_minor": (10_000 + (4_000 * 0.05 - 500)) / 3,
        }
    )
    assert all(one.low <= one.difference <= one.high for one in found.differences)


def test_nothing_seen_is_nothing_known() -> None:
    found = compare_shadow(columns_of([]), champion_payments=0, costs=COSTS)
    assert math.isnan(found.paired_share)
    assert found.score_shift is None
    assert all(math.isnan(one.low) and math.isnan(one.high) for one in found.differences)


def test_an_interval_covers_although_payments_of_a_card_go_together() -> None:
    missed = naive_missed = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        card = np.repeat(np.arange(300), random.integers(1, 30, 300)).astype(np.uint64)
        of_card = random.normal(0, 0.05, 300)[card.astype(int)]
        score = np.full(len(card), 0.5)
        action = np.zeros(len(card), dtype=np.int8)
        zeros = np.zeros(len(card), dtype=np.int64)
        difference = np.clip(of_card + random.normal(0, 0.02, len(card)), -0.4, 0.4)
        columns = ShadowColumns(card, score, score + difference, action, action, zeros, action)
        found = compare_shadow(columns, champion_payments=len(card), costs=COSTS).differences[0]
        missed += not found.low <= 0 <= found.high
        spread = 1.96 * difference.std() / math.sqrt(len(card))
        naive_missed += abs(difference.mean()) > spread
    assert missed <= 11
    assert naive_missed > 40


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"champion": RECORD.champion._replace(score=1.5)}, "champion.score: wanted 0 to 1, got 1.5"),
        ({"challenger": RECORD.challenger._replace(score=math.nan)}, "challenger.score: wanted 0 to 1, got nan"),
        ({"challenger": RECORD.challenger._replace(action="stop")}, "challenger.action: wanted one of approve, review"),
        ({"challenger_name": ""}, "challenger_name: wanted the name of a challenger, got an empty text"),
        ({"challenger": RECORD.champion}, "challenger.bundle_digest: the challenger is the champion"),
    ],
)
def test_a_record_that_cannot_be_is_refused_by_its_field(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidEvent) as refused:
        replace(RECORD, **changes)  # type: ignore[arg-type]
    assert str(refused.value).startswith(message)


def test_a_record_is_on_its_topic_as_the_schema_says() -> None:
    ids = LocalSchemaIds()
    value = Encoder("shadow-decisions", ids.id_of("shadow-decisions")).encode(RECORD.value())
    read = Decoder("shadow-decisions", ids).decode(value)
    assert read == RECORD.value()
    assert (read["champion_action"], read["challenger_score"]) == ("approve", 0.7)
