"""Compile small trees to tables in C: bit vectors for rows together, and nodes that are walked for a row alone.

Bit vectors test the nodes of all trees sorted by feature and threshold.

How it works (C. Lucchese and others, "QuickScorer: a fast algorithm to rank documents with additive ensembles of
regression trees", SIGIR 2015):

1. A tree with at most 64 leaves gets a 64-bit word with a bit for each leaf, from left to right. All bits start at 1.
2. A row that goes right at a node cannot reach the leaves left of it. The node's mask has zeros for those leaves. After
   AND with the masks of all nodes where the row goes right, the lowest 1 is the row's leaf. The order does not matter.
3. The nodes of all trees are therefore sorted by feature and threshold. For each feature, a row goes right at the first
   nodes, up to its value. The code reads memory in order, and the processor mispredicts about one branch per feature
   instead of one per node.
4. Rows are scored together: as many as the processor's widest words have lanes for masks, 8, 4 or 2, or with AVX-512 as
   many as they have lanes for values, 16. A node is read once for all of them, and its mask applies in the lanes whose
   row goes right. A single row has functions of its own.
5. Each row adds up its leaves in the order of the trees, in double precision, as LightGBM does. The sum has the same
   bits.
6. For missing values, each feature has one mask per tree: the AND of the masks of the nodes that send them right.
7. LightGBM takes a value of at most 1e-35, either side of 0, for 0. The code compares values as they are: a threshold
   among those small numbers is moved to their end instead, so that all of them go where 0 goes.
8. Rows are float32, so a threshold is rounded down to a float32: no value of a row lies between the two.

A row alone, and up to WALKED_ROWS of them, on a processor with AVX-512 VBMI: tables of half a megabyte that are read
from end to end cost such a row most of its time. For a lone row the library therefore walks the trees instead, 16 in
the lanes of a word and GROUPS words side by side, and reads only the nodes on its paths:

1. A row's value becomes its rank among the thresholds of its feature, a byte. All ranks of a row fit into two or four
   words, and one instruction looks up 64 of them. A feature of more than THRESHOLDS_MAX thresholds has several ranks,
   each among a run of them.
2. A node is four bytes: the number of the rank, the rank above which a row goes right, and the place of the left
   child; the right child is behind it. A missing value has rank MISSING for nodes that send it right, else 0.
3. At a leaf nothing goes right, and the left child is the leaf itself. When no lane moves, all trees are done.

Models that need more than RANKS_MAX ranks have no such tables.

Example: a tree with the nodes A (amount <= 100, at the root), B (hour <= 6, left of A) and C (hour <= 20, right of A)
has the leaves 0, 1, 2 and 3. Bits are written with leaf 3 first.

    A's mask 1100    B's mask 1110    C's mask 1011
    amount = 500, hour = 10 goes right at A and B:   1111 & 1100 & 1110 = 1100, lowest bit 2: leaf 2

B is not on the row's path, but its mask only removes leaf 0, which A's has removed already.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paywarden.models.bundle.explanations import ZERO

if TYPE_CHECKING:
    import treelite

LEAVES_MAX = 64
_ALL = (1 << LEAVES_MAX) - 1
# Treelite's numbers for kinds of nodes, and for the only comparison that LightGBM makes: at most.
_LEAF, _NUMERICAL = 0, 1
_AT_MOST = 3
# A block's words are on the stack: at most two megabytes, at 128 bytes per tree.
_TREES_MAX = 1 << 14

# Rows scored together, and the instruction set that makes them fast. Every processor can take two rows.
LANES = {16: "avx512f", 8: "avx512f", 4: "avx2", 2: ""}
# Rows whose masks take two words. They have a function of their own.
_WIDE_LANES = 16

# Words of 16 trees that are walked side by side: while one waits for its nodes, the others go on. With more, the
# registers do not suffice.
GROUPS = 5
# More rows than these are faster by bit vectors. At five rows, which fill no block, walking takes a quarter less.
WALKED_ROWS = 7
# Each rank stands in two places: one for nodes that send a missing value right, and one for the others.
RANKS_MAX = 128
MISSING = 255
THRESHOLDS_MAX = MISSING - 1

_C = """
#include <stdint.h>
#include <string.h>

#define FEATURES {features}
#define TREES {trees}
#define LEAVES {leaves}

