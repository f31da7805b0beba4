"""Value detected: the frauds and the money that a score finds at a fixed number of false alarms for each fraud.

How it works:

1. The threshold is the lowest score at which the flagged payments hold at most 5 (or 10) genuine payments for each
   fraud: a precision of 1/6 (1/11).
2. The flagged frauds are counted: by number, by amount (the value detected), and the first strikes of cards among them
   (models/metrics/first_strikes.py).
3. Frauds of one card come together, and the threshold itself rests on the frauds. For the intervals, cards are
   therefore drawn again RESAMPLES times (B. Efron, "Bootstrap methods: another look at the jackknife", 1979), each time
   with a new threshold. The spread of the results gives the number of independent frauds that would be as certain, and
   Wilson's interval takes this number, but no more than there are cards.

A card's draws follow from its own payments, not from a generator. The interval therefore depends neither on the order
of rows nor on how a source numbers its cards.

Example: falling scores are fraud of 80, genuine, genuine, fraud of 20, and 20 genuine payments; a fraud of 100 is last.
With 5 false positives a fraud, the first 12 payments are flagged (2 frauds, 10 genuine), and 100 of 200 is detected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from math import e, factorial, isnan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.models.metrics.bursts import BurstMeasures
from paywarden.models.metrics.first_strikes import Strikes, bursts_of
from paywarden.models.metrics.intervals import Interval, share_interval
from paywarden.models.metrics.propensity import effective_size
from paywarden.models.metrics.tally import APPROVED, DECLINED

FALSE_POSITIVES = (5, 10)
"""How many genuine payments may be flagged for each flagged fraud."""
RESAMPLES = 100
"""An interval's width is then right to within about 7 %."""

# Hardly any draw flags more than this many times the genuine payments that could be flagged.
_ROOM = 2
# Rows looked at together on the way down.
_ROWS = 1 << 16
# The probability of at most k draws of a card among as many draws as cards: Poisson with mean 1.
_DRAWN_AT_MOST = np.array(list(accumulate(1 / (e * factorial(k)) for k in range(12))))
_GOLDEN, _FIRST_MIX, _SECOND_MIX = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@dataclass(frozen=True)
class Detected:
    """The frauds among the payments with the highest scores, at a fixed number of false positives for each fraud.

    Shares are NaN where there is nothing to detect.
    """

    false_positives_per_fraud: int
    """At most this many genuine payments are flagged for each flagged fraud."""
    threshold: float
    """The lowest score for which that holds; payments with at least this score are flagged. NaN for none."""
    flagged: int
    """Flagged payments."""
    recall: float
    """The share of the frauds that are flagged."""
    recall_interval: Interval
    """The 95 % interval of `recall`."""
    first_recall: float
    """The share of the cards' first frauds that are flagged."""
    first_recall_interval: Interval
    """The 95 % interval of `first_recall`."""
    amount_recall: float
    """The value detected: the share of the frauds' amount that is flagged."""
    amount_recall_interval: Interval
    """The 95 % interval of `amount_recall`."""

    def in_words(self) -> str:
        """Returns a line for people."""
        value, first = (
            f"{share:.1%} (95 % interval {low:.1%} to {high:.1%})"
            for share, (low, high) in (
                (self.amount_recall, self.amount_recall_interval),
                (self.first_recall, self.first_recall_interval),
            )
        )
        return (
            f"at {self.false_positives_per_fraud} false positives a fraud: value detected {value}, "
            f"{self.recall:.1%} of the frauds, first frauds of cards {first}"
        )


@dataclass(frozen=True)
class ScoredPayments:
    """Scored payments as columns of shape (payments,), and the frauds among them. `card`: codes from 0."""

    fraud: NDArray[np.bool_]
    score: NDArray[np.float64]
    amount_minor: NDArray[np.int64]
    card: NDArray[np.int32]
    strikes: Strikes


@dataclass(frozen=True)
class MissedFrauds:
    """What scores alone find and miss. `bursts`: as if the payments flagged at FALSE_POSITIVES[0] had been declined."""

    detected: Sequence[Detected]
    bursts: dict[str, BurstMeasures]

    def in_words(self) -> list[str]:
        """Returns lines for people."""
        lines = [found.in_words() for found in self.detected]
        bursts = "; ".join(found.in_words(name) for name, found in self.bursts.items() if found.bursts)
        return [*lines, *([f"at {FALSE_POSITIVES[0]} false positives a fraud: {bursts}"] if bursts else [])]

    def record(self) -> dict[str, Any]:
        """Returns it as JSON holds it, with None in place of NaN."""
        return {
            "detected": [_without_nan(asdict(found)) for found in self.detected],
            "bursts": {name: _without_nan(asdict(found)) for name, found in self.bursts.items()},
        }


def missed_of(record: Mapping[str, Any]) -> MissedFrauds:
    """Returns what a manifest or another result stores."""
    return MissedFrauds(
        [Detected(**_with_nan(found)) for found in record["detected"]],
        {name: BurstMeasures(**_with_nan(found)) for name, found in record["bursts"].items()},
    )


def missed_frauds(scored: ScoredPayments) -> MissedFrauds:
    """Returns what scores alone find and miss."""
    found = detected(scored)
    declined = scored.score >= found[0].threshold
    action = np.where(declined, DECLINED, APPROVED).astype(np.int8)
    return MissedFrauds(found, bursts_of(scored.strikes, action, scored.amount_minor))


