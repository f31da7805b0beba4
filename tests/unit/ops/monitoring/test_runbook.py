"""The runbook's commands: each is a real command with real options, and asks for metrics that there are.

tests/integration/operate/test_dashboards.py runs those that change nothing against running processes.
"""

from __future__ import annotations

import re
import subprocess

import click
import pytest

from paywarden.ops.cli import cli
from paywarden.ops.reference.metrics import families
from tests.worlds.operate.runbook import Command, commands

COMMANDS = list(commands())
_ENDINGS = {"histogram": ("_bucket", "_sum", "_count")}


def shown() -> str:
    """The names of all series, a line each, as a page of metrics has them."""
    return "".join(
        f"{name}{ending}{{}} 0\n"
        for those in families().values()
        for name, kind, _, _ in those
        for ending in _ENDINGS.get(kind, ("",))
    ) + "".join(
        f'paywarden_flags_total{{flag="{flag}"}} 0\n'
        for flag in ("mirror_absent", "profile_unreadable", "card_not_held")
    )


def check(words: list[str]) -> None:
    """Raises click.UsageError if the command line does not take these words. Nothing is run, and no file is opened."""
    command: click.Command = cli
    # click keeps a command's help option as the first context wants it.
    context = click.Context(cli, info_name="paywarden", **cli.context_settings)
    while True:
        parser = command.make_parser(context)
        options, rest, _ = parser.parse_args(list(words))
        assert options is not None
        if not isinstance(command, click.Group) or not rest:
            break
        name, below, words = command.resolve_command(context, rest)
        assert below is not None
        context, command = click.Context(below, info_name=name, parent=context), below
    if not isinstance(command, click.Group) and rest:
        raise click.UsageError(f"too many words: {rest}")
    for parameter in command.params:
        if parameter.required and isinstance(parameter, click.Argument) and not options.get(str(parameter.name)):
            raise click.UsageError(f"{parameter.name} is missing")


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c.program == "paywarden"], ids=lambda c: f"{c.page}: {c.text}"
)
def test_the_command_and_its_options_exist(command: Command) -> None:
    check(command.words[1:])


def test_each_curl_asks_a_path_that_there_is_and_greps_for_metrics_that_there_are() -> None:
    series = shown()
    for command in COMMANDS:
        if command.program == "curl":
            assert re.fullmatch(r"\$(SERVE|COMPANION|STREAM|SHADOW|ADMIN)/(livez|readyz|metrics)", command.words[-1]), (
                command
            )
            _, pipe, rest = command.text.partition(" | ")
            if pipe:
                assert rest.startswith("grep "), command
                done = subprocess.run(["bash", "-c", rest], input=series, capture_output=True, text=True, timeout=30)
                assert done.returncode == 0, command


def test_pages_in_prose_name_commands_that_exist() -> None:
    """Commands between backticks, outside of the blocks: `paywarden admin store verify`."""
    from tests.worlds.operate.runbook import PAGES

    for page in PAGES.glob("*.md"):
        for text in re.findall(r"`paywarden ([a-z][^`…]*)`", page.read_text(encoding="utf-8")):
            words = text.split()
            command: click.Command | None = cli
            while words and isinstance(command, click.Group):
                command = command.commands.get(words.pop(0))
                assert command is not None, f"{page.name}: paywarden {text}"
            for option in (word for word in words if word.startswith("--")):
                assert command is not None
                names = {name for parameter in command.params for name in parameter.opts}
                assert option in names, f"{page.name}: paywarden {text}"
