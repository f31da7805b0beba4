"""The loop of a replay with an overlay (features/history/point_in_time.py): a payment sees what profiles lack.

    event                       profile        pending      what payment 3 sees
    payment 1 reads             –              –
    payment 2 reads             –              1
    payment 1 is added          1              –
    payment 3 reads             1              2            a copy of the profile with payment 2 added

A payment is pending from the moment it reads until it is added. The queue of an entity is first in, first out, since
payments are added in the order in which they read.
"""

from __future__ import annotations

from paywarden.features.kernel.batches import EventResults, Events, PackedProfiles
from paywarden.features.kernel.codec import clear, pack, packed_bytes_max, unpack
from paywarden.features.kernel.layout import DECLINED, F64, I64, LABEL, NO_ROOM, OK, PAYMENT, STATUS_UNIT, TIME_MS
from paywarden.features.kernel.rollup import roll_up
from paywarden.features.kernel.toolkit.jit import compiled, inlined
from paywarden.features.kernel.update import update

# Kinds of events besides PAYMENT (it is added) and LABEL: a payment reads, or was pending before these events.
READS, WAITS = 4, 5
# A lifetime has sixteen steps, and the payments of a step stop being pending together. An entity with many pending
# payments then looks for expired ones once a step.
_STEPS = 16


@inlined
def pending_from_ms(now_ms: int, life_ms: int) -> int:
    """Returns the first moment whose payments are pending now: between fifteen sixteenths of a lifetime and one ago."""
    step = now_ms * _STEPS // life_ms - _STEPS + 1
    return int((step * life_ms + _STEPS - 1) // _STEPS)


@compiled(releases_gil=True)
def apply_with_pending(
    plan: I64,
    entity: int,
    profiles: PackedProfiles,
    events: Events,
    attributes: I64,
    words: I64,
    slots: F64,
    results: EventResults,
    hosts: I64,
    queue: I64,
    copied: I64,
    row_now: I64,
    limits: I64,
) -> int:
    """Do as kernel.apply_events for events without sources; where a payment reads, pending ones count.

    `hosts`, shape (rows of attributes,): the host that answers a payment; only payments of its own host are pending for
    it. `limits`: the lifetime of a pending payment in ms, and the most that are added to one profile, the newest ones.
    `queue` has room for all events; `copied` for a profile's words, `row_now` for a payment's row: scratch.
    """
    bounds, groups = profiles.bounds, events.groups
    out, out_bounds = results.profiles.data, results.profiles.bounds
    kind, payment, weight, row = events.kind, events.payment, events.weight, events.row
    position = 0
    out_bounds[0] = 0
    results.late[0] = 0
    for group in range(len(groups) - 1):
        if bounds[group] == bounds[group + 1]:
            clear(plan, entity, words)
        else:
            status = unpack(plan, entity, profiles.data, bounds[group], bounds[group + 1], words)
            if status != OK:
                return status * STATUS_UNIT + group
        oldest, newest = 0, 0
        for event in range(groups[group], groups[group + 1]):
            results.applied[event] = 1
            at = payment[event]
            if kind[event] == READS or kind[event] == WAITS:
                if row[event] >= 0:
                    found = 0
                    place = newest - 1
                    from_ms = pending_from_ms(attributes[at, TIME_MS], limits[0])
                    while place >= oldest and found < limits[1]:
                        other = queue[place]
                        place -= 1
                        if attributes[other, TIME_MS] < from_ms:
                            break
                        if hosts[other] != hosts[at]:
                            continue
                        if found == 0:
                            for word in range(len(words)):
                                copied[word] = words[word]
                        found += 1
                        for column in range(len(row_now)):
                            row_now[column] = attributes[other, column]
                        # Nobody knew yet whether the issuer would decline it.
                        row_now[DECLINED] = 0
                        update(plan, entity, copied, PAYMENT, row_now, 1)
                    roll_up(plan, entity, words if found == 0 else copied, attributes[at], slots[row[event]])
                queue[newest] = at
                newest += 1
                continue
            if kind[event] != LABEL:
                oldest += 1
            missed = update(plan, entity, words, kind[event], attributes[at], weight[event])
            results.late[0] += 1 if missed > 0 else 0
        if position + packed_bytes_max(plan, entity, words) > len(out):
            return NO_ROOM * STATUS_UNIT + group
        position = pack(plan, entity, words, out, position)
        out_bounds[group + 1] = position
    return OK
