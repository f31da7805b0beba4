"""The ceiling of the handbook's data: the best that any model can do, from the known generator.

The book's generator makes fraud in three ways. They are known, but its random draws are not:

    1. every payment above 220 is fraud
    2. each day two terminals are drawn; all their payments of 28 days are fraud
    3. each day three customers are drawn; a third of their payments of 14 days is fraud, with five times the amount

How it works:

1. A terminal has a hypothesis for each day on which it may have been drawn, and one that it was not. Labels that are
   known (7 days old) rule hypotheses out: a genuine payment within the 28 days, or a fraud outside of them that the
   customer does not explain. Bayes' theorem gives the probability that the terminal is compromised now.
2. A customer has the same, for 14 days. Here amounts count as well, also amounts without a label: each customer's
   amounts are normal, with the customer's own mean and half of it as deviation.
3. A payment's score is the probability that it is fraud by any of the three. A model knows the same past, and neither
   the generator nor the customers' true means, so no model has a better AUC ROC on average. For average precision of
   payments that are fraud together, and for the precision of cards, that is no proof. The rest, up to 1, is chance. On
   a few weeks of payments, chance may also lift a model above the ceiling by some thousandths.
4. Terminals and customers are looked at one after the other, not together. A terminal's known fraud may be explained by
   a customer who was known to be compromised; here only its amount explains it. That costs little: of 100 frauds, 62
   are at terminals and 32 of customers, hardly ever both.

Example: a terminal's payments of 9 and 8 days ago are known to be fraud, that of 12 days ago to be genuine. It was
drawn 9, 10 or 11 days ago, and is compromised for at least 17 days more: nearly 1. The day after it was drawn no label
is known yet: 0.0014, the share of terminals that were drawn within a week.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paywarden.features.history.history import History, final_labels
from paywarden.models.metrics.evaluation import DAY_MS, HandbookMetrics, Split, day_of_time, measure, split_rows

LABEL_DELAY_MS = 7 * DAY_MS
ALWAYS_FRAUD_ABOVE = 220_00
"""In cents."""

_TERMINALS_A_DAY, _TERMINALS, _TERMINAL_DAYS = 2, 10_000, 28
_CUSTOMERS_A_DAY, _CUSTOMERS, _CUSTOMER_DAYS = 3, 5_000, 14
_CUSTOMER_FRAUD_PART, _CUSTOMER_FACTOR = 1 / 3, 5.0
# Shares of all payments that are fraud of the second and the third kind, as the book prints them.
_TERMINAL_SHARE, _CUSTOMER_SHARE = 9_077 / 1_754_155, 4_631 / 1_754_155
# A negative amount is drawn again, evenly from 0 to twice the mean. That raises the mean by this factor.
_MEAN_RAISED = 1.027
_NEGATIVE_PART = 0.02275
_IMPOSSIBLE = -1e9

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class _Kind:
    """How terminals, or customers, are drawn: the chance a day, and for how many days."""

    chance: float
    days: int


_TERMINAL = _Kind(_TERMINALS_A_DAY / _TERMINALS, _TERMINAL_DAYS)
_CUSTOMER = _Kind(_CUSTOMERS_A_DAY / _CUSTOMERS, _CUSTOMER_DAYS)


def ceiling_scores(history: History, rows: I64) -> F64:
    """Returns the probability of fraud of some payments, (rows,): from the generator and what was known then."""
    label = final_labels(history) == 1
    amount = history.amount_minor / 100.0
    usual, raised = _densities(amount, history.card.codes, label)
    by_terminal = _terminal_evidence(label, amount, usual, raised)
    by_customer = _customer_evidence(label, amount, usual, raised)
    wanted = np.zeros(len(history), dtype=np.bool_)
    wanted[rows] = True
    probability = np.zeros(len(history))
    for place, odds in _compromised(history, history.merchant.codes, wanted, _TERMINAL, by_terminal):
        probability[place] = odds
    of_customer = np.zeros(len(history))
    for place, chance in _compromised(history, history.card.codes, wanted, _CUSTOMER, by_customer):
        fraud = chance * _CUSTOMER_FRAUD_PART * raised[place]
        of_customer[place] = fraud / (fraud + (1.0 - chance * _CUSTOMER_FRAUD_PART) * usual[place] + 1e-300)
    score = 1.0 - (1.0 - probability[rows]) * (1.0 - of_customer[rows])
    return np.where(history.amount_minor[rows] > ALWAYS_FRAUD_ABOVE, 1.0, score)


def ceiling(history: History, splits: tuple[Split, ...]) -> tuple[HandbookMetrics, ...]:
    """Returns the handbook's metrics of the best possible scores, for the test days of each split."""
    day, card = day_of_time(history.event_time_ms), history.card.codes
    label = (final_labels(history) == 1).astype(np.int64)
    measured = [np.flatnonzero(split_rows(day, card, label, split)[1]) for split in splits]
    score = np.zeros(len(history))
    rows = np.unique(np.concatenate(measured))
    score[rows] = ceiling_scores(history, rows)
    return tuple(measure(day[rows], card[rows], label[rows], score[rows]) for rows in measured)


