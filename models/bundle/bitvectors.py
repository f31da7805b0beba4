"""Trees as bit vectors: C code that asks the questions of all trees in the order of their thresholds.

Of a tree with at most 64 leaves, a word has a bit for each leaf, from left to right (Lucchese and others, "QuickScorer:
a fast algorithm to rank documents with additive ensembles of regression trees", SIGIR 2015):

1. Going right at a node rules out the leaves on its left: the node's mask has zeros for them. The masks of all nodes
   that a row goes right at, and-ed together, leave the row's own leaf as the lowest bit, whatever the order.
2. So the nodes of all trees are sorted by feature and threshold. A row goes right at the first of them, up to its
   value: one sweep over memory in its order. A processor guesses wrong once a feature, and no more once a node.
3. Rows go through together, as many as the processor's widest words have lanes: a node is read once for all of them,
   and its mask is applied in the lanes whose row goes right. A row that is left alone goes by itself.
4. Each row adds up its leaves in the order of the trees, in double precision, as LightGBM does: the same to the bit.

A missing value goes where each node sends it: its masks are kept by feature, and-ed together by tree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import treelite
from numpy.typing import NDArray

LEAVES_MAX = 64
_ALL = (1 << LEAVES_MAX) - 1
# What Treelite calls kinds of nodes, and the one comparison that LightGBM makes.
_LEAF, _NUMERICAL = 0, 1
_AT_MOST = 3
# A block's words stand on the stack: a megabyte of them, at 64 bytes a tree.
_TREES_MAX = 1 << 14

# Rows that go through together: as many as the widest words of a processor have, and its name for them. The last is
# what every processor has.
LANES = {8: "avx512f", 4: "avx2", 2: ""}

_C = """
#include <stdint.h>
#include <string.h>

#define FEATURES {features}
#define TREES {trees}
#define LEAVES {leaves}

static const double thresholds[] = {{{thresholds}}};
static const uint16_t nodes_tree[] = {{{nodes_tree}}};
static const uint64_t masks[] = {{{masks}}};
static const int32_t bounds[FEATURES + 1] = {{{bounds}}};
static const uint16_t missing_tree[] = {{{missing_tree}}};
static const uint64_t missing_masks[] = {{{missing_masks}}};
static const int32_t missing_bounds[FEATURES + 1] = {{{missing_bounds}}};
static const double leaves[TREES * LEAVES] = {{{leaf_values}}};

/* What follows is made of a processor's own instructions. */
#if defined(__x86_64__)
#define FOR(name) __attribute__((target(name)))
#else
#define FOR(name)
#endif

int32_t paywarden_feature_count(void) {{ return FEATURES; }}

static void score_one(const float* row, double* margin) {{
  uint64_t left[TREES];
  memset(left, 0xFF, sizeof left);
  for (int feature = 0; feature < FEATURES; ++feature) {{
    const double value = row[feature];
    if (value != value) {{
      for (int32_t i = missing_bounds[feature]; i < missing_bounds[feature + 1]; ++i)
        left[missing_tree[i]] &= missing_masks[i];
      continue;
    }}
    for (int32_t node = bounds[feature]; node < bounds[feature + 1] && thresholds[node] < value; ++node)
      left[nodes_tree[node]] &= masks[node];
  }}
  double sum = 0.0;
  for (int tree = 0; tree < TREES; ++tree) sum += leaves[tree * LEAVES + __builtin_ctzll(left[tree])];
  *margin = sum;
}}
{blocks}
/* How many rows this processor takes together. */
int32_t paywarden_lanes(void) {{
#if defined(__x86_64__)
{choices}
#endif
  return 2;
}}

/* By blocks of at most so many lanes; what is left at the end takes the narrowest that it fits in. */
void paywarden_margins_by(int32_t lanes, const float* rows, int64_t row_count, double* margins) {{
  while (row_count > 1) {{
    while (lanes > 2 && row_count <= lanes / 2) lanes /= 2;
    const int count = row_count < lanes ? (int)row_count : lanes;
    switch (lanes) {{
{cases}
    }}
    rows += count * FEATURES;
    margins += count;
    row_count -= count;
  }}
  if (row_count == 1) score_one(rows, margins);
}}

/* rows: row_count x FEATURES floats, NaN is missing. */
void paywarden_margins(const float* rows, int64_t row_count, double* margins) {{
  paywarden_margins_by(paywarden_lanes(), rows, row_count, margins);
}}
"""

_BLOCK = """
typedef double doubles_{lanes} __attribute__((vector_size(8 * {lanes})));
typedef int64_t words_{lanes} __attribute__((vector_size(8 * {lanes})));

