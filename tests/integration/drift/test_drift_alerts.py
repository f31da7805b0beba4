"""Drift alerts on a real Kafka: sent, listed, explained, acknowledged, and listed again."""

from __future__ import annotations

import json
from contextlib import closing

from paywarden.models.drift.detectors import DetectorSettings
from paywarden.schemas.avro import LocalSchemaIds
from paywarden.streams.alerts.alert_records import ACKNOWLEDGEMENTS_TOPIC, ALERTS_TOPIC, AlertSender, record_of
from paywarden.streams.alerts.alert_watch import DriftWatch
from paywarden.streams.alerts.alerts import Alert, AlertSettings, State
from paywarden.streams.alerts.journal import JournalReader
from paywarden.streams.kafka.admin import partitions_of
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import Sender
from tests.patience import PATIENCE_S
from tests.services.product.deployment import Deployment
from tests.worlds.drift.drift_world import SIGNALS, World

IDS = LocalSchemaIds()


def alerts_of_a_day() -> list[Alert]:
    """Returns alerts of a day on which a feature goes missing, its traffic doubles, and then the feature is back."""
    world, watch = World(1), DriftWatch("model-1", SIGNALS, DetectorSettings(), AlertSettings())
    told = []
    for number in range(100):
        world.missing = {"distance"} if 30 <= number < 60 else set()
        world.country_weights = (0.4, 0.3, 0.3) if number >= 45 else (0.2, 0.3, 0.5)
        told += watch.step(world.block())
    return told


def test_the_topics_alone_list_explain_and_acknowledge_an_alert(
    settings: KafkaSettings, deployment: Deployment
) -> None:
    assert [len(partitions_of(settings, topic)) for topic in (ALERTS_TOPIC, ACKNOWLEDGEMENTS_TOPIC)] == [1, 1]
    told = alerts_of_a_day()
    assert State.CLEARED in [alert.state for alert in told]
    sender = Sender(settings, linger_ms=0)
    alerts = AlertSender(sender, settings, IDS)
    # Some alerts are sent twice, as after a crash, and one record cannot be decoded.
    for alert in (*told, *told[:2]):
        alerts.send(record_of(alert))
    sender.send(settings.topic(ALERTS_TOPIC), b"no record", key=b"00")
    sender.flush(PATIENCE_S)

    status = json.loads(deployment.run("drift", "status", "--json").stdout)
    assert (status["open"], status["unreadable"]) == (1, 1)
    alert_id = status["alerts"][0]["alert_id"]
    assert status["alerts"][0]["segment"] == "country=DE"
    assert "traffic share" in deployment.run("drift", "status", alert_id[:6]).stdout

    done = deployment.run("drift", "note", alert_id, "a campaign", "--snooze", "2h", "--by", "ana")
    assert done.stdout.startswith(f"alert {alert_id} snoozed until ")
    assert "ana, snoozed until" in " ".join(deployment.run("drift", "status").stdout.split())
    with closing(JournalReader(settings, IDS)) as reader:
        known = reader.read().find(alert_id)
    assert [(said.by, said.note, said.until_ms > 0) for said in known.acknowledgements] == [("ana", "a campaign", True)]

    over = next(alert for alert in told if alert.state is State.CLEARED)
    assert "cleared at" in deployment.run("drift", "note", over.alert_id, "--ack", "--by", "ana").stderr
