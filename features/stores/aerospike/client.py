"""The official Aerospike client as the profile store uses it: settings, connecting, and the meaning of its errors.

The client has these traps:
- It is a C library with threads of its own: open a store after a fork, not before.
- A batch call does not raise when it fails. It returns, and the batch and each record carry a result code:
  -15 for a record that no node answered for. Without any node it has 0 for every record and an error for the
  batch. Therefore `check_batch` always checks both.
- Keys must be bytes, not text: the client cuts a text key at its first zero byte, and two ids could become one.
- By default it prints its errors on standard output. This is switched off, since the errors are raised anyway.
- A request for statistics after `close` crashes the process.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import aerospike
from aerospike import exception as client_errors
from aerospike_helpers.batch.records import BatchRecords

from paywarden.features.stores.base import RECORD_BYTES_MAX
from paywarden.schemas.addresses import host_and_port
from paywarden.schemas.errors import Misconfigured, PaywardenError, StoreUnavailable
from paywarden.schemas.settings import internal

OK = 0
RECORD_NOT_FOUND = 2
# The record is at another generation than the write expected, or exists although the write expected none.
WRONG_GENERATION = 3
RECORD_EXISTS = 5
# The server forbids it, for one of several reasons that only its own status tells: servers.py.
FORBIDDEN = 22
ENTERPRISE_ONLY = 25

OPENING = "open"

_TLS_ERROR = -9
_NAMESPACE_NOT_FOUND = 20
_NO_RESPONSE = -15
_SOME_FAILED = -16
_NAMESPACE_CHARS_MAX = 31

# Codes after which the same call fails again until someone changes a setting, here or on the server.
_NEVER_BY_RETRYING = {
    _TLS_ERROR: "TLS cannot be set up: check tls_name and the tls_ files",
    -2: "the client refuses these settings",
    13: "the record is over the server's max-record-size: lower record_bytes_max to what the server takes",
    _NAMESPACE_NOT_FOUND: "the cluster has no such namespace",
    21: "the server refuses the bin's name",
    ENTERPRISE_ONLY: "only an Enterprise server can do it",
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

# Why a call failed, as a label of metrics. Any other code is "other".
BUSY = "busy"
FORBIDDEN_REASON = "forbidden"
_REASONS = {
    "timeout": (9, 212),
    "connection": (-6, -7, -8, _TLS_ERROR, -10, -12, _NO_RESPONSE),
    "cluster": (7, 11, _NAMESPACE_NOT_FOUND),
    "overload": (-14, 18, 83, 152, 211),
    "full": (8,),
    # Too many requests for one record. This says nothing about other records.
    BUSY: (14,),
    FORBIDDEN_REASON: (FORBIDDEN,),
}
_REASON_OF = {code: reason for reason, codes in _REASONS.items() for code in codes}
REASONS = (*_REASONS, "other")

# For the client a timeout of 0 means no limit: a silent server would then stop the pipeline for ever.
_MINIMA = {
    "total_timeout_ms": 1,
    "connection_count_max": 1,
    "record_bytes_max": 1,
    "scan_records_per_second": 0,
    "marker_days": 0,
}

# The names of our settings, and the client's constants. A copy may lag behind for seconds after a node came back;
# "all" asks every copy that may differ, and therefore sees what was acknowledged.
READ_MODES_AP = {"all": aerospike.POLICY_READ_MODE_AP_ALL, "one": aerospike.POLICY_READ_MODE_AP_ONE}
# For a namespace with strong consistency. "linearize" sees every write that was acknowledged to anyone.
READ_MODES_SC = {
    "linearize": aerospike.POLICY_READ_MODE_SC_LINEARIZE,
    "session": aerospike.POLICY_READ_MODE_SC_SESSION,
    "allow_replica": aerospike.POLICY_READ_MODE_SC_ALLOW_REPLICA,
    "allow_unavailable": aerospike.POLICY_READ_MODE_SC_ALLOW_UNAVAILABLE,
}
AUTH_MODES = {
    "internal": aerospike.AUTH_INTERNAL,
    "external": aerospike.AUTH_EXTERNAL,
    "pki": aerospike.AUTH_PKI,
}
CLUSTER_CHECKS = ("off", "warn", "require")
# The values that a text setting may have.
_CHOICES: dict[str, Collection[str]] = {
    "read_mode_sc": READ_MODES_SC,
    "auth_mode": AUTH_MODES,
    "cluster_check": CLUSTER_CHECKS,
}


@dataclass(frozen=True)
class AerospikeSettings:
    """Which cluster, and how long to wait for it.

    `hosts` are seeds, "host:port" each; the client learns the other nodes from any of them. An attempt gives
    up when the socket is silent for `socket_timeout_ms`; a call, with its retries, after `total_timeout_ms`.
    A read or write longer than `batch_record_count_max` records or `batch_bytes_max` bytes is several calls.
    `user` empty means no login, except with `auth_mode` pki, where the certificate says who we are. `tls_name` is what
    the nodes' certificates must say. `rack_ids` are the racks to read from first, nearest first; empty for any.
    """

    hosts: tuple[str, ...] = ("127.0.0.1:3000",)
    namespace: str = "test"
    bin_name: str = internal("profile")
    connect_timeout_ms: int = internal(1_000)
    # How often the client updates its list of nodes. The minimum is 250.
    tend_interval_ms: int = internal(1_000)
    socket_timeout_ms: int = internal(500)
    total_timeout_ms: int = 2_000
    # For status requests to the server. Well below one second, the interval of health checks.
    info_timeout_ms: int = internal(500)
    max_retries: int = internal(2)
    sleep_between_retries_ms: int = internal(20)
    # Connections to each node that stay open, so that a burst need not wait for new ones. TLS makes these dear.
    connection_count_min: int = internal(0)
    connection_count_max: int = 100
    # "one" would read from one copy: a node that comes back could say that an acknowledged record is absent.
    read_mode_ap: str = internal("all")
    read_mode_sc: str = "linearize"
    rack_ids: tuple[int, ...] = ()
    # The name that the cluster must have; empty for any. It keeps a test's settings out of the live cluster.
    cluster_name: str = ""
    use_services_alternate: bool = False
    # How the cluster's statistics of clients call this one.
    app_id: str = internal("paywarden")
    # At the start the store looks for settings with which a cluster can lose records: "warn" logs each finding,
    # "require" refuses to start, "off" does not look.
    cluster_check: str = "warn"
    # Without durable deletes an erased record leaves a marker. It must outlive every record; 0 keeps it for ever.
    marker_days: int = 800
    record_bytes_max: int = RECORD_BYTES_MAX
    batch_record_count_max: int = internal(256)
    # The client's own limit is 128 MiB; this keeps one call well inside total_timeout_ms on a slow network.
    batch_bytes_max: int = internal(8 << 20)
    scan_page_record_count: int = internal(5_000)
    scan_page_timeout_ms: int = internal(30_000)
    # How long a scan tries to continue after the loss of a node. The other nodes need seconds to take over.
    scan_patience_ms: int = internal(30_000)
    # All nodes together, 0 for no limit. A host that warms up must not starve the others' pipelines.
    scan_records_per_second: int = 100_000
    auth_mode: str = "internal"
    user: str = ""
    password: str = field(default="", repr=False)
    login_timeout_ms: int = internal(5_000)
    tls: bool = False
    tls_name: str = ""
    tls_ca_file: str = ""
    # Whether the nodes' certificates, and their authorities' own, are looked up in the lists of revoked ones that
    # tls_ca_file has.
    tls_crl_check: bool = False
    tls_certificate_file: str = ""
    tls_key_file: str = ""
    tls_key_password: str = field(default="", repr=False)


class CallFailed(Exception):
    """A call that failed without raising: the deciding code."""

    def __init__(self, code: int, what: str) -> None:
        super().__init__(code, what)
        self.code = code
        self.what = what


def check_batch(batch: BatchRecords, *, fine: Collection[int]) -> None:
    """Raises CallFailed unless every record was answered with one of the codes in `fine`."""
    codes = [record.result for record in batch.batch_records]
    failed = [code for code in codes if code not in fine]
    # A record with any other answer than success also fails its batch, even if that answer is in `fine`.
    is_explained = batch.result == _SOME_FAILED and any(codes)
    if not failed and (batch.result == OK or is_explained):
        return
    # Before it reaches a node a batch can fail as a whole, and then its records still say 0, success.
    what = f"{len(failed)} of {len(codes)} records" if failed else "the whole batch"
    raise CallFailed(_telling_code([*failed, batch.result]), what)


def _telling_code(codes: list[int]) -> int:
    """Returns the deciding code of a batch: one that retrying cannot help, or the first error. Its own code is last."""
    for code in codes:
        if code in _NEVER_BY_RETRYING:
            return code
    return next((code for code in codes if code not in (OK, _NO_RESPONSE, _SOME_FAILED)), _NO_RESPONSE)


def reason_of(code: int | None) -> str:
    """Returns why a call failed: one of REASONS, for metrics."""
    return _REASON_OF.get(code, "other") if code is not None else "other"


def error_of(settings: AerospikeSettings, code: int | None, doing: str, what: str) -> PaywardenError:
    """Returns the error to raise for a code of the client or the server."""
    place = describe(settings)
    if code in _NEVER_BY_RETRYING and (doing == OPENING or code not in _ONLY_WHEN_OPENING):
        return Misconfigured(f"{place}: {doing}: {_NEVER_BY_RETRYING[code]} ({what}, code {code})")
    return StoreUnavailable(f"{place}: {doing} failed ({what}, code {code})")


def describe(settings: AerospikeSettings) -> str:
    """Returns the name of the cluster for messages."""
    return f"Aerospike at {', '.join(settings.hosts)}, namespace {settings.namespace}"


def check_settings(settings: AerospikeSettings) -> None:
    """Raises Misconfigured for settings that the client would accept and misunderstand."""
    if not settings.hosts:
        raise Misconfigured('hosts must name at least one "host:port"')
    for host in settings.hosts:
        _split_host(host)
    if not 1 <= len(settings.namespace) <= _NAMESPACE_CHARS_MAX:
        raise Misconfigured(f"namespace must have 1 to {_NAMESPACE_CHARS_MAX} characters")
    for name, minimum in _MINIMA.items():
        if getattr(settings, name) < minimum:
            raise Misconfigured(f"{name} must be at least {minimum}, got {getattr(settings, name)}")
    for name, choices in _CHOICES.items():
        if getattr(settings, name) not in choices:
            raise Misconfigured(f"{name} must be one of {', '.join(choices)}, got {getattr(settings, name)!r}")
    if any(rack < 1 for rack in settings.rack_ids):
        raise Misconfigured("rack_ids must be 1 or more each: a node of rack 0 is in no rack")
    _check_login(settings)


def _check_login(settings: AerospikeSettings) -> None:
    if settings.auth_mode == "pki":
        if not (settings.tls and settings.tls_certificate_file and settings.tls_key_file):
            raise Misconfigured("auth_mode is pki, so tls, tls_certificate_file and tls_key_file must be set")
        if settings.user:
            raise Misconfigured("auth_mode is pki: the certificate names the user, so user must be empty")
    elif settings.user and not settings.password:
        raise Misconfigured("user is set, so password must be set as well")
    if settings.auth_mode == "external" and not (settings.tls and settings.user):
        # The password goes to the server as it is, which passes it on to LDAP.
        raise Misconfigured("auth_mode is external, so tls, user and password must be set")


def _split_host(host: str) -> tuple[str, int]:
    parts = host_and_port(host)
    if parts is None:
        raise Misconfigured(f'hosts must be "host:port" each, got "{host}"')
    return parts


def connect(settings: AerospikeSettings) -> aerospike.Client:
    """Returns a client of the nodes that are up. Raises StoreUnavailable without any, Misconfigured as `error_of`."""
    # Both are global to the process. Repeating them costs nothing.
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
    """Returns a client of the nodes that are up, None without any.

    A client that must reach every node fails if one node is down. A client that need not hides why a login was refused.
    Therefore `connect` tries the first kind and then this one.
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
        "policies": {"login_timeout_ms": settings.login_timeout_ms, "auth_mode": AUTH_MODES[settings.auth_mode]},
        "tend_interval": settings.tend_interval_ms,
        "fail_if_not_connected": every_node,
        "min_conns_per_node": settings.connection_count_min,
        "max_conns_per_node": settings.connection_count_max,
        "use_services_alternate": settings.use_services_alternate,
        # The client's breaker for each node: after this many errors between two tends, it makes no call to that node
        # until the next tend.
        "max_error_rate": 100,
        "error_rate_window": 1,
    }
    if settings.user:
        config |= {"user": settings.user, "password": settings.password}
    if settings.cluster_name:
        config["cluster_name"] = settings.cluster_name
    if settings.app_id:
        config["app_id"] = settings.app_id
    if settings.rack_ids:
        config |= {"rack_aware": True, "rack_ids": list(settings.rack_ids)}
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
    checks = {"crl_check": settings.tls_crl_check, "crl_check_all": settings.tls_crl_check}
    return {"enable": True, **checks, **{name: value for name, value in files.items() if value}}


