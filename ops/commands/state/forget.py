"""`paywarden admin forget`: erases an entity."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from paywarden.ops import wiring
from paywarden.ops.progress import scan_bar
from paywarden.ops.times import now_ms
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.streams.kafka.client import KafkaSettings


@click.command()
@click.argument("entity_id", metavar="[ENTITY:ID]", required=False)
@click.option(
    "--copies",
    "folders",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    multiple=True,
    help="Erase all cards that were ever forgotten from unsealed copies below this folder.",
)
@click.pass_obj
def forget(source: Source, entity_id: str | None, folders: Sequence[Path]) -> None:
    """Erase a card, merchant or other entity everywhere.

    ENTITY:ID is card:C1, for example. A combination has its ids with commas between: card_merchant:C1,M1.

    The command erases the entity's profile, the profiles of combinations with it, and the records of its payments that
    are kept for later outcomes: in every profile set of the store and on the changelog. Companions then erase it from
    their mirrors, and consoles take its decisions out of their index and delete its notes. The changelog keeps the
    erasure for a day: a companion that was away for longer must start with a new mirror. A later payment begins a new
    profile.

    With [erasure] keys the command destroys the card's key: its rows in archives, and in every copy of these, are
    unreadable. Run it where that file is. With --copies it also writes again, without all cards that were ever
    forgotten, what is below a folder: Parquet files of histories, replays and archives, and backups of the embedded
    store. It deletes their dead letters, written with `admin dead-letters --bytes`. ENTITY:ID may then be absent.

    These stay:

    \b
    - counts of other entities: nothing in a merchant's sums says whose payments they were.
      A feature that remembers latest ids keeps a checksum, until newer ids push it out
    - records on payments, outcomes, decisions and dead-letters, until the topics' retention ends.
      A profile set that is built from them has the profile again. If one is being built now,
      run this command again when it is done. After a later rebuild, run it again for every
      entity forgotten since the topic's oldest payment
    - decisions in an outbox that are not shipped yet: the topic has a right to them
    - unsealed files in folders that --copies does not name: they belong to their owner
    - on an Aerospike Community server: a marker with the id in place of each record, for
      [aerospike] marker_days, so that no cold start of a server brings the record back.
      An Enterprise server deletes durably and needs no marker
    """
    if entity_id is None and not folders:
        raise click.UsageError("name ENTITY:ID, --copies or both")
    if entity_id is not None:
        _forget(source, entity_id)
    if folders:
        _sweep(source, folders)


def _sweep(source: Source, folders: Sequence[Path]) -> None:
    from paywarden.streams.maintenance.copies import sweep

    keys = wiring.erasure_keys(source)
    if keys is None:
        raise Misconfigured("[erasure] keys is not set: --copies reads there which cards were forgotten")
    plan = wiring.feature_engine(source).plan
    for folder in folders:
        try:
            done = sweep(folder, keys, plan)
        except OSError as error:
            raise click.ClickException(f"cannot write below {folder}: {error.strerror}; run this again") from error
        click.echo(
            f"{folder}: {done.rows} rows, {done.records} records of stores and {done.letters} dead letters erased"
        )


def _forget(source: Source, entity_id: str) -> None:
    from paywarden.features.profiles.profile_view import typed_key
    from paywarden.features.stores.base import split_key
    from paywarden.features.stores.profile_sets import ProfileSets, spoken
    from paywarden.streams.kafka.admin import require_broker
    from paywarden.streams.maintenance.entity_erasure import KafkaChangelog
    from paywarden.streams.maintenance.entity_erasure import forget as run

    if source.section("store", wiring.StoreSettings).kind == "memory":
        raise Misconfigured("[store] kind is memory: only its own process can erase from it")
    plan = wiring.feature_engine(source).plan
    entity, key = typed_key(plan, entity_id)
    kafka = wiring.kafka_settings(source)
    require_broker(kafka)
    stores = wiring.set_stores(source)
    keys = wiring.erasure_keys(source)
    # Payments made after the erasure may stay.
    erased_ms = now_ms()
    sealed = "not sealed: [erasure] keys is not set"
    if keys is not None and plan.entity_keys[entity] == ("card_id",):
        is_destroyed = keys.destroy(split_key(key)[1].decode(), erased_ms)
        sealed = "the key is destroyed" if is_destroyed else "there is no key"
    elif keys is not None:
        sealed = "unchanged: keys are of cards"
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
    click.echo(f"archives         {sealed}")
    told = _tell_indexes(source, kafka, plan.entity_keys[entity], entity_id, erased_ms)
    click.echo(f"decisions        {told}")
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


def _tell_indexes(source: Source, kafka: KafkaSettings, fields: Sequence[str], entity_id: str, time_ms: int) -> str:
    """Send the erasure to all indexes of decisions; returns a sentence. Raises BrokerUnavailable."""
    from paywarden.features.profiles.profile_view import ids_in
    from paywarden.streams.alerts.alert_events import EVENTS_TOPIC, EventWriter
    from paywarden.streams.decision_index.erasure import Erasure
    from paywarden.streams.kafka.admin import partitions_of

    ids = ids_in(entity_id, len(fields))
    erasure = Erasure.of(dict(zip(fields, ids, strict=True)), time_ms)
    if erasure is None:
        return "name no such entity, so the index of decisions has nothing to erase"
    try:
        partitions_of(kafka, EVENTS_TOPIC)
    except Misconfigured:
        return (
            f"there is no topic {EVENTS_TOPIC}, so no index of decisions was asked; `paywarden topics create` makes it"
        )
    EventWriter(kafka, wiring.schema_ids(source)).write(erasure.event("forget"))
    return (
        "every index of decisions gets the erasure: it takes them out, and not in again; a DuckDB file may keep their "
        "bytes for an hour"
    )
