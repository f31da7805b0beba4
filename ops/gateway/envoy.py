"""Envoy's bootstrap configuration: static, complete, JSON.

    caller ──► connection limits ──► JWT ──► who calls (Lua) ──► whole body ──► client's share ──► host by maglev

1. `set_filter_state` keeps the routing header and the request id, which hosts do not get.
2. `jwt_authn` checks a JWT, if issuers are described. Another token passes on.
3. The Lua filter recognises the client by key, certificate or JWT, refuses strangers, and replaces the Authorization
   header by the client's token for hosts.
4. `buffer` waits for the whole body, so a slow one never reaches a host.
5. `local_ratelimit` holds a token bucket for each client. It comes after the body, because Envoy closes a connection of
   HTTP/1.1 if it refuses a request that has not ended.
6. The router takes the host of the routing header by maglev; that header and the request id stay here. HTTP and gRPC
   hash the same names of hosts, so a card has one host over both. With [shards], the Lua filter says in which order
   hosts take the card (scoring/state/shards.py), and the router takes the first of them that is well.

An answer of a host, 429, 503 and 504 too, is an answer: only broken connections and time-outs take a host out.

The cost of a call is mostly code that is cold in the caches between two calls. Parts that a description does not need
are therefore left out, and Lua does only the work that no native filter can.
"""

from __future__ import annotations

import json
from typing import Any

from paywarden.ops.gateway.clients_code import clients_code, environment
from paywarden.ops.gateway.description import ROUTE_HEADER, Address, GatewayDescription, Host
from paywarden.ops.gateway.log_fields import ENVOY_FIELDS, REQUEST_ID_STATE
from paywarden.ops.gateway.refusals import REFUSALS, WRONG_ROUTE, GatewayRefusal
from paywarden.ops.gateway.routes import ALIVE, GRPC, HTTP, paths_of
from paywarden.schemas.payment_fields import is_address
from paywarden.scoring.state.shards import ROUTE_BITS_DIGITS, ranked_hosts

_Json = dict[str, Any]

_FILTERS = "envoy.extensions.filters.http"
# More than the calls of any second: the bucket of clients without a limit.
_NO_LIMIT = 4_000_000_000
# HTTP/2 opens a further connection to a host beyond this, and one connection reaches one worker of a host.
_STREAMS_TO_HOST = 16
_HEADER_COUNT_MAX = 64
_LINGER_CONNECTION_S = 60
# Retries of a cluster that are always allowed, however few calls there are.
_RETRIES_MIN = 3
# The hosts of a shard that are tried in order. If all of them are away, any host gets the call.
_ORDER_MAX = 4
# Where the routing header's value is kept for the choice of a host, for retries too, and the request id for the log.
_ROUTE_STATE = "paywarden.route"
_ID_STATE = f"%FILTER_STATE({REQUEST_ID_STATE}:PLAIN)%"
# A host remembers the heads that it has read. Headers that differ from call to call would make each head a new one.
_NOT_FOR_HOSTS = (
    *(ROUTE_HEADER, "x-request-id", "x-forwarded-for", "x-forwarded-proto", "x-envoy-external-address"),
    *("user-agent", "accept", "accept-encoding", "accept-language", "cookie", "referer"),
)
# Nobody: with it Envoy writes a request id of its own for every caller, also for one of a private network.
_NOBODY = {"address_prefix": "255.255.255.255", "prefix_len": 32}


def envoy_configuration(description: GatewayDescription) -> str:
    """Returns the configuration, which holds the hosts' tokens in clear. Raises Misconfigured (the secret)."""
    kinds = [kind for kind in (HTTP, GRPC) if description.listener(kind)]
    admin = description.listener("admin")
    configuration: _Json = {"node": {"id": "paywarden", "cluster": "paywarden"}}
    if admin is not None:
        configuration["admin"] = {"address": _socket_address(admin)}
    else:
        # Nobody could read the counts, and each call pays for some fifty of them.
        configuration["stats_config"] = {"stats_matcher": {"reject_all": True}}
    configuration |= {
        "stats_flush_on_admin": True,
        "static_resources": {
            "listeners": [_listener(description, kind) for kind in kinds],
            "clusters": [_cluster(description, version, kind) for kind in kinds for version in description.versions],
        },
        "overload_manager": {
            "resource_monitors": [
                _typed(
                    "envoy.resource_monitors.global_downstream_max_connections",
                    "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                    max_active_downstream_connections=description.limits.connections_max,
                )
            ]
        },
    }
    return json.dumps(configuration, indent=2) + "\n"


