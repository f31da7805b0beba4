"""Avro values in Faust: the codec of one topic.

Faust decodes a record in the event loop, before any agent sees it, and what raises there stops the agent. So the
codec never raises and never waits: what cannot be read is an `Undecodable`, and what was written with a schema
that has not been asked for yet is an `Unread`, which `record` then reads in a thread, as often as it takes.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from faust.serializers.codecs import Codec

from paywarden.schemas.avro import Decoder, Schema, SchemaIds
from paywarden.schemas.errors import InvalidEvent, TemporaryFailure

_log = logging.getLogger(__name__)
_RETRY_S = 5.0


@dataclass(frozen=True, slots=True)
class Undecodable:
    """A value that is no record of its topic, and why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unread:
    """A value whose schema has to be asked for first."""

    value: bytes = field(repr=False)

    @property
    def schema_id(self) -> int:
        """The writer's schema, from the header that the decoder has found in order."""
        return int.from_bytes(self.value[1:5], "big")


# What an agent gets as a value; None is a record that has none.
DecodedValue: TypeAlias = dict[str, Any] | Undecodable | Unread | None


class AvroCodec(Codec):
    """Reads the values of one topic; agents pass what they get through `record`. Never writes."""

    def __init__(self, topic: str, ids: SchemaIds) -> None:
        super().__init__()
        self._topic = topic
        self._known = _KnownSchemas(ids)
        self._known.ask_for(ids.id_of(topic))
        self._decoder = Decoder(topic, self._known)

    def _loads(self, s: bytes) -> DecodedValue:
        try:
            return self._decoder.decode(s)
        except InvalidEvent as error:
            return Undecodable(str(error))
        except TemporaryFailure:
            return Unread(s)

    async def record(self, value: DecodedValue) -> dict[str, Any] | Undecodable:
        """The record; waits for the schema registry where it has to be asked, and for as long as it is away."""
        while isinstance(value, Unread):
            try:
                await asyncio.to_thread(self._known.ask_for, value.schema_id)
            except InvalidEvent as error:
                return Undecodable(str(error))
            except TemporaryFailure as error:
                _log.warning(
                    "a record of %s cannot be read yet, trying again in %g s: %s", self._topic, _RETRY_S, error
                )
                await asyncio.sleep(_RETRY_S)
            else:
                value = self._loads(value.value)
        return Undecodable("the record has no value") if value is None else value


class _KnownSchemas:
    """Knows what has been asked for. Asking for the rest may take long, so `schema_of` does not."""

    def __init__(self, ids: SchemaIds) -> None:
        self._ids = ids
        self._schemas: dict[int, Schema] = {}

    def id_of(self, topic: str) -> int:
        return self._ids.id_of(topic)

    def schema_of(self, schema_id: int) -> Schema:
        try:
            return self._schemas[schema_id]
        except KeyError:
            raise TemporaryFailure(f"schema id {schema_id} has not been asked for") from None

    def ask_for(self, schema_id: int) -> None:
        """Blocks. Raises InvalidEvent when nobody knows it, TemporaryFailure when who knows did not answer."""
        self._schemas[schema_id] = self._ids.schema_of(schema_id)
