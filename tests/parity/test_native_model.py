"""Native libraries of every word width, and GTIL, give the same bits as LightGBM for one model."""

from __future__ import annotations

import ctypes
import re
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
import treelite
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from paywarden.models.bundle import bitvectors
from paywarden.models.bundle.bitvectors import LANES
from paywarden.models.bundle.bundle import MODEL_TEXT, build_native, load_bundle, native_library
from paywarden.models.bundle.compiler import BIT_VECTORS, WALK, compile_library, compiler_name
from paywarden.models.bundle.predictor import GtilPredictor, NativePredictor, Predictor, bound
from paywarden.schemas.errors import BundleRefused
from tests.services.missing_tools import COMPILER
from tests.worlds.small import small_world

F32 = NDArray[np.float32]
FEATURES = len(small_world.engine().plan.names)

pytestmark = pytest.mark.skipif(compiler_name() is None, reason=COMPILER.reason)


class LanesPredictor:
    """A predictor of a bit-vector library with a fixed number of rows scored together.

    1 lane scores each row alone, as the processor does it best, and 0 lanes without walking.
    """

    native = True

    def __init__(self, library: Path, lanes: int) -> None:
        self._by = ctypes.CDLL(str(library)).paywarden_margins_by
        self._by.argtypes = [ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
        self._lanes = lanes

    def margins(self, vectors: F32) -> NDArray[np.float64]:
        result = np.empty(len(vectors))
        self._by(self._lanes, vectors.ctypes.data, len(vectors), result.ctypes.data)
        return result


@cache
def engines() -> tuple[list[Predictor], Any]:
    """The small world's model in all engines: the native library that serves, all others, and LightGBM."""
    bundle, folder = small_world.trained_bundle(), Path(tempfile.mkdtemp(prefix="paywarden-parity-"))
    text, library, walk = bundle / MODEL_TEXT, native_library(bundle), folder / "conditions.so"
    assert compile_library(text, FEATURES, folder / "vectors.so") == BIT_VECTORS
    assert compile_library(text, FEATURES, walk, generator=WALK) == WALK
    widest = ctypes.CDLL(str(library)).paywarden_lanes()
    found: list[Predictor] = [NativePredictor(library, FEATURES), NativePredictor(walk, FEATURES)]
    found += [LanesPredictor(library, lanes) for lanes in (0, 1, *LANES) if lanes <= widest]
    shutil.rmtree(folder)
    return [*found, GtilPredictor(text)], lightgbm.Booster(model_file=str(text))


def assert_same_bits(rows: F32) -> NDArray[np.float64]:
    """Asserts that all engines give the same 64 bits for these rows, and returns the margins."""
    predictors, booster = engines()
    wanted = np.asarray(booster.predict(rows, raw_score=True), dtype=np.float64)
    for engine in predictors:
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


def test_engines_agree_on_every_payment_of_the_window() -> None:
    margins = assert_same_bits(small_world.table().vectors)
    assert len(np.unique(margins)) > 50


def test_engines_agree_on_random_rows_with_missing_values() -> None:
    random = np.random.default_rng(7)
    vectors = small_world.table().vectors
    picked = random.integers(0, len(vectors), size=(20_000, FEATURES))
    rows = np.take_along_axis(vectors, picked, axis=0)
    for share in (0.0, 0.1, 0.5, 1.0):
        missing = rows.copy()
        missing[random.random(rows.shape) < share] = np.nan
        assert_same_bits(missing)


def test_engines_agree_at_every_threshold_and_one_step_beside_it() -> None:
    bases = some_rows(24)
    differing = 0
    for feature, threshold in dict.fromkeys(thresholds()):
        at = np.float32(threshold)
        values = np.array([np.nextafter(at, np.float32(-np.inf)), at, np.nextafter(at, np.float32(np.inf))])
        margins = assert_same_bits(rows_with(feature, values.astype(np.float32), bases)).reshape(len(bases), 3)
        differing += int(np.any(margins[:, 0] != margins[:, 2]))
    # Check that the steps cross splits that these rows reach. Otherwise the test would prove nothing.
    assert differing > 20


def test_engines_agree_at_infinities_zeros_and_the_ends_of_float32() -> None:
    tiny, large = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).max
    values = np.array([np.inf, -np.inf, 0.0, -0.0, tiny, -tiny, large, -large, 1e-35, -1e-35, np.nan], np.float32)
    for feature in range(FEATURES):
        assert_same_bits(rows_with(feature, values, some_rows(8)))
    for value in values:
        assert_same_bits(np.full((1, FEATURES), value, dtype=np.float32))


