"""`paywarden evidence`: fraud rates, ratios and what decided, for regulators and card schemes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from paywarden.ops import wiring
from paywarden.ops.extras import needs
from paywarden.ops.times import time_ms_option
from paywarden.schemas.errors import Misconfigured, RegistryRefused
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.ops.evidence.evidence_files import Evidence, Governance


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
    from paywarden.ops.evidence.evidence_files import EvidenceAsked, collect, write

    begin, end = time_ms_option("--from", from_day), time_ms_option("--to", to_day)
    assert begin is not None
    assert end is not None
    if begin >= end:
        raise click.UsageError("--to must be after --from")
    column, equals, value = (exempted or "").partition("=")
    if exempted is not None and not equals:
        raise click.UsageError("--exempted: wanted COLUMN=VALUE")
    if out.exists() and any(out.iterdir()):
        raise Misconfigured(f"--out: {out} has files already")
    out.parent.mkdir(parents=True, exist_ok=True)
    asked = EvidenceAsked(
        archive=archive,
        from_ms=begin,
        to_ms=end,
        known_to_ms=time_ms_option("--known-to", known_to),
        remote=tuple(channel.strip() for channel in remote.split(",") if channel.strip()),
        exempted=(column, value) if exempted else None,
    )
    found = collect(asked, wiring.rate_table(source), out.parent)
    for path in write(found, _governance(source, found), out, key):
        click.echo(str(path))


def _governance(source: Source, found: Evidence) -> Governance | None:
    """Returns the registry's part; None without a registry."""
    from paywarden.models.bundle.version import Version
    from paywarden.models.registry.registry_settings import ModelRegistrySettings
    from paywarden.ops.evidence.evidence_files import Governance
    from paywarden.ops.evidence.queries import VERSIONS
    from paywarden.ops.wiring.registry import model_paper, model_registry

    if not source.section("models", ModelRegistrySettings).people:
        return None
    papers = {}
    for row in found.rows(VERSIONS):
        version = Version(row["bundle_digest"], row["policy_digest"], row["catalogue_digest"])
        try:
            papers[f"paper-{version.digest[:12]}.md"] = model_paper(source, version.digest)
        except RegistryRefused as error:
            # The table of versions has it. That it was never registered is a finding.
            click.echo(f"no document of version {version.digest[:12]}: {error}", err=True)
    asked = found.asked
    entries = [one for one in model_registry(source).log.read().entries if asked.from_ms <= one.time_ms < asked.to_ms]
    return Governance(entries, papers)
