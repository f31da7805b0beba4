"""Sequential tests of drift: accumulate evidence, signal by signal, against the null hypothesis "nothing has changed".

How it works:

1. A block's deviation is z = (value - expected) / sd. It becomes x, the normal quantile of z's probability under a null
   distribution with heavy tails (Student's t). A freak block therefore counts for less than its z.
2. A rare share is skewed: one payment where 0.1 payments were expected says little. For shares, sd is at least that of
   a share halfway between value and expected.
3. x becomes e-values, one for each shift d in SHIFTS, up and down: e = exp(±d x - d²/2). An e-value is the gain of a
   bet against the null hypothesis; if that is true, the expected gain is at most 1. The gain of one block is capped:
   one freak block of five minutes or of an hour cannot fire alone, two that agree can. One day can.
4. Each e-value enters a Shiryaev-Roberts sum, M = e (M + 1). A new bet starts at every block, so it does not matter
   when the change begins. A signal's evidence is the mean of its eight sums.
5. A signal fires when its evidence reaches the threshold c and its effect is large enough to matter. c is the number of
   blocks in `false_alarm_days`, divided by the signal's share of the budget. After firing, its sums start again at 0.
6. The effect is averaged over blocks with its sign. A block weighs more the more it deviates.

Example: the score's location overall has a budget of 0.1, a third of it for blocks of an hour. There are 720 hours in
30 days, so c = 720 / 0.0333 = 21,600, and log c = 9.98. Then every hour has x = 3:

    log e of d = 2:   2 x 3 - 2²/2 = 4        (the cap is (9.98 + log 8) / 2 = 6.03)
    log e of d = 4:   4 x 3 - 4²/2 = 4
    after n hours:    each of these two sums is about exp(4n), and the evidence about exp(4n) x 2/8
    log evidence:     2.6, 6.6, 10.6: the signal fires after three hours

The bound on the false alarm rate: while nothing has changed, the expected number of firings of all signals and block
lengths in any time t is at most t / false_alarm_days. Proof:

- E[M] grows by at most 1 per block, and a firing removes at least c from the evidence.
- A signal therefore fires at most (blocks in t) / c times in expectation: its share of the budget times
  t / false_alarm_days. The shares sum to 1.

The proof assumes nothing about how signals, segments or block lengths depend on each other, nor about traffic. A sum
that stands still, is capped or is rounded down only fires less often. It does assume that, given the past, z is
symmetric about 0 and |z| is stochastically at most |t|. `autocorrelation` widens sd for blocks that resemble their
neighbours, by as much as such a correlation widens the sum of many blocks.

The budget is uneven, because most of the thousands of signals show the same change in one more segment. Half goes to
the score and the actions overall, a quarter to features and quality overall, an eighth to the traffic of segments, and
an eighth to everything within segments. Within each part, signals and block lengths share evenly.

Sources: J. Shin, A. Ramdas, A. Rinaldo, "E-detectors: a nonparametric framework for sequential change detection"
(2024); V. Vovk, R. Wang, "E-values: calibration, combination and applications" (2021); M. Pollak, "Optimal detection
of a change in distribution" (1985), for the Shiryaev-Roberts procedure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.models.drift.binning import OVERALL
from paywarden.models.drift.signals import TRAFFIC, Block, Signal, is_histogram
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import internal

MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
LENGTHS_MS = (5 * MINUTE_MS, HOUR_MS, DAY_MS)
"""The lengths of blocks: five minutes, an hour, a day."""
NULL_FREEDOM, PAYMENTS_MIN = 8.0, 30
SHIFTS = (0.5, 1.0, 2.0, 4.0)
"""The shifts that are bet on, in standard deviations of a block."""
# How many extreme blocks it takes to fire. Waiting for a second day would take too long.
_BLOCKS_TO_FIRE = {LENGTHS_MS[0]: 2, LENGTHS_MS[1]: 2, LENGTHS_MS[2]: 1}
# Sums are stored as log(M + 1) in 16 bits, in steps of this size, rounded down. The next step continues from exactly
# the stored number.
_STEP = 1 / 256
# The smallest weight of a block in the averaged effect, and the deviation x from which on a block has weight 1.
_WEIGHT_MIN, _STANDS_OUT = 1 / 8, 4.0
# The relative change of a share has no upper bound if 0 was expected. Effects are stored as float16, hence this limit.
EFFECT_MAX = 1e4
# The smallest probability: its logarithm and its quantile are finite.
_TAIL_MIN = 1e-300


@dataclass(frozen=True)
class DetectorSettings:
    """The false alarm rate, the null distribution, and the smallest change that matters."""

    # Expected days between two false alarms of all signals and block lengths together.
    false_alarm_days: float = 30.0
    # Degrees of freedom of the null distribution: with fewer, freak blocks count for less.
    null_freedom: float = internal(NULL_FREEDOM)
    # Correlation of a block's deviation with the next one's while nothing has changed.
    autocorrelation: float = internal(0.1)
    # A block with fewer payments of a signal leaves the signal's sums as they are.
    payments_min: int = internal(PAYMENTS_MIN)
    # The smallest change that may fire: PSI of the score overall, PSI of other histograms, relative change of shares.
    psi_min: float = 0.02
    detail_psi_min: float = internal(0.05)
    share_change_min: float = 0.2

    def __post_init__(self) -> None:
        """Raises Misconfigured naming the setting that is out of range."""
        if not self.false_alarm_days > 0:
            raise Misconfigured(f"drift_detection.false_alarm_days: wanted more than 0, got {self.false_alarm_days:g}")

    def effect_min(self, signal: Signal) -> float:
        """Returns the smallest effect with which a signal may fire."""
        if not is_histogram(signal):
            return self.share_change_min
        return self.psi_min if _family(signal) == "score" else self.detail_psi_min


@dataclass(frozen=True)
class DetectorVerdict:
    """The detectors' result for one block. Each array has shape (signals,), except `fired`.

    `evidence`: natural logarithm of the evidence, before the sums of signals that fired were reset.
    `threshold`: natural logarithm of c.
    `shift`: the signed shift with the most evidence, in standard deviations of a block.
    `deviation`: the block's x; 0 where the block was not counted.
    `gain_max`: the most that a block adds to one sum, in natural logarithms.
    `effect`: the averaged size of the change.
    `reached_ms`: the end of the block in which the evidence reached the threshold; 0 where it has not.
    `counted`: whether the block changed the signal's sums.
    `fired`: the indexes of the signals that fired, shape (fired,).
    """

    evidence: NDArray[np.float64]
    threshold: NDArray[np.float64]
    shift: NDArray[np.float64]
    deviation: NDArray[np.float64]
    gain_max: NDArray[np.float64]
    effect: NDArray[np.float64]
    reached_ms: NDArray[np.int64]
    counted: NDArray[np.bool_]
    fired: NDArray[np.intp]

    def blocks_since_change(self, index: int) -> int:
        """Estimate how many blocks passed from the change's start until the signal fired.

        A block whose deviation is the shift that was bet on gains `shift² / 2`. After an enormous change every bet
        gains as much as it may, and the largest is not always the one with the most evidence: the deviation tells.
        """
        shift, deviation = abs(float(self.shift[index])), abs(float(self.deviation[index]))
        reached = max(deviation, shift) if deviation >= _STANDS_OUT else shift
        gained_a_block = min(shift * reached - shift**2 / 2, float(self.gain_max[index]))
        return max(1, math.ceil(float(self.evidence[index]) / gained_a_block))


class Detectors:
    """The detectors of all signals and block lengths. `state` is all they remember."""

    def __init__(self, signals: Sequence[Signal], settings: DetectorSettings, *, falls_only: bool = False) -> None:
        """`falls_only`: bet on falling values only; the detectors then never notice a rise."""
        self.settings = settings
        self.signals = tuple(signals)
        lengths, count = len(LENGTHS_MS), len(self.signals)
        self._sums = np.zeros((lengths, count, 2, len(SHIFTS)), dtype=np.uint16)
        self._effects = np.zeros((lengths, count), dtype=np.float16)
        # Since when the evidence has been at the threshold while the effect was too small; 0 while it is below.
        self._reached_ms = np.zeros((lengths, count), dtype=np.int64)
        # Blocks that begin before this time are not counted.
        self._settled_ms = np.zeros(count, dtype=np.int64)
        self._effect_min = np.array([settings.effect_min(signal) for signal in self.signals])
        self._is_share = np.array([not is_histogram(signal) for signal in self.signals], dtype=bool)
        self._thresholds = self._log_thresholds()
        shifts = np.array(SHIFTS)
        self._bets = np.stack([-shifts if falls_only else shifts, -shifts])
        self._costs = shifts**2 / 2
        rho = settings.autocorrelation
        self._inflation = math.sqrt((1 + rho) / (1 - rho))

    @property
    def state(self) -> tuple[NDArray[Any], ...]:
        """The arrays that the detectors remember, to be saved or overwritten. Shapes and types never change."""
        return self._sums, self._effects, self._reached_ms, self._settled_ms

    def step(self, block: Block) -> DetectorVerdict:
        """Count a block and return the result. Each block of a length must come once, in order of time."""
        place = LENGTHS_MS.index(block.length_ms)
        assert block.signals is self.signals or block.signals == self.signals, "the block has other signals"
        sd = self._spread(block)
        counted = self._counted(block, sd)
        deviation = np.zeros(len(self.signals))
        z = (block.value[counted] - block.expected[counted]) / sd[counted]
        deviation[counted] = self._quantile(z / self._inflation)
        threshold = self._thresholds[place]
        # The threshold applies to the mean of the eight sums, and one sum alone may reach it.
        ceiling = (threshold + math.log(self._bets.size))[:, None, None]
        gains = deviation[:, None, None] * self._bets - self._costs
        gain_max = ceiling / _BLOCKS_TO_FIRE[block.length_ms]
        gains = np.minimum(gains, gain_max)
        before = self._sums[place] * _STEP
        after = np.minimum(np.logaddexp(0.0, gains + before), ceiling + _STEP)
        after = np.where(counted[:, None, None], after, before)
        self._sums[place] = np.floor(after / _STEP)
        logs = np.log(np.maximum(np.expm1(after), _TAIL_MIN))
        evidence = _log_mean(logs)
        # Several sums may be at the cap: take the largest shift.
        shift = self._bets.ravel()[::-1][logs.reshape(len(logs), -1)[:, ::-1].argmax(axis=1)]
        effect = self._averaged(place, block, deviation, counted)
        enough = evidence >= threshold
        reached_ms = np.where(enough, np.where(self._reached_ms[place] > 0, self._reached_ms[place], block.end_ms), 0)
        fired = np.flatnonzero(counted & enough & (effect >= self._effect_min))
        self._reached_ms[place] = reached_ms
        self._sums[place, fired] = 0
        self._reached_ms[place, fired] = 0
        gain_max = gain_max[:, 0, 0]
        return DetectorVerdict(evidence, threshold, shift, deviation, gain_max, effect, reached_ms, counted, fired)

    def _averaged(
        self, place: int, block: Block, deviation: NDArray[np.float64], counted: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Update and return the averaged effects, (signals,)."""
        now = np.sign(deviation) * np.minimum(np.nan_to_num(block.effect, posinf=EFFECT_MAX), EFFECT_MAX)
        weight = np.clip((deviation / _STANDS_OUT) ** 2, _WEIGHT_MIN, 1.0)
        before = self._effects[place].astype(np.float64)
        self._effects[place] = np.where(counted, before + weight * (now - before), before)
        return np.asarray(np.abs(self._effects[place]), dtype=np.float64)

    def forget(self, indexes: Sequence[int], time_ms: int) -> None:
        """Reset these signals, and do not count any block of theirs that begins before `time_ms`."""
        places = list(indexes)
        for array in (self._sums, self._effects, self._reached_ms):
            array[:, places] = 0
        self._settled_ms[places] = time_ms

    def settle(self, indexes: Sequence[int], time_ms: int) -> None:
        """Do not count any block of these signals that begins before `time_ms`, but keep their evidence."""
        places = list(indexes)
        self._settled_ms[places] = np.maximum(self._settled_ms[places], time_ms)

    def _spread(self, block: Block) -> NDArray[np.float64]:
        """Returns the standard deviation that z is divided by, (signals,)."""
        middle = np.clip((block.value + block.expected) / 2, 0, 1)
        sampling = np.sqrt(middle * (1 - middle) / np.maximum(block.count, 1))
        return np.where(self._is_share, np.maximum(block.sd, sampling), block.sd)

    def _counted(self, block: Block, sd: NDArray[np.float64]) -> NDArray[np.bool_]:
        with np.errstate(invalid="ignore"):
            is_finite = (sd > 0) & np.isfinite(sd) & np.isfinite(block.value) & np.isfinite(block.expected)
        return is_finite & (block.count >= self.settings.payments_min) & (block.start_ms >= self._settled_ms)

    def _quantile(self, z: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the normal quantile of each z's probability under the null distribution."""
        # Imported here, because a process that only reads alerts may not have SciPy.
        from scipy.special import ndtri, stdtr

        tail = np.maximum(stdtr(self.settings.null_freedom, -np.abs(z)), _TAIL_MIN)
        return np.asarray(-np.sign(z) * ndtri(tail), dtype=np.float64)

    def _log_thresholds(self) -> NDArray[np.float64]:
        """Returns log c, (block lengths, signals)."""
        shares = budget(self.signals) / len(LENGTHS_MS)
        blocks = self.settings.false_alarm_days * DAY_MS / np.array(LENGTHS_MS, dtype=np.float64)
        return np.asarray(np.log(np.maximum(blocks[:, None] / shares, 1.0)), dtype=np.float64)


def budget(signals: Sequence[Signal]) -> NDArray[np.float64]:
    """Returns each signal's share of the false alarms, (signals,). The shares sum to 1."""
    families = [_family(signal) for signal in signals]
    counts = Counter(families)
    shares = np.array([_FAMILY_SHARES[family] / counts[family] for family in families])
    return np.asarray(shares / shares.sum() if len(shares) else shares, dtype=np.float64)


_FAMILY_SHARES = {"score": 1 / 2, "inputs": 1 / 4, TRAFFIC: 1 / 8, "segments": 1 / 8}
_SCORE_SUBJECTS = ("score", "action")


def _family(signal: Signal) -> str:
    if signal.subject == TRAFFIC:
        return TRAFFIC
    if signal.segment != OVERALL:
        return "segments"
    return "score" if signal.subject in _SCORE_SUBJECTS else "inputs"


def _log_mean(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the logarithm of the mean over all axes but the first, from logarithms."""
    flat = logs.reshape(len(logs), -1)
    top = flat.max(axis=1, initial=math.log(_TAIL_MIN))
    return np.asarray(top + np.log(np.exp(flat - top[:, None]).mean(axis=1)), dtype=np.float64)
