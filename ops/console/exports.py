"""Send the rows of any list as CSV: for spreadsheets, so no text of others may become a formula there."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from paywarden.ops.console.page_rows import EXPORT_ROLES, Page, Sent, Shown, Visit
from paywarden.ops.console.reasons import Reason
from paywarden.ops.console.rendering import NO_CURRENCIES, as_json, time_text
from paywarden.ops.spreadsheets import without_formula

EXPORT_ROWS_MAX = 5_000
"""A file has no more rows: some megabytes, and seconds of the index."""


def export_of(page: Page, rows: str) -> Page:
    """Return the page that sends the list of a page, with the same filters and masks. `rows`: its name in the view."""
    name = page.path.strip("/").replace("/", "-")

    def send(visit: Visit) -> Sent:
        shown = page.handler(replace(visit, rows_max=EXPORT_ROWS_MAX))
        assert isinstance(shown, Shown)
        found = [_flat(row) for row in shown.view[rows]]
        personal = page.personal
        asked = {key: visit.audit.blinded(text) if key in personal else text for key, text in visit.texts().items()}
        visit.did("exported", name, **asked, rows=str(len(found)))
        return Sent(csv_of(found), "text/csv; charset=utf-8", f"{name}.csv")

    meaning = f"{page.meaning}, as CSV: at most {EXPORT_ROWS_MAX} rows"
    return Page(f"{page.path}/csv", send, meaning, roles=page.roles & EXPORT_ROLES, fields=page.fields)


def csv_of(rows: Sequence[Mapping[str, Any]], names: Iterable[str] = ()) -> bytes:
    """Return rows as CSV, with `names` or all names as columns. A text that looks like a formula gets an apostrophe."""
    columns = list(names) or list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(without_formula(name) for name in columns)
    writer.writerows([without_formula(row.get(name, "")) for name in columns] for row in rows)
    return text.getvalue().encode()


def _flat(row: Any) -> dict[str, Any]:
    """Return a row of a view with one text or number for each column; times as in ISO 8601."""
    fields = row if isinstance(row, Mapping) else as_json(row)
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            flat |= {key: part for key, part in _flat(value).items() if key not in fields}
        elif name.endswith("_ms") and isinstance(value, int):
            flat[f"{name.removesuffix('_ms')}_utc"] = time_text(value, "%Y-%m-%dT%H:%M:%SZ") if value else ""
        else:
            flat[name] = _cell(value)
    return flat


def _cell(value: Any) -> Any:
    if isinstance(value, Reason):
        return NO_CURRENCIES.reason(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "; ".join(str(_cell(part)) for part in value)
    plain = as_json(value)
    return json.dumps(plain) if isinstance(plain, dict) else "" if plain is None else plain
