"""The profile store on Aerospike: the only module that knows its client.

An entity is a set, the id is the record's key, the profile is one bin. What to know about the client:
- It is a C library with threads of its own: open a store after a fork, not before.
- A batch call does not raise when it fails. It returns, and the batch and each record carry a result code:
  -15 for a record that no node answered for, and when there is no node at all, 0 for every record and an
  error for the batch. So both are looked at, always.
- Keys go as bytes, not text: the client cuts a text key at its first zero byte, and two ids would be one.
- A write may be retried, because it replaces the record whole: written twice is written once. What that does
  not cover: an attempt the client gave up on, still on its way, could land after a newer write of that record.
- By default it prints its errors on standard output; that is switched off, they are raised here anyway.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aerospike
from aerospike import exception as client_errors
from aerospike_helpers.batch.records import BatchRecord, BatchRecords, Remove, Write
from aerospike_helpers.operations import operations

from features.store import RECORD_BYTES_MAX, check_write, join_key, split_key
from schemas.errors import Misconfigured, PaywardenError, StoreUnavailable

_OK = 0
_RECORD_NOT_FOUND = 2
_TLS_ERROR = -9
_NAMESPACE_NOT_FOUND = 20
_NO_RESPONSE = -15
_OPENING = "open"
_BIN_NAME_CHARS_MAX = 15
_NAMESPACE_CHARS_MAX = 31
_PORT_MAX = 65_535

# Codes after which the same call fails again until someone changes a setting, here or on the server.
_NEVER_BY_RETRYING = {
    _TLS_ERROR: "TLS cannot be set up: check tls_name and the tls_ files",
    -2: "the client refuses these settings",
    13: "the record is over the server's max-record-size: lower record_bytes_max to what the server takes",
    _NAMESPACE_NOT_FOUND: "the cluster has no such namespace",
    21: "the server refuses the bin's name",
    22: "the server forbids it: a namespace whose nsup-period is 0 takes no records that expire",
    51: "the server has no security, so user and password must be empty",
    60: "user or password is wrong",
    62: "user or password is wrong",
    63: "the password has expired",
    65: "user or password is wrong",
    80: "the server wants a user and a password",
    81: "the user lacks the role for it",
    82: "the server does not accept connections from this address",
}

# Later on these mean that connections or nodes were lost: a client without nodes reports the namespace missing.
_ONLY_WHEN_OPENING = {_TLS_ERROR, _NAMESPACE_NOT_FOUND}

# To the client a timeout of 0 is no limit at all: a silent server would then stop the pipeline for ever.
_MINIMA = {
    "connect_timeout_ms": 1,
    "tend_interval_ms": 250,
    "socket_timeout_ms": 1,
    "total_timeout_ms": 1,
    "login_timeout_ms": 1,
    "max_retries": 0,
    "sleep_between_retries_ms": 0,
    "connection_count_max": 1,
    "record_bytes_max": 1,
    "batch_record_count_max": 1,
    "batch_bytes_max": 1,
    "scan_page_record_count": 1,
    "scan_page_timeout_ms": 1,
    "scan_records_per_second": 0,
}

# A record's place: (namespace, set, key).
_Place = tuple[str, str, bytearray]


@dataclass(frozen=True)
class AerospikeSettings:
    """Which cluster, and how long to wait for it.

    `hosts` are seeds, "host:port" each; the client learns the other nodes from any of them. An attempt gives
    up when the socket is silent for `socket_timeout_ms`; a call, with its retries, after `total_timeout_ms`.
    A read or write longer than `batch_record_count_max` records or `batch_bytes_max` bytes is several calls.
    `user` empty means no login; `tls_name` is what the nodes' certificates must say.
    """

    hosts: tuple[str, ...] = ("127.0.0.1:3000",)
    namespace: str = "test"
    bin_name: str = "profile"
    connect_timeout_ms: int = 1_000
    # How often the client looks which nodes there are. It takes no less than 250.
    tend_interval_ms: int = 1_000
    socket_timeout_ms: int = 500
    total_timeout_ms: int = 2_000
    max_retries: int = 2
    sleep_between_retries_ms: int = 20
    connection_count_max: int = 100
    record_bytes_max: int = RECORD_BYTES_MAX
    batch_record_count_max: int = 256
    # The client's own limit is 128 MiB; this keeps one call well inside total_timeout_ms on a slow network.
    batch_bytes_max: int = 8 << 20
    scan_page_record_count: int = 5_000
    scan_page_timeout_ms: int = 30_000
    # Per node, 0 for no limit. A host that warms up must not starve the others' pipelines.
    scan_records_per_second: int = 100_000
    user: str = ""
    password: str = field(default="", repr=False)
    login_timeout_ms: int = 5_000
    tls: bool = False
    tls_name: str = ""
    tls_ca_file: str = ""
    tls_certificate_file: str = ""
    tls_key_file: str = ""
    tls_key_password: str = field(default="", repr=False)


class AerospikeStore:
    """A ProfileStore on an Aerospike cluster (server 6.0 or newer).

    Opening connects: it raises StoreUnavailable when no host answers, and Misconfigured when the cluster is
    there but the namespace, the login or a setting is wrong.
    """

    def __init__(self, settings: AerospikeSettings) -> None:
        _check_settings(settings)
        self._settings = settings
        self._read_policy = _batch_policy(settings)
        self._write_policy = _batch_policy(settings)
        self._client = _connect(settings)
        try:
            self._probe(_OPENING)
        except PaywardenError:
            self.close()
            raise

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See ProfileStore. One round trip to each node for every `batch_record_count_max` keys."""
        places = [self._place(key) for key in keys]
        values: list[bytes | None] = []
        for chunk in _chunks(places, self._settings.batch_record_count_max):
            values += self._read_chunk(chunk)
        return values

    def write(self, values: Mapping[bytes, bytes], *, ttl_s: int) -> None:
        """See ProfileStore. One round trip to each node for every `batch_record_count_max` records."""
        check_write(values, ttl_s=ttl_s, record_bytes_max=self._settings.record_bytes_max)
        policy = {
            "key": aerospike.POLICY_KEY_SEND,
            "exists": aerospike.POLICY_EXISTS_CREATE_OR_REPLACE,
            "gen": aerospike.POLICY_GEN_IGNORE,
            "commit_level": aerospike.POLICY_COMMIT_LEVEL_ALL,
            "durable_delete": False,
            "ttl": ttl_s if ttl_s else aerospike.TTL_NEVER_EXPIRE,
        }
        for chunk in self._write_chunks(values):
            writes = [
                Write(self._place(key), [operations.write(self._settings.bin_name, value)], policy=policy)
                for key, value in chunk
            ]
            self._run_batch(writes, "write")

    def delete(self, keys: Sequence[bytes]) -> None:
        """See ProfileStore."""
        policy = {
            "key": aerospike.POLICY_KEY_DIGEST,
            "gen": aerospike.POLICY_GEN_IGNORE,
            "commit_level": aerospike.POLICY_COMMIT_LEVEL_ALL,
            "durable_delete": False,
        }
        places = [self._place(key) for key in keys]
        for chunk in _chunks(places, self._settings.batch_record_count_max):
            self._run_batch([Remove(place, policy=policy) for place in chunk], "delete")

    def scan(self, entity: str) -> Iterator[tuple[bytes, bytes]]:
        """See ProfileStore. Holds one page of `scan_page_record_count` records in memory."""
        settings = self._settings
        policy = {
            **_timeouts(settings),
            "total_timeout": settings.scan_page_timeout_ms,
            "socket_timeout": settings.scan_page_timeout_ms,
            "expected_duration": aerospike.QUERY_DURATION_LONG,
            "replica": aerospike.POLICY_REPLICA_SEQUENCE,
        }
        try:
            query = self._client.query(settings.namespace, entity)
            query.select(settings.bin_name)
            query.max_records = settings.scan_page_record_count
            query.records_per_second = settings.scan_records_per_second
            query.paginate()
            while not query.is_done():
                page = query.results(policy)
                for (_, _, identity, _), _, bins in page:
                    yield self._scanned(entity, identity, bins)
        except client_errors.AerospikeError as error:
            raise self._translated(error, "scan") from error

    def health(self) -> bool:
        """Whether the cluster answers a read right now. Takes up to `total_timeout_ms`."""
        try:
            self._probe("probe")
        except PaywardenError:
            return False
        return True

    def close(self) -> None:
        """See ProfileStore. A closed store raises StoreUnavailable."""
        self._client.close()

    def _place(self, key: bytes) -> _Place:
        entity, identity = split_key(key)
        return self._settings.namespace, entity, bytearray(identity)

    def _probe(self, doing: str) -> None:
        """Reads a record that need not exist: goes the whole way, to a node that owns the namespace."""
        place = (self._settings.namespace, "paywarden", bytearray(b"probe"))
        policy = {**_timeouts(self._settings), "replica": aerospike.POLICY_REPLICA_SEQUENCE}
        try:
            self._client.exists(place, policy)
        except client_errors.AerospikeError as error:
            raise self._translated(error, doing) from error

    def _read_chunk(self, places: list[_Place]) -> list[bytes | None]:
        try:
            batch = self._client.batch_read(places, [self._settings.bin_name], self._read_policy)
        except client_errors.AerospikeError as error:
            raise self._translated(error, "read") from error
        self._check_batch(batch, "read")
        return [self._value(one) for one in batch.batch_records]

    def _run_batch(self, records: list[Write] | list[Remove], doing: str) -> None:
        try:
            batch = self._client.batch_write(BatchRecords(records), self._write_policy)
        except client_errors.AerospikeError as error:
            raise self._translated(error, doing) from error
        self._check_batch(batch, doing)

    def _check_batch(self, batch: BatchRecords, doing: str) -> None:
        """Raises unless every record was answered, with success or, where that is fine, with "not found"."""
        fine = (_OK,) if doing == "write" else (_OK, _RECORD_NOT_FOUND)
        failed = [one.result for one in batch.batch_records if one.result not in fine]
        if not failed and batch.result == _OK:
            return
        # Before it reaches a node a batch can fail as a whole, and then its records still say 0, success.
        what = f"{len(failed)} of {len(batch.batch_records)} records" if failed else "the whole batch"
        raise self._error(_telling_code([*failed, batch.result]), doing, what)

    def _value(self, one: BatchRecord) -> bytes | None:
        if one.record is None or one.result == _RECORD_NOT_FOUND:
            return None
        return self._bin(one.record[2], one.key[1])

    def _bin(self, bins: dict[str, Any], entity: str) -> bytes:
        value = bins.get(self._settings.bin_name)
        if not isinstance(value, bytes | bytearray):
            raise Misconfigured(
                f"a record of set {entity} has no bytes in bin {self._settings.bin_name}: "
                "bin_name differs from the one that wrote it, or something else writes to this set"
            )
        return bytes(value)

    def _scanned(self, entity: str, identity: object, bins: dict[str, Any]) -> tuple[bytes, bytes]:
        if not isinstance(identity, bytes | bytearray):
            raise Misconfigured(f"a record of set {entity} has no key of bytes: something else writes to this set")
        return join_key(entity, bytes(identity)), self._bin(bins, entity)

    def _write_chunks(self, values: Mapping[bytes, bytes]) -> Iterator[list[tuple[bytes, bytes]]]:
        """The records in calls that stay within both limits; a record over `batch_bytes_max` goes alone."""
        chunk: list[tuple[bytes, bytes]] = []
        chunk_bytes = 0
        for key, value in values.items():
            too_big = chunk_bytes + len(value) > self._settings.batch_bytes_max
            if chunk and (too_big or len(chunk) == self._settings.batch_record_count_max):
                yield chunk
                chunk, chunk_bytes = [], 0
            chunk.append((key, value))
            chunk_bytes += len(value)
        if chunk:
            yield chunk

    def _translated(self, error: client_errors.AerospikeError, doing: str) -> PaywardenError:
        return self._error(error.code, doing, type(error).__name__)

    def _error(self, code: int | None, doing: str, what: str) -> PaywardenError:
        return _error(self._settings, code, doing, what)


