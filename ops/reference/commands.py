"""The commands, from the tree of click commands: docs/reference/commands.md."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator
from functools import cache

import click

from paywarden.ops.cli import EXIT_STATUSES, SECTIONS, cli
from paywarden.ops.extras import extras_of
from paywarden.ops.reference.page import MADE_FROM_CODE, Undocumented, code, entry, prose

# What click calls the values of its types, and the page's shorter names.
_VALUES = {"INTEGER": "N", "INTEGER RANGE": "N", "FLOAT": "X", "FLOAT RANGE": "X"}


def commands_page() -> str:
    """Returns the page of every command with its arguments and options."""
    return "\n".join(
        [
            "# Commands\n",
            *prose(f"Every command, argument and option; `--help` says more of each. {MADE_FROM_CODE}"),
            *prose(
                "Options of `paywarden` itself stand before the command: `paywarden --config prod.toml stream`. In "
                "brackets stands the default. N is a whole number, X any number. An extra comes with `pip install "
                "'paywarden[EXTRA]'`. `python -m paywarden` is the same program."
            ),
            "## Exit statuses\n",
            *(f"- {status}: {text}" for status, text in EXIT_STATUSES.items()),
            "",
            *prose(
                "With status 1 or 2 the last line on stderr says what was wrong. Results go to stdout; logs, progress "
                "and warnings go to stderr."
            ),
            "## Shared options\n",
            *prose("Several commands have these options, and name them without a text."),
            *sorted(_shared()),
            "",
            *_parts(),
        ]
    )


def _parts() -> Iterator[str]:
    """Yield the options of `paywarden`, the commands of every day, and all others."""
    everyday, *others = SECTIONS.values()
    rest = tuple(name for section in others for name in section)
    yield from _command(cli, "paywarden")
    for title, names in (("Every day", everyday), ("Everything else", rest)):
        yield f"## {title}\n"
        for name in names:
            for command, path in _with_subcommands(cli.commands[name], f"paywarden {name}"):
                if not isinstance(command, click.Group):
                    yield from _command(command, path)


def _with_subcommands(command: click.Command, path: str) -> Iterator[tuple[click.Command, str]]:
    yield command, path
    if isinstance(command, click.Group):
        for name, subcommand in sorted(command.commands.items()):
            yield from _with_subcommands(subcommand, f"{path} {name}")


@cache
def _shared() -> frozenset[str]:
    """The entries of options that more than one command has, word for word: for each name the most frequent."""
    entries = Counter(
        _option(path, option)
        for command, path in _with_subcommands(cli, "paywarden")
        for option in command.params
        if isinstance(option, click.Option)
    )
    frequent = {entry.split("`")[1].split()[0]: entry for entry, count in reversed(entries.most_common()) if count > 1}
    return frozenset(frequent.values())


def _command(command: click.Command, path: str) -> Iterator[str]:
    if not command.help:
        raise Undocumented(f"command {path} has no help text")
    # click keeps a command's help option as the first context wants it.
    context = click.Context(command, info_name=path, **cli.context_settings)
    pieces = [] if command is cli else command.collect_usage_pieces(context)
    yield f"### {' '.join([path.removeprefix('paywarden '), *(piece for piece in pieces if piece != '[OPTIONS]')])}\n"
    text = inspect.cleandoc(command.help).partition("\n\n")[0].replace("\n", " ")
    extras = () if command.callback is None else extras_of(command.callback)
    yield from prose(f"{text} Extra: {code(','.join(extras))}." if extras else text)
    options = [option for option in command.params if isinstance(option, click.Option)]
    entries = {option: _option(path, option) for option in options}
    yield from (entry for entry in entries.values() if entry not in _shared())
    if shared := [code(option.opts[0]) for option, entry in entries.items() if entry in _shared()]:
        yield f"- {', '.join(shared)}"
    if options:
        yield ""


def _option(path: str, option: click.Option) -> str:
    if not option.help:
        raise Undocumented(f"option {option.opts[0]} of {path} has no help text")
    metavar = option.make_metavar(click.Context(cli, **cli.context_settings))
    value = "" if option.is_flag else f" {_VALUES.get(metavar, metavar)}"
    several = "several times" if option.multiple and "several times" not in option.help else ""
    return entry(", ".join(option.opts) + value, (_default(option), several), option.help)


def _default(option: click.Option) -> str:
    if option.required:
        return "required"
    if option.is_flag or option.multiple or option.default is None or option.default == "":
        return ""
    # Click has a value of its own for an option without a default.
    return "" if type(option.default).__name__ == "Sentinel" else code(str(option.default))
