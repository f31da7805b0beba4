"""`paywarden admin store`: checks the profile store's completeness, backs it up and restores it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import click

from paywarden.ops import wiring
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source


@click.group()
def store() -> None:
    """Verify, back up or restore the profile store."""


@store.command()
@click.option(
    "--since", metavar="TIME", help="When the store may have lost records: a time such as 2026-10-01T12:00:00Z."
)
@click.option(
    "--until",
    metavar="TIME",
    help="When a parted cluster, or one that hid records, was whole again and no copies moved.",
)
@click.option("--repair", is_flag=True, help="Write lost profiles back from the changelog.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
@click.pass_obj
def verify(source: Source, since: str | None, until: str | None, repair: bool, as_json: bool) -> None:
    """Compare the profiles in the store with the changelog.

    A store with a single copy loses its last second of acknowledged writes when it is killed. The changelog still has
    them, so this command finds profiles that are older than there, and --repair writes them back.

    Run it at once, before more payments come: a profile that was written again after the loss is newer on both sides,
    and nothing shows the lost events. With --since the command counts profiles that this may have happened to. After a
    partition of the network, or a node that went while copies moved, add --until. Records of payments, which later
    outcomes need, are on no changelog: only a rebuild restores them.

    The exit status is 1 if something was lost and is not repaired, or needs a rebuild.
    """
    from paywarden.ops.times import time_ms_option
    from paywarden.streams.maintenance.verify import spoken

    if source.section("store", wiring.StoreSettings).kind == "memory":
        raise Misconfigured("[store] kind is memory: only its own process can compare it")
    since_ms, until_ms = time_ms_option("--since", since), time_ms_option("--until", until)
    if until_ms is not None and (since_ms is None or until_ms < since_ms):
        raise Misconfigured("--until needs --since with an earlier time")
    verdicts = wiring.verify_store(source, since_ms=since_ms, until_ms=until_ms, repair=repair)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(verdicts), indent=2))
    else:
        click.echo("\n".join(spoken(verdicts)))
    if verdicts.needs_repair or verdicts.needs_rebuild or verdicts.returned:
        raise click.ClickException("the store lacks records of the changelog")


@store.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.pass_obj
def backup(source: Source, folder: Path) -> None:
    """Copy the embedded store into FOLDER, while processes run.

    FOLDER must be empty or absent. The copy has the offsets on Kafka with which the stream goes on after `restore`. It
    holds all profile sets, the counts of drift and the join of outcomes. For Aerospike use its own tool, asbackup.
    """
    made = wiring.back_up_store(source, folder)
    click.echo(f"backed up into {folder}: the stream goes on from {_places(made.offsets)} after a restore")


@store.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.pass_obj
def restore(source: Source, folder: Path) -> None:
    """Put the backup in FOLDER in place of a lost store.

    For the embedded store. Stop the stream first, and move the rest of the store away. The next `paywarden stream`
    reads from the backup's offsets, and its profiles are then the same bytes as if nothing had happened. Refused if
    Kafka no longer has the records from there on: `paywarden admin rebuild` makes profiles from an archive. Erase again
    all that `paywarden admin forget` has erased since the backup.
    """
    from paywarden.ops.times import spoken

    made = wiring.restore_store(source, folder)
    click.echo(f"restored the backup of {spoken(made.taken_time_ms)}: start `paywarden stream`")


def _places(offsets: Mapping[str, Mapping[int, int | None]]) -> str:
    """Returns the records before the sources' offsets, over all partitions: `payments 1204, outcomes 31`."""
    sums = {topic: sum(offset or 0 for offset in partitions.values()) for topic, partitions in offsets.items()}
    return ", ".join(f"{topic} {count}" for topic, count in sums.items() if not topic.startswith("repartition"))
