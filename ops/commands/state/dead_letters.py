"""`paywarden admin dead-letters`: shows the records that could not be used, and sends them back."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from heapq import nlargest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paywarden.ops import wiring
from paywarden.ops.options import at_most_one, require_with
from paywarden.ops.reporting import printable
from paywarden.ops.times import spoken, time_ms_of
from paywarden.schemas.durations import duration_ms_of
from paywarden.schemas.errors import Misconfigured, TemporaryFailure
from paywarden.schemas.settings import Source

if TYPE_CHECKING:
    from paywarden.streams.dead_letters.retry import Note, Retried, Selection
    from paywarden.streams.dead_letters.writer import AnyLetter, LetterId, LetterReader
    from paywarden.streams.kafka.client import KafkaSettings

# At most this many lines of the summary, and letters named for each reason of a refusal.
_SUMMARY_LINES_MAX = 30
_NAMED_MAX = 10
# In a narrower table every cell would be broken; a pipe has no width of its own.
_WIDTH_MIN = 120


@click.command("dead-letters")
@click.argument("letter_ids", metavar="[ID]...", nargs=-1)
@click.option("--topic", metavar="TOPIC", default="", help="Only letters from this topic.")
@click.option("--reason", metavar="TEXT", default="", help="Only letters whose reason contains this.")
@click.option(
    "--since",
    metavar="TIME",
    default="",
    help="Only letters since 2024-05-01T12:00:00Z, for example, or in the last 2h.",
)
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="List this many, the newest."
)
@click.option(
    "--bytes",
    "folder",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write key and value of the listed letters to DIR/ID.key and DIR/ID.value. They hold card data.",
)
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
@click.option("--retry", is_flag=True, help="Send the letters back to the topics they came from.")
@click.option("--all", "every", is_flag=True, help="With --retry: all letters.")
@click.option("--again", is_flag=True, help="With --retry: also letters that were retried before, or too often.")
@click.option(
    "--retries-max",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="With --retry: refuse letters that failed after this many retries.",
)
@click.option("--dry-run", is_flag=True, help="With --retry: only list the records that would be sent.")
@click.pass_obj
def dead_letters(
    source: Source,
    letter_ids: Sequence[str],
    topic: str,
    reason: str,
    since: str,
    limit: int,
    folder: Path | None,
    as_json: bool,
    retry: bool,
    every: bool,
    again: bool,
    retries_max: int,
    dry_run: bool,
) -> None:
    """List records that could not be used, or send them back.

    Letters are counted by topic and reason. ID is a letter's partition and offset on dead-letters, such as 0-17. The
    newest letter comes last. Keys and values are not printed: they may hold card ids. The command reads the topic to
    where it ends now, joins no consumer group and commits nothing.

    Use --retry when the cause is fixed. Key, value and headers are the original ones. The header paywarden-retry-of
    names the letter, and paywarden-retry-count counts its retries. A letter is sent once: the topic
    dead-letters-retried keeps a note of it. A record that fails again becomes a new letter.

    After an interruption the next --retry may send the last records again. A payment that comes twice counts once. An
    outcome that repeats the last one changes nothing. But an outcome that is sent again is then the newest of its
    payment, and replaces one that came in between.

    With [erasure] keys a payment of an erased card is neither written with --bytes nor sent back. Run the command where
    that file is.
    """
    require_with("--retry", is_there=retry, all=every, again=again, dry_run=dry_run)
    if retry:
        at_most_one(retry=True, json=as_json, bytes=folder)
        _retry(
            source, letter_ids, topic, reason, since, every=every, again=again, retries_max=retries_max, dry_run=dry_run
        )
    else:
        _show(source, letter_ids, topic, reason, since, limit=limit, folder=folder, as_json=as_json)


def _show(
    source: Source,
    letter_ids: Sequence[str],
    topic: str,
    reason: str,
    since: str,
    *,
    limit: int,
    folder: Path | None,
    as_json: bool,
) -> None:
    from paywarden.streams.dead_letters.retry import KafkaNotes, note_of
    from paywarden.streams.dead_letters.writer import LetterReader
    from paywarden.streams.kafka.admin import require_broker

    wanted = _letter_ids(letter_ids)
    _check_either(bool(wanted), bool(topic or reason or since))
    kafka = wiring.kafka_settings(source)
    selection = _selection(kafka, topic, reason, since)
    require_broker(kafka)
    ids = wiring.schema_ids(source)
    with ExitStack() as stack:
        reader = stack.enter_context(closing(LetterReader(kafka, ids, wiring.erasure_keys(source))))
        notes = stack.enter_context(closing(KafkaNotes(kafka, ids))).read()
        found = reader.some(wanted) if wanted else filter(selection.has, reader.all())
        overview = _Overview.of(((letter, note_of(letter, notes)) for letter in found), limit)
        if folder is not None:
            _write_bytes(reader, [line.letter_id for line in overview.lines], folder)
    if as_json:
        click.echo(json.dumps(overview.to_dict(), indent=2))
    else:
        _print(overview)


def _retry(
    source: Source,
    letter_ids: Sequence[str],
    topic: str,
    reason: str,
    since: str,
    *,
    every: bool,
    again: bool,
    retries_max: int,
    dry_run: bool,
) -> None:
    from paywarden.streams.dead_letters.retry import KafkaNotes, KafkaOrigins
    from paywarden.streams.dead_letters.retry import retry as run
    from paywarden.streams.dead_letters.writer import LetterReader
    from paywarden.streams.kafka.admin import require_broker

    wanted = _letter_ids(letter_ids)
    _check_either(bool(wanted), bool(topic or reason or since or every))
    if not (wanted or topic or every):
        raise click.UsageError("name letters, or --topic, or --all")
    kafka = wiring.kafka_settings(source)
    selection = _selection(kafka, topic, reason, since)
    require_broker(kafka)
    ids = wiring.schema_ids(source)
    with ExitStack() as stack:
        reader = stack.enter_context(closing(LetterReader(kafka, ids, wiring.erasure_keys(source))))
        notes = stack.enter_context(closing(KafkaNotes(kafka, ids)))
        try:
            done = run(
                reader.some(wanted) if wanted else filter(selection.has, reader.all()),
                notes=notes,
                origins=KafkaOrigins(kafka),
                now_ms=_now_ms,
                again=again,
                retries_max=retries_max,
                dry_run=dry_run,
            )
        except TemporaryFailure as error:
            raise click.ClickException(f"{error}; the same command goes on where this ended") from error
    _report(done, dry_run=dry_run)


def _report(done: Retried, *, dry_run: bool) -> None:
    """Print the counts. Raises ClickException if a letter was refused."""
    refused_count = sum(map(len, done.refused.values()))
    click.echo(f"{'would be sent' if dry_run else 'sent':<15}{len(done.sent)}")
    click.echo(f"{'retried before':<15}{len(done.before)}" + (" (--again sends them once more)" if done.before else ""))
    click.echo(f"{'refused':<15}{refused_count}")
    for why, letter_ids in done.refused.items():
        named = ", ".join(map(str, letter_ids[:_NAMED_MAX]))
        more = f" and {len(letter_ids) - _NAMED_MAX} more" if len(letter_ids) > _NAMED_MAX else ""
        click.echo(f"  {named}{more}: {printable(why)}")
    if refused_count:
        raise click.ClickException(f"{refused_count} dead letters were refused")


@dataclass(frozen=True)
class _Line:
    """The fields of a letter that the list has. No field comes from inside its record."""

    letter_id: LetterId
    failed_time_ms: int
    topic: str | None
    partition: int | None
    offset: int | None
    size_bytes: int
    reason: str
    retry_count: int
    retried_time_ms: int | None

    @classmethod
    def of(cls, letter: AnyLetter, note: Note | None) -> _Line:
        from paywarden.streams.dead_letters.writer import DamagedLetter

        origin = None if isinstance(letter, DamagedLetter) else letter.record
        return cls(
            letter_id=letter.letter_id,
            failed_time_ms=letter.failed_time_ms,
            topic=None if origin is None else printable(origin.topic),
            partition=None if origin is None else origin.partition,
            offset=None if origin is None else origin.offset,
            size_bytes=letter.size_bytes,
            reason=printable(letter.reason if origin is not None else f"damaged letter: {letter.reason}"),
            retry_count=0 if isinstance(letter, DamagedLetter) else letter.retry_count,
            retried_time_ms=None if note is None else note.retried_time_ms,
        )

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "letter_id": str(self.letter_id)}


@dataclass
class _Overview:
    """The newest letters, oldest first, and the count of all letters by topic and reason."""

    lines: list[_Line] = field(default_factory=list)
    counts: Counter[tuple[str | None, str]] = field(default_factory=Counter)
    retried: int = 0

    @classmethod
    def of(cls, letters: Iterable[tuple[AnyLetter, Note | None]], limit: int) -> _Overview:
        overview = cls()
        lines = (overview._counted(_Line.of(letter, note)) for letter, note in letters)
        overview.lines = nlargest(limit, lines, key=lambda line: (line.failed_time_ms, line.letter_id))[::-1]
        return overview

    def _counted(self, line: _Line) -> _Line:
        self.counts[line.topic, line.reason] += 1
        self.retried += line.retried_time_ms is not None
        return line

    @property
    def count(self) -> int:
        return self.counts.total()

    def to_dict(self) -> dict[str, Any]:
        by_reason = [
            {"topic": topic, "reason": reason, "count": count} for (topic, reason), count in self.counts.most_common()
        ]
        lines = [line.to_dict() for line in self.lines]
        return {"count": self.count, "retried": self.retried, "summary": by_reason, "letters": lines}


def _print(overview: _Overview) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    console.width = max(console.width, _WIDTH_MIN)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in ("letter", "failed (UTC)", "from"):
        table.add_column(heading, no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("retries", justify="right", no_wrap=True)
    table.add_column("retried (UTC)", no_wrap=True)
    table.add_column("reason", overflow="fold")
    for line in overview.lines:
        origin = "?" if line.topic is None else f"{line.topic}/{line.partition}/{line.offset}"
        retried = "" if line.retried_time_ms is None else spoken(line.retried_time_ms)
        place = (str(line.letter_id), spoken(line.failed_time_ms), origin, str(line.size_bytes))
        # Not as markup: a reason may hold brackets.
        table.add_row(*map(Text, (*place, str(line.retry_count or ""), retried, line.reason)))
    if overview.lines:
        console.print(table)
    for (topic, reason), count in overview.counts.most_common(_SUMMARY_LINES_MAX):
        click.echo(f"{count:>7}  {topic or '?'}: {reason}")
    if len(overview.counts) > _SUMMARY_LINES_MAX:
        click.echo(f"         and {len(overview.counts) - _SUMMARY_LINES_MAX} other reasons")
    shown = f", the newest {len(overview.lines)} are listed" if len(overview.lines) < overview.count else ""
    click.echo(f"{overview.count} dead letters, {overview.retried} of them retried{shown}")


def _write_bytes(reader: LetterReader, letter_ids: Sequence[LetterId], folder: Path) -> None:
    """Write key and value of each letter to files that only their owner may read; a damaged letter as it is."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for letter in reader.some(letter_ids):
            for suffix, content in _parts(letter):
                _write_private(folder / f"{letter.letter_id}.{suffix}", content)
    except OSError as error:
        raise click.ClickException(f"cannot write to {folder}: {error.strerror}") from error


