"""`paywarden gateway`: the configuration of Envoy or nginx before the scoring hosts, its keys and tokens."""

from __future__ import annotations

import datetime
from pathlib import Path

import click

from paywarden.ops.extras import needs
from paywarden.schemas.errors import Misconfigured

# 256 random bits, as 43 characters of base64.
_KEY_BYTES = 32


@click.group()
def gateway() -> None:
    """Configure Envoy or nginx before the scoring hosts."""


@gateway.command()
@click.option(
    "--target",
    type=click.Choice(["envoy", "nginx", "hosts", "key"]),
    required=True,
    help="What the configuration is for; hosts: print their [auth] tokens_file; key: make an API key and its hash.",
)
@click.option(
    "--description",
    type=click.Path(dir_okay=False, path_type=Path),
    default="gateway.toml",
    show_default=True,
    help="The gateway's description.",
)
@click.option("--validate", is_flag=True, help="Also look the hosts' names up, and let the target (on PATH) check.")
@click.option(
    "--elsewhere", is_flag=True, help="The certificates and key sets are on another machine: do not look for them."
)
@needs("gateway")
def render(target: str, description: Path, validate: bool, elsewhere: bool) -> None:
    """Print the configuration of the target.

    It holds the tokens by which hosts know the gateway's clients. Write it to a file that no other user may read.
    While the secret's file has two lines, each client has a token of both.

    With --target key it makes an API key for a client, and its hash for the description. Neither is stored.
    """
    if target == "key":
        _print_new_key()
        return
    if target == "hosts":
        _print_tokens(description)
        return
    from paywarden.ops.gateway.credentials import check_credentials
    from paywarden.ops.gateway.description import read_description
    from paywarden.ops.gateway.envoy import envoy_configuration
    from paywarden.ops.gateway.nginx import nginx_configuration
    from paywarden.ops.gateway.validation import require_addresses
    from paywarden.ops.gateway.validation import validate as validate_with

    described = read_description(description, looks_for_files=not elsewhere)
    if not elsewhere:
        try:
            check_credentials(described, datetime.datetime.now(datetime.UTC))
        except Misconfigured as error:
            raise Misconfigured(f"{description}: {error}") from error
    configuration = envoy_configuration(described) if target == "envoy" else nginx_configuration(described)
    if validate:
        try:
            require_addresses(described.hosts)
        except Misconfigured as error:
            raise Misconfigured(f"{description}: {error}") from error
        validate_with(target, configuration)
    click.echo(configuration, nl=False)


def _print_tokens(description: Path) -> None:
    from paywarden.ops.gateway.description import read_description
    from paywarden.ops.gateway.host_tokens import read_secrets, tokens_file

    described = read_description(description, looks_for_files=False)
    secrets = read_secrets(described.to_hosts.secret_file)
    click.echo(tokens_file(secrets, (client.name for client in described.clients)), nl=False)


def _print_new_key() -> None:
    import hashlib
    import secrets

    made = secrets.token_urlsafe(_KEY_BYTES)
    click.echo(f"key     {made}")
    click.echo(f"sha256  {hashlib.sha256(made.encode()).hexdigest()}")
