"""Explain a score: how much each feature moved it, read off the payment's paths through the trees.

How it works (A. Saabas, "Interpreting random forests", 2014):

1. Every node of a tree has a value. A leaf's value is what it adds to the margin; an inner node's value is the mean of
   the values below it.
2. Each step from a node to its child changes the value. The change is attributed to the feature the node tests. The
   roots' values plus all changes are the margin.
3. `read_trees` parses LightGBM's text model once, when the bundle is loaded. All nodes of all trees become one array.
4. A compiled walk decides at each node as LightGBM does (Tree::NumericalDecision and CategoricalDecision), also for
   missing values and for the zeros that some nodes treat as missing. It sums the changes by feature.
5. A walk waits at each node for memory and for the comparison. Therefore SIDE_BY_SIDE trees are walked at once, and the
   changes on their paths are noted. They are added afterwards, tree by tree: the sums have the same bits as without it.
   Where the model's library finds the leaves itself, nothing is walked (models/bundle/leaf_paths.py).
6. A reason names the feature, its value, and its part of the score's log-odds: `feature:card_count_1h=7 (+0.83)`.

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

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numba import carray  # type: ignore[attr-defined]
from numpy.typing import NDArray

from paywarden.features.kernel.plan_schema import positions
from paywarden.features.kernel.toolkit.frame import Frame, address, size
from paywarden.features.kernel.toolkit.jit import compiled, inlined
from paywarden.features.kernel.toolkit.machine_words import not_negative
from paywarden.models.bundle.leaf_paths import PATH_SLOT, add_paths, path_arrays
from paywarden.schemas.errors import BundleRefused
from paywarden.schemas.file_state import read_regular

I32 = NDArray[np.int32]
F64 = NDArray[np.float64]
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

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
# Trees that are walked at once. With more the processor gains nothing.
SIDE_BY_SIDE = 8


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


class LeafFinder(Protocol):
    """Finds the leaves that a vector reaches: the model's library, see models/bundle/leaf_paths.py."""

    tree_count: int
    """How many trees it has. A tree of a single leaf counts."""

    def leaves_at(self) -> int:
        """Returns the address of its function; raises when it is closed."""


class WalkSlots(NamedTuple):
    """The frame of `walk`."""

    records: int
    """Shape (nodes, RECORD_WORDS), int64: all that a walk must know of a node, in one line of the processor's cache."""
    roots: int
    """The word of each root, int64; see `_word_of`."""
    sets: int
    """The sets of Trees, uint32."""
    set_bounds: int
    """The bounds of these sets, int32."""
    vector: int
    """The vector to explain, float32."""
    values: int
    """Shape (KIND_COUNT, features), float64: the values that nodes of each kind compare. Scratch space."""
    paths: int
    """Shape (SIDE_BY_SIDE, the most nodes of a path), int64: each node's place in `records`, plus 1 if the walk went
    right. Scratch space."""
    here: int
    """SIDE_BY_SIDE int64: the word of the node at which each walk is. Scratch space."""
    steps: int
    """SIDE_BY_SIDE int64: how many nodes each walk has passed. Scratch space."""
    contributions: int
    """Filled: how much each feature moved the margin, float64."""


class ChoiceSlots(NamedTuple):
    """The frame of `choose`."""

    contributions: int
    """How much each feature moved the margin, float64."""
    moved: int
    """Filled: `slope` times the contributions, float64."""
    places: int
    """Filled: the features that moved the score most towards fraud, int64."""


SLOT, CHOICE_SLOT = positions(WalkSlots), positions(ChoiceSlots)
# Places in a record: threshold and changes, as float64; the words of both children; the feature. The rest is unused.
_THRESHOLD, _FOLLOWING, _CHANGES, _TESTED = 0, 1, 3, 5
RECORD_WORDS = 8
LEAF = -1
# Kinds of nodes, by what they do with a missing value: take it for 0, or send it left or right; and with 0, if that
# counts as missing. The last kind asks a set.
_AS_ZERO, _NAN_LEFT, _NAN_RIGHT, _ZERO_LEFT, _ZERO_RIGHT, _IN_SET = range(6)
KIND_COUNT = 6
# A word has the place of a node's value among the values of all kinds, and the place of its record.
_VALUE_BITS = 24
_VALUE = (1 << _VALUE_BITS) - 1


