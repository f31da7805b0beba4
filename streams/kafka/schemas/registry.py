"""Schema ids with a Confluent-compatible schema registry or without: `schema_ids(settings, remembered)`.

Writing: with a registry, every topic's schema is looked up at start under `<topic>-value` and, where `auto_register`
allows, registered if it is new; the registry then applies its own compatibility rule. Without one, ids are
fingerprints of the schemas.

Reading is the same with a registry and without, so an operator may turn one on or off at any time. A reader looks for
the schema behind an id in this order, once for each id:

    1. our own schemas by their fingerprints     records from before the registry
    2. the ids remembered on topic `schemas`     records from a registry that is turned off or down
    3. the registry, if there is one             a new schema of another program; it is remembered from then on

A schema of payments with declared fields is in no release. Its fingerprint is remembered on topic `schemas` as well, so
that a later declaration reads records that were written under this one.

An id therefore means one schema for ever. If the registry gives one of our schemas an id that already means another,
the process does not start.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from confluent_kafka.schema_registry import Schema as RegistrySchema
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from paywarden.schemas.avro import (
    SCHEMAS_KEPT_MAX,
    TOPICS,
    LocalSchemaIds,
    Schema,
    SchemaIds,
    same_on_the_wire,
    schema_text,
    subject,
    topic_schema,
    writer_schema,
)
from paywarden.schemas.errors import InvalidEvent, Misconfigured, TemporaryFailure
from paywarden.schemas.payment_fields import TABLE_ALONE, PaymentFields
from paywarden.schemas.settings import internal
from paywarden.streams.kafka.schemas.remembered_schemas import RememberedSchemas

# The client speaks HTTP through httpx2 where it is installed and through its predecessor elsewhere.
try:
    from httpx2 import HTTPError
except ImportError:
    from httpx import HTTPError  # type: ignore[import-not-found, no-redef, unused-ignore]

_Answer = TypeVar("_Answer")

_RETRIES: Final = 2
_RETRY_WAIT_MS: Final = 200
_RETRY_WAIT_MS_MAX: Final = 1_000
# An unknown id is not asked for again for this long: a flood of broken records must not become a flood of requests. But
# a follower of the registry may not have heard of a new id yet, so the pause is short.
_UNKNOWN_FOR_S: Final = 30.0

_NOT_FOUND: Final = 404
_INCOMPATIBLE: Final = 409
_REFUSED: Final = (401, 403)
_SERVER_ERROR: Final = 500
# How the client begins its words for an answer that is no JSON.
_NO_ERROR_OF_A_REGISTRY: Final = "Unknown Schema Registry Error"
# Confluent's codes for "no such subject", "no such version" and "no such schema".
_NO_SUCH: Final = (40401, 40402, 40403)
# The client raises these if the server is no schema registry: its answer is no JSON, or JSON of another form.
_NO_REGISTRY_ERRORS: Final = (ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True)
class RegistrySettings:
    """The schema registry's address, and the credentials for it."""

    # The base URL of its API. Several, separated by commas, are tried in turn. Empty: no registry.
    url: str = ""
    username: str = ""
    password: str = field(default="", repr=False)
    # PEM files. Empty: the public certificate authorities, and no client certificate.
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    key_password: str = field(default="", repr=False)
    # False: our schemas must be registered already, and a missing one stops the start.
    auto_register: bool = True
    timeout_ms: int = internal(5_000)


def schema_ids(
    settings: RegistrySettings,
    remembered: RememberedSchemas,
    *,
    topic_prefix: str = "",
    topics: Iterable[str] = TOPICS,
    fields: PaymentFields = TABLE_ALONE,
) -> SchemaIds:
    """Returns the ids of the configured registry, else fingerprints. `fields` are those of a payment.

    Raises Misconfigured, BrokerUnavailable.
    """
    if settings.url:
        return RegistrySchemaIds(settings, remembered, topic_prefix=topic_prefix, topics=topics, fields=fields)
    return FingerprintSchemaIds(remembered, fields)


class FingerprintSchemaIds:
    """Writes with fingerprints, and also reads records with the ids of a registry. Thread-safe."""

    def __init__(self, remembered: RememberedSchemas, fields: PaymentFields = TABLE_ALONE) -> None:
        """With declared `fields` it remembers the schema of payments. Then it raises the errors of `remembered`."""
        self._local, self._remembered = LocalSchemaIds(fields=fields), remembered
        self._schemas: dict[int, Schema] = {}
        self._refused: dict[int, tuple[str, str]] = {}
        if fields.declared:
            self._remember_own(fields)

    def _remember_own(self, fields: PaymentFields) -> None:
        own = self._local.id_of("payments")
        known = self._remembered.read().get(own)
        if known is None:
            self._remembered.add({own: _one_layout("payments", fields)})
        elif not same_on_the_wire(_usable(own, known, self._refused), self._local.current_schema("payments")):
            raise Misconfigured(
                f"the schema of payments has the fingerprint {own}, which on these topics already means another "
                "schema: use another [kafka] topic_prefix, or another name of a declared field"
            )

    def id_of(self, topic: str) -> int:
        """Returns the fingerprint of the topic's schema."""
        return self._local.id_of(topic)

    def current_schema(self, topic: str) -> Schema:
        """See SchemaIds."""
        return self._local.current_schema(topic)

    def schema_of(self, schema_id: int) -> Schema:
        """Returns the schema with that id; looks for it once.

        Raises InvalidEvent when neither this release nor topic `schemas` knows it, BrokerUnavailable when Kafka does
        not answer.
        """
        schema = self._local.find(schema_id) or self._schemas.get(schema_id)
        if schema is None:
            text = self._remembered.read().get(schema_id)
            if text is None:
                raise InvalidEvent(f"unknown schema id {schema_id}")
            schema = _usable(schema_id, text, self._refused)
            _make_room(self._schemas)
            self._schemas[schema_id] = schema
        return schema


