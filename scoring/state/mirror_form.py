"""The form of a mirror's file, and how compiled code reads it. docs/internals/mirror-form.md explains each part.

    header ─ newest transaction 812 ─► its meta block ─► index ─ slot of a key's hash ─► record: key, profile
      │                                                              └─ two versions: as of 805, as of 812
      └─ begun: 813, the transaction that the writer works on

1. A look-up reads as of the newest transaction (`begin_read`). A slot has two versions, so the transaction that the
   writer works on does not disturb it.
2. Transaction N + 1 overwrites only what transaction N has replaced. A look-up as of N - 1 that is still on its way
   then sees `begun` at N + 1, and starts again (`is_current`).
3. Until then it may have read anything. Each number that it has read is therefore checked before it leads anywhere, and
   a look-up of a damaged file returns DAMAGED.
"""

from __future__ import annotations

from paywarden.features.kernel.layout import I64, U8
from paywarden.features.kernel.toolkit.byte_ranges import is_same
from paywarden.features.kernel.toolkit.intrinsics import fence, load_atomic, prefetch_element
from paywarden.features.kernel.toolkit.jit import compiled, inlined
from paywarden.features.kernel.toolkit.siphash import siphash

FORM_VERSION = 1
"""Another form has another number, in the magic word and in the name of the file."""
MAGIC = 0x31524F5252494D57
"""The file's first eight bytes: WMIRROR1."""
WORD_BYTES = 8
SEGMENT_BYTES = 1 << 20
"""Room is given out in segments. A record lies within one, so this is the largest record."""
UNIT_BYTES = 16
"""Records begin at multiples of this. A place is a number of units in 32 bits."""
FILE_BYTES_MAX = UNIT_BYTES << 32
# The words of the header. It has the first segment for itself.
MAGIC_AT, SEED_LOW_AT, SEED_HIGH_AT = range(3)
BEGUN_AT, COMMITTED_AT, ALLOCATED_AT = range(8, 11)
HEADER_WORDS = 32
# Two meta blocks of eight words, for transactions with an even and an odd number.
META_AT, META_WORDS = 16, 8
META_TRANSACTION, META_COMPLETE_TO_MS, META_INDEX_AT, META_INDEX_BITS, META_ENTRIES, META_PROFILES, META_USED = range(7)
# A slot of the index. A version is a transaction times 65,536 and the record's units less 1; the places of both records
# share a word, that of the first version in the low half. A place of 0 says that the key was deleted.
SLOT_HASH, SLOT_FIRST, SLOT_SECOND, SLOT_PLACES = range(4)
SLOT_WORDS = 4
VERSION_BITS = 16
# The least index fills a segment, the largest one half of the largest file.
INDEX_BITS_MIN, INDEX_BITS_MAX = 15, 30
# A record begins with its key's hash, and a word of two sizes. Key and value follow.
RECORD_HASH, RECORD_SIZES, RECORD_WORDS = range(3)
RECORD_HEAD_BYTES = RECORD_WORDS * WORD_BYTES
KEY_SIZE_BITS = 16
_LOW_HALF = 0xFFFFFFFF
# The same as KEY_BYTES_MAX in features/stores/base.py, which holds no compiled code.
_KEY_BYTES_MAX = 511
# The first lines of a record are prefetched: nearly all profiles have no more.
_PREFETCHED_BYTES = 1024
_LINE_WORDS = 8

# What a look-up returns: all is well; the mirror is closed; its file is longer than what is mapped; the file does not
# have this form; the writer was quicker in each of TRIES_MAX turns.
OK, CLOSED, GREW, DAMAGED, BUSY = range(5)
TRIES_MAX = 1000
"""A turn fails only if two transactions begin while it runs, which takes microseconds."""

# The numbers of an opened mirror: where it is mapped, and what `begin_read` has found.
MAPPED_AT, MAPPED_BYTES, SNAPSHOT, COMPLETE_TO_MS, INDEX_WORD, INDEX_BITS, LIMIT, PROFILE_BYTES_MAX = range(8)
NUMBER_COUNT = 8
NEWEST = 1 << 46
"""A transaction later than any: as of it, a slot's newer version counts."""


