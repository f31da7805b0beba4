"""The log of the registry: a file of entries, one a line, that grows at its end and nowhere else.

How it is written, by one process at a time (a lock on the file LOG.lock):

1. Read the whole log and check its chain.
2. Ask the caller for the next entry, which names the head of the log as the one before.
3. Append the line and its end in one write, and sync. Only then is the entry there.

A process that is killed in step 3 leaves a line without its end. It is no entry: readers leave it out, and the next
writer cuts it off. Nothing else is forgiven: a line that is no entry, and an entry that does not name the one before
it, raise RegistryRefused with its line.

Entries that take something back are the chain's exception: a rollback, the verdict or abort of a rollout, and the
revocation of a key. Two hosts may go on apart while Kafka is away; the log of one then holds a rollback that names an
earlier entry than the last. It is accepted behind any entry, as a *late* one. All other entries must name the line
before them.

Nobody reads a log that is longer than LOG_BYTES_MAX. Its last LATE_BYTES are for entries that take something back. A
key gets KEY_BYTES_MAX of it, the last quarter of them likewise, so one person cannot fill the log. The key of a
rollout's lead may fill it.

A log whose last entries were cut off is whole. Only a head that somebody remembers, or the copy on the topic, shows
that they are gone. Each writer therefore notes beside the log, in LOG.head, the head and the sha256 of all lines up to
it. The second finds what the chain cannot: of several late entries in a row, one that was removed or moved. A person
who can cut the log can change that file as well, but not a head that is kept elsewhere.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Protocol

from paywarden.models.registry.entries import FORM, LATE_KINDS, Entry, entry_of
from paywarden.models.registry.people import LEAD, RegistryPeople
from paywarden.schemas.errors import Misconfigured, RegistryRefused
from paywarden.schemas.file_state import open_regular, read_regular
from paywarden.schemas.line_file import LineFile
from paywarden.schemas.private_files import require_unwritable
from paywarden.schemas.signed_lines import FIRST, Chain, DamagedLine, SignedLine, chained_lines, write_head

# A hundred thousand entries. A busy bank makes a few thousand a year.
LOG_BYTES_MAX = 64 * 1024 * 1024
LATE_BYTES = 8 * 1024 * 1024
# A thousand registrations, which have 4 kB each.
KEY_BYTES_MAX = 4 * 1024 * 1024


class Overtaken(RegistryRefused):
    """Another host's entry came first, and nothing was done. A caller that still wants the same tries again."""


@dataclass(frozen=True)
class RegistryLog:
    """The entries of a log in order. `late`: the positions of late entries, from 0.

    `torn_bytes`: the length of an unfinished last line, which is no entry.
    """

    entries: tuple[Entry, ...] = ()
    late: frozenset[int] = frozenset()
    torn_bytes: int = 0

    @property
    def head(self) -> str:
        """The digest of the last entry. A reader that remembers it can tell later whether entries were cut off."""
        return self.entries[-1].digest if self.entries else FIRST

    @property
    def noted(self) -> tuple[str, str]:
        """The head, and the sha256 of all lines: a writer notes them beside the log."""
        return self.head, self._lines_digest(len(self.entries))

    def has_noted(self, noted: tuple[str, str]) -> bool:
        """Returns whether the log begins with the noted log. Nothing, or a head alone, may have been noted."""
        head, lines = noted
        if head in ("", FIRST):
            return True
        counts = [count for count, entry in enumerate(self.entries, 1) if entry.digest == head]
        return bool(counts) and lines in ("", self._lines_digest(counts[0]))

    def _lines_digest(self, count: int) -> str:
        lines = hashlib.sha256()
        for entry in self.entries[:count]:
            lines.update(entry.line + b"\n")
        return lines.hexdigest()

    def followed_by(self, entry: Entry) -> RegistryLog | None:
        """Returns the log with one entry more; None if the entry does not fit behind it."""
        growing = GrowingLog(self.entries)
        return growing.log if growing.take(entry) else None

    def check_signatures(self, people: RegistryPeople) -> None:
        """Raise RegistryRefused if an entry has a wrong signature. Entries of unknown keys cannot be checked."""
        for number, entry in enumerate(self.entries, 1):
            key = people.keys.get(entry.key)
            if key is not None and not entry.signed.is_signed_by(key):
                raise RegistryRefused(f"line {number} of the log is damaged: the signature of {entry.by} is wrong")


