"""A host's copy of the log, kept equal to the topic's.

An entry in four steps:

1. Read the topic, and bring the copy up to it.
2. Make the entry for the log as it is now.
3. Send it, and read the topic to its end.
4. If the entry counts there, it is in the copy as well. If another host's came first, it is nowhere, and the command
   says so.

An entry that takes something back (a rollback, the verdict or abort of a rollout, the revocation of a key) does not
wait for Kafka: it goes into the copy, where this host's readers see it at once, and is sent after that. On a scoring
host a thread sends it, and the caller waits SEND_WAIT_S at most. If Kafka is away, the next `sync` sends it: the
companion's, for one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from paywarden.models.registry.copies import RefusedEntry, TopicReader, forked, merge
from paywarden.models.registry.entries import Entry
from paywarden.models.registry.model_log import LogFile, Overtaken, RegistryLog
from paywarden.models.registry.people import RegistryPeople
from paywarden.schemas.errors import Misconfigured, RegistryRefused, TemporaryFailure
from paywarden.schemas.file_state import FileState, file_state
from paywarden.schemas.line_file import LineFile
from paywarden.streams.registry.topic import RegistryTopic

# Another host may send between our reading and our sending. It does so a few times a day.
_ROUNDS_MAX = 10
# A broker that is well has an entry in a tenth of it. A person who takes something back waits no longer.
SEND_WAIT_S: Final = 0.6


@dataclass(frozen=True)
class Synced:
    """The result of a `sync`: entries sent to the topic, received from it, and set aside.

    `refused`: the newest records of the topic that do not count. `refused_count`: the number of all of them;
    `refused_now`: entries of this reading that were refused.
    """

    sent: tuple[Entry, ...]
    received: tuple[Entry, ...]
    set_aside: tuple[Entry, ...]
    refused: tuple[RefusedEntry, ...]
    refused_count: int
    refused_now: int


class SharedLog:
    """The log in a file and on the topic.

    `tell` gets a line when a rollback could not be sent. `wrote` is called when a rollback is in the copy, before it is
    sent: this host need not wait for Kafka. `apart` opens the topic a second time, for a thread that sends a rollback:
    give it where another process sends entries that are left. Without it the caller waits for Kafka as long as any
    command does.
    """

    def __init__(
        self,
        file: LogFile,
        topic: RegistryTopic,
        people: RegistryPeople,
        tell: Callable[[str], object],
        wrote: Callable[[], object] = lambda: None,
        apart: Callable[[], AbstractContextManager[RegistryTopic]] | None = None,
    ) -> None:
        self._file, self._topic, self._tell, self._wrote = file, topic, tell, wrote
        self._people, self._apart = people, apart
        self._reader = TopicReader(people)
        # The copy as it was read last, and the state of its file: a follower looks every second.
        self._copy = RegistryLog()
        self._looked: FileState | None = None

    @property
    def path(self) -> Path:
        """The file of this host's copy."""
        return self._file.path

    @property
    def set_aside_path(self) -> Path:
        """The file of entries that were set aside."""
        return self.path.with_name(f"{self.path.name}.set-aside")

    def read(self) -> RegistryLog:
        """Returns this host's copy. See LogFile."""
        return self._file.read()

    def append(self, make: Callable[[RegistryLog], Sequence[Entry]]) -> list[Entry]:
        """Append the entries of `make` on topic and host, and return them. Raises BrokerUnavailable without Kafka.

        Raises Overtaken if another host was faster, and any error of `make`: nothing is appended then.
        """
        self.sync()
        made = list(make(self._file.read()))
        self._topic.send(made)
        self.sync()
        known = {entry.digest for entry in self._file.read().entries}
        if not {entry.digest for entry in made} <= known:
            raise Overtaken("another host's entry came first, and nothing was done: run the command again")
        return made

    def append_now(self, make: Callable[[RegistryLog], Sequence[Entry]]) -> list[Entry]:
        """Append the entries of `make` on this host at once, and on the topic if Kafka answers."""
        made = self._file.append(make)
        self._wrote()
        try:
            if self._apart is None:
                self.sync()
            else:
                self._send_apart(self._apart)
        except TimeoutError:
            self._tell(
                f"this host goes by it already; Kafka has not confirmed it within {SEND_WAIT_S:g} s, so other hosts "
                "may not know: the companion sends it, or `paywarden models sync`"
            )
        except (TemporaryFailure, Misconfigured) as error:
            self._tell(f"only this host knows it until `paywarden models sync` has sent it: {error}")
        return made

    def _send_apart(self, apart: Callable[[], AbstractContextManager[RegistryTopic]]) -> None:
        """Make copy and topic equal in a thread. Raises TimeoutError after SEND_WAIT_S; the thread goes on then.

        The thread shares the file alone, which has a lock: it is like another process.
        """
        done: Future[None] = Future()

        def send() -> None:
            try:
                with apart() as topic:
                    SharedLog(self._file, topic, self._people, self._tell).sync()
            except BaseException as error:  # noqa: BLE001 - it is raised in the caller's thread
                done.set_exception(error)
            else:
                done.set_result(None)

        threading.Thread(target=send, name="model-registry-send", daemon=True).start()
        done.result(SEND_WAIT_S)

    def sync(self, *, set_aside: bool = False) -> Synced:
        """Make copy and topic equal. Raises BrokerUnavailable, Misconfigured without the topic.

        Raises RegistryRefused if entries of this host are lost, unless `set_aside` puts them into a file of their own.
        """
        sent: list[Entry] = []
        refused_before = self._reader.refused_count
        for _ in range(_ROUNDS_MAX):
            self._reader.take(self._topic.read())
            own = self._own()
            merged = merge(own, self._reader.log)
            if merged.lost and not set_aside:
                raise RegistryRefused(f"{forked(merged.lost)}; `paywarden models sync --set-aside` takes them out")
            if merged.to_send:
                self._require_new(sent, merged.to_send)
                self._topic.send(merged.to_send)
                sent += merged.to_send
                continue
            if _is_same(own, merged.log) or self._took(own, merged.log, merged.lost):
                mine = {entry.digest for entry in own.entries}
                received = tuple(entry for entry in merged.log.entries if entry.digest not in mine)
                count = self._reader.refused_count
                refused = tuple(self._reader.refused)
                return Synced(tuple(sent), received, merged.lost, refused, count, count - refused_before)
        raise RegistryRefused(f"other hosts went on while this one read the log, {_ROUNDS_MAX} times: run it again")

    def _own(self) -> RegistryLog:
        """Returns this host's copy, which is read only if its file has changed: it is replaced, or it grows."""
        looked = file_state(self.path)
        # `read` raises the right error for a file that cannot be looked at.
        if looked is None or looked != self._looked:
            self._copy, self._looked = self._file.read(), looked
        return self._copy

    def _require_new(self, sent: Sequence[Entry], to_send: Sequence[Entry]) -> None:
        """Raise RegistryRefused if an entry was sent before and does not count on the topic."""
        for entry in to_send:
            if entry in sent:
                reasons = [refused.reason for refused in self._reader.refused if refused.digest == entry.digest]
                why = reasons[-1] if reasons else "it did not come back"
                raise RegistryRefused(f"{entry.kind} by {entry.by} ({entry.digest[:12]}) counts for nothing: {why}")

    def _took(self, own: RegistryLog, log: RegistryLog, lost: Sequence[Entry]) -> bool:
        """Put `log` in the place of the copy `own`; returns False if somebody appended to the copy meanwhile."""
        is_same = True

        def rest(now: RegistryLog) -> Sequence[Entry]:
            nonlocal is_same
            is_same = now.entries == own.entries
            return log.entries[len(own.entries) :] if is_same else ()

        def whole(now: RegistryLog) -> Sequence[Entry]:
            nonlocal is_same
            is_same = now.entries == own.entries
            return log.entries if is_same else now.entries

        if log.entries[: len(own.entries)] == own.entries:
            self._file.append(rest)
        else:
            self._keep(lost)
            self._file.replace(whole)
        return is_same

    def _keep(self, lost: Sequence[Entry]) -> None:
        """Put entries into the file of those that were set aside. Raises FileUnwritable: then none of them is there."""
        if not lost:
            return
        file = LineFile(self.set_aside_path)
        with file.locked():
            state = file_state(self.set_aside_path)
            size = 0 if state is None else state[1]
            file.append(size, b"".join(entry.line + b"\n" for entry in lost))


def _is_same(log: RegistryLog, other: RegistryLog) -> bool:
    return [entry.digest for entry in log.entries] == [entry.digest for entry in other.entries]
