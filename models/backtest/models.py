"""The models that a backtest compares, with their candidates: three of the Handbook's, and LightGBM.

LightGBM's candidates are a seeded sample of a grid. Their parameters have the names of the [training] settings, so that
a choice can be copied there. The first candidate is the defaults: a choice is never worse on the validation folds.
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
from threadpoolctl import threadpool_limits

from paywarden.models.backtest.backtest import Family, Fit, Fold
from paywarden.models.training.candidates import CandidatePath, Parameters, Scores
from paywarden.models.training.search_space import boosted_paths
from paywarden.models.training.training_settings import TrainingSettings
from paywarden.schemas.errors import Misconfigured

# LightGBM's threads wait for each other thousands of times a second and spin meanwhile. On a busy machine two threads
# are several times slower than one. One thread also gives the same bits on every machine.
_BOOSTING_THREADS = 1

# The book's grids.
_REGULARISATION = (0.1, 1.0, 10.0, 100.0)
_TREE_DEPTHS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 50)
_FOREST_DEPTHS = (5, 10, 20, 50)
_FOREST_SIZES = (25, 50, 100)

# Ill-conditioned columns need far more steps than scikit-learn's default of 100. A solver that stops early warns.
_SOLVER_STEPS_MAX = 5000

MODELS = ("lr", "rf", "dt", "lightgbm")


def family(name: str, *, seed: int, budget: int, published: Mapping[str, Parameters] | None = None) -> Family:
    """Returns one of MODELS. `budget`: the number of LightGBM trainings per fold. `seed`: for all random choices.

    Raises Misconfigured for another name.
    """
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
        # A step multiplies a vector. Threads of OpenBLAS spin between such products: two of them took ten times the
        # CPU of one, and longer by the clock.
        with threadpool_limits(limits=1, user_api="blas"):
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
        # With a warm start, a forest of 50 trees keeps its first 25, as if it had been grown at once.
        model = RandomForestClassifier(warm_start=True, random_state=seed, **path.parameters)
        scores = []
        for size in path.sizes:
            # Growing gives the same trees with any number of threads. Predicting sums votes in the order in which
            # threads finish, so it must use one.
            model.set_params(n_estimators=size, n_jobs=-1).fit(train, fold.train.label)
            scores.append(_fraud_probability(model.set_params(n_jobs=1), test))
        return scores

    return fit


def _lightgbm(fold: Fold, seed: int) -> Fit:
    # All candidates share the settings of binning, so the rows are binned once.
    defaults = replace(TrainingSettings(), seed=seed, threads=_BOOSTING_THREADS)
    # Pre-filtering would drop columns by a candidate's parameters.
    shared = defaults.lightgbm_parameters() | {"feature_pre_filter": False}
    data = lightgbm.Dataset(fold.train.vectors, fold.train.label, params=shared, free_raw_data=False).construct()

    def fit(path: CandidatePath) -> list[Scores]:
        settings = replace(defaults, **path.parameters)  # type: ignore[arg-type] # whole numbers and fractions by name
        parameters = settings.lightgbm_parameters() | {"feature_pre_filter": False}
        model: Any = lightgbm.train(parameters, data, num_boost_round=path.sizes[-1])
        return [model.predict(fold.test.vectors, raw_score=True, num_iteration=size) for size in path.sizes]

    return fit


def _without_gaps(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Replace missing values by 0, as the book does: no payments mean no risk."""
    return np.nan_to_num(vectors, nan=0.0)


def _fraud_probability(model: Any, vectors: NDArray[Any]) -> Scores:
    probability: Scores = model.predict_proba(vectors)[:, 1]
    return probability
