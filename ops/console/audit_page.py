"""The page of the audit log: who has seen and done what."""

from __future__ import annotations

from dataclasses import dataclass

from paywarden.ops.console.audit import AuditEntry, AuditLog
from paywarden.ops.console.pages import Field, Page, Section, Shown, Visit
from paywarden.ops.console.people.people import Role

_ROLES = frozenset({Role.AUDITOR})
_COUNT, _COUNT_MAX = 100, 1000


@dataclass(frozen=True)
class AuditView:
    """The newest entries of the log, and its head, which somebody may note."""

    entries: tuple[AuditEntry, ...]
    head_number: int
    head_digest: str


def audit_section(log: AuditLog) -> Section:
    """Returns the section `Audit`."""

    def show(visit: Visit) -> Shown:
        visit.saw("audit_log")
        entries = log.newest(visit.whole("count", _COUNT))
        wanted = visit.text("by")
        found = tuple(entry for entry in entries if wanted in ("", entry.by))
        return Shown("audit.html", AuditView(found, log.head.number, log.head.digest), "Audit log")

    fields = (
        Field("by", "Only what this person did"),
        Field("count", "How many of the newest entries", kind="whole", low=1, high=_COUNT_MAX),
    )
    page = Page("/audit", show, "The newest entries of the audit log", roles=_ROLES, fields=fields, view=AuditView)
    return Section("audit", "Audit", "/audit", (page,), _ROLES)
