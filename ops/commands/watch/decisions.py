"""`paywarden decisions`: shows the decisions about a payment, and makes them again."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paywarden.ops import wiring
from paywarden.ops.deciders import WHO, KnownDeciders
from paywarden.ops.extras import needs
from paywarden.ops.reporting import printable
from paywarden.ops.times import spoken, time_ms_option
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.streams.decision_index.index import DecisionIndex


@click.group()
def decisions() -> None:
    """Look at decisions that were made."""


@decisions.command()
@click.argument("payment_id")
@click.option("--archive", type=click.Path(path_type=Path), help="Look in this archive of the topic decisions.")
@click.option("--topic", is_flag=True, help="Look on the topic decisions, which is read from its beginning.")
@click.option("--bundles", type=click.Path(path_type=Path), help="A folder of bundles to look for the digest in.")
@click.option("--policies", type=click.Path(path_type=Path), help="A folder of policies (*.toml), likewise.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
@click.pass_obj
def explain(
    source: Source,
    payment_id: str,
    archive: Path | None,
    topic: bool,
    bundles: Path | None,
    policies: Path | None,
    as_json: bool,
) -> None:
    """Show the decisions about a payment, and decide again.

    It looks in this host's outboxes, or where an option says. Score, action and reasons are computed again from the
    stored vector, with the bundle and the policy whose digests the decision names. Both are looked for in [serve], in
    the releases below [serve] runtime, and in the folders of the options.

    The exit status is 0 if every decision about the payment is equal to the bit, otherwise 1.
    """
    if archive is not None and topic:
        raise click.UsageError("use either --archive or --topic")
    if archive is not None:
        place, found = str(archive), _archived(archive, payment_id)
    elif topic:
        place, found = "the topic decisions", _on_topic(source, payment_id)
    else:
        place, found = "the outboxes of this host", _in_outboxes(source, payment_id)
    by_id = {decision["decision_id"]: decision for decision in found}
    if not by_id:
        held = _held_up(source) if topic else ""
        place += f" ({held})" if held else ""
        raise click.ClickException(f"there is no decision about payment {printable(payment_id)} in {place}")
    known = KnownDeciders(source, bundles, policies)
    told = [known.recomputed(decision).to_json() for decision in by_id.values()]
    is_equal = all(each["equal"] for each in told)
    if as_json:
        click.echo(json.dumps({"payment_id": payment_id, "equal": is_equal, "decisions": told}, indent=2))
    else:
        for each in told:
            _print(each)
    sys.exit(0 if is_equal else 1)


@decisions.command()
@click.option("--archive", type=click.Path(path_type=Path), help="Read an archive first, then the topics.")
@click.option("--rebuild", is_flag=True, help="Empty the index first. Claims and verdicts stay.")
@click.option("--follow", is_flag=True, help="Never end: go on with new records, and send verdicts to their topic.")
@click.option("--json", "as_json", is_flag=True, help="The size of the index, as JSON.")
@click.pass_obj
@needs("index")
def index(source: Source, archive: Path | None, rebuild: bool, follow: bool, as_json: bool) -> None:
    """Fill the index of decisions from the topics.

    The command reads the topics to their present ends. The index is the database of [decision_index]. It holds what
    `decisions search` and the console look up: decisions, outcomes, the review queue, and verdicts. It can be rebuilt
    at any time. The same command goes on after an interruption.

    A verdict that has not reached its topic yet is sent.
    """
    from paywarden.streams.decision_index.filler import FILL_TIDY_KEYS, fill_from_archive

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with wiring.decision_index(source) as (found, queue):
        if rebuild:
            found.empty()
        if archive is not None:
            fill_from_archive(found, queue, archive)
        filler, sender = wiring.index_filler(source, found, queue)
        with closing(filler):
            while not stop.is_set() and not filler.state.is_caught_up:
                filler.step()
                found.database.tidy(at_least=FILL_TIDY_KEYS)
            sender.step()
            filler.expire()
            found.database.merge()
            found.database.purge()
            _tell(found, as_json=as_json)
            if follow and not stop.is_set():
                sending = threading.Thread(target=sender.run, args=(stop,), name="verdict-sender")
                sending.start()
                filler.run(stop)
                sending.join()
    if not follow and stop.is_set():
        raise click.ClickException("stopped: the same command goes on where this ended")


def _tell(found: DecisionIndex, *, as_json: bool) -> None:
    from paywarden.streams.decision_index.filler import TOPICS

    sources = {topic: found.sources(topic) for topic in TOPICS}
    missing = {topic: sum(place.missing for place in places.values()) for topic, places in sources.items()}
    if as_json:
        told = {"database": found.database.name, "decisions": found.count(), "missing": missing}
        click.echo(json.dumps(told, indent=2))
        return
    click.echo(f"{found.count()} decisions in {found.database.name}")
    for topic, count in missing.items():
        if count:
            click.echo(f"  {count} records of {topic} expired before the index had read them")


@decisions.command()
@click.option("--payment", "payment_id", default="", help="About this payment.")
@click.option("--card", "card_id", default="", help="Of this card.")
@click.option("--merchant", "merchant_id", default="", help="To this merchant.")
@click.option("--device", "device_id", default="", help="From this device.")
@click.option("--ip", default="", help="From this address.")
@click.option("--from", "from_time", metavar="TIME", help="Decided at TIME or later.")
@click.option("--to", "to_time", metavar="TIME", help="Decided before TIME.")
@click.option("--action", type=click.Choice(["approve", "review", "decline"]), default=None, help="With this action.")
@click.option("--rule", default="", help="With this rule among its reasons.")
@click.option("--segment", default="", help="With a threshold of this segment among its reasons.")
@click.option("--flag", default="", help="With this flag.")
@click.option("--score-min", type=float, default=0.0, help="With this score or a higher one.")
@click.option("--score-max", type=float, default=1.0, help="With this score or a lower one.")
@click.option("--count", type=int, default=25, show_default=True, help="At most N decisions, the newest first.")
@click.option("--after", metavar="PLACE", help="Go on behind the place that the last page gave.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
@click.pass_obj
@needs("index")
def search(
    source: Source,
    /,
    from_time: str | None,
    to_time: str | None,
    action: str | None,
    count: int,
    after: str | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Search the index of decisions."""
    from paywarden.streams.decision_index.search import Place, Search

    last = time_ms_option("--to", to_time)
    wanted = Search(
        **asked,
        action=action or "",
        first_ms=time_ms_option("--from", from_time),
        last_ms=None if last is None else last - 1,
    )
    with wiring.decision_index(source) as (found, _):
        page = found.search(wanted, after=None if after is None else Place.from_text(after), count=count)
    if as_json:
        rows = [vars(row) | {"place": row.place.to_text(), "decided_time_ms": row.decided_time_ms} for row in page.rows]
        rows = [row | {"outcome": None if row["outcome"] is None else vars(row["outcome"])} for row in rows]
        click.echo(json.dumps({"decisions": rows, "next": page.next and page.next.to_text()}, indent=2))
        return
    for row in page.rows:
        label = "" if row.outcome is None else f"  known: {row.outcome.label}"
        click.echo(
            f"{spoken(row.decided_time_ms)}  {row.score:.4f} {row.action:<8} {row.amount_minor / 100:>10.2f} "
            f"{row.currency}  {printable(row.payment_id)}{label}"
        )
    if page.looked_from_ms is not None:
        click.echo(f"looked back to {spoken(page.looked_from_ms)} UTC")
    if page.next is not None:
        click.echo(f"more: --after {page.next.to_text()}")


