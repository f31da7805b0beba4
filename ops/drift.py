"""`paywarden drift`: which alerts are open, what is behind one, and that somebody has seen it."""

from __future__ import annotations

import getpass
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ops import wiring
from ops.extras import needs
from ops.reporting import printable
from ops.times import duration_ms_of, spoken
from schemas.errors import Misconfigured
from schemas.settings import Source

if TYPE_CHECKING:
    from streams.drift_journal import Journal, JournalReader, KnownAlert

# Narrower, and every cell would be broken; a pipe has no width of its own.
_WIDTH_MIN = 120
_BAR_WIDTH = 30
_BYTES_OF_NAME_MAX = 200
_MINUTE_MS = 60_000
# By cause: where to begin.
_LOOK_AT = {
    "profiles": "stream workers and companions: /readyz, consumer lag, paywarden_companion_mirror_age_seconds",
    "input": "what fills this field upstream: a release, a unit, a source that is gone; then the payments themselves",
    "traffic": "who sends these payments: a merchant that came or went, routing, card testing; the model is as it was",
    "score": "the bundle and the policy that were put in place last, and fraud of a new kind: outcomes tell later",
    "outcome": "outcome-metrics; fraud of a new kind, or what changed when it began: bundle, policy, features",
}


@click.group()
def drift() -> None:
    """Alerts about changes in what the model sees and says."""


@drift.command()
@click.option("--all", "every", is_flag=True, help="Also what has cleared.")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@click.pass_obj
def status(source: Source, every: bool, as_json: bool) -> None:
    """List the open alerts, the worst first.

    Reads the topics of alerts and acknowledgements to where they end now, joins no consumer group and commits nothing.
    """
    with _reading(source) as reader:
        journal = reader.read()
    shown = list(journal.alerts.values()) if every else journal.open()
    if as_json:
        click.echo(json.dumps(_overview(journal, shown), indent=2))
    else:
        _print_status(journal, shown, _now_ms())


