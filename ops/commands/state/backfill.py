"""`paywarden backfill`: fills the profile store from a history."""

from __future__ import annotations

import time

import click

from paywarden.ops import wiring
from paywarden.ops.extras import needs
from paywarden.ops.progress import progress_bar
from paywarden.schemas.errors import Misconfigured, TemporaryFailure
from paywarden.schemas.settings import Source


@click.command()
@click.option("--data", type=click.Path(), required=True, help="Folder with payments.parquet and outcomes.parquet.")
@click.option("--overwrite", is_flag=True, help="Replace profiles that this history did not make.")
@click.pass_obj
@needs("history")
def backfill(source: Source, data: str, overwrite: bool) -> None:
    """Fill the profile store from a history.

    Run it before the stream is started the first time, so that a new deployment starts with warm profiles. If it is
    killed, the same command continues where it was. Once everything is written, it does nothing.

    The command refuses a store with profiles that this history did not make. With --overwrite it replaces the profiles
    of the history's own cards, merchants and so on; other profiles stay.
    """
    from paywarden.features.history.history import read_history
    from paywarden.streams.maintenance.backfill import Backfill
    from paywarden.streams.maintenance.backfill_progress import PAYMENT_PHASE
    from paywarden.streams.profiles.settings import StreamSettings

    if source.section("store", wiring.StoreSettings).kind == "memory":
        raise Misconfigured("[store] kind is memory, which keeps nothing: a backfill needs lmdb or aerospike")
    started = time.perf_counter()
    outcome_days = source.section("stream", StreamSettings).outcome_days
    rates = wiring.rate_table(source)
    store = wiring.open_live_store(source)
    try:
        history = read_history(data, wiring.payment_fields(source))
        wiring.check_identity_key(source, claims=True)
        engine = wiring.feature_engine(source)
        job = Backfill(history, store, engine=engine, rates=rates, outcome_days=outcome_days, overwrite=overwrite)
        if job.is_finished:
            click.echo("all of this history is in the store already: nothing to do")
            return
        if job.needs_profiles:
            with progress_bar("profiles", len(history)) as advance:
                job.compute(advance)
        writing = time.perf_counter()
        with progress_bar("records", job.left_count) as advance:
            written = job.write(advance)
    except TemporaryFailure as error:
        raise click.ClickException(f"{error}; the same command goes on where this ended") from error
    finally:
        store.close()
    ended = time.perf_counter()
    profiles = {f"{name} profiles": count for name, count in job.counts.items() if name != PAYMENT_PHASE}
    lines: dict[str, int | float] = {"payments": len(history), **profiles}
    lines["payment records"] = job.counts[PAYMENT_PHASE]
    before = sum(job.counts.values()) - written
    if before:
        lines["of these, written before"] = before
    lines["seconds"] = ended - started
    lines["records/s"] = written / (ended - writing)
    width = max(map(len, lines))
    for name, value in lines.items():
        click.echo(f"{name:<{width}}  {value:.1f}" if isinstance(value, float) else f"{name:<{width}}  {value}")
