"""Explain a score: how much each feature moved it, read off the payment's paths through the trees.

How it works (A. Saabas, "Interpreting random forests", 2014):

1. Every node of a tree has a value. A leaf's value is what it adds to the margin; an inner node's value is the mean of
   the values below it.
2. Each step from a node to its child changes the value. The change is attributed to the feature the node tests. The
   roots' values plus all changes are the margin.
3. `read_trees` parses LightGBM's text model once, when the bundle is loaded. All nodes of all trees become one array.
4. A compiled walk decides at each node as LightGBM does (Tree::NumericalDecision and CategoricalDecision), also for
   missing values and for the zeros that some nodes treat as missing. It sums the changes by feature.
5. A reason names the feature, its value, and its part of the score's log-odds: `feature:card_count_1h=7 (+0.83)`.

Example with one tree:

    card_count_1h <= 3     value -0.20
    ├── left: a leaf       value -0.50
    └── right: amount <= 10000    value 0.40
        ├── left: a leaf         value 0.10
        └── right: a leaf        value 0.90

A payment with card_count_1h = 7 and amount = 50000 goes right twice. card_count_1h moves the margin by 0.40 - (-0.20) =
+0.60 and amount by 0.90 - 0.40 = +0.50. The base is -0.20, and -0.20 + 0.60 + 0.50 = 0.90 is the leaf's value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paywarden.features.kernel.toolkit.jit import compiled
from paywarden.schemas.errors import BundleRefused

I32 = NDArray[np.int32]
F64 = NDArray[np.float64]
F32 = NDArray[np.float32]

# Bits of a node's decision_type. Two of its bits, from _MISSING_SHIFT on, say which values count as missing.
CATEGORICAL, _DEFAULT_LEFT = 1, 2
_MISSING_SHIFT = 2
_MISSING_ZERO, _MISSING_NAN = 1, 2
# LightGBM takes numbers up to this, either side of 0, for 0. It stores the bound as a float, rounded.
ZERO = float(np.float32(1e-35))
_INT_MAX = 2147483647.0
# Columns of a node: the feature it tests, how it decides, and its children. Only inner nodes have a row.
FEATURE, DECISION, LEFT, RIGHT = range(4)
_NODE_SIZE = 4
# A smaller part would be written as +0.00.
_SMALLEST_TOLD = 0.005


@dataclass(frozen=True)
class Trees:
    """All trees of a model as arrays. Inner nodes are numbered across trees; a child is a node's number, or -1: a leaf.

    `nodes`: (nodes, 4), columns FEATURE, DECISION, LEFT and RIGHT.
    `thresholds`: (nodes,); for a categorical node, the number of its set.
    `changes`: (nodes, 2), by how much going left and going right change the value.
    `roots`: the first node of each tree that is more than one leaf.
    `sets`: the bitmaps of all categorical nodes; set i is words `set_bounds[i]` to `set_bounds[i + 1]`.
    `base`: the sum of the roots' values.
    """

    nodes: I32
    thresholds: F64
    changes: F64
    roots: I32
    sets: NDArray[np.uint32]
    set_bounds: I32
    base: float

    def categories(self, node: int) -> set[int]:
        """The categories that go left at a categorical node."""
        number = int(self.thresholds[node])
        words = self.sets[self.set_bounds[number] : self.set_bounds[number + 1]]
        bits = np.unpackbits(words.astype("<u4").view(np.uint8), bitorder="little")
        return set(np.flatnonzero(bits).tolist())


@compiled()
def _goes_left(value: float, threshold: float, decision: int, sets: NDArray[np.uint32], set_bounds: I32) -> bool:
    if decision & CATEGORICAL:
        # NaN, negative numbers and numbers beyond an int are in no set.
        if not -1.0 < value <= _INT_MAX:
            return False
        category, number = np.int64(value), np.int64(threshold)
        word = set_bounds[number] + (category >> 5)
        return bool(word < set_bounds[number + 1] and sets[word] >> np.uint32(category & 31) & np.uint32(1))
    missing = decision >> _MISSING_SHIFT & 3
    if value != value:
        if missing == _MISSING_NAN:
            return bool(decision & _DEFAULT_LEFT)
        value = 0.0
    elif -ZERO <= value <= ZERO:
        value = 0.0
    if missing == _MISSING_ZERO and value == 0.0:
        return bool(decision & _DEFAULT_LEFT)
    return value <= threshold


@compiled()
def add_contributions(
    nodes: I32,
    thresholds: F64,
    changes: F64,
    roots: I32,
    sets: NDArray[np.uint32],
    set_bounds: I32,
    vector: F32,
    contributions: F64,
) -> None:
    """Add to `contributions` how much each feature of `vector` moved the margin. Both have shape (features,)."""
    for tree in range(len(roots)):
        node = roots[tree]
        while node >= 0:
            feature = nodes[node, FEATURE]
            if _goes_left(np.float64(vector[feature]), thresholds[node], nodes[node, DECISION], sets, set_bounds):
                contributions[feature] += changes[node, 0]
                node = nodes[node, LEFT]
            else:
                contributions[feature] += changes[node, 1]
                node = nodes[node, RIGHT]


class Explainer:
    """Says which features moved a model's score. Not thread-safe: it reuses a buffer."""

    def __init__(self, trees: Trees, feature_names: Sequence[str], *, slope: float) -> None:
        """`slope` is the calibration's: the score's log-odds change by `slope` when the margin changes by 1."""
        self.base = trees.base
        self._arrays = (trees.nodes, trees.thresholds, trees.changes, trees.roots, trees.sets, trees.set_bounds)
        self._names, self._slope = tuple(feature_names), slope
        self._contributions = np.zeros(len(self._names))

    def contributions(self, vector: F32) -> F64:
        """Returns how much each feature moved the margin, shape (features,). With `base` they sum to the margin.

        `vector`: shape (features,), float32, C-contiguous. The next call overwrites the result.
        """
        self._contributions.fill(0.0)
        add_contributions(*self._arrays, vector, self._contributions)
        return self._contributions

    def reasons(self, vector: F32, count_max: int) -> list[str]:
        """Returns the features that moved the score most towards fraud, at most `count_max`, the strongest first.

        Each reads `feature:NAME=VALUE (+LOG-ODDS)`. A missing value is written "missing", an infinite one "inf".
        """
        moved = self._slope * self.contributions(vector)
        reasons = []
        for place in np.argsort(-moved, kind="stable")[:count_max].tolist():
            if moved[place] < _SMALLEST_TOLD:
                break
            value = vector[place]
            text = "missing" if value != value else f"{value:.6g}"
            reasons.append(f"feature:{self._names[place]}={text} (+{moved[place]:.2f})")
        return reasons


