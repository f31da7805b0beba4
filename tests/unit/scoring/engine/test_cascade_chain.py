"""A worker's model chain with a cascade: the same scores as the bundle, and counts by the model that answered."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from paywarden.models.bundle.cascade import CascadePredictor
from paywarden.scoring.engine.model_chain import ModelChain
from paywarden.scoring.metrics.model import ModelMetrics
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from tests.worlds.small import small_world
from tests.worlds.small.small_cascade import CASCADE, F32, F64, Column, loaded, payments, predictor


def test_the_chain_of_a_worker_scores_as_the_bundle_does() -> None:
    chain = ModelChain([loaded()], metrics=ModelMetrics.declare(MetricsRegistry()))
    rows = payments()
    assert chain.score(rows).scores == loaded().score(rows).tolist()
    assert chain._score_singly(rows[:200]).scores == loaded().score(rows[:200]).tolist()


def test_a_worker_counts_which_of_the_two_models_answered() -> None:
    metrics = ModelMetrics.declare(MetricsRegistry())
    chain = ModelChain([loaded()], metrics=metrics)
    rows = payments()
    early = predictor().cascade.is_clear(predictor().first.margins(rows))
    chain.score(rows)
    assert (metrics.answered_first.value, metrics.answered_large.value) == (early.sum(), (~early).sum())
    for place in range(200):
        chain.score(rows[place : place + 1])
    assert metrics.answered_first.value == early.sum() + early[:200].sum()
    chain._score_singly(rows[:200])
    assert metrics.answered_first.value == early.sum() + 2 * early[:200].sum()
    assert metrics.answered_first.value + metrics.answered_large.value == len(rows) + 400
    assert metrics.scored["primary"].value == len(rows) + 400


class Broken(Column):
    """Raises, or gives NaN, while a test wants it to."""

    failure: float | None = None

    def margins(self, vectors: F32) -> F64:
        if self.failure is None:
            raise RuntimeError("a bug in the model")
        return np.full(len(vectors), self.failure)


@pytest.mark.parametrize("failure", [None, math.nan])
def test_payments_that_the_large_model_fails_on_are_not_counted(failure: float | None) -> None:
    large = Broken(1)
    large.failure = failure
    both = CascadePredictor(Column(0), large, CASCADE, slope=2.0, intercept=-1.0)
    metrics = ModelMetrics.declare(MetricsRegistry())
    chain = ModelChain([replace(loaded(), predictor=both)], metrics=metrics)
    # Two clear rows, and one for the large model.
    rows = np.array([[-3, 0], [0, 0], [5, 0]], dtype=np.float32)
    assert [score is None for score in chain.score(rows).scores] == [False, True, False]
    assert (metrics.answered_first.value, metrics.answered_large.value) == (2, 0)


def test_a_bundle_without_a_cascade_counts_no_early_scores() -> None:
    metrics = ModelMetrics.declare(MetricsRegistry())
    ModelChain([small_world.loaded_bundle()], metrics=metrics).score(payments())
    assert (metrics.answered_first.value, metrics.answered_large.value) == (0, 0)