def _telling_code(codes: list[int]) -> int:
    """Of the codes of a batch, its own last, the one that decides: retrying cannot help, or else what happened."""
    for code in codes:
        if code in _NEVER_BY_RETRYING:
            return code
    return next((code for code in codes if code not in (_OK, _NO_RESPONSE)), _NO_RESPONSE)


def _error(settings: AerospikeSettings, code: int | None, doing: str, what: str) -> PaywardenError:
    where = f"Aerospike at {', '.join(settings.hosts)}, namespace {settings.namespace}"
    if code in _NEVER_BY_RETRYING and (doing == _OPENING or code not in _ONLY_WHEN_OPENING):
        return Misconfigured(f"{where}: {doing}: {_NEVER_BY_RETRYING[code]} ({what}, code {code})")
    return StoreUnavailable(f"{where}: {doing} failed ({what}, code {code})")


def _check_settings(settings: AerospikeSettings) -> None:
    """Raises Misconfigured for what the client would accept and misunderstand."""
    if not settings.hosts:
        raise Misconfigured('hosts must name at least one "host:port"')
    for host in settings.hosts:
        _split_host(host)
    if not 1 <= len(settings.namespace) <= _NAMESPACE_CHARS_MAX:
        raise Misconfigured(f"namespace must have 1 to {_NAMESPACE_CHARS_MAX} characters")
    if not 1 <= len(settings.bin_name) <= _BIN_NAME_CHARS_MAX:
        raise Misconfigured(f"bin_name must have 1 to {_BIN_NAME_CHARS_MAX} characters")
    for name, minimum in _MINIMA.items():
        if getattr(settings, name) < minimum:
            raise Misconfigured(f"{name} must be at least {minimum}, got {getattr(settings, name)}")
    if settings.user and not settings.password:
        raise Misconfigured("user is set, so password must be set as well")


