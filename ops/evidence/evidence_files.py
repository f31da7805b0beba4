"""Make the evidence of a span of days from an archive.

1. open     check that the archive has no gap, and make views of its files in a database beside the output
2. ask      each query of ops/evidence/queries.py
3. write    evidence.json and evidence.html (figures and queries), a CSV of each table, papers; SHA256SUMS last
4. sign     SHA256SUMS.sig: an Ed25519 signature of SHA256SUMS

    openssl pkeyutl -verify -pubin -inkey release.pub.pem -rawin -in SHA256SUMS -sigfile SHA256SUMS.sig
    sha256sum --check SHA256SUMS

The same archive and the same options give the same bytes. Outcomes that come later change figures: `known_to_ms` leaves
them out, and then a grown archive gives the same bytes as well. Money is in minor units of the reference currency.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow.parquet as pq
from cryptography.exceptions import InvalidSignature

from paywarden.features.profiles.money import RateTable
from paywarden.models.bundle.signature import read_private_key
from paywarden.models.replay.report.renderer import render
from paywarden.ops.evidence.queries import ALERTS, MERCHANTS, PREPARED, QUERIES, REVIEWS, Query
from paywarden.ops.spreadsheets import without_formula
from paywarden.ops.times import spoken
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.file_state import read_regular
from paywarden.streams.archive.files import ArchiveFile, Opener, check_joined, read_parts, topic_folder
from paywarden.streams.decision_index.episodes import EpisodeFeatures

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from paywarden.models.registry.entries import Entry

EVIDENCE, SUMS, SIGNATURE = "evidence.json", "SHA256SUMS", "SHA256SUMS.sig"
_NEEDED = ("payments", "outcomes", "decisions")
_OPTIONAL = {"verdicts": REVIEWS, "drift-alerts": ALERTS, "drift-acknowledgements": ALERTS}
# The reports show this many merchants; merchants.csv has all.
_MERCHANTS_SHOWN = 50
_MEMORY = "2GB"
_ALWAYS_MS = 2**62
_COLUMN = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True)
class EvidenceAsked:
    """The options. Times in epoch ms UTC, `to_ms` excluded; `known_to_ms`: outcomes of before it count; None: all."""

    archive: Path
    from_ms: int
    to_ms: int
    known_to_ms: int | None
    remote: tuple[str, ...]
    """The channels of remote electronic payments."""
    exempted: tuple[str, str] | None
    """The column of archived payments, and its value, of payments that were exempted from strong authentication."""

    @classmethod
    def of(
        cls, archive: Path, from_ms: int, to_ms: int, known_to_ms: int | None, remote: str, exempted: str
    ) -> EvidenceAsked:
        """Return the options as a person wrote them: `ecom,app` and `sca=tra`. Raises Misconfigured."""
        if from_ms >= to_ms:
            raise Misconfigured("the end of the days must be after their begin")
        column, equals, value = exempted.partition("=")
        if exempted and not equals:
            raise Misconfigured("exempted: wanted COLUMN=VALUE")
        channels = tuple(channel.strip() for channel in remote.split(",") if channel.strip())
        return cls(archive, from_ms, to_ms, known_to_ms, channels, (column, value) if exempted else None)


@dataclass(frozen=True)
class Governance:
    """What the registry adds: its entries of the time, and the document of each version that decided."""

    entries: Sequence[Entry]
    papers: Mapping[str, str]
    """Documents by the name of their file."""


@dataclass(frozen=True)
class Answer:
    """The rows of a query. `missing`: the topic that is not archived, if there are no rows for that reason."""

    query: Query
    columns: list[str]
    rows: list[tuple[Any, ...]]
    missing: str = ""

    @property
    def most(self) -> list[tuple[Any, ...]]:
        """The rows that reports show: all, or the merchants with the most frauds and disputes."""
        if self.query is not MERCHANTS:
            return self.rows
        reported = [self.columns.index(name) for name in ("frauds", "disputes")]
        return sorted(self.rows, key=lambda row: -sum(row[place] for place in reported))[:_MERCHANTS_SHOWN]


@dataclass(frozen=True)
class Evidence:
    """All answers, in the order of the report."""

    asked: EvidenceAsked
    currency: str
    episodes: EpisodeFeatures
    answers: list[Answer]

    def rows(self, query: Query) -> list[dict[str, Any]]:
        """Returns the rows of a query by the names of their columns."""
        (answer,) = (one for one in self.answers if one.query is query)
        return [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]


def collect(asked: EvidenceAsked, rates: RateTable, episodes: EpisodeFeatures, scratch: Path) -> Evidence:
    """Ask all queries. DuckDB's files lie in `scratch` meanwhile, so that memory is bounded.

    Raises Misconfigured if the archive lacks a topic, a range of offsets or a column, or if the reference currency is
    not EUR, in which the bands of the exemption are.
    """
    if rates.reference_currency != "EUR":
        raise Misconfigured(
            f"the bands of exemptions are in EUR, and the reference currency is {rates.reference_currency or 'unknown'}"
        )
    topics = [*_NEEDED, *(topic for topic in _OPTIONAL if topic_folder(asked.archive, topic).is_dir())]
    with TemporaryDirectory(dir=scratch, prefix=".evidence-") as folder, _database(Path(folder)) as database:
        for topic in topics:
            _view(database, asked, topic, Path(folder))
        _tables(database, asked, rates, episodes)
        answers = []
        for query in QUERIES:
            missing = [topic for topic, of in _OPTIONAL.items() if of is query and topic not in topics]
            answers.append(Answer(query, [], [], missing[0]) if missing else _answer(database, query))
    return Evidence(asked, rates.reference_currency, episodes, answers)


@contextmanager
def _database(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": _MEMORY,
        "temp_directory": str(folder),
        "autoinstall_known_extensions": False,
    }
    try:
        with duckdb.connect(str(folder / "evidence.duckdb"), config=config) as database:
            database.execute("SET TimeZone = 'UTC'")
            # DuckDB would draw it on stdout, where a command's results are.
            database.execute("SET enable_progress_bar = false")
            yield database
    except duckdb.Error as error:
        raise Misconfigured(f"the archive cannot be asked: {str(error).splitlines()[0]}") from error


def _view(database: duckdb.DuckDBPyConnection, asked: EvidenceAsked, topic: str, scratch: Path) -> None:
    folder = topic_folder(asked.archive, topic)
    if not folder.is_dir():
        raise Misconfigured(
            f"{folder} is not there: `paywarden admin archive --topic {topic} --out {asked.archive}` makes it"
        )
    parts = read_parts(asked.archive, topic)
    for partition, files in parts.items():
        check_joined(folder, partition, files)
    if not parts:
        raise Misconfigured(f"{folder} has no files")
    opener = Opener(asked.archive, topic)
    paths = [_opened_file(opener, part, scratch) for files in parts.values() for part in files]
    opener.warn_of_erased()
    added = ""
    if topic == "payments":
        added = ", false AS exempted"
        if asked.exempted is not None:
            column, value = asked.exempted
            added = f", coalesce({_identifier(column)}::VARCHAR = {_text(value)}, false) AS exempted"
    source = f"read_parquet([{', '.join(map(_text, paths))}], union_by_name=true, hive_partitioning=false)"
    try:
        database.execute(f"CREATE VIEW {topic.replace('-', '_')} AS SELECT *{added} FROM {source}")
    except duckdb.BinderException as error:
        if asked.exempted is None or topic != "payments":
            raise
        raise Misconfigured(f"exempted: {folder} has no column {asked.exempted[0]}") from error


def _opened_file(opener: Opener, part: ArchiveFile, scratch: Path) -> str:
    """Return the path of a part that DuckDB can read: one that is sealed is opened alone, into a file of `scratch`."""
    if not part.seal:
        return str(part.path)
    path = scratch / "-".join(part.path.parts[-3:])
    pq.write_table(opener.open(part), path)
    return str(path)


def _tables(
    database: duckdb.DuckDBPyConnection, asked: EvidenceAsked, rates: RateTable, episodes: EpisodeFeatures
) -> None:
    database.execute("CREATE TABLE asked (from_ms BIGINT, to_ms BIGINT, known_to_ms BIGINT, channels VARCHAR[])")
    known_to_ms = _ALWAYS_MS if asked.known_to_ms is None else asked.known_to_ms
    database.execute(
        "INSERT INTO asked VALUES (?, ?, ?, ?)", [asked.from_ms, asked.to_ms, known_to_ms, list(asked.remote)]
    )
    database.execute("CREATE TABLE rates (currency VARCHAR, from_ms BIGINT, rate BIGINT)")
    for currency, dated in rates.dated():
        for number, (from_ms, rate) in enumerate(dated):
            # A payment older than the first rate has the first rate, as everywhere.
            database.execute("INSERT INTO rates VALUES (?, ?, ?)", [currency, from_ms if number else 0, rate])
    database.execute("CREATE TABLE episode_features (catalogue_digest VARCHAR, place BIGINT)")
    for feature in episodes.features:
        database.execute("INSERT INTO episode_features VALUES (?, ?)", [episodes.digest, feature.place])
    for statement in PREPARED.split(";\n"):
        if statement.strip():
            database.execute(statement)


def _text(text: str) -> str:
    escaped = text.replace("'", "''")
    return f"'{escaped}'"


def _identifier(name: str) -> str:
    if not _COLUMN.fullmatch(name):
        raise Misconfigured(f"exempted: wanted COLUMN=VALUE with the name of a field, got {name[:64]!r}")
    return f'"{name}"'


def _answer(database: duckdb.DuckDBPyConnection, query: Query) -> Answer:
    found = database.execute(query.sql)
    return Answer(query, [column[0] for column in found.description or ()], found.fetchall())


def write(evidence: Evidence, governance: Governance | None, out: Path, key_file: Path | None) -> list[Path]:
    """Write all files; returns them. The list of checksums comes last: a folder without it is not whole.

    Raises Misconfigured if `out` has files already, or the key cannot be used.
    """
    key = None if key_file is None else read_private_key(key_file)
    entries = None if governance is None else [_entry(entry) for entry in governance.entries]
    papers = {} if governance is None else governance.papers
    files = {
        EVIDENCE: _json(evidence, entries),
        "evidence.html": _html(evidence, entries, sorted(papers)).encode(),
        **{f"{one.query.name}.csv": _csv(one.columns, one.rows) for one in evidence.answers if not one.missing},
        **({} if not entries else {"registry.csv": _csv(list(entries[0]), [[*entry.values()] for entry in entries])}),
        **{name: text.encode() for name, text in sorted(papers.items())},
    }
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items()).encode()
    files[SUMS] = sums
    if key is not None:
        files[SIGNATURE] = key.sign(sums)
    try:
        with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
            made = Path(folder) / "made"
            made.mkdir()
            for name, content in files.items():
                (made / name).write_bytes(content)
            if out.exists():
                # An empty folder gives way; anything else is somebody's.
                out.rmdir()
            os.replace(made, out)
    except OSError as error:
        raise Misconfigured(f"--out: cannot write {out}: {error.strerror or error}") from error
    return [out / name for name in files]


def _json(evidence: Evidence, entries: Sequence[Mapping[str, Any]] | None) -> bytes:
    asked = evidence.asked
    content = {
        "from_ms": asked.from_ms,
        "to_ms": asked.to_ms,
        "known_to_ms": asked.known_to_ms,
        "remote": list(asked.remote),
        "exempted": None if asked.exempted is None else "=".join(asked.exempted),
        "currency": evidence.currency,
        "catalogue_digest": evidence.episodes.digest,
        "episode_features": [feature.name for feature in evidence.episodes.features],
        "figures": {
            answer.query.name: {
                "columns": answer.columns,
                # merchants.csv has all.
                "rows": answer.most,
                "row_count": len(answer.rows),
                "not_archived": answer.missing or None,
            }
            for answer in evidence.answers
        },
        "registry": entries,
    }
    return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _entry(entry: Entry) -> dict[str, Any]:
    return {"time": spoken(entry.time_ms), "kind": entry.kind, "by": entry.by, "why": entry.why, "digest": entry.digest}


def _csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([f"{value:.6f}" if isinstance(value, float) else without_formula(value) for value in row])
    return text.getvalue().encode()


def _html(evidence: Evidence, entries: Sequence[Mapping[str, Any]] | None, papers: Sequence[str]) -> str:
    return render(
        "evidence.html",
        title=f"Evidence of {_day(evidence.asked.from_ms)} to {_day(evidence.asked.to_ms - 1)}",
        evidence=evidence,
        known_to="" if evidence.asked.known_to_ms is None else spoken(evidence.asked.known_to_ms),
        prepared=PREPARED,
        tables=[(answer, _shown(answer)) for answer in evidence.answers],
        shown_max=_MERCHANTS_SHOWN,
        entries=None if entries is None else [list(entry.values())[:4] for entry in entries],
        papers=papers,
    )


def _shown(answer: Answer) -> list[list[str]]:
    return [[_cell(name, value) for name, value in zip(answer.columns, row, strict=True)] for row in answer.most]


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if name.endswith("_minor"):
        return f"{value / 100:,.2f}"
    if name.endswith("_bp"):
        return f"{value:.2f}"
    if isinstance(value, float):
        return f"{value:.6f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _day(time_ms: int) -> str:
    return spoken(time_ms)[:10]


def files_of(folder: Path) -> dict[str, str]:
    """Return the checksums of a pack's files by name. Raises Misconfigured if its list of them cannot be read."""
    try:
        lines = read_regular(folder / SUMS).decode().splitlines()
        return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError) as error:
        raise Misconfigured(f"{folder / SUMS} cannot be read: {error}") from error


def is_signed(folder: Path, key: Ed25519PublicKey) -> bool | None:
    """Return whether this key signed a pack's checksums; None if nobody signed it."""
    try:
        key.verify(read_regular(folder / SIGNATURE), read_regular(folder / SUMS))
    except FileNotFoundError:
        return None
    except (InvalidSignature, OSError):
        return False
    return True
