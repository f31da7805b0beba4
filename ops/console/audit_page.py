"""The page of the audit log, and the head of the log on the topic console-events."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from functools import partial

from paywarden.ops.console.audit_log import AuditHead, AuditLog
from paywarden.ops.console.exports import export_of
from paywarden.ops.console.page_rows import Field, Missing, Page, Section, Shown, Visit
from paywarden.ops.console.people import Role
from paywarden.ops.times import now_ms
from paywarden.schemas.errors import Misconfigured, TemporaryFailure
from paywarden.streams.alerts.alert_events import ConsoleEvent

_log = logging.getLogger(__name__)

AUDIT_SUBJECT, HEAD = "audit", "head"
_EVERY_S, _RETRY_S = 3600.0, 10.0
_ROLES = frozenset({Role.AUDITOR})
# An entry has some 400 bytes: the page reads this many in a tenth of a second.
_COUNT, _COUNT_MAX = 100, 10_000
_SHOWN_MAX = 500
_EFFECT = "Nothing can be done, and no sensitive field be shown, until it can be written."
_FIELDS = (
    Field("by", "Only acts of this person"),
    Field("act", "Only this act, such as viewed or logged_in"),
    Field("subject", "Only about this, such as payment:p1, case:5f0c or console"),
    Field("count", "How many of the newest entries to look at", kind="whole", low=1, high=_COUNT_MAX),
)


def audit_section(log: AuditLog, publish: Callable[[ConsoleEvent], object]) -> Section:
    """Return the section `Audit`. `publish` puts the log's head on the topic, each hour in which it has changed."""

    def missing() -> list[Missing]:
        return [] if log.trouble is None else [Missing("The audit log", *log.trouble, _EFFECT)]

    page = Page("/audit", partial(_show, log), "The newest entries of the audit log", roles=_ROLES, fields=_FIELDS)
    work = partial(_publish_heads, log, publish)
    return Section(
        "audit", "Audit", "/audit", (page, export_of(page, "entries")), _ROLES, background=(work,), missing=missing
    )


def _show(log: AuditLog, visit: Visit) -> Shown:
    """Show the newest entries, or those among the newest that meet the filters."""
    visit.saw("audit_log")
    asked = {name: text for name, text in visit.texts().items() if name != "count"}
    if "act" in asked:
        # The page shows it with spaces.
        asked["act"] = asked["act"].replace(" ", "_")
    entries = log.newest(visit.whole("count", _COUNT_MAX if asked else _COUNT))
    found = [one for one in entries if all(getattr(one, name) == text for name, text in asked.items())]
    head = log.head
    view = {
        "entries": found[: visit.rows_max or _SHOWN_MAX],
        "found": len(found),
        "looked_at": len(entries),
        "asked": asked,
        "csv_path": visit.csv_address("/audit", visit.texts()),
        "head_number": head.number,
        "head_digest": head.digest,
    }
    return Shown("audit.html", view, "Audit log")


def _publish_heads(log: AuditLog, publish: Callable[[ConsoleEvent], object], stop: threading.Event) -> None:
    published = AuditHead()
    while not stop.is_set():
        try:
            published = publish_head(log, publish, published, now_ms())
        except (TemporaryFailure, Misconfigured) as error:
            _log.warning("the head of the audit log is not on the topic: %s", error)
            stop.wait(_RETRY_S)
        else:
            stop.wait(_EVERY_S)


def publish_head(
    log: AuditLog, publish: Callable[[ConsoleEvent], object], published: AuditHead, at_ms: int
) -> AuditHead:
    """Publish the head of a log if it is another than `published`; return it. Raises BrokerUnavailable."""
    head = log.head
    if head.number and head != published:
        what = {"log": log.name, "number": str(head.number), "digest": head.digest}
        publish(ConsoleEvent(AUDIT_SUBJECT, HEAD, "console", at_ms, what))
    return head


def published_heads(events: Iterable[ConsoleEvent], name: str) -> list[AuditHead]:
    """Return the heads of the log of this name among events."""
    return [
        AuditHead(int(number), event.what.get("digest", ""))
        for event in events
        if event.subject == AUDIT_SUBJECT and event.kind == HEAD and event.what.get("log") == name
        # Everyone who may write to the topic may write a wrong head.
        if (number := event.what.get("number", "")).isascii() and number.isdigit()
    ]
