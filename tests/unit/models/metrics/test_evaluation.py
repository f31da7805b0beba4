"""Metrics and splits, compared with hand-made days, a slow and obvious implementation, and published counts."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paywarden.models.metrics.evaluation import (
    Days,
    Split,
    auc_roc,
    average_precision,
    card_precision_at_k,
    card_precision_ceiling,
    day_of_date,
    day_of_time,
    exclude_known_compromised,
    handbook_split,
    prequential_splits,
    split_rows,
)
from paywarden.schemas.errors import Misconfigured
from tests.checkout import CHECKOUT
from tests.services.missing_tools import HANDBOOK

PROJECT = CHECKOUT
REAL_FILE = Path(os.environ.get("PAYWARDEN_HANDBOOK", PROJECT.parent / "shared" / "data" / "handbook.parquet"))

Row = tuple[int, int, int, float]
ROWS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 1), st.sampled_from([0.0, 0.25, 0.5, 1.0])),
    min_size=1,
    max_size=40,
)


def ints(*values: int) -> npt.NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def floats(*values: float) -> npt.NDArray[np.float64]:
    return np.array(values, dtype=np.float64)


def arrays_of(
    rows: list[Row],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    day, card, label, score = zip(*rows, strict=True)
    return ints(*day), ints(*card), ints(*label), floats(*score)


def slow_card_precision(rows: list[Row], k: int) -> list[float]:
    """The definition, word for word."""
    found: set[int] = set()
    per_day = []
    for today in sorted({day for day, _, _, _ in rows}):
        cards: dict[int, tuple[float, int]] = {}
        for day, card, label, score in rows:
            if day == today and card not in found:
                best_score, worst_label = cards.get(card, (-math.inf, 0))
                cards[card] = max(best_score, score), max(worst_label, label)
        top = sorted(cards, key=lambda card: (-cards[card][0], card))[:k]
        caught = {card for card in top if cards[card][1] == 1}
        per_day.append(len(caught) / k)
        found |= caught
    return per_day


@pytest.mark.parametrize("label", [ints(), ints(0, 0), ints(1, 1)])
def test_the_auc_of_one_class_is_nan(label: npt.NDArray[np.int64]) -> None:
    assert math.isnan(auc_roc(label, np.zeros(len(label))))


@pytest.mark.parametrize("label", [ints(), ints(0, 0)])
def test_average_precision_without_a_fraud_is_nan(label: npt.NDArray[np.int64]) -> None:
    assert math.isnan(average_precision(label, np.zeros(len(label))))


def test_a_found_card_leaves_the_pool_and_a_missed_one_stays() -> None:
    # Day 0: cards 1 and 2 are compromised, 1 is found. Day 1: card 1 would be first again, but is blocked.
    day, card = ints(0, 0, 0, 1, 1, 1), ints(1, 2, 3, 1, 2, 3)
    label, score = ints(1, 1, 0, 1, 1, 0), floats(0.9, 0.1, 0.5, 0.9, 0.2, 0.1)
    result = card_precision_at_k(day, card, label, score, k=1)
    assert result.days.tolist() == [0, 1]
    assert result.per_day.tolist() == [1.0, 1.0]
    assert result.compromised_per_day.tolist() == [2, 1]
    assert result.mean == 1.0


def test_no_row_has_no_card_precision() -> None:
    assert math.isnan(card_precision_at_k(ints(), ints(), ints(), floats()).mean)
    assert math.isnan(card_precision_ceiling(ints(), ints(), ints()))


def test_k_below_one_is_refused() -> None:
    with pytest.raises(Misconfigured, match="k=0"):
        card_precision_at_k(ints(0), ints(0), ints(0), floats(0), k=0)


@given(rows=ROWS, k=st.integers(1, 7))
def test_card_precision_agrees_with_its_definition(rows: list[Row], k: int) -> None:
    result = card_precision_at_k(*arrays_of(rows), k=k)
    assert result.per_day.tolist() == slow_card_precision(rows, k)
    assert result.mean == pytest.approx(np.mean(result.per_day))


@given(rows=ROWS, k=st.integers(1, 7))
def test_no_score_passes_the_ceiling(rows: list[Row], k: int) -> None:
    day, card, label, score = arrays_of(rows)
    ceiling = card_precision_ceiling(day, card, label, k)
    assert card_precision_at_k(day, card, label, score, k).mean <= ceiling + 1e-12
    assert card_precision_at_k(day, card, label, label.astype(np.float64), k).mean <= ceiling + 1e-12


@given(rows=ROWS)
def test_perfect_scores_reach_the_ceiling_where_no_day_is_too_short(rows: list[Row]) -> None:
    day, card, label, _ = arrays_of(rows)
    ceiling = card_precision_ceiling(day, card, label, k=6)
    assert card_precision_at_k(day, card, label, label.astype(np.float64), k=6).mean == pytest.approx(ceiling)


@pytest.mark.parametrize("text", ["25.07.2018", "2018-02-30", ""])
def test_a_text_that_is_not_a_date_is_refused(text: str) -> None:
    with pytest.raises(Misconfigured, match="must be a date like 2018-07-25"):
        day_of_date(text)


def test_windows_that_run_backwards_or_overlap_are_refused() -> None:
    with pytest.raises(Misconfigured, match="1970-01-06 to 1970-01-05"):
        Days(5, 4)
    with pytest.raises(Misconfigured, match="end on 1970-01-08: the test starts on 1970-01-08"):
        Split(train=Days(1, 7), test=Days(7, 9))
    with pytest.raises(Misconfigured, match="delay_days"):
        Split(train=Days(1, 7), test=Days(8, 9), delay_days=-1)


@given(rows=ROWS, delay_days=st.integers(0, 3))
def test_exclusion_agrees_with_its_definition(rows: list[Row], delay_days: int) -> None:
    split = Split(train=Days(1, 1), test=Days(3, 4), delay_days=delay_days)
    day, card, label, _ = arrays_of(rows)
    asked = exclude_known_compromised(day, card, label, split)
    for index, (today, who, _, _) in enumerate(rows):
        known = any(
            other == who and fraud == 1 and then >= 1 and (then == 1 or then <= today - delay_days - 1)
            for then, other, fraud, _ in rows
        )
        assert asked[index] == (3 <= today <= 4 and not known)


@pytest.mark.skipif(not REAL_FILE.is_file(), reason=HANDBOOK.reason)
def test_the_published_split_has_its_published_size() -> None:
    table = pq.read_table(REAL_FILE, columns=["TX_DATETIME", "CUSTOMER_ID", "TX_FRAUD"])
    day = day_of_time(pc.cast(table["TX_DATETIME"], "int64", safe=False).to_numpy() // 1_000_000)
    card, label = table["CUSTOMER_ID"].to_numpy(), table["TX_FRAUD"].to_numpy()
    train, test = split_rows(day, card, label, handbook_split(day_of_date("2018-07-25")))
    assert (train.sum(), label[train].sum()) == (67_240, 598)
    assert (test.sum(), label[test].sum()) == (58_264, 385)
    ceilings = []
    for split, test_count, fraud_count in zip(
        prequential_splits(day_of_date("2018-08-15")),
        (57_604, 58_337, 57_937, 58_264),
        (422, 408, 387, 385),
        strict=True,
    ):
        test = split_rows(day, card, label, split)[1]
        assert (test.sum(), label[test].sum()) == (test_count, fraud_count)
        ceilings.append(card_precision_ceiling(day[test], card[test], label[test]))
    assert np.mean(ceilings) == pytest.approx(0.419, abs=0.0005)
