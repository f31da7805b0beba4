"""`paywarden rebuild`: fresh profiles from the topics, beside the live ones, and then instead of them."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import closing
from datetime import UTC, datetime

import click

from paywarden.ops.progress import scan_bar
from paywarden.ops.times import time_ms_of
from paywarden.ops.wiring import parts as wiring
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source


@click.command()
@click.option("--from-beginning", is_flag=True, help="Of all payments and outcomes that the topics still hold.")
@click.option("--from", "from_time", metavar="TIME", help="Of those that reached Kafka from TIME on (ISO 8601).")
@click.option("--resume", metavar="NAME", help="Go on with the set that an earlier rebuild began.")
@click.option("--abort", metavar="NAME", help="Give up a swap to this set that has begun: the live set stays.")
@click.pass_obj
def rebuild(source: Source, from_beginning: bool, from_time: str | None, resume: str | None, abort: str | None) -> None:
    """Build a fresh set of profiles from the topics next to the live one, and swap it in.

    The stream goes on meanwhile; while the sets are swapped, for as long as it takes to publish all profiles, it
    waits, and scoring goes on with the profiles that its mirrors have. The old set stays until it is dropped with
    `paywarden profile-sets drop`. Profiles that `backfill` made from older history are not in the new set.
    """
    from paywarden.features.stores.profile_sets import ProfileSets, spoken
    from paywarden.streams.faust.gc_tuning import settle_collection
    from paywarden.streams.kafka.topics import TopicSettings
    from paywarden.streams.maintenance.rebuild import Rebuild, RebuildOptions, RebuildParts
    from paywarden.streams.profiles.changelog import Changelog

    if sum((from_beginning, from_time is not None, resume is not None, abort is not None)) != 1:
        raise click.UsageError("say one of --from-beginning, --from TIME, --resume NAME and --abort NAME")
    from_ms = None if from_time is None else _time_ms(from_time)
    if source.section("store", wiring.StoreSettings).kind == "memory":
        raise Misconfigured("[store] kind is memory: no other process can have a set of it")
    parts = wiring.StreamParts(source)
    stores = wiring.set_stores(source)
    now_ms = time.time_ns() // 1_000_000
    with closing(ProfileSets(stores.open_register())) as sets, scan_bar("payments and outcomes") as bar:
        job = Rebuild(
            resume or abort or _new_name(now_ms),
            clients=parts.clients,
            settings=parts.settings,
            entities=parts.entities,
            sets=sets,
            stores=stores,
            parts=RebuildParts(
                open_pipeline=lambda name: parts.open_pipeline(name, publish=False),
                open_changelog=lambda sender: Changelog(sender, parts.clients, parts.ids, parts.entities),
            ),
            options=RebuildOptions(replication=source.section("topics", TopicSettings).replication),
        )
        if abort is not None:
            live = job.abort()
            click.echo(f"given up: profile set {spoken(live.name)} is live")
            return
        if resume is None:
            job.create(now_ms=now_ms, from_ms=from_ms)
        click.echo(f"building profile set {job.name}", err=True)
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        settle_collection()
        swapped = job.run(stop, lambda done, total: bar(done, total))
    if swapped is None:
        raise click.ClickException(f"stopped: `paywarden rebuild --resume {job.name}` goes on where this ended")
    click.echo(job.name)


def _new_name(now_ms: int) -> str:
    """Of the moment, to the second: names are kept for ever in some stores, and sort by time."""
    return "b" + datetime.fromtimestamp(now_ms / 1000, UTC).strftime("%Y%m%d%H%M%S")


def _time_ms(text: str) -> int:
    try:
        return time_ms_of(text)
    except ValueError:
        raise click.BadParameter(f"wanted a time such as 2026-05-01T12:00:00Z, got {text!r}") from None
