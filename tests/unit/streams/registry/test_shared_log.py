"""Hosts that share a log: they end with one log after any fault of Kafka, and no rollback waits or is lost."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paywarden.models.registry import entries as kinds
from paywarden.models.registry.copies import TopicReader
from paywarden.models.registry.registry_rules import state_of
from paywarden.schemas.errors import BrokerUnavailable, Misconfigured, RegistryRefused
from paywarden.streams.registry import shared_log
from paywarden.streams.registry.shared_log import SharedLog
from tests.patience import PATIENCE_S
from tests.services.product.processes import wait_until
from tests.worlds.rollout.registry import Writer
from tests.worlds.rollout.registry_hosts import PEOPLE, RULES, Host, HostTopic, MemoryTopic


@pytest.fixture
def topic() -> MemoryTopic:
    return MemoryTopic()


def test_an_entry_of_one_host_is_on_the_topic_and_on_the_others(tmp_path: Path, topic: MemoryTopic) -> None:
    one, two = (Host(tmp_path, topic, name) for name in ("one", "two"))
    one.promote("a")
    done = two.log.sync()
    assert (len(done.sent), len(done.received)) == (0, 4)
    assert two.file.path.read_bytes() == one.file.path.read_bytes() == b"".join(line + b"\n" for line in topic.lines)
    # A log from before the topic was used is sent as it is.
    early = Host(tmp_path, MemoryTopic(), "one")
    assert len(early.log.sync().sent) == 4
    assert early.topic.lines == topic.lines


def test_without_kafka_only_a_rollback_is_written_and_it_is_sent_later(tmp_path: Path, topic: MemoryTopic) -> None:
    one, two = (Host(tmp_path, topic, name) for name in ("one", "two"))
    for name in ("a", "b"):
        one.promote(name)
    two.log.sync()
    topic.away = {"one"}
    before = one.file.path.read_bytes()
    # This host acts on what it has taken back before anybody asks Kafka.
    one.log = SharedLog(one.file, topic.of("one"), PEOPLE, one.told.append, wrote=lambda: one.told.append("wrote"))
    with pytest.raises(BrokerUnavailable):
        one.promote("c")
    assert one.file.path.read_bytes() == before
    entry = one.roll_back()
    assert entry is not None
    assert one.told == [
        "wrote",
        "only this host knows it until `paywarden models sync` has sent it: no Kafka broker answers",
    ]
    assert state_of(one.file.read(), PEOPLE, RULES).previous is None
    # Meanwhile the other host goes on.
    two.promote("c")
    topic.away = set()
    assert one.opened().sync().sent == (entry,)
    assert two.log.sync().received == (entry,)
    assert one.file.path.read_bytes() == two.file.path.read_bytes()
    log = two.file.read()
    assert log.late == {len(log.entries) - 1}
    assert len(state_of(log, PEOPLE, RULES).way_back) == 2


def sending_apart(host: Host, opened: Callable[[], AbstractContextManager[HostTopic]]) -> Host:
    """A scoring host, whose rollbacks a thread sends."""
    topic = host.topic.of(host.name)
    host.log = SharedLog(
        host.file, topic, PEOPLE, host.told.append, wrote=lambda: host.told.append("wrote"), apart=opened
    )
    return host


def test_a_rollback_returns_while_kafka_still_hangs_and_is_sent_after(tmp_path: Path, topic: MemoryTopic) -> None:
    """`models rollback` took 5.6 s with Kafka away, though its host had switched at once."""
    host = Host(tmp_path, topic, "one")
    for name in ("a", "b"):
        host.promote(name)
    answers = threading.Event()

    @contextmanager
    def hanging() -> Iterator[HostTopic]:
        assert answers.wait(PATIENCE_S), "the rollback waits for Kafka"
        yield topic.of("one")

    entry = sending_apart(host, hanging).roll_back()
    assert entry is not None
    assert state_of(host.file.read(), PEOPLE, RULES).previous is None
    wrote, line = host.told
    assert wrote == "wrote"
    assert line.startswith("this host goes by it already; Kafka has not confirmed it within 0.6 s")
    assert entry.line not in topic.lines
    answers.set()
    wait_until(lambda: topic.lines[-1] == entry.line, "the thread has sent it")
    assert host.log.sync().sent == ()


def test_a_rollback_that_kafka_takes_or_refuses_at_once_is_told_as_that(
    tmp_path: Path, topic: MemoryTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_log, "SEND_WAIT_S", PATIENCE_S)
    host = Host(tmp_path, topic, "one")
    for name in ("a", "b", "c"):
        host.promote(name)

    @contextmanager
    def opened() -> Iterator[HostTopic]:
        yield topic.of("one")

    entry = sending_apart(host, opened).roll_back()
    assert entry is not None
    assert (host.told, topic.lines[-1]) == (["wrote"], entry.line)
    topic.away = {"one"}
    assert host.roll_back() is not None
    assert host.told[-1] == (
        "only this host knows it until `paywarden models sync` has sent it: no Kafka broker answers"
    )


def test_of_two_hosts_at_once_the_second_is_told_to_try_again(tmp_path: Path, topic: MemoryTopic) -> None:
    one, two = (Host(tmp_path, topic, name) for name in ("one", "two"))
    topic.before_send = lambda: two.promote("faster")
    with pytest.raises(RegistryRefused, match="another host's entry came first, and nothing was done"):
        one.promote("slower")
    assert one.file.path.read_bytes() == two.file.path.read_bytes()
    one.promote("slower")
    two.log.sync()
    assert len(state_of(two.file.read(), PEOPLE, RULES).way_back) == 2
    assert len(two.log.sync().refused) == 4


def test_a_fork_is_named_and_set_aside_only_when_asked(tmp_path: Path, topic: MemoryTopic) -> None:
    one, two = (Host(tmp_path, topic, name) for name in ("one", "two"))
    for name in ("a", "b"):
        one.promote(name)
    two.log.sync()
    # A command wrote to the file of one host while it did not use the topic.
    alone = Host(tmp_path, MemoryTopic(), "one")
    alone.topic.lines = list(topic.lines)
    alone.promote("alone")
    two.promote("c")
    before = one.file.path.read_bytes()
    with pytest.raises(RegistryRefused, match=r"the log has forked: .*: registered bundle by anna .*--set-aside"):
        one.opened().sync()
    assert one.file.path.read_bytes() == before
    log = one.opened()
    assert len(log.sync(set_aside=True).set_aside) == 4
    assert one.file.path.read_bytes() == two.file.path.read_bytes()
    assert log.set_aside_path.read_bytes() == b"".join(before.splitlines(keepends=True)[-4:])


def test_what_is_set_aside_on_a_full_disk_is_there_whole_or_not_at_all(
    tmp_path: Path, topic: MemoryTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of a line stayed in the file, and the next try wrote its lines behind it."""
    one, two = (Host(tmp_path, topic, name) for name in ("one", "two"))
    one.promote("a")
    alone = Host(tmp_path, MemoryTopic(), "one")
    alone.topic.lines = list(topic.lines)
    alone.promote("alone")
    two.promote("c")
    before, log, write = one.file.path.read_bytes(), one.opened(), os.write

    def half(descriptor: int, content: bytes) -> int:
        if len(content) < 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, bytes(content)[: len(content) // 2])

    monkeypatch.setattr("paywarden.schemas.line_file.os.write", half)
    for _ in range(2):
        with pytest.raises(Misconfigured, match="No space left on device"):
            log.sync(set_aside=True)
    assert (log.set_aside_path.read_bytes(), one.file.path.read_bytes()) == (b"", before)
    monkeypatch.undo()
    log.sync(set_aside=True)
    assert log.set_aside_path.read_bytes() == b"".join(before.splitlines(keepends=True)[-4:])
    assert one.file.path.read_bytes() == two.file.path.read_bytes()


def test_records_that_nobody_known_has_signed_count_for_nothing(tmp_path: Path, topic: MemoryTopic) -> None:
    one = Host(tmp_path, topic, "one")
    one.promote("a")
    log = one.file.read()
    stranger = Writer(log).entry(kinds.CLOCK_SET, "eve")
    forged = stranger.line.replace(b'"by":"eve"', b'"by":"ben"').replace(
        stranger.key.encode(), log.entries[0].key.encode()
    )
    topic.lines += [b"no entry", stranger.line, forged, log.entries[0].line]
    one.promote("b")
    reasons = [refused.reason for refused in one.opened().sync().refused]
    assert reasons == [
        "it is no entry in JSON",
        f"the key {stranger.key} belongs to nobody in the file of people",
        "the signature of ben is wrong",
    ]
    assert len(one.file.read().entries) == 8


def test_an_entry_that_the_topic_does_not_take_is_told_once(tmp_path: Path, topic: MemoryTopic) -> None:
    one = Host(tmp_path, topic, "one")
    one.file.append(lambda log: [Writer(log).entry(kinds.CLOCK_SET, "eve")])
    with pytest.raises(RegistryRefused, match=r"clock_set by eve .* counts for nothing: the key .* belongs to nobody"):
        one.log.sync()
    assert len(topic.lines) == 1


@settings(max_examples=20, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(("promote", "promote", "roll_back", "roll_back", "sync", "restart")),
            st.integers(0, 1),
            st.sampled_from(((), ("one",), ("two",), ("one", "two"))),
        ),
        max_size=12,
    )
)
def test_hosts_end_with_one_log_and_every_rollback_in_it(
    steps: list[tuple[str, int, tuple[str, ...]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, topic = tmp_path_factory.mktemp("hosts"), MemoryTopic()
    hosts = [Host(folder, topic, name) for name in ("one", "two")]
    rolled_back: set[str] = set()
    for step, number, away in steps:
        host, topic.away = hosts[number], set(away)
        is_away = host.name in topic.away
        if step == "roll_back":
            entry = host.roll_back()
            rolled_back |= {entry.digest} if entry else set()
        elif step == "restart":
            host.log = host.opened()
        elif is_away:
            with pytest.raises(BrokerUnavailable):
                host.log.sync()
        elif step == "sync":
            host.log.sync()
        else:
            host.promote("x")
    topic.away = set()
    for host in (*hosts, *hosts):
        host.log.sync()
    one, two = (host.file.path for host in hosts)
    assert (one.read_bytes() if one.exists() else b"") == (two.read_bytes() if two.exists() else b"")
    log = hosts[0].file.read()
    assert rolled_back <= {entry.digest for entry in log.entries}
    # Nothing that a host did counts for nothing, and a new reader of the topic sees the same.
    assert state_of(log, PEOPLE, RULES).ignored == ()
    reader = TopicReader(PEOPLE)
    reader.take(topic.lines)
    assert reader.log.entries == log.entries
