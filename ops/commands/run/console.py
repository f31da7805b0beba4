"""`paywarden console`: the analysts' pages, and lines for their file of people."""

from __future__ import annotations

import click

from paywarden.ops.extras import needs
from paywarden.ops.times import now_ms
from paywarden.schemas.settings import Source


@click.group(invoke_without_command=True)
@click.option("--host", metavar="ADDRESS", help="The address that it listens on (default: [console] host).")
@click.option(
    "--port", type=click.IntRange(0, 65_535), help="The port; 0 takes any free one (default: [console] port)."
)
@click.pass_context
@needs("console")
def console(context: click.Context, host: str | None, port: int | None) -> None:
    """Run the analysts' pages.

    They show alerts, models, rollouts, cases, and the audit log. The address is the first line on stdout. Without
    [console] people and oidc_issuer there are demo people without passwords, on a loopback address only.
    """
    if context.invoked_subcommand is not None:
        return
    from dataclasses import replace

    from paywarden.ops.console.server import served
    from paywarden.ops.console.settings import ConsoleSettings
    from paywarden.streams.health.process_end import ProcessEnd

    source: Source = context.obj
    with ProcessEnd("console") as end:
        given = source.section("console", ConsoleSettings)
        settings = replace(given, host=given.host if host is None else host, port=given.port if port is None else port)
        served(source, settings, end.stop, announce=click.echo)


@console.command()
@click.password_option(help="The password (default: it is asked for).")
@needs("console")
def password(password: str) -> None:
    """Make the line of a password for [console] people.

    The line has a salt and a hash made by Argon2id, and not the password.
    """
    from paywarden.ops.console.people import hashed_password

    click.echo(f'password = "{hashed_password(password)}"')


@console.command()
@needs("console")
def token() -> None:
    """Make a token for a program, and its line.

    The first line of the output is the token, which the file does not hold. The second is the line for its table
    [[token]] in the file of [console] people.
    """
    from paywarden.ops.console.people import new_token, token_digest

    made = new_token()
    click.echo(made)
    click.echo(f'sha256 = "{token_digest(made)}"')


@console.command()
@click.argument("name")
@click.pass_obj
@needs("console")
def logout(source: Source, name: str) -> None:
    """End all sessions of the person NAME.

    It does so for people of the OpenID Connect provider, too.
    """
    from contextlib import closing
    from pathlib import Path

    from paywarden.ops.console.audit import audit_log
    from paywarden.ops.console.database import ConsoleDatabase
    from paywarden.ops.console.sessions import TABLES
    from paywarden.ops.console.settings import ConsoleSettings

    settings = source.section("console", ConsoleSettings)
    with closing(ConsoleDatabase(settings.database_path, TABLES)) as database, database.write() as connection:
        ended = connection.execute("DELETE FROM sessions WHERE name = ?", (name,)).rowcount
    audit_log(Path(settings.folder)).record("operator", "ended_sessions", f"person:{name}", {}, now_ms())
    click.echo(f"ended {ended} sessions of {name}")
