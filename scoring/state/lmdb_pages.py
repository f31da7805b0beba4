"""Finds many keys in LMDB's pages at once, so that their cache misses overlap (scoring/state/mirror_look_up.py).

    level 1        level 2          leaf
    key A ─ page ─► key A ─ page ─► key A ─ page      LMDB: A down to its leaf, then B, then C, a miss after the other
    key B ─ page ─► key B ─ page ─► key B ─ page      here: one comparison of A, of B, of C, then the next of A …
    key C ─ page ─► key C ─ page ─► key C ─ page

A mirror of a million profiles fits into no cache. `mdb_get` waits for memory four or five times a key, one wait after
the other. Here each comparison prefetches the bytes of the same key's next one, and meanwhile the other keys take their
turns.

1. `root_of` finds the pages by a value that LMDB has given: a page says its own number, so the first page is known. The
   root is in the meta page of the reader's own transaction. While that transaction is open, LMDB reuses none of its
   pages.
2. Only pages of LMDB 0.9 with plain keys are read: `page_bytes_of` looks at the file when it is opened. If a page
   differs from that later on, `root_of` returns a depth of 0, and the caller asks LMDB itself.
3. `find_all` goes down level by level. On a page it halves the range of each key in turns.

The layout is that of lmdb.c, version 0.9: MDB_page, MDB_node, MDB_meta, MDB_db; it is a file format and does not change
within 0.9.
"""

from __future__ import annotations

import struct

from paywarden.features.kernel.layout import I64
from paywarden.features.kernel.toolkit.intrinsics import byte_at, half_at, loose_word_at, prefetch, swapped_word
from paywarden.features.kernel.toolkit.jit import compiled, inlined

# A page begins with its number, flags, and where its free room begins; then the positions of its nodes.
_FLAGS_AT, _LOWER_AT, _HEAD_BYTES = 10, 12, 16
_BRANCH, _LEAF, _LEAF_OF_FIXED = 1, 2, 0x20
# A node begins with the size of its value (or the number of its page), flags, and the size of its key.
_NODE_FLAGS_AT, _KEY_SIZE_AT, _KEY_AT = 4, 6, 8
_BIG_VALUE, _OTHER_FLAGS = 1, 6
# A meta page, from the page's beginning.
_MAGIC_AT, _PAGE_SIZE_AT, _DATABASE_FLAGS_AT, _DEPTH_AT = 16, 40, 92, 94
_ROOT_AT, _LAST_PAGE_AT, _TRANSACTION_AT = 128, 136, 144
_MAGIC, _VERSION = 0xBEEFC0DE, 1
META_BYTES = 152
_PAGE_BYTES_MIN, _PAGE_BYTES_MAX = 256, 0x8000
_DEPTH_MAX = 32
_LOW_HALF = 0xFFFFFFFF
_SIGN = -0x8000000000000000
_LINE_BYTES = 64
# A node's head, and as much of its key as most keys have.
_COMPARED_BYTES = 48
# A value's first lines are prefetched: nearly all profiles have no more.
_PREFETCHED_BYTES = 1024


def page_bytes_of(head: bytes) -> int:
    """Returns the size of the pages of a file that begins with these META_BYTES; 0 if they are not of LMDB 0.9."""
    if len(head) < META_BYTES:
        return 0
    magic, version = struct.unpack_from("<II", head, _MAGIC_AT)
    (page_bytes,) = struct.unpack_from("<I", head, _PAGE_SIZE_AT)
    is_known = (magic, version) == (_MAGIC, _VERSION) and _PAGE_BYTES_MIN <= page_bytes <= _PAGE_BYTES_MAX
    return page_bytes if is_known and page_bytes & (page_bytes - 1) == 0 else 0


@inlined
def root_of(value_at: int, page_bytes: int, transaction: int) -> tuple[int, int, int, int]:
    """Returns the first page's address, the root's number, the last page's number, the depth; 0s: LMDB must be asked.

    `value_at`: the address of a value that LMDB has found in a read transaction of this number, which is open.
    """
    page_at = value_at & -page_bytes
    first_at = page_at - loose_word_at(page_at) * page_bytes
    meta_at = first_at + (transaction & 1) * page_bytes
    version = loose_word_at(meta_at + _MAGIC_AT)
    if version != (_VERSION << 32 | _MAGIC) or loose_word_at(meta_at + _PAGE_SIZE_AT) & _LOW_HALF != page_bytes:
        return 0, 0, 0, 0
    depth, flags = half_at(meta_at + _DEPTH_AT), half_at(meta_at + _DATABASE_FLAGS_AT)
    root, last = loose_word_at(meta_at + _ROOT_AT), loose_word_at(meta_at + _LAST_PAGE_AT)
    # The writer writes this page again two transactions later, with its number last.
    if loose_word_at(meta_at + _TRANSACTION_AT) != transaction or flags != 0 or not 0 < depth <= _DEPTH_MAX:
        return 0, 0, 0, 0
    return first_at, root, last, depth


