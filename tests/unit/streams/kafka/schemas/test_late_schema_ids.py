"""A process that starts without a registry reads what topic `schemas` knows, and writes once the registry answers."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from paywarden.schemas.avro import Decoder, LocalSchemaIds, SchemaIds
from paywarden.schemas.errors import InvalidEvent, Misconfigured, PaywardenError, TemporaryFailure
from paywarden.streams.kafka.schemas.late_schema_ids import LateSchemaIds

OWN = LocalSchemaIds()
AWAY = Misconfigured("schema registry https://r did not answer: refused")


class _Registry:
    """Gives ids 1,000 higher than the fingerprints, when it is there."""

    def __init__(self) -> None:
        self.error: PaywardenError | None = AWAY
        self.asked = 0

    def made(self) -> SchemaIds:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return _Numbered()


class _Numbered(LocalSchemaIds):
    def id_of(self, topic: str) -> int:
        return super().id_of(topic) + 1_000

    def schema_of(self, schema_id: int) -> dict[str, object]:
        return super().schema_of(schema_id - 1_000)


def test_what_is_known_is_read_without_the_registry_and_writing_waits_for_it() -> None:
    now, registry = [0.0], _Registry()
    ids = LateSchemaIds(registry.made, OWN, clock=lambda: now[0])
    Decoder("decisions", ids)
    assert ids.schema_of(OWN.id_of("decisions")) == OWN.schema_of(OWN.id_of("decisions"))
    assert registry.asked == 0
    for _ in range(3):
        with pytest.raises(TemporaryFailure, match="did not answer: refused"):
            ids.id_of("decisions")
        # An id that nobody has remembered may be the registry's: the record is not thrown away.
        with pytest.raises(TemporaryFailure):
            ids.schema_of(OWN.id_of("decisions") + 1_000)
    # A registry that says nothing must not cost each caller its time-out.
    assert registry.asked == 1
    registry.error = None
    now[0] += 3.0
    assert ids.id_of("decisions") == OWN.id_of("decisions") + 1_000
    assert ids.schema_of(OWN.id_of("decisions") + 1_000) == OWN.schema_of(OWN.id_of("decisions"))
    with pytest.raises(InvalidEvent):
        ids.schema_of(7)
    assert registry.asked == 2


def test_one_thread_asks_a_registry_that_hangs_and_the_others_go_on() -> None:
    now, registry, hanging, go_on = [0.0], _Registry(), threading.Event(), threading.Event()

    def made() -> SchemaIds:
        if registry.asked:
            hanging.set()
            go_on.wait()
        return registry.made()

    ids = LateSchemaIds(made, OWN, clock=lambda: now[0])
    with pytest.raises(TemporaryFailure):
        ids.id_of("decisions")
    now[0] += 3.0
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ids.id_of, "decisions")
        hanging.wait()
        for _ in range(5):
            with pytest.raises(TemporaryFailure, match="refused"):
                ids.id_of("decisions")
        registry.error = None
        go_on.set()
        assert waiting.result() == OWN.id_of("decisions") + 1_000
