"""The paths to the leaves of a model, so that a library that finds a row's leaves leaves nothing to walk.

    row ─ paywarden_leaves ─► the leaf of each tree ─► the steps on its path ─► changes, added tree by tree

Most of the time of an explanation was the walk: the processor waits at each node. The library of
models/bundle/bitvectors.py finds the leaves of a lone row in a third of that time. The changes on the way to each leaf
are known beforehand.

1. A step is a byte: twice the node's number in its tree, plus 1 to the right. The paths to all leaves of a tree lie one
   after the other, from left to right, as the library numbers its leaves.
2. The changes are added in the order of a walk, so the sums have its bits.

Example: in the tree of models/bundle/explanations.py the nodes are 0 and 1, and the leaves have the paths 0; 1 2; 1 3.
"""

from __future__ import annotations

import mmap
from typing import Any, NamedTuple

import numpy as np
from numba import carray  # type: ignore[attr-defined]
from numpy.typing import NDArray

from paywarden.features.kernel.layout import I64, U8
from paywarden.features.kernel.plan_schema import positions
from paywarden.features.kernel.toolkit.frame import address, address_number, size
from paywarden.features.kernel.toolkit.intrinsics import call_c
from paywarden.features.kernel.toolkit.jit import compiled
from paywarden.features.kernel.toolkit.machine_words import not_negative

I32 = NDArray[np.int32]

# A step is a byte, and so is the number of a leaf.
NODES_MAX = 127
# The children of an inner node in `nodes`; see explanations.py, which takes no constants from here.
_LEFT, _RIGHT = 2, 3


class PathSlots(NamedTuple):
    """The frame of `add_paths`."""

    vector: int
    """The vector to explain, float32."""
    found: int
    """A byte for each tree. Filled: the number of its leaf."""
    firsts: int
    """The first node of each tree, int64."""
    leaves: int
    """The number of each tree's first leaf, over all trees, int64. Behind them the number of all leaves."""
    bounds: int
    """Where the path to each leaf begins in `steps`, and where the last one ends, int64."""
    steps: int
    """The steps of all paths, uint8."""
    changes: int
    """Two for each node: by how much going left and going right change the value, float64."""
    features: int
    """The feature that each node tests, int32."""
    contributions: int
    """Filled: how much each feature moved the margin, float64."""


PATH_SLOT = positions(PathSlots)


@compiled()
def _leaves_below(nodes: I32, below: I64) -> int:
    """Count the leaves below each node. Returns how many steps all paths have together."""
    total = 0
    # A child has a higher number than its parent.
    for node in range(len(nodes) - 1, -1, -1):
        below[node] = 0
        for side in range(_LEFT, _RIGHT + 1):
            child = nodes[node, side]
            below[node] += below[child] if child >= 0 else 1
        total += below[node]
    return total


@compiled()
def _list_paths(nodes: I32, firsts: I64, leaves: I64, first: int, last: int, bounds: I64, steps: U8) -> bool:
    """Fill in `bounds` and `steps` of the trees from `first` to before `last`, one call after the other.

    `leaves`: the number of each tree's first leaf, and behind them that of all leaves. Returns False if a tree has
    another number of leaves, or more steps than there is room for: two of its nodes share a child.
    """
    for tree in range(first, last):
        root, leaf = firsts[tree], leaves[tree]
        begun, depth, child = bounds[leaf], 0, root
        while True:
            while child >= 0:
                if begun + depth >= len(steps):
                    return False
                steps[begun + depth] = 2 * (child - root)
                depth += 1
                child = nodes[child, _LEFT]
            end = begun + depth
            leaf += 1
            if leaf > leaves[tree + 1]:
                return False
            bounds[leaf] = end
            # The next leaf is right of the last node where this path went left.
            while depth > 0 and steps[begun + depth - 1] & 1:
                depth -= 1
            if depth == 0:
                break
            if end + depth > len(steps):
                return False
            for step in range(depth):
                steps[end + step] = steps[begun + step]
            begun = end
            steps[begun + depth - 1] += 1
            child = nodes[root + (steps[begun + depth - 1] >> 1), _RIGHT]
        if leaf != leaves[tree + 1]:
            return False
    return True


@compiled(makes_arrays=True)
def add_paths(frame_at: int, leaves_at: int) -> None:
    """Find the leaves of the vector by the C function at `leaves_at`, and add up the contributions."""
    trees = size(frame_at, PATH_SLOT.firsts)
    found = carray(address(frame_at, PATH_SLOT.found), trees, np.uint8)
    firsts = carray(address(frame_at, PATH_SLOT.firsts), trees, np.int64)
    leaves = carray(address(frame_at, PATH_SLOT.leaves), trees, np.int64)
    bounds = carray(address(frame_at, PATH_SLOT.bounds), size(frame_at, PATH_SLOT.bounds), np.int64)
    steps = carray(address(frame_at, PATH_SLOT.steps), size(frame_at, PATH_SLOT.steps), np.uint8)
    changes = carray(address(frame_at, PATH_SLOT.changes), size(frame_at, PATH_SLOT.changes), np.float64)
    features = carray(address(frame_at, PATH_SLOT.features), size(frame_at, PATH_SLOT.features), np.int32)
    contributions = carray(
        address(frame_at, PATH_SLOT.contributions), size(frame_at, PATH_SLOT.contributions), np.float64
    )
    call_c(leaves_at, address_number(frame_at, PATH_SLOT.vector), address_number(frame_at, PATH_SLOT.found), 0, 0)
    contributions[:] = 0.0
    for tree in range(trees):
        leaf, first = not_negative(leaves[tree] + np.int64(found[tree])), firsts[tree]
        for step in range(bounds[leaf], bounds[leaf + 1]):
            way = np.int64(steps[not_negative(step)])
            node = not_negative(first + (way >> 1))
            contributions[not_negative(np.int64(features[node]))] += changes[not_negative(2 * first + way)]


def path_arrays(nodes: I32, changes: NDArray[np.float64], roots: I32) -> dict[str, NDArray[Any]] | None:
    """Returns the arrays of the frame for trees as in explanations.Trees, without vector and contributions.

    None if there is no tree, one is too large, or one is no tree.
    """
    firsts = roots.astype(np.int64)
    counts = np.diff(firsts, append=len(nodes))
    if not len(firsts) or counts.max() > NODES_MAX:
        return None
    total = _leaves_below(nodes, np.zeros(len(nodes), dtype=np.int64))
    # A tree has one leaf more than nodes.
    leaves = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts + 1)])
    bounds, steps = _pages(int(leaves[-1]) + 1, np.int64), _pages(total, np.uint8)
    if not _list_paths(nodes, firsts, leaves, 0, len(firsts), bounds, steps):
        return None
    own, tested = _pages(2 * len(nodes), np.float64), _pages(len(nodes), np.int32)
    own[:], tested[:] = changes.ravel(), nodes[:, 0]
    return {
        "found": np.zeros(len(firsts), dtype=np.uint8),
        "firsts": firsts,
        "leaves": leaves,
        "bounds": bounds,
        "steps": steps,
        "changes": own,
        "features": tested,
    }


def _pages(count: int, kind: type[np.generic]) -> NDArray[Any]:
    """Returns an array of zeros in pages of its own: a bundle that is dropped leaves no hole in the heap."""
    item = np.dtype(kind)
    return np.frombuffer(mmap.mmap(-1, max(1, count) * item.itemsize), dtype=item, count=count)
