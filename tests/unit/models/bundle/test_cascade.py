"""Cascades: they score each row as their models do, alone or in a batch, and damaged ones are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from paywarden.models.bundle.bundle import (
    FIRST,
    LARGE,
    MANIFEST,
    build_native,
    calibrated,
    load_bundle,
    native_library,
    parity_summary,
    read_manifest,
)
from paywarden.models.bundle.cascade import Cascade, CascadePredictor, microseconds_a_row
from paywarden.models.bundle.compiler import compiler_name
from paywarden.models.bundle.explanations import Explainer, read_trees
from paywarden.models.training.cascade_choice import Large, OutOfFold, choose_cascade
from paywarden.models.training.training import train_bundle
from paywarden.schemas.errors import BundleRefused, Misconfigured
from tests.services.missing_tools import COMPILER
from tests.worlds.small import small_world
from tests.worlds.small.small_cascade import CASCADE, DIGEST, Column, loaded, payments, predictor

F64 = NDArray[np.float64]


# Scoring


def test_the_large_model_scores_only_the_rows_that_are_not_clear() -> None:
    first, large = Column(0), Column(1)
    both = CascadePredictor(first, large, CASCADE, slope=2.0, intercept=-1.0)
    rows = np.array([[-2.5, 9], [-2.0, 8], [0, 7], [3.0, 6], [3.5, 5], [np.nan, 4]], dtype=np.float32)
    margins = both.margins(rows)
    assert margins[[1, 2, 3, 5]].tolist() == [8, 7, 6, 4]
    assert large.asked == [4]
    # The first model's own probability, by the large model's calibration.
    scores = calibrated(margins, 2.0, -1.0)
    own = calibrated(np.array([-2.5, 3.5]), CASCADE.calibration_slope, CASCADE.calibration_intercept)
    np.testing.assert_allclose(scores[[0, 4]], own, rtol=1e-12)


def test_a_row_scores_alone_what_it_scores_in_any_batch_to_the_bit() -> None:
    rows = payments()
    together = predictor().margins(rows)
    early = predictor().cascade.is_clear(predictor().first.margins(rows))
    assert 10 < early.sum() < len(rows) - 10
    alone = np.concatenate([predictor().margins(rows[place : place + 1]) for place in range(len(rows))])
    backwards = predictor().margins(np.ascontiguousarray(rows[::-1]))[::-1]
    assert np.array_equal(together.view(np.int64), alone.view(np.int64))
    assert np.array_equal(together.view(np.int64), backwards.view(np.int64))


def test_reasons_are_of_the_model_that_decided() -> None:
    rows, names = payments(), loaded().manifest.feature_names
    early = predictor().cascade.is_clear(predictor().first.margins(rows))
    slopes = {FIRST: predictor().cascade.calibration_slope, LARGE: loaded().manifest.calibration_slope}
    told = {
        part: Explainer(read_trees(small_world.cascade_bundle() / part.model_text, len(names)), names, slope=slope)
        for part, slope in slopes.items()
    }
    differing = dict.fromkeys(told, 0)
    for row, is_early in zip(rows, early.tolist(), strict=True):
        decided, other = (FIRST, LARGE) if is_early else (LARGE, FIRST)
        found = loaded().explainer.reasons(row, 4)
        assert found == told[decided].reasons(row, 4)
        differing[decided] += found != told[other].reasons(row, 4)
    assert all(differing.values())


def test_the_time_of_a_row_is_measured() -> None:
    both, alone = microseconds_a_row([predictor(), predictor().large], payments())
    assert 0 < both < 1e6
    assert 0 < alone < 1e6


# The bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return small_world.copied_bundle(tmp_path, small_world.cascade_bundle())


def edit_manifest(bundle: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    edit(content)
    (bundle / MANIFEST).write_text(json.dumps(content), encoding="utf-8")


def refusal(bundle: Path) -> str:
    with pytest.raises(BundleRefused) as caught:
        load_bundle(bundle, catalogue_digest=DIGEST)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_large_model_is_the_one_that_is_trained_without_a_cascade() -> None:
    alone, both = small_world.trained_bundle(), small_world.cascade_bundle()
    assert (alone / LARGE.model_text).read_bytes() == (both / LARGE.model_text).read_bytes()
    thresholds = [(one.review_at, one.decline_at) for one in map(read_manifest, (alone, both))]
    assert thresholds[0] == thresholds[1]
    assert read_manifest(alone).cascade == {}
    assert not any(name.startswith("cascade") for name in read_manifest(alone).parameters)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"disagreement": 0.02}, "its disagreement 0.02 is not within 0.01"),
        ({"disagreement_held_out": 0.02}, "its disagreement_held_out 0.02 is not within 0.01"),
        ({"low": 1e9}, "its low threshold 1000000000.0 is above its high one"),
        ({"high": None}, "it has something unusable as high"),
        ({"surprise": 1}, "it lacks fields, or has unknown ones: surprise"),
    ],
)
def test_a_cascade_that_did_not_pass_is_refused(bundle: Path, changed: dict[str, Any], named: str) -> None:
    edit_manifest(bundle, lambda manifest: manifest["cascade"].update(changed))
    assert f"the cascade cannot be used: {named}" in refusal(bundle)


@pytest.mark.skipif(compiler_name() is None, reason=COMPILER.reason)
def test_both_libraries_are_built_and_gtil_gives_the_same_bits(bundle: Path) -> None:
    wanted = loaded().score(payments())
    shutil.rmtree(bundle / "native")
    by_gtil = load_bundle(bundle, catalogue_digest=DIGEST)
    assert not by_gtil.predictor.native
    assert np.array_equal(by_gtil.score(payments()), wanted)
    build_native(bundle)
    assert native_library(bundle, FIRST).is_file()
    assert "LightGBM's bits in" in parity_summary(bundle)
    rebuilt = load_bundle(bundle, catalogue_digest=DIGEST)
    assert rebuilt.predictor.native
    assert np.array_equal(rebuilt.score(payments()), wanted)


# Training


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"cascade_trees": 20}, "a first model of 20 trees saves nothing before one of 20"),
        ({"cascade_trees": 0}, r"training\.cascade_trees: wanted at least 1, got 0"),
        ({"cascade_leaves": 1}, r"training\.cascade_leaves: wanted at least 2, got 1"),
        ({"cascade_disagreement_max": 0.0}, r"training\.cascade_disagreement_max: wanted above 0 and below 1"),
    ],
)
def test_a_cascade_that_cannot_work_is_refused_in_one_line(tmp_path: Path, changed: dict[str, Any], named: str) -> None:
    settings = replace(small_world.CASCADE_SETTINGS, **changed)
    with pytest.raises(Misconfigured, match=named):
        train_bundle(
            small_world.table(),
            small_world.TRAINING_DAYS,
            tmp_path / "b",
            engine=small_world.engine(),
            settings=settings,
        )
    assert list(tmp_path.iterdir()) == []


# The choice


def out_of_fold(count: int = 3000, seed: int = 0, noise: float = 0.4) -> OutOfFold:
    """A large model with the true log-odds and a first model close to them, both rounded to tenths for many ties."""
    random = np.random.default_rng(seed)
    log_odds = random.normal(-3.0, 2.0, size=count)
    label = (random.random(count) < 1 / (1 + np.exp(-log_odds))).astype(np.int64)
    first = np.round(log_odds + random.normal(scale=noise, size=count), 1)
    return OutOfFold(first, log_odds, np.arange(count) * 3 // count, label)


LARGE_MODEL = Large(slope=1.0, intercept=0.0, review_at=0.3, decline_at=0.7)


def actions(scores: F64) -> NDArray[np.int64]:
    return (scores >= LARGE_MODEL.review_at).astype(np.int64) + (scores >= LARGE_MODEL.decline_at)


@pytest.mark.parametrize("tolerance", [0.002, 0.01, 0.05])
def test_actions_differ_within_the_tolerance_and_the_record_is_right(tolerance: float) -> None:
    rows = out_of_fold()
    cascade = choose_cascade(rows, LARGE_MODEL, tolerance)
    margins = cascade.margins_of(rows.first, rows.large, slope=LARGE_MODEL.slope, intercept=LARGE_MODEL.intercept)
    wanted = actions(calibrated(rows.large, 1.0, 0.0))
    differing = float((actions(calibrated(margins, 1.0, 0.0)) != wanted).mean())
    assert cascade.disagreement == differing <= tolerance
    assert cascade.disagreement_held_out <= tolerance
    early = cascade.is_clear(rows.first)
    assert cascade.share_early == early.mean() > 0
    assert np.array_equal(margins[~early], rows.large[~early])
    Cascade.of_record(asdict(cascade))


def test_a_first_model_that_disagrees_everywhere_is_refused() -> None:
    rows = out_of_fold()
    wanted = actions(calibrated(rows.large, 1.0, 0.0))
    # The large model reviews the payments at both ends.
    first = rows.first.copy()
    first[wanted == 1] = np.where(np.arange((wanted == 1).sum()) % 2 == 0, 90.0, -90.0)
    rows = OutOfFold(first, rows.large, rows.fold, rows.label)
    with pytest.raises(Misconfigured, match=r"training\.cascade: the first model can answer no payment"):
        choose_cascade(rows, LARGE_MODEL, 0.001)


@pytest.mark.parametrize("margin", [-20.0, 20.0])
def test_a_first_model_that_is_wrong_about_one_fold_is_refused(margin: float) -> None:
    rows = out_of_fold()
    to_review = actions(calibrated(rows.large, 1.0, 0.0)) == 1
    first = rows.first.copy()
    first[np.flatnonzero((rows.fold == 2) & to_review)[:5]] = margin
    rows = OutOfFold(first, rows.large, rows.fold, rows.label)
    with pytest.raises(Misconfigured, match=r"in \d\.\d\de-\d\d of the held-out payments .* more payments"):
        choose_cascade(rows, LARGE_MODEL, 1e-4)


@given(st.integers(0, 10_000), st.integers(0, 4))
def test_no_other_thresholds_within_the_allowance_answer_more(seed: int, allowed: int) -> None:
    from paywarden.models.training.cascade_choice import _best, _Thresholds

    random = np.random.default_rng(seed)
    count = int(random.integers(5, 25))
    first = random.integers(-4, 5, size=count).astype(np.float64)
    wanted = random.integers(0, 3, size=count)
    caps = _Thresholds(1.5, 2.5)
    best = _best(first, wanted, caps, (allowed + 0.5) / count)
    possible = [
        (int(clear.sum()), wrong)
        for low in np.arange(-5, 2)
        for high in np.arange(2.5, 6)
        for clear in [(first < low + 0.5) | (first > high)]
        for wrong in [int(((first < low + 0.5) & (wanted != 0)).sum() + ((first > high) & (wanted != 2)).sum())]
    ]
    clear = best.clear(first)
    wrong = ((first < best.low) & (wanted != 0)) | ((first > best.high) & (wanted != 2))
    assert wrong.sum() <= allowed
    assert clear.sum() == max(share for share, differing in possible if differing <= allowed)
    assert best.low <= caps.low
    assert best.high >= caps.high
