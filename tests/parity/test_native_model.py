"""One model, three engines: the native library and GTIL give the bits that LightGBM itself gives."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.bundle import MODEL_TEXT, build_native, load_bundle, native_library
from models.compiler import compile_library, compiler_name
from models.predictor import GtilPredictor, NativePredictor, Predictor
from tests import small_world

F32 = NDArray[np.float32]
FEATURES = len(small_world.engine().plan.names)

pytestmark = pytest.mark.skipif(compiler_name() is None, reason="there is no C compiler")


@cache
def engines() -> tuple[Predictor, Predictor, Any]:
    """(native, GTIL, LightGBM) with the small world's model."""
    bundle = small_world.trained_bundle()
    native = NativePredictor(native_library(bundle), FEATURES)
    return native, GtilPredictor(bundle / MODEL_TEXT), lightgbm.Booster(model_file=str(bundle / MODEL_TEXT))


def assert_same_bits(rows: F32) -> NDArray[np.float64]:
    """All three margins of these rows are the same 64 bits; returns them."""
    native, gtil, booster = engines()
    wanted = np.asarray(booster.predict(rows, raw_score=True), dtype=np.float64)
    for engine in (native, gtil):
        margins = engine.margins(rows)
        assert margins.dtype == np.float64
        differing = np.flatnonzero(margins.view(np.int64) != wanted.view(np.int64))
        assert len(differing) == 0, f"{type(engine).__name__}: row {differing[0]} of {len(rows)}"
    return wanted


@cache
def thresholds() -> list[tuple[int, float]]:
    """Every split of the model: (feature, threshold)."""
    text = (small_world.trained_bundle() / MODEL_TEXT).read_text(encoding="utf-8")
    features = [int(number) for line in re.findall(r"^split_feature=(.*)$", text, re.M) for number in line.split()]
    values = [float(number) for line in re.findall(r"^threshold=(.*)$", text, re.M) for number in line.split()]
    assert len(features) == len(values) > 100
    return list(zip(features, values, strict=True))


def rows_with(feature: int, values: F32, bases: F32) -> F32:
    """Each base row with each value as this feature."""
    rows = np.repeat(bases, len(values), axis=0)
    rows[:, feature] = np.tile(values, len(bases))
    return rows


