"""Archives and histories of a real Kafka: a kill loses nothing, and both ways to read give the same results."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from paywarden.models.metrics.evaluation import date_of_day
from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds
from paywarden.streams.archive.files import read_archive
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import make_producer
from paywarden.streams.kafka.topic_rows import OFFSET, PARTITION, TIMESTAMP, rows_schema
from tests.patience import PATIENCE_S
from tests.services.product.deployment import Deployment
from tests.services.product.processes import PaywardenProcess, run_paywarden, wait_until
from tests.services.servers.kafka import KafkaServer
from tests.worlds.operate.backup_page import run_copies
from tests.worlds.small import small_world
from tests.worlds.small.small_world import FIRST_DAY
from tests.worlds.stream.topics import Topics, read_topic

IDS = LocalSchemaIds()
FROM, TO = date_of_day(FIRST_DAY + 22), date_of_day(FIRST_DAY + 26)


@pytest.fixture(scope="module")
def prefix() -> str:
    return f"archive{time.time_ns()}-"


@pytest.fixture(scope="module")
def settings(kafka: KafkaServer, prefix: str) -> KafkaSettings:
    return KafkaSettings(bootstrap=kafka.bootstrap, topic_prefix=prefix)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, settings: KafkaSettings) -> Iterator[Deployment]:
    """Topics with the small world on them. Some payments are there twice, and two records cannot be decoded."""
    folder = tmp_path_factory.mktemp("archive")
    with Deployment(folder, settings.bootstrap, settings.topic_prefix) as deployed:
        deployed.create_topics()
        payments, outcomes = (table.to_pylist() for table in small_world.tables())
        topics = Topics(settings)
        half = len(payments) // 2
        topics.send_payments(payments[:half])
        topics.send_payments(payments[100:110])
        topics.send_bytes("payments", b"nonsense", b"k")
        topics.send_bytes("payments", None, b"k")
        topics.send_payments(payments[half:])
        topics.send_outcomes(outcomes)
        yield deployed


def paywarden(deployment: Deployment, *arguments: str) -> tuple[str, str]:
    """Run a command that must succeed. Returns its stdout and stderr."""
    done = deployment.run(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def encoder_of(topic: str) -> Callable[[dict[str, Any]], bytes]:
    return Encoder(topic, IDS.id_of(topic)).encode


def has_files_or_ended(folder: Path, count: int, process: PaywardenProcess) -> bool:
    return len(list(folder.rglob("*.parquet"))) >= count or process.process.poll() is not None


def archived(folder: Path, topic: str = "payments") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_archive(folder, topic, rows_schema(topic)).table.to_pylist()
    return rows


def on_topic(settings: KafkaSettings, topic: str) -> list[dict[str, Any]]:
    """Returns what the archive should hold, read from the topic by another path."""
    decoder = Decoder(topic, IDS)
    rows = [
        decoder.decode(record.value)
        | {PARTITION: record.partition, OFFSET: record.offset, TIMESTAMP: record.timestamp_ms}
        for record in read_topic(settings, topic)
        if record.value not in (None, b"nonsense")
    ]
    return sorted(rows, key=lambda row: (row[PARTITION], row[OFFSET]))


def test_an_archive_killed_half_way_goes_on_and_equals_the_topic(
    deployment: Deployment, settings: KafkaSettings, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """So does one that is lost, and comes back from an older copy by the steps of docs/operate/backup.md."""
    folder, copy = tmp_path_factory.mktemp("drill"), tmp_path_factory.mktemp("copy")
    archive = folder / "archive"
    archive.mkdir()
    wanted = on_topic(settings, "payments")
    halves = 0
    for files in (1, 2, 3):
        process = deployment.start("admin", "archive", "--topic", "payments", "--out", str(archive))
        wait_until(partial(has_files_or_ended, archive, files, process), "some files are there", every_s=0.001)
        process.kill()
        if 0 < len(archived(archive)) < len(wanted):
            halves += 1
            shutil.rmtree(copy, ignore_errors=True)
            copy.mkdir()
            run_copies("archive", folder, copy, back=False)
    assert halves > 0
    before = {path: path.stat().st_mtime_ns for path in archive.rglob("*.parquet")}
    said, _ = paywarden(deployment, "admin", "archive", "--topic", "payments", "--out", str(archive))
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())
    assert archived(archive) == wanted
    assert not list(archive.rglob("*.unfinished"))
    undecoded = read_archive(archive, "payments", rows_schema("payments")).undecoded
    assert len(undecoded) == 2
    assert "payments in" in said or "nothing added" in said
    # No record is there twice, and a second run has nothing to add.
    said, _ = paywarden(deployment, "admin", "archive", "--topic", "payments", "--out", str(archive))
    assert "nothing added" in said
    assert archived(archive) == wanted
    shutil.rmtree(archive)
    run_copies("archive", folder, copy, back=True)
    assert 0 < len(archived(archive)) < len(wanted)
    paywarden(deployment, "admin", "archive", "--topic", "payments", "--out", str(archive))
    assert archived(archive) == wanted


def replayed(deployment: Deployment, out: Path, *options: str) -> tuple[dict[str, Any], list[bytes], str]:
    """Returns metrics.json without its speed, the bytes of the other results, and what the command printed."""
    bundle = str(small_world.trained_bundle())
    window = ("--from", FROM, "--to", TO)
    _, said = paywarden(deployment, "replay", "--bundle", bundle, *window, "--out", str(out), *options)
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    del metrics["payments_per_second"]
    return metrics, [(out / name).read_bytes() for name in ("decisions.parquet", "report.html")], said


def test_replays_of_topics_and_of_their_archive_give_the_same_bytes(
    deployment: Deployment, settings: KafkaSettings, tmp_path: Path
) -> None:
    arrived = [sorted(row[TIMESTAMP] for row in on_topic(settings, topic)) for topic in ("payments", "outcomes")]
    for topic in ("payments", "outcomes"):
        paywarden(deployment, "admin", "archive", "--topic", topic, "--out", str(tmp_path / "archive"))
    whole, files, said = replayed(deployment, tmp_path / "a", "--from-topic")
    again, files_again, said_again = replayed(deployment, tmp_path / "b", "--data", str(tmp_path / "archive"))
    assert (again, files_again) == (whole, files)
    # Both commands also name the same records that they left out.
    assert [line for line in said.splitlines() if "left out" in line] == [
        line for line in said_again.splitlines() if "left out" in line
    ]
    assert "left out: 10 payments that came before, field by field the same" in said
    assert "left out: 2 records of payments that do not decode" in said
    # Replay a part of the time, from the topics and from the archive of the whole topics.
    since, until = (
        f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(moment // 1000))}.{moment % 1000:03}Z"
        # The broker's times: all records of a batch have the same.
        for moment in (sorted({*arrived[0]})[max(1, len({*arrived[0]}) // 50)], arrived[1][len(arrived[1]) // 2])
    )
    part = ("--since", since, "--until", until)
    fewer, files, _ = replayed(deployment, tmp_path / "c", "--from-topic", *part)
    fewer_again, files_again, _ = replayed(deployment, tmp_path / "d", "--data", str(tmp_path / "archive"), *part)
    assert (fewer_again, files_again) == (fewer, files)
    assert fewer["payments_replayed"] < whole["payments_replayed"]
    assert fewer["without_outcome"] > whole["without_outcome"]


def test_training_on_topics_and_on_their_archive_gives_one_bundle(deployment: Deployment, tmp_path: Path) -> None:
    for topic in ("payments", "outcomes"):
        paywarden(deployment, "admin", "archive", "--topic", topic, "--out", str(tmp_path / "archive"))
    quick = "[training]\ntrees = 5\nfolds = 2\nmax_bin = 255\nearly_stopping_rounds = 0\n"
    config = tmp_path / "training.toml"
    config.write_text(deployment.config.read_text(encoding="utf-8") + quick, encoding="utf-8")
    digests = []
    for number, where in enumerate((("--from-topic",), ("--data", str(tmp_path / "archive")))):
        window = ("--train-from", date_of_day(FIRST_DAY + 2), "--train-to", date_of_day(FIRST_DAY + 19))
        done = run_paywarden(
            *("--config", str(config), "train", *where, *window, "--out", str(tmp_path / f"bundle{number}"))
        )
        assert done.returncode == 0, done.stderr
        digests.append([line for line in done.stdout.splitlines() if line.startswith("digest ")])
    assert digests[0] == digests[1] != []


def test_followed_topics_are_archived_as_they_grow_until_the_stop(
    deployment: Deployment, settings: KafkaSettings, tmp_path: Path
) -> None:
    options = ("--topic", "outcomes", "--out", str(tmp_path), "--follow", "--every", "0.2")
    process = deployment.start("admin", "archive", *options)
    before = len(on_topic(settings, "outcomes"))
    wait_until(lambda: (tmp_path / "outcomes").is_dir() and len(archived(tmp_path, "outcomes")) == before, "all there")
    producer = make_producer(settings, linger_ms=0)
    value = encoder_of("outcomes")({"payment_id": "later", "outcome_time_ms": 1, "label": "fraud", "source": None})
    producer.produce(settings.topic("outcomes"), value, key="later")
    producer.flush(PATIENCE_S)
    wait_until(lambda: len(archived(tmp_path, "outcomes")) == before + 1, "what came is there")
    assert process.stop() == 0
    assert archived(tmp_path, "outcomes") == on_topic(settings, "outcomes")


def test_an_archive_that_follows_says_what_is_in_its_way_and_goes_on(
    deployment: Deployment, settings: KafkaSettings, tmp_path: Path
) -> None:
    """It ended: on a full disk, and while Kafka was away."""
    in_the_way = tmp_path / "outcomes"
    in_the_way.write_text("no folder", encoding="utf-8")
    process = deployment.start(
        "admin", "archive", "--topic", "outcomes", "--out", str(tmp_path), "--follow", "--every", "0.2"
    )
    told = f"cannot write an archive to {in_the_way}"
    wait_until(
        lambda: process.log.read_text(encoding="utf-8").count(told) > 1 or process.process.poll() is not None,
        "it says what is in its way, and tries again",
    )
    in_the_way.unlink()
    wanted = on_topic(settings, "outcomes")
    wait_until(
        lambda: (
            process.process.poll() is not None or (in_the_way.is_dir() and archived(tmp_path, "outcomes") == wanted)
        ),
        "it goes on",
    )
    assert process.stop() == 0
    assert archived(tmp_path, "outcomes") == wanted
