"""Envoy's configuration: `templates/envoy.json`, which explains it, with the values of a description."""

from __future__ import annotations

import json
from typing import Any

from paywarden.ops.gateway.clients_code import clients_code, environment
from paywarden.ops.gateway.description import ROUTE_HEADER, GatewayDescription
from paywarden.ops.gateway.refusals import REFUSALS, WRONG_ROUTE
from paywarden.ops.gateway.routes import ALIVE, GRPC, HTTP, paths_of
from paywarden.schemas.payment_fields import is_address
from paywarden.scoring.state.shards import ROUTE_BITS_DIGITS, ranked_hosts

# HTTP/2 opens a further connection to a host beyond this, and one connection reaches one worker of a host.
_STREAMS_TO_HOST = 16
# The hosts of a shard that are tried in order. If all of them are away, any host gets the call.
_ORDER_MAX = 4


def envoy_configuration(description: GatewayDescription) -> str:
    """Returns the configuration, which holds the hosts' tokens in clear. Raises Misconfigured (the secret)."""
    listeners = {kind: listener for kind in (HTTP, GRPC) if (listener := description.listener(kind))}
    text = (
        environment()
        .get_template("envoy.json")
        .render(
            listeners=listeners,
            admin=description.listener("admin"),
            access_log=description.listen.access_log,
            clusters=[_cluster(description, version, kind) for kind in listeners for version in description.versions],
            limits=description.limits,
            tls=description.tls,
            to_hosts=description.to_hosts,
            has_admin_ports=all(host.health for host in description.hosts),
            issuers=description.issuers,
            limited=[client for client in description.clients if client.calls_per_second],
            lua={kind: _lua(description, kind) for kind in listeners},
            shard_count=description.shards.count,
            refusals=REFUSALS,
            route_header=ROUTE_HEADER,
            alive=ALIVE,
            streams_to_host=_STREAMS_TO_HOST,
        )
    )
    return json.dumps(json.loads(text), indent=2) + "\n"


def _cluster(description: GatewayDescription, version: str, kind: str) -> dict[str, Any]:
    hosts = description.hosts_of(version)
    return {
        "name": f"{version}_{kind}",
        "kind": kind,
        "paths": paths_of(version, kind),
        "hosts": hosts,
        "is_static": all(is_address(host.address) for host in hosts),
    }


def _lua(description: GatewayDescription, kind: str) -> str:
    """Returns the code of the Lua filter; with the first hosts of each shard, as numbers of hosts from 1."""
    names = tuple(sorted(host.name for host in description.hosts))
    numbers = {name: number for number, name in enumerate(names, start=1)}
    count = description.shards.count
    return (
        environment()
        .get_template("envoy.lua")
        .render(
            clients_code=clients_code(description),
            route_header=ROUTE_HEADER,
            wrong_route=WRONG_ROUTE,
            kind=kind,
            with_certificates=description.tls.client_certificates != "none",
            with_jwts=bool(description.issuers),
            shard_count=count,
            host_names=names,
            orders=[[numbers[name] for name in order[:_ORDER_MAX]] for order in ranked_hosts(count, names)],
            route_digits_of_shard=ROUTE_BITS_DIGITS,
        )
    )
