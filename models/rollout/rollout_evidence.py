"""Evidence from counts of cards: e-values and intervals that are valid however often one looks.

The unit is a card, not a payment: payments of one card resemble each other, and one card may have thousands. A card
*has an event* (a declined payment, an error, a slow answer, …) or it has none, and it counts once.

How it works:

1. A card's arm is the hash of its id. If nothing differs between the arms, the arm of the next card with an event is
   therefore a coin that shows the candidate with probability p, the candidate's share, whatever has happened before.
   Time of day, trends, segments and heavy users change who has events. They do not change the coin.
2. If the candidate's cards have events R times as often, the coin shows it with q(R) = p R / (p R + 1 - p).
3. The hypothesis "R is at most r" is tested by bets on d r, one for each d in SHIFTS. Each bet gains, per event card,

       log d - log((p d r + 1 - p) / (p r + 1 - p))     if the card is the candidate's
             - log((p d r + 1 - p) / (p r + 1 - p))     if it is the champion's

   Under the hypothesis the expected factor of a bet is at most 1, card by card. The product of the factors is a
   nonnegative supermartingale, and so is the mean over the bets: the *e-value*.
4. By Ville's inequality an e-value ever reaches 1 / alpha with a probability of at most alpha, over all looks together.
   The same holds for the hypothesis "R is at least r", with bets on r / d.
5. All r that are not refuted form an interval for R that is valid at all looks at once.

Example: p is 5 %. The candidate has 7 of the first 20 declined cards, where 1 was expected. The bet on d = 4 is then
worth 7 log 4 - 20 log(1.15) = 6.9, and that on d = 10 is worth 8.7. The mean of all six is e^7.06 = 1,163.

The bets are those of drift detection (models/drift/detectors.py) on another quantity. There a change may begin at any
time, so sums of bets start again at every block; here everything begins with the step.

Sources: J. Ville, "Étude critique de la notion de collectif" (1939); I. Waudby-Smith, A. Ramdas, "Estimating means of
bounded random variables by betting" (2023); A. Ramdas et al., "Game-theoretic statistics and safe anytime-valid
inference" (2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

SHIFTS = (1.1, 1.25, 1.5, 2.0, 4.0, 10.0)
"""The ratios that are bet on, and their inverses."""
SHARE_SHIFTS = (1.02, 1.05, 1.1, 1.25, 2.0, 4.0)
"""The same for the share of cards, where a small deviation already means that the split is wrong."""
# Bounds of intervals, as logarithms: a ratio beyond e^12 is called 0 or infinite.
_LOG_RATIO_MAX = 12.0
_BISECTIONS = 40


def log_evidence(
    candidate: ArrayLike,
    champion: ArrayLike,
    share: ArrayLike,
    *,
    ratio: ArrayLike = 1.0,
    falls: bool = False,
    shifts: Sequence[float] = SHIFTS,
) -> Floats:
    """Returns the logarithm of the e-value against "the candidate's cards have events at most `ratio` times as often".

    With `falls` it is against "at least `ratio` times as often". `candidate`, `champion`: cards with an event, shape
    (..., strata): counts of several strata, such as the steps of a rollout, are taken together. `share`: the
    candidate's share of the cards of each stratum, above 0 and below 1. `ratio`: shape (...) or one number. Returns
    shape (...).
    """
    ours, theirs, p = (np.asarray(array, dtype=np.float64)[..., None] for array in (candidate, champion, share))
    bets = 1 / np.array(shifts) if falls else np.array(shifts)
    null = np.asarray(ratio, dtype=np.float64)[..., None, None]
    cost = np.log((p * bets * null + 1 - p) / (p * null + 1 - p))
    gains = ours * np.log(bets) - (ours + theirs) * cost
    return log_mean(gains.sum(axis=-2))


def log_share_evidence(candidate: ArrayLike, champion: ArrayLike, share: ArrayLike) -> Floats:
    """Returns the logarithm of the e-value against "the candidate has `share` of the cards", in either direction.

    Shapes as in `log_evidence`. A sample ratio mismatch means that cards are not split as they should be, or that
    decisions of one arm get lost. Every comparison of the arms is then worthless.
    """
    both = [log_evidence(candidate, champion, share, falls=falls, shifts=SHARE_SHIFTS) for falls in (False, True)]
    return log_mean(np.stack(both, axis=-1))


def log_evidence_below(events: ArrayLike, cards: ArrayLike, bound: ArrayLike) -> Floats:
    """Returns the logarithm of the e-value against "a card has an event with probability `bound` or more, always".

    `events` of `cards` had one; all shapes (...). Without cards it is 0: no data is no evidence.
    """
    hits, misses = (np.asarray(array, dtype=np.float64)[..., None] for array in (events, cards))
    misses = misses - hits
    limit = np.asarray(bound, dtype=np.float64)[..., None]
    bets = limit / np.array(SHIFTS)
    return log_mean(hits * np.log(bets / limit) + misses * np.log((1 - bets) / (1 - limit)))


def ratio_interval(
    candidate: ArrayLike, champion: ArrayLike, share: ArrayLike, log_threshold: float
) -> tuple[Floats, Floats]:
    """Returns the interval of R that is not refuted, valid at all looks at once. Shapes as in `log_evidence`.

    Each end holds with probability 1 - e^-`log_threshold`. Without an event it is 0 to infinity.
    """
    lower = _bound(candidate, champion, share, log_threshold, falls=False)
    return lower, _bound(candidate, champion, share, log_threshold, falls=True)


def _bound(candidate: ArrayLike, champion: ArrayLike, share: ArrayLike, log_threshold: float, *, falls: bool) -> Floats:
    """Returns the end of the interval, by bisection: the evidence falls with the ratio, or with `falls` rises."""
    shape = np.asarray(candidate).shape[:-1]
    low, high = np.full(shape, -_LOG_RATIO_MAX), np.full(shape, _LOG_RATIO_MAX)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        refuted = log_evidence(candidate, champion, share, ratio=np.exp(middle), falls=falls) >= log_threshold
        goes_up = ~refuted if falls else refuted
        low, high = np.where(goes_up, middle, low), np.where(goes_up, high, middle)
    end = np.exp(high if falls else low)
    if falls:
        return np.asarray(np.where(high >= _LOG_RATIO_MAX, np.inf, end), dtype=np.float64)
    return np.asarray(np.where(low <= -_LOG_RATIO_MAX, 0.0, end), dtype=np.float64)


class WeightedEvidence:
    """Evidence that the candidate's cards have more weight: money, where a card with an event counts by its amount.

    Each card has a weight of 0 to 1, an amount divided by a cap that is chosen beforehand. For each d of SHIFTS its
    bet is worth d^weight / (1 - p + p d^weight) if the card is the candidate's, and 1 / (1 - p + p d^weight) if it is
    the champion's. The expected value of both is 1 if the arm says nothing about the weight.
    """

    def __init__(self) -> None:
        self._gains = np.zeros(len(SHIFTS))

    def add(self, weights: Floats, is_candidate: NDArray[np.bool_], share: float) -> None:
        """Add cards that were not added before. `weights`, `is_candidate`: shape (cards,)."""
        assert ((weights >= 0) & (weights <= 1)).all(), "a weight is from 0 to 1"
        logs = weights[:, None] * np.log(SHIFTS)
        self._gains += (np.where(is_candidate[:, None], logs, 0.0) - np.log1p(share * np.expm1(logs))).sum(axis=0)

    @property
    def log_evidence(self) -> float:
        """The logarithm of the e-value."""
        return float(log_mean(self._gains))


def log_mean(logs: Floats) -> Floats:
    """Returns the logarithm of the mean over the last axis, from logarithms."""
    top = logs.max(axis=-1, keepdims=True)
    return np.asarray(top[..., 0] + np.log(np.exp(logs - top).mean(axis=-1)), dtype=np.float64)


def log_threshold(alpha: float) -> float:
    """Returns the logarithm that an e-value must reach: log(1 / alpha)."""
    return -math.log(alpha)
