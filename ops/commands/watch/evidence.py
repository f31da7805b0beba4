"""`paywarden evidence`: fraud rates, ratios and what decided, for regulators and card schemes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from paywarden.ops.extras import needs
from paywarden.ops.times import time_ms_option
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source


@click.command()
@click.option("--archive", type=click.Path(file_okay=False, path_type=Path), required=True, help="The archive.")
@click.option("--from", "from_day", metavar="DAY", required=True, help="First UTC day, such as 2026-01-01.")
@click.option("--to", "to_day", metavar="DAY", required=True, help="The UTC day after the last, such as 2026-04-01.")
@click.option(
    "--known-to", metavar="TIME", help="Only outcomes that reached Kafka before TIME (default: all that are archived)."
)
@click.option("--remote", default="ecom", show_default=True, help="Channels of remote payments, with commas between.")
@click.option(
    "--exempted", metavar="COLUMN=VALUE", help="The field of a payment that says that it was exempted, and its value."
)
@click.option("--key", type=click.Path(dir_okay=False, path_type=Path), help="PEM file of an Ed25519 key to sign with.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder for the results.")
@click.pass_obj
@needs("history")
def evidence(
    source: Source,
    archive: Path,
    from_day: str,
    to_day: str,
    known_to: str | None,
    remote: str,
    exempted: str | None,
    key: Path | None,
    out: Path,
) -> None:
    """Write the evidence of some days as a report.

    Fraud rates of remote payments by quarter and band, for exemptions from strong customer authentication; the ratios
    of Visa and Mastercard by merchant and month; what decided, who approved it, and decisions with their reasons; drift
    alerts and what was done; how reviewers agree. Each table has its query over the archive.

    The same archive and options give the same bytes; --known-to holds them against outcomes that come later. Money is
    in the reference currency, which must be EUR.
    """
    from paywarden.ops.evidence.evidence_files import EvidenceAsked
    from paywarden.ops.evidence.evidence_run import make_evidence

    begin, end = time_ms_option("--from", from_day), time_ms_option("--to", to_day)
    assert begin is not None
    assert end is not None
    asked = EvidenceAsked.of(archive, begin, end, time_ms_option("--known-to", known_to), remote, exempted or "")
    if out.exists() and any(out.iterdir()):
        raise Misconfigured(f"--out: {out} has files already")
    out.parent.mkdir(parents=True, exist_ok=True)
    for path in make_evidence(source, asked, out, key, partial(click.echo, err=True)):
        click.echo(str(path))
