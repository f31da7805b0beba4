"""`paywarden simulate`: payments with fraud and its labels, as many as you want."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from paywarden.ops import wiring
from paywarden.ops.extras import needs
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    import pyarrow as pa

    from paywarden.schemas.payment_fields import PaymentFields


@click.command()
@click.option("--cards", type=click.IntRange(1), required=True, help="Number of cards.")
@click.option("--days", type=click.IntRange(1), required=True, help="Number of days.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same payments.")
@click.option(
    "--end",
    metavar="TIME",
    help="When the payments end: now, a date or a time. Outcomes known only later are left out. "
    "Without it the payments start on 2024-01-01 and have all their outcomes.",
)
@click.option(
    "--world",
    type=click.Choice(["cards", "shop", "enumeration"]),
    default="cards",
    show_default=True,
    help="cards: payments of every kind. shop: online shops, with the fields that `paywarden init` declares, and "
    "truth.parquet for `replay --ceiling`. enumeration: as cards, with bursts of tests of cards.",
)
@click.option("--out", type=click.Path(file_okay=False), required=True, help="Folder for the files.")
@click.pass_obj
@needs("history")
def simulate(source: Source, cards: int, days: int, seed: int, end: str | None, world: str, out: str) -> None:
    """Write simulated payments with fraud and its labels.

    The fraud follows several patterns that are known from real payments. Declared fields of [features] catalogue that
    the world does not know get plausible values, which say nothing about fraud.
    """
    from paywarden.features.datasets.made_columns import with_declared_columns
    from paywarden.features.datasets.shop_world import simulate_shop, write_truth
    from paywarden.features.datasets.simulated_columns import split_at
    from paywarden.features.datasets.simulator import simulate as make
    from paywarden.features.history.history import write_history
    from paywarden.ops.times import spoken

    end_ms = None if end is None else _end_of_simulation_ms(end)
    fields = wiring.catalogue(source).payment.fields
    truth = None
    if world == "shop":
        payments, outcomes, truth = simulate_shop(cards=cards, days=days, seed=seed, end_time_ms=end_ms)
        payments = _declared_columns_of(payments, fields)
    else:
        payments, outcomes = make(
            cards=cards, days=days, seed=seed, end_time_ms=end_ms, with_enumeration=world == "enumeration"
        )
    payments = with_declared_columns(payments, fields, seed=seed)
    if end_ms is not None:
        (payments, outcomes), _ = split_at(payments, outcomes, end_ms)
    write_history(out, payments, outcomes, fields)
    if truth is not None:
        write_truth(Path(out), truth)
    said = f"{len(payments)} payments and {len(outcomes)} outcomes in {out}"
    click.echo(said if end_ms is None else f"{said}, up to {spoken(end_ms)} UTC")


def _declared_columns_of(payments: pa.Table, fields: PaymentFields) -> pa.Table:
    """Returns the payments of the shop with those of its own columns that the project declares.

    Raises Misconfigured if it declares none of them: the payments would then show nothing of the shop.
    """
    from paywarden.features.datasets.shop_world import SHOP_COLUMNS

    declared = {field.name for field in fields.declared}
    if not declared & set(SHOP_COLUMNS):
        raise Misconfigured(
            f"--world shop: [features] catalogue declares none of its fields: {', '.join(SHOP_COLUMNS)}; "
            "`paywarden init DIR` makes a project that does"
        )
    return payments.drop_columns([name for name in SHOP_COLUMNS if name not in declared])


def _end_of_simulation_ms(text: str) -> int:
    """Returns `--end` in epoch milliseconds. Raises Misconfigured for a text that is no time, and for a future time."""
    from paywarden.ops.times import now_ms, time_ms_of

    # Whole seconds, so that the printed time names the same stream again.
    now = now_ms() // 1000 * 1000
    try:
        end_ms = now if text == "now" else time_ms_of(text)
    except ValueError:
        raise Misconfigured(
            f"--end: wanted now, a date such as 2026-10-01 or a time such as 2026-10-01T12:00:00Z, got {text!r}"
        ) from None
    if end_ms > now:
        raise Misconfigured(f"--end: wanted now or a time before it, got {text!r}")
    return end_ms
