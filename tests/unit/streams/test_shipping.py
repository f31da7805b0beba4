"""What shipping says of itself. That nothing is lost is for tests/e2e/test_serving.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from schemas.avro import Encoder, LocalSchemaIds
from schemas.outbox_pb2 import OutboxEntry
from schemas.scoring_pb2 import ScoreResponse
from scoring.outbox import OutboxSettings, OutboxWriter
from streams.shipping import Shipper


class FakeProducer:
    """A broker that acknowledges when it is told to."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[Any, Any], None]] = []

    def produce(self, _topic: str, _value: bytes, *, on_delivery: Callable[[Any, Any], None], **_: Any) -> None:
        self._waiting.append(on_delivery)

    def acknowledge(self, number: int) -> None:
        self._waiting[number](None, None)

    def poll(self, _: float) -> None:
        """Nothing comes by itself."""


def test_what_waits_is_what_the_broker_has_not_acknowledged_without_a_gap(tmp_path: Path) -> None:
    settings, ids, producer = OutboxSettings(directory=str(tmp_path)), LocalSchemaIds(), FakeProducer()
    encoder = Encoder("decisions", ids.id_of("decisions"))
    shipper = Shipper(settings, producer=producer, topic="decisions", encoder=encoder)  # type: ignore[arg-type]
    writer = OutboxWriter(settings, "worker-0")
    ends = [writer.append(OutboxEntry(response=ScoreResponse(action="approve")).SerializeToString()) for _ in range(3)]
    assert shipper.waiting_bytes() == {}
    shipper.find_workers()
    assert (shipper.waiting_bytes(), shipper.under_way) == ({"worker-0": ends[2]}, 0)
    assert shipper.advance() == 3
    producer.acknowledge(1)
    shipper.advance()
    # The second waits for the first.
    assert (shipper.waiting_bytes(), shipper.under_way, shipper.shipped) == ({"worker-0": ends[2]}, 3, 0)
    producer.acknowledge(0)
    shipper.advance()
    assert (shipper.waiting_bytes(), shipper.under_way, shipper.shipped) == ({"worker-0": ends[2] - ends[1]}, 1, 2)
    writer.close()
