"""Render a report's blocks as HTML, with the templates in models/replay/report/templates.

Templates escape every value. A name that a template uses and does not get raises an error instead of an empty place.
The same blocks give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from paywarden.models.replay.report.page import PageBlock


def render_page(*, title: str, heading: str, blocks: Sequence[PageBlock]) -> str:
    """Returns the whole file as text."""
    return _environment().get_template("report.html").render(title=title, heading=heading, blocks=blocks)


def render_block(block: PageBlock) -> str:
    """Returns the HTML of one block."""
    module: Any = _environment().get_template("blocks.html").module
    return str(module.render(block))


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
