"""The description of a gateway: the file `gateway.toml`, checked before anything is rendered.

    [listen]                              where callers connect
    [tls]                                 the gateway's certificate, and whose client certificates it takes
    [to_hosts]                            the secret from which hosts know the gateway's clients, TLS to hosts, timeouts
    [limits]                              sizes, times and connections of callers
    [[hosts]]                             scoring hosts with their ports
    [[clients]]                           who may call, how they prove it, and how often
    [[issuers]]                           who signs JWTs
    [nginx]                               settings that only nginx needs
    [shards]                              whether each host holds a part of the cards

docs/operate/gateway.md explains each setting. An error names the file, the section, the setting, what was wanted and
what was got. It repeats no key, no hash and no secret.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from paywarden.schemas.addresses import host_and_port
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.payment_fields import is_address
from paywarden.schemas.settings import table_of
from paywarden.schemas.toml_file import toml_file
from paywarden.scoring.net.caller_names import NAME_BYTES_MAX
from paywarden.scoring.state.shards import COUNT_MAX, ranked_hosts

DEFAULT_FILE = "gateway.toml"

ROUTE_HEADER = "x-paywarden-route"
"""The header that decides which host gets a payment: 32 hexadecimal digits of a keyed hash of the card."""

# 32 digits are never taken for a card number, which has at most 19.
ROUTE_DIGITS = 32

VERSIONS = ("v1", "v2")
"""The versions of the contract that a gateway can route, each under a path of its own."""

KEYS_MAX = 2
"""Keys of one client: the one in use, and the next or the last one."""

CALLS_MAX = 1_000_000
"""Calls a second and calls at once of one client. Both targets compute with numbers that hold some more than that."""

# A name stands in configuration files, log lines and file names of both targets.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HASH = re.compile(r"[0-9a-f]{64}")
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
# Text that both targets can hold in quotes, without a way out of them.
_PLAIN = re.compile(r"[^\x00-\x1f\x7f\"'\\$]+")
_CERTIFICATES = ("none", "optional", "required")
_PORT_MAX = 65_535


def _require(is_right: bool, setting: str, wanted: str, got: object) -> None:
    if not is_right:
        raise Misconfigured(f"{setting}: wanted {wanted}, got {got!r}")


def _require_least(setting: str, value: int, least: int) -> None:
    _require(value >= least, setting, f"at least {least}", value)


@dataclass(frozen=True)
class Address:
    """An address and a port, as in `0.0.0.0:8443` and `[::]:8443`."""

    host: str
    port: int

    @property
    def text(self) -> str:
        """The address as nginx and people write it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parsed_address(setting: str, text: str) -> Address:
    """Returns a listener's address. Raises Misconfigured naming the setting."""
    parts = host_and_port(text)
    _require(
        parts is not None and is_address(parts[0]), setting, "an IP address and a port, such as 0.0.0.0:8443", text
    )
    assert parts is not None
    return Address(*parts)


@dataclass(frozen=True)
class Listen:
    """The addresses for callers. An empty text turns a listener off."""

    # HTTP/1.1 and HTTP/2.
    http: str = "0.0.0.0:8443"
    grpc: str = "0.0.0.0:8444"
    # Envoy's own page of state and statistics. It can stop the gateway: never open it to others.
    admin: str = ""
    access_log: str = "/dev/stdout"


@dataclass(frozen=True)
class GatewayTls:
    """The gateway's certificate. Without it callers connect in clear, which only a network of one's own allows."""

    certificate: str = ""
    key: str = ""
    # Authorities of client certificates.
    client_ca: str = ""
    # "none", "optional" (a client without one needs a key or a JWT) or "required".
    client_certificates: str = "none"


