"""Contributions of features to a score, compared with LightGBM's own margins."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from paywarden.features.kernel.toolkit.frame import Frame
from paywarden.models.bundle import explanations
from paywarden.models.bundle.bitvectors import LEAVES_MAX
from paywarden.models.bundle.bundle import GOLDEN, MODEL_TEXT, load_bundle, read_manifest, sha256_of
from paywarden.models.bundle.compiler import compile_library
from paywarden.models.bundle.explanations import (
    CATEGORICAL,
    CHOICE_SLOT,
    DECISION,
    FEATURE,
    LEFT,
    SIDE_BY_SIDE,
    ZERO,
    Explainer,
    Trees,
    choose,
    read_trees,
)
from paywarden.models.bundle.leaf_paths import add_paths, path_arrays
from paywarden.models.bundle.predictor import NativePredictor
from paywarden.schemas.errors import BundleRefused
from tests.worlds.small import small_world

FEATURE_COUNT = 8
NAMES = [f"f{number}" for number in range(FEATURE_COUNT)]
FORM = re.compile(r"feature:([a-z0-9_]+)=(missing|-?inf|-?[0-9.]+(?:e[+-][0-9]+)?) \(\+([0-9]+\.[0-9]{2})\)")


def sums(explainer: Explainer, rows: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.array([explainer.base + explainer.contributions(row).sum() for row in rows])


def assert_adds_up(explainer: Explainer, model: lightgbm.Booster, rows: NDArray[np.float32]) -> None:
    wanted = model.predict(rows.astype(np.float64), raw_score=True)
    np.testing.assert_allclose(sums(explainer, rows), wanted, rtol=1e-9, atol=1e-12)


def of_the_small_world() -> Explainer:
    explainer = small_world.loaded_bundle().explainer
    assert isinstance(explainer, Explainer)
    return explainer


def random_rows(count: int, seed: int) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(count, FEATURE_COUNT)).astype(np.float32)
    rows[random.random(rows.shape) < 0.2] = np.nan
    rows[random.random(rows.shape) < 0.2] = 0.0
    # Values near the bound below which LightGBM treats numbers as zero.
    for value in (1e-35, -1e-35, 1.1e-35, 1e-36, np.inf, -np.inf, -0.0):
        rows[random.random(rows.shape) < 0.01] = value
    return rows


def trained(
    folder: Path, rows: NDArray[np.float32], categories: list[int] | None = None, rounds: int = 40, **parameters: Any
) -> tuple[lightgbm.Booster, Path]:
    finite = np.nan_to_num(rows, posinf=3, neginf=-3)
    labels = (finite[:, 0] * finite[:, 1] + np.isnan(rows[:, 2]) + (finite[:, 3] % 3 == 0) > 0.8).astype(np.float64)
    settings = {"objective": "binary", "verbose": -1, "num_threads": 1, "seed": 1, "num_leaves": 31, **parameters}
    data = lightgbm.Dataset(rows.astype(np.float64), labels, categorical_feature=categories or [])
    model = lightgbm.train(settings, data, rounds)
    path = folder / "model.txt"
    model.save_model(path)
    return model, path


def test_real_rows_add_up_to_lightgbms_margins() -> None:
    bundle = small_world.trained_bundle()
    model = lightgbm.Booster(model_file=str(bundle / MODEL_TEXT))
    rows = np.ascontiguousarray(small_world.table().vectors[::4])
    assert_adds_up(of_the_small_world(), model, rows)
    random = np.random.default_rng(3)
    spoilt = rows.copy()
    spoilt[random.random(rows.shape) < 0.3] = np.nan
    assert_adds_up(of_the_small_world(), model, spoilt)


@pytest.mark.parametrize("parameters", [{}, {"zero_as_missing": True}, {"use_missing": False}, {"boosting": "dart"}])
def test_missing_values_and_zeros_go_where_lightgbm_sends_them(tmp_path: Path, parameters: dict[str, Any]) -> None:
    model, path = trained(tmp_path, random_rows(5000, seed=1), **parameters)
    explainer = Explainer(read_trees(path, FEATURE_COUNT), NAMES, slope=1.0)
    assert_adds_up(explainer, model, random_rows(3000, seed=2))


def test_categories_go_where_lightgbm_sends_them(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    rows = random_rows(5000, seed=1)
    rows[:, 3] = random.integers(0, 100, len(rows))
    rows[:, 4] = random.integers(0, 7, len(rows))
    model, path = trained(tmp_path, rows, categories=[3, 4])
    trees = read_trees(path, FEATURE_COUNT)
    assert len(trees.sets) > 0
    odd = np.resize(np.array([np.nan, -1, -0.5, 0.5, 99, 100, 127, 128, 4e9, np.inf, -np.inf, 31, 32.9]), len(rows))
    rows[::2, 3] = odd[::2]
    rows[1::2, 4] = odd[1::2]
    assert_adds_up(Explainer(trees, NAMES, slope=1.0), model, rows)


STUMP = "num_leaves=1\\nnum_cat=0\\nleaf_value=0.25\\nis_linear=0\\nshrinkage=1\\n\\n"


def built(model: Path) -> NativePredictor:
    library = model.with_suffix(".so")
    compile_library(model, FEATURE_COUNT, library)
    return NativePredictor(library, FEATURE_COUNT)


def calls_of(library: NativePredictor) -> list[int]:
    """Returns a list that gets an item each time that somebody asks for the library's leaves."""
    calls: list[int] = []
    leaves_at = library.leaves_at

    def noted() -> int:
        address = leaves_at()
        calls.append(address)
        return address

    library.leaves_at = noted  # type: ignore[method-assign]
    return calls


