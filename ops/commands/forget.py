"""`paywarden forget`: erase an entity."""

from __future__ import annotations

from contextlib import ExitStack, closing

import click

from paywarden.ops import wiring
from paywarden.ops.progress import scan_bar
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source


@click.command()
@click.argument("entity_id", metavar="ENTITY:ID")
@click.pass_obj
def forget(source: Source, entity_id: str) -> None:
    """Erase a card, merchant or other entity from store, changelog and mirrors; from every profile set of the store.

    ENTITY:ID is card:C1; of a combination the ids stand with commas between, card_merchant:C1,M1. Erased are its
    profile, those of combinations it is part of, and what is kept about its payments for outcomes to come. Companions
    remove it from their mirrors when they read of it on the changelog; one that was away for over a day, which is how
    long the changelog keeps that, must start with a new mirror. A payment that comes later begins a new profile.

    What stays, and why:

    \b
    - what other entities count of its payments: nothing in a merchant's sums says whose they were.
      Where a feature remembers latest ids there is a checksum, until newer ids have pushed it out
    - records on payments, outcomes, decisions and dead-letters, until the retention of the topics
      ends: a profile set that is built from them, now or later, has the profile again. While one is
      being built, run this again when it is done; after a rebuild, for whoever was forgotten since
      the topic's oldest payment
    - decisions in an outbox that are not shipped yet: they are owed to the topic
    - Parquet files of histories and replays: they are their owner's
    """
    from paywarden.features.profiles.engine import FeatureEngine
    from paywarden.features.profiles.profile_view import typed_key
    from paywarden.features.stores.profile_sets import ProfileSets, spoken
    from paywarden.streams.kafka.admin import require_broker
    from paywarden.streams.maintenance.forget import KafkaChangelog
    from paywarden.streams.maintenance.forget import forget as run

    if source.section("store", wiring.StoreSettings).kind == "memory":
        raise Misconfigured("[store] kind is memory: only the process that has it can erase in it")
    plan = FeatureEngine().plan
    entity, key = typed_key(plan, entity_id)
    kafka = wiring.kafka_settings(source)
    require_broker(kafka)
    stores = wiring.set_stores(source)
    with ExitStack() as opened:
        changelog = opened.enter_context(closing(KafkaChangelog(kafka)))
        register = opened.enter_context(closing(ProfileSets(stores.open_register()))).register()
        store = opened.enter_context(closing(stores.open(register.live.name)))
        other_names = [one.name for one in register.sets if one.name != register.live.name]
        others = [opened.enter_context(closing(stores.open(name))) for name in other_names]
        progress = opened.enter_context(scan_bar("payment records"))
        done = run(key, plan=plan, store=store, others=others, changelog=changelog, progress=progress)
    click.echo(f"profiles         {done.profiles} erased from the store, and from the mirrors by the changelog")
    click.echo(f"payment records  {done.payment_records} erased")
    if done.has_begun_anew:
        click.echo(f"payments of this {plan.entity_names[entity]} keep coming: a new profile has begun with them")
    if done.backfill_is_unfinished:
        click.echo(
            "a backfill of this store is not finished, and would bring it back: run this again after it", err=True
        )
    if other_names:
        names = ", ".join(map(spoken, other_names))
        click.echo(
            f"erased from profile sets that are not live, too: {names}; one that is being built may get it back from "
            "payments that are still on the topic: run this again when it is built",
            err=True,
        )