def _split_host(host: str) -> tuple[str, int]:
    name, _, port = host.rpartition(":")
    if not name or not port.isdecimal() or not 1 <= int(port) <= _PORT_MAX:
        raise Misconfigured(f'hosts must be "host:port" each, got "{host}"')
    return name.strip("[]"), int(port)


def _connect(settings: AerospikeSettings) -> aerospike.Client:
    # Both are global to the process and cost nothing to repeat.
    aerospike.set_log_handler(None)  # type: ignore[arg-type]
    aerospike.set_log_level(aerospike.LOG_LEVEL_OFF)
    try:
        return aerospike.client(_client_config(settings, every_node=True))
    except client_errors.AerospikeError as error:
        if error.code in _NEVER_BY_RETRYING:
            raise _error(settings, error.code, _OPENING, type(error).__name__) from error
        client = _connect_to_some(settings)
        if client is None:
            raise StoreUnavailable(
                f"no Aerospike server answers at {', '.join(settings.hosts)} within "
                f"{settings.connect_timeout_ms} ms ({type(error).__name__}, code {error.code})"
            ) from error
        return client


def _connect_to_some(settings: AerospikeSettings) -> aerospike.Client | None:
    """A client of the nodes that are up, None when there are none.

    A client that insists on connecting fails when any one node of the cluster is down, and one that does not
    insist hides why a login was refused: so first the one, then the other.
    """
    try:
        client = aerospike.client(_client_config(settings, every_node=False))
    except client_errors.AerospikeError:
        return None
    if client.get_node_names():
        return client
    client.close()
    return None


