"""`paywarden load`: sends simulated payments to a scoring endpoint and measures how long it takes to answer."""

from __future__ import annotations

import click

from paywarden.ops import wiring
from paywarden.ops.extras import needs
from paywarden.ops.reporting import report
from paywarden.schemas.file_state import read_regular
from paywarden.schemas.settings import Source


@click.command()
@click.option(
    "--target",
    required=True,
    metavar="URL",
    help="http(s)://HOST:PORT or grpc(s)://HOST:PORT.",
)
@click.option("--rate", type=float, help="Payments a second, sent whether or not earlier ones are answered.")
@click.option(
    "--max",
    "as_many",
    is_flag=True,
    help="Instead of a rate: send the next payment as soon as one is answered, on all connections.",
)
@click.option("--seconds", type=float, required=True, help="How long to send.")
@click.option(
    "--arrivals",
    type=click.Choice(["poisson", "fixed"]),
    default="poisson",
    show_default=True,
    help="Times between payments: random or all the same.",
)
@click.option(
    "--connections",
    type=click.IntRange(1),
    help="Connections at the start (default: 8 over gRPC or with --max, else 1; HTTP opens more when needed).",
)
@click.option(
    "--connections-max", type=click.IntRange(1), default=256, show_default=True, help="Most HTTP connections."
)
@click.option(
    "--streams", type=click.IntRange(1), default=64, show_default=True, help="Unanswered calls of a gRPC connection."
)
@click.option(
    "--body",
    type=click.Choice(["protobuf", "json"]),
    default="protobuf",
    show_default=True,
    help="Format of HTTP requests.",
)
@click.option(
    "--timeout-ms", type=click.IntRange(1), default=5000, show_default=True, help="A later answer counts as an error."
)
@click.option("--header", "headers", multiple=True, metavar="NAME=VALUE", help="Header of every request.")
@click.option("--token-file", type=click.Path(), help="File with the bearer token to send.")
@click.option(
    "--ca-file", type=click.Path(), default="", help="PEM file of the authorities that sign the server's certificate."
)
@click.option(
    "--cert-file", type=click.Path(), default="", help="PEM file of our certificate, if the server asks for one."
)
@click.option("--key-file", type=click.Path(), default="", help="PEM file of its key.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the payments and their arrivals.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Also write the result to this file.")
@click.pass_obj
@needs("serve", "history")
def load(
    source: Source,
    target: str,
    rate: float | None,
    as_many: bool,
    seconds: float,
    arrivals: str,
    connections: int | None,
    connections_max: int,
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
    """Send simulated payments and measure latency.

    Payments come at a fixed rate, whether or not earlier ones are answered. The latency of a payment counts from the
    moment it was due. They have plausible values of the fields that the project declares.
    """
    from paywarden.ops.loadgen.target import LoadOptions
    from paywarden.ops.loadgen.traffic import run_simulated_load

    if as_many == (rate is not None):
        raise click.UsageError("use either --rate R or --max")
    if connections is None:
        connections = 8 if as_many or target.startswith("grpc") else 1
    options = LoadOptions(
        content_type=f"application/{'x-protobuf' if body == 'protobuf' else 'json'}",
        connections=connections,
        connections_max=connections_max,
        streams=streams,
        timeout_ms=timeout_ms,
        token=_token(token_file),
        headers=dict(map(_header, headers)),
        ca_file=ca_file,
        certificate_file=cert_file,
        key_file=key_file,
    )
    result = run_simulated_load(
        target,
        rate=rate,
        seconds=seconds,
        seed=seed,
        arrivals=arrivals,
        options=options,
        fields=wiring.catalogue(source).payment.fields,
    )
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
        token = read_regular(token_file).decode("ascii").strip()
    except (OSError, ValueError) as error:
        raise click.ClickException(f"--token-file: cannot read {token_file}") from error
    if not token or not token.isprintable():
        raise click.ClickException(f"--token-file: {token_file} holds no token")
    return token
