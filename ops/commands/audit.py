"""`paywarden audit`: whether the console's log of views and acts is whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from paywarden.ops.extras import needs
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.ops.console.audit import Head


@click.group()
def audit() -> None:
    """Check the console's log of who has seen and done what."""


@audit.command()
@click.option("--log", "log_file", type=click.Path(dir_okay=False), help="The log (default: that of [console] folder).")
@click.option(
    "--key", type=click.Path(dir_okay=False), help="The public key that signed it (default: audit.pub beside the log)."
)
@click.option("--head", metavar="LINE:DIGEST", help="A line that somebody has noted: the log must have it still.")
@click.pass_obj
@needs("console")
def verify(source: Source, log_file: str | None, key: str | None, head: str | None) -> None:
    """Find any edit, removal or reorder in the log.

    Each line is signed and names the line before it, and a signed file names the last one. A log that was put back to
    an earlier state together with that file is found by --head alone: note the line that the page Audit shows.
    """
    from paywarden.ops.console.audit import public_key
    from paywarden.ops.console.audit import verify as verified
    from paywarden.ops.console.settings import ConsoleSettings

    path = Path(log_file) if log_file else source.section("console", ConsoleSettings).audit_path
    remembered = None if head is None else _head(head)
    entries = verified(path, public_key(Path(key) if key else path.with_name("audit.pub")), remembered)
    click.echo(f"{path}: {entries} entries, all signed and in order")


def _head(text: str) -> Head:
    from paywarden.models.registry.entries import is_digest
    from paywarden.ops.console.audit import Head

    number, _, digest = text.partition(":")
    if not (number.isascii() and number.isdigit()) or not is_digest(digest):
        raise Misconfigured(f"--head: wanted LINE:DIGEST as the page Audit shows it, got {text[:80]!r}")
    return Head(int(number), digest)