class GrowingLog:
    """A log to which entries are added, each in the same time, however long the log is."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        """`entries`: those of a log that was read."""
        self._entries, self._late = list[Entry](), set[int]()
        self._chain = Chain(has_late=True)
        self.bytes = 0
        self.bytes_by_key = Counter[str]()
        for entry in entries:
            self.take(entry)

    @property
    def log(self) -> RegistryLog:
        """The log as it is now."""
        return RegistryLog(tuple(self._entries), frozenset(self._late))

    def __contains__(self, digest: str) -> bool:
        return digest in self._chain

    def take(self, entry: Entry) -> bool:
        """Add an entry; returns False if it does not fit behind the log."""
        try:
            is_late = self._chain.take(entry.signed, may_be_late=entry.kind in LATE_KINDS)
        except DamagedLine:
            return False
        if is_late:
            self._late.add(len(self._entries))
        self._entries.append(entry)
        size = len(entry.line) + 1
        self.bytes += size
        self.bytes_by_key[entry.key] += size
        return True

    def refusal(self, entry: Entry, people: RegistryPeople) -> str:
        """Returns why there is no room for an entry; empty if there is."""
        more, late = len(entry.line) + 1, entry.kind in LATE_KINDS
        if self.bytes + more > LOG_BYTES_MAX - (0 if late else LATE_BYTES):
            return (
                f"the log has {self.bytes} bytes and is full, only rollbacks, aborts and revocations are left: begin "
                "another log ([models] log) with the champion"
            )
        owner = people.owner(entry.key)
        share = KEY_BYTES_MAX if late else KEY_BYTES_MAX * 3 // 4
        if self.bytes_by_key[entry.key] + more > share and not (owner and LEAD in owner.roles):
            return f"the key {entry.key} has signed {self.bytes_by_key[entry.key]} bytes of the log, its whole share"
        return ""


def log_of(content: bytes, where: str = "the log") -> RegistryLog:
    """Returns the log in these bytes. Raises RegistryRefused naming the first line that is damaged."""
    entries, late = list[Entry](), set[int]()
    try:
        for line, is_late in chained_lines(BytesIO(content), FORM, where, _may_be_late):
            if is_late:
                late.add(len(entries))
            entries.append(entry_of(line))
    except DamagedLine as error:
        raise RegistryRefused(str(error)) from error
    return RegistryLog(tuple(entries), frozenset(late), len(content) - (content.rfind(b"\n") + 1))


class Log(Protocol):
    """A log that can be read and appended to."""

    @property
    def path(self) -> Path:
        """The file of this host's copy."""

    def read(self) -> RegistryLog:
        """Returns the log as it is now. Raises RegistryRefused if it is damaged, Misconfigured if it cannot be read."""

    def append(self, make: Callable[[RegistryLog], Sequence[Entry]]) -> list[Entry]:
        """Append and return the entries that `make` makes of the log now. Raises Overtaken if another was faster."""

    def append_now(self, make: Callable[[RegistryLog], Sequence[Entry]]) -> list[Entry]:
        """Like `append`, without waiting for other hosts: for LATE_KINDS."""


@dataclass(frozen=True)
class LogFile:
    """The log in a file. It need not exist: a log without a file is empty."""

    path: Path

    def read(self) -> RegistryLog:
        """Returns the log as it is now. Raises RegistryRefused if it is damaged, Misconfigured if it cannot be read."""
        return log_of(self._content(), str(self.path))

    def append(self, make: Callable[[RegistryLog], Sequence[Entry]]) -> list[Entry]:
        """Append and return the entries that `make` makes of the log now. One process at a time is in here.

        Raises RegistryRefused if the log is damaged or an entry does not fit, Misconfigured if the file cannot be
        written, and what `make` raises. Nothing is appended then.
        """
        file = LineFile(self.path)
        with file.locked():
            content = self._content()
            log = log_of(content, str(self.path))
            made = list(make(log))
            longer = GrowingLog(log.entries)
            if not all(map(longer.take, made)):
                raise RegistryRefused("the entry does not name the last entry of the log as the one before")
            lines = b"".join(entry.line + b"\n" for entry in made)
            if lines or log.torn_bytes:
                file.append(len(content) - log.torn_bytes, lines)
                # The missing entries stay noted for `verify`: the next entry must not make a cut forgotten.
                if longer.log.has_noted(self._noted()):
                    self._remember(longer.log)
        return made

    def append_now(self, make: Callable[[RegistryLog], Sequence[Entry]]) -> list[Entry]:
        """See Log: a file has no other hosts."""
        return self.append(make)

    def replace(self, make: Callable[[RegistryLog], Sequence[Entry]]) -> None:
        """Put the log that `make` returns in the place of the present one, whole or not at all. Raises as `append`."""
        file = LineFile(self.path)
        with file.locked():
            lines = b"".join(entry.line + b"\n" for entry in make(self.read()))
            log = log_of(lines)
            # Entries may be taken out. If the writer is killed meanwhile, no head is better than one that is gone.
            self._head_path.unlink(missing_ok=True)
            file.replace(lines)
            self._remember(log)

    def remembered(self) -> tuple[str, str]:
        """Returns the note of the last writer on this host: the head, and the sha256 of the lines up to it.

        Empty if it could not. Raises Misconfigured.
        """
        try:
            noted = read_regular(self._head_path).decode("ascii", errors="replace")
        except FileNotFoundError:
            return "", ""
        except OSError as error:
            raise Misconfigured(f"cannot read {self._head_path}: {error.strerror}") from error
        head, _, lines = noted.strip().partition("\n")
        return head, lines

    def _noted(self) -> tuple[str, str]:
        try:
            return self.remembered()
        except Misconfigured:
            return "", ""

    @property
    def _head_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.head")

    def _remember(self, log: RegistryLog) -> None:
        """Note the head and the sha256 of the lines.

        It is not synced: a rollback must not wait, and an older head is in the log as well.
        """
        with suppress(OSError):
            write_head(self._head_path, "\n".join((*log.noted, "")).encode())

    def _content(self) -> bytes:
        try:
            with open_regular(self.path) as file:
                require_unwritable(self.path)
                content = file.read(LOG_BYTES_MAX + 1)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise Misconfigured(f"cannot read the log {self.path}: {error.strerror}") from error
        if len(content) > LOG_BYTES_MAX:
            raise Misconfigured(f"the log {self.path} has more than {LOG_BYTES_MAX} bytes")
        return content


def _may_be_late(line: SignedLine) -> bool:
    return line.content["kind"] in LATE_KINDS
