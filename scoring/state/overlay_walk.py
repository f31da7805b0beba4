"""Walks along an entity's rows in the table of the overlay, and finds those that its profile does not contain.

    card C1 ─► row 907 ─► row 311 ─► row 12, which the profile contains, as all before it
               pending    pending    the end of the walk, noted in row 12 as its cut

scoring/state/overlay_table.py has the layout of rows, links and cuts. scoring/state/overlay_folds.py adds the rows that
a walk has found.
"""

from __future__ import annotations

from paywarden.features.kernel.layout import I64, LENGTHS_AT, SOURCES_MAX
from paywarden.features.kernel.plan_schema import ENTITY, entity_at
from paywarden.features.kernel.toolkit.intrinsics import load_atomic, swap_atomic
from paywarden.features.kernel.toolkit.jit import compiled, inlined
from paywarden.features.kernel.update import mix
from paywarden.scoring.state.overlay_table import (
    BROKEN,
    BUCKET_SLOTS,
    CHECK,
    ENDED,
    HAS_OWN,
    LIFE_MS,
    MARK_BUCKET_SIZE,
    MARK_HEAD_SIZE,
    MOMENT,
    NEXT_AT,
    NOW_MS,
    NUMBER_BITS,
    PENDING_FROM_MS,
    ROW_HEAD,
    SHAPE_ENTITIES,
    SHAPE_MARK_BUCKETS,
    SNAPSHOT,
    SOURCE_SHIFT,
    STATE,
    TAG,
    VISITED,
    bucket_at,
    check_of,
    mark_bucket_at,
    number_of,
    print_of,
    row_at,
)

# The most rows of one entity that a payment looks at to add them one by one, contained and expired ones too.
VISITS_MAX = 64
# How a walk ends: at a limit, at the end of the entity's rows, or at the row where it was told to stop.
LIMIT, END, STOP = range(3)
# Slots of the directory that one entity may have. It has several if workers added its first payments at one time.
HEADS = 4


@inlined
def _contains(plan: I64, entity: int, words: I64, source: int, offset: int) -> bool:
    """Whether a profile contains the event of this source partition at this offset."""
    first = plan[entity_at(plan, entity) + ENTITY.sources_at]
    for at in range(first, first + words[LENGTHS_AT]):
        if words[at] == source:
            return bool(offset <= words[at + SOURCES_MAX])
    return False


@inlined
def following_marks_at(shape: I64, at: int) -> int:
    """Returns where the bucket of marks after this one begins: the second one of a payment."""
    end = MARK_HEAD_SIZE + shape[SHAPE_MARK_BUCKETS] * MARK_BUCKET_SIZE
    return int(at + MARK_BUCKET_SIZE if at + MARK_BUCKET_SIZE < end else MARK_HEAD_SIZE)


@compiled()
def is_contained(marks: I64, shape: I64, plan: I64, entity: int, words: I64, tag: int, marks_at: int) -> bool:
    """Whether a profile contains a payment. Without a mark no profile does.

    `marks_at`: where the payment's first bucket of marks begins, `mark_bucket_at` for choice 0.
    """
    for _ in range(2):
        hits = 0
        for slot in range(marks_at, marks_at + BUCKET_SLOTS):
            hits |= marks[slot] == tag
        if hits != 0:
            for slot in range(marks_at, marks_at + BUCKET_SLOTS):
                if load_atomic(marks, slot) != tag:
                    continue
                source, offset = load_atomic(marks, slot + BUCKET_SLOTS), load_atomic(marks, slot + 2 * BUCKET_SLOTS)
                if load_atomic(marks, slot) == tag:
                    return _contains(plan, entity, words, source >> SOURCE_SHIFT, offset)
        marks_at = following_marks_at(shape, marks_at)
    return False


@inlined
def _link_of(table: I64, at: int, shape: I64, entity: int, wanted: int) -> int:
    """Returns the number of the row after this one, in the rows of an entity."""
    entities, mine = shape[SHAPE_ENTITIES], entity
    if table[at + ROW_HEAD + entity] != wanted:
        # Another entity whose slot looks alike, perhaps one of another kind.
        for other in range(entities):
            if print_of(mix(table[at + ROW_HEAD + other])) == print_of(mix(wanted)):
                mine = other
    return int(load_atomic(table, at + ROW_HEAD + entities + mine))