def call_policy(settings: AerospikeSettings) -> dict[str, Any]:
    """Returns the limits of a single call."""
    return {
        "socket_timeout": settings.socket_timeout_ms,
        "total_timeout": settings.total_timeout_ms,
        "max_retries": settings.max_retries,
        "sleep_between_retries": settings.sleep_between_retries_ms,
        "connect_timeout": settings.connect_timeout_ms,
        # Close a socket at once after a timeout, so that a late answer is never taken for another call's answer.
        "timeout_delay": 0,
    }


def batch_policy(settings: AerospikeSettings, *, is_strong: bool) -> dict[str, Any]:
    """Returns the limits of a batch, and how the client carries it out.

    `is_strong` if the namespace has strong consistency. Elsewhere a server refuses a linearized read.
    """
    policy = {
        **call_policy(settings),
        # Several nodes are called in parallel. A single node is called by the calling thread.
        "concurrent": True,
        "allow_inline": True,
        "allow_inline_ssd": False,
        "respond_all_keys": True,
        "replica": aerospike.POLICY_REPLICA_PREFER_RACK if settings.rack_ids else aerospike.POLICY_REPLICA_SEQUENCE,
        "read_mode_ap": READ_MODES_AP[settings.read_mode_ap],
    }
    if is_strong:
        policy["read_mode_sc"] = READ_MODES_SC[settings.read_mode_sc]
    return policy


