"""`paywarden admin profile-sets`: lists the profile sets, and drops one."""

from __future__ import annotations

import dataclasses
import json
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from paywarden.ops import wiring
from paywarden.ops.options import at_most_one
from paywarden.ops.progress import scan_bar
from paywarden.schemas.errors import Misconfigured, TemporaryFailure
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.features.stores.profile_sets import ProfileSet, Register, SetStores


@click.command("profile-sets")
@click.option("--drop", "dropped", metavar="NAME", help="Erase the set NAME and its topics on Kafka.")
@click.option(
    "--records-per-second",
    type=click.IntRange(0),
    default=20_000,
    show_default=True,
    help="With --drop: speed limit of the erasure on aerospike; 0 for no limit.",
)
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
@click.pass_obj
def profile_sets(source: Source, dropped: str | None, records_per_second: int, as_json: bool) -> None:
    """List the profile sets of the store, or drop one.

    A profile set is a complete collection of profiles. One of them is live. The list has the sets' state, age and
    number of records: exact for lmdb, and for aerospike the servers' own counts, with markers of erased records.

    --drop takes "first" for the set that was there before any other. It refuses the live set, and a set that is being
    swapped in. If it is killed, the same command continues. If Kafka does not answer, the topics stay and are named. On
    an Aerospike Community server a marker stays in place of each record, for [aerospike] marker_days: without it a cold
    start of a server could bring the record back. An Enterprise server deletes durably and needs no marker.
    """
    at_most_one(drop=dropped, json=as_json)
    if dropped is None:
        _list(source, as_json=as_json)
    else:
        _drop(source, dropped, records_per_second)


def _list(source: Source, *, as_json: bool) -> None:
    from paywarden.features.stores.profile_sets import ProfileSets

    stores = _stores(source)
    with closing(ProfileSets(stores.open_register())) as sets:
        register = sets.register()
    counts = {one.name: stores.counts(one.name) for one in register.sets}
    if as_json:
        click.echo(json.dumps(_to_dict(register, counts), indent=2))
    else:
        click.echo("\n".join(_to_lines(register, counts)))


def _drop(source: Source, name: str, records_per_second: int) -> None:
    from paywarden.features.stores.profile_sets import ProfileSets, drop, typed_name

    stores = _stores(source)
    dropped = typed_name(name)
    with closing(ProfileSets(stores.open_register())) as sets, scan_bar("records") as progress:
        try:
            # First the note that the set is being dropped: from then on nobody needs the topics. The set leaves the
            # register last, so that the same command finds the data that a killed one has not erased.
            sets.begin_drop(dropped)
            left = _delete_topics(source, dropped)
            drop(sets, stores, dropped, records_per_second=records_per_second, progress=progress)
        except TemporaryFailure as error:
            raise click.ClickException(f"{error}; the same command goes on where this ended") from error
    click.echo(f"profile set {name} is dropped")
    if left:
        reasons = ", ".join(sorted(set(left.values())))
        click.echo(f"left on Kafka, to be deleted there: {', '.join(sorted(left))} ({reasons})", err=True)


def _delete_topics(source: Source, name: str) -> dict[str, str]:
    """Delete the topics that only this set's events use; returns those that may still be there, and why."""
    from paywarden.features.stores.profile_sets import FIRST
    from paywarden.streams.kafka.topic_names import repartition_topic
    from paywarden.streams.kafka.topics import delete_repartition_topics

    if name == FIRST:
        # `topics create` makes these, whichever sets there are.
        return {}
    topics = [repartition_topic(entity, name) for entity in wiring.entity_names(source)]
    return delete_repartition_topics(wiring.kafka_settings(source), topics)


def _stores(source: Source) -> SetStores:
    if source.section("store", wiring.StoreSettings).kind == "memory":
        raise Misconfigured("[store] kind is memory: only its own process knows its profile sets")
    return wiring.set_stores(source)


def _state(one: ProfileSet, register: Register) -> str:
    if one.name == register.live.name:
        return "live"
    if one.name == register.live.next:
        return "being swapped in"
    return "being dropped" if one.is_being_dropped else "not live"


def _begun(one: ProfileSet) -> str | None:
    if one.begun_ms is None:
        return None
    return datetime.fromtimestamp(one.begun_ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _to_dict(register: Register, counts: dict[str, dict[str, int]]) -> dict[str, object]:
    from paywarden.features.stores.profile_sets import spoken

    sets = [
        {"name": spoken(one.name), "state": _state(one, register), "begun": _begun(one), "records": counts[one.name]}
        for one in register.sets
    ]
    live = dataclasses.asdict(register.live)
    next_name = register.live.next
    live |= {"name": spoken(register.live.name), "next": None if next_name is None else spoken(next_name)}
    return {"live": live, "sets": sets}


def _to_lines(register: Register, counts: dict[str, dict[str, int]]) -> list[str]:
    from paywarden.features.stores.profile_sets import spoken

    rows = [("set", "state", "begun", "records")]
    for one in register.sets:
        held = ", ".join(f"{count} {kind}" for kind, count in sorted(counts[one.name].items())) or "none"
        rows.append((spoken(one.name), _state(one, register), _begun(one) or "-", held))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [
        "  ".join((*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[3])) for row in rows
    ]
