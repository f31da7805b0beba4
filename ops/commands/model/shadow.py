"""`paywarden shadow`: runs challengers on live payments without effect, and compares them with the champion."""

from __future__ import annotations

import json
import math
import os
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paywarden.ops import wiring
from paywarden.ops.extras import needs
from paywarden.ops.reporting import print_table, printable
from paywarden.ops.times import now_ms, spoken, time_ms_option
from paywarden.schemas.memory_bound import bound_memory, half_of_memory
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.streams.health.process_end import ProcessEnd
    from paywarden.streams.shadow.report import ComparedPair

_DAY_MS = 86_400_000


@click.group()
def shadow() -> None:
    """Try challengers on live payments, without effect.

    [[shadow.challengers]] names them. A challenger is a bundle, a policy, or both.
    """


@shadow.command()
@click.option("--challenger", metavar="NAME", help="Run this one alone, in this process: each is started so.")
@click.pass_obj
def run(source: Source, challenger: str | None) -> None:
    """Run all challengers of a scoring host.

    They read the outboxes of this host, where the vector of every decision is, and put their decisions on the topic
    shadow-decisions. Each has a process of its own, which is started again if it ends. The address of health and
    metrics is the first line on stdout.
    """
    if challenger is not None:
        _evaluate(source, challenger)
        return
    log = click.get_current_context().find_root().params["log"]
    with _ending("shadow") as end, wiring.shadow_host(source, click.echo, log) as host:
        host.run(end.stop)


def _evaluate(source: Source, name: str) -> None:
    """Run a challenger. The parent reads its status from stdout."""
    parent = os.getppid()
    # Nobody has tried its library yet.
    bound_memory(half_of_memory())
    with _ending(f"challenger {name}") as end:
        evaluator = wiring.shadow_evaluator(source, name)

        def tell(status: dict[str, Any]) -> None:
            if os.getppid() != parent:
                raise BrokenPipeError
            sys.stdout.write(json.dumps(status) + "\n")
            sys.stdout.flush()

        # Without a parent nobody would hear of it, or start it again.
        with suppress(BrokenPipeError):
            evaluator.run(end.stop, tell)


@shadow.command()
@click.option("--archive", type=click.Path(path_type=Path), help="Read this archive (default: the topics themselves).")
@click.option(
    "--since",
    metavar="TIME",
    help="Only records that reached Kafka at TIME or later (default: a day before now; archives: all).",
)
@click.option("--until", metavar="TIME", help="Only records that reached Kafka before TIME; outcomes may be later.")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
@click.pass_obj
@needs("history")
def report(source: Source, archive: Path | None, since: str | None, until: str | None, as_json: bool) -> None:
    """Compare challengers with the champion, payment by payment.

    For each pair: how many of the champion's decisions have a partner, which actions differ, how scores moved, and the
    money at stake at the costs of [costs], with 95 % intervals in which a card is one observation. Money and fraud are
    those of payments whose outcome is known.

    It reads shadow-decisions, decisions and outcomes, from Kafka or from an archive (`paywarden admin archive`).
    """
    from paywarden.models.metrics.costs import CostSettings
    from paywarden.streams.shadow.report import shadow_report

    since_ms, until_ms = time_ms_option("--since", since), time_ms_option("--until", until)
    if archive is None and since_ms is None:
        since_ms = now_ms() - _DAY_MS
    tables = wiring.shadow_tables(source, archive, since_ms, until_ms)
    made = shadow_report(*tables, rates=wiring.rate_table(source), costs=source.section("costs", CostSettings))
    if as_json:
        click.echo(json.dumps(_finite(asdict(made)), indent=2))
        return
    if not made.pairs:
        click.echo("there is no shadow decision of that time")
    for pair in made.pairs:
        _print(pair)
    if made.without_decision:
        click.echo(f"left out: {made.without_decision} shadow decisions whose decision was not found")


def _print(pair: ComparedPair) -> None:
    from paywarden.models.policy.policy import ACTIONS as ACTION_NAMES

    found = pair.comparison
    host = ", a shadow host" if pair.is_shadow_host else ""
    click.echo(f"{printable(pair.challenger)}{host}: {spoken(pair.first_time_ms)} to {spoken(pair.last_time_ms)} UTC")
    for role, bundle, policy in (
        ("champion", pair.champion_bundle_digest, pair.champion_policy_digest),
        ("challenger", pair.challenger_bundle_digest, pair.challenger_policy_digest),
    ):
        click.echo(f"  {role:<11} bundle {bundle[:12] or '(none)'}, policy {policy[:12] or '(not named)'}")
    click.echo(
        f"  {found.payments} payments of {found.cards} cards, {100 * found.paired_share:.2f} % of the champion's; "
        f"{found.labelled} with a known outcome; {100 * found.agreement.share:.2f} % get the same action"
    )
    rows = [
        [f"champion: {ACTION_NAMES[number]}", *map(str, counts)]
        for number, counts in enumerate(found.agreement.payments)
    ]
    print_table(["payments", *(f"challenger: {name}" for name in ACTION_NAMES)], rows, text_columns=1)
    rows = [
        [one.name, *("" if math.isnan(value) else f"{value:.6g}" for value in (one.difference, one.low, one.high))]
        for one in found.differences
    ]
    print_table(["challenger less champion, a payment", "mean", "95 % from", "to"], rows, text_columns=1)


def _finite(value: Any) -> Any:
    """Returns a value for JSON, which has no NaN: null in its place."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _ending(name: str) -> ProcessEnd:
    from paywarden.streams.health.process_end import ProcessEnd

    return ProcessEnd(name)
