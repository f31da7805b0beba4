"""`paywarden admin audit`: whether the console's log of views and acts is whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from paywarden.ops.extras import needs
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.ops.console.audit_log import AuditHead


@click.command()
@click.option("--log", "log_file", type=click.Path(dir_okay=False), help="The log (default: that of [console] folder).")
@click.option(
    "--key", type=click.Path(dir_okay=False), help="The public key that signed it (default: audit.pub beside the log)."
)
@click.option("--head", metavar="LINE:DIGEST", help="A noted line: the log must still have it.")
@click.option("--topic", is_flag=True, help="The log must also have each line that is on the topic console-events.")
@click.pass_obj
@needs("console")
def audit(source: Source, log_file: str | None, key: str | None, head: str | None, topic: bool) -> None:
    """Check the console's audit log: who has seen and done what.

    It finds any edit, removal or reorder in the log: each line is signed and names the line before it, and a signed
    file names the last one. --topic and --head find a log that was put back to an earlier state together with that
    file: a console puts the last line of each hour on the topic, and the page Audit shows it.
    """
    from paywarden.models.bundle.signature import fingerprint
    from paywarden.ops.console.audit_log import public_key
    from paywarden.ops.console.audit_log import verify as verified
    from paywarden.ops.console.console_settings import ConsoleSettings

    path = Path(log_file) if log_file else source.section("console", ConsoleSettings).audit_path
    public = public_key(Path(key) if key else path.with_name("audit.pub"))
    remembered = [] if head is None else [_head(head)]
    if topic:
        remembered += _on_topic(source, fingerprint(public))
    entries = verified(path, public, remembered)
    click.echo(f"{path}: {entries} entries, all signed and in order")


def _on_topic(source: Source, name: str) -> list[AuditHead]:
    """Returns the heads of a log that consoles have put on the topic."""
    from contextlib import closing

    from paywarden.ops import wiring
    from paywarden.ops.console.audit_page import published_heads
    from paywarden.streams.alerts.alert_events import EVENTS_TOPIC, ConsoleEvent
    from paywarden.streams.alerts.feed import AlertFeed
    from paywarden.streams.kafka.admin import require_broker

    kafka = wiring.kafka_settings(source)
    require_broker(kafka)
    events: list[ConsoleEvent] = []
    with closing(AlertFeed(kafka, wiring.schema_ids(source))) as feed:
        feed.start({})
        is_at_end = False
        while not is_at_end:
            batch = feed.read()
            is_at_end = batch.is_at_end
            events += [
                ConsoleEvent.of_record(record.value)
                for record in batch.records
                if record.topic == EVENTS_TOPIC and record.value is not None
            ]
    return published_heads(events, name)


def _head(text: str) -> AuditHead:
    from paywarden.ops.console.audit_log import AuditHead
    from paywarden.schemas.signed_lines import is_digest

    number, _, digest = text.partition(":")
    if not (number.isascii() and number.isdigit()) or not is_digest(digest):
        raise Misconfigured(f"--head: wanted LINE:DIGEST as the page Audit shows it, got {text[:80]!r}")
    return AuditHead(int(number), digest)
