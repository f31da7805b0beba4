"""Changes are described in an analyst's words."""

from __future__ import annotations

import pytest

from paywarden.ops.console.words import what_moved
from paywarden.streams.alerts.causes import OUTCOME_PREFIX


@pytest.mark.parametrize(
    ("subject", "signal", "words"),
    [
        ("feature:amount_to_mean", "location", "amount to mean · level"),
        # A catalogue may name a feature like anything.
        ("feature:score", "spread", "score · spread"),
        ("feature:card_age", "missing", "card age · missing values"),
        ("flag:unknown_merchant", "share", "flag unknown merchant"),
        ("traffic", "share", "traffic (who pays where)"),
        (f"{OUTCOME_PREFIX}recall", "share", "frauds that were caught (recall)"),
        (f"{OUTCOME_PREFIX}something_new", "", "something new"),
    ],
)
def test_a_subject_is_told_in_words(subject: str, signal: str, words: str) -> None:
    assert what_moved(subject, signal) == words
