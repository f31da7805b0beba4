"""`paywarden capacity`: cores, memory, partitions, network and disk of a deployment, before it is bought."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from paywarden.ops import wiring
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.ops.capacity.plan import CapacityPlan, KeptBytes

_HEADINGS = ("part", "processes", "busy cores", "cores to have", "memory", "disk", "network")


@click.command()
@click.option("--rate", type=float, required=True, help="Payments a second at the busiest time, all hosts together.")
@click.option("--entities", type=float, required=True, help="Profiles: cards, merchants, devices and so on together.")
@click.option("--hosts", type=int, required=True, help="Scoring hosts.")
@click.option(
    "--average-share",
    type=float,
    default=0.4,
    show_default=True,
    help="The average rate as a share of --rate: disks are for the average.",
)
@click.option(
    "--sharded-share",
    type=float,
    default=0.0,
    show_default=True,
    help="The share of the profiles that are of cards, where [shards] lets each host hold a part of the cards.",
)
@click.option(
    "--store-replication", type=click.IntRange(1), default=2, show_default=True, help="Copies that the store keeps."
)
@click.option(
    "--measured",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="JSON of perf.whole or perf.companion, measured on your machine. May be given several times.",
)
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
@click.pass_obj
def capacity(
    source: Source,
    rate: float,
    entities: float,
    hosts: int,
    average_share: float,
    sharded_share: float,
    store_replication: int,
    measured: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Plan cores, memory, disk and network of a deployment.

    The costs of a payment are those that the benchmarks measured on one machine (docs/operate/capacity.md); --measured
    takes your own. How long things are kept comes from the settings. The brokers' and the store's own memory is not
    planned.
    """
    from paywarden.ops.capacity.coefficients import Coefficients
    from paywarden.ops.capacity.measured_costs import MEASURED
    from paywarden.ops.capacity.plan import Requirements, plan
    from paywarden.scoring.state.shards import ShardSettings

    copies = source.section("shards", ShardSettings).copies
    asked = Requirements(rate, entities, hosts, average_share, sharded_share, copies)
    found = plan(Coefficients.read(measured, MEASURED), asked, _kept(source, store_replication))
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found) | {"cores": found.cores}, indent=2))
    else:
        _tell(found)


def _kept(source: Source, store_replication: int) -> KeptBytes:
    from paywarden.ops.capacity.plan import KeptBytes
    from paywarden.scoring.idempotency.decision_cache import DecisionCacheSettings
    from paywarden.scoring.state.outbox import OutboxSettings
    from paywarden.scoring.state.shards import CARD_FIELD
    from paywarden.streams.kafka.topics import TopicSettings
    from paywarden.streams.profiles.stream_settings import StreamSettings

    topics, answered = source.section("topics", TopicSettings), source.section("answered", DecisionCacheSettings)
    return KeptBytes(
        kinds=len(wiring.catalogue(source).entities),
        sharded_kinds=sum(entity.keys[0] == CARD_FIELD for entity in wiring.catalogue(source).entities),
        partitions=topics.partitions,
        kafka_replication=topics.replication,
        kafka_days=max(topics.payments_days, topics.decisions_days),
        store_replication=store_replication,
        store_days=source.section("stream", StreamSettings).outcome_days,
        answered_window_s=answered.window_s,
        answered_slots=answered.payments_max,
        outbox_bytes_max=source.section("outbox", OutboxSettings).total_bytes_max,
    )


def _tell(found: CapacityPlan) -> None:
    from paywarden.ops.reporting import print_table

    rows = [
        (
            part,
            str(need.processes or "-"),
            f"{need.busy_cores:.2f}",
            f"{need.cores:.1f}",
            _bytes(need.memory_bytes),
            _bytes(need.disk_bytes),
            f"{_bytes(int(need.network_bytes_per_second))}/s",
        )
        for part, need in found.needs.items()
    ]
    print_table(_HEADINGS, rows, text_columns=1)
    click.echo(f"{found.cores:.1f} cores; {found.partitions} partitions of payments and outcomes")
    click.echo(f"each scoring host needs {_bytes(found.host_memory_bytes)} of memory, its mirror included")
    click.echo(f"an Aerospike Community cluster needs {_bytes(found.marker_bytes)} more for the markers of a rebuild")
    for warning in found.warnings:
        click.echo(f"warning: {warning}", err=True)


def _bytes(count: int) -> str:
    amount, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} {unit}" if amount >= 10 or unit == "B" else f"{amount:.1f} {unit}"
