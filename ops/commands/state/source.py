"""`paywarden admin source`: the topics that stored offsets belong to, and accepting one that was created again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import click

from paywarden.ops import wiring
from paywarden.ops.options import at_most_one
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.features.stores.base import ProfileStore
    from paywarden.streams.kafka.clients import KafkaClients
    from paywarden.streams.maintenance.accept_source import SourceReader, SourceState


@click.command("source")
@click.argument("topics", metavar="[TOPIC]...", nargs=-1)
@click.option("--accept", is_flag=True, help="Go on with each TOPIC as it is now, from its beginning.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
@click.pass_obj
def source_topics(source: Source, topics: tuple[str, ...], accept: bool, as_json: bool) -> None:
    """List or accept the topics that offsets belong to.

    Profiles and counts remember how far they have read a topic. Stream workers stop when a topic of the same name is
    another one, or ends before the last record that was read. The list has the topics, their ids and their problems. A
    generation is how often the topic was accepted.

    Stop all stream workers before --accept. Profiles and counts keep what they have. The new topic's payments count on
    top of it, except those whose payment_id is known already. TOPIC is payments, outcomes, decisions or a repartition
    topic, without the prefix of the deployment. `repartition-card` stands for that of the live profile set.
    """
    if accept != bool(topics):
        raise click.UsageError("wanted --accept with TOPIC...")
    at_most_one(accept=accept, json=as_json)
    if accept:
        _accept(source, topics)
    else:
        _list(source, as_json=as_json)


def _list(source: Source, *, as_json: bool) -> None:
    from paywarden.streams.maintenance.accept_source import states

    with _readers(source, readonly=True) as (clients, readers):
        found = states(clients, readers)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(state) for state in found], indent=2))
    else:
        click.echo("\n".join(_lines(found)))


def _accept(source: Source, topics: tuple[str, ...]) -> None:
    from paywarden.streams.kafka.topic_names import repartition_topic
    from paywarden.streams.maintenance.accept_source import accept as accept_topic
    from paywarden.streams.maintenance.accept_source import require_read

    live, entities = wiring.live_set(source).name, wiring.entity_names(source)
    of_live_set = {repartition_topic(entity): repartition_topic(entity, live) for entity in entities}
    with _readers(source) as (clients, readers):
        names = [of_live_set.get(name, name) for name in topics]
        # Before any of them: the command is then right or wrong as a whole.
        require_read(readers, names)
        for name in names:
            for state in accept_topic(clients, readers, name):
                click.echo(f"{state.topic} is accepted for {state.whose}: generation {state.entry.generation + 1}")


@contextmanager
def _readers(source: Source, *, readonly: bool = False) -> Iterator[tuple[KafkaClients, list[SourceReader]]]:
    from paywarden.streams.kafka.admin import require_broker
    from paywarden.streams.kafka.clients import KafkaClients
    from paywarden.streams.kafka.source_register import BESIDE_SOURCES_KEY, SOURCES_KEY, SourceRegister
    from paywarden.streams.kafka.topic_names import repartition_topic
    from paywarden.streams.maintenance.accept_source import SourceReader
    from paywarden.streams.profiles.stream_settings import StreamSettings

    if wiring.store_kind(source) == "memory":
        raise Misconfigured("[store] kind is memory: only its own process knows what it holds")
    kafka = wiring.kafka_settings(source)
    require_broker(kafka)
    clients = KafkaClients.of(kafka)
    settings = source.section("stream", StreamSettings)
    live = wiring.live_set(source).name
    stores = wiring.set_stores(source)
    of_profiles = ["payments", "outcomes", *(repartition_topic(name, live) for name in wiring.entity_names(source))]
    of_counts = ["decisions", "outcomes"]

    with (
        closing(stores.open(live, readonly=readonly)) as profiles,
        closing(stores.open_beside(readonly=readonly)) as beside,
    ):

        def register(store: ProfileStore, key: bytes, names: list[str]) -> SourceRegister:
            return SourceRegister(store, key, {clients.topic(name): name for name in names})

        group = settings.group_of(live)
        yield (
            clients,
            [
                SourceReader("profiles", group, register(profiles, SOURCES_KEY, of_profiles), of_profiles),
                SourceReader(
                    "counts", settings.counts_group, register(beside, BESIDE_SOURCES_KEY, of_counts), of_counts
                ),
            ],
        )


def _lines(found: list[SourceState]) -> list[str]:
    rows = [("topic", "for", "generation", "id", "state")]
    rows += [
        (state.topic, state.whose, str(state.entry.generation), state.id or "-", state.problem or "as it was read")
        for state in found
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return [
        "  ".join((*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[4])) for row in rows
    ]
