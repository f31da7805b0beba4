"""Compares the features of a payment with the usual values of its card and of the training payments.

    card_count_1h   7     the card: 1 to 3 in 9 of 10 payments     training: higher than 99.2 % of payments

The card's usual range comes from the vectors of its last payments, those of the same catalogue. The training window
comes from the reference in the bundle, which counts each feature in bins: a share is exact to a bin.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from paywarden.ops.recomputation import vector_of

if TYPE_CHECKING:
    from paywarden.models.drift.reference import Reference

PAST_MAX = 20
"""The card's last payments that are looked at."""
_PAST_MIN = 5
_LOW, _HIGH = 0.05, 0.95
_RARE_SHARE = 0.01


@dataclass(frozen=True)
class FeatureView:
    """A feature of a payment. NaN is a missing value, None an unknown one.

    `low`, `middle`, `high`: of the card's last payments, nine of ten lie between low and high. `is_unusual`: outside.
    `share_below`: of the payments of training. `is_rare`: fewer than one in a hundred are as high or as low.
    `entity`: whose profile it is from, such as card; "payment" for none. `meaning`, `unit`: in the catalogue's words.
    These three are empty if the decision is of another catalogue.
    """

    name: str
    value: float
    low: float | None
    middle: float | None
    high: float | None
    is_unusual: bool
    share_below: float | None
    is_rare: bool
    entity: str = ""
    meaning: str = ""
    unit: str = ""


def features_of(
    decision: Mapping[str, Any], past: Sequence[Mapping[str, Any]], names: Sequence[str], reference: Reference | None
) -> list[FeatureView]:
    """Return the features of a decision, the unusual ones first; none if it does not hold `names`.

    `past`: decisions about the card's last payments. Raises InvalidEvent if the decision's vector cannot be read.
    """
    vector = vector_of(decision)
    if len(vector) != len(names):
        return []
    same = [
        vector_of(one)
        for one in past
        if one["catalogue_digest"] == decision["catalogue_digest"] and len(one["vector"]) == len(decision["vector"])
    ]
    card = np.array(same, dtype=np.float32).reshape(len(same), len(names))
    views = [_view(name, float(vector[place]), card[:, place], reference) for place, name in enumerate(names)]
    return sorted(views, key=lambda view: (not view.is_unusual, not view.is_rare))


def _view(
    name: str, value: float, past: np.ndarray[Any, np.dtype[np.float32]], reference: Reference | None
) -> FeatureView:
    known = past[~np.isnan(past)]
    low = middle = high = None
    is_unusual = False
    if len(known) >= _PAST_MIN:
        low, middle, high = (float(one) for one in np.quantile(known, (_LOW, 0.5, _HIGH), method="nearest"))
        is_unusual = not math.isnan(value) and not low <= value <= high
    below = None if reference is None else share_below(reference, name, value)
    is_rare = below is not None and not _RARE_SHARE <= below <= 1 - _RARE_SHARE
    return FeatureView(name, value, low, middle, high, is_unusual, below, is_rare)


def share_below(reference: Reference, name: str, value: float) -> float | None:
    """Return the share of training payments with a lower value, half of those in the same bin counted as lower.

    None where the reference does not know the feature or the value is missing.
    """
    if math.isnan(value) or name not in reference.feature_names:
        return None
    place = reference.feature_names.index(name)
    edges = reference.binning.feature_edges[place]
    counts = reference.counts.features[0, place, : len(edges) + 1].astype(np.float64)
    if counts.sum() == 0:
        return None
    bin_ = int(np.searchsorted(edges, np.float32(value), side="right"))
    return float((counts[:bin_].sum() + counts[bin_] / 2) / counts.sum())