def _print(told: Mapping[str, Any]) -> None:
    click.echo(f"decision {told['decision_id']}, {spoken(told['decided_time_ms'])} UTC")
    click.echo(f"  model    {printable(told['model_version']) or '(none)'}, bundle {told['bundle_digest'] or '(none)'}")
    click.echo(f"  policy   {told['policy_digest'] or '(not named)'}")
    who = [f"{name} {printable(str(told[name]))}" for name in WHO if told[name] not in ("", 1.0)]
    click.echo(f"  with     {', '.join(who)}")
    for title in ("stored", "recomputed"):
        if (said := told[title]) is not None:
            reasons = ", ".join(map(printable, said["reasons"]))
            click.echo(f"  {title:<10} {said['score']!r} {said['action']} {reasons}".rstrip())
    click.echo(f"  {'equal to the bit' if told['equal'] else 'NOT equal: ' + told['why']}")


# Where decisions are


def _in_outboxes(source: Source, payment_id: str) -> Iterator[dict[str, Any]]:
    from google.protobuf.message import DecodeError

    from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
    from paywarden.scoring.state.outbox import OutboxReader, OutboxSettings, workers
    from paywarden.streams.companion.shipping import decision_of

    settings, wanted = source.section("outbox", OutboxSettings), payment_id.encode()
    for worker in workers(settings):
        reader = OutboxReader(settings, worker)
        position = reader.oldest()
        while records := reader.read(position, 10_000):
            position = records[-1][0]
            for _, payload in records:
                # To look for the text is much faster than to parse every record.
                if wanted not in payload:
                    continue
                try:
                    entry = OutboxEntry.FromString(payload)
                except DecodeError:
                    continue
                if entry.request.payment_id == payment_id:
                    yield decision_of(entry)


def _on_topic(source: Source, payment_id: str) -> Iterator[dict[str, Any]]:
    from paywarden.schemas.avro import Decoder
    from paywarden.schemas.errors import InvalidEvent
    from paywarden.streams.kafka.clients import KafkaClients
    from paywarden.streams.kafka.reading import records_to_end

    clients = KafkaClients.of(wiring.kafka_settings(source))
    decoder, key = Decoder("decisions", wiring.schema_ids(source)), payment_id.encode()
    with closing(clients.consumer(group_id="paywarden-decisions")) as consumer:
        for records in records_to_end(consumer, clients.topic("decisions"), clients.partitions("decisions")):
            for record in records:
                if record.key != key or record.value is None:
                    continue
                try:
                    yield decoder.decode(record.value)
                except InvalidEvent:
                    continue


def _held_up(source: Source) -> str:
    """Returns why decisions on the topic cannot be read now; "" if they can."""
    from paywarden.streams.kafka.clients import KafkaClients
    from paywarden.streams.kafka.stalls.open_transactions import waiting_now

    clients = KafkaClients.of(wiring.kafka_settings(source))
    return waiting_now(clients.admin, clients.topic("decisions"), clients.partitions("decisions"))


def _archived(archive: Path, payment_id: str) -> Iterator[dict[str, Any]]:
    import pyarrow.compute as pc

    from paywarden.streams.archive.files import read_archive
    from paywarden.streams.kafka.topic_rows import rows_schema

    table = read_archive(archive, "decisions", rows_schema("decisions")).table
    yield from table.filter(pc.equal(pc.cast(table["payment_id"], "string"), payment_id)).to_pylist()
