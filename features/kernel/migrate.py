"""Turns a profile written under another catalogue into one of this catalogue: `decode`, then `migrate`.

For example, the old catalogue kept the count and the largest amount in tiles of one hour. The new one keeps the count
and the sum:

    old tile 14:00   count 2   max 2501       new tile 14:00   count 2   sum 0

The count goes over, the largest amount is dropped, and the sum starts at 0. A tile that is too old for the new table is
dropped. A memory goes over to a memory of the same attribute, or of the same fields. Sources and offsets always go
over, so the new profile refuses the same repeated events.
"""

from __future__ import annotations

from typing import NamedTuple

from paywarden.features.kernel.codec import add_up_times, clear
from paywarden.features.kernel.latest_payments import insert
from paywarden.features.kernel.layout import (
    DAMAGED,
    DISTINCT_VALUES,
    FIXED_COLUMNS,
    I64,
    NEWEST_MS,
    OK,
    SOURCES_MAX,
    U8,
)
from paywarden.features.kernel.plan_schema import (
    ENTITY,
    MEMORY,
    TABLE,
    entity_at,
    memory_at,
    memory_length_at,
    positions,
    table_at,
    table_length_at,
)
from paywarden.features.kernel.toolkit.columns import read_columns
from paywarden.features.kernel.toolkit.jit import compiled
from paywarden.features.kernel.toolkit.varint import unzigzag
from paywarden.features.kernel.update import advance_source, remember


class TableChange(NamedTuple):
    """The new table of an old one. Its moves follow."""

    width: int
    """The number of columns of the old table."""
    target: int
    """The number of the table it becomes; -1 if it is dropped."""
    move_count: int


class Move(NamedTuple):
    """A word of a row that both tables have: its place in the old row and in the new one."""

    old_place: int
    new_place: int
    is_label: int
    """1 for a word that labels change: it is stored zigzag."""


CHANGE, MOVE = positions(TableChange), positions(Move)
# The numbers of the old shape's tables and memories.
_CHANGES_AT = 2
_CHANGE_SIZE, _MOVE_SIZE = len(CHANGE), len(MOVE)


@compiled(releases_gil=True)
def decode(data: U8, start: int, end: int, widths: I64, numbers: I64) -> int:
    """Read the stored numbers of a profile of any shape. Returns how many, or -DAMAGED.

    `start` is where the widths of its columns stand; `widths` holds the number of columns of each of its tables, then
    of each of its memories. `numbers` gets the three times, the lengths, and the columns one after the other. Data that
    needs more room than `numbers` has is damaged.
    """
    sections = len(widths)
    columns = FIXED_COLUMNS
    for width in widths:
        columns += width
    position = start + ((columns + 1) >> 1)
    at = 4 + sections
    if position > end or at > len(numbers) or (columns & 1 and data[position - 1] >> 4 != 0):
        return -DAMAGED
    position = read_columns(data, start, 0, 3, position, end, 1, numbers, 0, 1)
    if position < 0:
        return -DAMAGED
    position = read_columns(data, start, 3, 1, position, end, 1 + sections, numbers, 3, 0)
    column = 4
    # Sources come first among the lengths, and last among the columns.
    for length in range(1, 2 + sections):
        rows = numbers[3 + (length if length <= sections else 0)]
        width = int(widths[length - 1]) if length <= sections else 2
        # Checked before the multiplication: a damaged number could make it overflow.
        if position < 0 or not 0 <= rows <= len(numbers) or at + rows * width > len(numbers):
            return -DAMAGED
        position = read_columns(data, start, column, width, position, end, rows, numbers, at, rows)
        at += rows * width
        column += width
    return at if position == end else -DAMAGED


@compiled(releases_gil=True)
def migrate(plan: I64, entity: int, translation: I64, numbers: I64, words: I64) -> int:
    """Fill `words` from the decoded numbers of a profile of another shape. Returns OK or DAMAGED.

    `translation` (features/profiles/shape.py) begins with the old shape's numbers of tables and memories. For each old
    table a TableChange and its Moves follow. Then each old memory has the number of its new memory (-1: dropped), and
    how many columns of values it has.
    """
    section = entity_at(plan, entity)
    clear(plan, entity, words)
    tables, memories = translation[0], translation[1]
    for field in range(3):
        words[field] = numbers[field]
    if not add_up_times(words):
        return DAMAGED
    at = 4 + tables + memories
    step = _CHANGES_AT
    for table in range(tables):
        width, target = translation[step + CHANGE.width], translation[step + CHANGE.target]
        moves = translation[step + CHANGE.move_count]
        rows = numbers[4 + table]
        step += _CHANGE_SIZE
        if target >= 0:
            where = table_at(plan, section, target)
            if not _migrate_table(
                plan, where, table_length_at(target), translation[step:], moves, numbers, at, rows, words
            ):
                return DAMAGED
        step += _MOVE_SIZE * moves
        at += rows * width
    for memory in range(memories):
        target, width = translation[step + 2 * memory], translation[step + 2 * memory + 1]
        items = numbers[4 + tables + memory]
        times_at = at + width * items
        seen = words[NEWEST_MS]
        for item in range(items):
            before = numbers[times_at + item]
            if not 0 <= before < seen:
                return DAMAGED
            seen -= before
            if target >= 0:
                where = memory_at(plan, section, target)
                length = memory_length_at(plan[section + ENTITY.table_count], target)
                if plan[where + MEMORY.kind] != DISTINCT_VALUES:
                    insert(plan, where, words, length, numbers, at + item, items, seen)
                else:
                    remember(plan, where, words, length, numbers[at + item], seen)
        at = times_at + items
    sources = numbers[3]
    if sources > SOURCES_MAX:
        return DAMAGED
    for source in range(at, at + sources):
        advance_source(plan, entity, words, numbers[source], numbers[source + sources])
    return OK


@compiled()
def _migrate_table(
    plan: I64, where: int, length: int, moves: I64, move_count: int, numbers: I64, at: int, rows: int, words: I64
) -> bool:
    """Copy the tiles of an old table that the new table still keeps. False if they are not in order."""
    room, tiles_at = plan[where + TABLE.capacity], plan[where + TABLE.tiles_at]
    newest_tile = words[NEWEST_MS] // plan[where + TABLE.hop_ms]
    older = newest_tile + 1
    kept = 0
    for number in range(at, at + rows):
        age = numbers[number]
        if not 0 <= age < older:
            return False
        older = age
        if age >= room:
            continue
        words[tiles_at + kept] = newest_tile - age
        for column in range(1, plan[where + TABLE.width]):
            words[tiles_at + column * room + kept] = 0
        for move in range(0, _MOVE_SIZE * move_count, _MOVE_SIZE):
            value = numbers[number + moves[move + MOVE.old_place] * rows]
            new_at = tiles_at + moves[move + MOVE.new_place] * room + kept
            words[new_at] = unzigzag(value) if moves[move + MOVE.is_label] else value
        kept += 1
    words[length] = kept
    return True
