"""`paywarden admin schemas`: lists and exports the schemas of topics and endpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from paywarden.ops import wiring
from paywarden.ops.options import at_most_one
from paywarden.schemas.errors import BrokerUnavailable
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.streams.kafka.schemas.schema_listing import ListedSchema

_COLUMNS = ("topic", "version", "fingerprint", "registry id", "subject")


@click.command()
@click.option(
    "--export",
    "folder",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write every schema to DIR, for the tools of other teams.",
)
@click.option("--proto", is_flag=True, help="Print the endpoint's .proto file, for protoc and gRPC clients.")
@click.option("--openapi", is_flag=True, help="Print the endpoint's OpenAPI 3.1 description, as JSON.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
@click.pass_obj
def schemas(source: Source, folder: Path | None, proto: bool, openapi: bool, as_json: bool) -> None:
    """List or export the schemas of topics and endpoint.

    A record begins with a zero byte and the id of its schema in four bytes, big endian. Without a registry the id is
    the schema's fingerprint. Registry ids come from Kafka, where [kafka] bootstrap names it: they are those that any
    process has used or seen so far.

    Versions count the schemas of Paywarden's releases. With declared fields, the newest version of payments is that of
    your declaration. "other" is a schema of another producer, known from the registry, or of an earlier declaration.

    DIR/payments.avsc and so on are the current schemas, with your declared fields. DIR/history holds earlier ones,
    DIR/others those of other producers. DIR/schemas.json says which id belongs to which file.

    The descriptions of the endpoint have the fields that every payment has, and those that the project declares, each
    with its meaning. OpenAPI's has also the limits, the port and the deadline of the configuration.
    """
    at_most_one(export=folder, proto=proto, openapi=openapi, json=as_json)
    if proto:
        _print_proto(source)
    elif openapi:
        _print_openapi(source)
    elif folder is not None:
        _export(source, folder)
    else:
        _list(source, as_json=as_json)


def _list(source: Source, *, as_json: bool) -> None:
    found = _found(source)
    if as_json:
        click.echo(json.dumps([one.to_dict() for one in found], indent=2))
        return
    rows = [_COLUMNS, *map(_cells, found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _export(source: Source, folder: Path) -> None:
    from paywarden.streams.kafka.schemas.schema_listing import INDEX, export_schemas

    found = _found(source)
    export_schemas(found, folder)
    click.echo(f"{len(found)} schemas and {INDEX} in {folder}")


def _print_proto(source: Source) -> None:
    from paywarden.schemas.request_proto import proto_text

    click.echo(proto_text(wiring.catalogue(source).payment.fields), nl=False)


def _print_openapi(source: Source) -> None:
    from paywarden.ops.openapi import openapi_document
    from paywarden.scoring.engine.batching.batcher import AdmissionSettings
    from paywarden.scoring.http.http_settings import HttpSettings
    from paywarden.scoring.requests.validation import RequestLimits

    document = openapi_document(
        wiring.payment_fields(source),
        limits=source.section("limits", RequestLimits),
        http=source.section("http", HttpSettings),
        admission=source.section("admission", AdmissionSettings),
    )
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


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
