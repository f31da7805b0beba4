"""The promises, checked when everything has settled.

decisions    every answered payment has one decision on the topic, the one that its caller was told; no other
             payment has more than one; a request that was refused has none
profiles     equal the oracle's: all payments and outcomes of the topics, applied at once, in one thread
changelog    the newest record of each key is the store's profile; the mirror holds the same
letters      every record that cannot be used is a dead letter, with its bytes
resources    descriptors and files are bounded
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paywarden.models.rollout.shares import CIRCLE, CardSplit
from paywarden.schemas.avro import Decoder
from paywarden.schemas.errors import InvalidEvent
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.scoring.state.mirror_file import MirrorView, has_mirror
from paywarden.scoring.state.outbox import records_in
from paywarden.streams.profiles import events as batch
from paywarden.streams.profiles.decoder import EventDecoder
from paywarden.streams.profiles.events import EntityEvents, OutcomeEvent
from paywarden.streams.profiles.payment_columns import PaymentEvent, Position
from paywarden.streams.profiles.progress.watermarks import PREFIX
from tests.simulation.callers import Told
from tests.simulation.cluster.logs import Entry
from tests.simulation.processes import ENTITIES, SALT, SUPERVISOR, parts
from tests.simulation.world import Failed
from tests.worlds.stream.packed import sources_of, without_sources

if TYPE_CHECKING:
    from tests.simulation.history import History

DESCRIPTORS_MAX = 40
# Callers, probes, and what `connections` opens.
CONNECTIONS_MAX = 200
_ANEW = 1 << 48


def check_all(history: History) -> None:
    """Raises Failed for the first promise that is broken."""
    _check_decisions(history)
    stored = _check_profiles(history)
    _check_copies(history, stored)
    _check_letters(history)
    _check_index(history)
    _check_resources(history)


def _check_decisions(history: History) -> None:
    decoder = Decoder("decisions", parts().ids)
    decided: dict[str, list[Told]] = {}
    for _, _, entry in history.broker.records("decisions"):
        row = decoder.decode(entry.value or b"")
        _check_release(history, row)
        decided.setdefault(row["payment_id"], []).append(Told(row["decision_id"], row["score"], row["action"]))
    spoilt, shown = history.damaged_decisions, _shown(history)
    for payment_id, told in sorted(history.callers.told.items()):
        found = decided.get(payment_id, [])
        if payment_id not in spoilt and found != [told]:
            what = "no decision" if not found else f"{len(found)} decisions, {found}"
            raise Failed(
                "decision_lost" if not found else "decision_twice", f"{payment_id} was told {told}, has {what}"
            )
    for payment_id, found in sorted(decided.items()):
        if len(found) > 1 and payment_id not in spoilt:
            raise Failed("decision_twice", f"{payment_id} has {found} on the topic")
    told_ids = history.callers.told.keys()
    doubtful = {i for request in history.callers.requests if request.is_in_doubt for i in request.ids} | shown
    for request in history.callers.requests:
        if 200 in request.statuses or request.is_in_doubt:
            continue
        for payment_id in request.ids:
            if payment_id in decided and payment_id not in told_ids and payment_id not in doubtful:
                raise Failed(
                    "refused_and_decided",
                    f"a request for {len(request.ids)} payments was refused with {request.statuses}, and {payment_id} "
                    "has a decision on the topic",
                )


def _check_release(history: History, row: dict[str, Any]) -> None:
    """A payment is decided by a release that was ordered; in a rollout, by that of its card's arm."""
    own, other = (release.origins[0].bundle_digest for release in parts().releases.values())
    split = CardSplit(bytes.fromhex(SALT))
    is_candidate = split.position(f"card:{row['card_id']}".encode()) < CIRCLE // 2
    wanted = {own, other}
    if row["rollout"] == "r-1":
        wanted = {other if is_candidate else own}
        if row["arm"] != ("candidate" if is_candidate else "champion"):
            raise Failed("arm", f"{row['payment_id']} has the arm {row['arm']} of another card")
    elif row["payment_id"].startswith("probe-"):
        # Everything has settled: the last orders hold.
        orders = history.deployment.orders
        wanted = {parts().releases[orders.active].origins[0].bundle_digest}
        if orders.rollout == "r-1":
            raise Failed("arm", f"{row['payment_id']} is of no rollout, and one goes on")
    if row["rollout"] not in ("", "r-1") or row["bundle_digest"] not in wanted:
        raise Failed("release", f"{row['payment_id']} was decided by {row['bundle_digest'][:8]} of {row['rollout']!r}")


