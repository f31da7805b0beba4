"""`paywarden features`: lists and checks the features, and shows a stored profile."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import click

from paywarden.ops import wiring
from paywarden.ops.options import require_with
from paywarden.ops.times import time_ms_of
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source


@click.command()
@click.argument("entity_id", metavar="[ENTITY:ID]", required=False)
@click.option(
    "--at", metavar="TIME", help="Features of ENTITY:ID as of TIME, as in 2024-05-01T12:00:00Z (default: now)."
)
@click.option("--check", "checks", is_flag=True, help="Try the catalogue on made payments.")
@click.option(
    "--payments", type=click.IntRange(1, 100_000), default=400, show_default=True, help="Payments for --check."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of these payments.")
@click.option(
    "--episodes",
    "data",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Measure `episode` features on a history: false alarms, and the alarm that a budget gives.",
)
@click.option("--markdown", is_flag=True, help="The list as the page docs/reference/features.md.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
@click.pass_obj
def features(
    source: Source,
    entity_id: str | None,
    at: str | None,
    checks: bool,
    payments: int,
    seed: int,
    data: Path | None,
    markdown: bool,
    as_json: bool,
) -> None:
    """List or check the features, or show one stored profile.

    The list has each feature's meaning, unit and window, the meaning of a missing value, and the size of profiles. With
    fields of a project it begins with these: number, bounds, whether they are personal, their type in requests, and
    which features and entities use them.

    With ENTITY:ID, such as card:C1, it shows the stored profile and its features. A combination has its ids with commas
    between: card_merchant:C1,M1.

    --check first checks every declaration. Then it computes each feature three times: event by event, as stream and
    endpoint do; all at once, as training does; and the plainest way, from the list of events. If one bit differs, the
    exit status is 1. A feature without any value on these payments is named: its condition or key may be wrong.

    --episodes counts the episodes of each `episode` feature on a history. It suggests the `alarm` with which all of
    them together give one false alarm a month over 10,000 merchants. An episode is false if no payment near it is a
    known fraud.
    """
    if sum([entity_id is not None, checks, markdown, data is not None]) > 1:
        raise click.UsageError("wanted one of ENTITY:ID, --check, --episodes and --markdown")
    require_with("ENTITY:ID", is_there=entity_id, at=at)
    if entity_id is not None:
        _show(source, entity_id, at, as_json=as_json)
    elif data is not None:
        _episodes(source, data, as_json=as_json)
    elif checks:
        _check(source, payments, seed, as_json=as_json)
    else:
        _list(source, markdown=markdown, as_json=as_json)


def _list(source: Source, *, markdown: bool, as_json: bool) -> None:
    from paywarden.features.catalogue.field_listing import field_lines, field_table, listed_fields
    from paywarden.features.profiles.engine import FeatureEngine
    from paywarden.features.profiles.feature_docs import listing_of

    catalogue = wiring.catalogue(source)
    listing, fields = listing_of(catalogue, FeatureEngine(catalogue)), listed_fields(catalogue)
    if as_json:
        click.echo(json.dumps(listing.to_dict() | {"fields": [asdict(field) for field in fields]}, indent=2))
    elif markdown:
        click.echo("\n".join([listing.to_markdown(), *(["", "## Fields", "", *field_table(fields)] if fields else [])]))
    else:
        click.echo("\n".join([*([*field_lines(fields), ""] if fields else []), listing.to_text()]))


def _check(source: Source, payments: int, seed: int, *, as_json: bool) -> None:
    from paywarden.features.datasets.catalogue_check import check_catalogue
    from paywarden.features.profiles.engine import FeatureEngine
    from paywarden.features.profiles.feature_docs import listing_of

    catalogue = wiring.catalogue(source)
    listing = listing_of(catalogue, FeatureEngine(catalogue))
    checked = check_catalogue(catalogue, payments=payments, seed=seed)
    valueless = [one.name for one in checked.features if one.missing == 1]
    if as_json:
        result = {"catalogue": listing.digest, "payments": checked.payments, "features": len(checked.features)}
        entities = [asdict(entity) for entity in listing.entities]
        differing = list(checked.differences)
        click.echo(json.dumps(result | {"without_values": valueless, "differences": differing, "entities": entities}))
    else:
        fields = catalogue.payment.attributes
        click.echo(f"{len(fields)} declared fields, {len(listing.entities)} entities, {len(listing.features)} features")
        click.echo("\n".join(entity.cost for entity in listing.entities))
        for name in valueless:
            click.echo(f"no payment had a value of {name}", err=True)
        for name in checked.not_plain:
            click.echo(f"the plain way does not know {name}", err=True)
    if checked.differences:
        shown = "; ".join(checked.differences[:3])
        raise Misconfigured(f"features differ, {len(checked.differences)} values in all: {shown}")
    if not as_json:
        click.echo(f"{checked.payments} payments: the same bits live, in training and the plain way; {listing.digest}")


def _episodes(source: Source, data: Path, *, as_json: bool) -> None:
    from paywarden.features.history.history import read_history
    from paywarden.models.metrics.episode_budget import MERCHANTS, measure_budget

    catalogue = wiring.catalogue(source)
    history = read_history(data, catalogue.payment.fields)
    budget = measure_budget(history, catalogue, wiring.feature_engine(source), wiring.rate_table(source))
    if as_json:
        click.echo(json.dumps(asdict(budget), indent=2))
        return
    for one in budget.features:
        click.echo(
            f"{one.name}: alarm {one.alarm:g}, {one.episodes:,} episodes of {one.payments:,} payments, "
            f"{one.with_fraud:,} of them with a known fraud"
        )
    click.echo(
        f"{budget.merchant_months:,.0f} merchant-months: {budget.false_a_month:,.1f} false alarms in a month of "
        f"{MERCHANTS:,} merchants"
    )
    click.echo(f"for at most one: alarm={budget.alarm:g}")


def _show(source: Source, entity_id: str, at: str | None, *, as_json: bool) -> None:
    from paywarden.features.profiles.profile_view import to_json, to_lines, typed_key, view_profile
    from paywarden.streams.profiles.events import source_name

    as_of_ms = time.time_ns() // 1_000_000 if at is None else _time_ms(at)
    catalogue, engine = wiring.catalogue(source), wiring.feature_engine(source)
    entity, key = typed_key(engine.plan, entity_id)
    store = wiring.open_live_store(source, readonly=True)
    try:
        (state,) = store.read([key])
    finally:
        store.close()
    if state is None:
        raise Misconfigured(f"the store has no profile of this {engine.plan.entity_names[entity]}")
    view = view_profile(engine, catalogue, entity, state, as_of_ms=as_of_ms, source_name=source_name)
    click.echo(to_json(view) if as_json else "\n".join(to_lines(view)))


def _time_ms(text: str) -> int:
    try:
        time_ms = time_ms_of(text)
    except ValueError:
        raise Misconfigured(f"--at: wanted a time such as 2024-05-01T12:00:00Z, got {text!r}") from None
    if time_ms <= 0:
        raise Misconfigured(f"--at: wanted a time after 1970, got {text!r}")
    return time_ms