def test_negative_zero_scores_as_zero() -> None:
    rows = some_rows(200)
    rows[rows == 0.0] = 0.0
    negative = rows.copy()
    negative[negative == 0.0] = -0.0
    assert np.array_equal(assert_same_bits(rows), assert_same_bits(negative))


def test_any_nan_is_missing_whatever_its_bits() -> None:
    quiet = np.full((1, FEATURES), np.nan, dtype=np.float32)
    wanted = assert_same_bits(quiet)
    for bits in (0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFFC00000):
        rows = np.full((3, FEATURES), bits, dtype=np.uint32).view(np.float32)
        # NumPy warns about some of them before GTIL gets them.
        for engine in engines()[0][:-1]:
            assert np.array_equal(engine.margins(rows), np.repeat(wanted, 3))


@settings(max_examples=60)
@given(st.lists(st.floats(width=32), min_size=FEATURES, max_size=FEATURES))
def test_engines_agree_on_any_row_of_float32(values: list[float]) -> None:
    assert_same_bits(np.array([values], dtype=np.float32))


def test_a_rows_score_does_not_depend_on_its_batch() -> None:
    bundle = small_world.loaded_bundle()
    rows = some_rows(300)
    together = bundle.score(rows)
    alone = np.concatenate([bundle.score(rows[number : number + 1]) for number in range(len(rows))])
    backwards = bundle.score(np.ascontiguousarray(rows[::-1]))[::-1]
    assert np.array_equal(together, alone)
    assert np.array_equal(together, backwards)


def test_a_bound_call_uses_the_current_content_of_the_array() -> None:
    rows = some_rows(100)
    for engine in engines()[0]:
        array = rows.copy()
        margins_of = bound(engine, array)
        for contents in (rows, rows[::-1]):
            array[:] = contents
            wanted = engine.margins(array).tolist()
            assert [margins_of(count) for count in (0, 1, 2, 7, 100)] == [wanted[:count] for count in (0, 1, 2, 7, 100)]


def test_a_bound_call_reads_nothing_beyond_its_array() -> None:
    margins_of = bound(engines()[0][0], some_rows(2))
    for rows in (-1, 3):
        with pytest.raises(ValueError, match=f"wanted 0 to 2 rows, got {rows}"):
            margins_of(rows)


def test_scoring_leaves_its_input_unchanged_and_may_be_repeated() -> None:
    rows = some_rows(100)
    before = rows.tobytes()
    for engine in engines()[0]:
        assert np.array_equal(engine.margins(rows), engine.margins(rows))
        assert rows.tobytes() == before


def test_an_empty_batch_gives_no_margins() -> None:
    for engine in engines()[0]:
        assert engine.margins(np.empty((0, FEATURES), dtype=np.float32)).shape == (0,)


def test_batches_of_any_size_up_to_three_blocks_score_as_single_rows() -> None:
    rows = some_rows(3 * max(LANES))
    wanted = np.concatenate([assert_same_bits(rows[number : number + 1]) for number in range(len(rows))])
    for count in range(len(rows) + 1):
        assert np.array_equal(assert_same_bits(rows[:count]), wanted[:count])


@pytest.mark.parametrize("leaves", [2, 63, 64, 65, 200])
def test_trees_of_any_size_agree_and_large_ones_are_walked(tmp_path: Path, leaves: int) -> None:
    random = np.random.default_rng(leaves)
    data = random.normal(size=(4000, 6)).astype(np.float32)
    data[random.random(data.shape) < 0.1] = np.nan
    label = (np.nan_to_num(data).sum(axis=1) + random.normal(size=4000) > 0).astype(int)
    parameters = {"objective": "binary", "verbosity": -1, "num_leaves": leaves, "min_data_in_leaf": 2, "seed": 1}
    booster = lightgbm.train(parameters, lightgbm.Dataset(data, label), num_boost_round=5)
    text = tmp_path / MODEL_TEXT
    booster.save_model(text)
    assert max(tree["num_leaves"] for tree in booster.dump_model()["tree_info"]) == leaves
    assert compile_library(text, 6, tmp_path / "model.so") == (BIT_VECTORS if leaves <= 64 else WALK)
    assert np.array_equal(
        NativePredictor(tmp_path / "model.so", 6).margins(data), booster.predict(data, raw_score=True)
    )
    if leaves > 64:
        with pytest.raises(BundleRefused, match="64 leaves"):
            compile_library(text, 6, tmp_path / "model.so", generator=BIT_VECTORS)


