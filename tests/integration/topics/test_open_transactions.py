"""A stranger's transaction that is left open on a topic: each reader waits for its end, says so, and then goes on."""

from __future__ import annotations

import logging
import threading
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from paywarden.models.registry import entries as kinds
from paywarden.models.registry.model_log import LogFile
from paywarden.ops.cli import cli
from paywarden.ops.console.database import ConsoleDatabase
from paywarden.ops.console.inbox.alert_reader import AlertReader
from paywarden.ops.console.inbox.alert_store import TABLES, AlertStore
from paywarden.ops.times import now_ms
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.schemas.errors import BrokerUnavailable
from paywarden.streams.alerts.alert_events import EventWriter
from paywarden.streams.alerts.alert_records import ALERTS_TOPIC
from paywarden.streams.alerts.feed import AlertFeed
from paywarden.streams.decision_index.database import DuckDbDatabase
from paywarden.streams.decision_index.filler import IndexFiller
from paywarden.streams.decision_index.index import DecisionIndex
from paywarden.streams.decision_index.reviews import ReviewQueue, ReviewRules
from paywarden.streams.decision_index.search import Search
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.clients import KafkaClients
from paywarden.streams.kafka.reading import Record
from paywarden.streams.kafka.topics import TopicSettings, create_topics
from paywarden.streams.registry.shared_log import SharedLog
from paywarden.streams.registry.topic import REGISTRY_TOPIC, KafkaRegistryTopic
from paywarden.streams.traces.decisions import DecisionRecords
from tests.services.product.processes import wait_until
from tests.services.servers.kafka import produce
from tests.unit.streams.decision_index.test_index import made
from tests.worlds.drift.alerts_on_topics import NOW_MS, alert_record
from tests.worlds.rollout.registry import Writer, people_of
from tests.worlds.stream.transactions import left_open, look_quickly

IDS = LocalSchemaIds()


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    look_quickly(monkeypatch)


def send(settings: KafkaSettings, topic: str, *records: dict[str, object]) -> None:
    encoder = Encoder(topic, IDS.id_of(topic))
    produce(settings.bootstrap, settings.topic(topic), [(b"k", encoder.encode(record)) for record in records])


@pytest.fixture
def topics(settings: KafkaSettings) -> KafkaSettings:
    create_topics(settings, TopicSettings(partitions=1, repartition_partitions=1), ["card"])
    return settings


def test_an_index_says_what_it_lacks_and_gets_it_at_the_end(topics: KafkaSettings, tmp_path: Path) -> None:
    with closing(DuckDbDatabase(tmp_path / "index.duckdb")) as database:
        index, queue = DecisionIndex(database, worth=lambda amount, *_: amount), ReviewQueue(database, ReviewRules())
        began_ms = now_ms()
        filler = IndexFiller(index, queue, KafkaClients.of(topics), IDS, now_ms=now_ms)

        def is_filled(count: int) -> bool:
            filler.step()
            found = {row.payment_id for row in index.search(Search(), count=100).rows}
            return len(found) == count and (not filler.state.line() or bool(filler.state.held))

        send(topics, "decisions", made(0))
        wait_until(lambda: is_filled(1), "one decision is in the index")
        with left_open(topics, "decisions"):
            send(topics, "decisions", made(1), made(2))
            wait_until(lambda: is_filled(1) and bool(filler.state.held), "the index says that it lacks decisions")
            assert f"holds up {topics.topic('decisions')}/0 since" in filler.state.line()
            assert "3 records wait for its end" in filler.state.line()
            assert (filler.state.is_fresh, filler.state.held_since_ms >= began_ms) == (False, True)
        wait_until(lambda: is_filled(3) and filler.state.line() == "", "the index is whole")
        filler.close()


def test_pages_say_that_alerts_wait_and_show_them_at_the_end(topics: KafkaSettings, tmp_path: Path) -> None:
    with closing(ConsoleDatabase(tmp_path / "console.sqlite", TABLES)) as database:
        store = AlertStore(database)
        reader = AlertReader(store, lambda: AlertFeed(topics, IDS), lambda: EventWriter(topics, IDS))
        stop = threading.Event()
        thread = threading.Thread(target=reader.run, args=(stop,))
        thread.start()
        try:
            wait_until(lambda: not reader.missing(), "the topics are read")
            with left_open(topics, ALERTS_TOPIC):
                send(topics, ALERTS_TOPIC, alert_record(0))
                wait_until(lambda: bool(reader.missing()), "pages say that something waits")
                (missing,) = reader.missing()
                assert f"holds up {topics.topic(ALERTS_TOPIC)}/0" in missing.why
                assert store.count({}, NOW_MS) == 0
            wait_until(lambda: store.count({}, NOW_MS) == 1 and not reader.missing(), "the alert is there")
        finally:
            stop.set()
            thread.join()