@inlined
def begin_read(words: I64, numbers: I64) -> int:
    """Note the newest transaction, and where its index is. Returns OK, GREW, or DAMAGED.

    `words`: the mapped file. DAMAGED may also say that the writer was quicker.
    """
    snapshot = load_atomic(words, COMMITTED_AT)
    meta = META_AT + (snapshot & 1) * META_WORDS
    limit = load_atomic(words, ALLOCATED_AT)
    index_at, bits = words[meta + META_INDEX_AT], words[meta + META_INDEX_BITS]
    numbers[SNAPSHOT], numbers[COMPLETE_TO_MS] = snapshot, words[meta + META_COMPLETE_TO_MS]
    numbers[INDEX_WORD], numbers[INDEX_BITS], numbers[LIMIT] = index_at // WORD_BYTES, bits, limit
    if limit > numbers[MAPPED_BYTES]:
        return GREW
    if words[MAGIC_AT] != MAGIC or words[meta + META_TRANSACTION] != snapshot or snapshot < 0:
        return DAMAGED
    if bits < INDEX_BITS_MIN or bits > INDEX_BITS_MAX or index_at < SEGMENT_BYTES or index_at % SEGMENT_BYTES != 0:
        return DAMAGED
    return OK if index_at + ((SLOT_WORDS * WORD_BYTES) << bits) <= limit else DAMAGED


@inlined
def is_current(words: I64, numbers: I64) -> bool:
    """Whether all that was read since `begin_read` is as of its transaction."""
    fence()
    return bool(load_atomic(words, BEGUN_AT) - numbers[SNAPSHOT] <= 1)


@inlined
def hash_of(words: I64, data: U8, start: int, end: int) -> int:
    """Returns the hash of a key, which is not 0: a slot with 0 was never used."""
    found: int = siphash(data, start, end, words[SEED_LOW_AT], words[SEED_HIGH_AT])
    return found if found != 0 else 1


@inlined
def home_of(hashed: int, bits: int) -> int:
    """Returns the slot where the search for a hash begins: the hash's first bits."""
    return (hashed >> (64 - bits)) & ((1 << bits) - 1)


@inlined
def version_at(words: I64, slot_at: int, snapshot: int) -> tuple[int, int]:
    """Returns the version of a slot as of a transaction, and where its record is, in bytes; 0 if it has none."""
    first, second = load_atomic(words, slot_at + SLOT_FIRST), load_atomic(words, slot_at + SLOT_SECOND)
    places = load_atomic(words, slot_at + SLOT_PLACES)
    newer, place = second, (places >> 32) & _LOW_HALF
    if second >> VERSION_BITS > snapshot or (first > second and first >> VERSION_BITS <= snapshot):
        newer, place = first, places & _LOW_HALF
    if newer >> VERSION_BITS > snapshot:
        return 0, 0
    return newer, place * UNIT_BYTES


@inlined
def find_slot(words: I64, numbers: I64, hashed: int, slot: int) -> int:
    """Returns the first slot with a hash, from `slot` on; -1 if there is none."""
    mask, index = (1 << numbers[INDEX_BITS]) - 1, numbers[INDEX_WORD]
    for _ in range(mask + 1):
        found = words[index + slot * SLOT_WORDS + SLOT_HASH]
        if found == hashed:
            return slot
        if found == 0:
            return -1
        slot = (slot + 1) & mask
    return -1


@inlined
def find_record(words: I64, numbers: I64, hashed: int, slot: int) -> tuple[int, int, int]:
    """Returns the first record with a key's hash, from `slot` on: its place, version and slot; a place of 0: none."""
    mask, index = (1 << numbers[INDEX_BITS]) - 1, numbers[INDEX_WORD]
    for _ in range(mask + 1):
        slot = find_slot(words, numbers, hashed, slot)
        if slot < 0:
            break
        version, place = version_at(words, index + slot * SLOT_WORDS, numbers[SNAPSHOT])
        if place != 0:
            return place, version, slot
        slot = (slot + 1) & mask
    return 0, 0, 0


