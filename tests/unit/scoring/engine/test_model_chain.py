"""How the chain scores payments while models fail, and after they work again."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from paywarden.models.bundle.bundle import Bundle
from paywarden.models.policy.policy import MODEL_ABSENT, MODEL_ERROR
from paywarden.scoring.engine.model_chain import NO_MODEL, ModelChain
from paywarden.scoring.metrics.model import ModelMetrics
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from tests.worlds.small import small_world

Vectors = NDArray[np.float32]


class Model:
    """A model whose margin is the vector's only feature plus `shift`. A test can make it fail."""

    def __init__(self, version: str, shift: float = 0.0) -> None:
        self.shift, self.batches = shift, [0]
        self.fails: Callable[[Vectors], Any] | None = None
        self.bundle = cast(
            Bundle,
            SimpleNamespace(
                manifest=SimpleNamespace(model_version=version, calibration_slope=2.0, calibration_intercept=-1.0),
                predictor=SimpleNamespace(margins=self.margins),
                explainer=SimpleNamespace(reasons=lambda vector, count: [f"{version}={vector[0]:g}"] * count),
            ),
        )

    def margins(self, vectors: Vectors) -> NDArray[np.float64]:
        self.batches.append(len(vectors))
        if self.fails is not None:
            failed = self.fails(vectors)
            if failed is not None:
                return np.asarray(failed, dtype=np.float64)
        return vectors[:, 0].astype(np.float64) + self.shift

    def score_of(self, value: float) -> float:
        return 1 / (1 + math.exp(-(2 * (value + self.shift) - 1)))


class Chain:
    """A chain with its metrics."""

    def __init__(self, *models: Model) -> None:
        self.metrics = ModelMetrics.declare(MetricsRegistry())
        self.chain = ModelChain([model.bundle for model in models], metrics=self.metrics)

    def score(self, *values: float) -> list[tuple[float | None, int, tuple[str, ...]]]:
        scored = self.chain.score(vectors(*values))
        return list(zip(*scored, strict=True))

    def scored(self) -> list[int]:
        return [counter.value for counter in self.metrics.scored.values()]

    def errors(self) -> list[int]:
        return [counter.value for counter in self.metrics.errors.values()]

    def is_out(self, place: str = "primary") -> bool:
        gauge = self.metrics.is_out[place]
        return gauge._slots[gauge._index] == round(1 / 1e-3)


def vectors(*values: float) -> Vectors:
    return np.array(values, dtype=np.float32).reshape(len(values), 1)


def raising(_: Vectors) -> None:
    raise RuntimeError("a bug in the model")


def not_numbers(found: Vectors) -> NDArray[np.float64]:
    return np.full(len(found), np.nan)


def infinities(found: Vectors) -> NDArray[np.float64]:
    return np.full(len(found), -np.inf)


def raising_for_sevens(found: Vectors) -> None:
    if (found == 7).any():
        raise ZeroDivisionError


FAILURES = [raising, not_numbers, infinities, lambda _: np.zeros(0)]


def test_a_model_that_works_scores_all_vectors_in_one_call() -> None:
    model = Model("m1")
    chain = Chain(model)
    assert chain.score(0, 1, -1) == [(model.score_of(value), 0, ()) for value in (0, 1, -1)]
    assert model.batches[1:] == [3]
    assert chain.chain.versions[0] == "m1"
    assert chain.scored() == [3, 0, 0]


def test_scores_are_the_bundles_own_to_the_bit() -> None:
    bundle = small_world.loaded_bundle()
    chain = ModelChain([bundle], metrics=ModelMetrics.declare(MetricsRegistry()))
    rows = np.ascontiguousarray(small_world.table().vectors[:500])
    assert chain.score(rows).scores == bundle.score(rows).tolist()
    singly = [chain._score_singly(rows[row : row + 1]).scores[0] for row in range(50)]
    assert singly == bundle.score(rows[:50]).tolist()


def test_a_chain_that_was_swapped_out_is_freed_without_a_garbage_collection() -> None:
    """Each swap once left the trees of a model behind, until a collection that a quiet worker hardly ever makes."""
    chain = ModelChain([Model("m1").bundle], metrics=ModelMetrics.declare(MetricsRegistry()))
    bound = chain.bind(vectors(0, 1))
    bound(2)
    freed = weakref.ref(chain._primary)
    gc.disable()
    try:
        del bound, chain
        assert freed() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("failure", FAILURES)
def test_a_payment_that_the_model_fails_on_goes_to_the_next(failure: Callable[[Vectors], Any]) -> None:
    primary, fallback = Model("m2"), Model("m1", shift=1)
    primary.fails = failure
    chain = Chain(primary, fallback)
    ((score, model, flags),) = chain.score(0.5)
    assert (score, chain.chain.versions[model], flags) == (fallback.score_of(0.5), "m1", (MODEL_ERROR,))
    assert chain.scored() == [0, 1, 0]
    assert chain.errors() == [1, 0]
    assert chain.is_out()


@pytest.mark.parametrize("failure", FAILURES)
def test_where_no_model_is_left_there_is_no_score(failure: Callable[[Vectors], Any]) -> None:
    primary = Model("m2")
    primary.fails = failure
    chain = Chain(primary)
    ((score, model, flags),) = chain.score(0.5)
    assert (score, model, flags) == (None, NO_MODEL, (MODEL_ERROR, MODEL_ABSENT))
    assert chain.chain.versions[model] == ""
    assert chain.chain.reasons(vectors(0.5)[0], model, 4) == []
    assert chain.scored() == [0, 0, 1]


def test_one_payment_that_a_model_cannot_do_spoils_no_other() -> None:
    primary, fallback = Model("m2"), Model("m1", shift=1)
    primary.fails = raising_for_sevens
    chain = Chain(primary, fallback)
    scored = chain.score(1, 7, 2, 7, 3)
    assert [model for _, model, _ in scored] == [0, 1, 0, 1, 0]
    assert [flags for _, _, flags in scored] == [(), (MODEL_ERROR,), (), (MODEL_ERROR,), ()]
    assert scored[1][0] == fallback.score_of(7)
    assert scored[4][0] == primary.score_of(3)
    # And it is trusted again at once.
    chain.score(1, 2)
    assert primary.batches[-1] == 2
    assert not chain.is_out()


def test_a_model_that_keeps_failing_shows_it_until_it_works_again() -> None:
    primary, fallback = Model("m2"), Model("m1", shift=1)
    primary.fails = raising
    chain = Chain(primary, fallback)
    scored = chain.score(1, 2, 3)
    assert scored == [(fallback.score_of(value), 1, (MODEL_ERROR,)) for value in (1, 2, 3)]
    assert chain.is_out("primary")
    assert not chain.is_out("fallback")
    primary.fails = None
    assert chain.score(1, 2) == [(primary.score_of(value), 0, ()) for value in (1, 2)]
    assert not chain.is_out("primary")
    chain.score(1, 2, 3, 4)
    assert primary.batches[-1] == 4


def test_reasons_come_from_the_model_that_scored() -> None:
    chain = Chain(Model("m2"), Model("m1"))
    assert chain.chain.reasons(vectors(3)[0], 1, 2) == ["m1=3", "m1=3"]
    assert chain.chain.reasons(vectors(3)[0], 0, 0) == []


def test_no_vectors_have_no_scores() -> None:
    assert Chain(Model("m1")).score() == []
