"""The commands, from the tree of click commands: docs/reference/commands.md."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from paywarden.ops.cli import EXIT_STATUSES, SECTIONS, cli
from paywarden.ops.extras import extras_of
from paywarden.ops.reference.page import MADE_FROM_CODE, Undocumented, code, entry, prose, table


def commands_page() -> str:
    """Returns the page of every command with its arguments and options."""
    return "\n".join(
        [
            "# Commands\n",
            *prose(
                "Every command of `paywarden`, with its arguments, options and defaults; `--help` says more of each. "
                f"{MADE_FROM_CODE}"
            ),
            *prose(
                "`python -m paywarden` is the same program. Options of `paywarden` itself stand before the command: "
                "`paywarden --config prod.toml stream`. In brackets stands the default. An extra comes with "
                "`pip install 'paywarden[EXTRA]'`."
            ),
            "## Exit statuses\n",
            *table(("status", "meaning"), ((str(status), text) for status, text in EXIT_STATUSES.items())),
            *prose(
                "With status 1 or 2 the last line on stderr says what was wrong. Results go to stdout; logs, progress "
                "and warnings go to stderr."
            ),
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
            yield from _with_subcommands(cli.commands[name], f"paywarden {name}")


def _with_subcommands(command: click.Command, path: str) -> Iterator[str]:
    yield from _command(command, path)
    if isinstance(command, click.Group):
        for name, subcommand in sorted(command.commands.items()):
            yield from _with_subcommands(subcommand, f"{path} {name}")


def _command(command: click.Command, path: str) -> Iterator[str]:
    if not command.help:
        raise Undocumented(f"command {path} has no help text")
    yield f"### {path}\n"
    # click keeps a command's help option as the first context wants it.
    context = click.Context(command, info_name=path, **cli.context_settings)
    pieces = command.collect_usage_pieces(context)
    if pieces != ["[OPTIONS]"] and not isinstance(command, click.Group):
        yield f"    {path} {' '.join(pieces)}\n"
    yield from prose(inspect.cleandoc(command.help).partition("\n\n")[0].replace("\n", " "))
    extras = () if command.callback is None else extras_of(command.callback)
    if extras:
        yield from prose(f"Needs the extra {code(','.join(extras))}.")
    options = [option for option in command.params if isinstance(option, click.Option)]
    if options:
        yield from (*(_option(path, option, context) for option in options), "")


def _option(path: str, option: click.Option, context: click.Context) -> str:
    if not option.help:
        raise Undocumented(f"option {option.opts[0]} of {path} has no help text")
    value = "" if option.is_flag else f" {option.make_metavar(context)}"
    several = "several times" if option.multiple and "several times" not in option.help else ""
    return entry(", ".join(option.opts) + value, (_default(option), several), option.help)


def _default(option: click.Option) -> str:
    if option.required:
        return "required"
    if option.is_flag or option.multiple or option.default is None or option.default == "":
        return ""
    # Click has a value of its own for an option without a default.
    return "" if type(option.default).__name__ == "Sentinel" else code(str(option.default))
