"""`paywarden console`: the analysts' pages, and lines for their file of people."""

from __future__ import annotations

import click

from paywarden.ops.extras import needs
from paywarden.ops.options import at_most_one
from paywarden.ops.times import now_ms
from paywarden.schemas.settings import Source


@click.command()
@click.option("--host", metavar="ADDRESS", help="The address that it listens on (default: [console] host).")
@click.option(
    "--port", type=click.IntRange(0, 65_535), help="The port; 0 takes any free one (default: [console] port)."
)
@click.pass_obj
@needs("console")
def console(source: Source, host: str | None, port: int | None) -> None:
    """Run the analysts' pages.

    They show alerts, models, rollouts, cases, and the audit log. The address is the first line on stdout. Without
    [console] people and oidc_issuer there are demo people without passwords, on a loopback address only.
    """
    from dataclasses import replace

    from paywarden.ops.console.console_settings import ConsoleSettings
    from paywarden.ops.console.server import served
    from paywarden.streams.health.process_end import ProcessEnd

    with ProcessEnd("console") as end:
        given = source.section("console", ConsoleSettings)
        settings = replace(given, host=given.host if host is None else host, port=given.port if port is None else port)
        served(source, settings, end.stop, announce=click.echo)


@click.command("console")
@click.option(
    "--password",
    prompt=True,
    prompt_required=False,
    hide_input=True,
    confirmation_prompt=True,
    help="Make the line of a password for [console] people. Without a value the command asks for it.",
)
@click.option("--token", is_flag=True, help="Make a token for a program, and its line.")
@click.option("--logout", metavar="NAME", help="End all sessions of the person NAME.")
@click.pass_obj
@needs("console")
def console_people(source: Source, password: str | None, token: bool, logout: str | None) -> None:
    """Make a password's line or a token, or end sessions.

    The line of a password has a salt and a hash made by Argon2id, and not the password. With --token the first line of
    the output is the token, which the file does not hold. The second is the line for its table [[token]] in the file of
    [console] people. --logout also ends sessions of people of the OpenID Connect provider.
    """
    at_most_one(password=password, token=token, logout=logout)
    if password:
        _print_password(password)
    elif token:
        _print_token()
    elif logout:
        _log_out(source, logout)
    else:
        raise click.UsageError("wanted one of --password, --token and --logout")


def _print_password(password: str) -> None:
    from paywarden.ops.console.people import hashed_password

    click.echo(f'password = "{hashed_password(password)}"')


def _print_token() -> None:
    from paywarden.ops.console.people import new_token, token_digest

    made = new_token()
    click.echo(made)
    click.echo(f'sha256 = "{token_digest(made)}"')


def _log_out(source: Source, name: str) -> None:
    from contextlib import closing
    from pathlib import Path

    from paywarden.ops.console.audit_log import audit_log
    from paywarden.ops.console.console_settings import ConsoleSettings
    from paywarden.ops.console.database import ConsoleDatabase
    from paywarden.ops.console.sessions import TABLES

    settings = source.section("console", ConsoleSettings)
    with closing(ConsoleDatabase(settings.database_path, TABLES)) as database, database.write() as connection:
        ended = connection.execute("DELETE FROM sessions WHERE name = ?", (name,)).rowcount
    audit_log(Path(settings.folder)).record("operator", "ended_sessions", f"person:{name}", {}, now_ms())
    click.echo(f"ended {ended} sessions of {name}")
