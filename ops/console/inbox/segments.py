"""Locates a change: counts before and now by segment, from an alert's samples of decisions.

    score, in channel=ecom     210 decisions from the hour before     ▂▅▇▃▁
                               190 of the newest window               ▁▂▅▇▅       most payments moved here

A segment is a value of one of the dimensions that drift is counted by (channel, country, merchant category). The bins
are those of the alert's own histogram where it has one.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from paywarden.models.drift.binning import DIMENSIONS, NONE
from paywarden.models.drift.signals import FEATURE_PREFIX, FLAG_PREFIX
from paywarden.ops.console.charts import bin_labels
from paywarden.ops.recomputation import vector_of
from paywarden.schemas.errors import InvalidEvent

SEGMENTS_MAX = 6
_DECISIONS_MIN = 20
_BINS, _VALUES_MAX = 8, 8
# The tail matters most: frauds are there.
_QUANTILES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 0.95, 0.99)
_YES_NO = ("yes", "no")
TRAFFIC = "traffic"

FeaturePlace = Callable[[str, str], int | None]
"""Return where in a vector a feature is, by the digest of the catalogue and the feature's name; None if unknown."""


@dataclass(frozen=True)
class SegmentCounts:
    """Decisions of a sample by bin, before and now. `moved`: the payments that are in another bin now."""

    segment: str
    labels: Sequence[str]
    before: Sequence[int]
    now: Sequence[int]
    moved: float


def by_segment(
    record: Mapping[str, Any],
    before: Sequence[Mapping[str, Any]],
    now: Sequence[Mapping[str, Any]],
    place: FeaturePlace,
) -> list[SegmentCounts]:
    """Return the segments where most payments moved, at most SEGMENTS_MAX. `before`, `now`: samples of decisions."""
    own = str(record["segment"]).partition("=")[0]
    dimensions = [name for name in DIMENSIONS if name != own]
    if record["subject"] == TRAFFIC:
        found = [_mix(name, before, now) for name in dimensions]
    else:
        label = _labeller(record, [*before, *now], place)
        found = []
        for name in dimensions if label is not None else ():
            assert label is not None
            of_value = _grouped(name, before), _grouped(name, now)
            for value in of_value[0].keys() & of_value[1].keys():
                sides = of_value[0][value], of_value[1][value]
                found.append(_counted(f"{name}={value}", label, *sides))
    kept = [one for one in found if one is not None and min(sum(one.before), sum(one.now)) >= _DECISIONS_MIN]
    return sorted(kept, key=lambda one: (-one.moved, one.segment))[:SEGMENTS_MAX]


class _Labeller(NamedTuple):
    """Gives the label of a decision's bin: one of `labels`, or None for a decision that says nothing."""

    labels: Sequence[str]
    number: Callable[[Mapping[str, Any]], int | None]


def _labeller(
    record: Mapping[str, Any], decisions: Sequence[Mapping[str, Any]], place: FeaturePlace
) -> _Labeller | None:
    subject = str(record["subject"])
    if subject == "action":
        actions = ("approve", "review", "decline")
        return _Labeller(actions, lambda one: actions.index(one["action"]))
    if subject.startswith(FLAG_PREFIX):
        flag = subject.removeprefix(FLAG_PREFIX)
        return _Labeller(_YES_NO, lambda one: 0 if flag in one["flags"] else 1)
    value = _value_of(subject, place)
    if value is None:
        return None
    edges = _edges(record, [found for one in decisions if (found := value(one)) is not None])
    if edges is None:
        return None
    inner = [edge for edge in edges[1:-1] if edge is not None]

    def number(one: Mapping[str, Any]) -> int | None:
        found = value(one)
        if found is None:
            return None
        return len(inner) + 1 if math.isnan(found) else bisect_right(inner, found)

    return _Labeller(bin_labels(edges), number)


def _value_of(subject: str, place: FeaturePlace) -> Callable[[Mapping[str, Any]], float | None] | None:
    if subject == "score":
        return lambda one: float(one["score"])
    if subject == "profile_age":
        return lambda one: None if one["profile_age_ms"] is None else float(one["profile_age_ms"])
    if not subject.startswith(FEATURE_PREFIX):
        return None
    name = subject.removeprefix(FEATURE_PREFIX)

    def feature(one: Mapping[str, Any]) -> float | None:
        at = place(one["catalogue_digest"], name)
        try:
            vector = vector_of(one)
        except InvalidEvent:
            return None
        return None if at is None or at >= len(vector) else float(vector[at])

    return feature


def _edges(record: Mapping[str, Any], values: Sequence[float]) -> list[float | None] | None:
    """Return the edges of the alert's histogram; without one those that split the sample evenly."""
    histogram = record["reference_histogram"]
    if histogram is not None and len(histogram["edges"]) > 2:
        inner = [edge for edge in histogram["edges"][1:-1] if edge is not None and math.isfinite(edge)]
        return [None, *inner, None]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    distinct = np.unique(finite)
    if len(distinct) <= _BINS:
        # Few values: each has a bin of its own.
        return [None, *((distinct[1:] + distinct[:-1]) / 2).tolist(), None]
    return [None, *np.unique(np.quantile(finite, _QUANTILES)).tolist(), None]


def _grouped(dimension: str, decisions: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for one in decisions:
        groups.setdefault(one[dimension] or NONE, []).append(one)
    return groups


def _counted(
    segment: str, label: _Labeller, before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]
) -> SegmentCounts:
    counts = [[0] * len(label.labels) for _ in range(2)]
    for side, decisions in zip(counts, (before, now), strict=True):
        for one in decisions:
            number = label.number(one)
            if number is not None:
                side[number] += 1
    return _made(segment, label.labels, *counts)


def _mix(dimension: str, before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> SegmentCounts:
    """Return the values of a dimension as bins: for traffic, the mix itself has moved."""
    sides = [Counter(one[dimension] or NONE for one in decisions) for decisions in (before, now)]
    both = sides[0] + sides[1]
    names = [name for name, _ in sorted(both.items(), key=lambda item: (-item[1], item[0]))]
    shown, rest = names[:_VALUES_MAX], names[_VALUES_MAX:]
    labels = [*shown, *(["other values"] if rest else [])]
    counts = [
        [*(side[name] for name in shown), *([sum(side[name] for name in rest)] if rest else [])] for side in sides
    ]
    return _made(dimension, labels, *counts)


def _made(segment: str, labels: Sequence[str], before: Sequence[int], now: Sequence[int]) -> SegmentCounts:
    shares = [[count / (sum(side) or 1) for count in side] for side in (before, now)]
    moved = sum(max(0.0, b - a) for a, b in zip(*shares, strict=True)) * sum(now)
    return SegmentCounts(segment, tuple(labels), tuple(before), tuple(now), round(moved, 6))