@dataclass(frozen=True)
class _Evidence:
    """The log-likelihood of each payment while its entity is compromised, and while it is not. All: (payments,).

    `known_…` use the label, `seen_…` only what is seen before the label: the amount.
    """

    known_active: F64
    known_idle: F64
    seen_active: F64
    seen_idle: F64


def _densities(amount: F64, card: NDArray[np.int32], label: NDArray[np.bool_]) -> tuple[F64, F64]:
    """Returns the densities of each amount as a usual one of its customer, and as one that is five times as large."""
    genuine = ~label
    total = np.bincount(card[genuine], weights=amount[genuine], minlength=int(card.max()) + 1)
    count = np.bincount(card[genuine], minlength=len(total))
    mean = (np.maximum(total, 0.01) / np.maximum(count, 1) / _MEAN_RAISED)[card]
    return _density(amount, mean), _density(amount / _CUSTOMER_FACTOR, mean) / _CUSTOMER_FACTOR


def _density(amount: F64, mean: F64) -> F64:
    deviation = mean / 2
    normal = np.exp(-0.5 * np.square((amount - mean) / deviation)) / (deviation * np.sqrt(2 * np.pi))
    return np.asarray(normal + _NEGATIVE_PART * (amount <= 2 * mean) / (2 * mean))


def _terminal_evidence(label: NDArray[np.bool_], amount: F64, usual: F64, raised: F64) -> _Evidence:
    """All payments at a compromised terminal are fraud. Elsewhere fraud is that of the customers, by its amount."""
    by_customer = _CUSTOMER_SHARE * raised / (_CUSTOMER_SHARE * raised + (1 - _CUSTOMER_SHARE) * usual + 1e-300)
    by_customer = np.where(amount > ALWAYS_FRAUD_ABOVE / 100, 1.0, by_customer)
    by_customer = np.clip(by_customer, 1e-9, 1 - 1e-9)
    nothing = np.zeros(len(label))
    return _Evidence(
        known_active=np.where(label, 0.0, _IMPOSSIBLE),
        known_idle=np.where(label, np.log(by_customer), np.log1p(-by_customer)),
        # Amounts at a compromised terminal are as usual.
        seen_active=nothing,
        seen_idle=nothing,
    )


def _customer_evidence(label: NDArray[np.bool_], amount: F64, usual: F64, raised: F64) -> _Evidence:
    part, floor = _CUSTOMER_FRAUD_PART, 1e-300
    elsewhere = np.where(amount > ALWAYS_FRAUD_ABOVE / 100, 1.0, _TERMINAL_SHARE) * usual
    fraud_active = np.log(part * raised + (1 - part) * elsewhere + floor)
    return _Evidence(
        known_active=np.where(label, fraud_active, np.log((1 - part) * usual + floor)),
        known_idle=np.where(label, np.log(elsewhere + floor), np.log(usual + floor)),
        seen_active=np.log(part * raised + (1 - part) * usual + floor),
        seen_idle=np.log(usual + floor),
    )


def _compromised(
    history: History, entity: NDArray[np.int32], wanted: NDArray[np.bool_], kind: _Kind, evidence: _Evidence
) -> Iterator[tuple[int, float]]:
    """Yields each wanted payment with the probability that its entity is compromised just before it.

    Hypotheses reach back twice the days: an entity that was compromised explains frauds that are over.
    """
    order = np.argsort(entity, kind="stable")
    starts = np.flatnonzero(np.diff(entity[order], prepend=-1))
    ends = np.append(starts[1:], len(order))
    back = 2 * kind.days
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        rows = order[start:end]
        asked = np.flatnonzero(wanted[rows])
        if not len(asked):
            continue
        time_ms = history.event_time_ms[rows]
        day = time_ms // DAY_MS
        known_gain = _summed(evidence.known_active[rows] - evidence.known_idle[rows])
        seen_gain = _summed(evidence.seen_active[rows] - evidence.seen_idle[rows])
        known_at = np.searchsorted(time_ms, time_ms[asked] - LABEL_DELAY_MS, side="right")
        for place, known in zip(asked.tolist(), known_at.tolist(), strict=True):
            drawn = np.arange(day[place] - back + 1, day[place] + 1)
            first, last = np.searchsorted(day, drawn), np.searchsorted(day, drawn + kind.days)
            gain = known_gain[np.minimum(last, known)] - known_gain[np.minimum(first, known)]
            gain += seen_gain[np.clip(last, known, place)] - seen_gain[np.clip(first, known, place)]
            weight = kind.chance * np.exp(np.minimum(gain, 700.0))
            yield int(rows[place]), float(weight[-kind.days :].sum() / (1.0 + weight.sum()))


def _summed(values: F64) -> F64:
    return np.concatenate((np.zeros(1), np.cumsum(values)))
