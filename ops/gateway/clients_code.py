"""The Lua code that recognises clients, with the tables of one description. Envoy and nginx run the same code."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from paywarden.ops.gateway.description import ROUTE_DIGITS, GatewayDescription
from paywarden.ops.gateway.host_tokens import host_token, read_secrets


def clients_code(description: GatewayDescription) -> str:
    """Returns the code; it holds hashes of keys and, in clear, the hosts' tokens. Raises Misconfigured (the secret)."""
    secret = read_secrets(description.to_hosts.secret_file)[0]
    clients = description.clients
    return (
        environment()
        .get_template("clients.lua")
        .render(
            keys=[(key, client.name) for client in clients for key in client.keys],
            certificates=[(subject, client.name) for client in clients for subject in client.certificates],
            jwts=[(client.jwt_issuer, client.jwt_subject, client.name) for client in clients if client.jwt_issuer],
            tokens=[(client.name, host_token(secret, client.name)) for client in clients],
            route_digits=ROUTE_DIGITS,
        )
    )


@cache
def environment() -> Environment:
    """Returns the environment of the templates. A description holds no quote, so nothing is escaped."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
