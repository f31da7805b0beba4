"""The kernel stays within its arrays: for any bytes, it neither changes nor shows memory around them."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.catalogue.windows import DAY_MS, HOUR_MS, MINUTE_MS
from paywarden.features.kernel.batches import EventResults, PackedProfiles
from paywarden.features.profiles.engine import FeatureEngine
from tests.checkout import CHECKOUT
from tests.patience import PATIENCE_S
from tests.services.product.processes import run_program
from tests.unit.features.kernel.profiles import (
    Change,
    apply_groups,
    events_of,
    label,
    payment,
    profile,
    row,
    rows_of,
    vector,
)
from tests.unit.features.kernel.test_stored_form import (
    AMOUNT_MAX,
    DAMAGED,
    ENGINES,
    ENTITIES,
    GOOD,
    INT64,
    NOON_MS,
    SUNDAY_MS,
    changed,
    engine,
    full,
    rich,
    status_of,
    stored,
)
from tests.worlds.stream.packed import read_packed, resealed

# Guards: what stands around the kernel's arrays is neither written nor does it show.

GUARD = 64


class Guarded:
    """An array with guard values before and after it."""

    def __init__(self, size: int, dtype: Any, fill: int) -> None:
        self._whole: NDArray[Any] = np.full(size + 2 * GUARD, fill, dtype=dtype)
        self._fill = fill
        self.array: NDArray[Any] = self._whole[GUARD : GUARD + size]

    def is_untouched(self) -> bool:
        guards = np.concatenate((self._whole[:GUARD], self._whole[-GUARD:]))
        return bool((guards == self._fill).all())


def guarded_bytes(state: bytes, fill: int) -> Guarded:
    data = Guarded(len(state), np.uint8, fill)
    data.array[:] = np.frombuffer(state, dtype=np.uint8)
    return data


NOW = np.array([row(NOON_MS, 1, country="DE", merchant_id="m1", device_id="d")], dtype=np.int64)
UPDATE = [
    *(payment(SUNDAY_MS + hop_ms, 7, merchant_id="m") for hop_ms in (0, MINUTE_MS, DAY_MS)),
    label(SUNDAY_MS, 1),
    payment(SUNDAY_MS + 2 * DAY_MS, 7, country="FR", merchant_id="m9", device_id="d9"),
    # From a source that the valid profiles do not contain and the full ones have no room for.
    payment(SUNDAY_MS + 2 * DAY_MS, 7, source=5, offset=1),
]


def between_guards(
    of: FeatureEngine, entity: int, state: bytes, update: Sequence[Change], fill: int
) -> tuple[object, ...]:
    """All that the kernel makes of these bytes: status, vector, status, new profile. Fails when a guard is touched."""
    plan = of.plan
    count = plan.entity_count
    data = guarded_bytes(state, fill)
    words = Guarded(max(map(plan.word_count, range(count))), np.int64, fill)
    values = Guarded(plan.value_count, np.float64, fill)
    vectors = Guarded(plan.feature_count, np.float32, fill)
    slots = Guarded(len(update) * plan.slot_count, np.float64, fill)
    room = Guarded(len(state) + of.profile_bytes_max, np.uint8, fill)
    ends = Guarded(2, np.int64, fill)
    presence = np.full(count, kernel.ABSENT, dtype=np.uint8)
    presence[entity] = kernel.KNOWN
    bounds = np.where(np.arange(count + 1) > entity, len(state), 0).astype(np.int64)
    seen = kernel.fill_vectors(
        plan.words, NOW, presence, data.array, bounds, words.array, values.array, vectors.array.reshape(1, -1),
        of.new_hops(1),
    )  # fmt: skip
    events = events_of([update], with_rows=True)
    results = EventResults(
        PackedProfiles(room.array, ends.array), np.zeros(len(update), np.uint8), np.zeros(1, np.int64)
    )
    applied = kernel.apply_events(
        plan.words,
        entity,
        PackedProfiles(data.array, np.array([0, len(state)])),
        events,
        rows_of([update]),
        words.array,
        slots.array.reshape(len(update), -1),
        results,
    )
    assert all(guarded.is_untouched() for guarded in (data, words, values, vectors, slots, room, ends))
    vector_bytes = np.array(vectors.array).tobytes() if seen == kernel.OK else b""
    new = np.array(room.array[: int(ends.array[1])]).tobytes() if applied == kernel.OK else b""
    return seen, vector_bytes, applied, new


@settings(max_examples=250)
@given(
    of=ENGINES,
    entity=st.sampled_from(ENTITIES),
    place=st.integers(0, 10_000),
    value=st.integers(0, 255),
    is_full=st.booleans(),
    is_sealed=st.booleans(),
)
def test_a_changed_byte_never_makes_the_kernel_write_out_of_bounds(
    of: Callable[[], FeatureEngine], entity: str, place: int, value: int, is_full: bool, is_sealed: bool
) -> None:
    state = bytearray(full(entity, of=of()) if is_full else good(of, entity))
    state[place % len(state)] = value
    # The checksum finds accidents. An attacker who can write to the store makes it fit: bounds must hold then, too.
    wrong = resealed(bytes(state)) if is_sealed else bytes(state)
    check_between_guards(of(), entity, wrong, UPDATE[:-1] if is_full else UPDATE)


@settings(max_examples=75)
@given(
    of=ENGINES,
    entity=st.sampled_from(ENTITIES),
    place=st.integers(0, 10_000),
    # See the times that add up to more than any clock has.
    number=INT64.filter(lambda number: not 2**59 < number < 2**61),
    is_full=st.booleans(),
)
def test_a_changed_number_never_makes_the_kernel_write_out_of_bounds(
    of: Callable[[], FeatureEngine], entity: str, place: int, number: int, is_full: bool
) -> None:
    # Widths and all are right: what is wrong is what the numbers say.
    state = full(entity, of=of()) if is_full else good(of, entity)
    wrong = changed(state, place % len(read_packed(state).numbers), number)
    check_between_guards(of(), entity, wrong, UPDATE[:-1] if is_full else UPDATE)


@settings(max_examples=75)
@given(of=ENGINES, entity=st.sampled_from(ENTITIES), tail=st.binary(max_size=300))
@example(of=engine, entity="card", tail=b"")
def test_any_bytes_behind_a_valid_head_touch_nothing_around_them(
    of: Callable[[], FeatureEngine], entity: str, tail: bytes
) -> None:
    packed = read_packed(good(of, entity))
    check_between_guards(of(), entity, resealed(good(of, entity)[: 7 + len(packed.shape)] + tail), UPDATE)


@cache
def good(of: Callable[[], FeatureEngine], entity: str) -> bytes:
    return profile(of(), entity, [*GOOD, label(SUNDAY_MS, 1), label(SUNDAY_MS + DAY_MS, -1)])


def check_between_guards(of: FeatureEngine, entity: str, state: bytes, update: Sequence[Change]) -> None:
    number = of.plan.entity_names.index(entity)
    found = between_guards(of, number, state, update, 0x5A)
    assert found == between_guards(of, number, state, update, 0x25)
    seen, _, applied, new = found
    # Roll-up and update agree on what is a profile; one that says it is full of sources may have no room for another.
    assert (seen == kernel.OK) == (applied == kernel.OK) or applied == kernel.TOO_MANY_SOURCES * kernel.STATUS_UNIT
    if isinstance(new, bytes) and new:
        assert len(new) <= of.profile_bytes_max
        assert profile(of, entity, [], new) == new


# Bounds. Compiled code reads and writes where its indices say; here they are checked, in a process of its own.


def run_with_bounds_checked() -> None:
    """Every path of the kernel, with damaged profiles too; an index out of bounds is an IndexError."""
    assert os.environ["NUMBA_BOUNDSCHECK"] == "1"
    with pytest.raises(IndexError):
        kernel.advance_source(engine().plan.words, 0, np.full(4, kernel.SOURCES_MAX - 1), 1, 1)
    chance = random.Random(7)
    for of in (engine(), rich()):
        for entity in ENTITIES:
            run_events(of, entity, chance)
            run_damage(of, entity, chance)
    for damaged in DAMAGED.values():
        status_of("card", damaged)
    for entity in ENTITIES:
        # Profiles that would overflow if they were accepted: full tables that drop nothing, and too many sources.
        assert status_of(entity, full(entity, tiles_to_ms=SUNDAY_MS + 90 * DAY_MS, newest_ms=1)) == "it is damaged"
        too_many = [(number, 0) for number in range(2000)]
        for count in (kernel.SOURCES_MAX + 1, len(too_many)):
            assert "source partitions" in status_of(entity, stored(entity, sources=too_many[:count]))


def run_damage(of: FeatureEngine, entity: str, chance: random.Random) -> None:
    """Bytes that are changed, cut and made up; the digest too, so that some are migrated."""
    other = rich() if of is engine() else engine()
    whole = [full(entity, of=of), profile(of, entity, GOOD), full(entity, of=other), profile(other, entity, GOOD)]
    for _ in range(1500):
        state = bytearray(chance.choice(whole))
        for _ in range(chance.randrange(5)):
            # Most of what can go wrong is in the head and the lengths.
            limit = len(state) if chance.random() < 0.5 else min(len(state), 60)
            state[chance.randrange(1, limit)] = chance.randrange(256)
        cut = chance.choice([0, 0, 0, chance.randrange(len(state))])
        status_of(entity, resealed(bytes(state[: len(state) - cut])), of)
        head = 7 + len(read_packed(whole[1]).shape)
        status_of(entity, resealed(whole[1][:head] + chance.randbytes(chance.randrange(60))), of)


def run_events(of: FeatureEngine, entity: str, chance: random.Random) -> None:
    """Profiles that grow from nothing to full and on, seen as they grow, in order and out of it."""
    number, state = of.plan.entity_names.index(entity), None
    for batch_size in [1, 2, 50, 500, 2000]:
        changes = [random_change(chance) for _ in range(batch_size)]
        slots = of.new_slots(len(changes))
        events = events_of([changes], with_rows=True)
        (state,) = of.apply(number, events, rows_of([changes]), [state], slots).states
        of.vectors_of_slots(rows_of([changes]), slots)
        vector(of, SUNDAY_MS + 80 * DAY_MS, 1, {entity: state}, country="DE", merchant_id="m3")
    vector(of, NOON_MS, 1, {})
    vector(of, NOON_MS, 1, dict.fromkeys(of.plan.entity_names))
    apply_groups(of, entity, [[], [payment(NOON_MS)], []], [None, full(entity, of=of), full(entity, of=of)])
    apply_groups(of, entity, [[]], [None])


def random_change(chance: random.Random) -> Change:
    time_ms = SUNDAY_MS + chance.randrange(80 * DAY_MS) if chance.random() < 0.5 else SUNDAY_MS + 80 * DAY_MS
    source, offset = chance.randrange(-1, kernel.SOURCES_MAX), chance.randrange(2**62)
    if chance.random() < 0.3:
        return label(time_ms, chance.choice([-1, 0, 1]), source=source, offset=offset)
    return payment(
        time_ms + chance.randrange(HOUR_MS),
        chance.choice([0, 1, AMOUNT_MAX]),
        source=source,
        offset=offset,
        merchant_id=f"m{chance.randrange(100)}",
        country=chance.choice([None, "DE", "ZZ", "x", "NZ"]),
        mcc=chance.choice([None, "5411", str(chance.randrange(9999))]),
        declined=chance.choice([None, True, False]),
    )


def run_lengths_that_overflow() -> None:
    """Foreign profiles whose tables and memories say they are so long that their size in words is a small number."""
    for entity in ENTITIES:
        foreign, empty = profile(rich(), entity, GOOD), profile(rich(), entity, [])
        shape = rich().plan.shapes[rich().plan.entity_names.index(entity)]
        for place in range(4, 4 + len(shape.widths)):
            for length in (-1, 2**16, 2**17, 2**60, 2**61, 2**62, 2**63 - 1):
                assert status_of(entity, changed(foreign, place, length)) == "it is damaged"
                # Columns of zeros take no bytes, however many there are: none adds up, but for what is dropped.
                status_of(entity, changed(empty, place, length))


def run_before_the_end_of_memory() -> None:
    """Profiles that end where the process may read no further: eight bytes at once must not reach beyond."""
    page, no_access = mmap.PAGESIZE, 0
    memory = mmap.mmap(-1, 2 * page)
    data = np.frombuffer(memory, dtype=np.uint8)[:page]
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(data.ctypes.data + page), ctypes.c_size_t(page), no_access) == 0
    for of in (engine(), rich()):
        words = np.zeros(max(map(of.plan.word_count, range(of.plan.entity_count))), dtype=np.int64)
        for number, entity in enumerate(ENTITIES):
            # The last column of one that no topic has brought is a measure; else it is offsets, of every width.
            states = [profile(of, entity, [replace(change, source=-1) for change in GOOD])]
            states += [
                profile(of, entity, [payment(NOON_MS, 5, source=source, offset=256**size) for source in range(count)])
                for size in range(8)
                for count in (1, 2, 3)
            ]
            for state in states:
                start = page - len(state)
                data[start:] = np.frombuffer(state, dtype=np.uint8)
                assert kernel.unpack(of.plan.words, number, data, start, page, words) == kernel.OK


def test_the_kernel_reads_nothing_after_the_last_byte() -> None:
    done = run_program(f"from {__name__} import run_before_the_end_of_memory as run; run()")
    assert done.returncode == 0, done.stderr


# Runs each function, and prints the traceback of each that fails.
CHECKED = """\
import json, sys, traceback
from tests.unit.features.kernel import test_bounds
failed = {}
for name in sys.argv[1:]:
    try:
        getattr(test_bounds, name)()
    except BaseException:
        failed[name] = traceback.format_exc()
print(json.dumps(failed))
"""
CHECKS = (run_with_bounds_checked, run_lengths_that_overflow)


@pytest.fixture(scope="module")
def failed_checks() -> dict[str, str]:
    """The checks that fail in a process whose compiled code checks its bounds, by name."""
    # Optimised less, which takes most of the time to compile. The digest keeps the code apart, for the next run too.
    checked = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_OPT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHECKED, *(check.__name__ for check in CHECKS)],
        env={**os.environ, **checked},
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    failed: dict[str, str] = json.loads(done.stdout)
    return failed


def test_no_path_of_the_kernel_goes_out_of_bounds(failed_checks: dict[str, str]) -> None:
    assert failed_checks.get(run_with_bounds_checked.__name__, "") == ""


def test_no_length_leads_a_migration_out_of_bounds(failed_checks: dict[str, str]) -> None:
    assert failed_checks.get(run_lengths_that_overflow.__name__, "") == ""
