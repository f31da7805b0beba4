"""Hosts that share the log of a model registry through a topic in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from paywarden.models.registry import entries as kinds
from paywarden.models.registry.entries import Entry
from paywarden.models.registry.model_log import LogFile, RegistryLog
from paywarden.models.registry.people import RegistryPeople
from paywarden.models.registry.registry_rules import Rules, state_of
from paywarden.schemas.errors import BrokerUnavailable
from paywarden.streams.registry.shared_log import SharedLog
from tests.worlds.rollout.registry import Writer, people_of

PEOPLE = people_of()
RULES = Rules()


class MemoryTopic:
    """The topic in memory, for several hosts. `away` has the hosts that cannot reach it."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.away: set[str] = set()
        # Called before the next records are written, once: another host is faster.
        self.before_send: Callable[[], object] | None = None

    def of(self, name: str) -> HostTopic:
        return HostTopic(self, name)


class HostTopic:
    """The topic as one host sees it."""

    def __init__(self, topic: MemoryTopic, name: str) -> None:
        self._topic, self._name, self._read = topic, name, 0

    def read(self) -> list[bytes]:
        self._require()
        lines = self._topic.lines[self._read :]
        self._read = len(self._topic.lines)
        return lines

    def send(self, entries: Iterable[Entry]) -> None:
        self._require()
        before, self._topic.before_send = self._topic.before_send, None
        if before is not None:
            before()
        self._topic.lines += [entry.line for entry in entries]

    def _require(self) -> None:
        if self._name in self._topic.away:
            raise BrokerUnavailable("no Kafka broker answers")


class Host:
    """A host with its copy of the log."""

    def __init__(self, folder: Path, topic: MemoryTopic, name: str, people: RegistryPeople = PEOPLE) -> None:
        self.told: list[str] = []
        self.people = people
        self.file = LogFile(folder / f"{name}.jsonl")
        self.topic, self.name = topic, name
        self.log = self.opened()

    def opened(self) -> SharedLog:
        """A new process on the host, which reads the topic from its beginning."""
        return SharedLog(self.file, self.topic.of(self.name), self.people, self.told.append)

    def promote(self, name: str) -> None:
        """Take a version all the way, in one append."""

        def make(log: RegistryLog) -> Sequence[Entry]:
            writer = Writer(log)
            proposal = writer.proposal(f"{name} {len(log.entries)}")
            writer.add(kinds.PROMOTED, "dora", proposal=proposal.digest)
            return writer.log.entries[len(log.entries) :]

        self.log.append(make)

    def roll_back(self) -> Entry | None:
        """Go back, if there is a way back on this host."""
        state = state_of(self.file.read(), PEOPLE, RULES)
        if state.champion is None or state.previous is None:
            return None
        what = {"from": state.champion.digest, "to": state.previous.digest}
        (entry,) = self.log.append_now(lambda log: [Writer(log).entry(kinds.ROLLED_BACK, "dora", {**what})])
        return entry
