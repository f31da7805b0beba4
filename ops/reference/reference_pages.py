"""Makes the reference pages from the code: `python -m paywarden.ops.reference` writes them, `--check` compares them.

    page          made from                                                  by
    data.md       schemas of topics, columns of files, fields of results     data.py
    commands.md   the tree of click commands                                 commands.py
    settings.md   sections and settings of ops/paywarden.toml                settings_page.py
    metrics.md    the metrics that each process declares                     metrics.py
    features.md   the catalogue of features                                  features/profiles/feature_docs.py

The same command writes the wanted values of each setting into ops/paywarden.toml (settings_page.py).

People write topics.md, errors.md and logs.md; tests/unit/ops/test_written_reference.py compares them with the code.

Each maker raises Undocumented where the code says nothing about a field, setting or metric.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from paywarden.features.catalogue.catalogue import CATALOGUE
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.feature_docs import listing_of
from paywarden.ops.reference.commands import commands_page
from paywarden.ops.reference.data import data_page
from paywarden.ops.reference.metrics import metrics_page
from paywarden.ops.reference.settings_page import EXAMPLE, example_text, settings_page

_CHECKOUT = Path(__file__).resolve().parents[2]
FOLDER = _CHECKOUT / "docs" / "reference"


def _features_page() -> str:
    return listing_of(CATALOGUE, FeatureEngine()).to_markdown() + "\n"


PAGES = {
    "commands.md": commands_page,
    "data.md": data_page,
    "features.md": _features_page,
    "metrics.md": metrics_page,
    "settings.md": settings_page,
}


def pages() -> dict[str, str]:
    """Returns every page by its file name in docs/reference."""
    return {name: make() for name, make in PAGES.items()}


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; fail if a page differs from the code.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=FOLDER,
    help="Folder of the pages.",
)
def main(check: bool, out: Path) -> None:
    """Make the reference pages from the code."""
    made = {out / name: text for name, text in pages().items()}
    made[EXAMPLE if out == FOLDER else out / EXAMPLE.name] = example_text()
    for path, text in made.items():
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            click.echo(f"{path} differs from the code: run `python -m paywarden.ops.reference`", err=True)
            sys.exit(1)