static const float thresholds[] = {{{thresholds}}};
static const uint16_t nodes_tree[] = {{{nodes_tree}}};
static const uint64_t masks[] = {{{masks}}};
static const int32_t bounds[FEATURES + 1] = {{{bounds}}};
static const uint16_t missing_tree[] = {{{missing_tree}}};
static const uint64_t missing_masks[] = {{{missing_masks}}};
static const int32_t missing_bounds[FEATURES + 1] = {{{missing_bounds}}};
static const double leaves[TREES * LEAVES] = {{{leaf_values}}};

/* Compiles a function for one instruction set. */
#if defined(__x86_64__)
#define FOR(name) __attribute__((target(name)))
#else
#define FOR(name)
#endif

int32_t paywarden_feature_count(void) {{ return FEATURES; }}

/* Adds up the leaves that a row reaches, by their numbers. */
static double sum_of(const uint8_t* found) {{
  double sum = 0.0;
  for (int tree = 0; tree < TREES; ++tree) sum += leaves[tree * LEAVES + found[tree]];
  return sum;
}}

/* Finds the leaf of each tree that a row reaches. */
static void scan_one(const float* row, uint8_t* found) {{
  uint64_t left[TREES];
  memset(left, 0xFF, sizeof left);
  for (int feature = 0; feature < FEATURES; ++feature) {{
    const float value = row[feature];
    if (value != value) {{
      for (int32_t i = missing_bounds[feature]; i < missing_bounds[feature + 1]; ++i)
        left[missing_tree[i]] &= missing_masks[i];
      continue;
    }}
    for (int32_t node = bounds[feature]; node < bounds[feature + 1] && thresholds[node] < value; ++node)
      left[nodes_tree[node]] &= masks[node];
  }}
  for (int tree = 0; tree < TREES; ++tree) found[tree] = (uint8_t)__builtin_ctzll(left[tree]);
}}
{walk}{blocks}
/* The number of rows that this processor scores together. */
int32_t paywarden_lanes(void) {{
#if defined(__x86_64__)
{choices}
#endif
  return 2;
}}

/* Scores in blocks of at most `lanes` rows. The last rows take the narrowest block that they fit in. With 1 lane each
   row is scored alone, with 0 lanes alone and without walking. */
void paywarden_margins_by(int32_t lanes, const float* rows, int64_t row_count, double* margins) {{
  const int walks = lanes > 0 && can_walk();
  while (row_count > 0) {{
    int count = 1;
    if (walks && (lanes < 2 || row_count <= {walked_rows})) {{
      uint8_t found[TREES];
      walk_one(rows, found);
      *margins = sum_of(found);
    }} else if (lanes < 2 || row_count == 1) {{
      uint8_t found[TREES];
      scan_one(rows, found);
      *margins = sum_of(found);
    }} else {{
      while (lanes > 2 && row_count <= lanes / 2) lanes /= 2;
      count = row_count < lanes ? (int)row_count : lanes;
      switch (lanes) {{
{cases}
      }}
    }}
    rows += count * FEATURES;
    margins += count;
    row_count -= count;
  }}
}}

/* The number of trees, for which paywarden_leaves needs room. */
int32_t paywarden_tree_count(void) {{ return TREES; }}

/* Finds the leaf of each tree that a row reaches. Leaves are numbered from left to right. */
void paywarden_leaves(const float* row, uint8_t* found) {{
  if (can_walk())
    walk_one(row, found);
  else
    scan_one(row, found);
}}

/* rows: row_count x FEATURES floats, NaN is missing. */
void paywarden_margins(const float* rows, int64_t row_count, double* margins) {{
  paywarden_margins_by(paywarden_lanes(), rows, row_count, margins);
}}
"""

_WALK = """
#if defined(__x86_64__)
#include <immintrin.h>

#define STRIDE {stride}
#define GROUPS {groups}
#define MISSING {missing}
#define RANKS {ranks}

/* The trees in `order`, so that those of a group are about as deep. */
static const uint16_t order[] = {{{order}}};
static const uint32_t walked[] __attribute__((aligned(64))) = {{{walked}}};
/* Each rank's feature, and its thresholds, filled up with infinity to whole words. */
static const uint16_t ranked_feature[RANKS] = {{{ranked_feature}}};
static const float ranked[] __attribute__((aligned(64))) = {{{ranked}}};
static const int32_t ranked_bounds[RANKS + 1] = {{{ranked_bounds}}};