@dataclass(frozen=True)
class ToHosts:
    """Settings of the gateway's calls to scoring hosts."""

    # A file with the secret from which each client's token for the hosts is made; a second line holds the one before.
    secret_file: str
    # Authorities of the hosts' certificates. With it the gateway calls hosts with TLS.
    ca: str = ""
    # The name in the hosts' certificates; empty for their address.
    name: str = ""
    # The gateway's own certificate, for hosts with [tls] client_ca.
    certificate: str = ""
    key: str = ""
    connect_timeout_ms: int = 200
    # From the whole request to the whole answer. Longer than [admission] deadline_ms of the hosts, which answer first.
    timeout_ms: int = 1_000
    # For each host. Each call over HTTP/1.1 under way takes one.
    connections_max: int = 512
    # Share of the calls under way that may be retries, in percent.
    retry_budget_percent: int = 20
    # Health checks of each host, by Envoy. A check that is refused or answered with 503 says that the host is away. One
    # that takes long says that a core was: it is waited for. A host that has vanished is out by then for its calls
    # (`failures_max`), and these checks keep it out: they end within `out_ms`, and a little.
    health_interval_ms: int = 250
    health_timeout_ms: int = 2_500
    health_failures: int = 2
    # After this many broken connections or time-outs in a row a host gets no calls for `out_ms` (nginx: that of
    # [nginx]). More than the calls of a worker that crashes again and again: their retries must meet the host that may
    # have decided them.
    failures_max: int = 100
    out_ms: int = 5_000


@dataclass(frozen=True)
class Limits:
    """Limits of callers: sizes, times and connections."""

    body_bytes_max: int = 512 * 1024
    head_bytes_max: int = 16 * 1024
    # From a request's first byte to its last, and for the handshake of TLS.
    request_timeout_ms: int = 2_000
    idle_timeout_ms: int = 60_000
    connections_max: int = 4_096
    # The requests of one HTTP/2 connection. A thread of the gateway works through all requests that came at once before
    # it looks at other connections: a burst of 128 refused calls held them up for four milliseconds.
    streams_max: int = 32


@dataclass(frozen=True)
class NginxSettings:
    """Settings that only nginx needs."""

    # Where its modules are; empty for an nginx with Lua built in, such as OpenResty.
    modules: str = "/usr/lib/nginx/modules"
    # In place of [to_hosts] out_ms. nginx adds up failures that come less than this apart, even with good answers
    # between them. With a longer time, the failures of a worker that crashes now and then take its host out.
    out_ms: int = 2_000
    # For its process id and its temporary files.
    folder: str = "/run/paywarden-gateway"


@dataclass(frozen=True)
class GatewayShards:
    """Whether hosts hold a part of the cards each (scoring/state/shards.py)."""

    # [shards] count of the hosts, whose [shards] hosts are the names of [[hosts]]. 0: each host holds every card.
    count: int = 0


@dataclass(frozen=True)
class Host:
    """A scoring host: its address and the ports of `[http]`, `[grpc]` and `[serve] admin_port`."""

    name: str
    address: str
    http: int = 8080
    grpc: int = 8081
    # The port of /readyz. 0 asks the port of HTTP.
    health: int = 0
    versions: tuple[str, ...] = ("v1",)


