"""`paywarden rollout`: starts a rollout, shows its state, stops it, and promotes its candidate."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paywarden.ops.extras import needs
from paywarden.ops.options import require_with
from paywarden.ops.reporting import print_table, printable
from paywarden.ops.times import now_ms, spoken
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.models.rollout.judgement import Judgement
    from paywarden.models.rollout.rollout import Rollout
    from paywarden.models.rollout.rollout_log import RolloutKeeper

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_BYTES_OF_TEXT_MAX = 500
_HEADINGS = ["measure", "within", "ratio at least", "at most", "evidence"]
_KEY = click.option(
    "--key",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="PEM file of your Ed25519 private key, mode 600 (default: [models] key_file).",
)
_WHY = click.option("--why", metavar="TEXT", required=True, help="The reason, for later readers of the log.")
_JSON = click.option("--json", "as_json", is_flag=True, help="The result as JSON.")


@click.group()
def rollout() -> None:
    """Roll a candidate out card by card, by evidence.

    The log of rollouts is the log of the registry ([models] people), and each person signs. The evidence decides about
    every step and about a rollback; people start, pause, resume and abort, and they promote a candidate when mature
    outcomes allow it.
    """


@rollout.command()
@click.option(
    "--candidate",
    metavar="VERSION",
    required=True,
    help="The version to try: what names an open proposal of the registry, or the folder of its bundle.",
)
@click.option("--name", metavar="NAME", default="", help="The rollout's name (default: r- and the time).")
@click.option("--cards-a-day", type=float, help="Different cards a day, to compute the power.")
@click.option(
    "--event-share",
    metavar="MEASURE=SHARE",
    multiple=True,
    help="How often a measure's event is now, such as decline=0.02, to compute the power.",
)
@click.option(
    "--shadow", is_flag=True, help="Begin in the shadow: `shadow run` tries the candidate, and it gets no card."
)
@click.option("--dry-run", is_flag=True, help="Only check, and print the power.")
@_KEY
@_WHY
@_JSON
@click.pass_obj
def start(
    source: Source,
    candidate: str,
    name: str,
    cards_a_day: float | None,
    event_share: tuple[str, ...],
    shadow: bool,
    dry_run: bool,
    key: str | None,
    why: str,
    as_json: bool,
) -> None:
    """Start a rollout of a candidate, by the plan in [rollout].

    A candidate is a proposal of the registry with its approvals: another bundle, another policy, or both. It is
    compared with the registry's champion.

    It stays pending until a host has loaded the candidate. With --cards-a-day the command first prints the rises that
    each step can find, and when it will go on.

    With --shadow each host's `shadow run` lets the candidate decide about all payments, without effect. `shadow
    report` shows its decisions, and `rollout resume` gives it the first cards.
    """
    from paywarden.models.rollout.power import Traffic, power, power_text
    from paywarden.models.rollout.rollout import EventKind, RolloutEvent, after
    from paywarden.models.rollout.rollout_log import RolloutKeeper
    from paywarden.models.rollout.rollout_settings import RolloutSettings
    from paywarden.ops.wiring import rollouts

    settings = source.section("rollout", RolloutSettings)
    plan = settings.plan()
    time_ms = now_ms()
    if name and not _NAME.fullmatch(name):
        raise Misconfigured(f"--name: wanted at most 64 of a to z, 0 to 9, dot, dash and _, got {name!r}")
    versions = rollouts.proposed(source, candidate)
    begun = rollouts.start_of(name, versions, plan, shadow=shadow, time_ms=time_ms)
    if cards_a_day is not None:
        if not event_share:
            raise Misconfigured("--cards-a-day: wanted --event-share too, such as decline=0.02")
        shares = _shares(event_share, [measure.name for measure in plan.measures])
        click.echo("\n".join(power_text(power(plan, Traffic(cards_a_day, shares)))), err=as_json)
    elif event_share:
        raise Misconfigured("--event-share: wanted --cards-a-day too")
    event = RolloutEvent(EventKind.STARTED, time_ms, "nobody", _text("--why", why), begun)
    if dry_run:
        found = after(_keeper(source).rollout, event)
    else:
        with rollouts.written_rollouts(source, _warn, key) as (log, signer):
            found = RolloutKeeper(log).take(replace(event, by=signer))
    _show(found, as_json=as_json)


@rollout.command()
@click.option(
    "--report", metavar="FILE", type=click.Path(dir_okay=False), help="Write a rollout's report to this HTML file."
)
@click.option("--name", metavar="NAME", default="", help="The rollout of the report (default: the newest).")
@_JSON
@click.pass_obj
def status(source: Source, report: str | None, name: str, as_json: bool) -> None:
    """Say where the newest rollout is, and why.

    The report names the compared versions, the evidence, the money, the approvals of the candidate, and everybody's
    acts with reasons. It is made from the log alone, so the same log gives the same bytes.
    """
    require_with("--report", is_there=report, name=name)
    if report is not None:
        _report(source, name, report)
        return
    found = _keeper(source).rollout
    if found is None:
        click.echo(json.dumps({"rollout": None}) if as_json else "there has been no rollout")
        return
    _show(found, as_json=as_json)


@rollout.command()
@click.option(
    "--look-every",
    metavar="S",
    type=click.FloatRange(min=0.1),
    default=10.0,
    show_default=True,
    help="Seconds between two looks.",
)
@_KEY
@click.pass_obj
@needs("stream")
def lead(source: Source, look_every: float, key: str | None) -> None:
    """Lead the newest rollout on live decisions.

    It reads the topic `decisions`, looks at the evidence, and takes the next step or rolls back; hosts follow the log.
    When labels are mature it reads `outcomes`, too.

    Run one for a deployment, with a key of its own with the role `lead`. It ends when the rollout has ended. After a
    kill it goes on where it was. A second one of the same log refuses to start.
    """
    from paywarden.ops.wiring.rollouts import rollout_leader
    from paywarden.streams.health.process_end import ProcessEnd

    with ProcessEnd("rollout lead") as end, rollout_leader(source, look_every_s=look_every, key=key) as leader:
        leader.run(end.stop)


@rollout.command()
@_KEY
@_WHY
@_JSON
@click.pass_obj
def pause(source: Source, key: str | None, why: str, as_json: bool) -> None:
    """Hold the share as it is.

    Harm still rolls back.
    """
    _done(source, "paused", key, why, as_json=as_json)


@rollout.command()
@_KEY
@_WHY
@_JSON
@click.pass_obj
def resume(source: Source, key: str | None, why: str, as_json: bool) -> None:
    """Let a paused rollout go on.

    One in the shadow gets its first cards.
    """
    _done(source, "resumed", key, why, as_json=as_json)


@rollout.command()
@_KEY
@_WHY
@_JSON
@click.pass_obj
def abort(source: Source, key: str | None, why: str, as_json: bool) -> None:
    """Give all cards back to the champion, for good.

    One person is enough. On a scoring host the command changes the deployment file itself: it works without a leader
    and without Kafka.
    """
    _done(source, "aborted", key, why, as_json=as_json)


@rollout.command()
@_KEY
@_WHY
@_JSON
@click.pass_obj
def promote(source: Source, key: str | None, why: str, as_json: bool) -> None:
    """Make the candidate the champion, for good.

    It is refused until the candidate has all cards and its mature outcomes are within the margin.
    """
    _done(source, "promoted", key, why, as_json=as_json)


@needs("history")
def _report(source: Source, name: str, out: str) -> None:
    from paywarden.models.rollout.rollout_report import rollout_html
    from paywarden.ops import wiring
    from paywarden.ops.wiring import rollouts

    newest = _keeper(source).rollout
    if newest is None:
        raise Misconfigured("--report: there has been no rollout")
    events = rollouts.read_rollouts(source).events()
    currency = wiring.rate_table(source).reference_currency
    called = name or newest.start.name
    page = rollout_html(events, called, currency=currency, agreed=rollouts.agreed(source, called))
    try:
        Path(out).write_text(page, encoding="utf-8")
    except OSError as error:
        raise Misconfigured(f"cannot write {out}: {error.strerror}") from error
    click.echo(f"wrote {out}")


def _keeper(source: Source) -> RolloutKeeper:
    from paywarden.models.rollout.rollout_log import RolloutKeeper
    from paywarden.ops.wiring import rollouts

    return RolloutKeeper(rollouts.read_rollouts(source))


def _done(source: Source, kind: str, key: str | None, why: str, *, as_json: bool) -> None:
    """Take an event of a person, let this host act on it, and show the rollout after it."""
    from paywarden.models.rollout.rollout import EventKind, RolloutEvent
    from paywarden.models.rollout.rollout_log import RolloutKeeper
    from paywarden.ops.wiring import rollouts

    event = RolloutEvent(EventKind(kind), now_ms(), "nobody", _text("--why", why))
    with rollouts.written_rollouts(source, _warn, key) as (log, signer):
        if event.kind is EventKind.ABORTED and (unread := log.abort_unread(event)):
            click.echo(json.dumps({"rollout": None, "aborted": unread}) if as_json else f"{unread}: aborted")
            return
        keeper = RolloutKeeper(log)
        newest = keeper.rollout
        if event.kind in (EventKind.RESUMED, EventKind.PROMOTED) and newest is not None and not newest.has_ended:
            # No host could load it: nothing would happen, and nobody would know why.
            rollouts.require_candidate(source, newest.start.candidate)
        found = keeper.take(replace(event, by=signer))
    _show(found, as_json=as_json)


def _shares(texts: tuple[str, ...], measures: list[str]) -> Mapping[str, float]:
    shares = {}
    for text in texts:
        name, _, number = text.partition("=")
        if name not in measures:
            raise Misconfigured(f"--event-share: there is no measure {name!r}; there are {', '.join(measures)}")
        try:
            shares[name] = float(number)
        except ValueError:
            raise Misconfigured(f"--event-share {name}: wanted a number from 0 to below 1, got {number!r}") from None
    return shares


def _warn(line: str) -> None:
    click.echo(f"paywarden: {line}", err=True)


def _text(option: str, text: str) -> str:
    if not text.strip() or len(text.encode()) > _BYTES_OF_TEXT_MAX or printable(text) != text:
        raise Misconfigured(f"{option}: wanted 1 to {_BYTES_OF_TEXT_MAX} bytes of printable text")
    return text


def _show(found: Rollout, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"rollout": _record(found)}, indent=2))
        return
    click.echo(found.line)
    for role, version in (("champion ", found.start.champion), ("candidate", found.start.candidate)):
        click.echo(f"  {role}  {version.model}  bundle {version.bundle[:16]}  policy {version.policy[:16]}")
    # After its end another version may decide: `models list` says which.
    click.echo(f"  {'ended     ' if found.has_ended else 'since     '} {spoken(found.since_ms)} UTC")
    for title, judgement in (("newest look", found.judgement), ("outcomes", found.outcomes)):
        if judgement is not None:
            click.echo(f"  {title}: {judgement.line}")
            for arm, missed in zip(("champion", "candidate"), judgement.missed or (), strict=False):
                click.echo(f"  {arm}: {missed.line}")
            print_table(_HEADINGS, _rows(judgement, found.start.plan.with_margin), text_columns=2)


def _rows(judgement: Judgement, with_margin: Collection[str]) -> list[list[str]]:
    """Returns a row for each measure; one that no step waits for is neither within a margin nor beyond it."""
    rows = []
    for one in judgement.measures:
        within = "–" if one.name not in with_margin else "yes" if one.is_within else "not yet"
        rows.append([one.name, within, f"{one.low:.2f}", f"{one.high:.2f}", f"{one.evidence:.1f}"])
    return rows


def _record(found: Rollout) -> dict[str, Any]:
    from paywarden.models.rollout.judgement import judgement_record

    judgements = {"judgement": found.judgement, "outcomes": found.outcomes}
    return {
        "name": found.start.name,
        "phase": found.phase.value,
        "in_shadow": found.in_shadow,
        "cause": found.cause,
        "step": found.step,
        "share": found.share / 10_000,
        "since_ms": found.since_ms,
        "elapsed_ms": found.elapsed_ms,
        "may_be_promoted": found.may_be_promoted,
        "salt": found.start.salt,
        "champion": asdict(found.start.champion),
        "candidate": asdict(found.start.candidate),
        "plan": asdict(found.start.plan),
        **{name: None if one is None else judgement_record(one) for name, one in judgements.items()},
    }
