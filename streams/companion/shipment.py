"""One worker's outbox on its way to the topic: records are read, and shipped or set aside.

    outbox worker-0   …│ d41 d42 ▒▒▒ d43 │
                       ▲             ▲                d41 d42 d43 → decisions          ▒▒▒ → set-aside
                 shipped_to       read_to

1. A record that is no decision, or does not fit the topic's schema, is set aside, and the next one is read.
2. Where the outbox is damaged, the bytes up to the next whole record are set aside: a later record of the segment, or
   the beginning of the next segment. The damage must still be there after `damage_confirm_s`. A writer may just be
   taking back a write that a full disk has cut short. A whole record at the position is never damage.
3. Bytes are set aside before the cursor passes them. If the transaction with the cursor fails, they are read again and
   found set aside already.
4. If an entry cannot be set aside, because the disk is full or too much is there already, this outbox stops, and no
   other.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from google.protobuf.message import DecodeError

from paywarden.schemas.durability import boot_id
from paywarden.schemas.errors import InvalidEvent, PaywardenError
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.scoring.state.outbox import (
    Cursor,
    OutboxDamaged,
    OutboxReader,
    OutboxSettings,
    OutboxUnavailable,
)
from paywarden.streams.companion.cursors import ShippedTo
from paywarden.streams.companion.file_ages import FileAges
from paywarden.streams.companion.set_aside_entries import DAMAGE, GAP, RECORD, SetAsideEntries, Unreadable

_log = logging.getLogger(__name__)

# Storing the cursor beside the outbox syncs it to disk, so it happens only this often.
CURSOR_EVERY_S = 0.2
# Records per read when it looks for the first that is not shipped.
_LOOK_BATCH = 1000


class Decision(NamedTuple):
    """A decision in the form of its topic, with its key."""

    key: str
    value: bytes


@dataclass(frozen=True)
class ShippingOptions:
    """Options of the shipper: how long decisions are kept, fields added to each, and the pace."""

    # How long the outbox keeps a decision after it is shipped.
    keep_s: float = 0.0
    # The name of this host's variant; it goes into every decision.
    variant: str = ""
    # At most this many decisions go into one transaction: about 5 MB, and a fraction of a second's work.
    transaction_max: int = 5_000
    # At most one transaction in this time, unless it is full: each costs the broker requests and markers for each
    # partition that it touches, however many decisions it has.
    transaction_every_s: float = 0.5
    # After a transaction of fewer decisions the next one waits twice as long: at low rates transactions would be a
    # quarter of the whole system's load on the broker.
    few: int = 50
    # The pause after a failed start or a lost producer.
    again_after_s: float = 1.0
    # How long damage must stay as it is before it is set aside.
    damage_confirm_s: float = 1.0


class Shipment:
    """One worker's outbox, with the positions up to which it is read and shipped."""

    def __init__(
        self,
        settings: OutboxSettings,
        worker: str,
        remote: ShippedTo | None,
        *,
        options: ShippingOptions,
        encode: Callable[[OutboxEntry], bytes],
    ) -> None:
        """`remote` is the cursor on Kafka. `encode` gives a decision the form of its topic, or raises InvalidEvent.

        Raises OutboxUnavailable.
        """
        self.worker = worker
        self.set_aside_count = 0
        """Entries that this object has set aside."""
        self._reader, self._cursor = OutboxReader(settings, worker), Cursor(settings, worker)
        self._ages = FileAges(settings, worker, options.keep_s)
        self._aside = SetAsideEntries(settings, worker)
        self._options, self._encode = options, encode
        self.shipped_to = self.read_to = self._start(remote)
        # Whether the next transaction carries the cursor.
        self.is_moved = remote is None or remote.position != self.read_to
        self._kept: int | None = None
        self._keep_due = 0.0
        # The position at which no record was found, and since when.
        self._damage: tuple[int, float] | None = None
        self._trouble = ""

    def read(self, count_max: int) -> list[Decision]:
        """Returns at most `count_max` new decisions; sets other records aside.

        If it raises, nothing was read. Raises OutboxUnavailable, SetAsideFull, OSError.
        """
        begun, was_moved = self.read_to, self.is_moved
        decisions: list[Decision] = []
        try:
            if not self._reader.has_after(self.read_to):
                self._damage = None
                return decisions
            try:
                records = self._reader.read(self.read_to, count_max)
            except OutboxDamaged as damage:
                if not self._pass_damage(str(damage)):
                    raise OutboxUnavailable(str(damage)) from damage
                return decisions
            if records or (count_max > 0 and self._reader.end() <= self.read_to):
                self._damage = None
            elif count_max > 0:
                if (reached := self._reader.behind_zeros(self.read_to)) > self.read_to:
                    self.read_to, self.is_moved = reached, True
                    return decisions
                # A record that is being written, or one whose size is damaged: then whole records follow it.
                self._pass_damage(f"a record of the wrong size begins at position {self.read_to}")
            for end, payload in records:
                try:
                    decisions.append(self._decision(payload))
                except Unreadable as error:
                    self._put(end, RECORD, payload, str(error))
                self.read_to, self.is_moved = end, True
        except (PaywardenError, OSError):
            if decisions:
                # The next call meets the same obstacle with nothing before it.
                return decisions
            self.read_to, self.is_moved = begun, was_moved
            raise
        return decisions

    def commit(self) -> None:
        """Note that everything read is on the topic."""
        self.shipped_to, self.is_moved = self.read_to, False

    def rewind(self) -> None:
        """Go back to the last commit: records read since then are not on the topic."""
        self.read_to = self.shipped_to

    def keep(self, *, at_once: bool = False) -> None:
        """At times store the position beside the outbox and delete old decisions that are shipped.

        Neither keeps the other from happening: a full disk has no room for the position until old decisions are gone.
        Raises OutboxUnavailable after both.
        """
        now = time.monotonic()
        if not at_once and now < self._keep_due:
            return
        self._keep_due = now + CURSOR_EVERY_S
        try:
            if self.shipped_to != self._kept:
                self._cursor.store(self.shipped_to)
                self._kept = self.shipped_to
        finally:
            if not self._options.keep_s or self._ages.are_right():
                self._reader.release(self.shipped_to, keep_s=self._options.keep_s)

    def waiting_bytes(self) -> int:
        """Returns how many bytes of the outbox are not on the topic. Raises OutboxUnavailable."""
        return max(0, self._reader.end() - self.shipped_to)

    def set_aside(self) -> tuple[int, int]:
        """Returns how many entries are set aside, and how many bytes they have. Raises OSError."""
        return self._aside.size()

    def say(self, trouble: str) -> None:
        """Log once why this outbox is not shipped; an empty text means that it is."""
        if trouble != self._trouble:
            if trouble:
                _log.error("companion: the outbox of %s waits, the others do not: %s", self.worker, trouble)
            else:
                _log.info("companion: the outbox of %s is shipped again", self.worker)
            self._trouble = trouble

    def _decision(self, payload: bytes) -> Decision:
        entry = read_entry(payload)
        try:
            return Decision(entry.request.payment_id, self._encode(entry))
        except InvalidEvent as error:
            raise Unreadable(str(error)) from error
        except Exception as error:  # noqa: BLE001 - a bug that one decision meets holds up none behind it
            # Where it happened, and not its text, which may quote the payment.
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise Unreadable(f"a bug: {type(error).__name__} at {place.name}, line {place.lineno}") from None

    def _pass_damage(self, reason: str) -> bool:
        """Set aside the bytes up to the next whole record, if they have stayed as they are. Returns whether it did."""
        now = time.monotonic()
        if self._damage is None or self._damage[0] != self.read_to:
            self._damage = self.read_to, now
        if now - self._damage[1] < self._options.damage_confirm_s:
            return False
        # To look for the next record takes long. If there is none yet, look again after the same time.
        self._damage = self.read_to, now
        end = self._reader.after_damage(self.read_to)
        if end is None:
            return False
        if end == self.read_to:
            # It was a record that the writer was just appending, or a disk that is well again.
            self._damage = None
            return False
        data = self._reader.raw(self.read_to, end)
        self._put(end, DAMAGE if data else GAP, data, reason)
        self.read_to, self.is_moved, self._damage = end, True, None
        return True

    def _put(self, end: int, kind: str, data: bytes, reason: str) -> None:
        if self._aside.put(self.read_to, end, kind, data):
            self.set_aside_count += 1
            _log.error(
                "companion: set aside %d bytes of the outbox of %s, at position %d: %s. "
                "`paywarden admin outbox` shows what is set aside",
                end - self.read_to,
                self.worker,
                self.read_to,
                reason,
            )

    def _start(self, remote: ShippedTo | None) -> int:
        """Returns the position to go on from: the cursor on Kafka, unless the outbox has lost those records.

        After a power loss or a restore from a copy, an outbox may end before the shipped position. Its writer has gone
        on from there, so the same positions now hold other decisions. The shipped ones were decided before the cursor
        was written, the new ones after it: the time tells them apart.
        """
        local = self._cursor.load()
        if remote is None or (local is not None and local > remote.position):
            return self._reader.start(self._cursor)
        if remote.boot_id == boot_id() and self._reader.end() >= remote.position:
            return remote.position
        begin = self._reader.start(self._cursor)
        oldest = self._reader.oldest()
        if begin < oldest <= remote.position:
            # These segments were deleted because they are shipped, and the local cursor could not be stored.
            begin = oldest
        position = begin
        for end, payload in self._scan(begin):
            if payload is None:
                # It says nothing about when it was decided. If the next decision is new, it is taken for new, too.
                continue
            if end > remote.position or payload.decided_time_ms > remote.time_ms:
                return position
            position = end
        return position

    def _scan(self, position: int) -> Iterator[tuple[int, OutboxEntry | None]]:
        """Yields the decisions from `position` on with the position after each; None for another record."""
        while True:
            try:
                records = self._reader.read(position, _LOOK_BATCH)
            except OutboxDamaged:
                following = self._reader.after_damage(position)
                if following is None:
                    return
                yield following, None
                position = following
                continue
            if not records:
                return
            for end, payload in records:
                try:
                    yield end, read_entry(payload)
                except Unreadable:
                    yield end, None
                position = end


def read_entry(payload: bytes) -> OutboxEntry:
    """Returns the decision in a record of an outbox. Raises Unreadable."""
    try:
        return OutboxEntry.FromString(payload)
    except DecodeError:
        raise Unreadable("it is no decision that protobuf can parse") from None
