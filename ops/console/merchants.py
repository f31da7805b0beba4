"""The pages about merchants: episodes of enumeration, and the month's ratios that card schemes watch, also as CSV."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from paywarden.ops.console.decisions.index_connection import OpenedIndex
from paywarden.ops.console.exports import csv_of, export_of
from paywarden.ops.console.page_rows import Field, Page, PageRefused, Section, Sent, Shown, Visit
from paywarden.streams.decision_index.episodes import Episode, episodes
from paywarden.streams.decision_index.ledger import MerchantMonth, month_of_merchants, months

PATH = "/merchants"
_MONTH = Field("month", "A month (UTC), as in 2026-12; the newest one without it", chars_max=7)
_SHOWN_MAX, _CSV_MAX = 200, 1_000_000
_EPISODE_DAYS, _EPISODES_MAX = 30, 200
_DAY_MS = 86_400_000


class Merchants:
    """The section `Merchants`."""

    def __init__(self, opened: OpenedIndex) -> None:
        self._opened = opened

    def section(self) -> Section:
        """Return the section."""
        episodes_page = Page(f"{PATH}/episodes", self.show_episodes, "Episodes of enumeration, the newest first")
        pages = (
            Page(PATH, self.show, "The ratios of merchants in a month, the worst first", fields=(_MONTH,)),
            Page(f"{PATH}/csv", self.send, "All merchants of a month as CSV", fields=(_MONTH,)),
            episodes_page,
            export_of(episodes_page, "episodes"),
        )
        return Section("merchants", "Merchants", PATH, pages)

    def show(self, visit: Visit) -> Shown:
        """Show a month."""
        month, known, rows = self._month(visit, _SHOWN_MAX + 1)
        view = {
            "month": month,
            "months": known,
            "merchants": [_merchant(row) for row in rows[:_SHOWN_MAX]],
            "is_all": len(rows) <= _SHOWN_MAX,
            "state": self._opened.state_line,
        }
        return Shown("merchants/ledger.html", view, f"Merchants {month}".strip())

    def send(self, visit: Visit) -> Sent:
        """Send a month as CSV."""
        month, _, rows = self._month(visit, _CSV_MAX)
        visit.did("exported", f"merchants:{month}")
        return Sent(csv_of(*_table(rows)), "text/csv; charset=utf-8", f"merchants-{month}.csv")

    def show_episodes(self, visit: Visit) -> Shown:
        """Show the episodes of the last weeks."""
        with self._opened.used() as (index, _):
            since_ms, count = visit.now_ms - _EPISODE_DAYS * _DAY_MS, visit.rows_max or _EPISODES_MAX
            found = episodes(index.database, since_ms=since_ms, count=count + 1)
        if any(one.entity != one.merchant_id for one in found):
            visit.saw("episodes")
        view = {
            "episodes": [_episode(one, visit) for one in found[:count]],
            "is_all": len(found) <= count,
            "days": _EPISODE_DAYS,
            "csv_path": visit.csv_address(f"{PATH}/episodes", {}),
            "state": self._opened.state_line,
        }
        return Shown("merchants/episodes.html", view, "Episodes of enumeration")

    def _month(self, visit: Visit, count: int) -> tuple[str, list[str], list[MerchantMonth]]:
        """Return the month that is asked for, all months, and the month's merchants."""
        with self._opened.used() as (index, _):
            known = months(index.database)
            month = visit.text("month") or (known[0] if known else _month_at(visit.now_ms))
            if visit.text("month") and month not in known:
                raise PageRefused(404, "month: the ledger does not have it; wanted one such as 2026-12.")
            return month, known, month_of_merchants(index.database, month, count) if known else []


def _table(rows: list[MerchantMonth]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return merchants as rows of a file, and its columns."""
    ratios = ("fraud_ratio", "enumeration_ratio")
    table = [
        asdict(row) | {name: "" if (ratio := getattr(row, name)) is None else f"{ratio:.6f}" for name in ratios}
        for row in rows
    ]
    return table, [*MerchantMonth.__dataclass_fields__, *ratios]


def _merchant(row: MerchantMonth) -> dict[str, Any]:
    return asdict(row) | {"fraud_ratio": row.fraud_ratio, "enumeration_ratio": row.enumeration_ratio}


def _episode(one: Episode, visit: Visit) -> dict[str, Any]:
    # Merchants are no secret; devices and networks are.
    entity = one.entity if one.entity == one.merchant_id else visit.masked(one.entity)
    return asdict(one) | {"entity": entity, "is_over": one.is_over(visit.now_ms)}


def _month_at(now_ms: int) -> str:
    return datetime.fromtimestamp(now_ms / 1000, UTC).strftime("%Y-%m")
