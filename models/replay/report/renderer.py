"""Render reports as HTML, with the templates in models/replay/report/templates.

Templates escape every value. A name that a template uses and does not get raises an error instead of an empty place.
The same results give the same bytes.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from paywarden.models.replay.report import page

_FORMS = ("whole", "decimal", "percent", "fixed_percent", "count_of", "money", "amount")


def render(template: str, **values: Any) -> str:
    """Return the whole file as text."""
    return report_templates().get_template(template).render(**values)


@cache
def report_templates() -> Environment:
    """Return the templates. How numbers are written (page.py) are filters, and functions of the same name."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    forms = {name: getattr(page, name) for name in _FORMS}
    made.filters.update(forms)
    made.globals.update(forms, str=str, past=page.PAST)
    return made