def _client_config(settings: AerospikeSettings, *, every_node: bool) -> dict[str, Any]:
    seeds = [_split_host(host) for host in settings.hosts]
    config: dict[str, Any] = {
        "hosts": [(*seed, settings.tls_name) for seed in seeds] if settings.tls_name else seeds,
        # A setting the client does not know is an error, not silently ignored.
        "validate_keys": True,
        "connect_timeout": settings.connect_timeout_ms,
        "policies": {"login_timeout_ms": settings.login_timeout_ms, "auth_mode": aerospike.AUTH_INTERNAL},
        "tend_interval": settings.tend_interval_ms,
        "fail_if_not_connected": every_node,
        "max_conns_per_node": settings.connection_count_max,
    }
    if settings.user:
        config |= {"user": settings.user, "password": settings.password}
    if settings.tls:
        config["tls"] = _tls_config(settings)
    return config


def _tls_config(settings: AerospikeSettings) -> dict[str, Any]:
    files = {
        "cafile": settings.tls_ca_file,
        "certfile": settings.tls_certificate_file,
        "keyfile": settings.tls_key_file,
        "keyfile_pw": settings.tls_key_password,
    }
    return {"enable": True, **{name: value for name, value in files.items() if value}}


def _timeouts(settings: AerospikeSettings) -> dict[str, Any]:
    return {
        "socket_timeout": settings.socket_timeout_ms,
        "total_timeout": settings.total_timeout_ms,
        "max_retries": settings.max_retries,
        "sleep_between_retries": settings.sleep_between_retries_ms,
        "connect_timeout": settings.connect_timeout_ms,
        # A socket that timed out is closed at once, so that a late answer is never taken for another one's.
        "timeout_delay": 0,
    }


def _batch_policy(settings: AerospikeSettings) -> dict[str, Any]:
    return {
        **_timeouts(settings),
        # Nodes are asked side by side; one node is asked by the calling thread.
        "concurrent": True,
        "allow_inline": True,
        "allow_inline_ssd": False,
        "respond_all_keys": True,
        "replica": aerospike.POLICY_REPLICA_SEQUENCE,
    }


def _chunks(places: list[_Place], count_max: int) -> Iterator[list[_Place]]:
    for start in range(0, len(places), count_max):
        yield places[start : start + count_max]