def _typed(name: str, message: str, **fields: Any) -> _Json:
    return {"name": name, "typed_config": {"@type": f"type.googleapis.com/{message}", **fields}}


def _filter(name: str, message: str, **fields: Any) -> _Json:
    return _typed(f"envoy.filters.http.{name}", f"{_FILTERS}.{name}.v3.{message}", **fields)


def _seconds(milliseconds: int) -> str:
    return f"{milliseconds / 1000:g}s"


def _socket_address(address: Address) -> _Json:
    return {"socket_address": {"address": address.host, "port_value": address.port}}


# Listeners


def _listener(description: GatewayDescription, kind: str) -> _Json:
    address = description.listener(kind)
    assert address is not None
    chain: _Json = {"filters": [_connection_manager(description, kind)]}
    if description.tls.certificate:
        chain["transport_socket"] = _downstream_tls(description, kind)
        # Else a connection that never says a word of TLS stays as long as one of a client.
        chain["transport_socket_connect_timeout"] = _seconds(description.limits.request_timeout_ms)
    return {
        "name": kind,
        "address": _socket_address(address),
        # A client keeps a few connections open: the kernel could give most of them to one thread.
        "connection_balance_config": {"exact_balance": {}},
        "per_connection_buffer_limit_bytes": description.limits.body_bytes_max + description.limits.head_bytes_max,
        "filter_chains": [chain],
    }


def _downstream_tls(description: GatewayDescription, kind: str) -> _Json:
    tls = description.tls
    common: _Json = {
        "alpn_protocols": ["h2", "http/1.1"] if kind == HTTP else ["h2"],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "tls_certificates": [_certificate(tls.certificate, tls.key)],
    }
    if tls.client_certificates != "none":
        common["validation_context"] = {"trusted_ca": {"filename": tls.client_ca}}
    return _typed(
        "envoy.transport_sockets.tls",
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        common_tls_context=common,
        require_client_certificate=tls.client_certificates == "required",
    )


def _certificate(certificate: str, key: str) -> _Json:
    return {"certificate_chain": {"filename": certificate}, "private_key": {"filename": key}}


