"""The page of a person's own sessions: where they are logged in, and the way to end that."""

from __future__ import annotations

import time
from dataclasses import dataclass

from paywarden.ops.console.pages import Done, Field, Page, PageRefused, Section, Shown, Visit
from paywarden.ops.console.people.people import PASSWORD_CHARS_MAX
from paywarden.ops.console.shell import Shell

_WHICH = ("others", "all")
_FIELDS = (
    Field("which", "All sessions but this one, or all", is_required=True, choices=_WHICH),
    Field("password", "The password, for people who have one here", chars_max=PASSWORD_CHARS_MAX),
)


@dataclass(frozen=True)
class SessionRow:
    """A session. `source`: where the person was known. `is_this`: the session of this request."""

    begun_ms: int
    seen_ms: int
    source: str
    is_this: bool


@dataclass(frozen=True)
class SessionsView:
    """The sessions of a person that have not ended, the newest first."""

    sessions: tuple[SessionRow, ...]
    has_password: bool
    idle_minutes: int
    hours: int


class OwnSessions:
    """The section without an entry in the navigation: the person's name leads to it."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    def section(self) -> Section:
        """Returns the section."""
        pages = (
            Page("/sessions", self.show, "Where you are logged in", view=SessionsView),
            Page("/sessions/end", self.end, "End your other sessions, or all", "POST", fields=_FIELDS),
        )
        return Section("sessions", "", "/sessions", pages)

    def show(self, visit: Visit) -> Shown:
        """Show the person's sessions."""
        settings, name = self._shell.settings, visit.person.name
        rows = tuple(
            SessionRow(begun_ms, seen_ms, source, digest == visit.session)
            for digest, begun_ms, seen_ms, source in self._shell.sessions.of_person(name, visit.now_ms)
        )
        has_password = name in self._shell.people.hashes
        view = SessionsView(rows, has_password, settings.session_idle_minutes, settings.session_hours)
        return Shown("sessions.html", view, "Your sessions")

    def end(self, visit: Visit) -> Done:
        """End the person's other sessions, or all of them."""
        if not visit.session:
            raise PageRefused(409, "A token has no session.")
        if not self._knows_again(visit):
            visit.did("login_failed", "console", by="sessions")
            raise PageRefused(403, "The password is wrong, and nothing was done.")
        kept = visit.session if visit.text("which") == "others" else ""
        ended = self._shell.sessions.end_all(visit.person.name, but=kept)
        visit.did("ended_sessions", f"person:{visit.person.name}", count=str(ended))
        return Done("/sessions", f"Ended {ended} {'session' if ended == 1 else 'sessions'}.", {"ended": ended})

    def _knows_again(self, visit: Visit) -> bool:
        """Returns whether a person has typed their password again; True for people without one. Raises PageRefused."""
        name, people, limit = visit.person.name, self._shell.people, self._shell.failed_logins
        if name not in people.hashes:
            return True
        if wait_s := limit.take(f"again {name}", time.monotonic()):
            raise PageRefused(429, f"Too many failed logins. Try again in {max(1, round(wait_s / 60))} min.")
        if people.with_password(name, visit.text("password")) is None:
            return False
        limit.give_back(f"again {name}")
        return True
