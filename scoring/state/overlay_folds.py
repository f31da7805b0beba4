"""Adds an entity's pending payments to its profile. A hot entity's stay added, in memory of the worker: its *fold*.

    merchant M is paid 1,000 times a second, and its profile in the mirror is 300 ms old
    payment 301 reads    profile + 300 pending payments     the fold is made
    payment 302 reads    fold + payment 301                 one is added; the profile is not even unpacked
    the mirror has a newer profile of M                     the next payment adds what is still pending to that one

1. `add_pending` walks along the entity's rows, the newest first. It adds up to SINGLY_MAX of them to the profile.
2. If there are more, it makes a fold: the profile with all of them. Events commute, so a fold has the bits of a profile
   that contains them. The fold keeps a copy of each row, in its *list*.
3. `use_fold` takes a fold, and adds the rows that are new since. When it meets the row that was the newest one, it has
   reached the old rows. A worker therefore reads each row of the table once.
4. Nothing can be taken out of a fold. If the mirror has a newer profile, or a payment of the list is over, the fold is
   made anew from the profile and the list. What is over or contained leaves the list. All others are added in one go.
5. If something was erased from the table, or the old rows cannot be found, the fold is made anew from the table.
6. A payment counts once, by its first row: a fold knows the tags of its payments. If the payment that asks has a row
   itself, it gets a fold without that row, which nobody keeps.
7. A list has at most EVENTS_MAX rows. If there are more, the newest half of that number stays.

A worker has room for FOLDS folds. Without room the newest SINGLY_MAX payments are added.
"""

from __future__ import annotations

import numpy as np

from paywarden.features.kernel.codec import clear, unpack
from paywarden.features.kernel.layout import I64, OK, PAYMENT, U8
from paywarden.features.kernel.plan_schema import HEAD
from paywarden.features.kernel.toolkit.intrinsics import load_atomic, prefetch_element, swap_atomic
from paywarden.features.kernel.toolkit.jit import compiled, inlined
from paywarden.features.kernel.toolkit.words import load_word
from paywarden.features.kernel.update import add_payments, mix, update
from paywarden.scoring.state.overlay_table import (
    BUCKET_SLOTS,
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
    REFOLDED,
    ROW_HEAD,
    SHAPE_ENTITIES,
    SINGLY_MAX,
    SNAPSHOT,
    bucket_at,
    mark_bucket_at,
    number_of,
    print_of,
    row_at,
)
from paywarden.scoring.state.overlay_walk import (
    HEADS,
    LIMIT,
    STOP,
    VISITS_MAX,
    following_marks_at,
    has_copied,
    is_contained,
    walk,
    walk_all,
)

# Hot entities of a worker, whose folds are kept: 0.9 MB each at most at the defaults, 0.2 KB for each pending payment.
FOLDS, _WAYS = 64, 8
# A fold that no payment has used for this long gives way to one of another entity.
_IDLE_MS = 250
# The array of folds begins with the sizes of a fold's parts: words, tags, and bytes of the profile; how many rows a
# list has room for, a power of two; and the size of a row in it. The keys of folds follow, and the folds. The last one
# is for a payment that has a row itself.
WORDS_SIZE, TAGS_SIZE, BYTES_SIZE, _ROOM, _ITEM_SIZE, KEYS_AT = 0, 1, 2, 3, 4, 8
_FOLDS_AT = KEYS_AT + FOLDS
# A fold begins with the moment of its last use, that of its oldest payment, how many payments it has, the table's
# ERASED_AT, the bytes of the profile, when older payments were last left out, the first row of the list and the one
# after its last, how many places of the set of tags are in use, and the mirror's transaction that the profile was read
# in. For each slot the newest row follows that the fold has seen: as of now, and as the walk under way has found it.
# Words, tags, the profile's bytes and the list follow.
_USED_MS, _OLDEST_MS, _COUNT, _ERASED, _LENGTH, _PART_MS, _FIRST, _LAST, _TAGS_USED, _SNAPSHOT = range(10)
_HEADS_AT, _NEXT_AT, _FOLD_HEAD = 16, 16 + 2 * HEADS, 16 + 4 * HEADS
# A row in the list, which is a ring with the oldest one first: its tag, moment and number, and where its first bucket
# of marks begins. The payment's attributes follow.
_TAG, _MOMENT, _NUMBER, _MARKS_AT, _ITEM_HEAD = range(5)
# Marks are anywhere in memory. Those of the row this far ahead are fetched already.
_AHEAD = 8
# Before any moment: no payment was left out.
_NEVER_MS = -(1 << 62)
_TAGS_MIN = 64


