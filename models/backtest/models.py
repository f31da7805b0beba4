"""The models that a backtest compares, with their candidates: the Handbook's three, and LightGBM.

LightGBM's candidates are a seeded sample of a grid, named as the [training] settings are, so that a choice can be
copied there. The first one is the settings' defaults: a search never does worse than these on the validation folds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from paywarden.models.backtest.backtest import Family, Fit, Fold
from paywarden.models.training.candidates import CandidatePath, Parameters, Scores
from paywarden.models.training.search_space import boosted_paths
from paywarden.models.training.settings import TrainingSettings
from paywarden.schemas.errors import Misconfigured

# LightGBM's threads wait for one another thousands of times a second, each time burning their core: on a machine that
# does anything else two are several times slower than one. And one gives the same bits on every machine.
_BOOSTING_THREADS = 1

# The book's grids.
_REGULARISATION = (0.1, 1.0, 10.0, 100.0)
_TREE_DEPTHS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 50)
_FOREST_DEPTHS = (5, 10, 20, 50)
_FOREST_SIZES = (25, 50, 100)

# Scaled, ill-conditioned columns need far more steps than scikit-learn's 100; a solver that stops early warns.
_SOLVER_STEPS_MAX = 5000

MODELS = ("lr", "rf", "dt", "lightgbm")


def family(name: str, *, seed: int, budget: int, published: Mapping[str, Parameters] | None = None) -> Family:
    """One of MODELS. `budget` is how many LightGBM trainings a fold may cost, `seed` that of all that is random."""
    if name == "lr":
        paths = tuple(CandidatePath({"C": strength}) for strength in _REGULARISATION)
        return Family(name, paths, lambda fold: _logistic_regression(fold, seed), published=published)
    if name == "rf":
        paths = tuple(CandidatePath({"max_depth": depth}, _FOREST_SIZES) for depth in _FOREST_DEPTHS)
        return Family(name, paths, lambda fold: _random_forest(fold, seed), published=published)
    if name == "dt":
        paths = tuple(CandidatePath({"max_depth": depth}) for depth in _TREE_DEPTHS)
        return Family(name, paths, lambda fold: _decision_tree(fold, seed), published=published)
    if name == "lightgbm":
        return Family(
            name,
            boosted_paths(seed=seed, budget=budget),
            lambda fold: _lightgbm(fold, seed),
            published=published,
        )
    raise Misconfigured(f"wanted a model of {', '.join(MODELS)}, got {name!r}")


def _logistic_regression(fold: Fold, seed: int) -> Fit:
    scaler = StandardScaler().fit(_without_gaps(fold.train.vectors).astype(np.float64))
    train, test = (scaler.transform(_without_gaps(part.vectors).astype(np.float64)) for part in (fold.train, fold.test))

    def fit(path: CandidatePath) -> list[Scores]:
        model = LogisticRegression(max_iter=_SOLVER_STEPS_MAX, random_state=seed, **path.parameters)
        return [_fraud_probability(model.fit(train, fold.train.label), test)]

    return fit


def _decision_tree(fold: Fold, seed: int) -> Fit:
    train, test = _without_gaps(fold.train.vectors), _without_gaps(fold.test.vectors)

    def fit(path: CandidatePath) -> list[Scores]:
        model = DecisionTreeClassifier(random_state=seed, **path.parameters)
        return [_fraud_probability(model.fit(train, fold.train.label), test)]

    return fit


def _random_forest(fold: Fold, seed: int) -> Fit:
    train, test = _without_gaps(fold.train.vectors), _without_gaps(fold.test.vectors)

    def fit(path: CandidatePath) -> list[Scores]:
        # A forest started warm grows the trees that a larger one would have had from the start.
        model = RandomForestClassifier(warm_start=True, random_state=seed, **path.parameters)
        scores = []
        for size in path.sizes:
            # Which thread grows a tree makes no difference to it, but votes are added up in the order threads finish.
            model.set_params(n_estimators=size, n_jobs=-1).fit(train, fold.train.label)
            scores.append(_fraud_probability(model.set_params(n_jobs=1), test))
        return scores

    return fit


def _lightgbm(fold: Fold, seed: int) -> Fit:
    # What the binning depends on is the same for all candidates, so it is done once.
    defaults = replace(TrainingSettings(), seed=seed, threads=_BOOSTING_THREADS)
    # Leaving out columns that cannot be split would depend on the candidate.
    shared = defaults.lightgbm_parameters() | {"feature_pre_filter": False}
    data = lightgbm.Dataset(fold.train.vectors, fold.train.label, params=shared, free_raw_data=False).construct()

    def fit(path: CandidatePath) -> list[Scores]:
        settings = replace(defaults, **path.parameters)  # type: ignore[arg-type] # whole numbers and fractions by name
        parameters = settings.lightgbm_parameters() | {"feature_pre_filter": False}
        model: Any = lightgbm.train(parameters, data, num_boost_round=path.sizes[-1])
        return [model.predict(fold.test.vectors, raw_score=True, num_iteration=size) for size in path.sizes]

    return fit


def _without_gaps(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """What is missing as 0, as the book has it: no payment, no risk."""
    return np.nan_to_num(vectors, nan=0.0)


def _fraud_probability(model: Any, vectors: NDArray[Any]) -> Scores:
    probability: Scores = model.predict_proba(vectors)[:, 1]
    return probability
