"""Live decisions compared with replayed ones."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from paywarden.models.metrics.evaluation import DAY_MS
from paywarden.models.replay.live_comparison import FIELDS, LiveDecisions, compare_with_live
from tests.worlds.stream.decision_records import decision

MONDAY = 19_723
LIVE_SCHEMA = pa.schema(
    [
        *(("decided_time_ms", pa.int64()), ("payment_id", pa.string()), ("event_time_ms", pa.int64())),
        *(("score", pa.float64()), ("action", pa.string()), ("flags", pa.list_(pa.string()))),
        *(("model_version", pa.string()), ("offset", pa.int64())),
    ]
)
REPLAYED = pa.table(
    {
        "payment_id": ["p0", "p1", "p2", "p3"],
        "score": [0.1, 0.2, 0.3, 0.4],
        "action": pa.array(["approve", "approve", "review", "decline"]).dictionary_encode(),
    }
)


def compared(*decisions: dict[str, Any]) -> dict[str, Any]:
    rows = [{name: record[name] for name in FIELDS} | {"offset": at} for at, record in enumerate(decisions)]
    live = LiveDecisions(pa.Table.from_pylist(rows, LIVE_SCHEMA), 0, ("offset",))
    return compare_with_live(live, REPLAYED).to_dict()


def test_shares_are_of_payments_decided_by_both_overall_and_by_model() -> None:
    section = compared(
        decision("p0"),
        decision("p1", score=0.25),
        decision("p3", score=0.4, action="review", model_version="b", flags=["mirror_absent"]),
        decision("elsewhere"),
    )
    assert section == {
        "decisions": 4,
        "decisions_not_decoded": 0,
        "repeated": 0,
        "only_live": 1,
        "only_replayed": 1,
        "payments": 3,
        "equal_actions": 2 / 3,
        "equal_scores": 2 / 3,
        "score_difference_max": pytest.approx(0.05),
        "flagged_of_other_action": 1,
        # Approved by both, approved by both, reviewed live and declined by the replay.
        "actions": [[2, 0, 0], [0, 0, 1], [0, 0, 0]],
        # The replay's score is 0.2, the live score was 0.25.
        "score_differences": [0, 0, 0, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0],
        "flags_of_other_action": {"mirror_absent": 1},
        "by_model_version": {
            "a": {
                "payments": 2,
                "equal_actions": 1.0,
                "equal_scores": 0.5,
                "score_difference_max": pytest.approx(0.05),
                "flagged_of_other_action": 0,
            },
            "b": {
                "payments": 1,
                "equal_actions": 0.0,
                "equal_scores": 1.0,
                "score_difference_max": 0.0,
                "flagged_of_other_action": 1,
            },
        },
    }


def test_the_earliest_of_several_decisions_about_a_payment_counts() -> None:
    section = compared(decision("p0", decided_time_ms=MONDAY * DAY_MS + 60, action="decline"), decision("p0"))
    assert (section["repeated"], section["payments"], section["equal_actions"]) == (1, 1, 1.0)


def test_without_common_payments_there_are_no_shares() -> None:
    section = compared(decision("elsewhere"))
    assert (section["payments"], section["equal_actions"], section["by_model_version"]) == (0, None, {})
