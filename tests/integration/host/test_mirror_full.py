"""A mirror without room: the companion says so, ships on, and goes on when there is room again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from paywarden.ops import wiring
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
from paywarden.schemas.proto.scoring_pb2 import ScoreRequest, ScoreResponse
from paywarden.schemas.settings import read_source
from paywarden.scoring.state.mirror_file import MirrorSettings, MirrorView
from paywarden.scoring.state.outbox import OutboxSettings, OutboxWriter
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.embedded_broker import EmbeddedBroker
from paywarden.streams.kafka.producers import Sender
from tests.patience import PATIENCE_S
from tests.services.product.deployment import Deployment
from tests.services.product.in_process import running
from tests.services.product.processes import samples, wait_until

SIZE_MB, LARGER_MB, CARDS, STATE_BYTES = 8, 64, 10_000, 500


class Changelog:
    """The topic `profiles`, to which the test writes instead of the stream."""

    def __init__(self, bootstrap: str) -> None:
        self._sender = Sender(KafkaSettings(bootstrap=bootstrap), linger_ms=5)
        self._encoder = Encoder("profiles", LocalSchemaIds().id_of("profiles"))
        self.states: dict[bytes, bytes] = {}
        self._number = 0

    def change(self) -> None:
        """Give every card another state."""
        self._number += 1
        for card in range(CARDS):
            key, state = b"card:%d" % card, b"%d" % self._number + bytes(STATE_BYTES)
            value = self._encoder.encode({"entity": "card", "state": state, "written_time_ms": self._number})
            self._sender.send("profiles", value, key=key)
            self.states[key] = state
        self._sender.flush(PATIENCE_S)


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    with closing(EmbeddedBroker()) as broker:
        made = Deployment(tmp_path, broker.bootstrap, "")
        made.configure("companion", "fill_from_store = false\n")
        made.configure_internally("companion", batch_max=1000)
        made.configure("kafka", "check_crcs = false\n")
        text = made.config.read_text(encoding="utf-8").replace("size_mb = 256", f"size_mb = {SIZE_MB}")
        made.config.write_text(text, encoding="utf-8")
        yield made


def test_a_full_mirror_costs_no_change_and_no_decision(deployment: Deployment) -> None:
    """Its companion says so, and goes on when it is started again with more room."""
    source = read_source(str(deployment.config))
    changelog = Changelog(wiring.kafka_settings(source).bootstrap)
    addresses: list[str] = []
    writer = OutboxWriter(OutboxSettings(directory=str(deployment.outbox)), "worker-0")
    with wiring.companion(source, addresses.append) as companion, running(companion):
        changelog.change()
        wait_until(lambda: companion.health.mirror_trouble != "", "the mirror is full")
        assert companion.health.problems()[0] == f"the mirror is full: mirror.size_mb is {SIZE_MB}"
        assert companion.health.live()
        assert samples(addresses[0])[("paywarden_companion_mirror_refuses",)] == 1
        # Decisions are shipped all the while.
        writer.append(_decision())
        wait_until(
            lambda: samples(addresses[0]).get(("paywarden_companion_decisions_shipped_total",)) == 1,
            "the decision is shipped",
        )
        assert 0 < companion.profiles_applied < CARDS
    text = deployment.config.read_text(encoding="utf-8").replace(f"size_mb = {SIZE_MB}", f"size_mb = {LARGER_MB}")
    deployment.config.write_text(text, encoding="utf-8")
    source = read_source(str(deployment.config))
    with wiring.companion(source, addresses.append) as companion, running(companion):
        with closing(MirrorView(MirrorSettings(path=str(deployment.mirror), size_mb=LARGER_MB))) as mirror:
            wait_until(lambda: mirror.profile_count() == CARDS, "all changes are in the mirror")
            changelog.change()
            wait_until(lambda: mirror.read(changelog.states) == changelog.states, "it goes on", every_s=0.2)
        assert companion.health.mirror_trouble == ""
    writer.close()


def _decision() -> bytes:
    return OutboxEntry(
        request=ScoreRequest(payment_id="p", card_id="c", merchant_id="m", currency="EUR"),
        response=ScoreResponse(payment_id="p", decision_id="d", action="approve"),
        decided_time_ms=1,
    ).SerializeToString()
