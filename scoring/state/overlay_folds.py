"""Adds an entity's pending payments to its profile. A hot entity's stay added, in memory of the worker: its *fold*.

    merchant M is paid 1,000 times a second, and its profile in the mirror is 300 ms old
    payment 301 reads    profile + 300 pending payments     the fold is made
    payment 302 reads    fold + payment 301                 one is added; the profile is not even unpacked
    the mirror has a newer profile of M                     the next payment makes the fold anew, from what is pending

1. `add_pending` walks along the entity's rows, the newest first. It adds up to SINGLY_MAX of them to the profile.
2. If there are more, it adds them to a fold. Events commute, so a fold has the bits of a profile that contains them.
3. `use_fold` takes a fold if the profile in the mirror still has the same bytes, and adds the rows that are new since.
   It knows that it has reached the old rows when it meets the row that was the newest one.
4. Nothing can be taken out of a fold. It is made anew if the profile has changed, if one of its payments is over, or if
   something was erased from the table.
5. A payment counts once, by its first row: a fold knows the tags of its payments. If the payment that asks has a row
   itself, it gets a fold without that row, which nobody keeps.
6. A fold has at most EVENTS_MAX payments. If there are more, it is made anew with the newest half of that number.

A worker has room for FOLDS folds. Without room the newest SINGLY_MAX payments are added.
"""

from __future__ import annotations

import numpy as np

