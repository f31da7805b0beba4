from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.features.history.history import labels_known_by
from paywarden.models.metrics.labels import (
    UNKNOWN_LABELS,
    LabelCounts,
    kept_labels,
    mature_before_ms,
    require_setting,
)
from paywarden.schemas.errors import Misconfigured
from tests.worlds.small import small_history

PAYMENTS = st.lists(st.tuples(st.sampled_from([-1, 0, 1]), st.booleans(), st.booleans()), max_size=40)
Payments = list[tuple[int, bool, bool]]


def kept(payments: Payments, setting: str) -> tuple[list[bool], LabelCounts]:
    """Payments are (label, is declined, is mature)."""
    label = np.array([label for label, _, _ in payments], dtype=np.int8)
    declined, mature = np.array([flags for _, *flags in payments], dtype=np.bool_).reshape(-1, 2).T
    mask, counts = kept_labels(label, declined, mature, setting)
    return mask.tolist(), counts


@given(PAYMENTS, st.sampled_from(UNKNOWN_LABELS))
def test_every_payment_counts_once_and_a_known_label_is_kept(payments: Payments, setting: str) -> None:
    mask, counts = kept(payments, setting)
    labels = [label for label, _, _ in payments]
    assert counts.payments == len(payments)
    assert (counts.fraud, counts.genuine) == (labels.count(1), labels.count(0))
    assert counts.left_out == mask.count(False)
    assert all(mask[place] for place, label in enumerate(labels) if label != -1)
    if setting == "genuine":
        assert all(mask)
    if setting == "leave_out":
        assert mask == [label != -1 for label in labels]


def test_where_most_payments_have_an_outcome_the_others_are_not_known() -> None:
    mask, _ = kept([(0, False, True), (1, False, True), (-1, False, True), (-1, True, True)], "auto")
    assert mask == [True, True, False, False]


def test_a_payment_that_nobody_will_label_is_not_genuine() -> None:
    # Two of five have an outcome, and the history says of two that nobody knows: the last is not mature yet.
    label, no = np.array([1, 0, -1, -1, -1], dtype=np.int8), np.zeros(5, dtype=np.bool_)
    mature, never = np.array([True, True, True, False, False]), np.array([True, False, True, True, False])
    mask, counts = kept_labels(label, no, mature, "auto", never)
    assert mask.tolist() == [True, True, False, False, True]
    assert counts == LabelCounts(fraud=1, genuine=1, taken_for_genuine=1, left_out=2)
    assert kept_labels(label, no, mature, "genuine", never)[0].all()


def test_payments_are_mature_when_most_genuine_outcomes_have_arrived() -> None:
    history = small_history.history()
    known_by_ms = int(history.event_time_ms[-1])
    early = history.event_time_ms < mature_before_ms(history, known_by_ms)
    label = labels_known_by(history, known_by_ms)
    assert 0.2 < early.mean() < 1.0
    assert (label[early] != -1).mean() > 0.9
    assert (label[~early] != -1).mean() < 0.9


def test_where_only_frauds_are_reported_the_others_are_genuine_unless_declined() -> None:
    mask, counts = kept([(1, False, True), (-1, False, True), (-1, False, True), (-1, True, True)], "auto")
    assert mask == [True, True, True, False]
    assert counts.in_words() == (
        "labels: 1 fraud, 0 genuine, 2 without an outcome taken for genuine, 1 not known and left out"
    )


def test_a_wrong_setting_is_refused_with_the_values_there_are() -> None:
    with pytest.raises(Misconfigured, match="wanted one of auto, leave_out, genuine, got 'drop'"):
        require_setting("drop")
