"""`paywarden admin rebuild`: builds fresh profiles from the topics next to the live ones, then swaps them in."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import closing
from datetime import UTC, datetime

import click

from paywarden.ops import wiring
from paywarden.ops.progress import scan_bar
from paywarden.ops.times import time_ms_of
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source


@click.command()
@click.option("--from-beginning", is_flag=True, help="Use all payments and outcomes that the topics still hold.")
@click.option("--from", "from_time", metavar="TIME", help="Use records that reached Kafka at TIME (ISO 8601) or later.")
@click.option("--resume", metavar="NAME", help="Continue the set that an earlier rebuild began.")
@click.option("--abort", metavar="NAME", help="Cancel a swap to this set that has begun: the live set stays.")
@click.pass_obj
def rebuild(source: Source, from_beginning: bool, from_time: str | None, resume: str | None, abort: str | None) -> None:
    """Build fresh profiles from the topics and swap them in.

    The stream keeps working while the new profile set is built. During the swap it waits until all profiles are
    published; scoring continues with the profiles in its mirrors. The old set stays until
    `paywarden admin profile-sets --drop` erases it. Profiles that `backfill` made from older history are not in the new
    set.
    """
    from paywarden.features.stores.profile_sets import ProfileSets, spoken
    from paywarden.streams.health.gc_tuning import settle_collection
    from paywarden.streams.kafka.topics import TopicSettings
    from paywarden.streams.maintenance.rebuild import Rebuild, RebuildOptions, RebuildParts
    from paywarden.streams.profiles.changelog import Changelog

    if sum((from_beginning, from_time is not None, resume is not None, abort is not None)) != 1:
        raise click.UsageError("use one of --from-beginning, --from TIME, --resume NAME and --abort NAME")
    from_ms = None if from_time is None else _time_ms(from_time)
    if source.section("store", wiring.StoreSettings).kind == "memory":
        raise Misconfigured("[store] kind is memory: only its own process can build a set in it")
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
        raise click.ClickException(f"stopped: `paywarden admin rebuild --resume {job.name}` goes on where this ended")
    click.echo(job.name)


def _new_name(now_ms: int) -> str:
    """Returns a name made of the time, to the second: some stores never forget a name, and these names sort by time."""
    return "b" + datetime.fromtimestamp(now_ms / 1000, UTC).strftime("%Y%m%d%H%M%S")


def _time_ms(text: str) -> int:
    try:
        return time_ms_of(text)
    except ValueError:
        raise click.BadParameter(f"wanted a time such as 2026-05-01T12:00:00Z, got {text!r}") from None