@inlined
def sizes_at(words: I64, place: int, limit: int) -> tuple[int, int]:
    """Returns the size of a record's key, and that of its value; -1 and -1 if no record can be there."""
    if place < SEGMENT_BYTES or place + RECORD_HEAD_BYTES > limit:
        return -1, -1
    sizes = load_atomic(words, place // WORD_BYTES + RECORD_SIZES)
    key_size, value_size = sizes & ((1 << KEY_SIZE_BITS) - 1), sizes >> KEY_SIZE_BITS
    room = SEGMENT_BYTES - place % SEGMENT_BYTES - RECORD_HEAD_BYTES
    if key_size == 0 or value_size < 0 or value_size > room - key_size or key_size > _KEY_BYTES_MAX:
        return -1, -1
    return key_size, value_size


@inlined
def find_all(
    words: I64,
    data: U8,
    numbers: I64,
    keys: U8,
    starts: I64,
    sizes: I64,
    count: int,
    places: I64,
    value_sizes: I64,
    slots: I64,
) -> bool:
    """Find `count` keys: `places` has where each value begins in the file, `value_sizes` its size, or -1.

    An empty key is not looked for. `slots` is scratch space. `data` and `words` are the mapped file, as bytes and as
    words. Returns False if the file does not have its form. The cache misses of all keys overlap.
    """
    index, bits, limit = numbers[INDEX_WORD], numbers[INDEX_BITS], numbers[LIMIT]
    for item in range(count):
        if sizes[item] > 0:
            value_sizes[item] = hash_of(words, keys, starts[item], starts[item] + sizes[item])
            slots[item] = home_of(value_sizes[item], bits)
            prefetch_element(words, index + slots[item] * SLOT_WORDS)
    for item in range(count):
        places[item] = 0
        if sizes[item] > 0:
            place, version, slots[item] = find_record(words, numbers, value_sizes[item], slots[item])
            places[item] = place
            if place != 0:
                units = (version & ((1 << VERSION_BITS) - 1)) + 1
                last = min(units * UNIT_BYTES, _PREFETCHED_BYTES) // WORD_BYTES
                for word in range(0, last, _LINE_WORDS):
                    prefetch_element(words, place // WORD_BYTES + word)
    is_whole = True
    for item in range(count):
        place, hashed = places[item], value_sizes[item]
        value_sizes[item] = -1
        while sizes[item] > 0 and place != 0:
            key_size, value_size = sizes_at(words, place, limit)
            if key_size < 0 or words[place // WORD_BYTES + RECORD_HASH] != hashed:
                is_whole = False
                break
            key_at = place + RECORD_HEAD_BYTES
            if key_size == sizes[item] and is_same(keys, starts[item], data, key_at, key_size):
                places[item], value_sizes[item] = key_at + key_size, value_size
                break
            # Another key with the same hash.
            place, _, slots[item] = find_record(words, numbers, hashed, (slots[item] + 1) & ((1 << bits) - 1))
    return is_whole


@compiled()
def list_records(words: I64, numbers: I64, home: int, homes: int, places: I64) -> int:
    """Fill `places` with the records whose keys have their home in a range; returns how many, -1 for too many.

    The range has `homes` slots from `home` on, and must not go beyond the end of the index.
    """
    mask, index, bits = (1 << numbers[INDEX_BITS]) - 1, numbers[INDEX_WORD], numbers[INDEX_BITS]
    count, slot = 0, home
    for step in range(mask + 1):
        hashed = words[index + slot * SLOT_WORDS + SLOT_HASH]
        if hashed == 0 and step >= homes - 1:
            break
        if hashed != 0 and home <= home_of(hashed, bits) < home + homes:
            _, place = version_at(words, index + slot * SLOT_WORDS, numbers[SNAPSHOT])
            if place != 0:
                if count == len(places):
                    return -1
                places[count] = place
                count += 1
        slot = (slot + 1) & mask
    return count
