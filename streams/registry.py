"""Schema ids from a Confluent-compatible schema registry, or none: `schema_ids(settings)`.

At start every topic's schema is looked up under `<topic>-value` and, where `auto_register` allows, registered
if it is new; the registry then applies its own compatibility rule. While running, a writer's schema is asked
for once per id and kept.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, TypeVar
from urllib.parse import urlsplit

from confluent_kafka.schema_registry import Schema as RegistrySchema
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from schemas.avro import TOPICS, LocalSchemaIds, Schema, SchemaIds, parsed, schema_text, subject
from schemas.errors import InvalidEvent, Misconfigured, TemporaryFailure

# The client speaks HTTP through httpx2 where it is installed and through its predecessor elsewhere.
try:
    from httpx2 import HTTPError
except ImportError:
    from httpx import HTTPError  # type: ignore[import-not-found, no-redef, unused-ignore]

_Answer = TypeVar("_Answer")

_RETRIES: Final = 2
_RETRY_WAIT_MS: Final = 200
_RETRY_WAIT_MS_MAX: Final = 1_000
# A flood of broken records must not become a flood of requests; but an id that a follower of the registry
# has not heard of yet must soon be asked for again.
_UNKNOWN_FOR_S: Final = 30.0
_UNKNOWN_MAX: Final = 1_000

_NOT_FOUND: Final = 404
_INCOMPATIBLE: Final = 409
_REFUSED: Final = (401, 403)
# Confluent's codes for "no such subject", "no such version" and "no such schema".
_NO_SUCH: Final = (40401, 40402, 40403)
# What a server that is no schema registry makes of the client: its answer is no JSON, or not the right one.
_NO_REGISTRY_ERRORS: Final = (ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True)
class RegistrySettings:
    """Where the schema registry is and who we are to it."""

    # Where its API begins; several, separated by commas, are tried in turn. Empty: no registry.
    url: str = ""
    username: str = ""
    password: str = field(default="", repr=False)
    # PEM files; empty means the public authorities and no certificate of our own.
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    key_password: str = field(default="", repr=False)
    # False: our schemas must be there already, and a missing one stops the start.
    auto_register: bool = True
    timeout_ms: int = 5_000


def schema_ids(settings: RegistrySettings, topics: Iterable[str] = TOPICS) -> SchemaIds:
    """The ids of the configured registry, or those that need none. Raises Misconfigured."""
    return RegistrySchemaIds(settings, topics) if settings.url else LocalSchemaIds()


class RegistrySchemaIds:
    """Ids as a registry gave them. Constructing it talks to the registry.

    Raises Misconfigured with one line when the registry does not answer, refuses us or one of our schemas.
    `clock` gives seconds. Thread-safe.
    """

    def __init__(
        self,
        settings: RegistrySettings,
        topics: Iterable[str] = TOPICS,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = settings.url
        self._clock = clock
        self._schemas: dict[int, Schema] = {}
        self._unknown_until: dict[int, float] = {}
        self._client = _client(settings)
        try:
            self._ids = {topic: self._own_id(topic, settings.auto_register) for topic in topics}
        except TemporaryFailure as error:
            self.close()
            raise Misconfigured(str(error)) from error
        except Misconfigured:
            self.close()
            raise

    def close(self) -> None:
        """Closes its connections."""
        self._client.close()

    def id_of(self, topic: str) -> int:
        """The id our schema of `topic` has in the registry."""
        return self._ids[topic]

    def schema_of(self, schema_id: int) -> Schema:
        """The schema with that id, asked for once.

        Raises InvalidEvent when the registry has none or it is not readable Avro, TemporaryFailure when the
        registry does not answer.
        """
        schema = self._schemas.get(schema_id)
        if schema is None:
            self._refuse_if_unknown(schema_id)
            schema = self._schemas[schema_id] = self._fetched(schema_id)
        return schema

    def _own_id(self, topic: str, auto_register: bool) -> int:
        # One layout whatever the file's: some registries compare text where others compare schemas.
        ours = RegistrySchema(json.dumps(json.loads(schema_text(topic))), "AVRO")
        name = subject(topic)
        try:
            found = self._asked(lambda: self._client.lookup_schema(name, ours, normalize_schemas=True))
        except SchemaRegistryError as error:
            if error.error_code not in _NO_SUCH:
                raise _refusal(error, name, self._url) from error
            if not auto_register:
                raise Misconfigured(
                    f"schema registry {self._url}: subject {name} does not have our schema, "
                    "and registry.auto_register is false"
                ) from error
            return self._registered(name, ours)
        if found.schema_id is None:
            raise TemporaryFailure(f"schema registry {self._url} gave no id for subject {name}")
        return int(found.schema_id)

    def _registered(self, name: str, ours: RegistrySchema) -> int:
        try:
            return self._asked(lambda: self._client.register_schema(name, ours, normalize_schemas=True))
        except SchemaRegistryError as error:
            raise _refusal(error, name, self._url) from error

    def _refuse_if_unknown(self, schema_id: int) -> None:
        if self._clock() < self._unknown_until.get(schema_id, float("-inf")):
            raise InvalidEvent(f"unknown schema id {schema_id}")

    def _fetched(self, schema_id: int) -> Schema:
        try:
            answer = self._asked(lambda: self._client.get_schema(schema_id))
        except SchemaRegistryError as error:
            if error.http_status_code == _NOT_FOUND and error.error_code in _NO_SUCH:
                self._remember_unknown(schema_id)
                raise InvalidEvent(f"unknown schema id {schema_id}") from error
            raise TemporaryFailure(_status(error, self._url)) from error
        if answer.schema_type not in (None, "AVRO"):
            raise InvalidEvent(f"schema id {schema_id} is {answer.schema_type}, wanted AVRO")
        if answer.references:
            raise InvalidEvent(f"schema id {schema_id} refers to other schemas, which we do not read")
        return parsed(answer.schema_str or "")

    def _remember_unknown(self, schema_id: int) -> None:
        if len(self._unknown_until) >= _UNKNOWN_MAX:
            self._unknown_until.clear()
        self._unknown_until[schema_id] = self._clock() + _UNKNOWN_FOR_S

    def _asked(self, ask: Callable[[], _Answer]) -> _Answer:
        try:
            return ask()
        except HTTPError as error:
            reason = str(error) or type(error).__name__
            raise TemporaryFailure(f"schema registry {self._url} did not answer: {reason}") from error
        except _NO_REGISTRY_ERRORS as error:
            raise TemporaryFailure(f"schema registry {self._url} did not answer as one") from error


def _client(settings: RegistrySettings) -> SchemaRegistryClient:
    _check(settings)
    options: dict[str, object] = {
        "url": settings.url,
        "timeout": settings.timeout_ms / 1_000,
        "max.retries": _RETRIES,
        "retries.wait.ms": _RETRY_WAIT_MS,
        "retries.max.wait.ms": _RETRY_WAIT_MS_MAX,
    }
    optional = {
        "basic.auth.user.info": f"{settings.username}:{settings.password}" if settings.username else "",
        "ssl.ca.location": settings.ca_file,
        "ssl.certificate.location": settings.certificate_file,
        "ssl.key.location": settings.key_file,
        "ssl.key.password": settings.key_password,
    }
    options.update({name: value for name, value in optional.items() if value})
    try:
        return SchemaRegistryClient(options)
    except (OSError, ValueError) as error:
        # Without the cause's own words: they may quote what was configured.
        raise Misconfigured(
            f"schema registry {settings.url}: its URL or TLS files are not usable ({type(error).__name__})"
        ) from error


def _check(settings: RegistrySettings) -> None:
    for url in settings.url.split(","):
        try:
            parts = urlsplit(url.strip())
        except ValueError as error:
            raise Misconfigured("registry.url is not a URL") from error
        if parts.username is not None or parts.password is not None:
            raise Misconfigured("registry.url holds credentials: use registry.username and registry.password")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Misconfigured("registry.url: wanted http://host:port or https://host:port")
    if ":" in settings.username:
        raise Misconfigured("registry.username must not contain a colon")


def _refusal(error: SchemaRegistryError, name: str, url: str) -> Misconfigured:
    if error.http_status_code in _REFUSED:
        return Misconfigured(f"schema registry {url} refused our credentials for subject {name}")
    if error.http_status_code == _INCOMPATIBLE:
        return Misconfigured(f"schema registry {url}: our schema is not compatible with subject {name}: {_line(error)}")
    return Misconfigured(f"{_status(error, url)} for subject {name}: {_line(error)}")


def _status(error: SchemaRegistryError, url: str) -> str:
    return f"schema registry {url} answered with status {error.http_status_code}"


def _line(error: SchemaRegistryError) -> str:
    return " ".join(str(error.error_message).split())[:300]
