"""The index of decisions on a real broker: filled by the command, reviewed, lost, and rebuilt with its verdicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from paywarden.ops import wiring
from paywarden.ops.cli import cli
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.schemas.settings import read_source
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.topics import TopicSettings, create_topics
from tests.services.servers.kafka import produce
from tests.unit.streams.decision_index.test_index import made

IDS = LocalSchemaIds()


def send(settings: KafkaSettings, topic: str, records: list[dict[str, Any]]) -> None:
    encoder = Encoder(topic, IDS.id_of(topic))
    pairs = [(each["payment_id"], encoder.encode(each)) for each in records]
    produce(settings.bootstrap, settings.topic(topic), pairs)


def run(config: Path, *arguments: str) -> Any:
    done = CliRunner().invoke(cli, ["--config", str(config), "decisions", *arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_the_index_is_filled_lost_and_made_anew_with_its_verdicts(settings: KafkaSettings, tmp_path: Path) -> None:
    create_topics(settings, TopicSettings(partitions=2), [])
    send(settings, "decisions", [made(number) for number in range(60)])
    send(settings, "outcomes", [{"payment_id": "p3", "outcome_time_ms": 9, "label": "fraud", "source": "issuer"}])
    config = tmp_path / "paywarden.toml"
    config.write_text(
        f'[kafka]\nbootstrap = "{settings.bootstrap}"\ntopic_prefix = "{settings.topic_prefix}"\n'
        f'[decision_index]\npath = "{tmp_path / "index.duckdb"}"\nsecond_review_share = 0.0\nkeep_days = 100000\n'
        f'[store]\nkind = "lmdb"\n[lmdb]\npath = "{tmp_path / "store"}"\n',
        encoding="utf-8",
    )
    assert run(config, "index")["decisions"] == 60
    send(settings, "decisions", [made(60), made(61)])
    assert run(config, "index")["decisions"] == 62
    (found,) = run(config, "search", "--payment", "p3")["decisions"]
    assert found["outcome"] == {"label": "fraud", "time_ms": 9, "source": "issuer"}

    now_ms = found["decided_time_ms"] + 3_600_000
    with wiring.decision_index(read_source(str(config), {})) as (_, queue):
        before = queue.waiting(now_ms)[1]
        claim = queue.claim("ann", now_ms)
        assert claim is not None
        said = queue.decide("ann", claim.token, "fraud", "known_pattern", "", now_ms)
    # The verdict is sent from the database's outbox. Then the database is lost.
    run(config, "index")
    for file in tmp_path.glob("index.duckdb*"):
        file.unlink()
    assert run(config, "index", "--rebuild")["decisions"] == 62
    with wiring.decision_index(read_source(str(config), {})) as (_, queue):
        assert queue.verdicts_of(said.decision_id) == [said]
        assert queue.unsent(10) == []
        assert queue.waiting(now_ms)[1] == before - 1

    # A forgotten card is gone, and a rebuild from the topics keeps it gone.
    assert run(config, "search", "--card", "c1")["decisions"]
    forgotten = CliRunner().invoke(cli, ["--config", str(config), "admin", "forget", "card:c1"], catch_exceptions=False)
    assert forgotten.exit_code == 0, forgotten.output
    assert "every index of decisions gets the erasure" in forgotten.output
    left = 62 - sum(made(number)["card_id"] == "c1" for number in range(62))
    for arguments in (["index"], ["index", "--rebuild"]):
        assert run(config, *arguments)["decisions"] == left
        assert run(config, "search", "--card", "c1")["decisions"] == []
