"""The command line from outside: an error is one clear line on stderr and a non-zero exit, without a traceback."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from paywarden.streams.kafka.admin import partitions_of
from paywarden.streams.kafka.client import KafkaSettings
from tests.services.product.processes import run_paywarden
from tests.worlds.small import small_world


def refused(*arguments: str, **environment: str) -> str:
    """Run a command that must fail. Returns its one line."""
    done = run_paywarden(*arguments, environment=environment)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


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


def test_a_taken_port_is_one_line_that_names_it(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert port in refused(
            *("serve", "--bundle", str(small_world.trained_bundle())),
            PAYWARDEN_HTTP_PORT=port,
            PAYWARDEN_SERVE_METRICS=str(tmp_path / "m"),
            PAYWARDEN_OUTBOX_DIRECTORY=str(tmp_path / "o"),
        )
