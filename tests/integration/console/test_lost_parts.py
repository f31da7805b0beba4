"""A console whose schema registry is away, or whose topics were created again, says so and shows what it knows."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import httpx2

from paywarden.models.registry.registry import BundleFacts, PolicyFacts, Signer
from paywarden.ops.console.background import running
from paywarden.ops.console.database import ConsoleDatabase
from paywarden.ops.console.inbox.alert_reader import AlertReader
from paywarden.ops.console.inbox.alert_store import TABLES, AlertStore
from paywarden.ops.console.models.models_desk import Desk
from paywarden.ops.console.models.models_page import Models
from paywarden.ops.console.page_rows import Section
from paywarden.ops.console.people import Person, Role
from paywarden.ops.times import now_ms
from paywarden.ops.wiring.registry import reading_registry, shared_registry
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.schemas.settings import Source
from paywarden.streams.alerts.alert_events import COMMENTED, ConsoleEvent, EventWriter, alert_subject
from paywarden.streams.alerts.alert_records import ALERTS_TOPIC
from paywarden.streams.alerts.feed import AlertFeed
from paywarden.streams.kafka.admin import make_admin
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.topics import TopicSettings, create_topics
from tests.patience import PATIENCE_S
from tests.services.ports import free_port
from tests.services.product.console import BY_A_BROWSER
from tests.services.product.processes import PaywardenProcess, wait_until
from tests.services.servers.kafka import produce
from tests.worlds.drift.alerts_on_topics import alert_record
from tests.worlds.rollout.people_with_keys import people_with_keys
from tests.worlds.stream.decision_records import decision
from tests.worlds.stream.topics import read_topic

TOPICS = TopicSettings(partitions=1, repartition_partitions=1)


class _Analyst:
    """A person at a browser."""

    def __init__(self, address: str) -> None:
        self.client = httpx2.Client(base_url=address, timeout=PATIENCE_S, headers=BY_A_BROWSER)
        self.post("/login", name="demo-analyst")

    def post(self, path: str, **form: str) -> httpx2.Response:
        return self.client.post(path, data=form)

    def text(self, path: str) -> str:
        """Returns a page as a person reads it."""
        return " ".join(re.sub("<[^>]+>", "", self.client.get(path).text).split())

    def missing(self) -> str:
        return self.client.get("/readyz").text

    def close(self) -> None:
        self.client.close()


def put(settings: KafkaSettings, topic: str, number: int, more: str = "") -> None:
    encoder, now = Encoder(topic, LocalSchemaIds().id_of(topic)), now_ms()
    records = [
        alert_record(one, time_ms=now)
        if topic == ALERTS_TOPIC
        else decision(f"p{more}{one}", action="review", decided_time_ms=now, event_time_ms=now, score=0.5)
        for one in range(number)
    ]
    produce(settings.bootstrap, settings.topic(topic), [("key", encoder.encode(one)) for one in records])


def make_anew(settings: KafkaSettings, topic: str) -> None:
    """Delete a topic, and make it again under the same name."""
    admin, name = make_admin(settings), settings.topic(topic)
    for done in admin.delete_topics([name]).values():
        done.result()
    wait_until(lambda: name not in admin.list_topics(timeout=PATIENCE_S).topics, "the topic is deleted")
    create_topics(settings, TOPICS, ["card"])


def test_a_console_on_its_own_machine_shows_what_others_have_proposed(settings: KafkaSettings, tmp_path: Path) -> None:
    """It showed the log in its own folder, which nobody kept equal to the topic's: an empty registry."""
    create_topics(settings, TOPICS, ["card"])
    made = people_with_keys(tmp_path, ("anna", "ben"), "a passphrase")
    kafka = {"bootstrap": settings.bootstrap, "topic_prefix": settings.topic_prefix}

    def source(folder: str) -> Source:
        models = {**made.models, "topic": True, "log": str(tmp_path / folder / "log.jsonl")}
        return Source({"kafka": kafka, "models": models, "serve": {"runtime": str(tmp_path / "none")}}, {})

    desk, follower = Desk(source("console"), ""), reading_registry(source("console"))
    assert follower is not None
    reader = Person("anna", frozenset({Role.MODEL_OWNER}))
    assert desk.registry(reader, now_ms())["no_log"] == str(tmp_path / "console/log.jsonl")
    models = Models(desk, follower=follower)
    assert models.missing()
    with running([models.section()]):
        wait_until(lambda: not models.missing(), "the console has read the topic")
        with shared_registry(source("elsewhere"), lambda _: None) as registry:
            bundle = BundleFacts("a" * 64, "model-2", "c" * 64, "", {"manifest.json": b"{}"})
            policy = PolicyFacts("b" * 64, "[policy]\n")
            registry.register(Signer("anna", made.keys["anna"]), bundle, policy, why="better", now_ms=now_ms())
        wait_until(lambda: len(desk.registry(reader, now_ms())["proposals"]) == 1, "the console shows the proposal")
        assert desk.registry(reader, now_ms())["no_log"] == ""
        make_anew(settings, "model-registry")
        # Its own copy has the log: the topic gets it again.
        wait_until(lambda: len(read_topic(settings, "model-registry")) > 0, "the topic has the log again")
        wait_until(lambda: not models.missing(), "it is whole again")
        assert len(desk.registry(reader, now_ms())["proposals"]) == 1