@compiled()
def _word_of(nodes: I32, node: int, features: int) -> int:
    """Returns where a walk finds a node and the value it compares; LEAF if it is a leaf."""
    if node < 0:
        return LEAF
    decision = nodes[node, DECISION]
    missing, is_left = decision >> _MISSING_SHIFT & 3, decision & _DEFAULT_LEFT != 0
    kind = _AS_ZERO
    if decision & CATEGORICAL:
        kind = _IN_SET
    elif missing == _MISSING_NAN:
        kind = _NAN_LEFT if is_left else _NAN_RIGHT
    elif missing == _MISSING_ZERO:
        kind = _ZERO_LEFT if is_left else _ZERO_RIGHT
    word: int = node * RECORD_WORDS << _VALUE_BITS | (kind * features + nodes[node, FEATURE])
    return word


@compiled()
def _prepare(nodes: I32, first: I32, features: int, roots: I64, records: I64) -> int:
    """Fill `roots`, and in `records` all but threshold and changes. Returns the most nodes of a path.

    `first`: the first node of each tree.
    """
    longest = 0
    for node in range(len(nodes)):
        # A child has a higher number than its parent. Until a node has its words, its depth is in their place.
        depth = records[node, _FOLLOWING] + 1
        longest = max(longest, depth)
        for side in range(2):
            child = nodes[node, LEFT + side]
            if child >= 0:
                records[child, _FOLLOWING] = depth
            records[node, _FOLLOWING + side] = _word_of(nodes, child, features)
        records[node, _TESTED] = nodes[node, FEATURE]
    for tree in range(len(roots)):
        roots[tree] = _word_of(nodes, first[tree], features)
    return longest


@compiled()
def _is_in_set(value: float, number: int, sets: NDArray[np.uint32], set_bounds: I32) -> bool:
    # NaN, negative numbers and numbers beyond an int are in no set.
    if not -1.0 < value <= _INT_MAX:
        return False
    category = np.int64(value)
    word = set_bounds[number] + (category >> 5)
    return bool(word < set_bounds[number + 1] and sets[word] >> np.uint32(category & 31) & np.uint32(1))


@inlined
def _fill_values(vector: F32, values: F64) -> None:
    """Fill in the values that each kind of node compares. Whatever the threshold, -inf goes left and NaN goes right."""
    for feature in range(len(vector)):
        value = float(vector[feature])
        if -ZERO <= value <= ZERO:
            value = 0.0
        is_nan = value != value
        is_zero = is_nan or value == 0.0
        values[_AS_ZERO, feature] = 0.0 if is_nan else value
        values[_NAN_LEFT, feature] = -np.inf if is_nan else value
        values[_NAN_RIGHT, feature] = value
        values[_ZERO_LEFT, feature] = -np.inf if is_zero else value
        values[_ZERO_RIGHT, feature] = np.nan if is_zero else value
        values[_IN_SET, feature] = value


