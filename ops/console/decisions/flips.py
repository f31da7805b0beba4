"""Finds the smallest change of one feature with which a payment would have got another action.

    card_count_1h  7 ──► 5      approve instead of review      2 of the model's split points away
    amount         41,250 ──► 30,000.5      approve            9 split points away

It is the answer of the model and the policy to a vector that differs in one number. It is no advice, and no payment may
exist that has this vector: features hang together.

How it works:

1. The score changes only where a feature crosses one of the model's split points, and a rule's answer only where it
   crosses a number of the rule. These *cuts* divide each feature's numbers into intervals of equal answers.
2. From the payment's own interval the search goes outwards, one cut further at each step, up and down, for all features
   at once. It asks the model about the nearest number of each interval that it reaches.
3. It ends when enough features are found, or after `STEPS_MAX` cuts on either side.

The number that it names is therefore the nearest one of this feature, to the last bit of a float32. For a feature that
holds whole numbers it is the nearest whole one.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paywarden.features.profiles.money import RateTable
from paywarden.models.bundle.bundle import Bundle
from paywarden.models.bundle.explanations import CATEGORICAL, DECISION, FEATURE, Trees
from paywarden.models.policy.policy import Facts, Policy
from paywarden.ops.recomputation import request_of, vector_of
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest

STEPS_MAX = 64
_STEPS_AT_ONCE = (4, 12, 48)
_F32_MAX = float(np.finfo(np.float32).max)
F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Flip:
    """A change of one feature that changes the action. `now` and `then` are its values, NaN for a missing one.

    `steps`: how many cuts lie between them. A payment with `then` gets `action` with `score`.
    """

    feature: str
    now: float
    then: float
    action: str
    score: float
    steps: int


@dataclass(frozen=True)
class Cuts:
    """The cuts of each feature, ascending, and the categories of those whose splits are sets."""

    of_feature: tuple[NDArray[np.float64], ...]
    categories: Mapping[int, tuple[int, ...]]


def cuts_of(models: Iterable[Trees], policy: Policy, feature_names: Sequence[str]) -> Cuts:
    """Returns the cuts of a bundle's models and of a policy's conditions."""
    cuts: list[set[float]] = [set() for _ in feature_names]
    categories: dict[int, set[int]] = {}
    for trees in models:
        for node, threshold in zip(trees.nodes, trees.thresholds.tolist(), strict=True):
            if node[DECISION] & CATEGORICAL:
                continue
            # Beyond them is no number: LightGBM writes `inf` where a split sets missing values apart from all others.
            if abs(threshold) < _F32_MAX:
                cuts[node[FEATURE]].add(threshold)
        for number in np.flatnonzero(trees.nodes[:, DECISION] & CATEGORICAL).tolist():
            categories.setdefault(int(trees.nodes[number, FEATURE]), set()).update(trees.categories(number))
    places = {name: place for place, name in enumerate(feature_names)}
    conditions = [rule.when for rule in policy.settings.rules]
    conditions += [segment.when for segment in policy.settings.segments]
    for when in conditions:
        names, numbers = _names_and_numbers(when)
        for name in names & places.keys():
            # `>=` has the number above, `>` below: both sides of it are intervals of their own.
            for value in numbers:
                cuts[places[name]] |= {value, float(np.nextafter(np.float32(value), np.float32(-np.inf)))}
    return Cuts(
        tuple(np.array(sorted(each), dtype=np.float64) for each in cuts),
        {feature: tuple(sorted(each)) for feature, each in categories.items()},
    )


def _names_and_numbers(when: str) -> tuple[set[str], list[float]]:
    nodes = list(ast.walk(ast.parse(when, mode="eval")))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    constants = [node.value for node in nodes if isinstance(node, ast.Constant)]
    numbers = [value for value in constants if isinstance(value, int | float) and not isinstance(value, bool)]
    return names, [sign * float(np.float32(value)) for value in numbers for sign in (1.0, -1.0)]


def flips(
    decision: Mapping[str, Any], bundle: Bundle, policy: Policy, rates: RateTable, cuts: Cuts, *, count: int = 5
) -> list[Flip]:
    """Returns changes of one feature that give another action, the fewest cuts first; empty if there are none.

    `decision`: in the form of its topic, with the vector that `bundle` scores. The exploration's coin does not count: a
    flip changes the action that the policy chose without it. Not thread-safe, as the bundle is not.
    """
    vector = vector_of(decision)
    names = bundle.manifest.feature_names
    assert len(vector) == len(names)
    request = request_of(decision)
    amount = rates.convert(request.amount_minor, request.currency, request.event_time_ms)
    asked = _Asked(bundle, policy, request, amount, tuple(decision["flags"]))
    before = asked.answers(vector.reshape(1, -1))[0][0]
    found: dict[int, Flip] = {}
    first = 1
    for steps in _STEPS_AT_ONCE:
        candidates = [
            (step, feature, value)
            for feature in range(len(names))
            if feature not in found
            for step, value in _candidates(vector[feature], feature, cuts, range(first, first + steps))
        ]
        first += steps
        if not candidates:
            continue
        rows = np.repeat(vector.reshape(1, -1), len(candidates), axis=0)
        rows[np.arange(len(candidates)), [feature for _, feature, _ in candidates]] = [v for _, _, v in candidates]
        for (step, feature, value), (action, score) in sorted(
            zip(candidates, asked.answers(rows), strict=True), key=lambda pair: (pair[0][0], pair[0][1])
        ):
            if action != before and feature not in found:
                found[feature] = Flip(names[feature], float(vector[feature]), float(value), action, score, step)
        if len(found) >= count:
            break
    return sorted(found.values(), key=lambda flip: (flip.steps, names.index(flip.feature)))[:count]


@dataclass(frozen=True)
class _Asked:
    bundle: Bundle
    policy: Policy
    request: ScoreRequest
    amount: int | None
    flags: tuple[str, ...]

    def answers(self, rows: F32) -> list[tuple[str, float]]:
        """Returns the action and the score of each row, (rows, features)."""
        scores = self.bundle.score(np.ascontiguousarray(rows)).tolist()
        return [
            (self.policy.decide(Facts(self.request, self.amount, row, score, self.flags)).action, score)
            for row, score in zip(rows, scores, strict=True)
        ]


def _candidates(now: np.float32, feature: int, cuts: Cuts, steps: range) -> list[tuple[int, np.float32]]:
    """Returns the nearest value of each interval that lies `steps` cuts away, with the number of cuts."""
    if feature in cuts.categories:
        if steps.start > 1:
            return []
        return [(1, np.float32(value)) for value in cuts.categories[feature][:STEPS_MAX] if value != now]
    of_feature = cuts.of_feature[feature]
    if len(of_feature) == 0:
        return []
    is_missing = math.isnan(now)
    # In which interval it is: the number of cuts below it. A missing value begins in the middle.
    place = len(of_feature) // 2 if is_missing else int(np.searchsorted(of_feature, np.float64(now), side="left"))
    is_whole = not is_missing and float(now).is_integer()
    found = []
    for step in steps:
        if place + step <= len(of_feature):
            low = of_feature[place + step - 1]
            high = of_feature[place + step] if place + step < len(of_feature) else np.inf
            found.append((step, _above(low, high, is_whole=is_whole)))
        if place - step >= 0:
            high = of_feature[place - step]
            low = of_feature[place - step - 1] if place - step > 0 else -np.inf
            found.append((step, _at_most(high, low, is_whole=is_whole)))
    return found


def _above(low: float, high: float, *, is_whole: bool) -> np.float32:
    """Returns the smallest float32 above `low`, the smallest whole one if wanted and there is one up to `high`."""
    if is_whole and (whole := math.floor(low) + 1) <= high:
        return np.float32(whole)
    value = np.float32(low)
    return value if float(value) > low else np.nextafter(value, np.float32(np.inf))


def _at_most(high: float, low: float, *, is_whole: bool) -> np.float32:
    """Returns the largest float32 up to `high`, the largest whole one if wanted and there is one above `low`."""
    if is_whole and (whole := math.floor(high)) > low:
        return np.float32(whole)
    value = np.float32(high)
    return value if float(value) <= high else np.nextafter(value, np.float32(-np.inf))