def _connection_manager(description: GatewayDescription, kind: str) -> _Json:
    limits = description.limits
    return _typed(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=kind,
        codec_type="AUTO" if kind == HTTP else "HTTP2",
        server_header_transformation="PASS_THROUGH",
        use_remote_address=True,
        skip_xff_append=True,
        internal_address_config={"unix_sockets": False, "cidr_ranges": [_NOBODY]},
        generate_request_id=True,
        always_set_request_id_in_response=True,
        normalize_path=True,
        path_with_escaped_slashes_action="REJECT_REQUEST",
        max_request_headers_kb=-(-limits.head_bytes_max // 1024),
        common_http_protocol_options={
            "idle_timeout": _seconds(limits.idle_timeout_ms),
            "max_headers_count": _HEADER_COUNT_MAX,
            "headers_with_underscores_action": "REJECT_REQUEST",
        },
        http2_protocol_options={"max_concurrent_streams": limits.streams_max},
        # From the first byte of the head to the last of the body.
        request_timeout=_seconds(limits.request_timeout_ms),
        stream_idle_timeout=_seconds(limits.request_timeout_ms + description.to_hosts.timeout_ms),
        access_log=[
            _typed(
                "envoy.access_loggers.file",
                "envoy.extensions.access_loggers.file.v3.FileAccessLog",
                path=description.listen.access_log,
                log_format={"json_format": ENVOY_FIELDS},
            )
        ],
        local_reply_config={"mappers": _mappers(kind)},
        http_filters=_http_filters(description, kind),
        route_config=_routes(description, kind),
    )


def _mappers(kind: str) -> list[_Json]:
    """Returns how Envoy words its own answers.

    A failed connection (502) is answered with 503, like a host that is away.
    """
    known = {refusal.status: refusal for refusal in REFUSALS}
    return [_mapper(kind, refusal.status, refusal) for refusal in REFUSALS] + [_mapper(kind, 502, known[503])]


def _mapper(kind: str, status: int, refusal: GatewayRefusal) -> _Json:
    headers = [_added("retry-after", "1")] if refusal.retry_after else []
    if kind == GRPC:
        headers.append(_added("grpc-status", str(refusal.grpc_status)))
    text = refusal.body if kind == HTTP else refusal.message
    return {
        "filter": {
            "status_code_filter": {
                "comparison": {"op": "EQ", "value": {"default_value": status, "runtime_key": f"paywarden.{status}"}}
            }
        },
        "status_code": refusal.status,
        "headers_to_add": headers,
        "body_format_override": {
            "text_format_source": {"inline_string": text},
            "content_type": "application/json" if kind == HTTP else "text/plain",
        },
    }


def _added(header: str, value: str) -> _Json:
    return {"header": {"key": header, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _http_filters(description: GatewayDescription, kind: str) -> list[_Json]:
    source = (
        environment()
        .get_template("envoy.lua")
        .render(
            clients_code=clients_code(description),
            route_header=ROUTE_HEADER,
            wrong_route=WRONG_ROUTE,
            kind=kind,
            with_certificates=description.tls.client_certificates != "none",
            with_jwts=bool(description.issuers),
            **_order_of_shards(description),
        )
    )
    jwt = [_jwt_filter(description)] if description.issuers else []
    shares = [_rate_limit_filter(description)] if any(client.calls_per_second for client in description.clients) else []
    return [
        _kept_filter(),
        *jwt,
        # Routes are chosen by the path, which the Lua code does not change: no second choice for its changed headers.
        _filter("lua", "Lua", default_source_code={"inline_string": source}, clear_route_cache=False),
        _filter("buffer", "Buffer", max_request_bytes=description.limits.body_bytes_max),
        *shares,
        _filter("router", "Router", suppress_envoy_headers=True),
    ]


def _kept_filter() -> _Json:
    """Returns the filter that keeps values of headers that the router takes out."""
    return _typed(
        "envoy.filters.http.set_filter_state",
        f"{_FILTERS}.set_filter_state.v3.Config",
        on_request_headers=[
            _kept(_ROUTE_STATE, "envoy.hashable_string", ROUTE_HEADER),
            _kept(REQUEST_ID_STATE, "envoy.string", "x-request-id"),
        ],
    )


def _kept(name: str, factory: str, header: str) -> _Json:
    return {
        "object_key": name,
        "factory_key": factory,
        # Else the text of a missing header is "-", and all calls without one would meet the same host.
        "format_string": {"text_format_source": {"inline_string": f"%REQ({header})%"}, "omit_empty_values": True},
        "skip_if_empty": True,
    }


def _order_of_shards(description: GatewayDescription) -> _Json:
    """Returns the shards for the Lua filter: the first hosts of each, as numbers of hosts from 1."""
    names = tuple(sorted(host.name for host in description.hosts))
    numbers = {name: number for number, name in enumerate(names, start=1)}
    count = description.shards.count
    firsts = [[numbers[name] for name in order[:_ORDER_MAX]] for order in ranked_hosts(count, names)]
    return {"shard_count": count, "host_names": names, "orders": firsts, "route_digits_of_shard": ROUTE_BITS_DIGITS}


def _jwt_filter(description: GatewayDescription) -> _Json:
    """Returns the filter that checks JWTs. A call without a valid one goes on to the Lua filter, which refuses it."""
    providers = {
        f"issuer_{number}": {
            "issuer": issuer.issuer,
            "audiences": list(issuer.audiences),
            "local_jwks": {"filename": issuer.jwks},
            "require_expiration": True,
            "forward": False,
            "from_headers": [{"name": "Authorization", "value_prefix": "Bearer "}],
            "payload_in_metadata": "paywarden",
        }
        for number, issuer in enumerate(description.issuers)
    }
    requirements: list[_Json] = [{"provider_name": name} for name in providers]
    return _filter(
        "jwt_authn",
        "JwtAuthentication",
        providers=providers,
        rules=[
            {
                "match": {"prefix": "/"},
                "requires": {"requires_any": {"requirements": [*requirements, {"allow_missing_or_failed": {}}]}},
            }
        ],
    )


def _rate_limit_filter(description: GatewayDescription) -> _Json:
    """Returns the filter with a token bucket for each client, which all threads of Envoy share."""
    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    return _filter(
        "local_ratelimit",
        "LocalRateLimit",
        stat_prefix="clients",
        token_bucket={"max_tokens": _NO_LIMIT, "tokens_per_fill": _NO_LIMIT, "fill_interval": "1s"},
        filter_enabled={"runtime_key": "paywarden.limits_enabled", **always},
        filter_enforced={"runtime_key": "paywarden.limits_enforced", **always},
        always_consume_default_token_bucket=False,
        rate_limited_as_resource_exhausted=True,
        rate_limits=[
            {
                "actions": [
                    {
                        "metadata": {
                            "descriptor_key": "client",
                            "metadata_key": {"key": "paywarden", "path": [{"key": "call"}, {"key": "client"}]},
                            "source": "DYNAMIC",
                        }
                    }
                ]
            }
        ],
        descriptors=[
            {
                "entries": [{"key": "client", "value": client.name}],
                "token_bucket": {
                    # One more than the burst, as nginx counts. A bucket of one token is full between two calls, and
                    # loses the tokens that come then: a client with a burst of 1 got a quarter less than its share.
                    "max_tokens": client.burst_calls + 1,
                    "tokens_per_fill": client.calls_per_second,
                    "fill_interval": "1s",
                },
            }
            for client in description.clients
            if client.calls_per_second
        ],
    )


# Routes


def _routes(description: GatewayDescription, kind: str) -> _Json:
    routes: list[_Json] = [
        {
            "name": name,
            "match": {"path": path},
            "route": _route_action(description, f"{version}_{kind}"),
        }
        for version in description.versions
        for name, path in paths_of(version, kind)
    ]
    if kind == HTTP:
        # For a load balancer before the gateway and for Prometheus: alive, without a key.
        routes.append(
            {
                "name": "livez",
                "match": {"path": "/livez"},
                "direct_response": {"status": 200, "body": {"inline_string": ALIVE}},
                "typed_per_filter_config": {
                    "envoy.filters.http.lua": {
                        "@type": f"type.googleapis.com/{_FILTERS}.lua.v3.LuaPerRoute",
                        "disabled": True,
                    }
                },
            }
        )
    return {
        "name": kind,
        "virtual_hosts": [
            {
                "name": "all",
                "domains": ["*"],
                "routes": routes,
                "request_headers_to_remove": list(_NOT_FOR_HOSTS),
                "response_headers_to_add": [_added("x-request-id", _ID_STATE)],
            }
        ],
    }


def _route_action(description: GatewayDescription, cluster: str) -> _Json:
    return {
        "cluster": cluster,
        "timeout": _seconds(description.to_hosts.timeout_ms),
        "host_rewrite_literal": "paywarden",
        "hash_policy": [{"filter_state": {"key": _ROUTE_STATE}, "terminal": True}],
        # A call that a host may have decided is not sent twice. A retry meets the same host, as it has the same hash.
        "retry_policy": {
            "retry_on": "connect-failure,refused-stream,reset-before-request",
            "num_retries": 1,
            "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.025s"},
        },
    }


# Clusters


def _cluster(description: GatewayDescription, version: str, kind: str) -> _Json:
    to_hosts, hosts = description.to_hosts, description.hosts_of(version)
    is_static = all(is_address(host.address) for host in hosts)
    name = f"{version}_{kind}"
    cluster: _Json = {
        "name": name,
        "type": "STATIC" if is_static else "STRICT_DNS",
        "connect_timeout": _seconds(to_hosts.connect_timeout_ms),
        "lb_policy": "MAGLEV",
        # Without a healthy host Envoy answers 503 at once, and does not try hosts that are known to be away.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "health_checks": [_health_check(description)],
        "circuit_breakers": {"thresholds": [_breakers(description, len(hosts))]},
        "outlier_detection": _outlier_detection(description),
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [_endpoint(host, kind, description) for host in hosts]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": _protocol(kind),
                "common_http_protocol_options": {"idle_timeout": f"{_LINGER_CONNECTION_S}s"},
            }
        },
    }
    if to_hosts.ca:
        cluster |= _upstream_tls(description)
    if description.shards.count:
        # The Lua filter lists hosts by name, and an entry without one where any host will do.
        cluster["lb_subset_config"] = {
            "fallback_policy": "ANY_ENDPOINT",
            "subset_selectors": [{"keys": ["host"], "fallback_policy": "NO_FALLBACK"}],
            "metadata_fallback_policy": "FALLBACK_LIST",
        }
    return cluster