/* `count` rows, at most {lanes}; the last one stands in for those that are not there. */
{target}static void score_{lanes}(const float* rows, int count, double* margins) {{
  words_{lanes} left[TREES];
  memset(left, 0xFF, sizeof left);
  for (int feature = 0; feature < FEATURES; ++feature) {{
    doubles_{lanes} values;
    double most = -__builtin_inf();
    int any_missing = 0;
    for (int lane = 0; lane < {lanes}; ++lane) {{
      const double value = rows[(lane < count ? lane : count - 1) * FEATURES + feature];
      values[lane] = value;
      any_missing |= value != value;
      most = value > most ? value : most;
    }}
    for (int32_t node = bounds[feature]; node < bounds[feature + 1] && thresholds[node] < most; ++node) {{
      /* All ones in the lanes that go right. */
      const words_{lanes} right = values > thresholds[node];
      left[nodes_tree[node]] &= ~right | (int64_t)masks[node];
    }}
    if (any_missing)
      for (int lane = 0; lane < {lanes}; ++lane)
        if (values[lane] != values[lane])
          for (int32_t i = missing_bounds[feature]; i < missing_bounds[feature + 1]; ++i)
            left[missing_tree[i]][lane] &= (int64_t)missing_masks[i];
  }}
  double sums[{lanes}] = {{0}};
  for (int tree = 0; tree < TREES; ++tree)
    for (int lane = 0; lane < {lanes}; ++lane)
      sums[lane] += leaves[tree * LEAVES + __builtin_ctzll((uint64_t)left[tree][lane])];
  memcpy(margins, sums, sizeof(double) * count);
}}
"""


@dataclass
class _Nodes:
    """Nodes of one feature: threshold, tree and mask of each; and masks of missing values by tree."""

    nodes: list[tuple[float, int, int]] = field(default_factory=list)
    missing: dict[int, int] = field(default_factory=dict)


def source_of(model: treelite.Model, feature_count: int) -> str | None:
    """C source of a model; None when a tree has over LEAVES_MAX leaves, or asks for anything but a number."""
    features = [_Nodes() for _ in range(feature_count)]
    leaves: list[NDArray[np.float64]] = []
    if not 1 <= model.num_tree <= _TREES_MAX or model.get_header_accessor().get_field("average_tree_output")[0]:
        return None
    for number in range(model.num_tree):
        values = _add_tree(model.get_tree_accessor(number), number, features)
        if values is None:
            return None
        leaves.append(values)
    width = max(len(values) for values in leaves)
    for one in features:
        # By threshold; what follows makes the order the same on every machine.
        one.nodes.sort()
    padded = [[*values.tolist(), *[0.0] * (width - len(values))] for values in leaves]
    nodes = [node for one in features for node in one.nodes]
    missing = [item for one in features for item in sorted(one.missing.items())]
    return _C.format(
        features=feature_count,
        trees=model.num_tree,
        leaves=width,
        thresholds=_joined(_double(threshold) for threshold, _, _ in nodes),
        nodes_tree=_joined(str(tree) for _, tree, _ in nodes),
        masks=_joined(f"{mask:#x}u" for _, _, mask in nodes),
        bounds=_joined(map(str, _bounds([len(one.nodes) for one in features]))),
        missing_tree=_joined(str(tree) for tree, _ in missing),
        missing_masks=_joined(f"{mask:#x}u" for _, mask in missing),
        missing_bounds=_joined(map(str, _bounds([len(one.missing) for one in features]))),
        leaf_values=_joined(value.hex() for row in padded for value in row),
        blocks="".join(_block(lanes, name) for lanes, name in LANES.items()),
        choices="\n".join(
            f'  if (__builtin_cpu_supports("{name}")) return {lanes};' for lanes, name in LANES.items() if name
        ),
        cases="\n".join(
            f"      case {lanes}: score_{lanes}(rows, count, margins); break;" for lanes, name in LANES.items()
        ),
    )


def _block(lanes: int, name: str) -> str:
    """The function for so many rows."""
    return _BLOCK.format(lanes=lanes, target=f'FOR("{name}") ' if name else "")


def _add_tree(tree: Any, number: int, features: Sequence[_Nodes]) -> NDArray[np.float64] | None:
    """Add a tree's nodes to those of their features; its leaves' values from left to right, None if it is too large."""
    kind, left, right = (tree.get_field(name) for name in ("node_type", "cleft", "cright"))
    asks, threshold, comparison = (tree.get_field(name) for name in ("split_index", "threshold", "cmp"))
    default_left, leaf_value = tree.get_field("default_left"), tree.get_field("leaf_value")
    inner = kind != _LEAF
    if not np.all((kind[inner] == _NUMERICAL) & (comparison[inner] == _AT_MOST)):
        return None
    if np.count_nonzero(~inner) > LEAVES_MAX:
        return None
    values: list[float] = []
    # A node, and once its left side has been walked, where the leaves of that side begin. No recursion: trees are deep.
    waiting: list[tuple[int, int]] = [(0, -1)]
    while waiting:
        node, begun = waiting.pop()
        if kind[node] == _LEAF:
            values.append(float(leaf_value[node]))
        elif begun < 0:
            waiting += [(node, len(values)), (int(left[node]), -1)]
        else:
            mask = _ALL ^ ((1 << len(values)) - (1 << begun))
            feature = features[int(asks[node])]
            feature.nodes.append((float(threshold[node]), number, mask))
            if not default_left[node]:
                feature.missing[number] = feature.missing.get(number, _ALL) & mask
            waiting.append((int(right[node]), -1))
    return np.array(values)


def _bounds(sizes: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(sizes).tolist()]


def _double(value: float) -> str:
    return value.hex() if np.isfinite(value) else f"{'-' if value < 0 else ''}__builtin_inf()"


def _joined(values: Iterable[str]) -> str:
    """Elements of an array, which in C has one at least."""
    return ", ".join(values) or "0"
