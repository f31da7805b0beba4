"""Why signals moved: which cause comes before which, where a move sits, and what a change of mix explains.

The order of causes, first what explains what comes after it:

    profiles stale  >  a feature, or a known condition of quality  >  traffic of a segment  >  score and actions

Traffic is the one thing that neither profiles nor features move, except where a feature moved in that very segment.
What traffic moves, it moves by the mix: all segments are as they were, and only how many payments each has is not.
That can be seen, so a feature that moved by the mix alone is the traffic's, although features come first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from paywarden.models.drift.binning import OVERALL
from paywarden.models.drift.detectors import DetectorVerdict
from paywarden.models.drift.signals import FEATURE_PREFIX, FLAG_PREFIX, PROFILE_AGE, TRAFFIC, Block, Signal

OUTCOME_PREFIX = "outcome:"
# Conditions of quality that say that profiles are not what they should be.
_PROFILE_FLAGS = ("mirror_absent", "mirror_stale", "profile_unreadable")
# A move is a segment's alone when what is outside it moved no more than this share of what is inside.
_OUTSIDE_SHARE_MAX = 0.35
# A segment that has less of the evidence than this share of the overall's is not where the move sits.
_EVIDENCE_SHARE_MIN = 0.8
# A move is the mix's when within segments less than this share of it is left.
_WITHIN_SHARE_MAX = 0.5
# A signal whose deviation is smaller has not moved in this block.
_MOVED_MIN = 3.0
# A segment whose traffic is so many times what it was, or so little of it, is another population: it has come or gone.
_FOREIGN_TIMES = 3.0
_SHARE_FLOOR = 1e-6


class Cause(IntEnum):
    """What may be behind a move; the smaller explains the larger."""

    PROFILES = 0
    INPUT = 1
    TRAFFIC = 2
    SCORE = 3
    OUTCOME = 4


def cause_of(subject: str) -> Cause:
    """Which cause a move of this subject would be."""
    if subject == PROFILE_AGE or subject.removeprefix(FLAG_PREFIX) in _PROFILE_FLAGS:
        return Cause.PROFILES
    if subject.startswith((FEATURE_PREFIX, FLAG_PREFIX)):
        return Cause.INPUT
    if subject.startswith(OUTCOME_PREFIX):
        return Cause.OUTCOME
    return Cause.TRAFFIC if subject == TRAFFIC else Cause.SCORE


class SignalTable:
    """Where each signal stands, and by subject and statistic in which segments there is one."""

    def __init__(self, signals: Sequence[Signal]) -> None:
        self.signals = tuple(signals)
        self.index = {signal: index for index, signal in enumerate(self.signals)}
        self._segments: dict[tuple[str, str], list[int]] = {}
        for index, signal in enumerate(self.signals):
            if signal.segment != OVERALL:
                self._segments.setdefault((signal.subject, signal.statistic), []).append(index)

    def overall(self, signal: Signal) -> int | None:
        """The same of all payments; None where there is none, as of traffic."""
        return self.index.get(replace(signal, segment=OVERALL))

    def segments(self, signal: Signal) -> list[int]:
        """The same in every segment."""
        return self._segments.get((signal.subject, signal.statistic), [])


def seat_of(table: SignalTable, block: Block, verdict: DetectorVerdict, index: int) -> int:
    """The signal that says best where a move sits: overall, or one segment that moved alone."""
    signal = table.signals[index]
    overall = table.overall(signal)
    if overall is None or not verdict.counted[overall]:
        return index
    # Evidence below 0 is none; every segment that was counted is then as good.
    wanted = _EVIDENCE_SHARE_MIN * max(float(verdict.evidence[overall]), 0.0)
    found, smallest = overall, _OUTSIDE_SHARE_MAX
    for segment in table.segments(signal):
        if not verdict.counted[segment] or verdict.evidence[segment] < wanted:
            continue
        outside = _outside_share(block, overall, segment)
        if outside < smallest and abs(verdict.deviation[segment]) >= 1:
            found, smallest = segment, outside
    return found


def _outside_share(block: Block, overall: int, segment: int) -> float:
    """How much the other payments moved, relative to those of the segment; infinity when there are no others."""
    moved = block.value - block.expected
    inside_count, all_count = int(block.count[segment]), int(block.count[overall])
    outside_count = all_count - inside_count
    # Hardly any others: that a move is this segment's alone cannot be known.
    if outside_count <= all_count // 20 or moved[segment] == 0:
        return float("inf")
    outside = (moved[overall] * all_count - moved[segment] * inside_count) / outside_count
    return float(abs(outside / moved[segment]))


def mix_explains(table: SignalTable, block: Block, verdict: DetectorVerdict, signal: Signal, traffic: Signal) -> bool:
    """Whether a signal moved only because segments have other shares than they had, in the dimension of `traffic`."""
    overall = table.overall(signal)
    dimension = dimension_of(traffic.segment)
    if overall is None or dimension_of(signal.segment) == dimension:
        return False
    if signal.segment != OVERALL and abs(verdict.deviation[overall]) < _MOVED_MIN:
        # What moves within another dimension's segment, and not overall, is that segment's own mix.
        return True
    mix = 0.0
    for index in table.segments(signal):
        segment = table.signals[index].segment
        share = table.index.get(replace(traffic, segment=segment))
        if dimension_of(segment) == dimension and share is not None and np.isfinite(block.expected[index]):
            mix += float((block.value[share] - block.expected[share]) * block.expected[index])
    moved = float(block.value[overall] - block.expected[overall])
    if abs(verdict.deviation[overall]) < _MOVED_MIN:
        # Chance has too large a part in one block; what is found over many has not.
        moved = float(verdict.shift[overall] * block.sd[overall])
    return abs(moved - mix) < _WITHIN_SHARE_MAX * max(abs(moved), abs(mix)) and moved * mix > 0


def dimension_of(segment: str) -> str:
    """The field that a segment is a value of."""
    return segment.partition("=")[0]


def traffic_explains(table: SignalTable, block: Block, traffic: Signal, other: Signal) -> bool:
    """Whether a segment's share of the traffic moved only because another's did: among the rest it is what it was."""
    if dimension_of(traffic.segment) != dimension_of(other.segment) or traffic == other:
        return False
    one, two = table.index[traffic], table.index[other]
    value = float(block.value[two]) / max(1 - float(block.value[one]), _SHARE_FLOOR)
    expected = float(block.expected[two]) / max(1 - float(block.expected[one]), _SHARE_FLOOR)
    moved = float(block.value[two] - block.expected[two])
    return abs(value - expected) < _WITHIN_SHARE_MAX * abs(moved)


def newcomers_explain(table: SignalTable, block: Block, signal: Signal, traffic: Signal) -> bool:
    """Whether a signal moved because a segment is another population now, and the others are as they were."""
    share = table.index[traffic]
    if not is_foreign(float(block.value[share]), float(block.expected[share])):
        return False
    if signal.segment == traffic.segment:
        return True
    overall = table.overall(signal)
    inside = table.index.get(replace(signal, segment=traffic.segment))
    if signal.segment != OVERALL or overall is None or inside is None:
        return False
    now = _outside(block.value, overall, inside, float(block.value[share]))
    then = _outside(block.expected, overall, inside, float(block.expected[share]))
    moved = float(block.value[overall] - block.expected[overall])
    return abs(now - then) <= _OUTSIDE_SHARE_MAX * abs(moved)


def _outside(values: NDArray[np.float64], overall: int, inside: int, share: float) -> float:
    """The mean of the payments outside a segment that has this share; one of nothing counts nothing."""
    within = float(values[inside]) * share if np.isfinite(values[inside]) else 0.0
    return (float(values[overall]) - within) / max(1 - share, _SHARE_FLOOR)


def is_foreign(value: float, expected: float) -> bool:
    """Whether a segment of this share has come or gone, so that what is within it compares to nothing."""
    value, expected = max(value, _SHARE_FLOOR), max(expected, _SHARE_FLOOR)
    return not 1 / _FOREIGN_TIMES < value / expected < _FOREIGN_TIMES


def most_moved_traffic(block: Block, indexes: Iterable[int]) -> int:
    """Of signals of traffic, the segment that most of the move is due to: its part of the PSI of the shares."""

    def part(index: int) -> float:
        value, expected = max(block.value[index], _SHARE_FLOOR), max(block.expected[index], _SHARE_FLOOR)
        return float((value - expected) * np.log(value / expected))

    return max(indexes, key=part)
