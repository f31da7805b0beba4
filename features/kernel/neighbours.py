"""Features two hops away: the largest or the mean value of a feature of the last merchants of a card, for example.

A payment of card C1 arrives. The hop asks for the largest fraud share of the card's last 2 merchants:

    1. list   the card's profile as of the payment    -> the identities of M7 and M3, the newest first
    2. read   the profiles of M7 and M3 as of the payment    -> their fraud shares: 0.10 and 0.25
    3. combine                                        -> 0.25, in the payment's hop slot

Scoring does step 1 for a batch (`list_neighbours`), looks the profiles up, and does the rest (`fill_hops`). A replay
knows all events of a profile instead: it lists while it goes through the events of cards (`list_in_order`), reads while
it goes through those of merchants (`read_in_order`), and combines (`combine_rows`). Both use the same three steps.

A group is a source, a target and how many neighbours there are. The lists of all groups stand side by side in a row of
`identities`; `listed_at` is where that of a group begins. A hop slot holds one result of a group.
"""

from __future__ import annotations

import math

import numpy as np

from paywarden.features.kernel.assembly import assemble
from paywarden.features.kernel.batches import Events, PackedProfiles
from paywarden.features.kernel.codec import clear, unpack
from paywarden.features.kernel.layout import (
    ABSENT,
    F32,
    F64,
    I64,
    KNOWN,
    MEAN_OF,
    OK,
    STATUS_UNIT,
    TIME_MS,
    U8,
    UNKNOWN,
)
from paywarden.features.kernel.pending import READS, WAITS
from paywarden.features.kernel.plan_schema import (
    ENTITY,
    HEAD,
    HOP,
    HOP_RESULT,
    HOP_RESULT_SIZE,
    MEMORY,
    entity_at,
    hop_at,
    memory_at,
    memory_length_at,
    memory_times_at,
)
from paywarden.features.kernel.rollup import roll_up
from paywarden.features.kernel.toolkit.jit import compiled, inlined
from paywarden.features.kernel.update import update


@compiled(releases_gil=True)
def list_neighbours(
    plan: I64, attributes: I64, presence: U8, states: U8, bounds: I64, words: I64, identities: I64
) -> int:
    """Fill `identities`, shape (payments, listed), with the neighbours of payments; 0 where there is none.

    The other arguments, and the result, are those of `fill_vectors`.
    """
    entities = plan[HEAD.entity_count]
    for row in range(len(attributes)):
        identities[row, :] = 0
        unpacked = -1
        for number in range(plan[HEAD.hop_count]):
            hop = hop_at(plan, number)
            source = plan[hop + HOP.source]
            item = row * entities + source
            if presence[item] != KNOWN:
                continue
            # Groups of one source follow each other.
            if source != unpacked:
                status = unpack(plan, source, states, bounds[item], bounds[item + 1], words)
                if status != OK:
                    return int(status * STATUS_UNIT + item)
                unpacked = source
            _list(plan, hop, words, attributes[row, TIME_MS], identities[row])
    return OK


@compiled(releases_gil=True)
def fill_hops(
    plan: I64,
    attributes: I64,
    presence: U8,
    states: U8,
    bounds: I64,
    words: I64,
    values: F64,
    vector: F32,
    found: F32,
    hops: F64,
) -> int:
    """Fill `hops`, shape (payments, hop slots), from the packed profiles of neighbours; NaN means missing.

    `presence` has one entry for each payment and place of its list, payments outermost; the packed profile of entry i
    is states[bounds[i] : bounds[i + 1]]. ABSENT stands for an empty place of the list. UNKNOWN is a neighbour whose
    profile is gone: a store forgets one when all its windows are empty, so an empty profile has the same features.
    `vector`, shape (features,), and `found`, shape (NEIGHBOURS_MAX, results of any group), are scratch.
    Returns OK; otherwise the status times STATUS_UNIT plus the number of the entry it is about.
    """
    listed = plan[HEAD.listed_count]
    for row in range(len(attributes)):
        for number in range(plan[HEAD.hop_count]):
            hop = hop_at(plan, number)
            target = plan[hop + HOP.target]
            for place in range(plan[hop + HOP.last]):
                item = row * listed + plan[hop + HOP.listed_at] + place
                if presence[item] == ABSENT:
                    found[place, :] = np.nan
                    continue
                if presence[item] == UNKNOWN:
                    clear(plan, target, words)
                else:
                    status = unpack(plan, target, states, bounds[item], bounds[item + 1], words)
                    if status != OK:
                        return int(status * STATUS_UNIT + item)
                _read(plan, hop, words, attributes[row], values, vector, found[place])
            _combine(plan, hop, found, hops[row])
    return OK


