"""`paywarden backfill`: fills the profile store from a history."""

from __future__ import annotations

import time

import click

from paywarden.ops import wiring
from paywarden.ops.engines import EngineAsked, engine_options, opened_passage, say
from paywarden.ops.extras import needs
from paywarden.ops.histories import DaysAsked, HistoryAsked, read_asked
from paywarden.ops.progress import progress_bar
from paywarden.schemas.errors import Misconfigured, TemporaryFailure
from paywarden.schemas.settings import Source


@click.command()
@click.option(
    "--data", type=click.Path(), required=True, help="Folder with payments.parquet and outcomes.parquet, or an archive."
)
@click.option("--overwrite", is_flag=True, help="Replace profiles that this history did not make.")
@engine_options
@click.pass_obj
@needs("history")
def backfill(
    source: Source,
    data: str,
    overwrite: bool,
    engine_name: str,
    master: str | None,
    partitions: int,
    work: str | None,
) -> None:
    """Fill the profile store from a history.

    Run it before the stream is started the first time, so that a new deployment starts with warm profiles. If it is
    killed, the same command continues where it was. Once everything is written, it does nothing.

    The command refuses a store with profiles that this history did not make. With --overwrite it replaces the profiles
    of the history's own cards, merchants and so on; other profiles stay.

    With an engine, the same command begins at the start again, and finds what was written. Engines read no archives.
    """
    from paywarden.streams.maintenance.backfill import Backfill
    from paywarden.streams.maintenance.backfill_progress import PAYMENT_PHASE
    from paywarden.streams.profiles.stream_settings import StreamSettings

    if source.section("store", wiring.StoreSettings).kind == "memory":
        raise Misconfigured("[store] kind is memory, which keeps nothing: a backfill needs lmdb or aerospike")
    on_engine = EngineAsked(engine_name, master, partitions, work)
    if not on_engine.is_local:
        _backfill_on_engine(source, on_engine, data, overwrite=overwrite)
        return
    started = time.perf_counter()
    outcome_days = source.section("stream", StreamSettings).outcome_days
    rates = wiring.rate_table(source)
    store = wiring.open_live_store(source)
    try:
        engine = wiring.feature_engine(source)
        history = read_asked(source, HistoryAsked(data), engine=engine, days=DaysAsked(None, None))
        wiring.check_identity_key(source, claims=True)
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
    _print(lines)


def _backfill_on_engine(source: Source, on_engine: EngineAsked, data: str, *, overwrite: bool) -> None:
    """Fill the store from a history on an engine of partitions."""
    from paywarden.streams.maintenance.backfill_passage import PassageBackfill
    from paywarden.streams.maintenance.backfill_progress import PAYMENT_PHASE
    from paywarden.streams.profiles.stream_settings import StreamSettings

    if on_engine.work is None:
        raise Misconfigured(f"backfill --engine {on_engine.name} needs --work, a path for intermediate rows")
    started = time.perf_counter()
    outcome_days = source.section("stream", StreamSettings).outcome_days
    rates, engine = wiring.rate_table(source), wiring.feature_engine(source)
    store = wiring.open_live_store(source)
    try:
        wiring.check_identity_key(source, claims=True)
        with opened_passage(on_engine, data, on_engine.work, features=engine, rates=rates) as (passage, _):
            say("profiles are computed and written, then the records of payments")
            written = PassageBackfill(passage, store, outcome_days, overwrite).write()
            payments = passage.places.payments
    except TemporaryFailure as error:
        raise click.ClickException(f"{error}; the same command writes what is missing") from error
    finally:
        store.close()
    if not written:
        click.echo("all of this history is in the store already: nothing to do")
        return
    lines: dict[str, int | float] = {"payments": payments}
    lines |= {f"{name} profiles": count for name, count in written.items() if name != PAYMENT_PHASE}
    _print(lines | {"payment records": written[PAYMENT_PHASE], "seconds": time.perf_counter() - started})


def _print(lines: dict[str, int | float]) -> None:
    width = max(map(len, lines))
    for name, value in lines.items():
        click.echo(f"{name:<{width}}  {value:.1f}" if isinstance(value, float) else f"{name:<{width}}  {value}")