class RegistrySchemaIds:
    """Writes with the ids that a registry gives. Constructing it talks to the registry and to `remembered`.

    `topic_prefix` goes before the topics in the names of subjects, as it does on the cluster. `fields` are those of a
    payment.

    Raises Misconfigured with one line when the registry does not answer, or refuses us or one of our schemas. Raises
    BrokerUnavailable when its ids cannot be remembered. `clock` returns seconds. Thread-safe.
    """

    def __init__(
        self,
        settings: RegistrySettings,
        remembered: RememberedSchemas,
        *,
        topic_prefix: str = "",
        topics: Iterable[str] = TOPICS,
        clock: Callable[[], float] = time.monotonic,
        fields: PaymentFields = TABLE_ALONE,
    ) -> None:
        self._url, self._topic_prefix = settings.url, topic_prefix
        self._clock = clock
        self._remembered, self._fields = remembered, fields
        self._earlier = FingerprintSchemaIds(remembered, fields)
        self._schemas: dict[int, Schema] = {}
        self._unknown_until: dict[int, float] = {}
        self._refused: dict[int, str] = {}
        self._lock = threading.Lock()
        self._client = _client(settings)
        try:
            self._ids = self._own_ids(topics, settings.auto_register)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connections to the registry."""
        self._client.close()

    def id_of(self, topic: str) -> int:
        """Returns the registry's id of our schema of `topic`."""
        return self._ids[topic]

    def current_schema(self, topic: str) -> Schema:
        """See SchemaIds."""
        return topic_schema(topic, self._fields)

    def schema_of(self, schema_id: int) -> Schema:
        """Returns the schema with that id; looks for it once.

        Raises InvalidEvent for an unknown id or a schema that is not readable Avro, TemporaryFailure when the registry
        or Kafka does not answer.
        """
        schema = self._schemas.get(schema_id)
        if schema is None:
            self._refuse_if_unknown(schema_id)
            if (reason := self._refused.get(schema_id)) is not None:
                raise InvalidEvent(reason)
            with self._lock:
                schema = self._looked_for(schema_id)
                _make_room(self._schemas)
                self._schemas[schema_id] = schema
        return schema

    def _looked_for(self, schema_id: int) -> Schema:
        try:
            return self._earlier.schema_of(schema_id)
        except InvalidEvent:
            text = self._fetched(schema_id)
        try:
            schema = writer_schema(text)
        except InvalidEvent as error:
            # A registry never changes the schema behind an id. A flood of such records asks it once.
            _make_room(self._refused)
            self._refused[schema_id] = str(error)
            raise
        self._remembered.add({schema_id: text})
        return schema

    def _own_ids(self, topics: Iterable[str], auto_register: bool) -> dict[str, int]:
        """Returns the id of each topic's schema, and remembers them."""
        try:
            ids = {topic: self._own_id(topic, auto_register) for topic in topics}
        except TemporaryFailure as error:
            raise Misconfigured(str(error)) from error
        known = self._remembered.read()
        for topic, schema_id in ids.items():
            self._refuse_clash(topic, schema_id)
        new = {
            schema_id: _one_layout(topic, self._fields) for topic, schema_id in ids.items() if schema_id not in known
        }
        if new:
            self._remembered.add(new)
        return ids

    def _refuse_clash(self, topic: str, schema_id: int) -> None:
        """Raises Misconfigured when records with our new id would be read as another schema."""
        try:
            earlier = self._earlier.schema_of(schema_id)
        except InvalidEvent:
            return
        if not same_on_the_wire(earlier, self.current_schema(topic)):
            raise Misconfigured(
                f"schema registry {self._url} gives subject {self._subject(topic)} the id {schema_id}, which on these "
                f"topics already means another schema, {earlier['name']}: give the registry back the ids it had, or "
                "use another [kafka] topic_prefix"
            )

    def _subject(self, topic: str) -> str:
        return subject(self._topic_prefix + topic)

    def _own_id(self, topic: str, auto_register: bool) -> int:
        name, ours = self._subject(topic), RegistrySchema(_one_layout(topic, self._fields), "AVRO")
        schema_id = self._looked_up(name, ours)
        if schema_id is None and auto_register:
            return self._registered(name, ours)
        if schema_id is None:
            raise Misconfigured(
                f"schema registry {self._url}: subject {name} does not have our schema, "
                "and registry.auto_register is false"
            )
        return schema_id

    def _looked_up(self, name: str, ours: RegistrySchema) -> int | None:
        """Returns the id of our schema under a subject, or None if the subject does not have it."""
        try:
            answer = self._asked(lambda: self._client.lookup_schema(name, ours, normalize_schemas=True))
        except SchemaRegistryError as error:
            if error.error_code not in _NO_SUCH:
                raise _refusal(error, name, self._url) from error
            return None
        if answer.schema_id is None:
            raise TemporaryFailure(f"schema registry {self._url} gave no id for subject {name}")
        return int(answer.schema_id)

    def _registered(self, name: str, ours: RegistrySchema) -> int:
        try:
            return self._asked(lambda: self._client.register_schema(name, ours, normalize_schemas=True))
        except SchemaRegistryError as error:
            raise _refusal(error, name, self._url) from error

    def _refuse_if_unknown(self, schema_id: int) -> None:
        if self._clock() < self._unknown_until.get(schema_id, float("-inf")):
            raise InvalidEvent(f"unknown schema id {schema_id}")

    def _fetched(self, schema_id: int) -> str:
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
        return answer.schema_str or ""

    def _remember_unknown(self, schema_id: int) -> None:
        _make_room(self._unknown_until)
        self._unknown_until[schema_id] = self._clock() + _UNKNOWN_FOR_S

    def _asked(self, ask: Callable[[], _Answer]) -> _Answer:
        try:
            return ask()
        except HTTPError as error:
            reason = str(error) or type(error).__name__
            raise TemporaryFailure(f"schema registry {self._url} did not answer: {reason}") from error
        except _NO_REGISTRY_ERRORS as error:
            raise TemporaryFailure(f"schema registry {self._url} did not answer as one") from error


