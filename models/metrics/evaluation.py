"""Evaluate scores with the metrics and the split of the Fraud Detection Handbook, for any labelled history.

How a split works (all times are UTC days, counted from 1970-01-01):

        train            delay            test
    ├───────────┤                    ├───────────┤ ── day
    first    last                    first    last

    1. All rows of the training days train the model.
    2. A label is known `delay_days` after the end of its payment's day. On test day d, the frauds of days up to
       d - delay_days - 1 are known, and always those of the training days.
    3. A card with a known fraud is blocked already. Its payments of test day d are not measured, unless the split
       says so (`measures_all`).

Card precision at k assumes that analysts can call k cards a day: it is the share of compromised cards among the k cards
with the highest scores. A card that was found is blocked and cannot be found again on a later day.

scikit-learn and SciPy are imported by the functions that need them. A replay needs neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from paywarden.models.metrics.auc_variance import auc_variance
from paywarden.models.metrics.value_detected import MissedFrauds
from paywarden.schemas.errors import Misconfigured

DAY_MS = 86_400_000
EPOCH = date(1970, 1, 1)
CARDS_A_DAY = 100
"""The number of cards that the book's analysts can call a day: the k of its card precision."""

AnyInts = npt.NDArray[np.integer]
AnyFloats = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Days:
    """A window of whole UTC days, including both ends. Day 0 is 1970-01-01."""

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
    """The days to train on, the days to test on, and how many days a label takes to become known.

    `measures_all`: also measure payments of cards with a known fraud, which the handbook leaves out.
    """

    train: Days
    test: Days
    delay_days: int = 7
    measures_all: bool = False

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
    """Card precision at k. `mean` is over days with payments; the arrays have one element for each of those days."""

    mean: float
    days: npt.NDArray[np.int64]
    per_day: npt.NDArray[np.float64]
    compromised_per_day: npt.NDArray[np.int64]
    """Compromised cards of each day that were not found before: no scores can find more."""


@dataclass(frozen=True)
class HandbookMetrics:
    """The book's three metrics of one set of scores."""

    auc_roc: float
    average_precision: float
    card_precision_at_100: float
    auc_roc_variance: float = field(default=float("nan"), compare=False)
    """The variance of `auc_roc` (models/metrics/auc_variance.py). NaN for published figures and for means of folds."""
    missed: MissedFrauds | None = field(default=None, compare=False)
    """What the scores find and miss (models/metrics/value_detected.py); None where it is not measured."""

    def of_the_book(self) -> dict[str, float]:
        """Returns the three metrics by name."""
        return {name: getattr(self, name) for name in METRICS}


METRICS = ("auc_roc", "average_precision", "card_precision_at_100")


def day_of_date(text: str) -> int:
    """Returns the day number of a date like 2018-07-25. Raises Misconfigured for anything else."""
    try:
        return (date.fromisoformat(text) - EPOCH).days
    except ValueError as error:
        raise Misconfigured(f"a day must be a date like 2018-07-25, got {text!r}") from error


def date_of_day(day: int) -> str:
    """Returns the date of a day number, like 2018-07-25."""
    return (EPOCH + timedelta(days=day)).isoformat()


def day_of_time(event_time_ms: AnyInts) -> npt.NDArray[np.int64]:
    """Returns the UTC day number of each time in milliseconds since the epoch."""
    return np.floor_divide(np.asarray(event_time_ms, dtype=np.int64), DAY_MS)


def handbook_split(train_first_day: int) -> Split:
    """Returns the book's split: seven days to train, seven days in which labels arrive, seven days to test."""
    train = Days(train_first_day, train_first_day + 6)
    return Split(train=train, test=Days(train_first_day + 14, train_first_day + 20), delay_days=7)


def prequential_splits(reference_first_day: int, *, folds: int = 4) -> list[Split]:
    """Returns the book's folds. The training of each starts seven days before that of the previous one."""
    return [handbook_split(reference_first_day - 7 * fold) for fold in range(folds)]


def auc_roc(label: AnyInts, score: AnyFloats, weight: AnyFloats | None = None) -> float:
    """Returns the area under the ROC curve; NaN with a single class. Labels are 0 and 1. All arrays: (row_count,)."""
    if label.size == 0 or label.min() == label.max():
        return float("nan")
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(label, score, sample_weight=weight))


def average_precision(label: AnyInts, score: AnyFloats, weight: AnyFloats | None = None) -> float:
    """Returns average precision: the sum over thresholds of precision x increase of recall. NaN without a fraud."""
    if not np.any(label == 1):
        return float("nan")
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(label, score, sample_weight=weight))


def card_precision_at_k(
    day: AnyInts, card_code: AnyInts, label: AnyInts, score: AnyFloats, k: int = CARDS_A_DAY
) -> CardPrecision:
    """Returns the share of compromised cards among the k cards with the highest scores of a day, and its mean.

    Rows may come in any order. A card's score and label of a day are its highest ones. With equal scores, the lower
    card code comes first. A day with fewer than k cards is divided by k all the same. A day whose cards were all found
    before counts as 0. The mean is NaN without a row. Raises Misconfigured for k below 1.
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
    """Returns the book's three metrics. All arrays: (row_count,). Each metric is NaN where its function says so."""
    return HandbookMetrics(
        auc_roc=auc_roc(label, score),
        average_precision=average_precision(label, score),
        card_precision_at_100=card_precision_at_k(day, card_code, label, score, CARDS_A_DAY).mean,
        auc_roc_variance=auc_variance(label == 1, score),
    )


def card_precision_ceiling(day: AnyInts, card_code: AnyInts, label: AnyInts, k: int = CARDS_A_DAY) -> float:
    """Returns the card precision of a perfect oracle, which no scores can exceed. NaN without a row.

    It assigns as many compromised cards as possible to days on which they are compromised: each card once, and at most
    k cards a day. That is a maximum flow.
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
    """Returns a mask of the rows of the test days whose card had no known fraud on that day.

    All arrays: (row_count,), the whole history, at least from `split.train.first` on. Known on test day d are the
    frauds of the training days, and those after them up to day d - delay_days - 1. A fraud before the training days
    excludes nothing.
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
    """Returns two masks over all rows: the training rows, and the test rows that are measured.

    Unless the split measures all payments, those of cards known to be compromised are not.
    """
    test = split.test.contains(day) if split.measures_all else exclude_known_compromised(day, card_code, label, split)
    return split.train.contains(day), test


def rows_by_day(day: AnyInts) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Yields each day that has rows, ascending, with its row numbers, ascending. `day`: (row_count,)."""
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
    """One element for each card with a payment, in the order of card codes."""

    card: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    score: npt.NDArray[np.float64]


def _cards_of(card_code: AnyInts, label: AnyInts, score: AnyFloats) -> _Cards:
    """Returns the highest label and score of each card. Needs at least one row."""
    order = np.argsort(card_code, kind="stable")
    card = np.asarray(card_code, dtype=np.int64)[order]
    starts = np.append(0, np.flatnonzero(card[1:] != card[:-1]) + 1)
    return _Cards(
        card=card[starts],
        label=np.maximum.reduceat(np.asarray(label, dtype=np.int64)[order], starts),
        score=np.maximum.reduceat(np.asarray(score, dtype=np.float64)[order], starts),
    )
