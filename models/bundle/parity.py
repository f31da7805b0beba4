"""The parity gate: one row that a library scores unlike LightGBM, to the bit, refuses the bundle.

What is tried is read from the model itself, so that a bundle can be checked wherever its library is built:

1. The golden vectors, and rows no payment had: each value drawn from its own column, a tenth of them missing.
2. Every split at its edges. A real payment is led to the split (what would make it turn off on the way is changed, no
   more), and has there the float32 below the threshold, the nearest to it, the one above, and none at all. Where the
   split asks about a set of categories: one of the set, one that is not, one never seen, and none.
3. In every feature, beside real values: missing, infinite, zero of both signs, the ends of float32.

Of a model with more splits than `SPLITS_MAX` an even part is tried, and how many are left out is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray

from paywarden.models.bundle.explain import CATEGORICAL, DECISION, FEATURE, LEFT, RIGHT, Trees, read_trees
from paywarden.models.bundle.predictor import Predictor
from paywarden.schemas.errors import BundleRefused

F32 = NDArray[np.float32]

SPLITS_MAX = 20_000
"""300 trees of 63 leaves have 18,600. LightGBM scores some 40,000 rows of those a second, and a split has four."""
RANDOM_ROWS = 4096
# Payments that the values of step 3 are put into.
_PAYMENTS_OF_A_VALUE = 8
_MISSING_SHARE = 0.1
_ROWS_OF_A_SPLIT = 4

_TINY, _LARGEST = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).max
_SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, _TINY, -_TINY, 1e-35, _LARGEST, -_LARGEST], dtype=np.float32)
# A category is a whole number, never a fraction: engines round those each in its own way.
_SPECIAL_CATEGORIES = np.array([np.nan, np.inf, -np.inf, 0.0, -1.0, 2.0**24, _LARGEST], dtype=np.float32)


@dataclass(frozen=True)
class GateRows:
    """Rows of one kind with LightGBM's margins: `vectors` (rows, features), `margins` (rows,)."""

    kind: str
    vectors: F32
    margins: NDArray[np.float64]


@dataclass(frozen=True)
class ParityGate:
    """What a model's predictors must score as LightGBM does."""

    parts: tuple[GateRows, ...]
    splits: int
    splits_left_out: int

    @classmethod
    def of(cls, model_text: Path, payments: F32, *, golden: F32 | None = None, seed: int = 0) -> ParityGate:
        """The gate of a LightGBM text model. `payments`: real vectors, shape (rows, features), float32, at least one.

        `golden` are further rows to try. Raises BundleRefused for a text that is no such model.
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
            "rows with a value that is none": special_rows(trees, payments),
        }
        parts = tuple(GateRows(kind, vectors, margins_of(reference, vectors)) for kind, vectors in rows.items())
        return cls(parts, len(tried), len(trees.nodes) - len(tried))

    @property
    def row_count(self) -> int:
        return sum(len(part.vectors) for part in self.parts)

    def require(self, predictor: Predictor) -> None:
        """Raises BundleRefused when one row's margin is not the 64 bits that LightGBM gives."""
        for part in self.parts:
            require_same_bits(predictor, part)


def require_same_bits(predictor: Predictor, rows: GateRows) -> None:
    """Raises BundleRefused when one row's margin is not the 64 bits that LightGBM gives."""
    got = predictor.margins(rows.vectors)
    differing = int(np.count_nonzero(got.view(np.int64) != rows.margins.view(np.int64)))
    if differing:
        kind = "native library" if predictor.native else "GTIL"
        raise BundleRefused(f"the {kind} scores {differing} of {len(got)} rows unlike LightGBM ({rows.kind})")


def margins_of(reference: Any, vectors: F32) -> NDArray[np.float64]:
    """LightGBM's own margins, shape (rows,). `reference` is its Booster."""
    return np.ascontiguousarray(reference.predict(vectors, raw_score=True), dtype=np.float64)


def random_rows(payments: F32, seed: int, count: int) -> F32:
    """Rows no payment had: each value drawn from its own column, and a tenth of them missing."""
    random = np.random.default_rng(seed)
    picked = random.integers(0, len(payments), size=(count, payments.shape[1]))
    rows = np.take_along_axis(payments, picked, axis=0)
    rows[random.random(rows.shape) < _MISSING_SHARE] = np.nan
    return np.ascontiguousarray(rows)


def special_rows(trees: Trees, payments: F32) -> F32:
    """Real payments with one value that is missing, infinite, zero or as far out as there is; then in all features."""
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
    """Four rows for each of these splits: a real payment led there, on the edges of what it asks. See the module."""
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
    """So many places among `count`, or all."""
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).astype(np.int64)


def _parents(trees: Trees) -> NDArray[np.int64]:
    """By node: its parent, -1 for a root, and whether it is on the left. Shape (nodes, 2)."""
    above = np.full((len(trees.nodes), 2), -1, dtype=np.int64)
    for is_left, column in ((1, LEFT), (0, RIGHT)):
        children = trees.nodes[:, column]
        inner = np.flatnonzero(children >= 0)
        above[children[inner], 0], above[children[inner], 1] = inner, is_left
    return above


def _lead(row: F32, trees: Trees, above: NDArray[np.int64], node: int) -> None:
    """Change of a row what would keep it from a node. Overwrites `row`, shape (features,)."""
    bounds: dict[int, tuple[float, float]] = {}
    wanted: dict[int, list[tuple[set[int], bool]]] = {}
    for parent, is_left in _way_up(above, node):
        feature, threshold = int(trees.nodes[parent, FEATURE]), float(trees.thresholds[parent])
        if trees.nodes[parent, DECISION] & CATEGORICAL:
            wanted.setdefault(feature, []).append((trees.categories(parent), is_left))
            continue
        low, high = bounds.get(feature, (-np.inf, np.inf))
        bounds[feature] = (low, min(high, threshold)) if is_left else (max(low, threshold), high)
    for feature, (low, high) in bounds.items():
        # As doubles: beside a float32, NumPy narrows a Python number, and with it the threshold.
        if not low < float(row[feature]) <= high:
            row[feature] = _between(low, high)
    for feature, sets in wanted.items():
        last = max((category for one, _ in sets for category in one), default=0) + 1
        possible = (number for number in range(last + 1) if all((number in one) == inside for one, inside in sets))
        row[feature] = next(possible, np.nan)


def _way_up(above: NDArray[np.int64], node: int) -> Iterator[tuple[int, bool]]:
    """The nodes over a node, and whether one goes left at each to come to it."""
    while True:
        node, is_left = above[node].tolist()
        if node < 0:
            return
        yield node, bool(is_left)


def _between(low: float, high: float) -> np.float32:
    """A float32 above `low` and at most `high`, where there is one."""
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
    # LightGBM's own largest threshold is beyond float32.
    with np.errstate(over="ignore", under="ignore"):
        return np.float32(value)