@drift.command()
@click.argument("alert_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@click.pass_obj
def explain(source: Source, alert_id: str, as_json: bool) -> None:
    """Say what moved, where, by how much and how certain that is, and what to look at.

    ID is an alert's, or how it alone begins.
    """
    with _reading(source) as reader:
        alert = reader.read().find(alert_id)
    if as_json:
        click.echo(json.dumps(_as_json(alert), indent=2))
    else:
        click.echo("\n".join(explained(alert)))


@drift.command()
@click.argument("alert_id", metavar="ID")
@click.option("--by", metavar="NAME", default="", help="Who has seen it (default: who is logged in).")
@click.option("--note", metavar="TEXT", default="", help="What there is to say about it.")
@click.pass_obj
def ack(source: Source, alert_id: str, by: str, note: str) -> None:
    """Tell everybody that somebody has seen an alert."""
    _acknowledge(source, alert_id, by=by, note=note, until_ms=0)


@drift.command()
@click.argument("alert_id", metavar="ID")
@click.option("--for", "duration", metavar="TIME", required=True, help="For how long, such as 30m, 4h or 2d.")
@click.option("--by", metavar="NAME", default="", help="Who has seen it (default: who is logged in).")
@click.option("--note", metavar="TEXT", default="", help="What there is to say about it.")
@click.pass_obj
def snooze(source: Source, alert_id: str, duration: str, by: str, note: str) -> None:
    """Tell everybody that an alert is seen, and hold back what is new of it unless it becomes critical."""
    length_ms = duration_ms_of(duration)
    if not length_ms:
        raise Misconfigured(f"--for: wanted a time such as 30m, 4h or 2d, got {duration!r}")
    _acknowledge(source, alert_id, by=by, note=note, until_ms=_now_ms() + length_ms)


def _acknowledge(source: Source, alert_id: str, *, by: str, note: str, until_ms: int) -> None:
    from streams.drift_records import Acknowledgement

    who = by or _logged_in()
    for name, text in (("--by", who), ("--note", note)):
        if len(text.encode()) > _BYTES_OF_NAME_MAX or printable(text) != text:
            raise Misconfigured(f"{name}: wanted at most {_BYTES_OF_NAME_MAX} bytes of printable text")
    with _reading(source) as reader:
        alert = reader.read().find(alert_id)
        if not alert.is_open:
            raise Misconfigured(f"alert {alert.alert_id} cleared at {spoken(alert.record['time_ms'])} UTC")
        reader.acknowledge(Acknowledgement(alert.alert_id, _now_ms(), who, until_ms, note))
    done = f"snoozed until {spoken(until_ms)} UTC" if until_ms else "acknowledged"
    click.echo(f"alert {alert.alert_id} {done} by {who}")


@drift.command()
@click.option("--archive", type=click.Path(file_okay=False), required=True, help="What `paywarden archive` wrote.")
@click.option("--bundle", type=click.Path(file_okay=False), help="Of the model (default: [serve] bundle).")
@click.option("--from", "from_day", required=True, metavar="DAY", help="First UTC day, YYYY-MM-DD.")
@click.option("--to", "to_day", required=True, metavar="DAY", help="Last UTC day, included.")
@click.option("--out", type=click.Path(dir_okay=False), required=True, help="The file to write, NAME.npz.")
@click.pass_obj
@needs("train")
def reference(source: Source, archive: str, bundle: str | None, from_day: str, to_day: str, out: str) -> None:
    """Make what is usual of live decisions, from days that were well.

    Named in [drift] references, it stands in for what the model's bundle says of its training window.
    """
    from models.bundle import read_manifest
    from models.evaluation import Days, day_of_date
    from streams.drift_reference import live_reference

    manifest = read_manifest(Path(bundle or source.section("serve", wiring.ServeSettings).bundle))
    window = Days(day_of_date(from_day), day_of_date(to_day))
    made = live_reference(Path(archive), manifest, window)
    try:
        made.save(Path(out))
    except OSError as error:
        raise Misconfigured(f"cannot write {out}: {error.strerror}") from error
    click.echo(f"{out}: model {made.model_version}, {int(made.counts.payments[0])} decisions, {from_day} to {to_day}")


@contextmanager
def _reading(source: Source) -> Iterator[JournalReader]:
    from streams.drift_journal import JournalReader
    from streams.kafka import require_broker

    kafka = wiring.kafka_settings(source)
    require_broker(kafka)
    with closing(JournalReader(kafka, wiring.schema_ids(source))) as reader:
        yield reader


def _overview(journal: Journal, shown: Sequence[KnownAlert]) -> dict[str, Any]:
    return {
        "open": len(journal.open()),
        "unreadable": journal.unreadable,
        "alerts": [_as_json(alert) for alert in shown],
    }


def _as_json(alert: KnownAlert) -> dict[str, Any]:
    """An alert's newest record and what belongs to it, without infinities: JSON has none."""
    states = [dict(zip(("time_ms", "state", "severity", "subject"), state, strict=True)) for state in alert.states]
    said = [one.to_record() for one in alert.acknowledgements]
    whole: dict[str, Any] = _finite({**alert.record, "states": states, "acknowledgements": said})
    return whole


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
    """The cells of an alert in the table of `status`."""
    record = alert.record
    seen = alert.acknowledged_by
    if alert.snoozed_until_ms > now_ms:
        seen += f", snoozed until {spoken(alert.snoozed_until_ms)}"
    return (
        alert.alert_id,
        record["severity"],
        record["state"],
        spoken(record["first_seen_time_ms"]),
        printable(f"{record['subject']} {record['signal']}".strip()),
        printable(record["segment"]),
        _size(record),
        printable(record["model_version"]),
        printable(seen),
    )


def explained(alert: KnownAlert) -> list[str]:
    """What is known of an alert, in lines for people."""
    record = alert.record
    lines = [
        f"alert {alert.alert_id}: {record['severity']}, {record['state']} {spoken(record['time_ms'])} UTC",
        "",
        _line("what moved", f"{record['subject']} {record['signal']}".strip()),
        _line("where", record["segment"]),
        _line("cause", record["cause"] or "not said"),
        _line("by how much", f"{_size(record)}; from {_number(record['threshold'])} on it matters"),
        _line("value", f"{_number(record['current'])}, expected {_number(record['expected'])}"),
        _line(
            "how certain",
            f"evidence 10^{record['evidence']:.1f}; 10^{record['evidence_threshold']:.1f} is enough",
        ),
        _line("first seen", f"about {spoken(record['first_seen_time_ms'])} UTC"),
        _line(
            "window",
            f"{spoken(record['window_start_time_ms'])} to {spoken(record['window_end_time_ms'])} UTC, "
            f"{(record['window_end_time_ms'] - record['window_start_time_ms']) // _MINUTE_MS} min",
        ),
        _line("payments", f"{record['current_count']}, in the reference {record['reference_count']}"),
        _line("model", record["model_version"]),
    ]
    if record["statistics"]:
        told = ", ".join(f"{one['name']} {_number(one['value'])}" for one in record["statistics"])
        lines.append(_line("distances", told))
    lines += _bars(record)
    lines += _moved(record)
    lines += ["", "its life"]
    lines += [
        f"  {spoken(time_ms)}  {state:<10} {severity:<9} {printable(subject)}"
        for time_ms, state, severity, subject in alert.states
    ]
    for said in alert.acknowledgements:
        until = f" until {spoken(said.until_ms)}" if said.until_ms else ""
        note = f": {printable(said.note)}" if said.note else ""
        lines.append(f"  {spoken(said.time_ms)}  {said.kind}{until} by {printable(said.by)}{note}")
    if record["cause"] in _LOOK_AT:
        lines += ["", _line("look at", _LOOK_AT[record["cause"]])]
    return lines


def _bars(record: dict[str, Any]) -> list[str]:
    """Both histograms as bars of shares, one line a bin; none where the record has none."""
    reference, current = record["reference_histogram"], record["current_histogram"]
    if reference is None or current is None or len(reference["counts"]) != len(current["counts"]):
        return []
    was, now = _shares(reference), _shares(current)
    longest = max(*was, *now) or 1.0
    labels = [
        f"[{_number(low)}, {_number(high)})"
        for low, high in zip(reference["edges"], reference["edges"][1:], strict=False)
    ]
    labels.append("missing")
    width = max(map(len, labels))
    lines = ["", f"{'':<{width}}  {'reference':<{_BAR_WIDTH + 8}}  now"]
    for label, before, after in zip(labels, was, now, strict=True):
        if before or after:
            lines.append(f"{label:<{width}}  {_bar(before, longest)}  {_bar(after, longest)}".rstrip())
    return lines


def _shares(histogram: dict[str, Any]) -> list[float]:
    counts = [*histogram["counts"], histogram["missing"]]
    total = sum(counts) or 1
    return [count / total for count in counts]


def _bar(share: float, longest: float) -> str:
    filled = round(_BAR_WIDTH * share / longest)
    return f"{100 * share:6.2f}% {'█' * filled:<{_BAR_WIDTH}}"


def _moved(record: dict[str, Any]) -> list[str]:
    if not record["moved"]:
        return []
    lines = ["", "what moved with it"]
    for moved in record["moved"]:
        name = printable(f"{moved['subject']} {moved['signal']}")
        lines.append(
            f"  {name:<40} {printable(moved['segment']):<24} {_number(moved['value']):>8}  {moved['deviation']:+.1f} sd"
        )
    return lines


def _size(record: dict[str, Any]) -> str:
    """How large the change is, in the words of its statistic."""
    if record["statistic"] == "relative_change":
        up = record["current"] >= record["expected"]
        return f"{'+' if up else '-'}{100 * record['value']:.0f} %"
    return f"{record['statistic']} {_number(record['value'])}"


def _line(name: str, text: str) -> str:
    return f"{name:<13}{printable(text)}"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _logged_in() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:
        raise Misconfigured("who sees this is not known: give --by NAME") from error


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
