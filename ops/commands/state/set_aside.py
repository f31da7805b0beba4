"""`paywarden admin set-aside`: shows the profiles that cannot be read, and tries them again."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import click

from paywarden.ops import wiring
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.streams.maintenance.set_aside_profiles import FoundAside


@click.command("set-aside")
@click.option("--retry", is_flag=True, help="Try these profiles again.")
@click.pass_obj
def set_aside(source: Source, retry: bool) -> None:
    """Count profiles that cannot be read, or try them again.

    They are profiles of the live set, and events wait for them. No key is printed: it may be a card's id. Without
    --retry the command reads the store and changes nothing.

    With --retry, if this release cannot read a profile's bytes, the changelog's last state of it takes their place.
    Then a message asks the owner of the profile, a stream worker, to apply the waiting events. A profile for which
    nothing readable is found stays set aside: `paywarden admin rebuild` makes it from the topics.
    """
    if retry:
        _retry(source)
    else:
        _list(source)


def _list(source: Source) -> None:
    from paywarden.features.profiles.engine import FeatureEngine
    from paywarden.streams.maintenance.set_aside_profiles import find

    _refuse_memory(source)
    with closing(wiring.open_live_store(source, readonly=True)) as store:
        found = find(store, FeatureEngine(wiring.catalogue(source)))
    _print(found)
    click.echo(f"readable now     {found.readable}")
    click.echo(f"unreadable       {found.left}")


def _retry(source: Source) -> None:
    from paywarden.features.profiles.engine import FeatureEngine
    from paywarden.streams.kafka.admin import partitions_of, require_broker
    from paywarden.streams.kafka.topic_names import repartition_topic
    from paywarden.streams.maintenance.set_aside_profiles import KafkaParts
    from paywarden.streams.maintenance.set_aside_profiles import retry as run

    _refuse_memory(source)
    kafka = wiring.kafka_settings(source)
    require_broker(kafka)
    live = wiring.live_set(source).name
    engine = FeatureEngine(wiring.catalogue(source))
    topics = [repartition_topic(name, live) for name in engine.plan.entity_names]
    routes = [(kafka.topic(topic), len(partitions_of(kafka, topic))) for topic in topics]
    parts = KafkaParts(kafka, wiring.schema_ids(source), routes)
    with closing(wiring.open_store(source, profile_set=live)) as store:
        found = run(store, engine, parts.last_states, parts.remind)
        parts.flush()
    _print(found)
    click.echo(f"readable now     {found.readable}")
    click.echo(f"from changelog   {found.replaced}")
    click.echo(f"sent to owners   {found.reminded}")
    click.echo(f"unreadable       {found.left}")


def _refuse_memory(source: Source) -> None:
    if wiring.store_kind(source) == "memory":
        raise Misconfigured("[store] kind is memory: only its own process can read it")


def _print(found: FoundAside) -> None:
    for name, count in sorted(found.profiles.items()):
        click.echo(f"{name:16} {count} profiles set aside, {found.events[name]} events wait")
    if not found.profiles:
        click.echo("no profile is set aside")
