"""Write the C of a model whose trees bit vectors do not take: more than 64 leaves, or categorical nodes.

All nodes of all trees stand in one table, and each row walks from a tree's root to a leaf:

    node      split            left  right
    0         amount <= 100       1      2
    1         leaf 0.25
    2         hour in {6, 7}      3      4        a set is a count of words, then its bits: 1, 0xC0
    …

1. A value from -1e-35 to 1e-35 counts as 0, as in LightGBM. A missing value goes the node's default way.
2. A category goes left if its bit is set. Treelite may keep the categories that go right: then the children change
   places.
3. Up to BLOCK_ROWS rows walk one tree before the next tree: its nodes stay in the cache meanwhile.
4. Each row adds up its leaves in the order of the trees, in double precision, as LightGBM does: the sum has the same
   bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import treelite

_LEAF, _CATEGORICAL = 0, 2
_WORD_BITS = 32
BLOCK_ROWS = 64

_C = """
#include <stdint.h>

#define FEATURE_COUNT {features}
#define TREE_COUNT {trees}
#define BLOCK_ROWS {block_rows}
#define ZERO 1e-35f

struct node {{ double value; int32_t feature, left, right, set, is_missing_left; }};
static const int32_t roots[] = {{ {roots} }};
static const uint32_t sets[] = {{ {sets} }};
static const struct node nodes[] = {{
{nodes}
}};

int32_t paywarden_feature_count(void) {{ return FEATURE_COUNT; }}

static double leaf(const float* row, int32_t at) {{
  while (nodes[at].feature >= 0) {{
    const struct node* node = nodes + at;
    const float found = row[node->feature], value = found >= -ZERO && found <= ZERO ? 0.0f : found;
    int is_left;
    if (value != value) {{
      is_left = node->is_missing_left;
    }} else if (node->set < 0) {{
      is_left = value <= node->value;
    }} else {{
      const uint32_t* set = sets + node->set;
      const int32_t category = value > -1.0f && value < 32.0f * set[0] ? (int32_t)value : -1;
      is_left = category >= 0 && (set[1 + category / 32] >> (category & 31) & 1);
    }}
    at = is_left ? node->left : node->right;
  }}
  return nodes[at].value;
}}

/* rows: row_count x FEATURE_COUNT floats, NaN is missing. */
void paywarden_margins(const float* rows, int64_t row_count, double* margins) {{
  for (int64_t first = 0; first < row_count; first += BLOCK_ROWS) {{
    const int64_t end = row_count - first < BLOCK_ROWS ? row_count : first + BLOCK_ROWS;
    for (int64_t row = first; row < end; ++row) margins[row] = 0.0;
    for (int tree = 0; tree < TREE_COUNT; ++tree)
      for (int64_t row = first; row < end; ++row) margins[row] += leaf(rows + row * FEATURE_COUNT, roots[tree]);
  }}
}}
"""


def source_of(model: treelite.Model, feature_count: int) -> str:
    """Returns the C source of a model."""
    roots, nodes, sets = [], list[str](), list[int]()
    for number in range(model.num_tree):
        roots.append(len(nodes))
        _add_tree(model.get_tree_accessor(number), nodes, sets)
    return _C.format(
        features=feature_count,
        trees=model.num_tree,
        block_rows=BLOCK_ROWS,
        roots=", ".join(map(str, roots)) or "0",
        sets=", ".join(f"{word:#x}u" for word in sets) or "0",
        nodes=",\n".join(nodes) or "{ 0.0, -1, 0, 0, -1, 0 }",
    )


def _add_tree(tree: Any, nodes: list[str], sets: list[int]) -> None:
    """Append a tree's nodes, in the order of Treelite's."""
    first = len(nodes)
    names = ("node_type", "cleft", "cright", "split_index", "threshold", "default_left", "leaf_value")
    kinds, lefts, rights, features, thresholds, defaults, leaves = (tree.get_field(name).tolist() for name in names)
    begins, ends = (tree.get_field(f"category_list_{name}").tolist() for name in ("begin", "end"))
    categories, are_right = tree.get_field("category_list"), tree.get_field("category_list_right_child").tolist()
    for number, kind in enumerate(kinds):
        if kind == _LEAF:
            nodes.append(f"{{ {_double(leaves[number])}, -1, 0, 0, -1, 0 }}")
            continue
        left, right, is_left, at, value = lefts[number], rights[number], bool(defaults[number]), -1, thresholds[number]
        if kind == _CATEGORICAL:
            if are_right[number]:
                left, right, is_left = right, left, not is_left
            at, value = len(sets), 0.0
            sets += _set_of(categories[begins[number] : ends[number]].tolist())
        nodes.append(
            f"{{ {_double(value)}, {features[number]}, {first + left}, {first + right}, {at}, {int(is_left)} }}"
        )


def _set_of(categories: Sequence[int]) -> list[int]:
    """Returns a set as its number of words, and the words."""
    words = [0] * (max(categories, default=-1) // _WORD_BITS + 1)
    for category in categories:
        words[category // _WORD_BITS] |= 1 << category % _WORD_BITS
    return [len(words), *words]


def _double(value: float) -> str:
    """Returns a number as C has it."""
    return value.hex() if math.isfinite(value) else f"{'-' if value < 0 else ''}__builtin_inf()"