def detected(scored: ScoredPayments, falling: NDArray[np.intp] | None = None) -> list[Detected]:
    """Returns the frauds detected at each number of FALSE_POSITIVES.

    `falling`: the rows in order of falling score, if the caller has it.
    """
    frauds, is_first = scored.strikes.place, scored.strikes.is_first["card"]
    rows, ends = _near_the_top(scored, np.argsort(-scored.score, kind="stable") if falling is None else falling)
    is_fraud = scored.fraud[rows]
    # What a fraud adds to what is found: itself, a first strike, its amount.
    of_frauds = np.stack([np.ones(len(frauds)), is_first, scored.amount_minor[frauds]])
    rank = np.flatnonzero(is_fraud)
    of_ranks = of_frauds[:, np.searchsorted(frauds, rows[rank])]
    used = np.union1d(rows, frauds)
    cards = np.unique(scored.card[used])
    card_of_fraud, card_of_row = (np.searchsorted(cards, scored.card[part]) for part in (frauds, rows))

    def found(drawn: NDArray[np.float64]) -> tuple[list[int], NDArray[np.float64]]:
        """Returns how many rows are flagged, and the shares found, (FALSE_POSITIVES, 3). `drawn`: by card."""
        of_row = drawn[card_of_row]
        caught, wrong = np.cumsum(of_row * is_fraud)[ends], np.cumsum(of_row * ~is_fraud)[ends]
        flagged = []
        for allowed in FALSE_POSITIVES:
            within = np.flatnonzero((wrong <= allowed * caught) & (caught > 0))
            flagged.append(int(ends[within[-1]]) + 1 if len(within) else 0)
        worth = np.cumsum(of_ranks * of_row[rank], axis=1)
        places = np.searchsorted(rank, flagged)
        parts = [worth[:, place - 1] if place else np.zeros(3) for place in places.tolist()]
        with np.errstate(invalid="ignore"):
            return flagged, np.array(parts) / (of_frauds * drawn[card_of_fraud]).sum(axis=1)

    flagged, shares = found(np.ones(len(cards)))
    spread = _variance(np.array([found(drawn)[1] for drawn in _draws(scored, used, cards)]))
    # In order of size, so that the sums do not depend on how the source numbers its cards.
    sizes = [
        effective_size(np.sort(of_card[of_card > 0]))
        for of_card in (np.bincount(card_of_fraud, of) for of in of_frauds)
    ]
    results = []
    for place, count in enumerate(flagged):
        intervals = [
            share_interval(share, min(size, share * (1 - share) / variance if 0 < share < 1 and variance else size))
            for share, variance, size in zip(shares[place].tolist(), spread[place].tolist(), sizes, strict=True)
        ]
        threshold = float(scored.score[rows[count - 1]]) if count else float("nan")
        (recall, first, amount), (of_recall, of_first, of_amount) = shares[place].tolist(), intervals
        results.append(
            Detected(FALSE_POSITIVES[place], threshold, count, recall, of_recall, first, of_first, amount, of_amount)
        )
    return results


def _near_the_top(scored: ScoredPayments, falling: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Returns the rows of the highest scores, as many as any draw may flag, and where runs of equal scores end."""
    room, count = _ROOM * max(FALSE_POSITIVES) * len(scored.strikes.place), 0
    while room > 0 and count < len(falling):
        part = falling[count : count + _ROWS]
        room -= int(np.count_nonzero(~scored.fraud[part]))
        count += len(part)
    score = scored.score[falling[: count + 1]]
    # A threshold flags all payments with its score.
    ends = np.flatnonzero(np.append(score[1:] != score[:-1], True)[:count])
    return falling[: ends[-1] + 1 if len(ends) else 0], ends


def _variance(results: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the variance of each share over the draws. A draw without anything to detect does not count."""
    counts = np.isfinite(results)
    mean = np.where(counts, results, 0).sum(axis=0) / np.maximum(counts.sum(axis=0), 1)
    squares = np.where(counts, (results - mean) ** 2, 0).sum(axis=0)
    return np.asarray(squares / np.maximum(counts.sum(axis=0) - 1, 1), dtype=np.float64)


def _draws(scored: ScoredPayments, used: NDArray[np.intp], cards: NDArray[np.int32]) -> Iterator[NDArray[np.float64]]:
    """Yields RESAMPLES times how often each card is drawn, (cards,). `used`: the payments that a draw looks at."""
    kind = scored.fraud[used].astype(np.uint64)
    kind[np.searchsorted(used, scored.strikes.place[scored.strikes.is_first["card"]])] += np.uint64(1)
    payment = _mixed(scored.amount_minor[used].astype(np.uint64) << np.uint64(2) ^ kind)
    payment = _mixed(payment ^ scored.score[used].astype(np.float64).view(np.uint64))
    # A sum of hashes of the card's payments does not depend on their order.
    key = np.zeros(len(cards), dtype=np.uint64)
    np.add.at(key, np.searchsorted(cards, scored.card[used]), payment)
    # Cards with equal payments are drawn apart. It does not matter which is which.
    order = np.argsort(key, kind="stable")
    _, first, size = np.unique(key[order], return_index=True, return_counts=True)
    key[order] += _mixed((np.arange(len(order)) - np.repeat(first, size)).astype(np.uint64))
    for step in np.arange(1, RESAMPLES + 1, dtype=np.uint64) * _GOLDEN:
        chance = (_mixed(key + step) >> np.uint64(11)) * 2.0**-53
        yield np.searchsorted(_DRAWN_AT_MOST, chance, side="right").astype(np.float64)


def _mixed(number: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Returns 64 bits that look random and follow from the number (G. Steele, "SplitMix", 2014)."""
    number = (number ^ number >> np.uint64(30)) * _FIRST_MIX
    number = (number ^ number >> np.uint64(27)) * _SECOND_MIX
    return number ^ number >> np.uint64(31)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and isnan(value) else value


def _with_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_nan(part) for name, part in value.items()}
    if isinstance(value, list):
        return tuple(_with_nan(part) for part in value)
    return float("nan") if value is None else value