def goes_left(trees: Trees, node: int, value: float) -> bool:
    """Tree::NumericalDecision and Tree::CategoricalDecision of LightGBM, as they are written there."""
    decision, threshold = int(trees.nodes[node, DECISION]), float(trees.thresholds[node])
    if decision & CATEGORICAL:
        return -1.0 < value <= 2147483647.0 and int(value) in trees.categories(node)
    missing, is_left = decision >> 2 & 3, bool(decision & 2)
    if math.isnan(value):
        if missing == 2:
            return is_left
        value = 0.0
    if missing == 1 and -ZERO <= value <= ZERO:
        return is_left
    return (0.0 if -ZERO <= value <= ZERO else value) <= threshold


def added_one_by_one(trees: Trees, row: NDArray[np.float32]) -> list[float]:
    """Returns the contributions of a row, added tree by tree from the root to the leaf."""
    sums = [0.0] * FEATURE_COUNT
    for root in trees.roots.tolist():
        node = root
        while node >= 0:
            feature = int(trees.nodes[node, FEATURE])
            side = 0 if goes_left(trees, node, float(row[feature])) else 1
            sums[feature] += float(trees.changes[node, side])
            node = int(trees.nodes[node, LEFT + side])
    return sums


@pytest.mark.parametrize(
    "parameters", [{}, {"zero_as_missing": True}, {"use_missing": False}, {"max_depth": 2}, {"categories": [3, 4]}]
)
@pytest.mark.parametrize("rounds", [3, SIDE_BY_SIDE, 3 * SIDE_BY_SIDE + 5])
def test_contributions_have_the_bits_of_a_walk_tree_by_tree(
    tmp_path: Path, rounds: int, parameters: dict[str, Any]
) -> None:
    rows = random_rows(3000, seed=1)
    if "categories" in parameters:
        rows[:, 3:5] = np.random.default_rng(4).integers(-1, 40, (len(rows), 2))
    _, path = trained(tmp_path, rows, rounds=rounds, **parameters)
    trees = read_trees(path, FEATURE_COUNT)
    assert 0 < len(trees.roots) <= rounds
    explainer = Explainer(trees, NAMES, slope=1.0)
    for row in (*rows[:100], *random_rows(100, seed=5)):
        assert explainer.contributions(row).tolist() == added_one_by_one(trees, row)


