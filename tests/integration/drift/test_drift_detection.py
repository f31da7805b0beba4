"""From decisions on a real Kafka to an alert on its topic. Stream workers are killed; the alert is sent once."""

from __future__ import annotations

import json
import time
from contextlib import closing
from pathlib import Path

import pytest

from paywarden.features.stores.lmdb import LmdbSettings
from paywarden.features.stores.lmdb_sets import LmdbSets
from paywarden.models.drift.detectors import LENGTHS_MS
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.schemas.errors import StoreUnavailable
from paywarden.streams.alerts.alerts import State
from paywarden.streams.alerts.journal import Journal, JournalReader
from paywarden.streams.drift.drift_evaluation import read_done
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import make_producer
from tests.patience import PATIENCE_S
from tests.services.product.deployment import Deployment
from tests.services.product.processes import wait_until
from tests.worlds.small.small_decisions import FEATURE, SmallDecisions, reference

FIVE_MS = LENGTHS_MS[0]
BLOCKS, PAYMENTS = 60, 160
# Yesterday afternoon, so that the last block is over. Small decisions have some chance alarms, and which block
# raises one depends on the time of day.
DAY_MS = 86_400_000
START_MS = time.time_ns() // 1_000_000 // DAY_MS * DAY_MS - 8 * 3_600_000


class Decisions:
    """Sends the decisions of several hosts, block by block."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._topic = settings.topic("decisions")
        ids = LocalSchemaIds()
        self._encoder = Encoder("decisions", ids.id_of("decisions"))
        self._producer = make_producer(settings, linger_ms=5)
        self.made = SmallDecisions(seed=5)
        self.blocks = 0

    def send(self, blocks: int) -> None:
        for _ in range(blocks):
            for record in self.made.records(START_MS + self.blocks * FIVE_MS, PAYMENTS):
                self._producer.produce(self._topic, self._encoder.encode(record), key=record["payment_id"].encode())
            self.blocks += 1
        assert self._producer.flush(PATIENCE_S) == 0


@pytest.fixture
def watched(deployment: Deployment, tmp_path: Path) -> Deployment:
    """A deployment that watches the small world's model against a reference of similar decisions."""
    path = tmp_path / "reference.npz"
    reference().save(path)
    deployment.configure("drift", f'references = ["{path}"]\n')
    deployment.configure("drift", "grace_ms = 1000\n")
    deployment.configure_internally("drift", save_every_ms=200)
    return deployment


def test_a_missing_feature_raises_one_alert_whichever_worker_is_killed(
    watched: Deployment, settings: KafkaSettings
) -> None:
    decisions = Decisions(settings)
    decisions.send(12)
    decisions.made.gone = FEATURE
    decisions.send(12)
    decisions.made.gone = ""
    decisions.send(BLOCKS - decisions.blocks)
    first = watched.start("stream")
    wait_until(lambda: evaluated_ms(watched) >= START_MS + 6 * FIVE_MS, "the first worker evaluates")
    first.kill()
    second = watched.start("stream")
    wait_until(lambda: journal(settings).alerts != {}, "an alert is published")
    # The kill may come before the worker has saved the state that led to the alert, or long after.
    second.kill()
    third = watched.start("stream")
    wait_until(lambda: journal(settings).open() == [], "the alert is cleared")
    (alert,) = journal(settings).alerts.values()
    assert [state[1] for state in alert.states] == [State.RAISED, State.CLEARED]
    assert (alert.record["subject"], alert.record["segment"]) == (f"feature:{FEATURE}", "overall")
    assert alert.record["model_version"] == reference().model_version
    assert alert.record["reference_histogram"]["edges"] == alert.record["current_histogram"]["edges"]
    status = json.loads(watched.run("drift", "status", "--all", "--json").stdout)
    assert [shown["alert_id"] for shown in status["alerts"]] == [alert.alert_id]
    (model,) = status["models"]
    assert (model["version"], model["not_watched_because"]) == (reference().model_version, "")
    assert FEATURE in watched.run("drift", "status", alert.alert_id).stdout
    assert third.stop() == 0


def evaluated_ms(deployment: Deployment) -> int:
    if not deployment.store.exists():
        return 0
    sets = LmdbSets(LmdbSettings(path=str(deployment.store)))
    try:
        with closing(sets.open_beside(readonly=True)) as store:
            return read_done(store)[0].done_ms
    except StoreUnavailable:
        # The worker has not made the file yet.
        return 0


def journal(settings: KafkaSettings) -> Journal:
    with closing(JournalReader(settings, LocalSchemaIds())) as reader:
        return reader.read()