@compiled(releases_gil=True)
def list_in_order(
    plan: I64, entity: int, profiles: PackedProfiles, events: Events, attributes: I64, words: I64, lists: I64
) -> int:
    """Go through the events of a source as `apply_events` does, and keep the lists in place of the profiles.

    Where events.row[i] >= 0, lists[events.row[i]] is filled with the neighbours just before event i. `lists` has shape
    (rows, listed) and holds 0. Kinds of events are those of `apply_with_pending`; a list has no pending payments.
    Returns OK; otherwise the status times STATUS_UNIT plus the group it is about.
    """
    for group in range(len(events.groups) - 1):
        status = _begin(plan, entity, profiles, group, words)
        if status != OK:
            return int(status * STATUS_UNIT + group)
        for event in range(events.groups[group], events.groups[group + 1]):
            at, row, kind = events.payment[event], events.row[event], events.kind[event]
            if row >= 0:
                for number in range(plan[HEAD.hop_count]):
                    hop = hop_at(plan, number)
                    if plan[hop + HOP.source] == entity:
                        _list(plan, hop, words, attributes[at, TIME_MS], lists[row])
            if kind != READS and kind != WAITS:
                update(plan, entity, words, kind, attributes[at], events.weight[event])
    return OK


@compiled(releases_gil=True)
def read_in_order(
    plan: I64,
    number: int,
    profiles: PackedProfiles,
    events: Events,
    attributes: I64,
    words: I64,
    values: F64,
    vector: F32,
    found: F32,
) -> int:
    """Go through the events of the target of group `number`; an event of kind READS reads the neighbour's values.

    They go to found[events.row[i]]; `found` has shape (lists' places, results of the group) and holds NaN. A profile
    without any event is not known, and its values stay missing.
    Returns OK; otherwise the status times STATUS_UNIT plus the group of events it is about.
    """
    hop = hop_at(plan, number)
    entity = plan[hop + HOP.target]
    for group in range(len(events.groups) - 1):
        status = _begin(plan, entity, profiles, group, words)
        if status != OK:
            return int(status * STATUS_UNIT + group)
        is_known = profiles.bounds[group] < profiles.bounds[group + 1]
        for event in range(events.groups[group], events.groups[group + 1]):
            at = events.payment[event]
            if events.kind[event] != READS:
                update(plan, entity, words, events.kind[event], attributes[at], events.weight[event])
                is_known = True
            elif is_known:
                _read(plan, hop, words, attributes[at], values, vector, found[events.row[event]])
    return OK


@compiled(releases_gil=True)
def combine_rows(plan: I64, number: int, found: F32, slots: F64) -> None:
    """Combine the values of group `number` into the hop slots of payments.

    Shapes (payments * last, results of the group) and (payments, slots).
    """
    hop = hop_at(plan, number)
    last = plan[hop + HOP.last]
    for row in range(len(slots)):
        of_payment = found[row * last : (row + 1) * last]
        _combine(plan, hop, of_payment, slots[row, plan[HEAD.hop_slots_at] :])


@inlined
def _begin(plan: I64, entity: int, profiles: PackedProfiles, group: int, words: I64) -> int:
    """Make `words` the profile of a group of events. Returns the status of unpacking it."""
    if profiles.bounds[group] == profiles.bounds[group + 1]:
        clear(plan, entity, words)
        return OK
    return int(unpack(plan, entity, profiles.data, profiles.bounds[group], profiles.bounds[group + 1], words))


@inlined
def _list(plan: I64, hop: int, words: I64, as_of_ms: int, identities: I64) -> None:
    """Write the values of a memory seen by a moment into a group's part of `identities`, the newest first.

    The function fills the rest of the part with 0.
    """
    section = entity_at(plan, plan[hop + HOP.source])
    where = memory_at(plan, section, plan[hop + HOP.memory])
    times_at, values_at = memory_times_at(plan, where), plan[where + MEMORY.values_at]
    items = words[memory_length_at(plan[section + ENTITY.table_count], plan[hop + HOP.memory])]
    place = plan[hop + HOP.listed_at]
    for item in range(items):
        if words[times_at + item] <= as_of_ms:
            identities[place] = words[values_at + item]
            place += 1
    for rest in range(place, plan[hop + HOP.listed_at] + plan[hop + HOP.last]):
        identities[rest] = 0


@compiled()
def _read(plan: I64, hop: int, words: I64, attributes: I64, values: F64, vector: F32, found: F32) -> None:
    """Write the values of one neighbour for the results of a group: the features as a vector would have them.

    `values` and `vector` hold anything for features of other entities, which these do not use.
    """
    roll_up(plan, plan[hop + HOP.target], words, attributes, values)
    assemble(plan, attributes, values, vector)
    for number in range(plan[hop + HOP.result_count]):
        at = plan[hop + HOP.results_at] + number * HOP_RESULT_SIZE
        found[number] = vector[plan[at + HOP_RESULT.feature]]


@inlined
def _combine(plan: I64, hop: int, found: F32, hops: F64) -> None:
    """Write the results of a group from the values of its neighbours. Missing ones do not count."""
    for number in range(plan[hop + HOP.result_count]):
        at = plan[hop + HOP.results_at] + number * HOP_RESULT_SIZE
        count, total, largest = 0, 0.0, np.nan
        for place in range(plan[hop + HOP.last]):
            value = float(found[place, number])
            if math.isnan(value):
                continue
            count += 1
            total += value
            largest = value if count == 1 else max(largest, value)
        if plan[at + HOP_RESULT.reduction] == MEAN_OF:
            largest = total / count if count > 0 else np.nan
        hops[plan[at + HOP_RESULT.slot]] = largest
