"""The command line.

Each command imports its modules when it runs, because `serve` must never load a Kafka client.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from paywarden.ops import wiring
from paywarden.ops.commands.data.convert import convert
from paywarden.ops.commands.data.features import features
from paywarden.ops.commands.data.init import init
from paywarden.ops.commands.data.schemas import schemas
from paywarden.ops.commands.data.simulate import simulate
from paywarden.ops.commands.model.backtest import backtest
from paywarden.ops.commands.model.bundles import compile_code, sign
from paywarden.ops.commands.model.models import models
from paywarden.ops.commands.model.policy import policy
from paywarden.ops.commands.model.replay import replay
from paywarden.ops.commands.model.rollout import rollout
from paywarden.ops.commands.model.shadow import shadow
from paywarden.ops.commands.model.train import train
from paywarden.ops.commands.run.capacity import capacity
from paywarden.ops.commands.run.console import console, console_people
from paywarden.ops.commands.run.doctor import doctor
from paywarden.ops.commands.run.gateway import gateway
from paywarden.ops.commands.run.load import load
from paywarden.ops.commands.state.backfill import backfill
from paywarden.ops.commands.state.dead_letters import dead_letters
from paywarden.ops.commands.state.forget import forget
from paywarden.ops.commands.state.outbox import outbox
from paywarden.ops.commands.state.profile_sets import profile_sets
from paywarden.ops.commands.state.rebuild import rebuild
from paywarden.ops.commands.state.set_aside import set_aside
from paywarden.ops.commands.state.source import source_topics
from paywarden.ops.commands.state.store import store
from paywarden.ops.commands.watch.archive import archive
from paywarden.ops.commands.watch.audit import audit
from paywarden.ops.commands.watch.decisions import decisions
from paywarden.ops.commands.watch.drift import drift
from paywarden.ops.commands.watch.evidence import evidence
from paywarden.ops.commands.watch.traces import traces
from paywarden.ops.extras import needs
from paywarden.ops.logs import set_up_logging
from paywarden.ops.reporting import report, write_json
from paywarden.schemas.errors import Misconfigured, PaywardenError
from paywarden.schemas.settings import Source, read_source

if TYPE_CHECKING:
    from paywarden.streams.health.process_end import ProcessEnd

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}

SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Every day": ("demo", "init", "train", "replay", "policy", "models", "rollout", "decisions", "drift", "doctor"),
    "Processes": ("broker", "companion", "console", "serve", "shadow", "stream", "traces"),
    "Now and then": (
        *("backfill", "backtest", "capacity", "compile", "convert", "evidence", "features", "gateway", "load"),
        *("simulate", "topics"),
    ),
    "All the rest": ("admin",),
}
"""The sections of the help of `paywarden`, in order, and the commands of each."""

EXIT_STATUSES = {
    0: "The command did its work, or the reader of its output closed the pipe.",
    1: "It failed: a setting, a file or a store was wrong or did not answer, and one line on stderr says which.",
    2: "The command line was wrong: an unknown option, for example, or two options that exclude each other.",
    130: "Ctrl-C interrupted it.",
}
"""The meaning of the exit status, for every command."""


def main() -> None:
    """Run the command line and exit with one of EXIT_STATUSES; a failure prints one line on stderr."""
    try:
        cli.main(prog_name="paywarden", standalone_mode=False)
    except click.UsageError as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except (PaywardenError, click.ClickException) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        click.echo(f"paywarden: {message}", err=True)
        sys.exit(1)
    except MemoryError as error:
        click.echo(f"paywarden: not enough memory{f': {error}' if str(error) else ''}", err=True)
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(0)


_WANTS_HELP = "wants_help"


class _Sections(click.Group):
    """A group whose help lists the commands by the sections of SECTIONS."""

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Note whether somebody asks a command for its help: then no configuration is needed."""
        context.meta[_WANTS_HELP] = any(name in args for name in context.help_option_names)
        return super().resolve_command(context, args)

    def format_commands(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections, with one column of names for all of them."""
        width = max(map(len, self.commands))
        for section, names in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl(
                    [
                        (name.ljust(width), self.commands[name].get_short_help_str(formatter.width - 6 - width))
                        for name in names
                    ]
                )

    def list_commands(self, _context: click.Context) -> list[str]:
        """Return the names in the order of the help."""
        return [name for names in SECTIONS.values() for name in names]


@click.group(cls=_Sections, context_settings=_CONTEXT)
@click.option("--config", type=click.Path(dir_okay=False), help="Configuration file (default: paywarden.toml).")
@click.option("--log", type=click.Choice(["text", "json"]), default="text", help="Form of the log lines on stderr.")
@click.version_option(package_name="paywarden")
@click.pass_context
def cli(context: click.Context, config: str | None, log: str) -> None:
    """Real-time fraud scoring for payments."""
    set_up_logging(log, context.invoked_subcommand or "")
    try:
        # `policy check` reports unknown sections together with everything else that is wrong.
        context.obj = read_source(config, check_sections=context.invoked_subcommand != "policy")
    except Misconfigured as error:
        if not context.meta.get(_WANTS_HELP):
            raise
        context.obj = _Unread(error)


class _Unread:
    """Stands for a configuration that cannot be read, where a command is asked for its help. Any use of it raises."""

    def __init__(self, error: Misconfigured) -> None:
        self._error = error

    def __getattr__(self, _: str) -> object:
        raise self._error


@cli.group()
def topics() -> None:
    """Create topics on Kafka, or give them more partitions."""


@topics.command("create")
@click.option(
    "--live-set", is_flag=True, help="Also those of the live profile set, which the store names: after a rebuild."
)
@click.option(
    "--repartition", "more", metavar="N", type=click.IntRange(1), help="Give each repartition topic N partitions."
)
@click.pass_obj
def create_topics(source: Source, live_set: bool, more: int | None) -> None:
    """Create the topics that are missing.

    A profile set that a rebuild has made has repartition topics of its own, which the rebuild creates. On another
    cluster they are missing: --live-set asks the store for the set's name and creates them, too.

    Events reach the owners of profiles through the repartition topics. With more partitions more stream workers can
    share the profiles. First stop all stream workers, then run `paywarden stream --drain` until it ends: --repartition
    refuses to work while events are still on their way.
    """
    if more is not None:
        _add_partitions(source, more)
        return
    from paywarden.streams.kafka.admin import require_broker
    from paywarden.streams.kafka.topics import TopicSettings
    from paywarden.streams.kafka.topics import create_topics as create

    kafka = wiring.kafka_settings(source)
    require_broker(kafka)
    entities = wiring.entity_names(source)
    profile_set = wiring.live_set(source).name if live_set else ""
    created = create(kafka, source.section("topics", TopicSettings), entities, profile_set)
    click.echo("\n".join(created) if created else "nothing to create")


def _add_partitions(source: Source, partitions: int) -> None:
    from paywarden.streams.kafka.admin import require_broker
    from paywarden.streams.maintenance.add_partitions import add_partitions
    from paywarden.streams.profiles.stream_settings import StreamSettings

    kafka = wiring.kafka_settings(source)
    require_broker(kafka)
    entities = wiring.entity_names(source)
    group_of = source.section("stream", StreamSettings).group_of
    changed = add_partitions(kafka, group_of, entities, wiring.live_set(source), partitions)
    click.echo("\n".join(changed) if changed else "nothing to change")


@cli.command()
def broker() -> None:
    """Run the embedded Kafka broker, for demonstrations.

    Its address is the first line on stdout.
    """
    from paywarden.streams.kafka.embedded_broker import EmbeddedBroker

    with _ending("embedded broker") as end:
        embedded = EmbeddedBroker()
        click.echo(embedded.bootstrap)
        end.stop.wait()
        embedded.close()


@cli.command()
@click.option("--drain", is_flag=True, help="Only apply the events that are on their way to profiles, then end.")
@click.pass_obj
@needs("stream")
def stream(source: Source, drain: bool) -> None:
    """Run a stream worker: payments and outcomes to profiles.

    It also watches decisions for drift, joins outcomes to them and counts dead letters. The address of its health and
    metrics is the first line on stdout.
    """
    with _ending("stream") as end:
        end.timeout_s = wiring.stream_stop_timeout_s(source)
        if drain:
            with wiring.StreamParts(source).open_pipeline(wiring.live_set(source).name, drain=True) as pipeline:
                pipeline.run(end.stop)
            return
        wiring.await_store(source, end.stop)
        if not end.stop.is_set():
            wiring.run_stream(source, click.echo, end)


@cli.command()
@click.pass_obj
def companion(source: Source) -> None:
    """Run the companion of a scoring host.

    It copies profiles from the changelog to the mirror, and ships decisions from the outboxes to Kafka. The address of
    its health and metrics is the first line on stdout.
    """
    from paywarden.streams.health.gc_tuning import settle_collection

    with _ending("companion") as end:
        end.timeout_s = wiring.companion_stop_timeout_s(source)
        with wiring.companion(source, announce=click.echo) as built:
            settle_collection()
            built.run(end.stop)


@cli.command()
@click.option("--bundle", type=click.Path(), help="The bundle to serve (default: [serve] bundle).")
@click.option("--workers", type=int, default=1, show_default=True, help="Worker processes: about one for each core.")
@click.option("--take-over", is_flag=True, help="Take the ports of the host that runs over, and end it.")
@click.pass_obj
@needs("serve")
def serve(source: Source, bundle: str | None, workers: int, take_over: bool) -> None:
    """Run the scoring workers.

    Their addresses are the first lines on stdout: HTTP, then gRPC, then "admin" with that of health and metrics.

    SIGHUP reads [serve] bundle and [policy] again. Other workers that serve them take the sockets over, and no call is
    refused. New software, or another feature catalogue, takes the place of the old in the same way by --take-over: it
    finds the host that runs by [serve] runtime.
    """
    from paywarden.scoring.server import hang_ups

    hang_ups.hold()
    from paywarden.scoring.server.host import serve as run

    def announce(addresses: Sequence[str]) -> None:
        click.echo("\n".join(addresses))

    run(wiring.scoring_host(source, bundle), workers, announce=announce, takes_over=take_over)


@cli.command()
@click.option("--seconds", type=click.IntRange(1), default=30, show_default=True, help="How long to send payments.")
@click.option(
    "--rate", type=click.FloatRange(0, min_open=True), default=200.0, show_default=True, help="Payments a second."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the simulated data.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Also write the summary to this file.")
@click.option("--keep", is_flag=True, help="Leave everything running, and print the addresses as JSON.")
@click.pass_obj
@needs("demo")
def demo(source: Source, seconds: int, rate: float, seed: int, json_file: str | None, keep: bool) -> None:
    """Run the whole product on this machine for a demonstration.

    It makes a history, trains a model, sends live payments and shows the decisions. It needs no server. Features and
    fields are those of [features] catalogue; all other settings are the demonstration's own.

    With --keep it goes on after its summary: stdout has one JSON object with all addresses and people. The simulated
    payments go on in real time, a share of them shifted, until Ctrl-C or SIGTERM ends everything. The exit status is
    then 0.
    """
    from paywarden.ops.demo.demo import run_demo
    from paywarden.ops.demo.verdict import WHERE_NEXT, in_words

    # As Ctrl-C: the processes that it started are stopped, and its folders are removed.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)

    def tell(addresses: str) -> None:
        write_json(json.loads(addresses)["summary"], json_file)
        click.echo(addresses)

    def run(told: Callable[[str], object] | None) -> dict[str, Any]:
        return run_demo(
            seconds=seconds,
            rate=rate,
            seed=seed,
            catalogue=wiring.catalogue(source),
            catalogue_file=wiring.catalogue_file(source),
            keep=told,
        )

    if keep:
        run(tell)
        return
    summary = run(None)
    click.echo("\n".join([*in_words(summary), ""]))
    report(summary, json_file)
    click.echo(WHERE_NEXT)


def _ending(name: str) -> ProcessEnd:
    """Returns the context that ends a process on SIGTERM or SIGINT."""
    from paywarden.streams.health.process_end import ProcessEnd

    return ProcessEnd(name)


@cli.group()
@click.pass_context
def admin(context: click.Context) -> None:
    """Maintain topics, stores, outboxes, keys and logs."""
    set_up_logging(context.find_root().params["log"], context.invoked_subcommand or "")


for _command in (
    *(backfill, backtest, capacity, compile_code, console, convert, decisions, doctor, drift, evidence),
    *(features, gateway, init, load, models, policy, replay, rollout, shadow, simulate, traces, train),
):
    cli.add_command(_command)
for _command in (
    *(archive, audit, console_people, dead_letters, forget, outbox, profile_sets, rebuild, schemas, set_aside, sign),
    *(source_topics, store),
):
    admin.add_command(_command)