def _protocol(kind: str) -> _Json:
    if kind == HTTP:
        return {"http_protocol_options": {}}
    return {"http2_protocol_options": {"max_concurrent_streams": _STREAMS_TO_HOST}}


def _endpoint(host: Host, kind: str, description: GatewayDescription) -> _Json:
    endpoint: _Json = {"address": _socket_address(Address(host.address, getattr(host, kind)))}
    endpoint["health_check_config"] = {"port_value": host.health or host.http}
    # The name is hashed, not the address: HTTP and gRPC, and a host that moves, keep their cards.
    names = {"hash_key": host.name, **({"host": host.name} if description.shards.count else {})}
    return {"endpoint": endpoint, "metadata": {"filter_metadata": {"envoy.lb": names}}}


def _health_check(description: GatewayDescription) -> _Json:
    to_hosts = description.to_hosts
    check: _Json = {
        "timeout": _seconds(to_hosts.health_timeout_ms),
        "interval": _seconds(to_hosts.health_interval_ms),
        "unhealthy_threshold": to_hosts.health_failures,
        "healthy_threshold": 1,
        "http_health_check": {"path": "/readyz", "codec_client_type": "HTTP1"},
        # Otherwise Envoy looks once a minute until the first call comes.
        "no_traffic_interval": _seconds(to_hosts.health_interval_ms),
    }
    if to_hosts.ca and all(host.health for host in description.hosts):
        # The admin port of a host has no TLS.
        check["transport_socket_match_criteria"] = {"is_plain": True}
    return check


