"""Say why signals moved: the order of causes, the segment a move sits in, and the part that a change of mix explains.

The order of causes; each explains those behind it:

    profiles stale  >  a feature, or a known condition of quality  >  traffic of a segment  >  score and actions

Traffic is special: neither profiles nor features move it, unless a feature moved in that very segment. Traffic moves
other signals through the mix. Then every segment is as it was, and only the number of payments in each has changed:

                    expected                now
    amount in BR    100, 10 % of payments   100, 40 % of payments
    amount in DE     50, 90 % of payments    50, 60 % of payments
    amount overall   55                      70      the mix alone moved it

A change of mix can be checked like this. A feature that moved by the mix alone is explained by traffic, although
features come first.
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
EPISODE_PREFIX = "episode:"
"""Subjects of bursts of card testing, whose cause is traffic."""
# Flags which say that profiles are missing, stale or unreadable.
_PROFILE_FLAGS = ("mirror_absent", "mirror_stale", "profile_unreadable")
# A move belongs to one segment alone if the payments outside moved by at most this share of those inside.
_OUTSIDE_SHARE_MAX = 0.35
# A move does not sit in a segment with less than this share of the overall evidence.
_EVIDENCE_SHARE_MIN = 0.8
# A signal moved in a block from this deviation on: enough to be the seat of a move that another signal has proven.
_SEAT_DEVIATION_MIN = 1.0
# The mix explains a move if less than this share of it is left within segments.
_WITHIN_SHARE_MAX = 0.5
# A signal with a smaller deviation has not moved in this block.
_MOVED_MIN = 3.0
# If a segment's traffic grew or shrank by this factor, its population has come or gone.
_FOREIGN_TIMES = 3.0
_SHARE_FLOOR = 1e-6


class Cause(IntEnum):
    """A possible cause of a move. A smaller value explains a larger one."""

    PROFILES = 0
    INPUT = 1
    TRAFFIC = 2
    SCORE = 3
    OUTCOME = 4


def cause_of(subject: str) -> Cause:
    """Return the cause that a move of this subject would be."""
    if subject == PROFILE_AGE or subject.removeprefix(FLAG_PREFIX) in _PROFILE_FLAGS:
        return Cause.PROFILES
    if subject.startswith((FEATURE_PREFIX, FLAG_PREFIX)):
        return Cause.INPUT
    if subject.startswith(OUTCOME_PREFIX):
        return Cause.OUTCOME
    return Cause.TRAFFIC if subject == TRAFFIC or subject.startswith(EPISODE_PREFIX) else Cause.SCORE


class SignalTable:
    """The index of each signal, and for each subject and statistic the segments that have a signal."""

    def __init__(self, signals: Sequence[Signal]) -> None:
        self.signals = tuple(signals)
        self.index = {signal: index for index, signal in enumerate(self.signals)}
        self._segments: dict[tuple[str, str], list[int]] = {}
        for index, signal in enumerate(self.signals):
            if signal.segment != OVERALL:
                self._segments.setdefault((signal.subject, signal.statistic), []).append(index)

    def overall(self, signal: Signal) -> int | None:
        """Return the index of the same signal over all payments; None if there is none, as for traffic."""
        return self.index.get(replace(signal, segment=OVERALL))

    def segments(self, signal: Signal) -> list[int]:
        """Return the indexes of the same signal in every segment."""
        return self._segments.get((signal.subject, signal.statistic), [])


def seat_of(table: SignalTable, block: Block, verdict: DetectorVerdict, index: int) -> int:
    """Return the signal that best says where a move sits: overall, or one segment that moved alone.

    `index` is a signal that fired. A signal that has not moved in this block the same way is never the seat.
    """
    signal = table.signals[index]
    overall = table.overall(signal)
    if overall is None or not verdict.counted[overall]:
        return index
    evidence_min = _EVIDENCE_SHARE_MIN * max(float(verdict.evidence[overall]), float(verdict.evidence[index]))
    has_moved = verdict.deviation * np.sign(verdict.deviation[index]) >= _SEAT_DEVIATION_MIN
    seat, smallest = overall if has_moved[overall] else index, _OUTSIDE_SHARE_MAX
    for segment in table.segments(signal):
        if not verdict.counted[segment] or verdict.evidence[segment] < evidence_min:
            continue
        outside = _outside_share(block, overall, segment)
        if outside < smallest and has_moved[segment]:
            seat, smallest = segment, outside
    return seat


def _outside_share(block: Block, overall: int, segment: int) -> float:
    """Return how much the other payments moved, relative to the segment's; infinity if there are too few others."""
    moved = block.value - block.expected
    inside_count, all_count = int(block.count[segment]), int(block.count[overall])
    outside_count = all_count - inside_count
    # With hardly any other payments nobody can know whether the move is this segment's alone.
    if outside_count <= all_count // 20 or moved[segment] == 0:
        return float("inf")
    outside = (moved[overall] * all_count - moved[segment] * inside_count) / outside_count
    return float(abs(outside / moved[segment]))