@compiled(makes_arrays=True)
def walk(frame_at: int) -> None:
    """Walk all trees with the vector, and fill in the contributions."""
    words, features = size(frame_at, SLOT.records), size(frame_at, SLOT.vector)
    records = carray(address(frame_at, SLOT.records), words, np.int64)
    numbers = carray(address(frame_at, SLOT.records), words, np.float64)
    sets = carray(address(frame_at, SLOT.sets), size(frame_at, SLOT.sets), np.uint32)
    set_bounds = carray(address(frame_at, SLOT.set_bounds), size(frame_at, SLOT.set_bounds), np.int32)
    roots = carray(address(frame_at, SLOT.roots), size(frame_at, SLOT.roots), np.int64)
    vector = carray(address(frame_at, SLOT.vector), features, np.float32)
    values = carray(address(frame_at, SLOT.values), KIND_COUNT * features, np.float64)
    steps_max = size(frame_at, SLOT.paths) // SIDE_BY_SIDE
    paths = carray(address(frame_at, SLOT.paths), SIDE_BY_SIDE * steps_max, np.int64)
    here = carray(address(frame_at, SLOT.here), SIDE_BY_SIDE, np.int64)
    steps = carray(address(frame_at, SLOT.steps), SIDE_BY_SIDE, np.int64)
    contributions = carray(address(frame_at, SLOT.contributions), features, np.float64)
    _fill_values(vector, carray(address(frame_at, SLOT.values), (KIND_COUNT, features), np.float64))
    contributions[:] = 0.0
    first_set = _IN_SET * features
    for first in range(0, len(roots), SIDE_BY_SIDE):
        walks = min(SIDE_BY_SIDE, len(roots) - first)
        for walk in range(walks):
            here[walk], steps[walk] = roots[first + walk], walk * steps_max
        is_walking = True
        while is_walking:
            is_walking = False
            for walk in range(walks):
                word = here[walk]
                if word != LEAF:
                    is_walking = True
                    place, node = not_negative(word & _VALUE), not_negative(word >> _VALUE_BITS)
                    value, threshold = values[place], numbers[node + _THRESHOLD]
                    # Without a branch, which the processor would mispredict at every second node.
                    went = node + 1 - int(value <= threshold)
                    if place >= first_set:
                        went = node + 1 - int(_is_in_set(value, int(threshold), sets, set_bounds))
                    went, step = not_negative(went), not_negative(steps[walk])
                    paths[step], steps[walk], here[walk] = went, step + 1, records[went + _FOLLOWING]
        for walk in range(walks):
            for step in range(walk * steps_max, steps[walk]):
                went = not_negative(paths[step])
                feature = not_negative(records[(went & -RECORD_WORDS) + _TESTED])
                contributions[feature] += numbers[went + _CHANGES]


@compiled(makes_arrays=True)
def choose(frame_at: int, slope: float, count_max: int) -> int:
    """Fill moved and, with the strongest first, places. Returns how many places are filled.

    At most `count_max` features are named, and only those that moved the score enough. Among equal features the first
    comes first.
    """
    features = size(frame_at, CHOICE_SLOT.contributions)
    contributions = carray(address(frame_at, CHOICE_SLOT.contributions), features, np.float64)
    moved = carray(address(frame_at, CHOICE_SLOT.moved), features, np.float64)
    places = carray(address(frame_at, CHOICE_SLOT.places), features, np.int64)
    for feature in range(features):
        moved[feature] = slope * contributions[feature]
    most, told = min(count_max, features), 0
    if most <= 0:
        return 0
    for feature in range(features):
        moves = moved[feature]
        # One pass: nearly all features move less than the last of those that are named so far.
        if moves >= _SMALLEST_TOLD and (told < most or moves > moved[places[most - 1]]):
            place = min(told, most - 1)
            told = place + 1
            while place > 0 and moved[places[place - 1]] < moves:
                places[place] = places[place - 1]
                place -= 1
            places[place] = feature
    return told


