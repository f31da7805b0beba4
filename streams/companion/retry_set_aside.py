"""Ships entries that were set aside, once their cause is fixed: `paywarden admin outbox --retry`.

    worker-0/set-aside/…4312-…4981.record ─ parsed ─► outbox `retried` ─► topic decisions
                                                          └─ the companion ships it like a worker's outbox

1. Read the entry as records: a record is one, and bytes that were damaged must be whole records by now.
2. Parse each as the companion does.
3. Append all decisions of the entry to the outbox `retried` in one write, on disk, and delete the entry's file.

If the command is killed between the write and the deletion, the next run finds the decisions in the outbox `retried`,
which keeps its newest segment, and appends none twice.

An entry is left alone while the worker's cursor has not passed it: the companion would set it aside once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace

from paywarden.schemas.errors import InvalidEvent
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.scoring.state.outbox import (
    RETRIED,
    Cursor,
    OutboxReader,
    OutboxSettings,
    OutboxWriter,
    framed,
    records_in,
    workers,
)
from paywarden.streams.companion.set_aside_entries import GAP, RECORD, SetAsideEntries, SetAsideEntry, Unreadable
from paywarden.streams.companion.shipment import read_entry

_READ_BATCH = 1000


@dataclass
class RetriedEntries:
    """The result for each entry. `sent`: how many decisions it put into the outbox `retried`; `refused`: why not."""

    sent: dict[SetAsideEntry, int] = field(default_factory=dict)
    refused: dict[SetAsideEntry, str] = field(default_factory=dict)


def entries_of(settings: OutboxSettings) -> list[SetAsideEntry]:
    """Returns everything that the outboxes of this host have set aside, in order. Raises OSError, OutboxUnavailable."""
    return [entry for worker in workers(settings) for entry in SetAsideEntries(settings, worker).entries()]


def retry(
    settings: OutboxSettings, entries: Iterable[SetAsideEntry], encode: Callable[[OutboxEntry], bytes]
) -> RetriedEntries:
    """Hand entries over to be shipped, as far as they can be read now. `encode` refuses an entry that fits no topic.

    Raises Misconfigured while another retry runs, OutboxFull, OutboxUnavailable.
    """
    done = RetriedEntries()
    # A decision that was reported as shipped must survive a loss of power.
    with closing(OutboxWriter(replace(settings, fsync="always"), RETRIED)) as outbox:
        known = set(_payloads(settings))
        for entry in entries:
            try:
                payloads = list(_decisions(settings, entry, encode))
            except Unreadable as error:
                done.refused[entry] = str(error)
                continue
            new = [payload for payload in payloads if payload not in known]
            if new:
                outbox.append_frames(b"".join(map(framed, new)))
            entry.remove()
            known.update(new)
            done.sent[entry] = len(payloads)
    return done


def why_not(settings: OutboxSettings, entry: SetAsideEntry, encode: Callable[[OutboxEntry], bytes]) -> str:
    """Returns why an entry cannot be shipped now; empty if it can."""
    try:
        list(_decisions(settings, entry, encode))
    except Unreadable as error:
        return str(error)
    return ""


def readable(payload: bytes) -> OutboxEntry:
    """Returns the decision in a record. Raises Unreadable."""
    entry = read_entry(payload)
    if not (entry.request.payment_id and entry.response.action):
        raise Unreadable("it holds no decision about a payment")
    return entry


def _decisions(
    settings: OutboxSettings, entry: SetAsideEntry, encode: Callable[[OutboxEntry], bytes]
) -> Iterator[bytes]:
    """Yields the decisions of an entry as payloads of an outbox. Raises Unreadable."""
    if (Cursor(settings, entry.worker).load() or 0) < entry.end:
        raise Unreadable("the companion has not passed it yet: try again in a moment")
    if entry.kind == GAP:
        raise Unreadable(f"the outbox lacked these {entry.end - entry.begin} bytes: there is nothing to ship")
    data = entry.read()
    payloads = [data]
    if entry.kind != RECORD:
        payloads, end = records_in(data)
        if end < len(data):
            raise Unreadable(f"no whole record begins at byte {end} of {len(data)}: the bytes are damaged")
    for payload in payloads:
        decision = readable(payload)
        try:
            encode(decision)
        except InvalidEvent as error:
            raise Unreadable(str(error)) from error
        yield decision.SerializeToString()


def _payloads(settings: OutboxSettings) -> Iterator[bytes]:
    """Yields the payloads that the outbox `retried` still holds."""
    reader = OutboxReader(settings, RETRIED)
    position = reader.oldest()
    while records := reader.read(position, _READ_BATCH):
        position = records[-1][0]
        yield from (payload for _, payload in records)
