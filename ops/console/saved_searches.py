"""A person keeps searches under a name, and a section may open with one of them.

    Inbox   [mine, unseen]   ?assigned=me&seen=no      opens first: the entry of the navigation leads there

Only what may stand in an address is kept: no card, no device, no free text (searches.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode

from paywarden.ops.console.database import ConsoleDatabase
from paywarden.ops.console.page_rows import Done, Field, Page, PageRefused, Section, Visit, not_found
from paywarden.ops.console.searches import SEARCH_FIELD

TABLES = (
    "CREATE TABLE IF NOT EXISTS saved_searches (person TEXT NOT NULL, path TEXT NOT NULL, title TEXT NOT NULL, "
    "query TEXT NOT NULL, opens_first INTEGER NOT NULL, PRIMARY KEY (person, path, title))",
)
_SEARCHES_MAX = 20
# They say where in a list the person is, or name fields that the console forgets.
_PASSING = frozenset({"page", "after", "item", SEARCH_FIELD})
_TITLE = Field("called", "The name of the search", is_required=True, chars_max=40)
_PATH = Field("path", "The page of the search, such as /inbox", is_required=True)
_FIELDS = (
    *(_PATH, _TITLE, Field("query", "The address of the search after its ?", chars_max=2_000)),
    Field("opens_first", "Whether the section opens with it", choices=("yes",)),
)


@dataclass(frozen=True)
class SavedSearch:
    """A search of a person. `opens_first`: the navigation leads to it."""

    path: str
    title: str
    query: str
    opens_first: bool

    @property
    def address(self) -> str:
        """The address of the page with this search."""
        return f"{self.path}?{self.query}" if self.query else self.path


class SavedSearches:
    """The saved searches of all people. Thread-safe. Raises DatabaseUnavailable."""

    def __init__(self, database: ConsoleDatabase) -> None:
        self._database = database

    def section(self, paths: frozenset[str]) -> Section:
        """Return the section without an entry in the navigation. `paths`: the pages whose searches can be kept."""

        def save(visit: Visit) -> Done:
            path, title = visit.text("path"), visit.text("called")
            if path not in paths:
                raise not_found("page with such searches")
            query = urlencode([pair for pair in parse_qsl(visit.text("query")) if pair[0] not in _PASSING])
            search = SavedSearch(path, title, query, "opens_first" in visit.values)
            self._save(visit.person.name, search)
            visit.did("saved_search", f"page:{path}", title=title)
            return Done(search.address, f"The search {title} is saved.")

        def remove(visit: Visit) -> Done:
            path, title = visit.text("path"), visit.text("called")
            with self._database.write() as connection:
                values = visit.person.name, path, title
                where = "person = ? AND path = ? AND title = ?"
                if not connection.execute(f"DELETE FROM saved_searches WHERE {where}", values).rowcount:
                    raise not_found("search of this name")
            visit.did("removed_search", f"page:{path}", title=title)
            return Done(path, f"The search {title} is removed.")

        pages = (
            Page("/searches/save", save, "Keep a search of yours", "POST", fields=_FIELDS),
            Page("/searches/remove", remove, "Remove a search of yours", "POST", fields=(_PATH, _TITLE)),
        )
        return Section("searches", "", "/searches", pages)

    def of(self, person: str) -> list[SavedSearch]:
        """Return the searches of a person, by page and name."""
        rows = self._database.read(
            "SELECT path, title, query, opens_first FROM saved_searches WHERE person = ? ORDER BY path, title",
            (person,),
        )
        return [SavedSearch(path, title, query, bool(first)) for path, title, query, first in rows]

    def _save(self, person: str, search: SavedSearch) -> None:
        with self._database.write() as connection:
            mine = person, search.path
            if search.opens_first:
                connection.execute("UPDATE saved_searches SET opens_first = 0 WHERE person = ? AND path = ?", mine)
            connection.execute(
                "INSERT OR REPLACE INTO saved_searches VALUES (?, ?, ?, ?, ?)",
                (*mine, search.title, search.query, search.opens_first),
            )
            counted = connection.execute("SELECT count(*) FROM saved_searches WHERE person = ? AND path = ?", mine)
            if counted.fetchone()[0] > _SEARCHES_MAX:
                raise PageRefused(409, f"You have {_SEARCHES_MAX} searches of this page: remove one first.")
