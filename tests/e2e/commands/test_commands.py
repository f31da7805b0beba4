"""The command line from outside: an error is one clear line on stderr and a non-zero exit, without a traceback."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from paywarden.ops.cli import cli
from paywarden.streams.kafka.admin import partitions_of
from paywarden.streams.kafka.client import KafkaSettings
from tests.services.product.processes import run_paywarden

COMMANDS = (
    *("backfill", "backtest", "broker", "companion", "compile", "convert", "demo", "features", "forget", "load"),
    *("profile-sets", "replay", "serve", "simulate", "stream", "topics", "train"),
)


def refused(*arguments: str, **environment: str) -> str:
    """Run a command that must fail. Returns its one line."""
    done = run_paywarden(*arguments, environment=environment)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture(scope="module")
def bundle(history: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "b"
    done = run_paywarden(
        *("train", "--data", str(history), "--train-from", "2024-01-08", "--train-to", "2024-01-20"),
        *("--out", str(folder)),
        environment={"PAYWARDEN_TRAINING_TREES": "20"},
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_command_has_help() -> None:
    for command in COMMANDS:
        done = run_paywarden(command, "--help")
        assert done.returncode == 0, command
        assert "Usage" in done.stdout


def test_the_help_lists_every_command_in_one_section() -> None:
    lines = run_paywarden("--help").stdout.partition("\nRun and try:\n")[2].splitlines()
    sections = [line for line in lines if line.endswith(":")]
    assert sections == ["Payments and features:", "Models and policy:", "What was decided:", "What is stored:"]
    assert sorted(line.split()[0] for line in lines if line.startswith("  ")) == sorted(cli.commands)


def test_simulate_writes_two_files_that_are_equal_for_equal_seeds(history: Path, tmp_path: Path) -> None:
    run_paywarden("simulate", "--cards", "800", "--days", "30", "--seed", "4", "--out", str(tmp_path))
    for name in ("payments.parquet", "outcomes.parquet"):
        assert pq.read_table(tmp_path / name).equals(pq.read_table(history / name))


def test_replay_of_a_trained_bundle_writes_decisions_and_metrics(history: Path, bundle: Path, tmp_path: Path) -> None:
    done = run_paywarden(
        *("replay", "--data", str(history), "--bundle", str(bundle), "--from", "2024-01-25", "--out", str(tmp_path))
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    wanted = {"auc_roc", "average_precision", "card_precision_at_100", "payments", "frauds", "payments_per_second"}
    assert wanted <= metrics.keys()
    decisions = pq.read_table(tmp_path / "decisions.parquet")
    assert decisions.num_rows == sum(metrics["actions"].values()) > 0


def test_stream_and_companion_without_topics_say_how_to_create_them(tmp_path: Path, settings: KafkaSettings) -> None:
    places = {
        "PAYWARDEN_KAFKA_BOOTSTRAP": settings.bootstrap,
        "PAYWARDEN_KAFKA_TOPIC_PREFIX": settings.topic_prefix,
        "PAYWARDEN_LMDB_PATH": str(tmp_path / "store"),
        "PAYWARDEN_MIRROR_PATH": str(tmp_path / "mirror"),
        "PAYWARDEN_OUTBOX_DIRECTORY": str(tmp_path / "outbox"),
    }
    for command in ("stream", "companion"):
        line = refused(command, **places)
        assert line.startswith(f"paywarden: topic {settings.topic_prefix}")
        assert line.endswith("does not exist: run `paywarden topics create`")


def test_a_missing_file_is_one_line(bundle: Path, tmp_path: Path) -> None:
    assert "payments.parquet" in refused(
        "replay", "--data", str(tmp_path), "--bundle", str(bundle), "--out", str(tmp_path / "out")
    )
    assert "nowhere.parquet" in refused(
        "convert", "handbook", "--input", str(tmp_path / "nowhere.parquet"), "--out", str(tmp_path)
    )
    assert "nowhere.toml" in refused("--config", str(tmp_path / "nowhere.toml"), "serve")


def test_an_impossible_day_is_one_line(history: Path, tmp_path: Path) -> None:
    line = refused(
        *("train", "--data", str(history), "--train-from", "yesterday", "--train-to", "2024-01-20"),
        *("--out", str(tmp_path / "b")),
    )
    assert "yesterday" in line


@pytest.mark.parametrize("command", ["stream", "companion"])
def test_an_unreachable_broker_is_one_line_that_names_it(command: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert address in refused(command, PAYWARDEN_KAFKA_BOOTSTRAP=address)


def test_topics_are_created_once(settings: KafkaSettings) -> None:
    environment = {
        "PAYWARDEN_KAFKA_BOOTSTRAP": settings.bootstrap,
        "PAYWARDEN_KAFKA_TOPIC_PREFIX": settings.topic_prefix,
        "PAYWARDEN_TOPICS_PARTITIONS": "3",
    }
    first, second = (run_paywarden("topics", "create", environment=environment) for _ in range(2))
    assert {settings.topic("payments"), settings.topic("decisions")} <= set(first.stdout.splitlines())
    assert len(partitions_of(settings, "payments")) == 3
    assert (second.returncode, second.stdout) == (0, "nothing to create\n")


def test_a_taken_port_is_one_line_that_names_it(bundle: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert port in refused(
            *("serve", "--bundle", str(bundle)),
            PAYWARDEN_HTTP_PORT=port,
            PAYWARDEN_SERVE_METRICS=str(tmp_path / "m"),
            PAYWARDEN_OUTBOX_DIRECTORY=str(tmp_path / "o"),
        )


def test_a_bundle_with_a_wrong_checksum_is_refused_in_one_line(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    with (copy / "model.txt").open("a", encoding="utf-8") as file:
        file.write("\n")
    assert "model.txt has a wrong checksum" in refused("serve", "--bundle", str(copy))


def test_a_bundle_of_another_catalogue_is_refused_in_one_line(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    manifest["catalogue_digest"] = "0" * 16
    (copy / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert "feature catalogue" in refused("serve", "--bundle", str(copy))


def test_a_setting_that_does_not_exist_is_named(tmp_path: Path) -> None:
    config = tmp_path / "paywarden.toml"
    config.write_text("[kafka]\nbootstap = 'x'\n", encoding="utf-8")
    assert "bootstap" in refused("--config", str(config), "stream")


def test_a_load_test_without_a_server_is_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        target = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert "cannot connect" in refused("load", "--target", target, "--rate", "10", "--seconds", "1")
