"""How good are scores? The metrics and the split of the Fraud Detection Handbook, for any labelled history.

How a split is made (all times are UTC days, counted from 1970-01-01):

        train            delay            test
    ├───────────┤                    ├───────────┤ ── day
    first    last                    first    last

    1. The rows of the training days train the model, whatever card they belong to.
    2. A label is known `delay_days` after its payment's day has ended, so on test day d the frauds of days up to
       d - delay_days - 1 are known, and those of the training days always.
    3. A card with a known fraud is blocked already: its payments of test day d are not asked about.

Card precision asks what an analyst sees who can call k cards a day: how many of those k are compromised? A card
that was found is blocked and cannot be found again on a later day.

scikit-learn and SciPy are imported by the functions that need them: a replay needs neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import date, timedelta
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from paywarden.schemas.errors import Misconfigured

DAY_MS = 86_400_000
EPOCH = date(1970, 1, 1)
CARDS_A_DAY = 100
"""What the book's analysts can call: the k of its card precision."""

AnyInts = npt.NDArray[np.integer]
AnyFloats = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Days:
    """A window of whole UTC days; both ends belong to it. Day 0 is 1970-01-01."""

    first: int
    last: int

    def __post_init__(self) -> None:
        if self.last < self.first:
            raise Misconfigured(
                f"a window of days must not end before it starts: {date_of_day(self.first)} to {date_of_day(self.last)}"
            )

    def contains(self, day: AnyInts) -> BoolArray:
        """Which of these days lie in the window."""
        return (day >= self.first) & (day <= self.last)


@dataclass(frozen=True)
class Split:
    """The days to train on, the days to test on, and how many days a label takes to become known."""

    train: Days
    test: Days
    delay_days: int = 7

    def __post_init__(self) -> None:
        if self.delay_days < 0:
            raise Misconfigured(f"delay_days must not be negative, got {self.delay_days}")
        if self.test.first <= self.train.last:
            raise Misconfigured(
                f"the test days must come after the training days, which end on {date_of_day(self.train.last)}: "
                f"the test starts on {date_of_day(self.test.first)}"
            )


@dataclass(frozen=True)
class CardPrecision:
    """`mean` is over the days that have payments; the arrays have one element for each of those days."""

    mean: float
    days: npt.NDArray[np.int64]
    per_day: npt.NDArray[np.float64]
    compromised_per_day: npt.NDArray[np.int64]
    """Compromised cards still in the pool on that day: no score can have more hits."""


@dataclass(frozen=True)
class HandbookMetrics:
    """The book's three metrics of one set of scores."""

    auc_roc: float
    average_precision: float
    card_precision_at_100: float


METRICS = tuple(field.name for field in fields(HandbookMetrics))


def day_of_date(text: str) -> int:
    """The day number of a date like 2018-07-25; Misconfigured if it is not one."""
    try:
        return (date.fromisoformat(text) - EPOCH).days
    except ValueError as error:
        raise Misconfigured(f"a day must be a date like 2018-07-25, got {text!r}") from error


def date_of_day(day: int) -> str:
    """The date of a day number, like 2018-07-25."""
    return (EPOCH + timedelta(days=day)).isoformat()


def day_of_time(event_time_ms: AnyInts) -> npt.NDArray[np.int64]:
    """The UTC day number of each epoch time in milliseconds."""
    return np.floor_divide(np.asarray(event_time_ms, dtype=np.int64), DAY_MS)


def handbook_split(train_first_day: int) -> Split:
    """The book's split: seven days to train on, seven in which labels arrive, seven to test on."""
    train = Days(train_first_day, train_first_day + 6)
    return Split(train=train, test=Days(train_first_day + 14, train_first_day + 20), delay_days=7)


def prequential_splits(reference_first_day: int, *, folds: int = 4) -> list[Split]:
    """The book's folds: each one's training starts seven days before that of the one before it."""
    return [handbook_split(reference_first_day - 7 * fold) for fold in range(folds)]


def auc_roc(label: AnyInts, score: AnyFloats) -> float:
    """Area under the ROC curve; NaN if only one class is there. Labels are 0 and 1."""
    if label.size == 0 or label.min() == label.max():
        return float("nan")
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(label, score))


def average_precision(label: AnyInts, score: AnyFloats) -> float:
    """Sum of precision times step of recall over the thresholds, not interpolated; NaN without a fraud."""
    if not np.any(label == 1):
        return float("nan")
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(label, score))


def card_precision_at_k(
    day: AnyInts, card_code: AnyInts, label: AnyInts, score: AnyFloats, k: int = CARDS_A_DAY
) -> CardPrecision:
    """Share of compromised cards among the k highest scored of a day, mean over days.

    Rows may come in any order. A card's score and label of a day are its highest ones. Of equal scores the lower
    card code comes first. A day with fewer than k cards is divided by k all the same. A day whose cards have all
    been found before counts as 0. The mean is NaN if there is no row.
    """
    if k < 1:
        raise Misconfigured(f"card precision needs at least 1 card a day, got k={k}")
    days = np.unique(day).astype(np.int64)
    hits = np.zeros(len(days), dtype=np.int64)
    compromised = np.zeros(len(days), dtype=np.int64)
    found = np.zeros(0, dtype=np.int64)
    for index, (_, rows) in enumerate(rows_by_day(day)):
        cards = _cards_of(card_code[rows], label[rows], score[rows])
        pool = ~np.isin(cards.card, found)
        card, is_fraud, day_score = cards.card[pool], cards.label[pool] == 1, cards.score[pool]
        compromised[index] = np.count_nonzero(is_fraud)
        top = np.argsort(-day_score, kind="stable")[:k]
        caught = card[top[is_fraud[top]]]
        hits[index] = len(caught)
        found = np.concatenate((found, caught))
    per_day = hits / k
    mean = float(per_day.mean()) if len(days) else float("nan")
    return CardPrecision(mean=mean, days=days, per_day=per_day, compromised_per_day=compromised)


