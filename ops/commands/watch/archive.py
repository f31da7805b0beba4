"""`paywarden admin archive`: writes a topic to partitioned Parquet files."""

from __future__ import annotations

import signal
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from paywarden.ops import wiring
from paywarden.ops.extras import needs
from paywarden.ops.progress import progress_bar
from paywarden.ops.times import time_ms_option
from paywarden.schemas.errors import TemporaryFailure
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.streams.archive.archive import Archived
    from paywarden.streams.kafka.topic_rows import KafkaTopic

_NAMED_MAX = 10


@click.command()
@click.option(
    "--topic",
    type=click.Choice(
        ["payments", "outcomes", "decisions", "shadow-decisions", "verdicts", "drift-alerts", "drift-acknowledgements"]
    ),
    required=True,
    help="The topic to archive.",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the archive.")
@click.option(
    "--from", "from_time", metavar="TIME", help="Only records that reached Kafka at TIME or later (default: all)."
)
@click.option("--to", "to_time", metavar="TIME", help="Only records that reached Kafka before TIME (default: all).")
@click.option("--until-end", is_flag=True, help="Stop where the topic ends now. This is the default.")
@click.option("--follow", is_flag=True, help="Never end: add new records, wait, and repeat.")
@click.option(
    "--every",
    "every_s",
    type=click.FloatRange(0.1),
    default=300.0,
    show_default=True,
    help="Seconds that --follow waits.",
)
@click.pass_obj
@needs("history")
def archive(
    source: Source,
    topic: str,
    out: Path,
    from_time: str | None,
    to_time: str | None,
    until_end: bool,
    follow: bool,
    every_s: float,
) -> None:
    """Write a topic to Parquet files, one folder for each day.

    A file is OUT/TOPIC/date=YYYY-MM-DD/part-PARTITION-FIRSTOFFSET.parquet, by the UTC day of arrival on Kafka.
    `paywarden replay --data OUT` and `train --data OUT` read the payments and outcomes of an archive.

    The command adds the records that the archive lacks, and does not read the others again. After an interruption the
    same command continues. An archive has no gaps: records between its end and --from are added, too.

    An archive holds no e-mail addresses: the column of a declared e-mail field has their keyed hashes, and that of its
    domain the hashes of the domains.

    With [erasure] keys each row is sealed with its card's key: `paywarden admin forget` destroys that key.

    With --follow the command prints why it cannot go on, such as a full disk or Kafka that is away, and tries again. It
    also prints when a producer's open transaction holds the topic up.

    The command joins no consumer group and commits nothing. Records that do not decode are named on stderr, are noted
    in the footers of the files, and stay on the topic.
    """
    from paywarden.streams.archive.archive import Archiver
    from paywarden.streams.kafka.topic_rows import KafkaTopic

    if follow and (to_time is not None or until_end):
        raise click.UsageError("--follow never ends: leave out --to and --until-end")
    if until_end and to_time is not None:
        raise click.UsageError("use either --to or --until-end")
    since_ms, until_ms = time_ms_option("--from", from_time), time_ms_option("--to", to_time)
    kafka = wiring.kafka_settings(source)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with closing(KafkaTopic(kafka, topic)) as reader:
        archiver = Archiver(
            reader,
            wiring.schema_ids(source),
            topic,
            out,
            fields=wiring.payment_fields(source),
            key=wiring.identity_key(source),
            keys=wiring.erasure_keys(source, out),
        )
        before: dict[int, range] = {}
        while True:
            try:
                wanted = archiver.wanted(since_ms, until_ms)
                if not any(wanted.values()) and not follow:
                    holds = "is empty" if since_ms is None and until_ms is None else "holds nothing of that time"
                    raise click.ClickException(f"topic {kafka.topic(topic)} {holds}")
                with progress_bar("records", sum(map(len, wanted.values()))) as advance:
                    done = archiver.run(wanted, stop, advance)
                _say(topic, out, done, is_quiet=follow and done.files == 0)
                if until_ms is None:
                    _say_held(reader, before if follow else wanted)
                before = wanted
            except TemporaryFailure as error:
                if not follow:
                    raise click.ClickException(f"{error}; the same command goes on where this ended") from error
                click.echo(f"{error}; tried again in {every_s:g} s", err=True)
            if not follow or stop.wait(every_s):
                break
    if not follow and not done.is_whole:
        raise click.ClickException("stopped: the same command goes on where this ended")


def _say_held(reader: KafkaTopic, before: dict[int, range]) -> None:
    if held := reader.held({partition: offsets.stop for partition, offsets in before.items()}):
        click.echo(
            f"an open transaction of a producer holds up {reader.name}: {held} offsets are added when it has ended",
            err=True,
        )


def _say(topic: str, out: Path, done: Archived, *, is_quiet: bool) -> None:
    for one in done.undecoded[:_NAMED_MAX]:
        click.echo(f"not decoded: {topic}, {one}", err=True)
    if len(done.undecoded) > _NAMED_MAX:
        click.echo(f"not decoded: {len(done.undecoded) - _NAMED_MAX} more, all in the footers of the files", err=True)
    if not is_quiet:
        click.echo(
            f"{done.rows} {topic} in {done.files} files added to {out}, {len(done.undecoded)} records not decoded"
            if done.files
            else f"{out} holds all of it already: nothing added"
        )