def _shown(history: History) -> set[str]:
    """Returns the payments that stood in an outbox for a moment, in a write that was cut short: docs/limits.md.

    On a disk on which room can be reserved there must be none.
    """
    if history.files.can_reserve:
        return set()
    return {
        OutboxEntry.FromString(record).request.payment_id
        for data in history.files.cut_short
        for record in records_in(data)[0]
    }


def _check_profiles(history: History) -> dict[bytes, bytes]:
    wanted = oracle(history)
    stored = {key: value for entity in ENTITIES for key, value in history.deployment.store.scan(entity)}
    if spoilt := history.damaged_profiles:
        wanted = {key: value for key, value in wanted.items() if key not in spoilt}
        stored = {key: value for key, value in stored.items() if key not in spoilt}
    missing, extra = wanted.keys() - stored.keys(), stored.keys() - wanted.keys()
    if missing or extra:
        raise Failed("profiles", f"{len(missing)} profiles are missing, {len(extra)} should not exist")
    differing = sorted(key for key in wanted if without_sources(wanted[key]) != without_sources(stored[key]))
    if differing:
        raise Failed(
            "profiles", f"{len(differing)} of {len(wanted)} profiles differ from the oracle's: {differing[:3]}"
        )
    return stored


def oracle(history: History) -> dict[bytes, bytes]:
    """Returns the profiles of all payments and outcomes on the topics."""
    shared = parts()
    decoder = EventDecoder(shared.engine, shared.rates, shared.ids)
    payments: list[PaymentEvent] = []
    seen: set[str] = set()
    outcomes: list[OutcomeEvent] = []
    fresh = {entry for _, _, entry in history.broker.records("payments")} if history.deleted_logs else set()
    for partition, offset, entry in [*_deleted(history), *history.broker.records("payments")]:
        if entry.poison is not None:
            continue
        # Offsets of a topic created again stand behind those of the old one.
        position = Position(batch.payments_source(partition), offset + _ANEW * (entry in fresh))
        try:
            event = decoder.payment(entry.value, position, entry.time_ms, entry.time_ms)
        except InvalidEvent:
            continue
        if event.payment_id not in seen:
            seen.add(event.payment_id)
            payments.append(event)
    for partition, offset, entry in history.broker.records("outcomes"):
        try:
            outcomes.append(
                decoder.outcome(entry.value, Position(batch.outcomes_source(partition), offset), entry.time_ms)
            )
        except InvalidEvent:
            continue
    joined = batch.join(payments, outcomes, {}, len(ENTITIES))
    profiles: dict[bytes, bytes] = {}
    for entity, events in enumerate(joined.of_entities()):
        order = np.argsort(events.rows[:, batch.OFFSET], kind="stable")
        sorted_events = EntityEvents([events.keys[index] for index in order], events.rows[order])
        profiles |= batch.apply(entity, sorted_events, {}, shared.engine).profiles
    return profiles


def _deleted(history: History) -> list[tuple[int, int, Entry]]:
    """Returns partition, offset and entry of each record of the deleted topic."""
    return [
        (partition, offset, entry)
        for partition, log in enumerate(history.deleted_logs)
        for offset, entry in enumerate(log.entries)
        if entry.is_visible
    ]


def _check_copies(history: History, stored: dict[bytes, bytes]) -> None:
    decoder = Decoder("profiles", parts().ids)
    last: dict[bytes, bytes] = {}
    for _, _, entry in history.broker.records("profiles"):
        assert entry.key is not None
        if not entry.key.startswith(PREFIX):
            last[entry.key] = decoder.decode(entry.value or b"")["state"]
    spoilt = history.damaged_profiles
    last = {key: value for key, value in last.items() if key not in spoilt}
    if last.keys() != stored.keys():
        raise Failed("changelog", f"the changelog has {len(last)} profiles, the store {len(stored)}")
    # A process that was stopped and goes on may send an older state after a newer one: docs/limits.md.
    is_strict = "changelog order" not in history.left_alone
    differing = sorted(key for key in stored if last[key] != stored[key])
    if differing and is_strict:
        raise Failed(
            "changelog", f"{len(differing)} of {len(stored)} profiles differ from the store's: {differing[:3]}"
        )
    with closing(MirrorView(history.deployment.mirror)) as mirror:
        mirrored = mirror.read(stored)
    differing = sorted(key for key in stored if mirrored[key] != last[key])
    if differing:
        raise Failed("mirror", f"{len(differing)} profiles differ from the changelog's: {differing[:3]}")


