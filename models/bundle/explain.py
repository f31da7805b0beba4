"""Which features moved a score, read off the paths that a payment takes through the trees.

Every node of a tree has a value: a leaf what it adds to the margin, an inner node the mean of what is below it. Going
down, each step from a node to its child changes that value, and the change is put down to the feature that the node
asks about (Saabas 2014). The roots' values and all changes add up to the margin.

1. LightGBM's text model is parsed once, when the bundle is loaded: the nodes of all trees in a row, leaves last.
2. A compiled walk decides at each node as LightGBM does (Tree::NumericalDecision and CategoricalDecision), missing
   values and the zero that some nodes take for missing included. It adds the changes up by feature.
3. What is told of a feature is its value and its part in the score's log-odds: `feature:card_count_1h=7 (+0.83)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paywarden.features.kernel.jit import compiled
from paywarden.schemas.errors import BundleRefused

I32 = NDArray[np.int32]
F64 = NDArray[np.float64]
F32 = NDArray[np.float32]

# Bits of a node's decision_type, and its two bits of what is missing.
CATEGORICAL, _DEFAULT_LEFT = 1, 2
_MISSING_SHIFT = 2
_MISSING_ZERO, _MISSING_NAN = 1, 2
# LightGBM takes a number up to it for zero; it is a float there, and so rounded.
_ZERO = float(np.float32(1e-35))
_INT_MAX = 2147483647.0
# Columns of a node: what it asks about, how it decides, and its children. Leaves are no nodes: they are below zero.
FEATURE, DECISION, LEFT, RIGHT = range(4)
_NODE_SIZE = 4
# Less would be told as nothing.
_SMALLEST_TOLD = 0.005


@dataclass(frozen=True)
class Trees:
    """All trees of a model. Nodes are numbered through; a child is a node's number, or for a leaf -1.

    `nodes`: shape (nodes, 4). `thresholds`: (nodes,), of a categorical node the number of its set. `changes`: shape
    (nodes, 2), what going left and going right change. `roots`: the first node of each tree that has one. `sets`:
    bitmaps of all categorical nodes; set i is words `set_bounds[i]` to `set_bounds[i + 1]`. `base`: the sum of all
    roots' values.
    """

    nodes: I32
    thresholds: F64
    changes: F64
    roots: I32
    sets: NDArray[np.uint32]
    set_bounds: I32
    base: float

    def categories(self, node: int) -> set[int]:
        """What goes left at a node that asks about a set."""
        number = int(self.thresholds[node])
        words = self.sets[self.set_bounds[number] : self.set_bounds[number + 1]]
        bits = np.unpackbits(words.astype("<u4").view(np.uint8), bitorder="little")
        return set(np.flatnonzero(bits).tolist())


@compiled()
def _goes_left(value: float, threshold: float, decision: int, sets: NDArray[np.uint32], set_bounds: I32) -> bool:
    if decision & CATEGORICAL:
        # Not a number, below zero or beyond an int: in no set.
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
    elif -_ZERO <= value <= _ZERO:
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
    """What each feature of `vector`, shape (features,), moved the margin by is added to `contributions`."""
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
    """Tells what moved a model's score. Not thread-safe: it reuses its buffer."""

    def __init__(self, trees: Trees, feature_names: Sequence[str], *, slope: float) -> None:
        """`slope` is the calibration's: what the score's log-odds change by with a change of the margin."""
        self.base = trees.base
        self._arrays = (trees.nodes, trees.thresholds, trees.changes, trees.roots, trees.sets, trees.set_bounds)
        self._names, self._slope = tuple(feature_names), slope
        self._contributions = np.zeros(len(self._names))

    def contributions(self, vector: F32) -> F64:
        """By how much each feature moved the margin, shape (features,); with `base` they add up to it.

        `vector`: shape (features,), float32, C-contiguous. The result is overwritten by the next call.
        """
        self._contributions.fill(0.0)
        add_contributions(*self._arrays, vector, self._contributions)
        return self._contributions

    def reasons(self, vector: F32, count_max: int) -> list[str]:
        """Up to `count_max` features that moved the score most towards fraud, as `feature:NAME=VALUE (+LOG-ODDS)`.

        A value that is missing reads "missing", one that is not finite "inf".
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
    """The trees of a LightGBM text model. Raises BundleRefused for one that this cannot explain."""
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
        raise ValueError("wanted one tree an iteration, and a sum of trees")
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
            # A leaf is counted from -1 down.
            below = np.where(children >= 0, values[np.maximum(children, 0)], leaf_values[~np.minimum(children, -1)])
            if not (children < count).all() or ((children >= 0) & (children <= np.arange(count))).any():
                raise ValueError("its nodes are in no order")
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
        raise ValueError(f"it asks about features beyond the {feature_count} there are")
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
