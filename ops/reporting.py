"""Prints the result of a command: lines for people, a JSON file for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click


def report(result: dict[str, Any], json_file: str | None) -> None:
    """Print the result, and write it to `json_file` if one is named. Raises ClickException if that fails."""
    width = max(map(len, result))
    for name, value in result.items():
        click.echo(f"{name:<{width}}  {value:.3f}" if isinstance(value, float) else f"{name:<{width}}  {value}")
    write_json(result, json_file)


def write_json(result: dict[str, Any], json_file: str | None) -> None:
    """Write the result to `json_file` if one is named. Raises ClickException if that fails."""
    if json_file:
        try:
            Path(json_file).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise click.ClickException(f"cannot write {json_file}: {error.strerror}") from error


def printable(text: str) -> str:
    """Returns the text without control characters, which could move a terminal's cursor."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def print_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 0, err: bool = False
) -> None:
    """Print a table. The first `text_columns` are aligned left, the others right. `err` prints to stderr."""
    widths = [max(len(row[place]) for row in [headings, *rows]) for place in range(len(headings))]
    for row in [headings, *rows]:
        cells = [
            cell.ljust(width) if place < text_columns else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  " + "  ".join(cells).rstrip(), err=err)
