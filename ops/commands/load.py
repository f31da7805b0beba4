"""`paywarden load`: simulated payments at a scoring endpoint, and how long it takes to answer."""

from __future__ import annotations

from pathlib import Path

import click

from paywarden.ops.extras import needs
from paywarden.ops.reporting import report


@click.command()
@click.option(
    "--target",
    required=True,
    metavar="URL",
    help="http(s)://HOST:PORT, grpc(s)://HOST:PORT, http+unix:///SOCKET or grpc+unix:///SOCKET.",
)
@click.option("--rate", type=float, help="Payments a second, sent whether or not earlier ones are answered.")
@click.option("--max", "as_many", is_flag=True, help="Instead: as many as are answered, on all connections at a time.")
@click.option("--seconds", type=float, required=True, help="How long.")
@click.option(
    "--arrivals", type=click.Choice(["poisson", "fixed"]), default="poisson", show_default=True, help="How they come."
)
@click.option(
    "--connections",
    type=click.IntRange(1),
    help="Opened at the start (default: 1 over HTTP, where more follow, 8 over gRPC and with --max).",
)
@click.option(
    "--connections-max", type=click.IntRange(1), default=256, show_default=True, help="Over HTTP, as they are needed."
)
@click.option(
    "--depth",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Requests on an HTTP connection at a time, once there can be no more connections.",
)
@click.option("--streams", type=click.IntRange(1), default=64, show_default=True, help="The same over gRPC.")
@click.option(
    "--body", type=click.Choice(["protobuf", "json"]), default="protobuf", show_default=True, help="Of HTTP requests."
)
@click.option(
    "--timeout-ms", type=click.IntRange(1), default=5000, show_default=True, help="No answer by then: an error."
)
@click.option("--header", "headers", multiple=True, metavar="NAME=VALUE", help="Sent with every request.")
@click.option("--token-file", type=click.Path(), help="Whose content is sent as the bearer token.")
@click.option("--ca-file", type=click.Path(), default="", help="Who signs the server's certificate.")
@click.option("--cert-file", type=click.Path(), default="", help="Our certificate, where the server asks for one.")
@click.option("--key-file", type=click.Path(), default="", help="Its key.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the payments and their arrivals.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Also write the result there.")
@needs("serve", "history")
def load(
    target: str,
    rate: float | None,
    as_many: bool,
    seconds: float,
    arrivals: str,
    connections: int | None,
    connections_max: int,
    depth: int,
    streams: int,
    body: str,
    timeout_ms: int,
    headers: tuple[str, ...],
    token_file: str | None,
    ca_file: str,
    cert_file: str,
    key_file: str,
    seed: int,
    json_file: str | None,
) -> None:
    """Send simulated payments at a fixed arrival rate and report latency, measured from when each was due."""
    from paywarden.ops.loadgen.target import LoadOptions
    from paywarden.ops.loadgen.traffic import run_simulated_load

    if as_many == (rate is not None):
        raise click.UsageError("say one of --rate R and --max")
    if connections is None:
        connections = 8 if as_many or target.startswith("grpc") else 1
    options = LoadOptions(
        content_type=f"application/{'x-protobuf' if body == 'protobuf' else 'json'}",
        connections=connections,
        connections_max=connections_max,
        depth=depth,
        streams=streams,
        timeout_ms=timeout_ms,
        token=_token(token_file),
        headers=dict(map(_header, headers)),
        ca_file=ca_file,
        certificate_file=cert_file,
        key_file=key_file,
    )
    result = run_simulated_load(target, rate=rate, seconds=seconds, seed=seed, arrivals=arrivals, options=options)
    report(result, json_file)


def _header(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name.strip() and equals and text.isprintable()):
        raise click.UsageError("--header: wanted NAME=VALUE")
    return name.strip(), value.strip()


def _token(token_file: str | None) -> str:
    if token_file is None:
        return ""
    try:
        token = Path(token_file).read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise click.ClickException(f"--token-file: cannot read {token_file}") from error
    if not token or not token.isprintable():
        raise click.ClickException(f"--token-file: {token_file} holds no token")
    return token