def some_rows(count: int) -> F32:
    vectors = small_world.table().vectors
    return np.ascontiguousarray(vectors[:: max(1, len(vectors) // count)][:count])


def test_on_every_payment_of_the_window() -> None:
    margins = assert_same_bits(small_world.table().vectors)
    assert len(np.unique(margins)) > 50


def test_on_random_rows_with_missing_values() -> None:
    random = np.random.default_rng(7)
    vectors = small_world.table().vectors
    picked = random.integers(0, len(vectors), size=(20_000, FEATURES))
    rows = np.take_along_axis(vectors, picked, axis=0)
    for share in (0.0, 0.1, 0.5, 1.0):
        missing = rows.copy()
        missing[random.random(rows.shape) < share] = np.nan
        assert_same_bits(missing)


def test_at_every_threshold_and_one_step_to_either_side() -> None:
    bases = some_rows(12)
    differing = 0
    for feature, threshold in dict.fromkeys(thresholds()):
        at = np.float32(threshold)
        values = np.array([np.nextafter(at, np.float32(-np.inf)), at, np.nextafter(at, np.float32(np.inf))])
        margins = assert_same_bits(rows_with(feature, values.astype(np.float32), bases)).reshape(len(bases), 3)
        differing += int(np.any(margins[:, 0] != margins[:, 2]))
    # The steps do cross splits that these rows reach; otherwise this test would say nothing.
    assert differing > 20


def test_at_infinities_zeros_and_the_ends_of_float32() -> None:
    tiny, large = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).max
    values = np.array([np.inf, -np.inf, 0.0, -0.0, tiny, -tiny, large, -large, 1e-35, -1e-35, np.nan], np.float32)
    for feature in range(FEATURES):
        assert_same_bits(rows_with(feature, values, some_rows(8)))
    for value in values:
        assert_same_bits(np.full((1, FEATURES), value, dtype=np.float32))


def test_negative_zero_is_zero() -> None:
    rows = some_rows(200)
    rows[rows == 0.0] = 0.0
    negative = rows.copy()
    negative[negative == 0.0] = -0.0
    assert np.array_equal(assert_same_bits(rows), assert_same_bits(negative))


def test_any_nan_is_missing_whatever_its_bits() -> None:
    quiet = np.full((1, FEATURES), np.nan, dtype=np.float32)
    wanted = assert_same_bits(quiet)
    native = engines()[0]
    for bits in (0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFFC00000):
        rows = np.full((1, FEATURES), bits, dtype=np.uint32).view(np.float32)
        assert np.array_equal(native.margins(rows), wanted)


@given(st.integers(0, 2**32 - 1))
def test_a_float32_widened_never_looks_missing_to_tl2cgen(bits: int) -> None:
    """TL2cgen 1.0.0 marks a missing value by ones in the low half of an 8-byte entry, which a float64 can have by
    chance (80 of 67,080 real rows were scored wrong). A float32 widened to float64 ends in 29 zero bits."""
    value = np.array([bits], dtype=np.uint32).view(np.float32)
    if not np.isnan(value[0]):
        assert int(value.astype(np.float64).view(np.uint64)[0]) & (2**29 - 1) == 0


@settings(max_examples=200)
@given(st.lists(st.floats(width=32), min_size=FEATURES, max_size=FEATURES))
def test_on_any_row_of_float32(values: list[float]) -> None:
    assert_same_bits(np.array([values], dtype=np.float32))


def test_a_rows_score_does_not_depend_on_its_batch() -> None:
    bundle = small_world.loaded_bundle()
    rows = some_rows(300)
    together = bundle.score(rows)
    alone = np.concatenate([bundle.score(rows[number : number + 1]) for number in range(len(rows))])
    backwards = bundle.score(np.ascontiguousarray(rows[::-1]))[::-1]
    assert np.array_equal(together, alone)
    assert np.array_equal(together, backwards)


def test_scoring_leaves_its_input_as_it_was_and_may_be_repeated() -> None:
    native, gtil, _ = engines()
    rows = some_rows(100)
    before = rows.tobytes()
    for engine in (native, gtil):
        assert np.array_equal(engine.margins(rows), engine.margins(rows))
        assert rows.tobytes() == before


def test_no_rows_give_no_margins() -> None:
    for engine in engines()[:2]:
        assert engine.margins(np.empty((0, FEATURES), dtype=np.float32)).shape == (0,)


def test_a_model_of_a_single_leaf_compiles_and_agrees(tmp_path: Path) -> None:
    label = np.array([0, 1] * 50)
    parameters = {"objective": "binary", "verbosity": -1, "min_data_in_leaf": 1000}
    booster = lightgbm.train(parameters, lightgbm.Dataset(np.zeros((100, 3)), label), num_boost_round=1)
    text = tmp_path / MODEL_TEXT
    booster.save_model(text)
    compile_library(text, 3, tmp_path / "model.so")
    rows = np.ones((2, 3), dtype=np.float32)
    wanted = booster.predict(rows, raw_score=True)
    assert np.array_equal(NativePredictor(tmp_path / "model.so", 3).margins(rows), wanted)
    assert np.array_equal(GtilPredictor(text).margins(rows), wanted)


def test_a_library_rebuilt_from_another_model_is_the_one_that_is_loaded(tmp_path: Path) -> None:
    """The loader knows libraries by name: a bundle replaced in place was once scored with the model before it."""
    bundle = small_world.copied_bundle(tmp_path)
    rows = some_rows(50)
    old = load_bundle(bundle, catalogue_digest=small_world.engine().plan.digest)
    before = old.predictor.margins(rows)
    text, library = bundle / MODEL_TEXT, native_library(bundle)
    fewer = lightgbm.Booster(model_file=str(text)).model_to_string(num_iteration=5)
    text.write_text(fewer, encoding="utf-8")
    compile_library(text, FEATURES, library)
    wanted = lightgbm.Booster(model_str=fewer).predict(rows, raw_score=True)
    assert np.array_equal(NativePredictor(library, FEATURES).margins(rows), wanted)
    assert np.array_equal(old.predictor.margins(rows), before)
    assert not np.array_equal(wanted, before)


def test_two_builds_score_alike(tmp_path: Path) -> None:
    bundle = small_world.copied_bundle(tmp_path)
    build_native(bundle)
    rows = some_rows(500)
    rebuilt = NativePredictor(native_library(bundle), FEATURES)
    assert np.array_equal(rebuilt.margins(rows), engines()[0].margins(rows))
