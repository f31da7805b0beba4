"""`paywarden policy`: checks the configuration as the scoring workers do, and prints the policy."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from paywarden.schemas.settings import Source, read_source

if TYPE_CHECKING:
    from rich.table import Table


@click.group()
def policy() -> None:
    """Check thresholds, rules, segments and lists."""


@policy.command()
@click.option("--config", type=click.Path(dir_okay=False), help="Configuration file (default: that of all commands).")
@click.option(
    "--bundle",
    type=click.Path(file_okay=False),
    help="Bundle with the thresholds that no setting has (default: [serve] bundle).",
)
@click.pass_obj
def check(source: Source, config: str | None, bundle: str | None) -> None:
    """Check the whole configuration and print the policy.

    Every problem in any section is one line on stderr, and the exit status is then 1.
    """
    from rich.console import Console

    from paywarden.models.policy.lists import read_lists
    from paywarden.models.policy.policy import PolicySettings
    from paywarden.ops import wiring
    from paywarden.ops.configuration import problems_of

    if config is not None:
        source = read_source(config, check_sections=False)
    if problems := problems_of(source, bundle):
        for problem in problems:
            click.echo(f"paywarden: {problem}", err=True)
        sys.exit(1)
    settings = source.section("policy", PolicySettings)
    thresholds = wiring.bundle_thresholds(source, bundle)
    # A condition may hold brackets, which rich would take for markup.
    console = Console(highlight=False, markup=False)
    for table in _tables(settings, *thresholds):
        console.print(table)
    lists = _table("lists", "name", "entries")
    for name, entries in read_lists(settings.lists).items():
        lists.add_row(name, str(len(entries)))
    console.print(lists)
    console.print(f"{source.name}: every section is right" if source.file else "no configuration file: defaults hold")


def _tables(settings: object, review_at: float, decline_at: float) -> list[Table]:
    """Returns the tables to print. `review_at` and `decline_at` are those of the bundle, 0 without one."""
    from paywarden.models.policy.policy import FLAGS, PolicySettings, unknown_flag

    assert isinstance(settings, PolicySettings)
    general = (settings.review_at or review_at, settings.decline_at or decline_at)
    thresholds = _table("thresholds, of the first segment that applies", "segment", "when", "review at", "decline at")
    for segment in settings.segments:
        own = (segment.review_at or general[0], segment.decline_at or general[1])
        thresholds.add_row(segment.name, segment.when, *map(_score, own))
    thresholds.add_row("(all others)", "", *map(_score, general))
    rules = _table("rules", "name", "when", "action", "", "until")
    for rule in settings.rules:
        rules.add_row(rule.name, rule.when, rule.action, "decides alone" if rule.override else "at least", rule.until)
    flags = _table("flags", "flag", "asks for")
    for flag in (*FLAGS, unknown_flag("other")):
        flags.add_row(flag, getattr(settings, f"on_{flag}"))
    return [thresholds, rules, flags]


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _score(threshold: float) -> str:
    return f"{threshold:.4g}" if threshold else "as the bundle says"
