"""nginx's configuration: one file, for an nginx with the Lua module.

nginx keeps the promises of Envoy's configuration as far as it can (docs/operate/gateway.md has a table of both). It
looks at hosts only through calls, cannot check a JWT, and knows no budget of retries. A description that asks for
something it cannot do is refused here, so nobody believes that it holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from paywarden.ops.gateway.clients_code import clients_code, environment
from paywarden.ops.gateway.description import Address, Client, GatewayDescription
from paywarden.ops.gateway.refusals import HEAD_TOO_LARGE, MALFORMED, REFUSALS, WANTS_TLS, WRONG_ROUTE, GatewayRefusal
from paywarden.ops.gateway.routes import ALIVE, GRPC, HTTP, paths_of
from paywarden.schemas.errors import Misconfigured
from paywarden.scoring.state.shards import ROUTE_BITS_DIGITS

_NEXT_WEIGHT = 1_000_000
# nginx takes 128 bytes for each client that calls: half of a megabyte, at most.
_CLIENTS_OF_ZONE_MB = 4_000
# Idle connections that a worker keeps to the hosts of one upstream.
_KEPT_CONNECTIONS = 64


@dataclass(frozen=True)
class _Share:
    """Clients with the same rate and burst have one zone of nginx."""

    name: str
    rate: int
    burst: int
    clients: list[str]

    @property
    def zone_mb(self) -> int:
        """The memory of the zone. If it were full, nginx would forget a client's calls."""
        return 1 + len(self.clients) // _CLIENTS_OF_ZONE_MB


@dataclass(frozen=True)
class _Unreadable:
    """A request that nginx refuses before it has read a path, with a status of its own."""

    name: str
    statuses: str
    refusal: GatewayRefusal


_UNREADABLES = (
    # 405: TRACE. 411, 501: a body without a length, or in an unknown encoding. 505: an unknown version.
    _Unreadable("malformed", "400 405 411 501 505", MALFORMED),
    _Unreadable("wants_tls", "497", WANTS_TLS),
    _Unreadable("long_path", "414", HEAD_TOO_LARGE),
)


def nginx_configuration(description: GatewayDescription) -> str:
    """Returns the configuration, which holds the hosts' tokens in clear.

    Raises Misconfigured for the secret, and for settings that nginx does not support.
    """
    _refuse_what_it_cannot(description)
    kinds = [kind for kind in (HTTP, GRPC) if description.listener(kind)]
    sharded, shares = _sharded(description, kinds), _shares(description.clients)
    lua = (
        environment()
        .get_template("nginx.lua")
        .render(
            clients_code=clients_code(description),
            shard_count=description.shards.count,
            route_digits_of_shard=ROUTE_BITS_DIGITS,
            places=sharded.places,
            shares=[(client, share.name) for share in shares for client in share.clients],
        )
    )
    return (
        environment()
        .get_template("nginx.conf")
        .render(
            folder=description.nginx.folder,
            modules=description.nginx.modules,
            access_log=description.listen.access_log,
            limits=description.limits,
            tls=description.tls,
            to_hosts=description.to_hosts,
            # nginx counts in whole seconds.
            out_s=-(-description.nginx.out_ms // 1000),
            shares=shares,
            upstreams=list(_upstreams(description, kinds)),
            sharded_upstreams=sharded.upstreams,
            servers=[_server(description, kind) for kind in kinds],
            refusals=list(REFUSALS),
            alive=ALIVE.strip(),
            wrong_route=WRONG_ROUTE,
            unreadables=_UNREADABLES,
            lua=lua,
        )
    )


def _refuse_what_it_cannot(description: GatewayDescription) -> None:
    if description.issuers:
        raise Misconfigured("[[issuers]]: nginx cannot check a JWT; wanted --target envoy, or clients with keys")
    if description.listen.admin:
        raise Misconfigured("[listen] admin: nginx has no such page; wanted an empty text")
    if description.to_hosts.ca and not description.to_hosts.name:
        raise Misconfigured(
            "[to_hosts] name: nginx needs the one name that stands in the hosts' certificates, got none"
        )


def _shares(clients: tuple[Client, ...]) -> list[_Share]:
    shares: dict[tuple[int, int], _Share] = {}
    for client in clients:
        if rate := client.calls_per_second:
            burst = client.burst_calls
            share = shares.setdefault((rate, burst), _Share(f"share_{rate}_{burst}", rate, burst, []))
            share.clients.append(client.name)
    return list(shares.values())


def _upstreams(description: GatewayDescription, kinds: list[str]) -> Iterator[dict[str, Any]]:
    for kind in kinds:
        for version in description.versions:
            hosts = description.hosts_of(version)
            addresses = [Address(host.address, getattr(host, kind)).text for host in hosts]
            keepalive = _KEPT_CONNECTIONS * len(hosts)
            yield {"name": f"{version}_{kind}", "addresses": addresses, "keepalive": keepalive}
            if kind == HTTP:
                # Each of its connections is new, so that none leads to a worker that was killed.
                yield {"name": f"{version}_{kind}_second_try", "addresses": addresses, "keepalive": 0}


@dataclass(frozen=True)
class _Sharded:
    """`places`: by version, the number of each shard's upstream. `upstreams`: one for each order of hosts."""

    places: dict[str, list[int]]
    upstreams: list[dict[str, Any]]


def _sharded(description: GatewayDescription, kinds: list[str]) -> _Sharded:
    """Returns the upstreams of shards: the owner, the host that takes over, and all others behind them.

    nginx takes backup servers in turn, by weight. The weight of the host that takes over leaves the others one call of
    a million while it is well.
    """
    found = _Sharded({}, [])
    if not description.shards.count:
        return found
    for version in description.versions:
        orders = description.orders(version)
        numbers = {order: number for number, order in enumerate(dict.fromkeys(order[:2] for order in orders))}
        found.places[version] = [numbers[order[:2]] for order in orders]
        for kind in kinds:
            for order, number in numbers.items():
                others = [host for host in description.hosts_of(version) if host not in order]
                servers = [(order[0], ""), *((host, f" backup weight={_NEXT_WEIGHT}") for host in order[1:])]
                servers += [(host, " backup") for host in others]
                addresses = [(Address(host.address, getattr(host, kind)).text, extra) for host, extra in servers]
                name = f"{version}_{kind}_{number}"
                found.upstreams.append({"name": name, "servers": addresses, "keepalive": _KEPT_CONNECTIONS})
                if kind == HTTP:
                    found.upstreams.append({"name": f"{name}_second_try", "servers": addresses, "keepalive": 0})
    return found


def _server(description: GatewayDescription, kind: str) -> dict[str, Any]:
    address = description.listener(kind)
    assert address is not None
    has_tls = bool(description.tls.certificate)
    # Without TLS a caller cannot say which protocol it speaks, and nginx speaks one at a port.
    options = [*(["ssl"] if has_tls else []), *(["http2"] if has_tls or kind == GRPC else [])]
    is_encrypted = bool(description.to_hosts.ca)
    return {
        "kind": kind,
        "address": address.text,
        "options": " ".join(options),
        "module": "proxy" if kind == HTTP else "grpc",
        "scheme": ("http" if kind == HTTP else "grpc") + ("s" if is_encrypted else ""),
        "is_sharded": bool(description.shards.count),
        "routes": [
            {"name": name, "path": path, "upstream": f"{version}_{kind}", "version": version}
            for version in description.versions
            for name, path in paths_of(version, kind)
        ],
    }
