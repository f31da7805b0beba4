"""Where `replay` and `train` take their history from: two files or an archive; and live decisions beside it."""

from __future__ import annotations

import atexit
import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from threading import Event
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click import UsageError
from click.testing import CliRunner

from paywarden.features.history.history import write_history
from paywarden.models.metrics.evaluation import date_of_day
from paywarden.ops.cli import cli
from paywarden.schemas.errors import Misconfigured
from paywarden.streams.archive.archive import Archiver
from tests.fakes.topic_memory import IDS, MemoryTopic
from tests.worlds.small import small_world
from tests.worlds.small.small_world import FIRST_DAY
from tests.worlds.stream.decision_records import decision

FROM, TO = date_of_day(FIRST_DAY + 22), date_of_day(FIRST_DAY + 25)


def write_archive(folder: Path, topic: MemoryTopic) -> None:
    archiver = Archiver(topic, IDS, topic.name, folder, records_max=2000)
    archiver.run(archiver.wanted(None, None), Event(), lambda _: None)


@cache
def data() -> Path:
    """`files` is the small world in two files, `archive` the same as it was on topics."""
    folder = Path(mkdtemp(prefix="paywarden-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_history(folder / "files", *small_world.tables())
    for name, table in zip(("payments", "outcomes"), small_world.tables(), strict=True):
        topic = MemoryTopic(name, batch=1000)
        for number, row in enumerate(table.to_pylist()):
            topic.append(number % 3, row, row.get("event_time_ms") or row["outcome_time_ms"])
        write_archive(folder / "archive", topic)
    return folder


def run(*arguments: str) -> tuple[str, str]:
    """(stdout, stderr); a refusal is raised."""
    result = CliRunner().invoke(cli, arguments, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.stdout, result.stderr


def replay(out: Path, *options: str, first: str = FROM) -> tuple[dict[str, Any], pa.Table, str]:
    """metrics.json without its speed, the decisions, and what was said."""
    bundle = str(small_world.trained_bundle())
    _, said = run("replay", "--bundle", bundle, "--from", first, "--to", TO, "--out", str(out), *options)
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    del metrics["payments_per_second"]
    return metrics, pq.read_table(out / "decisions.parquet"), said


def test_live_decisions_are_compared_in_the_headline_and_in_the_metrics(tmp_path: Path) -> None:
    _, decided, _ = replay(tmp_path / "a", "--data", str(data() / "files"))
    topic = MemoryTopic("decisions")
    for number, row in enumerate(decided.select(["payment_id", "event_time_ms", "score", "action"]).to_pylist()):
        other = {"score": row["score"] + 0.25} if number == 0 else {}
        topic.append(0, decision(**row | other), row["event_time_ms"])
    write_archive(tmp_path / "live", topic)
    bundle, out = str(small_world.trained_bundle()), tmp_path / "b"
    said, _ = run(
        *("replay", "--data", str(data() / "archive"), "--bundle", bundle, "--from", FROM, "--to", TO),
        *("--archived-decisions", str(tmp_path / "live"), "--out", str(out)),
    )
    section = json.loads(said)["archived_decisions"]
    assert section == json.loads((out / "metrics.json").read_text(encoding="utf-8"))["archived_decisions"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert f"Of {len(decided):,} payments decided both live and here, 100.00% got the same action" in page
    assert section["payments"] == len(decided)
    assert section["equal_actions"] == 1
    assert section["equal_scores"] == pytest.approx(1 - 1 / len(decided))
    assert section["score_difference_max"] == pytest.approx(0.25)
    assert (section["only_live"], section["only_replayed"]) == (0, 0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--since", "2024-01-01"), "--since is for topics and archives, and .*files is neither"),
        (("--warm-up-days", "3"), "--warm-up-days is for topics and archives"),
    ],
)
def test_options_of_topics_are_refused_for_two_files(options: tuple[str, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=said):
        replay(tmp_path / "a", "--data", str(data() / "files"), *options)
    assert not (tmp_path / "a").exists()


def test_a_range_in_which_nothing_came_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="archive holds no payment of that time"):
        replay(tmp_path / "a", "--data", str(data() / "archive"), "--since", "2100-01-01")


def test_a_folder_that_is_both_is_refused(tmp_path: Path) -> None:
    shutil.copytree(data() / "files", tmp_path / "both")
    (tmp_path / "both/payments").mkdir()
    with pytest.raises(Misconfigured, match=r"holds payments\.parquet and an archive"):
        replay(tmp_path / "a", "--data", str(tmp_path / "both"))


@pytest.mark.parametrize("options", [(), ("--data", "x", "--from-topic")])
def test_a_history_comes_from_one_place(options: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="say one of --data DIR and --from-topic"):
        replay(tmp_path / "a", *options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--follow", "--to", "2024-01-01"), "--follow never ends"),
        (("--follow", "--until-end"), "--follow never ends"),
        (("--until-end", "--to", "2024-01-01"), "use either --to or --until-end"),
    ],
)
def test_an_archive_has_one_end(options: tuple[str, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        run("admin", "archive", "--topic", "payments", "--out", str(tmp_path), *options)