def read_trees(model_text: Path, feature_count: int) -> Trees:
    """Returns the trees of a LightGBM text model. Raises BundleRefused for a model that cannot be explained."""
    try:
        return _parse(model_text.read_text(encoding="utf-8"), feature_count)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise BundleRefused(
            f"{model_text.name} is not a LightGBM model whose scores can be explained: {error}"
        ) from error


def _parse(text: str, feature_count: int) -> Trees:
    head, *parts = text.split("\n\nend of trees", 1)[0].split("\nTree=")
    header = _fields(head)
    if header["num_tree_per_iteration"] != "1" or "average_output" in head:
        raise ValueError("wanted one tree per iteration, and margins that are sums of trees")
    trees = [_fields(part) for part in parts]
    node_count = sum(int(tree["num_leaves"]) - 1 for tree in trees)
    nodes = np.full((node_count, _NODE_SIZE), -1, dtype=np.int32)
    thresholds, changes = np.zeros(node_count), np.zeros((node_count, 2))
    roots: list[int] = []
    sets: list[int] = []
    set_bounds, base, first = [0], 0.0, 0
    for tree in trees:
        if tree.get("is_linear", "0") != "0":
            raise ValueError("its leaves are linear models")
        count = int(tree["num_leaves"]) - 1
        leaf_values = _floats(tree["leaf_value"])
        if count == 0:
            base += leaf_values[0]
            continue
        values = _floats(tree["internal_value"])
        here = slice(first, first + count)
        nodes[here, FEATURE] = _ints(tree["split_feature"])
        nodes[here, DECISION] = _ints(tree["decision_type"])
        thresholds[here] = _floats(tree["threshold"])
        for side, name in enumerate(("left_child", "right_child")):
            children = _ints(tree[name])
            # LightGBM numbers leaves -1, -2, and so on.
            below = np.where(children >= 0, values[np.maximum(children, 0)], leaf_values[~np.minimum(children, -1)])
            if not (children < count).all() or ((children >= 0) & (children <= np.arange(count))).any():
                raise ValueError("a node comes after its child")
            nodes[here, LEFT + side] = np.where(children >= 0, children + first, -1)
            changes[here, side] = below - values
        if int(tree["num_cat"]):
            thresholds[here][(nodes[here, DECISION] & CATEGORICAL) != 0] += len(set_bounds) - 1
            set_bounds += (_ints(tree["cat_boundaries"])[1:] + len(sets)).tolist()
            sets += _ints(tree["cat_threshold"]).tolist()
        base += values[0]
        roots.append(first)
        first += count
    if node_count and not 0 <= nodes[:, FEATURE].min() <= nodes[:, FEATURE].max() < feature_count:
        raise ValueError(f"it tests features beyond the {feature_count} of the catalogue")
    return Trees(
        nodes,
        thresholds,
        changes,
        np.array(roots, dtype=np.int32),
        np.array(sets, dtype=np.uint32),
        np.array(set_bounds, dtype=np.int32),
        float(base),
    )


def _fields(lines: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in lines.splitlines() if "=" in line)


def _ints(text: str) -> NDArray[np.int64]:
    return np.array(text.split(), dtype=np.int64)


def _floats(text: str) -> F64:
    return np.array(text.split(), dtype=np.float64)
