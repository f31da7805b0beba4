"""`paywarden drift`: lists open alerts, explains one, and notes what people do about it."""

from __future__ import annotations

import getpass
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paywarden.ops import wiring
from paywarden.ops.alert_text import explained, finite, since_training, size_of, wrapped
from paywarden.ops.commands.watch.drift_backtest import backtest
from paywarden.ops.extras import needs
from paywarden.ops.options import at_most_one
from paywarden.ops.reporting import printable
from paywarden.ops.times import spoken
from paywarden.schemas.durations import duration_ms_of
from paywarden.schemas.errors import Misconfigured, TemporaryFailure
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.streams.alerts.alert_events import EventWriter
    from paywarden.streams.alerts.journal import Journal, JournalReader, KnownAlert
    from paywarden.streams.drift.models import SeenModel

# In a narrower table every cell would be broken; a pipe has no width of its own.
_WIDTH_MIN = 120
_BYTES_OF_NAME_MAX = 200


@click.group()
def drift() -> None:
    """Show and acknowledge alerts about drift and outcomes."""


@drift.command()
@click.argument("alert_id", metavar="[ID]", required=False)
@click.option("--all", "every", is_flag=True, help="List also alerts that have cleared.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
@click.pass_obj
def status(source: Source, alert_id: str | None, every: bool, as_json: bool) -> None:
    """List the open alerts, the worst first, and those that cleared in the last week, or explain one.

    With ID it names the feature or measure that moved, the segment, the size and the certainty, and where to look. ID
    is the alert's id, or the first letters of it if no other alert begins with them.

    The list also names the models that are not watched in full. The command reads the topics of alerts and
    acknowledgements to where they end now, joins no consumer group and commits nothing. The models come from the store,
    where `paywarden stream` counts decisions.
    """
    if alert_id is not None:
        _explain(source, alert_id, as_json=as_json)
        return
    from paywarden.streams.alerts.journal import CLEARED_MS

    with _reading(source) as reader:
        journal = reader.read()
    cleared = journal.cleared(_now_ms() - CLEARED_MS)
    shown = list(journal.alerts.values()) if every else journal.open()
    models, not_known = _models(source)
    if as_json:
        watch = {
            "models": [
                {"version": one.version, "newest_time_ms": one.newest_ms, "not_watched_because": one.reason}
                for one in models
            ],
            "models_not_known_because": not_known,
        }
        click.echo(json.dumps({**_overview(journal, shown, cleared), **watch}, indent=2))
    else:
        _print_status(journal, shown if every else [*shown, *cleared], _now_ms())
        click.echo("\n".join(watch_lines(models, not_known)))


def _explain(source: Source, alert_id: str, *, as_json: bool) -> None:
    with _reading(source) as reader:
        alert = reader.read().find(alert_id)
    if as_json:
        click.echo(json.dumps(_as_json(alert), indent=2))
    else:
        click.echo("\n".join(explained(alert)))


@drift.command()
@click.argument("alert_id", metavar="ID")
@click.argument("text", metavar="[TEXT]", default="")
@click.option("--ack", is_flag=True, help="Acknowledge the alert: somebody has seen it.")
@click.option("--snooze", metavar="TIME", help="Acknowledge it, and silence it for 30m, 4h or 2d, for example.")
@click.option("--to", metavar="NAME", help="Assign it: NAME takes care of it.")
@click.option("--by", metavar="NAME", default="", help="Your name (default: that of the logged-in user).")
@click.pass_obj
def note(source: Source, alert_id: str, text: str, ack: bool, snooze: str | None, to: str | None, by: str) -> None:
    """Acknowledge, snooze or assign an alert, or comment on it.

    TEXT is for the others. Until a snoozed alert's time its changes are not published, unless it becomes critical. The
    console shows all of this, and writes the same events.
    """
    at_most_one(ack=ack, snooze=snooze, to=to)
    if ack or snooze:
        _acknowledge(source, alert_id, by=by, note=text, until_ms=_end_of(snooze) if snooze else 0)
    elif to is not None:
        what = {"to": _short("--to", to), **({"note": _short("TEXT", text)} if text else {})}
        found, who = _event(source, alert_id, "assigned", by, what)
        click.echo(f"alert {found} assigned to {to} by {who}")
    elif text:
        found, who = _event(source, alert_id, "commented", by, {"note": _short("TEXT", text)})
        click.echo(f"alert {found}: noted by {who}")
    else:
        raise click.UsageError("wanted TEXT, --ack, --snooze or --to")


def _end_of(snooze: str) -> int:
    length_ms = duration_ms_of(snooze)
    if not length_ms:
        raise Misconfigured(f"--snooze: wanted a time such as 30m, 4h or 2d, got {snooze!r}")
    return _now_ms() + length_ms


def _event(source: Source, alert_id: str, kind: str, by: str, what: Mapping[str, str]) -> tuple[str, str]:
    """Write an event about an alert; returns the alert's id and who did it."""
    from paywarden.streams.alerts.alert_events import ConsoleEvent, alert_subject

    who = _short("--by", by or _logged_in())
    with _reading(source) as reader:
        alert = reader.read().find(alert_id)
    _writer(source).write(ConsoleEvent(alert_subject(alert.alert_id), kind, who, _now_ms(), what))
    return alert.alert_id, who


def _writer(source: Source) -> EventWriter:
    from paywarden.streams.alerts.alert_events import EventWriter

    return EventWriter(wiring.kafka_settings(source), wiring.schema_ids(source))


def _short(name: str, text: str) -> str:
    if not text or len(text.encode()) > _BYTES_OF_NAME_MAX or printable(text) != text:
        raise Misconfigured(f"{name}: wanted 1 to {_BYTES_OF_NAME_MAX} bytes of printable text")
    return text


def _acknowledge(source: Source, alert_id: str, *, by: str, note: str, until_ms: int) -> None:
    from paywarden.streams.alerts.alert_records import Acknowledgement

    who = by or _logged_in()
    for name, text in (("--by", who), ("TEXT", note)):
        if len(text.encode()) > _BYTES_OF_NAME_MAX or printable(text) != text:
            raise Misconfigured(f"{name}: wanted at most {_BYTES_OF_NAME_MAX} bytes of printable text")
    with _reading(source) as reader:
        alert = reader.read().find(alert_id)
        if not alert.is_open:
            raise Misconfigured(f"alert {alert.alert_id} cleared at {spoken(alert.record['time_ms'])} UTC")
    _writer(source).write(Acknowledgement(alert.alert_id, _now_ms(), who, until_ms, note))
    done = f"snoozed until {spoken(until_ms)} UTC" if until_ms else "acknowledged"
    click.echo(f"alert {alert.alert_id} {done} by {who}")


@drift.command()
@click.option(
    "--archive", type=click.Path(file_okay=False), required=True, help="Folder that `paywarden admin archive` wrote."
)
@click.option("--bundle", type=click.Path(file_okay=False), help="Bundle of the model (default: [serve] bundle).")
@click.option("--from", "from_day", required=True, metavar="DAY", help="First UTC day, YYYY-MM-DD.")
@click.option("--to", "to_day", required=True, metavar="DAY", help="Last UTC day, included.")
@click.option("--out", type=click.Path(dir_okay=False), required=True, help="The file to write, NAME.npz.")
@click.pass_obj
@needs("train")
def reference(source: Source, archive: str, bundle: str | None, from_day: str, to_day: str, out: str) -> None:
    """Make a drift reference from live decisions of good days.

    Name the file in [drift] references: it replaces the reference of the training window in the model's bundle.
    """
    from paywarden.models.bundle.bundle import read_manifest
    from paywarden.models.metrics.evaluation import Days, day_of_date
    from paywarden.streams.drift.reference import live_reference

    manifest = read_manifest(Path(bundle or source.section("serve", wiring.ServeSettings).bundle))
    window = Days(day_of_date(from_day), day_of_date(to_day))
    made = live_reference(Path(archive), manifest, window)
    try:
        made.save(Path(out))
    except OSError as error:
        raise Misconfigured(f"cannot write {out}: {error.strerror}") from error
    click.echo(f"{out}: model {made.model_version}, {int(made.counts.payments[0])} decisions, {from_day} to {to_day}")


drift.add_command(backtest)


@contextmanager
def _reading(source: Source) -> Iterator[JournalReader]:
    from paywarden.streams.alerts.journal import JournalReader
    from paywarden.streams.kafka.admin import require_broker

    kafka = wiring.kafka_settings(source)
    require_broker(kafka)
    with closing(JournalReader(kafka, wiring.schema_ids(source))) as reader:
        yield reader


@dataclass(frozen=True)
class WatchedModel:
    """A model that has decided in the last two days. `reason` says why it is not watched in full; empty when it is."""

    version: str
    newest_ms: int
    reason: str


def _models(source: Source) -> tuple[list[WatchedModel], str]:
    """Returns the models, or the reason why they are not known: one of the two is empty."""
    from paywarden.streams.drift.models import models_seen
    from paywarden.streams.kafka.admin import partitions_of

    if wiring.store_kind(source) == "memory":
        return [], "[store] kind is memory: only the stream's own process knows them"
    try:
        partitions = partitions_of(wiring.kafka_settings(source), "decisions")
        with closing(wiring.set_stores(source).open_beside(readonly=True)) as store:
            seen = models_seen(store, partitions)
    except (TemporaryFailure, Misconfigured) as error:
        return [], str(error)
    known = wiring.referenced_versions(source)
    return [WatchedModel(one.version, one.newest_ms, not_watched_because(one, known)) for one in seen], ""


def not_watched_because(model: SeenModel, known: Mapping[str, bool]) -> str:
    """Returns why the stream does not watch all of a model; empty when it does.

    `known` has the model versions whose bundles are on this host, and whether each has a reference.
    """
    from paywarden.streams.drift.drift_counts import base_version

    if model.is_several:
        return "it stands for all versions beyond the first four, which are counted as one"
    if model.has_reference:
        return ""
    has_reference = known.get(base_version(model.version))
    if has_reference is None:
        return "the stream has no bundle of it: name its folder in [drift] bundles and restart `paywarden stream`"
    if not has_reference:
        return (
            "its bundle has no reference: make one with `paywarden drift reference` and name it in [drift] references"
        )
    return (
        "the stream was started without its bundle, or its vectors are of another catalogue than the bundle: restart "
        "`paywarden stream` with this configuration"
    )


def watch_lines(models: Sequence[WatchedModel], not_known: str) -> list[str]:
    """Returns the lines of `status` about the models that decide."""
    if not_known:
        return wrapped("", f"Which models are watched is not known: {not_known}")
    if not models:
        return ["No decisions have been counted in the last two days."]
    watched = [printable(one.version) for one in models if not one.reason]
    lines = wrapped("", f"watched in full: {', '.join(watched)}") if watched else []
    for one in models:
        if one.reason:
            seen = f"{printable(one.version)}, last decision {spoken(one.newest_ms)} UTC"
            held = "Only its scores, actions and flags are held against its own past."
            lines += wrapped("", f"not watched in full: {seen}: {one.reason}. {held}")
    return lines


def _overview(journal: Journal, shown: Sequence[KnownAlert], cleared: Sequence[KnownAlert]) -> dict[str, Any]:
    return {
        "open": len(journal.open()),
        "unreadable": journal.unreadable,
        "alerts": [_as_json(alert) for alert in shown],
        "cleared": [_as_json(alert) for alert in cleared],
    }


def _as_json(alert: KnownAlert) -> dict[str, Any]:
    """Returns an alert's record, its states and acknowledgements. Infinities become null: JSON has none."""
    states = [dict(zip(("time_ms", "state", "severity", "subject"), state, strict=True)) for state in alert.states]
    said = [one.to_record() for one in alert.acknowledgements]
    whole: dict[str, Any] = finite({**alert.record, "states": states, "acknowledgements": said})
    return whole


def _print_status(journal: Journal, shown: Sequence[KnownAlert], now_ms: int) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    console.width = max(console.width, _WIDTH_MIN)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in ("alert", "severity", "state", "since (UTC)"):
        table.add_column(heading, no_wrap=True)
    for heading in ("what moved", "where"):
        table.add_column(heading, overflow="fold")
    table.add_column("by", justify="right", no_wrap=True)
    table.add_column("model", overflow="fold")
    table.add_column("seen", overflow="fold")
    for alert in shown:
        # Not as markup: names may hold brackets.
        table.add_row(*map(Text, row_of(alert, now_ms)))
    if shown:
        console.print(table)
    unreadable = f"; {journal.unreadable} records could not be read" if journal.unreadable else ""
    click.echo(f"{len(journal.open())} open alerts of {len(journal.alerts)} known{unreadable}")


def row_of(alert: KnownAlert, now_ms: int) -> tuple[str, ...]:
    """Returns the cells of an alert in the table of `status`."""
    record = alert.record
    seen = alert.acknowledged_by
    if alert.snoozed_until_ms > now_ms:
        seen += f", snoozed until {spoken(alert.snoozed_until_ms)}"
    return (
        alert.alert_id,
        record["severity"],
        record["state"],
        spoken(record["first_seen_time_ms"]),
        printable(f"{record['subject']} {record['signal']}".strip() + since_training(record)),
        printable(record["segment"]),
        size_of(record),
        printable(record["model_version"]),
        printable(seen),
    )


def _logged_in() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:
        raise Misconfigured("the logged-in user is not known: give --by NAME") from error


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