static int can_walk(void) {{
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vbmi");
}}

#define WALKS target("avx512f,avx512bw,avx512vbmi,popcnt")

/* Walks the trees of some groups, a number that the compiler knows: then their words stay in registers. */
__attribute__((WALKS, always_inline))
static inline void walk_groups(const int groups, const int first, const uint8_t* ranks, uint8_t* found) {{
  const __m512i ranks_0 = _mm512_load_si512(ranks), ranks_1 = _mm512_load_si512(ranks + 64);
#if {tables} > 1
  const __m512i ranks_2 = _mm512_load_si512(ranks + 128), ranks_3 = _mm512_load_si512(ranks + 192);
#endif
  const __m512i byte = _mm512_set1_epi32(0xFF), one = _mm512_set1_epi32(1);
  const __m512i lanes = _mm512_mullo_epi32(
      _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(STRIDE));
  const uint32_t* trees = walked + first * STRIDE;
  __m512i at[GROUPS], nodes[GROUPS];
#pragma GCC unroll {groups}
  for (int group = 0; group < groups; ++group) at[group] = _mm512_setzero_si512();
  unsigned moved;
  do {{
    moved = 0;
#pragma GCC unroll {groups}
    for (int group = 0; group < groups; ++group) {{
      const uint32_t* of_group = trees + 16 * group * STRIDE;
      const __m512i node = _mm512_i32gather_epi32(_mm512_add_epi32(lanes, at[group]), of_group, 4);
      __m512i rank = _mm512_permutex2var_epi8(ranks_0, node, ranks_1);
#if {tables} > 1
      const __m512i others = _mm512_permutex2var_epi8(ranks_2, node, ranks_3);
      rank = _mm512_mask_blend_epi8(_mm512_movepi8_mask(node), rank, others);
#endif
      const __m512i bound = _mm512_and_si512(_mm512_srli_epi32(node, 8), byte);
      const __mmask16 right = _mm512_cmpgt_epu32_mask(_mm512_and_si512(rank, byte), bound);
      const __m512i left_child = _mm512_srli_epi32(node, 16);
      const __m512i next = _mm512_mask_add_epi32(left_child, right, left_child, one);
      moved |= _mm512_cmpneq_epu32_mask(next, at[group]);
      at[group] = next;
      nodes[group] = node;
    }}
  }} while (moved);
#pragma GCC unroll {groups}
  for (int group = 0; group < groups; ++group) {{
    uint32_t reached[16];
    _mm512_storeu_si512(reached, nodes[group]);
    /* The tables of the last group are filled up with leaves. */
    for (int lane = 0, place = first + 16 * group; lane < 16 && place < TREES; ++lane, ++place)
      found[order[place]] = (uint8_t)reached[lane];
  }}
}}

__attribute__((WALKS))
static void walk_one(const float* row, uint8_t* found) {{
  uint8_t ranks[{tables} * 128] __attribute__((aligned(64)));
  for (int place = 0; place < RANKS; ++place) {{
    const float value = row[ranked_feature[place]];
    int rank = 0;
    if (value != value) {{
      ranks[place] = MISSING;
      ranks[RANKS + place] = 0;
      continue;
    }}
    const __m512 wide = _mm512_set1_ps(value);
    for (int32_t i = ranked_bounds[place]; i < ranked_bounds[place + 1]; i += 16) {{
      const __mmask16 below = _mm512_cmp_ps_mask(_mm512_load_ps(ranked + i), wide, _CMP_LT_OQ);
      rank += __builtin_popcount(below);
      if (below != 0xFFFF) break;
    }}
    ranks[place] = ranks[RANKS + place] = (uint8_t)rank;
  }}
  int first = 0;
  for (; first + 16 * GROUPS <= TREES; first += 16 * GROUPS) walk_groups(GROUPS, first, ranks, found);
  if (first < TREES) walk_groups({last_groups}, first, ranks, found);
}}
#else
static int can_walk(void) {{ return 0; }}
static void walk_one(const float* row, uint8_t* found) {{ (void)row; (void)found; }}
#endif
"""

_NO_WALK = """
static int can_walk(void) { return 0; }
static void walk_one(const float* row, uint8_t* found) { (void)row; (void)found; }
"""

_BLOCK = """
typedef double doubles_{lanes} __attribute__((vector_size(8 * {lanes})));
typedef int64_t words_{lanes} __attribute__((vector_size(8 * {lanes})));