def test_a_topic_that_is_made_anew_is_noticed_while_people_act(settings: KafkaSettings, tmp_path: Path) -> None:
    """The console asked for the ids of topics only in a silence: constant acts kept the old alerts alive."""
    create_topics(settings, TOPICS, ["card"])
    put(settings, ALERTS_TOPIC, 3)
    ids = LocalSchemaIds()
    with closing(ConsoleDatabase(tmp_path / "console.sqlite", TABLES)) as database:
        store = AlertStore(database)
        reader = AlertReader(store, lambda: AlertFeed(settings, ids), lambda: EventWriter(settings, ids))
        with running([Section("alerts", "", "", (), background=(reader.run,))]):
            wait_until(lambda: store.count({}, now_ms()) == 3, "three alerts are known")
            make_anew(settings, ALERTS_TOPIC)
            writer = EventWriter(settings, ids)

            def is_noticed() -> bool:
                event = ConsoleEvent(alert_subject("alert-00001"), COMMENTED, "anna", now_ms(), {"note": "again"})
                writer.write(event)
                return [(one.topic, one.count) for one in store.gone()] == [(ALERTS_TOPIC, 3)]

            wait_until(is_noticed, "it is noticed")


def test_a_console_lives_without_registry_and_tells_of_topics_made_anew(
    settings: KafkaSettings, tmp_path: Path
) -> None:
    create_topics(settings, TOPICS, ["card"])
    put(settings, ALERTS_TOPIC, 3)
    put(settings, "decisions", 3)
    config = tmp_path / "paywarden.toml"

    def console(registry: str) -> tuple[PaywardenProcess, _Analyst]:
        config.write_text(
            f'[kafka]\nbootstrap = "{settings.bootstrap}"\ntopic_prefix = "{settings.topic_prefix}"\n'
            f'[registry]\nurl = "{registry}"\n'
            f'[console]\nport = 0\nfolder = "{tmp_path / "console"}"\n'
            f'[decision_index]\npath = "{tmp_path / "console/index.duckdb"}"\nsecond_review_share = 0.0\n',
            encoding="utf-8",
        )
        running = PaywardenProcess(tmp_path, config, "console")
        return running, _Analyst(running.first_line())

    # Nobody listens there. The console did not start.
    running, analyst = console(f"http://127.0.0.1:{free_port()}")
    wait_until(lambda: "3 alerts shown here" in analyst.text("/inbox"), "alerts are read without the registry")
    wait_until(lambda: "3 waiting" in analyst.text("/review"), "decisions are read without the registry")
    act = analyst.post("/inbox/act", alert="alert-00001", act="take")
    assert act.status_code == 503
    assert "Nothing was done, because nothing can be written: schema registry" in act.text
    analyst.post("/review/claim")
    found = re.search('name="claim" value="([^"]+)"', analyst.client.get("/review/mine").text)
    assert found is not None
    assert analyst.post("/review/decide", claim=found[1], verdict="fraud", reason="other").status_code == 303
    wait_until(lambda: "The topic of verdicts" in analyst.missing(), "the pages say that the verdict waits")
    assert "did not answer" in analyst.missing()
    analyst.close()
    assert running.stop() == 0

    running, analyst = console("")
    wait_until(lambda: len(read_topic(settings, "verdicts")) == 1, "the verdict is sent")
    wait_until(lambda: '"missing":[]' in analyst.missing(), "nothing is missing")
    make_anew(settings, ALERTS_TOPIC)
    wait_until(lambda: "3 earlier alerts (3 open)" in analyst.missing(), "what is gone is told")
    inbox = analyst.text("/inbox")
    assert "No alert is known here, but some may be missing" in inbox
    assert "No alert is open" not in inbox
    wait_until(lambda: analyst.client.get("/readyz").status_code == 200, "the console is ready")

    # More records than the index had read: at its next offset the new topic has a record, too.
    make_anew(settings, "decisions")
    put(settings, "decisions", 9, "new-")
    wait_until(lambda: "was deleted and created again since the index read it" in analyst.missing(), "it is told")
    for page in ("/decisions", "/review"):
        assert "The index does not follow the topics" in analyst.text(page)
    assert "paywarden decisions index --rebuild" in analyst.missing()
    analyst.close()
    assert running.stop() == 0