def _usable(schema_id: int, text: str, refused: dict[int, tuple[str, str]]) -> Schema:
    """Returns the schema in `text`. Notes in `refused` why it is none, so that a flood of records looks once."""
    known = refused.get(schema_id)
    if known is not None and known[0] == text:
        raise InvalidEvent(known[1])
    try:
        return writer_schema(text)
    except InvalidEvent as error:
        _make_room(refused)
        refused[schema_id] = text, str(error)
        raise


def _make_room(by_id: dict[int, Any]) -> None:
    if len(by_id) >= SCHEMAS_KEPT_MAX:
        by_id.clear()


def _one_layout(topic: str, fields: PaymentFields) -> str:
    """Returns our schema on one line, with any layout of the file: some registries compare text, not schemas."""
    return json.dumps(json.loads(schema_text(topic, fields)))


def registered_subjects(settings: RegistrySettings) -> frozenset[str]:
    """Returns the names of all schemas of the registry. Raises Misconfigured with the fault and its remedy."""
    client = _client(settings)
    url, base = settings.url, "give [registry] url the address of its API, such as http://registry:8081"
    try:
        subjects = client.get_subjects()
    except SchemaRegistryError as error:
        status = error.http_status_code
        if status in _REFUSED:
            fix = "correct [registry] username and password, and the rights of that user"
            raise Misconfigured(f"schema registry {url} refused us with status {status}: {fix}") from error
        said = _line(error)
        # If an answer is no error of a registry, the client quotes its bytes.
        why = "" if said.startswith(_NO_ERROR_OF_A_REGISTRY) else f" ({said})"
        fix = "look at the registry and its log" if status >= _SERVER_ERROR else base
        raise Misconfigured(f"{_status(error, url)}{why}: {fix}") from error
    except (HTTPError, OSError) as error:
        reason = str(error) or type(error).__name__
        fix = "is it running, and are [registry] url and its TLS files right?"
        raise Misconfigured(f"schema registry {url} does not answer ({reason}): {fix}") from error
    except _NO_REGISTRY_ERRORS as error:
        raise Misconfigured(f"{url} is no schema registry: {base}") from error
    finally:
        client.close()
    if not isinstance(subjects, list) or not all(isinstance(name, str) for name in subjects):
        raise Misconfigured(f"{url} is no schema registry: {base}")
    return frozenset(subjects)


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
        # The message leaves out the cause's own text, which may quote a configured secret.
        raise Misconfigured(
            f"schema registry {settings.url}: its URL or TLS files are not usable ({type(error).__name__})"
        ) from error


def _check(settings: RegistrySettings) -> None:
    for url in settings.url.split(","):
        try:
            parts = urlsplit(url.strip())
        except ValueError as error:
            raise Misconfigured("[registry] url is not a URL") from error
        if parts.username is not None or parts.password is not None:
            raise Misconfigured("[registry] url holds credentials: use [registry] username and password")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Misconfigured("[registry] url: wanted http://host:port or https://host:port")
    if ":" in settings.username:
        raise Misconfigured("[registry] username must not contain a colon")


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