def test_an_archive_names_what_it_lacks_and_gets_it_later(topics: KafkaSettings, tmp_path: Path) -> None:
    config = tmp_path / "paywarden.toml"
    config.write_text(f'[kafka]\nbootstrap = "{topics.bootstrap}"\ntopic_prefix = "{topics.topic_prefix}"\n')

    def archived() -> tuple[str, str]:
        arguments = ["admin", "archive", "--topic", "decisions", "--out", str(tmp_path / "archive")]
        done = CliRunner().invoke(cli, ["--config", str(config), *arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout.partition(" in ")[0], done.stderr

    send(topics, "decisions", made(0))
    with left_open(topics, "decisions"):
        send(topics, "decisions", made(1), made(2))
        added, told = archived()
        assert added == "1 decisions"
        assert "an open transaction of a producer holds up" in told
        assert "3 offsets are added when it has ended" in told
    added, told = archived()
    assert (added, "open transaction" in told) == ("2 decisions", False)


def test_spans_of_decisions_behind_it_wait_and_it_is_told(
    topics: KafkaSettings, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(DecisionRecords(topics, f"{topics.topic_prefix}traces", 100)) as records:
        send(topics, "decisions", made(0))
        found: list[Record] = []

        def read(count: int) -> bool:
            found.extend(records.read())
            records.commit()
            return len(found) == count

        wait_until(lambda: read(1), "one decision is read")
        with left_open(topics, "decisions"), caplog.at_level(logging.INFO):
            send(topics, "decisions", made(1))
            wait_until(lambda: read(1) and "holds up" in caplog.text, "it is told")
            assert f"holds up {topics.topic('decisions')}/0 since" in caplog.text
        with caplog.at_level(logging.INFO):
            wait_until(lambda: read(2), "the other decision is read")
            wait_until(lambda: read(2) and "has ended" in caplog.text, "its end is told")


def test_a_decision_that_is_not_found_may_be_behind_it(topics: KafkaSettings, tmp_path: Path) -> None:
    config = tmp_path / "paywarden.toml"
    config.write_text(f'[kafka]\nbootstrap = "{topics.bootstrap}"\ntopic_prefix = "{topics.topic_prefix}"\n')

    def refused() -> str:
        done = CliRunner().invoke(cli, ["--config", str(config), "decisions", "explain", "--topic", "p-none"])
        assert done.exit_code == 1
        return done.stderr

    with left_open(topics, "decisions"):
        assert (
            f"in the topic decisions (an open transaction of a producer holds up {topics.topic('decisions')}/0: 1 "
            in (refused())
        )
    assert "in the topic decisions\n" in refused()


def test_an_entry_of_the_registry_behind_it_is_neither_lost_nor_sent_twice(
    topics: KafkaSettings, tmp_path: Path
) -> None:
    """A command said "another host's entry came first, and nothing was done", and its entry counted later. A follower
    sent a rollback again each second."""
    topic, other = (KafkaRegistryTopic(lambda: (topics, IDS)) for _ in range(2))
    with closing(topic), closing(other):
        file, told = LogFile(tmp_path / "log.jsonl"), list[str]()
        log = SharedLog(file, topic, people_of(), told.append)
        log.append(lambda past: [Writer(past).entry(kinds.CLOCK_SET, "ben")])
        with left_open(topics, REGISTRY_TOPIC):
            with pytest.raises(BrokerUnavailable, match="an open transaction of a producer holds up topic"):
                log.append(lambda past: [Writer(past).entry(kinds.CLOCK_SET, "ben")])
            # A rollback or an abort counts on this host at once.
            (entry,) = log.append_now(lambda past: [Writer(past).entry(kinds.CLOCK_SET, "ben")])
            assert file.read().entries[-1] == entry
            assert "only this host knows it" in told[-1]
            for _ in range(3):
                with pytest.raises(BrokerUnavailable):
                    log.sync()
        assert [sent.digest for sent in log.sync().sent] == [entry.digest]
        assert len(list(other.read())) == 2
