"""The pages of evidence for regulators and card schemes: packs that people made, their figures, and their files.

    FOLDER/2026-01-01_2026-03-31_5f0c21/pack/     what `paywarden evidence` writes (ops/evidence), with its signature
                                        made.json who made it, when, and of which days: the pack has no time of its own
    FOLDER/.making/                               the pack that is being made

A pack is made in a process of its own, one at a time: pages go on meanwhile. A pack that is whole is never changed. The
audit log has the digest of its checksums, so that an exchanged pack can be found out even without a signature.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
import threading
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from paywarden.models.bundle.bundle import sha256_of
from paywarden.models.bundle.signature import read_private_key
from paywarden.ops.console.audit_log import Audit
from paywarden.ops.console.background import Job, Jobs
from paywarden.ops.console.page_rows import (
    EXPORT_ROLES,
    Done,
    Field,
    Page,
    PageRefused,
    Section,
    Sent,
    Shown,
    Visit,
    not_found,
)
from paywarden.ops.console.people import Role
from paywarden.ops.console.rendering import time_text
from paywarden.ops.evidence.evidence_files import EVIDENCE, SIGNATURE, SUMS, EvidenceAsked, files_of, is_signed
from paywarden.ops.evidence.evidence_run import EvidenceProcess
from paywarden.ops.evidence.queries import QUERIES
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import read_regular
from paywarden.schemas.private_files import make_private_folder
from paywarden.schemas.settings import Source

PATH = "/evidence"
MAKERS = frozenset({Role.LEAD, Role.AUDITOR})
_NAME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}_[0-9]{4}-[0-9]{2}-[0-9]{2}_[0-9a-f]{6}", re.ASCII)
_SHOWN_MAX = 100
_DAY_MS = 86_400_000
_LOOK_S = 0.5
_KEPT = ("by", "from_ms", "to_ms", "known_to_ms", "remote", "exempted")
_FIELDS = (
    Field("first_day", "The first day (UTC), such as 2026-01-01", kind="time", is_required=True),
    Field("last_day", "The last day (UTC), such as 2026-03-31", kind="time", is_required=True),
    Field("known_to", "Only outcomes that arrived before this time", kind="time"),
    Field("remote", "Channels of remote payments, with commas between"),
    Field("exempted", "COLUMN=VALUE of payments exempted from strong authentication"),
)


@dataclass(frozen=True, kw_only=True)
class Making(Job):
    """A pack that somebody wants. `remote` and `exempted`: as they were written."""

    name: str
    from_ms: int
    to_ms: int
    known_to_ms: int | None
    remote: str
    exempted: str

    @property
    def days(self) -> str:
        """The first and the last day."""
        return _days(self.from_ms, self.to_ms)


class Packs(Jobs[Making]):
    """The packs in a folder, and those that are being made."""

    def __init__(self, source: Source, archive: Path, folder: Path, key_file: Path | None, audit: Audit) -> None:
        super().__init__("packs of evidence")
        self._source, self._archive, self._folder, self._audit = source, archive, folder, audit
        self._key_file = key_file

    def make(self, visit: Visit) -> Making:
        """Have a pack made. Raises Misconfigured, TemporaryFailure if too many wait."""
        from_ms, last_ms = visit.time_ms("first_day"), visit.time_ms("last_day")
        assert from_ms is not None
        assert last_ms is not None
        to_ms = last_ms + _DAY_MS
        job = Making(
            by=visit.person.name,
            asked_ms=visit.now_ms,
            name=f"{_days(from_ms, to_ms).replace(' to ', '_')}_{secrets.token_hex(3)}",
            from_ms=from_ms,
            to_ms=to_ms,
            known_to_ms=visit.time_ms("known_to"),
            remote=visit.text("remote", "ecom"),
            exempted=visit.text("exempted"),
        )
        self._asked(job)
        return self._add(job.name, job)

    def _asked(self, job: Making) -> EvidenceAsked:
        return EvidenceAsked.of(self._archive, job.from_ms, job.to_ms, job.known_to_ms, job.remote, job.exempted)

    def _run(self, job_id: str, job: Making, now_ms: int, stop: threading.Event) -> Mapping[str, Any] | None:
        making = self._folder / ".making"
        # A console that was killed has left its own.
        shutil.rmtree(making, ignore_errors=True)
        try:
            make_private_folder(making)
            with closing(EvidenceProcess(self._source, self._asked(job), making / "pack", self._key_file)) as process:
                while not process.is_done(_LOOK_S):
                    if stop.is_set() or not self._change(job_id):
                        return None
            made = {name: getattr(job, name) for name in _KEPT}
            (making / "made.json").write_text(json.dumps({**made, "made_ms": now_ms}), encoding="utf-8")
            self._audit.record(job.by, "made", f"evidence:{job_id}", {"digest": _digest(making)}, now_ms)
            making.rename(self._folder / job_id)
        except OSError as error:
            raise Misconfigured(f"the pack cannot be written below {self._folder}: {error.strerror}") from error
        finally:
            shutil.rmtree(making, ignore_errors=True)
        return {}

    def folder_of(self, name: str) -> Path:
        """Return the folder of a pack. Raises PageRefused if there is none."""
        folder = self._folder / name
        if not _NAME.fullmatch(name) or not folder.is_dir():
            raise not_found("pack of this name")
        return folder

    def made(self) -> list[dict[str, Any]]:
        """Return the packs, the newest first."""
        found = []
        for folder in self._folder.glob("*_*_*"):
            # A folder of another origin is no pack.
            with suppress(OSError, ValueError, KeyError):
                found.append(self.about(folder))
        return sorted(found, key=lambda one: (-one["made_ms"], one["name"]))[:_SHOWN_MAX]

    def about(self, folder: Path) -> dict[str, Any]:
        """Return who made a pack, when and of which days, and whether its signature is right."""
        made = json.loads(read_regular(folder / "made.json"))
        return {
            "name": folder.name,
            **made,
            "days": _days(made["from_ms"], made["to_ms"]),
            "digest": _digest(folder),
            "signature": self._signature(folder / "pack"),
        }

    def _signature(self, pack: Path) -> str:
        if not (pack / SIGNATURE).exists():
            return "none"
        if self._key_file is None:
            return "unchecked"
        try:
            key = read_private_key(self._key_file).public_key()
        except Misconfigured:
            return "unchecked"
        return "right" if is_signed(pack, key) else "wrong"


class EvidencePages:
    """The section `Evidence`."""

    def __init__(self, packs: Packs) -> None:
        self._packs = packs

    def section(self) -> Section:
        """Return the section."""
        one = f"{PATH}/packs/{{name}}"
        pages = (
            Page(PATH, self.show_all, "Packs of evidence, the newest first", roles=EXPORT_ROLES),
            Page(f"{PATH}/version", self.show_version, "A text that changes with the packs", roles=EXPORT_ROLES),
            Page(f"{PATH}/make", self.make, "Have a pack made", "POST", MAKERS, _FIELDS),
            Page(f"{PATH}/makings/{{name}}/cancel", self.cancel, "Do not make a pack", "POST", MAKERS),
            Page(one, self.show, "The figures of a pack", roles=EXPORT_ROLES),
            Page(f"{one}/files/{{file}}", self.send, "A file of a pack", roles=EXPORT_ROLES),
        )
        return Section("evidence", "Evidence", PATH, pages, EXPORT_ROLES, background=(self._packs.work,))

    def show_all(self, visit: Visit) -> Shown:
        """Show the packs, those that are being made, and the form for another one."""
        packs = self._packs.made()
        last = packs[0] if packs else {"remote": "ecom", "exempted": ""}
        first_ms, to_ms = _quarter_before(visit.now_ms)
        view = {
            "packs": packs,
            "makings": [asdict(one) | {"days": one.days, "is_over": one.is_over} for one in self._packs.all()],
            "version": self._version(),
            "may_make": visit.person.may(MAKERS),
            "first_day": time_text(first_ms, "%Y-%m-%d"),
            "last_day": time_text(to_ms - 1, "%Y-%m-%d"),
            **{name: last[name] for name in ("remote", "exempted")},
        }
        return Shown("evidence/packs.html", view, "Evidence")

    def show_version(self, _: Visit) -> Shown:
        """Say whether something has changed."""
        return Shown("", {"version": self._version()}, "Version")

    def _version(self) -> str:
        return " ".join(f"{one.name}:{one.state}" for one in self._packs.all())

    def make(self, visit: Visit) -> Done:
        """Have a pack made."""
        try:
            made = self._packs.make(visit)
        except Misconfigured as error:
            raise PageRefused(400, f"{error}.") from error
        visit.did("asked_for", f"evidence:{made.name}", **visit.texts())
        return Done(PATH, f"The evidence of {made.days} is being made.", {"name": made.name})

    def cancel(self, visit: Visit) -> Done:
        """End the making of a pack."""
        name = visit.path["name"]
        if not self._packs.cancel(name):
            raise PageRefused(409, "The pack is made already, or nobody wants it any more.")
        visit.did("cancelled", f"evidence:{name}")
        return Done(PATH, "The pack is not made.")

    def show(self, visit: Visit) -> Shown:
        """Show a pack: its figures, and whether its files are as they were made."""
        folder = self._packs.folder_of(visit.path["name"])
        pack = folder / "pack"
        visit.saw(f"evidence:{folder.name}")
        sums = files_of(pack)
        content = json.loads(read_regular(pack / EVIDENCE, None))
        figures, registry = content.pop("figures"), content["registry"]
        if registry:
            content["registry"] = {"columns": list(registry[0]), "rows": [list(one.values()) for one in registry]}
        view = {
            **self._packs.about(folder),
            **content,
            "tables": [query._asdict() | figures[query.name] for query in QUERIES if query.name in figures],
            "files": [*sums, SUMS, *([SIGNATURE] if (pack / SIGNATURE).exists() else [])],
            "changed": [name for name, digest in sums.items() if _digest_of(pack / name) != digest],
        }
        return Shown("evidence/pack.html", view, f"Evidence of {view['days']}")

    def send(self, visit: Visit) -> Sent:
        """Send a file of a pack, checked against its checksum."""
        folder, name = self._packs.folder_of(visit.path["name"]), visit.path["file"]
        pack = folder / "pack"
        sums = files_of(pack)
        if name not in {*sums, SUMS, SIGNATURE}:
            raise not_found("file of this name in the pack")
        try:
            content = read_regular(pack / name, None)
        except OSError as error:
            raise not_found("such file any more") from error
        if name in sums and hashlib.sha256(content).hexdigest() != sums[name]:
            raise PageRefused(409, "The file was changed since the pack was made.")
        visit.did("exported", f"evidence:{folder.name}", file=name)
        return Sent(content, file_name=name)


def _digest(folder: Path) -> str:
    """Return the digest of a pack: that of its checksums."""
    return hashlib.sha256(read_regular(folder / "pack" / SUMS)).hexdigest()


def _digest_of(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError:
        return ""


def _days(from_ms: int, to_ms: int) -> str:
    return f"{time_text(from_ms, '%Y-%m-%d')} to {time_text(to_ms - 1, '%Y-%m-%d')}"


def _quarter_before(now_ms: int) -> tuple[int, int]:
    """Return the last whole quarter before a time."""
    now = datetime.fromtimestamp(now_ms / 1000, UTC)
    end = datetime(now.year, (now.month - 1) // 3 * 3 + 1, 1, tzinfo=UTC)
    begin = datetime(end.year - (end.month == 1), (end.month + 8) % 12 + 1, 1, tzinfo=UTC)
    return round(begin.timestamp() * 1000), round(end.timestamp() * 1000)
