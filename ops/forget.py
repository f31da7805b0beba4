"""`paywarden forget`: erase an entity."""

from __future__ import annotations

import click

from ops import wiring
from ops.progress import scan_bar
from schemas.errors import Misconfigured
from schemas.settings import Source


@click.command()
@click.argument("entity_id", metavar="ENTITY:ID")
@click.pass_obj
def forget(source: Source, entity_id: str) -> None:
    """Erase a card, merchant or other entity from store, changelog and mirrors.

    ENTITY:ID is card:C1; of a combination the ids stand with commas between, card_merchant:C1,M1. Erased are its
    profile, those of combinations it is part of, and what is kept about its payments for outcomes to come. Companions
    remove it from their mirrors when they read of it on the changelog; one that was away for over a day, which is how
    long the changelog keeps that, must start with a new mirror. A payment that comes later begins a new profile.

    What stays, and why:

    \b
    - what other entities count of its payments: nothing in a merchant's sums says whose they were.
      Where a feature remembers latest ids there is a checksum, until newer ids have pushed it out
    - records on payments, outcomes, decisions and dead-letters, until the retention of the topics
      ends: a stream that is made to read payments from the beginning makes the profile anew
    - decisions in an outbox that are not shipped yet: they are owed to the topic
    - Parquet files of histories and replays: they are their owner's
    """
    from features.engine import FeatureEngine
    from features.show import typed_key
    from streams.forget import KafkaChangelog
    from streams.forget import forget as run
    from streams.kafka import require_broker

    if source.section("store", wiring.StoreSettings).kind == "memory":
        raise Misconfigured("[store] kind is memory: only the process that has it can erase in it")
    plan = FeatureEngine().plan
    entity, key = typed_key(plan, entity_id)
    kafka = wiring.kafka_settings(source)
    require_broker(kafka)
    changelog = KafkaChangelog(kafka)
    try:
        store = wiring.open_store(source)
        try:
            with scan_bar("payment records") as progress:
                done = run(key, plan=plan, store=store, changelog=changelog, progress=progress)
        finally:
            store.close()
    finally:
        changelog.close()
    click.echo(f"profiles         {done.profiles} erased from the store, and from the mirrors by the changelog")
    click.echo(f"payment records  {done.payment_records} erased")
    if done.has_begun_anew:
        click.echo(f"payments of this {plan.entity_names[entity]} keep coming: a new profile has begun with them")
    if done.backfill_is_unfinished:
        click.echo(
            "a backfill of this store is not finished, and would bring it back: run this again after it", err=True
        )