def _parts(letter: AnyLetter) -> Iterator[tuple[str, bytes]]:
    """Yields file suffixes and contents. A null has no file, an empty value has an empty one."""
    from paywarden.streams.dead_letters.writer import DamagedLetter

    if isinstance(letter, DamagedLetter):
        parts = {"damaged": letter.value}
    else:
        parts = {"key": letter.record.key, "value": letter.record.value}
    yield from ((suffix, content) for suffix, content in parts.items() if content is not None)


def _write_private(path: Path, content: bytes) -> None:
    # A new file: an existing one may be readable by others, or be a link to somewhere else.
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def _letter_ids(texts: Sequence[str]) -> list[LetterId]:
    """Returns the ids without repetitions, in order."""
    from paywarden.streams.dead_letters.writer import LetterId

    return list(dict.fromkeys(map(LetterId.of, texts)))


def _check_either(has_ids: bool, has_selection: bool) -> None:
    if has_ids and has_selection:
        raise click.UsageError("name letters or select them, not both")


def _selection(kafka: KafkaSettings, topic: str, reason: str, since: str) -> Selection:
    from paywarden.streams.dead_letters.retry import Selection

    # The caller may name the topic with the prefix or without it.
    topics = frozenset({topic, kafka.topic(topic)}) if topic else frozenset()
    return Selection(topics=topics, reason=reason, since_ms=_since_ms(since, _now_ms()) if since else 0)


def _since_ms(text: str, now_ms: int) -> int:
    ago_ms = duration_ms_of(text)
    if ago_ms is not None:
        return now_ms - ago_ms
    try:
        return time_ms_of(text)
    except ValueError:
        raise Misconfigured(f"--since: wanted a time such as 2024-05-01T12:00:00Z, or 2h, got {text!r}") from None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