def fold_words(
    words: int, events_max: int, bytes_max: int, row_width: int
) -> tuple[int, tuple[int, int, int, int, int]]:
    """Returns the size of an array of folds, and the numbers that it begins with."""
    room, item_size = 1 << (events_max - 1).bit_length(), _ITEM_HEAD + row_width
    sizes = words, max(_TAGS_MIN, 4 * room), -(-bytes_max // 8)
    fold_size = _FOLD_HEAD + sum(sizes) + room * item_size
    return _FOLDS_AT + (FOLDS + 1) * fold_size, (*sizes, room, item_size)


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
    size = folds[WORDS_SIZE] + folds[TAGS_SIZE] + folds[BYTES_SIZE] + folds[_ROOM] * folds[_ITEM_SIZE]
    return int(_FOLDS_AT + place * (_FOLD_HEAD + size))


@inlined
def _tags_at(folds: I64, at: int) -> int:
    return int(at + _FOLD_HEAD + folds[WORDS_SIZE])


@inlined
def _bytes_at(folds: I64, at: int) -> int:
    return int(_tags_at(folds, at) + folds[TAGS_SIZE])


@inlined
def _item_at(folds: I64, at: int, place: int) -> int:
    """Returns where a row of a fold's list stands."""
    return int(_bytes_at(folds, at) + folds[BYTES_SIZE] + (place & (folds[_ROOM] - 1)) * folds[_ITEM_SIZE])


@inlined
def _is_of_bytes(folds: I64, at: int, states: U8, begin: int, end: int) -> bool:
    """Whether a fold was made of a profile with these bytes."""
    if folds[at + _LENGTH] != end - begin:
        return False
    first = _bytes_at(folds, at)
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
    first = _bytes_at(folds, at)
    whole = (end - begin) >> 3
    for word in range(whole):
        folds[first + word] = load_word(states, begin + 8 * word)
    last = np.int64(0)
    for place in range(8 * whole, end - begin):
        last |= np.int64(states[begin + place]) << (8 * (place & 7))
    if end - begin > 8 * whole:
        folds[first + whole] = last


@compiled()
def _append(
    table: I64, shape: I64, plan: I64, folds: I64, at: int, chain: I64, found: int, row: I64, numbers: I64
) -> None:
    """Copy the first `found` rows of `chain` to the end of a fold's list, which has room, and keep their slots."""
    attributes_at = ROW_HEAD + 3 * shape[SHAPE_ENTITIES]
    for place in range(found - 1, -1, -1):
        if has_copied(table, shape, chain[place, 0], row, numbers):
            item = _item_at(folds, at, folds[at + _LAST])
            folds[item + _TAG], folds[item + _MOMENT] = chain[place, 1], row[MOMENT]
            folds[item + _NUMBER] = chain[place, 0]
            folds[item + _MARKS_AT] = mark_bucket_at(shape, chain[place, 1], 0)
            for column in range(plan[HEAD.row_width]):
                folds[item + _ITEM_HEAD + column] = row[attributes_at + column]
            folds[at + _LAST] += 1
    for head in range(2 * HEADS):
        folds[at + _HEADS_AT + head] = folds[at + _NEXT_AT + head]


@inlined
def _renew_tags(folds: I64, at: int, end: int) -> None:
    """Let the set have room for all tags of a list, and the tags of its rows before `end`."""
    used = _TAGS_MIN
    while used < 4 * (folds[at + _LAST] - folds[at + _FIRST]) and used < folds[TAGS_SIZE]:
        used *= 2
    folds[at + _TAGS_USED] = used
    tags = folds[_tags_at(folds, at) : _tags_at(folds, at) + used]
    for place in range(used):
        tags[place] = 0
    for place in range(folds[at + _FIRST], end):
        _has_put(tags, folds[_item_at(folds, at, place) + _TAG])


@compiled()
def _add_listed(plan: I64, entity: int, folds: I64, at: int, begin: int, chain: I64, numbers: I64) -> None:
    """Add the payments of a list from row `begin` on to the fold's words, unless a row before has the same payment.

    `chain` is scratch.
    """
    first, last = folds[at + _FIRST], folds[at + _LAST]
    if begin == first or 2 * (last - first) > folds[at + _TAGS_USED]:
        _renew_tags(folds, at, begin)
    if begin == first:
        folds[at + _COUNT], folds[at + _OLDEST_MS] = 0, 1 << 62
    tags = folds[_tags_at(folds, at) : _tags_at(folds, at) + folds[at + _TAGS_USED]]
    found = 0
    for place in range(begin, last):
        item = _item_at(folds, at, place)
        folds[at + _OLDEST_MS] = min(folds[at + _OLDEST_MS], folds[item + _MOMENT])
        if _has_put(tags, folds[item + _TAG]):
            chain[found, 0] = item + _ITEM_HEAD
            found += 1
    add_payments(plan, entity, folds[at + _FOLD_HEAD : _tags_at(folds, at)], folds, chain, found)
    folds[at + _COUNT] += found
    numbers[REFOLDED] += found


@inlined
def _keep_pending(marks: I64, shape: I64, plan: I64, entity: int, words: I64, folds: I64, at: int, numbers: I64) -> int:
    """Let a list have only rows that are pending. Returns the number of the newest row before which all are contained.

    It is 0 if there is none. The list closes up to its end: the rows that leave it are most often the first ones.
    """
    first, kept, cut_number = folds[at + _FIRST], folds[at + _LAST], 0
    latest_ms = numbers[NOW_MS] + numbers[LIFE_MS]
    for place in range(folds[at + _LAST] - 1, first - 1, -1):
        if place - _AHEAD >= first:
            marks_at = folds[_item_at(folds, at, place - _AHEAD) + _MARKS_AT]
            prefetch_element(marks, marks_at)
            prefetch_element(marks, following_marks_at(shape, marks_at))
        item = _item_at(folds, at, place)
        if folds[item + _MOMENT] < numbers[PENDING_FROM_MS] or folds[item + _MOMENT] > latest_ms:
            continue
        if is_contained(marks, shape, plan, entity, words, folds[item + _TAG], folds[item + _MARKS_AT]):
            if cut_number == 0:
                cut_number = folds[item + _NUMBER]
            continue
        kept, cut_number = kept - 1, 0
        if kept > place:
            to = _item_at(folds, at, kept)
            for word in range(folds[_ITEM_SIZE]):
                folds[to + word] = folds[item + word]
    folds[at + _FIRST] = kept
    return int(cut_number)


@compiled()
def _has_renewed(
    table: I64,
    marks: I64,
    shape: I64,
    plan: I64,
    entity: int,
    states: U8,
    begin: int,
    end: int,
    folds: I64,
    at: int,
    chain: I64,
    numbers: I64,
) -> bool:
    """Make a fold anew from the profile in states[begin:end] and its list. Returns False if it cannot be read.

    Rows of the list that are over, or that the profile contains, leave it. `chain` is scratch.
    """
    words = folds[at + _FOLD_HEAD : _tags_at(folds, at)]
    if begin == end:
        clear(plan, entity, words)
    elif end - begin > 8 * folds[BYTES_SIZE] or unpack(plan, entity, states, begin, end, words) != OK:
        return False
    _keep_bytes(folds, at, states, begin, end)
    folds[at + _SNAPSHOT] = numbers[SNAPSHOT]
    number = _keep_pending(marks, shape, plan, entity, words, folds, at, numbers)
    is_kept = at != _fold_at(folds, FOLDS)
    if number > 0 and numbers[SNAPSHOT] > 0 and is_kept and not _is_part(folds, at, numbers):
        # All rows before it are contained or over, too: other readers end there.
        cut_at = row_at(shape, number) + ROW_HEAD + 2 * shape[SHAPE_ENTITIES] + entity
        swap_atomic(table, cut_at, -number, numbers[SNAPSHOT])
    _add_listed(plan, entity, folds, at, folds[at + _FIRST], chain, numbers)
    return True


@inlined
def _is_part(folds: I64, at: int, numbers: I64) -> bool:
    """Whether older payments than those of the list may be pending, too."""
    return bool(folds[at + _PART_MS] >= numbers[PENDING_FROM_MS])


@inlined
def _taken(folds: I64, at: int, numbers: I64) -> int:
    """Count a fold that is used. Returns where its words begin."""
    folds[at + _USED_MS] = numbers[NOW_MS]
    numbers[FOLDED] += folds[at + _COUNT]
    numbers[LEFT_OUT] += 1 if _is_part(folds, at, numbers) else 0
    return int(at + _FOLD_HEAD)


@inlined
def _half_of(limit: int) -> int:
    return (limit + 1) // 2


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
    if folds[at + _ERASED] != load_atomic(table, ERASED_AT):
        return 0
    if folds[at + _SNAPSHOT] > numbers[SNAPSHOT]:
        # Rows that the later profile contained have left the list.
        return 0
    if _has_tag(folds[_tags_at(folds, at) : _tags_at(folds, at) + folds[at + _TAGS_USED]], own):
        return 0
    for head in range(2 * HEADS):
        folds[at + _NEXT_AT + head] = folds[at + _HEADS_AT + head]
    words = folds[at + _FOLD_HEAD : _tags_at(folds, at)]
    next_number, found, is_new = load_atomic(table, NEXT_AT), 0, False
    limit, last = numbers[EVENTS_MAX], folds[at + _LAST]
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
            found = walk(
                table, marks, shape, plan, entity, wanted, own, words, chain, found, limit, limit + VISITS_MAX,
                newest, stop, numbers,
            )  # fmt: skip
            # If it ends before the row that was the newest one, what lies behind is not what the fold was made of.
            if numbers[ENDED] == LIMIT or (stop != 0 and numbers[ENDED] != STOP) or numbers[HAS_OWN] == 1:
                return 0
            folds[head_at], folds[head_at + 1], is_new = slot, newest, True
    is_full = last - folds[at + _FIRST] + found > limit
    if is_full:
        # The newest ones stand first in the chain, and last in the list.
        found = min(found, _half_of(limit))
        folds[at + _FIRST] = max(folds[at + _FIRST], last - (_half_of(limit) - found))
        folds[at + _PART_MS] = numbers[NOW_MS]
    if is_new:
        _append(table, shape, plan, folds, at, chain, found, row, numbers)
    is_over = folds[at + _OLDEST_MS] < numbers[PENDING_FROM_MS]
    if is_full or is_over or not _is_of_bytes(folds, at, states, begin, end):
        if not _has_renewed(table, marks, shape, plan, entity, states, begin, end, folds, at, chain, numbers):
            folds[KEYS_AT + place] = 0
            return 0
        if _is_part(folds, at, numbers) and folds[at + _LAST] - folds[at + _FIRST] < _half_of(limit):
            # Payments that were left out are among the newest ones by now.
            folds[KEYS_AT + place] = 0
            return 0
    elif is_new:
        _add_listed(plan, entity, folds, at, last, chain, numbers)
    return _taken(folds, at, numbers)


@inlined
def _head_of(folds: I64, heads_at: int, slot: int) -> int:
    """Returns where a slot's newest row stands among the heads, or a free place; 0 if there is none."""
    free = 0
    for head in range(HEADS):
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
    # The fold that nobody keeps: a walk may meet a row of the payment that asks.
    at = _fold_at(folds, FOLDS)
    heads = folds[at + _NEXT_AT : at + _NEXT_AT + 2 * HEADS]
    found, is_all = walk_all(
        table, marks, shape, plan, entity, wanted, own, words, chain, singly, VISITS_MAX, heads, numbers
    )
    if not is_all and numbers[EVENTS_MAX] > singly and end - begin <= 8 * folds[BYTES_SIZE]:
        place = _room_for(folds, wanted, numbers)
        if place >= 0:
            erased = load_atomic(table, ERASED_AT)
            limit = numbers[EVENTS_MAX]
            found, is_all = walk_all(
                table, marks, shape, plan, entity, wanted, own, words, chain, limit, 2 * limit + VISITS_MAX,
                heads, numbers,
            )  # fmt: skip
            if found > singly:
                if numbers[HAS_OWN] == 0:
                    at = _fold_at(folds, place)
                    folds[KEYS_AT + place] = wanted
                    for head in range(2 * HEADS):
                        folds[at + _NEXT_AT + head] = heads[head]
                folds[at + _ERASED], folds[at + _PART_MS] = erased, _NEVER_MS
                folds[at + _FIRST] = folds[at + _LAST] = 0
                if not is_all:
                    found = min(found, _half_of(limit))
                    folds[at + _PART_MS] = numbers[NOW_MS]
                _append(table, shape, plan, folds, at, chain, found, row, numbers)
                _has_renewed(table, marks, shape, plan, entity, states, begin, end, folds, at, chain, numbers)
                return _taken(folds, at, numbers)
    numbers[LEFT_OUT] += 0 if is_all else 1
    attributes = row[ROW_HEAD + 3 * shape[SHAPE_ENTITIES] :]
    found = min(found, singly)
    for item in range(found):
        if has_copied(table, shape, chain[item, 0], row, numbers):
            update(plan, entity, words, PAYMENT, attributes, 1)
            numbers[FOLDED] += 1
    return 0
