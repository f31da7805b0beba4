"""`paywarden admin outbox`: entries that the outboxes of this host have set aside, because they cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from paywarden.ops.options import at_most_one, require_with
from paywarden.ops.reporting import printable
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.schemas.proto.outbox_pb2 import OutboxEntry
    from paywarden.scoring.state.outbox import OutboxSettings
    from paywarden.streams.companion.set_aside_entries import SetAsideEntry


@click.command()
@click.argument("entry_ids", metavar="[ID]...", nargs=-1)
@click.option("--retry", is_flag=True, help="Ship the entries ID..., once their cause is fixed.")
@click.option("--all", "every", is_flag=True, help="With --retry: everything that is set aside.")
@click.option("--discard", is_flag=True, help="Delete the entries ID...: their decisions are lost.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
@click.pass_obj
def outbox(source: Source, entry_ids: Sequence[str], retry: bool, every: bool, discard: bool, as_json: bool) -> None:
    """List or ship the entries that outboxes set aside.

    The companion sets aside bytes that it cannot read in an outbox, and ships the decisions behind them. The list says
    why. ID is the worker and the position in its outbox. The bytes are not printed: they may hold card ids.

    With --retry the decisions go into an outbox of their own, which the companion ships. Entries that still cannot be
    read stay where they are, and the command says why. It can run while the companion runs.
    """
    at_most_one(retry=retry, discard=discard, json=as_json)
    if entry_ids and not (retry or discard):
        raise click.UsageError("wanted --retry or --discard with ID...")
    require_with("--retry", is_there=retry, all=every)
    if retry:
        _retry(source, entry_ids, every=every)
    elif discard:
        _discard(source, entry_ids)
    else:
        _list(source, as_json=as_json)


def _list(source: Source, *, as_json: bool) -> None:
    from paywarden.streams.companion.retry_set_aside import entries_of, why_not

    settings = _settings(source)
    encode = _encoder()
    rows = [
        {
            "id": entry.entry_id,
            "kind": entry.kind,
            "bytes": entry.end - entry.begin,
            "set_aside_time": _time_of(entry),
            "why": printable(why_not(settings, entry, encode)),
            "file": str(entry.path),
        }
        for entry in entries_of(settings)
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        click.echo("nothing is set aside")
    for row in rows:
        why = row["why"] or "can be shipped: run `paywarden admin outbox --retry`"
        click.echo(f"{row['id']:<24} {row['kind']:<7} {row['bytes']:>9} bytes  {row['set_aside_time']}  {why}")


def _retry(source: Source, entry_ids: Sequence[str], *, every: bool) -> None:
    from paywarden.streams.companion.retry_set_aside import retry as run

    settings = _settings(source)
    done = run(settings, _chosen(settings, entry_ids, every), _encoder())
    for entry, count in done.sent.items():
        click.echo(f"{entry.entry_id}: {count} decision{'s' * (count != 1)} handed to the companion")
    for entry, why in done.refused.items():
        click.echo(f"{entry.entry_id}: {printable(why)}")
    if done.refused:
        raise click.ClickException(f"{len(done.refused)} of them stay set aside")


def _discard(source: Source, entry_ids: Sequence[str]) -> None:
    if not entry_ids:
        raise click.UsageError("--discard: wanted ID...")
    settings = _settings(source)
    for entry in _chosen(settings, entry_ids, every=False):
        entry.remove()
        click.echo(f"{entry.entry_id}: deleted")


def _settings(source: Source) -> OutboxSettings:
    from paywarden.scoring.state.outbox import OutboxSettings

    return source.section("outbox", OutboxSettings)


def _encoder() -> Callable[[OutboxEntry], bytes]:
    """Returns the check that a decision fits the topic. It needs no registry: the ids are our own."""
    from paywarden.schemas.avro import Encoder, LocalSchemaIds
    from paywarden.streams.companion.shipping import decision_of

    encoder = Encoder("decisions", LocalSchemaIds().id_of("decisions"))
    return lambda entry: encoder.encode(decision_of(entry))


def _chosen(settings: OutboxSettings, entry_ids: Sequence[str], every: bool) -> list[SetAsideEntry]:
    """Returns the entries that the operator names. Raises UsageError, ClickException."""
    from paywarden.streams.companion.retry_set_aside import entries_of

    if every == bool(entry_ids):
        raise click.UsageError("name entries, or --all")
    entries = {entry.entry_id: entry for entry in entries_of(settings)}
    for entry_id in entry_ids:
        if entry_id not in entries:
            raise click.ClickException(f"nothing is set aside as {printable(entry_id)}: see `paywarden admin outbox`")
    return list(entries.values()) if every else [entries[entry_id] for entry_id in dict.fromkeys(entry_ids)]


def _time_of(entry: SetAsideEntry) -> str:
    try:
        moment = datetime.fromtimestamp(entry.path.stat().st_mtime, UTC)
    except FileNotFoundError:
        return "-"
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