@pytest.mark.parametrize("parameters", [{}, {"use_missing": False}, {"max_depth": 2}])
def test_contributions_have_the_same_bits_where_the_library_finds_the_leaves(
    tmp_path: Path, parameters: dict[str, Any]
) -> None:
    _, path = trained(tmp_path, random_rows(3000, seed=1), num_leaves=LEAVES_MAX, **parameters)
    trees, library = read_trees(path, FEATURE_COUNT), built(path)
    explainer = Explainer(trees, NAMES, slope=1.0, leaves=library)
    walked = Explainer(trees, NAMES, slope=1.0)
    assert library.tree_count == len(trees.roots) == 40
    calls = calls_of(library)
    for row in random_rows(200, seed=5):
        assert explainer.contributions(row).tolist() == added_one_by_one(trees, row)
        assert explainer.reasons(row, 4) == walked.reasons(row, 4)
    assert len(calls) == 400
    library.close()
    with pytest.raises(AssertionError, match="unloaded"):
        explainer.reasons(random_rows(1, seed=5)[0], 4)


def test_a_model_is_walked_where_the_library_does_not_know_its_leaves(tmp_path: Path) -> None:
    rows = random_rows(3000, seed=1)
    # A library counts a tree of one leaf, which the explainer's trees leave out. A library that walks finds no leaves.
    _, path = trained(tmp_path, rows)
    text = path.read_text(encoding="utf-8")
    stump = re.sub(r"(?s)(Tree=3\n).*?(\n\nTree=4\n)", rf"\1{STUMP}\2", text)
    sizes = [len(each) for each in re.findall(r"(?s)Tree=\d+\n.*?\n\n(?=Tree=|end of trees)", stump)]
    stump = re.sub(r"tree_sizes=.*", "tree_sizes=" + " ".join(str(size + 1) for size in sizes), stump)
    (tmp_path / "stump.txt").write_text(stump, encoding="utf-8")
    rows[:, 3] = np.random.default_rng(4).integers(0, 40, len(rows))
    (tmp_path / "other").mkdir()
    _, categories = trained(tmp_path / "other", rows, categories=[3])
    for model, counted in ((tmp_path / "stump.txt", 40), (categories, 0)):
        trees, library = read_trees(model, FEATURE_COUNT), built(model)
        assert library.tree_count == counted != len(trees.roots)
        explainer, calls = Explainer(trees, NAMES, slope=1.0, leaves=library), calls_of(library)
        for row in rows[:50]:
            assert explainer.contributions(row).tolist() == added_one_by_one(trees, row)
        assert calls == []


@pytest.mark.parametrize("child", range(2, 30, 3))
def test_nodes_that_share_a_child_have_no_paths(tmp_path: Path, child: int) -> None:
    """Their paths would be longer than the room for them. The bundle's golden vectors say whether it is a model."""
    _, path = trained(tmp_path, random_rows(3000, seed=1), rounds=3)
    trees = read_trees(path, FEATURE_COUNT)
    nodes = trees.nodes.copy()
    nodes[0, LEFT : LEFT + 2] = child
    assert path_arrays(nodes, trees.changes, trees.roots) is None
    assert path_arrays(trees.nodes, trees.changes, trees.roots) is not None


def test_a_model_of_leaves_alone_explains_nothing(tmp_path: Path) -> None:
    model, path = trained(tmp_path, random_rows(100, seed=1), min_data_in_leaf=1000)
    explainer = Explainer(read_trees(path, FEATURE_COUNT), NAMES, slope=1.0)
    rows = random_rows(10, seed=2)
    assert_adds_up(explainer, model, rows)
    assert explainer.reasons(rows[0], 4) == []


def test_reasons_are_the_features_that_moved_the_score_most_towards_fraud(tmp_path: Path) -> None:
    _, path = trained(tmp_path, random_rows(5000, seed=1))
    explainer = Explainer(read_trees(path, FEATURE_COUNT), NAMES, slope=2.0)
    told = 0
    for row in random_rows(200, seed=3):
        moved = 2.0 * explainer.contributions(row).copy()
        reasons = explainer.reasons(row, 3)
        wanted = [place for place in np.argsort(-moved)[:3] if moved[place] >= 0.005]
        assert len(reasons) == len(wanted)
        for reason, place in zip(reasons, wanted, strict=True):
            found = FORM.fullmatch(reason) or pytest.fail(f"{reason} cannot be parsed")
            name, value, change = found.groups()
            assert name == NAMES[place]
            assert change == f"{moved[place]:.2f}"
            assert value == ("missing" if np.isnan(row[place]) else f"{row[place]:.6g}")
        told += len(reasons)
    assert told > 100


MOVES = st.one_of(st.sampled_from([0.0, 0.004, 0.005, 0.5, -1.0, math.nan, math.inf]), st.floats(-1, 1))