@compiled()
def walk(
    table: I64,
    marks: I64,
    shape: I64,
    plan: I64,
    entity: int,
    wanted: int,
    own: int,
    words: I64,
    chain: I64,
    found: int,
    limit: int,
    visits: int,
    number: int,
    stop: int,
    numbers: I64,
) -> int:
    """Collect the rows of an entity that its profile does not contain, from row `number` on, the newest first.

    Their numbers and tags go to chain[found:]. If `visits` is VISITS_MAX, a payment has one place there, with its first
    row.

    `own`: the tag of the payment that asks, whose rows are passed over. `stop`: a row where the walk ends, 0 for none.
    `limit`: the most rows in `chain`; `visits`: the most that are looked at. Returns how many are in `chain` now, and
    leaves in numbers[ENDED] why it ended. numbers[HAS_OWN] is set to 1 if the payment that asks has a row.
    """
    entities = shape[SHAPE_ENTITIES]
    latest_ms, has_one_place = numbers[NOW_MS] + numbers[LIFE_MS], visits <= VISITS_MAX
    # The newest of the rows that are contained up to where the loop is.
    cut_at, cut_number = 0, 0
    ended = END
    while number > 0:
        if number == stop:
            ended = STOP
            break
        at = row_at(shape, number)
        moment_ms = load_atomic(table, at + MOMENT)
        following = _link_of(table, at, shape, entity, wanted)
        cut = load_atomic(table, at + ROW_HEAD + 2 * entities + entity)
        state = load_atomic(table, at + STATE)
        if state != 2 * number + 1:
            # A row that is being erased is no end.
            ended = LIMIT if state >> 1 == number else END
            break
        is_mine = table[at + ROW_HEAD + entity] == wanted
        is_cut = is_mine and 0 < cut <= numbers[SNAPSHOT]
        if moment_ms < numbers[PENDING_FROM_MS] or moment_ms > latest_ms or is_cut:
            break
        if visits == 0 or found == limit:
            ended = LIMIT
            break
        visits -= 1
        numbers[VISITED] += 1
        tag = table[at + TAG]
        if is_mine and (
            tag == 0 or is_contained(marks, shape, plan, entity, words, tag, mark_bucket_at(shape, tag, 0))
        ):
            if cut_at == 0:
                cut_at, cut_number = at + ROW_HEAD + 2 * entities + entity, number
        else:
            cut_at = 0
            if is_mine and tag == own:
                numbers[HAS_OWN] = 1
            elif is_mine:
                place = found
                if has_one_place:
                    for newer in range(found):
                        if chain[newer, 1] == tag:
                            place = newer
                chain[place, 0], chain[place, 1] = number, tag
                found = max(found, place + 1)
        number = following
    if ended == END and cut_at != 0 and numbers[SNAPSHOT] > 0:
        swap_atomic(table, cut_at, -cut_number, numbers[SNAPSHOT])
    numbers[ENDED] = ended
    return found


@compiled()
def walk_all(
    table: I64,
    marks: I64,
    shape: I64,
    plan: I64,
    entity: int,
    wanted: int,
    own: int,
    words: I64,
    chain: I64,
    limit: int,
    visits: int,
    heads: I64,
    numbers: I64,
) -> tuple[int, bool]:
    """Walk along all rows of an entity. Returns how many are in `chain`, and whether these are all that are pending.

    `heads` gets the slot and the newest row of each of the first HEADS slots of the entity.
    """
    mixed, next_number = mix(wanted), load_atomic(table, NEXT_AT)
    found, is_all, slots = 0, True, 0
    numbers[HAS_OWN] = 0
    for head in range(2 * HEADS):
        heads[head] = 0
    for choice in range(2):
        bucket = bucket_at(shape, mixed, choice)
        for slot in range(bucket, bucket + BUCKET_SLOTS):
            word = load_atomic(table, slot)
            if word >> NUMBER_BITS != print_of(mixed):
                continue
            newest = number_of(word, next_number)
            found = walk(
                table, marks, shape, plan, entity, wanted, own, words, chain, found, limit, visits, newest, 0, numbers
            )
            is_all &= numbers[ENDED] == END
            if slots < HEADS:
                heads[2 * slots], heads[2 * slots + 1] = slot, newest
            slots += 1
    return found, is_all


@compiled()
def has_copied(table: I64, shape: I64, number: int, row: I64, numbers: I64) -> bool:
    """Copy a row of the table. Returns False if it is another one by now, erased or damaged."""
    at = row_at(shape, number)
    for word in range(len(row)):
        row[word] = table[at + word]
    if load_atomic(table, at + STATE) != 2 * number + 1 or row[TAG] == 0:
        return False
    if row[CHECK] != check_of(row, 0, shape):
        numbers[BROKEN] += 1
        return False
    return True