def measure(day: AnyInts, card_code: AnyInts, label: AnyInts, score: AnyFloats) -> HandbookMetrics:
    """All three metrics of the rows of a test, shape (row_count,) each; NaN as each of them says."""
    return HandbookMetrics(
        auc_roc=auc_roc(label, score),
        average_precision=average_precision(label, score),
        card_precision_at_100=card_precision_at_k(day, card_code, label, score, CARDS_A_DAY).mean,
    )


def card_precision_ceiling(day: AnyInts, card_code: AnyInts, label: AnyInts, k: int = CARDS_A_DAY) -> float:
    """The card precision of a perfect oracle: no score can do better. NaN if there is no row.

    It is the largest assignment of compromised cards to the days on which they are compromised, each card once
    and k cards a day: a maximum flow.
    """
    if len(day) == 0:
        return float("nan")
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import maximum_flow

    day_count = len(np.unique(day))
    is_fraud = np.asarray(label) == 1
    pairs = np.unique(np.column_stack((day[is_fraud], card_code[is_fraud])), axis=0)
    if len(pairs) == 0:
        return 0.0
    days, day_node = np.unique(pairs[:, 0], return_inverse=True)
    cards, card_node = np.unique(pairs[:, 1], return_inverse=True)
    # Nodes: 0 the source, then the cards, then the days, then the sink.
    sink = 1 + len(cards) + len(days)
    all_cards = 1 + np.arange(len(cards))
    all_days = 1 + len(cards) + np.arange(len(days))
    tails = np.concatenate((np.zeros(len(cards), dtype=np.int64), 1 + card_node, all_days))
    heads = np.concatenate((all_cards, 1 + len(cards) + day_node, np.full(len(days), sink)))
    capacity = np.concatenate((np.ones(len(cards) + len(pairs)), np.full(len(days), k))).astype(np.int32)
    graph = csr_matrix((capacity, (tails, heads)), shape=(sink + 1, sink + 1))
    return float(maximum_flow(graph, 0, sink).flow_value) / (k * day_count)


def exclude_known_compromised(day: AnyInts, card_code: AnyInts, label: AnyInts, split: Split) -> npt.NDArray[np.bool_]:
    """Which rows of the test days are asked about: the card had no fraud that was known on the row's day.

    All arrays have shape (row_count,) and hold the whole history, at least from `split.train.first` on. Known on
    test day d are the frauds of the training days and of the days after them up to d - delay_days - 1. A fraud
    before the training days excludes nothing.
    """
    is_fraud = (np.asarray(label) == 1) & (day >= split.train.first)
    card_count = int(card_code.max()) + 1 if len(card_code) else 0
    never = np.iinfo(np.int64).max
    known_from = np.full(card_count, never, dtype=np.int64)
    fraud_day = np.asarray(day[is_fraud], dtype=np.int64)
    first_known_day = np.where(split.train.contains(fraud_day), split.test.first, fraud_day + split.delay_days + 1)
    np.minimum.at(known_from, card_code[is_fraud], first_known_day)
    return np.asarray(split.test.contains(day) & (day < known_from[card_code]), dtype=np.bool_)


def split_rows(
    day: AnyInts, card_code: AnyInts, label: AnyInts, split: Split
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Masks over all rows: (rows to train on, rows to test on without known compromised cards)."""
    return split.train.contains(day), exclude_known_compromised(day, card_code, label, split)


def rows_by_day(day: AnyInts) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Each day that has rows, in order, with its rows in order; `day` has shape (row_count,)."""
    if len(day) == 0:
        return
    is_sorted = bool((day[1:] >= day[:-1]).all())
    order = None if is_sorted else np.argsort(day, kind="stable")
    ordered = day if order is None else day[order]
    starts = np.append(0, np.flatnonzero(ordered[1:] != ordered[:-1]) + 1)
    for first, last in pairwise([*starts.tolist(), len(day)]):
        yield int(ordered[first]), np.arange(first, last) if order is None else order[first:last]


@dataclass(frozen=True)
class _Cards:
    """One element for each card that has a payment, in the order of their codes."""

    card: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    score: npt.NDArray[np.float64]


def _cards_of(card_code: AnyInts, label: AnyInts, score: AnyFloats) -> _Cards:
    """The highest label and score of each card; at least one row."""
    order = np.argsort(card_code, kind="stable")
    card = np.asarray(card_code, dtype=np.int64)[order]
    starts = np.append(0, np.flatnonzero(card[1:] != card[:-1]) + 1)
    return _Cards(
        card=card[starts],
        label=np.maximum.reduceat(np.asarray(label, dtype=np.int64)[order], starts),
        score=np.maximum.reduceat(np.asarray(score, dtype=np.float64)[order], starts),
    )