/* Scores `count` rows, at most {lanes}. Unused lanes repeat the last row. */
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
      const words_{lanes} right = values > (double)thresholds[node];
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

_WIDE = """
#if defined(__x86_64__)
#include <immintrin.h>

#define WIDE target("avx512f,popcnt")

/* Removes the leaves that `mask` does not have from a tree's words, in the lanes whose row goes right. */
__attribute__((WIDE, always_inline))
static inline void keep(__m512i* words, __mmask16 right, uint64_t mask) {{
  const __m512i kept = _mm512_set1_epi64((long long)mask);
  words[0] = _mm512_mask_and_epi64(words[0], (__mmask8)right, words[0], kept);
  words[1] = _mm512_mask_and_epi64(words[1], (__mmask8)(right >> 8), words[1], kept);
}}

/* Returns the end of the nodes whose threshold is below `most`: they are sorted by it. */
__attribute__((WIDE, always_inline))
static inline int32_t end_below(int32_t node, int32_t end, float most) {{
  for (; node < end; node += 16) {{
    const __mmask16 there = end - node < 16 ? (__mmask16)((1u << (end - node)) - 1) : 0xFFFF;
    const __m512 those = _mm512_maskz_loadu_ps(there, thresholds + node);
    const __mmask16 below = _mm512_mask_cmp_ps_mask(there, those, _mm512_set1_ps(most), _CMP_LT_OQ);
    if (below != 0xFFFF) return node + __builtin_popcount(below);
  }}
  return end;
}}

/* Scores `count` rows, at most 16. Unused lanes repeat the last row. */
__attribute__((WIDE))
static void score_{lanes}(const float* rows, int count, double* margins) {{
  __m512i left[TREES][2];
  float column[16] __attribute__((aligned(64)));
  memset(left, 0xFF, sizeof left);
  for (int feature = 0; feature < FEATURES; ++feature) {{
    for (int lane = 0; lane < 16; ++lane)
      column[lane] = rows[(lane < count ? lane : count - 1) * FEATURES + feature];
    const __m512 values = _mm512_load_ps(column);
    const __mmask16 missing = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
    /* Without any value it is the least float. No value goes right at a node that this leaves out. */
    const float most = _mm512_mask_reduce_max_ps((__mmask16)~missing, values);
    const int32_t end = end_below(bounds[feature], bounds[feature + 1], most);
#pragma GCC unroll 4
    for (int32_t node = bounds[feature]; node < end; ++node) {{
      const __mmask16 right = _mm512_cmp_ps_mask(values, _mm512_set1_ps(thresholds[node]), _CMP_GT_OQ);
      keep(left[nodes_tree[node]], right, masks[node]);
    }}
    if (missing)
      for (int32_t i = missing_bounds[feature]; i < missing_bounds[feature + 1]; ++i)
        keep(left[missing_tree[i]], missing, missing_masks[i]);
  }}
  double sums[16] = {{0}};
  for (int tree = 0; tree < TREES; ++tree) {{
    uint64_t words[16];
    memcpy(words, left[tree], sizeof words);
#pragma GCC unroll 16
    for (int lane = 0; lane < 16; ++lane) sums[lane] += leaves[tree * LEAVES + __builtin_ctzll(words[lane])];
  }}
  memcpy(margins, sums, sizeof(double) * count);
}}
#endif
"""


@dataclass
class _Nodes:
    """The nodes of one feature as (threshold, tree, mask), and its masks for missing values by tree."""

    nodes: list[tuple[float, int, int]] = field(default_factory=list)
    missing: dict[int, int] = field(default_factory=dict)