@pytest.mark.parametrize(
    ("features", "bins", "walks"),
    [(64, 255, True), (65, 255, True), (128, 255, True), (129, 255, False), (1, 900, True)],
)
def test_models_of_any_width_agree_and_those_that_do_not_fit_are_not_walked(
    tmp_path: Path, features: int, bins: int, walks: bool
) -> None:
    """A rank is a byte, so 264 thresholds of one feature need two ranks. A byte tells 128 ranks apart, twice."""
    random = np.random.default_rng(features)
    data = random.normal(size=(1500, features)).astype(np.float32)
    data[random.random(data.shape) < 0.1] = np.nan
    label = (np.sin(40 * np.nan_to_num(data).sum(axis=1)) + random.normal(size=1500) > 0).astype(int)
    parameters = {"objective": "binary", "verbosity": -1, "num_leaves": 60, "min_data_in_leaf": 2}
    parameters |= {"max_bin": bins, "min_data_in_bin": 1, "num_threads": 1}
    booster = lightgbm.train(parameters, lightgbm.Dataset(data, label), num_boost_round=20)
    text, library = tmp_path / MODEL_TEXT, tmp_path / "model.so"
    booster.save_model(text)
    assert compile_library(text, features, library) == BIT_VECTORS
    source = bitvectors.source_of(treelite.frontend.load_lightgbm_model(str(text)), features)
    assert source is not None
    assert ("walked[]" in source) == walks
    wanted = booster.predict(data, raw_score=True)
    for lanes in (0, 1):
        assert np.array_equal(LanesPredictor(library, lanes).margins(data), wanted)
    assert np.array_equal(NativePredictor(library, features).margins(data), wanted)


def test_a_model_with_categorical_nodes_is_walked(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    data = np.column_stack([random.integers(0, 12, 3000), random.normal(size=3000)]).astype(np.float32)
    label = (np.isin(data[:, 0], [1, 4, 7]) ^ (data[:, 1] > 1)).astype(int)
    dataset = lightgbm.Dataset(data, label, categorical_feature=[0])
    booster = lightgbm.train({"objective": "binary", "verbosity": -1}, dataset, num_boost_round=5)
    text = tmp_path / MODEL_TEXT
    booster.save_model(text)
    assert compile_library(text, 2, tmp_path / "model.so") == WALK
    data[::7, 0] = np.nan
    odd = np.array([-7, -1, -0.5, 0.5, 31, 32, 33, 4095, 1e9], dtype=np.float32)
    data[1::7, 0] = random.choice(odd, len(data[1::7]))
    assert np.array_equal(
        NativePredictor(tmp_path / "model.so", 2).margins(data), booster.predict(data, raw_score=True)
    )


def test_a_forest_gives_the_raw_score_of_lightgbm(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    data = random.normal(size=(2000, 3)).astype(np.float32)
    forest = {"objective": "binary", "boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5, "verbosity": -1}
    booster = lightgbm.train(forest, lightgbm.Dataset(data, (data[:, 0] > 0).astype(int)), num_boost_round=4)
    text = tmp_path / MODEL_TEXT
    booster.save_model(text)
    assert compile_library(text, 3, tmp_path / "model.so") == WALK
    wanted = booster.predict(data, raw_score=True)
    assert np.array_equal(NativePredictor(tmp_path / "model.so", 3).margins(data), wanted)


@pytest.mark.parametrize("trees", [1, 16, 17, 79, 80, 81, 95, 160])
def test_models_of_any_number_of_trees_agree(tmp_path: Path, trees: int) -> None:
    """Trees are walked 80 at a time. The last ones are fewer, and their number is known to the compiler."""
    assert 16 * bitvectors.GROUPS == 80
    random = np.random.default_rng(trees)
    data = random.normal(size=(300, 5)).astype(np.float32)
    data[random.random(data.shape) < 0.1] = np.nan
    label = (np.nan_to_num(data).sum(axis=1) + random.normal(size=300) > 0).astype(int)
    parameters = {"objective": "binary", "verbosity": -1, "num_leaves": 7, "min_data_in_leaf": 2, "num_threads": 1}
    booster = lightgbm.train(parameters, lightgbm.Dataset(data, label), num_boost_round=trees)
    text, library = tmp_path / MODEL_TEXT, tmp_path / "model.so"
    booster.save_model(text)
    assert booster.num_trees() == trees
    assert compile_library(text, 5, library) == BIT_VECTORS
    wanted = booster.predict(data, raw_score=True)
    for lanes in (0, 1):
        assert np.array_equal(LanesPredictor(library, lanes).margins(data), wanted)


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


def test_a_library_rebuilt_from_another_model_replaces_the_loaded_one(tmp_path: Path) -> None:
    """The loader identifies libraries by path. A bundle replaced in place was once scored with its old model."""
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
    assert np.array_equal(rebuilt.margins(rows), engines()[0][0].margins(rows))