def scan_policy(settings: AerospikeSettings) -> dict[str, Any]:
    """Returns the limits of a page of a scan, and how the client carries it out."""
    return {
        **call_policy(settings),
        "total_timeout": settings.scan_page_timeout_ms,
        "socket_timeout": settings.scan_page_timeout_ms,
        # Not LONG_RELAX_AP: a node must not answer for a partition that it does not hold completely.
        "expected_duration": aerospike.QUERY_DURATION_LONG,
        "replica": aerospike.POLICY_REPLICA_SEQUENCE,
    }


def write_policy(ttl_s: int) -> dict[str, Any]:
    """Returns the policy of an unconditional write."""
    return {
        "key": aerospike.POLICY_KEY_SEND,
        "exists": aerospike.POLICY_EXISTS_CREATE_OR_REPLACE,
        "gen": aerospike.POLICY_GEN_IGNORE,
        "commit_level": aerospike.POLICY_COMMIT_LEVEL_ALL,
        "durable_delete": False,
        "ttl": ttl_s if ttl_s else aerospike.TTL_NEVER_EXPIRE,
    }


def delete_policy() -> dict[str, Any]:
    """Returns the policy of an unconditional removal that outlives a cold start. Only an Enterprise server takes it."""
    return {
        "key": aerospike.POLICY_KEY_DIGEST,
        "gen": aerospike.POLICY_GEN_IGNORE,
        "commit_level": aerospike.POLICY_COMMIT_LEVEL_ALL,
        "durable_delete": True,
    }


def marker_policy(ttl_s: int) -> dict[str, Any]:
    """Returns the policy of the write that puts a marker in an erased record's place for a time, 0 for ever."""
    return write_policy(ttl_s) | {"key": aerospike.POLICY_KEY_DIGEST}
