"""`paywarden doctor`: looks for faults of what is configured, before traffic comes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import click

from paywarden.schemas.settings import Source

_AREAS = ("settings", "host", "bundle", "access", "kafka", "registry", "store")


@click.command()
@click.option("--only", multiple=True, type=click.Choice(_AREAS), help="Check this area; may be given several times.")
@click.option(
    "--gateway",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The gateway's description, to compare its [shards] and hosts.",
)
@click.option("--write", is_flag=True, help="Also write, read and erase one record in the store, the largest allowed.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
@click.pass_obj
def doctor(source: Source, only: tuple[str, ...], gateway: Path | None, write: bool, as_json: bool) -> None:
    """Look for faults of what is configured, and say how to fix them.

    It connects to Kafka, the schema registry and the store; reads catalogue, bundles, policy, tokens and certificates;
    and looks at processor, disks, memory file systems and the clock of this host. Each process checks ports, rights on
    its folders and the limit of open files when it starts. Run it on each host, with the configuration and the user of
    the processes.

    For Aerospike it asks every node for its settings and state: expiry, copies, conflict resolution, cluster size,
    eviction, record size, limits of sets, clocks, login. It writes nothing, but with --write.

    The exit status is 1 if there is an error. Warnings alone are 0.
    """
    from paywarden.ops.doctor import doctor_host as host
    from paywarden.ops.doctor import doctor_scoring as scoring
    from paywarden.ops.doctor import doctor_store as store
    from paywarden.ops.doctor import kafka
    from paywarden.ops.doctor.results import ERROR, Check, results_of

    checks: Mapping[str, Sequence[Check]] = {
        "settings": (scoring.check_settings,),
        "host": (
            host.check_processor,
            host.check_paths,
            partial(host.check_shards, gateway=gateway),
            host.check_clock,
        ),
        "bundle": (scoring.check_bundles,),
        "access": (scoring.check_access,),
        "kafka": (kafka.check_kafka,),
        "registry": (kafka.check_registry,),
        "store": (partial(store.check_store, write=write),),
    }
    results = []
    for area in only or _AREAS:
        for result in results_of(area, checks[area], source):
            results.append(result)
            if not as_json:
                click.echo(f"{result.state:<8} {result.area:<9} {result}")
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(result) for result in results], indent=2))
    if errors := sum(result.state == ERROR for result in results):
        raise click.ClickException(f"doctor: {errors} error{'s' if errors > 1 else ''}")