@inlined
def _compare(left_at: int, left_size: int, right_at: int, right_size: int) -> int:
    """Returns a number below 0, 0, or above 0, as LMDB orders keys: byte by byte, then the shorter one first."""
    common = min(left_size, right_size)
    at = 0
    while at + 8 <= common:
        left, right = loose_word_at(left_at + at), loose_word_at(right_at + at)
        if left != right:
            return -1 if swapped_word(left) ^ _SIGN < swapped_word(right) ^ _SIGN else 1
        at += 8
    if common >= 8:
        # The last eight bytes: those before `at` are equal, so only the rest can differ.
        left, right = loose_word_at(left_at + common - 8), loose_word_at(right_at + common - 8)
        if left != right:
            return -1 if swapped_word(left) ^ _SIGN < swapped_word(right) ^ _SIGN else 1
        return left_size - right_size
    while at < common:
        order: int = byte_at(left_at + at) - byte_at(right_at + at)
        if order != 0:
            return order
        at += 1
    return left_size - right_size


@inlined
def _node_at(page_at: int, index: int) -> int:
    node_at: int = page_at + half_at(page_at + _HEAD_BYTES + 2 * index)
    return node_at


@inlined
def _fetch_node(page_at: int, index: int) -> None:
    """Prefetch what a comparison reads of a node. It begins anywhere in a line, so that often ends in the next one."""
    node_at = _node_at(page_at, index)
    prefetch(node_at)
    prefetch(node_at + _COMPARED_BYTES - 1)


@inlined
def _search(page_at: int, key_at: int, key_size: int, low: int, high: int) -> tuple[int, int]:
    """Halve the range in which a key may be on a page. Returns the new range; (index, -2) says that it is there."""
    middle = (low + high) >> 1
    node_at = _node_at(page_at, middle)
    order = _compare(key_at, key_size, node_at + _KEY_AT, half_at(node_at + _KEY_SIZE_AT))
    if order == 0:
        return middle, -2
    if order < 0:
        high = middle - 1
    else:
        low = middle + 1
    if low <= high:
        _fetch_node(page_at, (low + high) >> 1)
    return low, high


@compiled()
def find_all(
    keys_at: int,
    starts: I64,
    sizes: I64,
    count: int,
    first_at: int,
    root: int,
    last: int,
    depth: int,
    page_bytes: int,
    pages: I64,
    lows: I64,
    highs: I64,
) -> bool:
    """Find `count` keys below a root: `pages` has the address of each value and `lows` its size, or 0 and -1.

    An empty key is not looked for. `highs` is scratch space. Returns False if LMDB must be asked. The number of a page
    behind the last one is damage: LMDB itself then raises an error.
    """
    if not 0 < root <= last:
        return False
    for item in range(count):
        pages[item] = first_at + root * page_bytes
    for level in range(depth):
        kind = _LEAF if level == depth - 1 else _BRANCH
        for item in range(count):
            lows[item], highs[item] = 0, -1
            if sizes[item] == 0:
                continue
            page_at = pages[item]
            if half_at(page_at + _FLAGS_AT) & (_BRANCH | _LEAF | _LEAF_OF_FIXED) != kind:
                return False
            # The first node of a branch stands for all keys before the second one.
            lows[item] = 1 if kind == _BRANCH else 0
            highs[item] = ((half_at(page_at + _LOWER_AT) - _HEAD_BYTES) >> 1) - 1
            if lows[item] <= highs[item]:
                _fetch_node(page_at, (lows[item] + highs[item]) >> 1)
        is_searching = True
        while is_searching:
            is_searching = False
            for item in range(count):
                if lows[item] <= highs[item]:
                    low, high = _search(pages[item], keys_at + starts[item], sizes[item], lows[item], highs[item])
                    lows[item], highs[item] = low, high
                    is_searching |= low <= high
        for item in range(count):
            if sizes[item] == 0:
                continue
            if kind == _BRANCH:
                node_at = _node_at(pages[item], lows[item] if highs[item] == -2 else lows[item] - 1)
                # The number of a page has 48 bits.
                child = loose_word_at(node_at) & 0xFFFFFFFFFFFF
                if child > last:
                    return False
                pages[item] = first_at + child * page_bytes
                prefetch(pages[item])
                prefetch(pages[item] + _LINE_BYTES)
            elif highs[item] == -2:
                node_at = _node_at(pages[item], lows[item])
                flags = half_at(node_at + _NODE_FLAGS_AT)
                if flags & _OTHER_FLAGS:
                    return False
                value_at = node_at + _KEY_AT + half_at(node_at + _KEY_SIZE_AT)
                if flags & _BIG_VALUE:
                    if not 0 < loose_word_at(value_at) <= last:
                        return False
                    value_at = first_at + loose_word_at(value_at) * page_bytes + _HEAD_BYTES
                pages[item], lows[item] = value_at, loose_word_at(node_at) & _LOW_HALF
                for offset in range(0, min(lows[item], _PREFETCHED_BYTES), _LINE_BYTES):
                    prefetch(value_at + offset)
            else:
                pages[item], lows[item] = 0, -1
    return True