class Explainer:
    """Says which features moved a model's score. Not thread-safe: it reuses its buffers."""

    def __init__(
        self,
        trees: Trees,
        feature_names: Sequence[str],
        *,
        slope: float,
        leaves: LeafFinder | None = None,
    ) -> None:
        """`slope` is the calibration's: the score's log-odds change by `slope` when the margin changes by 1.

        `leaves` finds the leaves of this model; without it the trees are walked.
        """
        self.base = trees.base
        self._names, self._slope = tuple(feature_names), slope
        count = len(self._names)
        vector, contributions = np.zeros(count, dtype=np.float32), np.zeros(count)
        moved, places = np.zeros(count), np.zeros(count, dtype=np.int64)
        arrays: dict[str, NDArray[Any]] | None = None
        # A tree that is one leaf has no root here, but a number in the library.
        if leaves is not None and leaves.tree_count == len(trees.roots):
            arrays = path_arrays(trees.nodes, trees.changes, trees.roots)
        # Only while the library knows the leaves: it takes the place of the walk, whose records are not made then.
        self._leaves = None if arrays is None else leaves
        if arrays is None:
            arrays = _walk_arrays(trees, count)
        slots = SLOT if self._leaves is None else PATH_SLOT
        # Keep the frames alive: the loops get only their addresses.
        self._frame = Frame(slots, arrays | {"vector": vector, "contributions": contributions})
        self._choice = Frame(CHOICE_SLOT, {"contributions": contributions, "moved": moved, "places": places})
        self._contributions, self._vector = contributions, vector
        # A number out of a memoryview is a Python object at once.
        self._value_of, self._moved, self._places = vector.data, moved.data, places.data
        # Loaded or compiled now: no payment waits for it.
        choose(self._choice.address, self._slope, 0)

    def contributions(self, vector: F32) -> F64:
        """Returns how much each feature moved the margin, shape (features,). With `base` they sum to the margin.

        `vector`: shape (features,), float32. The next call overwrites the result.
        """
        self._vector[:] = vector
        self._add_up()
        return self._contributions

    def reasons(self, vector: F32, count_max: int) -> list[str]:
        """Returns the features that moved the score most towards fraud, at most `count_max`, the strongest first.

        Each reads `feature:NAME=VALUE (+LOG-ODDS)`. A missing value is written "missing", an infinite one "inf".
        """
        self._vector[:] = vector
        self._add_up()
        reasons = []
        for place in self._places[: choose(self._choice.address, self._slope, count_max)].tolist():
            value = self._value_of[place]
            text = "missing" if value != value else f"{value:.6g}"
            reasons.append(f"feature:{self._names[place]}={text} (+{self._moved[place]:.2f})")
        return reasons

    def _add_up(self) -> None:
        """Fill in the contributions of the vector."""
        if self._leaves is None:
            walk(self._frame.address)
        else:
            add_paths(self._frame.address, self._leaves.leaves_at())


def _walk_arrays(trees: Trees, count: int) -> dict[str, NDArray[Any]]:
    """Returns the arrays of the frame of `walk`, beside those that it shares, for `count` features."""
    roots, records = np.zeros(len(trees.roots), dtype=np.int64), _records_of(trees)
    steps_max = _prepare(trees.nodes, trees.roots, count, roots, records)
    return {
        "records": records,
        "roots": roots,
        "sets": trees.sets,
        "set_bounds": trees.set_bounds,
        "values": np.zeros((KIND_COUNT, count)),
        "paths": np.zeros((SIDE_BY_SIDE, steps_max), dtype=np.int64),
        "here": np.zeros(SIDE_BY_SIDE, dtype=np.int64),
        "steps": np.zeros(SIDE_BY_SIDE, dtype=np.int64),
    }


def _records_of(trees: Trees) -> I64:
    """Returns a record for each node, with threshold and changes.

    Pages of their own: a record begins a line of the cache, and a bundle that is dropped leaves no hole in the heap.
    """
    count = len(trees.nodes)
    pages = mmap.mmap(-1, max(1, count) * RECORD_WORDS * 8)
    records = np.frombuffer(pages, dtype=np.int64, count=count * RECORD_WORDS).reshape(count, RECORD_WORDS)
    numbers = records.view(np.float64)
    numbers[:, _THRESHOLD] = trees.thresholds
    numbers[:, _CHANGES : _CHANGES + 2] = trees.changes
    return records


def read_trees(model_text: Path, feature_count: int) -> Trees:
    """Returns the trees of a LightGBM text model. Raises BundleRefused for a model that cannot be explained."""
    try:
        return _parse(read_regular(model_text, None).decode("utf-8").replace("\r\n", "\n"), feature_count)
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
