"""Reads the history of a command from two files, an archive or the topics themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from paywarden.ops import wiring
from paywarden.ops.progress import scan_bar
from paywarden.ops.times import time_ms_option
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.features.history.history import History
    from paywarden.features.profiles.engine import FeatureEngine
    from paywarden.features.profiles.plan import Plan
    from paywarden.streams.archive.topic_history import PaymentTimes
    from paywarden.streams.kafka.topic_rows import TopicRows

_Command = TypeVar("_Command", bound=Callable[..., Any])
_DAY_MS = 86_400_000


def history_options(command: _Command) -> _Command:
    """Add the options that say where the history comes from; the command passes them to HistoryAsked."""
    options = (
        click.option(
            "--data",
            type=click.Path(),
            help="Folder with payments.parquet and outcomes.parquet, or an archive with payments/ and outcomes/.",
        ),
        click.option("--from-topic", is_flag=True, help="Read the topics payments and outcomes to where they end now."),
        click.option(
            "--since", metavar="TIME", help="Topics or archive: only records that reached Kafka at TIME or later."
        ),
        click.option("--until", metavar="TIME", help="Topics or archive: only records that reached Kafka before TIME."),
        click.option(
            "--warm-up-days",
            type=click.IntRange(0),
            help="Topics or archive: days to read before the first day (default: as far as features reach back).",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@dataclass(frozen=True)
class HistoryAsked:
    """The values of `history_options`. Raises click.UsageError unless exactly one source is named."""

    data: str | None
    from_topic: bool = False
    since: str | None = None
    until: str | None = None
    warm_up_days: int | None = None

    def __post_init__(self) -> None:
        if (self.data is not None) == self.from_topic:
            raise click.UsageError("say one of --data DIR and --from-topic")

    @property
    def is_archive(self) -> bool:
        """Returns whether --data names an archive. Raises Misconfigured for a folder with an archive and two files."""
        return self.data is not None and _is_archive(Path(self.data))


@dataclass(frozen=True)
class DaysAsked:
    """The days of a command, counted from 1970; without a bound, None.

    Topics and archives are read up to `last`, and from `first` less the warm-up or from `needed_from`, whichever is
    earlier.
    """

    first: int | None
    last: int | None
    needed_from: int | None = None


def read_asked(
    source: Source,
    asked: HistoryAsked,
    *,
    engine: FeatureEngine,
    days: DaysAsked,
    with_propensities: bool = False,
) -> History:
    """Returns the history. Prints on stderr which records of topics or an archive are not in it.

    `with_propensities` also reads decisions of the topics or the archive, for the payments
    that exploration let through. Raises Misconfigured, BrokerUnavailable.
    """
    from paywarden.features.history.history import read_history

    if asked.data is not None and not asked.is_archive:
        for name in ("since", "until", "warm_up_days"):
            if getattr(asked, name) is not None:
                option = "--" + name.replace("_", "-")
                raise Misconfigured(f"{option} is for topics and archives, and {asked.data} is neither")
        return read_history(asked.data, engine.plan.fields)
    since_ms, until_ms = time_ms_option("--since", asked.since), time_ms_option("--until", asked.until)
    times = _times(asked, engine, days)
    history = _of_rows(source, asked, engine.plan, since_ms, until_ms, times)
    return _with_propensities(source, asked, history, since_ms, until_ms, times) if with_propensities else history


def _of_rows(
    source: Source,
    asked: HistoryAsked,
    plan: Plan,
    since_ms: int | None,
    until_ms: int | None,
    days: PaymentTimes,
) -> History:
    from paywarden.streams.archive.topic_history import archived_rows, history_of_rows
    from paywarden.streams.profiles.stream_settings import StreamSettings

    if asked.data is not None:
        archive = Path(asked.data)
        rows = archived_rows(archive, since_ms=since_ms, until_ms=until_ms, days=days, fields=plan.fields, key=plan.key)
    else:
        payments, outcomes = (_topic_rows(source, plan, name, since_ms, until_ms) for name in ("payments", "outcomes"))
        rows = payments, outcomes
    times = source.section("stream", StreamSettings).times
    history, left_out = history_of_rows(*rows, times=times, days=days, fields=plan.fields)
    for line in left_out.lines():
        click.echo(line, err=True)
    if len(history) == 0:
        raise Misconfigured(f"{asked.data or 'topic payments'} holds no payment of that time{_extent(asked, rows[0])}")
    return history


def _with_propensities(
    source: Source,
    asked: HistoryAsked,
    history: History,
    since_ms: int | None,
    until_ms: int | None,
    days: PaymentTimes,
) -> History:
    from paywarden.streams.archive import propensities

    if asked.data is not None:
        decisions = propensities.archived_decisions_of(Path(asked.data), (days.first_ms, days.last_ms))
    else:
        kafka, ids = wiring.kafka_settings(source), wiring.schema_ids(source)
        with scan_bar("decisions") as bar:
            decisions = propensities.topic_decisions(kafka, ids, since_ms=since_ms, until_ms=until_ms, progress=bar)
    if decisions is None:
        return history
    if decisions.undecoded:
        place = min(decisions.undecoded)
        click.echo(f"left out: {len(decisions.undecoded)} records of decisions that do not decode ({place})", err=True)
    return propensities.with_propensities(history, decisions)


def _extent(asked: HistoryAsked, payments: TopicRows) -> str:
    """Returns where the data starts and ends, if that is known without reading more; else empty."""
    import pyarrow.compute as pc

    from paywarden.models.metrics.evaluation import DAY_MS, date_of_day

    if asked.data is not None:
        dates = sorted(folder.name.removeprefix("date=") for folder in (Path(asked.data) / "payments").glob("date=*"))
        return f": its payments reached Kafka from {dates[0]} to {dates[-1]}" if dates else ""
    times = payments.table["event_time_ms"]
    if len(times) == 0:
        return ""
    first, last = (date_of_day(int(time) // DAY_MS) for time in pc.min_max(times).as_py().values())
    return f": its payments are from {first} to {last}"


def _topic_rows(source: Source, plan: Plan, topic: str, since_ms: int | None, until_ms: int | None) -> TopicRows:
    from paywarden.streams.kafka.topic_rows import RowBuilder, read_topic

    kafka, ids = wiring.kafka_settings(source), wiring.schema_ids(source)
    with scan_bar(topic) as bar:
        builder = RowBuilder(topic, ids, plan.fields, plan.key)
        return read_topic(kafka, builder, since_ms=since_ms, until_ms=until_ms, progress=bar)


def _is_archive(folder: Path) -> bool:
    """Returns whether the folder is an archive. Raises Misconfigured for an archive with the two files in it."""
    from paywarden.features.history.history import PAYMENTS_FILE

    has_folder = (folder / "payments").is_dir() or (folder / "outcomes").is_dir()
    if has_folder and (folder / PAYMENTS_FILE).exists():
        raise Misconfigured(f"{folder} holds {PAYMENTS_FILE} and an archive: take one of them away")
    return has_folder


def _times(asked: HistoryAsked, engine: FeatureEngine, days: DaysAsked) -> PaymentTimes:
    from paywarden.models.metrics.evaluation import date_of_day
    from paywarden.streams.archive.topic_history import PaymentTimes

    last_ms = None if days.last is None else (days.last + 1) * _DAY_MS - 1
    if days.first is None:
        if asked.warm_up_days is not None:
            raise Misconfigured("--warm-up-days needs a first day, as of --from")
        return PaymentTimes(None, last_ms)
    reach = -(-max(engine.plan.retention_ms) // _DAY_MS)
    read_from = max(0, days.first - (reach if asked.warm_up_days is None else asked.warm_up_days))
    if days.needed_from is not None:
        read_from = min(read_from, days.needed_from)
    click.echo(f"payments from {date_of_day(read_from)} on are read; features reach back {reach} days", err=True)
    return PaymentTimes(read_from * _DAY_MS, last_ms)
