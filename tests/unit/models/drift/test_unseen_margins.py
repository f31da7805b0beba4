"""How a bundle's model scores payments that it has not seen, estimated from the models of its folds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from paywarden.models.drift.unseen_margins import FoldMargins, as_of_one_model, unseen_margins

ROWS = 20_000
SHARES = (0.01, 0.1, 0.5, 0.9, 0.99)
folds = st.integers(0, 2**32).map(np.random.default_rng)


def drawn(seed: int, *, middle: float = 0.0, added_on_top: float = 0.0) -> NDArray[np.float64]:
    """Margins of a normal distribution; the highest 2 % are moved up."""
    margins = np.random.default_rng(seed).normal(middle, 1.0, ROWS)
    return np.where(margins > np.quantile(margins, 0.98), margins + added_on_top, margins)


def test_other_models_levels_do_not_move_the_models_own() -> None:
    # Models of fewer days, which put everything elsewhere, and are as sure of new rows as of their own.
    others = [FoldMargins(drawn(2 * seed, middle=seed), drawn(2 * seed + 1, middle=seed)) for seed in (1, 2, 3)]
    found = unseen_margins(drawn(100, middle=-9.0), others)
    np.testing.assert_allclose(np.quantile(found, SHARES), np.quantile(drawn(100, middle=-9.0), SHARES), atol=0.1)


def test_without_folds_they_are_the_models_own() -> None:
    np.testing.assert_array_equal(unseen_margins(drawn(1), []), np.sort(drawn(1)))


def test_a_margin_of_many_payments_stays_where_it_is() -> None:
    # Harmless payments have one margin, which each model has put elsewhere. A tenth of the seen ones has a higher one.
    def model(seed: int, low: float, higher: float) -> NDArray[np.float64]:
        return np.where(np.random.default_rng(seed).random(ROWS) < higher, drawn(seed + 50, middle=4.0), low)

    others = [FoldMargins(model(2 * seed, seed - 9, 0.05), model(2 * seed + 1, seed - 9, 0.1)) for seed in (1, 2, 3)]
    own = model(40, -5.46, 0.1)
    found = unseen_margins(own, others)
    assert set(found) <= set(own)
    assert (found == -5.46).mean() == pytest.approx(0.95, abs=0.005)


def test_the_optimism_of_all_folds_is_taken_off_where_it_is() -> None:
    # Two in a hundred seen payments are put above 4, and half as many of the others.
    others = [
        FoldMargins(
            np.where(np.random.default_rng(seed).random(ROWS) < 0.5, drawn(seed), drawn(seed, added_on_top=2.0)),
            drawn(seed + 10, added_on_top=2.0),
        )
        for seed in (1, 2, 3)
    ]
    found = unseen_margins(drawn(100, added_on_top=2.0), others)
    assert (found > 4.5).mean() == pytest.approx((drawn(100) > 2.5).mean() / 2, abs=0.001)
    np.testing.assert_allclose(np.quantile(found, (0.1, 0.5, 0.9)), [-1.28, 0.0, 1.28], atol=0.1)


@given(folds, st.integers(1, 4), st.integers(1, 40))
def test_unseen_margins_are_finite_and_ascending(random: np.random.Generator, fold_count: int, rows: int) -> None:
    others = [FoldMargins(random.normal(size=rows), random.normal(size=2 * rows)) for _ in range(fold_count)]
    found = unseen_margins(random.normal(size=rows), others)
    assert np.isfinite(found).all()
    assert (np.diff(found) >= 0).all()


@given(folds, st.integers(1, 60), st.integers(1, 4))
def test_mapping_folds_to_one_model_keeps_the_order_of_scores(
    random: np.random.Generator, count: int, fold_count: int
) -> None:
    scores, fold = random.integers(0, 20, count) / 20, random.integers(0, fold_count, count)
    like = np.sort(random.random(50))
    found = as_of_one_model(scores, fold, like)
    for number in range(fold_count):
        order = np.argsort(scores[fold == number], kind="stable")
        assert (np.diff(found[fold == number][order]) >= 0).all()
    assert ((found >= like[0]) & (found <= like[-1])).all()
