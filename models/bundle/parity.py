"""The parity gate: refuse a bundle if its predictor scores a single row with other bits than LightGBM.

The rows are derived from the model itself, so a bundle can be checked on any machine that builds its library.

How it works:

1. The gate scores the golden vectors, and random rows: each value is drawn from its own column, and a tenth of the
   values are missing.
2. It scores every split at its edges. A real payment is changed as little as possible so that it reaches the split. At
   a numerical split its value is the float32 below the threshold, the nearest one, the one above, and missing. At a
   categorical split it is a category of the set, one outside it, one never seen, and missing.
3. It puts special values into every feature of some real payments: missing, infinite, both zeros, the ends of float32.
4. With more splits than `SPLITS_MAX`, an even selection is tried. `splits_left_out` counts the others.

Example: a split tests fraud_share <= 0.1, on the left side of amount <= 5000. A payment of 8000 gets a smaller amount,
so that it reaches the split. Its tried values of fraud_share are 0.099999994, 0.1000000015 (the float32 nearest to
0.1), 0.100000009 and missing. The second is above 0.1 and goes right. A library whose thresholds were narrowed to
float32 sends it left and is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray

from paywarden.models.bundle.explanations import CATEGORICAL, DECISION, FEATURE, LEFT, RIGHT, Trees, read_trees
from paywarden.models.bundle.predictor import Predictor
from paywarden.schemas.errors import BundleRefused

F32 = NDArray[np.float32]

SPLITS_MAX = 20_000
"""300 trees of 63 leaves have 18,600. LightGBM scores about 40,000 rows a second with them; a split has four rows."""
RANDOM_ROWS = 4096
# The number of payments that get the special values of step 3.
_PAYMENTS_OF_A_VALUE = 8
_MISSING_SHARE = 0.1
_ROWS_OF_A_SPLIT = 4

_TINY, _LARGEST = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).max
_SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, _TINY, -_TINY, 1e-35, _LARGEST, -_LARGEST], dtype=np.float32)
# Categories are whole numbers. Fractions are not tried, because each engine rounds them differently.
_SPECIAL_CATEGORIES = np.array([np.nan, np.inf, -np.inf, 0.0, -1.0, 2.0**24, _LARGEST], dtype=np.float32)


@dataclass(frozen=True)
class GateRows:
    """Rows of one kind with LightGBM's margins: `vectors` (rows, features), `margins` (rows,)."""

    kind: str
    vectors: F32
    margins: NDArray[np.float64]


@dataclass(frozen=True)
class ParityGate:
    """The rows that a model's predictors must score with LightGBM's bits."""

    parts: tuple[GateRows, ...]
    splits: int
    splits_left_out: int

    @classmethod
    def of(cls, model_text: Path, payments: F32, *, golden: F32 | None = None, seed: int = 0) -> ParityGate:
        """Returns the gate of a LightGBM text model.

        `payments`: real vectors, (rows, features), float32, at least one. `golden`: the rows to try in place of the
        payments themselves. Raises BundleRefused if the text is not such a model.
        """
        trees = read_trees(model_text, payments.shape[1])
        try:
            reference = lightgbm.Booster(model_file=str(model_text))
        except lightgbm.basic.LightGBMError as error:
            raise BundleRefused(f"{model_text.name} is not a LightGBM model: {str(error).splitlines()[0]}") from error
        tried = _tried_splits(len(trees.nodes))
        rows = {
            "golden rows": payments if golden is None else golden,
            "random rows": random_rows(payments, seed, RANDOM_ROWS),
            "rows at the edges of splits": edge_rows(trees, payments, tried),
            "rows with special values": special_rows(trees, payments),
        }
        parts = tuple(GateRows(kind, vectors, margins_of(reference, vectors)) for kind, vectors in rows.items())
        return cls(parts, len(tried), len(trees.nodes) - len(tried))

    @property
    def row_count(self) -> int:
        return sum(len(part.vectors) for part in self.parts)

    def require(self, predictor: Predictor) -> None:
        """Raises BundleRefused if the margin of any row differs from LightGBM's in one of its 64 bits."""
        for part in self.parts:
            require_same_bits(predictor, part)


def require_same_bits(predictor: Predictor, rows: GateRows) -> None:
    """Raises BundleRefused if the margin of any row differs from LightGBM's in one of its 64 bits."""
    margins = predictor.margins(rows.vectors)
    differing = int(np.count_nonzero(margins.view(np.int64) != rows.margins.view(np.int64)))
    if differing:
        kind = "native library" if predictor.native else "GTIL"
        raise BundleRefused(
            f"the {kind} scores {differing} of {len(margins)} rows differently from LightGBM ({rows.kind})"
        )


def margins_of(reference: Any, vectors: F32) -> NDArray[np.float64]:
    """Returns LightGBM's own margins, (rows,). `reference` is its Booster."""
    return np.ascontiguousarray(reference.predict(vectors, raw_score=True), dtype=np.float64)


def random_rows(payments: F32, seed: int, count: int) -> F32:
    """Returns random rows: each value is drawn from its own column, and a tenth of the values are missing."""
    random = np.random.default_rng(seed)
    picked = random.integers(0, len(payments), size=(count, payments.shape[1]))
    rows = np.take_along_axis(payments, picked, axis=0)
    rows[random.random(rows.shape) < _MISSING_SHARE] = np.nan
    return np.ascontiguousarray(rows)


