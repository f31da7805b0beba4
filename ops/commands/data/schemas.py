"""`paywarden schemas`: lists and exports the Avro schemas of the topics, and prints the endpoint's descriptions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from paywarden.ops import wiring
from paywarden.schemas.errors import BrokerUnavailable
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.streams.kafka.schemas.schema_listing import ListedSchema

_COLUMNS = ("topic", "version", "fingerprint", "registry id", "subject")


@click.group()
def schemas() -> None:
    """List or export the schemas of topics and endpoint.

    A record begins with a zero byte and the id of its schema in four bytes, big endian. Without a registry the id is
    the schema's fingerprint. Registry ids come from Kafka, where [kafka] bootstrap names it: they are those that any
    process has used or seen so far.
    """


@schemas.command("list")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@click.pass_obj
def list_schemas(source: Source, as_json: bool) -> None:
    """List every schema with its version and ids.

    Versions count the schemas of Paywarden's releases. With declared fields, the newest version of payments is that of
    your declaration. "other" is a schema of another producer, known from the registry, or of an earlier declaration.
    """
    found = _found(source)
    if as_json:
        click.echo(json.dumps([one.to_dict() for one in found], indent=2))
        return
    rows = [_COLUMNS, *map(_cells, found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@schemas.command("export")
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.pass_obj
def export(source: Source, folder: Path) -> None:
    """Write every schema to DIR, for the tools of other teams.

    DIR/payments.avsc and so on are the current schemas, with your declared fields. DIR/history holds earlier ones,
    DIR/others those of other producers. DIR/schemas.json says which id belongs to which file.
    """
    from paywarden.streams.kafka.schemas.schema_listing import INDEX, export_schemas

    found = _found(source)
    export_schemas(found, folder)
    click.echo(f"{len(found)} schemas and {INDEX} in {folder}")


@schemas.command("proto")
@click.pass_obj
def proto(source: Source) -> None:
    """Print the .proto file of the endpoint.

    protoc and gRPC clients take it. It has the fields that every payment has, and those that the project declares, each
    with its meaning.
    """
    from paywarden.schemas.request_proto import proto_text

    click.echo(proto_text(wiring.catalogue(source).payment.fields), nl=False)


@schemas.command("openapi")
@click.pass_obj
def openapi(source: Source) -> None:
    """Print the OpenAPI description of the HTTP endpoint.

    It is OpenAPI 3.1 in JSON: paths, requests, answers and errors, with the fields that the project declares, and the
    limits, the port and the deadline of the configuration.
    """
    from paywarden.ops.openapi import openapi_text
    from paywarden.scoring.engine.batching.batcher import AdmissionSettings
    from paywarden.scoring.http.settings import HttpSettings
    from paywarden.scoring.requests.validation import RequestLimits

    text = openapi_text(
        wiring.payment_fields(source),
        limits=source.section("limits", RequestLimits),
        http=source.section("http", HttpSettings),
        admission=source.section("admission", AdmissionSettings),
    )
    click.echo(text, nl=False)


def _found(source: Source) -> list[ListedSchema]:
    from paywarden.streams.kafka.schemas.remembered_schemas import KafkaRememberedSchemas
    from paywarden.streams.kafka.schemas.schema_listing import listed_schemas

    kafka = wiring.kafka_settings(source)
    remembered: Mapping[int, str] = {}
    try:
        # Without settings there is no broker to wait for.
        if source.has("kafka", "bootstrap"):
            remembered = KafkaRememberedSchemas(kafka).read()
    except BrokerUnavailable as error:
        click.echo(f"paywarden: registry ids are not shown: {error}", err=True)
    return listed_schemas(kafka, remembered, wiring.payment_fields(source))


def _cells(schema: ListedSchema) -> tuple[str, ...]:
    version = "other" if schema.version is None else f"{schema.version} (today's)" if schema.is_current else ""
    return (
        schema.topic,
        version or str(schema.version),
        str(schema.fingerprint),
        ", ".join(map(str, schema.registry_ids)) or "-",
        schema.subject,
    )
