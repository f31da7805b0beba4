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
from confluent_kafka.schema_registry import Schema as RegistrySchema
from confluent_kafka.schema_registry import SchemaRegistryClient

from paywarden.models.metrics.evaluation import date_of_day
from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds, parsed, schema_text
from paywarden.streams.archive.files import read_archive
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import make_producer, make_transactional_producer
from paywarden.streams.kafka.topic_rows import OFFSET, PARTITION, TIMESTAMP, rows_schema
from tests.patience import PATIENCE_S
from tests.services.product.deployment import Deployment
from tests.services.product.processes import PaywardenProcess, run_paywarden, wait_until
from tests.services.servers.kafka import KafkaServer
from tests.services.servers.registry import RegistryServer
from tests.worlds.operate.backup_page import run_copies
from tests.worlds.small import small_world
from tests.worlds.small.small_world import FIRST_DAY
from tests.worlds.stream.decision_records import decision
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
        process = deployment.start("archive", "--topic", "payments", "--out", str(archive))
        wait_until(partial(has_files_or_ended, archive, files, process), "some files are there", every_s=0.001)
        process.kill()
        if 0 < len(archived(archive)) < len(wanted):
            halves += 1
            shutil.rmtree(copy, ignore_errors=True)
            copy.mkdir()
            run_copies("archive", folder, copy, back=False)
    assert halves > 0
    before = {path: path.stat().st_mtime_ns for path in archive.rglob("*.parquet")}
    said, _ = paywarden(deployment, "archive", "--topic", "payments", "--out", str(archive))
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())
    assert archived(archive) == wanted
    assert not list(archive.rglob("*.unfinished"))
    undecoded = read_archive(archive, "payments", rows_schema("payments")).undecoded
    assert len(undecoded) == 2
    assert "payments in" in said or "nothing added" in said
    # No record is there twice, and a second run has nothing to add.
    said, _ = paywarden(deployment, "archive", "--topic", "payments", "--out", str(archive))
    assert "nothing added" in said
    assert archived(archive) == wanted
    shutil.rmtree(archive)
    run_copies("archive", folder, copy, back=True)
    assert 0 < len(archived(archive)) < len(wanted)
    paywarden(deployment, "archive", "--topic", "payments", "--out", str(archive))
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
        paywarden(deployment, "archive", "--topic", topic, "--out", str(tmp_path / "archive"))
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
        paywarden(deployment, "archive", "--topic", topic, "--out", str(tmp_path / "archive"))
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


def test_decisions_shipped_in_transactions_are_archived_without_a_gap(
    deployment: Deployment, settings: KafkaSettings, tmp_path: Path
) -> None:
    encode = encoder_of("decisions")
    producer = make_transactional_producer(settings, "archive", linger_ms=0, transaction_timeout_ms=600_000)
    producer.init_transactions(PATIENCE_S)
    for number in range(60):
        producer.begin_transaction()
        producer.produce(settings.topic("decisions"), encode(decision(f"p{number}")), key=f"p{number}")
        if number == 30:
            # The transaction is open. Records behind its first one cannot be read yet; the next run archives them.
            assert producer.flush(PATIENCE_S) == 0
            paywarden(deployment, "archive", "--topic", "decisions", "--out", str(tmp_path))
            assert f"p{number}" not in {row["payment_id"] for row in archived(tmp_path, "decisions")}
        # No reader has seen the records that are taken back.
        if number % 7 == 3:
            # The broker cannot abort a transaction if it has seen no record of it.
            assert producer.flush(PATIENCE_S) == 0
            producer.abort_transaction(PATIENCE_S)
        else:
            producer.commit_transaction(PATIENCE_S)
    paywarden(deployment, "archive", "--topic", "decisions", "--out", str(tmp_path))
    rows = archived(tmp_path, "decisions")
    assert sorted(row["payment_id"] for row in rows) == sorted(f"p{n}" for n in range(60) if n % 7 != 3)
    assert rows == on_topic(settings, "decisions")


def test_followed_topics_are_archived_as_they_grow_until_the_stop(
    deployment: Deployment, settings: KafkaSettings, tmp_path: Path
) -> None:
    options = ("--topic", "outcomes", "--out", str(tmp_path), "--follow", "--every", "0.2")
    process = deployment.start("archive", *options)
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
    process = deployment.start("archive", "--topic", "outcomes", "--out", str(tmp_path), "--follow", "--every", "0.2")
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


def test_foreign_schemas_are_read_and_one_that_lacks_a_column_is_named(
    kafka: KafkaServer, registry: RegistryServer, topic_prefix: str, tmp_path: Path
) -> None:
    settings = KafkaSettings(bootstrap=kafka.bootstrap, topic_prefix=topic_prefix)
    ours = json.loads(schema_text("payments"))
    wallet = {"name": "wallet", "type": ["null", "string"], "default": None}
    newer = ours | {"fields": [*ours["fields"], wallet]}
    short = ours | {"fields": [one for one in ours["fields"] if one["name"] != "amount_minor"]}
    payment = small_world.tables()[0].to_pylist()[0]
    with Deployment(tmp_path, settings.bootstrap, topic_prefix) as deployed:
        deployed.configure("registry", f'url = "{registry.url}"\n')
        deployed.create_topics()
        producer = make_producer(settings, linger_ms=0)
        with SchemaRegistryClient({"url": registry.url}) as client:
            for schema, changes in ((ours, ()), (newer, ("wallet",)), (short, ("amount_minor",))):
                schema_id = client.register_schema(topic_prefix, RegistrySchema(json.dumps(schema), "AVRO"))
                row = {name: payment.get(name, "w") for name in (one["name"] for one in schema["fields"])}
                assert set(row) ^ set(payment) == set(changes)
                value = Encoder("payments", schema_id, schema=parsed(json.dumps(schema))).encode(row)
                producer.produce(settings.topic("payments"), value, key="k", partition=2)
        assert producer.flush(PATIENCE_S) == 0
        said, logged = paywarden(deployed, "archive", "--topic", "payments", "--out", str(tmp_path / "archive"))
    assert "2 payments in 1 files added" in said
    assert "1 records not decoded" in said
    assert "not decoded: payments, partition 2, offset 2: schema id" in logged
    assert "amount_minor" in logged
    rows = archived(tmp_path / "archive")
    assert [{name: row[name] for name in payment} for row in rows] == [payment, payment]
