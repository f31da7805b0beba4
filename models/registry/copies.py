"""Copies of one log: that of the topic, that of a host, and how they become one.

The topic decides. Its records are read in the order of their offsets, and an entry counts if it fits the entries
before it and its signature is right. If two entries name the same previous entry, every reader counts the first one on
the topic.

A host's own entries that are not on the topic yet are sent there. A late entry, such as a rollback, fits behind any
entry (LATE_KINDS). Any other entry that no longer fits is *lost*: it was made while another host went on.

    topic   a b c d          host   a b R x       R is a rollback, x another entry
    becomes a b c d R        lost: x
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from paywarden.models.registry.entries import FORM, Entry, entry_of
from paywarden.models.registry.model_log import GrowingLog, RegistryLog
from paywarden.models.registry.people import RegistryPeople
from paywarden.schemas.signed_lines import digest_of

REFUSED_MAX: Final = 100
"""Everybody who may write to the topic can send records that do not count. The newest ones show what they are."""


@dataclass(frozen=True)
class RefusedEntry:
    """A record of the topic that does not count, and why. `digest`: the sha256 of its line."""

    digest: str
    reason: str


class TopicReader:
    """Takes the records of the topic in order. `log` has the entries that count.

    `refused`: the newest of the other records. `refused_count`: how many there were.
    """

    def __init__(self, people: RegistryPeople) -> None:
        self._people = people
        self._log = GrowingLog()
        self.refused: deque[RefusedEntry] = deque(maxlen=REFUSED_MAX)
        self.refused_count = 0

    @property
    def log(self) -> RegistryLog:
        """The entries that count."""
        return self._log.log

    def take(self, lines: Iterable[bytes]) -> None:
        """Take the next records. One that was sent twice counts once."""
        for line in lines:
            reason = self._refusal(line)
            if reason:
                self.refused.append(RefusedEntry(digest_of(line), reason))
                self.refused_count += 1

    def _refusal(self, line: bytes) -> str:
        try:
            entry = entry_of(FORM.read(line))
        except ValueError as error:
            return str(error)
        if entry.digest in self._log:
            return ""
        key = self._people.keys.get(entry.key)
        if key is None:
            return f"the key {entry.key} belongs to nobody in the file of people"
        if not entry.signed.is_signed_by(key):
            return f"the signature of {entry.by} is wrong"
        if full := self._log.refusal(entry, self._people):
            return f"{entry.kind} by {entry.by} has no room: {full}"
        return (
            "" if self._log.take(entry) else f"{entry.kind} by {entry.by} came too late: another entry was there first"
        )


@dataclass(frozen=True)
class Merge:
    """How a host's copy becomes the topic's: the log that both will be, the entries to send, and the lost ones."""

    log: RegistryLog
    to_send: tuple[Entry, ...]
    lost: tuple[Entry, ...]


def merge(own: RegistryLog, topic: RegistryLog) -> Merge:
    """Returns how a host's copy becomes the topic's."""
    log, to_send, lost = GrowingLog(topic.entries), list[Entry](), list[Entry]()
    for entry in own.entries:
        if entry.digest not in log:
            (to_send if log.take(entry) else lost).append(entry)
    return Merge(log.log, tuple(to_send), tuple(lost))


def forked(lost: Iterable[Entry]) -> str:
    """Returns the line that names lost entries: another host's came before them."""
    told = ", ".join(f"{entry.kind.replace('_', ' ')} by {entry.by} ({entry.digest[:12]})" for entry in lost)
    return f"the log has forked: another host's entries were on the topic first, and these count for nothing: {told}"
