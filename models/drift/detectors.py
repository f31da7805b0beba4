"""Sequential detection of changes: how much evidence there is, signal by signal, that the world is not as it was.

1. A block's deviation z = (value - expected) / sd becomes x, the normal quantile of its place under a null with heavy
   tails (Student t): a freak block counts for less than its z says. A rare share is skewed: one payment where a tenth
   of one was expected says little. So sd is no less than that of a share halfway between value and expected.
2. x becomes e-values, one for each shift d in SHIFTS, up and down: exp(±d x - d²/2). An e-value is a bet against
   "nothing has changed" whose expected gain is at most 1. What one block may gain is capped, so that one freak block
   of five minutes or an hour does not fire, and two that agree do; of days, one may.
3. Each e-value goes into a Shiryaev-Roberts sum, M = e (M + 1): a bet is begun at every block, so no change comes too
   late. A signal's evidence is the mean of its eight sums.
4. A signal fires when its evidence reaches c = blocks in the time between false alarms / the signal's share of the
   budget, and the change is large enough to matter. Its sums then begin anew. How large it is, is averaged with its
   sign over blocks, of which each counts for as much as it stands out of chance.

The bound. With nothing changed, the expected number of firings of all signals of all block lengths in any time t is at
most t / false_alarm_days. Why: E[M] grows by at most 1 a block, and a firing takes at least c out of it, so a signal
fires at most (blocks in t) / c times, which is its share of the budget times t / false_alarm_days; the shares sum to
1. Nothing is asked of how signals depend on each other, segments and block lengths included, nor of how much traffic
there is. A sum that stands still, is capped, or is rounded down only fires less. What is asked: given the past, z is
symmetric about 0 and |z| is no larger than |t|, in distribution. `autocorrelation` makes room for blocks that resemble
their neighbours, by as much as it widens the sum of many.

The budget is not spread evenly, since most of the thousands of signals are the same change seen in one segment
more: half goes to the score and the actions overall, a quarter to features and quality overall, an eighth to the
traffic of segments, an eighth to everything within segments; within these, evenly, over signals and block lengths.

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

MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000
LENGTHS_MS = (5 * MINUTE_MS, HOUR_MS, DAY_MS)
"""How long blocks are."""
NULL_FREEDOM, PAYMENTS_MIN = 8.0, 30
SHIFTS = (0.5, 1.0, 2.0, 4.0)
"""What is bet on, in standard deviations of a block."""
# One freak block of five minutes or an hour fires nothing by itself, two that agree do; a day is not waited for twice.
_BLOCKS_TO_FIRE = {LENGTHS_MS[0]: 2, LENGTHS_MS[1]: 2, LENGTHS_MS[2]: 1}
# Sums are kept as log(M + 1) in steps of this, rounded down, in 16 bits: what is kept is exactly what is worked with.
_STEP = 1 / 256
# Of how large a change is: the least that a block counts for, and the deviation from which on it counts alone.
_WEIGHT_MIN, _STANDS_OUT = 1 / 8, 4.0
# Shares of which nothing was expected grow without end; this is kept in a float16.
EFFECT_MAX = 1e4
# Keeps tails that no float64 has from being infinite.
_TAIL_MIN = 1e-300


@dataclass(frozen=True)
class DetectorSettings:
    """How rarely nothing may look like something, and what is too small to matter."""

    # Expected time between false alarms, of everything together.
    false_alarm_days: float = 30.0
    # Degrees of freedom of the null: fewer make freak blocks count for less.
    null_freedom: float = NULL_FREEDOM
    # How much of a block's deviation may be left in the next when nothing has changed.
    autocorrelation: float = 0.1
    # A signal with fewer payments in a block stands still.
    payments_min: int = PAYMENTS_MIN
    # Smallest change that may fire: PSI of scores overall, of all else; relative change of shares.
    psi_min: float = 0.02
    detail_psi_min: float = 0.05
    share_change_min: float = 0.2

    def __post_init__(self) -> None:
        """Raises Misconfigured."""
        if not self.false_alarm_days > 0:
            raise Misconfigured(f"drift_detection.false_alarm_days: wanted more than 0, got {self.false_alarm_days:g}")
        if not self.null_freedom > 2:
            raise Misconfigured(f"drift_detection.null_freedom: wanted more than 2, got {self.null_freedom:g}")
        if not 0 <= self.autocorrelation < 1:
            raise Misconfigured(f"drift_detection.autocorrelation: wanted 0 to under 1, got {self.autocorrelation:g}")
        if self.payments_min < 1:
            raise Misconfigured(f"drift_detection.payments_min: wanted at least 1, got {self.payments_min}")

    def effect_min(self, signal: Signal) -> float:
        """The smallest change of a signal that may fire."""
        if not is_histogram(signal):
            return self.share_change_min
        return self.psi_min if _family(signal) == "score" else self.detail_psi_min


@dataclass(frozen=True)
class DetectorVerdict:
    """What the detectors say of one block. Each array has the shape (signals,), but for `fired`: (fired,), of indexes.

    `evidence`: natural logarithm, before what fired began anew; `threshold`: of it; `shift`: the signed shift, in
    standard deviations of a block, for which most speaks; `deviation`: the block's x, 0 where the signal stood still;
    `effect`: how large the change is, averaged; `reached_ms`: the end of the block in which the evidence was reached.
    """

    evidence: NDArray[np.float64]
    threshold: NDArray[np.float64]
    shift: NDArray[np.float64]
    deviation: NDArray[np.float64]
    effect: NDArray[np.float64]
    reached_ms: NDArray[np.int64]
    counted: NDArray[np.bool_]
    fired: NDArray[np.intp]

    def blocks_since_change(self, index: int) -> int:
        """About how many blocks the change took, from its beginning on, to be seen in a signal that fired."""
        gained_a_block = float(self.shift[index]) ** 2 / 2
        return max(1, math.ceil(float(self.evidence[index]) / gained_a_block))


class Detectors:
    """Detectors of all signals for all block lengths. What they know is in `state`."""

    def __init__(self, signals: Sequence[Signal], settings: DetectorSettings, *, falls_only: bool = False) -> None:
        """`falls_only`: bet on falls alone; that a value has risen is then never found."""
        self.settings = settings
        self.signals = tuple(signals)
        lengths, count = len(LENGTHS_MS), len(self.signals)
        self._sums = np.zeros((lengths, count, 2, len(SHIFTS)), dtype=np.uint16)
        self._effects = np.zeros((lengths, count), dtype=np.float16)
        # Since when the evidence of a signal is enough, and only the change too small; 0 when it is not.
        self._reached_ms = np.zeros((lengths, count), dtype=np.int64)
        # Blocks that begin before this say nothing new of a signal.
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
        """All that is remembered, to be kept or written over; always of the same shapes and types."""
        return self._sums, self._effects, self._reached_ms, self._settled_ms

    def step(self, block: Block) -> DetectorVerdict:
        """Take a block in. Blocks of one length come in order of time, each once."""
        place = LENGTHS_MS.index(block.length_ms)
        assert block.signals is self.signals or block.signals == self.signals, "a block of other signals"
        sd = self._spread(block)
        counted = self._counted(block, sd)
        deviation = np.zeros(len(self.signals))
        z = (block.value[counted] - block.expected[counted]) / sd[counted]
        deviation[counted] = self._quantile(z / self._inflation)
        threshold = self._thresholds[place]
        # The mean of the sums is what is compared: one sum alone may make up the whole of it.
        ceiling = (threshold + math.log(self._bets.size))[:, None, None]
        gains = deviation[:, None, None] * self._bets - self._costs
        gains = np.minimum(gains, ceiling / _BLOCKS_TO_FIRE[block.length_ms])
        before = self._sums[place] * _STEP
        after = np.minimum(np.logaddexp(0.0, gains + before), ceiling + _STEP)
        after = np.where(counted[:, None, None], after, before)
        self._sums[place] = np.floor(after / _STEP)
        logs = np.log(np.maximum(np.expm1(after), _TAIL_MIN))
        evidence = _log_mean(logs)
        # Of several that are capped alike, the largest shift.
        shift = self._bets.ravel()[::-1][logs.reshape(len(logs), -1)[:, ::-1].argmax(axis=1)]
        effect = self._averaged(place, block, deviation, counted)
        enough = evidence >= threshold
        reached_ms = np.where(enough, np.where(self._reached_ms[place] > 0, self._reached_ms[place], block.end_ms), 0)
        fired = np.flatnonzero(counted & enough & (effect >= self._effect_min))
        self._reached_ms[place] = reached_ms
        self._sums[place, fired] = 0
        self._reached_ms[place, fired] = 0
        return DetectorVerdict(evidence, threshold, shift, deviation, effect, reached_ms, counted, fired)

    def _averaged(
        self, place: int, block: Block, deviation: NDArray[np.float64], counted: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """How large the change is, by this block and those before it."""
        now = np.sign(deviation) * np.minimum(np.nan_to_num(block.effect, posinf=EFFECT_MAX), EFFECT_MAX)
        weight = np.clip((deviation / _STANDS_OUT) ** 2, _WEIGHT_MIN, 1.0)
        before = self._effects[place].astype(np.float64)
        self._effects[place] = np.where(counted, before + weight * (now - before), before)
        return np.asarray(np.abs(self._effects[place]), dtype=np.float64)

    def forget(self, indexes: Sequence[int], time_ms: int) -> None:
        """Begin anew with these signals: what lies before `time_ms` is settled, blocks that contain some of it too."""
        wanted = list(indexes)
        for kept in (self._sums, self._effects, self._reached_ms):
            kept[:, wanted] = 0
        self._settled_ms[wanted] = time_ms

    def settle(self, indexes: Sequence[int], time_ms: int) -> None:
        """Take in no block of these signals that begins before `time_ms`, and keep what is known."""
        wanted = list(indexes)
        self._settled_ms[wanted] = np.maximum(self._settled_ms[wanted], time_ms)

    def _spread(self, block: Block) -> NDArray[np.float64]:
        """The standard deviation that z is measured in."""
        middle = np.clip((block.value + block.expected) / 2, 0, 1)
        sampling = np.sqrt(middle * (1 - middle) / np.maximum(block.count, 1))
        return np.where(self._is_share, np.maximum(block.sd, sampling), block.sd)

    def _counted(self, block: Block, sd: NDArray[np.float64]) -> NDArray[np.bool_]:
        with np.errstate(invalid="ignore"):
            known = (sd > 0) & np.isfinite(sd) & np.isfinite(block.value) & np.isfinite(block.expected)
        return known & (block.count >= self.settings.payments_min) & (block.start_ms >= self._settled_ms)

    def _quantile(self, z: NDArray[np.float64]) -> NDArray[np.float64]:
        """The normal quantiles of where z lies under the null."""
        # Imported here: who only reads alerts has no SciPy.
        from scipy.special import ndtri, stdtr

        tail = np.maximum(stdtr(self.settings.null_freedom, -np.abs(z)), _TAIL_MIN)
        return np.asarray(-np.sign(z) * ndtri(tail), dtype=np.float64)

    def _log_thresholds(self) -> NDArray[np.float64]:
        """Logarithms of what evidence must reach, (block lengths, signals)."""
        shares = budget(self.signals) / len(LENGTHS_MS)
        blocks = self.settings.false_alarm_days * DAY_MS / np.array(LENGTHS_MS, dtype=np.float64)
        return np.asarray(np.log(np.maximum(blocks[:, None] / shares, 1.0)), dtype=np.float64)


def budget(signals: Sequence[Signal]) -> NDArray[np.float64]:
    """Each signal's share of the false alarms, (signals,), sum 1."""
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
    """Logarithm of the mean over all but the first axis."""
    flat = logs.reshape(len(logs), -1)
    top = flat.max(axis=1, initial=math.log(_TAIL_MIN))
    return np.asarray(top + np.log(np.exp(flat - top[:, None]).mean(axis=1)), dtype=np.float64)
