"""Schema ids for a process that must start without a registry and without Kafka, such as the console.

registry and Kafka answer        ids are those of registry.py
the registry is away             reads use topic `schemas`; writing fails, and is tried again later
Kafka is away as well            nothing can be read in any case
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from paywarden.schemas.avro import Schema, SchemaIds, topic_schema
from paywarden.schemas.errors import InvalidEvent, PaywardenError, TemporaryFailure
from paywarden.schemas.payment_fields import TABLE_ALONE, PaymentFields

_AGAIN_S = 2.0


class LateSchemaIds:
    """Ids that are made when somebody needs them, and again until they can be. Thread-safe."""

    def __init__(
        self,
        make: Callable[[], SchemaIds],
        reading: SchemaIds,
        fields: PaymentFields = TABLE_ALONE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`make` may talk to the registry. `reading` needs no registry, and resolves ids until `make` has worked."""
        self._make, self._reading, self._fields, self._clock = make, reading, fields, clock
        self._ids: SchemaIds | None = None
        self._failed: tuple[float, PaywardenError] | None = None
        self._lock = threading.Lock()

    def id_of(self, topic: str) -> int:
        """Returns the id of the schema that we write to `topic`. Raises TemporaryFailure without the registry."""
        return self._made().id_of(topic)

    def current_schema(self, topic: str) -> Schema:
        """See SchemaIds."""
        return topic_schema(topic, self._fields)

    def schema_of(self, schema_id: int) -> Schema:
        """See SchemaIds."""
        if self._ids is None:
            try:
                return self._reading.schema_of(schema_id)
            except InvalidEvent:
                # Perhaps the registry knows it.
                pass
        return self._made().schema_of(schema_id)

    def _made(self) -> SchemaIds:
        if self._ids is not None:
            return self._ids
        # A registry that does not answer costs seconds. One thread asks, and the others use its last result.
        if not self._lock.acquire(blocking=self._failed is None):
            raise self._refusal()
        try:
            if self._ids is None:
                if self._failed is not None and self._clock() - self._failed[0] < _AGAIN_S:
                    raise self._refusal()
                try:
                    self._ids = self._make()
                except PaywardenError as error:
                    self._failed = self._clock(), error
                    raise self._refusal() from error
            return self._ids
        finally:
            self._lock.release()

    def _refusal(self) -> TemporaryFailure:
        assert self._failed is not None
        return TemporaryFailure(str(self._failed[1]))
