"""`paywarden traces`: spans of sampled decisions for a collector of OpenTelemetry."""

from __future__ import annotations

import signal
import threading
from contextlib import closing

import click

from paywarden.ops import wiring
from paywarden.ops.extras import needs
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source


@click.command()
@click.pass_obj
@needs("otel")
def traces(source: Source) -> None:
    """Send the spans of sampled decisions to a collector.

    The collector is one of OpenTelemetry. The command reads the topic decisions in a consumer group of its own. A
    decision whose request had a traceparent with the flag "sampled" becomes two spans in the caller's trace: "score",
    from the arrival of the request to the decision, and "ship", until the decision was on Kafka. [tracing] collector is
    the address, for OTLP over HTTP.
    """
    from paywarden.schemas.avro import Decoder
    from paywarden.streams.kafka.admin import require_broker
    from paywarden.streams.traces.decisions import DecisionRecords
    from paywarden.streams.traces.exporter import TraceExporter
    from paywarden.streams.traces.trace_settings import TracingSettings

    settings = source.section("tracing", TracingSettings)
    if not settings.collector:
        raise Misconfigured("[tracing] collector is not set: wanted an address such as http://127.0.0.1:4318")
    kafka, stop = wiring.kafka_settings(source), threading.Event()
    require_broker(kafka)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with closing(DecisionRecords(kafka, kafka.topic_prefix + settings.group_id, settings.batch_max)) as records:
        decoder = Decoder("decisions", wiring.schema_ids(source))
        exporter = TraceExporter(settings, decoder, records.read, records.commit)
        click.echo(f"spans go to {settings.collector}")
        exporter.run(stop)
    click.echo(f"{exporter.sent} spans sent, {exporter.refused} refused, {exporter.undecodable} records undecodable")
