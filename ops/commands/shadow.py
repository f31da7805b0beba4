"""`paywarden shadow`: challengers decide about live payments without anybody listening, and how they compare."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from paywarden.ops import wiring
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.streams.health.process_end import ProcessEnd


@click.group()
def shadow() -> None:
    """Try challengers on live payments, unheard.

    [[shadow.challengers]] names them. A challenger is a bundle, a policy, or both.
    """


@shadow.command()
@click.pass_obj
def run(source: Source) -> None:
    """Run all challengers of a scoring host.

    They read the outboxes of this host, where the vector of every decision is, and put what they would have decided on
    the topic shadow-decisions. Each has a process of its own, which is started again if it ends. The address of health
    and metrics is the first line on stdout.
    """
    log = click.get_current_context().find_root().params["log"]
    with _ending("shadow") as end, wiring.shadow_host(source, click.echo, log) as host:
        host.run(end.stop)


@shadow.command(hidden=True)
@click.argument("name")
@click.pass_obj
def evaluate(source: Source, name: str) -> None:
    """Run the challenger NAME, as `run` does it.

    `run` starts this command, and reads its status from stdout.
    """
    parent = os.getppid()
    with _ending(f"challenger {name}") as end:
        evaluator = wiring.shadow_evaluator(source, name)

        def tell(status: dict[str, Any]) -> None:
            if os.getppid() != parent:
                raise BrokenPipeError
            sys.stdout.write(json.dumps(status) + "\n")
            sys.stdout.flush()

        evaluator.run(end.stop, tell)


def _ending(name: str) -> ProcessEnd:
    from paywarden.streams.health.process_end import ProcessEnd

    return ProcessEnd(name)