def source_of(model: treelite.Model, feature_count: int) -> str | None:
    """Returns the C source of a model; None if a tree has over LEAVES_MAX leaves or a categorical node."""
    features = [_Nodes() for _ in range(feature_count)]
    leaves: list[NDArray[np.float64]] = []
    if not 1 <= model.num_tree <= _TREES_MAX or model.get_header_accessor().get_field("average_tree_output")[0]:
        return None
    trees = [model.get_tree_accessor(number) for number in range(model.num_tree)]
    for number, tree in enumerate(trees):
        values = _add_tree(tree, number, features)
        if values is None:
            return None
        leaves.append(values)
    width = max(len(values) for values in leaves)
    for feature in features:
        # By threshold, then by tree and mask, so that the order is the same on every machine.
        feature.nodes.sort()
    padded = [[*values.tolist(), *[0.0] * (width - len(values))] for values in leaves]
    nodes = [node for feature in features for node in feature.nodes]
    missing = [item for feature in features for item in sorted(feature.missing.items())]
    return _C.format(
        features=feature_count,
        trees=model.num_tree,
        leaves=width,
        thresholds=_joined(_float(_float_below(threshold)) for threshold, _, _ in nodes),
        nodes_tree=_joined(str(tree) for _, tree, _ in nodes),
        masks=_joined(f"{mask:#x}u" for _, _, mask in nodes),
        bounds=_joined(map(str, _bounds([len(feature.nodes) for feature in features]))),
        missing_tree=_joined(str(tree) for tree, _ in missing),
        missing_masks=_joined(f"{mask:#x}u" for _, mask in missing),
        missing_bounds=_joined(map(str, _bounds([len(feature.missing) for feature in features]))),
        leaf_values=_joined(value.hex() for row in padded for value in row),
        walk=_walk_code([_steps(tree) for tree in trees]),
        walked_rows=WALKED_ROWS,
        blocks="".join(_block(lanes, name) for lanes, name in LANES.items()),
        choices="\n".join(
            f'  if (__builtin_cpu_supports("{name}")) return {lanes};'
            for lanes, name in LANES.items()
            if name and (lanes == _WIDE_LANES or name != LANES[_WIDE_LANES])
        ),
        cases="\n".join(_case(lanes) for lanes in LANES),
    )


class _Step(NamedTuple):
    """A node that is walked. At a leaf `feature` is the leaf's number, from left to right, and `left` its own place."""

    feature: int
    threshold: float
    is_missing_left: bool
    left: int
    is_leaf: bool


def _steps(tree: Any) -> tuple[list[_Step], int]:
    """Returns a tree's nodes level by level, and how many levels there are. All inner nodes are numerical."""
    kind, left, right = (tree.get_field(name) for name in ("node_type", "cleft", "cright"))
    split_feature, threshold, default_left = (
        tree.get_field(name) for name in ("split_index", "threshold", "default_left")
    )
    numbers = _leaf_numbers(kind, left, right)
    steps: list[_Step] = []
    level, count, depth = [0], 1, 0
    while level:
        following: list[int] = []
        for node in level:
            if kind[node] == _LEAF:
                steps.append(_Step(numbers[node], 0.0, is_missing_left=False, left=len(steps), is_leaf=True))
                continue
            limit = _float_below(_beside_zeros(float(threshold[node])))
            place = count + len(following)
            steps.append(_Step(int(split_feature[node]), limit, bool(default_left[node]), place, is_leaf=False))
            following += [int(left[node]), int(right[node])]
        count, level, depth = count + len(following), following, depth + 1
    return steps, depth


def _leaf_numbers(kind: Any, left: Any, right: Any) -> dict[int, int]:
    """Returns the number of each leaf by its node, from left to right."""
    numbers: dict[int, int] = {}
    stack = [0]
    while stack:
        node = stack.pop()
        if kind[node] == _LEAF:
            numbers[node] = len(numbers)
        else:
            stack += [int(right[node]), int(left[node])]
    return numbers


def _float_below(threshold: float) -> float:
    """Returns the largest float32 of at most `threshold`. A float32 is above one if it is above the other."""
    with np.errstate(over="ignore"):
        limit = np.float32(threshold)
    return float(limit if float(limit) <= threshold else np.nextafter(limit, np.float32(-np.inf)))


