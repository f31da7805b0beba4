"""The grid of LightGBM parameters that a search draws its candidates from."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from paywarden.models.training.candidates import CandidatePath, Parameters
from paywarden.models.training.training_settings import TrainingSettings
from paywarden.schemas.errors import Misconfigured

_BOOSTED_SIZES = (60, 100, 150, 200, 300)
# A week has about 600 frauds. Trees that see only a part of rows and features overfit them less.
_GRID: dict[str, tuple[Any, ...]] = {
    "learning_rate": (0.03, 0.05, 0.08),
    # (depth, leaves): a full tree of this depth, or one without its weakest splits.
    "shape": ((3, 7), (4, 15), (5, 24), (6, 31)),
    "l2": (2.0, 5.0, 10.0, 20.0),
    "min_sum_hessian": (0.5, 1.0, 2.0, 4.0),
    "feature_fraction": (0.3, 0.5, 0.7),
    "bagging_fraction": (0.6, 0.8),
}


def boosted_paths(*, seed: int, budget: int, defaults: TrainingSettings | None = None) -> tuple[CandidatePath, ...]:
    """Returns `budget` different paths: first that of `defaults`, then a random sample of the grid.

    `defaults`: the first path's settings; None stands for the defaults of [training]. Raises Misconfigured if `budget`
    is below 1.
    """
    if budget < 1:
        raise Misconfigured(f"the budget must be at least 1 training, got {budget}")
    points = [dict(zip(_GRID, values, strict=True)) for values in itertools.product(*_GRID.values())]
    order = np.random.default_rng(seed).permutation(len(points))
    drawn = [_boosted_parameters(**points[place]) for place in order]
    defaults = defaults or TrainingSettings()
    first = _boosted_parameters(
        learning_rate=defaults.learning_rate,
        shape=(defaults.max_depth, defaults.leaves),
        l2=defaults.l2,
        min_sum_hessian=defaults.min_sum_hessian,
        feature_fraction=defaults.feature_fraction,
        bagging_fraction=defaults.bagging_fraction,
    )
    others = [parameters for parameters in drawn if parameters != first]
    return tuple(CandidatePath(parameters, _BOOSTED_SIZES) for parameters in [first, *others[: budget - 1]])


def _boosted_parameters(
    *,
    learning_rate: float,
    shape: tuple[int, int],
    l2: float,
    min_sum_hessian: float,
    feature_fraction: float,
    bagging_fraction: float,
) -> Parameters:
    return {
        "learning_rate": learning_rate,
        "max_depth": shape[0],
        "leaves": shape[1],
        "l2": l2,
        "min_sum_hessian": min_sum_hessian,
        "feature_fraction": feature_fraction,
        "bagging_fraction": bagging_fraction,
    }
