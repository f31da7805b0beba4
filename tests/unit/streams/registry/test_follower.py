"""A host's copy follows the topic, after any fault in between."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import ANY

import pytest
from prometheus_client import CollectorRegistry

from paywarden.models.registry import entries as kinds
from paywarden.schemas.errors import RegistryRefused
from paywarden.schemas.rare_line import EVERY_S
from paywarden.streams.registry.follower import FollowerMetrics, LogFollower
from paywarden.streams.registry.shared_log import SharedLog
from tests.worlds.rollout.registry import Writer
from tests.worlds.rollout.registry_hosts import PEOPLE, Host, MemoryTopic


class Following:
    """A follower of host `two`, whose rounds the test makes."""

    def __init__(self, folder: Path) -> None:
        self.topic = MemoryTopic()
        self.one, self.two = (Host(folder, self.topic, name) for name in ("one", "two"))
        self.opened, self.closed, self.stamp = 0, 0, 1
        self.registry = CollectorRegistry()
        # How often the deployment file was brought up to date, and what is wrong with it.
        self.deployed, self.trouble = 0, ""
        self.now_s = 0.0
        self.follower = LogFollower(
            self._open,
            deploy=self._deploy,
            stamp=lambda: self.stamp,
            every_s=3600.0,
            metrics=FollowerMetrics(self.registry),
            clock=lambda: self.now_s,
        )

    def _deploy(self) -> None:
        self.deployed += 1
        if self.trouble:
            raise RegistryRefused(self.trouble)

    @contextmanager
    def _open(self) -> Iterator[SharedLog]:
        self.opened += 1
        yield SharedLog(self.two.file, self.topic.of("two"), PEOPLE, print)
        self.closed += 1

    def equal(self) -> bool:
        return self.one.file.path.read_bytes() == self.two.file.path.read_bytes()

    def metric(self, name: str) -> float:
        return self.registry.get_sample_value(f"paywarden_companion_model_registry_{name}") or 0.0


@pytest.fixture
def following(tmp_path: Path) -> Following:
    return Following(tmp_path)


def test_entries_of_other_hosts_come_into_the_copy(following: Following) -> None:
    following.one.promote("a")
    following.follower.step()
    following.one.promote("b")
    following.follower.step()
    assert following.equal()
    assert (following.opened, following.metric("failures_total")) == (1, 0.0)
    assert following.metric("synced_timestamp_seconds") > 0


def test_a_failure_is_told_once_and_the_topic_is_opened_anew(
    following: Following, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for name in ("a", "b"):
        following.one.promote(name)
    following.follower.step()
    following.topic.away = {"two"}
    entry = following.two.roll_back()
    for _ in range(3):
        following.follower.step()
    assert following.metric("failures_total") == 3.0
    following.topic.away = set()
    following.follower.step()
    following.one.log.sync()
    assert entry in following.one.file.read().entries
    assert following.equal()
    assert [record.message for record in caplog.records] == [
        "model registry: this host's log is not equal to the topic's: no Kafka broker answers",
        "model registry: this host's log is equal to the topic's again",
    ]
    assert following.opened == following.closed + 1


def test_a_bug_is_told_once_and_ends_no_thread(following: Following, caplog: pytest.LogCaptureFixture) -> None:
    """A file of people that was deleted filled the log with a traceback a second."""

    def fails() -> object:
        raise ZeroDivisionError

    following.follower._stamp = fails
    for _ in range(3):
        following.follower.step()
    assert [(record.levelname, bool(record.exc_info)) for record in caplog.records] == [("ERROR", True)]
    following.follower._stamp = lambda: 1
    following.one.promote("a")
    following.follower.step()
    assert following.equal()


def test_the_deployment_file_follows_without_kafka_and_its_failure_stops_nothing(
    following: Following, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    following.topic.away, following.trouble = {"two"}, "model.txt was changed after it was registered"
    following.one.promote("a")
    for _ in range(2):
        following.follower.step()
    assert following.deployed == 4
    following.topic.away, following.trouble = set(), ""
    following.follower.step()
    assert following.equal()
    assert [record.message for record in caplog.records] == [
        "model registry: this host's deployment file is not what its log says: "
        "model.txt was changed after it was registered",
        "model registry: this host's log is not equal to the topic's: no Kafka broker answers",
        "model registry: this host's deployment file is what its log says again",
        "model registry: this host's log is equal to the topic's again",
    ]


def test_a_changed_file_of_people_and_odd_records_are_noticed(
    following: Following, caplog: pytest.LogCaptureFixture
) -> None:
    following.one.promote("a")
    following.topic.lines.append(Writer(following.one.file.read()).entry(kinds.CLOCK_SET, "eve").line)
    following.follower.step()
    following.topic.lines += [b"no entry"] * 1000
    following.follower.step()
    following.topic.lines += [b"no entry"] * 1000
    following.follower.step()
    # Everybody who may write to the topic could fill the log: a line a minute.
    (line,) = [record.message for record in caplog.records if "for nothing" in record.message]
    assert line.startswith("model registry: 1 more records of the topic count for nothing, the last: the key")
    following.now_s += EVERY_S
    following.follower.step()
    assert "2000 more records of the topic count for nothing, the last: it is no entry in JSON" in caplog.text
    following.stamp = 2
    following.follower.step()
    assert (following.opened, following.closed) == (2, 1)


def test_the_thread_ends_with_the_block_and_closes_the_topic(following: Following) -> None:
    following.one.promote("a")
    with following.follower:
        pass
    assert following.opened == following.closed


def test_a_console_copy_without_a_host_says_since_when_it_lacks_entries(following: Following) -> None:
    """The console had a follower of its own, which never read a changed file of people."""
    opened = following.opened
    follower = LogFollower(following._open, deploy=None, stamp=lambda: following.stamp, every_s=3600.0, metrics=None)
    assert follower.behind() == (ANY, "it is being read")
    following.one.promote("a")
    follower.step()
    assert (follower.behind(), following.equal(), following.deployed) == (None, True, 0)
    following.topic.away = {"two"}
    follower.step()
    behind = follower.behind()
    assert behind is not None
    assert behind[1] == "no Kafka broker answers"
    follower.step()
    assert follower.behind() == behind
    following.topic.away, following.stamp = set(), 2
    follower.step()
    assert follower.behind() is None
    before, following.stamp = following.opened, 3
    follower.step()
    assert following.opened == before + 1 > opened
    stop = threading.Event()
    stop.set()
    follower.run(stop)
    assert following.opened == following.closed