from paywarden.features.kernel.codec import clear, unpack
from paywarden.features.kernel.layout import I64, LENGTHS_AT, PAYMENT, SOURCES_MAX, U8
from paywarden.features.kernel.plan_schema import ENTITY, entity_at
from paywarden.features.kernel.toolkit.intrinsics import load_atomic, load_word, swap_atomic
from paywarden.features.kernel.toolkit.jit import compiled, inlined
from paywarden.features.kernel.update import mix, update
from paywarden.scoring.state.overlay_table import (
    BROKEN,
    BUCKET_SLOTS,
    CHECK,
    ENDED,
    ERASED_AT,
    EVENTS_MAX,
    FOLDED,
    HAS_OWN,
    LEFT_OUT,
    LIFE_MS,
    MOMENT,
    NEXT_AT,
    NOW_MS,
    NUMBER_BITS,
    PENDING_FROM_MS,
    ROW_HEAD,
    SHAPE_ENTITIES,
    SINGLY_MAX,
    SNAPSHOT,
    SOURCE_SHIFT,
    STATE,
    TAG,
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
_LIMIT, _END, _STOP = range(3)
# Hot entities of a worker, whose folds are kept: 150 KB each at the defaults, which only a fold that is used takes.
FOLDS, _WAYS = 64, 8
# A fold that no payment has used for this long gives way to one of another entity.
_IDLE_MS = 250
# Slots of the directory that one entity may have. It has several if workers added its first payments at one time.
_HEADS = 4
# The array of folds begins with the sizes of a fold's parts: words, tags and bytes of the profile. The keys of folds
# follow, and the folds. The last one is for a payment that has a row itself.
WORDS_SIZE, TAGS_SIZE, BYTES_SIZE, KEYS_AT = 0, 1, 2, 8
_FOLDS_AT = KEYS_AT + FOLDS
# A fold begins with the moment of its last use, that of its oldest payment, how many payments it has, the table's
# ERASED_AT, the bytes of the profile, whether older payments are left out, and for each slot the newest row that it has
# seen: as of now, and as the walk under way has found it. Words, tags and the profile's bytes follow.
_USED_MS, _OLDEST_MS, _COUNT, _ERASED, _LENGTH, _IS_PART, _HEADS_AT, _NEXT_AT = 0, 1, 2, 3, 4, 5, 8, 16
_FOLD_HEAD = 24


def fold_words(words: int, events_max: int, bytes_max: int) -> tuple[int, tuple[int, int, int]]:
    """Returns the size of an array of folds, and the numbers that it begins with."""
    sizes = words, 1 << (2 * events_max).bit_length(), -(-bytes_max // 8)
    return _FOLDS_AT + (FOLDS + 1) * (_FOLD_HEAD + sum(sizes)), sizes


@inlined
def _contains(plan: I64, entity: int, words: I64, source: int, offset: int) -> bool:
    """Whether a profile contains the event of this source partition at this offset."""
    first = plan[entity_at(plan, entity) + ENTITY.sources_at]
    for at in range(first, first + words[LENGTHS_AT]):
        if words[at] == source:
            return bool(offset <= words[at + SOURCES_MAX])
    return False


@compiled()
def _is_contained(marks: I64, shape: I64, plan: I64, entity: int, words: I64, tag: int) -> bool:
    """Whether a profile contains a payment. Without a mark no profile does."""
    for choice in range(2):
        bucket = mark_bucket_at(shape, tag, choice)
        for slot in range(bucket, bucket + BUCKET_SLOTS):
            if load_atomic(marks, slot) != tag:
                continue
            source, offset = load_atomic(marks, slot + BUCKET_SLOTS), load_atomic(marks, slot + 2 * BUCKET_SLOTS)
            if load_atomic(marks, slot) == tag:
                return _contains(plan, entity, words, source >> SOURCE_SHIFT, offset)
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
def _walk(
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

    Their numbers and tags go to chain[found:]. If `limit` is small, a payment has one place there, with its first row.

    `own`: the tag of the payment that asks, whose rows are passed over. `stop`: a row where the walk ends, 0 for none.
    `limit`: the most rows in `chain`; `visits`: the most that are looked at. Returns how many are in `chain` now, and
    leaves in numbers[ENDED] why it ended. numbers[HAS_OWN] is set to 1 if the payment that asks has a row.
    """
    entities = shape[SHAPE_ENTITIES]
    latest_ms = numbers[NOW_MS] + numbers[LIFE_MS]
    # The newest of the rows that are contained up to where the loop is.
    cut_at, cut_number = 0, 0
    ended = _END
    while number > 0:
        if number == stop:
            ended = _STOP
            break
        at = row_at(shape, number)
        moment_ms = load_atomic(table, at + MOMENT)
        following = _link_of(table, at, shape, entity, wanted)
        cut = load_atomic(table, at + ROW_HEAD + 2 * entities + entity)
        state = load_atomic(table, at + STATE)
        if state != 2 * number + 1:
            # A row that is being erased is no end.
            ended = _LIMIT if state >> 1 == number else _END
            break
        is_mine = table[at + ROW_HEAD + entity] == wanted
        is_cut = is_mine and 0 < cut <= numbers[SNAPSHOT]
        if moment_ms < numbers[PENDING_FROM_MS] or moment_ms > latest_ms or is_cut:
            break
        if visits == 0 or found == limit:
            ended = _LIMIT
            break
        visits -= 1
        tag = table[at + TAG]
        if is_mine and (tag == 0 or _is_contained(marks, shape, plan, entity, words, tag)):
            if cut_at == 0:
                cut_at, cut_number = at + ROW_HEAD + 2 * entities + entity, number
        else:
            cut_at = 0
            if is_mine and tag == own:
                numbers[HAS_OWN] = 1
            elif is_mine:
                place = found
                if limit <= VISITS_MAX:
                    for newer in range(found):
                        if chain[newer, 1] == tag:
                            place = newer
                chain[place, 0], chain[place, 1] = number, tag
                found = max(found, place + 1)
        number = following
    if ended == _END and cut_at != 0 and numbers[SNAPSHOT] > 0:
        swap_atomic(table, cut_at, -cut_number, numbers[SNAPSHOT])
    numbers[ENDED] = ended
    return found


@compiled()
def _walk_all(
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
    heads_at: int,
    folds: I64,
    numbers: I64,
) -> tuple[int, bool]:
    """Walk along all rows of an entity. Returns how many are in `chain`, and whether these are all that are pending.

    `heads_at`: where in `folds` the newest row of each slot is noted; 0 for nowhere.
    """
    mixed, next_number = mix(wanted), load_atomic(table, NEXT_AT)
    found, is_all, heads = 0, True, 0
    numbers[HAS_OWN] = 0
    if heads_at > 0:
        for head in range(2 * _HEADS):
            folds[heads_at + head] = 0
    for choice in range(2):
        bucket = bucket_at(shape, mixed, choice)
        for slot in range(bucket, bucket + BUCKET_SLOTS):
            word = load_atomic(table, slot)
            if word >> NUMBER_BITS != print_of(mixed):
                continue
            newest = number_of(word, next_number)
            found = _walk(
                table, marks, shape, plan, entity, wanted, own, words, chain, found, limit, visits, newest, 0, numbers
            )
            is_all &= numbers[ENDED] == _END
            if heads_at > 0 and heads < _HEADS:
                folds[heads_at + 2 * heads], folds[heads_at + 2 * heads + 1] = slot, newest
            heads += 1
    return found, is_all


@compiled()
def _has_copied(table: I64, shape: I64, number: int, row: I64, numbers: I64) -> bool:
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


@inlined
def _has_put(tags: I64, tag: int) -> bool:
    """Put a tag into a set, open addressing. Returns False if it is there."""
    place = mix(tag) & (len(tags) - 1)
    while tags[place] != 0 and tags[place] != tag:
        place = (place + 1) & (len(tags) - 1)
    is_new = tags[place] == 0
    tags[place] = tag
    return bool(is_new)


@inlined
def _has_tag(tags: I64, tag: int) -> bool:
    place = mix(tag) & (len(tags) - 1)
    while tags[place] != 0 and tags[place] != tag:
        place = (place + 1) & (len(tags) - 1)
    return bool(tags[place] == tag)


@inlined
def _fold_at(folds: I64, place: int) -> int:
    return int(_FOLDS_AT + place * (_FOLD_HEAD + folds[WORDS_SIZE] + folds[TAGS_SIZE] + folds[BYTES_SIZE]))


@inlined
def _is_of_bytes(folds: I64, at: int, states: U8, begin: int, end: int) -> bool:
    """Whether a fold was made of a profile with these bytes."""
    if folds[at + _LENGTH] != end - begin:
        return False
    first = at + _FOLD_HEAD + folds[WORDS_SIZE] + folds[TAGS_SIZE]
    whole = (end - begin) >> 3
    different = 0
    for word in range(whole):
        different |= folds[first + word] ^ load_word(states, begin + 8 * word)
    for place in range(8 * whole, end - begin):
        different |= (folds[first + whole] >> (8 * (place & 7)) & 255) ^ states[begin + place]
    return bool(different == 0)


@inlined
def _keep_bytes(folds: I64, at: int, states: U8, begin: int, end: int) -> None:
    folds[at + _LENGTH] = end - begin
    first = at + _FOLD_HEAD + folds[WORDS_SIZE] + folds[TAGS_SIZE]
    whole = (end - begin) >> 3
    for word in range(whole):
        folds[first + word] = load_word(states, begin + 8 * word)
    last = np.int64(0)
    for place in range(8 * whole, end - begin):
        last |= np.int64(states[begin + place]) << (8 * (place & 7))
    if end - begin > 8 * whole:
        folds[first + whole] = last


@inlined
def _begin_fold(plan: I64, entity: int, folds: I64, at: int, states: U8, begin: int, end: int) -> None:
    """Let a fold be the profile in states[begin:end], which can be read."""
    words = folds[at + _FOLD_HEAD : at + _FOLD_HEAD + folds[WORDS_SIZE]]
    if begin == end:
        clear(plan, entity, words)
    else:
        unpack(plan, entity, states, begin, end, words)
    tags_at = at + _FOLD_HEAD + folds[WORDS_SIZE]
    for place in range(folds[TAGS_SIZE]):
        folds[tags_at + place] = 0
    folds[at + _COUNT], folds[at + _OLDEST_MS] = 0, 1 << 62
    _keep_bytes(folds, at, states, begin, end)


@compiled()
def _add_to_fold(
    table: I64, shape: I64, plan: I64, entity: int, folds: I64, at: int, chain: I64, found: int, row: I64, numbers: I64
) -> None:
    """Add the first `found` rows of `chain` to a fold, the oldest first, and keep the slots' newest rows."""
    words = folds[at + _FOLD_HEAD : at + _FOLD_HEAD + folds[WORDS_SIZE]]
    tags_at = at + _FOLD_HEAD + folds[WORDS_SIZE]
    tags = folds[tags_at : tags_at + folds[TAGS_SIZE]]
    attributes = row[ROW_HEAD + 3 * shape[SHAPE_ENTITIES] :]
    for place in range(found - 1, -1, -1):
        if _has_tag(tags, chain[place, 1]) or not _has_copied(table, shape, chain[place, 0], row, numbers):
            continue
        _has_put(tags, chain[place, 1])
        update(plan, entity, words, PAYMENT, attributes, 1)
        folds[at + _COUNT] += 1
        folds[at + _OLDEST_MS] = min(folds[at + _OLDEST_MS], row[MOMENT])
    for head in range(2 * _HEADS):
        folds[at + _HEADS_AT + head] = folds[at + _NEXT_AT + head]


@inlined
def _taken(folds: I64, at: int, numbers: I64) -> int:
    """Count a fold that is used. Returns where its words begin."""
    folds[at + _USED_MS] = numbers[NOW_MS]
    numbers[FOLDED] += folds[at + _COUNT]
    numbers[LEFT_OUT] += folds[at + _IS_PART]
    return int(at + _FOLD_HEAD)


@compiled()
def use_fold(
    table: I64,
    marks: I64,
    shape: I64,
    plan: I64,
    entity: int,
    wanted: int,
    own: int,
    states: U8,
    begin: int,
    end: int,
    chain: I64,
    row: I64,
    folds: I64,
    numbers: I64,
) -> int:
    """Add to an entity's fold what is new. Returns where the fold's words begin; 0 if there is no fold to be used.

    `states[begin:end]`: the entity's profile in the mirror, nothing if it has none.
    """
    mixed = mix(wanted)
    first = mixed % (FOLDS // _WAYS) * _WAYS
    place = -1
    for one in range(first, first + _WAYS):
        if folds[KEYS_AT + one] == wanted:
            place = one
    if place < 0:
        return 0
    at = _fold_at(folds, place)
    if folds[at + _OLDEST_MS] < numbers[PENDING_FROM_MS] or folds[at + _ERASED] != load_atomic(table, ERASED_AT):
        return 0
    tags_at = at + _FOLD_HEAD + folds[WORDS_SIZE]
    if _has_tag(folds[tags_at : tags_at + folds[TAGS_SIZE]], own) or not _is_of_bytes(folds, at, states, begin, end):
        return 0
    for head in range(2 * _HEADS):
        folds[at + _NEXT_AT + head] = folds[at + _HEADS_AT + head]
    words = folds[at + _FOLD_HEAD : at + _FOLD_HEAD + folds[WORDS_SIZE]]
    next_number, found, is_new = load_atomic(table, NEXT_AT), 0, False
    limit = numbers[EVENTS_MAX] - folds[at + _COUNT]
    numbers[HAS_OWN] = 0
    for choice in range(2):
        bucket = bucket_at(shape, mixed, choice)
        for slot in range(bucket, bucket + BUCKET_SLOTS):
            word = load_atomic(table, slot)
            if word >> NUMBER_BITS != print_of(mixed):
                continue
            head_at = _head_of(folds, at + _NEXT_AT, slot)
            if head_at == 0:
                return 0
            newest, stop = number_of(word, next_number), folds[head_at + 1]
            if newest == stop:
                continue
            found = _walk(
                table, marks, shape, plan, entity, wanted, own, words, chain, found, limit, limit + VISITS_MAX,
                newest, stop, numbers,
            )  # fmt: skip
            # If it ends before the row that was the newest one, what lies behind is not what the fold was made of.
            if numbers[ENDED] == _LIMIT or (stop != 0 and numbers[ENDED] != _STOP) or numbers[HAS_OWN] == 1:
                return 0
            folds[head_at], folds[head_at + 1], is_new = slot, newest, True
    if is_new:
        _add_to_fold(table, shape, plan, entity, folds, at, chain, found, row, numbers)
    return _taken(folds, at, numbers)


@inlined
def _head_of(folds: I64, heads_at: int, slot: int) -> int:
    """Returns where a slot's newest row stands among the heads, or a free place; 0 if there is none."""
    free = 0
    for head in range(_HEADS):
        at = heads_at + 2 * head
        if folds[at] == slot:
            return int(at)
        if folds[at] == 0 and free == 0:
            free = at
    return int(free)


@inlined
def _room_for(folds: I64, wanted: int, numbers: I64) -> int:
    """Returns the place of an entity's fold, or one that can be used for it; -1 if there is none."""
    first = mix(wanted) % (FOLDS // _WAYS) * _WAYS
    best, best_ms = -1, numbers[NOW_MS] - _IDLE_MS
    for place in range(first, first + _WAYS):
        key = folds[KEYS_AT + place]
        if key == wanted:
            return place
        # A moment in the future is of a clock before.
        used_ms = folds[_fold_at(folds, place) + _USED_MS]
        if key == 0 or used_ms > numbers[NOW_MS]:
            used_ms = -1
        if used_ms < best_ms:
            best, best_ms = place, used_ms
    return best


@compiled()
def add_pending(
    table: I64,
    marks: I64,
    shape: I64,
    plan: I64,
    entity: int,
    wanted: int,
    own: int,
    states: U8,
    begin: int,
    end: int,
    words: I64,
    chain: I64,
    row: I64,
    folds: I64,
    numbers: I64,
) -> int:
    """Add the payments of an entity that its profile, `words`, does not contain: to the profile, if there are few.

    Else they are in a fold. Returns where its words begin, or 0. The other arguments are those of `use_fold`.
    """
    singly = min(numbers[SINGLY_MAX], numbers[EVENTS_MAX])
    found, is_all = _walk_all(
        table, marks, shape, plan, entity, wanted, own, words, chain, singly, VISITS_MAX, 0, folds, numbers
    )
    if not is_all and numbers[EVENTS_MAX] > singly and end - begin <= 8 * folds[BYTES_SIZE]:
        place = _room_for(folds, wanted, numbers)
        if place >= 0:
            erased = load_atomic(table, ERASED_AT)
            folds[KEYS_AT + place] = 0
            at = _fold_at(folds, place)
            limit = numbers[EVENTS_MAX]
            found, is_all = _walk_all(
                table, marks, shape, plan, entity, wanted, own, words, chain, limit, 2 * limit + VISITS_MAX,
                at + _NEXT_AT, folds, numbers,
            )  # fmt: skip
            if found > singly:
                if numbers[HAS_OWN] == 1:
                    # Only this payment may see a profile without itself.
                    at, wanted = _fold_at(folds, FOLDS), 0
                _begin_fold(plan, entity, folds, at, states, begin, end)
                folds[at + _ERASED], folds[at + _IS_PART] = erased, 0 if is_all else 1
                if not is_all:
                    found = min(found, (limit + 1) // 2)
                _add_to_fold(table, shape, plan, entity, folds, at, chain, found, row, numbers)
                folds[KEYS_AT + place] = wanted
                return _taken(folds, at, numbers)
    numbers[LEFT_OUT] += 0 if is_all else 1
    attributes = row[ROW_HEAD + 3 * shape[SHAPE_ENTITIES] :]
    found = min(found, singly)
    for item in range(found):
        if _has_copied(table, shape, chain[item, 0], row, numbers):
            update(plan, entity, words, PAYMENT, attributes, 1)
            numbers[FOLDED] += 1
    return 0