def check_watermark(history: History) -> None:
    """Raises Failed if the mirror lacks a payment from before the moment up to which it says it is complete."""
    # A worker's clock that is ahead claims too much, and so does what a frozen worker sends later: docs/limits.md.
    # A client that has silently lost a partition is no excuse: claims go by what is committed.
    if history.left_alone - {"stalled"} or history.damaged_profiles or not has_mirror(history.deployment.mirror):
        return
    with closing(MirrorView(history.deployment.mirror)) as mirror:
        complete_to_ms = mirror.complete_to_ms() or 0
        if complete_to_ms <= history.watermark_ms:
            return
        history.watermark_ms = complete_to_ms
        sources: dict[bytes, dict[int, int]] = {}
        for payment_id, (place, offset) in history.first_records.items():
            if history.broker.log(place).entries[offset].time_ms >= complete_to_ms:
                continue
            payment = history.on_topic[payment_id]
            for entity in ENTITIES:
                identity = payment.get(f"{entity}_id")
                if identity is None:
                    continue
                key = f"{entity}:{identity}".encode()
                if key not in sources:
                    state = mirror.read([key])[key]
                    sources[key] = {} if state is None else sources_of(state)
                if sources[key].get(batch.payments_source(place[1]), -1) < offset:
                    raise Failed(
                        "watermark",
                        f"the mirror says that it is complete up to {complete_to_ms}, and {key!r} lacks {payment_id} "
                        f"of {history.broker.log(place).entries[offset].time_ms}",
                    )


def _check_letters(history: History) -> None:
    decoder = Decoder("dead-letters", parts().ids)
    letters: Counter[tuple[str, bytes | None]] = Counter()
    for _, _, entry in history.broker.records("dead-letters"):
        row = decoder.decode(entry.value or b"")
        letters[row["topic"], row["value"]] += 1
    for poisoned in history.poisoned:
        if not letters[poisoned]:
            raise Failed("dead_letters", f"a record of {poisoned[0]} that cannot be used is no dead letter")
    for letter in sorted(letters, key=str):
        if letter not in history.poisoned and not history.left_alone & {"topic recreated", "labels"}:
            raise Failed("dead_letters", f"a good record of {letter[0]} is a dead letter")


def _check_index(history: History) -> None:
    """The index of decisions has each record of the topic once, and no other."""
    if (index := history.deployment.index) is None:
        return
    decoder = Decoder("decisions", parts().ids)
    wanted = Counter(
        decoder.decode(entry.value or b"")["decision_id"] for _, _, entry in history.broker.records("decisions")
    )
    with index.database.reading() as transaction:
        found = Counter(row[0] for row in transaction.execute("SELECT decision_id FROM decisions"))
    if wanted != found:
        raise Failed("index", f"the index lacks {len(wanted - found)} decisions and has {len(found - wanted)} too many")


def _check_resources(history: History) -> None:
    if (count := history.files.descriptors_most) > DESCRIPTORS_MAX:
        raise Failed("descriptors", f"a process had {count} files open")
    for name, process in history.deployment.processes.items():
        if process.actor is not None and len(process.actor.life.fds) > DESCRIPTORS_MAX // 2:
            raise Failed("descriptors", f"{name} has {len(process.actor.life.fds)} files open at the end")
    supervisor = history.deployment.processes.get(SUPERVISOR)
    if supervisor is not None and (odd := set(supervisor.outcomes) - {"killed"}):
        raise Failed("supervisor_ended", f"nobody has killed the supervisor, and it ended: {sorted(odd)}")
    root = Path(history.deployment.outbox.directory)
    count = sum(len(files) for _, _, files in os.walk(root))
    if count > 200:
        raise Failed("files", f"the outboxes are {count} files")
    if (most := max(history.connections_most.values(), default=0)) > CONNECTIONS_MAX:
        raise Failed("connections", f"a worker had {most} connections open")