def _walk_code(trees: Sequence[tuple[list[_Step], int]]) -> str:
    """Returns the C function that walks a row alone through the trees, or one that says that it cannot."""
    distinct = sorted({(step.feature, step.threshold) for steps, _ in trees for step in steps if not step.is_leaf})
    runs: list[tuple[int, list[float]]] = []
    places: dict[tuple[int, float], tuple[int, int]] = {}
    for feature, threshold in distinct:
        if not runs or runs[-1][0] != feature or len(runs[-1][1]) == THRESHOLDS_MAX:
            runs.append((feature, []))
        places[feature, threshold] = len(runs) - 1, len(runs[-1][1])
        runs[-1][1].append(threshold)
    if not 1 <= len(runs) <= RANKS_MAX:
        return _NO_WALK
    order = sorted(range(len(trees)), key=lambda number: (trees[number][1], number))
    stride = max(len(steps) for steps, _ in trees)
    walked = np.full((-(-len(trees) // 16) * 16, stride), MISSING << 8, dtype=np.uint32)
    for row, number in zip(walked, order, strict=False):
        for at, step in enumerate(trees[number][0]):
            rank, bound = (step.feature, MISSING) if step.is_leaf else places[step.feature, step.threshold]
            if step.is_missing_left:
                rank += len(runs)
            row[at] = rank | bound << 8 | step.left << 16
    padded = [[*values, *[float("inf")] * (-len(values) % 16)] for _, values in runs]
    return _WALK.format(
        stride=stride,
        groups=GROUPS,
        last_groups=-(-(len(trees) % (16 * GROUPS)) // 16) or GROUPS,
        missing=MISSING,
        ranks=len(runs),
        tables=1 if 2 * len(runs) <= 128 else 2,
        order=_joined(map(str, order)),
        walked=_joined(map(str, walked.ravel().tolist())),
        ranked_feature=_joined(str(feature) for feature, _ in runs),
        ranked=_joined(_float(value) for row in padded for value in row),
        ranked_bounds=_joined(map(str, _bounds([len(row) for row in padded]))),
    )


def _block(lanes: int, name: str) -> str:
    """Returns the C function that scores `lanes` rows together."""
    if lanes == _WIDE_LANES:
        return _WIDE.format(lanes=lanes)
    return _BLOCK.format(lanes=lanes, target=f'FOR("{name}") ' if name else "")


def _case(lanes: int) -> str:
    case = f"        case {lanes}: score_{lanes}(rows, count, margins); break;"
    return f"#if defined(__x86_64__)\n{case}\n#endif" if lanes == _WIDE_LANES else case


def _add_tree(tree: Any, number: int, features: Sequence[_Nodes]) -> NDArray[np.float64] | None:
    """Add a tree's nodes to their features and return its leaf values from left to right.

    Returns None if the tree has too many leaves or a categorical node.
    """
    kind, left, right = (tree.get_field(name) for name in ("node_type", "cleft", "cright"))
    split_feature, threshold, comparison = (tree.get_field(name) for name in ("split_index", "threshold", "cmp"))
    default_left, leaf_value = tree.get_field("default_left"), tree.get_field("leaf_value")
    inner = kind != _LEAF
    if not np.all((kind[inner] == _NUMERICAL) & (comparison[inner] == _AT_MOST)):
        return None
    if np.count_nonzero(~inner) > LEAVES_MAX:
        return None
    values: list[float] = []
    # A stack instead of recursion, because trees are deep. Each entry is a node and the index of its first leaf; the
    # index is -1 until the walk has passed the node's left side.
    stack: list[tuple[int, int]] = [(0, -1)]
    while stack:
        node, first_leaf = stack.pop()
        if kind[node] == _LEAF:
            values.append(float(leaf_value[node]))
        elif first_leaf < 0:
            stack += [(node, len(values)), (int(left[node]), -1)]
        else:
            mask = _ALL ^ ((1 << len(values)) - (1 << first_leaf))
            feature = features[int(split_feature[node])]
            feature.nodes.append((_beside_zeros(float(threshold[node])), number, mask))
            if not default_left[node]:
                feature.missing[number] = feature.missing.get(number, _ALL) & mask
            stack.append((int(right[node]), -1))
    return np.array(values)


def _beside_zeros(threshold: float) -> float:
    """Returns a threshold that sends all values from -ZERO to ZERO where this one sends 0, and others where it does."""
    if not -ZERO <= threshold <= ZERO:
        return threshold
    return ZERO if threshold >= 0.0 else float(np.nextafter(-ZERO, -np.inf))


def _bounds(sizes: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(sizes).tolist()]


def _float(value: float) -> str:
    """Returns a float32 as C has it."""
    return f"{value.hex()}f" if np.isfinite(value) else f"{'-' if value < 0 else ''}__builtin_inff()"


def _joined(values: Iterable[str]) -> str:
    """Returns the elements of a C array. C has no empty arrays: without a value it holds a 0."""
    return ", ".join(values) or "0"
