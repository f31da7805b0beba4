"""Decode Avro values in Faust: the codec of one topic.

Faust decodes a record in the event loop, before any agent sees it. An exception there would stop the agent, and a wait
would stop the loop. The codec therefore never raises and never waits:

    a record whose schema is known      its fields, as a dict
    a value that is no such record      Undecodable, with the reason
    a schema that was not asked for     Unread: `record` asks the registry in a thread, as often as it takes
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from faust.serializers.codecs import Codec

from paywarden.schemas.avro import SCHEMAS_KEPT_MAX, Decoder, Schema, SchemaIds
from paywarden.schemas.errors import InvalidEvent, TemporaryFailure

_log = logging.getLogger(__name__)
_RETRY_S = 5.0


@dataclass(frozen=True, slots=True)
class Undecodable:
    """A value that is not a record of its topic, and the reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unread:
    """A value whose schema the registry has to be asked for first."""

    value: bytes = field(repr=False)

    @property
    def schema_id(self) -> int:
        """The id of the writer's schema, from the header. The decoder has checked the header."""
        return int.from_bytes(self.value[1:5], "big")


# The value that an agent gets. None stands for a record without a value.
DecodedValue: TypeAlias = dict[str, Any] | Undecodable | Unread | None


class AvroCodec(Codec):
    """Reads the values of one topic; agents pass their values through `record`. Never writes."""

    def __init__(self, topic: str, ids: SchemaIds) -> None:
        super().__init__()
        self._topic = topic
        self._known = _KnownSchemas(ids)
        self._known.ask_for(ids.id_of(topic))
        self._decoder = Decoder(topic, self._known)

    def read(self, value: bytes | None) -> DecodedValue:
        """Return the decoded value of a record."""
        return None if value is None else self._loads(value)

    def _loads(self, s: bytes) -> DecodedValue:
        try:
            return self._decoder.decode(s)
        except InvalidEvent as error:
            return Undecodable(str(error))
        except TemporaryFailure:
            return Unread(s)

    async def record(self, value: DecodedValue) -> dict[str, Any] | Undecodable:
        """Return the record of a value. If its schema is unknown, wait for the registry for as long as it takes."""
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
    """Knows the schemas that were asked for. Asking may take long, so `schema_of` never asks."""

    def __init__(self, ids: SchemaIds) -> None:
        self._ids = ids
        self._schemas: dict[int, Schema] = {}

    def id_of(self, topic: str) -> int:
        return self._ids.id_of(topic)

    def current_schema(self, topic: str) -> Schema:
        return self._ids.current_schema(topic)

    def schema_of(self, schema_id: int) -> Schema:
        try:
            return self._schemas[schema_id]
        except KeyError:
            raise TemporaryFailure(f"schema id {schema_id} has not been asked for") from None

    def ask_for(self, schema_id: int) -> None:
        """Fetch a schema; blocks.

        Raises InvalidEvent if the registry does not know it, TemporaryFailure if the registry is away.
        """
        schema = self._ids.schema_of(schema_id)
        if len(self._schemas) >= SCHEMAS_KEPT_MAX:
            self._schemas.clear()
        self._schemas[schema_id] = schema