def _breakers(description: GatewayDescription, host_count: int) -> _Json:
    most = description.to_hosts.connections_max * host_count
    return {
        "max_connections": most,
        "max_pending_requests": most,
        "max_requests": most * _STREAMS_TO_HOST,
        "retry_budget": {
            "budget_percent": {"value": description.to_hosts.retry_budget_percent},
            "min_retry_concurrency": _RETRIES_MIN,
        },
    }


def _outlier_detection(description: GatewayDescription) -> _Json:
    """Returns the rules that take a host out: broken connections and time-outs in a row, but no answer of a host."""
    to_hosts = description.to_hosts
    return {
        "split_external_local_origin_errors": True,
        "consecutive_local_origin_failure": to_hosts.failures_max,
        "enforcing_consecutive_local_origin_failure": 100,
        "enforcing_consecutive_5xx": 0,
        "enforcing_consecutive_gateway_failure": 0,
        "enforcing_success_rate": 0,
        "enforcing_local_origin_success_rate": 0,
        "enforcing_failure_percentage": 0,
        "enforcing_failure_percentage_local_origin": 0,
        "interval": "1s",
        "base_ejection_time": _seconds(to_hosts.out_ms),
        "max_ejection_time": _seconds(to_hosts.out_ms * 6),
        "max_ejection_percent": 100,
    }


def _upstream_tls(description: GatewayDescription) -> _Json:
    to_hosts = description.to_hosts
    common: _Json = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "validation_context": {"trusted_ca": {"filename": to_hosts.ca}},
    }
    if to_hosts.certificate:
        common["tls_certificates"] = [_certificate(to_hosts.certificate, to_hosts.key)]
    context: _Json = {"common_tls_context": common}
    if to_hosts.name:
        context["sni"] = to_hosts.name
        matcher = {"san_type": "DNS", "matcher": {"exact": to_hosts.name}}
        common["validation_context"]["match_typed_subject_alt_names"] = [matcher]
    else:
        context |= {"auto_host_sni": True, "auto_sni_san_validation": True}
    socket = _typed(
        "envoy.transport_sockets.tls", "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", **context
    )
    plain = _typed("envoy.transport_sockets.raw_buffer", "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer")
    return {
        "transport_socket": socket,
        "transport_socket_matches": [
            {"name": "plain", "match": {"is_plain": True}, "transport_socket": plain},
            {"name": "tls", "match": {}, "transport_socket": socket},
        ],
    }