def mix_explains(table: SignalTable, block: Block, verdict: DetectorVerdict, signal: Signal, traffic: Signal) -> bool:
    """Whether a signal moved only because the shares of segments changed, in the dimension of `traffic`."""
    overall = table.overall(signal)
    dimension = dimension_of(traffic.segment)
    if overall is None or dimension_of(signal.segment) == dimension:
        return False
    if signal.segment != OVERALL and abs(verdict.deviation[overall]) < _MOVED_MIN:
        # A signal that moved in another dimension's segment, but not overall, moved by that segment's own mix.
        return True
    mix = 0.0
    for index in table.segments(signal):
        segment = table.signals[index].segment
        share = table.index.get(replace(traffic, segment=segment))
        if dimension_of(segment) == dimension and share is not None and np.isfinite(block.expected[index]):
            mix += float((block.value[share] - block.expected[share]) * block.expected[index])
    moved = float(block.value[overall] - block.expected[overall])
    if abs(verdict.deviation[overall]) < _MOVED_MIN:
        # In one block chance has too large a part, so the shift that was found over many blocks is used.
        moved = float(verdict.shift[overall] * block.sd[overall])
    return abs(moved - mix) < _WITHIN_SHARE_MAX * max(abs(moved), abs(mix)) and moved * mix > 0


def dimension_of(segment: str) -> str:
    """Return the field of a segment: "country" for "country=BR"."""
    return segment.partition("=")[0]


def traffic_explains(table: SignalTable, block: Block, traffic: Signal, other: Signal) -> bool:
    """Whether a segment's share moved only because another's did: among the remaining traffic it is unchanged."""
    if dimension_of(traffic.segment) != dimension_of(other.segment) or traffic == other:
        return False
    traffic_index, other_index = table.index[traffic], table.index[other]
    value = float(block.value[other_index]) / max(1 - float(block.value[traffic_index]), _SHARE_FLOOR)
    expected = float(block.expected[other_index]) / max(1 - float(block.expected[traffic_index]), _SHARE_FLOOR)
    moved = float(block.value[other_index] - block.expected[other_index])
    return abs(value - expected) < _WITHIN_SHARE_MAX * abs(moved)


def newcomers_explain(table: SignalTable, block: Block, signal: Signal, traffic: Signal) -> bool:
    """Whether a signal moved because one segment's population has come or gone, while the others are unchanged."""
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
    """Return the mean over the payments outside a segment with this share. A segment without a value counts as 0."""
    within = float(values[inside]) * share if np.isfinite(values[inside]) else 0.0
    return (float(values[overall]) - within) / max(1 - share, _SHARE_FLOOR)


def is_foreign(value: float, expected: float) -> bool:
    """Whether a segment has come or gone, so that its payments cannot be compared with those before."""
    value, expected = max(value, _SHARE_FLOOR), max(expected, _SHARE_FLOOR)
    return not 1 / _FOREIGN_TIMES < value / expected < _FOREIGN_TIMES


def most_moved_traffic(block: Block, indexes: Iterable[int]) -> int:
    """Return the signal of traffic with the largest part in the PSI of the shares: it caused most of the move."""

    def part(index: int) -> float:
        value, expected = max(block.value[index], _SHARE_FLOOR), max(block.expected[index], _SHARE_FLOOR)
        return float((value - expected) * np.log(value / expected))

    return max(indexes, key=part)