@given(st.lists(MOVES, min_size=1, max_size=20), st.integers(0, 22))
def test_the_named_features_are_the_first_of_a_stable_sort(contributions: list[float], count_max: int) -> None:
    count = len(contributions)
    places = np.full(count, -1, dtype=np.int64)
    arrays = {"contributions": np.array(contributions), "moved": np.zeros(count), "places": places}
    frame = Frame(CHOICE_SLOT, arrays)
    told = choose(frame.address, 2.0, count_max)
    moved = [2.0 * each for each in contributions]
    wanted = sorted((place for place in range(count) if moved[place] >= 0.005), key=lambda place: -moved[place])
    assert places[:told].tolist() == wanted[:count_max]


def test_nothing_is_left_to_compile_when_a_bundle_is_loaded() -> None:
    """Compiling during the first declined payment would delay it by a second."""
    explainer = small_world.loaded_bundle().explainer
    dispatchers: list[Any] = [add_paths, choose]
    compiled = [len(dispatcher.signatures) for dispatcher in dispatchers]
    buffer = np.zeros((4, len(small_world.engine().plan.names)), dtype=np.float32)
    explainer.reasons(buffer[2], 4)
    assert [len(dispatcher.signatures) for dispatcher in dispatchers] == compiled
    assert min(compiled) > 0


def test_an_explainer_runs_its_choice_when_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above sees code that other tests have compiled. The first declined payment waited 250 ms for it."""
    asked: list[tuple[Any, ...]] = []

    def noted(*arguments: Any) -> int:
        asked.append(arguments)
        return 0

    monkeypatch.setattr(explanations, "choose", noted)
    _, path = trained(tmp_path, random_rows(2000, seed=1))
    Explainer(read_trees(path, FEATURE_COUNT), NAMES, slope=1.0)
    assert len(asked) == 1


def test_a_limit_of_zero_reasons_gives_no_reason() -> None:
    row = small_world.table().vectors[0]
    assert small_world.loaded_bundle().explainer.reasons(row, 0) == []


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        (
            {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5},
            "wanted one tree per iteration, and margins that are sums of trees",
        ),
        ({"linear_tree": True}, "its leaves are linear models"),
    ],
)
def test_a_model_of_another_kind_is_refused(tmp_path: Path, parameters: dict[str, Any], why: str) -> None:
    _, path = trained(tmp_path, random_rows(2000, seed=1), **parameters)
    with pytest.raises(BundleRefused, match=rf"^model\.txt is not a LightGBM model .*: {why}"):
        read_trees(path, FEATURE_COUNT)


def test_a_model_of_more_features_or_no_model_is_refused(tmp_path: Path) -> None:
    _, path = trained(tmp_path, random_rows(2000, seed=1))
    with pytest.raises(BundleRefused, match="it tests features beyond the 2 of the catalogue"):
        read_trees(path, 2)
    path.write_text("tree\n", encoding="utf-8")
    with pytest.raises(BundleRefused, match=r"^model\.txt is not a LightGBM model"):
        read_trees(path, FEATURE_COUNT)


def test_nodes_that_lead_back_are_refused(tmp_path: Path) -> None:
    """The walk would never end."""
    _, path = trained(tmp_path, random_rows(2000, seed=1))
    text = re.sub(r"left_child=\d+", "left_child=0", path.read_text(encoding="utf-8"), count=1)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BundleRefused, match="a node comes after its child"):
        read_trees(path, FEATURE_COUNT)


def test_a_bundle_whose_reasons_would_not_add_up_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = small_world.copied_bundle(tmp_path)
    assert sha256_of(bundle / GOLDEN) == read_manifest(bundle).files[GOLDEN]
    true_reader = read_trees

    def one_tree_short(path: Path, feature_count: int) -> Any:
        trees = true_reader(path, feature_count)
        return type(trees)(**{**vars(trees), "roots": trees.roots[1:]})

    monkeypatch.setattr("paywarden.models.bundle.bundle.read_trees", one_tree_short)
    with pytest.raises(BundleRefused, match=r"contributions do not add up to the margins of model\.txt"):
        load_bundle(bundle, catalogue_digest=small_world.engine().plan.digest)
