"""Ships entries that were set aside, once their cause is mended: `paywarden outbox retry`.

    worker-0/set-aside/…4312-…4981.record ─ mended ─► outbox `retried` ─► topic decisions
                                                          └─ the companion ships it like a worker's outbox

1. Read the entry as records: a record is one, and bytes that were damaged must be whole records by now.
2. Parse each as the companion does. Where that fails, read its request once more without protobuf's limits, and take
   the fields that this release knows: an earlier release let callers put unknown fields and overlong numbers in.
3. Append all decisions of the entry to the outbox `retried` in one write, on disk, and delete the entry's file.

If the command is killed between the write and the deletion, the next run finds the decisions in the outbox `retried`,
which keeps its newest segment, and appends none twice.

An entry is left alone while the worker's cursor has not passed it: the companion would set it aside once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from google.protobuf.message import DecodeError

from paywarden.schemas.errors import InvalidEvent
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry, OutboxRecord
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest
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

_VARINT, _EIGHT, _BYTES, _BEGIN, _END, _FOUR = range(6)
_FIELDS = {field.number: field for field in ScoreRequest.DESCRIPTOR.fields}
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


def mended(payload: bytes) -> OutboxEntry:
    """Returns the decision in a record, also if its request is none that protobuf parses. Raises Unreadable."""
    try:
        entry = read_entry(payload)
    except Unreadable:
        entry = _with_request_read_anew(payload)
    entry.DiscardUnknownFields()
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
        decision = mended(payload)
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


def _with_request_read_anew(payload: bytes) -> OutboxEntry:
    try:
        # The same bytes, with the request as bytes.
        record = OutboxRecord.FromString(payload)
        outer = OutboxRecord(
            response=record.response,
            decided_time_ms=record.decided_time_ms,
            vector=record.vector,
            catalogue_digest=record.catalogue_digest,
        )
        entry = OutboxEntry.FromString(outer.SerializeToString())
        fields: dict[str, Any] = dict(_fields(record.request))
        entry.request.CopyFrom(ScoreRequest(**fields))
    except (DecodeError, ValueError, IndexError):
        raise Unreadable("it is no decision that can be parsed") from None
    return entry


def _fields(data: bytes) -> Iterator[tuple[str, str | int]]:
    """Yields name and value of each field of a request that this release knows. Raises ValueError, IndexError."""
    at, depth = 0, 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, stored = tag >> 3, tag & 7
        value: int | bytes = b""
        if stored == _VARINT:
            value, at = _varint(data, at)
        elif stored in (_EIGHT, _FOUR):
            at += 8 if stored == _EIGHT else 4
        elif stored == _BYTES:
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        elif stored == _BEGIN:
            depth += 1
        elif stored == _END and depth > 0:
            depth -= 1
        else:
            raise ValueError("no field of a message")
        if at > len(data):
            raise ValueError("a field has no end")
        known = _FIELDS.get(number)
        if known is None or depth > 0 or stored == _END:
            continue
        if known.type == known.TYPE_STRING and isinstance(value, bytes) and stored == _BYTES:
            yield known.name, value.decode()
        elif known.type != known.TYPE_STRING and isinstance(value, int):
            bits = 32 if known.type == known.TYPE_INT32 else 64
            low = value & (1 << bits) - 1
            yield known.name, low - (1 << bits) if low >> bits - 1 else low


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Returns a number of any length up to ten bytes, and where it ends."""
    value = 0
    for place in range(10):
        byte = data[at + place]
        value |= (byte & 127) << 7 * place
        if byte < 128:
            return value & (1 << 64) - 1, at + place + 1
    raise ValueError("a number has no end")
