"""The official Aerospike client as the profile store uses it: settings, connecting, and what its errors mean.

What to know about the client:
- It is a C library with threads of its own: open a store after a fork, not before.
- A batch call does not raise when it fails. It returns, and the batch and each record carry a result code:
  -15 for a record that no node answered for, and when there is no node at all, 0 for every record and an
  error for the batch. So both are looked at, always (`check_batch`).
- Keys go as bytes, not text: the client cuts a text key at its first zero byte, and two ids would be one.
- By default it prints its errors on standard output; that is switched off, they are raised here anyway.
- Asked for statistics after `close`, it crashes the process.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import aerospike
from aerospike import exception as client_errors
from aerospike_helpers.batch.records import BatchRecords

from paywarden.features.stores.base import RECORD_BYTES_MAX
from paywarden.schemas.errors import Misconfigured, PaywardenError, StoreUnavailable

OK = 0
RECORD_NOT_FOUND = 2
# A write that wanted the record at another generation, or not there at all.
WRONG_GENERATION = 3
RECORD_EXISTS = 5

OPENING = "open"

_TLS_ERROR = -9
_NAMESPACE_NOT_FOUND = 20
_NO_RESPONSE = -15
_SOME_FAILED = -16
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

# Why a call failed, in the few words that metrics know. What is not listed is "other".
BUSY = "busy"
_REASONS = {
    "timeout": (9, 212),
    "connection": (-6, -7, -8, _TLS_ERROR, -10, -12, _NO_RESPONSE),
    "cluster": (7, 11, _NAMESPACE_NOT_FOUND),
    "overload": (-14, 18, 83, 152, 211),
    "full": (8,),
    # One record that too many ask for at once: says nothing of the others.
    BUSY: (14,),
}
_REASON_OF = {code: reason for reason, codes in _REASONS.items() for code in codes}
REASONS = (*_REASONS, "other")

# To the client a timeout of 0 is no limit at all: a silent server would then stop the pipeline for ever.
_MINIMA = {
    "connect_timeout_ms": 1,
    "tend_interval_ms": 250,
    "socket_timeout_ms": 1,
    "total_timeout_ms": 1,
    "info_timeout_ms": 1,
    "login_timeout_ms": 1,
    "max_retries": 0,
    "sleep_between_retries_ms": 0,
    "breaker_failure_count_max": 1,
    "breaker_cooldown_ms": 0,
    "connection_count_max": 1,
    "record_bytes_max": 1,
    "batch_record_count_max": 1,
    "batch_bytes_max": 1,
    "scan_page_record_count": 1,
    "scan_page_timeout_ms": 1,
    "scan_patience_ms": 0,
    "scan_records_per_second": 0,
}


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
    # For questions to the server about itself; well under the second in which a health check is asked again.
    info_timeout_ms: int = 500
    max_retries: int = 2
    sleep_between_retries_ms: int = 20
    # Calls that fail in a row until the breaker opens. A call has had its retries: this is nine attempts.
    breaker_failure_count_max: int = 3
    # As long as one call waits in vain: long enough to spare a cluster in trouble, short beside its recovery.
    breaker_cooldown_ms: int = 2_000
    connection_count_max: int = 100
    record_bytes_max: int = RECORD_BYTES_MAX
    batch_record_count_max: int = 256
    # The client's own limit is 128 MiB; this keeps one call well inside total_timeout_ms on a slow network.
    batch_bytes_max: int = 8 << 20
    scan_page_record_count: int = 5_000
    scan_page_timeout_ms: int = 30_000
    # How long a scan tries to go on where it was, when a node is lost. The others take seconds to take over.
    scan_patience_ms: int = 30_000
    # All nodes together, 0 for no limit. A host that warms up must not starve the others' pipelines.
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


class CallFailed(Exception):
    """A call that did not raise, but did not do what it should: the telling code, and what it befell."""

    def __init__(self, code: int, what: str) -> None:
        super().__init__(code, what)
        self.code = code
        self.what = what


def check_batch(batch: BatchRecords, *, fine: Collection[int]) -> None:
    """Raises CallFailed unless every record was answered, and by one of the codes that are fine."""
    codes = [one.result for one in batch.batch_records]
    failed = [code for code in codes if code not in fine]
    # A record that was answered "no" fails its batch too, be that answer fine or not.
    is_explained = batch.result == _SOME_FAILED and any(codes)
    if not failed and (batch.result == OK or is_explained):
        return
    # Before it reaches a node a batch can fail as a whole, and then its records still say 0, success.
    what = f"{len(failed)} of {len(codes)} records" if failed else "the whole batch"
    raise CallFailed(_telling_code([*failed, batch.result]), what)


def _telling_code(codes: list[int]) -> int:
    """Of the codes of a batch, its own last, the one that decides: retrying cannot help, or else what happened."""
    for code in codes:
        if code in _NEVER_BY_RETRYING:
            return code
    return next((code for code in codes if code not in (OK, _NO_RESPONSE, _SOME_FAILED)), _NO_RESPONSE)


def reason_of(code: int | None) -> str:
    """One of REASONS: why a call failed, for metrics."""
    return _REASON_OF.get(code, "other") if code is not None else "other"


def error_of(settings: AerospikeSettings, code: int | None, doing: str, what: str) -> PaywardenError:
    """What to raise for a code of the client or the server."""
    place = describe(settings)
    if code in _NEVER_BY_RETRYING and (doing == OPENING or code not in _ONLY_WHEN_OPENING):
        return Misconfigured(f"{place}: {doing}: {_NEVER_BY_RETRYING[code]} ({what}, code {code})")
    return StoreUnavailable(f"{place}: {doing} failed ({what}, code {code})")


def describe(settings: AerospikeSettings) -> str:
    """Which cluster a message is about."""
    return f"Aerospike at {', '.join(settings.hosts)}, namespace {settings.namespace}"


def check_settings(settings: AerospikeSettings) -> None:
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


def connect(settings: AerospikeSettings) -> aerospike.Client:
    """A client of the nodes that are up. Raises StoreUnavailable when none is, Misconfigured as `error_of`."""
    # Both are global to the process and cost nothing to repeat.
    aerospike.set_log_handler(None)  # type: ignore[arg-type]
    aerospike.set_log_level(aerospike.LOG_LEVEL_OFF)
    try:
        return aerospike.client(_client_config(settings, every_node=True))
    except client_errors.AerospikeError as error:
        if error.code in _NEVER_BY_RETRYING:
            raise error_of(settings, error.code, OPENING, type(error).__name__) from error
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
        # The client's own breaker, of each node by itself: so many errors between two tends, and it asks that node
        # no more until the next. It is for one ill node of many; ours is for a cluster that is ill.
        "max_error_rate": 100,
        "error_rate_window": 1,
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


def call_policy(settings: AerospikeSettings) -> dict[str, Any]:
    """Limits of a single call."""
    return {
        "socket_timeout": settings.socket_timeout_ms,
        "total_timeout": settings.total_timeout_ms,
        "max_retries": settings.max_retries,
        "sleep_between_retries": settings.sleep_between_retries_ms,
        "connect_timeout": settings.connect_timeout_ms,
        # A socket that timed out is closed at once, so that a late answer is never taken for another one's.
        "timeout_delay": 0,
    }


def batch_policy(settings: AerospikeSettings) -> dict[str, Any]:
    """Limits of a batch, and how it is carried out."""
    return {
        **call_policy(settings),
        # Nodes are asked side by side; one node is asked by the calling thread.
        "concurrent": True,
        "allow_inline": True,
        "allow_inline_ssd": False,
        "respond_all_keys": True,
        "replica": aerospike.POLICY_REPLICA_SEQUENCE,
    }


def scan_policy(settings: AerospikeSettings) -> dict[str, Any]:
    """Limits of a page of a scan, and how it is carried out."""
    return {
        **call_policy(settings),
        "total_timeout": settings.scan_page_timeout_ms,
        "socket_timeout": settings.scan_page_timeout_ms,
        # And not LONG_RELAX_AP: a node must not answer for a partition it does not yet hold all of.
        "expected_duration": aerospike.QUERY_DURATION_LONG,
        "replica": aerospike.POLICY_REPLICA_SEQUENCE,
    }


def write_policy(ttl_s: int) -> dict[str, Any]:
    """What a write does to a record, whatever there is."""
    return {
        "key": aerospike.POLICY_KEY_SEND,
        "exists": aerospike.POLICY_EXISTS_CREATE_OR_REPLACE,
        "gen": aerospike.POLICY_GEN_IGNORE,
        "commit_level": aerospike.POLICY_COMMIT_LEVEL_ALL,
        "durable_delete": False,
        "ttl": ttl_s if ttl_s else aerospike.TTL_NEVER_EXPIRE,
    }


def delete_policy() -> dict[str, Any]:
    """What a removal does, whatever there is."""
    return {
        "key": aerospike.POLICY_KEY_DIGEST,
        "gen": aerospike.POLICY_GEN_IGNORE,
        "commit_level": aerospike.POLICY_COMMIT_LEVEL_ALL,
        "durable_delete": False,
    }


def parse_info(answer: str, separator: str) -> dict[str, str]:
    """The server's `name=value` list, of a namespace separated by semicolons, of a set by colons."""
    pairs = (pair.partition("=") for pair in answer.split(separator))
    return {name: value for name, _, value in pairs if name}