def special_rows(trees: Trees, payments: F32) -> F32:
    """Returns real payments with one special value (missing, infinite, zero, the largest), then rows full of each."""
    features = payments.shape[1]
    categorical = set(trees.nodes[(trees.nodes[:, DECISION] & CATEGORICAL) != 0, FEATURE].tolist())
    bases = payments[_evenly(len(payments), _PAYMENTS_OF_A_VALUE)]
    blocks = []
    for feature in range(features):
        values = _SPECIAL_CATEGORIES if feature in categorical else _SPECIAL
        rows = np.repeat(bases, len(values), axis=0)
        rows[:, feature] = np.tile(values, len(bases))
        blocks.append(rows)
    everywhere = _SPECIAL_CATEGORIES if categorical else _SPECIAL
    blocks.append(np.repeat(everywhere[:, np.newaxis], features, axis=1))
    return np.ascontiguousarray(np.concatenate(blocks))


def edge_rows(trees: Trees, payments: F32, splits: NDArray[np.int64]) -> F32:
    """Returns four rows for each of these splits, as in step 2 of the module: real payments at the split's edges."""
    above = _parents(trees)
    rows = np.repeat(payments[np.arange(len(splits)) % len(payments)], _ROWS_OF_A_SPLIT, axis=0)
    for place, split in enumerate(splits.tolist()):
        here = rows[place * _ROWS_OF_A_SPLIT : (place + 1) * _ROWS_OF_A_SPLIT]
        _lead(here[0], trees, above, split)
        here[1:] = here[0]
        here[:, trees.nodes[split, FEATURE]] = _edges(trees, split)
    return np.ascontiguousarray(rows)


def _tried_splits(count: int) -> NDArray[np.int64]:
    return _evenly(count, SPLITS_MAX)


def _evenly(count: int, most: int) -> NDArray[np.int64]:
    """Returns at most `most` of the indexes below `count`, evenly spaced."""
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).astype(np.int64)


def _parents(trees: Trees) -> NDArray[np.int64]:
    """Returns for each node its parent, -1 for a root, and whether it is the left child. Shape (nodes, 2)."""
    above = np.full((len(trees.nodes), 2), -1, dtype=np.int64)
    for is_left, column in ((1, LEFT), (0, RIGHT)):
        children = trees.nodes[:, column]
        inner = np.flatnonzero(children >= 0)
        above[children[inner], 0], above[children[inner], 1] = inner, is_left
    return above


def _lead(row: F32, trees: Trees, above: NDArray[np.int64], node: int) -> None:
    """Change the values of `row`, (features,), that would keep it from reaching a node, and no others."""
    bounds: dict[int, tuple[float, float]] = {}
    sets_of: dict[int, list[tuple[set[int], bool]]] = {}
    for parent, is_left in _way_up(above, node):
        feature, threshold = int(trees.nodes[parent, FEATURE]), float(trees.thresholds[parent])
        if trees.nodes[parent, DECISION] & CATEGORICAL:
            sets_of.setdefault(feature, []).append((trees.categories(parent), is_left))
            continue
        low, high = bounds.get(feature, (-np.inf, np.inf))
        bounds[feature] = (low, min(high, threshold)) if is_left else (max(low, threshold), high)
    for feature, (low, high) in bounds.items():
        # Compare as doubles: NumPy would narrow the threshold, a Python number, to float32.
        if not low < float(row[feature]) <= high:
            row[feature] = _between(low, high)
    for feature, sets in sets_of.items():
        last = max((category for categories, _ in sets for category in categories), default=0) + 1
        possible = (
            number for number in range(last + 1) if all((number in categories) == inside for categories, inside in sets)
        )
        row[feature] = next(possible, np.nan)


def _way_up(above: NDArray[np.int64], node: int) -> Iterator[tuple[int, bool]]:
    """Yields the ancestors of a node, and for each whether the path to the node goes left there."""
    while True:
        node, is_left = above[node].tolist()
        if node < 0:
            return
        yield node, bool(is_left)


def _between(low: float, high: float) -> np.float32:
    """Returns a float32 above `low` and at most `high`, if one exists."""
    if np.isfinite(high):
        value = _narrowed(high)
        return value if float(value) <= high else np.nextafter(value, np.float32(-np.inf))
    value = _narrowed(low)
    return value if float(value) > low else np.nextafter(value, np.float32(np.inf))


def _edges(trees: Trees, split: int) -> F32:
    if trees.nodes[split, DECISION] & CATEGORICAL:
        inside = trees.categories(split)
        last = max(inside, default=0)
        others = (number for number in range(last) if number not in inside)
        return np.array([min(inside, default=0), next(others, last + 1), last + 1000, np.nan], dtype=np.float32)
    at = _narrowed(float(trees.thresholds[split]))
    with np.errstate(over="ignore", under="ignore"):
        below, over = np.nextafter(at, np.float32(-np.inf)), np.nextafter(at, np.float32(np.inf))
    return np.array([below, at, over, np.nan], dtype=np.float32)


def _narrowed(value: float) -> np.float32:
    # LightGBM's largest threshold does not fit into a float32.
    with np.errstate(over="ignore", under="ignore"):
        return np.float32(value)
