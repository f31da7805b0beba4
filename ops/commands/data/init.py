"""`paywarden init`: a project of one's own, in a folder outside the package."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import click

from paywarden.schemas.errors import Misconfigured

# Files that others cannot change: they are code, or say which code runs.
_FILE_MODE, _FOLDER_MODE = 0o644, 0o755
_SUFFIX = ".in"


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False))
@click.option("--minimal", is_flag=True, help="No example: the packaged features, no fields of your own, no rules.")
def init(folder: str, minimal: bool) -> None:
    """Make a project in DIR: fields, features, policy, tests.

    DIR must be new or empty. The files are an example that works, of a shop: change payment.py to the fields of your
    payments and catalogue.py to the features that you want. README.md in it has the next commands.
    """
    made = make_project(Path(folder), "project_minimal" if minimal else "project")
    click.echo("\n".join(made))
    click.echo(f"\nnext: cd {folder} && paywarden features --check")


def make_project(folder: Path, example: str = "project") -> list[str]:
    """Write a project; returns its files, by path below the folder. Raises Misconfigured if the folder has any."""
    contents = dict(_contents(files("paywarden.ops") / example))
    try:
        if folder.exists() and any(folder.iterdir()):
            raise Misconfigured(f"{folder} is not empty; wanted a new folder or an empty one")
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            path = folder / name
            if not path.parent.exists():
                path.parent.mkdir(mode=_FOLDER_MODE)
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
            path.chmod(_FILE_MODE)
    except OSError as error:
        raise Misconfigured(f"cannot make a project in {folder}: {error.strerror}") from error
    return sorted(contents)


def _contents(folder: Traversable, below: str = "") -> Iterator[tuple[str, str]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _contents(entry, f"{below}{entry.name}/")
        elif entry.name.endswith(_SUFFIX):
            yield below + entry.name.removesuffix(_SUFFIX), entry.read_text(encoding="utf-8")