@dataclass(frozen=True)
class Client:
    """A client that may call. Its name is the caller's name in decisions."""

    name: str
    # SHA-256 of API keys, as `paywarden gateway render --target key` prints it.
    keys: tuple[str, ...] = ()
    # Subjects of client certificates, as RFC 2253 writes them: "CN=checkout,O=Shop".
    certificates: tuple[str, ...] = ()
    # `iss` and `sub` of JWTs.
    jwt_issuer: str = ""
    jwt_subject: str = ""
    # Calls a second; 0 is no limit.
    calls_per_second: int = 0
    # Calls that may come at once, on top of the rate; 0 is a tenth of a second's.
    burst: int = 0

    @property
    def burst_calls(self) -> int:
        """The burst that holds."""
        return self.burst or max(1, self.calls_per_second // 10)


@dataclass(frozen=True)
class Issuer:
    """An issuer that signs JWTs."""

    issuer: str
    audiences: tuple[str, ...]
    # A file with the public keys, a JSON Web Key Set.
    jwks: str


@dataclass(frozen=True)
class GatewayDescription:
    """The whole file, with paths that are absolute."""

    to_hosts: ToHosts
    hosts: tuple[Host, ...]
    clients: tuple[Client, ...]
    listen: Listen = Listen()
    tls: GatewayTls = GatewayTls()
    limits: Limits = Limits()
    issuers: tuple[Issuer, ...] = ()
    nginx: NginxSettings = NginxSettings()
    shards: GatewayShards = GatewayShards()

    def orders(self, version: str) -> tuple[tuple[Host, ...], ...]:
        """Returns by shard the hosts of a version, in the order in which they take its cards."""
        by_name = {host.name: host for host in self.hosts_of(version)}
        ranked = ranked_hosts(self.shards.count, tuple(sorted(host.name for host in self.hosts)))
        return tuple(tuple(by_name[name] for name in order if name in by_name) for order in ranked)

    def listener(self, kind: str) -> Address | None:
        """Returns the address of "http", "grpc" or "admin"; None if it is off."""
        text = getattr(self.listen, kind)
        return parsed_address(f"[listen] {kind}", text) if text else None

    @property
    def versions(self) -> tuple[str, ...]:
        """The versions of the contract that at least one host serves."""
        return tuple(version for version in VERSIONS if self.hosts_of(version))

    def hosts_of(self, version: str) -> tuple[Host, ...]:
        """Returns the hosts that serve a version."""
        return tuple(host for host in self.hosts if version in host.versions)


_LISTS = {"hosts": Host, "clients": Client, "issuers": Issuer}
_TABLES = {
    "listen": Listen,
    "tls": GatewayTls,
    "to_hosts": ToHosts,
    "limits": Limits,
    "nginx": NginxSettings,
    "shards": GatewayShards,
}


def read_description(path: Path, *, looks_for_files: bool = True) -> GatewayDescription:
    """Read and check a description. Paths in it are relative to its folder.

    `looks_for_files` is false where the files that it names are on another machine; the secret is read in any case.
    Raises Misconfigured for the first thing that is wrong.
    """
    content = toml_file(path, "the gateway's description")
    try:
        description = _absolute(_parsed(content), path.parent.absolute())
        _check(description)
        if looks_for_files:
            for setting, file in _files(description):
                _require_readable(setting, file)
    except Misconfigured as error:
        raise Misconfigured(f"{path}: {error}") from error
    return description


def _parsed(content: dict[str, Any]) -> GatewayDescription:
    known = (*_TABLES, *_LISTS)
    for section in content:
        _require(section in known, "sections", f"only {', '.join(f'[{name}]' for name in known)}", section)
    if "to_hosts" not in content:
        raise Misconfigured("[to_hosts]: is missing; wanted at least secret_file")
    values: dict[str, Any] = {
        section: table_of(f"[{section}]", settings_type, content[section])
        for section, settings_type in _TABLES.items()
        if section in content
    }
    for section, item_type in _LISTS.items():
        items = content.get(section, [])
        _require(isinstance(items, list), f"[[{section}]]", "a list of tables", type(items).__name__)
        values[section] = tuple(
            table_of(_place(section, number, item), item_type, item) for number, item in enumerate(items, start=1)
        )
    for section in ("hosts", "clients"):
        if not values[section]:
            raise Misconfigured(f"[[{section}]]: is missing; wanted at least one")
    return GatewayDescription(**values)


def _place(section: str, number: int, item: object) -> str:
    name = item.get("name", item.get("issuer")) if isinstance(item, dict) else None
    return f'[[{section}]] "{name}"' if isinstance(name, str) and name else f"[[{section}]] number {number}"


def _absolute(given: GatewayDescription, folder: Path) -> GatewayDescription:
    def at(text: str) -> str:
        return str(folder / text) if text else ""

    tls, to_hosts, listen, nginx = given.tls, given.to_hosts, given.listen, given.nginx
    return replace(
        given,
        listen=replace(listen, access_log=at(listen.access_log)),
        tls=replace(tls, certificate=at(tls.certificate), key=at(tls.key), client_ca=at(tls.client_ca)),
        to_hosts=replace(
            to_hosts,
            secret_file=at(to_hosts.secret_file),
            ca=at(to_hosts.ca),
            certificate=at(to_hosts.certificate),
            key=at(to_hosts.key),
        ),
        issuers=tuple(replace(issuer, jwks=at(issuer.jwks)) for issuer in given.issuers),
        nginx=replace(nginx, modules=at(nginx.modules), folder=at(nginx.folder)),
    )


def _files(description: GatewayDescription) -> Iterator[tuple[str, str]]:
    tls, to_hosts = description.tls, description.to_hosts
    yield from (
        ("[tls] certificate", tls.certificate),
        ("[tls] key", tls.key),
        ("[tls] client_ca", tls.client_ca),
        ("[to_hosts] ca", to_hosts.ca),
        ("[to_hosts] certificate", to_hosts.certificate),
        ("[to_hosts] key", to_hosts.key),
    )
    for issuer in description.issuers:
        yield f'[[issuers]] "{issuer.issuer}" jwks', issuer.jwks


def _require_readable(setting: str, file: str) -> None:
    if not file:
        return
    try:
        with open(file, "rb"):
            pass
    except OSError as error:
        raise Misconfigured(f"{setting}: cannot read {file}: {error.strerror}") from error


def _check(description: GatewayDescription) -> None:
    others = (
        ("[listen] access_log", description.listen.access_log),
        ("[nginx] modules", description.nginx.modules),
        ("[nginx] folder", description.nginx.folder),
    )
    for setting, file in (*_files(description), *others):
        _require(not file or _PLAIN.fullmatch(file) is not None, setting, "a path without quotes, $ and \\", file)
    _check_listeners(description)
    _check_tls(description)
    _check_to_hosts(description.to_hosts)
    for field in fields(Limits):
        _require_least(f"[limits] {field.name}", getattr(description.limits, field.name), 1)
    count = description.shards.count
    _require(0 <= count <= COUNT_MAX, "[shards] count", f"0 to {COUNT_MAX}", count)
    for host in description.hosts:
        _check_host(host)
    _require_unique("[[hosts]] name", (host.name for host in description.hosts))
    listening = [kind for kind in ("http", "grpc") if description.listener(kind)]
    for host in description.hosts:
        # A host listens at two ports. Calls of one kind at the port of the other are all refused.
        if len(listening) == 2 and host.http == host.grpc:
            raise Misconfigured(f'[[hosts]] "{host.name}" http, grpc: wanted two ports, got {host.http} twice')
    for kind in listening:
        _require_unique(f"[[hosts]] {kind}", (f"{host.address}:{getattr(host, kind)}" for host in description.hosts))
    _check_issuers(description.issuers)
    for client in description.clients:
        _check_client(client, description)
    _check_bindings(description.clients)


def _check_listeners(description: GatewayDescription) -> None:
    addresses = [address.text for kind in ("http", "grpc", "admin") if (address := description.listener(kind))]
    _require_unique("[listen] http, grpc, admin", addresses)
    if not description.listen.http and not description.listen.grpc:
        raise Misconfigured("[listen] http, grpc: wanted at least one address, got none")


def _check_tls(description: GatewayDescription) -> None:
    tls = description.tls
    _require(
        tls.client_certificates in _CERTIFICATES,
        "[tls] client_certificates",
        " or ".join(_CERTIFICATES),
        tls.client_certificates,
    )
    if bool(tls.certificate) != bool(tls.key):
        raise Misconfigured(f"[tls] {'key' if tls.certificate else 'certificate'}: wanted a file, got none")
    if tls.client_certificates == "none":
        if tls.client_ca:
            raise Misconfigured("[tls] client_certificates: wanted optional or required with client_ca, got 'none'")
        return
    for setting in ("certificate", "client_ca"):
        if not getattr(tls, setting):
            raise Misconfigured(f"[tls] {setting}: wanted a file for client_certificates, got none")


def _check_to_hosts(to_hosts: ToHosts) -> None:
    for field in fields(ToHosts):
        if type(value := getattr(to_hosts, field.name)) is int:
            _require_least(f"[to_hosts] {field.name}", value, 1)
    _require(
        to_hosts.retry_budget_percent <= 100,
        "[to_hosts] retry_budget_percent",
        "1 to 100",
        to_hosts.retry_budget_percent,
    )
    if bool(to_hosts.certificate) != bool(to_hosts.key):
        raise Misconfigured(f"[to_hosts] {'key' if to_hosts.certificate else 'certificate'}: wanted a file, got none")
    for setting in ("name", "certificate"):
        if getattr(to_hosts, setting) and not to_hosts.ca:
            raise Misconfigured(f"[to_hosts] ca: wanted a file with {setting}, got none")
    if to_hosts.name:
        _require(_HOST_NAME.fullmatch(to_hosts.name) is not None, "[to_hosts] name", "a host's name", to_hosts.name)


def _check_host(host: Host) -> None:
    place = f'[[hosts]] "{host.name}"'
    _require(_NAME.fullmatch(host.name) is not None, f"{place} name", "letters, digits, . _ -", host.name)
    is_right = is_address(host.address) or _HOST_NAME.fullmatch(host.address) is not None
    _require(is_right, f"{place} address", "an IP address or a name", host.address)
    for port in ("http", "grpc", "health"):
        value = getattr(host, port)
        _require((port == "health" and value == 0) or 0 < value <= _PORT_MAX, f"{place} {port}", "a port", value)
    is_known = bool(host.versions) and set(host.versions) <= set(VERSIONS)
    _require(is_known, f"{place} versions", f"one or more of {', '.join(VERSIONS)}", list(host.versions))


def _check_issuers(issuers: Sequence[Issuer]) -> None:
    _require_unique("[[issuers]] issuer", (issuer.issuer for issuer in issuers))
    for issuer in issuers:
        place = f'[[issuers]] "{issuer.issuer}"'
        _require(_PLAIN.fullmatch(issuer.issuer) is not None, f"{place} issuer", "a text without quotes", issuer.issuer)
        _require(bool(issuer.audiences), f"{place} audiences", "at least one", [])
        _require(bool(issuer.jwks), f"{place} jwks", "a file", "")


def _check_client(client: Client, description: GatewayDescription) -> None:
    place = f'[[clients]] "{client.name}"'
    is_name = _NAME.fullmatch(client.name) is not None and len(client.name) <= NAME_BYTES_MAX
    _require(is_name, f"{place} name", f"1 to {NAME_BYTES_MAX} letters, digits, . _ -", client.name)
    _require(len(client.keys) <= KEYS_MAX, f"{place} keys", f"at most {KEYS_MAX}", len(client.keys))
    if any(_HASH.fullmatch(key) is None for key in client.keys):
        # The text there may be the key itself.
        raise Misconfigured(
            f"{place} keys: wanted SHA-256 as 64 hexadecimal digits (`paywarden gateway render --target key`), "
            "got other text"
        )
    for subject in client.certificates:
        _require(
            _PLAIN.fullmatch(subject) is not None and "=" in subject,
            f"{place} certificates",
            "a subject such as CN=checkout,O=Shop",
            subject,
        )
    if client.certificates and description.tls.client_certificates == "none":
        raise Misconfigured(f"{place} certificates: wanted [tls] client_certificates optional or required, got 'none'")
    if bool(client.jwt_issuer) != bool(client.jwt_subject):
        missing = "jwt_subject" if client.jwt_issuer else "jwt_issuer"
        raise Misconfigured(f"{place} {missing}: is missing; wanted both jwt_issuer and jwt_subject")
    if client.jwt_issuer:
        known = [issuer.issuer for issuer in description.issuers]
        _require(client.jwt_issuer in known, f"{place} jwt_issuer", f"one of [[issuers]] {known}", client.jwt_issuer)
        _require(
            _PLAIN.fullmatch(client.jwt_subject) is not None,
            f"{place} jwt_subject",
            "a text without quotes",
            client.jwt_subject,
        )
    if not (client.keys or client.certificates or client.jwt_issuer):
        raise Misconfigured(f"{place}: wanted keys, certificates or jwt_issuer, got none: nobody could be this client")
    for setting in ("calls_per_second", "burst"):
        value = getattr(client, setting)
        _require(0 <= value <= CALLS_MAX, f"{place} {setting}", f"0 to {CALLS_MAX}", value)
    if client.burst and not client.calls_per_second:
        raise Misconfigured(f"{place} burst: wanted calls_per_second with it, got none")


def _check_bindings(clients: Sequence[Client]) -> None:
    """Raise Misconfigured if one proof would stand for two clients."""
    _require_unique("[[clients]] name", (client.name for client in clients))
    _require_unique("[[clients]] certificates", (subject for client in clients for subject in client.certificates))
    bindings = [(client.jwt_issuer, client.jwt_subject) for client in clients if client.jwt_issuer]
    _require_unique("[[clients]] jwt_subject", (f"{subject} of {issuer}" for issuer, subject in bindings))
    owners = Counter(key for client in clients for key in client.keys)
    for client in clients:
        if any(owners[key] > 1 for key in client.keys):
            raise Misconfigured(f'[[clients]] "{client.name}" keys: wanted each key once, got one twice')


def _require_unique(setting: str, values: Iterable[str]) -> None:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise Misconfigured(f"{setting}: wanted each once, got {repeated[0]!r} twice")
